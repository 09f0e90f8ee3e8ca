//! Waiting until every callback queued before has been run (R13).
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `seq` | barriers as a sequence: odd phase while one posts and waits | `lock`'s holder |
//! | `Posts::count` | heads that have not run, plus one while heads are posted | the poster, and the heads' callbacks |
//!
//! # Life of a barrier
//! Its caller takes a cookie of `seq`, then `lock`; if a whole barrier has run meanwhile, that was as good (several
//! callers share one). Else it moves `seq` on, queues one head behind the callbacks of each slot, then one behind the
//! orphans, waits until all have run, and moves `seq` on again. Whoever waits runs callbacks, so it waits for readers and for
//! callbacks in flight only.
//!
//! # Invariants
//! - I7. The count is above zero until every head is posted: a head that runs at once does not end the barrier (T39).
//! - I8. What is parked is flushed before the head is queued: a barrier does not wait for the lazy timer (T39).
//! - I9. A barrier whose caller panicked (a stall report may) leaves `seq` in its odd phase and heads on the lists. The
//!   next one, who finds it so, first waits for those heads and ends that barrier: a head is armed only when it is on no
//!   list.
//!
//! # Orderings
//! - P4 (heads): a head's Release / the barrier's Acquire of `count`, and of `seq` for those who share it.
//! - P5 (shared barriers): the caller's queueing, a full fence, its load of `seq` / the store of `seq`, a full fence, the
//!   look at the lists: who does not see the other's barrier start is seen by it.

use super::queue::{SlotCalls, number};
use super::{Callbacks, Lists};
use crate::gp_seq::GpSeq;
use core::ptr::NonNull;
use rcu_core::cpu::{LocalLock, SpinGuard, SpinMutex};
use rcu_core::fence;
use rcu_core::sync::Backoff;
use rcu_core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use rcu_core::{Head, Seq};

/// What the barriers of one tree share.
#[derive(Debug)]
pub(super) struct Barrier {
    seq: AtomicUsize,
    lock: SpinMutex<Posts>,
}

/// What one barrier at a time uses.
#[derive(Debug, Default)]
pub(super) struct Posts {
    pub(super) count: AtomicUsize,
    orphans_head: BarrierHead,
}

impl Barrier {
    rcu_core::const_fn! {
        pub(super) const fn new() -> Self {
            Self {
                seq: AtomicUsize::new(Seq::INITIAL.raw()),
                lock: SpinMutex::new(Posts {
                    count: AtomicUsize::new(0),
                    orphans_head: BarrierHead::new(),
                }),
            }
        }
    }

    /// Forgets the barrier that was in progress, in the child of a fork. False beside what it used if there was one, whose
    /// heads may be queued.
    ///
    /// # Safety
    /// 1. This is the child of a fork and the caller its only thread, inside none of these functions.
    pub(super) unsafe fn seize_after_fork(&self) -> (SpinGuard<'_, Posts>, bool) {
        let seq = self.load();
        if seq.in_progress() {
            // Who took a cookie before is not there to find it done.
            // ORDERING: Relaxed: there is one thread.
            self.seq.store(seq.ended().raw(), Ordering::Relaxed);
        }
        // SAFETY: the caller does not hold the lock, and there is no other thread (1).
        unsafe { self.lock.seize() }
    }

    fn load(&self) -> Seq {
        // ORDERING: P4 (heads, for those who share); P5 (shared barriers, after the caller's fence).
        Seq::from_raw(self.seq.load(Ordering::Acquire))
    }
}

impl Callbacks {
    /// Queues a head behind everything and waits until all have run; `push` makes progress meanwhile. True if another
    /// caller's barrier did it.
    pub(crate) fn barrier<L: LocalLock, T>(
        &self,
        lists: &Lists<'_, '_, L, T>,
        mut push: impl FnMut(&Backoff),
    ) -> bool {
        fence::full();
        let enough = self.barrier.load().snapshot();
        let backoff = Backoff::new();
        let posts = loop {
            if self.barrier.load().is_done(enough) {
                return true;
            }
            match self.barrier.lock.try_lock() {
                Some(posts) => break posts,
                None => push(&backoff),
            }
        };
        let mut seq = self.barrier.load();
        if seq.in_progress() {
            // I9.
            wait_for(&posts, &mut push);
            seq = seq.ended();
            // ORDERING: P4 (heads, for those who share).
            self.barrier.seq.store(seq.raw(), Ordering::Release);
        }
        if seq.is_done(enough) {
            return true;
        }
        // ORDERING: P5 (shared barriers): ordered before the look at the lists by the fence.
        self.barrier
            .seq
            .store(seq.started().raw(), Ordering::Release);
        fence::full();
        // ORDERING: Relaxed: published with the heads.
        posts.count.store(1, Ordering::Relaxed);
        lists.for_each(|calls| self.post(lists.gp, &posts, calls));
        self.post_orphans(&posts);
        // ORDERING: P4 (heads): the poster's own one (I7).
        posts.count.fetch_sub(1, Ordering::Release);
        wait_for(&posts, &mut push);
        // ORDERING: P4 (heads, for those who share).
        self.barrier
            .seq
            .store(seq.started().ended().raw(), Ordering::Release);
        false
    }

    /// Queues a head behind what the slot holds, if anything.
    pub(super) fn post<L: LocalLock>(&self, gp: &GpSeq, posts: &Posts, calls: &SlotCalls<L>) {
        // A callback queued before this barrier was noted before it, and the note is taken back when the lists are
        // empty only: all was run, or moved to the orphans, which come next.
        if calls.is_idle() {
            return;
        }
        let mut queue = calls.queue.visit();
        queue.unpark();
        calls.collect(&mut queue);
        // Of a slot gone offline nothing is left here but a batch in flight, for whose end the orphans' head waits (I6); a
        // head that came here now would have nobody to run it.
        let is_gone = queue.orphaned && queue.list.len() == queue.list.in_flight();
        if !queue.list.is_empty() && !is_gone {
            let head = posts.arm(&calls.barrier);
            // SAFETY: the slot's barrier head is free (one barrier at a time, which waits for it) and stays.
            let queued = unsafe { queue.list.entrain(head) };
            debug_assert!(queued, "S5: the list was not empty");
            number(gp, &mut queue.list);
        }
        self.settle(calls, &mut queue);
    }

    /// Queues a head behind the orphans, if there are any or a batch of theirs is still out (I6).
    pub(super) fn post_orphans(&self, posts: &Posts) {
        let mut orphans = self.orphans.lock();
        self.take_shared(&mut orphans);
        if orphans.list.is_empty() && orphans.awaited == 0 {
            return;
        }
        let head = posts.arm(&posts.orphans_head);
        // SAFETY: as for the slots' heads.
        if !unsafe { orphans.list.entrain(head) } {
            let mut alone = rcu_core::CbList::new();
            // SAFETY: as above; it was not entrained, so it is still on no list.
            unsafe { alone.push_back(head) };
            orphans.list.adopt_done(alone);
        }
    }
}

/// Waits until every head that was posted has run.
fn wait_for(posts: &Posts, push: &mut impl FnMut(&Backoff)) {
    let backoff = Backoff::new();
    // ORDERING: P4 (barrier's side): Acquire meets every head's Release.
    while posts.count.load(Ordering::Acquire) != 0 {
        push(&backoff);
    }
}

impl Posts {
    /// The head that goes behind the orphans.
    pub(super) fn head(&self) -> NonNull<Head> {
        NonNull::from(&self.orphans_head).cast()
    }

    /// Counts `head` and makes it take itself off the count when it is run.
    fn arm(&self, head: &BarrierHead) -> NonNull<Head> {
        // ORDERING: Relaxed: published with the head, by the list's lock.
        self.count.fetch_add(1, Ordering::Relaxed);
        head.arm(&self.count)
    }
}

/// A head that a barrier queues behind a slot's callbacks; one barrier at a time uses it.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct BarrierHead {
    head: Head,
    count: AtomicPtr<AtomicUsize>,
}

impl BarrierHead {
    rcu_core::const_fn! {
        pub(super) const fn new() -> Self {
            Self { head: Head::new(), count: AtomicPtr::new(core::ptr::null_mut()) }
        }
    }

    /// Arms the head to take one off `count` when it is run, and returns it for queueing.
    fn arm(&self, count: &AtomicUsize) -> NonNull<Head> {
        // ORDERING: Relaxed: handed over with the head, by the list's lock.
        self.count
            .store(core::ptr::from_ref(count).cast_mut(), Ordering::Relaxed);
        self.head
            .set_callback(rcu_core::Callback::Run(Self::arrived));
        NonNull::from(self).cast::<Head>()
    }

    /// # Safety
    /// 1. `head` came from `arm`, and the count it was armed with is still there.
    unsafe fn arrived(head: NonNull<Head>) {
        // SAFETY: the head is the first field of a `BarrierHead` and was derived from all of it.
        let this = unsafe { head.cast::<Self>().as_ref() };
        // ORDERING: Relaxed: handed over with the head.
        let count = this.count.load(Ordering::Relaxed);
        // SAFETY: the count outlives the barrier, which has not returned before this decrement.
        let count = unsafe { &*count };
        // ORDERING: P4 (callback's return / barrier's return): Release meets the barrier's Acquire.
        count.fetch_sub(1, Ordering::Release);
    }
}
