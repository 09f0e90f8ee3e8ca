//! The flood: threads that allocate, touch and retire, beside readers that run flat out.

use crate::args::Args;
use crate::engines::Engine;
use crate::memory::Mark;
use crate::report::{self, Outcome};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Objects between two looks at the shared counters.
const STRIDE: usize = 1024;
/// How often memory is sampled, and progress told.
const SAMPLE: Duration = Duration::from_millis(1);
/// Objects that warm the engine up, out of the time but not out of the memory.
const WARM_UP: usize = 100_000;

#[repr(align(128))]
struct Padded(AtomicUsize);

fn flood<E: Engine>(engine: &E, objects: usize, size: usize, done: &AtomicUsize) {
    let mut left = objects;
    while left > 0 {
        let now = left.min(STRIDE);
        for i in 0..now {
            let object = engine.alloc(size);
            engine.touch(object, size, i);
            // SAFETY: allocated just now with this size, published to nobody.
            unsafe { engine.retire(object, size) };
        }
        left -= now;
        done.store(objects - left, Ordering::Relaxed);
    }
}

pub(crate) fn run<E: Engine>(engine: &E, args: &Args) -> Result<(), String> {
    let mark = Mark::now();
    let warm = Padded(AtomicUsize::new(0));
    flood(engine, WARM_UP.min(args.objects), args.size, &warm.0);
    engine.finish(WARM_UP.min(args.objects));

    let cell = AtomicPtr::new(Box::into_raw(Box::new(7)));
    let share = args.objects / args.threads;
    let total = share * args.threads;
    let done: Vec<_> = (0..args.threads)
        .map(|_| Padded(AtomicUsize::new(0)))
        .collect();
    let (stop_readers, stop_sampler) = (AtomicBool::new(false), AtomicBool::new(false));
    let start = Barrier::new(args.threads + args.readers + 1);
    let periods = engine.grace_periods();
    let (elapsed, reads) = std::thread::scope(|s| {
        let floods: Vec<_> = done
            .iter()
            .map(|done| {
                s.spawn(|| {
                    start.wait();
                    let began = Instant::now();
                    flood(engine, share, args.size, &done.0);
                    began
                })
            })
            .collect();
        let readers: Vec<_> = (0..args.readers)
            .map(|_| {
                s.spawn(|| {
                    start.wait();
                    let mut reads = 0_usize;
                    while !stop_readers.load(Ordering::Relaxed) {
                        (0..256).for_each(|_| engine.read(&cell));
                        reads += 256;
                    }
                    reads
                })
            })
            .collect();
        s.spawn(|| watch(engine, &done, total, args.size, &stop_sampler));
        start.wait();
        // By the flooding threads' own clocks: this one may not get to run before they are done.
        let began = floods
            .into_iter()
            .map(|f| f.join().expect("a flooding thread"))
            .min();
        let began = began.expect("at least one thread");
        // Readers stop before the tail: an engine without a barrier may need their threads' end to free the last objects.
        stop_readers.store(true, Ordering::Relaxed);
        let reads: usize = readers
            .into_iter()
            .map(|r| r.join().expect("a reader"))
            .sum();
        let reads = reads as f64 / began.elapsed().as_secs_f64();
        engine.finish(WARM_UP.min(args.objects) + total);
        let elapsed = began.elapsed();
        stop_sampler.store(true, Ordering::Relaxed);
        (elapsed, reads)
    });
    // SAFETY: leaked above, and nobody reads any more.
    drop(unsafe { Box::from_raw(cell.into_inner()) });
    Outcome {
        threads: args.threads,
        objects: total,
        elapsed,
        grace_periods: engine
            .grace_periods()
            .zip(periods)
            .map(|(now, then)| now - then),
        peak_extra_kib: mark.peak_extra_kib(),
        outstanding: engine.outstanding(WARM_UP.min(args.objects) + total, &[]),
        reads_per_second: (args.readers > 0).then_some(reads),
    }
    .print();
    Ok(())
}

/// Samples what waits, and tells how far the flood has come.
fn watch<E: Engine>(engine: &E, done: &[Padded], total: usize, size: usize, stop: &AtomicBool) {
    let began = Instant::now();
    let mut told = 0.0;
    while !stop.load(Ordering::Relaxed) {
        let retired: usize = done.iter().map(|d| d.0.load(Ordering::Relaxed)).sum();
        let waiting = engine.waiting_bytes(WARM_UP.min(total) + retired, size);
        report::sample(began.elapsed(), waiting as f64 / 1024.0);
        let fraction = retired as f64 / total as f64;
        if fraction >= told + 0.05 {
            told = fraction;
            report::progress(fraction);
        }
        std::thread::sleep(SAMPLE);
    }
}
