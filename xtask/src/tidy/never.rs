//! The lines of ARCHITECTURE.md's Never list that a program can look for: 2, 3, 5, 6 and 8.
//!
//! Each is looked for where it would be written, not where it would lead: a wait two calls away from `retire` is found by tests and
//! reviewers. Lists of exceptions are here, each with its reason, so that one more shows in review.

use quote::ToTokens;
use syn::{Block, ImplItem, Item};

use super::Source;
use super::orderings::{self, Line};

/// Crates that never call the global allocator.
const WITHOUT_HEAP: [&str; 5] = ["rcu-core", "rcu-tiny", "rcu-tree", "pagealloc", "slab"];

/// Files in them that may: what they make is for threads under `std`, for tests of implementers, for models, or for explorers.
const MAY_ALLOCATE: [&str; 5] = [
    "/conformance",
    "/explorer",
    "/models.rs",
    "/model.rs",
    "/worker.rs",
];

const HEAP: [&str; 7] = [
    "Box::new",
    "Box::leak",
    "Vec::new",
    "vec!",
    "format!",
    "String::from",
    "alloc::alloc(",
];

/// What a function of this name, in these files, does not call.
struct Rule {
    number: u8,
    files: &'static str,
    applies: fn(&str) -> bool,
    calls: &'static [&'static str],
    why: &'static str,
}

fn is_retire(name: &str) -> bool {
    name.starts_with("retire") && !name.starts_with("retired")
}

/// Those whose documentation says so: they have no head to fall back on.
fn may_sleep(name: &str) -> bool {
    name.contains("mightsleep") || name.starts_with("retire_box") || name.ends_with("_slow")
}

const WAITS: &[&str] = &[
    "synchronize",
    "wait",
    "barrier",
    "sleep",
    "park",
    "join",
    "recv",
];

const RULES: [Rule; 5] = [
    Rule {
        number: 3,
        files: "crates/kvfree/src/",
        applies: |name| is_retire(name) && !may_sleep(name),
        calls: WAITS,
        why: "only what says that it may sleep may wait",
    },
    Rule {
        number: 3,
        files: "crates/slab/src/",
        applies: is_retire,
        calls: WAITS,
        why: "retiring never waits",
    },
    Rule {
        number: 6,
        files: "crates/rcu-tree/src/reader.rs",
        applies: |name| name.starts_with("enter") || name.starts_with("exit"),
        calls: &["drive", "scan", "step", "heavy", "run_callbacks", "report"],
        why: "readers do nobody else's work",
    },
    Rule {
        number: 6,
        files: "crates/rcu-tree/src/tree/",
        applies: |name| name == "enter" || name == "exit",
        calls: &["drive", "scan", "step", "heavy", "run_callbacks", "report"],
        why: "readers do nobody else's work",
    },
    Rule {
        number: 6,
        files: "crates/rcu-tree/src/tree/wait.rs",
        applies: |name| name == "drive",
        calls: &["check_stalls", "report"],
        why: "`drive` may be called where nothing may block",
    },
];

/// (l) What may never happen, where a program can see it.
pub(super) fn broken(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    if !orderings::applies_to(&source.path) {
        return complaints;
    }
    let mut say = |number: usize, rule: u8, what: &str| {
        complaints.push(format!("{}:{number}: Never {rule}: {what}", source.path));
    };
    for line in orderings::lines(&source.text) {
        if line.in_tests {
            continue;
        }
        if is_wild_fence(source, &line) {
            say(
                line.number,
                5,
                "`SeqCst` is for fences, and fences are `fence::full`, `light` and `heavy`",
            );
        }
        if let Some(word) = HEAP.iter().find(|word| has_word(&line.code, word))
            && has_no_heap(&source.path)
        {
            say(
                line.number,
                2,
                &format!("`{word}` is the global allocator's"),
            );
        }
        let of_boxes = ["Box<dyn Fn", "Box < dyn Fn"];
        if of_boxes.iter().any(|word| line.code.contains(word)) {
            say(line.number, 2, "no closure in a box");
        }
        let ordered =
            source.path.ends_with("rcu-core/src/seq.rs") && line.code.contains("PartialOrd");
        if ordered {
            say(
                line.number,
                8,
                "sequences and cookies wrap: they have no order",
            );
        }
    }
    // What does not parse is rustc's to complain about.
    if let Ok(file) = syn::parse_file(&source.text) {
        for (name, body) in functions(&file.items) {
            for rule in &RULES {
                if source.path.starts_with(rule.files) && (rule.applies)(&name) {
                    let found = called(body, rule.calls);
                    complaints.extend(found.map(|call| {
                        let Rule { number, why, .. } = rule;
                        format!(
                            "{}: Never {number}: `{name}` calls `{call}`: {why}",
                            source.path
                        )
                    }));
                }
            }
        }
    }
    complaints
}

/// Whether `word` begins a word there (an `ArrayVec` is none).
fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '_')
    })
}

fn has_no_heap(path: &str) -> bool {
    let of_crate = |name: &&str| path.starts_with(&format!("crates/{name}/"));
    WITHOUT_HEAP.iter().any(of_crate) && !MAY_ALLOCATE.iter().any(|part| path.contains(part))
}

/// `SeqCst` outside of a fence; a hardware fence outside of the module that has them. (A compiler's fence orders a thread with its own
/// interrupts, which no other does.)
fn is_wild_fence(source: &Source, line: &Line<'_>) -> bool {
    let in_module = source.path == "crates/rcu-core/src/fence.rs";
    let code = line.code.replace("compiler_fence(Ordering::SeqCst", "(");
    !in_module
        && !line.is_declaration
        && (code.contains("Ordering::SeqCst") || code.contains("atomic::fence("))
}

/// Functions with their bodies, those of implementations too.
fn functions(items: &[Item]) -> Vec<(String, &Block)> {
    let mut found = Vec::new();
    for item in items {
        match item {
            Item::Fn(it) => found.push((it.sig.ident.to_string(), it.block.as_ref())),
            Item::Impl(it) => found.extend(it.items.iter().filter_map(|part| match part {
                ImplItem::Fn(it) => Some((it.sig.ident.to_string(), &it.block)),
                _ => None,
            })),
            _ => {}
        }
    }
    found
}

/// Which of these a body calls.
fn called<'c>(
    body: &Block,
    calls: &'c [&'static str],
) -> impl Iterator<Item = &'static str> + use<'c> {
    let text = body.to_token_stream().to_string();
    let is_called = move |name: &str| has_word(&text, &format!("{name} ("));
    calls.iter().filter(move |&name| is_called(name)).copied()
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        broken(&source(path, text))
    }

    #[test]
    fn each_rule_has_a_case_that_breaks_it_and_one_that_does_not() {
        for (path, bad, good) in [
            (
                "crates/slab/src/barn.rs",
                "a.load(Ordering::SeqCst);",
                "compiler_fence(Ordering::SeqCst);",
            ),
            (
                "crates/slab/src/barn.rs",
                "core::sync::atomic::fence(x);",
                "fence::full();",
            ),
            (
                "crates/slab/src/barn.rs",
                "let b = Box::new(1);",
                "// Box::new(1)",
            ),
            (
                "crates/slab/src/barn.rs",
                "let b = Vec::new();",
                "let b = ArrayVec::new();",
            ),
            (
                "crates/pagealloc/src/zone.rs",
                "let v = vec![1];",
                "#[cfg(test)]\nmod tests {\n    fn f() {\n        vec![1];\n    }\n}\n",
            ),
            (
                "crates/kvfree/src/a.rs",
                "type F = Box<dyn Fn()>;",
                "type F = fn();",
            ),
            (
                "crates/rcu-core/src/seq.rs",
                "#[derive(PartialOrd)]",
                "#[derive(PartialEq)]",
            ),
            (
                "crates/kvfree/src/a.rs",
                "fn retire() { rcu.synchronize(); }",
                "fn retire_mightsleep() { rcu.synchronize(); }",
            ),
            (
                "crates/slab/src/a.rs",
                "impl A { fn retire_slow(&self) { self.gp.wait(c); } }",
                "fn barrier() { gp.wait(c); }",
            ),
            (
                "crates/rcu-tree/src/reader.rs",
                "fn enter() { fence::heavy(); }",
                "fn enter() { fence::light(); }",
            ),
            (
                "crates/rcu-tree/src/tree/read.rs",
                "impl R for T { fn exit(&self) { self.drive(); } }",
                "fn exit() { overdrive(); }",
            ),
            (
                "crates/rcu-tree/src/tree/wait.rs",
                "fn drive() { self.check_stalls() }",
                "fn wait() { self.check_stalls() }",
            ),
        ] {
            let complaints = found(path, bad);
            assert!(
                complaints.len() == 1 && complaints[0].contains("Never"),
                "{bad}: {complaints:?}"
            );
            assert_eq!(found(path, good), [""; 0], "{good}");
        }
    }

    #[test]
    fn where_threads_are_made_and_implementers_tested_there_is_a_heap() {
        for path in [
            "crates/kvfree/src/stack.rs",
            "crates/rcu-tree/src/worker.rs",
            "crates/rcu-core/src/conformance/cpus.rs",
            "crates/slab/tests/prop.rs",
            "xtask/src/main.rs",
        ] {
            assert_eq!(found(path, "let b = Box::new(1);"), [""; 0], "{path}");
        }
    }
}
