//! What the tree keeps for one slot.

use crate::callbacks::SlotCalls;
use crate::place::{self, Caller, Place};
use crate::reader::{ReaderWord, Seen};
use crate::trace::Lane;
use core::fmt;
use crossbeam_utils::CachePadded;
use rcu_core::cpu::LocalLock;
use rcu_core::sync::atomic::{AtomicUsize, Ordering};

/// One slot of a tree. The reader's word has a line of its own; the rest is touched when
/// callbacks are queued or run, or when a grace period finds the reader inside.
///
/// Its size is a power of two, so that a slot's address is a shift and an addition.
#[repr(C, align(256))]
#[doc(alias = "rcu_data")]
pub struct TreeSlot<L> {
    pub(crate) reader: CachePadded<ReaderWord>,
    pub(crate) calls: SlotCalls<L>,
    /// What each lane's driver saw of `reader` when it first found it inside; the drivers' own.
    pub(crate) first_seen: [AtomicUsize; Lane::ALL.len()],
    /// Where the owner entered its section; no field where places are not kept.
    pub(crate) place: Place,
}

#[cfg(not(loom))]
static_assertions::const_assert!(
    size_of::<TreeSlot<rcu_core::cpu::BiasedLock>>().is_power_of_two()
);

impl<L: LocalLock> TreeSlot<L> {
    rcu_core::const_fn! {
        /// A slot of nobody, given an unlocked lock.
        pub const fn new(lock: L) -> Self {
            Self {
                reader: CachePadded::new(ReaderWord::new()),
                calls: SlotCalls::new(lock),
                first_seen: [AtomicUsize::new(0), AtomicUsize::new(0)],
                place: Place::new(),
            }
        }
    }

    /// Notes where the owner has just entered, if that was the outermost level. No code where places are not kept.
    #[inline(always)]
    pub(crate) fn entered(&self, caller: Caller) {
        if place::KEPT && self.reader.nesting() == 1 {
            self.place.note(caller);
        }
    }

    /// What the driver of `lane` saw when it first found the slot inside.
    pub(crate) fn first_seen(&self, lane: Lane) -> Seen {
        // ORDERING: Relaxed: a report for people.
        Seen::from_raw(self.first_seen[lane.index()].load(Ordering::Relaxed))
    }
}

impl<L: LocalLock> fmt::Debug for TreeSlot<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeSlot")
            .field("reader", &*self.reader)
            .field("calls", &self.calls)
            .finish_non_exhaustive()
    }
}
