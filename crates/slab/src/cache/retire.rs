//! Retiring: a push to `rcu`, and the sealing of full sheaves.
//!
//! # Policy
//! A sealed sheaf takes a cookie by `snapshot`, which asks for nothing. A grace period is *asked for* when the objects
//! that were sealed since the last asking, on all slots and in all size classes together, pass a threshold (20480, or 1280 KiB of them); and
//! while one that was asked for is on its way, every seal pushes it on a step. One heavy fence per sheaf of 509 would cost several times as much as one per forty.
//!
//! A slot keeps a share of what waits in its own line, whose objects its CPU's caches may still have, and leaves the rest to all. So as much
//! is in flight as one asking covers, however many slots there are and whoever of them allocates.
//!
//! Where nobody allocates, the line is not consumed. Above one and a half times the threshold whoever seals a sheaf lets two ripe ones go, to
//! the barn or the slabs: the line shrinks, and no call does more than that.
//!
//! Above a little more than the threshold, who may sleep lingers: a grace period that does not end though it is pushed waits for a reader
//! that has lost its CPU, which it gets back sooner if this thread leaves one. See `waiting`.
//!
//! Above the cache's limit of what may wait, nothing more is sealed: a full `rcu` stays, objects go back to their retirers, and each
//! such call lets two ripe sheaves go and pushes the grace period.

use super::slot::SlotState;
use super::{Inner, RawCache};
use crate::checks::Move;
use crate::slabs::Dying;
use crate::stats::Event;
use core::hint::black_box;
use core::panic::Location;
use core::ptr::NonNull;
use pagealloc::{Attempt, PageAlloc};
use rcu_core::GracePeriod;
use rcu_core::cpu::Cpus;

/// How far a retiring thread goes for memory and locks unless it says otherwise: it waits for nobody.
const ATTEMPT: Attempt = Attempt::TryLock;

/// Ripe sheaves let go with each one sealed, above twice the threshold.
const LET_GO: usize = 2;

impl<C: Cpus, P: PageAlloc, G: GracePeriod> RawCache<C, P, G> {
    /// Frees an object for reuse after a grace period. Never waits; may come in read sections, signal handlers and interrupts.
    ///
    /// # Errors
    /// Gives the object back if the slot is busy (the caller interrupted it, or is without a slot), if no memory for a sheaf can be
    /// had without waiting, or if as much waits as [may](crate::CacheConfig::waiting_limit). The object is then still the caller's: try later, or wait for a grace period and [`free`](Self::free) it.
    ///
    /// # Safety
    /// 1. `object` came from this cache, and was neither freed nor retired since.
    /// 2. No *new* reader can find it; readers that have found it stay within their sections.
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
    /// // … published, used, and unlinked …
    /// // SAFETY: from this cache, and no new reader can find it.
    /// if let Err(object) = unsafe { cache.retire(object) } {
    ///     // No room now. Where one may wait: for a grace period, then
    ///     // SAFETY: as above, and no reader is left.
    ///     unsafe { cache.free(object) };
    /// }
    /// cache.barrier();
    /// ```
    #[inline]
    #[track_caller]
    #[doc(alias = "kfree_rcu")]
    #[doc(alias = "__kfree_rcu_sheaf")]
    pub unsafe fn retire(&self, object: NonNull<u8>) -> Result<(), NonNull<u8>> {
        // SAFETY: the caller's debts.
        unsafe { self.retire_attempt(object, ATTEMPT) }
    }

    /// As [`Self::retire`], if all it takes is a push: says whether it was that. Then nothing was looked at, counted or sealed, so that who
    /// has limits to look at may do so once in a sheaf.
    ///
    /// # Safety
    /// As for [`Self::retire`]; the object is given up if true comes back.
    ///
    /// See [`Self::retire`] for an example.
    #[inline(always)]
    #[must_use]
    pub unsafe fn retire_hit(&self, object: NonNull<u8>) -> bool {
        if let Some(local) = self.local() {
            // SAFETY: the slot is the caller's, from `current` just now.
            if let Some(mut slot) = unsafe { local.cell.try_enter() } {
                return slot.rcu.push(object);
            }
        }
        false
    }

    /// Frees an object for reuse after a grace period, going as far as `attempt` for a sheaf when the slot needs one: above
    /// [`Attempt::TryLock`] it waits for spin locks, and so fails only without a slot or without memory.
    ///
    /// At [`Attempt::MayGrow`] it may sleep for more than memory: once in a sheaf, while a sixteenth more waits than one asking covers, it
    /// gives a grace period that does not end some milliseconds (a hundred naps of 50 µs; without `std` some spinning), since a reader that has
    /// lost its CPU gets it back sooner if this thread leaves one. Who comes after one that waited so in vain does not wait for the same
    /// grace period again. A thread that may not sleep takes [`Attempt::NoWait`].
    ///
    /// # Errors
    /// As for [`Self::retire`], within `attempt`.
    ///
    /// # Safety
    /// As for [`Self::retire`]. Above `TryLock`, not from signal handlers and interrupts.
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
    /// // SAFETY: from this cache, no new reader can find it, and this is no interrupt handler.
    /// let taken = unsafe { cache.retire_attempt(object, Attempt::MayGrow) };
    /// assert!(taken.is_ok(), "there is memory");
    /// cache.barrier();
    /// ```
    #[inline]
    #[track_caller]
    pub unsafe fn retire_attempt(
        &self,
        object: NonNull<u8>,
        attempt: Attempt,
    ) -> Result<(), NonNull<u8>> {
        // SAFETY: the caller's debts.
        if unsafe { self.retire_hit(object) } {
            return Ok(());
        }
        self.retire_slow(object, attempt)
    }

    /// Of the handle, so that the fast path need not load what is behind it.
    #[cold]
    #[inline(never)]
    #[track_caller]
    fn retire_slow(&self, object: NonNull<u8>, attempt: Attempt) -> Result<(), NonNull<u8>> {
        // Opaque: see `alloc_slow_in_registers`.
        black_box(self).inner().retire_slow(object, attempt)
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Inner<C, P, G> {
    #[track_caller]
    fn retire_slow(&self, object: NonNull<u8>, attempt: Attempt) -> Result<(), NonNull<u8>> {
        let result = self.retire_as(object, attempt, Move::Retire, Location::caller());
        if result.is_err() {
            self.tally(Event::RetireFail);
        }
        result
    }

    /// Makes an object wait for a grace period, because it is retired or because its frees are delayed.
    pub(super) fn retire_as(
        &self,
        object: NonNull<u8>,
        attempt: Attempt,
        deed: Move,
        by: &'static Location<'static>,
    ) -> Result<(), NonNull<u8>> {
        if !self.shape.is_checked() {
            return self.retire_into_sheaf(object, attempt);
        }
        let found = self
            .claim_retired(object, attempt, deed, by)
            .ok_or(object)?;
        self.retire_into_sheaf(found, attempt).map_err(|found| {
            self.unclaim(found);
            object
        })
    }

    /// Puts an object into `rcu`, which the fast path takes for full.
    fn push_retired(&self, slot: &mut SlotState, object: NonNull<u8>) -> bool {
        if self.shape.is_checked() {
            slot.rcu.push_closed(object)
        } else {
            slot.rcu.push(object)
        }
    }

    fn retire_into_sheaf(&self, object: NonNull<u8>, attempt: Attempt) -> Result<(), NonNull<u8>> {
        let Some(local) = self.local() else {
            return Err(object);
        };
        let (placed, ask, has_let_go) = {
            // SAFETY: the slot is the caller's, from `current` just now.
            let Some(mut slot) = (unsafe { local.cell.try_enter() }) else {
                return Err(object);
            };
            if self.push_retired(&mut slot, object) {
                return Ok(());
            }
            let mut has_let_go = false;
            if self.is_over_limit(slot.rcu.len()) {
                has_let_go = self.make_room(&mut slot);
                if self.is_over_limit(slot.rcu.len()) {
                    drop(slot);
                    return Err(self.over_limit(object, has_let_go));
                }
            }
            let sealed = slot.seal(&self.gp);
            self.count_waiting(sealed);
            has_let_go |= self.let_go(&mut slot);
            self.share(&mut slot);
            let vessel = slot
                .take_empty()
                .or_else(|| self.barn.0.lock(attempt)?.take_empty());
            let mut placed = false;
            if let Some(vessel) = vessel {
                let old = slot.rcu.install(vessel);
                debug_assert!(old.is_none(), "T16: a sheaf was overwritten");
                placed = self.push_retired(&mut slot, object);
            }
            let ask = self.asking().should_ask(self.shape.ask_bytes);
            (placed, ask, has_let_go)
        };
        if has_let_go {
            self.trim_barn(ATTEMPT);
        }
        let result = if placed {
            Ok(())
        } else {
            self.retire_with_new_sheaf(object, attempt)
        };
        if result.is_ok() {
            self.tell_watch();
        }
        if ask {
            self.asking().set_asked(self.gp.start());
            self.gp.drive();
        } else if !self.gp.poll(self.asking().asked()) {
            self.gp.drive();
        }
        if attempt == Attempt::MayGrow && self.asking().weight() > self.shape.crowd_bytes {
            let asked = self.asking().asked();
            if !self.gp.poll(asked) {
                self.asking().linger(asked, &self.gp);
            }
        }
        result
    }

    /// Whether `more` objects would be too many to wait.
    fn is_over_limit(&self, more: usize) -> bool {
        // A budget: what others add meanwhile is a sheaf each.
        more > 0 && self.waiting.0.objects() + more > self.shape.waiting_limit
    }

    /// Lets a few of the slot's ripe sheaves go, and says whether there were any. As [`Self::let_go`] does.
    fn make_room(&self, slot: &mut SlotState) -> bool {
        let Some(mut stock) = self.barn.0.lock(ATTEMPT) else {
            return false;
        };
        let mut gone = self.flush_line(slot, &mut stock, LET_GO);
        while gone < LET_GO
            && let Some(ripe) = stock.take_ripe(&self.gp)
        {
            let ripe = self.hide_ripe(ripe);
            self.count_let_go(ripe.len());
            stock.add_full(ripe);
            gone += 1;
        }
        gone > 0
    }

    /// Gives `object` back because too much waits. Asks for a grace period, unless one that this slot asked for is on its way, and
    /// pushes it.
    #[cold]
    fn over_limit(&self, object: NonNull<u8>, has_let_go: bool) -> NonNull<u8> {
        self.tally(Event::RetireOverLimit);
        if has_let_go {
            self.trim_barn(ATTEMPT);
        }
        if self.gp.poll(self.asking().asked()) {
            self.asking().set_asked(self.gp.start());
        }
        self.gp.drive();
        object
    }

    /// Gets memory for a sheaf, with the local lock left meanwhile, and tries again (H8).
    fn retire_with_new_sheaf(
        &self,
        object: NonNull<u8>,
        attempt: Attempt,
    ) -> Result<(), NonNull<u8>> {
        let Ok(vessel) = self.new_sheaf(attempt) else {
            return Err(object);
        };
        let mut vessel = Some(vessel);
        let mut retired = false;
        if let Some(local) = self.local() {
            // SAFETY: the slot is the caller's, from `current` just now.
            if let Some(mut slot) = unsafe { local.cell.try_enter() } {
                retired = self.push_retired(&mut slot, object);
                if !retired
                    && slot.rcu.is_vacant()
                    && let Some(vessel) = vessel.take()
                {
                    let old = slot.rcu.install(vessel);
                    debug_assert!(old.is_none(), "T16: a sheaf was overwritten");
                    retired = self.push_retired(&mut slot, object);
                }
            }
        }
        if let Some(vessel) = vessel {
            // Somebody else brought one meanwhile, or the slot is busy.
            self.stow(vessel, attempt, &mut Dying::default());
        }
        if retired {
            return Ok(());
        }
        Err(object)
    }

    /// Lets ripe sheaves go that this slot will not consume itself, to the barn whatever that has. Inside the local lock, so
    /// that the objects are never on the way from place to place while a barrier looks (I1).
    fn let_go(&self, slot: &mut SlotState) -> bool {
        let ask = self.shape.ask_bytes;
        self.asking().weight() > ask.saturating_add(ask / 2) && self.make_room(slot)
    }

    /// Leaves what a slot has beyond its share to all, eldest first: else what is ripe in one slot's line would lie there while another
    /// slot asks for pages. Inside the local lock, as above.
    fn share(&self, slot: &mut SlotState) {
        let own = self.shape.own_objects;
        if slot.line.objects() <= own.saturating_mul(2) {
            return;
        }
        let Some(mut stock) = self.barn.0.lock(ATTEMPT) else {
            return;
        };
        while slot.line.objects() > own
            && let Some(eldest) = slot.line.pop_front()
        {
            stock.orphans.push_back(eldest);
        }
    }
}
