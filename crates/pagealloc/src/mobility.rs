//! Which blocks are kept together: the type of each pageblock, and what a request may take from another type.
//!
//! Source: Linux `mm/page_alloc.c` (`find_suitable_fallback`, `try_to_claim_block`, `__rmqueue_steal`, 6.12 to 7.x), row P4.
//! Why a byte a pageblock and not bits of the pageblock's first `PageMeta`: all of its bytes are its owner's, who
//! writes them without the arena's lock. A byte for 512 pages is the five-hundredth part of a byte a page, in an array of its own
//! that is all zeroes, and so uncommitted, while everybody asks for the default type.
//!
//! Why the policy is a table and not a function that the buddy system calls: it would be foreign code under the arena's lock.
//! The embedder's function is called once for each type, outside of every lock, and what it says is kept.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | a pageblock's byte | its type's number | the holder of the arena's lock |
//!
//! # Invariants
//! - I1. A free block lies on the lists of its pageblock's type; a block of two pageblocks only if both have one type.
//! - I2. Outside of the arena's lock a type is a hint: it may have changed when the block arrives (T32). Whatever comes back to
//!   the buddy system is sorted in by the type that is read then.
//!
//! # Progress and contexts
//! A claim looks at no more than one pageblock an order, 512 words each, under the arena's lock; only a request whose own type has nothing does.

use crate::api::{Mobility, Order};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, Ordering};

/// A pageblock: 2 MiB, the huge page, as in Linux. One order below the largest block, so that types can also meet in one.
pub(crate) const PAGEBLOCK: Order = Order::at(9);

/// How many types there are.
pub(crate) const TYPES: usize = Mobility::ALL.len();

/// Whether a request may turn another type's pageblock into its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// Never.
    Never,
    /// If at least this percentage of its pages is free or of the request's type. Whole free pageblocks are.
    Percent(u8),
}

/// Which of another type's blocks a request takes a part of, the pageblock staying what it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Steal {
    /// None: the request fails instead.
    Never,
    /// The largest, so that the next ones find their pages there too and spoil no other pageblock.
    Largest,
    /// The smallest that suffices, so that large ones stay whole.
    Smallest,
}

/// Where a request goes when its own type has no block.
///
/// ```
/// use pagealloc::{Claim, Fallback, Mobility, Steal};
/// // A zone that never mixes: an unmovable request fails rather than sit among movable blocks.
/// let strict = |mobility| match mobility {
///     Mobility::Unmovable => Fallback { steal: Steal::Never, ..Fallback::linux(mobility) },
///     other => Fallback::linux(other),
/// };
/// assert_eq!(strict(Mobility::Movable).claim, Claim::Percent(50));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fallback {
    /// The other types, the most suitable first.
    pub order: [Option<Mobility>; 2],
    /// When to take a whole pageblock over. Tried first, from the largest blocks down.
    pub claim: Claim,
    /// The smallest free block for whose sake a pageblock is looked at.
    pub smallest_claim: Order,
    /// What to do where no pageblock can be taken over.
    pub steal: Steal,
}

impl Fallback {
    /// What Linux does: unmovable to reclaimable, movable; movable to reclaimable, unmovable; reclaimable to
    /// unmovable, movable. A pageblock is claimed if half of it is compatible. Movable blocks can go anywhere, so these
    /// look at pageblocks only for blocks of 64 KiB, and steal small ones.
    #[must_use]
    #[doc(alias = "fallbacks")]
    pub const fn linux(mobility: Mobility) -> Self {
        use Mobility::{Movable, Reclaimable, Unmovable};
        let (order, smallest_claim, steal) = match mobility {
            Unmovable => ([Reclaimable, Movable], Order::ZERO, Steal::Largest),
            Movable => ([Reclaimable, Unmovable], Order::at(4), Steal::Smallest),
            Reclaimable => ([Unmovable, Movable], Order::ZERO, Steal::Largest),
        };
        Self {
            order: [Some(order[0]), Some(order[1])],
            claim: Claim::Percent(50),
            smallest_claim,
            steal,
        }
    }

    /// No other type's blocks at all.
    #[must_use]
    pub const fn never() -> Self {
        Self {
            order: [None, None],
            claim: Claim::Never,
            smallest_claim: Order::ZERO,
            steal: Steal::Never,
        }
    }
}

/// The types of a span's pageblocks.
#[derive(Clone, Copy)]
pub(crate) struct PageBlocks {
    first: NonNull<AtomicU8>,
    len: u32,
    bias: u32,
}

// SAFETY: atomic bytes; the memory stays valid (debt of `from_zeroed`).
unsafe impl Send for PageBlocks {}
// SAFETY: as above.
unsafe impl Sync for PageBlocks {}

impl PageBlocks {
    /// Bytes for a span of `pages` pages, whatever its bias: it may begin and end within a largest block.
    pub(crate) const fn nr_bytes(pages: usize) -> usize {
        pages / PAGEBLOCK.pages() + 4
    }

    /// The types at `first` of a span with `bias`, all unmovable.
    ///
    /// # Safety
    /// 1. `first` is the start of `len` all-zero bytes, at least [`Self::nr_bytes`] of the span, referred to by nothing but
    ///    copies of this value, and valid for as long as one of them is used.
    pub(crate) const unsafe fn from_zeroed(first: NonNull<u8>, len: usize, bias: u32) -> Self {
        Self {
            first: first.cast(),
            len: len as u32,
            bias,
        }
    }

    fn byte(&self, page: u32) -> Option<&AtomicU8> {
        let block = (page + self.bias) >> PAGEBLOCK.get();
        if block >= self.len {
            return None;
        }
        // SAFETY: below the length.
        let byte = unsafe { self.first.add(block as usize) };
        // SAFETY: initialised and valid for as long as `self` is used (debt of `from_zeroed`).
        Some(unsafe { byte.as_ref() })
    }

    /// The type of the pageblock that `page` lies in. Exact under the arena's lock (I2).
    pub(crate) fn of(&self, page: u32) -> Mobility {
        // ORDERING: Relaxed: written and read under the arena's lock, or a hint (I2).
        let number = self.byte(page).map_or(0, |b| b.load(Ordering::Relaxed));
        Mobility::at(u32::from(number))
    }

    /// Gives every pageblock of the `pages` pages from `page` on that type. Under the arena's lock.
    pub(crate) fn set(&self, page: u32, pages: usize, mobility: Mobility) {
        for page in (page..page + pages as u32).step_by(PAGEBLOCK.pages()) {
            if let Some(byte) = self.byte(page)
                && self.of(page) != mobility
            {
                // ORDERING: Relaxed: under the arena's lock; others take it for a hint (I2).
                byte.store(mobility as u8, Ordering::Relaxed);
            }
        }
    }

    /// The pages of `page`'s pageblock that lie in a span of `len` pages.
    pub(crate) fn around(&self, page: u32, len: u32) -> (u32, u32) {
        let size = PAGEBLOCK.pages() as u32;
        let start = (page + self.bias) / size * size;
        let first = start.saturating_sub(self.bias);
        (first, len.min(start + size - self.bias))
    }
}

impl fmt::Debug for PageBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageBlocks")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p4_the_order_of_fallbacks_is_that_of_linux() {
        use Mobility::{Movable, Reclaimable, Unmovable};
        let order = |mobility| Fallback::linux(mobility).order.map(Option::unwrap);
        assert_eq!(order(Unmovable), [Reclaimable, Movable]);
        assert_eq!(order(Movable), [Reclaimable, Unmovable]);
        assert_eq!(order(Reclaimable), [Unmovable, Movable]);
    }

    #[test]
    fn p4_every_page_lies_in_the_pageblock_around_it() {
        for bias in [0, 1, 511, 512, 700, 1023] {
            for len in [1, 100, 512, 513, 3000] {
                let mut memory = vec![0_u8; PageBlocks::nr_bytes(len)];
                let first = NonNull::new(memory.as_mut_ptr()).unwrap();
                // SAFETY: zeroed bytes, which outlive the value.
                let blocks = unsafe { PageBlocks::from_zeroed(first, memory.len(), bias) };
                let len = len as u32;
                let mut at = 0;
                while at < len {
                    let (first, end) = blocks.around(at, len);
                    assert_eq!(first, at, "one after the other");
                    assert!(end > at && end - at <= 512);
                    assert!(end == len || (end + bias).is_multiple_of(512));
                    blocks.set(at, 1, Mobility::Reclaimable);
                    for page in at..end {
                        assert_eq!(blocks.of(page), Mobility::Reclaimable);
                        assert_eq!(blocks.around(page, len), (first, end));
                    }
                    if end < len {
                        assert_eq!(blocks.of(end), Mobility::Unmovable);
                    }
                    at = end;
                }
            }
        }
    }
}
