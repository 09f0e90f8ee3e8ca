//! Queueing callbacks, running them when their time has come, and waiting for them.
//!
//! # State
//! | list | holds | guarded by |
//! |---|---|---|
//! | a slot's `callbacks` | what its owner queued | the slot's local lock |
//! | `shared` | what was queued without a slot, or while its lock was taken | nothing: pushed by compare-exchange, taken whole |
//! | `orphans.list` | what came from `shared` and from slots gone offline | its spin lock |
//! | `orphans.last` | a barrier's head when `orphans.list` is empty | the same |
//!
//! # Invariants
//! - I1. One thread at a time takes ready batches out and runs them (`running`), slots first, orphans last; so a
//!   barrier head queued last runs after every batch that was in flight when it was queued.
//! - I2. A callback moves from a slot to the orphans with both locks held, so a barrier, which visits the orphans after
//!   all slots, finds it in one or the other (T39).
//! - I3. Callbacks run with no lock of the tree held but the `running` mark.
//!
//! # Orderings
//! - P4/P5: snapshot, then read the sequence, then advance and accelerate (T38), all under the list's lock.
//! - P8: lists are handed between owner and visitor by the local lock; `shared` by Release push / Acquire take.
//!
//! Lock order: a slot's local lock, then `orphans`.
//!
//! # After a fork
//! In the child, the locks that are held are held by nobody. A list whose lock was free is whole, and its callbacks go to
//! the orphans; one whose lock was held is forgotten with its callbacks, and so is a batch that was being run (`lost`
//! counts both). A barrier that was waiting is forgotten too, and its heads are taken out of the lists.

use crate::gp_seq::GpSeq;
use crate::node::Nodes;
use crate::slot::{BarrierHead, TreeSlot};
use core::ptr::NonNull;
use crossbeam_utils::CachePadded;
use rcu_core::cpu::{LocalLock, PerSlot, SpinMutex};
use rcu_core::sync::Backoff;
use rcu_core::sync::atomic::{AtomicUsize, Ordering};
use rcu_core::{Callback, CbList, Head, HeadStack, SegList};

/// Callbacks that are queued, or run, between two pushes of the grace-period machine: enough to make its heavy fence a
/// small part of their cost, few enough that little waits unnumbered, or behind a long batch.
#[doc(alias = "blimit")]
#[doc(alias = "qhimark")]
const CHUNK: usize = 256;

/// How an object named by its head's offset is freed.
pub type FreeObject = unsafe fn(NonNull<u8>);

#[derive(Debug, Default)]
struct Orphans {
    list: SegList,
    last: CbList,
}

/// The callback side of one tree.
#[derive(Debug)]
pub(crate) struct Callbacks {
    shared: CachePadded<HeadStack>,
    orphans: SpinMutex<Orphans>,
    running: SpinMutex<()>,
    barrier: SpinMutex<BarrierState>,
    invoked: AtomicUsize,
    panicked: AtomicUsize,
    lost: AtomicUsize,
    free_object: Option<FreeObject>,
}

/// What a callback that was queued leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queued {
    /// There was none before: somebody has to be told.
    First,
    /// Others are there already.
    Behind,
    /// A grace period was asked for, which can be pushed on.
    Numbered,
}

/// What one barrier at a time uses.
#[derive(Debug, Default)]
struct BarrierState {
    count: AtomicUsize,
    orphans_head: BarrierHead,
}

/// Where the callbacks are.
pub(crate) struct Lists<'t, 'a, L> {
    pub(crate) gp: &'t GpSeq,
    pub(crate) nodes: &'t Nodes<'a>,
    pub(crate) slots: &'t PerSlot<'a, TreeSlot<L>>,
}

impl Callbacks {
    rcu_core::const_fn! {
        pub(crate) const fn new() -> Self {
            Self {
                shared: CachePadded::new(HeadStack::new()),
                orphans: SpinMutex::new(Orphans { list: SegList::new(), last: CbList::new() }),
                running: SpinMutex::new(()),
                barrier: SpinMutex::new(BarrierState {
                    count: AtomicUsize::new(0),
                    orphans_head: BarrierHead::new(),
                }),
                invoked: AtomicUsize::new(0),
                panicked: AtomicUsize::new(0),
                lost: AtomicUsize::new(0),
                free_object: None,
            }
        }
    }

    pub(crate) const fn set_free(&mut self, free: FreeObject) {
        self.free_object = Some(free);
    }

    pub(crate) fn invoked(&self) -> usize {
        // ORDERING: Relaxed: a statistic.
        self.invoked.load(Ordering::Relaxed)
    }

    pub(crate) fn panicked(&self) -> usize {
        // ORDERING: Relaxed: a statistic.
        self.panicked.load(Ordering::Relaxed)
    }

    pub(crate) fn lost(&self) -> usize {
        // ORDERING: Relaxed: a statistic.
        self.lost.load(Ordering::Relaxed)
    }

    /// Queues `head` on the owner's slot, and says what has to be done about it. Every [`CHUNK`] callbacks the owner
    /// numbers its own, so that grace periods go on though the worker does not get to run.
    ///
    /// # Safety
    /// 1. The debts of `Rcu::call`, the callback being noted in `head`.
    /// 2. The caller owns `slot`, if there is one.
    pub(crate) unsafe fn queue<L: LocalLock>(
        &self,
        gp: &GpSeq,
        slot: Option<&TreeSlot<L>>,
        head: NonNull<Head>,
    ) -> Queued {
        if let Some(slot) = slot {
            // SAFETY: the caller owns the slot (2).
            if let Some(mut list) = unsafe { slot.callbacks.try_enter() } {
                let was_empty = list.is_empty();
                // SAFETY: valid until invoked, on no list, may move to another thread (1).
                unsafe { list.enqueue(head) };
                if was_empty {
                    slot.note(&list);
                    return Queued::First;
                }
                if list.nr_unnumbered() >= CHUNK {
                    number(gp, &mut list);
                    return Queued::Numbered;
                }
                return Queued::Behind;
            }
        }
        // SAFETY: valid until invoked, on no list, may move to another thread (1).
        if unsafe { self.shared.push(head) } {
            Queued::First
        } else {
            Queued::Behind
        }
    }

    /// Moves what is on the shared list to the orphans, oldest first.
    fn take_shared(&self, orphans: &mut Orphans) {
        let mut taken = self.shared.take();
        while let Some(head) = taken.pop_front() {
            // SAFETY: taken off the shared list, so on no list; valid until invoked.
            unsafe { orphans.list.enqueue(head) };
        }
    }

    /// Hands the callbacks of a slot that goes offline to the orphans (G19, S7). True if there were any.
    pub(crate) fn migrate<L: LocalLock>(&self, slot: &TreeSlot<L>) -> bool {
        let mut list = slot.callbacks.visit();
        let moved = list.len() > list.in_flight();
        self.orphans.lock().list.merge(&mut list);
        slot.note(&list);
        moved
    }

    /// Whether any callback is queued anywhere. A hint.
    pub(crate) fn has_work<L: LocalLock>(&self, lists: &Lists<'_, '_, L>) -> bool {
        if !self.shared.is_empty() {
            return true;
        }
        let orphans = self.orphans.lock();
        if !orphans.list.is_empty() || !orphans.last.is_empty() {
            return true;
        }
        drop(orphans);
        let mut any = false;
        lists.nodes.for_each_online(|slot| {
            if let Some(slot) = lists.slots.get(slot) {
                // ORDERING: Relaxed: a hint; the worker's full fence orders it.
                any |= slot.has_callbacks.load(Ordering::Relaxed) != 0;
            }
        });
        any
    }

    /// Numbers what has no number, and runs what is ready, everywhere. Returns how many ran, or `None` if another
    /// thread is at it. `drive` pushes grace periods on in between, so that those queued meanwhile become ready
    /// while a long batch runs.
    pub(crate) fn run<L: LocalLock>(
        &self,
        lists: &Lists<'_, '_, L>,
        drive: impl Fn(),
    ) -> Option<usize> {
        let _running = self.running.try_lock()?;
        let mut ran = 0;
        lists.nodes.for_each_online(|slot| {
            if let Some(slot) = lists.slots.get(slot) {
                ran += self.run_slot(lists.gp, slot, &drive);
            }
        });
        let mut orphans = self.orphans.lock();
        self.take_shared(&mut orphans);
        let batch = take_ready(lists.gp, &mut orphans.list);
        let last = orphans.last.take();
        drop(orphans);
        let count = self.invoke(batch, || {
            let mut orphans = self.orphans.lock();
            self.take_shared(&mut orphans);
            number(lists.gp, &mut orphans.list);
            drop(orphans);
            drive();
        });
        if count > 0 {
            self.orphans.lock().list.finished(count);
        }
        Some(ran + count + self.invoke(last, || ()))
    }

    fn run_slot<L: LocalLock>(&self, gp: &GpSeq, slot: &TreeSlot<L>, drive: impl Fn()) -> usize {
        // ORDERING: Relaxed: a hint; a callback queued just now tells the worker itself.
        if slot.has_callbacks.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let mut list = slot.callbacks.visit();
        let batch = take_ready(gp, &mut list);
        drop(list);
        let count = self.invoke(batch, || {
            number(gp, &mut slot.callbacks.visit());
            drive();
        });
        if count > 0 {
            let mut list = slot.callbacks.visit();
            list.finished(count);
            slot.note(&list);
        }
        count
    }

    /// Runs a batch, oldest first, with no lock held; `between` after every [`CHUNK`].
    fn invoke(&self, mut batch: CbList, between: impl Fn()) -> usize {
        let mut count = 0;
        while let Some(head) = batch.pop_front() {
            // SAFETY: popped heads are valid, and theirs is the last look before their callback.
            let callback = unsafe { head.as_ref() }.callback();
            self.invoke_one(head, callback);
            count += 1;
            if count % CHUNK == 0 && !batch.is_empty() {
                between();
            }
        }
        // ORDERING: Relaxed: a statistic.
        self.invoked.fetch_add(count, Ordering::Relaxed);
        count
    }

    fn invoke_one(&self, head: NonNull<Head>, callback: Callback) {
        let free_object = self.free_object;
        let run = move || match callback {
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
        };
        #[cfg(feature = "std")]
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
            // ORDERING: Relaxed: a statistic.
            self.panicked.fetch_add(1, Ordering::Relaxed);
        }
        #[cfg(not(feature = "std"))]
        run();
    }

    /// Queues a barrier head behind everything and waits until all have run; `push` makes progress meanwhile.
    pub(crate) fn barrier<L: LocalLock>(
        &self,
        lists: &Lists<'_, '_, L>,
        mut push: impl FnMut(&Backoff),
    ) {
        let backoff = Backoff::new();
        let state = loop {
            match self.barrier.try_lock() {
                Some(state) => break state,
                None => push(&backoff),
            }
        };
        // Counts from one, not from zero: a head that runs at once must not finish the barrier (T39).
        // ORDERING: Relaxed: published with the heads.
        state.count.store(1, Ordering::Relaxed);
        lists.nodes.for_each_online(|slot| {
            let Some(slot) = lists.slots.get(slot) else {
                return;
            };
            // ORDERING: Relaxed: a callback queued before this barrier was noted before it, and the note is
            // taken back only when the list is empty.
            if slot.has_callbacks.load(Ordering::Relaxed) == 0 {
                return;
            }
            let mut list = slot.callbacks.visit();
            if !list.is_empty() {
                // ORDERING: Relaxed: published with the head.
                state.count.fetch_add(1, Ordering::Relaxed);
                let head = slot.barrier.arm(&state.count);
                // SAFETY: the slot's barrier head is free (one barrier at a time, which waits for it) and stays.
                let queued = unsafe { list.entrain(head) };
                debug_assert!(queued, "S5: the list was not empty");
            }
        });
        let mut orphans = self.orphans.lock();
        self.take_shared(&mut orphans);
        // ORDERING: Relaxed: published with the head.
        state.count.fetch_add(1, Ordering::Relaxed);
        let head = state.orphans_head.arm(&state.count);
        // SAFETY: as for the slots' heads.
        if !unsafe { orphans.list.entrain(head) } {
            // SAFETY: not entrained, so still on no list.
            unsafe { orphans.last.push_back(head) };
        }
        drop(orphans);
        // ORDERING: P4 (callback's return / barrier's return).
        state.count.fetch_sub(1, Ordering::Release);
        let backoff = Backoff::new();
        // ORDERING: P4 (barrier's side): Acquire meets every head's Release.
        while state.count.load(Ordering::Acquire) != 0 {
            push(&backoff);
        }
    }

    /// Takes every callback to the orphans, the caller's too, in the child of a fork: with all lists empty, the next
    /// callback that is queued is the first one, and its queuer sees to a worker. What another thread was running or
    /// moving is lost: what it holds cannot be found, and its list is not to be trusted.
    ///
    /// # Safety
    /// 1. This is the child of a fork and the caller its only thread, inside none of these functions.
    pub(crate) unsafe fn reset_after_fork<L: LocalLock>(&self, slots: &PerSlot<'_, TreeSlot<L>>) {
        // SAFETY: there is no other thread, and the caller does not hold the mark (1).
        drop(unsafe { self.running.seize() });
        // SAFETY: as above.
        let (barrier, no_barrier) = unsafe { self.barrier.seize() };
        // SAFETY: as above.
        let (mut orphans, whole) = unsafe { self.orphans.seize() };
        let mut lost = settle(&mut orphans.list, whole);
        self.take_shared(&mut orphans);
        for (_, slot) in slots.iter() {
            // SAFETY: as above.
            let (mut list, whole) = unsafe { slot.callbacks.seize() };
            lost += settle(&mut list, whole);
            orphans.list.merge(&mut list);
            slot.note(&list);
        }
        if !no_barrier {
            // Nobody waits for its heads any more, and the next barrier uses them again.
            let orphans_head = NonNull::from(&barrier.orphans_head).cast::<Head>();
            let start = slots.as_ptr().addr().get();
            let in_slots = start..start + slots.len() * size_of::<TreeSlot<L>>();
            orphans
                .list
                .remove_if(|head| head == orphans_head || in_slots.contains(&head.addr().get()));
        }
        orphans.last = CbList::new();
        // ORDERING: Relaxed: a statistic.
        self.lost.fetch_add(lost, Ordering::Relaxed);
    }
}

/// Makes a list usable whose holder, or whose batch's runner, is gone; returns how many callbacks that loses.
fn settle(list: &mut SegList, whole: bool) -> usize {
    if whole {
        let lost = list.in_flight();
        list.finished(lost);
        lost
    } else {
        let lost = list.len();
        *list = SegList::new();
        lost
    }
}

/// Snapshot, advance, accelerate (T38), and the request for what that leads to.
fn number(gp: &GpSeq, list: &mut SegList) {
    if list.is_empty() {
        return;
    }
    let snapshot = gp.snapshot();
    if list.snap_advance_accelerate(snapshot, gp.load()) {
        gp.request(snapshot);
    }
}

/// Numbers what has no number; then what is ready.
fn take_ready(gp: &GpSeq, list: &mut SegList) -> CbList {
    number(gp, list);
    list.extract_done()
}

#[cold]
#[inline(never)]
fn no_free_object() -> ! {
    panic!(
        "a callback asks to free its object, but this tree was given no way to: see `Tree::with_free`"
    );
}
