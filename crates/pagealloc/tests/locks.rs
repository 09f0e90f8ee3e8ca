//! The two proofs that `PcpOnly` takes no lock: a zone lock that panics when it is touched, and a zone lock that somebody
//! holds and does not let go.

#![cfg(all(feature = "std", target_os = "linux", not(loom)))]

use pagealloc::conformance::checks::Out;
use pagealloc::{AllocError, Attempt, Mmap, Order, PageAlloc, PageReq, Zone, ZoneStats};
use rcu_core::cpu::Threads;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Barrier, mpsc};

const THREADS: usize = 3;
const STEPS: usize = if cfg!(miri) { 200 } else { 8_000 };
/// Blocks that a thread holds at most.
const HELD: usize = 300;
/// Blocks on a full list of single pages, in a zone that is large enough.
const HEIGHT: usize = 126;

type UserZone = Zone<Threads, Mmap>;

fn zone() -> UserZone {
    Zone::new(Threads, Mmap::reserve(4 << 30).unwrap()).unwrap()
}

fn order(log2_pages: u8) -> Order {
    Order::new(log2_pages).unwrap()
}

/// Lets the zone grow to what the tests need: a zone that runs dry while lists are filled takes from them first.
fn grow(zone: &UserZone) {
    let blocks: Vec<_> = (0..64).map(|_| Out::take(zone, Order::MAX)).collect();
    blocks.into_iter().for_each(|block| block.give_back(zone));
}

/// Fills every list of the calling thread.
fn fill_lists(zone: &UserZone) {
    for (log2_pages, nr) in [
        (0, 2 * HEIGHT),
        (1, HEIGHT),
        (2, HEIGHT),
        (3, HEIGHT),
        (4, 2),
        (5, 2),
        (6, 2),
        (7, 2),
        (8, 2),
        (9, 4),
    ] {
        let order = order(log2_pages);
        let blocks: Vec<_> = (0..nr)
            .map(|_| zone.alloc(PageReq::new(order)).unwrap())
            .collect();
        for block in blocks {
            // SAFETY: the block is out, and nobody uses it.
            unsafe { zone.free(block, order) };
        }
    }
}

/// How a thread's traffic went.
#[derive(Default, Debug)]
struct Tally {
    served: usize,
    frees: usize,
    refused: Vec<AllocError>,
}

impl Tally {
    fn refused(&mut self, error: AllocError) {
        if !self.refused.contains(&error) {
            self.refused.push(error);
        }
    }
}

/// Allocates and frees, singly, of all kinds of orders, at `attempt`; `out` is what is out.
fn traffic(zone: &UserZone, seed: usize, attempt: Attempt, out: &mut Vec<Out>) -> Tally {
    let mut tally = Tally::default();
    for step in 0..STEPS {
        let dice = (step + seed * STEPS).wrapping_mul(0x9e37_79b9) >> 9;
        let order = match dice % 64 {
            0 => order(9),
            1 => order(10),
            2..8 => order(5),
            other => order(other as u8 % 4),
        };
        let req = PageReq::new(order).attempt(attempt);
        // More is allocated than freed until it is `HELD` blocks, so lists run dry, and more is freed than fits on them then.
        let allocates = (step / HELD).is_multiple_of(2);
        if allocates && out.len() < HELD {
            match Out::try_take(zone, req) {
                Ok(block) => {
                    tally.served += 1;
                    out.push(block);
                }
                Err(error) => tally.refused(error),
            }
        } else if !out.is_empty() {
            let block = out.swap_remove(dice % out.len());
            block.give_back_at(zone, attempt);
            tally.frees += 1;
        }
    }
    tally
}

/// Runs `work` on threads with full lists and some blocks while what `close` returns lives. All of them must get to the end of it
/// meanwhile; only then is it dropped, and only then do they end (a thread's end drains its lists, by the zone's locks).
fn meanwhile<R>(zone: &UserZone, close: impl FnOnce() -> R, work: impl Fn(usize, Vec<Out>) + Sync) {
    let (start, end) = (&Barrier::new(THREADS + 1), &Barrier::new(THREADS + 1));
    let (ready, is_ready) = mpsc::channel();
    let (done, is_done) = mpsc::channel();
    let work = &work;
    grow(zone);
    let well = std::thread::scope(|scope| {
        for seed in 0..THREADS {
            let (ready, done) = (ready.clone(), done.clone());
            scope.spawn(move || {
                // Blocks that come back to lists which are full, or that have no list.
                let out =
                    (0..HELD / 2).map(|n| Out::take(zone, order(if n % 8 == 0 { 5 } else { 0 })));
                let out: Vec<_> = out.collect();
                fill_lists(zone);
                ready.send(()).unwrap();
                start.wait();
                let outcome = catch_unwind(AssertUnwindSafe(|| work(seed, out)));
                done.send(outcome.is_ok()).unwrap();
                end.wait();
            });
        }
        (0..THREADS).for_each(|_| is_ready.recv().unwrap());
        let closed = close();
        start.wait();
        let well = (0..THREADS).filter(|_| is_done.recv().unwrap()).count();
        drop(closed);
        end.wait();
        well
    });
    assert_eq!(well, THREADS, "a thread panicked");
}

/// All that is left to do at `PcpOnly`: bulk calls, and what is only looked up.
fn bulk(zone: &UserZone) {
    let req = PageReq::new(Order::ZERO).attempt(Attempt::PcpOnly);
    let mut places = [MaybeUninit::uninit(); 2 * HEIGHT];
    let got = zone.alloc_bulk(req, &mut places);
    for place in &places[..got] {
        // SAFETY: filled from the front.
        let block = unsafe { place.assume_init() };
        assert_eq!(zone.order_of(block.as_ptr()), Some(Order::ZERO));
        // SAFETY: the block is out.
        unsafe { zone.free_at(block, Order::ZERO, Attempt::PcpOnly) };
    }
}

fn all_back(zone: &UserZone) -> ZoneStats {
    let stashed = zone.stats().stashed_blocks;
    zone.drain_all();
    let stats = zone.stats();
    assert_eq!(stats.nr_allocated(), 0, "{stats}");
    assert_eq!((stats.list_pages, stats.stash_pages), (0, 0), "{stats}");
    assert_eq!(stats.free_pages, stats.total_pages, "{stats}");
    assert_eq!(stats.free_blocks[10] * 1024, stats.total_pages, "{stats}");
    assert_eq!(stats.stashed_blocks, stashed, "a count of pushes");
    stats
}

/// The zone lock panics when it is touched. Without debug assertions there is no such lock; the other proof stands.
#[cfg(debug_assertions)]
mod forbidden {
    use super::*;

    struct Forbidden<'z>(&'z UserZone);

    impl<'z> Forbidden<'z> {
        fn new(zone: &'z UserZone) -> Self {
            zone.forbid_zone_lock(true);
            Self(zone)
        }
    }

    impl Drop for Forbidden<'_> {
        fn drop(&mut self) {
            self.0.forbid_zone_lock(false);
        }
    }

    #[test]
    fn p15_t29_pcp_only_does_not_touch_the_zone_lock() {
        let zone = &zone();
        let (left, is_left) = mpsc::channel();
        let close = || Forbidden::new(zone);
        meanwhile(zone, close, |seed, mut out| {
            let tally = traffic(zone, seed, Attempt::PcpOnly, &mut out);
            bulk(zone);
            assert!(tally.served > HELD && tally.frees > HELD, "{tally:?}");
            assert_eq!(tally.refused, [AllocError::Empty]);
            left.send(out).unwrap();
        });
        drop(left);
        is_left.iter().flatten().for_each(|out| out.give_back(zone));
        let stats = all_back(zone);
        assert!(stats.stashed_blocks > 0, "{stats}");
    }

    /// What the proof rests on: every other way does touch the lock. A hit at any level does not.
    #[test]
    fn p15_every_other_attempt_touches_the_zone_lock_once_the_list_is_empty() {
        let zone = zone();
        let page = Out::take(&zone, Order::ZERO);
        page.give_back(&zone);
        let forbidden = Forbidden::new(&zone);
        let levels = [Attempt::TryLock, Attempt::NoWait, Attempt::MayGrow];
        for attempt in levels {
            Out::take_at(&zone, PageReq::new(Order::ZERO).attempt(attempt))
                .give_back_at(&zone, attempt);
        }
        for attempt in levels {
            // No list has this order.
            let touch = || zone.alloc(PageReq::new(Order::MAX).attempt(attempt));
            let panic = catch_unwind(AssertUnwindSafe(touch)).unwrap_err();
            let text = panic.downcast_ref::<&str>().unwrap();
            assert_eq!(*text, "an arena's lock is touched");
        }
        drop(forbidden);
        assert_eq!(zone.nr_allocated(), 0);
    }
}

/// Somebody holds the zone lock until all of this is through.
#[test]
fn p15_t29_t30_pcp_only_and_try_lock_go_on_while_the_zone_lock_is_held() {
    for attempt in [Attempt::PcpOnly, Attempt::TryLock] {
        let zone = &zone();
        let (left, is_left) = mpsc::channel();
        meanwhile(
            zone,
            || zone.hold_zone_lock(),
            |seed, mut out| {
                let tally = traffic(zone, seed, attempt, &mut out);
                bulk(zone);
                assert!(tally.served > HELD && tally.frees > HELD, "{tally:?}");
                let refused = match attempt {
                    Attempt::PcpOnly => AllocError::Empty,
                    _ => AllocError::Contended,
                };
                assert_eq!(tally.refused, [refused]);
                left.send(out).unwrap();
            },
        );
        drop(left);
        is_left.iter().flatten().for_each(|out| out.give_back(zone));
        let stats = all_back(zone);
        assert!(stats.stashed_blocks > 0, "{stats}");
        let counted = stats.attempt(attempt);
        let outcomes = [counted.contended, counted.empty];
        match attempt {
            Attempt::PcpOnly => assert!(outcomes[0] == 0 && outcomes[1] > 0, "{stats}"),
            _ => assert!(outcomes[0] > 0 && outcomes[1] == 0, "{stats}"),
        }
    }
}

/// What is freed beyond a full list goes to the stash, and the next holders merge all of it: the stash holds no more than
/// what was out. At `PcpOnly` it goes there block for block; at `TryLock` the list's oldest go, and neighbours as one.
#[test]
fn p16_what_no_list_has_room_for_is_stashed_and_counted() {
    for attempt in [Attempt::PcpOnly, Attempt::TryLock] {
        let zone = &zone();
        let pages: Vec<_> = (0..1000).map(|_| Out::take(zone, Order::ZERO)).collect();
        let large: Vec<_> = (0..10).map(|_| Out::take(zone, Order::MAX)).collect();
        let before = zone.stats();
        let held = zone.hold_zone_lock();
        for block in pages.into_iter().chain(large) {
            block.give_back_at(zone, attempt);
        }
        drop(held);
        let stats = zone.stats();
        assert!(stats.list_pages <= HEIGHT, "{stats}");
        let listed = stats.list_pages - before.list_pages;
        let stashed = 1000 - listed + 10 * Order::MAX.pages();
        assert_eq!(stats.stash_peak_pages, stashed, "{stats}");
        let blocks = stats.stashed_blocks - before.stashed_blocks;
        match attempt {
            Attempt::PcpOnly => assert_eq!(blocks, 1000 - listed + 10, "{stats}"),
            _ => assert!((10..1000 - listed + 10).contains(&blocks), "{stats}"),
        }
        // The holder that counted has merged a chunk already.
        assert!(stats.stash_pages < stashed, "{stats}");
        assert_eq!(stats.nr_allocated(), 0, "{stats}");
        all_back(zone);
    }
}
