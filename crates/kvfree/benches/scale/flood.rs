//! The flood: threads that allocate, touch and retire, beside readers that run flat out.

use crate::args::Args;
use crate::engines::Engine;
use crate::memory::Mark;
use crate::report::{self, Outcome};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long readers without a flood read.
const READ_FOR: Duration = Duration::from_millis(500);
/// Objects between two looks at the shared counters.
const STRIDE: usize = 1024;
/// How often memory is sampled, and progress told.
const SAMPLE: Duration = Duration::from_millis(1);
/// Objects by which the threads warm up, out of the time but not out of the memory.
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

/// Has what this harness needs itself resident before memory is marked: as many threads' stacks, and what prints.
fn touch_harness(args: &Args) {
    let threads = args.threads + args.readers + 1;
    let all = Barrier::new(threads);
    std::thread::scope(|s| {
        for _ in 0..threads {
            s.spawn(|| all.wait());
        }
    });
    report::sample(Duration::ZERO, 0.0);
    report::progress(0.0);
}

/// Reads until told to stop; says how often.
fn read<E: Engine>(engine: &E, cell: &AtomicPtr<usize>, stop: &AtomicBool) -> usize {
    let mut reads = 0;
    while !stop.load(Ordering::Relaxed) {
        (0..256).for_each(|_| engine.read(cell));
        reads += 256;
    }
    reads
}

/// What the readers do without a flood.
pub(crate) fn readers<E: Engine>(engine: &E, args: &Args) -> Result<(), String> {
    let mark = Mark::now();
    let cell = AtomicPtr::new(Box::into_raw(Box::new(7)));
    let stop = AtomicBool::new(false);
    let start = Barrier::new(args.readers + 1);
    let (elapsed, reads) = std::thread::scope(|s| {
        let spawn = |_| {
            s.spawn(|| {
                start.wait();
                read(engine, &cell, &stop)
            })
        };
        let readers: Vec<_> = (0..args.readers).map(spawn).collect();
        start.wait();
        let began = Instant::now();
        std::thread::sleep(READ_FOR);
        stop.store(true, Ordering::Relaxed);
        let reads: usize = (readers.into_iter())
            .map(|r| r.join().expect("a reader"))
            .sum();
        (began.elapsed(), reads)
    });
    // SAFETY: leaked above, and nobody reads any more.
    drop(unsafe { Box::from_raw(cell.into_inner()) });
    Outcome {
        threads: args.readers,
        objects: reads,
        elapsed,
        grace_periods: None,
        peak_extra_kib: mark.peak_extra_kib(),
        outstanding: None,
        reads_per_second: Some(reads as f64 / elapsed.as_secs_f64()),
        retire_ns: None,
    }
    .print();
    Ok(())
}

pub(crate) fn run<E: Engine>(engine: &E, args: &Args) -> Result<(), String> {
    touch_harness(args);
    let mark = Mark::now();
    let cell = AtomicPtr::new(Box::into_raw(Box::new(7)));
    let share = args.objects / args.threads;
    let total = share * args.threads;
    let warm_up = WARM_UP.min(args.objects) / args.threads;
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
                    flood(engine, warm_up, args.size, &AtomicUsize::new(0));
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
                    read(engine, &cell, &stop_readers)
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
        engine.finish(warm_up * args.threads + total);
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
        outstanding: engine.outstanding(warm_up * args.threads + total, &[]),
        reads_per_second: (args.readers > 0).then_some(reads),
        retire_ns: None,
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
        let waiting =
            engine.waiting_bytes(WARM_UP.min(total) / done.len() * done.len() + retired, size);
        report::sample(began.elapsed(), waiting as f64 / 1024.0);
        let fraction = retired as f64 / total as f64;
        if fraction >= told + 0.05 {
            told = fraction;
            report::progress(fraction);
        }
        std::thread::sleep(SAMPLE);
    }
}
