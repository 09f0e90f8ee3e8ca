//! `cargo xtask valgrind`: a short pass of memcheck, which knows what AddressSanitizer does not: reads of memory that nobody wrote.
//!
//! A choice of test files, since a program runs twenty to fifty times slower there, and its threads one at a time.

use std::env;

use clap::Args;

use crate::cargo::{Failure, Workspace, host_triple};
use crate::choice::Choice;
use crate::tools::VALGRIND;

/// Run a choice of tests under valgrind's memcheck
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  cargo xtask valgrind\n\n\
                  PROPTEST_CASES sets the cases per property (default 4).")]
pub(crate) struct Options {}

/// What runs: strings of operations over the words, each layer's cases by example, and the stack with its threads. The other layers'
/// strings have as many cases as they need, which is too many here.
const CHOICE: [(&str, &[&str]); 6] = [
    ("rcu-core", &["prop", "cpu", "head"]),
    ("rcu-tiny", &["prop"]),
    ("rcu-tree", &["calls", "barrier"]),
    ("pagealloc", &["blocks"]),
    ("slab", &["prefill", "turnover", "stable"]),
    ("kvfree", &["boxes", "stack"]),
];

const PROPTEST_CASES: &str = "4";

/// Leaks are not looked for: tests leave in place what must stay for ever. Threads take turns fairly, or one that spins
/// keeps the one it waits for from running.
const RUNNER: &str =
    "valgrind --quiet --error-exitcode=99 --leak-check=no --fair-sched=yes --num-callers=30";

pub(crate) fn run(workspace: &Workspace, Options {}: &Options) -> Result<(), Failure> {
    VALGRIND.require("valgrind")?;
    let host = host_triple()?;
    let runner = format!(
        "CARGO_TARGET_{}_RUNNER",
        host.to_uppercase().replace(['-', '.'], "_")
    );
    let mut choice = Choice::of("valgrind");
    for (package, files) in CHOICE {
        let mut command = workspace.cargo();
        command.args(["test", "--quiet", "--no-fail-fast", "-p", package]);
        for file in files {
            command.args(["--test", file]);
        }
        command.env(&runner, RUNNER);
        if env::var_os("PROPTEST_CASES").is_none() {
            command.env("PROPTEST_CASES", PROPTEST_CASES);
        }
        choice.run(package, &files.join(", "), &mut command);
    }
    choice.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_choice_is_there() {
        let workspace = Workspace::locate().expect("cargo metadata");
        for (package, files) in CHOICE {
            for file in files {
                assert!(
                    workspace.has_target(package, "test", file),
                    "{package}/{file}"
                );
            }
        }
    }
}
