//! The buddy system: free blocks of 2^0 to 2^10 pages, split on demand and merged at once.
//!
//! Source: Knuth, TAOCP 1, 2.5; Linux `mm/page_alloc.c` (`__rmqueue_smallest`, `__free_one_page`).
//! Everything runs under the zone lock.
//!
//! # Invariants
//! - I1. A block on `areas[o]` has state `FREE` at order `o` in its head, and 0 in its other pages.
//! - I2. Blocks are aligned and disjoint, and no two buddies of one order are both free below the largest order.
//! - I3. `free_pages` is the sum of `nr << o`.
//! - I4. On the lists of huge orders, blocks that may have memory behind them (dirty ones) come before those known to read as
//!   zeroes; `dirty.pages` is the sum of the former. So memory in use is used again first, and what can be given back is found at once.

#![deny(unsafe_code)]

mod within;

use crate::api::{Order, PageTag};
use crate::frames::Metas;
use crate::index::{self, NONE};
use crate::meta::State;
use crate::runs::{Run, Runs};

/// How many orders there are.
pub(crate) const ORDERS: usize = Order::MAX.get() + 1;

/// Blocks of this order and above are worth a system call each: 2 MiB, a huge page.
pub(crate) const HUGE: Order = Order::at(9);

/// The free blocks of one order, doubly linked through their heads' metadata.
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
    areas: [Area; ORDERS],
    free_pages: usize,
    bias: u32,
    dirty: Dirty,
    /// Blocks that were cut for smaller ones, by order.
    splits: [u64; ORDERS],
    /// Pairs of buddies that became one block, by the buddies' order.
    merges: [u64; ORDERS],
}

/// Pages in free blocks of huge orders that may have memory behind them.
#[derive(Clone, Copy, Debug)]
struct Dirty {
    pages: usize,
    /// The fewest since somebody last asked.
    low: usize,
}

impl Buddy {
    /// No free blocks, over a span with `bias`.
    pub(crate) const fn new(bias: u32) -> Self {
        Self {
            areas: [EMPTY; ORDERS],
            free_pages: 0,
            bias,
            dirty: Dirty { pages: 0, low: 0 },
            splits: [0; ORDERS],
            merges: [0; ORDERS],
        }
    }

    pub(crate) const fn free_pages(&self) -> usize {
        self.free_pages
    }

    /// Free blocks by order.
    pub(crate) fn free_blocks(&self) -> [usize; ORDERS] {
        self.areas.map(|area| area.nr as usize)
    }

    /// How often blocks of each order were cut, and how often merged.
    pub(crate) const fn changes(&self) -> ([u64; ORDERS], [u64; ORDERS]) {
        (self.splits, self.merges)
    }

    /// Takes up to `want` blocks of `order`, at most [`CHUNK`](crate::pcp::CHUNK), from the smallest sufficient blocks first
    /// (P2). Their heads are not marked yet.
    ///
    /// Why many at once: a large block is cut into its pieces in one go, not by a split per piece.
    #[doc(alias = "__rmqueue_smallest")]
    #[doc(alias = "expand")]
    pub(crate) fn take(&mut self, metas: Metas, order: Order, want: usize, runs: &mut Runs) {
        let mut got = 0;
        while got < want {
            let Some((first, from, zero)) = self.pop_at_least(metas, order) else {
                break;
            };
            self.splits[from.get()] += u64::from(from > order);
            let pieces = 1_usize << (from.get() - order.get());
            let n = pieces.min(want - got);
            let end = first + ((n as u32) << order.get());
            runs.push(Run { first, end, zero });
            got += n;
            // What is left are whole blocks whose buddies just went out: nothing merges (I2).
            for (block, order) in index::blocks(end, first + from.pages() as u32, self.bias) {
                self.link(metas, block, order, zero, false);
            }
        }
    }

    /// Takes a block of exactly `order`, a huge one, that may have memory behind it.
    pub(crate) fn take_dirty(&mut self, metas: Metas, order: Order) -> Option<u32> {
        let block = self.areas[order.get()].first;
        if metas.get(block)?.state().is_zero() {
            // I4: so do all behind it.
            return None;
        }
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

    /// Puts pages back, merged as far as they go. No head among them is marked.
    pub(crate) fn put_run(&mut self, metas: Metas, run: Run) {
        for (block, order) in index::blocks(run.first, run.end, self.bias) {
            self.put(metas, block, order, run.zero);
        }
    }

    /// Puts a block back and merges it with its buddies (P1). Its head's state may be anything before.
    #[doc(alias = "__free_one_page")]
    pub(crate) fn put(&mut self, metas: Metas, block: u32, order: Order, zero: bool) {
        metas.at(block).set_state(State::INSIDE);
        let (mut block, mut order, mut zero) = (block, order, zero);
        while order < Order::MAX {
            let Some(buddy) = self.free_buddy(metas, block, order) else {
                break;
            };
            zero &= metas.at(buddy).state().is_zero();
            self.unlink(metas, buddy, order);
            self.merges[order.get()] += 1;
            block = block.min(buddy);
            order = Order::at(order.get() + 1);
        }
        let keep = self.merge_is_likely(metas, block, order);
        self.link(metas, block, order, zero, keep);
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

    fn pop_at_least(&mut self, metas: Metas, order: Order) -> Option<(u32, Order, bool)> {
        let order = (order.get()..ORDERS).find(|&o| self.areas[o].nr > 0)?;
        let block = self.areas[order].first;
        let zero = metas.at(block).state().is_zero();
        let order = Order::at(order);
        self.unlink(metas, block, order);
        Some((block, order, zero))
    }

    /// Puts a head on its list: in front (hot), or at the end (to be kept).
    fn link(&mut self, metas: Metas, block: u32, order: Order, zero: bool, last: bool) {
        let last = if order >= HUGE { zero } else { last };
        if order >= HUGE && !zero {
            self.dirty.pages += order.pages();
        }
        let area = &mut self.areas[order.get()];
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
        let area = &mut self.areas[order.get()];
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
