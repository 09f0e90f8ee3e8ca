//! How long single calls take: a flood by one thread in which each `retire` is timed.

use crate::args::Args;
use crate::engines::Engine;
use crate::memory::Mark;
use crate::report::{self, Latency, Outcome};
use crate::timing::{percentile, times};
use std::time::Instant;

/// Calls that are timed at most: a word each.
const MOST: usize = 4_000_000;
/// Calls before the first timed one.
const WARM_UP: usize = 100_000;

pub(crate) fn run<E: Engine>(engine: &E, args: &Args) -> Result<(), String> {
    let mark = Mark::now();
    let calls = args.objects.min(MOST);
    let warm_up = WARM_UP.min(calls);
    times(engine, warm_up, args.size, |_| {});
    let periods = engine.grace_periods();
    let began = Instant::now();
    let times = times(engine, calls, args.size, |i| {
        report::progress(i as f64 / calls as f64)
    });
    engine.finish(warm_up + calls);
    let elapsed = began.elapsed();
    Outcome {
        threads: 1,
        objects: calls,
        elapsed,
        grace_periods: (engine.grace_periods().zip(periods)).map(|(now, then)| now - then),
        // With the times themselves, which are no engine's.
        peak_extra_kib: mark.peak_extra_kib().saturating_sub(calls * 4 / 1024),
        outstanding: engine.outstanding(warm_up + calls, &[]),
        reads_per_second: None,
        retire_ns: Some(Latency {
            p50: percentile(&times, 0.5),
            p99: percentile(&times, 0.99),
            p999: percentile(&times, 0.999),
            max: percentile(&times, 1.0),
        }),
    }
    .print();
    Ok(())
}
