//! What the tree keeps for one slot.

use crate::reader::ReaderWord;
use crate::trace::Lane;
use core::fmt;
use core::ptr::NonNull;
use crossbeam_utils::CachePadded;
use rcu_core::cpu::{LocalCell, LocalLock};
use rcu_core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use rcu_core::{Head, SegList};

/// One slot of a tree. The reader's word has a line of its own; the rest is touched when
/// callbacks are queued or run, or when a grace period finds the reader inside.
///
/// Its size is a power of two, so that a slot's address is a shift and an addition.
#[repr(C, align(256))]
pub struct TreeSlot<L> {
    pub(crate) reader: CachePadded<ReaderWord>,
    pub(crate) callbacks: LocalCell<L, SegList>,
    /// Whether `callbacks` is not empty, kept under its lock; read without it by who looks for work.
    pub(crate) has_callbacks: AtomicUsize,
    /// What each lane's driver saw of `reader` when it first found it inside; the drivers' own.
    pub(crate) first_seen: [AtomicUsize; Lane::ALL.len()],
    pub(crate) barrier: BarrierHead,
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
                callbacks: LocalCell::new(lock, SegList::new()),
                has_callbacks: AtomicUsize::new(0),
                first_seen: [AtomicUsize::new(0), AtomicUsize::new(0)],
                barrier: BarrierHead::new(),
            }
        }
    }

    /// Notes whether the list holds callbacks. Call with the list's lock held.
    pub(crate) fn note(&self, list: &SegList) {
        let now = usize::from(!list.is_empty());
        // ORDERING: Relaxed: under the local lock; readers of the hint come by again or are ordered by
        // the worker's full fence (see `worker`).
        if self.has_callbacks.load(Ordering::Relaxed) != now {
            // ORDERING: Relaxed: as above.
            self.has_callbacks.store(now, Ordering::Relaxed);
        }
    }
}

impl<L: LocalLock> fmt::Debug for TreeSlot<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeSlot")
            .field("reader", &*self.reader)
            .field("callbacks", &self.callbacks)
            .finish_non_exhaustive()
    }
}

/// A head that a barrier queues behind a slot's callbacks; one barrier at a time uses it.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct BarrierHead {
    head: Head,
    count: AtomicPtr<AtomicUsize>,
}

impl BarrierHead {
    rcu_core::const_fn! {
        pub(crate) const fn new() -> Self {
            Self { head: Head::new(), count: AtomicPtr::new(core::ptr::null_mut()) }
        }
    }

    /// Arms the head to take one off `count` when it is run, and returns it for queueing.
    pub(crate) fn arm(&self, count: &AtomicUsize) -> NonNull<Head> {
        // ORDERING: Relaxed: handed over with the head, by the list's lock.
        self.count
            .store(core::ptr::from_ref(count).cast_mut(), Ordering::Relaxed);
        self.head
            .set_callback(rcu_core::Callback::Run(Self::arrived));
        NonNull::from(self).cast::<Head>()
    }

    /// # Safety
    /// 1. `head` came from `arm`, and the count it was armed with is still there.
    unsafe fn arrived(head: NonNull<Head>) {
        // SAFETY: the head is the first field of a `BarrierHead` and was derived from all of it.
        let this = unsafe { head.cast::<Self>().as_ref() };
        // ORDERING: Relaxed: handed over with the head.
        let count = this.count.load(Ordering::Relaxed);
        // SAFETY: the count outlives the barrier, which has not returned before this decrement.
        let count = unsafe { &*count };
        // ORDERING: P4 (callback's return / barrier's return): Release meets the barrier's Acquire.
        count.fetch_sub(1, Ordering::Release);
    }
}
