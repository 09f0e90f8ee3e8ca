//! `cargo xtask torture`: everything at once, against each other, for as long as one likes.
//!
//! The worker (kvfree's bench target `torture`) runs one scenario a process: `scenarios` says what each is about and what is to
//! come of it. A scenario without a flaw must find none; one with a flaw must find it, and find that one. What the worker tells
//! is read and put into words in `found`.

mod found;
mod options;
mod scenarios;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

pub(crate) use self::options::Options;

use self::found::{Found, Line};
use self::options::Case;
use self::scenarios::{Expect, SCENARIOS};
use crate::cargo::{Failure, Workspace, build_bench};
use crate::scale::say;
use crate::worker::hear;

/// Where there is no terminal, a status line comes as often as this.
const STATUS: Duration = Duration::from_secs(60);

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    if options.list {
        say(&list());
        return Ok(());
    }
    let cases = options.cases()?;
    let worker = match &options.worker {
        Some(path) => path.clone(),
        None => build(workspace)?,
    };
    if let Some(case) = cases.first() {
        say(&format!("seed {}", case.seed));
    }
    let begun = Instant::now();
    let mut failed = Vec::new();
    for case in &cases {
        let verdict = torture(&worker, case);
        let (word, text) = match &verdict {
            Ok(text) => ("SUCCESS", text),
            Err(text) => ("FAILURE", text),
        };
        say(&format!("{}: {word}: {text}", case.scenario.name));
        if verdict.is_err() {
            failed.push(case.scenario.name);
        }
    }
    let (all, time) = (cases.len(), begun.elapsed().as_secs_f64());
    if failed.is_empty() {
        say(&format!("SUCCESS: {all} scenarios in {time:.0} s"));
        Ok(())
    } else {
        let names = failed.join(", ");
        let (bad, seed) = (failed.len(), cases[0].seed);
        say(&format!(
            "FAILURE: {bad} of {all} scenarios in {time:.0} s: {names}; seed {seed}"
        ));
        Err(Failure::Run(format!("torture: {names}")))
    }
}

/// The worker shares what it is built from with `scale`'s.
fn build(workspace: &Workspace) -> Result<PathBuf, Failure> {
    let directory = workspace.target.join("scale/build");
    build_bench(workspace, "kvfree", "torture", &[], &[], &directory)
}

fn list() -> String {
    let line = |scenario: &scenarios::Scenario| {
        let flaw = if scenario.is_broken() { "broken: " } else { "" };
        format!("{:<28}{flaw}{}", scenario.name, scenario.about)
    };
    let lines: Vec<String> = SCENARIOS.iter().map(line).collect();
    lines.join("\n")
}

/// Runs one scenario. What came of it, in words, for good or ill.
fn torture(worker: &Path, case: &Case) -> Result<String, String> {
    let mut command = Command::new(worker);
    command.args(["--scenario", case.scenario.name]);
    command.args(["--seconds", &case.seconds.to_string()]);
    command.args(["--patience", &case.patience.to_string()]);
    command.args(["--seed", &case.seed.to_string()]);
    let bar = status_line(case);
    let mut result = None;
    let begun = Instant::now();
    let mut told = Instant::now();
    let heard = hear(command, case.silence(), |line| {
        match found::parse(line)? {
            Line::Status(status) => {
                bar.set_message(status.status());
                if bar.is_hidden() && told.elapsed() >= STATUS {
                    told = Instant::now();
                    say(&format!("{}: {}", case.scenario.name, status.status()));
                }
            }
            Line::Result(found) => result = Some(found),
        }
        Ok(())
    });
    bar.finish_and_clear();
    let outcome = match (heard, result) {
        (Ok(()), Some(found)) => Ok(found),
        (Ok(()), None) => Err("the worker ended without a result".to_owned()),
        (Err(words), _) => Err(words),
    };
    judge(case.scenario.expect, outcome, begun.elapsed())
}

fn status_line(case: &Case) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("{spinner} {prefix}: {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.set_prefix(case.scenario.name);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// What a worker found, or its last words: is that what was to come of it?
fn judge(expect: Expect, outcome: Result<Found, String>, took: Duration) -> Result<String, String> {
    match (expect, outcome) {
        (Expect::Clean, Ok(found)) => {
            let text = format!(
                "{} faults in {:.1} s\n{}",
                found.nr_faults(),
                found.seconds,
                found.statistics()
            );
            if found.nr_faults() == 0 {
                Ok(text.trim_end().to_owned())
            } else {
                Err(text.trim_end().to_owned())
            }
        }
        (Expect::Clean, Err(words)) => Err(format!("!!! {words}")),
        (Expect::Flagged(by), Ok(found)) => {
            let at = found.first_fault_seconds.unwrap_or(found.seconds);
            let first = found.messages.first().cloned().unwrap_or_default();
            let names: Vec<&str> = found.faults.iter().map(|(name, _)| name.as_str()).collect();
            if names
                .iter()
                .any(|name| by.iter().any(|by| name.contains(by)))
            {
                Ok(format!("flagged after {at:.3} s: {first}"))
            } else if names.is_empty() {
                Err(format!("!!! not flagged in {:.1} s", found.seconds))
            } else {
                Err(format!("!!! flagged, but as another fault: {first}"))
            }
        }
        (Expect::Flagged(by), Err(words)) => {
            let took = took.as_secs_f64();
            if by.iter().any(|by| words.contains(by)) {
                Ok(format!("flagged after {took:.3} s: {words}"))
            } else {
                Err(format!("!!! {words}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(faults: &[(&str, u64)]) -> Found {
        let faults = faults.iter().map(|(name, n)| ((*name).to_owned(), *n));
        Found {
            seconds: 3.0,
            faults: faults.collect(),
            first_fault_seconds: Some(0.25),
            messages: vec!["0.250 s: first".into()],
            ..Found::default()
        }
    }

    #[test]
    fn a_clean_scenario_finds_nothing() {
        let judged = |outcome| judge(Expect::Clean, outcome, Duration::ZERO);
        assert!(judged(Ok(found(&[]))).is_ok());
        let failure = judged(Ok(found(&[("too short", 2)]))).expect_err("a fault");
        assert!(failure.contains("!!! 2 x too short"), "{failure}");
        assert!(judged(Err("gone".into())).is_err());
    }

    #[test]
    fn a_broken_one_finds_what_is_broken() {
        let expect = Expect::Flagged(&["short", "freed twice"]);
        let judged = |outcome| judge(expect, outcome, Duration::from_secs(1));
        let text = judged(Ok(found(&[("too short", 2)]))).expect("flagged");
        assert!(text.starts_with("flagged after 0.250 s"), "{text}");
        assert!(judged(Ok(found(&[]))).is_err(), "nothing was found");
        assert!(judged(Ok(found(&[("leak", 1)]))).is_err(), "another fault");
        assert!(judged(Err("slab: object freed twice: …".into())).is_ok());
        assert!(judged(Err("out of memory".into())).is_err());
    }

    #[test]
    fn names_are_unlike_each_other() {
        for (index, scenario) in SCENARIOS.iter().enumerate() {
            let same = |other: &&scenarios::Scenario| other.name == scenario.name;
            assert_eq!(SCENARIOS[..index].iter().find(same).map(|s| s.name), None);
        }
        assert!(SCENARIOS.iter().filter(|s| s.is_broken()).count() >= 5);
    }
}
