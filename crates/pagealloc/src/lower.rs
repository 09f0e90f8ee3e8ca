//! The lower level: who keeps the pages that are neither out nor on a slot's list.
//!
//! A zone's lists are filled from it and drained into it, in batches. Two come with the crate, chosen by [`Zone`](crate::Zone)'s
//! third parameter, and either can be replaced by one of your own that passes [`lower_conformance!`](crate::lower_conformance):
//!
//! | | [`Buddies`] (the default) | [`BitTree`] |
//! |---|---|---|
//! | free pages are | blocks on lists by order, split and merged at once | bits in words, counted by area |
//! | two threads in one part of memory | one waits for the other's hold | each repeats its compare-exchange |
//! | [`Attempt::TryLock`] | fails while a hold lasts | never fails for that reason |
//! | a free that may not wait | may go to a stash | goes where it belongs |
//! | a preempted thread | holds up those that need its arena | holds up nobody |
//! | types ([`Mobility`]) | kept apart by pageblock | not kept: any request is served from anywhere |
//! | own memory, beside 14 bytes a page | up to 896 bytes an arena, 3 bytes a 4 MiB, half a byte a page | 0.31 bytes a page |
//!
//! Source of the seam: LLFree (ATC'23), whose lower and upper allocator are apart too. Why below the lists and not beside
//! them: a list's hit costs no locked instruction, a claim in any shared structure at least one.

#[cfg(target_has_atomic = "64")]
mod bit_tree;
mod buddies;

use crate::api::{AllocError, Attempt, Mobility, Order};
use crate::frames::Metas;
use crate::mobility::{Fallback, TYPES};
use crate::runs::{Run, Runs};
use core::alloc::{Layout, LayoutError};
use core::ptr::NonNull;
use rcu_core::cpu::Slot;

#[cfg(target_has_atomic = "64")]
pub use bit_tree::BitTree;
#[cfg(all(loom, feature = "std", target_has_atomic = "64"))]
pub use bit_tree::models;
pub use buddies::Buddies;

/// How many orders there are.
pub(crate) const ORDERS: usize = Order::MAX.get() + 1;

/// How many parts of its memory a zone that may grow keeps apart, at most: until it has as many areas (of the largest block's
/// size), a slot that would share another's asks for growth instead. 32 MiB of addresses, so that as many slots start without
/// meeting; a slot that comes later shares.
pub(crate) const SPREAD: usize = 8;

/// What a lower level is made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    pages: u32,
    bias: u32,
    slots: u32,
}

impl Extent {
    pub(crate) const fn new(pages: u32, bias: u32, slots: u32) -> Self {
        Self { pages, bias, slots }
    }

    /// Pages of the span. A page's number is below this.
    #[must_use]
    pub const fn pages(self) -> u32 {
        self.pages
    }

    /// What must be added to a page's number to get one that is aligned as its address is, up to the largest block.
    #[must_use]
    pub const fn bias(self) -> u32 {
        self.bias
    }

    /// How many slots there can be.
    #[must_use]
    pub const fn slots(self) -> u32 {
        self.slots
    }

    /// How many areas, aligned pieces of the largest block's size, the span touches.
    #[must_use]
    pub const fn areas(self) -> usize {
        (self.pages as usize + self.bias as usize).div_ceil(Order::MAX.pages())
    }

    /// The area that a page lies in.
    #[must_use]
    pub const fn area_of(self, page: u32) -> usize {
        ((page + self.bias) >> Order::MAX.get()) as usize
    }

    /// The parts of a run by area.
    pub(crate) fn by_area(self, run: Run) -> impl Iterator<Item = (usize, Run)> {
        let mut first = run.first;
        core::iter::from_fn(move || {
            (first < run.end).then(|| {
                let area = self.area_of(first);
                let next = ((area as u32 + 1) << Order::MAX.get()) - self.bias;
                let end = run.end.min(next);
                let part = Run { first, end, ..run };
                first = end;
                (area, part)
            })
        })
    }
}

/// What a lower level stands on: the memory it asked for by [`Lower::layout`], and the zone's page metadata.
#[derive(Clone, Copy, Debug)]
pub struct Ground {
    extent: Extent,
    memory: NonNull<u8>,
    metas: Metas,
}

impl Ground {
    /// The parts of a zone's memory.
    pub(crate) const fn new(extent: Extent, memory: NonNull<u8>, metas: Metas) -> Self {
        Self {
            extent,
            memory,
            metas,
        }
    }

    /// What the lower level is made for.
    #[must_use]
    pub const fn extent(&self) -> Extent {
        self.extent
    }

    /// Zeroed memory of the layout that [`Lower::layout`] gave for this extent.
    #[must_use]
    pub const fn memory(&self) -> NonNull<u8> {
        self.memory
    }

    pub(crate) const fn metas(&self) -> Metas {
        self.metas
    }
}

/// A request for free blocks.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Wanted {
    /// The blocks' order.
    pub order: Order,
    /// How many, at least one; more than [`Runs::CAPACITY`] count as that.
    pub nr: usize,
    /// How far to go: above [`Attempt::PcpOnly`].
    pub attempt: Attempt,
    /// What the blocks are for: a lower level that keeps types takes them from where the like lies.
    pub mobility: Mobility,
    /// For whom: a hint for keeping slots apart.
    pub slot: Option<Slot>,
}

impl Wanted {
    /// `nr` unmovable blocks of `order`, going as far as `attempt`, for nobody in particular.
    #[must_use]
    pub const fn new(order: Order, nr: usize, attempt: Attempt) -> Self {
        Self {
            order,
            nr,
            attempt,
            mobility: Mobility::Unmovable,
            slot: None,
        }
    }

    /// The same, of that type.
    #[must_use]
    pub const fn mobility(mut self, mobility: Mobility) -> Self {
        self.mobility = mobility;
        self
    }

    /// The same, for `slot`.
    #[must_use]
    pub const fn on(mut self, slot: Option<Slot>) -> Self {
        self.slot = slot;
        self
    }
}

/// Pages that were given back and are not free yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Waiting {
    /// How many wait now.
    pub pages: usize,
    /// Blocks that ever waited.
    pub blocks_ever: usize,
    /// At most how many pages ever waited at once.
    pub peak_pages: usize,
}

/// What a lower level did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Free blocks that were cut, by order.
    pub splits: [u64; ORDERS],
    /// Pairs of free buddies that became a block, by the buddies' order.
    pub merges: [u64; ORDERS],
    /// How often somebody who may wait found a lock taken.
    pub waits: usize,
}

/// A keeper of free pages with its own synchronisation.
///
/// Production: [`Buddies`], [`BitTree`]. Every implementation runs `lower_conformance!`. The zone never drops one: its memory
/// goes back to the source as it is.
///
/// # Safety
/// An implementer keeps the guarantees below.
///
/// # Guarantees
/// 1. `take`, `take_range`, `take_within` and `take_dirty` hand out pages that were added or given and that nobody else has; a block is aligned to its size
///    (page number plus [`Extent::bias`]). `Run::zero` is true only where it was true of every page when it came.
/// 2. What the one who gave a page did before is seen by the one who takes it (P7).
/// 3. `give` never fails. At [`Attempt::TryLock`] it waits for nobody, and at [`Attempt::PcpOnly`] it touches no lock besides.
/// 4. `take` at [`Attempt::TryLock`] waits for nobody. A wait, where one is allowed, is for bounded holds (at most
///    [`Runs::CAPACITY`] blocks each) and never for whoever waits for a slot's lock: the caller may hold one.
/// 5. When everything is given back and `settle` was called, alone, every aligned block of the largest order whose pages are all
///    there can be taken.
/// 6. `take_within`, called until it is at the range's end, alone and after `settle`, has taken every free page of the range and no other. So a region is
///    busy only by pages that somebody has. Pages that were taken so may be added again.
///
/// # What is the same, and what need not be
/// All that a zone offers it offers over every lower level, and the suite holds each to it: regions that come and go, memory given back under every policy,
/// exact runs, watermarks and hooks, disabled lists, statistics of pages and of free blocks, the picture, and what a free of a free page meets. May differ:
/// - *Which* of the blocks that fit goes out, and so who is whose neighbour. [`Buddies`] prefer the lower part of an arena, there the smallest that fits, and what was
///   used before; [`BitTree`] the area that the slot had last, in it the lowest address, and then areas that are used in part.
/// - Whether pageblocks have types (`mobility_of`): all, or none, and then any request is served from anywhere and
///   `set_fallback` changes nothing. Slots' lists are apart by type in any case.
/// - Whether there are locks: where there are none, `TryLock` is never contended, nothing ever waits, and nothing is split or merged that could be
///   counted ([`Changes`] and [`Waiting`] are zeroes).
/// - Which pages are idle, as said there.
/// - When `take` at [`Attempt::MayGrow`] asks for growth.
pub unsafe trait Lower: Send + Sync + Sized {
    /// What [`Self::hold`] returns: `()` where there is no lock.
    type Held<'a>
    where
        Self: 'a;

    /// The memory that it needs for its own words: at most two bytes for each page that comes on top, so that with the zone's 14 it is at
    /// most 16, besides what is by slot and what is for the zone as a whole.
    ///
    /// # Errors
    /// There is no such layout: too many pages.
    fn layout(extent: Extent) -> Result<Layout, LayoutError>;

    /// A lower level without pages.
    ///
    /// # Safety
    /// 1. `ground`'s memory is zeroed, of the layout above, valid for as long as the value is used, and nobody else's.
    unsafe fn new(ground: Ground) -> Self;

    /// Makes pages that were not part of it free, for `slot` to begin with.
    ///
    /// # Safety
    /// 1. The pages lie in the extent, are the caller's, and were not added before, or were taken since.
    unsafe fn add(&self, slot: Option<Slot>, run: Run);

    /// Takes blocks, at least one, and adds them to `runs`, which is empty. At [`Attempt::MayGrow`] it may say that there are
    /// none where another slot would have to share: the caller then grows the zone, or asks again at [`Attempt::NoWait`].
    ///
    /// # Errors
    /// [`AllocError::Contended`], at [`Attempt::TryLock`] only, or [`AllocError::Exhausted`]. Nothing was taken.
    fn take(&self, wanted: Wanted, runs: &mut Runs) -> Result<(), AllocError>;

    /// Takes exactly these pages if all of them are free, and says whether; if not, nothing has changed. Pages that wait do not count
    /// as free. For removing memory: others may claim single pages of the range meanwhile.
    ///
    /// # Safety
    /// 1. The pages lie in the extent.
    #[must_use]
    unsafe fn take_range(&self, run: Run) -> bool;

    /// Takes pages back.
    ///
    /// # Safety
    /// 1. The pages are the caller's, who took them from here, and are not used any more; `zero` is true only of runs that read as zeroes.
    ///    Their heads carry no mark.
    unsafe fn give(&self, slot: Option<Slot>, runs: &Runs, attempt: Attempt);

    /// Takes the free pages of `range` that are at or behind page `from` of it, or in a block with that page, and says where to go
    /// on: a bounded part, as far as `runs`, which is empty, has room. For removing memory.
    ///
    /// # Safety
    /// 1. The range lies in the extent, and `from` in the range.
    #[doc(alias = "start_isolate_page_range")]
    unsafe fn take_within(&self, range: Run, from: u32, runs: &mut Runs) -> u32 {
        // Pieces double as long as they are free, and halve where they are not: two claims a page at most.
        let stop = range.end.min(from.saturating_add(1 << Order::MAX.get()));
        let (mut at, mut pages) = (from, 1);
        while at < stop && runs.len() < Runs::CAPACITY {
            let run = Run {
                first: at,
                end: stop.min(at + pages),
                zero: false,
            };
            // SAFETY: a part of the range (debt 1).
            if unsafe { self.take_range(run) } {
                runs.join(run);
                at = run.end;
                pages *= 2;
            } else if pages > 1 {
                pages /= 2;
            } else {
                at += 1;
            }
        }
        at
    }

    /// Takes a free block of 2 MiB or more, a larger one first, that is not known to read as zeroes.
    fn take_dirty(&self) -> Option<Run>;

    /// How many pages [`Self::take_dirty`] could find.
    fn dirty_pages(&self) -> usize;

    /// How many of these nobody needed since the last call. What is needed at times counts as needed: either the least that was there
    /// ([`Buddies`]), or what was there all the time ([`BitTree`]), which is less where requests are met from here and there.
    fn idle_pages(&self) -> usize;

    /// Free pages. Takes no lock; exact while nobody uses it.
    fn free_pages(&self) -> usize;

    /// Free blocks by order, each page in the largest it is part of. Exact while nobody uses it. May visit everything.
    fn free_blocks(&self) -> [usize; ORDERS];

    /// The largest free block that begins at a page, for a picture: a look. `None` where pages' metadata says so, and
    /// outside of the extent.
    fn free_at(&self, page: u32) -> Option<Order> {
        let _ = page;
        None
    }

    /// The type of the pageblock that a page lies in: a hint (T32). `None` where types are not kept, and outside of the extent.
    fn mobility_of(&self, page: u32) -> Option<Mobility> {
        let _ = page;
        None
    }

    /// Free blocks by order that requests of `mobility` find without taking from another type. As [`Self::free_blocks`].
    fn free_blocks_of(&self, mobility: Mobility) -> [usize; ORDERS] {
        let _ = mobility;
        self.free_blocks()
    }

    /// What requests of each type may take from the others, from now on. Nothing where types are not kept.
    fn set_fallback(&self, fallback: [Fallback; TYPES]) {
        let _ = fallback;
    }

    /// What it did so far, as far as it keeps count.
    fn changes(&self) -> Changes {
        Changes::default()
    }

    /// Pages that wait to be merged.
    fn waiting(&self) -> Waiting {
        Waiting::default()
    }

    /// Merges what waited when it was called.
    fn settle(&self) {}

    /// Gives up what is kept apart for a slot that goes offline.
    fn leave(&self, slot: Slot) {
        let _ = slot;
    }

    /// Holds every lock there is until the value is dropped: over a fork, and for tests which show that somebody does not need them.
    fn hold(&self) -> Self::Held<'_>;

    /// From now on (or no longer) whoever touches a lock panics: for tests, in debug builds.
    #[doc(hidden)]
    fn forbid(&self, forbid: bool) {
        let _ = forbid;
    }
}
