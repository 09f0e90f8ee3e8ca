//! What deferred freeing costs: ours beside the peers, one flood generic over them.
//!
//! Run by `cargo xtask bench --layer kvfree`, which repeats it and judges the ratios. The engines are those of `cargo xtask scale`,
//! which runs each in a process of its own and looks at memory and grace periods too.
//!
//! | bench | one iteration |
//! |---|---|
//! | `flood-SIZE-ENGINE` | an object allocated, touched, retired; threads share the objects, and the time is the wall's |
//! | `owners-ENGINE` | the same with a value that owns a second allocation, which its destructor frees |
//! | `beside-reader-SIZE-ENGINE` | the same beside a reader that runs flat out |
//! | `tail-ENGINE` | no iteration: the 99.9th percentile of single calls of `retire`, the clock's own cost included |
//! | `reads-alone`, `reads-beside-flood` | a section with one load, without and beside a flood of ours by one thread |

#[path = "scale/boxes.rs"]
mod boxes;
#[path = "scale/count.rs"]
mod count;
#[path = "scale/engines.rs"]
#[expect(
    dead_code,
    reason = "what the scale worker tells of engines, nobody asks here"
)]
mod engines;
#[path = "retire/owners.rs"]
mod owners;
#[path = "scale/timing.rs"]
mod timing;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode};
use engines::Engine;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Objects of one sample at least, so that every kind of batch is filled and recycled.
const LEAST: u64 = 100_000;
/// Calls of `retire` that are timed for one sample of a percentile.
const CALLS: usize = 100_000;

/// One object: allocated, touched, retired.
#[inline]
fn one<E: Engine>(engine: &E, size: usize, value: usize) {
    let object = engine.alloc(size);
    engine.touch(object, size, value);
    // SAFETY: allocated just now with this size, published to nobody.
    unsafe { engine.retire(object, size) };
}

/// Time for `iterations` objects, each of which is a call of `one`, by so many threads together. Each has a copy, so that what is in it
/// lies in registers.
fn flood_by(threads: usize, iterations: u64, one: impl Fn(usize) + Send + Sync + Copy) -> Duration {
    let share = iterations.max(LEAST).div_ceil(threads as u64);
    let start = Barrier::new(threads);
    let flood = move |objects: u64| (0..objects).for_each(|i| one(i as usize));
    let began = thread::scope(|s| {
        let floods: Vec<_> = (0..threads)
            .map(|_| {
                let start = &start;
                s.spawn(move || {
                    // The thread's slot, its first arrays and their pages.
                    flood(LEAST / threads as u64);
                    start.wait();
                    let began = Instant::now();
                    flood(share);
                    (began, Instant::now())
                })
            })
            .collect();
        let times = floods
            .into_iter()
            .map(|f| f.join().expect("a flooding thread"));
        times.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    });
    let (began, ended) = began.expect("at least one thread");
    (ended - began).mul_f64(iterations as f64 / (share * threads as u64) as f64)
}

/// Runs `work` beside a reader; says what it said, and how many sections the reader had in what time.
fn beside_reader<E: Engine, T>(engine: &E, work: impl FnOnce() -> T) -> (T, u64, Duration) {
    let (mut word, stop) = (7, AtomicBool::new(false));
    let cell = AtomicPtr::new(&raw mut word);
    let start = Barrier::new(2);
    thread::scope(|s| {
        let reader = s.spawn(|| {
            start.wait();
            let began = Instant::now();
            let mut reads = 0;
            while !stop.load(Ordering::Relaxed) {
                (0..256).for_each(|_| engine.read(&cell));
                reads += 256;
            }
            (reads, began.elapsed())
        });
        start.wait();
        let result = work();
        stop.store(true, Ordering::Relaxed);
        let (reads, time) = reader.join().expect("the reader");
        (result, reads, time)
    })
}

struct Bench<'g, 'c> {
    group: &'g mut BenchmarkGroup<'c, WallTime>,
}

impl Bench<'_, '_> {
    fn flood<E: Engine>(&mut self, name: &str, engine: &E, size: usize, threads: &[usize]) {
        self.flood_of(&format!("flood-{size}-{name}"), threads, move |value| {
            one(engine, size, value);
        });
    }

    fn flood_of(
        &mut self,
        name: &str,
        threads: &[usize],
        one: impl Fn(usize) + Send + Sync + Copy,
    ) {
        for &threads in threads {
            let id = BenchmarkId::new(name, threads);
            self.group.bench_function(id, |bencher| {
                bencher.iter_custom(|iterations| flood_by(threads, iterations, one));
            });
        }
    }

    fn beside_reader<E: Engine>(&mut self, name: &str, engine: &E, size: usize) {
        let id = BenchmarkId::new(format!("beside-reader-{size}-{name}"), 1);
        self.group.bench_function(id, |bencher| {
            bencher.iter_custom(|iterations| {
                beside_reader(engine, || {
                    flood_by(1, iterations, move |v| one(engine, size, v))
                })
                .0
            });
        });
    }

    fn tail<E: Engine>(&mut self, name: &str, engine: &E) {
        timing::times(engine, CALLS, 64, |_| {});
        self.group
            .bench_function(BenchmarkId::new(format!("tail-{name}"), 1), |bencher| {
                bencher.iter_custom(|iterations| {
                    let times = timing::times(engine, CALLS, 64, |_| {});
                    let tail = timing::percentile(&times, 0.999);
                    Duration::from_nanos(u64::from(tail) * iterations)
                });
            });
    }

    fn reads<E: Engine>(&mut self, name: &str, engine: &E, work: impl Fn()) {
        self.group
            .bench_function(BenchmarkId::new(format!("reads-{name}"), 1), |bencher| {
                bencher.iter_custom(|iterations| {
                    let ((), reads, time) = beside_reader(engine, &work);
                    time.mul_f64(iterations as f64 / reads as f64)
                });
            });
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200))
        .sample_size(10)
        .nresamples(1000)
        .configure_from_args();
    let mut group = criterion.benchmark_group("retire");
    group.sampling_mode(SamplingMode::Flat);
    let mut bench = Bench { group: &mut group };
    let (headless, sized, boxed) = (
        engines::Headless::new(),
        engines::BySize::new(),
        boxes::Boxes::new(),
    );
    let (malloc, kovan, crossbeam) = (engines::Malloc, engines::Kovan, engines::Crossbeam);
    for size in [64, 24, 256, 1024] {
        let typed = engines::Typed::new(size);
        bench.flood("typed", &typed, size, &[1, 2]);
        bench.flood("kovan", &kovan, size, &[1, 2]);
        bench.flood("malloc", &malloc, size, &[1, 2]);
        bench.flood("crossbeam-epoch", &crossbeam, size, &[1, 2]);
        if size != 64 {
            continue;
        }
        bench.flood("headless", &headless, size, &[1]);
        bench.flood("sized", &sized, size, &[1]);
        bench.flood("box", &boxed, size, &[1]);
        bench.beside_reader("typed", &typed, size);
        bench.beside_reader("kovan", &kovan, size);
        bench.beside_reader("crossbeam-epoch", &crossbeam, size);
        bench.tail("typed", &typed);
        bench.tail("headless", &headless);
        bench.tail("box", &boxed);
        bench.tail("kovan", &kovan);
        bench.tail("crossbeam-epoch", &crossbeam);
        bench.reads("alone", &typed, || thread::sleep(Duration::from_millis(5)));
        bench.reads("beside-flood", &typed, || {
            let typed = &typed;
            flood_by(1, 1_000_000, move |value| one(typed, size, value));
        });
    }
    bench.flood_of("owners-ours", &[1, 2], owners::ours);
    bench.flood_of("owners-crossbeam-epoch", &[1, 2], owners::crossbeam);
    bench.flood_of("owners-kovan", &[1, 2], owners::kovan);
    bench.flood_of("owners-at-once", &[1, 2], owners::at_once);
    group.finish();
    criterion.final_summary();
}
