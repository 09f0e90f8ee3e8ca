//! What the slots of a zone share: the zone lock with the buddy system under it, the stash, and the
//! slots' lists with the ways between them.
//!
//! Source: Linux `mm/page_alloc.c` (`rmqueue_bulk`, `free_pcppages_bulk`, `drain_pages_zone`, 6.12 to 7.x), the no-lock
//! paths of 2020 and 2025. Why it lies in the source's metadata and not in the zone: the offline hook must not move,
//! the zone may.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `free` | the buddy system, and the part of the stash that is being worked off | the zone-lock holder |
//! | a slot's cell | the slot's lists | its owner, or one visitor, by the local lock |
//! | `stash` | freed blocks that wait | see [`crate::stash`] |
//! | `isolated` | free pages kept for a region's removal: a counter | the holder of `growing` |
//! | `extent` | one past the last page that the zone ever had: a bound for pictures; only rises | the holder of `growing` |
//! | `slots_used` | one more than the highest slot that ever set its lists up; only rises | the slot's owner, before its first push |
//!
//! # Life
//! A block: `FREE` in the buddy system → (refill, a batch under one hold) `LISTED` → (pop) `ALLOCATED` → (push)
//! `LISTED` → (drain, a batch under one hold) `FREE`; or `ALLOCATED` → `STASHED` → `FREE` where nobody may wait.
//!
//! # Invariants
//! - I1. A page is in exactly one place: out, on one list, in the stash, in the buddy system, or kept by the holder of `growing`.
//! - I2. `slots_used` is above every slot whose lists hold anything.
//! - I3. Lock order: slot, then zone. A visitor waits for the owner before it takes the zone lock, so an owner that waits
//!   for the zone lock inside its cell waits for nobody who waits for it.
//! - I4. At most [`CHUNK`] blocks move between a list and the zone, and another [`CHUNK`] leave the stash, under one hold (T27).
//!
//! # Orderings
//! - P7. Whoever frees a block puts it somewhere by a Release (zone lock, local lock, stash); whoever hands it out took it
//!   from there by an Acquire. Forbids that the new owner's accesses race with the old one's.
//!
//! # Progress and contexts
//! A hit and any attempt up to `TryLock` wait for nobody. `NoWait` spins on the zone lock, whose holds are bounded
//! (I4); not for interrupt handlers that may have interrupted a holder. No foreign code runs under the slot's or the zone's lock;
//! the source runs under `growing`, for which only growers wait, and who adds or removes a region.

mod memory;

use crate::api::{AllocError, Attempt, Order, PageTag};
use crate::broken::broken;
use crate::buddy::Buddy;
use crate::frames::Frames;
use crate::index::{self, NONE};
use crate::pcp::{CHUNK, Class, Heights, Pcp};
use crate::regions::{RegionError, Regions};
use crate::runs::{self, Run, Runs};
use crate::source::{Range, SourceError, Span};
use crate::stash::Stash;
use crate::stats::{Counters, SlotStats};
use core::ops::DerefMut;
use core::ptr::NonNull;
use rcu_core::cpu::{
    LocalCell, LocalLock, OfflineHook, OwnerGuard, Slot, SpinGuard, SpinMutex, ZeroInit,
    in_register,
};
use rcu_core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// A slot's lists and their lock, in lines of their own (two, for the prefetcher fetches pairs).
#[repr(align(128))]
pub(crate) struct SlotCell<L>(LocalCell<L, Pcp>);

// SAFETY: transparent around a zeroable cell.
unsafe impl<L: LocalLock> ZeroInit for SlotCell<L> {}

#[cfg(loom)]
impl<L: LocalLock> SlotCell<L> {
    /// A cell for a model: loom's words must be made, zeroed memory will not do.
    pub(crate) const fn new(lock: L, pcp: Pcp) -> Self {
        Self(LocalCell::new(lock, pcp))
    }
}

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

/// What the zone lock guards.
#[derive(Debug)]
pub(crate) struct Free {
    pub(crate) buddy: Buddy,
    /// A chain taken from the stash and not worked off yet.
    pending: u32,
    /// Pages that the source gave.
    pub(crate) total_pages: usize,
}

/// The zone lock, in lines of its own.
#[repr(align(128))]
struct ZoneLock {
    free: SpinMutex<Free>,
    /// Whoever touches the lock panics: for tests which show that somebody does not.
    #[cfg(debug_assertions)]
    forbidden: core::sync::atomic::AtomicBool,
}

impl ZoneLock {
    #[inline]
    fn touched(&self) {
        #[cfg(debug_assertions)]
        assert!(
            // ORDERING: Relaxed: set before the threads that it is about start.
            !self.forbidden.load(Ordering::Relaxed),
            "the zone lock is touched"
        );
    }

    fn lock(&self) -> SpinGuard<'_, Free> {
        self.touched();
        self.free.lock()
    }

    fn try_lock(&self) -> Option<SpinGuard<'_, Free>> {
        self.touched();
        self.free.try_lock()
    }
}

/// What all slots share. Lies in the source's metadata.
pub(crate) struct Shared<L> {
    frames: Frames,
    slots: Slots<L>,
    heights: Heights,
    free: ZoneLock,
    pub(crate) stash: Stash,
    pub(crate) counters: Counters,
    /// The zone's regions; held by whoever asks the source for more, adds a region or removes one.
    pub(crate) growing: SpinMutex<Regions>,
    /// Free pages kept for a region's removal.
    isolated: AtomicUsize,
    slots_used: AtomicU32,
    /// One past the last page that the zone ever had; only rises.
    extent: AtomicU32,
    hook: OfflineHook,
}

// SAFETY: every part is `Sync`, the cells too (`Pcp` is `Send`); `slots` points to memory that lives as long.
unsafe impl<L: LocalLock> Sync for Shared<L> {}
// SAFETY: as above.
unsafe impl<L: LocalLock> Send for Shared<L> {}

impl<L: LocalLock> Shared<L> {
    /// An empty zone, to be written to `place`.
    pub(crate) fn new(place: NonNull<Self>, frames: Frames, slots: Slots<L>, span: Span) -> Self {
        let bias = index::bias(span.base.as_ptr().addr());
        // SAFETY: `place` holds the value while the hook is listed, and draining may come from any thread.
        let hook = unsafe { OfflineHook::new(Self::offline, place.as_ptr().cast_const().cast()) };
        Self {
            frames,
            slots,
            heights: Heights::for_span(span.pages),
            free: ZoneLock {
                free: SpinMutex::new(Free {
                    buddy: Buddy::new(bias),
                    pending: NONE,
                    total_pages: 0,
                }),
                #[cfg(debug_assertions)]
                forbidden: core::sync::atomic::AtomicBool::new(false),
            },
            stash: Stash::new(),
            counters: Counters::new(),
            growing: SpinMutex::new(Regions::new()),
            isolated: AtomicUsize::new(0),
            slots_used: AtomicU32::new(0),
            extent: AtomicU32::new(0),
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
        true
    }

    /// Waits for the zone lock and works off a chunk of the stash.
    pub(crate) fn lock(&self) -> SpinGuard<'_, Free> {
        let mut free = match self.free.try_lock() {
            Some(free) => free,
            None => {
                self.counters.waited();
                self.free.lock()
            }
        };
        self.work_off(&mut free);
        free
    }

    /// The zone lock as far as `attempt` goes.
    fn lock_at(&self, attempt: Attempt) -> Option<SpinGuard<'_, Free>> {
        match attempt {
            Attempt::PcpOnly => None,
            Attempt::TryLock => {
                let mut free = self.free.try_lock()?;
                self.work_off(&mut free);
                Some(free)
            }
            Attempt::NoWait | Attempt::MayGrow => Some(self.lock()),
        }
    }

    /// The zone lock and nothing done, for tests.
    pub(crate) fn lock_only(&self) -> SpinGuard<'_, Free> {
        self.free.lock()
    }

    /// From now on (or no longer) whoever touches the zone lock panics.
    #[cfg(debug_assertions)]
    pub(crate) fn forbid_zone_lock(&self, forbid: bool) {
        // ORDERING: Relaxed, as in `ZoneLock::touched`.
        self.free.forbidden.store(forbid, Ordering::Relaxed);
    }

    /// Merges up to a chunk of the stash (T31).
    #[inline]
    fn work_off(&self, free: &mut Free) {
        if free.pending != NONE || !self.stash.is_empty() {
            self.work_off_slow(free);
        }
    }

    #[cold]
    fn work_off_slow(&self, free: &mut Free) {
        let metas = self.frames.metas;
        let mut pages = 0;
        for _ in 0..CHUNK {
            if free.pending == NONE {
                free.pending = self.stash.take_all();
            }
            let block = free.pending;
            if block == NONE {
                break;
            }
            let meta = metas.at(block);
            let state = meta.state();
            if !state.is_stashed() {
                runs::listed_twice(block, state);
            }
            let order = state.order();
            free.pending = meta.next();
            meta.set_note(PageTag::NONE);
            free.buddy.put(metas, block, order, false);
            pages += order.pages();
        }
        self.stash.worked_off(pages);
    }

    /// Whether another hold could find more in the stash.
    fn more_is_stashed(&self, free: &Free) -> bool {
        free.pending != NONE || !self.stash.is_empty()
    }

    /// Makes the source's `range` free pages of the zone.
    pub(crate) fn add(&self, regions: &mut Regions, range: Range) -> Result<(), SourceError> {
        let len = self.frames.metas.len() as usize;
        let end = range.first.checked_add(range.pages);
        let Some(end) = end.filter(|&end| end <= len) else {
            broken(format_args!(
                "the source gave {range:?} of a span of {len} pages"
            ));
        };
        if range.pages == 0 {
            return Ok(());
        }
        match regions.add((range.first as u32, end as u32)) {
            Ok(()) => self.add_pages(range),
            Err(RegionError::TooMany) => return Err(SourceError::TooManyRegions),
            Err(error) => broken(format_args!("the source gave {range:?}, but {error}")),
        }
        Ok(())
    }

    /// Makes pages free that are noted as the zone's.
    pub(crate) fn add_pages(&self, range: Range) {
        let (mut at, end) = (range.first, range.first + range.pages);
        // ORDERING: Relaxed: a bound for pictures.
        self.extent.fetch_max(end as u32, Ordering::Relaxed);
        while at < end {
            // I4, counted in the largest blocks.
            let next = end.min(at + CHUNK * Order::MAX.pages());
            let mut free = self.lock();
            let run = Run {
                first: at as u32,
                end: next as u32,
                zero: range.zeroed,
            };
            free.buddy.put_run(self.frames.metas, run);
            free.total_pages += next - at;
            at = next;
        }
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
        loop {
            let free = self.lock_at(attempt).ok_or(AllocError::Contended)?;
            let more = self.more_is_stashed(&free);
            if let Some(page) = self.refill(free, inside.as_deref_mut(), order) {
                return Ok(page);
            }
            if !more {
                break;
            }
        }
        // The slot's own lists may hold what merges to a block of this order.
        if attempt >= Attempt::NoWait
            && let Some(mut pcp) = inside
            && self.drain(&mut pcp) > 0
            && let Some(page) = self.refill(self.lock(), None, order)
        {
            return Ok(page);
        }
        Err(AllocError::Exhausted)
    }

    /// Takes one block out of the zone, and a batch for the slot's list with it.
    #[doc(alias = "rmqueue_bulk")]
    fn refill(
        &self,
        mut free: SpinGuard<'_, Free>,
        pcp: Option<&mut Pcp>,
        order: Order,
    ) -> Option<u32> {
        let metas = self.frames.metas;
        let list = pcp.zip(Class::of(order));
        let want = list.as_ref().map_or(0, |(pcp, class)| pcp.batch(*class));
        let mut runs = Runs::new();
        free.buddy.take(metas, order, want.max(1), &mut runs);
        drop(free);
        runs::cut(&runs, metas, order);
        let mut blocks = runs::blocks(&runs, order);
        let mine = blocks.next()?;
        self.counters.allocated(order, 1);
        if let Some((pcp, class)) = list {
            let mut listed = 0;
            // Backwards: the next allocations get ascending addresses.
            for page in blocks.rev() {
                let fits = pcp.push(class, page);
                debug_assert!(fits, "a batch fits into an empty list");
                listed += 1;
            }
            pcp.note_refill(class, listed);
        }
        Some(mine)
    }

    /// Takes up to a chunk of blocks straight out of the zone, if its lock can be had at `attempt`.
    pub(crate) fn take_chunk(&self, order: Order, want: usize, attempt: Attempt, runs: &mut Runs) {
        let metas = self.frames.metas;
        if let Some(mut free) = self.lock_at(attempt) {
            free.buddy.take(metas, order, want.min(CHUNK), runs);
            drop(free);
            runs::cut(runs, metas, order);
            let pages: u32 = runs.iter().map(|run| run.end - run.first).sum();
            self.counters
                .allocated(order, pages as usize >> order.get());
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
        // Where waiting is allowed the lock is taken later, for a shorter hold.
        let locked = (attempt <= Attempt::TryLock).then(|| self.lock_at(attempt));
        if let Some(None) = locked {
            self.counters.freed(order, 1);
            self.stash.push(self.frames.metas, page, order);
            return;
        }
        let mut list = inside
            .as_deref_mut()
            .zip(class)
            .filter(|(pcp, class)| pcp.batch(*class) > 0);
        let mut runs = Runs::new();
        let mut join = |blocks: &[u32]| runs::join(blocks, self.frames.metas, order, &mut runs);
        match &mut list {
            Some((pcp, class)) => {
                pcp.take_oldest(*class, pcp.batch(*class), join);
            }
            None => {
                self.counters.freed(order, 1);
                join(&[page]);
            }
        }
        self.put_runs(locked.flatten().unwrap_or_else(|| self.lock()), &runs);
        if let Some((pcp, class)) = list {
            let fits = pcp.push(class, page);
            debug_assert!(fits, "a batch has just left the list");
        }
    }

    /// Gives blocks of one order that are the caller's to the zone; at most [`CHUNK`] of them.
    #[doc(alias = "free_pcppages_bulk")]
    pub(crate) fn give(&self, blocks: &[u32], order: Order) {
        let mut runs = Runs::new();
        runs::join(blocks, self.frames.metas, order, &mut runs);
        self.put_runs(self.lock(), &runs);
    }

    fn put_runs(&self, mut free: SpinGuard<'_, Free>, runs: &Runs) {
        for run in runs {
            free.buddy.put_run(self.frames.metas, *run);
        }
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
    fn drain(&self, pcp: &mut Pcp) -> usize {
        let mut pages = 0;
        for class in Class::all() {
            let order = class.order();
            loop {
                let taken = pcp.take_oldest(class, CHUNK, |blocks| {
                    if !blocks.is_empty() {
                        self.give(blocks, order);
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
            .map_or(0, |cell| self.drain(cell.visit().deref_mut()))
    }

    /// Empties every slot's lists and the stash.
    #[doc(alias = "drain_all_pages")]
    pub(crate) fn drain_all(&self) -> usize {
        let mut pages = 0;
        for (_, cell) in self.used_slots() {
            pages += self.drain(cell.visit().deref_mut());
        }
        let stashed = self.stash.pages();
        // As many chunks as were there at the start, or others could keep this going.
        for _ in 0..=stashed / CHUNK {
            let free = self.lock();
            if !self.more_is_stashed(&free) {
                break;
            }
        }
        pages += stashed;
        pages
    }

    /// What one slot's lists hold and did, waiting for its owner; `None` past the last slot.
    pub(crate) fn slot_stats(&self, slot: Slot) -> Option<SlotStats> {
        self.slots.get(slot).map(|cell| cell.visit().stats())
    }

    /// What all slots' lists hold and did. Visits every slot that was ever used.
    pub(crate) fn list_stats(&self) -> SlotStats {
        self.used_slots()
            .fold(SlotStats::default(), |mut sum, (_, cell)| {
                sum.add(&cell.visit().stats());
                sum
            })
    }
}
