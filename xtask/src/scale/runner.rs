//! Building the worker, and one run of it.
//!
//! *Why a process per run*: peak memory is a process's, and no engine inherits another's warm heap, threads or
//! thread-local leftovers.
//!
//! *Protocol*: the worker writes one JSON object a line: `{"progress":0.42}` and `{"sample":[ms, kib]}` any number
//! of times, then exactly one `{"result":{…}}`. On failure it exits with a status other than zero and says why on
//! stderr.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::options::{Case, Options, Workload};
use super::trace::Trace;
use crate::cargo::{Failure, Workspace, build_bench};
use crate::worker::hear;

/// The share of a run's objects that goes before the clock starts.
const WARMUP_FRACTION: &str = "0.1";

/// What a worker found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Run {
    pub(crate) threads: u32,
    pub(crate) objects: u64,
    pub(crate) ns_per_object: f64,
    pub(crate) grace_periods: Option<u64>,
    pub(crate) peak_extra_kib: Option<u64>,
    pub(crate) outstanding: Option<u64>,
    pub(crate) reads_per_second: Option<f64>,
    pub(crate) retire_ns: Option<Latency>,
    /// Milliseconds since the start, KiB retired and not yet freed.
    pub(crate) samples: Vec<(f64, f64)>,
}

/// How long single calls of `retire` took, in nanoseconds, the clock's own cost included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Latency {
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
}

/// Builds the bench target `scale` of kvfree and returns its executable.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf, Failure> {
    let directory = workspace.target.join("scale/build");
    build_bench(workspace, "kvfree", "scale", &[], &[], &directory)
}

/// Replays `trace` once on the worker's engine of that name, outside of any case.
pub(crate) fn replay(worker: &Path, engine: &str, trace: &Trace) -> Result<Run, Failure> {
    /// Seconds without a sign of life.
    const SILENCE: Duration = Duration::from_secs(120);
    let mut command = Command::new(worker);
    command.args(["--engine", engine, "--workload", "trace", "--trace"]);
    command.arg(&trace.plain);
    let run = converse(command, SILENCE, |_| {});
    run.map_err(|what| Failure::Run(format!("{engine} on {}: {what}", trace.name)))
}

/// Asks the worker whether this machine has a working membarrier; `None` when it cannot say.
pub(crate) fn probe_membarrier(worker: &Path) -> Option<bool> {
    let output = Command::new(worker).arg("--probe").output().ok()?;
    let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
    answer["membarrier"].as_bool()
}

/// Runs one case once. `progress` hears how far it is, from 0 to 1.
pub(crate) fn run(
    worker: &Path,
    case: &Case,
    options: &Options,
    progress: impl FnMut(f64),
) -> Result<Run, Failure> {
    let mut command = Command::new(worker);
    command.args(["--engine", case.engine.name()]);
    let readers = match &case.workload {
        Workload::Flood => 0,
        Workload::FloodReader(readers) | Workload::Reader(readers) => *readers,
        Workload::Latency | Workload::Trace(_) => 0,
    };
    match &case.workload {
        Workload::Flood | Workload::FloodReader(_) => command.args(["--workload", "flood"]),
        Workload::Reader(_) => command.args(["--workload", "reader"]),
        Workload::Latency => command.args(["--workload", "latency"]),
        Workload::Trace(trace) => command
            .args(["--workload", "trace", "--trace"])
            .arg(&trace.plain),
    };
    command.args(["--threads", &case.threads.to_string()]);
    command.args(["--objects", &options.objects().to_string()]);
    command.args(["--size", &options.size.to_string()]);
    command.args(["--readers", &readers.to_string()]);
    command.args(["--warmup-fraction", WARMUP_FRACTION]);
    let run = converse(command, options.silence(), progress).and_then(|run| {
        // How many threads replay a trace is the worker's to say.
        if run.threads == case.threads || matches!(case.workload, Workload::Trace(_)) {
            Ok(run)
        } else {
            Err(format!("the worker ran {} thread(s)", run.threads))
        }
    });
    run.map_err(|what| {
        let (engine, group) = (case.engine.name(), case.group());
        Failure::Run(format!("{engine} on {group}: {what}"))
    })
}

/// Starts the worker and hears it out. The error is one line.
fn converse(
    command: Command,
    silence: Duration,
    mut progress: impl FnMut(f64),
) -> Result<Run, String> {
    let mut transcript = Transcript::default();
    hear(command, silence, |line| {
        if let Some(fraction) = transcript.line(line)? {
            progress(fraction);
        }
        Ok(())
    })?;
    transcript.finish()
}

/// What a worker has said so far.
#[derive(Default)]
struct Transcript {
    samples: Vec<(f64, f64)>,
    result: Option<Run>,
}

impl Transcript {
    /// Takes one line in; returns the progress if that is what it told.
    fn line(&mut self, line: &str) -> Result<Option<f64>, String> {
        let odd = || format!("the worker wrote a line that is not its protocol: {line}");
        if self.result.is_some() {
            return Err("the worker wrote on after its result".to_owned());
        }
        let value: Value = serde_json::from_str(line).map_err(|_| odd())?;
        if let Some(fraction) = value["progress"].as_f64() {
            return Ok(Some(fraction.clamp(0.0, 1.0)));
        }
        if let (Some(ms), Some(kib)) = (value["sample"][0].as_f64(), value["sample"][1].as_f64()) {
            self.samples.push((ms, kib));
            return Ok(None);
        }
        self.result = Some(parse_result(&value["result"]).ok_or_else(odd)?);
        Ok(None)
    }

    fn finish(self) -> Result<Run, String> {
        let mut run = self
            .result
            .ok_or_else(|| "the worker ended without a result".to_owned())?;
        run.samples = self.samples;
        Ok(run)
    }
}

fn parse_result(value: &Value) -> Option<Run> {
    let optional = |key: &str| match &value[key] {
        Value::Null => Some(None),
        number => number.as_u64().map(Some),
    };
    let ns_per_object = value["ns_per_object"].as_f64()?;
    let reads_per_second = match &value["reads_per_second"] {
        Value::Null => None,
        number => Some(number.as_f64()?),
    };
    let retire_ns = match &value["retire_ns"] {
        Value::Null => None,
        latency => {
            let ns = |key: &str| latency[key].as_u64();
            let (p50, p99, p999, max) = (ns("p50")?, ns("p99")?, ns("p999")?, ns("max")?);
            Some(Latency {
                p50,
                p99,
                p999,
                max,
            })
        }
    };
    let run = Run {
        threads: value["threads"].as_u64()?.try_into().ok()?,
        objects: value["objects"].as_u64()?,
        ns_per_object,
        grace_periods: optional("grace_periods")?,
        peak_extra_kib: optional("peak_extra_kib")?,
        outstanding: optional("outstanding")?,
        reads_per_second,
        retire_ns,
        samples: Vec::new(),
    };
    (run.ns_per_object > 0.0 && run.objects > 0).then_some(run)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESULT: &str = r#"{"result":{"threads":1,"objects":5000000,"ns_per_object":3.1,"grace_periods":610,"peak_extra_kib":520,"outstanding":0,"reads_per_second":null}}"#;

    #[test]
    fn a_good_transcript_becomes_a_run() {
        let mut transcript = Transcript::default();
        assert_eq!(transcript.line(r#"{"progress":0.5}"#), Ok(Some(0.5)));
        assert_eq!(transcript.line(r#"{"sample":[1.5,64]}"#), Ok(None));
        assert_eq!(transcript.line(RESULT), Ok(None));
        let run = transcript.finish().expect("complete");
        assert_eq!(run.samples, [(1.5, 64.0)]);
        assert_eq!((run.grace_periods, run.reads_per_second), (Some(610), None));
        assert_eq!(run.retire_ns, None);
        let timed = RESULT.replace(
            "\"outstanding\"",
            r#""retire_ns":{"p50":20,"p99":30,"p999":400,"max":9000},"outstanding""#,
        );
        let mut transcript = Transcript::default();
        assert_eq!(transcript.line(&timed), Ok(None));
        let run = transcript.finish().expect("complete");
        assert_eq!(run.retire_ns.map(|l| (l.p50, l.p999)), Some((20, 400)));
    }

    #[test]
    fn odd_lines_and_missing_results_are_errors() {
        for line in [
            "hello",
            "{}",
            r#"{"sample":[1]}"#,
            r#"{"result":{"threads":1}}"#,
            r#"{"result":{"threads":1,"objects":5,"ns_per_object":-1,"grace_periods":null}}"#,
            r#"{"result":{"threads":1,"objects":5,"ns_per_object":1,"outstanding":"none"}}"#,
            r#"{"result":{"threads":1,"objects":5,"ns_per_object":1,"retire_ns":{"p50":1}}}"#,
        ] {
            assert!(Transcript::default().line(line).is_err(), "{line}");
        }
        assert!(Transcript::default().finish().is_err());
        let mut twice = Transcript::default();
        assert!(twice.line(RESULT).is_ok());
        assert!(twice.line(RESULT).is_err());
    }
}
