//! What the posts asked for that made kvfree what it is, a test or more for each; others are with the rows.

#![cfg(not(loom))]

mod common;

use common::{
    BLOCK, Books, Defer, Failure, Hand, Item, Ledger, ManualRcu, Pages, front, retire, retire_many,
};
use kvfree::{Config, DeferFree, Kvfree, Objects, Unbatched};
use rcu_core::{Callback, GracePeriod, Rcu};
use std::cell::Cell;
use std::ptr::NonNull;

/// How `Objects` are freed: counts calls of its bulk.
struct Bulks<'a> {
    ledger: &'a Books<'a>,
    calls: Cell<usize>,
}

// SAFETY: the ledger's answers, and its frees.
unsafe impl Objects for Bulks<'_> {
    unsafe fn try_defer(&self, _object: NonNull<u8>) -> bool {
        false
    }

    fn is_large(&self, object: NonNull<u8>) -> bool {
        self.ledger.is_large(object)
    }

    fn size_bytes(&self, object: NonNull<u8>) -> usize {
        self.ledger.size_bytes(object)
    }

    unsafe fn free_bulk(&self, objects: &mut [NonNull<u8>]) {
        self.calls.set(self.calls.get() + 1);
        // SAFETY: the caller's debt.
        unsafe { self.ledger.free_bulk(objects) };
    }

    fn barrier(&self) {}

    fn reap(&self) -> usize {
        0
    }

    fn waiting_bytes(&self) -> usize {
        0
    }
}

/// The follow-up of 2019: an array of pointers, freed at once; and heads, gathered.
#[test]
fn k10_post_2019_objects_are_freed_in_bulk() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::auto());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let calls = Cell::new(0);
    let objects = Bulks {
        ledger: &ledger,
        calls,
    };
    // SAFETY: nothing is deferred; the front end is dropped first.
    let front = unsafe { Kvfree::new(&hand, &pages, &rcu, &objects, Config::new()) }.unwrap();
    for _ in 0..10 * BLOCK {
        retire(&front, &ledger, false);
    }
    front.barrier();
    assert_eq!((ledger.waiting(), objects.calls.get()), (0, 10));
    pages.set_failure(Failure::From(0));
    hand.bounce();
    for _ in 0..640 {
        retire(&front, &ledger, false);
    }
    front.barrier();
    assert_eq!((ledger.waiting(), objects.calls.get()), (0, 20));
    ledger.assert_no_faults();
}

/// A block that fills hurries the monitor; an object that is alone does not.
#[test]
fn k8_post_2020_headless_much_is_drained_soon() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static LATER: AtomicUsize = AtomicUsize::new(0);
    static SOON: AtomicUsize = AtomicUsize::new(0);
    let config = Config::new().ask_after_blocks(1).watched_by(|soon| {
        if soon { &SOON } else { &LATER }.fetch_add(1, Ordering::Relaxed);
    });
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, config);
    retire(&front, &ledger, false);
    let counts = || (LATER.load(Ordering::Relaxed), SOON.load(Ordering::Relaxed));
    assert_eq!(counts(), (1, 0), "watched from the first on");
    retire_many(&front, &ledger, BLOCK - 1);
    assert_eq!(counts(), (1, 0), "and by nobody else");
    retire(&front, &ledger, false);
    assert_eq!(counts(), (1, 1), "a block is full");
    front.barrier();
    ledger.assert_no_faults();
}

/// Before anybody looks, and on a thread that has no slot yet, objects are taken in, and the first look finds them.
#[test]
fn k13_post_2019_what_is_retired_before_the_monitor_is_there() {
    let (hand, pages, rcu) = (
        Hand::new(2),
        Pages::failing(Failure::Never),
        ManualRcu::new(),
    );
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    for slot in [None, Some(1), None] {
        hand.go(slot);
        retire_many(&front, &ledger, 20);
    }
    assert_eq!((front.stats().shared, ledger.freed()), (40, 0));
    hand.go(Some(0));
    while front.tick() > 0 {
        rcu.advance_wanted();
    }
    assert_eq!(ledger.waiting(), 0);
    ledger.assert_no_faults();
}

/// Frees by the word in the head alone: no function of who retired is needed any more, so none need be waited for before its code goes.
#[test]
fn k1_k14_g14_post_2008_callbacks_free_by_offset() {
    let rcu = ManualRcu::new();
    let ledger = Ledger::new(&rcu, Defer::Never);
    rcu.set_free(Books::FREE);
    // SAFETY: `rcu` frees objects of the ledger.
    let twin = unsafe { Unbatched::new(&rcu, &ledger) };
    let items: Vec<_> = (0..50).map(|_| retire(&twin, &ledger, false)).collect();
    for item in &items {
        // SAFETY: queued, and not freed yet.
        let callback = unsafe { item.head().as_ref() }.callback();
        assert!(matches!(callback, Callback::Free(offset) if offset == Item::OFFSET));
    }
    rcu.advance();
    rcu.advance();
    rcu.run_callbacks();
    assert!(items.iter().all(|&item| ledger.is_freed(item)));
    ledger.assert_no_faults();
}

/// Large objects, whose freeing may take locks of the system's, are freed where that is allowed only, blocks or no blocks.
#[test]
fn k10_post_2008_large_objects_are_freed_outside_of_callbacks() {
    for failure in [Failure::Never, Failure::From(0)] {
        let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::auto());
        let ledger = Ledger::new(&rcu, Defer::Never);
        let front = front(
            &hand,
            &pages,
            &rcu,
            &ledger,
            Config::new().ask_after_blocks(1),
        );
        pages.set_failure(failure);
        for _ in 0..200 {
            // Ripe ones in line, and nothing freed by who retires and may not wait.
            retire(&front, &ledger, true);
            ledger.without_freeing(|| rcu.run_callbacks());
        }
        assert_eq!(ledger.freed(), 0);
        front.barrier();
        assert_eq!(ledger.freed(), 200);
        ledger.assert_no_faults();
    }
}

/// Blocks in a chain, oldest first: what is not ripe holds nothing up that came before it.
#[test]
fn k5_post_2020_lockless_blocks_in_a_chain() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    let old: Vec<_> = (0..2 * BLOCK)
        .map(|_| retire(&front, &ledger, false))
        .collect();
    rcu.step();
    let new: Vec<_> = (0..2 * BLOCK)
        .map(|_| retire(&front, &ledger, false))
        .collect();
    rcu.step();
    front.tick();
    assert!(old.iter().all(|&item| ledger.is_freed(item)));
    assert!(new.iter().all(|&item| !ledger.is_freed(item)));
    rcu.advance();
    front.tick();
    assert!(new.iter().all(|&item| ledger.is_freed(item)));
    ledger.assert_no_faults();
}

/// Who calls knows its context: two arguments go by the head without a page, one argument asks for one and waits.
#[test]
fn k2_k3_post_2020_lockless_callers_know_their_context() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    pages.set_failure(Failure::From(0));
    rcu.enter();
    let two = retire(&front, &ledger, false);
    // SAFETY: entered above.
    unsafe { rcu.exit(()) };
    assert_eq!((front.stats().by_head, front.stats().synchronized), (1, 0));
    assert_eq!(rcu.grace_periods(), 0);
    let one = ledger.alloc(false);
    ledger.retiring(one);
    // SAFETY: the ledger's object, given up.
    unsafe { front.retire_mightsleep(one.at) };
    assert_eq!((front.stats().by_head, front.stats().synchronized), (1, 1));
    assert!(ledger.is_freed(one) && !ledger.is_freed(two));
    front.barrier();
    ledger.assert_no_faults();
}

/// What blocks are for: one call frees many, in the order in which they were retired, small and large ones apart, with a head or without.
#[test]
fn k3_k4_l8_post_2020_lockless_one_call_frees_a_block() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::auto());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let calls = Cell::new(0);
    let objects = Bulks {
        ledger: &ledger,
        calls,
    };
    // SAFETY: nothing is deferred; the front end is dropped first.
    let front = unsafe { Kvfree::new(&hand, &pages, &rcu, &objects, Config::new()) }.unwrap();
    for n in 0..200 {
        let is_large = n % 51 == 0;
        if n % 2 == 0 {
            retire(&front, &ledger, is_large);
        } else {
            let item = ledger.alloc(is_large);
            ledger.retiring(item);
            // SAFETY: the ledger's object, given up.
            unsafe { front.retire_mightsleep(item.at) };
        }
    }
    assert_eq!(
        pages.outstanding(),
        1 + 2,
        "the slots, and a block a channel"
    );
    front.barrier();
    assert_eq!((ledger.waiting(), objects.calls.get()), (0, 2));
    ledger.assert_no_faults();
}

/// A flood does not wait for the monitor: it asks by itself, and who may sleep frees on the spot what has become ripe.
#[test]
fn g15_post_2020_lockless_a_flood_frees_as_it_goes() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::auto());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let config = Config::new().ask_after_blocks(2);
    let front = front(&hand, &pages, &rcu, &ledger, config);
    for n in 1..=20 * BLOCK {
        let item = ledger.alloc(false);
        ledger.retiring(item);
        // SAFETY: the ledger's object, given up.
        unsafe { front.retire_mightsleep(item.at) };
        if n % BLOCK == 0 {
            assert!(ledger.waiting() <= 5 * BLOCK, "after {n}");
        }
    }
    assert!(ledger.freed() > 0);
    front.barrier();
    ledger.assert_no_faults();
}

/// The monitor takes over what has gathered since it came by last, asks for one grace period for all of it, and comes again.
#[test]
fn k8_k9_post_2019_the_monitor_queues_what_has_gathered() {
    let (hand, pages, rcu) = (Hand::new(2), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    for round in 1..=5 {
        let before = rcu.grace_periods();
        for slot in [0, 1] {
            hand.go(Some(slot));
            retire_many(&front, &ledger, 20 * round);
        }
        assert_eq!(rcu.grace_periods(), before, "nobody else asks");
        assert!(front.tick() > 0, "it comes again");
        rcu.advance_wanted();
        assert_eq!(rcu.grace_periods(), before + 1);
        assert_eq!(front.tick(), 0);
        assert_eq!(ledger.waiting(), 0);
    }
    ledger.assert_no_faults();
}
