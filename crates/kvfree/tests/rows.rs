//! The rows of kvfree, as far as slots, pages and grace periods by hand can show.

#![cfg(not(loom))]

mod common;

use common::{
    BLOCK, Books, Defer, Failure, Front, Hand, LARGE_BYTES, Ledger, ManualRcu, Pages, front,
    retire, retire_head, retire_many, retire_with,
};
use kvfree::{Config, DeferFree, Kvfree};
use pagealloc::Attempt;
use rcu_core::{Callback, Cookie, GracePeriod, Head, HeadOffset, Rcu};
use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

/// Small ones, large ones, pairs and heads wait apart, each as it is to be freed.
#[test]
fn k4_each_channel_has_its_own_blocks() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    let before = pages.outstanding();
    for _ in 0..5 {
        retire(&front, &ledger, false);
        retire(&front, &ledger, true);
        retire_with(&front, &ledger);
        retire_head(&front, &ledger);
    }
    assert_eq!(pages.outstanding(), before + 3, "a block a channel");
    let stats = front.stats();
    assert_eq!((stats.objects_waiting, stats.by_head), (20, 5));
    assert!(stats.bytes_waiting >= 5 * LARGE_BYTES);
    front.barrier();
    assert_eq!(front.stats().blocks_freed, 3);
    ledger.assert_no_faults();
    assert_eq!(ledger.waiting(), 0);
}

/// A slot keeps a few empty pages, and who retires in any context never reaches for others'.
#[test]
fn k6_retiring_takes_pages_of_its_slot_only() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    // Whatever goes beyond the slot's own list fails, and is not even asked for.
    pages.set_failure(Failure::Below(Attempt::TryLock));
    for n in 1..=10 {
        retire(&front, &ledger, false);
        assert_eq!((front.stats().by_head, pages.refused()), (n, n));
    }
    pages.set_failure(Failure::Never);
    for _ in 0..20 * BLOCK {
        retire(&front, &ledger, false);
    }
    rcu.advance();
    rcu.advance();
    while front.tick() > 0 {
        rcu.advance();
    }
    assert_eq!(front.stats().pages_kept, 5, "rcu_min_cached_objs");
    ledger.assert_no_faults();
}

/// After a shrinker came by: nothing for a while, then one page, then as before.
#[test]
fn k7_t4_the_stock_is_refilled_only_after_a_back_off() {
    const ROUNDS: u32 = 5;
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::auto());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let config = Config::new().back_off(ROUNDS);
    let front = front(&hand, &pages, &rcu, &ledger, config);
    retire(&front, &ledger, false);
    while front.tick() > 0 {}
    assert_eq!(front.stats().pages_kept, 1);
    // A starved slot, as far as the back-off does not concern it, has five pages after one look.
    pages.set_failure(Failure::Below(Attempt::NoWait));
    assert_eq!(front.shrink_count(), 1, "K12: a page");
    assert_eq!(front.shrink_scan(100), 1);
    assert_eq!(pages.outstanding(), 1, "the slots");
    let mut kept = Vec::new();
    for _ in 0..2 * ROUNDS {
        // Keeps the slot starved: no page is to be had without waiting.
        for _ in 0..=front.stats().pages_kept * BLOCK {
            retire(&front, &ledger, false);
        }
        front.tick();
        kept.push(front.stats().pages_kept);
        front.barrier();
    }
    let none = ROUNDS as usize - 1;
    assert!(kept[..none].iter().all(|&pages| pages == 0), "{kept:?}");
    assert_eq!(kept[none], 1, "{kept:?}");
    assert!(kept[none + 1..].iter().any(|&pages| pages > 1), "{kept:?}");
    ledger.assert_no_faults();
}

/// However many objects a drain interval has, it costs a grace period, not one for each of them or their blocks.
#[test]
fn k11_a_drain_interval_costs_one_grace_period() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let config = Config::new().ask_after_blocks(1000).slot_limit(usize::MAX);
    let config = config.ask_after_bytes(usize::MAX);
    let front = front(&hand, &pages, &rcu, &ledger, config);
    for intervals in 1..=20 {
        for _ in 0..3 * BLOCK {
            retire(&front, &ledger, false);
        }
        front.tick();
        rcu.advance_wanted();
        assert_eq!(front.tick(), 0);
        assert_eq!((ledger.waiting(), rcu.grace_periods()), (0, intervals));
    }
    ledger.assert_no_faults();
}

/// Objects that wait are in no hurry: neither the first of them, nor a block that has filled, asks for a grace period. What has waited
/// for a drain interval does, and so does what is more than a slot's share.
#[test]
fn k21_what_waits_is_lazy_until_its_interval_is_over() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(
        &hand,
        &pages,
        &rcu,
        &ledger,
        Config::new().ask_after_blocks(3),
    );
    for _ in 0..2 * BLOCK {
        retire(&front, &ledger, false);
    }
    rcu.advance_wanted();
    assert_eq!(rcu.grace_periods(), 0, "two blocks full: nobody asked");
    front.tick();
    rcu.advance_wanted();
    assert_eq!(rcu.grace_periods(), 1, "their interval is over");
    front.tick();
    assert_eq!(ledger.waiting(), 0);
    for _ in 0..3 * BLOCK + 1 {
        retire(&front, &ledger, false);
    }
    rcu.advance_wanted();
    assert_eq!(
        rcu.grace_periods(),
        2,
        "three blocks are enough to ask at once"
    );
    front.barrier();
    ledger.assert_no_faults();
}

/// Objects and pages are counted, ripe ones freed, and all that is kept goes back.
#[test]
fn k12_the_shrinker_frees_what_is_ripe_and_drops_what_is_kept() {
    let (hand, pages, rcu) = (Hand::new(2), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    assert_eq!(
        (front.shrink_count(), front.shrink_scan(10)),
        (0, 0),
        "EMPTY"
    );
    let first: Vec<_> = (0..2 * BLOCK + 1)
        .map(|_| retire(&front, &ledger, false))
        .collect();
    hand.go(Some(1));
    let large: Vec<_> = (0..30).map(|_| retire(&front, &ledger, true)).collect();
    let with = retire_with(&front, &ledger);
    assert_eq!(front.shrink_count(), 2 * BLOCK + 1 + 31);
    // Nothing is ripe, but a grace period is on its way.
    assert_eq!(front.shrink_scan(10), 0);
    assert!(rcu.drive());
    rcu.advance();
    let freed = ledger.without_calling(|| front.shrink_scan(1));
    assert_eq!(freed, 3, "of one slot: about as much as was asked for");
    assert!(first.iter().all(|&item| ledger.is_freed(item)));
    assert!(large.iter().all(|&item| !ledger.is_freed(item)));
    let freed = ledger.without_calling(|| front.shrink_scan(1000));
    assert!(freed >= 30 * (LARGE_BYTES / pagealloc::PAGE_SIZE));
    assert!(large.iter().all(|&item| ledger.is_freed(item)));
    assert!(!ledger.is_freed(with), "foreign code is the monitor's");
    front.barrier();
    assert_eq!(front.shrink_count(), 0);
    ledger.assert_no_faults();
    assert_eq!(pages.outstanding(), 1, "the slots");
}

/// Pressure strikes inside of the front end's own allocation.
#[test]
fn k12_the_shrinker_may_run_inside_of_an_allocation() {
    let hand: &'static Hand = Box::leak(Box::new(Hand::new(1)));
    let pages: &'static Pages = Box::leak(Box::new(Pages::new()));
    let rcu: &'static ManualRcu = Box::leak(Box::new(ManualRcu::new()));
    let ledger: &'static Books<'static> = Box::leak(Box::new(Ledger::new(rcu, Defer::Never)));
    let front: &'static Front<'static> =
        Box::leak(Box::new(front(hand, pages, rcu, ledger, Config::new())));
    let old = retire(front, ledger, false);
    front.tick();
    rcu.advance();
    pages.set_failure(Failure::Below(Attempt::MayGrow));
    struct Anywhere(&'static Front<'static>);
    // SAFETY: this test has one thread.
    unsafe impl Send for Anywhere {}
    let shared = Anywhere(front);
    pages.meanwhile(move || {
        let Anywhere(front) = &shared;
        front.shrink_count();
        front.shrink_scan(5);
    });
    let item = ledger.alloc(false);
    ledger.retiring(item);
    // SAFETY: the ledger's object, given up.
    unsafe { front.retire_mightsleep(item.at) };
    assert!(ledger.is_freed(old), "the hook has run");
    front.barrier();
    ledger.assert_no_faults();
}

/// What waits anywhere: in open blocks, in line, by heads, sealed, among orphans, without a slot, and with the allocator.
#[test]
fn k14_a_barrier_covers_all_that_was_retired() {
    for defer in [Defer::Never, Defer::Sometimes, Defer::Always] {
        let (hand, pages, rcu) = (Hand::new(3), Pages::new(), ManualRcu::new());
        let ledger = Ledger::new(&rcu, defer);
        let front = front(&hand, &pages, &rcu, &ledger, Config::new());
        for slot in [Some(0), Some(1), None] {
            for failure in [Failure::Never, Failure::From(0)] {
                hand.go(slot);
                pages.set_failure(failure);
                for _ in 0..BLOCK + 3 {
                    retire(&front, &ledger, false);
                    retire(&front, &ledger, true);
                }
                retire_head(&front, &ledger);
                front.tick();
            }
            if slot == Some(1) {
                hand.bounce();
            }
        }
        assert!(ledger.waiting() > BLOCK);
        hand.go(Some(2));
        front.barrier();
        assert_eq!((ledger.waiting(), front.stats().objects_waiting), (0, 0));
        ledger.assert_no_faults();
    }
}

/// A barrier runs a grace period if it needs one, and none for what is ripe.
#[test]
fn k14_a_barrier_waits_for_no_more_than_it_must() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    front.barrier();
    assert_eq!(rcu.grace_periods(), 0, "nothing waits");
    for failure in [Failure::Never, Failure::From(0)] {
        pages.set_failure(failure);
        hand.bounce();
        retire(&front, &ledger, false);
        rcu.synchronize();
        let before = rcu.grace_periods();
        front.barrier();
        assert_eq!(rcu.grace_periods(), before, "ripe already");
        retire(&front, &ledger, false);
        front.barrier();
        assert_eq!(rcu.grace_periods(), before + 1);
    }
    ledger.assert_no_faults();
}

/// Reclaiming asks nobody for memory: it goes on when there is none.
#[test]
fn k17_reclaiming_needs_no_memory() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    for _ in 0..3 * BLOCK {
        retire(&front, &ledger, false);
    }
    retire_head(&front, &ledger);
    pages.set_failure(Failure::From(0));
    let calls = pages.calls();
    while front.tick() > 0 {
        rcu.advance_wanted();
    }
    assert_eq!((ledger.waiting(), pages.calls()), (0, calls));
    ledger.assert_no_faults();
}

/// Where heads are watched: the second retiring is refused, and the object leaks instead of being freed twice.
#[test]
#[cfg(debug_assertions)]
fn k18_a_head_that_is_retired_twice_leaks() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    pages.set_failure(Failure::From(0));
    let (other, item) = (retire_head(&front, &ledger), retire_head(&front, &ledger));
    // SAFETY: wrong, as is the test's purpose; the head is watched.
    unsafe { front.retire_head(item.head(), Books::CALLBACK, 64) };
    front.barrier();
    assert!(ledger.is_freed(other) && !ledger.is_freed(item));
    ledger.assert_no_faults();
}

/// An RCU that says once that a grace period is over, and then that it is not.
struct Liar<'a> {
    rcu: &'a ManualRcu,
    lies: Cell<usize>,
}

// SAFETY: none: that is the point. Nothing but this test's objects, whose memory stays, is freed by it.
unsafe impl GracePeriod for Liar<'_> {
    fn snapshot(&self) -> Cookie {
        self.rcu.snapshot()
    }

    fn start(&self) -> Cookie {
        self.rcu.start()
    }

    fn poll(&self, cookie: Cookie) -> bool {
        if self.lies.get() > 0 {
            self.lies.set(self.lies.get() - 1);
            return true;
        }
        self.rcu.poll(cookie)
    }

    fn wait(&self, cookie: Cookie) {
        self.rcu.wait(cookie);
    }

    fn drive(&self) -> bool {
        self.rcu.drive()
    }

    fn grace_periods(&self) -> usize {
        self.rcu.grace_periods()
    }
}

// SAFETY: as the RCU inside, but for the lies.
unsafe impl Rcu for Liar<'_> {
    type Token = ();

    fn enter(&self) {
        self.rcu.enter();
    }

    unsafe fn exit(&self, token: ()) {
        // SAFETY: the caller's debt.
        unsafe { self.rcu.exit(token) };
    }

    unsafe fn call(&self, head: NonNull<Head>, callback: Callback) {
        // SAFETY: the caller's debts.
        unsafe { self.rcu.call(head, callback) };
    }

    fn barrier(&self) {
        self.rcu.barrier();
    }
}

/// Every block has its own cookie, which is asked once more before anything is freed.
#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "T2: freed before its grace period")]
fn t2_a_block_that_is_freed_early_is_found() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let lies = Cell::new(0);
    let liar = Liar { rcu: &rcu, lies };
    // SAFETY: nothing is deferred; never dropped, for it would wait for what it lost.
    let made = unsafe { Kvfree::new(&hand, &pages, &liar, &ledger, Config::new()) };
    let front = ManuallyDrop::new(made.unwrap());
    retire(&*front, &ledger, false);
    liar.lies.set(1);
    front.tick();
}

/// Without memory, too, nobody waits for a grace period but who asked to: not the monitor, not two arguments.
#[test]
fn t7_reclaiming_never_waits_for_a_grace_period() {
    for failure in [Failure::Never, Failure::From(0)] {
        let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
        let ledger = Ledger::new(&rcu, Defer::Sometimes);
        let front = front(&hand, &pages, &rcu, &ledger, Config::new());
        pages.set_failure(failure);
        for _ in 0..10 {
            retire_many(&front, &ledger, 100);
            assert!(front.tick() > 0);
            front.relieve();
            front.shrink_scan(10);
        }
        assert_eq!((rcu.grace_periods(), ledger.freed()), (0, 0));
        front.barrier();
        ledger.assert_no_faults();
    }
}

/// A head 4096 words or more into its object is refused (in a constant, when compiled: the doctest of `HeadOffset::from_bytes`), and one word less is
/// not, on objects of any size.
#[test]
fn k1_t12_post_2008_offsets_end_at_4096_words() {
    const WORD: usize = size_of::<usize>();
    let most = HeadOffset::from_bytes((rcu_core::MAX_OFFSET_WORDS - 1) * WORD);
    assert_eq!(most.bytes(), 4095 * WORD);
    for words in [rcu_core::MAX_OFFSET_WORDS, 1 << 20] {
        let made = std::panic::catch_unwind(|| HeadOffset::from_bytes(words * WORD));
        assert!(made.is_err());
    }
    assert!(std::panic::catch_unwind(|| HeadOffset::from_bytes(WORD + 1)).is_err());
}
