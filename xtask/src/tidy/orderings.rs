//! Atomic accesses: each names the ordering pair that it is one side of, and the pair exists.
//!
//! The house rule (STYLE 14) is a comment `// ORDERING: P3 (exit side).` at every shared atomic access. What is
//! checked is that such a comment stands on the access's line or close above it, and that the pairs it names are
//! rows of ARCHITECTURE.md's table. Whether the argument is right is a reviewer's and loom's matter.
//!
//! This reads lines, not syntax trees: sources are formatted by rustfmt, and a rule that a person can check by eye is
//! one that a person can follow.

use std::collections::BTreeSet;

use super::Source;

const MARK: &str = "ORDERING:";
const ORDERINGS: [&str; 5] = ["Relaxed", "Acquire", "Release", "AcqRel", "SeqCst"];

/// How many lines of code may stand between the comment and the access. A call that rustfmt spreads over lines, or
/// a loop's load and exchange under one argument, fit; two unrelated accesses hardly do.
const REACH: usize = 6;

/// The crates' own sources, not their tests.
pub(super) fn applies_to(path: &str) -> bool {
    let inside = path
        .strip_prefix("crates/")
        .and_then(|rest| rest.split_once("/src/"));
    inside.is_some_and(|(_, file)| {
        let is_test = file
            .split('/')
            .any(|part| matches!(part, "tests.rs" | "tests"));
        file.ends_with(".rs") && !is_test
    })
}

/// (g) Every place that orders memory has its comment. A constant that holds an ordering, or a function
/// `…_order() -> Ordering` that gives one (a mutant's switch), is none; each use of it is.
pub(super) fn uncommented(source: &Source) -> Vec<String> {
    let lines = lines(&source.text);
    let orderings = orderings_of(&lines);
    let mut complaints = Vec::new();
    let mut code_lines_since_mark = None;
    for line in &lines {
        if line.raw.contains(MARK) {
            code_lines_since_mark = Some(0);
        } else if !line.code.trim().is_empty() {
            code_lines_since_mark = code_lines_since_mark.map(|count| count + 1);
        }
        let orders = !line.is_declaration && !line.in_tests && orderings.are_in(&line.code);
        if orders && code_lines_since_mark.is_none_or(|count| count > REACH) {
            complaints.push(format!(
                "{}:{}: memory ordering without an {MARK} comment",
                source.path, line.number
            ));
        }
    }
    complaints
}

/// The words that stand for an ordering in one file.
struct Orderings<'s> {
    /// Its constants of type `Ordering`, and its functions that stand for one.
    constants: BTreeSet<&'s str>,
    /// Its own types that share a name with an ordering.
    types: BTreeSet<&'s str>,
}

fn orderings_of<'s>(lines: &'s [Line<'_>]) -> Orderings<'s> {
    let mut found = Orderings {
        constants: BTreeSet::new(),
        types: BTreeSet::new(),
    };
    for line in lines {
        let mut words = words(&line.code).filter(|word| !word.is_empty());
        while let Some(word) = words.next() {
            match word {
                "const" if line.code.contains(": Ordering") => found.constants.extend(words.next()),
                "fn" if gives_an_ordering(&line.code) => found.constants.extend(words.next()),
                "struct" | "enum" | "trait" | "type" => found.types.extend(words.next()),
                _ => {}
            }
        }
    }
    found
}

impl Orderings<'_> {
    fn are_in(&self, code: &str) -> bool {
        words(code).any(|word| {
            let bare = ORDERINGS.contains(&word) && !self.types.contains(word);
            bare || self.constants.contains(word)
        }) || ORDERINGS
            .iter()
            .any(|word| code.contains(&format!("Ordering::{word}")))
    }
}

/// (h) Every pair that a comment names is in the table.
pub(super) fn unknown_pairs(source: &Source, pairs: &BTreeSet<String>) -> Vec<String> {
    let mut complaints = Vec::new();
    for (number, line) in (1..).zip(source.text.lines()) {
        let Some((_, words)) = line.split_once(MARK) else {
            continue;
        };
        for pair in pairs_in(words) {
            if !pairs.contains(&pair) {
                complaints.push(format!(
                    "{}:{number}: {pair} is not a row of ARCHITECTURE.md",
                    source.path
                ));
            }
        }
    }
    complaints
}

/// The pairs of a Markdown document: all `P<n>` in the first cells of its tables' rows.
pub(super) fn pairs(document: &str) -> BTreeSet<String> {
    document
        .lines()
        .filter_map(|line| line.trim().strip_prefix('|')?.split('|').next())
        .flat_map(pairs_in)
        .collect()
}

/// The words `P<n>` of a text.
fn pairs_in(text: &str) -> Vec<String> {
    words(text)
        .filter(|word| {
            let digits = word.strip_prefix('P').unwrap_or_default();
            !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
        })
        .map(str::to_owned)
        .collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// A line, and what a check needs to know of its surroundings.
pub(super) struct Line<'s> {
    pub(super) number: usize,
    raw: &'s str,
    /// Without comment and string literals.
    pub(super) code: String,
    /// An import, or a constant or function that stands for an `Ordering`: names orderings and uses none.
    pub(super) is_declaration: bool,
    pub(super) in_tests: bool,
}

pub(super) fn lines(text: &str) -> Vec<Line<'_>> {
    let mut lines = Vec::new();
    let mut declaration: Option<End> = None;
    // The indentation of the test module that we are in; rustfmt closes it at the same.
    let mut tests_indent: Option<usize> = None;
    let mut test_attribute = false;
    for (number, raw) in (1..).zip(text.lines()) {
        let code = code_of(raw);
        let words = code.trim();
        let indent = raw.len() - raw.trim_start().len();
        declaration = declaration.or_else(|| begins_declaration(words, indent));
        let is_declaration = declaration.is_some();
        declaration = declaration.filter(|end| match end {
            End::Semicolon => !words.ends_with(';'),
            End::Brace(of) => words != "}" || indent != *of,
        });
        if test_attribute && tests_indent.is_none() && words.ends_with('{') {
            tests_indent = Some(indent);
        }
        let in_tests = tests_indent.is_some();
        if tests_indent == Some(indent) && words == "}" {
            tests_indent = None;
        }
        if words.starts_with("#[cfg(") && words.contains("test") && !is_negated(words) {
            test_attribute = true;
        } else if !words.is_empty() && !words.starts_with("#[") {
            test_attribute = false;
        }
        lines.push(Line {
            number,
            raw,
            code,
            is_declaration,
            in_tests,
        });
    }
    lines
}

/// Whether a condition is true where no tests are built.
fn is_negated(condition: &str) -> bool {
    ["not(test", "not(any(", "not(all("]
        .iter()
        .any(|start| condition.contains(start))
}

/// What ends a declaration.
enum End {
    Semicolon,
    /// A brace that is indented like the beginning.
    Brace(usize),
}

fn begins_declaration(code: &str, indent: usize) -> Option<End> {
    let mut words = code.split_whitespace();
    let first = words.by_ref().find(|word| !word.starts_with("pub"));
    match first {
        Some("use") => Some(End::Semicolon),
        Some("const") if code.contains(": Ordering") => Some(End::Semicolon),
        _ if gives_an_ordering(code) => Some(End::Brace(indent)),
        _ => None,
    }
}

/// Whether a function of this signature stands for a memory ordering.
fn gives_an_ordering(code: &str) -> bool {
    code.contains("fn ") && code.contains("_order() -> Ordering {")
}

/// What of a line the compiler reads as code: cut at `//`, string literals emptied.
fn code_of(line: &str) -> String {
    let mut code = String::new();
    let mut in_string = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_string => {
                chars.next();
            }
            '"' => in_string = !in_string,
            _ if in_string => {}
            '\'' if chars.peek() == Some(&'"') => {
                // The character literal of a quote opens no string.
                chars.next();
            }
            '/' if chars.peek() == Some(&'/') => break,
            _ => code.push(c),
        }
    }
    code
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    fn complaints(text: &str) -> Vec<String> {
        uncommented(&source("crates/slab/src/x.rs", text))
    }

    #[test]
    fn only_the_crates_own_code_is_held_to_it() {
        assert!(applies_to("crates/slab/src/barn.rs"));
        assert!(applies_to("crates/slab/src/a/b.rs"));
        for path in [
            "crates/slab/tests/loom.rs",
            "crates/slab/src/barn/tests.rs",
            "crates/slab/src/tests/x.rs",
            "crates/kvfree/benches/scale.rs",
            "crates/slab/src/notes.md",
            "xtask/src/main.rs",
        ] {
            assert!(!applies_to(path), "{path}");
        }
    }

    #[test]
    fn an_access_with_its_comment_passes() {
        for text in [
            "// ORDERING: P3 (exit side).\na.store(1, Ordering::Release);\n",
            "a.load(Acquire); // ORDERING: P3.\n",
            "// ORDERING: P4.\n//\n// more\n// words\n// here\n// and\n// there\n// yet\na.load(Acquire);\n",
            "// ORDERING: P8.\nmatch a\n    .b\n    .compare_exchange(\n        0,\n        1,\n        AcqRel,\n",
        ] {
            assert_eq!(complaints(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn what_is_no_access_passes() {
        for text in [
            "use core::sync::atomic::Ordering::{Acquire, Release};\n",
            "pub(crate) use core::sync::atomic::Ordering::{\n    Acquire,\n    Release,\n};\n",
            "// a Relaxed load\n/// Relaxed\n//! SeqCst\n",
            "panic!(\"Relaxed // SeqCst\");\n",
            "struct Release;\nimpl Drop for Release {}\n",
            "const END: Ordering = if cfg!(weaken = \"p4\") {\n    Ordering::Relaxed\n} else {\n    Ordering::Release\n};\n",
            "fn end_order() -> Ordering {\n    if x {\n        Ordering::Relaxed\n    } else {\n        Ordering::Release\n    }\n}\n",
            "a.cmp(&b) == Ordering::Less;\n",
            "#[cfg(test)]\nmod tests {\n    fn f() {\n        a.load(Relaxed);\n    }\n}\n",
            "#[cfg(all(test, not_loom))]\n#[expect(dead_code)]\nmod tests {\n    const A: O = Relaxed;\n}\n",
        ] {
            assert_eq!(complaints(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn an_access_without_its_comment_is_reported() {
        for (text, line) in [
            ("a.store(1, Ordering::Release);\n", 1),
            ("let s = '\"';\na.load(Relaxed);\n", 2),
            (
                "// ORDERING: P3.\n1;\n2;\n3;\n4;\n5;\n6;\na.load(SeqCst);\n",
                8,
            ),
            (
                "#[cfg(test)]\nmod tests {\n    x();\n}\na.load(Acquire);\n",
                5,
            ),
            (
                "#[cfg(not(test))]\nmod real {\n    a.load(Acquire);\n}\n",
                3,
            ),
            (
                "fn end_order() -> Ordering {\n    Ordering::Release\n}\na.store(1, end_order());\n",
                4,
            ),
            (
                "const END: Ordering = Ordering::Release;\na.store(1, END);\n",
                2,
            ),
            ("struct Release;\na.store(1, Ordering::Release);\n", 2),
            ("pub(crate) const N: usize = 3;\na.load(Relaxed);\n", 2),
            ("use a::{\n    B,\n};\na.load(Acquire);\n", 4),
        ] {
            let found = complaints(text);
            let place = format!("crates/slab/src/x.rs:{line}:");
            assert!(
                found.len() == 1 && found[0].starts_with(&place),
                "{text}: {found:?}"
            );
        }
    }

    #[test]
    fn pairs_come_from_the_tables_first_cells() {
        let document = "P9 in prose\n| pair | sites |\n|---|---|\n| P1 publish/load | P7 |\n| P2 a, P3 b | x |\n";
        let pairs = pairs(document);
        assert_eq!(pairs.iter().collect::<Vec<_>>(), ["P1", "P2", "P3"]);
        let good = source("a.rs", "// ORDERING: P1 (load side), P3.\n// P55\n");
        assert_eq!(unknown_pairs(&good, &pairs), [""; 0]);
        let bad = source("a.rs", "x\n// ORDERING: P7; see POP3.\n");
        let found = unknown_pairs(&bad, &pairs);
        assert!(
            found.len() == 1 && found[0].starts_with("a.rs:2: P7"),
            "{found:?}"
        );
    }
}
