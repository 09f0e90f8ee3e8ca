//! What is known about each page, outside of the page.
//!
//! Free pages are never written, so that memory which was never used, or was given back to the
//! system, stays uncommitted; and the buddy's state is one load away. Source: Linux `struct page`
//! (`mm_types.h`), cut down to 16 bytes.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `state` of a head, `FREE` | a free block of this order, on the zone's lists | the zone-lock holder |
//! | `state` of a head, `LISTED` | a free block on a slot's list, or on its way there | who freed it, or took it from the zone |
//! | `state` of a head, `STASHED` | a freed block on the stash | who freed it; then the zone-lock holder |
//! | `state` of a head, `ALLOCATED` | a block that is out; `TAGGED` if its owner noted something | the block's owner |
//! | `state` of any other page | 0: inside a block, or a hole that the source never gave | – |
//! | `tag`, `owner` | the owner's note; in a `FREE` or `STASHED` head the links | as for `state` |
//!
//! `ZERO` beside `FREE` or `LISTED`: the whole block reads as zeroes. `MOBILITY` beside `LISTED` or `ALLOCATED`: whose list it
//! lies on, or what it was asked for as. Unmovable is 0, so the usual free compares the word with a constant.
//!
//! # Invariants
//! - I1. `FREE` is entered and left under the zone lock only. A holder that reads `FREE` in a buddy may therefore
//!   rely on it; everything else it may read there is some other owner's business and only means "do not merge".
//! - I2. `tag` is 0 and `owner` null in every page that is neither inside a tagged block nor the head of a `FREE` or `STASHED` one.
//!   So an allocation need not touch the metadata of any page but the head.
//!
//! # Orderings
//! Every access is Relaxed. The words of a block belong to the block's owner and travel with the block: through the
//! zone lock, a slot's local lock (P8), the stash (P7), or whatever the layer above hands a block over by (P6).

use crate::api::{Mobility, Order, PageTag};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use static_assertions::const_assert;

/// A `state` word's value.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct State(u32);

impl State {
    const ORDER: u32 = 0xf;
    const ALLOCATED: u32 = 1 << 4;
    const LISTED: u32 = 1 << 5;
    const FREE: u32 = 1 << 6;
    const STASHED: u32 = 1 << 7;
    const TAGGED: u32 = 1 << 8;
    const ZERO: u32 = 1 << 9;
    const MOBILITY_SHIFT: u32 = 10;
    const MOBILITY: u32 = 3 << Self::MOBILITY_SHIFT;

    /// Not the head of a block.
    pub(crate) const INSIDE: Self = Self(0);

    const fn free_block(kind: u32, order: Order, zero: bool) -> Self {
        Self(kind | order.get() as u32 | if zero { Self::ZERO } else { 0 })
    }

    pub(crate) const fn free(order: Order, zero: bool) -> Self {
        Self::free_block(Self::FREE, order, zero)
    }

    pub(crate) const fn listed(order: Order, zero: bool) -> Self {
        Self::free_block(Self::LISTED, order, zero)
    }

    pub(crate) const fn stashed(order: Order) -> Self {
        Self::free_block(Self::STASHED, order, false)
    }

    pub(crate) const fn allocated(order: Order) -> Self {
        Self::free_block(Self::ALLOCATED, order, false)
    }

    pub(crate) const fn tagged(order: Order) -> Self {
        Self(Self::ALLOCATED | Self::TAGGED | order.get() as u32)
    }

    /// The same block, of `mobility`. The state says none so far.
    #[inline(always)]
    pub(crate) const fn with(self, mobility: Mobility) -> Self {
        Self(self.0 | (mobility as u32) << Self::MOBILITY_SHIFT)
    }

    /// The same block, its mobility left out.
    pub(crate) const fn plain(self) -> Self {
        Self(self.0 & !Self::MOBILITY)
    }

    pub(crate) const fn mobility(self) -> Mobility {
        Mobility::at((self.0 & Self::MOBILITY) >> Self::MOBILITY_SHIFT)
    }

    /// The head of a block in any state: not a page inside one, nor a hole.
    pub(crate) const fn is_head(self) -> bool {
        self.0 & (Self::FREE | Self::LISTED | Self::STASHED | Self::ALLOCATED) != 0
    }

    /// In the zone's hands, or about to be.
    pub(crate) const fn is_nobodys(self) -> bool {
        self.0 & (Self::FREE | Self::STASHED) != 0
    }

    /// On one of the zone's lists.
    pub(crate) const fn is_free(self) -> bool {
        self.0 & Self::FREE != 0
    }

    pub(crate) const fn order(self) -> Order {
        Order::at((self.0 & Self::ORDER) as usize)
    }

    /// Known to read as zeroes.
    pub(crate) const fn is_zero(self) -> bool {
        self.0 & Self::ZERO != 0
    }

    /// On the zone's list of `order`.
    pub(crate) const fn is_free_at(self, order: Order) -> bool {
        self.0 & !Self::ZERO == Self::FREE | order.get() as u32
    }

    /// Out, tagged or not.
    pub(crate) const fn is_allocated(self) -> bool {
        self.0 & Self::ALLOCATED != 0
    }

    /// The note's words hold links.
    const fn is_linked(self) -> bool {
        self.0 & (Self::FREE | Self::STASHED) != 0
    }

    /// For a message about a broken contract.
    pub(crate) const fn name(self) -> &'static str {
        match self.0 & !(Self::ORDER | Self::ZERO | Self::TAGGED | Self::MOBILITY) {
            Self::ALLOCATED => "allocated",
            Self::LISTED => "already free, on a slot's list",
            Self::FREE => "already free, in the zone",
            Self::STASHED => "already free, in the stash",
            _ => "not the start of a block",
        }
    }
}

/// What is known about one page. All-zero bytes are a page inside a block, or a hole.
#[derive(Debug)]
#[doc(alias = "struct page")]
pub(crate) struct PageMeta {
    state: AtomicU32,
    tag: AtomicU32,
    owner: AtomicPtr<()>,
}

const_assert!(size_of::<PageMeta>() <= 16);

impl PageMeta {
    #[inline(always)]
    pub(crate) fn state(&self) -> State {
        // ORDERING: Relaxed: belongs to the block's owner, or I1.
        State(self.state.load(Ordering::Relaxed))
    }

    #[inline(always)]
    pub(crate) fn set_state(&self, state: State) {
        // ORDERING: Relaxed: the caller owns the block, which is handed over by P7 or P8.
        self.state.store(state.0, Ordering::Relaxed);
    }

    /// What the owner noted.
    #[inline(always)]
    pub(crate) fn note(&self) -> PageTag {
        if self.state().is_linked() {
            return PageTag::NONE;
        }
        PageTag {
            // ORDERING: Relaxed: travels with the block, whose owner (or an object in it) the caller has.
            owner: self.owner.load(Ordering::Relaxed),
            // ORDERING: Relaxed: as above.
            tag: self.tag.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn set_note(&self, note: PageTag) {
        // ORDERING: Relaxed: the caller owns the block; readers got their object from it by P6.
        self.owner.store(note.owner, Ordering::Relaxed);
        // ORDERING: Relaxed: as above.
        self.tag.store(note.tag, Ordering::Relaxed);
    }

    /// The free list's next block, or [`NONE`](crate::index::NONE).
    pub(crate) fn next(&self) -> u32 {
        // ORDERING: Relaxed: read under the zone lock, or by the one who took the stash (P7).
        self.tag.load(Ordering::Relaxed)
    }

    pub(crate) fn set_next(&self, next: u32) {
        // ORDERING: Relaxed: written under the zone lock, or before the stash's Release (P7).
        self.tag.store(next, Ordering::Relaxed);
    }

    /// The free list's previous block, or [`NONE`](crate::index::NONE).
    pub(crate) fn prev(&self) -> u32 {
        // ORDERING: Relaxed: read under the zone lock.
        self.owner.load(Ordering::Relaxed).addr() as u32
    }

    pub(crate) fn set_prev(&self, prev: u32) {
        let link = ptr::without_provenance_mut(prev as usize);
        // ORDERING: Relaxed: written under the zone lock.
        self.owner.store(link, Ordering::Relaxed);
    }
}
