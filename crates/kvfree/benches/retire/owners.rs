//! Values that own memory: what is retired has a destructor, which gives back a second allocation.

use crossbeam_epoch as epoch;
use kvfree::RcuBox;
use std::hint::black_box;

/// A line of memory, owned.
type Owned = Box<[usize; 8]>;

fn owned(value: usize) -> Owned {
    Box::new([value; 8])
}

/// Made and retired with the default stack.
pub(crate) fn ours(value: usize) {
    drop(RcuBox::new(owned(value)));
}

/// The same with `crossbeam-epoch`.
pub(crate) fn crossbeam(value: usize) {
    let guard = epoch::pin();
    let value = epoch::Owned::new(owned(value)).into_shared(&guard);
    // SAFETY: nobody else has seen it.
    unsafe { guard.defer_destroy(value) };
}

#[repr(C)]
struct Node {
    retired: kovan::RetiredNode,
    owned: Owned,
}

/// The same with `kovan`.
pub(crate) fn kovan(value: usize) {
    let node = kovan::alloc_node(Node {
        retired: kovan::RetiredNode::new(),
        owned: owned(value),
    });
    // SAFETY: allocated just now, and nobody else has seen it.
    black_box(unsafe { (*node).owned[0] });
    // SAFETY: as above.
    unsafe { kovan::retire_node(node) };
}

/// Dropped at once: what not deferring costs.
pub(crate) fn at_once(value: usize) {
    drop(black_box(Box::new(owned(value))));
}
