//! Memory given back to the system: when asked, tick by tick, or at once.
//!
//! Only free blocks of 2 MiB and more are given back: a system call for each must be worth it, and huge pages stay whole. The system call is made
//! with the block on no list, so for that long the block counts as out; no lock is held but `growing`, so that a region's removal does not come
//! upon it just then.
//!
//! Why not `MADV_FREE` for the lazy way. What it frees counts as used (RSS) until the machine itself runs short, so a program that gave memory
//! back could not be told from one that kept it, and a container's limit is hit by both: of 96 MiB written in a program of 109 MiB, 109 stay
//! resident after `MADV_FREE`, and 13 after `MADV_DONTNEED` (Linux 6.18). It may vanish at any later moment, page by page, until it is
//! written to: the zone, which keeps account of what reads as zeroes, would have to forget that for good and clear each zeroed block again, and poison
//! could not be checked any more. What it is good at, not to pay for memory that is wanted again soon (a sixth of the time to write to all
//! of it again, there), the ticks do instead: only what nobody needed for a whole tick goes back. `tests/footprint.rs` holds each policy to its RSS.

use super::Zone;
use crate::api::Attempt;
use crate::lower::Lower;
use crate::runs::{Run, Runs};
use crate::source::{Decommit, Range, Source};
use rcu_core::cpu::Cpus;

/// What [`Zone::tick`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Ticked {
    /// Pages that came off lists, or had waited to be merged.
    pub drained: usize,
    /// Pages that went back to the system.
    pub trimmed: usize,
}

impl<C: Cpus, S: Source, B: Lower> Zone<C, S, B> {
    /// Gives the memory of free blocks of 2 MiB and more back to the system, and returns how many pages that were not
    /// known to be untouched. They stay usable, and read as zeroes. Makes system calls.
    pub fn trim(&self) -> usize {
        self.trim_to(0)
    }

    /// As [`Self::trim`], but leaves `keep_pages` such pages with their memory, for the next allocations.
    pub fn trim_to(&self, keep_pages: usize) -> usize {
        let dirty = self.lower().dirty_pages();
        self.trim_most(dirty.saturating_sub(keep_pages))
    }

    /// Gives up to about `most` pages back; the last block may make it more.
    fn trim_most(&self, most: usize) -> usize {
        let mut trimmed = 0;
        while trimmed < most {
            // Block by block: who wants to grow the zone waits for one system call at most.
            let _growing = self.shared().growing.lock();
            let Some(run) = self.lower().take_dirty() else {
                break;
            };
            let range = Range {
                first: run.first as usize,
                pages: (run.end - run.first) as usize,
                zeroed: false,
            };
            self.frames.forget(range.first, range.pages);
            // SAFETY: the block was free and is on no list now, so nothing in it is in use.
            let given = unsafe { self.source.decommit(range) };
            let mut back = Runs::new();
            back.push(Run { zero: given, ..run });
            // SAFETY: just taken, unmarked, and zero if the source says so.
            unsafe { self.lower().give(None, &back, Attempt::NoWait) };
            if !given {
                break;
            }
            trimmed += range.pages;
        }
        trimmed
    }

    /// To be called now and then, about once a second. Lets lists that were high get lower again, merges what was freed without a
    /// lock, and runs pressure hooks if an allocation that could not run them left a note. Visits every slot; waits for each one's owner in turn.
    ///
    /// And does what the source's [`Decommit`] policy wants done. Under [`Decommit::Lazy`] as many pages go back to the system as were free, and
    /// needed by nobody, since the last call; under [`Decommit::Now`], what frees left over that may not make system calls; under
    /// [`Decommit::Keep`], none.
    #[doc(alias = "refresh_cpu_vm_stats")]
    pub fn tick(&self) -> Ticked {
        let drained = self.shared().decay();
        self.relieve_if_noted();
        let trimmed = match self.source.decommit_policy() {
            Decommit::Keep => 0,
            Decommit::Lazy => {
                let idle = self.lower().idle_pages();
                let trimmed = self.trim_most(idle);
                // What went back is not idle next time.
                self.lower().idle_pages();
                trimmed
            }
            Decommit::Now => self.trim(),
        };
        Ticked { drained, trimmed }
    }

    /// What follows a free that reached the zone.
    #[inline]
    pub(super) fn after_free(&self, attempt: Attempt) {
        if attempt >= Attempt::NoWait && self.source.decommit_policy() == Decommit::Now {
            self.trim();
        }
    }
}
