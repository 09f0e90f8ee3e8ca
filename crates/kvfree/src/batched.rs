//! The batching front end: `kvfree_rcu` with blocks, heads and a barrier.
//!
//! Source: Linux `mm/slab_common.c` and before it `kernel/rcu/tree.c`, `kvfree_rcu` (K2–K11, K14; facts only).
//! Why not one callback an object: a grace period and a list walk for each batch of callbacks; here a page of
//! pointers shares one cookie and is freed in bulk, without a callback's round trip.
//!
//! # Life of an object
//! Offered to its allocator first ([`Objects::try_defer`], the sheaves of `slab`) → else into its channel's open
//! [block](crate::block) → block full, in line → its cookie is done → freed in bulk. No block to be had → linked by its
//! embedded head. No head either (headless) → `synchronize`, free.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | a slot's `waiting` | see [`waiting`](crate::waiting) | who holds the slot's local lock |
//! | a slot's `rounds` | see [`rounds`](crate::rounds): somebody frees what it took out of this slot | by anyone |
//! | a slot's `nonempty` | something may wait here | under the local lock |
//! | `used` | slots from here on were never used | raised by owners |
//! | a slot's `owes` | see [`help`]: after how many calls its owner frees some of what is ripe | its owner |
//! | a slot's `back_off` | rounds of the monitor until blocks are kept here again (K7) | the shrinker, the monitor |
//! | `shared` | see [`shared`](crate::shared): objects retired while the local lock was taken or without a slot | by anyone |
//! | `passes` | see [`passes`](crate::passes): barriers that are on, and over | barriers |
//! | `round` | how often the monitor came by | the monitor |
//!
//! # Invariants
//! - I1. What is taken out of a slot is freed by the taker before its round ends, or by a barrier before its pass ends;
//!   so a pass that empties every slot and then waits for the rounds it met has seen everything freed.
//! - I2. No object's memory, destructor or function is touched under a local lock.
//! - I3. Bytes are charged under the lock under which they are added, so before anyone can discharge them.
//!
//! # Orderings
//! - P5: cookies are snapshots taken after the object was unlinked, under the lock that seals them in.
//! - P8: a slot's `waiting` between owner and visitors; `shared` by Release push and Acquire take; the end of a round
//!   (Release) and the barrier that waits for it (Acquire).
//!
//! # Progress and contexts
//! `retire` is wait-free but for the shared push (lock-free); it may run inside a section, in callbacks and in signal
//! handlers: it frees nothing and gives no page back, for that waits for the allocators' locks, which the interrupted
//! code may hold. `retire_mightsleep` frees what has become ripe on the spot, and like `barrier` may block. Lock order: `barrier_lock`, a slot's local lock, `orphans`, then
//! the page allocator's.

mod fork;
mod hand_over;
mod help;
mod push;
mod reclaim;
mod shrink;
mod tick;

use crate::block::Kind;
use crate::budget::Budget;
use crate::config::Config;
use crate::doubles::Doubles;
use crate::freeing::Freeing;
use crate::objects::{DeferFree, Objects};
use crate::passes::Passes;
use crate::rounds::Rounds;
use crate::shared::Shared;
use crate::stats::{Counters, KvfreeStats, SlotStats};
use crate::waiting::{Pushed, Waiting};
use core::cell::UnsafeCell;
use core::fmt;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use pagealloc::{AllocError, Order, PageAlloc, PageReq, PressureHook};
use rcu_core::cpu::{Cpus, LocalCell, OfflineHook, PerSlot, Slot, SpinMutex, ZeroInit};
use rcu_core::sync::Backoff;
use rcu_core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use rcu_core::{Callback, Head, HeadOffset, Rcu};
use reclaim::Taken;

/// Objects linked by heads in one slot before a grace period is asked for: as many as [`Config`]'s blocks hold.
const ASK_HEADS: usize = 8192;

/// What the caller of a push allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Context {
    /// A section, a callback, a signal handler: no lock but the slot's own, nothing is freed here (K2, K6).
    Any,
    /// What is ripe may be freed on the spot: the allocators' locks may be waited for.
    MaySleep,
}

/// What one slot has.
#[repr(C, align(128))]
pub(crate) struct KvSlot<L> {
    waiting: LocalCell<L, Waiting>,
    rounds: Rounds,
    nonempty: AtomicU32,
    owes: AtomicU32,
    back_off: AtomicU32,
}

// SAFETY: a zeroed lock and `Waiting`, and zero words: nothing waits, nobody reaps.
unsafe impl<L: rcu_core::cpu::LocalLock> ZeroInit for KvSlot<L> {}

/// Lives at the front of the front end's own pages, so that the offline hook stays in place.
struct Inner<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> {
    cpus: C,
    pages: P,
    rcu: R,
    objects: O,
    config: Config,
    slots: PerSlot<'static, KvSlot<C::Lock>>,
    used: AtomicUsize,
    shared: Shared,
    budget: Budget,
    orphans: SpinMutex<Waiting>,
    barrier_lock: SpinMutex<()>,
    passes: Passes,
    round: AtomicU32,
    counters: Counters,
    doubles: Doubles,
    hook: UnsafeCell<MaybeUninit<OfflineHook>>,
    pressure: PressureHook,
}

/// `kvfree_rcu`, batched: retires objects of `O` (and anything else, with a function that drops it), frees them after
/// a grace period of `R`, in blocks from `P`.
///
/// The process-wide one, ready made, is behind feature `std`: [`crate::stack`](mod@crate::stack). Two front ends share nothing.
pub struct Kvfree<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> {
    inner: NonNull<Inner<C, P, R, O>>,
    order: Order,
}

// SAFETY: a handle to an `Inner` whose shared state is behind locks and atomics.
unsafe impl<C, P, R, O> Send for Kvfree<C, P, R, O>
where
    C: Cpus + Send + Sync,
    P: PageAlloc,
    R: Rcu + Send + Sync,
    O: Objects + Send + Sync,
{
}
// SAFETY: as above.
unsafe impl<C, P, R, O> Sync for Kvfree<C, P, R, O>
where
    C: Cpus + Send + Sync,
    P: PageAlloc,
    R: Rcu + Send + Sync,
    O: Objects + Send + Sync,
{
}

impl<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> Kvfree<C, P, R, O> {
    /// A front end over these layers, with an array of slots in pages of its own.
    ///
    /// # Errors
    /// There are no pages for the slots.
    ///
    /// # Safety
    /// 1. Objects that `objects` defers by itself wait for the grace periods of this same `rcu`.
    /// 2. What `cpus`, `pages`, `rcu` and `objects` borrow outlives the front end, even if the handle is forgotten.
    ///
    /// For an example see `examples/kernel`, and [`stack`](mod@crate::stack) for the stack that is put together so.
    pub unsafe fn new(
        cpus: C,
        pages: P,
        rcu: R,
        objects: O,
        config: Config,
    ) -> Result<Self, AllocError> {
        let at = size_of::<Inner<C, P, R, O>>().next_multiple_of(align_of::<KvSlot<C::Lock>>());
        let layout = PerSlot::<KvSlot<C::Lock>>::layout(cpus.nr_slots());
        let order = Order::for_size(at + layout.size()).ok_or(AllocError::Invalid)?;
        let memory = pages.alloc(PageReq::new(order).zeroed())?;
        // SAFETY: the slots lie behind `Inner` in the same block.
        let slots = unsafe { memory.add(at) };
        // SAFETY: zeroed, aligned (pages, and `at` by rounding up), large enough, ours until `drop`.
        let slots = unsafe { PerSlot::from_zeroed(slots, cpus.nr_slots()) };
        let inner = memory.cast::<Inner<C, P, R, O>>();
        let value = Inner {
            cpus,
            pages,
            rcu,
            objects,
            config,
            slots,
            used: AtomicUsize::new(0),
            shared: Shared::new(),
            budget: Budget::new(config.soft_bytes, config.hard_bytes),
            orphans: SpinMutex::new(Waiting::new()),
            barrier_lock: SpinMutex::new(()),
            passes: Passes::new(),
            round: AtomicU32::new(0),
            counters: Counters::default(),
            doubles: Doubles::new(),
            hook: UnsafeCell::new(MaybeUninit::uninit()),
            // SAFETY: whoever lists it answers for that (see `shrinker`).
            pressure: unsafe {
                PressureHook::new(Self::shrink, inner.as_ptr().cast_const().cast())
            },
        };
        // SAFETY: the block is ours, aligned to pages and large enough.
        unsafe { inner.write(value) };
        let this = Self { inner, order };
        let data = inner.as_ptr().cast_const().cast();
        // SAFETY: `offline_hook` may run on any slot's owner until `drop` takes the hook off.
        let hook = unsafe { OfflineHook::new(Self::offline_hook, data) };
        // SAFETY: `fork_hook` may run in the child of a fork until `drop` takes the hook off.
        let hook = unsafe { hook.with_fork(Self::fork_hook) };
        // SAFETY: nobody else knows the cell yet.
        let place = unsafe { &mut *this.inner().hook.get() };
        let hook = NonNull::from(place.write(hook));
        // SAFETY: it stays in the pages until `drop` has removed it; it is on no list.
        unsafe { this.inner().cpus.add_offline_hook(hook) };
        Ok(this)
    }

    #[inline(always)]
    fn inner(&self) -> &Inner<C, P, R, O> {
        // SAFETY: written in `new`, valid until `drop`.
        unsafe { self.inner.as_ref() }
    }

    /// The allocator whose objects are retired.
    #[inline]
    pub fn objects(&self) -> &O {
        &self.inner().objects
    }

    /// The RCU whose grace periods are waited for.
    pub fn rcu(&self) -> &R {
        &self.inner().rcu
    }

    /// What waits, and how objects went. Visits every slot in use.
    #[must_use]
    pub fn stats(&self) -> KvfreeStats {
        let inner = self.inner();
        let mut stats = inner.counters.read();
        inner.count_deferred();
        stats.bytes_charged = inner.budget.waiting();
        stats.bytes_limit = inner.budget.limit();
        stats.overdrawn = inner.budget.overdrawn();
        stats.barrier_passes = inner.passes.count();
        stats.doubles = inner.doubles.seen();
        for slot in inner.used_slots() {
            stats.add(&SlotStats::of(&slot.waiting.visit(), inner.now()));
        }
        stats.add(&SlotStats::of(&inner.orphans.lock(), inner.now()));
        stats.objects_waiting += inner.shared.objects();
        stats.bytes_waiting += inner.shared.bytes();
        stats
    }

    /// What waits on one slot; `None` if nothing was ever retired there.
    #[must_use]
    pub fn slot_stats(&self, slot: Slot) -> Option<SlotStats> {
        let inner = self.inner();
        // ORDERING: Relaxed: a statistic.
        let is_used = slot.index() < inner.used.load(Ordering::Relaxed);
        is_used.then(|| SlotStats::of(&inner.slot(slot).waiting.visit(), inner.now()))
    }

    /// [`Self::stats`] for people, with a line for each slot on which something waits.
    pub fn report(&self) -> impl fmt::Display + '_ {
        fmt::from_fn(|f| {
            write!(f, "{}", self.stats())?;
            for number in 0..self.inner().cpus.nr_slots() {
                match self.slot_stats(Slot::new(number as u32)) {
                    Some(slot) if slot.objects_waiting > 0 => write!(f, "\nslot {number}: {slot}")?,
                    _ => {}
                }
            }
            Ok(())
        })
    }

    /// Waits until what was retired before, by any thread, to this front end or to `cache` is free, but not for what waits with the front
    /// end's own allocator, as [`DeferFree::barrier`] does: for a cache that is about to be destroyed. Objects of the cache may have come
    /// by either way.
    ///
    /// # Panics
    /// As for [`DeferFree::barrier`].
    #[cfg(feature = "slab")]
    #[doc(alias = "kvfree_rcu_barrier_on_cache")]
    pub fn barrier_on<S: Cpus, Q: PageAlloc, G: rcu_core::GracePeriod>(
        &self,
        cache: &slab::RawCache<S, Q, G>,
    ) {
        self.inner().barrier();
        cache.barrier();
    }
}

// SAFETY: 1: each way out is a batch with its own cookie (I1 of `waiting`) or a `synchronize`, taken out once;
// 2: `retire` uses try-locks, `PcpOnly` and the lock-free shared list; 3: I1.
unsafe impl<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> DeferFree for Kvfree<C, P, R, O> {
    #[inline]
    unsafe fn retire(&self, head: NonNull<Head>, offset: HeadOffset) {
        // SAFETY: the caller's debt 1.
        let object = unsafe { offset.object(head) };
        // Before it goes anywhere, for nobody looks at the head where it goes (K18).
        // SAFETY: the head is valid (1).
        if !unsafe { head.as_ref() }.begin_call(Callback::Free(offset)) {
            return;
        }
        // SAFETY: the caller's debts 1 and 2.
        if !unsafe { self.inner().objects.try_defer_hit(object) } {
            self.retire_with_head(object, head);
        }
    }

    #[inline]
    unsafe fn retire_mightsleep(&self, object: NonNull<u8>) {
        // SAFETY: the caller's debt 1.
        if !unsafe { self.inner().objects.try_defer_hit(object) } {
            self.retire_slow(object);
        }
    }

    fn barrier(&self) {
        self.inner().barrier();
        self.inner().objects.barrier();
    }
}

impl<L> KvSlot<L> {
    fn note_nonempty(&self, nonempty: bool) {
        // ORDERING: Relaxed: under the local lock; a hint to others.
        self.nonempty.store(u32::from(nonempty), Ordering::Relaxed);
    }
}

impl<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> Inner<C, P, R, O> {
    /// Waits until what was retired before, on any slot, is free; without what the allocator deferred by itself.
    fn barrier(&self) {
        assert!(
            !self.is_freeing(),
            "a barrier inside a destructor of what was retired would wait for that destructor"
        );
        let ticket = self.passes.enter();
        let backoff = Backoff::new();
        while !self.passes.is_over(ticket) {
            match self.barrier_lock.try_lock() {
                // Another's pass may have ended just now.
                Some(_lock) if !self.passes.is_over(ticket) => self.run_pass(),
                Some(_) => {}
                None => self.config.pause(&backoff),
            }
        }
    }

    /// Frees what waits anywhere. The caller holds the barriers' lock.
    fn run_pass(&self) {
        let pass = self.passes.begin();
        // Every slot, unconditionally (T15), then the orphans: a slot that goes offline meanwhile moves its
        // batches there under both locks.
        let mut all = Taken::new(self);
        for slot in self.used_slots() {
            let mut waiting = slot.waiting.visit();
            all.batch.append(waiting.take_all(&self.rcu));
            slot.note_nonempty(false);
            drop(waiting);
            slot.rounds.wait({
                let backoff = Backoff::new();
                move || self.config.pause(&backoff)
            });
        }
        let mut orphans = self.orphans.lock();
        self.take_shared(&mut orphans);
        all.batch.append(orphans.take_all(&self.rcu));
        drop(orphans);
        if !all.batch.is_empty() {
            if !self.rcu.poll(all.batch.cookie) {
                self.rcu.start();
                self.rcu.wait(all.batch.cookie);
            }
            let empty = self.free(all.into_batch());
            self.free_blocks(empty);
        }
        pass.end();
    }

    /// What the front end is known by.
    fn identity(&self) -> *const () {
        core::ptr::from_ref(self).cast()
    }

    /// Whether the caller is a destructor of what was retired, or what that calls. Without `std`, does not notice.
    fn is_freeing(&self) -> bool {
        Freeing::is_on(self.identity())
    }

    /// The monitor's round.
    fn now(&self) -> u32 {
        // ORDERING: Relaxed: a number for reports.
        self.round.load(Ordering::Relaxed)
    }
}

impl<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> Inner<C, P, R, O> {
    #[inline]
    fn slot(&self, slot: Slot) -> &KvSlot<C::Lock> {
        // SAFETY: `Cpus` guarantees slots below `nr_slots`, which is the array's length.
        unsafe { self.slots.get_unchecked(slot) }
    }

    /// The slots that may ever have been used.
    fn used_slots(&self) -> impl Iterator<Item = &KvSlot<C::Lock>> {
        // ORDERING: P8 (Acquire meets the owner's Release): who retired before is below it.
        let used = self.used.load(Ordering::Acquire);
        self.slots.iter().take(used).map(|(_, slot)| slot)
    }

    /// Notes, under the slot's lock, that something waits there now.
    fn note(&self, number: Slot, slot: &KvSlot<C::Lock>, first: bool) {
        if first {
            slot.note_nonempty(true);
            // ORDERING: P8 (Release): the slot is found by whoever comes after its owner's retiring.
            self.used.fetch_max(number.index() + 1, Ordering::AcqRel);
        }
    }

    /// Whether so much came to the slot since a grace period was last asked for that it is time for another one; above the slot's limit it
    /// always is, with every block and every chunk of bytes. Of foreign objects, which go back to their allocator by portions, a part is
    /// enough: see [`help`].
    fn wants_to_ask(&self, waiting: &mut Waiting, pushed: Pushed, kind: Kind) -> bool {
        if !pushed.sealed && pushed.charge == 0 {
            return false;
        }
        if waiting.bytes() > self.config.slot_bytes {
            return true;
        }
        let part = if kind.is_foreign() { help::PART } else { 1 };
        let (blocks, bytes) = (self.config.ask_blocks, self.config.ask_bytes);
        waiting.should_ask(blocks.div_ceil(part), bytes.div_ceil(part))
            || (pushed.sealed && self.budget.is_over_soft())
    }
}

impl<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> Drop for Kvfree<C, P, R, O> {
    /// Waits until everything retired is free. A monitor must have been stopped before.
    fn drop(&mut self) {
        self.barrier();
        let inner = self.inner();
        // SAFETY: written in `new`; removed from the list just below, and not touched otherwise.
        let hook = unsafe { NonNull::new_unchecked(inner.hook.get()) };
        // SAFETY: this value's hook, which is about to go.
        unsafe { inner.cpus.remove_offline_hook(hook.cast()) };
        for slot in inner.used_slots() {
            let stock = slot.waiting.visit().take_stock();
            inner.free_blocks(stock);
        }
        // SAFETY: nobody uses the handle any more; the value is taken out once.
        let value = unsafe { self.inner.read() };
        // SAFETY: the block came from `pages` with this order in `new`; the hook is off the list.
        unsafe { value.pages.free(self.inner.cast(), self.order) };
    }
}

impl<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> fmt::Debug for Kvfree<C, P, R, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kvfree")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
