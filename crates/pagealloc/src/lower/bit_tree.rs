//! Free pages as bits, claimed by compare-exchange: a lower level without any lock.
//!
//! Source: LLFree (Wrenger et al., USENIX ATC'23) for the idea: bit fields under counts under areas that cores keep apart. The protocol of an
//! area is in [`area`], the hints on where to look in [`hints`]; here is the search. Why not LLFree's trees, whose count moves into
//! the core's own word while it is reserved: above this level are lists of 63 pages, so a claim's three exchanges are
//! paid by a batch, and a tree of 32 MiB a slot is more than a small zone has.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | an area's words | its free pages | see [`area`] |
//! | `hints[t]` | which of 64 areas are worth a look | see [`hints`] |
//! | a slot's `area` | 0: none; else `2 (area + 1)`, plus 1 if the area's kept flag is this slot's | whoever is on the slot |
//! | a slot's `large` | where it found a block of a half or more last: where it looks first for the next | whoever is on the slot |
//! | a slot's `freed` | pages given minus pages taken on the slot, modulo 2^n | whoever is on the slot |
//! | `lines_used` | one more than the highest line whose `freed` was ever written | as above |
//!
//! Line 0 is for callers without a slot; slot `s` has line `s + 1`.
//!
//! # Invariants
//! - I1. A page is free in at most one way: its bit, in its area.
//! - I2. `freed` over all lines is the number of free pages, when nobody is under way.
//! - I3. Kept flags and slots' areas are hints: any slot may claim in any area.
//!
//! # Orderings
//! P7 is in [`area`]. Everything here is a hint or a counter, so Relaxed.
//!
//! # Progress and contexts
//! Lock-free in any context, at every [`Attempt`]. A thread that stops anywhere holds up nobody; at most the blocks that it was claiming are out of
//! sight meanwhile.

mod area;
mod bits;
mod hints;
#[cfg(all(loom, feature = "std"))]
pub mod models;

use super::{Extent, Ground, Lower, ORDERS, SPREAD, Wanted};
use crate::api::{AllocError, Attempt, Order};
use crate::buddy::HUGE;
use crate::runs::{Run, Runs};
use area::{Area, HALF_ORDER, News};
use core::alloc::{Layout, LayoutError};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use hints::{Hints, Kind, SPAN};
use rcu_core::cpu::Slot;

/// What a slot keeps, in a line of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Line {
    area: AtomicU32,
    large: AtomicU32,
    freed: AtomicUsize,
}

/// Words that all share, and that change seldom.
#[derive(Debug)]
#[repr(align(64))]
struct Common {
    lines_used: AtomicU32,
    /// Areas that ever got pages, counted once a range.
    areas_added: AtomicUsize,
}

/// Free pages as bits in words, claimed by compare-exchange; no lock at all. See [`Lower`].
///
/// [`Attempt::TryLock`] never fails for contention, a free at [`Attempt::PcpOnly`] goes where it belongs at once, and
/// a thread that is preempted in the middle holds up nobody. Best with more threads than processors, in interrupt handlers, and
/// where frees come from other threads than allocations. Which of the blocks that fit goes out is less exact than with buddies; [`Lower`] says
/// what else may differ.
///
/// What a page (or a block) costs past the slot's list, as a part of what it costs over [`Buddies`](crate::Buddies): medians of nine rounds of one run of the
/// example `lowers`, x86-64, two processors that had other work besides, so that what is within a tenth of 1 says nothing:
///
/// | | one thread | two | four |
/// |---|---|---|---|
/// | 512 single pages, and back | 0.85 | 0.79 | 0.91 |
/// | 4096 single pages, freed crosswise | 0.80 | 0.68 | 0.84 |
/// | a block of order 4, and back | 0.69 | 0.73 | 0.74 |
/// | a block of order 7, and back | 0.89 | 0.83 | 0.78 |
/// | 32 blocks of order 9, and back | 1.20 | 0.65 | 4.5 |
///
/// So: bits where small blocks and several threads are what matters, or a preempted lock holder would; buddies where 2 MiB blocks are (a claim of one
/// clears sixteen words, and threads that outnumber the processors meet in the same areas), where types must be kept apart, or where splits and merges are to be counted.
pub struct BitTree {
    extent: Extent,
    common: NonNull<Common>,
    lines: NonNull<Line>,
    hints: NonNull<Hints>,
    areas: NonNull<Area>,
}

// SAFETY: all parts are `Sync`, in memory that is valid for as long as the value is used.
unsafe impl Send for BitTree {}
// SAFETY: as above.
unsafe impl Sync for BitTree {}

/// Offsets of lines, hints and areas; in front is what is common.
fn place(extent: Extent) -> Result<(Layout, [usize; 3]), LayoutError> {
    let areas = extent.areas();
    let common = Layout::new::<Common>();
    let (layout, lines) = common.extend(Layout::array::<Line>(extent.slots() as usize + 1)?)?;
    let (layout, hints) = layout.extend(Layout::array::<Hints>(areas.div_ceil(SPAN))?)?;
    let (layout, areas) = layout.extend(Layout::array::<Area>(areas)?)?;
    Ok((layout, [lines, hints, areas]))
}

/// One search for blocks.
struct Search<'a> {
    order: usize,
    want: usize,
    got: usize,
    /// The area that the slot looks in first.
    own: Option<usize>,
    /// The area to begin with: of large blocks, that of the last one, or two slots would meet in every area from the first one on.
    start: usize,
    /// Whether areas that other slots keep are looked at too.
    share: bool,
    /// The area where something was found last.
    found: Option<usize>,
    runs: &'a mut Runs,
}

impl BitTree {
    fn common(&self) -> &Common {
        // SAFETY: zeroed memory is one; valid for as long as the value is used.
        unsafe { self.common.as_ref() }
    }

    fn line(&self, number: usize) -> &Line {
        assert!(
            number <= self.extent.slots() as usize,
            "a slot of this zone"
        );
        // SAFETY: inside the array.
        let line = unsafe { self.lines.add(number) };
        // SAFETY: as in `common`.
        unsafe { line.as_ref() }
    }

    fn hints(&self, area: usize) -> &Hints {
        debug_assert!(area < self.extent.areas());
        // SAFETY: inside the array.
        let hints = unsafe { self.hints.add(area / SPAN) };
        // SAFETY: as in `common`.
        unsafe { hints.as_ref() }
    }

    fn area(&self, number: usize) -> &Area {
        debug_assert!(number < self.extent.areas());
        // SAFETY: inside the array: callers pass areas of the span.
        let area = unsafe { self.areas.add(number) };
        // SAFETY: as in `common`.
        unsafe { area.as_ref() }
    }

    /// The page that is numbered `at` in an area. In an area that begins before the span no such page is ever free.
    fn page(&self, area: usize, at: u32) -> u32 {
        ((area as u32) << Order::MAX.get()) + at - self.extent.bias()
    }

    /// A part of a run as the area that it lies in numbers it: first, and one past the last.
    const fn within(&self, area: usize, part: Run) -> (u32, u32) {
        let start = (area as u32) << Order::MAX.get();
        let first = part.first + self.extent.bias() - start;
        (first, first + (part.end - part.first))
    }

    const fn line_of(slot: Option<Slot>) -> usize {
        match slot {
            Some(slot) => slot.index() + 1,
            None => 0,
        }
    }

    /// Counts pages given (or, negated, taken) on a slot.
    fn count(&self, slot: Option<Slot>, pages: usize) {
        let number = Self::line_of(slot);
        // ORDERING: Relaxed: a hint; only rises.
        if self.common().lines_used.load(Ordering::Relaxed) as usize <= number {
            // ORDERING: Relaxed: a counter's bound; who must see it has synchronised with this caller.
            self.common()
                .lines_used
                .fetch_max(number as u32 + 1, Ordering::Relaxed);
        }
        // ORDERING: Relaxed: a counter (I2).
        self.line(number).freed.fetch_add(pages, Ordering::Relaxed);
    }

    /// The areas that a hint names.
    fn hinted(&self, kind: Kind) -> impl Iterator<Item = usize> {
        let spans = self.extent.areas().div_ceil(SPAN);
        (0..spans).flat_map(move |span| {
            let first = span * SPAN;
            let mut left = self.hints(first).load(kind);
            core::iter::from_fn(move || {
                let at = (left != 0).then(|| left.trailing_zeros() as usize)?;
                left &= left - 1;
                Some(first + at)
            })
        })
    }

    fn note(&self, area: usize, news: News) {
        if news != News::default() {
            self.hints(area).note(area % SPAN, news);
        }
    }

    /// Looks in one area.
    fn claim(&self, number: usize, search: &mut Search<'_>) {
        let runs = &mut *search.runs;
        let claim = self.area(number).claim(
            search.order,
            search.want - search.got,
            &mut |first, end, zero| {
                let (first, end) = (self.page(number, first), self.page(number, end - 1) + 1);
                runs.join(Run { first, end, zero });
            },
        );
        self.note(number, claim.news);
        if claim.got > 0 {
            search.got += claim.got;
            search.found = Some(number);
        }
    }

    /// Looks in 64 areas: those that are used in part first, so that whole ones stay whole, then those whose memory was used before, so that
    /// what has none need not get any.
    fn search_span(&self, first: usize, search: &mut Search<'_>) {
        let kind = if search.order < HALF_ORDER {
            Kind::Some
        } else {
            Kind::Whole
        };
        for (whole, fresh) in [(false, true), (true, false), (true, true)] {
            let start =
                (search.start - search.start % SPAN == first) as usize * (search.start % SPAN);
            let mut left = self.hints(first).load(kind).rotate_right(start as u32);
            while left != 0 && search.got < search.want {
                let at = (left.trailing_zeros() as usize + start) % SPAN;
                left &= left - 1;
                let (number, area) = (first + at, self.area(first + at));
                let word = area.word();
                let has = || match kind {
                    Kind::Some => area.word().free() > 0,
                    Kind::Whole => area.word().has_whole_half(),
                };
                if !has() {
                    self.hints(first).forget(at, kind, has);
                    continue;
                }
                let is_others = word.is_kept() && search.own != Some(number);
                if word.is_whole() != whole
                    || is_others && !search.share
                    || word.free() < 1 << search.order
                    || !fresh && area.dirty_pages() == 0
                {
                    continue;
                }
                self.claim(number, search);
            }
        }
    }

    /// Looks everywhere, from the slot's own area on.
    fn search(&self, search: &mut Search<'_>) {
        let spans = self.extent.areas().div_ceil(SPAN);
        let start = search.start / SPAN;
        for i in 0..spans {
            if search.got == search.want {
                break;
            }
            self.search_span((start + i) % spans * SPAN, search);
        }
    }

    /// Claims a block of a half at least in one area, if it is not known to read as zeroes.
    fn claim_dirty(&self, number: usize, order: Order) -> Option<Run> {
        let mut runs = Runs::new();
        let claim = self
            .area(number)
            .claim(order.get(), 1, &mut |first, _, zero| {
                let first = self.page(number, first);
                let end = first + order.pages() as u32;
                runs.push(Run { first, end, zero });
            });
        self.note(number, claim.news);
        let &run = runs.first()?;
        self.count(None, 0_usize.wrapping_sub(order.pages()));
        if run.zero {
            // SAFETY: just taken.
            unsafe { self.give(None, &runs, Attempt::NoWait) };
            return None;
        }
        Some(run)
    }

    /// The area that a slot looks in first.
    fn own_area(&self, slot: Option<Slot>) -> Option<usize> {
        slot?;
        // ORDERING: Relaxed: a hint (I3).
        let area = self.line(Self::line_of(slot)).area.load(Ordering::Relaxed);
        (area as usize >> 1).checked_sub(1)
    }

    /// Makes an area the one that a slot looks in first, kept for it unless another slot does.
    fn settle_in(&self, slot: Option<Slot>, area: Option<usize>) {
        if slot.is_none() {
            return;
        }
        let new = area.map_or(0, |area| {
            (area as u32 + 1) << 1 | u32::from(self.area(area).keep())
        });
        // ORDERING: Relaxed: a hint (I3).
        let old = self
            .line(Self::line_of(slot))
            .area
            .swap(new, Ordering::Relaxed);
        if old & 1 == 1 {
            self.area((old as usize >> 1) - 1).unkeep();
        }
    }
}

// SAFETY: 1: the areas' I1 to I4; blocks are aligned within an area, which is by `Extent::area_of`; 2: P7; 3 and 4: there is
// nothing to wait for; 5: a page is its bit, so that pages that are all there are a whole area at once.
unsafe impl Lower for BitTree {
    type Held<'a> = ();

    fn layout(extent: Extent) -> Result<Layout, LayoutError> {
        place(extent).map(|(layout, _)| layout)
    }

    unsafe fn new(ground: Ground) -> Self {
        let (extent, memory) = (ground.extent(), ground.memory());
        let (_, offsets) = place(extent).expect("as in `layout`");
        // SAFETY: inside the memory, as `place` says.
        let [lines, hints, areas] = offsets.map(|offset| unsafe { memory.add(offset) });
        Self {
            extent,
            common: memory.cast(),
            lines: lines.cast(),
            hints: hints.cast(),
            areas: areas.cast(),
        }
    }

    unsafe fn add(&self, slot: Option<Slot>, run: Run) {
        // ORDERING: Relaxed: a hint.
        self.common()
            .areas_added
            .fetch_add(self.extent.by_area(run).count(), Ordering::Relaxed);
        let mut runs = Runs::new();
        runs.push(run);
        // SAFETY: debt 1.
        unsafe { self.give(slot, &runs, Attempt::NoWait) };
    }

    fn take(&self, wanted: Wanted, runs: &mut Runs) -> Result<(), AllocError> {
        let slot = wanted.slot;
        let own = self.own_area(slot);
        let is_small = wanted.order.get() < HALF_ORDER;
        let start = if is_small {
            // The first of the span: what is used in part lies close together.
            own.unwrap_or(0) / SPAN * SPAN
        } else {
            // ORDERING: Relaxed: a hint (I3).
            self.line(Self::line_of(slot)).large.load(Ordering::Relaxed) as usize
        };
        let mut search = Search {
            order: wanted.order.get(),
            want: wanted.nr.min(Runs::CAPACITY),
            got: 0,
            own,
            start,
            share: false,
            found: None,
            runs,
        };
        if is_small && let Some(own) = search.own {
            self.claim(own, &mut search);
        }
        if search.got < search.want {
            self.search(&mut search);
        }
        if search.got == 0 {
            // ORDERING: Relaxed: a hint.
            let areas = self.common().areas_added.load(Ordering::Relaxed);
            if is_small && wanted.attempt == Attempt::MayGrow && areas < SPREAD {
                return Err(AllocError::Exhausted);
            }
            search.share = true;
            self.search(&mut search);
        }
        let (got, found) = (search.got, search.found);
        if got == 0 {
            return Err(AllocError::Exhausted);
        }
        if is_small && found != own {
            self.settle_in(slot, found);
        }
        if !is_small && let Some(found) = found.filter(|&found| found != start) {
            // ORDERING: Relaxed: a hint (I3).
            self.line(Self::line_of(slot))
                .large
                .store(found as u32, Ordering::Relaxed);
        }
        self.count(slot, 0_usize.wrapping_sub(got << wanted.order.get()));
        Ok(())
    }

    unsafe fn take_range(&self, run: Run) -> bool {
        for (number, part) in self.extent.by_area(run) {
            let (first, end) = self.within(number, part);
            let claimed = self.area(number).claim_range(first, end);
            if let Err(news) = claimed {
                self.note(number, news);
                if run.first < part.first {
                    let mut back = Runs::new();
                    back.push(Run {
                        end: part.first,
                        zero: false,
                        ..run
                    });
                    // SAFETY: just taken.
                    unsafe { self.give(None, &back, Attempt::NoWait) };
                }
                return false;
            }
            self.count(None, 0_usize.wrapping_sub((end - first) as usize));
        }
        true
    }

    unsafe fn give(&self, slot: Option<Slot>, runs: &Runs, _attempt: Attempt) {
        let mut pages = 0;
        for &run in runs {
            pages += (run.end - run.first) as usize;
            for (number, part) in self.extent.by_area(run) {
                let (first, end) = self.within(number, part);
                let news = self.area(number).give(first, end, part.zero);
                self.note(number, news);
            }
        }
        self.count(slot, pages);
    }

    fn take_dirty(&self) -> Option<Run> {
        for order in [Order::MAX, HUGE] {
            for idle in [true, false] {
                for number in self.hinted(Kind::Whole) {
                    let area = self.area(number);
                    let is_one = area.word().is_whole() == (order == Order::MAX);
                    if is_one && area.is_idle() == idle && area.dirty_pages() > 0 {
                        let run = self.claim_dirty(number, order);
                        if run.is_some() {
                            return run;
                        }
                    }
                }
            }
        }
        None
    }

    fn dirty_pages(&self) -> usize {
        self.hinted(Kind::Whole)
            .map(|number| self.area(number).dirty_pages())
            .sum()
    }

    fn idle_pages(&self) -> usize {
        self.hinted(Kind::Whole)
            .map(|number| self.area(number).idle_pages())
            .sum()
    }

    fn free_at(&self, page: u32) -> Option<Order> {
        // Any number may be asked about, and `area` checks none.
        if page >= self.extent.pages() {
            return None;
        }
        let area = self.extent.area_of(page);
        let at = page + self.extent.bias() - ((area as u32) << Order::MAX.get());
        self.area(area).free_at(at).map(Order::at)
    }

    fn free_pages(&self) -> usize {
        // ORDERING: Relaxed: counters (I2).
        let used = self.common().lines_used.load(Ordering::Relaxed) as usize;
        let sum = (0..used).fold(0_usize, |sum, number| {
            // ORDERING: Relaxed: a counter.
            sum.wrapping_add(self.line(number).freed.load(Ordering::Relaxed))
        });
        // Lines are read one after the other: what moved meanwhile may be missed on both sides.
        (sum as isize).max(0) as usize
    }

    fn free_blocks(&self) -> [usize; ORDERS] {
        let mut sum = [0; ORDERS];
        for number in self.hinted(Kind::Some) {
            self.area(number).add_blocks(&mut sum);
        }
        sum
    }

    fn leave(&self, slot: Slot) {
        self.settle_in(Some(slot), None);
    }

    fn hold(&self) {}
}

impl fmt::Debug for BitTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BitTree")
            .field("extent", &self.extent)
            .field("free_pages", &self.free_pages())
            .finish_non_exhaustive()
    }
}
