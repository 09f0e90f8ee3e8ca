//! Work that is done after a grace period, by whoever is given it.
//!
//! Source: Linux `queue_rcu_work` and `flush_rcu_work` (facts only; R19).
//!
//! **Queueing a work that is pending does nothing, and asks for no grace period.** The one that runs may have begun before
//! what the caller unlinked just now; to free that in the work would free it under its readers. `kfree_rcu` did so for
//! four years (T1). [`RcuWork::queue`] therefore says which it was, and must be heard.
//!
//! # State
//! | word | bits | meaning | who writes |
//! |---|---|---|---|
//! | `state` | `PENDING` | queued, and its function has not been started | whoever queues; the runner clears it |
//! | | `RUNNING` | the function runs | the runner |
//! | | `HANDED` | handed to another runner meanwhile; the first does it again | that other; the first clears it |
//! | `queued`, `finished` | | how often it was queued, and done or cancelled | whoever queues; the runner |
//! | `head` | | the callback; then, in a [`WorkList`], the link | who set `PENDING`; the RCU; the list |
//!
//! # Life
//! `queue` sets `PENDING` and gives the head to the RCU → after a grace period its callback hands the work to the
//! [`WorkQueue`] → somebody runs it: `PENDING` is cleared, *then* the function is called, which may queue the work again.
//!
//! # Invariants
//! - I1. The head is in use exactly from the `queue` that set `PENDING` until `PENDING` is cleared.
//! - I2. Each `queue` that returned true leads to one run or one cancelling; the function is never run twice at once.
//! - I3. A work whose function may free it is not touched after the function was called.
//!
//! # Orderings
//! - P8 (hand-over). Every `queue`, also one that finds `PENDING`, writes `state` with Release; the runner clears `PENDING`
//!   with Acquire: the run that comes sees what every such caller did before.
//! - P8 (hand-over). The end of a run, Release on `finished` / `flush`, Acquire.
//!
//! # Progress and contexts
//! `queue`: lock-free, in any context that [`Rcu::call`] may be called from. `flush` blocks: not from a callback, the work itself
//! or a section.

use crate::contract::Rcu;
use crate::head::{Callback, Head, HeadFn};
use crate::head_stack::HeadStack;
use crate::sync::Backoff;
use crate::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use core::fmt;
use core::mem::{self, ManuallyDrop};
use core::ptr::NonNull;

const PENDING: u32 = 1;
const RUNNING: u32 = 2;
const HANDED: u32 = 4;

/// What a `queue` that finds the work pending is worth, and its mutant.
#[inline(always)]
fn queue_order() -> Ordering {
    if crate::weakened!("p8_work") {
        Ordering::Relaxed
    } else {
        Ordering::AcqRel
    }
}

/// Where works go when their grace period is over: the seam to an executor.
///
/// [`Inline`] runs them at once; a [`WorkList`] keeps them until somebody runs them.
pub trait WorkQueue: Copy + Send + Sync + 'static {
    /// Takes `work`, to run it soon. Called by the RCU's callback runner, which it must not block.
    fn submit(self, work: ReadyWork);
}

/// Runs works where callbacks run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inline;

impl WorkQueue for Inline {
    fn submit(self, work: ReadyWork) {
        work.run();
    }
}

/// A work whose grace period is over, and the right to run it, once. Dropped, it is cancelled.
#[must_use = "dropped, the work is cancelled"]
pub struct ReadyWork {
    /// That of the work, with the provenance of the whole of it.
    head: NonNull<Head>,
    run: HeadFn,
    cancel: HeadFn,
}

// SAFETY: works are made of what may be used on any thread (`queue` sees to it).
unsafe impl Send for ReadyWork {}

impl ReadyWork {
    /// Runs the work, unless it is running: then whoever runs it does so once more.
    pub fn run(self) {
        let this = ManuallyDrop::new(self);
        // SAFETY: the right to run it, used up here.
        unsafe { (this.run)(this.head) };
    }
}

impl Drop for ReadyWork {
    fn drop(&mut self) {
        // SAFETY: the right to run it, used up here.
        unsafe { (self.cancel)(self.head) };
    }
}

impl fmt::Debug for ReadyWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadyWork")
            .field("head", &self.head)
            .finish_non_exhaustive()
    }
}

/// Works that wait for somebody to run them, in order: an executor without memory of its own.
///
/// ```
/// use rcu_core::{Inline, Rcu, RcuWork, WorkList};
/// static LIST: WorkList = WorkList::new();
/// static WORK: RcuWork<u32, &WorkList> = RcuWork::with_queue(7, |work| assert_eq!(*work.data(), 7), &LIST);
/// # fn run(rcu: &impl Rcu) {
/// assert!(WORK.queue(rcu));
/// # }
/// // … and on some thread, again and again:
/// LIST.run_all();
/// ```
#[derive(Debug, Default)]
pub struct WorkList {
    ready: HeadStack,
}

impl WorkList {
    crate::const_fn! {
        /// An empty list.
        #[must_use]
        pub const fn new() -> Self {
            Self { ready: HeadStack::new() }
        }
    }

    /// Whether nothing waits. A hint.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    /// Runs what waits, oldest first; returns how many. If a work panics, those that were to come behind it wait again.
    pub fn run_all(&self) -> usize {
        struct Batch<'l>(&'l WorkList, crate::CbList);
        impl Drop for Batch<'_> {
            fn drop(&mut self) {
                while let Some(head) = self.1.pop_front() {
                    // SAFETY: the head of a ready work, on no list.
                    unsafe { self.0.ready.push(head) };
                }
            }
        }
        let mut batch = Batch(self, self.ready.take());
        let mut count = 0;
        while let Some(head) = batch.1.pop_front() {
            // SAFETY: ready works are valid until they were run.
            if let Callback::Run(run) = unsafe { head.as_ref() }.callback() {
                count += 1;
                // SAFETY: the right of the `ReadyWork` that was submitted, used up here.
                unsafe { run(head) };
            }
        }
        count
    }
}

impl WorkQueue for &'static WorkList {
    fn submit(self, work: ReadyWork) {
        let work = ManuallyDrop::new(work);
        // SAFETY: a ready work is valid; its head is free until `PENDING` is cleared (I1).
        unsafe { work.head.as_ref() }.set_callback(Callback::Run(work.run));
        // SAFETY: valid until it was run; on no list, since its callback got it; may be run anywhere.
        unsafe { self.ready.push(work.head) };
    }
}

enum Func<T: 'static, Q: 'static> {
    /// Of a work that lives for ever.
    Shared(fn(&'static RcuWork<T, Q>)),
    /// Of one that it may free.
    Raw(unsafe fn(NonNull<RcuWork<T, Q>>)),
}

impl<T, Q> Clone for Func<T, Q> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T, Q> Copy for Func<T, Q> {}

/// A function that is run on `T` after a grace period, each time it is queued.
///
/// ```
/// use core::sync::atomic::{AtomicU32, Ordering};
/// use rcu_core::{Rcu, RcuWork};
/// static WORK: RcuWork<AtomicU32> = RcuWork::new(AtomicU32::new(0), |work| {
///     work.data().fetch_add(1, Ordering::Relaxed);
/// });
/// fn unlinked_something(rcu: &impl Rcu) {
///     if !WORK.queue(rcu) {
///         // It was pending: its grace period may have begun before the unlinking. Do not free in this run.
///     }
/// }
/// ```
#[doc(alias = "rcu_work")]
#[repr(C)]
pub struct RcuWork<T: 'static = (), Q: 'static = Inline> {
    head: Head,
    state: AtomicU32,
    queued: AtomicUsize,
    finished: AtomicUsize,
    func: Func<T, Q>,
    queue: Q,
    data: T,
}

impl<T> RcuWork<T> {
    crate::const_fn! {
        /// A work that is run where callbacks run.
        #[doc(alias = "INIT_RCU_WORK")]
        #[must_use]
        pub const fn new(data: T, func: fn(&'static Self)) -> Self {
            Self::with_queue(data, func, Inline)
        }
    }
}

impl<T, Q> RcuWork<T, Q> {
    crate::const_fn! {
        /// A work that is given to `queue` when its grace period is over.
        #[must_use]
        pub const fn with_queue(data: T, func: fn(&'static Self), queue: Q) -> Self {
            Self::from_parts(data, Func::Shared(func), queue)
        }
    }

    crate::const_fn! {
        /// A work whose function gets a pointer to it, and may free it: for one that is embedded in an object.
        ///
        /// # Safety
        /// 1. `func` may be called with a pointer to this work, from any thread, once for each time that it was queued, by
        ///    [`Self::queue`] too: whoever comes by a `&'static` reference to the work may do that, and `func` then gets a
        ///    pointer that was made from it. A function that frees the work sees to it that nobody does.
        ///
        /// ```
        /// use core::ptr::NonNull;
        /// use rcu_core::{Inline, Rcu, RcuWork};
        /// /// # Safety
        /// /// `work` is a leaked box, given up.
        /// unsafe fn free(work: NonNull<RcuWork<String>>) {
        ///     // SAFETY: the caller's debt.
        ///     drop(unsafe { Box::from_raw(work.as_ptr()) });
        /// }
        /// fn retire(rcu: &impl Rcu, text: String) {
        ///     // SAFETY: the work is a leaked box, and queued once.
        ///     let work = Box::new(unsafe { RcuWork::new_raw(text, free, Inline) });
        ///     // SAFETY: leaked until `free` gets it.
        ///     assert!(unsafe { RcuWork::queue_raw(NonNull::from(Box::leak(work)), rcu) });
        /// }
        /// ```
        #[must_use]
        pub const unsafe fn new_raw(data: T, func: unsafe fn(NonNull<Self>), queue: Q) -> Self {
            Self::from_parts(data, Func::Raw(func), queue)
        }
    }

    crate::const_fn! {
        const fn from_parts(data: T, func: Func<T, Q>, queue: Q) -> Self {
            Self {
                head: Head::new(),
                state: AtomicU32::new(0),
                queued: AtomicUsize::new(0),
                finished: AtomicUsize::new(0),
                func,
                queue,
                data,
            }
        }
    }

    /// What the function works on.
    pub const fn data(&self) -> &T {
        &self.data
    }

    /// Whether the work is queued and its function has not been started. A hint.
    #[doc(alias = "work_pending")]
    #[must_use]
    pub fn is_pending(&self) -> bool {
        // ORDERING: Relaxed: a hint.
        self.state.load(Ordering::Relaxed) & PENDING != 0
    }
}

impl<T: Sync, Q: WorkQueue> RcuWork<T, Q> {
    /// Queues the work, to be run once after a grace period of `rcu` that begins after this call; what the caller did before
    /// is seen by the run.
    ///
    /// **False: the work was pending, and no new grace period was asked for.** What the caller did before is seen by the run
    /// that comes, but that run may come after a grace period that *had begun before*: what was unlinked only now may
    /// still have readers then, and must not be freed by it (T1).
    ///
    /// May be called from the work's own function, which is no longer pending by then.
    #[doc(alias = "queue_rcu_work")]
    #[must_use = "false: no new grace period was asked for (T1)"]
    pub fn queue(&'static self, rcu: &impl Rcu) -> bool {
        // SAFETY: lives for ever.
        unsafe { Self::queue_raw(NonNull::from(self), rcu) }
    }

    /// As [`Self::queue`], for a work that does not live for ever.
    ///
    /// # Safety
    /// 1. `this` is valid until its function was called, or its [`ReadyWork`] dropped; for ever, unless it was made by
    ///    [`Self::new_raw`].
    /// 2. Its provenance covers the whole work, and what the function reaches from it.
    ///
    /// See [`Self::new_raw`] for an example.
    #[must_use = "false: no new grace period was asked for (T1)"]
    pub unsafe fn queue_raw(this: NonNull<Self>, rcu: &impl Rcu) -> bool {
        // SAFETY: valid (1).
        let work = unsafe { this.as_ref() };
        // ORDERING: P8 (hand-over, queueing side).
        if work.state.fetch_or(PENDING, queue_order()) & PENDING != 0 {
            return false;
        }
        // ORDERING: Relaxed: a count that `flush` reads after a `queue` that it was ordered after.
        work.queued.fetch_add(1, Ordering::Relaxed);
        // SAFETY: valid until the callback's run (1), on no list (I1); any thread may run it: `T: Sync`, `Q: Send + Sync`.
        unsafe { rcu.call(this.cast(), Callback::Run(Self::arrived)) };
        true
    }

    /// Blocks until every queueing that returned before this call has led to a run that has ended, or was cancelled; false
    /// if there was nothing to wait for. `rcu` is the one it was queued to. Not from a callback, from the work itself or
    /// inside a section.
    ///
    /// For a work that was made by [`Self::new_raw`], to a run that has begun.
    #[doc(alias = "flush_rcu_work")]
    pub fn flush(&'static self, rcu: &impl Rcu) -> bool {
        // ORDERING: Relaxed: see `queue_raw`.
        let target = self.queued.load(Ordering::Relaxed);
        if self.has_finished(target) {
            return false;
        }
        rcu.barrier();
        let backoff = Backoff::new();
        while !self.has_finished(target) {
            backoff.snooze();
        }
        true
    }

    fn has_finished(&self, target: usize) -> bool {
        // ORDERING: P8 (hand-over, waiting side).
        let finished = self.finished.load(Ordering::Acquire);
        finished.wrapping_sub(target).cast_signed() >= 0
    }

    /// The callback: the grace period is over.
    ///
    /// # Safety
    /// 1. `head` is that of a work which was queued.
    unsafe fn arrived(head: NonNull<Head>) {
        let this = head.cast::<Self>();
        // SAFETY: valid until it is run, below. A copy: when the work is with its queue it may be freed.
        let queue = unsafe { this.as_ref() }.queue;
        queue.submit(ReadyWork {
            head,
            run: Self::run,
            cancel: Self::cancel,
        });
    }

    /// # Safety
    /// 1. `head` is that of a ready work, and the right to run it is used up.
    unsafe fn run(head: NonNull<Head>) {
        let this = head.cast::<Self>();
        // SAFETY: valid until its function was called.
        let func = unsafe { this.as_ref() }.func;
        match func {
            // SAFETY: works with such a function live for ever.
            Func::Shared(func) => unsafe { this.as_ref() }.run_shared(func),
            Func::Raw(func) => {
                // SAFETY: as above; it is not used up yet.
                unsafe { Self::cancel(head) };
                // SAFETY: once for each queueing, as the author of the work allowed.
                unsafe { func(this) };
            }
        }
    }

    /// # Safety
    /// 1. As for `run`.
    unsafe fn cancel(head: NonNull<Head>) {
        // SAFETY: a ready work is valid.
        let work = unsafe { head.cast::<Self>().as_ref() };
        // ORDERING: P8 (hand-over, waiting side's partner).
        work.finished.fetch_add(1, Ordering::Release);
        // ORDERING: P8 (hand-over, running side). The last look at the work: from here on it may be queued again.
        work.state.fetch_and(!PENDING, Ordering::AcqRel);
    }

    fn run_shared(&'static self, func: fn(&'static Self)) {
        if self.begin() {
            self.run_until_done(func);
        }
    }

    /// Runs the function until it was not handed over again meanwhile.
    fn run_until_done(&'static self, func: fn(&'static Self)) {
        loop {
            let unwinding = Unwinding(self, func);
            func(self);
            mem::forget(unwinding);
            if !self.end() {
                return;
            }
        }
    }

    /// Becomes the runner; false if there is one, who is told.
    fn begin(&self) -> bool {
        let begun = |state: u32| {
            Some(if state & RUNNING != 0 {
                state | HANDED
            } else {
                state & !PENDING | RUNNING
            })
        };
        // ORDERING: P8 (hand-over, running side).
        let was = self
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, begun);
        was.is_ok_and(|was| was & RUNNING == 0)
    }

    /// Ends a run; true if the runner has to do it again.
    fn end(&self) -> bool {
        // ORDERING: P8 (hand-over, waiting side's partner).
        self.finished.fetch_add(1, Ordering::Release);
        let ended = |state: u32| {
            Some(if state & HANDED != 0 {
                state & !(HANDED | PENDING)
            } else {
                state & !RUNNING
            })
        };
        // ORDERING: P8 (hand-over, running side): the next run is ordered after this one.
        let was = self
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, ended);
        was.is_ok_and(|was| was & HANDED != 0)
    }
}

/// Does what is left to do for a runner whose function panics.
struct Unwinding<T: Sync + 'static, Q: WorkQueue>(
    &'static RcuWork<T, Q>,
    fn(&'static RcuWork<T, Q>),
);

impl<T: Sync, Q: WorkQueue> Drop for Unwinding<T, Q> {
    fn drop(&mut self) {
        if self.0.end() {
            self.0.run_until_done(self.1);
        }
    }
}

impl<T, Q> fmt::Debug for RcuWork<T, Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RcuWork")
            .field("is_pending", &self.is_pending())
            .finish_non_exhaustive()
    }
}
