//! Holding all classes still while the process forks.

use super::Kmalloc;
use crate::cache::RawCache;
use pagealloc::PageAlloc;
use rcu_core::GracePeriod;
use rcu_core::cpu::Cpus;
use rcu_core::fence;

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Kmalloc<C, P, G> {
    /// Takes every lock, until [`Self::let_go`]: no object is half way between two places then. One heavy fence for all slots together.
    ///
    /// Nobody has a slot of the number `nr_slots` or more, and nobody gets one meanwhile; nobody is in the pages.
    pub(crate) fn hold(&self, nr_slots: usize) {
        for cache in &self.caches {
            cache.announce(nr_slots);
        }
        fence::heavy();
        // All slots of all caches before anything shared: an owner inside may wait for its barn.
        for cache in &self.caches {
            cache.hold_slots(nr_slots);
        }
        self.caches.iter().for_each(RawCache::hold_shared);
        self.huge.hold();
    }

    /// Lets go of every lock.
    ///
    /// # Safety
    /// 1. The caller called [`Self::hold`] with the same number; or, if `is_child`, is the only thread of a child of who did.
    pub(crate) unsafe fn let_go(&self, nr_slots: usize, is_child: bool) {
        // SAFETY: 1.
        unsafe { self.huge.let_go() };
        for cache in &self.caches {
            // SAFETY: 1.
            unsafe { cache.let_go(nr_slots, is_child) };
        }
    }
}
