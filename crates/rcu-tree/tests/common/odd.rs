//! Threads as slots, but with names that a test gives, and with none where a test says so.

#![allow(dead_code)]

use rcu_core::cpu::{BiasedLock, Cpus, OfflineHook, PerSlot, Slot, Threads};
use rcu_tree::{Geometry, Node, StallConfig, Trace, Tree, TreeSlot};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Mutex;

thread_local! {
    static SLOTLESS: Cell<bool> = const { Cell::new(false) };
}

static NAMES: Mutex<BTreeMap<u32, String>> = Mutex::new(BTreeMap::new());

/// The calling thread has no slot while `f` runs.
pub(crate) fn without_slot<R>(f: impl FnOnce() -> R) -> R {
    SLOTLESS.set(true);
    let result = f();
    SLOTLESS.set(false);
    result
}

/// Calls the calling thread so.
pub(crate) fn call_me(name: &str) -> Slot {
    let slot = Threads.current().unwrap();
    NAMES
        .lock()
        .unwrap()
        .insert(slot.index() as u32, name.to_owned());
    slot
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Odd;

// SAFETY: as `Threads`; saying `None` is always allowed.
unsafe impl Cpus for Odd {
    type Lock = BiasedLock;

    fn nr_slots(&self) -> usize {
        Threads.nr_slots()
    }

    fn current(&self) -> Option<Slot> {
        (!SLOTLESS.get()).then(|| Threads.current()).flatten()
    }

    fn current_if_online(&self) -> Option<Slot> {
        (!SLOTLESS.get())
            .then(|| Threads.current_if_online())
            .flatten()
    }

    unsafe fn add_offline_hook(&self, hook: NonNull<OfflineHook>) {
        // SAFETY: the caller's debts.
        unsafe { Threads.add_offline_hook(hook) };
    }

    unsafe fn remove_offline_hook(&self, hook: NonNull<OfflineHook>) {
        // SAFETY: the caller's debt.
        unsafe { Threads.remove_offline_hook(hook) };
    }

    unsafe fn release(&self, slot: Slot) {
        // SAFETY: the caller's debts.
        unsafe { Threads.release(slot) };
    }

    fn describe(&self, slot: Slot, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.lock().unwrap().get(&(slot.index() as u32)) {
            Some(name) => write!(f, "thread {name:?}"),
            None => Threads.describe(slot, f),
        }
    }
}

/// A tree of such threads, leaked, with small fanouts.
pub(crate) fn odd<T: Trace>(trace: T, config: StallConfig) -> &'static Tree<'static, Odd, T> {
    let nr_slots = Odd.nr_slots();
    let slots: Vec<_> = (0..nr_slots)
        .map(|_| TreeSlot::new(BiasedLock::new()))
        .collect();
    let geometry = Geometry::with_fanout(nr_slots, 8, 8);
    let nodes: Vec<_> = (0..geometry.nr_nodes()).map(|_| Node::new()).collect();
    let slots = PerSlot::from_slice(Box::leak(slots.into_boxed_slice()));
    let nodes = Box::leak(nodes.into_boxed_slice());
    // SAFETY: leaked before its first use; a thread keeps its slot.
    let tree = unsafe { Tree::traced(Odd, slots, geometry, nodes, trace) };
    Box::leak(Box::new(tree.with_stall(config)))
}
