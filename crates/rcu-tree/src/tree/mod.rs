//! The tree RCU: readers, grace periods and callbacks, put together over the caller's memory.
//!
//! # Life of a slot
//! A thread's first section (or callback) brings its slot online: the tree is told, a full fence, the word says so.
//! When the thread ends, its callbacks go to the orphans and the slot leaves the tree. If the thread ends *inside*
//! a section (a guard in another thread-local), the slot lingers: the last exit takes it offline.
//!
//! # Invariants
//! - I1. The offline hook is listed before the first slot comes online, and until the tree is dropped.
//! - I2. Only the owner of a slot changes its word and its place in the tree.

mod calls;
mod fork;
mod misuse;
mod read;
#[cfg(all(feature = "std", not(loom)))]
mod remember;
mod report;
mod send;
mod stats;
mod strict;
mod wait;

pub use calls::Pending;
pub use read::Token;
#[cfg(all(feature = "std", not(loom)))]
pub use remember::Remembered;
pub use report::{Blocker, Blockers, StallReport, StallsSuppressed};
pub use send::SendToken;
pub use stats::{GpStats, LaneStats, SlotStats, TreeStats};

use crate::callbacks::{Callbacks, FreeObject, Lists};
use crate::gp_counts::GpCounts;
use crate::gp_seq::Sequences;
use crate::machine::{Machine, World};
use crate::node::{Geometry, Node, Nodes};
use crate::place::Place;
use crate::shared_readers::SharedReaders;
use crate::slot::TreeSlot;
use crate::stall::Stalls;
use crate::trace::{Event, Lane, NoTrace, Trace};
use crate::waiters::Waiters;
use crate::worker::Worker;
use core::cell::UnsafeCell;
use core::fmt;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use crossbeam_utils::CachePadded;
use rcu_core::cpu::{Cpus, LocalLock, OfflineHook, PerSlot};
use rcu_core::sync::atomic::{AtomicUsize, Ordering};

/// RCU for many CPUs (or threads): wait-free readers, a tree that combines what they report.
///
/// Lives over memory of the caller: an array of [`TreeSlot`]s and one of [`Node`]s. For a static one with its
/// worker thread and a domain type, see `static_tree!`.
///
/// ```
/// use rcu_core::cpu::{BiasedLock, Cpus, PerSlot, Threads};
/// use rcu_core::{GracePeriod, Rcu};
/// use rcu_tree::{Geometry, Node, Tree, TreeSlot};
///
/// let slots: Vec<_> = (0..Threads.nr_slots()).map(|_| TreeSlot::new(BiasedLock::new())).collect();
/// let geometry = Geometry::new(slots.len());
/// let nodes: Vec<_> = (0..geometry.nr_nodes()).map(|_| Node::new()).collect();
/// // SAFETY: the tree is neither moved nor forgotten below; a thread keeps its slot.
/// let tree = unsafe { Tree::new(Threads, PerSlot::from_slice(&slots), geometry, &nodes) };
///
/// let guard = tree.read_lock();
/// let cookie = tree.start();
/// tree.drive();
/// assert!(!tree.poll(cookie));
/// drop(guard);
/// tree.wait(cookie);
/// assert!(tree.poll(cookie));
/// ```
#[doc(alias = "rcu_state")]
pub struct Tree<'a, C: Cpus, T: Trace = NoTrace> {
    cpus: C,
    slots: PerSlot<'a, TreeSlot<C::Lock>>,
    nodes: Nodes<'a>,
    gp: Sequences,
    machines: [Machine; Lane::ALL.len()],
    waiters: [Waiters; Lane::ALL.len()],
    policy: wait::Policy,
    shared: SharedReaders,
    /// Where a section of no slot was entered last.
    shared_place: Place,
    callbacks: Callbacks,
    worker: Worker,
    /// `UNLISTED`, `LISTED`, or who is at it (see `fork`).
    hooked: CachePadded<AtomicUsize>,
    hook: UnsafeCell<MaybeUninit<OfflineHook>>,
    /// Of the normal and the expedited lane.
    counts: [GpCounts; 2],
    stalls: Stalls,
    /// Makes the calling thread forget its word, for good (`remember`).
    forget: Option<fn()>,
    trace: T,
}

// SAFETY: `hook` is written by one thread, before it is listed (I1 of `fork`); everything else is `Sync`.
unsafe impl<C: Cpus + Sync, T: Trace + Sync> Sync for Tree<'_, C, T> {}
// SAFETY: before the first use nothing refers to the tree's address; afterwards it stays in place (`new`).
unsafe impl<C: Cpus + Send, T: Trace + Send> Send for Tree<'_, C, T> {}

impl<'a, C: Cpus> Tree<'a, C> {
    rcu_core::const_fn! {
        /// A tree over the caller's memory, with `cpus.nr_slots()` slots and the nodes that `geometry` counts.
        ///
        /// # Panics
        /// If the arrays' lengths do not match the geometry.
        ///
        /// # Safety
        /// 1. From its first use until it has been dropped, the tree stays in place: the list of offline hooks
        ///    points into it. A static does; so does a local that is not moved or forgotten after its first use.
        ///    `static_tree!` needs no `unsafe`.
        /// 2. Guarantee 2 of [`Cpus`] holds whatever the lock asks for, and nobody leaves its slot inside a section (in a
        ///    kernel: preemption is off from enter to exit). The reader's word has one owner, who does not lock it.
        /// 3. `slots` and `nodes` are as they were made (or all zero, where they may be): no other tree uses them, nor has used
        ///    them before.
        ///
        /// See [the type](Tree) for an example.
        #[must_use]
        pub const unsafe fn new(
            cpus: C,
            slots: PerSlot<'a, TreeSlot<C::Lock>>,
            geometry: Geometry,
            nodes: &'a [Node],
        ) -> Self {
            // SAFETY: the caller's debts.
            unsafe { Self::traced(cpus, slots, geometry, nodes, NoTrace) }
        }
    }
}

impl<'a, C: Cpus, T: Trace> Tree<'a, C, T> {
    rcu_core::const_fn! {
        /// As [`Tree::new`], telling `trace` what happens.
        ///
        /// # Panics
        /// If the arrays' lengths do not match the geometry.
        ///
        /// # Safety
        /// As for [`Tree::new`].
        ///
        /// The example of [the type](Tree) holds for it, with one argument more.
        #[must_use]
        pub const unsafe fn traced(
            cpus: C,
            slots: PerSlot<'a, TreeSlot<C::Lock>>,
            geometry: Geometry,
            nodes: &'a [Node],
            trace: T,
        ) -> Self {
            assert!(slots.len() == geometry.nr_slots(), "not as many slots as the geometry says");
            Self {
                cpus,
                slots,
                nodes: Nodes::new(geometry, nodes),
                gp: Sequences::new(),
                machines: [Machine::new(), Machine::new()],
                waiters: [Waiters::new(), Waiters::new()],
                policy: wait::Policy::new(),
                shared: SharedReaders::new(),
                shared_place: Place::new(),
                callbacks: Callbacks::new(),
                worker: Worker::new(),
                hooked: CachePadded::new(AtomicUsize::new(fork::UNLISTED)),
                hook: UnsafeCell::new(MaybeUninit::uninit()),
                counts: [GpCounts::new(), GpCounts::new()],
                stalls: Stalls::new(),
                forget: None,
                trace,
            }
        }
    }

    /// Gives the tree a way to free objects, for [`Callback::Free`](rcu_core::Callback::Free).
    ///
    /// # Safety
    /// 1. `free` may be called with any object whose head is queued with an offset, once, from any thread.
    ///
    /// ```
    /// # use rcu_core::cpu::{BiasedLock, Cpus, PerSlot, Threads};
    /// # use rcu_tree::{Geometry, Node, Tree, TreeSlot};
    /// # use std::ptr::NonNull;
    /// /// # Safety
    /// /// `object` was a leaked box of four words, and is given up.
    /// unsafe fn free(object: NonNull<u8>) {
    ///     // SAFETY: the caller's debt.
    ///     drop(unsafe { Box::from_raw(object.cast::<[u64; 4]>().as_ptr()) });
    /// }
    /// # let slots: Vec<_> = (0..Threads.nr_slots()).map(|_| TreeSlot::new(BiasedLock::new())).collect();
    /// # let geometry = Geometry::new(slots.len());
    /// # let nodes: Vec<_> = (0..geometry.nr_nodes()).map(|_| Node::new()).collect();
    /// # // SAFETY: the tree is neither moved nor forgotten below; a thread keeps its slot.
    /// # let tree = unsafe { Tree::new(Threads, PerSlot::from_slice(&slots), geometry, &nodes) };
    /// // SAFETY: what is queued with an offset in this program are such boxes.
    /// let tree = unsafe { tree.with_free(free) };
    /// # let _ = tree;
    /// ```
    #[must_use]
    pub const unsafe fn with_free(mut self, free: FreeObject) -> Self {
        self.callbacks.set_free(free);
        self
    }

    /// Gives the tree its threads, one that drives grace periods and one that runs callbacks: `main` is run on each, at
    /// first need, and is to call [`Self::work`] on this same tree, which must be static.
    #[cfg(feature = "std")]
    #[must_use]
    pub const fn with_worker(mut self, main: fn()) -> Self {
        self.worker.set_main(main);
        self
    }

    fn machine(&self, lane: Lane) -> &Machine {
        &self.machines[lane.index()]
    }

    fn world(&self, lane: Lane) -> World<'_, 'a, C::Lock, T> {
        // A slot that is only a hint may be somebody else's by now.
        let owned = <C::Lock as LocalLock>::NEEDS_OWNER;
        World {
            lane,
            gp: &self.gp,
            nodes: &self.nodes,
            slots: &self.slots,
            shared: &self.shared,
            own: if owned {
                self.cpus.current_if_online()
            } else {
                None
            },
            trace: &self.trace,
            counts: self.counts(lane),
            stalls: &self.stalls,
        }
    }

    fn counts(&self, lane: Lane) -> &GpCounts {
        &self.counts[lane.index()]
    }

    fn lists(&self) -> Lists<'_, 'a, C::Lock, T> {
        Lists {
            gp: self.gp.polled(),
            nodes: &self.nodes,
            slots: &self.slots,
            trace: &self.trace,
        }
    }

    fn kick(&self) {
        if self.worker.kick_driver() {
            self.trace.event(Event::Wakeup);
        }
    }
}

impl<C: Cpus, T: Trace> Drop for Tree<'_, C, T> {
    /// Waits for and runs every callback that is still queued.
    fn drop(&mut self) {
        /// Takes the hook off (I1), also when waiting panics, as a stall report may.
        struct Unlist<'t, 'a, C: Cpus, T: Trace>(&'t mut Tree<'a, C, T>);
        impl<C: Cpus, T: Trace> Drop for Unlist<'_, '_, C, T> {
            fn drop(&mut self) {
                // ORDERING: Relaxed: exclusive access.
                if self.0.hooked.load(Ordering::Relaxed) == fork::LISTED {
                    // SAFETY: written before `hooked` became `LISTED`.
                    let hook = unsafe { self.0.hook.get_mut().assume_init_mut() };
                    let hook = NonNull::from(hook);
                    // SAFETY: the tree's hook; the tree is about to go.
                    unsafe { self.0.cpus.remove_offline_hook(hook) };
                }
            }
        }
        Unlist(self).0.wait_for_callbacks();
    }
}

impl<C: Cpus, T: Trace> fmt::Debug for Tree<'_, C, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree")
            .field("gp", &self.gp)
            .field("geometry", self.nodes.geometry())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
