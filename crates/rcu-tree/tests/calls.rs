//! Callbacks: turns and their limits, floods, lazy ones, ticks, panics, counts.
#![cfg(not(loom))]

#[path = "common/calls.rs"]
mod calls;
mod common;

use calls::{Log, call, call_fn, call_lazy};
use common::{tree, tree_with_callbacks};
use rcu_core::cpu::{Cpus, OneCpu, PerSlot, Threads, UpLock};
use rcu_core::{GracePeriod, Rcu};
use rcu_tree::{CallbackConfig, Event, Geometry, Node, Trace, Tree, TreeSlot};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// Sizes, smaller where a checker runs.
mod cfg {
    pub(crate) const EACH: usize = if cfg!(miri) { 30 } else { 2_000 };
}

type OnThreads = Tree<'static, Threads>;

/// A machine with one CPU, whose tick does all.
fn one_cpu() -> &'static Tree<'static, OneCpu> {
    // SAFETY: used by this thread only.
    let lock = unsafe { UpLock::new() };
    let slots = Box::leak(Box::new([TreeSlot::new(lock)]));
    let nodes = Box::leak(Box::new([Node::new()]));
    // SAFETY: each test uses its tree from one thread only.
    let cpu = unsafe { OneCpu::new() };
    // SAFETY: leaked before its first use.
    Box::leak(Box::new(unsafe {
        Tree::new(cpu, PerSlot::from_slice(slots), Geometry::new(1), nodes)
    }))
}

/// Ticks until nothing is left. Each tick here does something, so it ends.
fn tick_out<C: Cpus>(tree: &Tree<'_, C>) {
    while !tree.tick(Duration::ZERO).is_nothing() {}
}

#[test]
fn g14_a_turn_runs_no_more_than_the_limit_and_puts_the_rest_back_in_front() {
    let tree = tree_with_callbacks(CallbackConfig::new().batch_limit(10));
    let log = Arc::new(Log::default());
    (0..35).for_each(|n| call(tree, &log, n));
    let pending = tree.tick(Duration::ZERO);
    assert_eq!(log.ran(), 0, "no grace period was over when the turn came");
    assert!(pending.ready && !pending.grace_period, "{pending:?}");
    for turn in 1..=3 {
        assert!(tree.tick(Duration::ZERO).ready, "left-overs are ready");
        assert_eq!(log.ran(), 10 * turn);
    }
    let last = tree.tick(Duration::ZERO);
    assert!(last.is_nothing(), "{last:?}");
    assert_eq!(log.order(), (0..35).collect::<Vec<_>>());
}

#[test]
fn g14_a_long_list_is_run_faster() {
    let tree = tree_with_callbacks(CallbackConfig::new().batch_limit(2).divisor(2));
    let log = Arc::new(Log::default());
    (0..100).for_each(|n| call(tree, &log, n));
    let _ = tree.tick(Duration::ZERO);
    let _ = tree.tick(Duration::ZERO);
    assert_eq!(log.ran(), 100 >> 2);
}

#[test]
fn t45_a_callback_that_queues_itself_anew_does_not_starve_the_others() {
    static AGAIN: AtomicBool = AtomicBool::new(true);
    fn requeue(tree: &'static OnThreads) {
        call_fn(tree, move || {
            if AGAIN.load(Ordering::Relaxed) {
                requeue(tree);
            }
        });
    }
    let tree = tree_with_callbacks(CallbackConfig::new().batch_limit(10));
    let log = Arc::new(Log::default());
    (0..50).for_each(|_| requeue(tree));
    std::thread::scope(|s| {
        let (queued, wait) = mpsc::channel();
        let (leave, left) = mpsc::channel::<()>();
        let log = &log;
        s.spawn(move || {
            (0..100).for_each(|n| call(tree, log, n));
            queued.send(()).unwrap();
            left.recv().unwrap_err();
        });
        wait.recv().unwrap();
        let mut turns = 0;
        while log.ran() < 100 {
            tree.run_callbacks();
            tree.drive();
            turns += 1;
            assert!(turns <= 12, "ten turns, and what the grace periods take");
        }
        drop(leave);
    });
    AGAIN.store(false, Ordering::Relaxed);
    tree.barrier();
    assert_eq!(log.ran(), 100);
}

#[test]
fn g15_a_flood_raises_the_limit_until_it_is_over() {
    let config = CallbackConfig::new().batch_limit(300).qhimark(1_000);
    let tree = tree_with_callbacks(config);
    let log = Arc::new(Log::default());
    let guard = tree.read_lock();
    (0..3_000).for_each(|n| call(tree, &log, n));
    let slot = Threads.current().unwrap();
    let stats = tree.slot_callbacks(slot).unwrap();
    assert!(stats.flood_escalations >= 1, "{stats}");
    drop(guard);
    let _ = tree.tick(Duration::ZERO);
    tick_out(tree);
    assert_eq!(log.ran(), 3_000);
    let longest = tree.slot_callbacks(slot).unwrap().longest_batch;
    assert!(longest > 300, "the limit was raised: {longest}");

    let log = Arc::new(Log::default());
    (0..700).for_each(|n| call(tree, &log, n));
    // The calls have pushed grace periods on themselves, for the first 512.
    let _ = tree.tick(Duration::ZERO);
    assert_eq!(log.ran(), 300, "and is back");
    tick_out(tree);
}

#[test]
fn r17_lazy_callbacks_ask_for_nothing() {
    let tree = tree(16, 64);
    let log = Arc::new(Log::default());
    (0..3).for_each(|n| call_lazy(tree, &log, n));
    let before = tree.grace_periods();
    assert_eq!(tree.lazy_count(), 3);
    assert!(!tree.has_work());
    assert_eq!(tree.run_callbacks(), 0);
    tree.synchronize();
    assert_eq!((log.ran(), tree.run_callbacks()), (0, 0));
    assert_eq!(tree.grace_periods(), before + 1, "that of synchronize");
    assert_eq!(tree.flush_lazy(), 3);
    assert_eq!(tree.lazy_count(), 0);
    tree.drive();
    assert_eq!(tree.run_callbacks(), 3);
}

#[test]
fn r17_an_ordinary_call_takes_the_lazy_ones_along_in_order() {
    let tree = tree(16, 64);
    let log = Arc::new(Log::default());
    call(tree, &log, 0);
    (1..4).for_each(|n| call_lazy(tree, &log, n));
    assert_eq!(tree.lazy_count(), 3);
    call(tree, &log, 4);
    assert_eq!(tree.lazy_count(), 0);
    call_lazy(tree, &log, 5);
    tick_out_but_lazy(tree);
    assert_eq!(log.order(), [0, 1, 2, 3, 4]);
    tree.barrier();
    assert_eq!(log.order(), [0, 1, 2, 3, 4, 5]);
}

fn tick_out_but_lazy(tree: &OnThreads) {
    while tree.has_work() {
        let _ = tree.tick(Duration::ZERO);
    }
}

#[test]
fn r17_hurry_nests_and_makes_nothing_lazy() {
    let tree = tree(16, 64);
    let log = Arc::new(Log::default());
    tree.hurry();
    tree.hurry();
    tree.unhurry();
    call_lazy(tree, &log, 0);
    assert_eq!(tree.lazy_count(), 0);
    tree.unhurry();
    call_lazy(tree, &log, 1);
    assert_eq!(tree.lazy_count(), 1);
    tree.barrier();
    assert_eq!(log.order(), [0, 1]);
}

#[test]
#[should_panic(expected = "unhurry without hurry")]
fn r17_unhurry_needs_a_hurry() {
    tree(16, 64).unhurry();
}

#[test]
fn r17_so_many_are_lazy_and_no_more() {
    let tree = tree_with_callbacks(CallbackConfig::new().qhimark(200));
    let log = Arc::new(Log::default());
    (0..200).for_each(|n| call_lazy(tree, &log, n));
    assert_eq!(tree.lazy_count(), 200);
    call_lazy(tree, &log, 200);
    assert_eq!(tree.lazy_count(), 0, "the high mark flushes");
    tree.barrier();
    assert_eq!(log.order(), (0..=200).collect::<Vec<_>>());
}

#[test]
fn r17_the_tick_flushes_when_their_time_has_come() {
    let cpu = one_cpu();
    let log = Arc::new(Log::default());
    let at = Duration::from_millis;
    assert!(cpu.tick(at(5_000)).is_nothing());
    call_lazy(cpu, &log, 0);
    assert_eq!(cpu.tick(at(6_000)).lazy, Some(at(10_000)));
    call_lazy(cpu, &log, 1);
    assert_eq!(cpu.tick(at(15_999)).lazy, Some(at(1)));
    assert_eq!(
        (log.ran(), cpu.lazy_count(), cpu.grace_periods()),
        (0, 2, 0)
    );
    let pending = cpu.tick(at(16_000));
    assert_eq!((pending.lazy, cpu.lazy_count()), (None, 0));
    while !cpu.tick(at(16_001)).is_nothing() {}
    assert_eq!(log.order(), [0, 1]);
    call_lazy(cpu, &log, 2);
    assert_eq!(cpu.tick(at(20_000)).lazy, Some(at(10_000)), "counted anew");
    cpu.barrier();
    assert_eq!(log.ran(), 3);
}

#[test]
fn g19_lazy_callbacks_of_an_ended_thread_wait_no_longer() {
    let tree = tree(16, 64);
    let log = Arc::new(Log::default());
    std::thread::scope(|s| {
        s.spawn(|| (0..5).for_each(|n| call_lazy(tree, &log, n)))
            .join()
            .unwrap();
    });
    assert_eq!(tree.lazy_count(), 0);
    while log.ran() < 5 {
        tree.drive();
        tree.run_callbacks();
    }
    assert_eq!(log.order(), [0, 1, 2, 3, 4]);
}

#[test]
fn g25_pending_tells_what_a_cpu_still_has_to_do() {
    let cpu = one_cpu();
    let log = Arc::new(Log::default());
    assert!(cpu.tick(Duration::ZERO).is_nothing());
    let guard = cpu.read_lock();
    call(cpu, &log, 0);
    let cookie = cpu.start();
    // With the feature `strict` the section's end drives.
    assert!(!cpu.poll(cookie) && cpu.has_work());
    drop(guard);
    while log.ran() == 0 {
        let _ = cpu.tick(Duration::ZERO);
    }
    assert!(cpu.tick(Duration::ZERO).is_nothing() && cpu.poll(cookie));
}

#[test]
fn g25_a_reader_in_the_way_is_pending() {
    let tree = tree(16, 64);
    let log = Arc::new(Log::default());
    std::thread::scope(|s| {
        let (inside, wait) = mpsc::channel();
        let (leave, left) = mpsc::channel::<()>();
        s.spawn(move || {
            let _guard = tree.read_lock();
            inside.send(()).unwrap();
            left.recv().unwrap_err();
        });
        wait.recv().unwrap();
        call(tree, &log, 0);
        for _ in 0..3 {
            let pending = tree.tick(Duration::ZERO);
            assert!(pending.grace_period && !pending.ready && !pending.unnumbered);
        }
        assert_eq!(log.ran(), 0, "the reader is still inside");
        drop(leave);
    });
    tick_out(tree);
    assert_eq!(log.ran(), 1);
}

#[test]
fn r4_ticks_on_every_cpu_run_each_callback_once_and_each_cpus_in_order() {
    let tree = tree_with_callbacks(CallbackConfig::new().batch_limit(50));
    let total = AtomicUsize::new(0);
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                let log = Arc::new(Log::default());
                for n in 0..cfg::EACH {
                    call(tree, &log, n);
                    if n % 100 == 99 {
                        let _ = tree.tick(Duration::ZERO);
                    }
                }
                while log.ran() < cfg::EACH {
                    let _ = tree.tick(Duration::ZERO);
                    std::thread::yield_now();
                }
                assert_eq!(log.order(), (0..cfg::EACH).collect::<Vec<_>>());
                total.fetch_add(log.ran(), Ordering::Relaxed);
            });
        }
    });
    assert_eq!(total.into_inner(), 3 * cfg::EACH);
}

#[test]
fn the_counts_are_right() {
    let tree = tree(16, 64);
    let log = Arc::new(Log::default());
    (0..7).for_each(|n| call(tree, &log, n));
    (7..10).for_each(|n| call_lazy(tree, &log, n));
    let slot = Threads.current().unwrap();
    for stats in [tree.callback_stats(), tree.slot_callbacks(slot).unwrap()] {
        assert_eq!((stats.queued, stats.invoked, stats.lazy), (10, 0, 3));
    }
    assert_eq!(tree.flush_lazy(), 3);
    tick_out(tree);
    for stats in [tree.callback_stats(), tree.slot_callbacks(slot).unwrap()] {
        assert_eq!((stats.queued, stats.invoked, stats.lazy), (10, 10, 0));
        assert!((1..=10).contains(&stats.longest_batch), "{stats}");
        assert_eq!((stats.panicked, stats.flood_escalations), (0, 0));
    }
    assert!(format!("{}", tree.callback_stats()).contains("queued 10, run 10"));
    assert!(
        tree.slot_callbacks(rcu_core::cpu::Slot::new(1 << 20))
            .is_none()
    );
}

#[test]
fn by_owners_run_callbacks_leaves_other_slots_alone() {
    let tree = tree(16, 64);
    let (mine, theirs) = (Arc::new(Log::default()), Arc::new(Log::default()));
    tree.deoffload();
    assert!(!tree.is_offloaded());
    std::thread::scope(|s| {
        let (queued, wait) = mpsc::channel();
        let (leave, left) = mpsc::channel::<()>();
        let theirs = &theirs;
        s.spawn(move || {
            (0..5).for_each(|n| call(tree, theirs, n));
            queued.send(()).unwrap();
            left.recv().unwrap_err();
        });
        wait.recv().unwrap();
        (0..5).for_each(|n| call(tree, &mine, n));
        tree.synchronize();
        tree.synchronize();
        assert_eq!((mine.ran(), theirs.ran()), (5, 0));
        tree.offload();
        while theirs.ran() < 5 {
            tree.run_callbacks();
            tree.drive();
        }
        drop(leave);
    });
}

#[test]
fn s1_switching_who_runs_them_reorders_nothing() {
    let tree = tree_with_callbacks(CallbackConfig::new().batch_limit(3));
    let log = Arc::new(Log::default());
    for n in 0..40 {
        call(tree, &log, n);
        match n % 5 {
            0 => tree.deoffload(),
            1 => drop(tree.run_callbacks()),
            2 => tree.offload(),
            3 => tree.synchronize(),
            _ => drop(tree.run_callbacks()),
        }
    }
    tree.barrier();
    assert_eq!(log.order(), (0..40).collect::<Vec<_>>());
}

/// What a callback panics with, and what it is like to drop that.
#[cfg(feature = "std")]
#[test]
fn a_panicking_callback_is_counted_and_the_batch_goes_on() {
    struct PanicsAgain;
    impl Drop for PanicsAgain {
        fn drop(&mut self) {
            panic!("on purpose, from the payload's destructor");
        }
    }
    let tree = tree(16, 64);
    let log = Arc::new(Log::default());
    call(tree, &log, 0);
    call_fn(tree, || panic!("on purpose"));
    call(tree, &log, 1);
    call_fn(tree, || std::panic::panic_any(PanicsAgain));
    call(tree, &log, 2);
    tree.barrier();
    assert_eq!(log.order(), [0, 1, 2]);
    assert_eq!(tree.callback_stats().panicked, 2);
    assert_eq!(
        tree.slot_callbacks(Threads.current().unwrap())
            .unwrap()
            .panicked,
        2
    );
}

/// Without `std` nothing can contain it. Run in a child process.
#[cfg(not(any(feature = "std", miri)))]
#[test]
fn a_panicking_callback_ends_the_program_without_std() {
    const CASE: &str = "RCU_TREE_ABORT";
    let name = "a_panicking_callback_ends_the_program_without_std";
    if std::env::var_os(CASE).is_some() {
        let cpu = one_cpu();
        call_fn(cpu, || panic!("on purpose"));
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cpu.barrier()));
        std::process::exit(0);
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CASE, "1")
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&child.stderr);
    assert!(!child.status.success(), "the child lived on: {message}");
    assert!(message.contains("nothing can contain it"), "{message}");
}

/// Told of every batch, and of nothing else.
#[derive(Debug, Default)]
struct Batches(std::sync::Mutex<Vec<(usize, usize)>>);

impl Trace for Batches {
    fn event(&self, event: Event) {
        let mut seen = self.0.lock().unwrap();
        match event {
            Event::BatchStart(n) => seen.push((n, 0)),
            Event::BatchEnd(n) => seen.last_mut().unwrap().1 = n,
            _ => {}
        }
    }
}

#[test]
fn batches_are_traced() {
    // SAFETY: used by this thread only.
    let lock = unsafe { UpLock::new() };
    let slots = Box::leak(Box::new([TreeSlot::new(lock)]));
    let nodes = Box::leak(Box::new([Node::new()]));
    // SAFETY: used from one thread only.
    let cpu = unsafe { OneCpu::new() };
    let seen: &'static Batches = Box::leak(Box::default());
    let slots = PerSlot::from_slice(slots);
    // SAFETY: leaked before its first use.
    let tree = unsafe { Tree::traced(cpu, slots, Geometry::new(1), nodes, seen) };
    let tree = Box::leak(Box::new(
        tree.with_callbacks(CallbackConfig::new().batch_limit(4)),
    ));
    let log = Arc::new(Log::default());
    (0..10).for_each(|n| call(tree, &log, n));
    while !tree.tick(Duration::ZERO).is_nothing() {}
    assert_eq!(*seen.0.lock().unwrap(), [(4, 4), (4, 4), (2, 2)]);
}
