//! What the slots of a zone share: the lower level, and the slots' lists with the ways between them.
//!
//! Source: Linux `mm/page_alloc.c` (`rmqueue_bulk`, `free_pcppages_bulk`, `drain_pages_zone`, 6.12 to 7.x), the no-lock
//! paths of 2020 and 2025. Why it lies in the source's metadata and not in the zone: the offline hook must not move,
//! the zone may.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `lower` | the free pages | see [`crate::lower`] and the one in use |
//! | a slot's cell | the slot's lists | its owner, or one visitor, by the local lock |
//! | `total_pages` | pages that the source gave | growers |
//! | `slots_used` | one more than the highest slot that ever set its lists up; only rises | the slot's owner, before its first push |
//!
//! # Life
//! A block: free in the lower level → (refill, a batch at once) `LISTED` → (pop) `ALLOCATED` → (push) `LISTED` → (drain, a
//! batch at once) free; or `ALLOCATED` → free at once where the list is full and nobody may wait.
//!
//! # Invariants
//! - I1. A page is in exactly one place: out, on one list, or in the lower level.
//! - I2. `slots_used` is above every slot whose lists hold anything.
//! - I3. Lock order: slot, then zone (the locks inside the lower level). A visitor waits for the owner before it calls the lower
//!   level, so an owner that waits for a zone lock inside its cell waits for nobody who waits for it.
//! - I4. At most [`CHUNK`] blocks move between a list and the lower level at once (T27).
//!
//! # Orderings
//! - P7. Whoever frees a block puts it somewhere by a Release (lower level, local lock); whoever hands it out took it
//!   from there by an Acquire. Forbids that the new owner's accesses race with the old one's.
//!
//! # Progress and contexts
//! A hit and any attempt up to `TryLock` wait for nobody. `NoWait` waits as the lower level does, for bounded holds at most;
//! not for interrupt handlers that may have interrupted a holder. No foreign code runs under the slot's or a zone's lock;
//! the source runs under `growing`, for which only growers wait.

use crate::api::{AllocError, Attempt, Order};
use crate::broken::broken;
use crate::frames::Frames;
use crate::lower::{Lower, Wanted};
use crate::pcp::{CHUNK, Class, Heights, Pcp};
use crate::runs::{self, Run, Runs};
use crate::source::{Range, Span};
use crate::stats::Counters;
use core::ops::DerefMut;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use rcu_core::cpu::{
    LocalCell, LocalLock, OfflineHook, OwnerGuard, Slot, SpinMutex, ZeroInit, in_register,
};

/// A slot's lists and their lock, in lines of their own (two, for the prefetcher fetches pairs).
#[repr(align(128))]
pub(crate) struct SlotCell<L>(LocalCell<L, Pcp>);

// SAFETY: transparent around a zeroable cell.
unsafe impl<L: LocalLock> ZeroInit for SlotCell<L> {}

/// The slots' cells, in zeroed memory of the source's.
pub(crate) struct Slots<L> {
    first: NonNull<SlotCell<L>>,
    len: usize,
}

impl<L> Clone for Slots<L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for Slots<L> {}

impl<L: LocalLock> Slots<L> {
    /// The cells at `first`.
    ///
    /// # Safety
    /// 1. `first` is the start of `len` all-zero cells, referred to by nothing but copies of this value,
    ///    and valid for as long as one of them is used.
    pub(crate) const unsafe fn from_zeroed(first: NonNull<SlotCell<L>>, len: usize) -> Self
    where
        SlotCell<L>: ZeroInit,
    {
        Self { first, len }
    }

    /// The cell of `slot`, or `None` past the end.
    fn get(&self, slot: Slot) -> Option<&LocalCell<L, Pcp>> {
        if slot.index() >= self.len {
            return None;
        }
        // SAFETY: below the length.
        Some(unsafe { self.get_unchecked(slot) })
    }

    /// # Safety
    /// 1. `slot` is below the length.
    #[inline(always)]
    unsafe fn get_unchecked(&self, slot: Slot) -> &LocalCell<L, Pcp> {
        debug_assert!(slot.index() < self.len);
        // SAFETY: inside the array (debt 1).
        let cell = in_register(unsafe { self.first.add(slot.index()) });
        // SAFETY: zeroed `ZeroInit` (debt of `from_zeroed`), valid for as long as `self` is used.
        let cell = unsafe { cell.as_ref() };
        &cell.0
    }

    /// Enters the caller's own cell; `None` if a visitor is in, or the caller interrupted itself.
    ///
    /// # Safety
    /// 1. `slot` is what `Cpus::current` returned to the caller just now, of the `Cpus` that the zone was made with.
    #[inline(always)]
    pub(crate) unsafe fn enter(&self, slot: Slot) -> Option<OwnerGuard<'_, L, Pcp>> {
        // SAFETY: the array has `nr_slots` cells, and `current` stays below that (`Cpus` 1).
        let cell = unsafe { self.get_unchecked(slot) };
        // SAFETY: the caller is the slot's owner if there must be one (`Cpus` 2).
        unsafe { cell.try_enter() }
    }
}

/// What all slots share. Lies in the source's metadata.
pub(crate) struct Shared<L, B> {
    frames: Frames,
    slots: Slots<L>,
    heights: Heights,
    pub(crate) lower: B,
    total_pages: AtomicUsize,
    pub(crate) counters: Counters,
    /// Held by whoever asks the source for more.
    pub(crate) growing: SpinMutex<()>,
    slots_used: AtomicU32,
    hook: OfflineHook,
}

// SAFETY: every part is `Sync`, the cells too (`Pcp` is `Send`); `slots` points to memory that lives as long.
unsafe impl<L: LocalLock, B: Lower> Sync for Shared<L, B> {}
// SAFETY: as above.
unsafe impl<L: LocalLock, B: Lower> Send for Shared<L, B> {}

impl<L: LocalLock, B: Lower> Shared<L, B> {
    /// An empty zone over an empty `lower`, to be written to `place`.
    pub(crate) fn new(
        place: NonNull<Self>,
        frames: Frames,
        slots: Slots<L>,
        span: Span,
        lower: B,
    ) -> Self {
        // SAFETY: `place` holds the value while the hook is listed, and draining may come from any thread.
        let hook = unsafe { OfflineHook::new(Self::offline, place.as_ptr().cast_const().cast()) };
        Self {
            frames,
            slots,
            heights: Heights::for_span(span.pages),
            lower,
            total_pages: AtomicUsize::new(0),
            counters: Counters::new(),
            growing: SpinMutex::new(()),
            slots_used: AtomicU32::new(0),
            hook,
        }
    }

    /// The hook that empties the lists of a slot that goes offline.
    pub(crate) const fn hook(&self) -> NonNull<OfflineHook> {
        NonNull::from_ref(&self.hook)
    }

    /// # Safety
    /// 1. `data` is the `Shared` that the hook is part of.
    unsafe fn offline(data: *const (), slot: Slot) -> bool {
        // SAFETY: debt 1.
        let shared = unsafe { &*data.cast::<Self>() };
        shared.drain_slot(slot);
        shared.lower.leave(slot);
        true
    }

    /// Pages that the source gave so far.
    pub(crate) fn total_pages(&self) -> usize {
        // ORDERING: Relaxed: a counter.
        self.total_pages.load(Ordering::Relaxed)
    }

    /// Makes the source's `range` free pages of the zone, for `slot` to begin with.
    pub(crate) fn add(&self, slot: Option<Slot>, range: Range) {
        let end = range.first.checked_add(range.pages);
        let len = self.frames.metas.len() as usize;
        let Some(end) = end.filter(|&end| end <= len) else {
            broken(format_args!(
                "the source gave {range:?} of a span of {len} pages"
            ));
        };
        // Before they can be out, so that there are never more out than there are.
        // ORDERING: Relaxed: a counter.
        self.total_pages.fetch_add(range.pages, Ordering::Relaxed);
        let run = Run {
            first: range.first as u32,
            end: end as u32,
            zero: range.zeroed,
        };
        self.lower.add(slot, run);
    }

    /// Takes one block, going as far as `attempt`, but never to the source.
    ///
    /// # Safety
    /// 1. As for [`Slots::enter`], if there is a slot.
    pub(crate) unsafe fn take(
        &self,
        slot: Option<Slot>,
        order: Order,
        attempt: Attempt,
    ) -> Result<u32, AllocError> {
        // SAFETY: debt 1.
        let mut inside = slot.and_then(|slot| unsafe { self.slots.enter(slot) });
        let class = Class::of(order);
        if let (Some(pcp), Some(slot), Some(class)) = (inside.as_deref_mut(), slot, class) {
            self.set_up(pcp, slot);
            if let Some(page) = pcp.pop(class) {
                return Ok(page);
            }
        }
        if attempt == Attempt::PcpOnly {
            let locked_out = slot.is_some() && inside.is_none();
            return Err(if locked_out {
                AllocError::Contended
            } else {
                AllocError::Empty
            });
        }
        let wanted = Wanted::new(order, 1, attempt).on(slot);
        let refilled = self.refill(wanted, inside.as_deref_mut());
        if refilled != Err(AllocError::Exhausted) {
            return refilled;
        }
        // The slot's own lists may hold what merges to a block of this order.
        if attempt >= Attempt::NoWait
            && let Some(mut pcp) = inside
            && self.drain(&mut pcp, slot) > 0
        {
            return self.refill(wanted, None);
        }
        Err(AllocError::Exhausted)
    }

    /// Takes one block out of the lower level for a caller who is inside no list.
    pub(crate) fn take_one(
        &self,
        slot: Option<Slot>,
        order: Order,
        attempt: Attempt,
    ) -> Result<u32, AllocError> {
        self.refill(Wanted::new(order, 1, attempt).on(slot), None)
    }

    /// Takes one block out of the lower level, and a batch for the slot's list with it.
    #[doc(alias = "rmqueue_bulk")]
    fn refill(&self, wanted: Wanted, pcp: Option<&mut Pcp>) -> Result<u32, AllocError> {
        let (metas, order) = (self.frames.metas, wanted.order);
        let list = pcp.zip(Class::of(order));
        let want = list.as_ref().map_or(0, |(pcp, class)| pcp.batch(*class));
        let mut runs = Runs::new();
        let nr = want.max(1);
        self.lower.take(Wanted { nr, ..wanted }, &mut runs)?;
        runs::cut(&runs, metas, order);
        let mut blocks = runs::blocks(&runs, order);
        let mine = blocks.next().ok_or(AllocError::Exhausted)?;
        if let Some((pcp, class)) = list {
            // Backwards: the next allocations get ascending addresses.
            for page in blocks.rev() {
                let fits = pcp.push(class, page);
                debug_assert!(fits, "a batch fits into an empty list");
            }
        }
        Ok(mine)
    }

    /// Takes up to a chunk of blocks straight out of the lower level, as far as `attempt` goes.
    pub(crate) fn take_chunk(
        &self,
        slot: Option<Slot>,
        order: Order,
        want: usize,
        attempt: Attempt,
        runs: &mut Runs,
    ) {
        let wanted = Wanted::new(order, want.min(CHUNK), attempt).on(slot);
        if self.lower.take(wanted, runs).is_ok() {
            runs::cut(runs, self.frames.metas, order);
        }
    }

    /// Takes a block that its owner gave back where it was not put on the slot's list.
    ///
    /// # Safety
    /// 1. As for [`Slots::enter`], if there is a slot.
    #[cold]
    #[inline(never)]
    pub(crate) unsafe fn put(&self, slot: Option<Slot>, page: u32, order: Order, attempt: Attempt) {
        // SAFETY: debt 1.
        let mut inside = slot.and_then(|slot| unsafe { self.slots.enter(slot) });
        let class = Class::of(order);
        if let (Some(pcp), Some(slot), Some(class)) = (inside.as_deref_mut(), slot, class) {
            self.set_up(pcp, slot);
            if pcp.push(class, page) {
                return;
            }
        }
        // At `PcpOnly` the list stays as it is: what the caller pays for is its own block (P16).
        let mut list = inside
            .as_deref_mut()
            .zip(class)
            .filter(|(pcp, class)| attempt > Attempt::PcpOnly && pcp.batch(*class) > 0);
        let mut runs = Runs::new();
        let mut join = |blocks: &[u32]| runs::join(blocks, self.frames.metas, order, &mut runs);
        match &mut list {
            Some((pcp, class)) => {
                pcp.take_oldest(*class, pcp.batch(*class), join);
            }
            None => join(&[page]),
        }
        self.lower.give(slot, &runs, attempt);
        if let Some((pcp, class)) = list {
            let fits = pcp.push(class, page);
            debug_assert!(fits, "a batch has just left the list");
        }
    }

    /// Gives blocks of one order that are the caller's to the zone; at most [`CHUNK`] of them.
    #[doc(alias = "free_pcppages_bulk")]
    pub(crate) fn give(&self, slot: Option<Slot>, blocks: &[u32], order: Order) {
        let mut runs = Runs::new();
        runs::join(blocks, self.frames.metas, order, &mut runs);
        self.lower.give(slot, &runs, Attempt::NoWait);
    }

    /// Lets a slot's lists grow, at its first use.
    #[inline]
    fn set_up(&self, pcp: &mut Pcp, slot: Slot) {
        if !pcp.is_ready() {
            // ORDERING: Release / Acquire in `used_slots`: who sees the slot's first block elsewhere sees this (I2).
            self.slots_used
                .fetch_max(slot.index() as u32 + 1, Ordering::Release);
            pcp.set_up(self.heights);
        }
    }

    /// Every slot that may hold blocks.
    fn used_slots(&self) -> impl Iterator<Item = (Slot, &LocalCell<L, Pcp>)> {
        // ORDERING: Acquire, as in `set_up`. A slot that is missed pushed nothing before the caller's last
        // synchronisation with it; counts of blocks are never read outside the slot's lock (T25).
        let used = self.slots_used.load(Ordering::Acquire);
        (0..used)
            .map(Slot::new)
            .filter_map(|slot| Some((slot, self.slots.get(slot)?)))
    }

    /// Empties the lists of the cell that the caller is inside of; returns the pages moved.
    fn drain(&self, pcp: &mut Pcp, slot: Option<Slot>) -> usize {
        let mut pages = 0;
        for class in Class::all() {
            let order = class.order();
            loop {
                let taken = pcp.take_oldest(class, CHUNK, |blocks| {
                    if !blocks.is_empty() {
                        self.give(slot, blocks, order);
                    }
                });
                if taken == 0 {
                    break;
                }
                pages += taken << order.get();
            }
        }
        pages
    }

    /// Empties a slot's lists, waiting for its owner.
    #[doc(alias = "drain_pages")]
    pub(crate) fn drain_slot(&self, slot: Slot) -> usize {
        // ORDERING: Acquire, as in `used_slots`.
        if slot.index() >= self.slots_used.load(Ordering::Acquire) as usize {
            return 0;
        }
        self.slots
            .get(slot)
            .map_or(0, |cell| self.drain(cell.visit().deref_mut(), None))
    }

    /// Empties every slot's lists, and merges what waits in the lower level.
    #[doc(alias = "drain_all_pages")]
    pub(crate) fn drain_all(&self) -> usize {
        let mut pages = 0;
        for (_, cell) in self.used_slots() {
            pages += self.drain(cell.visit().deref_mut(), None);
        }
        let stashed = self.lower.waiting().pages;
        self.lower.settle();
        pages + stashed
    }

    /// Pages on lists, and allocations that lists served. Visits every slot.
    pub(crate) fn listed(&self) -> (usize, u64) {
        self.used_slots().fold((0, 0), |(pages, hits), (_, cell)| {
            let pcp = cell.visit();
            (pages + pcp.pages(), hits + pcp.hits())
        })
    }
}
