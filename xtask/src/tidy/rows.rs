//! The rows of the notes on Linux's semantics, and the tests that prove them.
//!
//! Every row has a test whose name begins with its number (`r7_…`, `s4_…`, `tn3_…` for T-3, `g19_…`, `p16_…`, `t38_…`; several
//! in one name: `r8_t35_…`), or a line here that says why it has none, or waits in [`PENDING`].
//!
//! A test is a function under `#[test]`, or one of a conformance suite that a suite's macro lists.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::Source;

/// The rows: prefix, first, last.
const ROWS: [(&str, usize, usize); 9] = [
    ("K", 1, 21),
    ("R", 1, 22),
    ("S", 1, 9),
    ("T-", 1, 7),
    ("G", 1, 25),
    ("P", 1, 19),
    ("L", 1, 15),
    ("H", 1, 13),
    ("T", 1, 47),
];

/// Rows without a test, and why.
const WITHOUT: [(&str, &str); 11] = [
    (
        "T13",
        "what only a block points to is reachable for Miri, which runs these tests; a checker that cannot see the pages is to run after a barrier",
    ),
    (
        "R14",
        "a throttled barrier is a knob of the kernel's test suite; nothing here would call it",
    ),
    (
        "G6",
        "slots keep no copy of the sequence that could lag: `SegList::number` reads it anew each time (t38_…)",
    ),
    (
        "G12",
        "an exit reports nothing that could be deferred: the scan reads the slot's word (p3_… under loom)",
    ),
    (
        "G13",
        "boosting raises priorities of preempted readers, which user space cannot know",
    ),
    (
        "P6",
        "a reserve for interrupt handlers is the kernel's; a context that must not fail keeps pages of its own",
    ),
    (
        "P10",
        "a flood of large frees goes to the zone by batches of few blocks each, so there is nothing to hurry",
    ),
    (
        "P18",
        "several zones are several values; memory of different distance, compaction and unplugging are a kernel's",
    ),
    (
        "L4",
        "the fast path before sheaves, removed in 7.0: an alternative to H3, not built",
    ),
    (
        "H6",
        "one node of memory, and no slab asks for the emergency reserve: there is nothing to keep out of a sheaf",
    ),
    (
        "T43",
        "the snapshot's ordering is a pair with loom models: p2_enter_vs_scan, p3_exit_vs_scan, p3_second_section",
    ),
];

/// Rows whose tests are on their way. Empty when everything is done.
const PENDING: [&str; 0] = [];

/// A row's number as names of tests begin with it.
fn prefix(row: &str) -> String {
    row.replace("T-", "tn").to_lowercase()
}

fn rows() -> impl Iterator<Item = String> {
    ROWS.iter()
        .flat_map(|&(kind, first, last)| (first..=last).map(move |n| format!("{kind}{n}")))
}

/// The rows that a test's name claims: the words it begins with, as long as they are a letter or two and a number.
fn claims(name: &str) -> impl Iterator<Item = &str> {
    name.split('_').take_while(|word| {
        let number = word.trim_start_matches(|c: char| c.is_ascii_lowercase());
        let letters = word.len() - number.len();
        (1..=2).contains(&letters)
            && !number.is_empty()
            && number.chars().all(|c| c.is_ascii_digit())
    })
}

/// Whether a test of this file can be about this row: `p7_…` is a row in the page allocator's tests, and an ordering pair in
/// everybody else's and in loom models.
fn may_claim(path: &str, row: &str) -> bool {
    !row.starts_with('p') || (path.starts_with("pagealloc/") && !path.contains("/loom"))
}

/// The name of the function that is declared on this line.
fn declared(line: &str) -> Option<&str> {
    let rest = line.trim_start();
    let rest = rest.strip_prefix("pub ").unwrap_or(rest);
    let rest = rest.strip_prefix("fn ")?;
    rest.split(|c: char| !c.is_alphanumeric() && c != '_')
        .next()
        .filter(|name| !name.is_empty())
}

/// Functions under `#[test]`.
fn tests_in(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut under_test = false;
    for line in text.lines() {
        let code = line.trim_start();
        if code.starts_with("#[test]") {
            under_test = true;
        } else if let Some(name) = declared(code) {
            found.extend(under_test.then_some(name));
            under_test = false;
        } else if !code.starts_with("#[") && !code.starts_with("//") {
            under_test = false;
        }
    }
    found
}

/// The functions that a suite's macro lists: what stands between brackets after its name.
fn listed_in(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (at, mark) in text.match_indices("__conformance!(") {
        let rest = &text[at + mark.len()..];
        let list = rest
            .split_once('[')
            .and_then(|(_, rest)| rest.split_once(']'));
        if let Some((list, _)) = list {
            found.extend(list.split(',').map(str::trim).filter(|n| !n.is_empty()));
        }
    }
    found
}

/// The tests of each row, as `crate::name`, by the row's prefix.
fn tests(sources: &[Source]) -> BTreeMap<String, BTreeSet<String>> {
    let mut tests: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources.iter().filter(|source| source.is_rust()) {
        let Some(path) = source.path.strip_prefix("crates/") else {
            continue;
        };
        let krate = path.split('/').next().unwrap_or_default();
        let mut names = tests_in(&source.text);
        if path.contains("conformance") {
            names.extend(listed_in(&source.text));
        }
        for name in names {
            for row in claims(name).filter(|row| may_claim(path, row)) {
                let of_row = tests.entry(row.to_owned()).or_default();
                of_row.insert(format!("{krate}::{name}"));
            }
        }
    }
    tests
}

/// (i) Every row has a test, or a reason why not.
pub(super) fn unproved(sources: &[Source]) -> Vec<String> {
    judge(&tests(sources), &WITHOUT, &PENDING)
}

fn judge(
    tests: &BTreeMap<String, BTreeSet<String>>,
    without: &[(&str, &str)],
    pending: &[&str],
) -> Vec<String> {
    let mut complaints = Vec::new();
    for row in rows() {
        let proved = tests.contains_key(&prefix(&row));
        let excused = without.iter().any(|(name, _)| *name == row);
        let waits = pending.contains(&row.as_str());
        if proved && excused {
            complaints.push(format!(
                "{row}: has tests now; its line in rows.rs is out of date"
            ));
        } else if !proved && !excused && !waits {
            let prefix = prefix(&row);
            complaints.push(format!(
                "{row}: no test is called {prefix}_…, and rows.rs does not say why"
            ));
        }
    }
    let known: BTreeSet<String> = rows().collect();
    let named = without.iter().map(|(name, _)| *name);
    for name in named.chain(pending.iter().copied()) {
        if !known.contains(name) {
            complaints.push(format!(
                "{name}: rows.rs names it, but there is no such row"
            ));
        }
    }
    complaints
}

/// Every row with its tests, or the reason why it has none.
pub(super) fn table(sources: &[Source]) -> String {
    let tests = tests(sources);
    let mut table = String::new();
    for row in rows() {
        let (first, rest) = match tests.get(&prefix(&row)) {
            Some(tests) => {
                let mut tests = tests.iter().map(String::as_str);
                (tests.next().unwrap_or_default(), tests.collect())
            }
            None => {
                let reason = WITHOUT.iter().find(|(name, _)| *name == row);
                (reason.map_or("pending", |(_, why)| *why), Vec::new())
            }
        };
        let _ = writeln!(table, "{row:<5} {first}");
        for test in rest {
            let _ = writeln!(table, "      {test}");
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    #[test]
    fn names_claim_rows_by_their_first_words() {
        let of = |name| claims(name).collect::<Vec<_>>();
        assert_eq!(of("r8_t35_full_cookie"), ["r8", "t35"]);
        assert_eq!(of("tn3_all_that_is_ready_r4"), ["tn3"]);
        assert_eq!(of("offsets_free_r4"), [""; 0]);
        assert_eq!(of("abc1_x"), [""; 0]);
        assert_eq!(of("r_1"), [""; 0]);
        assert_eq!((prefix("T-7"), prefix("G19")), ("tn7".into(), "g19".into()));
    }

    #[test]
    fn an_ordering_pair_is_not_a_row() {
        assert!(may_claim("pagealloc/tests/zone.rs", "p7"));
        assert!(!may_claim("pagealloc/tests/loom.rs", "p7"));
        assert!(!may_claim("rcu-core/tests/prop.rs", "p7"));
        assert!(may_claim("rcu-core/tests/loom.rs", "t38"));
    }

    #[test]
    fn only_what_runs_as_a_test_counts() {
        let text = "fn r1_helper() {}\n#[test]\n#[should_panic(expected = \"x\")]\n/// Why.\nfn r2_a() {\n}\n\
                    fn r3_no() {}\nproptest! {\n    #[test]\n    fn r4_b(x in 0..1) {}\n}\n";
        assert_eq!(tests_in(text), ["r2_a", "r4_b"]);
        let suite = "pub fn s1_x() {}\npub fn s2_y() {}\n$crate::__conformance!(\n    $name,\n    $make,\n    [\n        \
                     s1_x,\n        s3_z\n    ]\n);\n";
        assert_eq!(listed_in(suite), ["s1_x", "s3_z"]);
        let found = tests(&[
            source("crates/a/tests/t.rs", text),
            source("crates/b/src/conformance.rs", suite),
            source("xtask/src/x.rs", "#[test]\nfn r5_not_of_a_crate() {}\n"),
        ]);
        let rows: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(rows, ["r2", "r4", "s1", "s3"]);
        assert!(found["r2"].contains("a::r2_a"));
    }

    #[test]
    fn a_row_without_a_test_needs_a_reason() {
        let all: BTreeMap<_, _> = rows()
            .map(|row| (prefix(&row), BTreeSet::from(["a::b".to_owned()])))
            .collect();
        assert_eq!(judge(&all, &[], &[]), [""; 0]);
        let mut some = all.clone();
        some.remove("g12");
        let found = judge(&some, &[], &[]);
        assert!(found.len() == 1 && found[0].starts_with("G12: no test is called g12_"));
        assert_eq!(judge(&some, &[("G12", "because")], &[]), [""; 0]);
        assert_eq!(judge(&some, &[], &["G12"]), [""; 0]);
        let found = judge(&all, &[("G12", "because")], &["X1"]);
        assert!(found[0].contains("out of date") && found[1].contains("no such row"));
    }

    #[test]
    fn no_row_is_both_excused_and_pending() {
        for (row, why) in WITHOUT {
            assert!(!PENDING.contains(&row), "{row}");
            assert!(why.len() > 20, "{row}");
        }
    }
}
