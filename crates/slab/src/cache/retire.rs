//! Retiring: a push to `rcu`, and the sealing of full sheaves.
//!
//! # Policy
//! A sealed sheaf takes a cookie by `snapshot`, which asks for nothing. A grace period is *asked for* when the objects
//! that were sealed since the last asking pass a threshold (8192, or 512 KiB of them) and the eldest sheaf in line is not
//! ripe; and while one that was asked for is on its way, every seal pushes it on a step. One heavy fence per sheaf of 509
//! would cost several times as much as one per sixteen.
//!
//! A thread that retires and never allocates does not consume its line. Above twice the threshold it lets two ripe
//! sheaves go with every one it seals, to the barn or the slabs: the line shrinks, and no call does more than that.

use super::slot::SlotState;
use super::{Inner, RawCache};
use crate::slabs::Dying;
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
    /// Gives the object back if the slot is busy (the caller interrupted it, or is without a slot) or no memory for a sheaf can be
    /// had without waiting. The object is then still the caller's: try later, or wait for a grace period and [`free`](Self::free) it.
    ///
    /// # Safety
    /// 1. `object` came from this cache, and was neither freed nor retired since.
    /// 2. No *new* reader can find it; readers that have found it stay within their sections.
    #[inline]
    #[doc(alias = "kfree_rcu")]
    #[doc(alias = "__kfree_rcu_sheaf")]
    pub unsafe fn retire(&self, object: NonNull<u8>) -> Result<(), NonNull<u8>> {
        // SAFETY: the caller's debts.
        unsafe { self.retire_attempt(object, ATTEMPT) }
    }

    /// Frees an object for reuse after a grace period, going as far as `attempt` for a sheaf when the slot needs one: above
    /// [`Attempt::TryLock`] it waits for spin locks, and so fails only without a slot or without memory.
    ///
    /// # Errors
    /// As for [`Self::retire`], within `attempt`.
    ///
    /// # Safety
    /// As for [`Self::retire`]. Above `TryLock`, not from signal handlers and interrupts.
    #[inline]
    pub unsafe fn retire_attempt(
        &self,
        object: NonNull<u8>,
        attempt: Attempt,
    ) -> Result<(), NonNull<u8>> {
        if let Some(local) = self.local() {
            // SAFETY: the slot is the caller's, from `current` just now.
            if let Some(mut slot) = unsafe { local.cell.try_enter() }
                && slot.rcu.push(object)
            {
                return Ok(());
            }
        }
        self.inner().retire_slow(object, attempt)
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Inner<C, P, G> {
    #[cold]
    #[inline(never)]
    pub(super) fn retire_slow(
        &self,
        object: NonNull<u8>,
        attempt: Attempt,
    ) -> Result<(), NonNull<u8>> {
        let Some(local) = self.local() else {
            return Err(object);
        };
        let (placed, ask, has_let_go) = {
            // SAFETY: the slot is the caller's, from `current` just now.
            let Some(mut slot) = (unsafe { local.cell.try_enter() }) else {
                return Err(object);
            };
            if slot.rcu.push(object) {
                return Ok(());
            }
            let sealed = slot.seal(&self.gp);
            self.count_waiting(sealed);
            let has_let_go = self.let_go(&mut slot);
            let vessel = slot
                .take_empty()
                .or_else(|| self.barn.0.lock(attempt)?.take_empty());
            let mut placed = false;
            if let Some(vessel) = vessel {
                let old = slot.rcu.install(vessel);
                debug_assert!(old.is_none(), "T16: a sheaf was overwritten");
                placed = slot.rcu.push(object);
            }
            let ask = slot.should_ask(&self.gp, self.shape.ask_objects);
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
        if result.is_ok()
            && let Some(watch) = self.shape.watch
        {
            watch();
        }
        if ask {
            local.set_asked(self.gp.start());
            self.gp.drive();
        } else if !self.gp.poll(local.asked()) {
            self.gp.drive();
        }
        result
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
                retired = slot.rcu.push(object);
                if !retired
                    && slot.rcu.is_vacant()
                    && let Some(vessel) = vessel.take()
                {
                    let old = slot.rcu.install(vessel);
                    debug_assert!(old.is_none(), "T16: a sheaf was overwritten");
                    retired = slot.rcu.push(object);
                }
            }
        }
        if let Some(vessel) = vessel {
            // Somebody else brought one meanwhile, or the slot is busy.
            self.stow(vessel, attempt, &mut Dying::default());
        }
        if retired { Ok(()) } else { Err(object) }
    }

    /// Lets ripe sheaves go that this slot will not consume itself, to the barn whatever that has. Inside the local lock, so
    /// that the objects are never on the way from place to place while a barrier looks (I1).
    fn let_go(&self, slot: &mut SlotState) -> bool {
        if slot.line.objects() <= 2 * self.shape.ask_objects {
            return false;
        }
        let Some(mut stock) = self.barn.0.lock(ATTEMPT) else {
            return false;
        };
        self.flush_line(slot, &mut stock, LET_GO) > 0
    }
}
