//! `cargo xtask nostd`: freestanding programs, to show that nothing of `std`, of a C library or of a heap is needed.
//!
//! The package `nostd`, which is no member of the workspace, holds what a kernel author writes: an entry point of his own, system
//! calls for a serial line, his CPUs. Its programs are linked statically with nothing but themselves. Here they are built,
//! looked at, run, and run again so that they have to fail: a check that cannot fail shows nothing.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;

use crate::cargo::{Failure, Workspace, host_triple};
use crate::tools::{self, NM, READELF};

/// Build and run freestanding programs over the crates: no std, no libc, no undefined symbol
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask nostd\n  cargo xtask nostd --release\n\n\
                  The programs are in nostd/src/bin. They run as Linux programs on x86-64; elsewhere the verb says so \
                  and does nothing."
)]
pub(crate) struct Options {
    /// Without debug assertions, and optimised
    #[arg(long)]
    release: bool,
}

impl Options {
    /// With debug assertions.
    pub(crate) const fn default_profile() -> Self {
        Self { release: false }
    }
}

/// A program, and what it says when it was told to break the contract.
const PROGRAMS: [(&str, &str); 2] = [
    ("one_cpu", "an object that a section keeps"),
    ("four_cpus", "is done with"),
];

/// More than either takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// The exit status of a failed check.
const FAILED: i32 = 101;

const TARGET: &str = "x86_64-unknown-linux-gnu";

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    let host = host_triple()?;
    if host != TARGET {
        say(&format!(
            "nostd: the programs are for {TARGET}, and this is {host}: nothing done"
        ));
        return Ok(());
    }
    NM.require("nostd")?;
    READELF.require("nostd")?;
    let directory = build(workspace, options)?;
    for (name, confession) in PROGRAMS {
        let program = directory.join(name);
        stands_alone(&program)?;
        let said = succeeds(&program, name)?;
        fails(&program, name, confession)?;
        say(&format!("{name}: no undefined symbol; {said}"));
    }
    Ok(())
}

/// Builds the programs, and says where they are.
fn build(workspace: &Workspace, options: &Options) -> Result<PathBuf, Failure> {
    let target = workspace.target.join("nostd");
    let mut command = workspace.cargo();
    command.args(["build", "--quiet", "--locked", "--target", TARGET]);
    command.arg("--manifest-path").arg("nostd/Cargo.toml");
    command.arg("--target-dir").arg(&target);
    if options.release {
        command.arg("--release");
    }
    tools::run(&mut command)?;
    let profile = if options.release { "release" } else { "debug" };
    Ok(target.join(TARGET).join(profile))
}

/// Nothing is left for a loader or another library to bring.
fn stands_alone(program: &Path) -> Result<(), Failure> {
    let symbols = ask(NM.program, &["--undefined-only"], program)?;
    if let Some(symbol) = symbols.lines().find(|line| !line.trim().is_empty()) {
        let name = program.display();
        return Err(Failure::Run(format!(
            "{name}: undefined: {}",
            symbol.trim()
        )));
    }
    let headers = ask(READELF.program, &["--program-headers", "--wide"], program)?;
    match loader_in(&headers) {
        None => Ok(()),
        Some(header) => Err(Failure::Run(format!(
            "{}: not static: it has a header {header}",
            program.display()
        ))),
    }
}

/// The header by which a program asks for a loader, or for libraries, if it has one.
fn loader_in(headers: &str) -> Option<&'static str> {
    let first = |line: &str| line.split_whitespace().next().map(str::to_owned);
    ["INTERP", "DYNAMIC"].into_iter().find(|header| {
        headers
            .lines()
            .filter_map(first)
            .any(|word| word == *header)
    })
}

fn ask(tool: &str, options: &[&str], program: &Path) -> Result<String, Failure> {
    let output = tools::output_of(Command::new(tool).args(options).arg(program))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        let line = why.lines().next().unwrap_or("no message");
        return Err(Failure::Run(format!("{tool}: {line}")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program as it is, and gives back its last line.
fn succeeds(program: &Path, name: &str) -> Result<String, Failure> {
    let output = tools::output_within(&mut Command::new(program), LIMIT)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    if !output.status.success() || !is_success(last) {
        return Err(Failure::Run(format!(
            "{name}: {}; it said: {said}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )));
    }
    Ok(last.to_owned())
}

/// Whether a last line says that at least one check was made.
fn is_success(line: &str) -> bool {
    line.strip_prefix("all ")
        .and_then(|rest| rest.strip_suffix(" checks passed"))
        .and_then(|number| number.parse::<usize>().ok())
        .is_some_and(|number| number > 0)
}

/// Runs a program so that it breaks its own contract, which it has to notice.
fn fails(program: &Path, name: &str, confession: &str) -> Result<(), Failure> {
    let output = tools::output_within(Command::new(program).arg("fail"), LIMIT)?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(FAILED) && said.contains(confession) {
        return Ok(());
    }
    Err(Failure::Run(format!(
        "{name}: told to fail, it ended with {} and said: {said}",
        output.status
    )))
}

fn say(line: &str) {
    // A closed pipe has seen what it wanted.
    let _ = writeln!(io::stdout(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_is_a_number_of_checks() {
        assert!(is_success("all 12 checks passed"));
        for line in [
            "",
            "all 0 checks passed",
            "all checks passed",
            "12 checks passed",
        ] {
            assert!(!is_success(line), "{line}");
        }
    }

    #[test]
    fn a_loader_is_seen() {
        let of_a_dynamic_program = "Program Headers:\n  Type           Offset\n  INTERP         0x000318\n  LOAD           0x000000\n";
        assert_eq!(loader_in(of_a_dynamic_program), Some("INTERP"));
        assert_eq!(loader_in("  LOAD  0x0\n  GNU_STACK 0x0\n"), None);
    }
}
