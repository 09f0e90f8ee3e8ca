//! How much may wait, counted to about a chunk a slot.
//!
//! Why chunks: a word that every retiring thread writes for every object would cost more than the rest of the call. A place
//! (a slot, or the orphans) charges what it holds when that has grown by [`CHUNK`], and a batch that was taken out
//! carries what was charged for it until its objects are free.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `charged` | bytes that places and batches have charged | who charges, who frees a batch |
//! | `elsewhere` | bytes that waited with the allocator itself when somebody last asked | who asks |
//! | `is_told` | 1 once it was told that the limit is reached, until half of it is free | who tells, who frees |
//! | `overdrawn` | how often something was taken in above the limit | who takes it in |
//!
//! # Invariants
//! - I1. `charged` is the sum of what places and batches carry; each carries at most what it holds, and less than a chunk less. It is
//!   charged before anyone else can take out what it was charged for (under the place's lock), so it is never below zero in between.
//!
//! # Orderings
//! None: these are numbers, read by whoever decides something that is right either way.

use core::fmt;
use rcu_core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Bytes by which a place grows before it charges them.
pub(crate) const CHUNK: usize = 64 << 10;

/// The limit of bytes that wait was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OverLimit {
    /// About how many bytes wait.
    pub waiting_bytes: usize,
    /// How many may.
    pub limit_bytes: usize,
}

impl fmt::Display for OverLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            waiting_bytes,
            limit_bytes,
        } = self;
        write!(
            f,
            "{waiting_bytes} bytes wait for a grace period, and {limit_bytes} may"
        )
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Budget {
    soft: usize,
    hard: usize,
    charged: AtomicUsize,
    elsewhere: AtomicUsize,
    overdrawn: AtomicUsize,
    is_told: AtomicU32,
}

impl Budget {
    rcu_core::const_fn! {
        pub(crate) const fn new(soft: usize, hard: usize) -> Self {
            Self {
                soft,
                hard,
                charged: AtomicUsize::new(0),
                elsewhere: AtomicUsize::new(0),
                overdrawn: AtomicUsize::new(0),
                is_told: AtomicU32::new(0),
            }
        }
    }

    /// About how many bytes wait.
    #[inline]
    pub(crate) fn waiting(&self) -> usize {
        // ORDERING: Relaxed: a number.
        let charged = self.charged.load(Ordering::Relaxed);
        // ORDERING: Relaxed: a number.
        charged.saturating_add(self.elsewhere.load(Ordering::Relaxed))
    }

    /// The limit.
    pub(crate) const fn limit(&self) -> usize {
        self.hard
    }

    pub(crate) fn is_over_soft(&self) -> bool {
        self.waiting() > self.soft
    }

    /// Whether no more should be taken in.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.waiting() > self.hard
    }

    #[inline]
    pub(crate) fn charge(&self, bytes: usize) {
        if bytes > 0 {
            // ORDERING: Relaxed: a number.
            self.charged.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(crate) fn discharge(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        // ORDERING: Relaxed: a number.
        self.charged.fetch_sub(bytes, Ordering::Relaxed);
        self.forget_told();
    }

    /// Says what all places carry, where some that had charged are gone: in the child of a fork.
    pub(crate) fn recharge(&self, bytes: usize) {
        // ORDERING: Relaxed: a number, and one thread.
        self.charged.store(bytes, Ordering::Relaxed);
    }

    /// Notes what waits with the allocator itself.
    pub(crate) fn note_elsewhere(&self, bytes: usize) {
        // ORDERING: Relaxed: a number.
        self.elsewhere.store(bytes, Ordering::Relaxed);
        self.forget_told();
    }

    fn forget_told(&self) {
        // ORDERING: Relaxed: a hint; told twice, or once too few, does no harm.
        if self.is_told.load(Ordering::Relaxed) != 0 && self.waiting() < self.hard / 2 {
            // ORDERING: Relaxed: as above.
            self.is_told.store(0, Ordering::Relaxed);
        }
    }

    /// Whether it is to be told that the limit is reached; says so once, until half of it is free again.
    pub(crate) fn should_tell(&self) -> Option<OverLimit> {
        if !self.is_over() {
            return None;
        }
        // ORDERING: Relaxed: a hint, as above.
        let told = self.is_told.swap(1, Ordering::Relaxed) != 0;
        (!told).then(|| OverLimit {
            waiting_bytes: self.waiting(),
            limit_bytes: self.hard,
        })
    }

    /// Something was taken in above the limit.
    pub(crate) fn overdraw(&self) {
        // ORDERING: Relaxed: a statistic.
        self.overdrawn.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn overdrawn(&self) -> usize {
        // ORDERING: Relaxed: a statistic.
        self.overdrawn.load(Ordering::Relaxed)
    }
}

/// What one place holds, and has charged of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Account {
    pub(crate) held: usize,
    charged: usize,
}

impl Account {
    pub(crate) const fn new() -> Self {
        Self {
            held: 0,
            charged: 0,
        }
    }

    /// Adds bytes; returns how many are to be charged now.
    #[inline]
    pub(crate) const fn add(&mut self, bytes: usize) -> usize {
        self.held += bytes;
        let owed = self.held - self.charged;
        if owed < CHUNK {
            return 0;
        }
        self.charged = self.held;
        owed
    }

    /// Whether so many bytes may be added to what it holds, with nothing to be charged now.
    #[inline]
    pub(crate) const fn has_room(&self, bytes: usize) -> bool {
        self.held + bytes - self.charged < CHUNK
    }

    /// Of what it holds, what is charged.
    pub(crate) const fn charged(&self) -> usize {
        self.charged
    }

    /// Takes bytes out; returns what was charged for them and goes with them.
    pub(crate) const fn take(&mut self, bytes: usize) -> usize {
        self.held -= bytes;
        let goes = self.charged.saturating_sub(self.held);
        self.charged -= goes;
        goes
    }

    /// Adds bytes with what was charged for them.
    pub(crate) const fn put(&mut self, bytes: usize, charged: usize) {
        self.held += bytes;
        self.charged += charged;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// I1, over any order of adding, taking and putting back.
        #[test]
        fn what_is_charged_is_carried(steps in prop::collection::vec((0..3_u8, 0..3 * CHUNK), 1..100)) {
            let budget = Budget::new(usize::MAX, usize::MAX);
            let mut place = Account::new();
            let mut out: Vec<(usize, usize)> = Vec::new();
            for (what, bytes) in steps {
                match what {
                    0 => budget.charge(place.add(bytes)),
                    1 => {
                        let bytes = bytes.min(place.held);
                        let charged = place.take(bytes);
                        out.push((bytes, charged));
                    }
                    _ => {
                        if let Some((bytes, charged)) = out.pop() {
                            if bytes % 2 == 0 {
                                place.put(bytes, charged);
                            } else {
                                budget.discharge(charged);
                            }
                        }
                    }
                }
                let carried: usize = out.iter().map(|o| o.1).sum();
                prop_assert_eq!(budget.waiting(), place.charged + carried);
                prop_assert!(place.charged <= place.held);
            }
            let charged = place.take(place.held);
            budget.discharge(charged);
            out.iter().for_each(|o| budget.discharge(o.1));
            prop_assert_eq!(budget.waiting(), 0);
        }
    }

    #[test]
    fn it_is_told_once_until_half_is_free() {
        let budget = Budget::new(10, 100);
        budget.charge(100);
        assert!(budget.is_over_soft() && budget.should_tell().is_none());
        budget.charge(1);
        let told = budget.should_tell().unwrap();
        assert_eq!((told.waiting_bytes, told.limit_bytes), (101, 100));
        budget.discharge(51);
        budget.charge(51);
        assert!(budget.should_tell().is_none());
        budget.discharge(52);
        budget.note_elsewhere(60);
        assert!(budget.should_tell().is_some());
    }
}
