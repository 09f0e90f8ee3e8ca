//! Free pages taken by where they are, rather than by how many: for a region's removal.
//!
//! Source: Linux `mm/page_isolation.c` (`start_isolate_page_range`). There pageblocks get a type whose free pages nobody is given; here free
//! pages are taken out as by any other owner, which costs no word and no look at other times, and the range need not be made of whole pageblocks.

#![deny(unsafe_code)]

use super::Buddy;
use crate::api::Order;
use crate::frames::Metas;
use crate::index;
use crate::runs::{Run, Runs};

/// Pages looked at under one hold of the arena's lock, so that it stays short (T27): the metadata of a largest block, 14 KiB.
const SCAN: u32 = 1 << Order::MAX.get();

impl Buddy {
    /// Takes the free pages of the range `(first, end)` that are at or behind page `from` of it, or in a block with that page, and says where
    /// to go on: a bounded part, as far as `runs` has room. What a block has outside of the range goes back.
    #[doc(alias = "start_isolate_page_range")]
    pub(crate) fn take_within(
        &mut self,
        metas: Metas,
        (first, end): (u32, u32),
        from: u32,
        runs: &mut Runs,
    ) -> u32 {
        let stop = end.min(from.saturating_add(SCAN));
        let mut at = from;
        let mut free = self.around(metas, at);
        while at < stop && !runs.is_full() {
            let state = metas.at(at).state();
            if let Some((block, order)) = free {
                let behind = block + order.pages() as u32;
                let zero = self.cut(metas, block, order, behind);
                let (inside, rest) = (block.max(first), behind.min(end));
                for (first, end) in [(block, inside), (rest, behind)] {
                    for (block, order) in index::blocks(first, end, self.bias) {
                        self.put(metas, block, order, zero);
                    }
                }
                runs.push(Run {
                    first: inside,
                    end: rest,
                    zero,
                });
                at = behind;
            } else if state.is_isolated() {
                // Taken before, and the caller's.
                at += state.order().pages() as u32;
            } else {
                at += 1;
            }
            // No free block has `at` inside of it: it would have the page before, which is none. What lies behind may be another arena's.
            free = metas
                .get(at)
                .filter(|meta| at < stop && (meta.state().is_free() || self.is_small(at)))
                .and_then(|_| self.around(metas, at));
        }
        at.min(end)
    }
}
