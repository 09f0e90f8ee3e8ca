//! Free blocks smaller than a group, 64 aligned pages: as bits of a word a group, in which merging is nothing to do.
//!
//! Source: bitmaps of fixed groups as in Linux `mm/page_alloc.c` before 2.6.27 (a bit a pair of buddies) and LLFree (ATC'23, a bit a page), here below
//! lists. Why not blocks on lists at these orders too: a page that comes back alone merges once on average, each time by unlinking a
//! head somewhere else and linking another, and nobody can predict how far it goes. That was two thirds of what such a free cost.
//! Here it is a bit in one word, and a look whether it completes a larger block than the group had.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `free` | a bit a page that is free here; 0 where all are out, and where the group is (a part of) a larger free block | the holder of the arena's lock |
//! | `zero` | the bits of those known to read as zeroes | as above |
//! | `rank` | 0: nothing is free; else one more than the largest free block's order, or [`SMALL`] where that is not known | as above |
//! | `list` | 0: on none; its rank: on the list of that rank and its pageblock's type; [`UNRANKED`]: on the list of those that grew | as above |
//! | `next`, `prev` | the neighbours on that list | as above |
//!
//! The metadata of pages that are free here says nothing of it: their states are 0. Why no marks there: each was written by itself, and cleared by itself when its
//! group was full, an eighth of what a free in random order cost. Whoever makes a picture looks at `free`, without the lock.
//!
//! # Invariants
//! - I1. A bit of `zero` is one of `free`.
//! - I2. `free` is never full: 64 free pages are a block of [`GROUP`]'s order on its list.
//! - I3. A group with anything free is on a list: that of its rank, `areas[rank - 1]` of its pageblock's type, or that of the unranked.
//!   A block can be found by its order once its group is ranked. What completes a larger block makes a group unranked, and whoever takes ranks
//!   up to a [`CHUNK`](crate::pcp::CHUNK) of groups first: a group that fills up page by page changes lists twice, not at every order.
//!
//! # Orderings
//! Every access is Relaxed: under the arena's lock, or a look.

use crate::api::Order;
use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// The order of a whole group: the smallest block with a list of its own.
pub(crate) const GROUP: Order = Order::at(6);

/// Orders below.
pub(crate) const SMALL: usize = GROUP.get();

/// Groups in an area, a largest block.
const PER_AREA: usize = 1 << (Order::MAX.get() - SMALL);

/// The bits of a group all of which is free.
pub(crate) const FULL: u64 = !0;

/// The `list` of groups whose largest block is not known.
pub(crate) const UNRANKED: u8 = SMALL as u8 + 1;

/// Bits at which blocks of each order may start.
pub(crate) const STARTS: [u64; SMALL + 1] = {
    let mut starts = [!0; SMALL + 1];
    let mut order = 1;
    while order <= SMALL {
        // All ones divided by as many as a block has pages: a one a block.
        starts[order] = !0 / (!0 >> (64 - (1 << order)));
        order += 1;
    }
    starts
};

/// Blocks by order, below [`GROUP`].
pub(crate) type Small = [usize; SMALL];

/// What is free among 64 aligned pages. All-zero is nothing.
#[derive(Debug, Default)]
#[repr(C, align(32))]
pub(crate) struct Group {
    free: AtomicU64,
    zero: AtomicU64,
    prev: AtomicU32,
    next: AtomicU32,
    rank: AtomicU8,
    list: AtomicU8,
}

// As `lower`'s header says: half a byte a page.
static_assertions::const_assert!(size_of::<Group>() * 2 <= GROUP.pages());

macro_rules! words {
    ($($word:ident, $set:ident: $value:ty;)*) => {
        $(
            #[inline(always)]
            pub(crate) fn $word(&self) -> $value {
                // ORDERING: Relaxed: under the arena's lock, or a look.
                self.$word.load(Ordering::Relaxed)
            }

            #[inline(always)]
            pub(crate) fn $set(&self, value: $value) {
                // ORDERING: Relaxed: under the arena's lock.
                self.$word.store(value, Ordering::Relaxed);
            }
        )*
    };
}

impl Group {
    words! {
        free, set_free: u64;
        zero, set_zero: u64;
        prev, set_prev: u32;
        next, set_next: u32;
        rank, set_rank: u8;
        list, set_list: u8;
    }

    /// Makes pages free, which are none here; all that is free then.
    #[inline(always)]
    pub(crate) fn put(&self, pages: u64, zero: bool) -> u64 {
        let free = self.free();
        debug_assert_eq!(free & pages, 0, "freed once");
        self.set_free(free | pages);
        if zero {
            self.set_zero(self.zero() | pages);
        }
        free | pages
    }

    /// Takes pages, which are free here; whether all of them are known to be zero.
    pub(crate) fn take(&self, pages: u64) -> bool {
        let zero = self.zero();
        self.set_free(self.free() & !pages);
        self.set_zero(zero & !pages);
        zero & pages == pages
    }

    /// The largest free block that starts at a bit, if there is one.
    pub(crate) fn block_at(&self, bit: u32) -> Option<Order> {
        let free = self.free();
        let is_free = |&o: &usize| {
            let block = around(bit, o);
            block.trailing_zeros() == bit && free & block == block
        };
        (0..SMALL).take_while(is_free).last().map(Order::at)
    }
}

/// The bits from the first to before the second, of which there is one.
pub(crate) const fn range(first: u32, end: u32) -> u64 {
    (!0 >> (64 - (end - first))) << first
}

/// The bits of the block of `order`, up to the whole, that `bit` lies in.
#[inline(always)]
pub(crate) const fn around(bit: u32, order: usize) -> u64 {
    let pages = 1 << order;
    (!0 >> (64 - pages)) << (bit & !(pages - 1))
}

/// The blocks of `order` that are free, parts of larger ones included, as the bits of their first pages.
pub(crate) const fn all(free: u64, order: usize) -> u64 {
    let (mut all, mut o) = (free, 0);
    while o < order {
        all &= all >> (1 << o) & STARTS[o + 1];
        o += 1;
    }
    all
}

/// The same without parts of larger ones: `all` of this order and of the next.
pub(crate) const fn whole(all: u64, above: u64, order: usize) -> u64 {
    all & !(above | above << (1 << order))
}

/// The rank of a group with these bits.
pub(crate) const fn rank(free: u64) -> u8 {
    let (mut all, mut rank) = (free, 0);
    while all != 0 && rank < SMALL {
        all &= all >> (1 << rank) & STARTS[rank + 1];
        rank += 1;
    }
    (rank + (all != 0) as usize) as u8
}

/// The smallest free block of at least `order`: its first bit, and its order. Of several one whose merging does not wait
/// for its buddy alone (P3), if there is one.
#[doc(alias = "buddy_merge_likely")]
pub(crate) fn smallest(free: u64, order: usize) -> Option<(u32, usize)> {
    let mut these = all(free, order);
    for o in order..SMALL {
        let above = these & these >> (1 << o) & STARTS[o + 1];
        let blocks = whole(these, above, o);
        if blocks != 0 {
            // Each half of a pair of which the neighbouring pair is free.
            let (pair, first) = ((2 << o) % 64, STARTS[(o + 2).min(SMALL)]);
            let pairs = (above & first) << pair | (above & !first) >> pair;
            let likely = pairs | pairs << (1 << o);
            let best = match blocks & !likely {
                0 => blocks,
                best => best,
            };
            return Some((best.trailing_zeros(), o));
        }
        these = above;
    }
    None
}

/// The groups of a span.
#[derive(Clone, Copy)]
pub(crate) struct Groups {
    first: NonNull<Group>,
    len: u32,
}

// SAFETY: atomic words; the memory stays valid (debt of `from_zeroed`).
unsafe impl Send for Groups {}
// SAFETY: as above.
unsafe impl Sync for Groups {}

impl Groups {
    /// Groups that a span touches which touches `areas` areas.
    pub(crate) const fn nr(areas: usize) -> usize {
        areas * PER_AREA
    }

    /// The groups of the area with that number.
    pub(crate) const fn of_area(area: usize) -> Range<u32> {
        (area * PER_AREA) as u32..((area + 1) * PER_AREA) as u32
    }

    /// The groups at `first`, nothing free.
    ///
    /// # Safety
    /// 1. `first` is the start of `len` all-zero groups, referred to by nothing but copies of this value, and valid for as
    ///    long as one of them is used.
    pub(crate) const unsafe fn from_zeroed(first: NonNull<Group>, len: usize) -> Self {
        Self {
            first,
            len: len as u32,
        }
    }

    #[inline(always)]
    pub(crate) fn get(&self, group: u32) -> &Group {
        assert!(group < self.len, "a group of the span");
        // SAFETY: below the length.
        let group = unsafe { self.first.add(group as usize) };
        // SAFETY: zeroed memory is a group; valid for as long as `self` is used (debt of `from_zeroed`).
        unsafe { group.as_ref() }
    }
}

#[cfg(test)]
impl Groups {
    /// All of them.
    pub(crate) const fn range(&self) -> Range<u32> {
        0..self.len
    }
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Groups")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The blocks of the words, by trying every aligned range.
    fn dull(free: u64) -> [Vec<u32>; SMALL] {
        let is_free =
            |bit: u32, order: usize| (bit..bit + (1 << order)).all(|i| free >> i & 1 == 1);
        core::array::from_fn(|order| {
            let size = 1_u32 << order;
            let larger = |bit: u32| bit & !(2 * size - 1);
            let starts = (0..64).step_by(size as usize);
            let whole = |bit: &u32| is_free(*bit, order) && !is_free(larger(*bit), order + 1);
            starts.filter(whole).collect()
        })
    }

    fn words() -> impl Iterator<Item = u64> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        // Sparse, even, dense, and with runs.
        let many = (0..2000).flat_map(move |_| {
            let (a, b, c) = (random(), random(), random());
            [
                a & b & c,
                a,
                a | b | c,
                (a << (b % 64)) | (!0 >> (c % 64)),
                !(1 << (a % 64)),
            ]
        });
        many.chain([0, 1, FULL >> 1]).filter(|&free| free != FULL)
    }

    #[test]
    fn p1_bits_say_what_trying_every_range_says() {
        for free in words() {
            let blocks = dull(free);
            let largest = (0..SMALL).rev().find(|&order| !blocks[order].is_empty());
            assert_eq!(
                usize::from(rank(free)),
                largest.map_or(0, |order| order + 1)
            );
            for (order, expected) in blocks.iter().enumerate() {
                let (these, above) = (all(free, order), all(free, order + 1));
                let mut bits = whole(these, above, order);
                for &bit in expected {
                    assert_eq!(bits.trailing_zeros(), bit, "{free:#x}");
                    assert_eq!(free & around(bit, order), around(bit, order));
                    bits &= bits - 1;
                }
                assert_eq!(bits, 0, "{free:#x}");
            }
        }
    }

    /// P2, and P3: a block whose merging waits for its buddy alone goes out last.
    #[test]
    fn p2_p3_the_smallest_block_is_found_and_one_that_will_merge_is_kept() {
        for free in words() {
            let blocks = dull(free);
            for order in 0..SMALL {
                let found = smallest(free, order);
                let expected = (order..SMALL).find(|&order| !blocks[order].is_empty());
                assert_eq!(found.map(|(_, order)| order), expected, "{free:#x}");
                let Some((bit, order)) = found else { continue };
                assert!(blocks[order].contains(&bit));
                // The buddy of the pair that the block is half of is free.
                let likely = |bit: u32| {
                    let other = (bit ^ (2 << order)) & !((2 << order) - 1);
                    blocks.get(order + 1).is_some_and(|b| b.contains(&other))
                };
                let all_are = blocks[order].iter().all(|&bit| likely(bit));
                assert_eq!(likely(bit), all_are, "{free:#x}");
            }
        }
    }
}
