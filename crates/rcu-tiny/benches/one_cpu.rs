//! What one CPU's grace periods cost: a section, a callback through both lists, a wait.
//!
//! Run by `cargo xtask bench --layer rcu`. `critical-section` is `std`'s here, a mutex that knows its owner, which is dearer than a
//! microcontroller's two instructions: callbacks pay for it, sections do not use it.
//!
//! | bench | one iteration |
//! |---|---|
//! | `tiny/guard` | one section around one load |
//! | `tiny/call` | one callback of 256: queued, and run after a quiescent state |
//! | `tiny/synchronize` | one wait, outside of any section |

use criterion::{Criterion, SamplingMode};
use rcu_core::{Callback, GracePeriod, Head, Rcu};
use rcu_tiny::Tiny;
use std::hint::black_box;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// Callbacks of one pass.
const HEADS: usize = 256;

/// A callback that leaves its head for the next pass.
unsafe fn nothing(_head: NonNull<Head>) {}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200))
        .sample_size(20)
        .nresamples(1000)
        .configure_from_args();
    let mut group = criterion.benchmark_group("tiny");
    group.sampling_mode(SamplingMode::Flat);
    let tiny = Tiny::new();
    let word = 7_u64;
    group.bench_function("guard/1", |b| {
        b.iter(|| {
            let guard = Rcu::read_lock(&tiny);
            let seen = *black_box(&word);
            drop(guard);
            seen
        });
    });
    let heads: Vec<Head> = (0..HEADS).map(|_| Head::new()).collect();
    group.bench_function("call/1", |b| {
        b.iter_custom(|iterations| {
            let passes = iterations.div_ceil(HEADS as u64);
            let start = Instant::now();
            for _ in 0..passes {
                for head in &heads {
                    // SAFETY: run by `quiescent` below, so that each is queued once; it outlives that.
                    unsafe { tiny.call(NonNull::from(head), Callback::Run(nothing)) };
                }
                tiny.quiescent();
            }
            assert_eq!(tiny.pending(), 0, "a quiescent state runs all of them");
            start
                .elapsed()
                .mul_f64(iterations as f64 / (passes * HEADS as u64) as f64)
        });
    });
    group.bench_function("synchronize/1", |b| b.iter(|| tiny.synchronize()));
    group.finish();
    criterion.final_summary();
}
