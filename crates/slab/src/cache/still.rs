//! Holding a cache still while the process forks.
//!
//! # Invariants
//! - I1. While all locks are held, each object is with its user, in a sheaf that lies where it belongs, or in its slab; or in the hands of a
//!   thread in the middle of a slow path, which holds none of the locks then. In the child that thread is gone, and what it had
//!   in its hands is lost: at most two sheaves or a slab for each of the parent's threads.

use super::{Inner, RawCache};
use core::mem::forget;
use pagealloc::PageAlloc;
use rcu_core::GracePeriod;
use rcu_core::cpu::{Cpus, Slot};

use super::slot::SlotCell;

impl<C: Cpus, P: PageAlloc, G: GracePeriod> RawCache<C, P, G> {
    /// Announces a visit to every slot below `nr_slots`.
    pub(crate) fn announce(&self, nr_slots: usize) {
        let cells = self.inner().cells(nr_slots);
        cells.for_each(|local| local.cell.announce_visit());
    }

    /// Enters them all, after a heavy fence, and stays.
    pub(crate) fn hold_slots(&self, nr_slots: usize) {
        let cells = self.inner().cells(nr_slots);
        cells.for_each(|local| forget(local.cell.complete_visit()));
    }

    /// Takes what the slots share, in the lock order, and keeps it.
    pub(crate) fn hold_shared(&self) {
        let inner = self.inner();
        forget(inner.barn.0.enter());
        forget(inner.slabs.0.lock());
        inner.sheaves.0.hold();
        inner.descriptors.0.hold();
    }

    /// Lets go of all of them.
    ///
    /// # Safety
    /// 1. The caller called the three above, with the same number; or, if `is_child`, is the only thread of a child of who did.
    pub(crate) unsafe fn let_go(&self, nr_slots: usize, is_child: bool) {
        let inner = self.inner();
        // SAFETY: held since `hold_shared` (1).
        unsafe { inner.descriptors.0.let_go() };
        // SAFETY: as above.
        unsafe { inner.sheaves.0.let_go() };
        // SAFETY: as above.
        unsafe { inner.slabs.0.unlock_forgotten() };
        // SAFETY: as above.
        unsafe { inner.barn.0.let_go() };
        for local in inner.cells(nr_slots) {
            if is_child {
                // An owner may have been about to find that it may not enter. What is inside is whole, for the visitor was this thread.
                // SAFETY: there is no other thread (1).
                drop(unsafe { local.cell.seize() });
            } else {
                // SAFETY: held since `hold_slots` (1).
                unsafe { local.cell.leave_forgotten() };
            }
        }
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Inner<C, P, G> {
    fn cells(&self, nr_slots: usize) -> impl Iterator<Item = &SlotCell<C::Lock>> {
        let nr = nr_slots.min(self.cpus.nr_slots());
        (0..nr).map(|i| self.slot(Slot::new(i as u32)))
    }
}
