//! What waits is counted, weighed and told of.

#![cfg(not(loom))]

mod common;

use common::{
    Defer, Failure, Hand, LARGE_BYTES, Ledger, ManualRcu, Pages, front, retire, retire_head,
    retire_many,
};
use kvfree::{Config, DeferFree};
use pagealloc::{Order, PageAlloc, PageReq};
use rcu_core::GracePeriod;
use rcu_core::cpu::Slot;

/// What `stats` says of what waits: how long, where, and which ways were left.
#[test]
fn statistics_tell_age_and_place() {
    let (hand, pages, rcu) = (Hand::new(3), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    hand.go(Some(1));
    retire(&front, &ledger, true);
    for _ in 0..7 {
        front.tick();
    }
    hand.go(Some(0));
    pages.set_failure(Failure::From(0));
    retire(&front, &ledger, false);
    for _ in 0..3 {
        front.tick();
    }
    let young = front.slot_stats(Slot::new(0)).unwrap();
    let old = front.slot_stats(Slot::new(1)).unwrap();
    assert_eq!(
        (young.oldest_rounds, young.objects_waiting, young.by_head),
        (3, 1, 1)
    );
    assert_eq!((old.oldest_rounds, old.bytes_waiting), (10, LARGE_BYTES));
    assert!(front.slot_stats(Slot::new(2)).is_none());
    let stats = front.stats();
    assert_eq!((stats.oldest_rounds, stats.objects_waiting), (10, 2));
    // A thread that ends takes nothing away.
    hand.bounce();
    assert_eq!(front.stats().oldest_rounds, 10);
    hand.go(Some(1));
    hand.bounce();
    front.tick();
    assert_eq!(front.stats().oldest_rounds, 11);
    let report = front.report().to_string();
    assert!(
        report.contains("oldest for 11 rounds") && !report.contains("slot "),
        "{report}"
    );
    front.barrier();
    retire(&front, &ledger, false);
    assert_eq!(front.stats().oldest_rounds, 0);
    assert!(
        front
            .report()
            .to_string()
            .contains("\nslot 1: waiting 1 objects")
    );
    front.barrier();
    ledger.assert_no_faults();
}

/// Above a slot's limit, every chunk asks for a grace period, by blocks or by heads; below it, nobody does.
#[test]
fn a_slot_above_its_limit_asks_at_once() {
    const LIMIT: usize = 1 << 20;
    for failure in [Failure::Never, Failure::From(0)] {
        let (hand, pages, rcu) = (Hand::new(2), Pages::new(), ManualRcu::new());
        let ledger = Ledger::new(&rcu, Defer::Never);
        let config = Config::new().slot_limit(LIMIT).ask_after_bytes(usize::MAX);
        let config = config.ask_after_blocks(usize::MAX).soft_limit(usize::MAX);
        let front = front(&hand, &pages, &rcu, &ledger, config);
        pages.set_failure(failure);
        let mut bytes = [0; 2];
        for n in 0..2 * (LIMIT / LARGE_BYTES) - 2 {
            // Each by itself is below.
            hand.go(Some(n as u32 % 2));
            retire(&front, &ledger, true);
            bytes[n % 2] += LARGE_BYTES;
            assert!(!rcu.drive(), "asked for at {bytes:?}");
        }
        while !rcu.drive() {
            retire(&front, &ledger, true);
            bytes[1] += LARGE_BYTES;
            assert!(bytes[1] <= LIMIT + (64 << 10) + LARGE_BYTES, "late");
        }
        front.barrier();
        ledger.assert_no_faults();
    }
}

/// At the limit the allocator's own batches take no more in than ours do.
#[test]
fn at_the_limit_nothing_is_deferred() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Always);
    let front = front(
        &hand,
        &pages,
        &rcu,
        &ledger,
        Config::new().hard_limit(10 * LARGE_BYTES),
    );
    for _ in 0..11 {
        retire(&front, &ledger, true);
    }
    front.tick();
    let item = ledger.alloc(true);
    // SAFETY: the ledger's object, still the test's if it comes back.
    assert_eq!(unsafe { front.try_retire(item.at) }, Err(item.at));
    assert_eq!(front.stats().refused, 1);
    ledger.retiring(item);
    // SAFETY: the ledger's object, given up.
    unsafe { front.retire_mightsleep(item.at) };
    assert!(ledger.is_freed(item), "its owner has waited");
    assert_eq!(front.stats().synchronized, 1);
    front.barrier();
    ledger.assert_no_faults();
}

/// Whom the limit is told to may panic: what was charged for is discharged, and nothing is lost.
#[test]
fn a_panic_at_the_limit_loses_nothing() {
    let config = Config::new()
        .hard_limit(LARGE_BYTES)
        .tells(|_| panic!("on purpose"));
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, config);
    for _ in 0..4 {
        retire(&front, &ledger, true);
    }
    let tick = std::panic::AssertUnwindSafe(|| front.tick());
    assert!(std::panic::catch_unwind(tick).is_err());
    while front.tick() > 0 {
        rcu.advance_wanted();
        rcu.advance();
    }
    assert_eq!((ledger.waiting(), front.stats().bytes_charged), (0, 0));
    front.barrier();
    ledger.assert_no_faults();
}

/// The slots' pages are the front end's own, and all of them go back.
#[test]
fn dropping_a_front_end_waits_for_its_own() {
    for failure in [Failure::Never, Failure::From(0)] {
        let (hand, pages, rcu) = (Hand::new(2), Pages::new(), ManualRcu::new());
        let ledger = Ledger::new(&rcu, Defer::Sometimes);
        let made = front(&hand, &pages, &rcu, &ledger, Config::new());
        pages.set_failure(failure);
        for slot in [Some(0), None, Some(1)] {
            hand.go(slot);
            retire_many(&made, &ledger, 100);
            retire_head(&made, &ledger);
        }
        drop(made);
        assert_eq!((ledger.waiting(), pages.outstanding()), (0, 0));
        ledger.assert_no_faults();
        // Nothing of it is left behind: the pages are whole.
        pages.set_failure(Failure::Never);
        let page = pages.alloc(PageReq::new(Order::ZERO)).unwrap();
        // SAFETY: allocated just now.
        unsafe { pages.free(page, Order::ZERO) };
    }
}
