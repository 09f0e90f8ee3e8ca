//! What is known about each page, outside of the page.
//!
//! Free pages are never written, so that memory which was never used, or was given back to the
//! system, stays uncommitted; and the buddy's state is one load away. Source: Linux `struct page`
//! (`mm_types.h`), cut down to 14 bytes, so that with what a lower level keeps it is at most 16 a page, whichever that is. The words
//! of 32 pages lie together, each kind in lines of its own: allocating and freeing look at a page's state alone, of which there are
//! as many in a line as there are pages, so that pages that are freed in any order find their states in the second cache (those of
//! 1 GiB are half a MiB). Where a page's words share a line with three others', a free of whichever page waits for a line of that
//! page's own. Why not an array for each kind over all pages: three places to find, and to commit, where this is one.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `state` of a head, `FREE` | a free block of this order, of 64 pages or more, on an arena's list | the holder of the arena's lock |
//! | `state` of a head, `LISTED` | a free block on a slot's list, or on its way there | who freed it, or took it from the zone |
//! | `state` of a head, `STASHED` | a freed block on the stash | who freed it; then the holder of the arena's lock |
//! | `state` of a head, `ALLOCATED` | a block that is out; `TAGGED` if its owner noted something | the block's owner |
//! | `state` of a head, `ALLOCATED` with `MORE` or `CONTINUED` | a block of an exact run of several | the run's owner |
//! | `state` of a head, `ISOLATED` | a free block in a region that is being removed | who removes |
//! | `state` of a head, `GUARD` | pages that nobody may touch, beside a block that is out (feature `guard`) | that block's owner |
//! | `state` of any other page | 0: inside a block, in a smaller free one ([`crate::groups`]), or a hole that the source never gave | – |
//! | `tag`, `owner` | the owner's note; in a `FREE` or `STASHED` head the links | as for `state` |
//!
//! `ZERO` beside `FREE`, `LISTED` or `ISOLATED`: the whole block reads as zeroes. `MOBILITY` beside `LISTED` or `ALLOCATED`: whose
//! list it lies on, or what it was asked for as. Unmovable is 0, so the usual free compares the word with a constant.
//!
//! # Invariants
//! - I1. `FREE` is entered and left under the arena's lock only. A holder that reads `FREE` in a buddy may therefore
//!   rely on it; everything else it may read there is some other owner's business and only means "do not merge".
//! - I2. `tag` is 0 and `owner` null in every page that is neither inside a tagged block nor the head of a `FREE` or `STASHED` one.
//!   So an allocation need not touch the metadata of any page but the head.
//!
//! # Orderings
//! Every access is Relaxed. The words of a block belong to the block's owner and travel with the block: through the
//! arena's lock, a slot's local lock (P8), the stash (P7), or whatever the layer above hands a block over by (P6).

use crate::api::{Mobility, Order, PageTag};
use core::ptr;
use rcu_core::sync::atomic::{AtomicPtr, AtomicU16, AtomicU32, Ordering};

/// A `state` word's value.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct State(u16);

impl State {
    const ORDER: u16 = 0xf;
    const ALLOCATED: u16 = 1 << 4;
    const LISTED: u16 = 1 << 5;
    const FREE: u16 = 1 << 6;
    const STASHED: u16 = 1 << 7;
    const TAGGED: u16 = 1 << 8;
    const ZERO: u16 = 1 << 9;
    const MOBILITY_SHIFT: u32 = 10;
    const MOBILITY: u16 = 3 << Self::MOBILITY_SHIFT;
    const ISOLATED: u16 = 1 << 12;
    /// Beside `ALLOCATED`: a block of the same exact run follows.
    const MORE: u16 = 1 << 13;
    /// Beside `ALLOCATED`: a block of the same exact run comes before.
    const CONTINUED: u16 = 1 << 14;
    const GUARD: u16 = 1 << 15;
    /// One of them is set in every head.
    const KINDS: u16 =
        Self::ALLOCATED | Self::LISTED | Self::FREE | Self::STASHED | Self::ISOLATED | Self::GUARD;

    /// Not the head of a block.
    pub(crate) const INSIDE: Self = Self(0);

    const fn free_block(kind: u16, order: Order, zero: bool) -> Self {
        Self(kind | order.get() as u16 | if zero { Self::ZERO } else { 0 })
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
        Self(Self::ALLOCATED | Self::TAGGED | order.get() as u16)
    }

    /// The same block, of `mobility`. The state says none so far.
    #[inline(always)]
    pub(crate) const fn with(self, mobility: Mobility) -> Self {
        Self(self.0 | (mobility as u16) << Self::MOBILITY_SHIFT)
    }

    /// The same block, its mobility left out.
    pub(crate) const fn plain(self) -> Self {
        Self(self.0 & !Self::MOBILITY)
    }

    pub(crate) const fn mobility(self) -> Mobility {
        Mobility::at(((self.0 & Self::MOBILITY) >> Self::MOBILITY_SHIFT) as u32)
    }

    /// The head of a block in any state: not a page inside one, nor a hole.
    pub(crate) const fn is_head(self) -> bool {
        self.0 & Self::KINDS != 0
    }

    /// In the zone's hands, or about to be.
    pub(crate) const fn is_nobodys(self) -> bool {
        self.0 & (Self::FREE | Self::STASHED | Self::ISOLATED) != 0
    }

    pub(crate) const fn isolated(order: Order, zero: bool) -> Self {
        Self::free_block(Self::ISOLATED, order, zero)
    }

    /// A block of an exact run, `continued` from a block before and with `more` behind.
    pub(crate) const fn part(order: Order, continued: bool, more: bool) -> Self {
        let continued = if continued { Self::CONTINUED } else { 0 };
        let more = if more { Self::MORE } else { 0 };
        Self(Self::ALLOCATED | order.get() as u16 | continued | more)
    }

    #[cfg(feature = "guard")]
    pub(crate) const fn guard(order: Order) -> Self {
        Self::free_block(Self::GUARD, order, false)
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
        self.0 & !Self::ZERO == Self::FREE | order.get() as u16
    }

    /// Out, tagged or not, and not a part of a run.
    pub(crate) const fn is_allocated(self) -> bool {
        self.0 & (Self::ALLOCATED | Self::MORE | Self::CONTINUED) == Self::ALLOCATED
    }

    /// On the zone's lists, at any order.
    pub(crate) const fn is_free(self) -> bool {
        self.0 & Self::FREE != 0
    }

    /// Free, and kept for a region's removal.
    pub(crate) const fn is_isolated(self) -> bool {
        self.0 & Self::ISOLATED != 0
    }

    /// A block of the same run follows.
    pub(crate) const fn has_more(self) -> bool {
        self.0 & Self::MORE != 0
    }

    /// A block of the same run comes before.
    pub(crate) const fn is_continued(self) -> bool {
        self.0 & Self::CONTINUED != 0
    }

    /// Out, with a note on it.
    pub(crate) const fn is_tagged(self) -> bool {
        self.0 & Self::TAGGED != 0
    }

    /// On the stash, as a block of any order.
    pub(crate) const fn is_stashed(self) -> bool {
        self.0 & Self::STASHED != 0
    }

    /// On a slot's list, or on its way there, as a block of `order` and any mobility.
    pub(crate) const fn is_listed_at(self, order: Order) -> bool {
        self.0 & !(Self::ZERO | Self::MOBILITY) == Self::LISTED | order.get() as u16
    }

    /// Which kind of block starts here, for a picture.
    pub(crate) const fn kind(self) -> Kind {
        match self.0 & Self::KINDS {
            Self::ALLOCATED => Kind::Out,
            Self::LISTED => Kind::Listed,
            Self::FREE | Self::ISOLATED => Kind::Free,
            Self::STASHED => Kind::Stashed,
            Self::GUARD => Kind::Guard,
            _ => Kind::None,
        }
    }

    /// The note's words hold links.
    const fn is_linked(self) -> bool {
        self.0 & (Self::FREE | Self::STASHED) != 0
    }

    /// For a message about a broken contract.
    pub(crate) const fn name(self) -> &'static str {
        if self.0 & (Self::MORE | Self::CONTINUED) != 0 {
            return "a part of an exact run";
        }
        match self.0 & !(Self::ORDER | Self::ZERO | Self::TAGGED | Self::MOBILITY) {
            Self::ALLOCATED => "allocated",
            Self::ISOLATED => "already free, in a region that is being removed",
            Self::LISTED => "already free, on a slot's list",
            Self::FREE => "already free, in the zone",
            Self::STASHED => "already free, in the stash",
            Self::GUARD => "a guard page",
            _ => "not the start of a block",
        }
    }
}

/// What a block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Out,
    Listed,
    Stashed,
    Free,
    Guard,
    /// Not the start of a block.
    None,
}

/// Pages whose metadata lie together: as many as there are states in a line. A model has four pages, and pays for each word.
pub(crate) const GROUP: usize = if cfg!(loom) { 4 } else { 32 };

/// What is known about [`GROUP`] pages. All-zero bytes are pages inside a block, or holes.
#[derive(Debug)]
#[cfg_attr(any(loom, test), derive(Default))]
#[repr(C, align(64))]
#[doc(alias = "struct page")]
pub(crate) struct PageMetas {
    owners: [AtomicPtr<()>; GROUP],
    tags: [AtomicU32; GROUP],
    states: [AtomicU16; GROUP],
}

#[cfg(not(loom))]
static_assertions::const_assert!(size_of::<PageMetas>() <= 14 * GROUP);

impl PageMetas {
    /// What is known about the page that is numbered `at` here, modulo [`GROUP`].
    #[inline(always)]
    pub(crate) const fn get(&self, at: u32) -> PageMeta<'_> {
        let at = at as usize % GROUP;
        PageMeta { metas: self, at }
    }
}

/// What is known about one page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageMeta<'a> {
    metas: &'a PageMetas,
    /// Below [`GROUP`].
    at: usize,
}

impl PageMeta<'_> {
    #[inline(always)]
    const fn state_word(&self) -> &AtomicU16 {
        &self.metas.states[self.at % GROUP]
    }

    #[inline(always)]
    const fn tag_word(&self) -> &AtomicU32 {
        &self.metas.tags[self.at % GROUP]
    }

    #[inline(always)]
    const fn owner_word(&self) -> &AtomicPtr<()> {
        &self.metas.owners[self.at % GROUP]
    }

    #[inline(always)]
    pub(crate) fn state(&self) -> State {
        // ORDERING: Relaxed: belongs to the block's owner, or I1.
        State(self.state_word().load(Ordering::Relaxed))
    }

    #[inline(always)]
    pub(crate) fn set_state(&self, state: State) {
        // ORDERING: Relaxed: the caller owns the block, which is handed over by P7 or P8.
        self.state_word().store(state.0, Ordering::Relaxed);
    }

    /// Replaces `from`, where it is still there. Only one of several callers can have it, in programs that look
    /// for broken contracts (debug builds, the feature `history`); a plain load and store in others.
    #[inline(always)]
    pub(crate) fn claim(&self, from: State, to: State) -> bool {
        if cfg!(any(debug_assertions, feature = "history")) {
            // ORDERING: Relaxed: as in `set_state`; that only one can have it needs no more.
            return self
                .state_word()
                .compare_exchange(from.0, to.0, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        }
        let is_there = self.state() == from;
        if is_there {
            self.set_state(to);
        }
        is_there
    }

    /// What the owner noted.
    #[inline(always)]
    pub(crate) fn note(&self) -> PageTag {
        if self.state().is_linked() {
            return PageTag::NONE;
        }
        PageTag {
            // ORDERING: Relaxed: travels with the block, whose owner (or an object in it) the caller has.
            owner: self.owner_word().load(Ordering::Relaxed),
            // ORDERING: Relaxed: as above.
            tag: self.tag_word().load(Ordering::Relaxed),
        }
    }

    pub(crate) fn set_note(&self, note: PageTag) {
        // ORDERING: Relaxed: the caller owns the block; readers got their object from it by P6.
        self.owner_word().store(note.owner, Ordering::Relaxed);
        // ORDERING: Relaxed: as above.
        self.tag_word().store(note.tag, Ordering::Relaxed);
    }

    /// The free list's next block, or [`NONE`](crate::index::NONE).
    pub(crate) fn next(&self) -> u32 {
        // ORDERING: Relaxed: read under the arena's lock, or by the one who took the stash (P7).
        self.tag_word().load(Ordering::Relaxed)
    }

    pub(crate) fn set_next(&self, next: u32) {
        // ORDERING: Relaxed: written under the arena's lock, or before the stash's Release (P7).
        self.tag_word().store(next, Ordering::Relaxed);
    }

    /// The free list's previous block, or [`NONE`](crate::index::NONE).
    pub(crate) fn prev(&self) -> u32 {
        // ORDERING: Relaxed: read under the arena's lock.
        self.owner_word().load(Ordering::Relaxed).addr() as u32
    }

    pub(crate) fn set_prev(&self, prev: u32) {
        let link = ptr::without_provenance_mut(prev as usize);
        // ORDERING: Relaxed: written under the arena's lock.
        self.owner_word().store(link, Ordering::Relaxed);
    }
}

#[cfg(all(test, any(debug_assertions, feature = "history")))]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::thread;

    /// Both frees come at the same moment; that one of them fails is what the message is printed for.
    #[test]
    fn p19_only_one_of_two_racing_frees_gets_the_block() {
        const METAS: usize = 50_000;
        let groups: &Vec<PageMetas> = &(0..METAS.div_ceil(GROUP))
            .map(|_| PageMetas::default())
            .collect();
        let metas = &|| {
            groups
                .iter()
                .flat_map(|group| (0..GROUP as u32).map(|at| group.get(at)))
                .take(METAS)
        };
        let barrier = &Barrier::new(2);
        let (out, listed) = (
            State::allocated(Order::ZERO),
            State::listed(Order::ZERO, false),
        );
        for _ in 0..20 {
            metas().for_each(|meta| meta.set_state(out));
            // Side by side through all of them, so that they meet often.
            let race = || {
                barrier.wait();
                metas().filter(|meta| meta.claim(out, listed)).count()
            };
            let got = thread::scope(|scope| {
                let other = scope.spawn(race);
                race() + other.join().unwrap()
            });
            assert_eq!(got, METAS);
        }
    }
}
