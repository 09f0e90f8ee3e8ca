//! `cargo xtask asan`: the crates' tests under AddressSanitizer, with free pages and free objects hidden from everybody.
//!
//! The sanitizer by itself knows the C library's heap. The cfg `address_sanitizer` has `pagealloc` and `slab` tell it what of
//! *their* memory is free (`rcu_core::sanitize`), so that a use after free inside these allocators is reported like any other; tests
//! called `address_sanitizer` do that on purpose, in child processes, and fail if nothing is said.
//!
//! The stable compiler has the sanitizer behind its bootstrap switch. Its standard library is not instrumented, hence the
//! permitted mismatch.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Args;
use serde_json::Value;

use crate::cargo::{CRATES, Failure, Workspace, host_triple, with_rustflags};
use crate::tools;

/// Run the crates' tests under AddressSanitizer, with free pages and objects poisoned
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask asan\n  cargo xtask asan -p slab --test prop\n\n\
                  Needs the sanitizer's run-time library, which the toolchains of rustup bring on Linux. PROPTEST_CASES sets the \
                  cases per property."
)]
pub(crate) struct Options {
    /// Only this crate's tests
    #[arg(short, long, value_name = "CRATE", value_parser = CRATES)]
    package: Option<String>,
    /// Only this test file
    #[arg(long, value_name = "FILE", requires = "package")]
    test: Option<String>,
}

impl Options {
    /// All crates, all tests.
    pub(crate) const fn all() -> Self {
        Self {
            package: None,
            test: None,
        }
    }
}

/// Where the compiler brings the library and this project's tests run.
const HOSTS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

/// Cases per property, unless the environment says otherwise: a case takes two to five times as long as it does elsewhere.
const PROPTEST_CASES: &str = "64";

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    let bench = Sanitized::new(workspace)?;
    let mut failed = Vec::new();
    let packages = CRATES
        .into_iter()
        .filter(|name| options.package.as_deref().is_none_or(|only| only == *name));
    for package in packages {
        for features in feature_sets(package) {
            let mut words = vec!["test", "-p", package, "--no-fail-fast"];
            words.extend(*features);
            match &options.test {
                Some(file) => words.extend(["--test", file]),
                None => words.push("--tests"),
            }
            bench.perform(&words, &mut failed);
        }
    }
    if options.package.is_none() {
        bench.torture(&mut failed);
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Failure::Run(format!("asan: failed: {}", failed.join("; "))))
    }
}

/// Whether the verb can run here.
pub(crate) fn is_here() -> Result<bool, Failure> {
    let host = host_triple()?;
    Ok(HOSTS.contains(&host.as_str()) && has_runtime(&host)?)
}

/// With which features a crate's tests run. `slab`'s `checks` has every cache look after its objects, free ones too, so that none is
/// hidden: the default comes first there.
fn feature_sets(package: &str) -> &'static [&'static [&'static str]] {
    match package {
        "slab" => &[&[], &["--all-features"]],
        _ => &[&["--all-features"]],
    }
}

/// How cargo is called for what is sanitized: the same flags and target directory each time.
struct Sanitized<'w> {
    workspace: &'w Workspace,
    host: String,
    target: PathBuf,
    flags: (&'static str, OsString),
}

impl<'w> Sanitized<'w> {
    fn new(workspace: &'w Workspace) -> Result<Self, Failure> {
        let host = host_triple()?;
        if !HOSTS.contains(&host.as_str()) {
            let hosts = HOSTS.join(" and ");
            return Err(Failure::Run(format!(
                "asan runs on {hosts}, and this is {host}"
            )));
        }
        if !has_runtime(&host)? {
            return Err(Failure::Run(
                "asan needs the sanitizer's run-time library, which this toolchain lacks; to get it, use a toolchain of rustup \
                 (rustup toolchain install stable)"
                    .to_owned(),
            ));
        }
        Ok(Self {
            workspace,
            host,
            target: workspace.target.join("asan"),
            flags: with_rustflags(&[
                "-Zsanitizer=address",
                "-Cunsafe-allow-abi-mismatch=sanitizer",
                "--cfg=address_sanitizer",
            ]),
        })
    }

    /// A short torture, with a worker that is sanitized.
    fn torture(&self, failed: &mut Vec<String>) {
        let line = "cargo xtask torture --seconds 3";
        let mut build = self.cargo(&["bench", "--no-run", "-p", "kvfree", "--bench", "torture"]);
        build.arg("--message-format=json-render-diagnostics");
        build.stderr(Stdio::inherit());
        let worker = build.output().ok().and_then(|o| executable_in(&o.stdout));
        let Some(worker) = worker else {
            return failed.push(format!("{line}: its worker does not build"));
        };
        let Ok(this) = std::env::current_exe() else {
            return failed.push(format!("{line}: this program is nowhere"));
        };
        let mut command = Command::new(this);
        command.args(["torture", "--seconds", "3", "--patience", "60"]);
        command.args(["--scenario", SCENARIOS, "--worker"]);
        command.arg(worker);
        // What the sanitizer keeps back of the C library's heap would count as lost.
        command.env("ASAN_OPTIONS", "detect_leaks=0:quarantine_size_mb=0");
        self.judge(line, &mut command, failed);
    }

    /// Cargo, as it builds and runs what is sanitized.
    fn cargo(&self, words: &[&str]) -> Command {
        let mut command = self.workspace.cargo();
        command.args(words).args(["--target", &self.host]);
        command.env("RUSTC_BOOTSTRAP", "1");
        command.env(self.flags.0, &self.flags.1);
        command.env("CARGO_TARGET_DIR", &self.target);
        // Tests leak what must stay in place for ever.
        command.env("ASAN_OPTIONS", "detect_leaks=0");
        if std::env::var_os("PROPTEST_CASES").is_none() {
            command.env("PROPTEST_CASES", PROPTEST_CASES);
        }
        command
    }

    /// Runs cargo with `words` for the host as a target; notes a failure and goes on.
    fn perform(&self, words: &[&str], failed: &mut Vec<String>) {
        let line = format!("cargo {}", words.join(" "));
        self.judge(&line, &mut self.cargo(words), failed);
    }

    fn judge(&self, line: &str, command: &mut Command, failed: &mut Vec<String>) {
        say(&format!("asan: {line}"));
        let begun = Instant::now();
        let outcome = tools::run(command);
        let seconds = begun.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => say(&format!("asan: {line}: ok, {seconds:.1} s")),
            Err(why) => {
                say(&format!("asan: {line}: FAILED, {seconds:.1} s: {why}"));
                failed.push(line.to_owned());
            }
        }
    }
}

/// The tortured allocators, and one RCU.
const SCENARIOS: &str = "tree,pages,slab,kvfree,kvfree-no-sheaves";

/// The executable that cargo says it built, in its messages as JSON.
fn executable_in(messages: &[u8]) -> Option<PathBuf> {
    String::from_utf8_lossy(messages)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

/// Whether the toolchain brings the library that a sanitized program is linked with.
fn has_runtime(host: &str) -> Result<bool, Failure> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let output =
        tools::output_of(Command::new(rustc).args(["--print", "target-libdir", "--target", host]))?;
    let directory = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let Ok(files) = fs::read_dir(&directory) else {
        return Ok(false);
    };
    let is_runtime = |name: &str| name.starts_with("librustc-") && name.contains("_rt.asan.");
    Ok(files
        .flatten()
        .any(|file| file.file_name().to_str().is_some_and(is_runtime)))
}

fn say(line: &str) {
    // A closed pipe has seen what it wanted.
    let _ = writeln!(io::stdout(), "{line}");
}
