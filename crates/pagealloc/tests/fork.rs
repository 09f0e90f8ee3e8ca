//! A zone in the child of a threaded process.

#![cfg(all(feature = "std", target_os = "linux", not(loom), not(miri)))]

#[path = "../../rcu-core/tests/common/child.rs"]
mod child;

use child::{check, fork};
use pagealloc::{Attempt, Lower, Mmap, Order, PageAlloc, PageReq, Zone};
use rcu_core::cpu::Threads;
use std::sync::atomic::{AtomicBool, Ordering};

const FORKS: usize = if cfg!(thread_sanitizer) { 10 } else { 40 };

/// One of everything.
fn use_it_all<B: Lower>(zone: &Zone<Threads, Mmap, B>, round: usize) {
    for order in [0, 0, 1, 3, 0, 5, 9].into_iter().filter_map(Order::new) {
        let level = match round % 3 {
            0 => Attempt::TryLock,
            _ => Attempt::MayGrow,
        };
        let blocks: Vec<_> = (0..20)
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

/// Tells the others that it is over, also by a panic.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn goes_on<B: Lower>() {
    let zone = Zone::<_, _, B>::with_lower(Threads, Mmap::new().unwrap()).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        for seed in 0..3 {
            let (zone, done) = (&zone, &done);
            s.spawn(move || {
                let mut round = seed;
                while !done.load(Ordering::Relaxed) {
                    use_it_all(zone, round);
                    round += 1;
                }
            });
        }
        let over = Done(&done);
        for i in 0..FORKS {
            use_it_all(&zone, i);
            let mut held = Some(zone.before_fork());
            let result = fork(|| {
                let held = held.take().expect("held over the fork");
                // SAFETY: the first thing that the child does; it has no guards.
                unsafe { rcu_core::fork::after_fork_child() };
                // SAFETY: the child's only thread, which held the zone over the fork.
                unsafe { held.after_fork_child() };
                for round in 0..40 {
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
            });
            assert_eq!(result, Ok(()), "a child's check failed at that line");
            held.take().expect("the parent's").after_fork_parent();
        }
        drop(over);
    });
    zone.drain_all();
    assert_eq!(zone.nr_allocated(), 0);
}

/// One test at a time: a thread that ends visits every zone of its process, so all must be held over a fork.
#[test]
fn a_child_of_a_threaded_process_goes_on() {
    goes_on::<pagealloc::Buddies>();
    goes_on::<pagealloc::BitTree>();
}
