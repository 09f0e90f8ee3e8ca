//! What an object costs: ours beside the peers, one workload generic over them.
//!
//! Run by `cargo xtask bench --layer slab`, which repeats it and judges the ratios. Every workload writes the first word of what it
//! allocates, as a user would.
//!
//! | bench | one iteration |
//! |---|---|
//! | `pair-SIZE` | an object allocated and freed, by each thread |
//! | `lifo-SIZE`, `fifo-SIZE`, `random-SIZE` | a 4096th of: allocate as many, free them all in that order, by each thread |
//! | `remote-SIZE` | an object allocated by one thread and freed by another: what both spent on it, the hand-over left out |
//! | `alloc-bulk`, `free-bulk` | an object of 64 in one call; the other half of the pair, one by one, is not in the time |
//! | `xmalloc`, `cache-scratch` | a step of the pattern, see [`patterns`] |
//! | `larson`, `mstress` | a thousand steps, of long stretches that count as whole nanoseconds only |
//!
//! Names end in whose they are: `-typed` is a cache of that layout, `-kmalloc` the size classes, the others are peers. jemalloc is there
//! when the bench is built with `--cfg bench_jemalloc`.

mod heaps;
mod patterns;

use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode};
use pagealloc::Attempt;

use heaps::{Heap, Raw, touch};

/// Objects of a batch.
const BATCH: usize = 4096;
/// Objects of one bulk call.
const BULK: usize = 64;
/// Steps of a pattern at least, so that what goes before and after them does not count.
const STEPS: u64 = 200_000;
/// Objects that go from thread to thread together.
const PARCEL: usize = 512;

/// A generator that is the same in each run: Marsaglia's xorshift.
struct Dice(u64);

impl Dice {
    fn new(seed: usize) -> Self {
        Self(0x2545_f491_4f6c_dd1d ^ (seed as u64) << 17)
    }

    #[inline(always)]
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * end as u128) >> 64) as usize
    }

    fn shuffle<T>(&mut self, values: &mut [T]) {
        for last in (1..values.len()).rev() {
            values.swap(last, self.below(last + 1));
        }
    }
}

/// The time from the first of `threads` threads' start to the last one's end, each doing `work(thread, iterations)`.
fn on_threads(
    threads: usize,
    iterations: u64,
    warm_up: u64,
    work: impl Fn(usize, u64) + Sync,
) -> Duration {
    let barrier = Barrier::new(threads);
    let (barrier, work) = (&barrier, &work);
    let run = move |thread: usize| {
        work(thread, warm_up);
        barrier.wait();
        let start = Instant::now();
        work(thread, iterations);
        (start, Instant::now())
    };
    let spans: Vec<(Instant, Instant)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || run(thread)))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().expect("no panic");
        threads.into_iter().map(join).collect()
    });
    let first = spans.iter().map(|span| span.0).min().expect("a thread");
    let last = spans.iter().map(|span| span.1).max().expect("a thread");
    last - first
}

#[inline(never)]
fn pairs<const SIZE: usize>(heap: impl Heap, iterations: u64) {
    for i in 0..iterations {
        let object = std::hint::black_box(heap.alloc(SIZE));
        touch(object, i as usize);
        // SAFETY: allocated just now, with this size.
        unsafe { heap.free(object, SIZE) };
    }
}

#[derive(Clone, Copy)]
enum Order {
    Lifo,
    Fifo,
    Random,
}

/// Passes of [`BATCH`] objects: as many as make up `iterations`, and at least one.
#[inline(never)]
fn batches<const SIZE: usize>(heap: impl Heap, order: &[usize], iterations: u64) {
    let mut objects = vec![NonNull::dangling(); BATCH];
    for _ in 0..iterations.div_ceil(BATCH as u64) {
        for (i, place) in objects.iter_mut().enumerate() {
            let object = heap.alloc(SIZE);
            touch(object, i);
            *place = object;
        }
        for &i in order {
            // SAFETY: each place is in `order` once, and holds an object of this pass.
            unsafe { heap.free(objects[i], SIZE) };
        }
    }
}

fn order(kind: Order) -> Vec<usize> {
    let mut order: Vec<usize> = (0..BATCH).collect();
    match kind {
        Order::Lifo => order.reverse(),
        Order::Fifo => {}
        Order::Random => Dice::new(0).shuffle(&mut order),
    }
    order
}

/// A parcel's addresses; sent as they are.
struct Parcel(Vec<NonNull<u8>>);

// SAFETY: the objects belong to whoever has the parcel.
unsafe impl Send for Parcel {}

/// A place for parcels, in both directions.
#[derive(Default)]
struct Counter {
    full: Mutex<Vec<Parcel>>,
    empty: Mutex<Vec<Parcel>>,
}

fn take(from: &Mutex<Vec<Parcel>>) -> Parcel {
    loop {
        if let Some(parcel) = from.lock().expect("no panic").pop() {
            return parcel;
        }
        thread::yield_now();
    }
}

/// What one thread spends on allocating and another on freeing, together.
fn remote<const SIZE: usize>(heap: impl Heap, iterations: u64) -> Duration {
    const PARCELS: usize = 8;
    let counter = Counter::default();
    for _ in 0..PARCELS {
        counter
            .empty
            .lock()
            .expect("no panic")
            .push(Parcel(Vec::with_capacity(PARCEL)));
    }
    let rounds = iterations.div_ceil(PARCEL as u64) + 2 * PARCELS as u64;
    let counter = &counter;
    let spent: Duration = thread::scope(|scope| {
        let producer = scope.spawn(move || {
            let mut spent = Duration::ZERO;
            for round in 0..rounds {
                let mut parcel = take(&counter.empty);
                let start = Instant::now();
                for i in 0..PARCEL {
                    let object = heap.alloc(SIZE);
                    touch(object, i);
                    parcel.0.push(object);
                }
                if round >= 2 * PARCELS as u64 {
                    spent += start.elapsed();
                }
                counter.full.lock().expect("no panic").push(parcel);
            }
            spent
        });
        let consumer = scope.spawn(move || {
            let mut spent = Duration::ZERO;
            for round in 0..rounds {
                let mut parcel = take(&counter.full);
                let start = Instant::now();
                for object in parcel.0.drain(..) {
                    // SAFETY: from the producer's heap, which is this one, with this size.
                    unsafe { heap.free(object, SIZE) };
                }
                if round >= 2 * PARCELS as u64 {
                    spent += start.elapsed();
                }
                counter.empty.lock().expect("no panic").push(parcel);
            }
            spent
        });
        producer.join().expect("no panic") + consumer.join().expect("no panic")
    });
    let objects = iterations.div_ceil(PARCEL as u64) * PARCEL as u64;
    spent.mul_f64(iterations as f64 / objects as f64)
}

#[derive(Clone, Copy)]
enum Side {
    Alloc,
    Free,
}

/// Bulk calls on one side, single ones on the other; only the bulk side is timed, many calls between two looks at the clock.
fn bulk(raw: &Raw, side: Side, iterations: u64) -> Duration {
    const CALLS: usize = 16;
    let mut places = [const { MaybeUninit::<NonNull<u8>>::uninit() }; BULK * CALLS];
    let mut spent = Duration::ZERO;
    let passes = iterations.div_ceil((BULK * CALLS) as u64);
    for _ in 0..passes {
        match side {
            Side::Alloc => {
                let start = Instant::now();
                for out in places.chunks_exact_mut(BULK) {
                    raw.alloc_bulk(out, Attempt::MayGrow).expect("memory");
                }
                spent += start.elapsed();
                for place in &places {
                    // SAFETY: filled just now.
                    let object = unsafe { place.assume_init() };
                    // SAFETY: the cache's.
                    unsafe { raw.free(object) };
                }
            }
            Side::Free => {
                let mut objects = places.map(|_| raw.alloc().expect("memory"));
                let start = Instant::now();
                for chunk in objects.chunks_exact_mut(BULK) {
                    // SAFETY: the cache's, each once.
                    unsafe { raw.free_bulk(chunk) };
                }
                spent += start.elapsed();
            }
        }
    }
    spent.mul_f64(iterations as f64 / (passes * (BULK * CALLS) as u64) as f64)
}

/// One thread's share of a scaled measurement: passes make up more iterations than were asked for.
fn scaled(time: Duration, iterations: u64, pass: usize) -> Duration {
    let done = iterations.div_ceil(pass as u64) * pass as u64;
    time.mul_f64(iterations as f64 / done as f64)
}

struct Bench<'g, 'c> {
    group: &'g mut BenchmarkGroup<'c, WallTime>,
}

impl Bench<'_, '_> {
    fn row(&mut self, name: &str, threads: usize, mut measure: impl FnMut(u64) -> Duration) {
        self.group
            .bench_function(BenchmarkId::new(name, threads), |bencher| {
                bencher.iter_custom(&mut measure);
            });
    }

    fn pairs<const SIZE: usize>(&mut self, who: &str, heap: impl Heap) {
        for threads in [1, 2] {
            self.row(&format!("pair-{SIZE}-{who}"), threads, |n| {
                on_threads(threads, n, 1000, |_, n| pairs::<SIZE>(heap, n))
            });
        }
    }

    fn batches<const SIZE: usize>(&mut self, who: &str, heap: impl Heap) {
        for (name, kind) in [
            ("lifo", Order::Lifo),
            ("fifo", Order::Fifo),
            ("random", Order::Random),
        ] {
            let order = order(kind);
            for threads in [1, 2] {
                self.row(&format!("{name}-{SIZE}-{who}"), threads, |n| {
                    let work = |_, n| batches::<SIZE>(heap, &order, n);
                    scaled(on_threads(threads, n, 2 * BATCH as u64, work), n, BATCH)
                });
            }
        }
    }

    fn remote<const SIZE: usize>(&mut self, who: &str, heap: impl Heap) {
        self.row(&format!("remote-{SIZE}-{who}"), 2, |n| {
            remote::<SIZE>(heap, n)
        });
    }

    fn bulk(&mut self, raw: &Raw) {
        for (name, side) in [("alloc-bulk", Side::Alloc), ("free-bulk", Side::Free)] {
            for threads in [1, 2] {
                self.row(name, threads, |n| {
                    let spent = Mutex::new(Duration::ZERO);
                    thread::scope(|scope| {
                        for _ in 0..threads {
                            scope.spawn(|| {
                                bulk(raw, side, 1 << 14);
                                let mine = bulk(raw, side, n);
                                let mut most = spent.lock().expect("no panic");
                                *most = mine.max(*most);
                            });
                        }
                    });
                    spent.into_inner().expect("no panic")
                });
            }
        }
    }

    fn patterns(&mut self, who: &str, heap: impl Heap) {
        for threads in [1, 2] {
            self.row(&format!("larson-{who}"), threads, |n| {
                let steps = 1000 * n;
                let all = steps.next_multiple_of(STEPS);
                let work = |t, n| patterns::larson(heap, t, n);
                scaled(on_threads(threads, all, STEPS, work), steps, STEPS as usize)
            });
            self.row(&format!("xmalloc-{who}"), threads, |n| {
                patterns::xmalloc(heap, threads, n)
            });
            self.row(&format!("cache-scratch-{who}"), threads, |n| {
                patterns::cache_scratch(heap, threads, n)
            });
            self.row(&format!("mstress-{who}"), threads, |n| {
                let steps = 1000 * n;
                let all = steps.next_multiple_of(STEPS);
                let transfer = patterns::Transfer::new();
                let work = |t, n| patterns::mstress(heap, &transfer, t, n);
                let time = on_threads(threads, all, STEPS, work);
                transfer.empty(heap);
                scaled(time, steps, STEPS as usize)
            });
        }
    }

    /// Everything that takes an allocator of any size.
    fn general(&mut self, who: &str, heap: impl Heap) {
        self.pairs::<16>(who, heap);
        self.pairs::<64>(who, heap);
        self.pairs::<200>(who, heap);
        self.pairs::<256>(who, heap);
        self.pairs::<1024>(who, heap);
        self.pairs::<4096>(who, heap);
        self.batches::<64>(who, heap);
        self.batches::<256>(who, heap);
        self.remote::<64>(who, heap);
        self.remote::<256>(who, heap);
        self.patterns(who, heap);
    }

    fn typed<const SIZE: usize>(&mut self, heap: impl Heap) {
        self.pairs::<SIZE>("typed", heap);
        self.batches::<SIZE>("typed", heap);
        self.remote::<SIZE>("typed", heap);
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200))
        .sample_size(20)
        .nresamples(1000)
        .configure_from_args();
    let mut group = criterion.benchmark_group("object");
    group.sampling_mode(SamplingMode::Flat);
    let mut bench = Bench { group: &mut group };

    let (small, large) = (heaps::cache(64), heaps::cache(256));
    bench.typed::<64>(heaps::Typed(&small));
    bench.typed::<256>(heaps::Typed(&large));
    bench.bulk(&small);
    bench.general("kmalloc", heaps::Classes(&heaps::kmalloc()));
    bench.general("mimalloc", heaps::Mi);
    bench.general("rusty_alloc", heaps::Rusty);
    #[cfg(bench_jemalloc)]
    bench.general("jemalloc", heaps::Je);
    group.finish();
    criterion.final_summary();
}
