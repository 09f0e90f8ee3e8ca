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
//! | `gate` | which slots may have lists, and whether any may | see [`crate::gate`] |
//! | `marks` | the watermarks, and whether the zone is pressed | see [`crate::watermark`] |
//!
//! # Life
//! A block: `FREE` in the buddy system → (refill, a batch under one hold) `LISTED` → (pop) `ALLOCATED` → (push)
//! `LISTED` → (drain, a batch under one hold) `FREE`; or `ALLOCATED` → `STASHED` → `FREE` where nobody may wait.
//!
//! # Invariants
//! - I1. A page is in exactly one place: out, on one list, in the stash, or in the buddy system.
//! - I2. The gate's `used` is above every slot whose lists hold anything.
//! - I3. Lock order: slot, then zone. A visitor waits for the owner before it takes the zone lock, so an owner that waits
//!   for the zone lock inside its cell waits for nobody who waits for it.
//! - I4. At most [`CHUNK`] blocks move between a list and the zone, and another [`CHUNK`] leave the stash, under one hold (T27).
//! - I5. While a [`ListsDisabled`] lives, every list is empty (`gate` I2): heights are raised in `set_up` alone, inside the
//!   owner's cell, and a height of 0 takes no block.
//!
//! # Orderings
//! - P7. Whoever frees a block puts it somewhere by a Release (zone lock, local lock, stash); whoever hands it out took it
//!   from there by an Acquire. Forbids that the new owner's accesses race with the old one's.
//!
//! # Progress and contexts
//! A hit and any attempt up to `TryLock` wait for nobody. `NoWait` spins on the zone lock, whose holds are bounded
//! (I4); not for interrupt handlers that may have interrupted a holder. No foreign code runs under the slot's or the zone's lock:
//! the source runs under `growing`, for which only growers wait, and pressure hooks run where no lock is held.

use crate::api::{AllocError, Attempt, Mobility, Order, PageReq, PageTag};
use crate::broken::broken;
use crate::buddy::Buddy;
use crate::frames::Frames;
use crate::gate::{Gate, ListsDisabled};
use crate::index::{self, NONE};
use crate::meta::State;
use crate::mobility::PageBlocks;
use crate::pcp::{CHUNK, Class, Heights, Pcp, Weather};
use crate::pressure::PressureHooks;
use crate::runs::{self, Run, Runs};
use crate::source::{Range, Span};
use crate::stash::Stash;
use crate::stats::Counters;
use crate::watermark::Marks;
use core::ops::DerefMut;
use core::ptr::NonNull;
use rcu_core::cpu::{
    BiasedLock, LocalCell, LocalLock, OfflineHook, OwnerGuard, Slot, SpinGuard, SpinMutex,
    ZeroInit, in_register,
};
use static_assertions::const_assert;

/// A slot's lists and their lock, in lines of their own (two, for the prefetcher fetches pairs).
#[repr(align(128))]
pub(crate) struct SlotCell<L>(LocalCell<L, Pcp>);

// SAFETY: transparent around a zeroable cell.
unsafe impl<L: LocalLock> ZeroInit for SlotCell<L> {}

// A power of two, for the arithmetic of a hit.
const_assert!(size_of::<SlotCell<BiasedLock>>() == 2048);

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
struct ZoneLock(SpinMutex<Free>);

/// What all slots share. Lies in the source's metadata.
pub(crate) struct Shared<L> {
    frames: Frames,
    slots: Slots<L>,
    heights: Heights,
    free: ZoneLock,
    pub(crate) stash: Stash,
    pub(crate) counters: Counters,
    /// Held by whoever asks the source for more.
    pub(crate) growing: SpinMutex<()>,
    gate: Gate,
    pub(crate) marks: Marks,
    pub(crate) pressure: PressureHooks,
    blocks: PageBlocks,
    hook: OfflineHook,
}

// SAFETY: every part is `Sync`, the cells too (`Pcp` is `Send`); `slots` points to memory that lives as long.
unsafe impl<L: LocalLock> Sync for Shared<L> {}
// SAFETY: as above.
unsafe impl<L: LocalLock> Send for Shared<L> {}

impl<L: LocalLock> Shared<L> {
    /// An empty zone, to be written to `place`.
    pub(crate) fn new(
        place: NonNull<Self>,
        frames: Frames,
        slots: Slots<L>,
        blocks: PageBlocks,
        span: Span,
    ) -> Self {
        let bias = index::bias(span.base.as_ptr().addr());
        // SAFETY: `place` holds the value while the hook is listed, and draining may come from any thread.
        let hook = unsafe { OfflineHook::new(Self::offline, place.as_ptr().cast_const().cast()) };
        Self {
            frames,
            slots,
            heights: Heights::for_span(span.pages),
            free: ZoneLock(SpinMutex::new(Free {
                buddy: Buddy::new(bias, blocks),
                pending: NONE,
                total_pages: 0,
            })),
            stash: Stash::new(),
            counters: Counters::new(),
            growing: SpinMutex::new(()),
            gate: Gate::new(),
            marks: Marks::new(),
            pressure: PressureHooks::new(),
            blocks,
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
        let mut free = self.free.0.lock();
        self.work_off(&mut free);
        free
    }

    /// The zone lock as far as `attempt` goes.
    fn lock_at(&self, attempt: Attempt) -> Option<SpinGuard<'_, Free>> {
        match attempt {
            Attempt::PcpOnly => None,
            Attempt::TryLock => {
                let mut free = self.free.0.try_lock()?;
                self.work_off(&mut free);
                Some(free)
            }
            Attempt::NoWait | Attempt::MayGrow => Some(self.lock()),
        }
    }

    /// The zone lock and nothing done, for tests.
    pub(crate) fn lock_only(&self) -> SpinGuard<'_, Free> {
        self.free.0.lock()
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
            let order = meta.state().order();
            free.pending = meta.next();
            meta.set_note(PageTag::NONE);
            free.buddy.put(metas, block, order, false);
            pages += order.pages();
        }
        self.stash.worked_off(pages);
        self.marks.saw(free.buddy.free_pages());
    }

    /// Whether another hold could find more in the stash.
    fn more_is_stashed(&self, free: &Free) -> bool {
        free.pending != NONE || !self.stash.is_empty()
    }

    /// Makes the source's `range` free pages of the zone.
    pub(crate) fn add(&self, range: Range) {
        let end = range.first.checked_add(range.pages);
        let len = self.frames.metas.len() as usize;
        let Some(end) = end.filter(|&end| end <= len) else {
            broken(format_args!(
                "the source gave {range:?} of a span of {len} pages"
            ));
        };
        let mut at = range.first;
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
            self.marks.saw(free.buddy.free_pages());
            at = next;
        }
    }

    /// Takes one block, going as far as the request's attempt, but never to the source.
    ///
    /// # Safety
    /// 1. As for [`Slots::enter`], if there is a slot.
    pub(crate) unsafe fn take(&self, slot: Option<Slot>, req: PageReq) -> Result<u32, AllocError> {
        // SAFETY: debt 1.
        let mut inside = slot.and_then(|slot| unsafe { self.slots.enter(slot) });
        let (order, attempt) = (req.order, req.attempt);
        let class = Class::of(order, req.mobility);
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
        let error = loop {
            let free = self.lock_at(attempt).ok_or(AllocError::Contended)?;
            let more = self.more_is_stashed(&free);
            match self.refill(free, inside.as_deref_mut(), req) {
                Ok(page) => return Ok(page),
                Err(error) if !more => break error,
                Err(_) => {}
            }
        };
        // The slot's own lists may hold what merges to a block of this order.
        if attempt >= Attempt::NoWait
            && let Some(mut pcp) = inside
            && self.drain(&mut pcp) > 0
        {
            return self.refill(self.lock(), None, req);
        }
        Err(error)
    }

    /// Takes one block out of the zone, and a batch for the slot's list with it.
    #[doc(alias = "rmqueue_bulk")]
    fn refill(
        &self,
        mut free: SpinGuard<'_, Free>,
        pcp: Option<&mut Pcp>,
        req: PageReq,
    ) -> Result<u32, AllocError> {
        let (metas, order) = (self.frames.metas, req.order);
        let mut list = pcp.zip(Class::of(order, req.mobility));
        let want = list.as_mut().map_or(0, |(pcp, class)| {
            pcp.refill_size(*class, &self.heights, self.weather())
        });
        let mut runs = Runs::new();
        let admitted = self.take_runs(&mut free, req, want.max(1), &mut runs);
        drop(free);
        runs::cut(&runs, metas, order, req.mobility);
        let mut blocks = runs::blocks(&runs, order);
        let Some(mine) = blocks.next() else {
            return Err(if admitted {
                AllocError::Exhausted
            } else {
                AllocError::Reserved
            });
        };
        if let Some((pcp, class)) = list {
            // Backwards: the next allocations get ascending addresses.
            for page in blocks.rev() {
                let fits = pcp.push(class, page);
                debug_assert!(fits, "a batch fits into an empty list");
            }
            pcp.settle(class);
        }
        Ok(mine)
    }

    /// Takes as many of the blocks wanted as there are and the watermarks allow; false if these allow none.
    fn take_runs(&self, free: &mut Free, req: PageReq, want: usize, runs: &mut Runs) -> bool {
        let before = free.buddy.free_pages();
        let want = self
            .marks
            .admit(before, req.order, req.attempt, req.reserve, want);
        if want == 0 {
            self.marks.saw(before);
            // There are not that many pages: none are kept back.
            return before < req.order.pages();
        }
        free.buddy
            .take(self.frames.metas, req.order, req.mobility, want, runs);
        self.marks.saw(free.buddy.free_pages());
        true
    }

    /// Takes up to a chunk of blocks straight out of the zone, if its lock can be had at the request's attempt.
    pub(crate) fn take_chunk(&self, req: PageReq, want: usize, runs: &mut Runs) {
        if let Some(mut free) = self.lock_at(req.attempt) {
            self.take_runs(&mut free, req, want.min(CHUNK), runs);
            drop(free);
            runs::cut(runs, self.frames.metas, req.order, req.mobility);
        }
    }

    fn weather(&self) -> Weather {
        if self.pressure.are_running() {
            Weather::Relieving
        } else if self.marks.is_below_high() {
            Weather::Low
        } else {
            Weather::Fair
        }
    }

    /// The type of the pageblock that a page lies in: a hint, for the right list (T32).
    pub(crate) fn mobility_of(&self, page: u32) -> Mobility {
        self.blocks.of(page)
    }

    /// Takes a block that its owner gave back where it was not put on the slot's list. Its order and the type whose list it goes to
    /// come in one word, so that a hit needs no stack for the case that it is none.
    ///
    /// # Safety
    /// 1. As for [`Slots::enter`], if there is a slot.
    #[cold]
    #[inline(never)]
    pub(crate) unsafe fn put(&self, slot: Option<Slot>, page: u32, state: State, attempt: Attempt) {
        let (order, mobility) = (state.order(), state.mobility());
        // SAFETY: debt 1.
        let mut inside = slot.and_then(|slot| unsafe { self.slots.enter(slot) });
        let class = Class::of(order, mobility);
        if let (Some(pcp), Some(slot), Some(class)) = (inside.as_deref_mut(), slot, class) {
            self.set_up(pcp, slot);
            if pcp.push(class, page) {
                return;
            }
        }
        let mut list = inside
            .as_deref_mut()
            .zip(class)
            .filter(|(pcp, class)| pcp.takes(*class));
        if let Some((pcp, class)) = &mut list
            && pcp.makes_room(*class, &self.heights, self.weather())
            && pcp.push(*class, page)
        {
            return;
        }
        // Where waiting is allowed the lock is taken later, for a shorter hold.
        let locked = (attempt <= Attempt::TryLock).then(|| self.lock_at(attempt));
        if let Some(None) = locked {
            self.stash.push(self.frames.metas, page, order);
            return;
        }
        let mut runs = Runs::new();
        let mut join = |blocks: &[u32]| runs::join(blocks, self.frames.metas, order, &mut runs);
        match &mut list {
            Some((pcp, class)) => {
                let n = pcp.overflow_size(*class, &self.heights, self.weather());
                pcp.take_oldest(*class, n, join);
            }
            None => join(&[page]),
        }
        if !runs.is_empty() {
            self.put_runs(locked.flatten().unwrap_or_else(|| self.lock()), &runs);
        }
        if let Some((pcp, class)) = list {
            let fits = pcp.push(class, page);
            debug_assert!(fits, "as many as had to have left the list");
            pcp.settle(class);
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
        self.marks.saw(free.buddy.free_pages());
    }

    /// Lets a slot's lists grow, at its first use, and again after they were disabled.
    #[inline]
    fn set_up(&self, pcp: &mut Pcp, slot: Slot) {
        if !pcp.is_ready() && self.gate.may_list(slot) {
            pcp.set_up(&self.heights);
        }
    }

    /// Every slot that may hold blocks.
    fn used_slots(&self) -> impl Iterator<Item = &LocalCell<L, Pcp>> {
        (0..self.gate.used())
            .map(Slot::new)
            .filter_map(|slot| self.slots.get(slot))
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
        if slot.index() >= self.gate.used() as usize {
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
        for cell in self.used_slots() {
            pages += self.drain(cell.visit().deref_mut());
        }
        pages + self.empty_stash()
    }

    fn empty_stash(&self) -> usize {
        let stashed = self.stash.pages();
        // As many chunks as were there at the start, or others could keep this going.
        for _ in 0..=stashed / CHUNK {
            let free = self.lock();
            if !self.more_is_stashed(&free) {
                break;
            }
        }
        stashed
    }

    /// Empties every slot's lists and the stash, and keeps the lists empty while the value lives (I5).
    #[doc(alias = "zone_pcp_disable")]
    pub(crate) fn disable_lists(&self) -> ListsDisabled<'_> {
        let disabled = self.gate.close();
        for cell in self.used_slots() {
            let mut pcp = cell.visit();
            self.drain(&mut pcp);
            pcp.close();
        }
        self.empty_stash();
        disabled
    }

    /// Lowers every list by an eighth, empties them down to that, works off the stash; returns the pages moved.
    #[doc(alias = "decay_pcp_high")]
    pub(crate) fn decay(&self) -> usize {
        let mut pages = 0;
        for cell in self.used_slots() {
            let mut pcp = cell.visit();
            for class in Class::all() {
                let (high, mut above) = pcp.decayed(class, &self.heights);
                while above > 0 {
                    let taken = pcp.take_oldest(class, above.min(CHUNK), |blocks| {
                        self.give(blocks, class.order());
                    });
                    above -= taken;
                    pages += taken << class.order().get();
                }
                pcp.lower(class, high);
            }
        }
        pages + self.empty_stash()
    }

    /// Pages on lists, and allocations that lists served. Visits every slot.
    pub(crate) fn listed(&self) -> (usize, u64) {
        self.used_slots().fold((0, 0), |(pages, hits), cell| {
            let pcp = cell.visit();
            (pages + pcp.pages(), hits + pcp.hits())
        })
    }
}
