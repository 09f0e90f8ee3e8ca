//! The zone: pages of one source, behind lists of every slot.
//!
//! The concurrent parts are in [`crate::shared`] and [`crate::lower`]; here are the paths of a hit and the order in which
//! the others are tried. The [`Attempt`] is looked at only after the slot's list came up empty (or full), as the 2020 discussion of
//! the no-lock allocation concluded, so that every level's hit is the same code.
//!
//! What a hit costs, read from the assembly (x86-64, rustc 1.95, release, `Zone<Threads, Mmap>`, order known at compile time):
//!
//! | | loads | stores | branches, all predicted | locked instructions, calls |
//! |---|---|---|---|---|
//! | `alloc` | 11: thread's slot, cells, busy, bias, length, hits (2), block, span (3) | 6: busy, length, hits (2), busy, state | 4 | none |
//! | `free` | 10: span (3), state, thread's slot, cells, busy, bias, length, height | 5: state, busy, block, length, busy | 5 | none |
//!
//! What made a difference: no reference to a local in the cold paths (a message that names a page number by reference puts it in memory),
//! no bounds check in the list (its panic is a landing pad that releases the lock), the state marked outside of the lock, no
//! registering of threads (the slow paths do it: that there is a slot was tested twice).

mod bulk;
mod decommit;
mod error;
mod exact;
mod fork;
#[cfg(feature = "guard")]
pub(crate) mod guard;
mod look;
mod policy;
mod region;

use crate::api::{AllocError, Attempt, Mobility, Order, PageAlloc, PageReq, PageTag, SmallReq};
use crate::frames::{Extras, Frames, Metas};
use crate::history::Who;
use crate::index::{self, MAX_PAGES};
use crate::lower::{Buddies, Extent, Ground, Lower};
use crate::meta::State;
use crate::mobility::TYPES;
use crate::pcp::{Batch, CHUNK, Class};
use crate::pressure::PressureHook;
use crate::regions::Regions;
use crate::runs::{self, Runs};
use crate::shared::{Shared, SlotCell, Slots};
use crate::source::{Source, SourceError, Span};
use crate::stats::{Count, Tallies, Tally};
use core::alloc::{Layout, LayoutError};
use core::fmt;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use rcu_core::cpu::{Cpus, Slot};

pub use decommit::Ticked;
pub use error::ZoneError;
pub use exact::SplitError;
pub use fork::ZoneFork;

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
///
/// `B` keeps the pages that no slot has: [`Buddies`], or [`BitTree`](crate::BitTree) in a zone made by [`Self::with_lower`].
#[doc(alias = "struct zone")]
pub struct Zone<C: Cpus, S: Source, B: Lower = Buddies> {
    // What a hit needs, without a detour through `shared`.
    frames: Frames,
    slots: Slots<C::Lock>,
    shared: NonNull<Shared<C::Lock, B>>,
    cpus: C,
    #[cfg(feature = "guard")]
    guards: Option<guard::Guards>,
    source: S,
}

// SAFETY: `shared` and `slots` point to `Sync` data in memory that the source keeps until it is dropped.
unsafe impl<C: Cpus + Send + Sync, S: Source + Send + Sync, B: Lower> Send for Zone<C, S, B> {}
// SAFETY: as above.
unsafe impl<C: Cpus + Send + Sync, S: Source + Send + Sync, B: Lower> Sync for Zone<C, S, B> {}

/// Where the zone's structures lie in the source's metadata.
struct Place {
    layout: Layout,
    slots: usize,
    tallies: usize,
    metas: usize,
    lower: usize,
    extras: usize,
}

impl Place {
    fn new<C: Cpus, B: Lower>(extent: Extent) -> Result<Self, LayoutError> {
        let (nr_slots, pages) = (extent.slots() as usize, extent.pages() as usize);
        let shared = Layout::new::<Shared<C::Lock, B>>();
        let (layout, slots) = shared.extend(Layout::array::<SlotCell<C::Lock>>(nr_slots)?)?;
        let (layout, tallies) = layout.extend(Layout::array::<Tally>(nr_slots)?)?;
        let (layout, lower) = layout.extend(B::layout(extent)?)?;
        let (layout, metas) = layout.extend(Metas::layout(pages)?)?;
        let (layout, extras) = layout.extend(Extras::layout(pages)?)?;
        Ok(Self {
            layout,
            slots,
            tallies,
            metas,
            lower,
            extras,
        })
    }
}

impl<C: Cpus, S: Source> Zone<C, S> {
    /// A zone over the memory of `source`, with a list for each slot of `cpus`, over buddy systems.
    ///
    /// # Errors
    /// [`ZoneError`]; the source is dropped then.
    pub fn new(cpus: C, source: S) -> Result<Self, ZoneError> {
        Self::with_lower(cpus, source)
    }
}

impl<C: Cpus, S: Source, B: Lower> Zone<C, S, B> {
    /// The same over the lower level that the type names.
    ///
    /// ```
    /// # #[cfg(all(feature = "std", target_os = "linux", target_has_atomic = "64"))] {
    /// use pagealloc::{BitTree, Mmap, Zone};
    /// use rcu_core::cpu::Threads;
    ///
    /// let zone = Zone::<_, _, BitTree>::with_lower(Threads, Mmap::new().unwrap()).unwrap();
    /// # assert_eq!(zone.nr_allocated(), 0);
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ZoneError`]; the source is dropped then.
    pub fn with_lower(cpus: C, source: S) -> Result<Self, ZoneError> {
        let span = source.span();
        if span.pages == 0 || span.pages > MAX_PAGES {
            return Err(ZoneError::Pages(span.pages));
        }
        let nr_slots = cpus.nr_slots();
        let bias = index::bias(span.base.as_ptr().addr());
        let extent = Extent::new(span.pages as u32, bias, nr_slots as u32);
        let place = Place::new::<C, B>(extent);
        let place = place.map_err(|_| ZoneError::Pages(span.pages))?;
        let start = source.metadata(place.layout)?;
        let shared = start.cast::<Shared<C::Lock, B>>();
        // SAFETY: the offset is inside the memory just given (`Source` 2).
        let slots = unsafe { start.add(place.slots) }.cast();
        // SAFETY: as above.
        let metas = unsafe { start.add(place.metas) }.cast();
        // SAFETY: zeroed memory for the slots' cells, valid while the source lives, which the zone owns;
        // all copies of the value stay inside the zone.
        let slots = unsafe { Slots::from_zeroed(slots, nr_slots) };
        // SAFETY: as above.
        let tallies = unsafe { start.add(place.tallies) }.cast();
        // SAFETY: zeroed memory for the slots' tallies, valid as above.
        let tallies = unsafe { Tallies::from_zeroed(tallies, nr_slots) };
        // SAFETY: zeroed memory for one meta a page, valid as above.
        let metas = unsafe { Metas::new(metas, span.pages as u32) };
        // SAFETY: as for the slots.
        let extras = unsafe { start.add(place.extras) };
        // SAFETY: zeroed memory of the layout, valid as above.
        let extras = unsafe { Extras::from_zeroed(extras, span.pages) };
        let extras = extras.map_err(|_| ZoneError::Pages(span.pages))?;
        // SAFETY: the span is one allocation of that many pages (`Source` 1), valid as above.
        let frames = unsafe { Frames::new(span.base, metas, extras) };
        // SAFETY: as above.
        let lower = unsafe { start.add(place.lower) };
        // SAFETY: zeroed memory of the layout it asked for, valid as above, its own.
        let lower = unsafe { B::new(Ground::new(extent, lower, metas)) };
        let value = Shared::new(shared, frames, slots, tallies, span, lower);
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
    fn shared(&self) -> &Shared<C::Lock, B> {
        // SAFETY: written in `new`, in memory that lives as long as the source.
        unsafe { self.shared.as_ref() }
    }

    /// What keeps the pages that no slot has: for what a lower level of your own says about itself. Whoever takes pages from it has to give
    /// them back there; and to give is `unsafe`, for they could be somebody's.
    ///
    /// ```compile_fail,E0133
    /// # use pagealloc::{Attempt, Lower, Mmap, Run, Runs, Zone};
    /// # let zone = Zone::new(rcu_core::cpu::Threads, Mmap::new().unwrap()).unwrap();
    /// let mut runs = Runs::new();
    /// runs.push(Run { first: 0, end: 1, zero: true });
    /// zone.lower().give(None, &runs, Attempt::NoWait);
    /// ```
    pub fn lower(&self) -> &B {
        &self.shared().lower
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

    /// The next range from the source.
    fn grow(&self, regions: &mut Regions, min_pages: usize) -> Result<(), SourceError> {
        let range = self.source.grow(min_pages)?;
        // Under a lock, which a fork waits for with the table of slots held: no slot is asked for.
        let slot = self.cpus.current_if_online();
        self.shared().add(regions, slot, range)?;
        self.shared().counters.grew();
        Ok(())
    }

    /// Allocates where the slot's list had nothing. The request comes in a word: a whole one would be put together in memory, on
    /// the path of a hit.
    #[cold]
    #[inline(never)]
    fn alloc_slow(&self, req: SmallReq, who: Who) -> Result<NonNull<u8>, AllocError> {
        let req = req.with(0);
        let page = self.take_slow(req)?;
        Ok(self
            .frames
            .hand_out(page, req.order, req.mobility, req.zero, who))
    }

    /// Takes a block, which is marked as if it were on a list.
    fn take_slow(&self, req: PageReq) -> Result<u32, AllocError> {
        // SAFETY: the slot is the caller's, just now.
        let taken = unsafe { self.shared().take(self.cpus.current(), req) };
        let taken = match taken {
            Err(AllocError::Exhausted | AllocError::Reserved)
                if req.attempt == Attempt::MayGrow =>
            {
                self.grow_for(req)
            }
            other => other,
        };
        if let Err(error) = taken {
            let slot = self.cpus.current();
            self.shared().counters.failed(slot, req.attempt, error);
        }
        if req.attempt == Attempt::MayGrow {
            self.relieve_with(taken.ok(), req);
        }
        taken
    }

    /// Frees where the slot's list was full, or there is none yet. The block's order and type come as a state.
    #[cold]
    #[inline(never)]
    fn free_slow(&self, page: u32, state: State, attempt: Attempt) {
        // SAFETY: the slot is the caller's, just now.
        unsafe { self.shared().put(self.cpus.current(), page, state, attempt) };
        self.after_free(attempt);
    }

    /// Takes a block after growing the zone; if there is nothing to grow by, after draining all lists, and then after
    /// asking the pressure hooks.
    fn grow_for(&self, req: PageReq) -> Result<u32, AllocError> {
        // Inside no list: a visitor may wait for one meanwhile.
        let take = |attempt| self.shared().take_one(self.cpus.current(), req, attempt);
        {
            let mut regions = self.shared().growing.lock();
            loop {
                // First, for somebody else may have grown the zone while this one waited. No slot is asked for here: who forks
                // holds the slots' table before `growing`.
                let slot = self.cpus.current_if_online();
                if let Ok(page) = self.shared().take_one(slot, req, Attempt::MayGrow) {
                    return Ok(page);
                }
                if self.grow(&mut regions, req.order.pages()).is_err() {
                    break;
                }
            }
        }
        if let Ok(page) = take(Attempt::NoWait) {
            return Ok(page);
        }
        self.drain_all();
        take(Attempt::NoWait)
            .or_else(|_| {
                self.relieve(req.order.pages());
                // Whatever they say: somebody else's may have been running, and what they freed lies on a list.
                self.drain_all();
                take(Attempt::NoWait)
            })
            .map_err(|_| AllocError::OutOfMemory)
    }

    /// Counts where no list is used.
    fn count(&self, count: impl FnOnce(Count<'_>)) {
        let slot = self.cpus.current();
        // SAFETY: the slot is the caller's, just now.
        let inside = slot.and_then(|slot| unsafe { self.slots.enter(slot) });
        let own = slot.filter(|_| inside.is_some());
        count(self.shared().counters.of(own));
    }
}

// SAFETY: 1: a block is in one place at a time (`shared` I1), and what comes off a list is the caller's; blocks are
// aligned by address (`index`), addressed by a pointer to the whole span, and ranges are usable memory (`Source` 3).
// 2 and 3: the paths of `Shared::take` and `Shared::put`. 4: `meta` I2.
unsafe impl<C: Cpus + Send + Sync, S: Source + Send + Sync, B: Lower> PageAlloc for Zone<C, S, B> {
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
        let slot = self.cpus.current_if_online();
        if let (Some(class), Some(slot)) = (Class::of(req.order, req.mobility), slot)
            // SAFETY: the slot is the caller's, just now.
            && let Some(mut pcp) = (unsafe { self.slots.enter(slot) })
            && let Some(page) = pcp.pop(class, req.attempt)
        {
            drop(pcp);
            return Ok(self
                .frames
                .hand_out(page, req.order, req.mobility, req.zero, who));
        }
        self.alloc_slow(SmallReq::of(req), who)
    }

    #[inline(always)]
    unsafe fn free_at(&self, block: NonNull<u8>, order: Order, attempt: Attempt) {
        let who = Who::now(&self.cpus, attempt);
        let Some(page) = self.frames.take_back(block, order, who) else {
            return self.free_other(block, order, attempt, who);
        };
        #[cfg(feature = "guard")]
        if let Some(guarded) = self.guarded_at(page, order) {
            let state = State::listed(order, false);
            return self.free_guarded(page, state, guarded, attempt);
        }
        let slot = self.cpus.current_if_online();
        if let (Some(class), Some(slot)) = (Class::of(order, Mobility::Unmovable), slot)
            // SAFETY: the slot is the caller's, just now.
            && let Some(mut pcp) = (unsafe { self.slots.enter(slot) })
            && pcp.push(class, page)
        {
            return;
        }
        let state = State::listed(order, false);
        self.free_slow(page, state, attempt);
    }

    fn alloc_bulk(&self, req: PageReq, out: &mut [MaybeUninit<NonNull<u8>>]) -> usize {
        let who = Who::now(&self.cpus, req.attempt);
        let (order, mut got, mut lists) = (req.order, 0, req.is_plain());
        #[cfg(feature = "guard")]
        if req.is_plain()
            && let Some(guarded) = self.guarded(order)
        {
            while got < out.len() {
                let next = || self.alloc_guarded(req, guarded, who);
                match self.undone_by_panics(&out[..got], order, next) {
                    Ok(block) => out[got].write(block),
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
                let block = self
                    .frames
                    .hand_out(page, order, req.mobility, req.zero, who);
                out[got].write(block);
                got += 1;
            };
            if lists {
                let batch = self.bulk_from_list(req, want);
                lists = !batch.is_empty();
                batch.into_iter().for_each(&mut hand_out);
            } else if req.attempt > Attempt::PcpOnly && req.is_plain() {
                let mut runs = Runs::new();
                let slot = self.cpus.current();
                self.shared().take_chunk(slot, req, want, &mut runs);
                runs::blocks(&runs, order).for_each(&mut hand_out);
                self.count(|count| {
                    count.missed(req.attempt, got - before);
                    count.allocated(order, got - before);
                });
            }
            if got == before && !lists {
                // One at a time, with all that a single allocation tries.
                let one = || {
                    if req.is_plain() {
                        self.alloc_slow(SmallReq::of(req), who)
                    } else {
                        self.alloc_aligned(req, who)
                    }
                };
                match self.undone_by_panics(&out[..got], order, one) {
                    Ok(block) => out[got].write(block),
                    Err(_) => break,
                };
                got += 1;
            }
        }
        if req.attempt == Attempt::MayGrow {
            self.undone_by_panics(&out[..got], order, || self.relieve_if_noted());
        }
        got
    }

    unsafe fn free_bulk(&self, blocks: &[NonNull<u8>], order: Order) {
        let who = Who::now(&self.cpus, Attempt::NoWait);
        for chunk in blocks.chunks(CHUNK) {
            let mut batches: [Batch; TYPES] = Default::default();
            for &block in chunk {
                let (page, mobility) = match self.frames.take_back(block, order, who) {
                    Some(page) => (page, Mobility::Unmovable),
                    None => self.take_back_other(block, order, who),
                };
                #[cfg(feature = "guard")]
                if let Some(guarded) = self.guarded_at(page, order) {
                    let state = State::listed(order, false).with(mobility);
                    self.free_guarded(page, state, guarded, Attempt::NoWait);
                    continue;
                }
                batches[mobility.get()].push(page);
            }
            for (batch, mobility) in batches.iter().zip(Mobility::ALL) {
                let listed = self.bulk_to_list(order, mobility, batch);
                if listed < batch.len() {
                    let slot = self.cpus.current();
                    self.count(|count| count.freed(order, batch.len() - listed));
                    self.shared().give(slot, &batch[listed..], order);
                    self.after_free(Attempt::NoWait);
                }
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

    unsafe fn add_pressure_hook(&self, hook: NonNull<PressureHook>) {
        // SAFETY: the caller's debts.
        unsafe { self.shared().pressure.add(hook) };
    }

    fn remove_pressure_hook(&self, hook: NonNull<PressureHook>) {
        self.shared().pressure.remove(hook);
    }

    fn alloc_run(&self, pages: usize, req: PageReq) -> Result<NonNull<u8>, AllocError> {
        self.alloc_exact(pages, req)
    }

    unsafe fn free_run_at(&self, run: NonNull<u8>, pages: usize, attempt: Attempt) {
        // SAFETY: the caller's debt 1.
        unsafe { self.free_exact_at(run, pages, attempt) };
    }

    fn run_pages(&self, run: *const u8) -> Option<usize> {
        self.exact_pages(run)
    }

    fn map_apart(&self, size_bytes: usize, align: usize) -> Result<NonNull<u8>, AllocError> {
        self.source
            .map_apart(size_bytes, align)
            .map_err(|e| match e {
                SourceError::System(_) | SourceError::Exhausted => AllocError::OutOfMemory,
                _ => AllocError::Invalid,
            })
    }

    unsafe fn unmap_apart(&self, start: NonNull<u8>, size_bytes: usize) {
        // SAFETY: the caller's debt 1.
        unsafe { self.source.unmap_apart(start, size_bytes) };
    }

    unsafe fn remap_apart(
        &self,
        start: NonNull<u8>,
        old_bytes: usize,
        new_bytes: usize,
        may_move: bool,
    ) -> Option<NonNull<u8>> {
        // SAFETY: the caller's debt 1.
        unsafe {
            self.source
                .remap_apart(start, old_bytes, new_bytes, may_move)
        }
    }
}

impl<C: Cpus, S: Source, B: Lower> Drop for Zone<C, S, B> {
    fn drop(&mut self) {
        // From here on no hook runs, and nobody else refers to the zone: the source may take the memory back.
        // SAFETY: the zone's hook, which is about to go.
        unsafe { self.cpus.remove_offline_hook(self.shared().hook()) };
        self.frames
            .note_free(0, self.shared().extent() as usize, false);
    }
}

impl<C: Cpus, S: Source, B: Lower> fmt::Debug for Zone<C, S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zone")
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom), not(any(feature = "history", feature = "poison"))))]
mod tests;
