//! Bugs that Linux had (rows T25 to T33 of its history), each by its name.

#![cfg(all(feature = "std", target_os = "linux", not(loom)))]

mod buffer;
#[macro_use]
mod each;

use buffer::unwritten;
use core::ptr::NonNull;
use pagealloc::conformance::checks::Out;
use pagealloc::{AllocError, Attempt, Fixed, Mmap, Order, PageAlloc, PageReq, Zone};
use rcu_core::cpu::{Cpus, LocalLock, OfflineHook, Slot, Threads, UpLock, ZeroInit};
use std::cell::RefCell;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

over_each_lower! {

const PAGE: PageReq = PageReq::new(Order::ZERO);

fn zone() -> Zone<Threads, Mmap> {
    // Large enough for lists of full height.
    Zone::new(Threads, Mmap::reserve(4 << 30).unwrap()).unwrap()
}

fn take(pages: &impl PageAlloc, nr: usize) -> Vec<NonNull<u8>> {
    (0..nr).map(|_| pages.alloc(PAGE).unwrap()).collect()
}

fn free(pages: &impl PageAlloc, blocks: Vec<NonNull<u8>>, attempt: Attempt) {
    for block in blocks {
        // SAFETY: the block came from `take`, and is forgotten here.
        unsafe { pages.free_at(block, Order::ZERO, attempt) };
    }
}

/// A drain that looked at a list's length without its lock left pages behind.
#[test]
fn t25_after_a_drain_no_page_is_on_any_list() {
    let zone = &zone();
    let barrier = &Barrier::new(3);
    std::thread::scope(|scope| {
        for seed in 0..2 {
            scope.spawn(move || {
                for round in 0..200 {
                    free(
                        zone,
                        take(zone, 1 + (round * 7 + seed) % 90),
                        Attempt::PcpOnly,
                    );
                    barrier.wait();
                    barrier.wait();
                }
            });
        }
        for _ in 0..200 {
            // Once in the midst of it, for whatever that may upset, and once when all is still.
            zone.drain_all();
            barrier.wait();
            zone.drain_all();
            let stats = zone.stats();
            assert_eq!((stats.list_pages, stats.stash_pages), (0, 0));
            assert_eq!(stats.free_pages, stats.total_pages);
            barrier.wait();
        }
    });
}

thread_local! {
    static INTERRUPT: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
}

/// Runs the pending interrupt, which stays pending (for other moments) but not inside itself.
fn interrupt() {
    let handler = INTERRUPT.with_borrow_mut(Option::take);
    if let Some(mut handler) = handler {
        handler();
        INTERRUPT.with_borrow_mut(|slot| *slot = Some(handler));
    }
}

/// One CPU whose owner is interrupted each time that it has just entered its lists.
struct Interrupted(UpLock);

// SAFETY: transparent around a zeroable lock.
unsafe impl ZeroInit for Interrupted {}

// SAFETY: `UpLock` with an interrupt inside, which `UpLock` allows.
unsafe impl LocalLock for Interrupted {
    const NEEDS_OWNER: bool = true;

    unsafe fn try_enter(&self) -> bool {
        // SAFETY: the caller's debt.
        let entered = unsafe { self.0.try_enter() };
        if entered {
            interrupt();
        }
        entered
    }

    unsafe fn leave(&self) {
        // SAFETY: the caller's debt.
        unsafe { self.0.leave() };
    }

    fn visit(&self) {
        self.0.visit();
    }

    fn try_visit(&self) -> bool {
        self.0.try_visit()
    }

    unsafe fn unvisit(&self) {
        // SAFETY: the caller's debt.
        unsafe { self.0.unvisit() };
    }
}

struct Machine;

// SAFETY: one slot, used from the test's thread only.
unsafe impl Cpus for Machine {
    type Lock = Interrupted;

    fn nr_slots(&self) -> usize {
        1
    }

    fn current(&self) -> Option<Slot> {
        Some(Slot::new(0))
    }

    unsafe fn add_offline_hook(&self, _hook: NonNull<OfflineHook>) {}

    unsafe fn remove_offline_hook(&self, _hook: NonNull<OfflineHook>) {}
}

/// On one processor a try-lock that always succeeds lets an interrupt into half-done lists.
#[test]
fn p7_t26_an_interrupt_finds_the_lists_locked_and_does_no_harm() {
    let memory = unwritten(64 << 20).leak();
    let zone: &'static _ = Box::leak(Box::new(
        Zone::new(Machine, Fixed::new(memory).unwrap()).unwrap(),
    ));
    let mut kept = Vec::new();
    let mut interrupts = 0;
    INTERRUPT.with_borrow_mut(|slot| {
        *slot = Some(Box::new(move || {
            interrupts += 1;
            assert_eq!(
                zone.alloc(PAGE.attempt(Attempt::PcpOnly)),
                Err(AllocError::Contended)
            );
            // The zone lock is free at this moment, so this goes around the lists.
            kept.push(Out::take_at(zone, PAGE.attempt(Attempt::TryLock)));
            if kept.len() > 40 {
                let level = [Attempt::PcpOnly, Attempt::TryLock][interrupts % 2];
                kept.drain(..).for_each(|out| out.give_back_at(zone, level));
            }
        }));
    });
    for round in 0..300 {
        free(zone, take(zone, round % 100), Attempt::NoWait);
    }
    assert_eq!(
        zone.stats().stashed_blocks > 0,
        IS_BUDDIES,
        "the interrupt freed to the stash, where there is one"
    );
    // What it met were locked lists, which is not the same as empty ones.
    let met = zone.stats().attempt(Attempt::PcpOnly);
    assert!(met.contended > 300, "{met:?}");
    assert_eq!((met.contended, met.empty), (met.misses, 0));
    // The handler's blocks are still out; it gives them back by being dropped with its `kept`.
    let out = zone.nr_allocated();
    assert!(out <= 41);
    INTERRUPT.with_borrow_mut(|slot| *slot = None);
    free(zone, take(zone, 10), Attempt::NoWait);
    assert_eq!(zone.nr_allocated(), out);
}

/// Holds the zone lock in another thread while `f` runs.
fn with_the_zone_lock_held(zone: &Zone<Threads, Mmap>, f: impl FnOnce()) {
    let (held, is_held) = mpsc::channel();
    let (release, is_released) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let guard = zone.hold_zone_lock();
            held.send(()).unwrap();
            let _ = is_released.recv();
            drop(guard);
        });
        is_held.recv().unwrap();
        f();
        drop(release);
    });
}

over_buddies! {

/// Working off a large backlog under one hold keeps everybody else out.
#[test]
fn t27_one_hold_works_off_a_bounded_part_of_the_stash() {
    let zone = zone();
    let blocks = take(&zone, 2000);
    with_the_zone_lock_held(&zone, || free(&zone, blocks, Attempt::PcpOnly));
    let mut before = zone.stats().stash_pages;
    assert!(before > 1000);
    while before > 0 {
        let now = zone.stats().stash_pages;
        assert!(before - now <= 64, "{before} to {now}");
        assert!(now < before, "each holder does its share");
        before = now;
    }
    assert_eq!(zone.nr_allocated(), 0);
}

}

/// Pages from the no-lock path were half-initialised.
#[test]
fn t28_a_block_is_the_same_from_every_level() {
    let zone = zone();
    // So that the lists have some for the last of the levels.
    free(&zone, take(&zone, 40), Attempt::NoWait);
    let mut out = Vec::new();
    for attempt in [
        Attempt::MayGrow,
        Attempt::NoWait,
        Attempt::TryLock,
        Attempt::PcpOnly,
    ] {
        for _ in 0..5 {
            out.push(Out::take_at(&zone, PAGE.attempt(attempt)));
        }
    }
    assert_eq!(zone.nr_allocated(), out.len());
    out.into_iter().for_each(|out| out.give_back(&zone));
    assert_eq!(zone.nr_allocated(), 0);
}

/// "Do not reclaim" was taken for "take no lock".
#[test]
fn p15_t29_post_2020_lockless_pcp_only_takes_no_lock() {
    let zone = zone();
    free(&zone, take(&zone, 300), Attempt::NoWait);
    with_the_zone_lock_held(&zone, || {
        let got: Vec<_> =
            core::iter::from_fn(|| zone.alloc(PAGE.attempt(Attempt::PcpOnly)).ok()).collect();
        assert!(got.len() >= 28, "the list had {}", got.len());
        assert_eq!(
            zone.alloc(PAGE.attempt(Attempt::PcpOnly)),
            Err(AllocError::Empty)
        );
        free(&zone, got, Attempt::PcpOnly);
        for _ in 0..20_000 {
            let page = zone.alloc(PAGE.attempt(Attempt::PcpOnly)).unwrap();
            free(&zone, vec![page], Attempt::PcpOnly);
        }
        // Every other level's hit is the same.
        for attempt in [Attempt::TryLock, Attempt::NoWait, Attempt::MayGrow] {
            let page = zone.alloc(PAGE.attempt(attempt)).unwrap();
            free(&zone, vec![page], attempt);
        }
    });
    assert_eq!(zone.nr_allocated(), 0);
}

over_buddies! {

/// A caller that may not spin retried for ever.
#[test]
fn p15_t30_try_lock_tries_once() {
    let zone = zone();
    let blocks = take(&zone, 200);
    with_the_zone_lock_held(&zone, || {
        let order = Order::new(5).unwrap();
        let refused = zone.alloc(PageReq::new(order).attempt(Attempt::TryLock));
        assert_eq!(refused, Err(AllocError::Contended));
        free(&zone, blocks, Attempt::TryLock);
    });
    let tried = zone.stats().attempt(Attempt::TryLock);
    assert_eq!((tried.misses, tried.contended, tried.empty), (1, 1, 0));
    assert_eq!(zone.nr_allocated(), 0);
}

}

/// Frees without a lock ignored the height of the list, so it grew without bound.
#[test]
fn p16_t31_lists_stay_within_their_height_and_the_stash_is_worked_off() {
    let zone = zone();
    let blocks = take(&zone, 1500);
    with_the_zone_lock_held(&zone, || free(&zone, blocks, Attempt::PcpOnly));
    let stats = zone.stats();
    assert!(stats.list_pages <= 126, "{stats}");
    assert_eq!(stats.stashed_blocks >= 1500 - 126, IS_BUDDIES, "{stats}");
    // Ordinary traffic that reaches the zone takes the rest along.
    for _ in 0..100 {
        free(&zone, take(&zone, 200), Attempt::NoWait);
    }
    let stats = zone.stats();
    assert_eq!(stats.stash_pages, 0, "{stats}");
    assert_eq!(stats.nr_allocated(), 0, "{stats}");
}

/// Visitors and owners at once: the drain comes at every moment of the owner's work.
#[test]
fn t25_draining_while_the_owner_works_loses_nothing() {
    let zone = &zone();
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            for round in 0..3000 {
                free(zone, take(zone, round % 150), Attempt::TryLock);
            }
        });
        scope.spawn(move || {
            // ORDERING: Relaxed: only ends the loop.
            while !stop.load(Ordering::Relaxed) {
                zone.drain_all();
            }
        });
        worker.join().unwrap();
        // ORDERING: Relaxed: as above.
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(zone.nr_allocated(), 0);
}

}
