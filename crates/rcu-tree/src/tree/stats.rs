//! What a tree tells about itself.

use super::Tree;
use crate::place::{Caller, EnteredAt};
use crate::trace::{Lane, Trace};
use core::fmt;
use core::time::Duration;
use rcu_core::cpu::{Cpus, Slot};

/// Counts of one tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TreeStats {
    /// Normal grace periods that have ended.
    pub grace_periods: usize,
    /// Expedited grace periods that have ended.
    pub expedited: usize,
    /// Slots that take part now.
    pub slots_online: usize,
    /// Callbacks that have been run.
    pub callbacks_run: usize,
    /// Callbacks that panicked (contained under `std`).
    pub callbacks_panicked: usize,
    /// Callbacks that a fork left in the middle of a run or a move, about: never run in this child.
    pub callbacks_lost: usize,
}

impl fmt::Display for TreeStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "grace periods {}, expedited {}, slots online {}, callbacks run {} ({} panicked)",
            self.grace_periods,
            self.expedited,
            self.slots_online,
            self.callbacks_run,
            self.callbacks_panicked
        )
    }
}

/// What the grace periods of one kind have cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaneStats {
    /// Grace periods that have ended.
    pub grace_periods: usize,
    /// Heavy fences; one for each grace period that did not have all readers to itself.
    pub heavy_fences: usize,
    /// Scans of the slots that were waited for, forced ones included.
    pub scans: usize,
    /// Scans that came because the first one found readers inside.
    pub forced_scans: usize,
    /// Words of slots that were read: cache lines of others.
    pub slots_scanned: usize,
    /// Slots that were found outside by the first scan.
    pub credited_at_once: usize,
    /// Slots that were found inside by the first scan, and waited for.
    pub holdouts: usize,
    /// The longest time that somebody who has a clock saw a grace period wait: see [`StallConfig`](crate::StallConfig).
    pub longest_wait: Duration,
    /// Stalls that were told.
    pub stalls: usize,
}

impl fmt::Display for LaneStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} grace periods, {} heavy fences, {} scans ({} forced) of {} slots, {} credited at once, {} holdouts, \
             longest wait {:.3?}, {} stalls",
            self.grace_periods,
            self.heavy_fences,
            self.scans,
            self.forced_scans,
            self.slots_scanned,
            self.credited_at_once,
            self.holdouts,
            self.longest_wait,
            self.stalls
        )
    }
}

/// What the grace periods of one tree have cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GpStats {
    /// Those that batch what is asked for.
    pub normal: LaneStats,
    /// Those that hurry.
    pub expedited: LaneStats,
    /// Slots that take part now.
    pub slots_online: usize,
}

impl fmt::Display for GpStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "normal: {}; expedited: {}; {} slots online",
            self.normal, self.expedited, self.slots_online
        )
    }
}

/// One slot of a tree, seen from afar: all of it may be out of date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotStats {
    /// Whether it takes part.
    pub is_online: bool,
    /// Whether its thread has ended inside a section.
    pub is_lingering: bool,
    /// How deep its sections nest.
    pub nesting: usize,
    /// How many sections have begun on it, as far as the bits of half a word go.
    pub sections: usize,
    /// Whether it has callbacks queued.
    pub has_callbacks: bool,
    /// Where the section it is in was entered: in debug builds, and under the feature `places`.
    pub place: Option<Caller>,
}

impl fmt::Display for SlotStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let online = if self.is_online { "online" } else { "offline" };
        write!(f, "{online}, {} sections begun", self.sections)?;
        if self.nesting > 0 {
            let place = EnteredAt(self.place);
            write!(f, ", inside, nested {} deep,{place}", self.nesting)?;
        }
        if self.is_lingering {
            f.write_str(", its thread has ended")?;
        }
        if self.has_callbacks {
            f.write_str(", callbacks queued")?;
        }
        Ok(())
    }
}

impl<'a, C: Cpus, T: Trace> Tree<'a, C, T> {
    /// The tree's statistics. Walks the slots that are online.
    #[must_use]
    pub fn stats(&self) -> TreeStats {
        let mut slots_online = 0;
        self.nodes.for_each_online(|_| slots_online += 1);
        TreeStats {
            grace_periods: self.gp.lane(Lane::Normal).load().completed(),
            expedited: self.gp.lane(Lane::Expedited).load().completed(),
            slots_online,
            callbacks_run: self.callbacks.invoked(),
            callbacks_panicked: self.callbacks.panicked(),
            callbacks_lost: self.callbacks.lost(),
        }
    }

    /// What grace periods have cost. Walks the slots that are online, and waits for a lock of a few instructions.
    #[must_use]
    pub fn gp_stats(&self) -> GpStats {
        GpStats {
            normal: self.lane_stats(Lane::Normal),
            expedited: self.lane_stats(Lane::Expedited),
            slots_online: self.stats().slots_online,
        }
    }

    fn lane_stats(&self, lane: Lane) -> LaneStats {
        let mut stats = LaneStats {
            grace_periods: self.gp.lane(lane).load().completed(),
            ..LaneStats::default()
        };
        self.counts(lane).fill(&mut stats);
        (stats.longest_wait, stats.stalls) = self.stalls.totals(lane);
        stats
    }

    /// What can be seen of `slot` now; `None` past the last one.
    #[must_use]
    pub fn slot_stats(&self, slot: Slot) -> Option<SlotStats> {
        let own = self.slots.get(slot)?;
        let now = own.reader.look();
        Some(SlotStats {
            is_online: now.is_online(),
            is_lingering: now.is_lingering(),
            nesting: now.nesting(),
            sections: now.sections(),
            has_callbacks: !own.calls.is_idle(),
            place: own.place.get().filter(|_| !now.is_outside()),
        })
    }
}
