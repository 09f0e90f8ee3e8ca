//! Objects linked by their heads that were retired while the slot's lock was taken, or without a slot.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `heads` | the objects | pushed by compare-exchange, taken whole |
//! | `bytes` | their bytes, all of them charged | added before the push, taken after the take |
//! | `objects` | how many they are | added before the push, subtracted after the take |
//!
//! # Invariants
//! - I1. `bytes` counts every object in `heads`; it may count some that are still on their way, or some that are taken, if others are still on
//!   their way. When all are in and taken it is zero, and what the takes said is what the pushes said.
//!
//! # Orderings
//! - P8 (hand-over), in [`HeadStack`]: a push that was taken has its bytes in.

use core::ptr::NonNull;
use rcu_core::sync::atomic::{AtomicUsize, Ordering};
use rcu_core::{CbList, Head, HeadStack};

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    heads: HeadStack,
    bytes: AtomicUsize,
    objects: AtomicUsize,
}

impl Shared {
    rcu_core::const_fn! {
        pub(crate) const fn new() -> Self {
            Self {
                heads: HeadStack::new(),
                bytes: AtomicUsize::new(0),
                objects: AtomicUsize::new(0),
            }
        }
    }

    /// Hands an object over by its head; true if nothing was there before. The caller has charged its bytes.
    ///
    /// # Safety
    /// 1. Those of [`HeadStack::push`].
    pub(crate) unsafe fn push(&self, head: NonNull<Head>, bytes: usize) -> bool {
        // ORDERING: Relaxed: a number, which the push hands over (I1).
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        // ORDERING: Relaxed: as above.
        self.objects.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's debt 1.
        unsafe { self.heads.push(head) }
    }

    /// Takes all objects, and their bytes.
    pub(crate) fn take(&self) -> (CbList, usize) {
        let heads = self.heads.take();
        if heads.is_empty() {
            // Of objects that are on their way.
            return (heads, 0);
        }
        // ORDERING: Relaxed: a number; what was taken is counted (I1).
        self.objects.fetch_sub(heads.len(), Ordering::Relaxed);
        // ORDERING: Relaxed: a number; the bytes of what was taken are in (I1).
        (heads, self.bytes.swap(0, Ordering::Relaxed))
    }

    /// Forgets what was on its way from a thread that is gone: in the child of a fork, once all was taken.
    pub(crate) fn reset_after_fork(&self) {
        // ORDERING: Relaxed: there is one thread.
        self.bytes.store(0, Ordering::Relaxed);
        // ORDERING: Relaxed: as above.
        self.objects.store(0, Ordering::Relaxed);
    }

    /// Bytes that are about to be taken.
    pub(crate) fn bytes(&self) -> usize {
        // ORDERING: Relaxed: a number for reports.
        self.bytes.load(Ordering::Relaxed)
    }

    /// Objects that are about to be taken.
    pub(crate) fn objects(&self) -> usize {
        // ORDERING: Relaxed: a number for reports.
        self.objects.load(Ordering::Relaxed)
    }
}
