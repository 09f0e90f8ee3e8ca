//! Freeing: a push to `main`, and what happens when that is full.
//!
//! # Order of the places
//! `main`; the spare; a full sheaf goes to the barn for an empty one; a full sheaf is flushed to the
//! slabs; with no sheaf to be had, the object goes to its slab singly (H4). It never fails.
//!
//! The first object that a slot frees which has no sheaf yet goes to its slab too: it came from another slot, whose objects beside it
//! may share its cache line. Were it the first to be allocated here, and then again and again, both would write that line for ever.

use super::{Inner, RawCache};
use crate::slabs::Dying;
use core::ptr::NonNull;
use core::slice;
use pagealloc::{Attempt, PageAlloc};
use rcu_core::GracePeriod;
use rcu_core::cpu::Cpus;

impl<C: Cpus, P: PageAlloc, G: GracePeriod> RawCache<C, P, G> {
    /// Frees an object for reuse at once. Not from signal handlers and interrupts: see [`Self::retire`].
    ///
    /// # Safety
    /// 1. `object` came from this cache, is not used any more, and was neither freed nor retired since.
    /// 2. No reader can still find it (else retire it).
    #[inline]
    #[doc(alias = "kmem_cache_free")]
    pub unsafe fn free(&self, object: NonNull<u8>) {
        if let Some(local) = self.local() {
            // SAFETY: the slot is the caller's, from `current` just now.
            if let Some(mut slot) = unsafe { local.cell.try_enter() }
                && slot.main.push(object)
            {
                return;
            }
        }
        self.inner().free_slow(object);
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Inner<C, P, G> {
    #[cold]
    #[inline(never)]
    pub(super) fn free_slow(&self, object: NonNull<u8>) {
        const ATTEMPT: Attempt = Attempt::NoWait;
        let Some(local) = self.local() else {
            return self.free_shared(slice::from_ref(&object));
        };
        let (mut vessel, surplus, is_first) = {
            // SAFETY: the slot is the caller's, from `current` just now.
            let Some(mut slot) = (unsafe { local.cell.try_enter() }) else {
                return self.free_shared(slice::from_ref(&object));
            };
            if slot.main.push(object) {
                return;
            }
            slot.counts.free_misses = slot.counts.free_misses.wrapping_add(1);
            // `main` is full, or there is none. A spare with room takes its place, and it the spare's.
            if let Some(spare) = slot.spare.take_if(|s| !s.is_full()) {
                slot.spare = slot.main.install(spare);
                let pushed = slot.main.push(object);
                debug_assert!(pushed, "a spare with room");
                return;
            }
            let is_first = slot.main.is_vacant() && slot.spare.is_none();
            // The spare is full, or there is none. The full `main` becomes the spare, and the spare goes to the barn for an empty
            // sheaf, all under one hold of its lock.
            let surplus = match slot.main.uninstall() {
                Some(full) => slot.spare.replace(full),
                None => None,
            };
            let mut stock = self.barn.0.enter();
            let exchanged = match surplus {
                Some(full) => stock.exchange(full, self.number_of(local)),
                None => Ok(stock.take_empty()),
            };
            drop(stock);
            match exchanged {
                Ok(Some(vessel)) if is_first => (Some(vessel), None, true),
                Ok(Some(vessel)) => {
                    let old = slot.main.install(vessel);
                    debug_assert!(old.is_none(), "T16: a sheaf was overwritten");
                    let pushed = slot.main.push(object);
                    debug_assert!(pushed, "an empty sheaf has room");
                    return;
                }
                Ok(None) => (None, None, is_first),
                Err(full) => (None, Some(full), false),
            }
        };
        if let Some(full) = surplus {
            let mut dying = Dying::default();
            // Enough in the barn: the objects go to their slabs, and what held them is wanted here.
            match self.flush(full, ATTEMPT, &mut dying) {
                Ok(emptied) => vessel = Some(emptied),
                Err(full) => self.barn.0.leave(full),
            }
            self.bury(dying, ATTEMPT);
        }
        let vessel = vessel.map_or_else(|| self.new_sheaf(ATTEMPT), Ok);
        let Ok(mut vessel) = vessel else {
            return self.free_shared(slice::from_ref(&object));
        };
        if is_first {
            self.free_shared(slice::from_ref(&object));
        } else {
            let pushed = vessel.push(object);
            debug_assert!(pushed, "an empty sheaf has room");
        }
        let mut rest = Some(vessel);
        if let Some(local) = self.local() {
            // SAFETY: the slot is the caller's, from `current` just now.
            if let Some(mut slot) = unsafe { local.cell.try_enter() }
                && let Some(vessel) = rest.take()
            {
                rest = if slot.main.is_vacant() {
                    slot.main.install(vessel)
                } else if slot.spare.is_none() {
                    slot.spare.replace(vessel)
                } else {
                    Some(vessel)
                };
            }
        }
        if let Some(sheaf) = rest {
            let mut dying = Dying::default();
            self.stow(sheaf, ATTEMPT, &mut dying);
            self.bury(dying, ATTEMPT);
        }
    }

    /// Frees without a slot or a sheaf: straight to the slabs.
    pub(super) fn free_shared(&self, objects: &[NonNull<u8>]) {
        let mut dying = Dying::default();
        let (shape, pages) = (&self.shape, &self.pages);
        self.slabs
            .0
            .lock()
            .put(self.identity(), shape, pages, objects, &mut dying);
        self.bury(dying, Attempt::NoWait);
    }
}
