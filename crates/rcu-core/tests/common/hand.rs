//! Slots that the test itself moves between. One thread.

use rcu_core::cpu::{Cpus, HookList, OfflineHook, Slot, SpinLock};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

const NOWHERE: u32 = u32::MAX;

pub(crate) struct Hand {
    current: AtomicU32,
    nr: usize,
    hooks: HookList,
}

impl Hand {
    rcu_core::const_fn! {
        pub(crate) const fn new(nr: usize) -> Self {
            Self {
                current: AtomicU32::new(0),
                nr,
                hooks: HookList::new(),
            }
        }
    }

    /// Goes on on `slot`; `None` is a thread without one.
    pub(crate) fn go(&self, slot: Option<u32>) {
        self.current
            .store(slot.unwrap_or(NOWHERE), Ordering::Relaxed);
    }

    /// Takes the current slot offline and online again.
    pub(crate) fn bounce(&self) {
        if let Some(slot) = self.current() {
            // SAFETY: the test is the only thread, on this slot.
            unsafe { self.hooks.run(slot) };
        }
    }
}

// SAFETY: 1: `go` is given slots below `nr`; 2: the lock needs no owner; 3: `HookList`.
unsafe impl Cpus for Hand {
    type Lock = SpinLock;

    fn nr_slots(&self) -> usize {
        self.nr
    }

    fn current(&self) -> Option<Slot> {
        let current = self.current.load(Ordering::Relaxed);
        (current != NOWHERE).then(|| Slot::new(current))
    }

    unsafe fn add_offline_hook(&self, hook: NonNull<OfflineHook>) {
        // SAFETY: the caller's debts.
        unsafe { self.hooks.add(hook) };
    }

    unsafe fn remove_offline_hook(&self, hook: NonNull<OfflineHook>) {
        self.hooks.remove(hook);
    }
}
