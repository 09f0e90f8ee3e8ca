//! The shared suites of `rcu-core`, on trees of several shapes, with and without a worker, and on one CPU.
#![cfg(not(loom))]

mod common;

use common::{tree, tree_with_free};
use rcu_core::cpu::{OneCpu, PerSlot, UpLock};
use rcu_core::{grace_period_conformance, rcu_conformance, rcu_send_conformance};
use rcu_tree::{Geometry, Node, Tree, TreeSlot};

grace_period_conformance!(default_shape, tree(16, 64));
grace_period_conformance!(wide_shape, tree(64, 64));
rcu_conformance!(default_shape_rcu, tree(16, 64));
rcu_conformance!(default_shape_threads, threads: tree(16, 64));
rcu_conformance!(small_fanouts, tree(8, 8));
rcu_conformance!(small_fanouts_threads, threads: tree(8, 8));
rcu_send_conformance!(default_shape_send, tree(16, 64));
rcu_send_conformance!(small_fanouts_send, tree(8, 8));
rcu_conformance!(offsets, free: tree_with_free(rcu_core::conformance::note_free));

/// A machine with one CPU, as an embedder without `std` would set it up.
fn one_cpu() -> &'static Tree<'static, OneCpu> {
    // SAFETY: used by this thread only.
    let lock = unsafe { UpLock::new() };
    let slots = Box::leak(Box::new([TreeSlot::new(lock)]));
    let nodes = Box::leak(Box::new([Node::new()]));
    // SAFETY: each test uses its tree from one thread only.
    let cpu = unsafe { OneCpu::new() };
    // SAFETY: leaked before its first use.
    Box::leak(Box::new(unsafe {
        Tree::new(cpu, PerSlot::from_slice(slots), Geometry::new(1), nodes)
    }))
}

grace_period_conformance!(one_cpu_gp, one_cpu());
rcu_conformance!(one_cpu_rcu, one_cpu());

/// Trees with a worker: one static for each test, so that the worker's main can name it.
#[cfg(feature = "std")]
macro_rules! with_worker {
    () => {{
        rcu_tree::static_tree! { struct Domain; }
        Domain
    }};
}

#[cfg(feature = "std")]
mod worker {
    use rcu_core::{grace_period_conformance, rcu_conformance, rcu_send_conformance};

    grace_period_conformance!(gp, with_worker!());
    rcu_conformance!(rcu, with_worker!());
    rcu_conformance!(threads, threads: with_worker!());
    rcu_send_conformance!(send, with_worker!());
}
