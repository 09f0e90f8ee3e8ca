//! What the driver of one lane has done, counted.
//!
//! # Invariants
//! - I1. Only the driver writes, under the machine's lock, so load and store need not be one operation; anyone reads.

use rcu_core::sync::atomic::{AtomicUsize, Ordering};

/// The counts of one lane.
#[derive(Debug, Default)]
pub(crate) struct GpCounts {
    heavy_fences: AtomicUsize,
    scans: AtomicUsize,
    forced_scans: AtomicUsize,
    slots_scanned: AtomicUsize,
    credited_at_once: AtomicUsize,
    holdouts: AtomicUsize,
}

/// One number, read for people.
fn read(word: &AtomicUsize) -> usize {
    // ORDERING: Relaxed: a statistic.
    word.load(Ordering::Relaxed)
}

/// Adds to a number of the driver's.
fn add(word: &AtomicUsize, n: usize) {
    if n > 0 {
        // ORDERING: Relaxed: a statistic, written under the machine's lock (I1).
        word.store(read(word).wrapping_add(n), Ordering::Relaxed);
    }
}

impl GpCounts {
    rcu_core::const_fn! {
        pub(crate) const fn new() -> Self {
            Self {
                heavy_fences: AtomicUsize::new(0),
                scans: AtomicUsize::new(0),
                forced_scans: AtomicUsize::new(0),
                slots_scanned: AtomicUsize::new(0),
                credited_at_once: AtomicUsize::new(0),
                holdouts: AtomicUsize::new(0),
            }
        }
    }

    /// The driver has run a heavy fence.
    pub(crate) fn fenced(&self) {
        add(&self.heavy_fences, 1);
    }

    /// The driver has looked at `slots`, of which `inside` are still waited for; `first`, after the start.
    pub(crate) fn scanned(&self, first: bool, slots: usize, inside: usize) {
        add(&self.scans, 1);
        add(&self.slots_scanned, slots);
        if first {
            add(&self.credited_at_once, slots - inside);
            add(&self.holdouts, inside);
        } else {
            add(&self.forced_scans, 1);
        }
    }

    /// How many scans there were.
    pub(crate) fn scans(&self) -> usize {
        read(&self.scans)
    }

    /// The counts, for people.
    pub(crate) fn fill(&self, stats: &mut crate::tree::LaneStats) {
        stats.heavy_fences = read(&self.heavy_fences);
        stats.scans = read(&self.scans);
        stats.forced_scans = read(&self.forced_scans);
        stats.slots_scanned = read(&self.slots_scanned);
        stats.credited_at_once = read(&self.credited_at_once);
        stats.holdouts = read(&self.holdouts);
    }
}
