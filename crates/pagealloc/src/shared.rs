//! What the slots of a zone share: the lower level, and the slots' lists with the ways between them.
//!
//! Source: Linux `mm/page_alloc.c` (`rmqueue_bulk`, `free_pcppages_bulk`, `drain_pages_zone`, 6.12 to 7.x), the no-lock
//! paths of 2020 and 2025. Why it lies in the source's metadata and not in the zone: the offline hook must not move,
//! the zone may.
//!
//! What concerns whole pieces of memory, regions among them, is in [`memory`].
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `lower` | the free pages | see [`crate::lower`] and the one in use |
//! | a slot's cell | the slot's lists | its owner, or one visitor, by the local lock |
//! | `gate` | which slots may have lists, and whether any may | see [`crate::gate`] |
//! | `marks` | the watermarks, and whether the zone is pressed | see [`crate::watermark`] |
//! | `growing` | the zone's regions | its holder: who grows the zone, adds a region or removes one |
//! | `total_pages` | pages of the zone | holders of `growing` |
//! | `isolated` | free pages kept for a region's removal | holders of `growing` |
//! | `extent` | one past the last page that the zone ever had | holders of `growing`, which only raise it |
//!
//! # Life
//! A block: free in the lower level → (refill, a batch at once) `LISTED` → (pop) `ALLOCATED` → (push) `LISTED` → (drain, a
//! batch at once) free; or `ALLOCATED` → free at once where the list is full and nobody may wait.
//!
//! # Invariants
//! - I1. A page is in exactly one place: out, on one list, in the lower level, or isolated for a region's removal.
//! - I2. The gate's `used` is above every slot whose lists hold anything.
//! - I3. Lock order: slot, then the locks inside the lower level (an arena's, in `Buddies`). A visitor waits for the owner before it calls the lower
//!   level, so an owner that waits for an arena's lock inside its cell waits for nobody who waits for it.
//! - I4. At most [`CHUNK`] blocks move between a list and the lower level at once (T27).
//! - I5. While a [`ListsDisabled`] lives, every list is empty (`gate` I2): heights are raised in `set_up` alone, inside the
//!   owner's cell, and a height of 0 takes no block.
//! - I6. With watermarks set, a take is admitted by the free pages just before it, as in Linux outside of the lower level's locks: takes
//!   that are under way together may go below a mark by what they take, never one alone.
//!
//! # Orderings
//! - P7. Whoever frees a block puts it somewhere by a Release (lower level, local lock); whoever hands it out took it
//!   from there by an Acquire. Forbids that the new owner's accesses race with the old one's.
//!
//! # Progress and contexts
//! A hit and any attempt up to `TryLock` wait for nobody. `NoWait` waits as the lower level does, for bounded holds at most;
//! not for interrupt handlers that may have interrupted a holder. No foreign code runs under a slot's lock or one of the lower level's:
//! the source runs under `growing`, for which only growers wait, and pressure hooks run where no lock is held.

mod fork;
mod memory;

pub(crate) use fork::SharedHeld;

use crate::api::{AllocError, Attempt, Order, PageReq};
use crate::broken::broken;
use crate::frames::Frames;
use crate::gate::{Gate, ListsDisabled};
use crate::lower::{Lower, Wanted};
use crate::meta::State;
use crate::pcp::{CHUNK, Class, Heights, Pcp, Weather};
use crate::pressure::PressureHooks;
use crate::regions::{RegionError, Regions};
use crate::runs::{self, Run, Runs};
use crate::source::{Range, SourceError, Span};
use crate::stats::{Counters, SlotStats, Tallies};
use crate::watermark::Marks;
use core::ops::DerefMut;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use rcu_core::cpu::{
    LocalCell, LocalLock, OfflineHook, OwnerGuard, Slot, SpinMutex, ZeroInit, in_register,
};

/// A slot's lists and their lock, in lines of their own; so aligned that the size is a power of two.
#[repr(align(1024))]
pub(crate) struct SlotCell<L>(LocalCell<L, Pcp>);

// SAFETY: transparent around a zeroable cell.
unsafe impl<L: LocalLock> ZeroInit for SlotCell<L> {}

// A power of two, for the arithmetic of a hit.
#[cfg(not(loom))]
static_assertions::const_assert!(size_of::<SlotCell<rcu_core::cpu::BiasedLock>>() == 4096);

#[cfg(all(loom, not(feature = "history")))]
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

/// What all slots share. Lies in the source's metadata.
pub(crate) struct Shared<L, B> {
    frames: Frames,
    slots: Slots<L>,
    heights: Heights,
    pub(crate) lower: B,
    total_pages: AtomicUsize,
    pub(crate) counters: Counters,
    /// The zone's regions; held by whoever asks the source for more, adds a region or removes one.
    pub(crate) growing: SpinMutex<Regions>,
    /// Free pages kept for a region's removal.
    isolated: AtomicUsize,
    /// One past the last page that the zone ever had; only rises.
    extent: AtomicU32,
    gate: Gate,
    pub(crate) marks: Marks,
    pub(crate) pressure: PressureHooks,
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
        tallies: Tallies,
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
            counters: Counters::new(tallies),
            growing: SpinMutex::new(Regions::new()),
            isolated: AtomicUsize::new(0),
            extent: AtomicU32::new(0),
            gate: Gate::new(),
            marks: Marks::new(),
            pressure: PressureHooks::new(),
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

    /// Pages free in the lower level, those that wait to be merged included: a take finds them too.
    pub(crate) fn free_pages(&self) -> usize {
        self.lower.free_pages() + self.lower.waiting().pages
    }

    /// Compares the free pages with the watermarks, if there are any.
    pub(crate) fn look(&self) {
        self.marks.saw(|| self.free_pages());
    }

    /// Makes the source's `range` free pages of the zone, for `slot` to begin with.
    pub(crate) fn add(
        &self,
        regions: &mut Regions,
        slot: Option<Slot>,
        range: Range,
    ) -> Result<(), SourceError> {
        let end = range.first.checked_add(range.pages);
        let len = self.frames.metas.len() as usize;
        let Some(end) = end.filter(|&end| end <= len) else {
            broken(format_args!(
                "the source gave {range:?} of a span of {len} pages"
            ));
        };
        if range.pages == 0 {
            return Ok(());
        }
        match regions.add((range.first as u32, end as u32)) {
            Ok(()) => self.add_pages(slot, range),
            Err(RegionError::TooMany) => return Err(SourceError::TooManyRegions),
            Err(error) => broken(format_args!("the source gave {range:?}, but {error}")),
        }
        Ok(())
    }

    /// Makes pages free that are noted as the zone's, for `slot` to begin with.
    pub(crate) fn add_pages(&self, slot: Option<Slot>, range: Range) {
        let end = range.first + range.pages;
        // ORDERING: Relaxed: a bound for pictures.
        self.extent.fetch_max(end as u32, Ordering::Relaxed);
        // Before they can be out, so that there are never more out than there are.
        // ORDERING: Relaxed: a counter.
        self.total_pages.fetch_add(range.pages, Ordering::Relaxed);
        let run = Run {
            first: range.first as u32,
            end: end as u32,
            zero: range.zeroed,
        };
        self.frames.note_free(range.first, range.pages, true);
        // SAFETY: noted as the zone's just now, so the source gave them, once; inside the span, as its ranges and regions are checked.
        unsafe { self.lower.add(slot, run) };
        self.look();
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
            if let Some(page) = pcp.pop(class, attempt) {
                return Ok(page);
            }
        }
        let own = slot.filter(|_| inside.is_some());
        self.counters.of(own).missed(attempt, 1);
        if attempt == Attempt::PcpOnly {
            let locked_out = slot.is_some() && inside.is_none();
            return Err(if locked_out {
                AllocError::Contended
            } else {
                AllocError::Empty
            });
        }
        let refilled = self.refill(slot, own, req, attempt, inside.as_deref_mut());
        if !matches!(refilled, Err(AllocError::Exhausted | AllocError::Reserved)) {
            return refilled;
        }
        // The slot's own lists may hold what merges to a block of this order.
        if attempt >= Attempt::NoWait
            && let Some(mut pcp) = inside
            && self.drain(&mut pcp, slot) > 0
        {
            return self.refill(slot, own, req, attempt, None);
        }
        refilled
    }

    /// Takes one block out of the lower level, which is asked at `attempt`, for a caller who is inside no list.
    pub(crate) fn take_one(
        &self,
        slot: Option<Slot>,
        req: PageReq,
        attempt: Attempt,
    ) -> Result<u32, AllocError> {
        self.refill(slot, None, req, attempt, None)
    }

    /// Takes one block out of the lower level, and a batch for the slot's list with it. `own` is the slot if the caller is
    /// inside its cell.
    #[doc(alias = "rmqueue_bulk")]
    fn refill(
        &self,
        slot: Option<Slot>,
        own: Option<Slot>,
        req: PageReq,
        attempt: Attempt,
        pcp: Option<&mut Pcp>,
    ) -> Result<u32, AllocError> {
        let order = req.order;
        let mut list = pcp.zip(Class::of(order, req.mobility));
        let want = list.as_mut().map_or(0, |(pcp, class)| {
            pcp.refill_size(*class, &self.heights, self.weather())
        });
        let mut runs = Runs::new();
        self.take_runs(slot, req, attempt, want.max(1), &mut runs)?;
        let mut blocks = runs::blocks(&runs, order);
        let mine = blocks.next().ok_or(AllocError::Exhausted)?;
        self.counters.of(own).allocated(order, 1);
        if let Some((pcp, class)) = list {
            let mut listed = 0;
            // Backwards: the next allocations get ascending addresses.
            for page in blocks.rev() {
                let fits = pcp.push(class, page);
                debug_assert!(fits, "a batch fits into an empty list");
                listed += 1;
            }
            pcp.note_refill(class, listed);
            pcp.settle(class);
        }
        Ok(mine)
    }

    /// Takes as many of the blocks wanted as there are and the watermarks allow (I6), each head marked.
    fn take_runs(
        &self,
        slot: Option<Slot>,
        req: PageReq,
        attempt: Attempt,
        want: usize,
        runs: &mut Runs,
    ) -> Result<(), AllocError> {
        let nr = self.marks.admit(req, want, || self.free_pages());
        let nr = match nr {
            Ok(nr) => nr,
            Err(error) => {
                self.look();
                return Err(error);
            }
        };
        let wanted = Wanted::new(req.order, nr, attempt)
            .mobility(req.mobility)
            .on(slot);
        let taken = self.lower.take(wanted, runs);
        self.look();
        runs::cut(runs, self.frames.metas, req.order, req.mobility);
        taken
    }

    /// Takes up to a chunk of blocks straight out of the lower level, as far as the request's attempt goes. The caller counts them.
    pub(crate) fn take_chunk(
        &self,
        slot: Option<Slot>,
        req: PageReq,
        want: usize,
        runs: &mut Runs,
    ) {
        // What could not be taken is asked for one by one.
        let _ = self.take_runs(slot, req, req.attempt, want.min(CHUNK), runs);
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
        let own = slot.filter(|_| inside.is_some());
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
        // At `PcpOnly` the list stays as it is: what the caller pays for is its own block (P16).
        let mut list = list.filter(|_| attempt > Attempt::PcpOnly);
        let mut runs = Runs::new();
        let mut join = |blocks: &[u32]| runs::join(blocks, self.frames.metas, order, &mut runs);
        match &mut list {
            Some((pcp, class)) => {
                let n = pcp.overflow_size(*class, &self.heights, self.weather());
                pcp.take_oldest(*class, n, join);
            }
            None => {
                self.counters.of(own).freed(order, 1);
                join(&[page]);
            }
        }
        if !runs.is_empty() {
            self.give_runs(slot, &runs, attempt);
        }
        if let Some((pcp, class)) = list {
            let fits = pcp.push(class, page);
            debug_assert!(fits, "as many as had to have left the list");
            pcp.settle(class);
        }
    }

    /// Gives blocks of one order that are the caller's to the zone; at most [`CHUNK`] of them.
    #[doc(alias = "free_pcppages_bulk")]
    pub(crate) fn give(&self, slot: Option<Slot>, blocks: &[u32], order: Order) {
        let mut runs = Runs::new();
        runs::join(blocks, self.frames.metas, order, &mut runs);
        self.give_runs(slot, &runs, Attempt::NoWait);
    }

    fn give_runs(&self, slot: Option<Slot>, runs: &Runs, attempt: Attempt) {
        // SAFETY: blocks that were taken from there, and are on no list and nobody's any more (I1); `join` unmarked them.
        unsafe { self.lower.give(slot, runs, attempt) };
        self.look();
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
        if slot.index() >= self.gate.used() as usize {
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
        for cell in self.used_slots() {
            pages += self.drain(cell.visit().deref_mut(), None);
        }
        pages + self.settle()
    }

    /// Merges what waits in the lower level.
    fn settle(&self) -> usize {
        let waiting = self.lower.waiting().pages;
        self.lower.settle();
        self.look();
        waiting
    }

    /// Empties every slot's lists, merges what waits, and keeps the lists empty while the value lives (I5).
    #[doc(alias = "zone_pcp_disable")]
    pub(crate) fn disable_lists(&self) -> ListsDisabled<'_> {
        let disabled = self.gate.close();
        for cell in self.used_slots() {
            let mut pcp = cell.visit();
            self.drain(&mut pcp, None);
            pcp.close();
        }
        self.settle();
        disabled
    }

    /// Lowers every list by an eighth, empties them down to that, merges what waits; returns the pages moved.
    #[doc(alias = "decay_pcp_high")]
    pub(crate) fn decay(&self) -> usize {
        let mut pages = 0;
        for cell in self.used_slots() {
            let mut pcp = cell.visit();
            for class in Class::all() {
                let (high, mut above) = pcp.decayed(class, &self.heights);
                while above > 0 {
                    let taken = pcp.take_oldest(class, above.min(CHUNK), |blocks| {
                        self.give(None, blocks, class.order());
                    });
                    above -= taken;
                    pages += taken << class.order().get();
                }
                pcp.lower(class, high);
            }
        }
        pages + self.settle()
    }

    /// What one slot's lists hold and did, waiting for its owner; `None` past the last slot.
    pub(crate) fn slot_stats(&self, slot: Slot) -> Option<SlotStats> {
        let mut stats = self.slots.get(slot)?.visit().stats();
        self.counters.add_attempts(slot, &mut stats.attempts);
        Some(stats)
    }

    /// What all slots' lists hold and did. Visits every slot that was ever used.
    pub(crate) fn list_stats(&self) -> SlotStats {
        self.used_slots()
            .fold(SlotStats::default(), |mut sum, cell| {
                sum.add(&cell.visit().stats());
                sum
            })
    }
}
