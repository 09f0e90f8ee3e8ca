//! Caches over a `fork`.
//!
//! `fork` shows the child every other thread as it stood between two of its instructions, and none goes on: a lock that one held
//! stays held, what it guards may be half changed. Why not to take such locks in the child and forget what they guard, as RCU
//! itself does there: a cache that forgot its slabs would have to call every later free of theirs foreign. So caches are held over
//! the fork, and then the zone. In a process of threads, `rcu_core::fork::hold_still` does so around every `fork`, whoever
//! calls it, for each [`RawCache`](crate::RawCache), [`Kmalloc`] and zone that is listed there (a `GlobalKmalloc` lists itself). Who has slots
//! of another kind, and forks by itself, does by hand what that does:
//!
//! 1. prepare: [`Kmalloc::before_fork`], `Zone::before_fork`;
//! 2. parent: drops both values, the zone's first;
//! 3. child: [`rcu_core::fork::after_fork_child`], then `after_fork_child` of both, the zone's first.
//!
//! All caches and zones on the same slots are held, not only those that the child will use: a thread that ends in the child visits
//! every one of them. Either all of them by hand or all as they are listed: a thread that ends may wait for what is held by hand, and the
//! list for that thread.
//!
//! # What the child finds
//! Every object is where it was: with a user, in a slot's sheaf, waiting, in the barn, in its slab. Sheaves of threads that are gone
//! stay in their slots for the next threads there, or until somebody visits. An object that another thread had just been
//! given, or was just giving back outside of all locks, is lost, as is everything else of that thread's.

use crate::cache::CacheFork;
#[cfg(all(feature = "std", unix, not(loom)))]
use crate::cache::RawCache;
use crate::kmalloc::{HugeHeld, Kmalloc, NR_CLASSES};
use core::array;
use core::fmt;
use pagealloc::PageAlloc;
use rcu_core::cpu::Cpus;
#[cfg(all(feature = "std", unix, not(loom)))]
use rcu_core::fork::HoldStill;
use rcu_core::{GracePeriod, fence};

/// An allocator that nobody is inside of, from [`Kmalloc::before_fork`]. Dropping it is [`Self::after_fork_parent`].
#[must_use = "others go on as soon as this is dropped"]
pub struct KmallocFork<'a, C: Cpus, P: PageAlloc, G: GracePeriod> {
    caches: [CacheFork<'a, C, P, G>; NR_CLASSES],
    _huge: HugeHeld<'a>,
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Kmalloc<C, P, G> {
    /// Waits until nobody is inside one of the caches, and keeps everybody out until the value is dropped. See
    /// [`RawCache::before_fork`](crate::RawCache::before_fork). One heavy fence for all caches and slots together.
    pub fn before_fork(&self) -> KmallocFork<'_, C, P, G> {
        let caches = self.caches();
        let announced = caches.each_ref().map(|cache| cache.announce());
        fence::heavy();
        KmallocFork {
            caches: array::from_fn(|class| caches[class].hold(announced[class])),
            _huge: self.hold_huge(),
        }
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> KmallocFork<'_, C, P, G> {
    /// Lets others go on, in the parent.
    pub fn after_fork_parent(self) {}

    /// Makes the allocator usable in the child.
    ///
    /// # Safety
    /// As for [`CacheFork::after_fork_child`].
    pub unsafe fn after_fork_child(self) {
        for cache in self.caches {
            // SAFETY: the caller's debt.
            unsafe { cache.after_fork_child() };
        }
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> fmt::Debug for KmallocFork<'_, C, P, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KmallocFork").finish_non_exhaustive()
    }
}

#[cfg(all(feature = "std", unix, not(loom)))]
impl<C: Cpus, P: PageAlloc, G: GracePeriod> HoldStill for RawCache<C, P, G> {
    type Held<'a>
        = CacheFork<'a, C, P, G>
    where
        Self: 'a;

    fn hold(&self) -> Self::Held<'_> {
        self.before_fork()
    }

    unsafe fn let_go_in_child<'a>(held: Self::Held<'a>)
    where
        Self: 'a,
    {
        // SAFETY: the caller's debt.
        unsafe { held.after_fork_child() };
    }
}

#[cfg(all(feature = "std", unix, not(loom)))]
impl<C: Cpus, P: PageAlloc, G: GracePeriod> HoldStill for Kmalloc<C, P, G> {
    type Held<'a>
        = KmallocFork<'a, C, P, G>
    where
        Self: 'a;

    fn hold(&self) -> Self::Held<'_> {
        self.before_fork()
    }

    unsafe fn let_go_in_child<'a>(held: Self::Held<'a>)
    where
        Self: 'a,
    {
        // SAFETY: the caller's debt.
        unsafe { held.after_fork_child() };
    }
}
