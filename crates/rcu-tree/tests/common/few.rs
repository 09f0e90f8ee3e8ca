//! Slots that come and go: few of them for real threads, and some that one thread moves between by hand.

#![allow(dead_code)]

use rcu_core::cpu::{
    BiasedLock, Cpus, HookList, LocalLock, OfflineHook, PerSlot, Slot, SlotTable, SpinLock,
};
use rcu_tree::{Geometry, Node, Tree, TreeSlot};
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many slots [`Few`] has.
pub(crate) const FEW: usize = 3;
const NONE: u32 = u32::MAX;
const GONE: u32 = u32::MAX - 1;

static TABLE: SlotTable<FEW> = SlotTable::new();
static HOOKS: HookList = HookList::new();

thread_local! {
    static SLOT: Cell<u32> = const { Cell::new(NONE) };
    static RELEASE: Release = const { Release };
}

struct Release;

impl Drop for Release {
    fn drop(&mut self) {
        if SLOT.get() < FEW as u32 {
            let slot = Slot::new(SLOT.get());
            // SAFETY: this thread owns the slot, and `SLOT` still says so.
            let keepers = unsafe { HOOKS.run(slot) };
            TABLE.give_back(slot, keepers);
        }
        SLOT.set(GONE);
    }
}

/// How many of the slots of [`Few`] are taken.
pub(crate) fn nr_taken() -> usize {
    TABLE.nr_taken()
}

/// Threads, but of slots there are [`FEW`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Few;

// SAFETY: 1: a table of `FEW`; 2: the table, and a thread-local; 3: `HookList`, run by the thread-local's destructor.
unsafe impl Cpus for Few {
    type Lock = BiasedLock;

    fn nr_slots(&self) -> usize {
        FEW
    }

    fn current(&self) -> Option<Slot> {
        if SLOT.get() == NONE
            && RELEASE.try_with(|_| ()).is_ok()
            && let Some(slot) = TABLE.take(b"")
        {
            SLOT.set(slot.index() as u32);
        }
        self.current_if_online()
    }

    fn current_if_online(&self) -> Option<Slot> {
        let number = SLOT.get();
        (number < FEW as u32).then(|| Slot::new(number))
    }

    unsafe fn add_offline_hook(&self, hook: NonNull<OfflineHook>) {
        // SAFETY: the caller's debts.
        unsafe { HOOKS.add(hook) };
    }

    unsafe fn remove_offline_hook(&self, hook: NonNull<OfflineHook>) {
        HOOKS.remove(hook);
    }

    unsafe fn release(&self, slot: Slot) {
        TABLE.release(slot);
    }
}

/// Slots that one thread takes, moves between and gives back by hand.
pub(crate) struct Hand<const N: usize> {
    current: AtomicU32,
    hooks: HookList,
    pub(crate) table: SlotTable<N>,
}

impl<const N: usize> Hand<N> {
    pub(crate) fn new() -> Self {
        Self {
            current: AtomicU32::new(NONE),
            hooks: HookList::new(),
            table: SlotTable::new(),
        }
    }

    /// Takes a slot, and goes on there.
    pub(crate) fn join(&self) -> Slot {
        let slot = self.table.take(b"").expect("a free slot");
        self.go(Some(slot));
        slot
    }

    /// Goes on on `slot`, or without one.
    pub(crate) fn go(&self, slot: Option<Slot>) {
        let number = slot.map_or(NONE, |slot| slot.index() as u32);
        self.current.store(number, Ordering::Relaxed);
    }

    /// Gives the current slot back, as a thread does at its end.
    pub(crate) fn leave(&self) {
        let slot = self.current().expect("a slot to leave");
        // SAFETY: the one thread there is is on this slot.
        let keepers = unsafe { self.hooks.run(slot) };
        self.go(None);
        self.table.give_back(slot, keepers);
    }
}

// SAFETY: 1: a table of `N`; 2: the lock needs no owner, and there is one thread; 3: `leave`.
unsafe impl<const N: usize> Cpus for Hand<N> {
    type Lock = SpinLock;

    fn nr_slots(&self) -> usize {
        N
    }

    fn current(&self) -> Option<Slot> {
        let current = self.current.load(Ordering::Relaxed);
        (current != NONE).then(|| Slot::new(current))
    }

    unsafe fn add_offline_hook(&self, hook: NonNull<OfflineHook>) {
        // SAFETY: the caller's debts.
        unsafe { self.hooks.add(hook) };
    }

    unsafe fn remove_offline_hook(&self, hook: NonNull<OfflineHook>) {
        self.hooks.remove(hook);
    }

    unsafe fn release(&self, slot: Slot) {
        self.table.release(slot);
    }
}

/// A tree over `cpus`, leaked.
pub(crate) fn tree_of<C: Cpus + 'static>(
    cpus: C,
    lock: impl Fn() -> C::Lock,
) -> &'static Tree<'static, C>
where
    C::Lock: LocalLock,
{
    let slots: Vec<_> = (0..cpus.nr_slots())
        .map(|_| TreeSlot::new(lock()))
        .collect();
    let geometry = match cpus.nr_slots() {
        few @ ..=16 => Geometry::with_fanout(few, 2, 2),
        many => Geometry::new(many),
    };
    let nodes: Vec<_> = (0..geometry.nr_nodes()).map(|_| Node::new()).collect();
    let slots = PerSlot::from_slice(Box::leak(slots.into_boxed_slice()));
    let nodes = Box::leak(nodes.into_boxed_slice());
    // SAFETY: leaked before its first use; both kinds of slots here have one owner, who does not leave them inside a
    // section but by ending.
    Box::leak(Box::new(unsafe { Tree::new(cpus, slots, geometry, nodes) }))
}
