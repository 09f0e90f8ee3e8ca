//! What an update costs whoever makes it: publishing, a cookie, a callback until it has run.
//!
//! Run by `cargo xtask bench --layer rcu`. Nothing is allocated and nothing freed: that is measured in `kvfree`.
//!
//! | bench | one iteration |
//! |---|---|
//! | `update/swap` | a cell's pointer exchanged, with a cookie for what was there; `plain` is an exchange, `arc-swap` its `swap` |
//! | `update/poll` | a cookie of an idle tree asked |
//! | `update/call` | one callback of 4096 queued, and all of them run; peers: what each has for a function to be called later |

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode};
use crossbeam_epoch as epoch;
use rcu_core::{Callback, GracePeriod, Head, Rcu, RcuBox, RcuCell, RcuPointer, Reclaimer};
use seize::Guard as _;
use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[cfg(feature = "liburcu")]
mod liburcu;

rcu_tree::static_tree! {
    struct Updated;
}

/// Callbacks of one pass.
const CALLS: usize = 4096;

/// The heap, which keeps what is retired: the two objects here are published again and again.
#[derive(Clone, Copy, Default)]
struct Kept;

// SAFETY: 1: a `Box`; 2: never frees, and what is here needs no dropping; 3: no state.
unsafe impl Reclaimer for Kept {
    type Domain = Updated;

    fn allocate<T: Send + Sync + 'static>(&self, value: T) -> Result<NonNull<T>, T> {
        Ok(NonNull::from(Box::leak(Box::new(value))))
    }

    unsafe fn retire<T: 'static>(&self, _object: NonNull<T>) {}

    unsafe fn free<T: 'static>(&self, _object: NonNull<T>) {}
}

fn swaps(group: &mut BenchmarkGroup<'_, WallTime>) {
    let object = |value: u64| std::ptr::from_mut(Box::leak(Box::new(value)));
    let plain = AtomicPtr::new(object(1));
    let other = object(2);
    group.bench_function("swap-plain/1", |b| {
        b.iter(|| plain.swap(black_box(other), Ordering::AcqRel));
    });
    let objects = [1_u64, 2].map(|value| RcuBox::<u64, Kept>::new(value).into_raw());
    // SAFETY: from `into_raw`; never freed.
    let cell = RcuCell::new(unsafe { RcuBox::<u64, Kept>::from_raw(objects[0]) });
    let mut next = 1;
    group.bench_function("swap-cell/1", |b| {
        b.iter(|| {
            // SAFETY: as above: retiring keeps the object, so it may be published again.
            let new = unsafe { RcuBox::from_raw(objects[next]) };
            next ^= 1;
            let old = cell.swap(Some(new)).expect("never empty");
            black_box(old.cookie())
        });
    });
    let swapped = arc_swap::ArcSwap::from_pointee(1_u64);
    let mut spare = Arc::new(2);
    group.bench_function("swap-arc-swap/1", |b| {
        b.iter(|| spare = swapped.swap(Arc::clone(&spare)));
    });
}

fn polls(group: &mut BenchmarkGroup<'_, WallTime>) {
    let cookie = Updated.snapshot();
    Updated.wait(cookie);
    group.bench_function("poll/1", |b| b.iter(|| Updated.poll(black_box(cookie))));
}

/// A callback that leaves its head for the next pass.
unsafe fn nothing(_head: NonNull<Head>) {}

/// Passes of [`CALLS`] callbacks, as many as make up `iterations`; each returns when its callbacks have run.
fn passes(iterations: u64, pass: impl Fn()) -> Duration {
    let count = iterations.div_ceil(CALLS as u64);
    let start = Instant::now();
    (0..count).for_each(|_| pass());
    start
        .elapsed()
        .mul_f64(iterations as f64 / (count * CALLS as u64) as f64)
}

static FREED: AtomicUsize = AtomicUsize::new(0);

/// What seize calls when nobody sees the word any more.
unsafe fn count(_word: *mut u64, _collector: &seize::Collector) {
    // ORDERING: Relaxed: a count, and one thread.
    FREED.fetch_add(1, Ordering::Relaxed);
}

fn calls(group: &mut BenchmarkGroup<'_, WallTime>) {
    let heads: Vec<Head> = (0..CALLS).map(|_| Head::new()).collect();
    let ours = || {
        for head in &heads {
            // SAFETY: the barrier below waits, so each is queued once; it outlives that.
            unsafe { Updated.call(NonNull::from(head), Callback::Run(nothing)) };
        }
        Updated.barrier();
    };
    group.bench_function("call-ours/1", |b| b.iter_custom(|n| passes(n, ours)));
    let run = AtomicUsize::new(0);
    let crossbeam = || {
        // ORDERING: Relaxed: a count, and one thread.
        run.store(0, Ordering::Relaxed);
        for _ in 0..CALLS {
            let run = &run;
            // SAFETY: every call is waited for below.
            unsafe { epoch::pin().defer_unchecked(move || run.fetch_add(1, Ordering::Relaxed)) };
        }
        // ORDERING: Relaxed: a count, and one thread.
        while run.load(Ordering::Relaxed) < CALLS {
            epoch::pin().flush();
        }
    };
    group.bench_function("call-crossbeam-epoch/1", |b| {
        b.iter_custom(|n| passes(n, crossbeam))
    });
    let collector = seize::Collector::new();
    let mut words = vec![0_u64; CALLS];
    let words: Vec<*mut u64> = words.iter_mut().map(std::ptr::from_mut).collect();
    let seize = || {
        // ORDERING: Relaxed: a count, and one thread.
        FREED.store(0, Ordering::Relaxed);
        for &word in &words {
            let guard = collector.enter();
            // SAFETY: reclaiming only counts, and no batch is left at the end of a pass.
            unsafe { guard.defer_retire(word, count) };
        }
        // SAFETY: this thread alone knows the collector, and is outside.
        unsafe { collector.reclaim_all() };
        // ORDERING: Relaxed: a count, and one thread.
        assert_eq!(FREED.load(Ordering::Relaxed), CALLS, "all of a pass");
    };
    group.bench_function("call-seize/1", |b| b.iter_custom(|n| passes(n, seize)));
    #[cfg(feature = "liburcu")]
    {
        let heads: Vec<liburcu::memb::Head> =
            (0..CALLS).map(|_| liburcu::memb::Head::new()).collect();
        let _registered = liburcu::memb::Registered::new();
        let theirs = || {
            // SAFETY: the barrier waits for all of them, so each is queued once; they outlive that.
            heads
                .iter()
                .for_each(|head| unsafe { liburcu::memb::call(head) });
            liburcu::memb::barrier();
        };
        group.bench_function("call-liburcu-memb/1", |b| {
            b.iter_custom(|n| passes(n, theirs))
        });
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200))
        .sample_size(20)
        .nresamples(1000)
        .configure_from_args();
    let mut group = criterion.benchmark_group("update");
    group.sampling_mode(SamplingMode::Flat);
    swaps(&mut group);
    polls(&mut group);
    calls(&mut group);
    group.finish();
    criterion.final_summary();
}
