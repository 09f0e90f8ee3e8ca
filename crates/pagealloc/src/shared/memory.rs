//! The zone's memory as a whole: runs put back, what can be given to the system, regions isolated and given up.
//!
//! Everything here waits for the lower level's bounded holds (I4) and is called from slow paths.

use super::Shared;
use crate::api::Attempt;
use crate::frames::Metas;
use crate::index;
use crate::lower::Lower;
use crate::meta::State;
use crate::runs::{Run, Runs};
use core::sync::atomic::Ordering;
use rcu_core::cpu::{LocalLock, Slot};
use rcu_core::sync::Backoff;

/// How often a region is looked at, its lists closed, before it counts as busy. What is missing then and comes back, or moves from one arena to
/// another, is found at one of the next looks; what is out stays so.
const LOOKS: usize = 4;

impl<L: LocalLock, B: Lower> Shared<L, B> {
    /// Puts pages that are the caller's back, no head among them marked; waits as far as `attempt` goes.
    pub(crate) fn put_run(&self, slot: Option<Slot>, run: Run, attempt: Attempt) {
        let mut runs = Runs::new();
        runs.push(run);
        self.give_runs(slot, &runs, attempt);
    }

    /// Pages of the zone.
    pub(crate) fn total_pages(&self) -> usize {
        // ORDERING: Relaxed: a counter.
        self.total_pages.load(Ordering::Relaxed)
    }

    /// One past the last page that the zone ever had.
    pub(crate) fn extent(&self) -> u32 {
        // ORDERING: Relaxed: a bound for pictures.
        self.extent.load(Ordering::Relaxed)
    }

    /// Free pages kept for a region's removal.
    pub(crate) fn isolated_pages(&self) -> usize {
        // ORDERING: Relaxed: a counter.
        self.isolated.load(Ordering::Relaxed)
    }

    /// Takes all pages from `first` to before `end`, which are the zone's, out of it for good. If some are out, nothing
    /// changes: how many, and the first of them. The caller holds `growing`.
    ///
    /// Free pages are taken and marked `ISOLATED`, at first those in the lower level, then, with all lists closed, those that lay there and
    /// those that come back; when all pages are, they are nobody else's. Why closed and not just drained: between the drain and the look, pages
    /// of the region would go to another slot's list.
    #[doc(alias = "offline_pages")]
    pub(crate) fn take_region(&self, first: u32, end: u32) -> Result<(), (usize, u32)> {
        let metas = self.frames.metas;
        let pages = (end - first) as usize;
        let mut kept = self.isolate(first, end);
        let closed = (kept < pages).then(|| self.disable_lists());
        let backoff = Backoff::new();
        for look in 0..LOOKS {
            if kept == pages {
                break;
            }
            if look > 0 {
                backoff.snooze();
                self.settle();
            }
            kept += self.isolate(first, end);
        }
        drop(closed);
        if kept < pages {
            let mut busy = first;
            while let Some(next) = next_isolated(metas, busy) {
                busy = next;
            }
            self.give_back(first, end);
            return Err((pages - kept, busy));
        }
        // ORDERING: Relaxed: a counter.
        self.total_pages.fetch_sub(pages, Ordering::Relaxed);
        // ORDERING: Relaxed: a counter.
        self.isolated.fetch_sub(pages, Ordering::Relaxed);
        let mut at = first;
        while let Some(next) = next_isolated(metas, at).filter(|_| at < end) {
            metas.at(at).set_state(State::INSIDE);
            at = next;
        }
        debug_assert_eq!(at, end, "all pages are kept");
        // Whoever has the memory from now on may write to it.
        self.frames.forget(first as usize, pages);
        self.frames.note_free(first as usize, pages, false);
        Ok(())
    }

    /// Takes what is free in the range, marks it, and says how many pages that are.
    fn isolate(&self, first: u32, end: u32) -> usize {
        let metas = self.frames.metas;
        let (mut at, mut pages) = (first, 0);
        while at < end {
            if let Some(next) = next_isolated(metas, at) {
                at = next;
                continue;
            }
            let mut runs = Runs::new();
            let range = Run {
                first,
                end,
                zero: false,
            };
            // SAFETY: a region of the zone's, so inside the span, and `at` is before its end.
            at = unsafe { self.lower.take_within(range, at, &mut runs) };
            for run in &runs {
                for (block, order) in index::blocks(run.first, run.end, self.bias()) {
                    metas.at(block).set_state(State::isolated(order, run.zero));
                }
                pages += (run.end - run.first) as usize;
            }
        }
        // ORDERING: Relaxed: a counter.
        self.isolated.fetch_add(pages, Ordering::Relaxed);
        pages
    }

    /// Makes what was kept of the range free again.
    #[doc(alias = "undo_isolate_page_range")]
    fn give_back(&self, first: u32, end: u32) {
        let metas = self.frames.metas;
        let mut at = first;
        while at < end {
            let (mut runs, mut pages) = (Runs::new(), 0);
            while at < end && !runs.is_full() {
                let state = metas.at(at).state();
                if !state.is_isolated() {
                    at += 1;
                    continue;
                }
                metas.at(at).set_state(State::INSIDE);
                let run = Run {
                    first: at,
                    end: at + state.order().pages() as u32,
                    zero: state.is_zero(),
                };
                pages += state.order().pages();
                at = run.end;
                runs.push(run);
            }
            // ORDERING: Relaxed: a counter.
            self.isolated.fetch_sub(pages, Ordering::Relaxed);
            self.give_runs(None, &runs, Attempt::NoWait);
        }
    }

    fn bias(&self) -> u32 {
        index::bias(self.frames.address(0).as_ptr().addr())
    }
}

/// The page behind the kept block that starts at `page`; `None` if none starts there. Only the holder of `growing`
/// marks such blocks, so for that one the answer stays.
fn next_isolated(metas: Metas, page: u32) -> Option<u32> {
    let state = metas.get(page)?.state();
    state
        .is_isolated()
        .then(|| page + state.order().pages() as u32)
}
