//! A zone in the child of a threaded process.

#![cfg(all(feature = "std", target_os = "linux", not(loom), not(miri)))]

#[path = "../../rcu-core/tests/common/child.rs"]
mod child;

use child::{check, fork, fork_while};
use pagealloc::{Attempt, Lower, Mmap, Order, PageAlloc, PageReq, Zone};
use rcu_core::cpu::Threads;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, mpsc};
use std::time::Duration;

/// Pages are written and read at each free and allocation: fewer will do.
const IS_SLOW: bool = cfg!(any(thread_sanitizer, feature = "poison"));
/// Enough that the threads are met in each of the things they do.
const FORKS: usize = if IS_SLOW { 10 } else { 40 };
/// What the child's own thread does: each of these things, too.
const ROUNDS: usize = if IS_SLOW { 20 } else { 40 };

/// One of everything.
fn use_it_all<B: Lower>(zone: &Zone<Threads, Mmap, B>, round: usize) {
    for order in [0, 0, 1, 3, 0, 5, 9].into_iter().filter_map(Order::new) {
        let level = match round % 3 {
            0 => Attempt::TryLock,
            _ => Attempt::MayGrow,
        };
        // More than the lists hold, at first.
        let nr = if order.get() < 9 { 20 } else { 3 };
        let blocks: Vec<_> = (0..nr)
            .filter_map(|_| zone.alloc(PageReq::new(order).attempt(level)).ok())
            .collect();
        for block in blocks {
            // SAFETY: from this zone, with this order, and not used any more.
            unsafe { zone.free(block, order) };
        }
    }
    match round % 20 {
        5 => drop(zone.drain_all()),
        10 => drop(zone.tick()),
        15 => drop(zone.disable_lists()),
        _ => {}
    }
}

/// What the threads that are in the zone while it is forked are to do. They rest while a child runs: it needs the processors more.
#[derive(Default)]
struct Crew {
    rests: AtomicBool,
    is_done: AtomicBool,
}

impl Crew {
    fn work<B: Lower>(&self, zone: &Zone<Threads, Mmap, B>, seed: usize) {
        let mut round = seed;
        while !self.is_done.load(Ordering::Relaxed) {
            if self.rests.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_micros(200));
            } else {
                use_it_all(zone, round);
                round += 1;
            }
        }
    }
}

/// Tells them that it is over, also by a panic.
struct Done<'a>(&'a Crew);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.is_done.store(true, Ordering::Relaxed);
    }
}

fn goes_on<B: Lower>() {
    let zone = Zone::<_, _, B>::with_lower(Threads, Mmap::new().unwrap()).unwrap();
    let (crew, begun) = (Crew::default(), Barrier::new(4));
    std::thread::scope(|s| {
        for seed in 0..3 {
            let (zone, crew, begun) = (&zone, &crew, &begun);
            s.spawn(move || {
                begun.wait();
                crew.work(zone, seed);
            });
        }
        // A child cannot start threads that was forked while one of `std`'s began.
        begun.wait();
        let over = Done(&crew);
        for i in 0..FORKS {
            // So that they are in the midst of it again.
            (0..4).for_each(|n| use_it_all(&zone, 4 * i + n));
            let held = Cell::new(Some(zone.before_fork()));
            let child = || {
                let held = held.take().expect("held over the fork");
                // SAFETY: the first thing that the child does; it has no guards.
                unsafe { rcu_core::fork::after_fork_child() };
                // SAFETY: the child's only thread, which held the zone over the fork.
                unsafe { held.after_fork_child() };
                for round in 0..ROUNDS {
                    use_it_all(&zone, round);
                }
                std::thread::scope(|s| {
                    for round in 0..4 {
                        let zone = &zone;
                        s.spawn(move || use_it_all(zone, round));
                    }
                });
                zone.drain_all();
                check(zone.alloc(PageReq::new(Order::MAX)).is_ok());
            };
            let parent = || {
                crew.rests.store(true, Ordering::Relaxed);
                held.take().expect("the parent's").after_fork_parent();
            };
            let result = fork_while(child, parent);
            assert_eq!(result, Ok(()), "a child's check failed at that line");
            crew.rests.store(false, Ordering::Relaxed);
        }
        drop(over);
    });
    zone.drain_all();
    assert_eq!(zone.nr_allocated(), 0);
}

/// Somebody has disabled the lists, and is not there in the child to let them be used again. The forking thread's own guard is over, too.
fn lists_are_in_use_again<B: Lower>() {
    let zone = Zone::<_, _, B>::with_lower(Threads, Mmap::new().unwrap()).unwrap();
    let page = PageReq::new(Order::ZERO);
    let is_listed = || {
        let block = zone.alloc(page).unwrap();
        // SAFETY: just allocated, and not used any more.
        unsafe { zone.free(block, Order::ZERO) };
        zone.stats().list_pages > 0
    };
    assert!(is_listed());
    let (disabled, is_disabled) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel();
    std::thread::scope(|s| {
        let zone = &zone;
        s.spawn(move || {
            let guard = zone.disable_lists();
            disabled.send(()).unwrap();
            may_go_on.recv().unwrap();
            drop(guard);
        });
        is_disabled.recv().unwrap();
        let mut own = Some(zone.disable_lists());
        let mut held = Some(zone.before_fork());
        let result = fork(|| {
            // SAFETY: the first thing that the child does; it has no guards.
            unsafe { rcu_core::fork::after_fork_child() };
            let held = held.take().expect("held over the fork");
            // SAFETY: the child's only thread, which held the zone over the fork.
            unsafe { held.after_fork_child() };
            check(is_listed());
            drop(own.take());
            check(is_listed());
            let again = zone.disable_lists();
            check(!is_listed());
            drop(again);
            check(is_listed());
        });
        assert_eq!(result, Ok(()), "a child's check failed at that line");
        held.take().expect("the parent's").after_fork_parent();
        assert!(!is_listed(), "nothing changed in the parent");
        drop(own.take());
        assert!(!is_listed());
        go_on.send(()).unwrap();
    });
    assert!(is_listed());
}

/// One test at a time: a thread that ends visits every zone of its process, so all must be held over a fork.
#[test]
fn a_child_of_a_threaded_process_goes_on() {
    goes_on::<pagealloc::Buddies>();
    goes_on::<pagealloc::BitTree>();
    lists_are_in_use_again::<pagealloc::Buddies>();
    lists_are_in_use_again::<pagealloc::BitTree>();
}
