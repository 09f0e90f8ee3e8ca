//! K16: who retires and may sleep, while somebody visits its slot.

#![cfg(all(feature = "std", not(loom)))]

mod common;

use common::{Books, Defer, Hand, Ledger, ManualRcu, Pages};
use kvfree::{Config, Kvfree};
use rcu_core::cpu::{Cpus, LocalLock, OfflineHook, Slot, SpinLock, ZeroInit};
use std::cell::Cell;
use std::ptr::NonNull;

/// Retired in each case.
const OBJECTS: usize = 4;

thread_local! {
    /// How often the owner finds a visitor inside from now on.
    static REFUSALS: Cell<usize> = const { Cell::new(0) };
}

/// A lock whose owner finds a visitor inside as often as the test wants.
struct Visited(SpinLock);

// SAFETY: a spin lock, all-zero of which is unlocked.
unsafe impl ZeroInit for Visited {}

// SAFETY: a spin lock, whose `try_enter` may fail as it likes.
unsafe impl LocalLock for Visited {
    const NEEDS_OWNER: bool = false;

    unsafe fn try_enter(&self) -> bool {
        let left = REFUSALS.get();
        if left > 0 {
            REFUSALS.set(left - 1);
            return false;
        }
        // SAFETY: the caller's debt.
        unsafe { self.0.try_enter() }
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

/// [`Hand`], with that lock.
struct Host(Hand);

// SAFETY: as `Hand`; the lock needs no owner.
unsafe impl Cpus for Host {
    type Lock = Visited;

    fn nr_slots(&self) -> usize {
        self.0.nr_slots()
    }

    fn current(&self) -> Option<Slot> {
        self.0.current()
    }

    unsafe fn add_offline_hook(&self, hook: NonNull<OfflineHook>) {
        // SAFETY: the caller's debts.
        unsafe { self.0.add_offline_hook(hook) };
    }

    unsafe fn remove_offline_hook(&self, hook: NonNull<OfflineHook>) {
        // SAFETY: the caller's debts.
        unsafe { self.0.remove_offline_hook(hook) };
    }
}

/// Retires objects without a head, of the front end's own and others, each of which finds a visitor so often; says how many waited for a grace
/// period of their own.
fn waits(refusals: usize) -> usize {
    let (host, pages, rcu) = (Host(Hand::new(1)), Pages::new(), ManualRcu::new());
    let ledger: Books<'_> = Ledger::new(&rcu, Defer::Never);
    // SAFETY: the ledger waits for the grace periods of `rcu`; dropped before what it borrows.
    let front = unsafe { Kvfree::new(&host, &pages, &rcu, &ledger, Config::new()) }.unwrap();
    for n in 0..OBJECTS {
        let item = ledger.alloc(false);
        ledger.retiring(item);
        REFUSALS.set(refusals);
        if n % 2 == 0 {
            // SAFETY: the ledger's object, given up.
            unsafe { kvfree::DeferFree::retire_mightsleep(&front, item.at) };
        } else {
            // SAFETY: the ledger's object and its function, given up.
            unsafe { front.retire_with_mightsleep(item.at, Books::DROP, 64) };
        }
        REFUSALS.set(0);
    }
    let synchronized = front.stats().synchronized;
    assert_eq!(ledger.freed(), synchronized, "the others wait");
    drop(front);
    ledger.assert_no_faults();
    synchronized
}

/// A visitor is gone soon; each object a grace period of its own, as long as it is there, would be thousands of these.
#[test]
fn k16_k3_a_visitor_is_waited_for() {
    assert_eq!(waits(0), 0);
    assert_eq!(waits(1), 0);
    assert_eq!(waits(50), 0);
}

/// A visitor that does not go, as in a child that was forked meanwhile, is not waited for for ever.
#[test]
fn k16_k3_a_visitor_that_stays_costs_a_grace_period() {
    assert_eq!(waits(usize::MAX), OBJECTS);
}
