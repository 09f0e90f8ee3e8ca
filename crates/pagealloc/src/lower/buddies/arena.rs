//! One arena: a buddy system, its lock, its stash.

use crate::buddy::Buddy;
use crate::index::NONE;
use crate::stash::Stash;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use rcu_core::cpu::{SpinGuard, SpinMutex};

/// What an arena's lock guards.
#[derive(Debug)]
pub(super) struct Free {
    pub(super) buddy: Buddy,
    /// A chain taken from the stash and not worked off yet.
    pub(super) pending: u32,
}

/// A part of the zone's memory with its own lock, in lines of its own (two, for the prefetcher fetches pairs).
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Arena {
    pub(super) free: SpinMutex<Free>,
    /// Beside the lock: whoever writes it has the line.
    pub(super) free_pages: AtomicUsize,
    pub(super) areas: AtomicU32,
    pub(super) stash: Stash,
    /// How often somebody who may wait found the lock taken.
    pub(super) waits: AtomicUsize,
    /// Whoever touches the lock panics: for tests which show that somebody does not.
    #[cfg(debug_assertions)]
    pub(super) forbidden: core::sync::atomic::AtomicBool,
}

// As `lower`'s header says.
#[cfg(not(loom))]
static_assertions::const_assert!(size_of::<Arena>() <= 896);

impl Arena {
    /// An arena without areas.
    pub(super) fn new(buddy: Buddy) -> Self {
        Self {
            free: SpinMutex::new(Free {
                buddy,
                pending: NONE,
            }),
            free_pages: AtomicUsize::new(0),
            areas: AtomicU32::new(0),
            stash: Stash::new(),
            waits: AtomicUsize::new(0),
            #[cfg(debug_assertions)]
            forbidden: core::sync::atomic::AtomicBool::new(false),
        }
    }

    #[inline]
    pub(super) fn touched(&self) {
        #[cfg(debug_assertions)]
        assert!(
            // ORDERING: Relaxed: set before the threads that it is about start.
            !self.forbidden.load(Ordering::Relaxed),
            "an arena's lock is touched"
        );
    }

    pub(super) fn try_lock(&self) -> Option<SpinGuard<'_, Free>> {
        self.touched();
        self.free.try_lock()
    }

    pub(super) fn lock(&self) -> SpinGuard<'_, Free> {
        self.try_lock().unwrap_or_else(|| {
            // ORDERING: Relaxed: a counter.
            self.waits.fetch_add(1, Ordering::Relaxed);
            self.free.lock()
        })
    }

    /// Leaves the arena's lock.
    pub(super) fn leave(&self, free: SpinGuard<'_, Free>) {
        // ORDERING: Relaxed: a report; exact for who has synchronised with the holder.
        self.free_pages
            .store(free.buddy.free_pages(), Ordering::Relaxed);
    }
}
