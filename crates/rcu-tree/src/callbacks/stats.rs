//! Counts of callbacks, in all and by slot.

use core::fmt;
use rcu_core::sync::atomic::{AtomicUsize, Ordering};

/// Counts of a tree's callbacks, or of one slot's. Those that a barrier queues for itself count as callbacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallbackStats {
    /// Callbacks queued so far, lazy ones included. In all: what lies on the shared list is counted once somebody looks there.
    pub queued: usize,
    /// Callbacks that have been run, those that panicked included.
    pub invoked: usize,
    /// Callbacks that panicked (contained under `std`).
    pub panicked: usize,
    /// Callbacks parked lazily now.
    pub lazy: usize,
    /// The most callbacks that were run in one turn.
    pub longest_batch: usize,
    /// How often a list grew so fast that the batch limit was raised and a scan forced.
    pub flood_escalations: usize,
}

impl fmt::Display for CallbackStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "callbacks queued {}, run {} ({} panicked), lazy {}, longest batch {}, escalations {}",
            self.queued,
            self.invoked,
            self.panicked,
            self.lazy,
            self.longest_batch,
            self.flood_escalations
        )
    }
}

/// What is counted where callbacks are run.
#[derive(Debug, Default)]
pub(super) struct SlotStats {
    invoked: AtomicUsize,
    panicked: AtomicUsize,
    longest: AtomicUsize,
    /// Handed to the orphans.
    moved: AtomicUsize,
    escalations: AtomicUsize,
}

/// What one turn came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ran {
    pub(super) count: usize,
    pub(super) panicked: usize,
}

impl SlotStats {
    rcu_core::const_fn! {
        pub(super) const fn new() -> Self {
            Self {
                invoked: AtomicUsize::new(0),
                panicked: AtomicUsize::new(0),
                longest: AtomicUsize::new(0),
                moved: AtomicUsize::new(0),
                escalations: AtomicUsize::new(0),
            }
        }
    }

    pub(super) fn ran(&self, ran: Ran) {
        // ORDERING: Relaxed: a statistic.
        self.invoked.fetch_add(ran.count, Ordering::Relaxed);
        // ORDERING: Relaxed: a statistic.
        self.longest.fetch_max(ran.count, Ordering::Relaxed);
        if ran.panicked > 0 {
            // ORDERING: Relaxed: a statistic.
            self.panicked.fetch_add(ran.panicked, Ordering::Relaxed);
        }
    }

    pub(super) fn moved(&self, count: usize) {
        // ORDERING: Relaxed: a statistic.
        self.moved.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn escalated(&self) {
        // ORDERING: Relaxed: a statistic.
        self.escalations.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn invoked(&self) -> usize {
        // ORDERING: Relaxed: a statistic.
        self.invoked.load(Ordering::Relaxed)
    }

    pub(super) fn panicked(&self) -> usize {
        // ORDERING: Relaxed: a statistic.
        self.panicked.load(Ordering::Relaxed)
    }

    /// The counts, for a list that holds `waiting` callbacks of which `lazy` are parked.
    pub(super) fn read(&self, waiting: usize, lazy: usize) -> CallbackStats {
        // ORDERING: Relaxed: statistics, each on its own.
        let at = |word: &AtomicUsize| word.load(Ordering::Relaxed);
        let invoked = at(&self.invoked);
        CallbackStats {
            queued: invoked + at(&self.moved) + waiting,
            invoked,
            panicked: at(&self.panicked),
            lazy,
            longest_batch: at(&self.longest),
            flood_escalations: at(&self.escalations),
        }
    }
}
