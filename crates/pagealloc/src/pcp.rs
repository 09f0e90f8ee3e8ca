//! A slot's own page lists: the arrays that most allocations and frees end in.
//!
//! Source: Linux `struct per_cpu_pages` (rows P7 to P9, P11). Why arrays of page numbers and not
//! linked lists: a push and a pop touch one line, not the freed page's metadata neighbours, and the
//! oldest blocks are at the bottom, where a drain takes them.
//!
//! # Invariants
//! - I1. `len[c] <= high[c] <= CAPACITY[c]`.
//!   Unchecked accesses rest on it, because a bounds check on the hit path is a branch, and its panic a landing pad.
//! - I2. Blocks on the list of class `c` have state `LISTED` at the class's order and no other user.

use crate::api::Order;
use crate::stats::SlotStats;
use arrayvec::ArrayVec;
use rcu_core::cpu::ZeroInit;
use static_assertions::const_assert;

/// How many orders have a list: 0 to 3 (Linux `PAGE_ALLOC_COSTLY_ORDER`), and 9 (a huge page).
pub(crate) const CLASSES: usize = 5;

/// Blocks that go to or come from the zone under one lock hold: 63 single pages, as Linux does it
/// for large zones, so that the lock costs a sixty-third; for larger blocks the same number of
/// pages, so that the hold takes no longer; one huge page, because it is worth 63 lists already.
const BATCH: [usize; CLASSES] = [63, 31, 15, 7, 1];

/// Blocks on a full list: two batches, so that a slot which goes up and down by less than a batch
/// never sees the zone. All lists full, a slot hoards 1.9 MiB and two huge pages.
const CAPACITY: [usize; CLASSES] = [126, 62, 30, 14, 2];

const ORDER: [Order; CLASSES] = [
    Order::at(0),
    Order::at(1),
    Order::at(2),
    Order::at(3),
    Order::at(9),
];

const START: [usize; CLASSES + 1] = {
    let mut start = [0; CLASSES + 1];
    let mut c = 0;
    while c < CLASSES {
        start[c + 1] = start[c] + CAPACITY[c];
        c += 1;
    }
    start
};

/// A slot may keep at most this part of the zone's span on one list (a 256th); a list that could
/// hold fewer than two blocks then holds none. Without it one slot would swallow a small zone.
const SHARE: usize = 256;
/// Single pages a slot may keep whatever the zone's size.
const LEAST_SINGLES: usize = 4;

/// Room for a batch of any class, and the bound on the blocks moved under one zone-lock hold (T27).
pub(crate) const CHUNK: usize = 64;
const_assert!(BATCH[0] < CHUNK);

/// Blocks on their way between a list and the zone.
pub(crate) type Batch = ArrayVec<u32, CHUNK>;

/// One of the orders that have lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Class(u8);

impl Class {
    /// The class of `order`'s blocks, if they have one.
    #[inline(always)]
    pub(crate) const fn of(order: Order) -> Option<Self> {
        match order.get() {
            small @ 0..=3 => Some(Self(small as u8)),
            9 => Some(Self(4)),
            _ => None,
        }
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..CLASSES as u8).map(Self)
    }

    pub(crate) const fn order(self) -> Order {
        ORDER[self.index()]
    }

    #[inline(always)]
    const fn index(self) -> usize {
        self.0 as usize
    }
}

/// How long a zone's lists may get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heights([u16; CLASSES]);

impl Heights {
    /// For a zone over `pages` pages.
    #[doc(alias = "zone_highsize")]
    pub(crate) const fn for_span(pages: usize) -> Self {
        let mut high = [0; CLASSES];
        let mut c = 0;
        while c < CLASSES {
            let mut blocks = (pages / SHARE) >> ORDER[c].get();
            if c == 0 && blocks < LEAST_SINGLES {
                blocks = LEAST_SINGLES;
            }
            if blocks > CAPACITY[c] {
                blocks = CAPACITY[c];
            }
            high[c] = if blocks < 2 { 0 } else { blocks as u16 };
            c += 1;
        }
        Self(high)
    }
}

/// What a slot's lists did, by class. A hit is counted by one increment and a free by none: how many blocks were put
/// on a list follows from what left it, what came from the zone and what is there.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Tally {
    /// Blocks that went out to callers.
    hits: [u64; CLASSES],
    /// Blocks that came from the zone.
    refilled: [u64; CLASSES],
    /// Blocks that went to the zone.
    drained: [u64; CLASSES],
    refills: u64,
    drains: u64,
}

/// A slot's lists. All-zero bytes are empty lists that take nothing until [`Self::set_up`].
#[derive(Debug)]
#[doc(alias = "per_cpu_pages")]
#[repr(C)]
pub(crate) struct Pcp {
    len: [u16; CLASSES],
    high: [u16; CLASSES],
    ready: bool,
    tally: Tally,
    blocks: [u32; START[CLASSES]],
}

// SAFETY: integers and a `bool` of value zero; it owns nothing.
unsafe impl ZeroInit for Pcp {}

impl Pcp {
    pub(crate) const fn is_ready(&self) -> bool {
        self.ready
    }

    /// Lets the lists grow up to `heights`.
    #[cold]
    pub(crate) fn set_up(&mut self, heights: Heights) {
        self.high = heights.0;
        self.ready = true;
    }

    /// Notes that `blocks` that were pushed came from the zone.
    pub(crate) fn note_refill(&mut self, class: Class, blocks: usize) {
        if blocks > 0 {
            self.tally.refilled[class.index()] += blocks as u64;
            self.tally.refills += 1;
        }
    }

    pub(crate) fn stats(&self) -> SlotStats {
        let mut stats = SlotStats {
            refills: self.tally.refills,
            drains: self.tally.drains,
            ..SlotStats::default()
        };
        for class in Class::all() {
            let (c, order) = (class.index(), class.order().get());
            let (len, hits) = (self.len[c], self.tally.hits[c]);
            let (refilled, drained) = (self.tally.refilled[c], self.tally.drained[c]);
            stats.blocks[order] = len as usize;
            stats.hits[order] = hits;
            stats.frees[order] = (u64::from(len) + hits + drained).wrapping_sub(refilled);
            stats.refilled += refilled;
            stats.drained += drained;
        }
        stats
    }

    /// Takes the block freed last.
    #[inline(always)]
    pub(crate) fn pop(&mut self, class: Class) -> Option<u32> {
        let len = self.len[class.index()];
        if len == 0 {
            return None;
        }
        self.len[class.index()] = len - 1;
        self.tally.hits[class.index()] += 1;
        let top = START[class.index()] + len as usize - 1;
        debug_assert!(top < START[class.index() + 1], "I1");
        // SAFETY: the class's part of the array has `CAPACITY` places, at least `len` (I1).
        Some(*unsafe { self.blocks.get_unchecked(top) })
    }

    /// Puts a block on top; false if the list is full.
    #[inline(always)]
    #[must_use]
    pub(crate) fn push(&mut self, class: Class, block: u32) -> bool {
        let len = self.len[class.index()];
        if len >= self.high[class.index()] {
            return false;
        }
        let top = START[class.index()] + len as usize;
        debug_assert!(top < START[class.index() + 1], "I1");
        // SAFETY: the class's part of the array has `CAPACITY` places, at least `high` (I1), above `len`.
        *unsafe { self.blocks.get_unchecked_mut(top) } = block;
        self.len[class.index()] = len + 1;
        true
    }

    /// How many blocks a refill or a drain of `class` should move: half of what fits, at most a batch.
    #[doc(alias = "zone_batchsize")]
    pub(crate) fn batch(&self, class: Class) -> usize {
        (self.high[class.index()] as usize)
            .div_ceil(2)
            .min(BATCH[class.index()])
    }

    /// Takes up to `n` of the oldest blocks (P11), as a slice that `leave` sees before they are gone.
    pub(crate) fn take_oldest(
        &mut self,
        class: Class,
        n: usize,
        leave: impl FnOnce(&[u32]),
    ) -> usize {
        let start = START[class.index()];
        let len = self.len[class.index()] as usize;
        let n = n.min(len);
        let list = &mut self.blocks[start..start + len];
        leave(&list[..n]);
        list.copy_within(n.., 0);
        self.tally.drained[class.index()] += n as u64;
        self.tally.drains += u64::from(n > 0);
        self.len[class.index()] = (len - n) as u16;
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pcp(pages: usize) -> Pcp {
        let mut pcp = Pcp {
            len: [0; CLASSES],
            high: [0; CLASSES],
            ready: false,
            tally: Tally::default(),
            blocks: [0; START[CLASSES]],
        };
        pcp.set_up(Heights::for_span(pages));
        pcp
    }

    #[test]
    fn p8_heights_follow_the_zone() {
        assert_eq!(Heights::for_span(1).0, [4, 0, 0, 0, 0]);
        assert_eq!(Heights::for_span(1024).0, [4, 2, 0, 0, 0]);
        assert_eq!(Heights::for_span(16384).0, [64, 32, 16, 8, 0]);
        assert_eq!(Heights::for_span(1 << 24).0, [126, 62, 30, 14, 2]);
    }

    #[test]
    fn p7_p11_last_in_first_out_and_oldest_first_to_the_zone() {
        let mut pcp = pcp(1 << 24);
        for class in Class::all() {
            let mut n = 0;
            while pcp.push(class, n) {
                n += 1;
            }
            assert_eq!(n as usize, CAPACITY[class.index()]);
            let batch = pcp.batch(class);
            assert_eq!(batch, BATCH[class.index()]);
            let taken = pcp.take_oldest(class, batch, |oldest| {
                assert_eq!(oldest, (0..batch as u32).collect::<Vec<_>>());
            });
            assert_eq!(taken, batch);
            for left in (batch as u32..n).rev() {
                assert_eq!(pcp.pop(class), Some(left));
            }
            assert_eq!(pcp.pop(class), None);
        }
        assert_eq!(pcp.stats().pages(), 0);
    }

    #[test]
    fn a_list_that_is_not_set_up_takes_nothing() {
        let mut pcp = pcp(1 << 24);
        pcp.high = [0; CLASSES];
        assert!(Class::all().all(|class| !pcp.push(class, 7)));
    }
}
