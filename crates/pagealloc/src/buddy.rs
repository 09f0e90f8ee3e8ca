//! The buddy system: free blocks of 2^0 to 2^10 pages, split on demand and merged at once.
//!
//! Source: Knuth, TAOCP 1, 2.5; Linux `mm/page_alloc.c` (`__rmqueue_smallest`, `__free_one_page`).
//! Everything runs under the arena's lock.
//!
//! Blocks of 2^6 pages and more are on lists. Smaller ones are bits in [`groups`](crate::groups), by which they merge without being touched one
//! by one, and the lists of the orders below are of groups.
//!
//! # Invariants
//! - I1. A block on `areas[o]`, `o >= 6`, has state `FREE` at order `o` in its head, and 0 in its other pages. Pages of smaller free blocks have 0.
//! - I2. Blocks are aligned and disjoint, and no two buddies of one order are both free below the largest order.
//! - I3. `free_pages` is the sum of `nr << o` over the large orders, and of the groups' bits.
//! - I4. A block is on the list of its pageblock's type ([`crate::mobility`] I1). Blocks of two types merge only to more than
//!   a pageblock, and are then of the type of the one that came last (T32). So a free pageblock merges whatever its type.
//! - I5. On the lists of huge orders, blocks that may have memory behind them (dirty ones) come before those known to read as
//!   zeroes; `dirty.pages` is the sum of the former. So memory in use is used again first, and what can be given back is found at once.
//!
//! # Which of several small blocks
//! By order alone, blocks of each size lie everywhere, and pages that come and go one by one keep a page out of every huge block for ever
//! (the bench `fragmentation-long`). So below a pageblock's size the part under a `line` goes first: blocks, and groups, under it lie in front of
//! their lists (hot ones first, P3), those above at the end, and the smallest sufficient block (P2) is looked for in front, and only then anywhere. The
//! line leaves room for what is out and a quarter of what is free; above it pages are freed and hardly allocated, and huge blocks become whole. Where
//! lists are out of order, because the line moved, a block is missed, not lost. Why not by how full each pageblock is: it is a word to be
//! written for each block that comes or goes. Without a line (`u32::MAX`, as at first) it is P2 and P3 alone.
//! P3's random option (front or end by a coin, `shuffle_pick_tail`) is not here: a coin that nobody can guess is no layer's below, and it would
//! undo the line.

#![deny(unsafe_code)]

pub(crate) mod small;
mod within;

use crate::api::{Mobility, Order, PageTag};
use crate::frames::Metas;
use crate::groups::{GROUP, Groups, SMALL};
use crate::index::{self, NONE};
use crate::meta::State;
use crate::mobility::{Claim, Fallback, PAGEBLOCK, PageBlocks, Steal, TYPES};
use crate::runs::{Run, Runs};

/// How many orders there are.
pub(crate) const ORDERS: usize = Order::MAX.get() + 1;

/// Blocks of this order and above are worth a system call each: 2 MiB, a huge page.
pub(crate) const HUGE: Order = Order::at(9);

/// The free blocks of one order, doubly linked through their heads' metadata; or the groups of one rank.
#[derive(Clone, Copy, Debug)]
struct Area {
    first: u32,
    last: u32,
    nr: u32,
}

const EMPTY: Area = Area {
    first: NONE,
    last: NONE,
    nr: 0,
};

/// The free blocks of a zone.
#[derive(Debug)]
pub(crate) struct Buddy {
    areas: [[Area; ORDERS]; TYPES],
    free_pages: usize,
    bias: u32,
    blocks: PageBlocks,
    groups: Groups,
    /// Groups that have a larger block than when they were ranked.
    unranked: Area,
    fallback: [Fallback; TYPES],
    dirty: Dirty,
    /// Small blocks before this page are used first.
    line: u32,
    /// No run of more than a page was ever put before the first number, nor from the second one on.
    bounds: (u32, u32),
    /// Blocks that were cut for smaller ones, by order.
    splits: [u64; ORDERS],
    /// Pairs of buddies that became one block, by the buddies' order less [`GROUP`].
    merges: [u64; ORDERS - SMALL],
    /// See [`Self::flow`].
    flow: [u64; SMALL],
}

/// Pages in free blocks of huge orders that may have memory behind them.
#[derive(Clone, Copy, Debug)]
struct Dirty {
    pages: usize,
    /// The fewest since somebody last asked.
    low: usize,
}

impl Buddy {
    /// No free blocks, over a span with `bias`, whose pageblocks have the types in `blocks` and whose groups are `groups`.
    pub(crate) fn new(bias: u32, blocks: PageBlocks, groups: Groups) -> Self {
        Self {
            areas: [[EMPTY; ORDERS]; TYPES],
            free_pages: 0,
            bias,
            blocks,
            groups,
            unranked: EMPTY,
            fallback: Mobility::ALL.map(Fallback::linux),
            dirty: Dirty { pages: 0, low: 0 },
            line: u32::MAX,
            bounds: (u32::MAX, 0),
            splits: [0; ORDERS],
            merges: [0; ORDERS - SMALL],
            flow: [0; SMALL],
        }
    }

    /// What requests of each type may take from the others, from now on.
    pub(crate) const fn set_fallback(&mut self, fallback: [Fallback; TYPES]) {
        self.fallback = fallback;
    }

    pub(crate) const fn free_pages(&self) -> usize {
        self.free_pages
    }

    /// Draws the line anew for a memory of about `pages` pages in all.
    pub(crate) fn draw_line(&mut self, pages: u32) {
        let free = self.free_pages as u32;
        let under = pages.saturating_sub(free).saturating_add(free / 4);
        let (first, end) = self.bounds;
        let width = end.saturating_sub(first);
        // Others' memory may lie in between; then the part is the same.
        let under = if width > pages && pages > 0 {
            (u64::from(width) * u64::from(under) / u64::from(pages)) as u32
        } else {
            under
        };
        self.line = first.saturating_add(under);
    }

    /// Free blocks by order, of [`GROUP`] and above; of one type's pageblocks or all.
    pub(crate) fn large_blocks(&self, of: Option<Mobility>) -> [usize; ORDERS] {
        let mut blocks = [0; ORDERS];
        for mobility in Mobility::ALL {
            if of.is_none_or(|of| of == mobility) {
                for (order, area) in self.areas[mobility.get()].iter().enumerate().skip(SMALL) {
                    blocks[order] += area.nr as usize;
                }
            }
        }
        blocks
    }

    /// How often blocks of each order were cut, and how often merged; merges of small blocks are told by [`Self::flow`].
    pub(crate) fn changes(&self) -> ([u64; ORDERS], [u64; ORDERS]) {
        let merges = |order: usize| order.checked_sub(SMALL).map_or(0, |i| self.merges[i]);
        (self.splits, core::array::from_fn(merges))
    }

    /// Takes up to `want` blocks of `order`, at most [`CHUNK`](crate::pcp::CHUNK), from the smallest sufficient blocks of
    /// `mobility` first (P2). Their heads are not marked yet.
    ///
    /// Why many at once: a large block is cut into its pieces in one go, not by a split per piece. From another type's
    /// pageblocks comes one block, or as many as its pieces: a batch is not worth spoiling several of them.
    #[doc(alias = "__rmqueue_smallest")]
    #[doc(alias = "expand")]
    pub(crate) fn take(
        &mut self,
        metas: Metas,
        order: Order,
        mobility: Mobility,
        want: usize,
        runs: &mut Runs,
    ) {
        self.take_by(metas, order, mobility, want, true, runs);
    }

    /// The same, and none of another type's pageblocks but by taking over the whole.
    pub(crate) fn take_or_claim(
        &mut self,
        metas: Metas,
        order: Order,
        mobility: Mobility,
        want: usize,
        runs: &mut Runs,
    ) {
        self.take_by(metas, order, mobility, want, false, runs);
    }

    fn take_by(
        &mut self,
        metas: Metas,
        order: Order,
        mobility: Mobility,
        want: usize,
        steal: bool,
        runs: &mut Runs,
    ) {
        self.rank_some(metas);
        let mut got = 0;
        while got < want {
            let list = self.first_list(order, mobility);
            if let Some(list) = list.filter(|&list| list < SMALL) {
                let group = self.areas[mobility.get()][list].first;
                let n = self.take_group(metas, group, order, want - got, runs);
                got += n;
                if n > 0 {
                    continue;
                }
            }
            let found = list
                .and_then(|list| self.first_in(&self.areas[mobility.get()][list], list, order))
                .or_else(|| self.out_of_others(metas, order, mobility, steal && got == 0));
            let Some((first, from)) = found else {
                break;
            };
            self.splits[from.get()] += u64::from(from > order);
            let pieces = 1_usize << (from.get() - order.get());
            let n = pieces.min(want - got);
            let end = first + ((n as u32) << order.get());
            let zero = self.cut(metas, first, from, end);
            runs.push(Run { first, end, zero });
            got += n;
        }
    }

    /// Takes the pages up to `end` out of a free block, which is as large as it can be; whether they are zero.
    ///
    /// What is left are whole blocks whose buddies just went out: nothing merges (I2).
    #[doc(alias = "expand")]
    fn cut(&mut self, metas: Metas, first: u32, from: Order, end: u32) -> bool {
        // All of it lies in one pageblock, or in several of one type (I4).
        let mobility = self.blocks.of(first);
        if from < GROUP {
            return self.take_small(metas, first, from, end, mobility);
        }
        let zero = metas.at(first).state().is_zero();
        self.unlink_from(metas, first, from, mobility);
        let stop = first + from.pages() as u32;
        // A block ends with a group: what is less than one lies in the first of what is left.
        let whole = (end + self.bias).next_multiple_of(GROUP.pages() as u32) - self.bias;
        if end < whole {
            self.put_part(metas, end, whole, zero);
        }
        for (block, order) in index::blocks(whole, stop, self.bias) {
            self.link_to(metas, block, order, zero, false, mobility);
        }
        zero
    }

    /// Takes a block of exactly `order`, a huge one, that may have memory behind it.
    pub(crate) fn take_dirty(&mut self, metas: Metas, order: Order) -> Option<u32> {
        // I5: where the first reads as zeroes, so do all behind it.
        let block = self.areas.iter().find_map(|areas| {
            let block = areas[order.get()].first;
            let is_dirty = !metas.get(block)?.state().is_zero();
            is_dirty.then_some(block)
        })?;
        self.unlink(metas, block, order);
        Some(block)
    }

    /// Pages that [`Self::take_dirty`] could find.
    pub(crate) const fn dirty_pages(&self) -> usize {
        self.dirty.pages
    }

    /// How many of these nobody needed since the last call.
    pub(crate) const fn idle_pages(&mut self) -> usize {
        let idle = self.dirty.low;
        self.dirty.low = self.dirty.pages;
        idle
    }

    /// Takes exactly these pages if all of them are free; false, and nothing has changed, otherwise.
    pub(crate) fn take_range(&mut self, metas: Metas, first: u32, end: u32) -> bool {
        let mut at = first;
        while at < end {
            let Some((head, order)) = self.around(metas, at) else {
                return false;
            };
            at = head + order.pages() as u32;
        }
        let mut at = first;
        // Behind the end may be another arena's groups.
        while at < end
            && let Some((head, order)) = self.around(metas, at)
        {
            let stop = head + order.pages() as u32;
            let zero = self.cut(metas, head, order, stop);
            // What is left over on either side has its buddy among what went: nothing merges (I2).
            for (from, to) in [(head, first), (end, stop)] {
                for (block, order) in index::blocks(from, to, self.bias) {
                    self.put(metas, block, order, zero);
                }
            }
            at = stop;
        }
        true
    }

    /// The free block that a page lies in, as large as it can be.
    fn around(&self, metas: Metas, page: u32) -> Option<(u32, Order)> {
        let large = (SMALL..ORDERS).map(Order::at).find_map(|order| {
            let aligned = (page + self.bias) & !(order.pages() as u32 - 1);
            let head = aligned.checked_sub(self.bias)?;
            let state = metas.get(head)?.state();
            state.is_free_at(order).then_some((head, order))
        });
        self.small_around(page).or(large)
    }

    /// Puts pages back, merged as far as they go. No head among them is marked.
    pub(crate) fn put_run(&mut self, metas: Metas, run: Run) {
        self.bounds = (self.bounds.0.min(run.first), self.bounds.1.max(run.end));
        let mut at = run.first;
        while at < run.end {
            let group = self.end_of_group(at);
            let end = run.end.min(group);
            match end - at {
                1 => self.put_small(metas, at, Order::ZERO, run.zero),
                64 => {
                    // And all groups that follow.
                    let end = run.end - ((run.end + self.bias) & (GROUP.pages() as u32 - 1));
                    for (block, order) in index::blocks(at, end, self.bias) {
                        self.put_large(metas, block, order, run.zero);
                    }
                    at = end;
                    continue;
                }
                _ => self.put_part(metas, at, end, run.zero),
            }
            at = end;
        }
    }

    /// Puts a block back and merges it with its buddies (P1). Its head's state may be anything before.
    #[doc(alias = "__free_one_page")]
    #[inline]
    pub(crate) fn put(&mut self, metas: Metas, block: u32, order: Order, zero: bool) {
        if order < GROUP {
            self.put_small(metas, block, order, zero);
        } else {
            self.put_large(metas, block, order, zero);
        }
    }

    fn put_large(&mut self, metas: Metas, block: u32, order: Order, zero: bool) {
        metas.at(block).set_state(State::INSIDE);
        let (mut block, mut order, mut zero) = (block, order, zero);
        // Under the lock: whatever it was before, this is its type now (T32).
        let mobility = self.blocks.of(block);
        while order < Order::MAX {
            let Some(buddy) = self.free_buddy(metas, block, order) else {
                break;
            };
            zero &= metas.at(buddy).state().is_zero();
            if order < PAGEBLOCK {
                self.unlink_from(metas, buddy, order, mobility);
            } else {
                self.unlink(metas, buddy, order);
            }
            self.merges[order.get() - SMALL] += 1;
            block = block.min(buddy);
            order = Order::at(order.get() + 1);
        }
        if order > PAGEBLOCK {
            self.blocks.set(block, order.pages(), mobility);
        }
        let keep = self.merge_is_likely(metas, block, order);
        self.link_to(metas, block, order, zero, keep, mobility);
    }

    /// `block`'s buddy, if it is free at the same order.
    fn free_buddy(&self, metas: Metas, block: u32, order: Order) -> Option<u32> {
        let buddy = index::buddy(block, order, self.bias)?;
        let meta = metas.get(buddy)?;
        meta.state().is_free_at(order).then_some(buddy)
    }

    /// Whether the buddy of the block that `block` and its (busy) buddy would form is free: then
    /// `block` is better kept out of circulation, for its buddy may come back soon (P3).
    #[doc(alias = "buddy_merge_likely")]
    fn merge_is_likely(&self, metas: Metas, block: u32, order: Order) -> bool {
        if order.get() + 1 >= Order::MAX.get() {
            return false;
        }
        let Some(buddy) = index::buddy(block, order, self.bias) else {
            return false;
        };
        let above = Order::at(order.get() + 1);
        self.free_buddy(metas, block.min(buddy), above).is_some()
    }

    /// The first block of [`Self::first_list`].
    fn smallest(&self, order: Order, mobility: Mobility) -> Option<(u32, Order)> {
        let list = self.first_list(order, mobility)?;
        self.first_in(&self.areas[mobility.get()][list], list, order)
    }

    /// The lowest list of `mobility` on which there is a block of at least `order`: of those with one under the line in front, or else of all.
    fn first_list(&self, order: Order, mobility: Mobility) -> Option<usize> {
        let areas = &self.areas[mobility.get()];
        let mut above = None;
        for (list, area) in areas.iter().enumerate().skip(order.get()) {
            if area.nr == 0 {
                continue;
            }
            if list >= PAGEBLOCK.get() {
                return above.or(Some(list));
            }
            let head = if list < SMALL {
                self.first_of(area.first)
            } else {
                area.first
            };
            if head < self.line {
                return Some(list);
            }
            above = above.or(Some(list));
        }
        above
    }

    /// The first block on a list; of a group the smallest one of at least `order`.
    fn first_in(&self, area: &Area, list: usize, order: Order) -> Option<(u32, Order)> {
        if list < SMALL {
            self.smallest_in(area.first, order.get())
        } else {
            Some((area.first, Order::at(list)))
        }
    }

    /// A block for a request whose own type has none: out of a pageblock taken over, or else out of another type's if
    /// the request `may_steal` (P4).
    #[cold]
    #[doc(alias = "__rmqueue_claim")]
    #[doc(alias = "__rmqueue_steal")]
    fn out_of_others(
        &mut self,
        metas: Metas,
        order: Order,
        mobility: Mobility,
        may_steal: bool,
    ) -> Option<(u32, Order)> {
        let fallback = self.fallback[mobility.get()];
        let first_of = |buddy: &Self, from: usize, order: Order| {
            let mut others = fallback.order.into_iter().flatten();
            others.find_map(|other| {
                let area = &buddy.areas[other.get()][from];
                let has_some = other != mobility && area.nr > 0;
                has_some.then(|| buddy.first_in(area, from, order))?
            })
        };
        let orders = order.get()..ORDERS;
        for o in orders.clone().rev() {
            if o < fallback.smallest_claim.get() {
                break;
            }
            if let Some((block, from)) = first_of(self, o, Order::at(o))
                && self.claim(metas, block, from, mobility, fallback.claim)
            {
                return self.smallest(order, mobility);
            }
        }
        match fallback.steal {
            _ if !may_steal => None,
            Steal::Never => None,
            Steal::Largest => orders.rev().find_map(|o| first_of(self, o, Order::at(o))),
            Steal::Smallest => { orders }.find_map(|o| first_of(self, o, order)),
        }
    }

    /// Makes the pageblock around a free block one of `mobility`, with all that is free in it, if `claim` allows.
    #[doc(alias = "try_to_claim_block")]
    fn claim(
        &mut self,
        metas: Metas,
        block: u32,
        order: Order,
        mobility: Mobility,
        claim: Claim,
    ) -> bool {
        let Claim::Percent(percent) = claim else {
            return false;
        };
        let whole = order >= PAGEBLOCK;
        let (first, end) = if whole {
            (block, block + order.pages() as u32)
        } else {
            self.blocks.around(block, metas.len())
        };
        let compatible = || self.compatible_pages(metas, first, end, mobility);
        if !whole && compatible() * 100 < (end - first) as usize * percent as usize {
            return false;
        }
        // Taken off under the old type, put back under the new one (I4).
        let old = self.blocks.of(first);
        self.change_lists(metas, first..end, old, mobility);
        self.blocks.set(first, (end - first) as usize, mobility);
        true
    }

    /// How many of the pages are free, or out or listed for `mobility`. What owners write meanwhile may be seen or not:
    /// the number decides about placement only.
    fn compatible_pages(&self, metas: Metas, first: u32, end: u32, mobility: Mobility) -> usize {
        let (mut at, mut compatible) = (first, self.small_pages(first..end));
        while at < end {
            let state = metas.at(at).state();
            if !state.is_head() {
                at += 1;
                continue;
            }
            let pages = (state.order().pages() as u32).min(end - at);
            if state.is_nobodys() || state.mobility() == mobility {
                compatible += pages as usize;
            }
            at += pages;
        }
        compatible
    }

    /// Puts a large block's head on its list: in front (hot), or at the end (to be kept, or above the line).
    fn link_to(
        &mut self,
        metas: Metas,
        block: u32,
        order: Order,
        zero: bool,
        last: bool,
        mobility: Mobility,
    ) {
        debug_assert!(order >= GROUP, "I1");
        let last = if order >= HUGE {
            zero
        } else {
            last || block >= self.line
        };
        if order >= HUGE && !zero {
            self.dirty.pages += order.pages();
        }
        let area = &mut self.areas[mobility.get()][order.get()];
        let meta = metas.at(block);
        meta.set_state(State::free(order, zero));
        let (prev, next) = if last {
            (area.last, NONE)
        } else {
            (NONE, area.first)
        };
        meta.set_prev(prev);
        meta.set_next(next);
        match prev {
            NONE => area.first = block,
            prev => metas.at(prev).set_next(block),
        }
        match next {
            NONE => area.last = block,
            next => metas.at(next).set_prev(block),
        }
        area.nr += 1;
        self.free_pages += order.pages();
    }

    /// Takes a head off its list; its page is then inside nothing and carries no note.
    fn unlink(&mut self, metas: Metas, block: u32, order: Order) {
        self.unlink_from(metas, block, order, self.blocks.of(block));
    }

    fn unlink_from(&mut self, metas: Metas, block: u32, order: Order, mobility: Mobility) {
        let area = &mut self.areas[mobility.get()][order.get()];
        let meta = metas.at(block);
        debug_assert!(meta.state().is_free_at(order), "I1: linked blocks are free");
        if order >= HUGE && !meta.state().is_zero() {
            self.dirty.pages -= order.pages();
            self.dirty.low = self.dirty.low.min(self.dirty.pages);
        }
        let (prev, next) = (meta.prev(), meta.next());
        match prev {
            NONE => area.first = next,
            prev => metas.at(prev).set_next(next),
        }
        match next {
            NONE => area.last = prev,
            next => metas.at(next).set_prev(prev),
        }
        meta.set_state(State::INSIDE);
        meta.set_note(PageTag::NONE);
        area.nr -= 1;
        self.free_pages -= order.pages();
    }
}

#[cfg(test)]
mod tests;
