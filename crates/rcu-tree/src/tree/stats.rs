//! What a tree tells about itself.

use super::Tree;
use crate::trace::Trace;
use core::fmt;
use rcu_core::cpu::Cpus;

/// Counts of one tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TreeStats {
    /// Grace periods that have ended.
    pub grace_periods: usize,
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
            "grace periods {}, slots online {}, callbacks run {} ({} panicked)",
            self.grace_periods, self.slots_online, self.callbacks_run, self.callbacks_panicked
        )
    }
}

impl<'a, C: Cpus, T: Trace> Tree<'a, C, T> {
    /// The tree's statistics. Walks the slots that are online.
    #[must_use]
    pub fn stats(&self) -> TreeStats {
        let mut slots_online = 0;
        self.nodes.for_each_online(|_| slots_online += 1);
        TreeStats {
            grace_periods: self.gp.load().completed(),
            slots_online,
            callbacks_run: self.callbacks.invoked(),
            callbacks_panicked: self.callbacks.panicked(),
            callbacks_lost: self.callbacks.lost(),
        }
    }

    /// Panics if the caller is inside a section, where waiting would never end.
    pub(super) fn check_outside(&self, what: &str) {
        let Some(slot) = self.cpus.current() else {
            return;
        };
        let nesting = self.slots.get(slot).map_or(0, |own| own.reader.nesting());
        assert!(
            nesting == 0,
            "{what} inside a read-side critical section would wait for itself: drop the guard first"
        );
    }
}
