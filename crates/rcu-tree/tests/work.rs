//! R19: deferred work over a real tree, with threads.
#![cfg(all(feature = "std", not(loom)))]

use rcu_core::{RcuWork, WorkList, read_lock};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

rcu_tree::static_tree! {
    /// Readers of these tests.
    struct Readers;
}

const N: usize = if cfg!(miri) { 5 } else { 200 };

#[test]
fn r19_flush_waits_for_the_grace_period_and_the_work() {
    static WORK: RcuWork<AtomicUsize> = RcuWork::new(AtomicUsize::new(0), |work| {
        work.data().fetch_add(1, Ordering::Relaxed);
    });
    let guard = read_lock::<Readers>();
    assert!(WORK.queue(&Readers));
    assert!(
        !WORK.queue(&Readers),
        "T1: a reader is inside, so it is pending still"
    );
    drop(guard);
    assert!(WORK.flush(&Readers));
    assert_eq!(WORK.data().load(Ordering::Relaxed), 1);
    for n in 0..N {
        assert!(WORK.queue(&Readers), "flushed, so not pending");
        assert!(WORK.flush(&Readers) || WORK.data().load(Ordering::Relaxed) == n + 2);
        assert_eq!(WORK.data().load(Ordering::Relaxed), n + 2);
    }
}

/// Threads queue one work, an executor runs it. What is done before a `queue` is seen by a run; true ones and runs match.
#[test]
fn r19_every_queueing_is_seen_by_a_run() {
    struct Data {
        asked: AtomicUsize,
        seen: AtomicUsize,
        runs: AtomicUsize,
        inside: AtomicBool,
    }
    static LIST: WorkList = WorkList::new();
    static WORK: RcuWork<Data, &WorkList> = RcuWork::with_queue(
        Data {
            asked: AtomicUsize::new(0),
            seen: AtomicUsize::new(0),
            runs: AtomicUsize::new(0),
            inside: AtomicBool::new(false),
        },
        |work| {
            let data = work.data();
            assert!(!data.inside.swap(true, Ordering::Relaxed), "twice at once");
            let asked = data.asked.load(Ordering::Relaxed);
            data.seen.store(asked, Ordering::Relaxed);
            data.runs.fetch_add(1, Ordering::Relaxed);
            data.inside.store(false, Ordering::Relaxed);
        },
        &LIST,
    );
    let (queued, left) = (AtomicUsize::new(0), AtomicUsize::new(3));
    std::thread::scope(|s| {
        for _ in 0..2 {
            // Two executors.
            s.spawn(|| {
                while left.load(Ordering::Relaxed) != 0 {
                    LIST.run_all();
                    std::thread::yield_now();
                }
            });
        }
        for _ in 0..3 {
            s.spawn(|| {
                for _ in 0..N {
                    WORK.data().asked.fetch_add(1, Ordering::Relaxed);
                    if WORK.queue(&Readers) {
                        queued.fetch_add(1, Ordering::Relaxed);
                    }
                    std::thread::yield_now();
                }
                WORK.flush(&Readers);
                left.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    let data = WORK.data();
    assert!(!WORK.is_pending() && LIST.is_empty());
    assert_eq!(data.seen.load(Ordering::Relaxed), 3 * N);
    assert_eq!(
        data.runs.load(Ordering::Relaxed),
        queued.load(Ordering::Relaxed)
    );
}
