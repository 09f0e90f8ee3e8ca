//! The buddy system: free blocks of 2^0 to 2^10 pages, split on demand and merged at once.
//!
//! Source: Knuth, TAOCP 1, 2.5; Linux `mm/page_alloc.c` (`__rmqueue_smallest`, `__free_one_page`).
//! Everything runs under the zone lock.
//!
//! # Invariants
//! - I1. A block on `areas[o]` has state `FREE` at order `o` in its head, and 0 in its other pages.
//! - I2. Blocks are aligned and disjoint, and no two buddies of one order are both free below the largest order.
//! - I3. `free_pages` is the sum of `nr << o`.

#![deny(unsafe_code)]

use crate::api::{Order, PageTag};
use crate::frames::Metas;
use crate::index::{self, NONE};
use crate::meta::State;
use crate::runs::{Run, Runs};

/// How many orders there are.
pub(crate) const ORDERS: usize = Order::MAX.get() + 1;

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
}

impl Buddy {
    /// No free blocks, over a span with `bias`.
    pub(crate) const fn new(bias: u32) -> Self {
        Self {
            areas: [EMPTY; ORDERS],
            free_pages: 0,
            bias,
        }
    }

    pub(crate) const fn free_pages(&self) -> usize {
        self.free_pages
    }

    /// Free blocks by order.
    pub(crate) fn free_blocks(&self) -> [usize; ORDERS] {
        self.areas.map(|area| area.nr as usize)
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

    /// Takes the block of exactly `order` that was put on its list longest ago.
    pub(crate) fn take_last(&mut self, metas: Metas, order: Order) -> Option<(u32, bool)> {
        let block = self.areas[order.get()].last;
        let zero = metas.get(block)?.state().is_zero();
        self.unlink(metas, block, order);
        Some((block, zero))
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
        while let Some((head, order)) = self.around(metas, at).filter(|_| at < end) {
            let (zero, stop) = (
                metas.at(head).state().is_zero(),
                head + order.pages() as u32,
            );
            self.unlink(metas, head, order);
            // What is left over on either side has its buddy among what went: nothing merges (I2).
            for (from, to) in [(head, first), (end, stop)] {
                for (block, order) in index::blocks(from, to, self.bias) {
                    self.link(metas, block, order, zero, false);
                }
            }
            at = stop;
        }
        true
    }

    /// The free block that a page lies in.
    fn around(&self, metas: Metas, page: u32) -> Option<(u32, Order)> {
        (0..ORDERS).map(Order::at).find_map(|order| {
            let aligned = (page + self.bias) & !(order.pages() as u32 - 1);
            let head = aligned.checked_sub(self.bias)?;
            let state = metas.get(head)?.state();
            state.is_free_at(order).then_some((head, order))
        })
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
