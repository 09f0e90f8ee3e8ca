//! Running callbacks: whose turn it is, how many, and what happens if one panics.
//!
//! A turn: numbered, taken out, run, put back (see [`super`]). What a turn leaves over waits for the next, so that every
//! list has its turn (G14), and a callback that queues itself anew does not starve the others (T45).

use super::queue::{CHUNK, SlotCalls, SlotQueue, advance, number};
use super::stats::Ran;
use super::{Callbacks, Lists, Orphans};
use crate::gp_seq::GpSeq;
use crate::trace::{Event, Trace};
use core::ptr::NonNull;
use rcu_core::cpu::LocalLock;
use rcu_core::{Callback, CbList, Head, SegList};

/// What a turn took out.
struct Batch {
    list: CbList,
    limit: usize,
    /// A grace period was asked for on the way.
    requested: bool,
}

/// How a list's lock is entered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum As {
    Owner,
    Visitor,
}

/// What waits on a slot and among the orphans (G25).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Left {
    pub(crate) ready: bool,
    pub(crate) unnumbered: bool,
}

impl Callbacks {
    /// One turn for every slot that takes part, and for the orphans. Returns how many ran. `push` pushes grace periods
    /// on: before a batch if it asked for one, and in between, so that what is queued meanwhile becomes ready. It is told
    /// how many have been run since the last time.
    pub(crate) fn run<L: LocalLock, T: Trace>(
        &self,
        lists: &Lists<'_, '_, L, T>,
        push: &impl Fn(usize),
    ) -> usize {
        let mut ran = 0;
        lists.for_each(|calls| {
            // SAFETY: a visitor owes nothing.
            ran += unsafe { self.run_slot(lists, calls, As::Visitor, push) };
        });
        ran + self.run_orphans(lists, push)
    }

    /// One turn for the caller's own slot.
    ///
    /// # Safety
    /// 1. The caller owns the slot of `own`.
    pub(crate) unsafe fn run_own<L: LocalLock, T: Trace>(
        &self,
        lists: &Lists<'_, '_, L, T>,
        own: &SlotCalls<L>,
        push: &impl Fn(usize),
    ) -> usize {
        // SAFETY: the caller owns the slot (1).
        unsafe { self.run_slot(lists, own, As::Owner, push) }
    }

    /// # Safety
    /// 1. If `how` says so, the caller owns the slot of `calls`.
    unsafe fn run_slot<L: LocalLock, T: Trace>(
        &self,
        lists: &Lists<'_, '_, L, T>,
        calls: &SlotCalls<L>,
        how: As,
        push: &impl Fn(usize),
    ) -> usize {
        if !calls.has_callbacks() {
            return 0;
        }
        let take = |queue: &mut SlotQueue| self.take_from(lists, calls, queue);
        // SAFETY: the caller's debt.
        let Some(Some(mut batch)) = (unsafe { enter(calls, how, take) }) else {
            return 0;
        };
        // What the owner queues meanwhile it numbers itself if it is much; a look here would cost it, and a fence.
        let ran = self.run_batch(lists, &mut batch, push, || ());
        // By a visit even if the owner ran them, which may be on another slot by now. What it interrupted is not inside, or
        // it would not have got the batch.
        let mut queue = calls.queue.visit();
        queue.list.finished(ran.count);
        if queue.orphaned {
            queue.list.finished(batch.list.len());
            calls.stats.moved(batch.list.len());
            let mut orphans = self.orphans.lock();
            orphans.list.adopt_done(batch.list);
            orphans.awaited -= 1;
            queue.orphaned = false;
        } else {
            queue.list.insert_done(batch.list);
        }
        self.settle(calls, &mut queue);
        drop(queue);
        calls.stats.ran(ran);
        ran.count
    }

    /// Numbers a slot's callbacks and takes out what is ready; `None` if there is nothing, or a batch in flight (I1).
    fn take_from<L: LocalLock, T>(
        &self,
        lists: &Lists<'_, '_, L, T>,
        calls: &SlotCalls<L>,
        queue: &mut SlotQueue,
    ) -> Option<Batch> {
        if calls.collect(queue) {
            self.settle(calls, queue);
        }
        let requested = number(lists.gp, &mut queue.list);
        if queue.list.in_flight() > 0 {
            return None;
        }
        let list = queue.list.extract_done();
        let limit = queue.limit(&self.config, list.len());
        (!list.is_empty()).then_some(Batch {
            list,
            limit,
            requested,
        })
    }

    /// One turn for the orphans.
    pub(crate) fn run_orphans<L: LocalLock, T: Trace>(
        &self,
        lists: &Lists<'_, '_, L, T>,
        push: &impl Fn(usize),
    ) -> usize {
        let Some(mut orphans) = self.orphans.try_lock() else {
            return 0;
        };
        let requested = self.number_orphans(lists, &mut orphans);
        if orphans.awaited > 0 || orphans.list.in_flight() > 0 {
            return 0;
        }
        let list = orphans.list.extract_done();
        drop(orphans);
        if list.is_empty() {
            return 0;
        }
        let limit = self
            .config
            .batch_limit
            .max(list.len() >> self.config.divisor);
        let mut batch = Batch {
            list,
            limit,
            requested,
        };
        let ran = self.run_batch(lists, &mut batch, push, || {
            self.number_orphans(lists, &mut self.orphans.lock());
        });
        let mut orphans = self.orphans.lock();
        orphans.list.finished(ran.count);
        orphans.list.insert_done(batch.list);
        ran.count
    }

    fn number_orphans<L: LocalLock, T>(
        &self,
        lists: &Lists<'_, '_, L, T>,
        orphans: &mut Orphans,
    ) -> bool {
        self.take_shared(orphans);
        number(lists.gp, &mut orphans.list)
    }

    /// Runs a batch up to its limit, oldest first, with no lock held (I3); after every [`CHUNK`], `number_more` and
    /// `push`.
    fn run_batch<L, T: Trace>(
        &self,
        lists: &Lists<'_, '_, L, T>,
        batch: &mut Batch,
        push: &impl Fn(usize),
        number_more: impl Fn(),
    ) -> Ran {
        let todo = batch.limit.min(batch.list.len());
        if batch.requested {
            push(0);
        }
        lists.trace.event(Event::BatchStart(todo));
        let mut ran = Ran::default();
        while ran.count < todo {
            let Some(head) = batch.list.pop_front() else {
                break;
            };
            // SAFETY: popped heads are valid, and this is the last look before their callback.
            let callback = unsafe { head.as_ref() }.callback();
            ran.panicked += usize::from(!self.invoke(head, callback));
            ran.count += 1;
            if ran.count % CHUNK == 0 && ran.count < todo {
                number_more();
                push(CHUNK);
            }
        }
        lists.trace.event(Event::BatchEnd(ran.count));
        self.total.ran(ran);
        ran
    }

    /// Runs one callback; false if it panicked.
    fn invoke(&self, head: NonNull<Head>, callback: Callback) -> bool {
        let free_object = self.free_object;
        contained(move || match callback {
            // SAFETY: its grace period is over, it is run once, and the queuer allowed any thread.
            Callback::Run(func) => unsafe { func(head) },
            Callback::Free(offset) => {
                let Some(free) = free_object else {
                    no_free_object()
                };
                // SAFETY: the queuer vouched that the head lies there in its object.
                let object = unsafe { offset.object(head) };
                // SAFETY: the object came from what `free` frees, and nobody reads it any more.
                unsafe { free(object) };
            }
            _ => unreachable!("I1 of head.rs: a callback is a function or an offset"),
        })
    }

    /// What the caller's slot and the orphans hold now. What cannot be looked at without waiting counts as unnumbered.
    ///
    /// # Safety
    /// 1. The caller owns the slot of `own`.
    pub(crate) unsafe fn left<L: LocalLock>(&self, gp: &GpSeq, own: Option<&SlotCalls<L>>) -> Left {
        let mut left = Left::default();
        let mut add = |list: Option<&mut SegList>| {
            let Some(list) = list else {
                left.unnumbered = true;
                return;
            };
            // What a grace period that ended just now has made ready.
            advance(gp, list);
            left.ready |= list.has_ready();
            left.unnumbered |= list.has_unnumbered();
        };
        if let Some(own) = own
            && own.has_callbacks()
        {
            // SAFETY: the caller owns the slot (1).
            let queue = unsafe { own.queue.try_enter() };
            match queue {
                Some(mut queue) => {
                    if own.collect(&mut queue) {
                        self.settle(own, &mut queue);
                    }
                    add(Some(&mut queue.list));
                }
                None => add(None),
            }
        }
        match self.orphans.try_lock() {
            // Somebody else is running them, or has to bring a batch back first: that one looks again.
            Some(orphans) if orphans.awaited > 0 || orphans.list.in_flight() > 0 => {}
            Some(mut orphans) => add(Some(&mut orphans.list)),
            None => add(None),
        }
        left.unnumbered |= !self.shared.is_empty();
        left
    }
}

/// Runs `f` on a slot's lists; `None` if the owner finds a visitor inside.
///
/// # Safety
/// 1. If `how` says so, the caller owns the slot of `calls`.
unsafe fn enter<L: LocalLock, R>(
    calls: &SlotCalls<L>,
    how: As,
    f: impl FnOnce(&mut SlotQueue) -> R,
) -> Option<R> {
    if how == As::Visitor {
        return Some(f(&mut calls.queue.visit()));
    }
    // SAFETY: the caller owns the slot (1).
    let mut queue = unsafe { calls.queue.try_enter() }?;
    Some(f(&mut queue))
}

/// Runs `callback`; false if it panicked. What it panicked with is dropped, or leaked if even that panics.
#[cfg(feature = "std")]
fn contained(callback: impl FnOnce()) -> bool {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    let Err(payload) = catch_unwind(AssertUnwindSafe(callback)) else {
        return true;
    };
    if let Err(again) = catch_unwind(AssertUnwindSafe(move || drop(payload))) {
        core::mem::forget(again);
    }
    false
}

/// Runs `callback`. Without `std` a panic cannot be caught: one that unwinds ends the program here, before it would
/// leave a batch half run.
#[cfg(not(feature = "std"))]
fn contained(callback: impl FnOnce()) -> bool {
    struct AbortOnUnwind;
    impl Drop for AbortOnUnwind {
        fn drop(&mut self) {
            panic!("a callback panicked, and without `std` nothing can contain it");
        }
    }
    let guard = AbortOnUnwind;
    callback();
    core::mem::forget(guard);
    true
}

#[cold]
#[inline(never)]
fn no_free_object() -> ! {
    panic!(
        "a callback asks to free its object, but this tree was given no way to: see `Tree::with_free`"
    );
}
