//! Trees for tests, leaked so that they stay in place.

#![allow(dead_code)]

use rcu_core::cpu::{BiasedLock, Cpus, PerSlot, Threads};
use rcu_tree::{CallbackConfig, Geometry, Node, Tree, TreeSlot};
use std::ptr::NonNull;

/// A tree of all threads with these fanouts, without a worker: whoever waits drives.
pub(crate) fn tree(fanout_leaf: usize, fanout: usize) -> &'static Tree<'static, Threads> {
    Box::leak(Box::new(build(fanout_leaf, fanout)))
}

/// The same, with a way to free objects.
pub(crate) fn tree_with_free(free: unsafe fn(NonNull<u8>)) -> &'static Tree<'static, Threads> {
    // SAFETY: the tests queue offsets only for objects that `free` takes.
    Box::leak(Box::new(unsafe { build(16, 64).with_free(free) }))
}

/// The same as [`tree`] with the default fanouts, its callbacks batched as `config` says.
pub(crate) fn tree_with_callbacks(config: CallbackConfig) -> &'static Tree<'static, Threads> {
    Box::leak(Box::new(build(16, 64).with_callbacks(config)))
}

fn build(fanout_leaf: usize, fanout: usize) -> Tree<'static, Threads> {
    let nr_slots = Threads.nr_slots();
    let slots: Vec<_> = (0..nr_slots)
        .map(|_| TreeSlot::new(BiasedLock::new()))
        .collect();
    let geometry = Geometry::with_fanout(nr_slots, fanout_leaf, fanout);
    let nodes: Vec<_> = (0..geometry.nr_nodes()).map(|_| Node::new()).collect();
    let slots = PerSlot::from_slice(Box::leak(slots.into_boxed_slice()));
    // SAFETY: the caller leaks the tree before its first use; a thread keeps its slot.
    unsafe {
        Tree::new(
            Threads,
            slots,
            geometry,
            Box::leak(nodes.into_boxed_slice()),
        )
    }
}
