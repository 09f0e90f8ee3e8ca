//! Memory given back to the system: when asked, tick by tick, or at once.
//!
//! Only free blocks of 2 MiB and more are given back: a system call for each must be worth it, and huge pages stay whole. The system call is made
//! with the block on no list and no lock held, so for that long the block counts as out.
//!
//! Why not `MADV_FREE` for the lazy way: what it frees may still read as before and counts as used until the machine runs short, so neither the
//! zone (which keeps account of what reads as zeroes) nor whoever looks at the program's memory learns anything. The delay that makes it cheap
//! is in the ticks instead: only what nobody needed for a whole tick goes back.

use super::Zone;
use crate::api::Attempt;
use crate::source::{Decommit, Range, Source};
use rcu_core::cpu::Cpus;

impl<C: Cpus, S: Source> Zone<C, S> {
    /// Gives the memory of free blocks of 2 MiB and more back to the system, and returns how many pages that were not
    /// known to be untouched. They stay usable, and read as zeroes. Makes system calls.
    pub fn trim(&self) -> usize {
        self.trim_to(0)
    }

    /// As [`Self::trim`], but leaves `keep_pages` such pages with their memory, for the next allocations.
    pub fn trim_to(&self, keep_pages: usize) -> usize {
        let dirty = self.shared().dirty_pages();
        self.trim_most(dirty.saturating_sub(keep_pages))
    }

    /// Gives up to about `most` pages back; the last block may make it more.
    fn trim_most(&self, most: usize) -> usize {
        let mut trimmed = 0;
        while trimmed < most {
            let Some((page, order)) = self.shared().take_dirty() else {
                break;
            };
            let range = Range {
                first: page as usize,
                pages: order.pages(),
                zeroed: false,
            };
            self.frames.forget(range.first, range.pages);
            // SAFETY: the block was free and is on no list now, so nothing in it is in use.
            let given = unsafe { self.source.decommit(range) };
            self.shared().put_block(page, order, given);
            if !given {
                break;
            }
            trimmed += range.pages;
        }
        trimmed
    }

    /// To be called now and then, for instance each second: does what the source's [`Decommit`] policy wants done, and returns how many pages went
    /// back to the system. Under [`Decommit::Lazy`] these are as many as were free, and needed by nobody, since the last
    /// call; under [`Decommit::Now`], what frees left over that may not make system calls; under [`Decommit::Keep`], none.
    pub fn tick(&self) -> usize {
        match self.source.decommit_policy() {
            Decommit::Keep => 0,
            Decommit::Lazy => {
                let idle = self.shared().idle_pages();
                let trimmed = self.trim_most(idle);
                // What went back is not idle next time.
                self.shared().idle_pages();
                trimmed
            }
            Decommit::Now => self.trim(),
        }
    }

    /// What follows a free that reached the zone.
    #[inline]
    pub(super) fn after_free(&self, attempt: Attempt) {
        if attempt >= Attempt::NoWait && self.source.decommit_policy() == Decommit::Now {
            self.trim();
        }
    }
}
