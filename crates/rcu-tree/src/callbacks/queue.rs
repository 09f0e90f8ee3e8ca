//! One slot's callbacks: what its owner queues, and where they are numbered.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `queue.list` | callbacks on their way, by grace period | the local lock's holder |
//! | `queue.bypass` | lazy callbacks: no number, nothing asked for | the same |
//! | `queue.turn` | how many unnumbered callbacks send `call` the long way | the same |
//! | `aside` | what came while the lock was taken, by a visitor or by what the caller interrupted | pushed without the lock, taken by its holder |
//! | `hint` | twice the length of `bypass`, plus one if `list` is not empty | the lock's holder; read without the lock |
//! | `since` | when a timekeeper first saw `bypass` not empty (see `bypass`) | timekeepers; zeroed by who parks first |
//!
//! # Invariants
//! - I4. `turn` is zero while `list` is empty or `bypass` is not, so one comparison sends `call` the long way for
//!   either; otherwise it is one less than [`CHUNK`].
//! - I5. What is in `bypass` was queued after what is in `list`: an ordinary `call` first moves it over (R17).
//! - I10. *Order.* What is in `aside` was queued after what its queuer had put on `list` or `bypass`, and before what it puts
//!   there next: whoever adds to either first takes `aside` in, and what is parked before that. So the callbacks of one
//!   owner run in the order of queueing, whoever was inside its lock meanwhile (R4).
//! - I11. Whoever takes `aside` in has `hint` say "not empty" before: who finds `aside` empty, and then `hint` zero, comes after
//!   the end of what was there (P8).

use super::config::{CallbackConfig, MAX_BATCH};
use super::{BarrierHead, Callbacks, SlotStats};
use crate::gp_seq::GpSeq;
use core::ptr::NonNull;
use rcu_core::cpu::{LocalCell, LocalLock};
use rcu_core::sync::atomic::{AtomicUsize, Ordering};
use rcu_core::{CbList, Head, HeadStack, SegList};

/// Callbacks that are queued, or run, between two pushes of the grace-period machine: enough to make its heavy fence a
/// small part of their cost, few enough that little waits unnumbered, or behind a long batch.
pub(crate) const CHUNK: usize = 256;

/// What a callback that was queued leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queued {
    /// There was none before on the slot: somebody has to be told.
    First,
    /// It was put aside where there was none before, for want of a slot or of its lock: the same.
    Aside,
    /// Others are there already.
    Behind,
    /// A grace period was asked for, which can be pushed on.
    Numbered,
    /// The list has grown too fast, or too long: push on, and wake whoever could run callbacks (G15, G16).
    Flooded,
    /// The first lazy one: whoever keeps the time has to look at the clock.
    Parked,
}

/// The lists of one slot.
#[derive(Debug, Default)]
pub(super) struct SlotQueue {
    turn: usize,
    pub(super) list: SegList,
    pub(super) bypass: CbList,
    /// The length at the last look for floods.
    checked_len: usize,
    /// The batch limit is raised (G15).
    flooded: bool,
    /// Counted among the overloaded slots (G16).
    overloaded: bool,
    /// The slot went offline while a batch of it was being run: what is left of it belongs to the orphans.
    pub(super) orphaned: bool,
}

impl SlotQueue {
    pub(super) const fn new() -> Self {
        Self {
            turn: 0,
            list: SegList::new(),
            bypass: CbList::new(),
            checked_len: 0,
            flooded: false,
            overloaded: false,
            orphaned: false,
        }
    }

    /// Moves what is parked to the list (I5). Returns how many there were.
    pub(super) fn unpark(&mut self) -> usize {
        let parked = self.bypass.len();
        if parked > 0 {
            self.list.insert_pending(self.bypass.take());
        }
        parked
    }

    /// How many of `ready` callbacks one turn may run (G14).
    pub(super) fn limit(&self, config: &CallbackConfig, ready: usize) -> usize {
        let base = if self.flooded {
            MAX_BATCH.max(config.batch_limit)
        } else {
            config.batch_limit
        };
        base.max(ready >> config.divisor)
    }
}

/// What the callback side keeps for one slot.
pub(crate) struct SlotCalls<L> {
    pub(super) queue: LocalCell<L, SlotQueue>,
    aside: HeadStack,
    hint: AtomicUsize,
    pub(super) since: AtomicUsize,
    pub(super) barrier: BarrierHead,
    pub(super) stats: SlotStats,
}

impl<L: LocalLock> SlotCalls<L> {
    rcu_core::const_fn! {
        pub(crate) const fn new(lock: L) -> Self {
            Self {
                queue: LocalCell::new(lock, SlotQueue::new()),
                aside: HeadStack::new(),
                hint: AtomicUsize::new(0),
                since: AtomicUsize::new(0),
                barrier: BarrierHead::new(),
                stats: SlotStats::new(),
            }
        }
    }

    /// Whether the list held callbacks, or a batch of it was being run, when the lock was last let go; or some were put
    /// aside.
    pub(super) fn has_callbacks(&self) -> bool {
        // In this order (I11). ORDERING: P8 (hint): Acquire meets `publish`'s Release: who finds nothing comes after whoever
        // ran it, or moved it to the orphans, and finds it there.
        !self.aside.is_empty() || self.hint.load(Ordering::Acquire) & 1 != 0
    }

    /// How many callbacks were parked when the lock was last let go.
    pub(super) fn parked(&self) -> usize {
        // ORDERING: P8 (hint), as above.
        self.hint.load(Ordering::Acquire) >> 1
    }

    /// Whether the slot held nothing, parked or not, when the lock was last let go.
    pub(crate) fn is_idle(&self) -> bool {
        // In this order (I11). ORDERING: P8 (hint), as above.
        self.aside.is_empty() && self.hint.load(Ordering::Acquire) == 0
    }

    /// Takes in what was put aside, behind everything (I10). True if there was any; then the lists are to be settled.
    pub(super) fn collect(&self, queue: &mut SlotQueue) -> bool {
        if self.aside.is_empty() {
            return false;
        }
        // ORDERING: Relaxed: written under the lock only, which is held.
        let hint = self.hint.load(Ordering::Relaxed);
        if !rcu_core::weakened!("p8_aside") {
            // ORDERING: P8 (hint): Relaxed: passed on by `take`'s Release (I11).
            self.hint.store(hint | 1, Ordering::Relaxed);
        }
        queue.unpark();
        queue.list.insert_pending(self.aside.take());
        true
    }

    /// Takes what was put aside, in the child of a fork.
    pub(super) fn take_aside(&self) -> CbList {
        self.aside.take()
    }

    /// Tells those who look without the lock. Call last, with the lock held.
    pub(super) fn publish(&self, queue: &SlotQueue) {
        let now = queue.bypass.len() << 1 | usize::from(!queue.list.is_empty());
        // ORDERING: Relaxed: written under the lock only, which is held.
        if self.hint.load(Ordering::Relaxed) != now {
            // ORDERING: P8 (hint): what was done to the list, and to the orphans, comes first.
            self.hint.store(now, Ordering::Release);
        }
    }
}

impl<L: LocalLock> core::fmt::Debug for SlotCalls<L> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SlotCalls")
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

impl Callbacks {
    /// Queues `head` on the owner's slot, and says what has to be done about it. Every [`CHUNK`] callbacks the owner
    /// numbers its own, so that grace periods go on though no thread of ours gets to run.
    ///
    /// # Safety
    /// 1. The debts of `Rcu::call`, the callback being noted in `head`.
    /// 2. The caller owns the slot of `own`, if there is one.
    #[inline]
    pub(crate) unsafe fn queue<L: LocalLock>(
        &self,
        gp: &GpSeq,
        own: Option<&SlotCalls<L>>,
        head: NonNull<Head>,
    ) -> Queued {
        if let Some(calls) = own {
            // SAFETY: the caller owns the slot (2).
            if let Some(mut queue) = unsafe { calls.queue.try_enter() } {
                if queue.list.nr_unnumbered() < queue.turn && calls.aside.is_empty() {
                    // SAFETY: valid until invoked, on no list, may move to another thread (1).
                    unsafe { queue.list.enqueue(head) };
                    return Queued::Behind;
                }
                // SAFETY: as above.
                return unsafe { self.queue_slow(gp, calls, &mut queue, head) };
            }
        }
        // The mutant: among those of no slot, which are run in their own order.
        let own = own.filter(|_| !rcu_core::weakened!("r4_aside"));
        let aside = own.map_or(&*self.shared, |calls| &calls.aside);
        // SAFETY: valid until invoked, on no list, may move to another thread (1).
        if unsafe { aside.push(head) } {
            Queued::Aside
        } else {
            Queued::Behind
        }
    }

    /// The list is empty, callbacks are parked or aside that come before `head`, or it is time to number (I4, I10).
    ///
    /// # Safety
    /// 1. The debts of `Rcu::call`.
    #[inline(never)]
    unsafe fn queue_slow<L: LocalLock>(
        &self,
        gp: &GpSeq,
        calls: &SlotCalls<L>,
        queue: &mut SlotQueue,
        head: NonNull<Head>,
    ) -> Queued {
        let was_empty = queue.list.is_empty();
        queue.unpark();
        calls.collect(queue);
        // SAFETY: the caller's debts.
        unsafe { queue.list.enqueue(head) };
        let led_to = if was_empty {
            Queued::First
        } else if queue.list.nr_unnumbered() < CHUNK {
            Queued::Behind
        } else {
            let in_progress = in_progress(gp);
            number(gp, &mut queue.list);
            if self.check_length(calls, queue, in_progress) {
                Queued::Flooded
            } else {
                Queued::Numbered
            }
        };
        self.settle(calls, queue);
        led_to
    }

    /// Parks `head` on the owner's bypass list, to wait for a reason (R17).
    ///
    /// # Safety
    /// As for [`Self::queue`].
    pub(crate) unsafe fn park<L: LocalLock>(
        &self,
        gp: &GpSeq,
        own: Option<&SlotCalls<L>>,
        head: NonNull<Head>,
    ) -> Queued {
        if let Some(calls) = own
            && !self.is_hurried()
        {
            // SAFETY: the caller owns the slot (2).
            if let Some(mut queue) = unsafe { calls.queue.try_enter() }
                && queue.bypass.len() < self.config.qhimark
            {
                calls.collect(&mut queue);
                let first = queue.bypass.is_empty();
                // SAFETY: valid until invoked, on no list, may move to another thread (1).
                unsafe { queue.bypass.push_back(head) };
                if first {
                    // ORDERING: Relaxed: the time is a hint; see `bypass`.
                    calls.since.store(0, Ordering::Relaxed);
                }
                self.settle(calls, &mut queue);
                return if first {
                    Queued::Parked
                } else {
                    Queued::Behind
                };
            }
        }
        // SAFETY: the caller's debts.
        unsafe { self.queue(gp, own, head) }
    }

    /// Looks whether the slot is flooded (G15) or overloaded (G16), and says whether that is news.
    fn check_length<L: LocalLock>(
        &self,
        calls: &SlotCalls<L>,
        queue: &mut SlotQueue,
        in_progress: bool,
    ) -> bool {
        let len = queue.list.len();
        let mut news = false;
        if !queue.overloaded && len >= self.config.qovld {
            queue.overloaded = true;
            // ORDERING: Relaxed: a hint about how long to pause.
            self.overloaded.fetch_add(1, Ordering::Relaxed);
            news = true;
        }
        if in_progress && len > queue.checked_len.saturating_add(self.config.qhimark) {
            queue.checked_len = len;
            queue.flooded = true;
            calls.stats.escalated();
            news = true;
        }
        news
    }

    /// Sets what follows from the lengths, and tells those who look without the lock. At the end of every section
    /// under the slot's lock that made a list empty, or not empty, or shorter.
    pub(super) fn settle<L: LocalLock>(&self, calls: &SlotCalls<L>, queue: &mut SlotQueue) {
        let len = queue.list.len();
        let plain = len > 0 && queue.bypass.is_empty();
        queue.turn = if plain { CHUNK - 1 } else { 0 };
        if queue.overloaded && len < self.config.qovld {
            queue.overloaded = false;
            // ORDERING: Relaxed: a hint about how long to pause.
            self.overloaded.fetch_sub(1, Ordering::Relaxed);
        }
        if len <= self.config.qlowmark {
            queue.flooded = false;
        }
        if len == 0 || len.saturating_add(self.config.qhimark) < queue.checked_len {
            queue.checked_len = len;
        }
        calls.publish(queue);
    }

    /// Whether a slot's list is so long that grace periods should hurry (G16). A hint.
    #[cfg(feature = "std")]
    pub(crate) fn is_overloaded(&self) -> bool {
        // ORDERING: Relaxed: a hint about how long to pause.
        self.overloaded.load(Ordering::Relaxed) != 0
    }

    /// Numbers what the owner has queued. True if a grace period was asked for that nobody had asked for.
    ///
    /// # Safety
    /// 1. The caller owns the slot of `own`.
    pub(crate) unsafe fn number_own<L: LocalLock>(&self, gp: &GpSeq, own: &SlotCalls<L>) -> bool {
        // SAFETY: the caller owns the slot (1).
        let queue = unsafe { own.queue.try_enter() };
        // A visitor that is in numbers them itself, or a barrier has them numbered.
        queue.is_some_and(|mut queue| {
            if own.collect(&mut queue) {
                self.settle(own, &mut queue);
            }
            number(gp, &mut queue.list)
        })
    }
}

/// Snapshot, advance, accelerate (T38), and the request for what that leads to: true if nobody had asked for as much.
pub(super) fn number(gp: &GpSeq, list: &mut SegList) -> bool {
    list.number(|| gp.snapshot(), || gp.load())
        .is_some_and(|snapshot| gp.request(snapshot))
}

/// Moves what is ready by now to the front.
pub(super) fn advance(gp: &GpSeq, list: &mut SegList) {
    list.advance(gp.load());
}

/// Whether a grace period is being waited for now.
fn in_progress(gp: &GpSeq) -> bool {
    gp.load().in_progress()
}
