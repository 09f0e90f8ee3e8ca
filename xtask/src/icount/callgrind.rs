//! What callgrind counts: the events of each probe's calls, everything below them included.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cargo::Failure;

/// What one call of a probe executes. Ordered by instructions first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Executed {
    pub(super) instructions: u64,
    pub(super) loads: u64,
    pub(super) stores: u64,
    pub(super) branches: u64,
    pub(super) locked: u64,
}

/// callgrind's names of these events: instructions, data reads and writes, conditional branches, global bus events.
const EVENTS: [&str; 5] = ["Ir", "Dr", "Dw", "Bc", "Ge"];

/// Whether there is a valgrind.
pub(super) fn is_there() -> bool {
    let mut command = Command::new("valgrind");
    command.arg("--version").stdin(Stdio::null());
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// How often the probes are run. The monitor's thread may visit a slot in the middle of a probe, and its state is then another one for
/// the rest of the calls.
const RUNS: usize = 3;

/// Runs every probe of `program` and reads what was counted: the median of its calls, in the run of each where that was least.
/// `directory` takes the profile.
pub(super) fn count(
    program: &Path,
    directory: &Path,
) -> Result<BTreeMap<String, Executed>, Failure> {
    let mut least = count_once(program, directory)?;
    for _ in 1..RUNS {
        for (name, executed) in count_once(program, directory)? {
            let before = least.entry(name).or_insert(executed);
            *before = executed.min(*before);
        }
    }
    Ok(least)
}

fn count_once(program: &Path, directory: &Path) -> Result<BTreeMap<String, Executed>, Failure> {
    let profile: PathBuf = directory.join("callgrind.out.probes");
    let output = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--cache-sim=yes",
            "--branch-sim=yes",
            "--collect-bus=yes",
        ])
        // A part of the profile for each call of a probe.
        .args(["--dump-before=probe_*", "--combine-dumps=yes"])
        .args(["--compress-strings=no", "--compress-pos=no"])
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(program)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::Run(format!("valgrind does not start: {error}")))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text.lines().last().unwrap_or("no message");
        return Err(Failure::Run(format!(
            "callgrind failed ({}): {last}",
            output.status
        )));
    }
    let text = std::fs::read_to_string(&profile)
        .map_err(|error| Failure::Run(format!("cannot read {}: {error}", profile.display())))?;
    parse(&text).ok_or_else(|| Failure::Run(format!("{}: not callgrind's", profile.display())))
}

/// The median of the inclusive costs of each `probe_…`'s calls, by the name without that. Calls that a part of the profile has together
/// count as so many of the same cost.
fn parse(text: &str) -> Option<BTreeMap<String, Executed>> {
    let events: Vec<&str> = text
        .lines()
        .find_map(|l| l.strip_prefix("events: "))?
        .split(' ')
        .collect();
    let place = |name: &str| events.iter().position(|e| *e == name);
    let places: Vec<usize> = EVENTS.iter().map(|e| place(e)).collect::<Option<_>>()?;
    let mut all: BTreeMap<String, Vec<Executed>> = BTreeMap::new();
    let mut callee: Option<&str> = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("cfn=") {
            callee = name.strip_prefix("probe_");
        } else if let Some(calls) = line.strip_prefix("calls=") {
            let costs = lines.next()?;
            let Some(name) = callee.take() else { continue };
            let calls: u64 = calls.split(' ').next()?.parse().ok()?;
            // The first number is a line; costs that are zero at the end are left out.
            let costs: Vec<u64> = costs
                .split(' ')
                .skip(1)
                .map_while(|n| n.parse().ok())
                .collect();
            let cost = |event: usize| {
                let sum = costs.get(places[event]).copied().unwrap_or(0);
                sum.div_ceil(calls.max(1))
            };
            let executed = Executed {
                instructions: cost(0),
                loads: cost(1),
                stores: cost(2),
                branches: cost(3),
                locked: cost(4),
            };
            let of_name = all.entry(name.to_owned()).or_default();
            of_name.extend((0..calls).map(|_| executed));
        }
    }
    let median = |(name, mut calls): (String, Vec<Executed>)| {
        calls.sort_unstable();
        let middle = calls.get(calls.len() / 2).copied().unwrap_or_default();
        (name, middle)
    };
    Some(all.into_iter().map(median).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = "\
# callgrind format
positions: line
part: 1
events: Ir Dr Dw I1mr Bc Bi Ge

fn=main
10 3 1
cfn=probe_read
calls=2 47
79 56 22 10 2 8
cfn=other
calls=1 3
80 1000 1000 1000 1000 1000 1000 1000
part: 2
events: Ir Dr Dw I1mr Bc Bi Ge
fn=main
cfn=probe_read
calls=1 47
79 29 11 5 0 4 0 1
part: 3
events: Ir Dr Dw I1mr Bc Bi Ge
fn=main
cfn=probe_read
calls=1 47
79 310 29 9 0 40 0 7
cfn=probe_read
calls=1 47
79 29 11 5 0 4 0 1

fn=probe_read
47 28 11 5
";

    #[test]
    fn the_median_of_a_probes_calls_counts() {
        let counted = parse(PROFILE).unwrap();
        let read = Executed {
            instructions: 29,
            loads: 11,
            stores: 5,
            branches: 4,
            locked: 1,
        };
        assert_eq!(
            counted.into_iter().collect::<Vec<_>>(),
            [("read".to_owned(), read)]
        );
    }

    #[test]
    fn what_is_not_a_profile_is_refused() {
        assert_eq!(parse(""), None);
        assert_eq!(parse("events: Ir Dr\n"), None);
    }
}
