//! Barriers that share their work: what one pass over all slots has freed need not be waited for again.
//!
//! Source: Linux `rcu_barrier`'s sequence (R13) and T11; facts only. Why not a pass a barrier: each would run a grace period of its
//! own, one after the other, though all of them wait for the same objects.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `seq` | odd while a pass is on; two more for each pass that is over | who holds the barriers' lock; barriers add nothing to it |
//!
//! # Invariants
//! - I1. A pass that begins after a barrier entered covers what was retired before that barrier; one that was on when it entered need not.
//! - I2. Only a pass that has freed all it took counts: one that panics takes its beginning back.
//!
//! # Orderings
//! - P8 (barrier's entry / pass). Entry and beginning are read-modify-writes of one word: either the beginning comes later, and so sees what
//!   came before the entry, or the entry sees the beginning, and waits for the next pass.
//! - P8 (pass's end / barrier). What the pass freed is free for whoever sees it over.

use rcu_core::sync::atomic::{AtomicUsize, Ordering};

#[inline(always)]
fn enter_order() -> Ordering {
    if rcu_core::weakened!("passes_enter") {
        Ordering::Relaxed
    } else {
        Ordering::AcqRel
    }
}
#[inline(always)]
fn end_order() -> Ordering {
    if rcu_core::weakened!("passes_end") {
        Ordering::Relaxed
    } else {
        Ordering::Release
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Passes {
    seq: AtomicUsize,
}

/// Which pass a barrier waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket(usize);

impl Passes {
    rcu_core::const_fn! {
        pub(crate) const fn new() -> Self {
            Self {
                seq: AtomicUsize::new(0),
            }
        }
    }

    /// A barrier enters.
    pub(crate) fn enter(&self) -> Ticket {
        // ORDERING: P8 (barrier's entry).
        let seq = self.seq.fetch_add(0, enter_order());
        // The end of the pass to come: the one after that which is on.
        Ticket(seq.wrapping_add(3) & !1)
    }

    /// Whether the barrier's pass is over.
    pub(crate) fn is_over(&self, ticket: Ticket) -> bool {
        // ORDERING: P8 (pass's end / barrier).
        let seq = self.seq.load(Ordering::Acquire);
        seq.wrapping_sub(ticket.0).cast_signed() >= 0
    }

    /// Begins a pass. The caller holds the barriers' lock.
    pub(crate) fn begin(&self) -> Pass<'_> {
        // ORDERING: P8 (pass's beginning), with the entries before it; Release only keeps the chain of these words whole.
        self.seq.fetch_add(1, Ordering::AcqRel);
        Pass { seq: &self.seq }
    }

    /// Takes back the beginning of a pass whose thread is gone, for a fork's child, whose one thread is the caller.
    pub(crate) fn reset_after_fork(&self) {
        // ORDERING: Relaxed: there is one thread.
        self.seq.fetch_and(!1, Ordering::Relaxed);
    }

    /// How many passes are over.
    pub(crate) fn count(&self) -> usize {
        // ORDERING: Relaxed: a statistic.
        self.seq.load(Ordering::Relaxed) / 2
    }
}

/// A pass that is on. Dropped before its end, it did not take place (I2).
#[derive(Debug)]
#[must_use = "a pass that is dropped did not take place"]
pub(crate) struct Pass<'p> {
    seq: &'p AtomicUsize,
}

impl Pass<'_> {
    /// All that it took is free.
    pub(crate) fn end(self) {
        let pass = core::mem::ManuallyDrop::new(self);
        // ORDERING: P8 (pass's end).
        pass.seq.fetch_add(1, end_order());
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        // ORDERING: Release: keeps the chain of entries whole; nobody takes this for an end.
        self.seq.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn t11_a_barrier_waits_for_a_pass_that_began_after_it() {
        let passes = Passes::new();
        let before = passes.enter();
        let pass = passes.begin();
        let during = passes.enter();
        assert!(!passes.is_over(before) && !passes.is_over(during));
        pass.end();
        assert!(passes.is_over(before) && !passes.is_over(during));
        assert!(!passes.is_over(passes.enter()));
        // I2: one that panicked.
        drop(passes.begin());
        assert!(!passes.is_over(during));
        passes.begin().end();
        assert!(passes.is_over(during));
        assert_eq!(passes.count(), 2);
    }

    #[test]
    fn t11_the_count_may_wrap() {
        let passes = Passes::new();
        // ORDERING: Relaxed: one thread.
        passes.seq.store(usize::MAX - 1, Ordering::Relaxed);
        let ticket = passes.enter();
        assert!(!passes.is_over(ticket));
        passes.begin().end();
        assert!(passes.is_over(ticket));
    }
}
