//! The zone's memory as a whole: runs put back, what can be given to the system, regions isolated and given up.
//!
//! Everything here takes the zone lock for bounded holds (I4) and is called from slow paths.

use super::Shared;
use crate::api::{Attempt, Order};
use crate::buddy::{HUGE, next_isolated};
use crate::index;
use crate::meta::State;
use crate::runs::Run;
use rcu_core::cpu::LocalLock;

/// How often lists are drained before a region counts as busy: once for what lies there, and once more for what moved from one list to
/// another meanwhile.
const DRAINS: usize = 2;

impl<L: LocalLock> Shared<L> {
    /// Puts pages that are the caller's back, no head among them marked; to the stash if the zone lock cannot be had at `attempt`.
    pub(crate) fn put_run(&self, run: Run, attempt: Attempt) {
        let metas = self.frames.metas;
        if let Some(mut free) = self.lock_at(attempt) {
            free.buddy.put_run(metas, run);
            return;
        }
        let bias = index::bias(self.frames.address(0).as_ptr().addr());
        for (block, order) in index::blocks(run.first, run.end, bias) {
            self.stash.push(metas, block, order);
        }
    }

    /// Pages in free blocks of 2 MiB and more that may have memory behind them.
    pub(crate) fn dirty_pages(&self) -> usize {
        self.lock().buddy.dirty_pages()
    }

    /// How many of these nobody needed since this was called last.
    pub(crate) fn idle_pages(&self) -> usize {
        self.lock().buddy.idle_pages()
    }

    /// Takes such a block out of the zone.
    pub(crate) fn take_dirty(&self) -> Option<(u32, Order)> {
        let mut free = self.lock();
        [Order::MAX, HUGE]
            .into_iter()
            .find_map(|order| Some((free.buddy.take_dirty(self.frames.metas, order)?, order)))
    }

    /// Puts a block back that was taken out.
    pub(crate) fn put_block(&self, page: u32, order: Order, zero: bool) {
        self.lock().buddy.put(self.frames.metas, page, order, zero);
    }

    /// Takes all pages from `first` to before `end`, which are the zone's, out of it for good. If some are out, nothing
    /// changes: how many, and the first of them. The caller holds `growing`.
    #[doc(alias = "offline_pages")]
    pub(crate) fn take_region(&self, first: u32, end: u32) -> Result<(), (usize, u32)> {
        let metas = self.frames.metas;
        let pages = (end - first) as usize;
        self.lock().buddy.isolate(first, end);
        let mut at = first;
        while at < end {
            at = self.lock().buddy.isolate_free(metas, at);
        }
        let mut pages_out = 0;
        for _ in 0..DRAINS {
            self.drain_all();
            let mut free = self.lock();
            pages_out = pages - free.buddy.isolated_pages();
            if pages_out == 0 {
                free.buddy.end_isolation();
                free.total_pages -= pages;
                drop(free);
                self.forget(first, end);
                return Ok(());
            }
        }
        // Without the lock: what is kept stays so until the next step, and what comes back now only makes `busy` a later page.
        let mut busy = first;
        while let Some(next) = next_isolated(metas, busy).filter(|next| *next < end) {
            busy = next;
        }
        self.lock().buddy.end_isolation();
        let mut at = first;
        while at < end {
            at = self.lock().buddy.release(metas, at, end);
        }
        Err((pages_out, busy))
    }

    /// Unmarks the blocks of a region that is nobody's any more.
    fn forget(&self, first: u32, end: u32) {
        let metas = self.frames.metas;
        let mut at = first;
        while at < end {
            let next = next_isolated(metas, at);
            debug_assert!(next.is_some(), "all pages are kept");
            metas.at(at).set_state(State::INSIDE);
            at = next.unwrap_or(at + 1);
        }
    }
}
