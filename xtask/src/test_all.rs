//! `cargo xtask test-all`: everything that must hold before a change goes in, as one list of steps.
//!
//! Every step runs, whatever became of the ones before it: a broken format should not hide a broken test. What a step
//! prints goes straight through; its command comes before, its time after.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use clap::Args;

use crate::cargo::{CRATES, Failure, Workspace};
use crate::tools::VALGRIND;
use crate::{asan, mutants, nostd, tidy, valgrind};

/// Cases per property, unless the environment says otherwise.
const PROPTEST_CASES: &str = "64";
const LONG_PROPTEST_CASES: &str = "2000";

/// Run every check: format, tidy, clippy, each crate's tests alone, docs, loom models and mutants, the main job and torture in small
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask test-all\n  cargo xtask test-all --quick\n\n\
                  All steps run, whatever fails. PROPTEST_CASES sets the cases per property \
                  (default 64)."
)]
pub(crate) struct Options {
    /// Only format, tidy, clippy and tests with default features
    #[arg(long, conflicts_with = "long")]
    quick: bool,
    /// Also long torture, long property tests, stress tests in release mode, AddressSanitizer and memcheck
    #[arg(long)]
    long: bool,
}

/// One thing to do.
#[derive(Debug)]
enum Step {
    Cargo {
        env: Vec<(&'static str, OsString)>,
        words: String,
    },
    /// A verb of this program.
    Verb {
        line: &'static str,
        run: fn(&Workspace) -> Result<(), Failure>,
    },
}

const TIDY: Step = Step::Verb {
    line: "cargo xtask tidy",
    run: tidy::run,
};
const MUTANTS: Step = Step::Verb {
    line: "cargo xtask mutants",
    run: |workspace| mutants::run(workspace, &mutants::Options::all()),
};
const NOSTD: Step = Step::Verb {
    line: "cargo xtask nostd",
    run: |workspace| nostd::run(workspace, &nostd::Options::default_profile()),
};
const ASAN: Step = Step::Verb {
    line: "cargo xtask asan",
    run: |workspace| asan::run(workspace, &asan::Options::all()),
};
const MEMCHECK: Step = Step::Verb {
    line: "cargo xtask valgrind",
    run: |workspace| valgrind::run(workspace, &valgrind::Options {}),
};

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    let steps = steps(workspace, options)?;
    let started = Instant::now();
    let mut failed = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let line = step.line();
        say(&format!("\n==> [{}/{}] {line}", index + 1, steps.len()));
        let begun = Instant::now();
        let outcome = step.perform(workspace);
        let took = begun.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => say(&format!("<== ok, {took:.1} s")),
            Err(why) => {
                say(&format!("<== FAILED, {took:.1} s: {why}"));
                failed.push(line);
            }
        }
    }
    say(&format!("\n{}", time_in_words(started.elapsed())));
    for line in &failed {
        say(&format!("failed: {line}"));
    }
    let (bad, all) = (failed.len(), steps.len());
    say(&format!("{} passed, {bad} failed", all - bad));
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Failure::Run(format!("{bad} of {all} steps failed")))
    }
}

/// The list, cheapest first, so that common mistakes show within seconds.
fn steps(workspace: &Workspace, options: &Options) -> Result<Vec<Step>, Failure> {
    let mut steps = vec![
        step("fmt --all --check"),
        step("fmt --manifest-path nostd/Cargo.toml --check"),
        step("fmt --manifest-path fuzz/Cargo.toml --check"),
        TIDY,
        step("clippy --workspace --all-targets --all-features -- -D warnings"),
    ];
    for package in CRATES {
        steps.push(step(&format!("test -p {package}")));
        if !options.quick {
            steps.push(step(&format!(
                "build -p {package} --no-default-features --lib"
            )));
            steps.push(step(&format!("test -p {package} --no-default-features")));
            // The topmost layer over caches that look at each object.
            let below = if package == "kvfree" {
                " --features slab/checks"
            } else {
                ""
            };
            steps.push(step(&format!("test -p {package} --all-features{below}")));
        }
    }
    steps.push(step("test -p xtask"));
    if !options.quick {
        steps.push(step("doc --no-deps --workspace").with("RUSTDOCFLAGS", "-Dwarnings"));
        steps.push(MUTANTS);
        steps.push(NOSTD);
        steps.push(step("xtask scale --quick --no-report"));
        // Shares the build before.
        steps.push(step("xtask icount"));
        steps.push(step("xtask torture --seconds 1"));
        steps.push(step("test -p xtask --test torture -- --ignored"));
    }
    if options.long {
        steps.push(step("xtask torture --seconds 60"));
        for package in CRATES {
            if workspace.has_target(package, "test", "prop") {
                let words = format!("test -p {package} --all-features --test prop");
                steps.push(step(&words).with("PROPTEST_CASES", LONG_PROPTEST_CASES));
            }
        }
        for package in CRATES {
            let words = format!("test -p {package} --release --all-features --tests");
            steps.push(step(&words).with("STRESS_LONG", "1"));
        }
        if asan::is_here()? {
            steps.push(ASAN);
        } else {
            say("AddressSanitizer is not here and is left out: see cargo xtask asan");
        }
        steps.push(step(
            "clippy --manifest-path nostd/Cargo.toml --target-dir target/nostd -- -D warnings",
        ));
        // An optional tool: that it is not here is not counted against the change.
        if VALGRIND.is_here() {
            steps.push(MEMCHECK);
        } else {
            let to_get = VALGRIND.to_get;
            say(&format!(
                "valgrind is not here and is left out; to get it, {to_get}"
            ));
        }
    }
    Ok(steps)
}

fn step(words: &str) -> Step {
    Step::Cargo {
        env: Vec::new(),
        words: words.to_owned(),
    }
}

impl Step {
    /// Sets an environment variable for a cargo step.
    fn with(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        if let Self::Cargo { env, .. } = &mut self {
            env.push((name, value.into()));
        }
        self
    }

    /// The command as one would type it.
    fn line(&self) -> String {
        match self {
            Self::Cargo { env, words } => {
                let mut line = String::new();
                for (name, value) in env {
                    let value = value.to_string_lossy();
                    let quote = if value.contains(' ') { "\"" } else { "" };
                    line.push_str(&format!("{name}={quote}{value}{quote} "));
                }
                line + "cargo " + words
            }
            Self::Verb { line, .. } => (*line).to_owned(),
        }
    }

    fn perform(&self, workspace: &Workspace) -> Result<(), Failure> {
        let (env, words) = match self {
            Self::Verb { run, .. } => return run(workspace),
            Self::Cargo { env, words } => (env, words),
        };
        let mut command = workspace.cargo();
        command.args(words.split(' '));
        if env::var_os("PROPTEST_CASES").is_none() {
            command.env("PROPTEST_CASES", PROPTEST_CASES);
        }
        command.envs(env.iter().map(|(name, value)| (name, value)));
        let status = command
            .status()
            .map_err(|error| Failure::Run(format!("cargo does not start: {error}")))?;
        if status.success() {
            Ok(())
        } else {
            Err(Failure::Run(status.to_string()))
        }
    }
}

fn time_in_words(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{} min {:02} s", seconds / 60, seconds % 60)
}

fn say(line: &str) {
    // A closed pipe must not change the verdict.
    let _ = writeln!(io::stdout(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(quick: bool, long: bool) -> Vec<String> {
        let workspace = Workspace::locate().expect("cargo metadata");
        let steps = steps(&workspace, &Options { quick, long }).expect("steps");
        steps.iter().map(Step::line).collect()
    }

    #[test]
    fn every_crate_is_tested_alone_in_three_feature_sets() {
        let lines = lines(false, false);
        for package in CRATES {
            let all = if package == "kvfree" {
                " --all-features --features slab/checks"
            } else {
                " --all-features"
            };
            for features in ["", " --no-default-features", all] {
                let line = format!("cargo test -p {package}{features}");
                assert!(lines.contains(&line), "{line}");
            }
        }
        assert!(
            lines.contains(&"RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps --workspace".to_owned())
        );
        assert!(lines.contains(&"cargo xtask mutants".to_owned()));
        assert!(lines.contains(&"cargo xtask scale --quick --no-report".to_owned()));
        assert!(lines.contains(&"cargo xtask icount".to_owned()));
    }

    #[test]
    fn quick_is_a_part_of_the_default_and_the_default_of_long() {
        let (quick, default, long) = (lines(true, false), lines(false, false), lines(false, true));
        assert!(quick.len() < default.len() && default.len() < long.len());
        assert!(quick.iter().all(|line| default.contains(line)));
        assert!(default.iter().all(|line| long.contains(line)));
        assert!(!quick.iter().any(|line| line.contains("mutants")));
    }
}
