//! What one `synchronize` costs its caller, beside nobody and beside threads that read without a pause.
//!
//! Run by `cargo xtask bench --layer rcu`. `membarrier` is the limit of what a reader without a fence allows: one such
//! system call, and nothing else.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode};
use rcu_core::{GracePeriod, read_lock};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[cfg(feature = "liburcu")]
mod liburcu;

rcu_tree::static_tree! {
    struct Waited;
}

/// Sections between two looks at whether to stop.
const SECTIONS: usize = 64;

/// What readers and the one who waits tell each other.
#[derive(Default)]
struct Talk {
    /// How many readers read by now.
    reading: AtomicUsize,
    stop: AtomicBool,
}

/// `iterations` grace periods while `readers` threads read.
fn beside(
    readers: usize,
    iterations: u64,
    read: impl Fn(&Talk) + Sync,
    wait: impl Fn(),
) -> Duration {
    let talk = Talk::default();
    thread::scope(|scope| {
        for _ in 0..readers {
            scope.spawn(|| read(&talk));
        }
        // ORDERING: Relaxed: only the count matters.
        while talk.reading.load(Ordering::Relaxed) < readers {
            thread::yield_now();
        }
        wait();
        let start = Instant::now();
        for _ in 0..iterations {
            wait();
        }
        let elapsed = start.elapsed();
        // ORDERING: Relaxed: the readers look again.
        talk.stop.store(true, Ordering::Relaxed);
        elapsed
    })
}

fn until_stopped(talk: &Talk, section: impl Fn()) {
    section();
    // ORDERING: Relaxed: only the count matters.
    talk.reading.fetch_add(1, Ordering::Relaxed);
    // ORDERING: Relaxed: looked at again.
    while !talk.stop.load(Ordering::Relaxed) {
        for _ in 0..SECTIONS {
            section();
        }
    }
}

fn read_ours(talk: &Talk) {
    until_stopped(talk, || drop(black_box(read_lock::<Waited>())));
}

#[cfg(target_os = "linux")]
fn membarrier(command: libc::c_int) {
    // SAFETY: `membarrier` takes three integers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
}

fn add(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    readers: usize,
    mut run: impl FnMut(u64) -> Duration,
) {
    group.bench_function(BenchmarkId::new(name, readers), |bencher| {
        bencher.iter_custom(&mut run);
    });
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(300))
        .sample_size(20)
        .nresamples(1000)
        .configure_from_args();
    let mut group = criterion.benchmark_group("synchronize");
    group.sampling_mode(SamplingMode::Flat);
    for readers in [0, 1, 2] {
        #[cfg(target_os = "linux")]
        {
            membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED);
            let issue = || membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED);
            add(&mut group, "membarrier", readers, |n| {
                beside(readers, n, read_ours, issue)
            });
        }
        add(&mut group, "ours", readers, |n| {
            beside(readers, n, read_ours, || Waited.synchronize())
        });
        add(&mut group, "expedited", readers, |n| {
            beside(readers, n, read_ours, || Waited.synchronize_expedited())
        });
        #[cfg(feature = "liburcu")]
        add(&mut group, "liburcu-memb", readers, |n| {
            let read = |talk: &Talk| {
                let registered = liburcu::memb::Registered::new();
                until_stopped(talk, || {
                    liburcu::memb::read_lock();
                    liburcu::memb::read_unlock();
                });
                drop(registered);
            };
            beside(readers, n, read, || liburcu::memb::synchronize_rcu())
        });
    }
    group.finish();
    criterion.final_summary();
}
