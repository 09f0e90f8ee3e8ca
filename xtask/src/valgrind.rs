//! `cargo xtask valgrind`: a short pass of memcheck, which knows what AddressSanitizer does not: reads of memory that nobody wrote.
//!
//! A choice of test files, since a program runs twenty to fifty times slower there, and its threads one at a time.

use std::env;
use std::io::{self, Write};
use std::time::Instant;

use clap::Args;

use crate::cargo::{Failure, Workspace, host_triple};
use crate::tools::{self, VALGRIND};

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
    let mut failed = Vec::new();
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
        let begun = Instant::now();
        let outcome = tools::run(&mut command);
        let seconds = begun.elapsed().as_secs_f64();
        let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
        let files = files.join(", ");
        say(&format!(
            "valgrind: {package} ({files}): {verdict}, {seconds:.1} s"
        ));
        if outcome.is_err() {
            failed.push(package);
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        let packages = failed.join(", ");
        Err(Failure::Run(format!("valgrind: failed in {packages}")))
    }
}

fn say(line: &str) {
    // A closed pipe has seen what it wanted.
    let _ = writeln!(io::stdout(), "{line}");
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
