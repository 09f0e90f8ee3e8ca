//! Programs that are not cargo's: whether they are here, and how to get them.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::cargo::Failure;

/// A program that a verb needs, and that a toolchain does not bring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    /// What is called, with arguments that make it answer and do nothing.
    pub(crate) program: &'static str,
    pub(crate) probe: &'static [&'static str],
    /// Ends the sentence "to get it, …".
    pub(crate) to_get: &'static str,
}

pub(crate) const NM: Tool = Tool {
    name: "nm",
    program: "nm",
    probe: &["--version"],
    to_get: "install binutils (on Debian: apt install binutils)",
};
pub(crate) const READELF: Tool = Tool {
    name: "readelf",
    program: "readelf",
    ..NM
};
pub(crate) const VALGRIND: Tool = Tool {
    name: "valgrind",
    program: "valgrind",
    probe: &["--version"],
    to_get: "install valgrind (on Debian: apt install valgrind)",
};
pub(crate) const CARGO_FUZZ: Tool = Tool {
    name: "cargo-fuzz",
    program: "cargo-fuzz",
    probe: &["--version"],
    to_get: "run: cargo install cargo-fuzz (it builds with a C++ compiler; on Debian: apt install g++)",
};

pub(crate) const MIRI: Tool = Tool {
    name: "Miri",
    program: "rustup",
    probe: &["run", "nightly", "cargo", "miri", "--version"],
    to_get: "run: rustup toolchain install nightly --component miri,rust-src",
};

pub(crate) const RUST_SRC: Tool = Tool {
    name: "a nightly toolchain with the standard library's sources",
    program: "rustup",
    probe: &[
        "run",
        "nightly",
        "sh",
        "-c",
        "test -f \"$(rustc --print sysroot)/lib/rustlib/src/rust/library/Cargo.toml\"",
    ],
    to_get: "run: rustup toolchain install nightly --component rust-src",
};

impl Tool {
    /// Whether it is here, and answers.
    pub(crate) fn is_here(self) -> bool {
        Command::new(self.program)
            .args(self.probe)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    /// An error that says what to do, unless it is here.
    pub(crate) fn require(self, verb: &str) -> Result<(), Failure> {
        if self.is_here() {
            return Ok(());
        }
        let Self { name, to_get, .. } = self;
        Err(Failure::Run(format!(
            "{verb} needs {name}, which is not here; to get it, {to_get}"
        )))
    }
}

/// Runs `command` to its end.
pub(crate) fn run(command: &mut Command) -> Result<(), Failure> {
    let status = command
        .status()
        .map_err(|error| Failure::Run(format!("{} does not start: {error}", name_of(command))))?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::Run(format!("{}: {status}", name_of(command))))
    }
}

/// Runs `command` to its end, and gives back what it wrote.
pub(crate) fn output_of(command: &mut Command) -> Result<Output, Failure> {
    command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::Run(format!("{} does not start: {error}", name_of(command))))
}

/// As [`output_of`], but kills the program when it has run for `limit`.
pub(crate) fn output_within(command: &mut Command, limit: Duration) -> Result<Output, Failure> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::Run(format!("{} does not start: {error}", name_of(command))))?;
    if wait_until(&mut child, Instant::now() + limit).is_none() {
        // Gone by itself meanwhile, if not.
        let _ = child.kill();
        let _ = child.wait();
        return Err(Failure::Run(format!(
            "{}: still running after {} s",
            name_of(command),
            limit.as_secs()
        )));
    }
    child
        .wait_with_output()
        .map_err(|error| Failure::Run(format!("{}: {error}", name_of(command))))
}

/// For programs that write less than a pipe holds.
fn wait_until(child: &mut Child, end: Instant) -> Option<ExitStatus> {
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The program without its directory.
fn name_of(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_a_way_to_get_it() {
        let nowhere = Tool {
            name: "no-such-program-anywhere",
            program: "no-such-program-anywhere",
            probe: &[],
            to_get: "write it",
        };
        let said = nowhere.require("nothing").unwrap_err().to_string();
        assert_eq!(
            said,
            "nothing needs no-such-program-anywhere, which is not here; to get it, write it"
        );
    }

    #[cfg(unix)]
    #[test]
    fn what_does_not_end_is_ended() {
        let forever = &mut Command::new("sleep");
        let error = output_within(forever.arg("1000"), Duration::from_millis(10)).unwrap_err();
        assert!(error.to_string().contains("still running"), "{error}");
        let soon = &mut Command::new("true");
        let output = output_within(soon, Duration::from_secs(1000)).unwrap();
        assert!(output.status.success());
    }
}
