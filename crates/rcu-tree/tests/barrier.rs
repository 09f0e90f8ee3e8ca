//! A barrier covers every callback queued before it, wherever that is by then, and several callers share one.
#![cfg(not(loom))]

#[path = "common/calls.rs"]
mod calls;
mod common;

use calls::{Log, call, call_fn, call_lazy};
use common::{tree, tree_with_callbacks};
use proptest::prelude::*;
use rcu_core::{GracePeriod, Rcu};
use rcu_tree::CallbackConfig;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// Sizes, smaller where a checker runs.
mod cfg {
    pub(crate) const CASES: u32 = if cfg!(miri) { 2 } else { 100 };
    pub(crate) const ROUNDS: usize = if cfg!(miri) { 3 } else { 60 };
}

/// What may happen between two barriers.
#[derive(Clone, Copy, Debug)]
enum Op {
    Call(usize),
    CallLazily(usize),
    /// A thread queues and ends, ordinary and lazy ones.
    Visit(usize, usize),
    Tick(u64),
    Run,
    FlushLazy,
    Synchronize,
    Offload,
    Deoffload,
    Hurry,
    Barrier,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (1..40_usize).prop_map(Op::Call),
        3 => (1..40_usize).prop_map(Op::CallLazily),
        2 => (0..20_usize, 0..20_usize).prop_map(|(n, m)| Op::Visit(n, m)),
        3 => (0..3_u64).prop_map(Op::Tick),
        2 => Just(Op::Run),
        1 => Just(Op::FlushLazy),
        1 => Just(Op::Synchronize),
        1 => Just(Op::Offload),
        1 => Just(Op::Deoffload),
        1 => Just(Op::Hurry),
        2 => Just(Op::Barrier),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cfg::CASES, failure_persistence: None, ..Default::default() })]

    /// R13: after a barrier, everything queued before has run, once.
    #[test]
    fn r13_a_barrier_covers_all_that_was_queued(
        ops in proptest::collection::vec(op(), 1..40),
        batch_limit in 1..30_usize,
    ) {
        let config = CallbackConfig::new()
            .batch_limit(batch_limit)
            .qlowmark(5)
            .qhimark(60)
            .lazy_flush(Duration::from_secs(2));
        let tree = tree_with_callbacks(config);
        let log = Arc::new(Log::default());
        let (mut queued, mut seconds) = (0, 0);
        for op in ops.into_iter().chain([Op::Barrier]) {
            match op {
                Op::Call(n) => {
                    (queued..queued + n).for_each(|i| call(tree, &log, i));
                    queued += n;
                }
                Op::CallLazily(n) => {
                    (queued..queued + n).for_each(|i| call_lazy(tree, &log, i));
                    queued += n;
                }
                Op::Visit(n, m) => {
                    std::thread::scope(|s| {
                        s.spawn(|| {
                            (queued..queued + n).for_each(|i| call(tree, &log, i));
                            (queued + n..queued + n + m).for_each(|i| call_lazy(tree, &log, i));
                        }).join().unwrap();
                    });
                    queued += n + m;
                }
                Op::Tick(s) => {
                    seconds += s;
                    let _ = tree.tick(Duration::from_secs(seconds));
                }
                Op::Run => drop(tree.run_callbacks()),
                Op::FlushLazy => drop(tree.flush_lazy()),
                Op::Synchronize => tree.synchronize(),
                Op::Offload => tree.offload(),
                Op::Deoffload => tree.deoffload(),
                Op::Hurry => {
                    tree.hurry();
                    call_lazy(tree, &log, queued);
                    queued += 1;
                    tree.unhurry();
                }
                Op::Barrier => {
                    tree.barrier();
                    prop_assert_eq!(log.ran(), queued);
                    prop_assert_eq!(tree.lazy_count(), 0);
                }
            }
        }
        let mut ran = log.order();
        ran.sort_unstable();
        prop_assert_eq!(ran, (0..queued).collect::<Vec<_>>(), "each once");
    }
}

#[test]
fn t39_a_barrier_does_not_wait_for_the_lazy_timer() {
    let tree = tree(16, 64);
    let log = Arc::new(Log::default());
    // No clock runs in this tree: who waits for a timer here waits for ever.
    (0..5).for_each(|n| call_lazy(tree, &log, n));
    std::thread::scope(|s| {
        s.spawn(|| tree.barrier()).join().unwrap();
    });
    assert_eq!(log.order(), [0, 1, 2, 3, 4]);
}

#[test]
fn r13_a_barrier_with_nothing_queued_returns() {
    let tree = tree(16, 64);
    let before = tree.grace_periods();
    tree.barrier();
    assert_eq!(
        tree.grace_periods(),
        before,
        "it waits for callbacks, not for readers"
    );
    assert_eq!(tree.callback_stats().invoked, 0);
}

#[test]
fn r13_a_barrier_waits_for_a_callback_that_another_thread_is_running() {
    let tree = tree(16, 64);
    let done = AtomicBool::new(false);
    let done: &'static AtomicBool = Box::leak(Box::new(done));
    let (begun, wait) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    call_fn(tree, move || {
        begun.send(()).unwrap();
        may_go_on.recv().unwrap_err();
        done.store(true, Ordering::Release);
    });
    std::thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Ordering::Acquire) {
                tree.drive();
                tree.run_callbacks();
            }
        });
        wait.recv().unwrap();
        s.spawn(|| {
            tree.barrier();
            assert!(
                done.load(Ordering::Acquire),
                "over while the callback still ran"
            );
        });
        std::thread::sleep(Duration::from_millis(20));
        drop(go_on);
    });
}

/// I6: a slot goes offline while a batch of it is being run elsewhere, with more behind it.
#[test]
fn g19_a_slot_may_go_offline_under_a_batch_of_its_own() {
    let tree = tree_with_callbacks(CallbackConfig::new().batch_limit(2));
    let log = Arc::new(Log::default());
    let (begun, wait) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let (queued, was_queued) = mpsc::channel();
    let (end, may_end) = mpsc::channel::<()>();
    std::thread::scope(|s| {
        let owner = s.spawn({
            let log = log.clone();
            move || {
                call_fn(tree, move || {
                    begun.send(()).unwrap();
                    may_go_on.recv().unwrap_err();
                });
                (0..6).for_each(|n| call(tree, &log, n));
                queued.send(()).unwrap();
                may_end.recv().unwrap_err();
            }
        });
        was_queued.recv().unwrap();
        let runner = s.spawn(|| {
            while log.ran() == 0 {
                tree.drive();
                tree.run_callbacks();
            }
        });
        wait.recv().unwrap();
        drop(end);
        owner.join().unwrap();
        // Six callbacks behind the one in flight: some in its batch, the others among the orphans by now.
        assert_eq!((tree.run_callbacks(), log.ran()), (0, 0));
        let barrier = s.spawn(|| {
            tree.barrier();
            assert_eq!(log.order(), [0, 1, 2, 3, 4, 5]);
        });
        std::thread::sleep(Duration::from_millis(20));
        drop(go_on);
        runner.join().unwrap();
        barrier.join().unwrap();
    });
}

/// Threads that come and go, each with callbacks and some with a barrier, while others run barriers all the time.
#[test]
fn r13_barriers_while_threads_come_and_go() {
    let tree = tree_with_callbacks(CallbackConfig::new().batch_limit(8));
    let stop = AtomicBool::new(false);
    let all = Arc::new(Log::default());
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    tree.barrier();
                }
            });
        }
        let mut expected = 0;
        for round in 0..cfg::ROUNDS {
            let threads: Vec<_> = (0..3)
                .map(|thread| {
                    let all = all.clone();
                    s.spawn(move || {
                        let own = Arc::new(Log::default());
                        for n in 0..20 {
                            call(tree, &own, n);
                            call(tree, &all, 0);
                            call_lazy(tree, &own, 20 + n);
                        }
                        if (thread + round) % 2 == 0 {
                            tree.barrier();
                            assert_eq!(own.ran(), 40);
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|t| t.join().unwrap());
            expected += 60;
            if round % 8 == 0 {
                tree.barrier();
                assert_eq!(all.ran(), expected, "those of threads that are gone");
            }
        }
        tree.barrier();
        assert_eq!(all.ran(), expected);
        stop.store(true, Ordering::Relaxed);
    });
}
