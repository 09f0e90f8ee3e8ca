//! `cargo xtask fuzz`: libFuzzer over the strings of operations that the property tests run too.
//!
//! The package `fuzz`, which is no member of the workspace, has a target for each; they share the interpreter with the tests by
//! including it. What a run finds interesting goes below the target directory; `fuzz/corpus` is a small choice of it, which
//! every run begins with and which the ordinary tests replay.
//!
//! It is built by the toolchain in use, with the sanitizer behind the stable compiler's bootstrap switch, and with free memory
//! hidden as `cargo xtask asan` does it.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use clap::Args;

use crate::cargo::{Failure, Workspace, host_triple, with_rustflags};
use crate::tools::{self, CARGO_FUZZ};

/// Fuzz the crates with strings of operations, where cargo-fuzz is installed
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask fuzz --seconds 60\n  cargo xtask fuzz --target objects --seconds 600\n  \
                  cargo xtask fuzz --target objects --replay crash-1234\n\n\
                  Stops at the first target that fails; its input is left below the target directory, and --replay runs it again."
)]
pub(crate) struct Options {
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Only this target
    #[arg(long, value_name = "TARGET", value_parser = TARGETS)]
    target: Option<String>,
    /// Run this input, and nothing else
    #[arg(
        long,
        value_name = "FILE",
        requires = "target",
        conflicts_with = "seconds"
    )]
    replay: Option<String>,
}

const TARGETS: [&str; 5] = ["pages", "objects", "retire", "seg_list", "trace"];

/// More than any case takes; below what a small machine has.
const MOST_MEGABYTES: u32 = 2048;

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    CARGO_FUZZ.require("fuzz")?;
    let targets = TARGETS
        .into_iter()
        .filter(|name| options.target.as_deref().is_none_or(|only| only == *name));
    for target in targets {
        let begun = Instant::now();
        match &options.replay {
            Some(file) => tools::run(fuzzer(workspace, target)?.arg(file))?,
            None => search(workspace, target, options.seconds)?,
        }
        let seconds = begun.elapsed().as_secs_f64();
        // A closed pipe has seen what it wanted.
        let _ = writeln!(
            io::stdout(),
            "fuzz: {target}: nothing found, {seconds:.0} s with its build"
        );
    }
    Ok(())
}

fn search(workspace: &Workspace, target: &str, seconds: u32) -> Result<(), Failure> {
    let found = workspace.target.join("fuzz").join("corpus").join(target);
    let artifacts = workspace.target.join("fuzz").join("artifacts").join(target);
    for directory in [&found, &artifacts] {
        fs::create_dir_all(directory).map_err(|error| {
            Failure::Run(format!("cannot make {}: {error}", directory.display()))
        })?;
    }
    let seeds = workspace.root.join("fuzz").join("corpus").join(target);
    let mut command = fuzzer(workspace, target)?;
    // New inputs go to the first.
    command.arg(&found).arg(&seeds).arg("--");
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-rss_limit_mb={MOST_MEGABYTES}"));
    // A slash at its end makes it a directory.
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    command.args(["-print_final_stats=1", "-verbosity=0"]);
    tools::run(&mut command)
}

/// `cargo fuzz run TARGET`, as it is built each time.
fn fuzzer(workspace: &Workspace, target: &str) -> Result<Command, Failure> {
    let mut command = workspace.cargo();
    command.args(["fuzz", "run", "--fuzz-dir"]);
    command.arg(Path::new("fuzz"));
    command.arg("--target").arg(host_triple()?);
    command
        .arg("--target-dir")
        .arg(workspace.target.join("fuzz"));
    command.arg(target);
    command.env("RUSTC_BOOTSTRAP", "1");
    let (name, flags) = with_rustflags(&[
        "-Cunsafe-allow-abi-mismatch=sanitizer",
        "--cfg=address_sanitizer",
    ]);
    command.env(name, flags);
    // What the cases leave in place is freed with their process.
    command.env("ASAN_OPTIONS", "detect_leaks=0");
    Ok(command)
}
