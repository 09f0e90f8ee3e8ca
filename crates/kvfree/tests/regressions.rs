//! Historic bugs and the posts that asked for all this, a test each, named after their row.

#![cfg(not(loom))]

mod common;

use common::{Defer, Failure, Hand, Item, LARGE_BYTES, Ledger, ManualRcu, Pages};
use kvfree::{Config, DeferFree, Kvfree, Objects, Unbatched};
use pagealloc::{Attempt, PageAlloc};
use rcu_core::{GracePeriod, Head, HeadOffset, Rcu};
use std::cell::RefCell;
use std::ptr::NonNull;

/// Objects in a block and some.
const BLOCK: usize = 507;

type Books<'a> = Ledger<&'a ManualRcu>;
type Front<'a, P> = Kvfree<&'a Hand, &'a P, &'a ManualRcu, &'a Books<'a>>;

fn front<'a, P: PageAlloc>(
    hand: &'a Hand,
    pages: &'a P,
    rcu: &'a ManualRcu,
    ledger: &'a Books<'a>,
) -> Front<'a, P> {
    // SAFETY: the ledger waits for the grace periods of `rcu`; every test drops the front end before what it borrows.
    unsafe { Kvfree::new(hand, pages, rcu, ledger, Config::new()) }.unwrap()
}

/// A new object, retired with two arguments.
fn retire_one(front: &impl DeferFree, ledger: &Books<'_>) -> Item {
    let item = ledger.alloc(false);
    ledger.retiring(item);
    // SAFETY: the ledger's object, with its head, given up.
    ledger.without_freeing(|| unsafe { front.retire(item.head(), Item::OFFSET) });
    item
}

fn retire_headless(front: &impl DeferFree, ledger: &Books<'_>) -> Item {
    let item = ledger.alloc(false);
    ledger.retiring(item);
    // SAFETY: the ledger's object, given up.
    ledger.without_calling(|| unsafe { front.retire_mightsleep(item.at) });
    item
}

#[test]
fn t1_new_objects_wait_for_their_own_grace_period() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger);
    // In one block: an old object whose grace period is over, and a new one that a reader still sees.
    let old = retire_one(&front, &ledger);
    rcu.step();
    rcu.enter();
    let new = retire_one(&front, &ledger);
    // Ends the one that the old object waits for, and cannot end another.
    rcu.advance();
    assert!(front.tick() > 0);
    assert!(!ledger.is_freed(new));
    ledger.check(new);
    // SAFETY: entered above.
    unsafe { rcu.exit(()) };
    rcu.advance();
    assert_eq!(front.tick(), 0);
    assert!(ledger.is_freed(old) && ledger.is_freed(new));
    ledger.assert_no_faults();
}

#[test]
fn t1_k9_heads_are_not_added_to_sealed_ones() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger);
    pages.set_failure(Failure::From(0));
    let old = retire_one(&front, &ledger);
    assert_eq!(front.tick(), 1);
    rcu.step();
    rcu.enter();
    let new = retire_one(&front, &ledger);
    front.tick();
    // Ends the one that the old object waits for, and cannot end another.
    rcu.advance();
    front.tick();
    assert!(ledger.is_freed(old) && !ledger.is_freed(new));
    rcu.advance();
    front.tick();
    assert!(!ledger.is_freed(new));
    // SAFETY: entered above.
    unsafe { rcu.exit(()) };
    for _ in 0..3 {
        rcu.advance();
        front.tick();
    }
    assert!(ledger.is_freed(old) && ledger.is_freed(new));
    ledger.assert_no_faults();
}

#[test]
fn t3_progress_without_pages() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::auto());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger);
    pages.set_failure(Failure::From(0));
    for round in 0..20 {
        for _ in 0..100 {
            retire_one(&front, &ledger);
        }
        let calls = pages.calls();
        while front.tick() > 0 {}
        assert_eq!(ledger.waiting(), 0, "round {round}");
        assert!(
            pages.calls() <= calls + 20,
            "asks for memory again and again"
        );
    }
    let headless = retire_headless(&front, &ledger);
    assert!(ledger.is_freed(headless), "K3: freed when the call returns");
    assert_eq!(front.stats().synchronized, 1);
    ledger.assert_no_faults();
    assert_eq!(pages.outstanding(), 1, "the slots");
}

/// K7: a slot that found no block has some after the monitor came by.
#[test]
fn t3_k6_a_starved_slot_is_refilled() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::auto());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger);
    pages.set_failure(Failure::Below(Attempt::NoWait));
    retire_one(&front, &ledger);
    assert_eq!(front.stats().by_head, 1);
    while front.tick() > 0 {}
    for _ in 0..3 * BLOCK {
        retire_one(&front, &ledger);
    }
    assert_eq!(front.stats().by_head, 1, "the rest found blocks");
    while front.tick() > 0 {}
    // K6: and the blocks are used again and again.
    let calls = pages.calls();
    for _ in 0..10 {
        for _ in 0..3 * BLOCK {
            retire_one(&front, &ledger);
        }
        while front.tick() > 0 {}
    }
    assert_eq!((front.stats().by_head, pages.calls()), (1, calls));
    ledger.assert_no_faults();
    drop(front);
    assert_eq!((ledger.outstanding(), pages.outstanding()), (0, 0));
}

/// K7: who got its object back finds room after the monitor came by, though nothing waits.
#[test]
fn t3_what_was_refused_can_be_retried() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::auto());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger);
    pages.set_failure(Failure::Below(Attempt::NoWait));
    let item = ledger.alloc(false);
    // SAFETY: the ledger's object, still the test's if it comes back.
    assert_eq!(unsafe { front.try_retire(item.at) }, Err(item.at));
    assert_eq!(front.tick(), 0);
    ledger.retiring(item);
    // SAFETY: as above.
    assert_eq!(unsafe { front.try_retire(item.at) }, Ok(()));
    front.barrier();
    assert!(ledger.is_freed(item));
    ledger.assert_no_faults();
}

#[test]
fn t6_counts_match_what_waits() {
    let (hand, pages, rcu) = (Hand::new(2), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger);
    for i in 0..2000 {
        hand.go((i % 3 != 0).then_some(i % 2));
        retire_one(&front, &ledger);
        if i % 500 == 250 {
            rcu.advance();
            front.tick();
        }
    }
    // Before and after the monitor has taken in what came without a slot.
    assert_eq!(front.stats().objects_waiting, ledger.waiting());
    assert_eq!(front.shrink_count(), ledger.waiting());
    front.tick();
    assert_eq!(front.stats().objects_waiting, ledger.waiting());
    front.barrier();
    assert_eq!(
        (front.stats().objects_waiting, front.stats().bytes_waiting),
        (0, 0)
    );
    ledger.assert_no_faults();
}

#[test]
fn t8_k14_post_2019_rcu_barrier_is_not_kvfree_barrier() {
    for failure in [Failure::Never, Failure::From(1)] {
        let (hand, pages, rcu) = (Hand::new(1), Pages::failing(failure), ManualRcu::new());
        let ledger = Ledger::new(&rcu, Defer::Sometimes);
        let front = front(&hand, &pages, &rcu, &ledger);
        let items: Vec<_> = (0..10).map(|_| retire_one(&front, &ledger)).collect();
        rcu.synchronize();
        rcu.barrier();
        assert!(
            items.iter().any(|&item| !ledger.is_freed(item)),
            "that barrier knows nothing of these"
        );
        front.barrier();
        assert!(items.iter().all(|&item| ledger.is_freed(item)));
        ledger.assert_no_faults();
    }
}

#[test]
fn t14_k16_a_call_that_slept_goes_on_on_another_slot() {
    for offline in [false, true] {
        let hand: &'static Hand = Box::leak(Box::new(Hand::new(2)));
        let (pages, rcu) = (Pages::failing(Failure::Never), ManualRcu::new());
        let ledger = Ledger::new(&rcu, Defer::Never);
        let front = front(hand, &pages, &rcu, &ledger);
        hand.go(Some(1));
        let first = retire_one(&front, &ledger);
        hand.go(Some(0));
        pages.set_failure(Failure::Below(Attempt::MayGrow));
        pages.meanwhile(move || {
            if offline {
                hand.bounce();
            }
            hand.go(Some(1));
        });
        let before = pages.outstanding();
        let moved = retire_headless(&front, &ledger);
        assert_eq!(
            pages.outstanding(),
            before,
            "slot 1 had a block: the page goes back"
        );
        assert_eq!(front.stats().objects_waiting, 2);
        front.barrier();
        assert!(ledger.is_freed(first) && ledger.is_freed(moved));
        ledger.assert_no_faults();
        drop(front);
        assert_eq!(pages.outstanding(), 0);
    }
}

#[test]
fn t15_a_barrier_visits_slots_that_are_gone() {
    let (hand, pages, rcu) = (Hand::new(3), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Sometimes);
    let front = front(&hand, &pages, &rcu, &ledger);
    for slot in [Some(2), Some(0), None, Some(1)] {
        hand.go(slot);
        for failure in [Failure::Never, Failure::From(0)] {
            pages.set_failure(failure);
            retire_one(&front, &ledger);
            hand.bounce();
            retire_one(&front, &ledger);
        }
    }
    hand.go(None);
    front.barrier();
    assert_eq!(ledger.waiting(), 0);
    ledger.assert_no_faults();
}

/// A barrier where it is not allowed panics, and what it had in hand is not lost.
#[test]
fn t15_a_barrier_that_panics_loses_nothing() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger);
    retire_one(&front, &ledger);
    pages.set_failure(Failure::From(0));
    hand.go(None);
    retire_one(&front, &ledger);
    rcu.enter();
    let barrier = std::panic::AssertUnwindSafe(|| front.barrier());
    assert!(std::panic::catch_unwind(barrier).is_err());
    // SAFETY: entered above.
    unsafe { rcu.exit(()) };
    assert_eq!((ledger.waiting(), front.stats().objects_waiting), (2, 2));
    front.barrier();
    assert_eq!(ledger.waiting(), 0);
    ledger.assert_no_faults();
}

/// Records where objects begin that are freed.
#[derive(Default)]
struct Starts(RefCell<Vec<NonNull<u8>>>);

// SAFETY: the test's objects are memory of its own, which nobody frees; nothing is deferred.
unsafe impl Objects for Starts {
    unsafe fn try_defer(&self, _object: NonNull<u8>) -> bool {
        false
    }

    fn is_large(&self, _object: NonNull<u8>) -> bool {
        false
    }

    fn size_bytes(&self, _object: NonNull<u8>) -> usize {
        8
    }

    unsafe fn free_bulk(&self, objects: &mut [NonNull<u8>]) {
        self.0.borrow_mut().extend_from_slice(objects);
    }

    fn barrier(&self) {}

    fn reap(&self) -> usize {
        0
    }

    fn waiting_bytes(&self) -> usize {
        0
    }
}

/// K1: the word that says how to free an object says where it begins.
#[test]
fn post_2008_offset_frees_its_object() {
    const WORDS: [usize; 5] = [0, 1, 7, 1000, rcu_core::MAX_OFFSET_WORDS - 1];
    let (hand, rcu, starts) = (Hand::new(1), ManualRcu::new(), Starts::default());
    let pages = Pages::new();
    // SAFETY: nothing is deferred by `starts`; what is borrowed lives longer.
    let front = unsafe { Kvfree::new(&hand, &pages, &rcu, &starts, Config::new()) }.unwrap();
    for failure in [Failure::From(0), Failure::Never] {
        pages.set_failure(failure);
        let mut objects = Vec::new();
        for words in WORDS {
            let object = vec![0_usize; words + 2].leak();
            let object = NonNull::from(object).cast::<u8>();
            let offset = HeadOffset::from_bytes(words * size_of::<usize>());
            // SAFETY: the head lies inside of the memory.
            let head = unsafe { object.add(offset.bytes()) }.cast::<Head>();
            // SAFETY: inside, and aligned to a word.
            unsafe { head.write(Head::new()) };
            // SAFETY: `starts` takes any memory, which is given up.
            unsafe { front.retire(head, offset) };
            objects.push((object, words + 2));
        }
        front.barrier();
        let freed = std::mem::take(&mut *starts.0.borrow_mut());
        assert_eq!(freed, objects.iter().map(|o| o.0).collect::<Vec<_>>());
        for (object, words) in objects {
            let memory = std::ptr::slice_from_raw_parts_mut(object.as_ptr().cast::<usize>(), words);
            // SAFETY: leaked above with this length, and the front end is done with it.
            drop(unsafe { Box::from_raw(memory) });
        }
    }
}

/// The 2019 measurement, as a property: the same string, and a machine that runs a grace period whenever one is wanted.
#[test]
fn k11_post_2019_batched_needs_fewer_grace_periods() {
    const OBJECTS: usize = if cfg!(miri) { 300 } else { 20_000 };
    fn flood(front: &impl DeferFree, rcu: &ManualRcu, ledger: &Books<'_>) -> usize {
        let before = rcu.grace_periods();
        for _ in 0..OBJECTS {
            retire_one(front, ledger);
            rcu.drive();
            rcu.run_callbacks();
        }
        front.barrier();
        assert_eq!(ledger.waiting(), 0);
        ledger.assert_no_faults();
        rcu.grace_periods() - before
    }
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::auto());
    let ledger = Ledger::new(&rcu, Defer::Never);
    rcu.set_free(Books::FREE);
    // SAFETY: `rcu` frees objects of the ledger.
    let unbatched = flood(&unsafe { Unbatched::new(&rcu, &ledger) }, &rcu, &ledger);
    let batched = flood(&front(&hand, &pages, &rcu, &ledger), &rcu, &ledger);
    assert!(
        batched > 0 && unbatched >= 5 * batched,
        "{unbatched} against {batched}"
    );
    // K11: also where no pages are to be had.
    let front = front(&hand, &pages, &rcu, &ledger);
    pages.set_failure(Failure::From(0));
    let by_head = flood(&front, &rcu, &ledger);
    assert!(unbatched >= 5 * by_head, "{unbatched} against {by_head}");
}

/// K6: somebody holds the zone's lock, and never lets go.
#[test]
#[cfg(not(miri))]
fn t5_k6_post_2020_lockless_no_lock_for_a_block() {
    use pagealloc::{Mmap, Order, PageReq, Zone};
    const RETIRED: usize = 40 * BLOCK;
    let (hand, rcu) = (Hand::new(1), ManualRcu::auto());
    let zone = Zone::new(&hand, Mmap::reserve(64 << 20).unwrap()).unwrap();
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &zone, &rcu, &ledger);
    let warm: Vec<_> = (0..3)
        .map(|_| zone.alloc(PageReq::new(Order::ZERO)).unwrap())
        .collect();
    for page in warm {
        // SAFETY: allocated above.
        unsafe { zone.free(page, Order::ZERO) };
    }
    let held = zone.hold_zone_lock();
    for _ in 0..RETIRED {
        retire_one(&front, &ledger);
        rcu.step();
    }
    let waiting = front.stats();
    assert_eq!(waiting.objects_waiting, RETIRED);
    assert!(
        waiting.by_head < RETIRED - 3 * BLOCK,
        "the slot's own pages were used"
    );
    drop(held);
    front.barrier();
    assert_eq!(ledger.waiting(), 0);
    ledger.assert_no_faults();
    drop(front);
    assert_eq!(zone.nr_allocated(), 0);
}

/// K3: without a head; in a block if there is one to be had by waiting for memory, else after a grace period of its own.
#[test]
fn k3_post_2020_headless_in_a_block_or_after_a_grace_period() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger);
    pages.set_failure(Failure::Below(Attempt::MayGrow));
    let one = retire_headless(&front, &ledger);
    assert!(
        !ledger.is_freed(one) && rcu.grace_periods() == 0,
        "in a block"
    );
    let item = ledger.alloc(false);
    ledger.retiring(item);
    // SAFETY: the ledger's object, given up.
    let result = unsafe { front.try_retire(item.at) };
    assert_eq!(result, Ok(()), "room in the block");
    pages.set_failure(Failure::From(0));
    for _ in 0..BLOCK {
        retire_headless(&front, &ledger);
    }
    let stats = front.stats();
    assert!(stats.synchronized > 0 && rcu.grace_periods() >= stats.synchronized);
    assert_eq!(stats.by_head, 0);
    let item = ledger.alloc(false);
    ledger.retiring(item);
    // SAFETY: the ledger's object, still the test's if it comes back.
    let result = unsafe { front.try_retire(item.at) };
    assert_eq!(result, Err(item.at), "no room, and no waiting");
    ledger.refused(item);
    front.barrier();
    assert_eq!(ledger.outstanding(), 1);
    ledger.assert_no_faults();
}

/// K4: a channel of their own; heavy objects fill a block by their bytes, so that a grace period is asked for in time.
#[test]
fn k4_post_2020_headless_large_objects_are_weighed() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger);
    let retire = |large| {
        let item = ledger.alloc(large);
        ledger.retiring(item);
        // SAFETY: the ledger's object, with its head, given up.
        unsafe { front.retire(item.head(), Item::OFFSET) };
    };
    for _ in 0..(512 << 10) / LARGE_BYTES + 1 {
        assert!(!rcu.drive(), "nothing asked for yet");
        retire(true);
        retire(false);
    }
    assert!(rcu.drive(), "half a MiB waits");
    front.barrier();
    assert_eq!(front.stats().blocks_freed, 2, "large and small apart");
    ledger.assert_no_faults();
}

/// Destructors run by whoever may run foreign code; one that panics takes nothing with it.
#[test]
#[cfg(feature = "std")]
fn panics_are_contained_and_counted() {
    use rcu_core::Callback;
    unsafe fn panics(_object: NonNull<u8>) {
        panic!("on purpose");
    }
    unsafe fn head_panics(_head: NonNull<Head>) {
        panic!("on purpose");
    }
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger);
    let (head, with) = (Head::new(), 0_u64);
    let items: Vec<_> = (0..4).map(|_| ledger.alloc(false)).collect();
    items.iter().for_each(|&item| ledger.retiring(item));
    // SAFETY: the ledger's object and its function.
    unsafe { front.retire_with_mightsleep(items[0].at, Books::DROP, 8) };
    // SAFETY: the function touches nothing.
    unsafe { front.retire_with_mightsleep(NonNull::from(&with).cast(), panics, 8) };
    // SAFETY: the ledger's object and its function.
    unsafe { front.retire_with_mightsleep(items[1].at, Books::DROP, 8) };
    // SAFETY: the ledger's object and its function.
    unsafe { front.retire_head(items[2].head(), Books::CALLBACK, 64) };
    // SAFETY: the head lives until after the barrier, and the function touches nothing.
    unsafe { front.retire_head(NonNull::from(&head), Callback::Run(head_panics), 64) };
    // SAFETY: the ledger's object and its function.
    unsafe { front.retire_head(items[3].head(), Books::CALLBACK, 64) };
    front.barrier();
    assert_eq!((front.stats().panicked, ledger.waiting()), (2, 0));
    ledger.assert_no_faults();
}

/// I2 of `waiting`: a thread that retires frees what is ripe, if it may sleep, but runs no destructor.
#[test]
fn destructors_do_not_run_on_threads_that_retire() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger);
    let with_drop: Vec<_> = (0..BLOCK).map(|_| ledger.alloc(false)).collect();
    for &item in &with_drop {
        ledger.retiring(item);
        // SAFETY: the ledger's object and its function.
        unsafe { front.retire_with_mightsleep(item.at, Books::DROP, 8) };
    }
    let plain: Vec<_> = (0..=BLOCK)
        .map(|_| retire_headless(&front, &ledger))
        .collect();
    rcu.advance();
    for _ in 0..BLOCK {
        retire_headless(&front, &ledger);
    }
    assert!(
        plain[..BLOCK].iter().all(|&item| ledger.is_freed(item)),
        "freed on the spot"
    );
    assert!(with_drop.iter().all(|&item| !ledger.is_freed(item)));
    ledger.assert_no_faults();
    front.tick();
    assert!(
        with_drop[..BLOCK / 2]
            .iter()
            .all(|&item| ledger.is_freed(item))
    );
    ledger.assert_no_faults();
}

/// A slot that goes offline keeps no page.
#[test]
fn offline_slots_give_their_blocks_back() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::auto());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger);
    for _ in 0..2 * BLOCK {
        retire_one(&front, &ledger);
    }
    while front.tick() > 0 {}
    assert!(pages.outstanding() > 1, "blocks are kept for later");
    hand.bounce();
    assert_eq!(pages.outstanding(), 1, "the slots");
    assert_eq!(ledger.waiting(), 0);
}
