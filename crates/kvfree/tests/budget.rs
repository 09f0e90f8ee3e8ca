//! Memory that waits stays within its limit, and who may wait is who waits.

#![cfg(not(loom))]

mod common;

use common::{Defer, Hand, Ledger, ManualRcu, Pages};
use kvfree::{Config, DeferFree, Kvfree, OverLimit};
use rcu_core::Rcu;
use std::sync::atomic::{AtomicUsize, Ordering};

const LIMIT: usize = 1 << 20;
/// What is not counted yet, and what is counted at once.
const SLACK: usize = 64 << 10;

static TOLD: AtomicUsize = AtomicUsize::new(0);

fn config() -> Config {
    Config::new().hard_limit(LIMIT).tells(|over: &OverLimit| {
        assert!(over.waiting_bytes > over.limit_bytes && over.limit_bytes == LIMIT);
        TOLD.fetch_add(1, Ordering::Relaxed);
    })
}

/// With a reader stalled for ever, memory stops growing at the limit for who can take a refusal; two arguments are overdrawn.
#[test]
fn post_2019_a_stalled_reader_stops_the_growth() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    // SAFETY: the ledger waits for the grace periods of `rcu`; all of them outlive the front end.
    let front = unsafe { Kvfree::new(&hand, &pages, &rcu, &ledger, config()) }.unwrap();
    let try_one = || {
        let item = ledger.alloc(true);
        ledger.retiring(item);
        // SAFETY: the ledger's object, given up if it is taken.
        let taken = unsafe { front.try_retire(item.at) }.is_ok();
        if !taken {
            ledger.refused(item);
        }
        taken
    };
    for round in 1..=3 {
        rcu.enter();
        while try_one() {
            rcu.step();
            rcu.advance();
            front.tick();
            assert!(front.stats().bytes_waiting <= LIMIT + 2 * SLACK, "no limit");
        }
        let full = front.stats();
        assert!(full.bytes_waiting >= LIMIT - SLACK && front.is_over_limit());
        assert!(!try_one() && !front.relieve());
        front.tick();
        assert_eq!(TOLD.load(Ordering::Relaxed), round, "told once");
        // Two arguments can neither wait nor fail.
        let item = ledger.alloc(true);
        ledger.retiring(item);
        // SAFETY: the ledger's object, with its head, given up.
        unsafe { front.retire(item.head(), common::Item::OFFSET) };
        assert_eq!(front.stats().overdrawn, round);
        // SAFETY: entered above.
        unsafe { rcu.exit(()) };
        for _ in 0..4 {
            rcu.step();
            rcu.advance();
        }
        assert!(front.relieve(), "nothing holds it up any more");
        assert!(try_one());
    }
    for _ in 0..4 {
        rcu.step();
        rcu.advance();
        front.tick();
    }
    assert_eq!(front.stats().bytes_charged, 0);
    ledger.assert_no_faults();
}
