//! Allocation: a pop from `main`, and what happens when that is empty.
//!
//! # Order of the sources
//! `main`; the spare; the eldest sheaf of the slot's own line if its grace period has passed (**the
//! array itself becomes `main`**); a full sheaf of the barn; an orphan that is ripe; a sheaf refilled
//! from the fullest slabs; a new slab; an object taken from a slab singly, when no sheaf can be had.
//!
//! # The fast path
//! On x86-64 with `Threads`: 23 instructions, of which 7 load, 3 store and 5 are branches that are not taken. No locked instruction, no
//! fence, no call, nothing through the stack. `free` and `retire` are the same with one store more. (Read off the assembly of a release
//! build, with the handle in a register.)
//!
//! What the local lock guards is looked at again each time it is entered: while it was left, the
//! slot may have been drained, or refilled by whoever interrupted, or the caller may have moved (H3).

use super::slot::SlotState;
use super::{Inner, RawCache};
use crate::barn::Stock;
use crate::pool::lock;
use crate::sheaf::Sheaf;
use crate::slabs::{Dying, Slab};
use crate::stats::Event;
use core::hint::black_box;
use core::mem::MaybeUninit;
use core::panic::Location;
use core::ptr::NonNull;
use pagealloc::{AllocError, Attempt, PageAlloc};
use rcu_core::GracePeriod;
use rcu_core::cpu::{Cpus, SpinGuard};

impl<C: Cpus, P: PageAlloc, G: GracePeriod> RawCache<C, P, G> {
    /// Allocates an object; its contents are unspecified. May make system calls for more pages.
    ///
    /// # Errors
    /// If no memory can be had, see [`AllocError`].
    ///
    /// # Complexity
    /// A hit is a slot look-up, the local lock (no locked instruction and no fence with `Threads`) and a pop.
    #[inline]
    #[track_caller]
    #[doc(alias = "kmem_cache_alloc")]
    pub fn alloc(&self) -> Result<NonNull<u8>, AllocError> {
        self.alloc_attempt(Attempt::MayGrow)
    }

    /// Allocates an object, going as far as `attempt` when the slot's sheaves are empty: waits for no lock at
    /// [`Attempt::TryLock`] and below, and may come in signal handlers and interrupts there.
    ///
    /// # Errors
    /// If no memory can be had within `attempt`, see [`AllocError`].
    #[inline]
    #[track_caller]
    #[doc(alias = "kmalloc_nolock")]
    pub fn alloc_attempt(&self, attempt: Attempt) -> Result<NonNull<u8>, AllocError> {
        if let Some(local) = self.local() {
            // SAFETY: the slot is the caller's, from `current` just now.
            if let Some(mut slot) = unsafe { local.cell.try_enter() }
                && let Some(object) = slot.main.pop()
            {
                self.inner().reveal(object);
                return Ok(object);
            }
        }
        let (object, error) = self.alloc_slow_in_registers(attempt);
        object.ok_or(error)
    }

    /// `alloc_slow` for the fast path: a pair comes back in registers, where a `Result` goes through memory, for
    /// which the fast path would have to store its own result too. The error means nothing beside an object.
    ///
    /// Of the handle, so that the fast path need not load what is behind it.
    #[cold]
    #[inline(never)]
    #[track_caller]
    fn alloc_slow_in_registers(&self, attempt: Attempt) -> (Option<NonNull<u8>>, AllocError) {
        // Opaque: else the compiler passes what is behind the handle, which the fast path has to load then.
        match black_box(self).inner().alloc_slow(attempt) {
            Ok(object) => (Some(object), AllocError::Exhausted),
            Err(error) => (None, error),
        }
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Inner<C, P, G> {
    #[track_caller]
    pub(super) fn alloc_slow(&self, attempt: Attempt) -> Result<NonNull<u8>, AllocError> {
        let result = self.alloc_hidden(attempt);
        if let Ok(object) = result {
            self.reveal(object);
        }
        result
    }

    #[inline(always)]
    #[track_caller]
    fn alloc_hidden(&self, attempt: Attempt) -> Result<NonNull<u8>, AllocError> {
        self.settle_deferred(attempt);
        if self.shape.is_checked() {
            return self.alloc_checked(attempt, Location::caller());
        }
        if self.shape.is_delayed() {
            return self.alloc_delayed(attempt);
        }
        let Some(local) = self.local() else {
            return self.alloc_shared(attempt);
        };
        let mut may_drive = true;
        let vessel = loop {
            // SAFETY: the slot is the caller's, from `current` just now.
            let Some(mut slot) = (unsafe { local.cell.try_enter() }) else {
                return self.alloc_shared(attempt);
            };
            if let Some(object) = slot.main.pop() {
                return Ok(object);
            }
            slot.counts.alloc_misses = slot.counts.alloc_misses.wrapping_add(1);
            if self.renew_main(&mut slot, self.number_of(local), attempt) {
                if let Some(object) = slot.main.pop() {
                    return Ok(object);
                }
                continue;
            }
            // Nothing ripe, though this slot asked for a grace period: push it on, once.
            let may_ripen = !slot.line.is_empty() && !self.gp.poll(self.asking().asked());
            if may_drive && may_ripen {
                drop(slot);
                may_drive = false;
                self.gp.drive();
                continue;
            }
            break slot.take_empty();
        };
        let vessel = vessel.or_else(|| self.barn.0.lock(attempt)?.take_empty());
        match vessel.map_or_else(|| self.new_sheaf(attempt), Ok) {
            Ok(vessel) => self.alloc_refilled(vessel, attempt),
            Err(_) => self.alloc_shared(attempt),
        }
    }

    /// A sheaf with objects that are free to hand out, of the slot's own.
    pub(super) fn own_sheaf(&self, slot: &mut SlotState) -> Option<Sheaf> {
        if let Some(spare) = slot.take_spare_full() {
            self.tally(Event::Swap);
            return Some(spare);
        }
        let ripe = self.hide_ripe(slot.take_ripe(&self.gp)?);
        slot.counts.recycled = slot.counts.recycled.wrapping_add(1);
        self.count_let_go(ripe.len());
        Some(ripe)
    }

    /// Such a sheaf of the barn's, for the slot of that number.
    pub(super) fn barn_sheaf(
        &self,
        slot: &mut SlotState,
        stock: &mut Stock,
        number: usize,
    ) -> Option<Sheaf> {
        if let Some(full) = stock.take_full(number) {
            self.tally(Event::BarnGet);
            return Some(full);
        }
        self.tally(Event::BarnGetFail);
        self.ripe_orphan(slot, stock)
    }

    /// The eldest of what waits in the barn, if it is ripe.
    fn ripe_orphan(&self, slot: &mut SlotState, stock: &mut Stock) -> Option<Sheaf> {
        let orphan = self.hide_ripe(stock.take_ripe(&self.gp)?);
        slot.counts.recycled = slot.counts.recycled.wrapping_add(1);
        self.count_let_go(orphan.len());
        Some(orphan)
    }

    /// Installs a sheaf with objects that are free to hand out, if there is one without asking the slabs. An emptied one that is not
    /// wanted as spare goes to the barn, under the same hold of its lock.
    fn renew_main(&self, slot: &mut SlotState, number: usize, attempt: Attempt) -> bool {
        if let Some(own) = self.own_sheaf(slot) {
            if let Some(emptied) = slot.renew_main(own) {
                self.stow_empty(emptied, self.barn.0.lock(attempt));
            }
            return true;
        }
        let Some(mut stock) = self.barn.0.lock(attempt) else {
            return false;
        };
        let Some(sheaf) = self.barn_sheaf(slot, &mut stock, number) else {
            return false;
        };
        let mut emptied = [slot.renew_main(sheaf), None];
        // Another one under the same hold, so that the next time needs no lock. Not in line, where a barrier that has been here would
        // not look for it again: what is ripe is free to hand out.
        if slot.spare.as_ref().is_none_or(Sheaf::is_empty)
            && let Some(ripe) = self.ripe_orphan(slot, &mut stock)
        {
            emptied[1] = slot.spare.replace(ripe);
        }
        for sheaf in emptied.into_iter().flatten() {
            if let Err(sheaf) = stock.put_empty(sheaf) {
                self.drop_sheaf(sheaf);
            }
        }
        true
    }

    /// Puts a sheaf without objects away.
    fn stow_empty(&self, sheaf: Sheaf, stock: Option<SpinGuard<'_, Stock>>) {
        let kept = match stock {
            Some(mut stock) => stock.put_empty(sheaf),
            None => Err(sheaf),
        };
        if let Err(sheaf) = kept {
            self.drop_sheaf(sheaf);
        }
    }

    /// Fills `vessel`, takes an object out of it, and installs it.
    fn alloc_refilled(
        &self,
        mut vessel: Sheaf,
        attempt: Attempt,
    ) -> Result<NonNull<u8>, AllocError> {
        self.tally(Event::Refill);
        let filled = self.refill(&mut vessel, attempt);
        let object = vessel.pop();
        let mut surplus = Some(vessel);
        if let Some(local) = self.local() {
            // SAFETY: the slot is the caller's, from `current` just now.
            if let Some(mut slot) = unsafe { local.cell.try_enter() }
                && let Some(vessel) = surplus.take()
            {
                surplus = if slot.main.len() == 0 {
                    slot.renew_main(vessel)
                } else if slot.spare.is_none() {
                    slot.spare.replace(vessel)
                } else {
                    Some(vessel)
                };
            }
        }
        if let Some(sheaf) = surplus {
            let mut dying = Dying::default();
            self.stow(sheaf, attempt, &mut dying);
            self.bury(dying, attempt);
        }
        match object {
            Some(object) => Ok(object),
            // Another slot's free may have come to the barn since.
            None => filled
                .and(Err(AllocError::Exhausted))
                .or_else(|e| self.alloc_last(attempt, e)),
        }
    }

    /// Puts objects from the slabs into `vessel`: as many as partial slabs have, and at least a quarter of it or
    /// a slab's worth if pages can be had.
    pub(super) fn refill(&self, vessel: &mut Sheaf, attempt: Attempt) -> Result<(), AllocError> {
        let enough = vessel.cap().div_ceil(4);
        let mut born: Option<NonNull<Slab>> = None;
        loop {
            {
                let Some(mut slabs) = lock(&self.slabs.0, attempt) else {
                    self.unborn(born, attempt);
                    return Err(AllocError::Contended);
                };
                if let Some(slab) = born.take() {
                    // SAFETY: the descriptor came from `new_slab`.
                    unsafe { slabs.add(slab, &self.shape) };
                }
                let got = slabs.refill(&self.shape, vessel.places());
                // SAFETY: `refill` wrote that many.
                unsafe { vessel.count_up(got) };
            }
            if vessel.len() >= enough {
                return Ok(());
            }
            match self.new_slab(attempt) {
                Ok(slab) => born = Some(slab),
                Err(_) if !vessel.is_empty() => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Allocates where freed objects wait: never from `main`, of which there is none, so that the fast path of `free`
    /// finds no room and the fast path of `alloc` no object.
    fn alloc_delayed(&self, attempt: Attempt) -> Result<NonNull<u8>, AllocError> {
        if let Some(local) = self.local() {
            // SAFETY: the slot is the caller's, from `current` just now.
            if let Some(mut slot) = unsafe { local.cell.try_enter() } {
                let spare = slot.spare.as_mut().and_then(Sheaf::pop);
                if let Some(object) = spare {
                    return Ok(object);
                }
                if let Some(mut ripe) = slot.take_ripe(&self.gp) {
                    self.count_let_go(ripe.len());
                    let object = ripe.pop();
                    let emptied = slot.spare.replace(ripe);
                    drop(slot);
                    if let Some(emptied) = emptied {
                        self.stow(emptied, attempt, &mut Dying::default());
                    }
                    if let Some(object) = object {
                        return Ok(object);
                    }
                }
            }
        }
        self.alloc_shared(attempt)
    }

    /// Allocates without a slot or a sheaf: one object from the slabs, then from the barn, then from new pages.
    fn alloc_shared(&self, attempt: Attempt) -> Result<NonNull<u8>, AllocError> {
        let mut born: Option<NonNull<Slab>> = None;
        loop {
            let mut object = [const { MaybeUninit::uninit() }];
            let mut got = 0;
            match lock(&self.slabs.0, attempt) {
                Some(mut slabs) => {
                    if let Some(slab) = born.take() {
                        // SAFETY: the descriptor came from `new_slab`.
                        unsafe { slabs.add(slab, &self.shape) };
                    }
                    got += slabs.refill(&self.shape, &mut object);
                }
                None => {
                    self.unborn(born, attempt);
                    return self.alloc_last(attempt, AllocError::Contended);
                }
            }
            if got > 0 {
                self.tally(Event::AllocSingle);
                // SAFETY: `refill` wrote it.
                return Ok(unsafe { object[0].assume_init() });
            }
            if let Some(object) = self.take_from_barn(attempt) {
                return Ok(object);
            }
            born = Some(self.new_slab(attempt)?);
        }
    }

    /// What is left to try when the slabs and the pages failed with `error`.
    fn alloc_last(&self, attempt: Attempt, error: AllocError) -> Result<NonNull<u8>, AllocError> {
        self.take_from_barn(attempt).ok_or(error)
    }

    /// One object from the barn's sheaves.
    fn take_from_barn(&self, attempt: Attempt) -> Option<NonNull<u8>> {
        let mut dying = Dying::default();
        let mut sheaf = {
            let mut stock = self.barn.0.lock(attempt)?;
            match stock.take_any() {
                Some(sheaf) => sheaf,
                None => {
                    let orphan = self.hide_ripe(stock.take_ripe(&self.gp)?);
                    self.count_let_go(orphan.len());
                    orphan
                }
            }
        };
        let object = sheaf.pop();
        self.stow(sheaf, attempt, &mut dying);
        self.bury(dying, attempt);
        object
    }
}
