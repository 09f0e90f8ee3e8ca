//! What the worker prints: JSON lines.

use std::io::Write;
use std::time::Duration;

fn print(line: &serde_json::Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

pub(crate) fn progress(fraction: f64) {
    print(&serde_json::json!({ "progress": fraction }));
}

pub(crate) fn sample(at: Duration, kib: f64) {
    print(&serde_json::json!({ "sample": [at.as_secs_f64() * 1e3, kib] }));
}

/// The outcome of one run.
pub(crate) struct Outcome {
    pub(crate) threads: usize,
    pub(crate) objects: usize,
    pub(crate) elapsed: Duration,
    pub(crate) grace_periods: Option<usize>,
    pub(crate) peak_extra_kib: usize,
    pub(crate) outstanding: Option<usize>,
    pub(crate) reads_per_second: Option<f64>,
    pub(crate) retire_ns: Option<Latency>,
}

/// How long single calls took, in nanoseconds.
pub(crate) struct Latency {
    pub(crate) p50: u32,
    pub(crate) p99: u32,
    pub(crate) p999: u32,
    pub(crate) max: u32,
}

impl Outcome {
    pub(crate) fn print(&self) {
        print(&serde_json::json!({ "result": {
            "threads": self.threads,
            "objects": self.objects,
            "ns_per_object": self.elapsed.as_nanos() as f64 / self.objects as f64,
            "grace_periods": self.grace_periods,
            "peak_extra_kib": self.peak_extra_kib,
            "outstanding": self.outstanding,
            "reads_per_second": self.reads_per_second,
            "retire_ns": self.retire_ns.as_ref().map(|l| serde_json::json!({
                "p50": l.p50, "p99": l.p99, "p999": l.p999, "max": l.max,
            })),
        }}));
    }
}
