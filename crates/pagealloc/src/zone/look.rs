//! What a zone says about itself, and what tests hold and forbid.

use super::Zone;
use crate::heatmap;
use crate::lower::Lower;
use crate::source::Source;
use crate::stats::{SlotStats, ZoneStats};
use core::fmt;
use rcu_core::cpu::{Cpus, Slot};

impl<C: Cpus, S: Source, B: Lower> Zone<C, S, B> {
    /// What the zone holds and how it went. Visits every slot.
    pub fn stats(&self) -> ZoneStats {
        let mut stats = ZoneStats::default();
        let shared = self.shared();
        shared.counters.report(&mut stats);
        stats.add_lists(&shared.list_stats());
        stats.total_pages = shared.total_pages();
        stats.free_blocks = shared.lower.free_blocks();
        // In this order: counting blocks may merge what waits.
        stats.free_pages = shared.lower.free_pages() + shared.isolated_pages();
        stats.add_changes(&shared.lower.changes());
        let waiting = shared.lower.waiting();
        stats.stashed_blocks = waiting.blocks_ever;
        stats.stash_pages = waiting.pages;
        stats.stash_peak_pages = waiting.peak_pages;
        stats
    }

    /// What one slot's lists hold and did; `None` past the zone's slots. Waits for the slot's owner, a few instructions.
    #[doc(alias = "zoneinfo pagesets")]
    pub fn slot_stats(&self, slot: Slot) -> Option<SlotStats> {
        self.shared().slot_stats(slot)
    }

    /// Draws the zone as a picture, in SVG: a grid in which each cell is a number of pages, coloured by what they are, and
    /// darker where free blocks are larger.
    ///
    /// Reads every page's state without a lock: exact if nobody else uses the zone. At most 4096 cells, whatever the zone's size,
    /// so at most a MiB of text; needs no memory, and linear time. Only as far as the source gave memory.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn heatmap(&self, out: &mut impl fmt::Write) -> fmt::Result {
        let shared = self.shared();
        let free_at = |page| shared.lower.free_at(page);
        heatmap::draw(
            out,
            self.frames.metas,
            shared.extent(),
            &self.stats(),
            &free_at,
        )
    }

    /// Pages that the source has given so far.
    #[doc(alias = "zone_managed_pages")]
    pub fn total_pages(&self) -> usize {
        self.shared().total_pages()
    }

    /// Pages free in the zone, those on lists not counted.
    #[doc(alias = "nr_free_pages")]
    pub fn free_pages(&self) -> usize {
        self.lower().free_pages()
    }

    /// Pages that are out. Visits every slot; exact if nobody else uses the zone, and then 0 means that every page is back.
    pub fn nr_allocated(&self) -> usize {
        self.stats().nr_allocated()
    }

    /// Holds the zone lock, as Linux would say: every lock of the lower level's, until the value is dropped: for tests which show that
    /// somebody does not need it.
    #[doc(hidden)]
    pub fn hold_zone_lock(&self) -> impl Sized {
        self.lower().hold()
    }

    /// Makes whoever touches one of these locks panic: for tests which show that somebody does not.
    #[cfg(debug_assertions)]
    #[doc(hidden)]
    pub fn forbid_zone_lock(&self, forbid: bool) {
        self.lower().forbid(forbid);
    }
}
