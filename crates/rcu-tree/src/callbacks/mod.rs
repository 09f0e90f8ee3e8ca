//! Queueing callbacks, running them when their time has come, and waiting for them.
//!
//! `queue`: a slot's lists and `call`; `bypass`: lazy callbacks; `invoke`: running batches; `barrier`: waiting for all.
//!
//! # State
//! | list | holds | guarded by |
//! |---|---|---|
//! | a slot's `queue` | what its owner queued; see `queue` | the slot's local lock |
//! | a slot's `aside` | what its owner queued while the lock was taken; see `queue` | pushed by compare-exchange, taken whole by the lock's holder |
//! | `shared` | what was queued without a slot | nothing: pushed by compare-exchange, taken whole |
//! | `orphans.list` | what came from `shared` and from slots gone offline | its spin lock |
//! | `orphans.awaited` | batches of slots gone offline that are still being run | the same |
//!
//! # Life of a batch
//! Numbered and taken out under the list's lock; run without it, up to the turn's limit, with a push of the grace-period
//! machine after every [`CHUNK`](queue::CHUNK); then, under the lock again, forgotten, and the rest put back in front.
//!
//! # Invariants
//! - I1. A list has at most one batch in flight: who finds one leaves the list alone. A list is run in its order, so a
//!   barrier's head that is queued last runs after all that was there, in flight or not.
//! - I2. A callback moves from a slot to the orphans with both locks held, so a barrier, which visits the orphans after
//!   all slots, finds it in one or the other (T39).
//! - I3. Callbacks run with no lock of the tree held.
//! - I6. A slot that goes offline while a batch of it is in flight is `orphaned` until that batch is back, and is counted
//!   in `awaited`; meanwhile no orphan is run. So the rest of the batch still comes in front of what was behind it.
//!
//! I4, I5, I10 and I11 are in `queue`, I7 to I9 in `barrier`.
//!
//! # Orderings
//! - P4/P5: snapshot, then read the sequence, then advance and accelerate (T38), all under the list's lock.
//! - P8: lists are handed between owner and visitor by the local lock; `shared` and `aside` by Release push / Acquire take; a
//!   slot's `hint` by Release store / Acquire load: who sees it cleared sees where its callbacks went.
//!
//! # Progress and contexts
//! `call` is wait-free but for a push to `shared` or `aside`, which is lock-free; all in any context. Who finds callbacks aside
//! takes them in, a few instructions for each that was pushed there instead. Running takes each list's lock for
//! a moment, twice a turn. One callback that does not return holds up its own list, and if that is the orphans' or an
//! orphaned one, the orphans; nothing else, where other lists have somebody to run them.
//!
//! Lock order: a slot's local lock, then `orphans`.
//!
//! # After a fork
//! In the child, the locks that are held are held by nobody (`fork`). A list whose lock was free is whole, and its callbacks
//! go to the orphans, lazy ones too; one whose lock was held is forgotten with its callbacks, and so is a batch that was being
//! run: nothing is in flight nor `awaited` any more (`lost` counts these callbacks). A barrier that was waiting is forgotten
//! too, and its heads are taken out of the lists.

mod barrier;
mod bypass;
mod config;
mod fork;
mod invoke;
#[cfg(loom)]
#[doc(hidden)]
pub mod model;
mod queue;
mod stats;
#[cfg(all(test, not(loom)))]
mod tests;

pub use config::CallbackConfig;
pub use stats::CallbackStats;

pub(crate) use queue::{CHUNK, Queued, SlotCalls};

use crate::gp_seq::GpSeq;
use crate::node::Nodes;
use crate::slot::TreeSlot;
use barrier::{Barrier, BarrierHead};
use core::ptr::NonNull;
use crossbeam_utils::CachePadded;
use rcu_core::cpu::{LocalLock, PerSlot, Slot, SpinMutex};
use rcu_core::sync::atomic::{AtomicUsize, Ordering};
use rcu_core::{HeadStack, SegList};
use stats::SlotStats;

/// How an object named by its head's offset is freed.
pub type FreeObject = unsafe fn(NonNull<u8>);

#[derive(Debug, Default)]
struct Orphans {
    list: SegList,
    /// Batches of slots gone offline that are still being run (I6).
    awaited: usize,
}

/// The callback side of one tree.
#[derive(Debug)]
pub(crate) struct Callbacks {
    shared: CachePadded<HeadStack>,
    orphans: SpinMutex<Orphans>,
    barrier: Barrier,
    config: CallbackConfig,
    free_object: Option<FreeObject>,
    /// How many slots are overloaded.
    overloaded: AtomicUsize,
    hurried: bypass::Hurried,
    /// Zero while a thread of ours runs everybody's callbacks; one while slots' owners run their own.
    by_owners: AtomicUsize,
    lost: AtomicUsize,
    total: SlotStats,
}

/// Where the callbacks are.
pub(crate) struct Lists<'t, 'a, L, T> {
    pub(crate) gp: &'t GpSeq,
    pub(crate) nodes: &'t Nodes<'a>,
    pub(crate) slots: &'t PerSlot<'a, TreeSlot<L>>,
    pub(crate) trace: &'t T,
}

impl<L: LocalLock, T> Lists<'_, '_, L, T> {
    /// Calls `f` for each slot that takes part now.
    fn for_each(&self, mut f: impl FnMut(&SlotCalls<L>)) {
        self.nodes.for_each_online(|slot| {
            if let Some(slot) = self.slots.get(slot) {
                f(&slot.calls);
            }
        });
    }
}

impl Callbacks {
    rcu_core::const_fn! {
        pub(crate) const fn new() -> Self {
            Self {
                shared: CachePadded::new(HeadStack::new()),
                orphans: SpinMutex::new(Orphans { list: SegList::new(), awaited: 0 }),
                barrier: Barrier::new(),
                config: CallbackConfig::new(),
                free_object: None,
                overloaded: AtomicUsize::new(0),
                hurried: AtomicUsize::new(0),
                by_owners: AtomicUsize::new(0),
                lost: AtomicUsize::new(0),
                total: SlotStats::new(),
            }
        }
    }

    pub(crate) const fn set_free(&mut self, free: FreeObject) {
        self.free_object = Some(free);
    }

    pub(crate) const fn set_config(&mut self, config: CallbackConfig) {
        self.config = config;
    }

    pub(crate) fn invoked(&self) -> usize {
        self.total.invoked()
    }

    pub(crate) fn panicked(&self) -> usize {
        self.total.panicked()
    }

    /// Whether everybody's callbacks are for one thread to run (G21).
    pub(crate) fn is_offloaded(&self) -> bool {
        // ORDERING: Relaxed: who queues or looks for work runs a full fence first; lists have one runner anyway (I1).
        self.by_owners.load(Ordering::Relaxed) == 0
    }

    pub(crate) fn set_offloaded(&self, offloaded: bool) {
        // ORDERING: Relaxed: as above.
        self.by_owners
            .store(usize::from(!offloaded), Ordering::Relaxed);
    }

    /// Moves what is on the shared list to the orphans, oldest first.
    fn take_shared(&self, orphans: &mut Orphans) {
        orphans.list.insert_pending(self.shared.take());
    }

    /// Hands the callbacks of a slot that goes offline to the orphans (G19, S7). True if there were any.
    pub(crate) fn migrate<L: LocalLock>(&self, calls: &SlotCalls<L>) -> bool {
        let mut queue = calls.queue.visit();
        queue.unpark();
        calls.collect(&mut queue);
        let in_flight = queue.list.in_flight();
        let moved = queue.list.len() - in_flight;
        if rcu_core::weakened!("t39") {
            // The mutant: callbacks are on their way with no lock held (I2).
            let mut taken = SegList::new();
            taken.merge(&mut queue.list);
            self.settle(calls, &mut queue);
            drop(queue);
            self.orphans.lock().list.merge(&mut taken);
            return moved > 0;
        }
        let mut orphans = self.orphans.lock();
        orphans.list.merge(&mut queue.list);
        if in_flight > 0 && !queue.orphaned {
            queue.orphaned = true;
            orphans.awaited += 1;
        }
        drop(orphans);
        calls.stats.moved(moved);
        self.settle(calls, &mut queue);
        moved > 0
    }

    /// Whether any callback is queued that a thread of ours is to see to, lazy ones not counted. A hint.
    #[cfg(feature = "std")]
    pub(crate) fn has_work<L: LocalLock, T>(&self, lists: &Lists<'_, '_, L, T>) -> bool {
        if self.has_orphans() {
            return true;
        }
        let mut any = false;
        if self.is_offloaded() {
            lists.for_each(|calls| any |= calls.has_callbacks());
        }
        any
    }

    /// Whether a callback is queued anywhere, lazy ones not counted. A hint.
    pub(crate) fn has_any<L: LocalLock, T>(&self, lists: &Lists<'_, '_, L, T>) -> bool {
        let mut any = self.has_orphans();
        lists.for_each(|calls| any |= calls.has_callbacks());
        any
    }

    fn has_orphans(&self) -> bool {
        if !self.shared.is_empty() {
            return true;
        }
        let orphans = self.orphans.lock();
        !orphans.list.is_empty() || orphans.awaited > 0
    }

    /// Everybody's counts.
    pub(crate) fn stats<L: LocalLock, T>(&self, lists: &Lists<'_, '_, L, T>) -> CallbackStats {
        let (mut waiting, mut lazy, mut escalations) = (0, 0, 0);
        for (_, slot) in lists.slots.iter() {
            escalations += slot.calls.stats.read(0, 0).flood_escalations;
        }
        lists.for_each(|calls| {
            let (its, parked) = self.waiting_on(calls);
            waiting += its;
            lazy += parked;
        });
        waiting += self.orphans.lock().list.len();
        CallbackStats {
            flood_escalations: escalations,
            ..self.total.read(waiting, lazy)
        }
    }

    /// One slot's counts.
    pub(crate) fn slot_stats<L: LocalLock, T>(
        &self,
        lists: &Lists<'_, '_, L, T>,
        slot: Slot,
    ) -> Option<CallbackStats> {
        let calls = &lists.slots.get(slot)?.calls;
        let (waiting, lazy) = self.waiting_on(calls);
        Some(calls.stats.read(waiting, lazy))
    }

    /// How many callbacks a slot holds, parked ones included, and how many are parked.
    fn waiting_on<L: LocalLock>(&self, calls: &SlotCalls<L>) -> (usize, usize) {
        if calls.is_idle() {
            return (0, 0);
        }
        let mut queue = calls.queue.visit();
        if calls.collect(&mut queue) {
            self.settle(calls, &mut queue);
        }
        (queue.list.len() + queue.bypass.len(), queue.bypass.len())
    }
}
