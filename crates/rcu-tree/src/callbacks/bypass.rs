//! Lazy callbacks: parked without a number until somebody has a reason (R17).
//!
//! Reasons: the flush time is over; an ordinary `call` on the slot; a barrier; [`flush_lazy`](crate::Tree::flush_lazy);
//! as many as the high mark; the slot goes offline; [`hurry`](crate::Tree::hurry) (for those still to come).
//!
//! Why there is no bypass by rate (G21: more than sixteen enqueues a millisecond), as the kernel has: there it spares the
//! lock that the owner and the callback thread contend for. Here the lock is biased to the owner, and the other side comes
//! twice a turn, whichever list it has to empty. Measured on two shared CPUs (Xeon, release build): at 100 enqueues a
//! millisecond, six times the kernel's threshold, `call` took 16 ns with the callback thread at work and 22 ns with nobody
//! but the owner at the list, who then numbers by itself. In floods of 2 million, `call` and callback together took 10.5
//! to 22 ns with the callback thread and 10.0 to 10.8 without: what differs are the visits, two in a thousand
//! callbacks or more, and a second list in the same cell would need them too.
//!
//! # The time
//! Nobody who parks reads a clock. A *timekeeper* (the callback thread, or the slot's own `tick`) notes in `since` when it
//! first saw something parked, and flushes when that is long enough ago. Who parks the first one zeroes `since` and wakes
//! the callback thread, so that the time runs from then on. A timekeeper may store `since` over a list that was flushed
//! meanwhile; the next to park first zeroes it again.

use super::queue::{SlotCalls, number};
use super::{Callbacks, Lists};
use core::time::Duration;
use rcu_core::cpu::LocalLock;
use rcu_core::sync::atomic::{AtomicUsize, Ordering};

/// A moment as `since` holds it: twice the milliseconds, plus one so that it is not zero.
fn stamp(now: Duration) -> usize {
    (now.as_millis() as usize) << 1 | 1
}

impl Callbacks {
    pub(super) fn is_hurried(&self) -> bool {
        // ORDERING: Relaxed: a mode; whoever parks at the same time came first.
        self.hurried.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn hurry(&self) {
        // ORDERING: Relaxed: a mode.
        self.hurried.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn unhurry(&self) {
        // ORDERING: Relaxed: a mode.
        let deep = self
            .hurried
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        assert!(deep.is_ok(), "unhurry without hurry");
    }

    /// How many callbacks are parked on slots that are online.
    pub(crate) fn lazy_count<L: LocalLock, T>(&self, lists: &Lists<'_, '_, L, T>) -> usize {
        let mut count = 0;
        lists.for_each(|calls| count += calls.parked());
        count
    }

    /// Has everything that is parked wait for the next grace period. Returns how many there were.
    pub(crate) fn flush_lazy<L: LocalLock, T>(&self, lists: &Lists<'_, '_, L, T>) -> usize {
        let mut flushed = 0;
        lists.for_each(|calls| {
            if calls.parked() > 0 {
                flushed += self.flush_slot(lists, calls);
            }
        });
        flushed
    }

    fn flush_slot<L: LocalLock, T>(
        &self,
        lists: &Lists<'_, '_, L, T>,
        calls: &SlotCalls<L>,
    ) -> usize {
        let mut queue = calls.queue.visit();
        let flushed = queue.unpark();
        number(lists.gp, &mut queue.list);
        self.settle(calls, &mut queue);
        flushed
    }

    /// Notes the time, flushes what has been parked for too long, and says when to come again, from now.
    #[cfg(feature = "std")]
    pub(crate) fn keep_time<L: LocalLock, T>(
        &self,
        lists: &Lists<'_, '_, L, T>,
        now: Duration,
    ) -> Option<Duration> {
        let mut next = None;
        lists.for_each(|calls| {
            if let Some(left) = self.time_left(calls, now) {
                if left.is_zero() {
                    self.flush_slot(lists, calls);
                } else {
                    next = Some(next.map_or(left, |next: Duration| next.min(left)));
                }
            }
        });
        next
    }

    /// As `keep_time`, for the caller's own slot.
    ///
    /// # Safety
    /// 1. The caller owns the slot of `own`.
    pub(crate) unsafe fn keep_own_time<L: LocalLock, T>(
        &self,
        lists: &Lists<'_, '_, L, T>,
        own: &SlotCalls<L>,
        now: Duration,
    ) -> Option<Duration> {
        let left = self.time_left(own, now)?;
        if !left.is_zero() {
            return Some(left);
        }
        // SAFETY: the caller owns the slot (1).
        let Some(mut queue) = (unsafe { own.queue.try_enter() }) else {
            return Some(left);
        };
        queue.unpark();
        number(lists.gp, &mut queue.list);
        self.settle(own, &mut queue);
        None
    }

    /// How long what is parked may stay so; `None` if nothing is. Notes the time if nobody has.
    fn time_left<L: LocalLock>(&self, calls: &SlotCalls<L>, now: Duration) -> Option<Duration> {
        if calls.parked() == 0 {
            return None;
        }
        let flush = self.config.lazy_flush;
        // ORDERING: Relaxed: a time that is a little off flushes a little early.
        let since = calls.since.load(Ordering::Relaxed);
        if since == 0 {
            // ORDERING: Relaxed: as above.
            calls.since.store(stamp(now), Ordering::Relaxed);
            return Some(Duration::from_millis(flush as u64));
        }
        let waited = stamp(now).wrapping_sub(since) >> 1;
        Some(Duration::from_millis(flush.saturating_sub(waited) as u64))
    }
}

/// How deep hurries are nested.
pub(super) type Hurried = AtomicUsize;
