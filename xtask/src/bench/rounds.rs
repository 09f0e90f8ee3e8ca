//! Building the benches, and rounds of them.
//!
//! A round runs every bench once, with criterion's files in a directory of its own, and reads its estimates back.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::targets::{Bench, Library, Targets};
use crate::cargo::{Failure, Workspace, build_bench};

/// What criterion is told in a quick round: enough to see that every bench runs.
const QUICK: [&str; 6] = [
    "--warm-up-time",
    "0.01",
    "--measurement-time",
    "0.03",
    "--sample-size",
    "10",
];

/// Nanoseconds an iteration by bench identifier (`group/function/parameter`).
pub(super) type Round = BTreeMap<String, f64>;

/// The libraries of `targets` that the linker does not find.
pub(super) fn absent_libraries(targets: &Targets) -> Vec<Library> {
    let wanted = |library: &&Library| {
        let mut benches = targets.benches.iter();
        benches.any(|bench| bench.libraries.contains(&library.feature))
    };
    let libraries = targets.libraries.iter().filter(wanted);
    let is_absent =
        |l: &&Library| !links(&l.links) || l.program.as_deref().is_some_and(|p| !runs(p));
    libraries.filter(is_absent).cloned().collect()
}

/// Whether there is such a program.
fn runs(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null());
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok()
}

/// The cfgs of the libraries of `bench` that are there.
pub(super) fn cfgs<'t>(targets: &'t Targets, bench: &'t Bench, absent: &[Library]) -> Vec<&'t str> {
    let there = bench.libraries.iter().filter_map(|l| targets.library(l));
    there
        .filter(|l| !absent.contains(l))
        .filter_map(|l| l.cfg.as_deref())
        .collect()
}

/// Whether the C compiler, by which rustc links too, makes a program with these libraries.
fn links(libraries: &[String]) -> bool {
    let mut command = Command::new("cc");
    command.args(["-x", "c", "-", "-o", "/dev/null"]);
    command.args(libraries.iter().map(|name| format!("-l{name}")));
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else {
        return false;
    };
    let sent = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(b"int main(void) { return 0; }\n").is_ok(),
        None => false,
    };
    child.wait().is_ok_and(|status| status.success()) && sent
}

/// Builds every bench of `targets`, with the libraries that are there.
pub(super) fn build(
    workspace: &Workspace,
    targets: &Targets,
    absent: &[Library],
    directory: &Path,
) -> Result<Vec<PathBuf>, Failure> {
    let is_there = |feature: &&str| {
        !absent.iter().any(|library| library.feature == **feature)
            && targets.library(feature).is_some_and(|l| l.cfg.is_none())
    };
    let mut executables = Vec::new();
    for bench in &targets.benches {
        let features = bench.libraries.iter().map(String::as_str);
        let features: Vec<&str> = features.filter(is_there).collect();
        let (package, name) = (&bench.package, &bench.bench);
        let cfgs = cfgs(targets, bench, absent);
        executables.push(build_bench(
            workspace, package, name, &features, &cfgs, directory,
        )?);
    }
    Ok(executables)
}

/// Runs every bench once and reads what criterion found.
pub(super) fn run(executables: &[PathBuf], quick: bool, home: &Path) -> Result<Round, Failure> {
    let cannot = |error| Failure::Run(format!("cannot use {}: {error}", home.display()));
    if home.exists() {
        fs::remove_dir_all(home).map_err(cannot)?;
    }
    fs::create_dir_all(home).map_err(cannot)?;
    for executable in executables {
        let mut command = Command::new(executable);
        command.args(["--bench", "--noplot", "--quiet"]);
        if quick {
            command.args(QUICK);
        }
        let output = command
            .env("CRITERION_HOME", home)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| Failure::Run(format!("a bench does not start: {error}")))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let last = text.lines().map(str::trim).rfind(|line| !line.is_empty());
            return Err(Failure::Run(format!(
                "a bench failed ({}): {}",
                output.status,
                last.unwrap_or("no message")
            )));
        }
    }
    let mut round = Round::new();
    collect(home, &mut round)?;
    Ok(round)
}

/// Reads every `new/estimates.json` below `directory`, and in `benchmark.json` beside it which bench that was: the name
/// of a place has other characters where the bench's is no file name.
fn collect(directory: &Path, round: &mut Round) -> Result<(), Failure> {
    let cannot =
        |path: &Path, error| Failure::Run(format!("cannot read {}: {error}", path.display()));
    let here = |error| cannot(directory, error);
    for entry in fs::read_dir(directory).map_err(here)? {
        let entry = entry.map_err(here)?;
        let path = entry.path();
        if !path.is_dir() {
            continue;
        }
        if entry.file_name() != "new" {
            collect(&path, round)?;
            continue;
        }
        let read = |name: &str| {
            let file = path.join(name);
            fs::read_to_string(&file).map_err(|error| cannot(&file, error))
        };
        let odd = |name: &str| Failure::Run(format!("{}: odd {name}", path.display()));
        let ns = estimate(&read("estimates.json")?).ok_or_else(|| odd("estimates.json"))?;
        let id = identifier(&read("benchmark.json")?).ok_or_else(|| odd("benchmark.json"))?;
        round.insert(id, ns);
    }
    Ok(())
}

/// The bench's name, `group/function/parameter`.
fn identifier(text: &str) -> Option<String> {
    let value: Value = serde_json::from_str(text).ok()?;
    Some(value["full_id"].as_str()?.to_owned())
}

/// The median of criterion's samples: what disturbs a few of them does not move it.
fn estimate(text: &str) -> Option<f64> {
    let value: Value = serde_json::from_str(text).ok()?;
    let ns = value["median"]["point_estimate"].as_f64()?;
    (ns.is_finite() && ns > 0.0).then_some(ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESTIMATES: &str = r#"{"mean":{"point_estimate":2.5},"median":{"confidence_interval":{"confidence_level":0.95,"lower_bound":1.9,"upper_bound":2.1},"point_estimate":2.0,"standard_error":0.1},"slope":null}"#;

    #[test]
    fn the_median_is_read() {
        assert_eq!(estimate(ESTIMATES), Some(2.0));
    }

    #[test]
    fn odd_estimates_are_none() {
        for text in [
            "",
            "{}",
            r#"{"median":{}}"#,
            r#"{"median":{"point_estimate":-1}}"#,
            r#"{"median":{"point_estimate":"2"}}"#,
        ] {
            assert_eq!(estimate(text), None, "{text}");
        }
    }

    #[test]
    fn a_bench_is_known_by_its_name_wherever_its_files_are() {
        let home = std::env::temp_dir().join(format!("xtask-bench-{}", std::process::id()));
        let place = home.join("read/guard_1/new");
        fs::create_dir_all(&place).unwrap();
        fs::create_dir_all(home.join("read/report")).unwrap();
        fs::write(place.join("estimates.json"), ESTIMATES).unwrap();
        fs::write(
            place.join("benchmark.json"),
            r#"{"full_id":"read/guard/1"}"#,
        )
        .unwrap();
        let mut round = Round::new();
        let found = collect(&home, &mut round);
        fs::write(place.join("estimates.json"), "{}").unwrap();
        let odd = collect(&home, &mut Round::new());
        fs::remove_dir_all(&home).unwrap();
        assert!(found.is_ok() && odd.is_err());
        assert_eq!(
            round.into_iter().collect::<Vec<_>>(),
            [("read/guard/1".to_owned(), 2.0)]
        );
    }

    #[test]
    fn a_program_that_nobody_has_is_absent() {
        assert!(!runs("no-such-program-anywhere") && runs("cargo"));
    }

    #[test]
    fn a_library_that_nobody_has_is_absent() {
        assert!(!links(&["no-such-library-anywhere".to_owned()]));
    }
}
