//! What its own thread frees, on the way.
//!
//! `retire` frees nothing and runs nobody's code: it may be called in a section, in a signal handler, under locks that a destructor takes.
//! What it leaves is the monitor's; but one monitor cannot keep up with a thread that retires as fast as it can, memory that another
//! thread allocated costs the global allocator several times as much to free, and what waits would grow to the limit. So a thread that is in a
//! place where it may have to wait in any case frees some of what its own slot has ripe:
//!
//! | call | frees of what its thread retired before |
//! |---|---|
//! | `retire`, `retire_head…`, `try_retire`, the drop of a box | nothing |
//! | `retire_…_mightsleep` of the allocator's own objects | those that are ripe, when a block fills |
//! | the same of foreign objects without a destructor | a [portion](crate::block::portion) in [`EVERY`] calls |
//! | the same of those with a destructor | the same, of these too |
//! | `RcuBox::new` of a type with a destructor, `GlobalBox::new` | the same; nothing in sections, callbacks and destructors |
//!
//! It brings blocks, too, where there was none to be had: until then such objects go by their heads, and these are the monitor's alone.
//!
//! # Why in small portions
//! The next allocations find what was just freed in the allocator's hands, and in the first cache; and nobody is kept for as long as all
//! that one grace period made ripe. A portion is more than is retired meanwhile, so that a backlog shrinks.
//!
//! For the same reason a grace period is asked for when a [`PART`] of what [`Config`](crate::Config) says has come: what is freed should still be
//! in the cache, and there should always be some that is ripe, so that freeing keeps pace with allocating.
//!
//! # State
//! A slot's `owes`: zero if nothing of this kind is ripe, as far as is known; else after how many calls the next portion is due. A hint, written
//! by the slot's owner: who finds it set in vain clears it; who misses it comes by again when the next block fills.
//!
//! # Invariants
//! - I1. As for every freeing: taken out inside of a round, under the slot's lock, and free when the round ends. A block from which portions
//!   were taken is still in line, so whoever takes everything out finds the rest.
//! - I2. When [`LAG`] times as many blocks as a grace period is asked for are in line, nobody helps, and the monitor is called.

use super::{Inner, KvSlot, Kvfree};
use crate::block::portion::Portion;
use crate::block::{Kind, Line};
use crate::freeing::Freeing;
use crate::glue::contained;
use crate::objects::Objects;
use crate::waiting::Waiting;
use pagealloc::PageAlloc;
use rcu_core::Rcu;
use rcu_core::cpu::Cpus;
use rcu_core::sync::atomic::Ordering;

/// Calls for one portion: fewer than it has objects.
const EVERY: u32 = 7;
const _: () = assert!((EVERY as usize) < crate::block::portion::PORTION);
/// See above.
pub(super) const PART: usize = 4;
/// See I2.
const LAG: usize = 4;

impl<L> KvSlot<L> {
    /// Counts a call of the slot's owner; whether a portion is due.
    #[inline(always)]
    pub(super) fn is_due(&self) -> bool {
        // ORDERING: Relaxed, here and below: a hint of the owner's own.
        match self.owes.load(Ordering::Relaxed) {
            0 => false,
            1 => true,
            more => {
                // ORDERING: Relaxed: as above.
                self.owes.store(more - 1, Ordering::Relaxed);
                false
            }
        }
    }

    fn owe(&self, after: u32) {
        // ORDERING: Relaxed: a hint of the owner's own.
        self.owes.store(after, Ordering::Relaxed);
    }
}

impl<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> Kvfree<C, P, R, O> {
    /// Counts a call by somebody who may wait; whether [`Self::help`] has something to do.
    #[cfg(feature = "std")]
    #[inline]
    pub(crate) fn is_due(&self) -> bool {
        let inner = self.inner();
        let slot = inner.cpus.current().map(|number| inner.slot(number));
        slot.is_some_and(KvSlot::is_due)
    }

    /// Frees a portion of what the caller's slot has ripe: with destructors, unless the caller is one, if it makes or retires things that
    /// have some, of this `kind`. It is in no section and no callback. Whether there was one.
    #[cold]
    #[inline(never)]
    pub(crate) fn help(&self, kind: Kind) -> bool {
        let inner = self.inner();
        let slot = inner.cpus.current().map(|number| inner.slot(number));
        slot.is_some_and(|slot| inner.free_portion(slot, kind))
    }
}

impl<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> Inner<C, P, R, O> {
    /// Whether who may sleep frees objects of this kind itself.
    pub(super) fn may_free(&self, kind: Kind) -> bool {
        !kind.runs_foreign_code() || (self.config.helps && !self.is_freeing())
    }

    /// Notes, when a block of the slot's owner went in line, whether a portion is ripe. Whether nobody seems to take any.
    pub(super) fn note_ripe(
        &self,
        slot: &KvSlot<C::Lock>,
        waiting: &mut Waiting,
        kind: Kind,
    ) -> bool {
        if !kind.is_foreign() || (kind.runs_foreign_code() && !self.config.helps) {
            return false;
        }
        // ORDERING: Relaxed: a hint of the owner's own.
        if slot.owes.load(Ordering::Relaxed) == 0
            && waiting.has_portion(&self.rcu, self.config.helps)
        {
            slot.owe(1);
        }
        let nr = waiting.blocks_in_line();
        nr > 0 && nr.is_multiple_of(self.config.ask_blocks.saturating_mul(LAG))
    }

    /// Notes that an object found no block: who helps may wait for a page, and brings some.
    pub(super) fn note_starved(&self, slot: &KvSlot<C::Lock>, kind: Kind) {
        if kind.is_foreign() {
            slot.owe(1);
        }
    }

    /// Frees a portion of what is ripe on the caller's slot, whose lock is not held. Whether there was one.
    fn free_portion(&self, slot: &KvSlot<C::Lock>, kind: Kind) -> bool {
        let Some(round) = slot.rounds.begin() else {
            slot.owe(EVERY);
            return false;
        };
        // SAFETY: the caller's own slot, and it is not inside.
        let Some(mut waiting) = (unsafe { slot.waiting.try_enter() }) else {
            return false;
        };
        let foreign = kind.runs_foreign_code() && self.may_free(kind);
        let mut portion = Portion::none();
        waiting.take_portion(&mut portion, &self.rcu, foreign);
        let starved = slot.most_stock() > 0 && waiting.take_starved();
        drop(waiting);
        slot.owe(if portion.is_empty() { 0 } else { EVERY });
        if !portion.is_empty() {
            self.free_some(&mut portion);
        }
        let mut empty = Line::new();
        if let Some(block) = portion.emptied {
            empty.push(block);
        }
        if starved {
            self.refill(&mut empty, slot.most_stock());
        }
        if !empty.is_empty() {
            // SAFETY: as above.
            if let Some(mut waiting) = unsafe { slot.waiting.try_enter() } {
                waiting.restock(&mut empty, slot.most_stock());
            }
            self.free_blocks(empty);
        }
        drop(round);
        !portion.is_empty()
    }

    fn free_some(&self, portion: &mut Portion) {
        let _freeing = Freeing::begin(self.identity());
        let _discharge = self.discharging(portion.charged);
        self.counters
            .portion_freed(portion.counted, portion.emptied.is_some());
        self.forget_doubles(portion.objects());
        // SAFETY: the cookie of their block is done, and they were taken out.
        let panicked = unsafe { portion.free() };
        self.counters.panicked(panicked);
        if let Some(object) = portion.freed.double {
            contained(|| self.found_double(object, portion.freed.doubles, false));
        }
    }

    /// Frees what is ripe of the allocator's own objects on the caller's slot, whose lock is not held.
    pub(super) fn free_here(&self, slot: &KvSlot<C::Lock>) {
        let Some(round) = slot.rounds.begin() else {
            return;
        };
        // SAFETY: the caller's own slot, and it is not inside.
        let batch = unsafe { slot.waiting.try_enter() }
            .map(|mut waiting| waiting.take_ripe(&self.rcu, false));
        let mut empty = batch.map_or_else(Line::new, |batch| self.free(batch));
        // SAFETY: as above.
        if let Some(mut waiting) = unsafe { slot.waiting.try_enter() } {
            waiting.restock(&mut empty, slot.most_stock());
        }
        self.free_blocks(empty);
        drop(round);
    }
}
