//! Destructors on the threads that make them necessary.
//!
//! What has a destructor waits for the monitor, since `retire` may be called where a destructor must not run: under locks that it
//! takes, in a section, in a signal handler. But one monitor cannot keep up with a thread that retires as fast as it can; freeing what
//! another thread allocated costs the global allocator several times as much, and what waits grows to the limit. So a thread
//! that is in a place where it may have to wait in any case drops some of what its own slot has ripe:
//!
//! | call | runs destructors of what its thread retired before |
//! |---|---|
//! | `retire`, `retire_head…`, `try_retire`, the drop of a box | never |
//! | `retire_…_mightsleep` of something with a destructor | when a block fills |
//! | `RcuBox::new` of a type with a destructor, `GlobalBox::new` | when `behind`; not in sections, callbacks and destructors |
//!
//! It brings blocks, too, where there was none to be had: until then such objects go by their heads, and these are the monitor's alone.
//!
//! # Why in small portions
//! [`PORTION`] blocks are more than fill in the same time, so a backlog shrinks; and who helps is kept for that long at a time,
//! not for all that one grace period made ripe.
//!
//! # Invariants
//! - I1. As for every freeing: taken out inside of a round, under the slot's lock, and free when the round ends.
//! - I2. `behind` is a hint: who finds it set in vain clears it; who misses it comes by again when the next block fills.
//!   When [`LAG`] times as many blocks as a grace period is asked for are in line, nobody helps, and the monitor is called.

use super::{Inner, KvSlot, Kvfree};
use crate::block::Kind;
use crate::objects::Objects;
use crate::waiting::Waiting;
use pagealloc::PageAlloc;
use rcu_core::Rcu;
use rcu_core::cpu::Cpus;
use rcu_core::sync::atomic::Ordering;

/// Blocks that who helps drops at a time.
const PORTION: usize = 2;
/// See I2.
const LAG: usize = 4;

impl<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> Kvfree<C, P, R, O> {
    /// Whether destructors of what the caller's slot retired may run, and wait for somebody to run them.
    #[cfg(feature = "std")]
    #[inline]
    pub(crate) fn is_behind(&self) -> bool {
        let inner = self.inner();
        let slot = inner.cpus.current().map(|number| inner.slot(number));
        // ORDERING: Relaxed: a hint (I2).
        slot.is_some_and(|slot| slot.behind.load(Ordering::Relaxed) != 0)
    }

    /// Runs some of these destructors, if the caller is none of them. The caller is in no section and no callback. Whether there were any.
    #[cfg(feature = "std")]
    #[cold]
    pub(crate) fn help(&self) -> bool {
        let inner = self.inner();
        match inner.cpus.current() {
            Some(number) if inner.may_help() => inner.free_here(inner.slot(number), true),
            _ => false,
        }
    }
}

impl<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> Inner<C, P, R, O> {
    pub(super) fn may_help(&self) -> bool {
        self.config.helps && !self.is_freeing()
    }

    /// Notes, under the slot's lock, whether who helps finds something there. Whether nobody seems to.
    pub(super) fn note_behind(
        &self,
        slot: &KvSlot<C::Lock>,
        waiting: &Waiting,
        kind: Kind,
    ) -> bool {
        if !kind.runs_foreign_code() || !self.config.helps {
            return false;
        }
        slot.note_behind(waiting.is_glue_ripe(&self.rcu));
        let nr = waiting.nr_glue();
        nr > 0 && nr.is_multiple_of(LAG * self.config.ask_blocks)
    }

    /// Notes, under the slot's lock, that an object found no block: who helps may wait for a page, and brings some.
    pub(super) fn note_starved(&self, slot: &KvSlot<C::Lock>, kind: Kind) {
        if kind.runs_foreign_code() && self.config.helps {
            slot.note_behind(true);
        }
    }

    /// Frees what is ripe on the caller's slot, no lock of which is held: what has destructors, or what has none. Whether there was any.
    pub(super) fn free_here(&self, slot: &KvSlot<C::Lock>, glue: bool) -> bool {
        let Some(round) = slot.rounds.begin() else {
            return false;
        };
        // SAFETY: the caller's own slot, and it is not inside.
        let Some(mut waiting) = (unsafe { slot.waiting.try_enter() }) else {
            return false;
        };
        let mut starved = false;
        let batch = if glue {
            let some = waiting.take_some_glue(PORTION, &self.rcu);
            slot.note_behind(waiting.is_glue_ripe(&self.rcu));
            starved = slot.most_stock() > 0 && waiting.take_starved();
            some
        } else {
            waiting.take_ripe(&self.rcu, false)
        };
        drop(waiting);
        let is_any = !batch.is_empty();
        let mut empty = self.free(batch);
        if starved {
            self.refill(&mut empty, slot.most_stock());
        }
        // SAFETY: as above.
        if let Some(mut waiting) = unsafe { slot.waiting.try_enter() } {
            waiting.restock(&mut empty, slot.most_stock());
        }
        self.free_blocks(empty);
        drop(round);
        is_any
    }
}

impl<L> KvSlot<L> {
    fn note_behind(&self, yes: bool) {
        // ORDERING: Relaxed: a hint (I2), written under the slot's lock.
        self.behind.store(u32::from(yes), Ordering::Relaxed);
    }
}
