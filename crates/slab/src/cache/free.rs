//! Freeing: a push to `main`, and what happens when that is full.
//!
//! # Order of the places
//! `main`; the spare; a full sheaf goes to the barn for an empty one; a full sheaf is flushed to the
//! slabs; with no sheaf to be had, the object goes to its slab singly (H4). It never fails.
//!
//! # Where nobody may wait
//! At [`Attempt::TryLock`] and below every lock is only tried, and when the last one, the slabs', is taken, the object is
//! *deferred*: it goes on a list to which anyone can add without waiting, by a word of its own memory (behind the object where
//! that must stay as it is), and whoever comes the slow way next, or the monitor, puts it into its slab (L12).
//!
//! Why plain `free` does not do that always: threads that meet at a lock are through in the time that a deferred object costs, and a
//! list that nobody waits at has no bound.
//!
//! The first object that a slot frees which has no sheaf yet goes to its slab too: it came from another slot, whose objects beside it
//! may share its cache line. Were it the first to be allocated here, and then again and again, both would write that line for ever.

use super::{Inner, RawCache};
use crate::checks::Move;
use crate::pool::lock;
use crate::slabs::Dying;
use crate::stats::Event;
use core::hint::black_box;
use core::panic::Location;
use core::ptr::NonNull;
use core::slice;
use pagealloc::{Attempt, PageAlloc};
use rcu_core::GracePeriod;
use rcu_core::cpu::Cpus;

impl<C: Cpus, P: PageAlloc, G: GracePeriod> RawCache<C, P, G> {
    /// Frees an object for reuse at once. Not from signal handlers and interrupts: see [`Self::free_attempt`].
    ///
    /// # Safety
    /// 1. `object` came from this cache, is not used any more, and was neither freed nor retired since.
    /// 2. No reader can still find it (else retire it), but for those of a type-stable cache who know that it may be another object by
    ///    now, and leave their section before long.
    ///
    /// ```
    /// # use core::alloc::Layout;
    /// # use pagealloc::{Attempt, Mmap, Zone};
    /// # use rcu_core::{NoReaders, cpu::Threads};
    /// # use slab::{CacheConfig, RawCache};
    /// # let zone: &'static _ = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    /// # let config = CacheConfig::new("example", Layout::new::<[u64; 4]>());
    /// # let cache = RawCache::new(config, Threads, zone, NoReaders).unwrap();
    /// let object = cache.alloc().unwrap();
    /// // SAFETY: from this cache, and nobody else has it.
    /// unsafe { cache.free(object) };
    /// assert_eq!(cache.stats().live, 0);
    /// ```
    #[inline]
    #[track_caller]
    #[doc(alias = "kmem_cache_free")]
    pub unsafe fn free(&self, object: NonNull<u8>) {
        self.inner().hide(object);
        if let Some(local) = self.local() {
            // SAFETY: the slot is the caller's, from `current` just now.
            if let Some(mut slot) = unsafe { local.cell.try_enter() }
                && slot.main.push(object)
            {
                return;
            }
        }
        self.free_slow(object, Attempt::NoWait);
    }

    /// Frees an object for reuse, going as far as `attempt`. At [`Attempt::TryLock`] and below it waits for nobody, and may come in
    /// signal handlers and interrupts; an object that finds every lock taken is deferred: it counts as free, and is used again after
    /// the next call that needs one of the locks, or [`Self::reap`].
    ///
    /// # Safety
    /// As for [`Self::free`]. Above `TryLock`, not from signal handlers and interrupts.
    ///
    /// ```
    /// # use core::alloc::Layout;
    /// # use pagealloc::{Attempt, Mmap, Zone};
    /// # use rcu_core::{NoReaders, cpu::Threads};
    /// # use slab::{CacheConfig, RawCache};
    /// # let zone: &'static _ = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    /// # let config = CacheConfig::new("example", Layout::new::<[u64; 4]>());
    /// # let cache = RawCache::new(config, Threads, zone, NoReaders).unwrap();
    /// let object = cache.alloc().unwrap();
    /// // In an interrupt handler.
    /// // SAFETY: from this cache, and nobody else has it; `TryLock` may be from there.
    /// unsafe { cache.free_attempt(object, Attempt::TryLock) };
    /// ```
    #[inline]
    #[track_caller]
    #[doc(alias = "kfree_nolock")]
    #[doc(alias = "defer_free")]
    pub unsafe fn free_attempt(&self, object: NonNull<u8>, attempt: Attempt) {
        self.inner().hide(object);
        if let Some(local) = self.local() {
            // SAFETY: the slot is the caller's, from `current` just now.
            if let Some(mut slot) = unsafe { local.cell.try_enter() }
                && slot.main.push(object)
            {
                return;
            }
        }
        self.free_slow(object, attempt);
    }

    /// Of the handle, so that the fast path need not load what is behind it.
    #[cold]
    #[inline(never)]
    #[track_caller]
    pub(super) fn free_slow(&self, object: NonNull<u8>, attempt: Attempt) {
        // Opaque: see `alloc_slow_in_registers`.
        black_box(self).inner().free_slow(object, attempt);
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Inner<C, P, G> {
    #[track_caller]
    fn free_slow(&self, object: NonNull<u8>, attempt: Attempt) {
        self.settle_deferred(attempt);
        if self.shape.is_delayed() {
            return self.free_delayed(object, attempt, Location::caller());
        }
        if self.shape.is_checked() {
            return self.free_checked(object, attempt, Location::caller());
        }
        let Some(local) = self.local() else {
            return self.free_shared(object, attempt);
        };
        let (mut vessel, surplus, is_first) = {
            // SAFETY: the slot is the caller's, from `current` just now.
            let Some(mut slot) = (unsafe { local.cell.try_enter() }) else {
                return self.free_shared(object, attempt);
            };
            if slot.main.push(object) {
                return;
            }
            slot.counts.free_misses = slot.counts.free_misses.wrapping_add(1);
            // `main` is full, or there is none. A spare with room takes its place, and it the spare's.
            if let Some(spare) = slot.spare.take_if(|s| !s.is_full()) {
                slot.spare = slot.main.install(spare);
                self.tally(Event::Swap);
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
            let is_surplus = surplus.is_some();
            let exchanged = match (self.barn.0.lock(attempt), surplus) {
                (Some(mut stock), Some(full)) => stock.exchange(full, self.number_of(local)),
                (Some(mut stock), None) => Ok(stock.take_empty()),
                (None, Some(full)) => Err(full),
                (None, None) => Ok(None),
            };
            if is_surplus {
                self.tally(match exchanged {
                    Ok(_) => Event::BarnPut,
                    Err(_) => Event::BarnPutFail,
                });
            }
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
            self.tally(Event::FlushMain);
            // Enough in the barn: the objects go to their slabs, and what held them is wanted here.
            match self.flush(full, attempt, &mut dying) {
                Ok(emptied) => vessel = Some(emptied),
                Err(full) => self.barn.0.leave(full),
            }
            self.bury(dying, attempt);
        }
        let vessel = vessel.map_or_else(|| self.new_sheaf(attempt), Ok);
        let Ok(mut vessel) = vessel else {
            return self.free_shared(object, attempt);
        };
        if is_first {
            self.free_shared(object, attempt);
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
            self.stow(sheaf, attempt, &mut dying);
            self.bury(dying, attempt);
        }
    }

    /// Frees where freed objects wait. What finds no array to wait in is free at once, which a type-stable object may be.
    fn free_delayed(&self, object: NonNull<u8>, attempt: Attempt, by: &'static Location<'static>) {
        match self.retire_as(object, attempt, Move::Delay, by) {
            Ok(()) => {}
            Err(object) if self.shape.is_checked() => self.free_checked(object, attempt, by),
            Err(object) => self.free_shared(object, attempt),
        }
    }

    /// Frees without a slot or a sheaf: straight to the slabs.
    fn free_shared(&self, mut object: NonNull<u8>, attempt: Attempt) {
        let mut dying = Dying::default();
        match lock(&self.slabs.0, attempt) {
            Some(mut slabs) => {
                self.tally(Event::FreeSingle);
                let (shape, pages) = (&self.shape, &self.pages);
                let objects = slice::from_mut(&mut object);
                slabs.put(self.identity(), shape, pages, objects, &mut dying);
            }
            None => self.defer(object),
        }
        self.bury(dying, attempt);
    }

    /// Leaves a free object for whoever has the slabs' lock next. Never waits.
    pub(super) fn defer(&self, object: NonNull<u8>) {
        self.tally(Event::FreeDefer);
        // SAFETY: the word is inside the object's part of its slab (`Shape::link_at`).
        let link = unsafe { object.byte_offset(self.shape.link_at) };
        self.reveal_link(link);
        let link = link.cast();
        // SAFETY: the object is free, so the word is nobody's, and is left alone until it is taken off the list.
        unsafe { self.deferred.push(link) };
    }

    /// Puts what was deferred into its slabs, if `attempt` allows to take their lock now.
    pub(super) fn settle_deferred(&self, attempt: Attempt) {
        if self.deferred.is_empty() {
            return;
        }
        let mut dying = Dying::default();
        {
            let Some((mut kept, mut slabs)) = self.home(attempt) else {
                return;
            };
            let mut next = self.deferred.take_all();
            while let Some(link) = next {
                // SAFETY: the word was written by `defer`, and the object is this call's.
                next = unsafe { link.as_ref() }.next;
                // SAFETY: the link lies that far from the object's start.
                let object = unsafe { link.byte_offset(-self.shape.link_at) }.cast();
                self.hide(object);
                self.give_back(object, &mut kept, &mut slabs, &mut dying);
            }
        }
        self.bury(dying, attempt);
    }
}
