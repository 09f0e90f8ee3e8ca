//! `cargo xtask miri`: a choice of tests in Miri, which follows each pointer's provenance and each access's permission.
//!
//! The crates see `cfg(miri)`: fences are full on both sides, a reservation of addresses is memory, names of threads are not asked
//! for, and tests with many steps take fewer. What Miri cannot do (`fork`, signals, protected pages) is left out there.
//!
//! A choice, since a step takes some thousand times as long there. The whole stack's tests are not in it: Miri keeps its
//! notes of a mapping in one sorted array, and an allocator's mapping has a note for each word.

use std::env;
use std::process::Command;

use clap::Args;

use crate::cargo::{CRATES, Failure, Workspace};
use crate::choice::Choice;
use crate::tools::MIRI;

/// Run a choice of tests in Miri, where a nightly toolchain has it
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask miri\n  cargo xtask miri -p rcu-core\n\n\
                  PROPTEST_CASES sets the cases per property (default 2); MIRIFLAGS are passed on, as -Zmiri-many-seeds=0..8."
)]
pub(crate) struct Options {
    /// Only this crate's tests
    #[arg(short, long, value_name = "CRATE", value_parser = CRATES)]
    package: Option<String>,
}

/// What runs of each crate, as cargo is told: unit tests, some by name, and test files.
const CHOICE: [(&str, &[&str]); 6] = [
    (
        "rcu-core",
        &[
            "--lib",
            "--test=head",
            "--test=list",
            "--test=nulls",
            "--test=slots",
            "--test=hooks",
        ],
    ),
    (
        "rcu-tiny",
        &["--lib", "--test=conformance", "--test=history"],
    ),
    ("rcu-tree", &["--test=send", "--test=qsbr", "--test=cells"]),
    (
        "pagealloc",
        &[
            "--lib",
            "--",
            "pcp::tests::p1",
            "pcp::tests::p7",
            "pressure",
            "history",
            "heatmap",
        ],
    ),
    ("slab", &["--lib"]),
    ("kvfree", &["--lib"]),
];

const PROPTEST_CASES: &str = "2";

/// Tests read the environment and files. Threads of statics outlive `main`, and tests leave in place what must stay for ever.
const FLAGS: &str = "-Zmiri-disable-isolation -Zmiri-ignore-leaks";

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    MIRI.require("miri")?;
    let mut choice = Choice::of("miri");
    let chosen = CHOICE
        .into_iter()
        .filter(|(name, _)| options.package.as_deref().is_none_or(|only| only == *name));
    for (package, tests) in chosen {
        let mut command = command(workspace, package, tests);
        choice.run(package, &tests.join(" "), &mut command);
    }
    choice.end()
}

fn command(workspace: &Workspace, package: &str, tests: &[&str]) -> Command {
    let mut command = Command::new(MIRI.program);
    command.current_dir(&workspace.root);
    command.args(["run", "nightly", "cargo", "miri", "test", "--quiet"]);
    command.args(["--no-fail-fast", "--all-features", "-p", package]);
    command.args(tests);
    let more = env::var("MIRIFLAGS").unwrap_or_default();
    command.env("MIRIFLAGS", format!("{FLAGS} {more}"));
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
        assert_eq!(CHOICE.map(|(package, _)| package), CRATES);
        for (package, tests) in CHOICE {
            for file in tests.iter().filter_map(|test| test.strip_prefix("--test=")) {
                assert!(
                    workspace.has_target(package, "test", file),
                    "{package}/{file}"
                );
            }
        }
    }
}
