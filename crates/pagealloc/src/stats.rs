//! Counters, and what a zone says about itself.
//!
//! Source: Linux `mm/vmstat.c` (`/proc/buddyinfo`, `/proc/pagetypeinfo`, `extfrag_index`). Why so few counters on the paths of a hit: an allocation
//! is two increments, in the slot, of its list and of its level; a free is none, for the number of frees follows from what left the list, what
//! came from the zone and what is there. The level is a place to count at, and decides nothing: every level's hit is the same instructions, of
//! which one has another offset.

use crate::api::{AllocError, Attempt, Order};
use crate::lower::{Changes, ORDERS};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use rcu_core::cpu::Slot;

pub(crate) const ATTEMPTS: usize = 4;

/// What happened around the lists of one slot. Hits are counted on the lists.
///
/// Why one a slot, in lines of its own: on one that all slots write, two threads that only miss would wait for each other. All-zero is new.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Tally {
    misses: [AtomicUsize; ATTEMPTS],
    contended: [AtomicUsize; ATTEMPTS],
    empty: [AtomicUsize; ATTEMPTS],
    allocs: [AtomicUsize; ORDERS],
    frees: [AtomicUsize; ORDERS],
}

impl Tally {
    const fn new() -> Self {
        Self {
            misses: [const { AtomicUsize::new(0) }; ATTEMPTS],
            contended: [const { AtomicUsize::new(0) }; ATTEMPTS],
            empty: [const { AtomicUsize::new(0) }; ATTEMPTS],
            allocs: [const { AtomicUsize::new(0) }; ORDERS],
            frees: [const { AtomicUsize::new(0) }; ORDERS],
        }
    }

    /// Adds what is counted by level.
    fn add_attempts(&self, attempts: &mut [AttemptStats; ATTEMPTS]) {
        // ORDERING: Relaxed: counters.
        let read = |counter: &AtomicUsize| counter.load(Ordering::Relaxed) as u64;
        for (i, attempt) in attempts.iter_mut().enumerate() {
            attempt.misses += read(&self.misses[i]);
            attempt.contended += read(&self.contended[i]);
            attempt.empty += read(&self.empty[i]);
        }
    }

    fn report(&self, stats: &mut ZoneStats) {
        self.add_attempts(&mut stats.attempts);
        // ORDERING: Relaxed: counters.
        let read = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        for (i, order) in stats.orders.iter_mut().enumerate() {
            order.allocs += read(&self.allocs[i]) as u64;
            order.frees += read(&self.frees[i]) as u64;
        }
    }
}

/// A tally to be written now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Count<'a> {
    tally: &'a Tally,
    /// Nobody else writes it now: the caller is inside its slot's cell.
    alone: bool,
}

impl Count<'_> {
    fn add(self, counter: &AtomicUsize, n: usize) {
        if self.alone {
            // ORDERING: Relaxed: a counter, of which nobody else's increment can be lost.
            let now = counter.load(Ordering::Relaxed);
            // ORDERING: Relaxed: as above.
            counter.store(now.wrapping_add(n), Ordering::Relaxed);
        } else {
            // ORDERING: Relaxed: a counter.
            counter.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Notes blocks that their slot's list could not serve.
    pub(crate) fn missed(self, attempt: Attempt, blocks: usize) {
        self.add(&self.tally.misses[attempt as usize], blocks);
    }

    /// Notes that blocks went from the zone to a caller, around the lists.
    pub(crate) fn allocated(self, order: Order, blocks: usize) {
        self.add(&self.tally.allocs[order.get()], blocks);
    }

    /// Notes that blocks went from a caller to the zone or the stash, around the lists.
    pub(crate) fn freed(self, order: Order, blocks: usize) {
        self.add(&self.tally.frees[order.get()], blocks);
    }
}

/// The slots' tallies, in zeroed memory of the source's.
#[derive(Clone, Copy)]
pub(crate) struct Tallies {
    first: NonNull<Tally>,
    len: usize,
}

// SAFETY: atomic words; the memory stays valid (debt of `from_zeroed`).
unsafe impl Send for Tallies {}
// SAFETY: as above.
unsafe impl Sync for Tallies {}

impl Tallies {
    /// The tallies at `first`.
    ///
    /// # Safety
    /// 1. `first` is the start of `len` all-zero tallies, referred to by nothing but copies of this value, and valid for as
    ///    long as one of them is used.
    pub(crate) const unsafe fn from_zeroed(first: NonNull<Tally>, len: usize) -> Self {
        Self { first, len }
    }

    fn all(&self) -> &[Tally] {
        // SAFETY: zeroed atomic words, valid for as long as `self` is used (debt of `from_zeroed`).
        unsafe { core::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

/// Written on slow paths only.
pub(crate) struct Counters {
    slots: Tallies,
    /// Of callers who are inside no slot's cell.
    others: Tally,
    grows: AtomicUsize,
}

impl Counters {
    pub(crate) const fn new(slots: Tallies) -> Self {
        Self {
            slots,
            others: Tally::new(),
            grows: AtomicUsize::new(0),
        }
    }

    /// The tally of the slot whose cell the caller is `inside` of, or of the others.
    pub(crate) fn of(&self, inside: Option<Slot>) -> Count<'_> {
        let own = inside.and_then(|slot| self.slots.all().get(slot.index()));
        Count {
            tally: own.unwrap_or(&self.others),
            alone: own.is_some(),
        }
    }

    /// Notes why an allocation failed, on `slot`, whose cell the caller is not inside of.
    #[cold]
    pub(crate) fn failed(&self, slot: Option<Slot>, attempt: Attempt, error: AllocError) {
        let own = slot.and_then(|slot| self.slots.all().get(slot.index()));
        let tally = own.unwrap_or(&self.others);
        let counters = match error {
            AllocError::Contended => &tally.contended,
            _ => &tally.empty,
        };
        // ORDERING: Relaxed: a counter. An addition, for the slot may be a hint.
        counters[attempt as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Adds what one slot's callers did by level, besides hits.
    pub(crate) fn add_attempts(&self, slot: Slot, attempts: &mut [AttemptStats; ATTEMPTS]) {
        if let Some(tally) = self.slots.all().get(slot.index()) {
            tally.add_attempts(attempts);
        }
    }

    pub(crate) fn grew(&self) {
        // ORDERING: Relaxed: a counter.
        self.grows.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn report(&self, stats: &mut ZoneStats) {
        self.others.report(stats);
        for tally in self.slots.all() {
            tally.report(stats);
        }
        // ORDERING: Relaxed: a counter.
        stats.grows = self.grows.load(Ordering::Relaxed);
    }
}

/// How allocations at one [`Attempt`] level went. Bulk calls count by block, but a failure once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct AttemptStats {
    /// Those that the slot's list served.
    pub hits: u64,
    /// Those that found no block on the slot's list.
    pub misses: u64,
    /// Of the misses, how many gave up because a lock was taken.
    pub contended: u64,
    /// Of the misses, how many gave up because there was nothing as far as they went.
    pub empty: u64,
}

impl AttemptStats {
    /// The misses that got a block from the zone.
    #[must_use]
    pub const fn served(&self) -> u64 {
        self.misses.saturating_sub(self.contended + self.empty)
    }

    /// Adds what was counted elsewhere.
    const fn add(&mut self, other: &Self) {
        self.hits += other.hits;
        self.misses += other.misses;
        self.contended += other.contended;
        self.empty += other.empty;
    }
}

impl fmt::Display for AttemptStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} hits, {} misses, of these {} contended, {} empty",
            self.hits, self.misses, self.contended, self.empty
        )
    }
}

/// What a zone did with blocks of one order.
///
/// Where blocks are split, merged, or cut to length, what was there counts as freed and what is there then as allocated; a run counts as its blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct OrderStats {
    /// Blocks on slots' lists now.
    pub listed: usize,
    /// Blocks that went out to callers, from lists and from the zone.
    pub allocs: u64,
    /// Blocks that came back from callers.
    pub frees: u64,
    /// Free blocks that were cut to serve smaller requests, however many the pieces.
    #[doc(alias = "expand")]
    pub splits: u64,
    /// Pairs of free buddies that became a block of the next order. Neighbours that come back in one batch are one block
    /// before they get there, and are not counted.
    pub merges: u64,
}

impl OrderStats {
    /// Blocks that are out.
    #[must_use]
    pub const fn nr_allocated(&self) -> u64 {
        self.allocs.saturating_sub(self.frees)
    }
}

/// What one slot's lists hold and did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
#[doc(alias = "per_cpu_pages")]
pub struct SlotStats {
    /// Blocks on the list of each order; 0 for orders that have none.
    pub blocks: [usize; ORDERS],
    /// Allocations that the list of each order served.
    pub hits: [u64; ORDERS],
    /// Blocks that their owners freed to the list of each order. Not counted but derived: what left the list and
    /// what is on it, less what came from the zone.
    pub frees: [u64; ORDERS],
    /// Batches from the zone.
    #[doc(alias = "rmqueue_bulk")]
    pub refills: u64,
    /// Blocks in them.
    pub refilled: u64,
    /// Batches to the zone.
    #[doc(alias = "free_pcppages_bulk")]
    pub drains: u64,
    /// Blocks in them.
    pub drained: u64,
    /// Allocations on this slot, by attempt level. What is done where the slot's lists cannot be entered (by interrupt handlers that came upon
    /// them, say) is counted for the zone alone.
    pub attempts: [AttemptStats; ATTEMPTS],
}

impl SlotStats {
    /// Pages on the lists.
    #[must_use]
    pub fn pages(&self) -> usize {
        let pages = |(order, blocks): (usize, &usize)| blocks << order;
        self.blocks.iter().enumerate().map(pages).sum()
    }

    /// How allocations at `attempt` went on this slot.
    #[must_use]
    pub const fn attempt(&self, attempt: Attempt) -> AttemptStats {
        self.attempts[attempt as usize]
    }

    /// Adds what another slot's lists hold and did.
    pub(crate) fn add(&mut self, other: &Self) {
        for order in 0..ORDERS {
            self.blocks[order] += other.blocks[order];
            self.hits[order] += other.hits[order];
            self.frees[order] += other.frees[order];
        }
        self.refills += other.refills;
        self.refilled += other.refilled;
        self.drains += other.drains;
        self.drained += other.drained;
        let attempts = self.attempts.iter_mut().zip(&other.attempts);
        attempts.for_each(|(sum, attempt)| sum.add(attempt));
    }
}

impl fmt::Display for SlotStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} pages listed, {} hits, {} refills ({} blocks), {} drains ({} blocks)",
            self.pages(),
            self.hits.iter().sum::<u64>(),
            self.refills,
            self.refilled,
            self.drains,
            self.drained,
        )
    }
}

/// What a zone holds and how it went, at one moment. Exact if nobody else uses the zone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct ZoneStats {
    /// Pages that the source gave.
    pub total_pages: usize,
    /// Pages free in the zone.
    pub free_pages: usize,
    /// Free blocks in the zone, by order.
    pub free_blocks: [usize; ORDERS],
    /// What the zone did, by order.
    pub orders: [OrderStats; ORDERS],
    /// Pages on the slots' lists.
    pub list_pages: usize,
    /// Pages freed without a lock that wait to be merged.
    pub stash_pages: usize,
    /// The most pages that ever waited so.
    pub stash_peak_pages: usize,
    /// Blocks that ever went through the stash.
    pub stashed_blocks: usize,
    /// Allocations that a slot's list served, at any level.
    pub hits: u64,
    /// Batches that went from the zone to slots' lists.
    pub refills: u64,
    /// Batches that went from slots' lists to the zone.
    pub drains: u64,
    /// Allocations by attempt level.
    pub attempts: [AttemptStats; ATTEMPTS],
    /// How often somebody who may wait found a lock of the lower level's taken.
    pub lock_waits: usize,
    /// Ranges that the source gave.
    pub grows: usize,
}

impl ZoneStats {
    /// Pages that are out.
    #[must_use]
    pub const fn nr_allocated(&self) -> usize {
        self.total_pages
            .saturating_sub(self.free_pages + self.list_pages + self.stash_pages)
    }

    /// How allocations at `attempt` went.
    #[must_use]
    pub const fn attempt(&self, attempt: Attempt) -> AttemptStats {
        self.attempts[attempt as usize]
    }

    /// What the zone did with blocks of `order`.
    #[must_use]
    pub const fn order(&self, order: Order) -> OrderStats {
        self.orders[order.get()]
    }

    /// Blocks of `order` that the zone's free blocks could be cut to.
    const fn suitable(&self, order: Order) -> usize {
        let (mut blocks, mut o) = (0, order.get());
        while o < ORDERS {
            blocks += self.free_blocks[o] << (o - order.get());
            o += 1;
        }
        blocks
    }

    /// Why an allocation of `order` would fail, in thousandths: towards 0 for lack of memory, towards 1000 because what is
    /// free is in pieces that are too small. `None` if the zone has such a block; 0 if it has nothing at all.
    ///
    /// With very few free blocks it may be below 0, as Linux's is. Pages on lists and in the stash are not counted.
    /// Source: Linux `mm/vmstat.c`, `__fragmentation_index` (which says -1000 for `None`).
    #[must_use]
    #[doc(alias = "extfrag_index")]
    pub fn fragmentation_index(&self, order: Order) -> Option<i32> {
        if self.suitable(order) > 0 {
            return None;
        }
        let blocks: usize = self.free_blocks.iter().sum();
        if blocks == 0 {
            return Some(0);
        }
        let wanted = self.free_pages as u64 * 1000 / order.pages() as u64;
        // Below 1000 * blocks, for no block holds `order`: what is divided fits, and the result too.
        Some(1000 - ((1000 + wanted) / blocks as u64) as i32)
    }

    /// How much of the free memory is of no use to an allocation of `order`, being in smaller pieces, in thousandths; 1000 if
    /// nothing is free.
    ///
    /// Source: Linux `mm/vmstat.c`, `unusable_free_index`.
    #[must_use]
    #[doc(alias = "unusable_free_index")]
    pub const fn unusable_index(&self, order: Order) -> u32 {
        if self.free_pages == 0 {
            return 1000;
        }
        let usable = self.suitable(order) << order.get();
        let unusable = self.free_pages.saturating_sub(usable) as u64;
        (unusable * 1000 / self.free_pages as u64) as u32
    }

    pub(crate) fn add_lists(&mut self, lists: &SlotStats) {
        self.list_pages = lists.pages();
        self.hits = lists.hits.iter().sum();
        self.refills = lists.refills;
        self.drains = lists.drains;
        let attempts = self.attempts.iter_mut().zip(&lists.attempts);
        attempts.for_each(|(sum, attempt)| sum.add(attempt));
        for (i, order) in self.orders.iter_mut().enumerate() {
            order.listed = lists.blocks[i];
            order.allocs += lists.hits[i];
            order.frees += lists.frees[i];
        }
    }

    pub(crate) fn add_changes(&mut self, changes: &Changes) {
        self.lock_waits = changes.waits;
        for (i, order) in self.orders.iter_mut().enumerate() {
            order.splits = changes.splits[i];
            order.merges = changes.merges[i];
        }
    }
}

/// Like `/proc/buddyinfo`, with the lists, the stash and the attempts below; with `{:#}`, a table of the orders too.
impl fmt::Display for ZoneStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "free blocks by order:")?;
        for blocks in self.free_blocks {
            write!(f, " {blocks:6}")?;
        }
        writeln!(
            f,
            "\npages: {} total, {} out, {} free, {} on lists, {} stashed (at most {})",
            self.total_pages,
            self.nr_allocated(),
            self.free_pages,
            self.list_pages,
            self.stash_pages,
            self.stash_peak_pages,
        )?;
        write!(
            f,
            "list hits: {}, refills: {}, drains: {}, grown: {}, ever stashed: {}, waits for the lock: {}",
            self.hits, self.refills, self.drains, self.grows, self.stashed_blocks, self.lock_waits
        )?;
        for (name, a) in ["PcpOnly", "TryLock", "NoWait", "MayGrow"]
            .iter()
            .zip(self.attempts)
        {
            write!(f, "\n{name:>8}: {a}")?;
        }
        if f.alternate() {
            self.table(f)?;
        }
        Ok(())
    }
}

impl ZoneStats {
    /// A line for each order, like `/proc/pagetypeinfo` turned on its side, with the two indices of `debugfs/extfrag`.
    fn table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "\n{:>5} {:>8} {:>8} {:>12} {:>12} {:>10} {:>10} {:>8} {:>8}",
            "order", "free", "listed", "allocs", "frees", "splits", "merges", "unusable", "extfrag"
        )?;
        for (i, o) in self.orders.iter().enumerate() {
            let (free, order) = (self.free_blocks[i], Order::at(i));
            let unusable = self.unusable_index(order);
            write!(
                f,
                "\n{i:>5} {free:>8} {:>8} {:>12} {:>12} {:>10} {:>10} {unusable:>8} ",
                o.listed, o.allocs, o.frees, o.splits, o.merges
            )?;
            match self.fragmentation_index(order) {
                Some(index) => write!(f, "{index:>8}")?,
                None => write!(f, "{:>8}", "-")?,
            }
        }
        Ok(())
    }
}
