//! The monitor's round, and what a retiring thread does at the limit.

use super::{Inner, Kvfree};
use crate::objects::Objects;
use crate::waiting::Batch;
use pagealloc::PageAlloc;
use rcu_core::Rcu;
use rcu_core::cpu::Cpus;
use rcu_core::sync::atomic::Ordering;

impl<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> Kvfree<C, P, R, O> {
    /// One round of the monitor: seals what is open, frees what is ripe, asks for the grace periods of the rest.
    /// Returns how many batches still wait; zero means that nothing does.
    ///
    /// Runs destructors: not to be called with locks held that they take, nor inside a section.
    #[doc(alias = "kfree_rcu_monitor")]
    pub fn tick(&self) -> usize {
        let inner = self.inner();
        let mut left = 0;
        let mut ask = false;
        // ORDERING: Relaxed: a number for reports.
        inner.round.fetch_add(1, Ordering::Relaxed);
        for slot in inner.used_slots() {
            // ORDERING: Relaxed: a hint; a push just now has its own kick.
            if slot.nonempty.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let Some(round) = slot.rounds.begin() else {
                left += 1;
                continue;
            };
            let mut waiting = slot.waiting.visit();
            waiting.seal(&inner.rcu);
            let batch = waiting.take_ripe(&inner.rcu, true);
            ask |= waiting.wants_grace_period(&inner.rcu);
            left += usize::from(!waiting.is_empty());
            slot.note_nonempty(!waiting.is_empty());
            let most = slot.pass_back_off();
            let starved = if most > 0 {
                waiting.take_starved()
            } else {
                waiting.is_starved()
            };
            drop(waiting);
            let mut empty = inner.free(batch);
            if starved {
                inner.refill(&mut empty, most);
            }
            if !empty.is_empty() {
                slot.waiting.visit().restock(&mut empty, most);
            }
            inner.free_blocks(empty);
            drop(round);
        }
        // Orphans have no round: a barrier's lock is held while they are freed (I1).
        let lock = inner.barrier_lock.try_lock();
        let mut orphans = inner.orphans.lock();
        inner.take_shared(&mut orphans);
        orphans.seal(&inner.rcu);
        let batch = if lock.is_some() {
            orphans.take_ripe(&inner.rcu, true)
        } else {
            Batch::new()
        };
        ask |= orphans.wants_grace_period(&inner.rcu);
        left += usize::from(!orphans.is_empty());
        drop(orphans);
        let empty = inner.free(batch);
        inner.free_blocks(empty);
        drop(lock);
        left += inner.objects.reap();
        inner.look_at_limit();
        if ask {
            inner.rcu.start();
            inner.rcu.drive();
        }
        left
    }

    /// Counts what waits with the allocator itself, from any context: for whom that tells of it. (A monitor that waits for a
    /// grace period to begin with cannot count what a stalled reader holds up.)
    #[cfg(feature = "std")]
    pub(crate) fn note_deferred(&self) {
        self.inner().count_deferred();
    }

    /// Whether the caller is a destructor of what was retired here: who must not wait for others of them.
    #[cfg(feature = "std")]
    pub(crate) fn is_freeing(&self) -> bool {
        self.inner().is_freeing()
    }

    /// Whether so much waits that no more should be made to.
    #[inline]
    pub fn is_over_limit(&self) -> bool {
        self.inner().is_over()
    }

    /// Frees what is ripe and runs no foreign code, on all slots, and pushes on the grace period of the rest. Whether that
    /// brought the front end below its limit.
    ///
    /// Waits for the allocators' locks: not inside a section, nor from signal handlers.
    pub fn relieve(&self) -> bool {
        let inner = self.inner();
        for slot in inner.used_slots() {
            let Some(round) = slot.rounds.begin() else {
                continue;
            };
            let mut waiting = slot.waiting.visit();
            let batch = waiting.take_ripe(&inner.rcu, false);
            drop(waiting);
            let empty = inner.free(batch);
            inner.free_blocks(empty);
            drop(round);
        }
        inner.objects.reap();
        inner.look_at_limit();
        if !inner.is_over() {
            return true;
        }
        inner.rcu.start();
        inner.rcu.drive();
        // What runs foreign code is the monitor's.
        inner.config.watch(true);
        false
    }
}

impl<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> Inner<C, P, R, O> {
    #[inline]
    pub(super) fn is_over(&self) -> bool {
        self.budget.is_over()
    }

    /// Counts what is taken in though the limit is reached.
    #[inline]
    pub(super) fn note_overdraft(&self) {
        if self.is_over() {
            self.budget.overdraw();
        }
    }

    /// Counts what waits with the allocator itself: for whoever looks at the limit for more than a push, since a monitor that does so
    /// may come late, or not at all. What slots have not sealed yet, and what others seal at the same moment, is not in it.
    pub(super) fn count_deferred(&self) {
        self.budget.note_elsewhere(self.objects.waiting_bytes());
    }

    /// Counts what waits with the allocator itself, and tells if the limit is reached. Outside of locks; foreign code runs.
    pub(super) fn look_at_limit(&self) {
        self.count_deferred();
        if let Some(over) = self.budget.should_tell() {
            self.config.tell(&over);
        }
    }
}
