//! Simulated CPUs: who runs is a variable.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;

use rcu_core::cpu::{Cpus, HookList, OfflineHook, Slot, SpinLock};

/// A machine of `nr_slots` CPUs that take turns in one thread.
#[derive(Debug)]
pub(super) struct SimCpus {
    nr_slots: usize,
    current: Cell<Option<Slot>>,
    hooks: HookList,
    /// Slots that lingered and have been given back.
    released: RefCell<Vec<Slot>>,
}

impl SimCpus {
    pub(super) fn new(nr_slots: usize) -> Self {
        Self {
            nr_slots,
            current: Cell::new(None),
            hooks: HookList::new(),
            released: RefCell::default(),
        }
    }

    /// From now on it is the turn of `slot`, or of somebody without one.
    pub(super) fn switch_to(&self, slot: Option<Slot>) {
        debug_assert!(slot.is_none_or(|slot| slot.index() < self.nr_slots));
        self.current.set(slot);
    }

    /// Takes `slot`, whose turn it is, offline. True if somebody keeps it.
    pub(super) fn unplug(&self, slot: Slot) -> bool {
        debug_assert_eq!(self.current.get(), Some(slot));
        // SAFETY: it is the turn of `slot`, so the caller plays its owner, and `current` says so.
        let keepers = unsafe { self.hooks.run(slot) };
        self.current.set(None);
        keepers > 0
    }

    /// Whether `slot` was given back since the last question about it.
    pub(super) fn was_released(&self, slot: Slot) -> bool {
        let mut released = self.released.borrow_mut();
        let at = released.iter().position(|other| *other == slot);
        at.map(|at| released.swap_remove(at)).is_some()
    }
}

// SAFETY: 1: `nr_slots` is set once and `switch_to` keeps below it; 2: one thread, which plays one slot at a time;
// 3: `unplug` runs the hooks while `current` returns the slot, and the world gives a kept slot no owner before
// `was_released`; removing waits, since one thread has nothing running beside it.
unsafe impl Cpus for SimCpus {
    type Lock = SpinLock;

    fn nr_slots(&self) -> usize {
        self.nr_slots
    }

    fn current(&self) -> Option<Slot> {
        self.current.get()
    }

    unsafe fn add_offline_hook(&self, hook: NonNull<OfflineHook>) {
        // SAFETY: the caller's debts.
        unsafe { self.hooks.add(hook) };
    }

    unsafe fn remove_offline_hook(&self, hook: NonNull<OfflineHook>) {
        self.hooks.remove(hook);
    }

    unsafe fn release(&self, slot: Slot) {
        self.released.borrow_mut().push(slot);
    }
}
