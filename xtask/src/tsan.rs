//! `cargo xtask tsan`: the stress tests under ThreadSanitizer, which reports two accesses of one place that nothing orders.
//!
//! It does not see `membarrier`, and no fence orders anything for it; under the cfg `thread_sanitizer` readers' fences are full ones,
//! and what is ordered by fences alone are atomic accesses, which are no races. So what it judges is the objects themselves: that
//! whoever frees or reuses one comes after whoever had it, by loads and stores that order. That it would find the contrary is
//! tried on the mutants of such orderings (`rcu_core::weaken`), each of which must be reported.
//!
//! The standard library is built along, so that its locks and threads are seen: that needs a nightly toolchain with sources.

use std::env;
use std::process::Command;
use std::time::Instant;

use clap::Args;

use crate::cargo::{Failure, Workspace, host_triple};
use crate::choice::Choice;
use crate::tools::{self, RUST_SRC};

/// Run the stress tests under ThreadSanitizer, where a nightly toolchain has the standard library's sources
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask tsan\n  cargo xtask tsan -p slab\n\n\
                  PROPTEST_CASES sets the cases per property (default 16)."
)]
pub(crate) struct Options {
    /// Only this crate's tests
    #[arg(short, long, value_name = "CRATE", value_parser = CHOICE.map(|(name, _)| name))]
    package: Option<String>,
}

/// What runs of each crate. rcu-tiny has one CPU, and no threads to race.
const CHOICE: [(&str, &[&str]); 5] = [
    ("rcu-core", &["cpu", "conformance", "list", "nulls"]),
    (
        "rcu-tree",
        &["stress", "calls", "barrier", "send", "qsbr", "lists"],
    ),
    ("pagealloc", &["stress", "together"]),
    ("slab", &["stress", "sharing", "stable_readers", "turnover"]),
    ("kvfree", &["stress", "stack", "boxes"]),
];

/// Mutants that must be reported: the name, the crate and the test file.
const CONTROLS: [(&str, &str, &str); 2] = [
    ("p3", "rcu-tree", "stress"),
    ("p7_stash", "pagealloc", "stress"),
];

const PROPTEST_CASES: &str = "16";

/// One build serves what is sound and the mutants: the environment names one, or none.
const FLAGS: &str = "-Zsanitizer=thread --cfg thread_sanitizer --cfg weaken=\"any\"";

/// What a report begins with.
const REPORT: &str = "WARNING: ThreadSanitizer: data race";

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    RUST_SRC.require("tsan")?;
    let host = host_triple()?;
    let is_chosen = |name: &str| options.package.as_deref().is_none_or(|only| only == name);
    let mut choice = Choice::of("tsan");
    for (package, files) in CHOICE.into_iter().filter(|(name, _)| is_chosen(name)) {
        let mut command = command(workspace, &host, package, files);
        choice.run(package, &files.join(", "), &mut command);
    }
    for (mutant, package, file) in CONTROLS.into_iter().filter(|(_, name, _)| is_chosen(name)) {
        let begun = Instant::now();
        let mut command = command(workspace, &host, package, &[file]);
        let output = tools::output_of(command.env("WEAKEN", mutant))?;
        let text = [output.stdout, output.stderr].concat();
        let is_found = String::from_utf8_lossy(&text).contains(REPORT);
        let verdict = if is_found { "reported" } else { "NOT REPORTED" };
        let tests = format!("{file} with {mutant} weakened");
        choice.say(package, &tests, verdict, begun);
        if !is_found {
            choice.fail(format!("{package} ({mutant} is not reported)"));
        }
    }
    choice.end()
}

fn command(workspace: &Workspace, host: &str, package: &str, files: &[&str]) -> Command {
    let mut command = Command::new(RUST_SRC.program);
    command.current_dir(&workspace.root);
    command.args(["run", "nightly", "cargo", "test", "--quiet", "-Zbuild-std"]);
    command.args(["--target", host, "--no-fail-fast", "--all-features"]);
    command.args(["-p", package]);
    for file in files {
        command.args(["--test", file]);
    }
    command.env("CARGO_TARGET_DIR", workspace.target.join("tsan"));
    command.env("RUSTFLAGS", FLAGS);
    command.env_remove("WEAKEN");
    if env::var_os("PROPTEST_CASES").is_none() {
        command.env("PROPTEST_CASES", PROPTEST_CASES);
    }
    // The toolchain that runs this program is another one.
    for name in ["CARGO", "RUSTC", "RUSTDOC"] {
        command.env_remove(name);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_choice_is_there() {
        let workspace = Workspace::locate().expect("cargo metadata");
        let controls = CONTROLS.iter().map(|&(_, package, file)| (package, file));
        let chosen = CHOICE
            .iter()
            .flat_map(|&(package, files)| files.iter().map(move |&file| (package, file)));
        for (package, file) in chosen.chain(controls) {
            assert!(
                workspace.has_target(package, "test", file),
                "{package}/{file}"
            );
        }
    }
}
