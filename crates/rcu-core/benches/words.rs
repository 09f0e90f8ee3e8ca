//! What the floor costs: local locks, fences, lists of heads, cookies of a sequence.
//!
//! Run by `cargo xtask bench --layer rcu`, which repeats it and judges the ratios. One thread, nothing contended: what is
//! shared here is measured where it is shared, in the layers above.
//!
//! | bench | one iteration |
//! |---|---|
//! | `lock` | enter, add one to the word behind the lock, leave; `none` is the word alone |
//! | `fence` | one fence, and one store before it |
//! | `list` | one head through a segmented list of 256: queued, numbered, advanced over, taken out; `vecdeque`: pushed, popped |
//! | `cookie` | a snapshot and a poll of a sequence that is at rest |

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode};
use rcu_core::cpu::{BiasedLock, LocalCell, LocalLock, SpinLock, UpLock};
use rcu_core::manual::ManualGp;
use rcu_core::{GracePeriod, Head, SegList, fence};
use std::collections::VecDeque;
use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Heads of one pass through a list: what a slot's callbacks come in.
const HEADS: usize = 256;

type Group<'g, 'c> = &'g mut BenchmarkGroup<'c, WallTime>;

fn lock<L: LocalLock>(group: Group<'_, '_>, name: &str, lock: L) {
    let cell = LocalCell::new(lock, 0_u64);
    group.bench_function(format!("{name}/1"), |b| {
        b.iter(|| {
            // SAFETY: this thread alone knows the lock.
            if let Some(mut word) = unsafe { cell.try_enter() } {
                *word = word.wrapping_add(black_box(1));
            }
        });
    });
}

fn locks(criterion: &mut Criterion) {
    // As a thread's first slot does: else the owner's entries fence, and no bias is taken.
    fence::probe();
    let mut group = criterion.benchmark_group("lock");
    group.sampling_mode(SamplingMode::Flat);
    let word = AtomicU64::new(0);
    group.bench_function("none/1", |b| {
        b.iter(|| {
            word.store(
                word.load(Ordering::Relaxed) + black_box(1),
                Ordering::Relaxed,
            )
        });
    });
    lock(&mut group, "biased", BiasedLock::new());
    // SAFETY: one thread uses it.
    lock(&mut group, "up", unsafe { UpLock::new() });
    lock(&mut group, "spin", SpinLock::new());
    let mutex = Mutex::new(0_u64);
    group.bench_function("mutex/1", |b| {
        b.iter(|| *mutex.lock().expect("no panic") += black_box(1));
    });
    group.finish();
}

fn fences(criterion: &mut Criterion) {
    fence::probe();
    let mut group = criterion.benchmark_group("fence");
    group.sampling_mode(SamplingMode::Flat);
    let word = AtomicU64::new(0);
    for (name, run) in [
        ("light", fence::light as fn()),
        ("full", fence::full),
        ("heavy", fence::heavy),
    ] {
        group.bench_function(format!("{name}/1"), |b| {
            b.iter(|| {
                word.store(black_box(1), Ordering::Relaxed);
                run();
            });
        });
    }
    group.finish();
}

/// All heads through the list once.
fn pass(list: &mut SegList, gp: &ManualGp, heads: &[Head]) -> usize {
    for head in heads {
        // SAFETY: taken out below, so that each is in the list once; it outlives the list's use.
        unsafe { list.enqueue(NonNull::from(head)) };
    }
    list.number(|| gp.snapshot(), || gp.seq());
    gp.advance();
    list.advance(gp.seq());
    let mut done = list.extract_done();
    let mut count = 0;
    while done.pop_front().is_some() {
        count += 1;
    }
    list.finished(count);
    count
}

fn lists(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("list");
    group.sampling_mode(SamplingMode::Flat);
    let heads: Vec<Head> = (0..HEADS).map(|_| Head::new()).collect();
    let (mut list, gp) = (SegList::new(), ManualGp::new());
    let passes = |iterations: u64| iterations.div_ceil(HEADS as u64);
    group.bench_function("seglist/1", |b| {
        b.iter_custom(|iterations| {
            let start = Instant::now();
            let done: usize = (0..passes(iterations))
                .map(|_| pass(&mut list, &gp, &heads))
                .sum();
            scaled(start.elapsed(), done as u64, iterations)
        });
    });
    let mut queue: VecDeque<&Head> = VecDeque::with_capacity(HEADS);
    group.bench_function("vecdeque/1", |b| {
        b.iter_custom(|iterations| {
            let start = Instant::now();
            for _ in 0..passes(iterations) {
                queue.extend(heads.iter());
                while let Some(head) = queue.pop_front() {
                    black_box(head);
                }
            }
            scaled(
                start.elapsed(),
                passes(iterations) * HEADS as u64,
                iterations,
            )
        });
    });
    group.finish();
}

/// What `iterations` took, if `done` took `time`.
fn scaled(time: Duration, done: u64, iterations: u64) -> Duration {
    time.mul_f64(iterations as f64 / done as f64)
}

fn cookies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cookie");
    group.sampling_mode(SamplingMode::Flat);
    let gp = ManualGp::new();
    group.bench_function("snapshot-poll/1", |b| {
        b.iter(|| {
            let cookie = gp.snapshot();
            gp.poll(black_box(cookie))
        });
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200))
        .sample_size(20)
        .nresamples(1000)
        .configure_from_args();
    locks(&mut criterion);
    fences(&mut criterion);
    lists(&mut criterion);
    cookies(&mut criterion);
    criterion.final_summary();
}
