//! Rounds of freeing what was taken out of one slot: at most one at a time, so that a barrier knows what to wait for.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `reaping` | somebody frees what it took out of this slot | taken by compare-exchange, by anyone |
//! | `reaps` | how many such rounds have ended | who holds `reaping` |
//!
//! # Invariants
//! - I1. What is taken out of a slot is taken inside a round, under the slot's local lock, and is free when the round ends. A barrier
//!   that comes to the lock later therefore finds it either in the slot, or in a round that has begun.
//!
//! # Orderings
//! - P8 (round's end / barrier): what the round freed is free for the barrier that saw it end.

#[cfg(not(loom))]
use rcu_core::cpu::ZeroInit;
use rcu_core::sync::atomic::{AtomicU32, Ordering};

#[inline(always)]
fn end_order() -> Ordering {
    if rcu_core::weakened!("rounds_end") {
        Ordering::Relaxed
    } else {
        Ordering::Release
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Rounds {
    reaping: AtomicU32,
    reaps: AtomicU32,
}

#[cfg(not(loom))]
// SAFETY: zero words: nobody reaps.
unsafe impl ZeroInit for Rounds {}
impl Rounds {
    #[cfg(loom)]
    pub(crate) fn new() -> Self {
        Self {
            reaping: AtomicU32::new(0),
            reaps: AtomicU32::new(0),
        }
    }

    /// Begins a round, if none is on.
    #[inline]
    pub(crate) fn begin(&self) -> Option<Round<'_>> {
        // ORDERING: P8 (round's begin): ordered before the take by the slot's local lock, which a barrier takes too.
        self.reaping
            .compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
            // Made only now: dropping one ends a round, somebody else's too.
            .then(|| Round { rounds: self })
    }

    /// Ends the round of a thread that is gone, for a fork's child, whose one thread is the caller. Whether there was one.
    pub(crate) fn reset_after_fork(&self) -> bool {
        // ORDERING: Relaxed: there is one thread.
        self.reaping.swap(0, Ordering::Relaxed) != 0
    }

    /// Waits until the round that is on, if any, has ended (I1). The caller has been inside the slot's lock.
    pub(crate) fn wait(&self, mut pause: impl FnMut()) {
        // ORDERING: P8 (round's end / barrier): Acquire, here and below.
        let reaps = self.reaps.load(Ordering::Acquire);
        // ORDERING: P8 (round's end / barrier).
        while self.reaping.load(Ordering::Acquire) != 0
            // ORDERING: P8 (round's end / barrier).
            && self.reaps.load(Ordering::Acquire) == reaps
        {
            pause();
        }
    }
}

/// A round that is on.
#[derive(Debug)]
pub(crate) struct Round<'s> {
    rounds: &'s Rounds,
}

impl Drop for Round<'_> {
    #[inline]
    fn drop(&mut self) {
        // ORDERING: P8 (round's end / barrier): everything freed before is seen freed.
        // ORDERING: Relaxed, to read it: who holds `reaping` alone writes it.
        let reaps = self.rounds.reaps.load(Ordering::Relaxed);
        // ORDERING: P8 (round's end / barrier), as below.
        self.rounds.reaps.store(reaps.wrapping_add(1), end_order());
        // ORDERING: P8 (round's end / barrier).
        self.rounds.reaping.store(0, end_order());
    }
}
