//! A range whose free pages are kept from being handed out, for its removal.
//!
//! Source: Linux `mm/page_isolation.c`, `mm/memory_hotplug.c` (`offline_pages`). There a type of free list marks isolated
//! pageblocks; here one range at a time is known to the buddy system itself, which costs a comparison a freed block and no memory,
//! and the range need not be made of whole pageblocks.
//!
//! # Life
//! [`Buddy::isolate`] names the range: from here on, what is freed into it is kept (`ISOLATED`). [`Buddy::isolate_free`] takes what was
//! free before off the lists, in bounded steps, from the front. Then either every page is kept, and [`Buddy::end_isolation`] makes them
//! nobody's; or it is followed by [`Buddy::release`], which gives back what was kept.
//!
//! Why one scan from the front suffices, though blocks are taken and merged between its steps: a page behind the scan is kept or out. A free block
//! reaching behind the scan would hold such a page, and pages that are kept or out merge with nothing (I5 of the buddy system).

#![deny(unsafe_code)]

use super::Buddy;
use crate::api::Order;
use crate::frames::Metas;
use crate::index;
use crate::meta::State;
use crate::pcp::CHUNK;

/// Pages looked at under one hold of the zone lock, so that it stays short (T27): the metadata of a largest block, 16 KiB.
const SCAN: u32 = 1 << Order::MAX.get();

/// The range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Isolation {
    first: u32,
    /// One past the last page; 0 if there is no range.
    end: u32,
    /// How far the scan came.
    scanned: u32,
    /// Pages kept.
    pages: usize,
}

impl Isolation {
    pub(super) const NONE: Self = Self {
        first: 0,
        end: 0,
        scanned: 0,
        pages: 0,
    };

    /// Whether a page of the block is in the range.
    #[inline]
    pub(super) const fn touches(&self, block: u32, order: Order) -> bool {
        block < self.end && block + order.pages() as u32 > self.first
    }

    /// Whether a free page may not be on any list (I5).
    #[cfg(test)]
    pub(super) const fn holds(&self, page: u32) -> bool {
        page >= self.first && page < self.scanned
    }
}

impl Buddy {
    /// Begins to keep what is freed into the pages from `first` to before `end`. There must be no other such range.
    #[doc(alias = "start_isolate_page_range")]
    pub(crate) fn isolate(&mut self, first: u32, end: u32) {
        debug_assert_eq!(self.isolation.end, 0, "one range at a time");
        self.isolation = Isolation {
            first,
            end,
            scanned: first,
            pages: 0,
        };
    }

    /// Takes free blocks at and behind page `from` of the range off the lists, a bounded part, and says where to go on.
    pub(crate) fn isolate_free(&mut self, metas: Metas, from: u32) -> u32 {
        let end = self.isolation.end;
        let stop = end.min(from.saturating_add(SCAN));
        let (mut at, mut moved) = (from, 0);
        let mut free = self.free_block_around(metas, at);
        while at < stop && moved < CHUNK {
            match free {
                Some((block, order)) => {
                    let zero = metas.at(block).state().is_zero();
                    self.unlink(metas, block, order);
                    at = block + order.pages() as u32;
                    self.put(metas, block, order, zero);
                    moved += 1;
                }
                None => at += 1,
            }
            // A block that starts before `at` would have been found with an earlier page.
            free = metas
                .get(at)
                .map(|meta| meta.state())
                .filter(|state| state.is_free())
                .map(|state| (at, state.order()));
        }
        self.isolation.scanned = at.min(end);
        self.isolation.scanned
    }

    /// The free block that `page` is in.
    fn free_block_around(&self, metas: Metas, page: u32) -> Option<(u32, Order)> {
        (0..super::ORDERS).map(Order::at).find_map(|order| {
            let mask = order.pages() as u32 - 1;
            let head = ((page + self.bias) & !mask).checked_sub(self.bias)?;
            let state = metas.get(head)?.state();
            state.is_free_at(order).then_some((head, order))
        })
    }

    /// Keeps the part of a free block that is in the range, and puts the rest back.
    #[cold]
    pub(super) fn put_isolated(&mut self, metas: Metas, block: u32, order: Order, zero: bool) {
        let range = self.isolation;
        let end = block + order.pages() as u32;
        let (first_in, end_in) = (block.max(range.first), end.min(range.end));
        for (block, order) in index::blocks(first_in, end_in, self.bias) {
            metas.at(block).set_state(State::isolated(order, zero));
        }
        self.isolation.pages += (end_in - first_in) as usize;
        for (first, end) in [(block, first_in), (end_in, end)] {
            for (block, order) in index::blocks(first, end, self.bias) {
                self.put(metas, block, order, zero);
            }
        }
    }

    /// Pages kept.
    pub(crate) const fn isolated_pages(&self) -> usize {
        self.isolation.pages
    }

    /// Forgets the range. What was kept is the caller's, block by block (see [`next_isolated`]).
    pub(crate) const fn end_isolation(&mut self) {
        self.isolation = Isolation::NONE;
    }

    /// Puts blocks back that were kept at and behind page `from`, a bounded part, and says where to go on.
    #[doc(alias = "undo_isolate_page_range")]
    pub(crate) fn release(&mut self, metas: Metas, from: u32, end: u32) -> u32 {
        let stop = end.min(from.saturating_add(SCAN));
        let (mut at, mut moved) = (from, 0);
        while at < stop && moved < CHUNK {
            let state = metas.at(at).state();
            if state.is_isolated() {
                self.put(metas, at, state.order(), state.is_zero());
                at += state.order().pages() as u32;
                moved += 1;
            } else {
                at += 1;
            }
        }
        at.min(end)
    }
}

/// The page behind the kept block that starts at `page`; `None` if none starts there.
pub(crate) fn next_isolated(metas: Metas, page: u32) -> Option<u32> {
    let state = metas.get(page)?.state();
    state
        .is_isolated()
        .then(|| page + state.order().pages() as u32)
}
