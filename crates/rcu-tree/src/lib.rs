#![cfg_attr(feature = "std", doc = include_str!("../README.md"))]
#![cfg_attr(
    not(feature = "std"),
    doc = "Grace periods on many CPUs, without `std`: the embedder brings `Cpus` and memory, and drives. See `README.md`."
)]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

#[cfg(not(loom))]
mod callbacks;
#[cfg(loom)]
#[doc(hidden)]
pub mod callbacks;
mod gp_counts;
#[doc(hidden)]
pub mod gp_seq;
#[cfg(not(loom))]
mod machine;
#[cfg(loom)]
#[doc(hidden)]
pub mod machine;
mod marks;
mod node;
mod place;
#[doc(hidden)]
pub mod reader;
mod shared_readers;
mod slot;
mod stall;
mod trace;
mod tree;
mod waiters;
mod worker;

pub use callbacks::{CallbackConfig, CallbackStats, FreeObject};
pub use node::{FANOUT, FANOUT_LEAF, Geometry, Node};
pub use slot::TreeSlot;
pub use stall::StallConfig;
pub use trace::{Event, Lane, NoTrace, Trace};
#[cfg(all(feature = "std", not(loom)))]
#[doc(hidden)]
pub use tree::Remembered;
pub use tree::{
    Blocker, Blockers, GpStats, LaneStats, Pending, SendToken, SlotStats, StallReport,
    StallsSuppressed, Token, Tree, TreeStats,
};

#[doc(hidden)]
pub use rcu_core;
/// Makes the trees of this process usable in the child of a `fork`.
#[cfg(all(feature = "std", unix, not(loom)))]
pub use rcu_core::fork::after_fork_child;

/// Makes a static tree over the process's threads, with its worker and a [domain](rcu_core::Domain) type.
///
/// The first `start` starts the thread that drives grace periods, the first `call` also the one that runs callbacks.
/// Starting a thread allocates: if signal handlers are to do either, do it once before.
///
/// ```
/// use rcu_core::{GracePeriod, read_lock};
///
/// rcu_tree::static_tree! {
///     /// Readers of the routing table.
///     pub struct Routes;
/// }
///
/// let guard = read_lock::<Routes>();
/// drop(guard);
/// Routes.synchronize();
/// ```
///
/// After the name there may be any of these, in this order:
///
/// | argument | says | see |
/// |---|---|---|
/// | `callbacks = CallbackConfig` | how callbacks are batched, and when there are too many | [`Tree::with_callbacks`] |
/// | `unsafe free = path` | what frees an object whose head is queued with an offset; the expansion owes the debt of | [`Tree::with_free`] |
/// | `stall = StallConfig` | when and how stalls are told | [`Tree::with_stall`] |
///
/// Expressions are constants, as the tree is.
///
/// ```
/// use rcu_core::GracePeriod;
/// use rcu_tree::{CallbackConfig, StallConfig};
/// use std::ptr::NonNull;
///
/// /// # Safety
/// /// `object` came from a `Box<[u64; 4]>`.
/// unsafe fn free(object: NonNull<u8>) {
///     // SAFETY: the caller's debt.
///     drop(unsafe { Box::from_raw(object.cast::<[u64; 4]>().as_ptr()) });
/// }
///
/// rcu_tree::static_tree! {
///     struct Objects,
///     callbacks = CallbackConfig::new().qhimark(5_000),
///     unsafe free = free,
///     stall = StallConfig::never();
/// }
///
/// Objects.synchronize();
/// ```
#[cfg(all(feature = "std", not(loom)))]
#[macro_export]
macro_rules! static_tree {
    ($(#[$m:meta])* $vis:vis struct $name:ident $(, callbacks = $callbacks:expr)? $(, unsafe free = $free:path)? $(, stall = $stall:expr)?;) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        $vis struct $name;

        const _: () = {
            use $crate::rcu_core::cpu::{BiasedLock, MAX_THREAD_SLOTS, PerSlot, Threads};

            const GEOMETRY: $crate::Geometry = $crate::Geometry::new(MAX_THREAD_SLOTS);
            static SLOTS: [$crate::TreeSlot<BiasedLock>; MAX_THREAD_SLOTS] =
                [const { $crate::TreeSlot::new(BiasedLock::new()) }; MAX_THREAD_SLOTS];
            static NODES: [$crate::Node; GEOMETRY.nr_nodes()] =
                [const { $crate::Node::new() }; GEOMETRY.nr_nodes()];
            static TREE: $crate::Tree<'static, Threads> = {
                let slots = PerSlot::from_slice(&SLOTS);
                // SAFETY: a static stays in place for ever, and a thread keeps its slot.
                let tree = unsafe { $crate::Tree::new(Threads, slots, GEOMETRY, &NODES) };
                let tree = tree.with_worker(|| TREE.work());
                let tree = tree.with_forget(|| REMEMBERED.with($crate::Remembered::forget));
                $(let tree = tree.with_callbacks($callbacks);)?
                $(
                    // SAFETY: whoever wrote the macro's second argument vouches for it.
                    let tree = unsafe { tree.with_free($free) };
                )?
                $(let tree = tree.with_stall($stall);)?
                tree
            };

            ::std::thread_local! {
                static REMEMBERED: $crate::Remembered = const { $crate::Remembered::new() };
            }

            #[inline(always)]
            #[track_caller]
            fn enter(tree: &'static $crate::Tree<'static, Threads>) -> $crate::Token {
                // SAFETY: the thread-local is used here only, and `with_forget` forgets it.
                unsafe { tree.enter_remembered(&REMEMBERED) }
            }

            $crate::rcu_core::__domain!(unsafe $name, TREE, $crate::Tree<'static, Threads>, enter);
            $crate::rcu_core::__domain_send!(unsafe $name, TREE, $crate::Tree<'static, Threads>);

            impl $name {
                /// The tree behind the domain.
                #[allow(dead_code)]
                #[must_use]
                $vis fn tree() -> &'static $crate::Tree<'static, Threads> {
                    &TREE
                }
            }
        };
    };
}
