//! Counters, and what a zone says about itself.

#![deny(unsafe_code)]

use crate::api::{AllocError, Attempt};
use crate::buddy::ORDERS;
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};

const ATTEMPTS: usize = 4;

/// Written on slow paths only; hits are counted in the slots.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Counters {
    misses: [AtomicUsize; ATTEMPTS],
    contended: [AtomicUsize; ATTEMPTS],
    failed: [AtomicUsize; ATTEMPTS],
    grows: AtomicUsize,
}

impl Counters {
    pub(crate) const fn new() -> Self {
        Self {
            misses: [const { AtomicUsize::new(0) }; ATTEMPTS],
            contended: [const { AtomicUsize::new(0) }; ATTEMPTS],
            failed: [const { AtomicUsize::new(0) }; ATTEMPTS],
            grows: AtomicUsize::new(0),
        }
    }

    fn count(counter: &AtomicUsize) {
        // ORDERING: Relaxed: a counter.
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes how an allocation ended that its slot's list could not serve.
    pub(crate) fn missed<T>(&self, attempt: Attempt, outcome: &Result<T, AllocError>) {
        let attempt = attempt as usize;
        Self::count(&self.misses[attempt]);
        match outcome {
            Ok(_) => {}
            Err(AllocError::Contended) => Self::count(&self.contended[attempt]),
            Err(_) => Self::count(&self.failed[attempt]),
        }
    }

    pub(crate) fn grew(&self) {
        Self::count(&self.grows);
    }

    pub(crate) fn report(&self, stats: &mut ZoneStats) {
        // ORDERING: Relaxed: counters.
        let read = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        for (i, attempt) in stats.attempts.iter_mut().enumerate() {
            *attempt = AttemptStats {
                misses: read(&self.misses[i]),
                contended: read(&self.contended[i]),
                failed: read(&self.failed[i]),
            };
        }
        stats.grows = read(&self.grows);
    }
}

/// How allocations at one [`Attempt`] level went that no list could serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct AttemptStats {
    /// Allocations that found no block on their slot's list.
    pub misses: usize,
    /// Of these, how many gave up because a lock was taken.
    pub contended: usize,
    /// Of these, how many gave up because there was nothing.
    pub failed: usize,
}

/// What a zone holds and how it went, at one moment. Exact if nobody else uses the zone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct ZoneStats {
    /// Pages that the source gave.
    pub total_pages: usize,
    /// Pages free in the zone.
    pub free_pages: usize,
    /// Free blocks in the zone, by order.
    pub free_blocks: [usize; ORDERS],
    /// Pages on the slots' lists.
    pub list_pages: usize,
    /// Pages freed without a lock that wait to be merged.
    pub stash_pages: usize,
    /// Blocks that ever went through the stash.
    pub stashed_blocks: usize,
    /// Allocations that a slot's list served, at any level.
    pub hits: u64,
    /// The others, by level.
    pub attempts: [AttemptStats; ATTEMPTS],
    /// Ranges that the source gave.
    pub grows: usize,
}

impl ZoneStats {
    /// Pages that are out.
    #[must_use]
    pub const fn nr_allocated(&self) -> usize {
        self.total_pages
            .saturating_sub(self.free_pages + self.list_pages + self.stash_pages)
    }

    /// How allocations at `attempt` went that no list could serve.
    #[must_use]
    pub const fn attempt(&self, attempt: Attempt) -> AttemptStats {
        self.attempts[attempt as usize]
    }
}

/// Like `/proc/buddyinfo`, with the lists, the stash and the attempts below.
impl fmt::Display for ZoneStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "free blocks by order:")?;
        for blocks in self.free_blocks {
            write!(f, " {blocks:6}")?;
        }
        writeln!(
            f,
            "\npages: {} total, {} out, {} free, {} on lists, {} stashed",
            self.total_pages,
            self.nr_allocated(),
            self.free_pages,
            self.list_pages,
            self.stash_pages,
        )?;
        write!(
            f,
            "list hits: {}, grown: {}, ever stashed: {}",
            self.hits, self.grows, self.stashed_blocks
        )?;
        for (name, a) in ["PcpOnly", "TryLock", "NoWait", "MayGrow"]
            .iter()
            .zip(self.attempts)
        {
            write!(
                f,
                "\n{name:>8}: {} misses, {} contended, {} failed",
                a.misses, a.contended, a.failed
            )?;
        }
        Ok(())
    }
}
