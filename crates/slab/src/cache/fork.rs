//! Every lock of a cache, held over a fork: see [`crate::fork`].

use super::slot::SlotState;
use super::{Inner, RawCache};
use crate::barn::Stock;
use crate::checks::Quarantine;
use crate::pool::Free;
use crate::slabs::Slabs;
use core::fmt;
use core::mem::forget;
use pagealloc::PageAlloc;
use rcu_core::cpu::{Cpus, Slot, SpinGuard};
use rcu_core::{GracePeriod, fence};

/// A cache that nobody is inside of, from [`RawCache::before_fork`]. Dropping it is [`Self::after_fork_parent`].
#[must_use = "others go on as soon as this is dropped"]
pub struct CacheFork<'a, C: Cpus, P: PageAlloc, G: GracePeriod> {
    inner: &'a Inner<C, P, G>,
    /// Slots below this are held, by forgotten guards.
    nr: usize,
    _locks: Locks<'a>,
}

/// The shared locks, in their order.
struct Locks<'a> {
    _barn: SpinGuard<'a, Stock>,
    _quarantine: SpinGuard<'a, Quarantine>,
    _slabs: SpinGuard<'a, Slabs>,
    _sheaves: SpinGuard<'a, Free>,
    _descriptors: SpinGuard<'a, Free>,
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> RawCache<C, P, G> {
    /// Waits until nobody is inside the cache, and keeps everybody out until the value is dropped, the caller too, who would wait for
    /// itself (for ever, if the value is forgotten): for the one who forks. Others may be held
    /// as well, in an order that all who fork keep to; where the pages come from is held last. Not from a signal handler or a hook.
    pub fn before_fork(&self) -> CacheFork<'_, C, P, G> {
        let announced = self.announce();
        fence::heavy();
        self.hold(announced)
    }

    /// Announces a visit to every slot that may hold sheaves, and says how many those are: for who holds many caches, with one fence.
    pub(crate) fn announce(&self) -> usize {
        let nr = self.inner().nr_used();
        for local in self.inner().used().take(nr) {
            local.cell.announce_visit();
        }
        nr
    }

    /// Takes every lock, in their order; [`Self::announce`], which gave the number, and then a heavy fence were called.
    pub(crate) fn hold(&self, announced: usize) -> CacheFork<'_, C, P, G> {
        let inner = self.inner();
        for local in inner.used().take(announced) {
            // Left by `CacheFork`.
            forget(local.cell.complete_visit());
        }
        let mut nr = announced;
        loop {
            while nr < inner.nr_used() {
                // As above.
                forget(inner.slot(Slot::new(nr as u32)).cell.visit());
                nr += 1;
            }
            let locks = Locks {
                _barn: inner.barn.0.enter(),
                _quarantine: inner.quarantine.0.lock(),
                _slabs: inner.slabs.0.lock(),
                _sheaves: inner.sheaves.0.hold(),
                _descriptors: inner.descriptors.0.hold(),
            };
            // A slot that came since may have got a sheaf before the locks were taken: once more, in order. One that comes from
            // now on gets none.
            if inner.nr_used() == nr {
                return CacheFork {
                    inner,
                    nr,
                    _locks: locks,
                };
            }
        }
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> CacheFork<'_, C, P, G> {
    /// Lets others go on, in the parent.
    pub fn after_fork_parent(self) {}

    /// Makes the cache usable in the child.
    ///
    /// # Safety
    /// 1. This is the child of a fork that the caller did while it had this value, and its only thread.
    pub unsafe fn after_fork_child(mut self) {
        // All that there ever were: a thread on a slot that is not marked as used yet may have been looking into its cell.
        for slot in 0..self.inner.cpus.nr_seen() {
            let local = self.inner.slot(Slot::new(slot as u32));
            // SAFETY: there is no other thread (1), and this one's guard was forgotten.
            let (mut state, whole) = unsafe { local.cell.seize() };
            // Those held from before the fork are whole. The others were never given a sheaf.
            if slot >= self.nr && !whole {
                *state = SlotState::default();
            }
        }
        // Left already.
        self.nr = 0;
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Drop for CacheFork<'_, C, P, G> {
    fn drop(&mut self) {
        for local in self.inner.used().take(self.nr) {
            // SAFETY: `hold` forgot this slot's guard, and slots are left once.
            unsafe { local.cell.unvisit() };
        }
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> fmt::Debug for CacheFork<'_, C, P, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheFork").finish_non_exhaustive()
    }
}
