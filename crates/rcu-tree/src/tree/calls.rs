//! Callbacks: who queues them, who runs them.

use super::Tree;
use crate::callbacks::{CHUNK, Queued};
use crate::marks::{Doing, Mark};
use crate::trace::{Lane, Trace};
use core::ptr::NonNull;
use rcu_core::cpu::Cpus;
use rcu_core::sync::Backoff;
use rcu_core::{GracePeriod, Head};

impl<'a, C: Cpus, T: Trace> Tree<'a, C, T> {
    /// Runs callbacks whose grace period is over, and sees to it that the rest get one. For a worker, or a kernel's
    /// tick. Returns how many ran; zero also if another thread is at it.
    ///
    /// Runs foreign code: not to be called with locks held that callbacks take, nor inside a section.
    pub fn run_callbacks(&self) -> usize {
        self.check_stalls();
        let _mark = Mark::new(self.mark(), Doing::Callbacks);
        self.callbacks
            .run(&self.lists(), || {
                self.drive_for(CHUNK);
            })
            .unwrap_or(0)
    }

    /// Whether a grace period is asked for or in progress, or a callback is queued. A hint for who schedules
    /// [`GracePeriod::drive`] and [`Self::run_callbacks`].
    #[must_use]
    #[doc(alias = "rcu_pending")]
    pub fn has_work(&self) -> bool {
        Lane::ALL.iter().any(|&lane| self.gp.is_needed(lane))
            || self.callbacks.has_work(&self.lists())
    }

    /// The body of the worker thread: drives grace periods and runs callbacks for ever.
    #[cfg(feature = "std")]
    pub fn work(&self) -> ! {
        self.worker.run(
            || {
                let in_the_way = self.drive();
                let ran = self.run_callbacks();
                // Running numbers the callbacks that had none: their grace period can start at once.
                let can_start = !in_the_way && self.gp.is_needed(Lane::Normal);
                (ran > 0 || can_start, in_the_way)
            },
            || self.has_work(),
        )
    }

    /// Queues the callback noted in `head`.
    ///
    /// # Safety
    /// 1. The debts of [`rcu_core::Rcu::call`].
    pub(super) unsafe fn queue(&self, head: NonNull<Head>) {
        let own = self.own_slot();
        // SAFETY: the caller's debts; `own` is the caller's own slot.
        match unsafe { self.callbacks.queue(self.gp.polled(), own, head) } {
            Queued::First => self.kick(),
            Queued::Numbered => {
                self.drive_for(CHUNK);
            }
            Queued::Behind => {}
        }
    }

    /// Waits for every callback queued before. The caller is outside.
    pub(super) fn wait_for_callbacks(&self) {
        self.callbacks
            .barrier(&self.lists(), |backoff| self.push(backoff));
    }

    /// One step of a wait: push, run what is ready, and pause if readers are in the way.
    fn push(&self, backoff: &Backoff) {
        let in_the_way = self.drive();
        if in_the_way {
            self.check_stalls();
        }
        if in_the_way || self.run_callbacks() == 0 {
            crate::worker::pause(backoff);
        }
    }
}
