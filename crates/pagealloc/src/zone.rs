//! The zone: pages of one source, behind lists of every slot.
//!
//! The concurrent parts are in [`crate::shared`] and [`crate::stash`]; here are the paths of a hit and the order in which
//! the others are tried. The [`Attempt`] is looked at only after the slot's list came up empty (or full), as the 2020 discussion of
//! the no-lock allocation concluded, so that every level's hit is the same code.
//!
//! What a hit costs, read from the assembly (x86-64, rustc 1.95, release, `Zone<Threads, Mmap>`, order known at compile time):
//!
//! | | loads | stores | branches, all predicted | locked instructions, calls |
//! |---|---|---|---|---|
//! | `alloc` | 12: thread's slot, cells, busy, fence mode (2), revoked, length, hits, block, span (3) | 5: busy, length, hits, busy, state | 7 | none |
//! | `free` | 12: span (3), state, thread's slot, cells, busy, fence mode (2), revoked, length, height | 5: state, busy, block, length, busy | 8 | none |
//!
//! What made a difference: no reference to a local in the cold paths (a message that names a page number by reference puts it in memory),
//! the request taken apart for the slow path (as a whole it does not fit a register and would be stored first),
//! no bounds check in the list (its panic is a landing pad that releases the lock), the state marked outside of the lock.

mod decommit;
mod exact;
#[cfg(feature = "guard")]
pub(crate) mod guard;
mod region;

pub use exact::SplitError;

use crate::api::{AllocError, Attempt, Order, PageAlloc, PageReq, PageTag};
use crate::frames::{Extras, Frames, Metas};
use crate::heatmap;
use crate::history::Who;
use crate::index::MAX_PAGES;
use crate::meta::PageMeta;
use crate::pcp::{Batch, CHUNK, Class};
use crate::regions::Regions;
use crate::runs::{self, Runs};
use crate::shared::{Shared, SlotCell, Slots};
use crate::source::{Source, SourceError, Span};
use crate::stats::{SlotStats, ZoneStats};
use core::alloc::{Layout, LayoutError};
use core::fmt;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use rcu_core::cpu::{Cpus, Slot};

/// Why a zone could not be made. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ZoneError {
    /// The source has no memory for the zone's own structures, or none at all.
    Source(SourceError),
    /// The span is empty, or has more pages than 32 bits can number.
    Pages(usize),
}

impl From<SourceError> for ZoneError {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

impl fmt::Display for ZoneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(error) => error.fmt(f),
            Self::Pages(pages) => write!(f, "a zone cannot have {pages} pages"),
        }
    }
}

impl core::error::Error for ZoneError {}

/// A page allocator over the memory of one source.
///
/// May be moved and shared. When it is dropped, all its memory goes back to the source and with the source, blocks that are still out
/// included: their addresses must not be used any more.
///
/// ```
/// # #[cfg(all(feature = "std", target_os = "linux"))] {
/// use pagealloc::{Attempt, Mmap, Order, PageAlloc, PageReq, Zone};
/// use rcu_core::cpu::Threads;
///
/// let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
/// let page = zone.alloc(PageReq::new(Order::ZERO)).unwrap();
/// // SAFETY: the page came from this zone with this order, and is not used any more.
/// unsafe { zone.free(page, Order::ZERO) };
/// // Now this thread's list has pages: no lock need be touched.
/// let page = zone.alloc(PageReq::new(Order::ZERO).attempt(Attempt::PcpOnly)).unwrap();
/// # // SAFETY: as above.
/// # unsafe { zone.free(page, Order::ZERO) };
/// # }
/// ```
#[doc(alias = "struct zone")]
pub struct Zone<C: Cpus, S: Source> {
    // What a hit needs, without a detour through `shared`.
    frames: Frames,
    slots: Slots<C::Lock>,
    shared: NonNull<Shared<C::Lock>>,
    cpus: C,
    #[cfg(feature = "guard")]
    guards: Option<guard::Guards>,
    source: S,
}

// SAFETY: `shared` and `slots` point to `Sync` data in memory that the source keeps until it is dropped.
unsafe impl<C: Cpus + Send + Sync, S: Source + Send + Sync> Send for Zone<C, S> {}
// SAFETY: as above.
unsafe impl<C: Cpus + Send + Sync, S: Source + Send + Sync> Sync for Zone<C, S> {}

/// Where the zone's structures lie in the source's metadata.
struct Place {
    layout: Layout,
    slots: usize,
    metas: usize,
    extras: usize,
}

impl Place {
    fn new<C: Cpus>(nr_slots: usize, pages: usize) -> Result<Self, LayoutError> {
        let shared = Layout::new::<Shared<C::Lock>>();
        let (layout, slots) = shared.extend(Layout::array::<SlotCell<C::Lock>>(nr_slots)?)?;
        let (layout, metas) = layout.extend(Layout::array::<PageMeta>(pages)?)?;
        let (layout, extras) = layout.extend(Extras::layout(pages)?)?;
        Ok(Self {
            layout,
            slots,
            metas,
            extras,
        })
    }
}

impl<C: Cpus, S: Source> Zone<C, S> {
    /// A zone over the memory of `source`, with a list for each slot of `cpus`.
    ///
    /// # Errors
    /// [`ZoneError`]; the source is dropped then.
    pub fn new(cpus: C, source: S) -> Result<Self, ZoneError> {
        let span = source.span();
        if span.pages == 0 || span.pages > MAX_PAGES {
            return Err(ZoneError::Pages(span.pages));
        }
        let nr_slots = cpus.nr_slots();
        let place = Place::new::<C>(nr_slots, span.pages);
        let place = place.map_err(|_| ZoneError::Pages(span.pages))?;
        let start = source.metadata(place.layout)?;
        let shared = start.cast::<Shared<C::Lock>>();
        // SAFETY: the offset is inside the memory just given (`Source` 2).
        let slots = unsafe { start.add(place.slots) }.cast();
        // SAFETY: as above.
        let metas = unsafe { start.add(place.metas) }.cast();
        // SAFETY: zeroed memory for the slots' cells, valid while the source lives, which the zone owns;
        // all copies of the value stay inside the zone.
        let slots = unsafe { Slots::from_zeroed(slots, nr_slots) };
        // SAFETY: zeroed memory for one meta a page, valid as above.
        let metas = unsafe { Metas::new(metas, span.pages as u32) };
        // SAFETY: as for the slots.
        let extras = unsafe { start.add(place.extras) };
        // SAFETY: zeroed memory of the layout, valid as above.
        let extras = unsafe { Extras::from_zeroed(extras, span.pages) };
        let extras = extras.map_err(|_| ZoneError::Pages(span.pages))?;
        // SAFETY: the span is one allocation of that many pages (`Source` 1), valid as above.
        let frames = unsafe { Frames::new(span.base, metas, extras) };
        let value = Shared::new(shared, frames, slots, span);
        // SAFETY: the memory was laid out for it, and nobody else has it.
        unsafe { shared.write(value) };
        let zone = Self {
            frames,
            slots,
            shared,
            cpus,
            #[cfg(feature = "guard")]
            guards: None,
            source,
        };
        // SAFETY: the hook stays in place, in the source's memory, until `drop` took it off; it is on no list yet.
        unsafe { zone.cpus.add_offline_hook(zone.shared().hook()) };
        if zone.source.is_eager() {
            let mut regions = zone.shared().growing.lock();
            while zone.grow(&mut regions, 1).is_ok() {}
            drop(regions);
        }
        Ok(zone)
    }

    #[inline(always)]
    fn shared(&self) -> &Shared<C::Lock> {
        // SAFETY: written in `new`, in memory that lives as long as the source.
        unsafe { self.shared.as_ref() }
    }

    /// The zone's source.
    pub const fn source(&self) -> &S {
        &self.source
    }

    /// The addresses that pages of this zone can have.
    pub fn span(&self) -> Span {
        self.source.span()
    }

    /// Moves the pages on one slot's lists into the zone and returns how many. Waits for the slot's owner, a few instructions.
    #[doc(alias = "drain_pages")]
    pub fn drain_slot(&self, slot: Slot) -> usize {
        let pages = self.shared().drain_slot(slot);
        self.after_free(Attempt::NoWait);
        pages
    }

    /// Moves the pages on all slots' lists, and in the stash, into the zone and returns how many. Waits for each slot's owner in turn.
    #[doc(alias = "drain_all_pages")]
    pub fn drain_all(&self) -> usize {
        let pages = self.shared().drain_all();
        self.after_free(Attempt::NoWait);
        pages
    }

    /// What the zone holds and how it went. Visits every slot.
    pub fn stats(&self) -> ZoneStats {
        let mut stats = ZoneStats::default();
        let shared = self.shared();
        shared.counters.report(&mut stats);
        stats.add_lists(&shared.list_stats());
        stats.stashed_blocks = shared.stash.pushes();
        stats.stash_peak_pages = shared.stash.peak();
        let free = shared.lock();
        stats.total_pages = free.total_pages;
        stats.free_pages = free.buddy.free_pages() + shared.isolated_pages();
        stats.free_blocks = free.buddy.free_blocks();
        stats.add_changes(free.buddy.changes());
        stats.stash_pages = shared.stash.pages();
        stats
    }

    /// What one slot's lists hold and did; `None` past the zone's slots. Waits for the slot's owner, a few instructions.
    #[doc(alias = "zoneinfo pagesets")]
    pub fn slot_stats(&self, slot: Slot) -> Option<SlotStats> {
        self.shared().slot_stats(slot)
    }

    /// Draws the zone as a picture, in SVG: a grid in which each cell is a number of pages, coloured by what they are, and
    /// darker where free blocks are larger.
    ///
    /// Reads every page's state without a lock: exact if nobody else uses the zone. At most 4096 cells, whatever the zone's size,
    /// so at most a MiB of text; needs no memory, and linear time. Only as far as the source gave memory.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn heatmap(&self, out: &mut impl fmt::Write) -> fmt::Result {
        let shared = self.shared();
        heatmap::draw(out, self.frames.metas, shared.extent(), &self.stats())
    }

    /// Pages that the source has given so far.
    #[doc(alias = "zone_managed_pages")]
    pub fn total_pages(&self) -> usize {
        self.shared().lock().total_pages
    }

    /// Pages free in the zone, those on lists not counted.
    #[doc(alias = "nr_free_pages")]
    pub fn free_pages(&self) -> usize {
        self.shared().lock().buddy.free_pages()
    }

    /// Pages that are out. Visits every slot; exact if nobody else uses the zone, and then 0 means that every page is back.
    pub fn nr_allocated(&self) -> usize {
        self.stats().nr_allocated()
    }

    /// Holds the zone lock until the value is dropped: for tests which show that somebody does not need it.
    #[doc(hidden)]
    pub fn hold_zone_lock(&self) -> impl Sized {
        self.shared().lock_only()
    }

    /// Makes whoever touches the zone lock panic: for tests which show that somebody does not.
    #[cfg(debug_assertions)]
    #[doc(hidden)]
    pub fn forbid_zone_lock(&self, forbid: bool) {
        self.shared().forbid_zone_lock(forbid);
    }

    /// The next range from the source.
    fn grow(&self, regions: &mut Regions, min_pages: usize) -> Result<(), SourceError> {
        let range = self.source.grow(min_pages)?;
        self.shared().add(regions, range)?;
        self.shared().counters.grew();
        Ok(())
    }

    /// Allocates where the slot's list had nothing. Takes the request apart: a whole one would be put together in memory, on the path of a hit.
    #[cold]
    #[inline(never)]
    fn alloc_slow(
        &self,
        order: Order,
        zero: bool,
        attempt: Attempt,
        who: Who,
    ) -> Result<NonNull<u8>, AllocError> {
        let page = self.take_slow(order, attempt)?;
        Ok(self.frames.hand_out(page, order, zero, who))
    }

    /// Takes a block, which is marked as if it were on a list.
    fn take_slow(&self, order: Order, attempt: Attempt) -> Result<u32, AllocError> {
        // SAFETY: the slot is the caller's, just now.
        let taken = unsafe { self.shared().take(self.cpus.current(), order, attempt) };
        let taken = match taken {
            Err(AllocError::Exhausted) if attempt == Attempt::MayGrow => self.grow_for(order),
            other => other,
        };
        self.shared().counters.missed(attempt, &taken);
        taken
    }

    /// Frees where the slot's list was full, or there is none.
    ///
    /// # Safety
    /// 1. As for [`Slots::enter`], if there is a slot.
    #[cold]
    #[inline(never)]
    unsafe fn free_slow(&self, slot: Option<Slot>, page: u32, order: Order, attempt: Attempt) {
        // SAFETY: debt 1.
        unsafe { self.shared().put(slot, page, order, attempt) };
        self.after_free(attempt);
    }

    /// Takes a block after growing the zone; if there is nothing to grow by, after draining all lists.
    fn grow_for(&self, order: Order) -> Result<u32, AllocError> {
        let take = || {
            // SAFETY: without a slot there is no debt.
            unsafe { self.shared().take(None, order, Attempt::NoWait) }
        };
        {
            let mut regions = self.shared().growing.lock();
            loop {
                // First, for somebody else may have grown the zone while this one waited.
                if let Ok(page) = take() {
                    return Ok(page);
                }
                if self.grow(&mut regions, order.pages()).is_err() {
                    break;
                }
            }
        }
        self.drain_all();
        take().map_err(|_| AllocError::OutOfMemory)
    }

    /// Takes up to a chunk of blocks off the slot's list.
    fn bulk_from_list(&self, order: Order, want: usize) -> Batch {
        let mut batch = Batch::new();
        if let (Some(class), Some(slot)) = (Class::of(order), self.cpus.current())
            // SAFETY: the slot is the caller's, just now.
            && let Some(mut pcp) = (unsafe { self.slots.enter(slot) })
        {
            while batch.len() < want.min(CHUNK)
                && let Some(page) = pcp.pop(class)
            {
                batch.push(page);
            }
        }
        batch
    }

    /// Puts blocks that the caller owns on the slot's list, as far as that goes, and says how many.
    fn bulk_to_list(&self, order: Order, pages: &[u32]) -> usize {
        let (Some(class), Some(slot)) = (Class::of(order), self.cpus.current()) else {
            return 0;
        };
        // SAFETY: the slot is the caller's, just now.
        let Some(mut pcp) = (unsafe { self.slots.enter(slot) }) else {
            return 0;
        };
        let fits = |page: &&u32| pcp.push(class, **page);
        pages.iter().take_while(fits).count()
    }
}

// SAFETY: 1: a block is in one place at a time (`shared` I1), and what comes off a list is the caller's; blocks are
// aligned by address (`index`), addressed by a pointer to the whole span, and ranges are usable memory (`Source` 3).
// 2 and 3: the paths of `Shared::take` and `Shared::put`. 4: `meta` I2.
unsafe impl<C: Cpus + Send + Sync, S: Source + Send + Sync> PageAlloc for Zone<C, S> {
    #[inline(always)]
    fn alloc(&self, req: PageReq) -> Result<NonNull<u8>, AllocError> {
        let who = Who::now(&self.cpus, req.attempt);
        // Nothing, where the alignment is known at compile time.
        if !req.is_plain() {
            return self.alloc_aligned(req, who);
        }
        #[cfg(feature = "guard")]
        if let Some(guarded) = self.guarded(req.order) {
            return self.alloc_guarded(req, guarded, who);
        }
        if let (Some(class), Some(slot)) = (Class::of(req.order), self.cpus.current())
            // SAFETY: the slot is the caller's, just now.
            && let Some(mut pcp) = (unsafe { self.slots.enter(slot) })
            && let Some(page) = pcp.pop(class)
        {
            drop(pcp);
            return Ok(self.frames.hand_out(page, req.order, req.zero, who));
        }
        self.alloc_slow(req.order, req.zero, req.attempt, who)
    }

    #[inline(always)]
    unsafe fn free_at(&self, block: NonNull<u8>, order: Order, attempt: Attempt) {
        let who = Who::now(&self.cpus, attempt);
        let page = self.frames.take_back(block, order, who);
        #[cfg(feature = "guard")]
        if let Some(guarded) = self.guarded_at(page, order) {
            return self.free_guarded(page, order, guarded, attempt);
        }
        let slot = self.cpus.current();
        if let (Some(class), Some(slot)) = (Class::of(order), slot)
            // SAFETY: the slot is the caller's, just now.
            && let Some(mut pcp) = (unsafe { self.slots.enter(slot) })
            && pcp.push(class, page)
        {
            return;
        }
        // SAFETY: the slot is the caller's, just now.
        unsafe { self.free_slow(slot, page, order, attempt) };
    }

    fn alloc_bulk(&self, req: PageReq, out: &mut [MaybeUninit<NonNull<u8>>]) -> usize {
        let who = Who::now(&self.cpus, req.attempt);
        let (order, mut got, mut lists) = (req.order, 0, req.is_plain());
        #[cfg(feature = "guard")]
        if req.is_plain()
            && let Some(guarded) = self.guarded(order)
        {
            for place in out.iter_mut() {
                match self.alloc_guarded(req, guarded, who) {
                    Ok(block) => place.write(block),
                    Err(_) => break,
                };
                got += 1;
            }
            return got;
        }
        while got < out.len() {
            let want = out.len() - got;
            let before = got;
            let mut hand_out = |page| {
                out[got].write(self.frames.hand_out(page, order, req.zero, who));
                got += 1;
            };
            if lists {
                let batch = self.bulk_from_list(order, want);
                lists = !batch.is_empty();
                batch.into_iter().for_each(&mut hand_out);
            } else if req.attempt > Attempt::PcpOnly && req.is_plain() {
                let mut runs = Runs::new();
                self.shared()
                    .take_chunk(order, want, req.attempt, &mut runs);
                runs::blocks(&runs, order).for_each(&mut hand_out);
            }
            if got == before && !lists {
                // One at a time, with all that a single allocation tries.
                let one = if req.is_plain() {
                    self.alloc_slow(order, req.zero, req.attempt, who)
                } else {
                    self.alloc_aligned(req, who)
                };
                match one {
                    Ok(block) => out[got].write(block),
                    Err(_) => break,
                };
                got += 1;
            }
        }
        got
    }

    unsafe fn free_bulk(&self, blocks: &[NonNull<u8>], order: Order) {
        let who = Who::now(&self.cpus, Attempt::NoWait);
        for chunk in blocks.chunks(CHUNK) {
            let mut batch = Batch::new();
            for &block in chunk {
                let page = self.frames.take_back(block, order, who);
                #[cfg(feature = "guard")]
                if let Some(guarded) = self.guarded_at(page, order) {
                    self.free_guarded(page, order, guarded, Attempt::NoWait);
                    continue;
                }
                batch.push(page);
            }
            let listed = self.bulk_to_list(order, &batch);
            if listed < batch.len() {
                self.shared().counters.freed(order, batch.len() - listed);
                self.shared().give(&batch[listed..], order);
                self.after_free(Attempt::NoWait);
            }
        }
    }

    unsafe fn set_tag(&self, block: NonNull<u8>, order: Order, tag: PageTag) {
        self.frames.set_tag(block, order, tag);
    }

    #[inline]
    fn tag(&self, address: *const u8) -> Option<PageTag> {
        self.frames.tag(address)
    }

    fn order_of(&self, block: *const u8) -> Option<Order> {
        self.frames.order_of(block)
    }
}

impl<C: Cpus, S: Source> Drop for Zone<C, S> {
    fn drop(&mut self) {
        // From here on no hook runs, and nobody else refers to the zone: the source may take the memory back.
        // SAFETY: the zone's hook, which is about to go.
        unsafe { self.cpus.remove_offline_hook(self.shared().hook()) };
    }
}

impl<C: Cpus, S: Source> fmt::Debug for Zone<C, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zone")
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}
