//! What the loom models run: the zone's shared part, with all its real lists, over a handful of pages.
//!
//! Not [`Zone`](crate::Zone) itself: its structures lie in zeroed memory, which loom's words cannot be made from.
//! What a hit does in `Zone` is done here by `Shared::take` and `Shared::put`, through the same cell and the same list.
//!
//! Each page has contents that loom watches. A block that two users have at once, or that reaches its next user without
//! its last user's accesses, is a race on them.

use crate::api::{Attempt, Mobility, Order, PageReq};
use crate::frames::{Extras, Frames, Metas};
use crate::history::Who;
use crate::lower::{Buddies, Extent, Ground, Lower};
use crate::meta::{GROUP, PageMetas, State};
use crate::pcp::Pcp;
use crate::runs::{self, Runs};
use crate::shared::{Shared, SlotCell, Slots};
use crate::source::{Range, Span};
use crate::stats::Tallies;
use core::ptr::NonNull;
use loom::cell::UnsafeCell;
use rcu_core::cpu::{BiasedLock, Slot};
use std::boxed::Box;
use std::vec::Vec;

/// Pages in a model's zone: as few as one list may hold.
pub const PAGES: usize = 4;

/// Page addresses; nobody goes there.
#[repr(align(16384))]
struct Memory([u8; PAGES << crate::PAGE_SHIFT]);

static MEMORY: Memory = Memory([0; PAGES << crate::PAGE_SHIFT]);

const PAGE: PageReq = PageReq::new(Order::ZERO);

/// What the lower level's words lie in.
#[repr(align(128))]
#[derive(Debug)]
struct Piece(#[expect(dead_code, reason = "reached through a pointer only")] [u8; 128]);

/// A zone of [`PAGES`] pages and one slot.
#[derive(Debug)]
pub struct World {
    shared: NonNull<Shared<BiasedLock, Buddies>>,
    frames: Frames,
    cells: NonNull<SlotCell<BiasedLock>>,
    metas: NonNull<[PageMetas]>,
    pieces: NonNull<[Piece]>,
    contents: Vec<UnsafeCell<usize>>,
}

// SAFETY: the shared part is `Sync`, and contents belong to the blocks' users, which is what is tested.
unsafe impl Sync for World {}
// SAFETY: as above.
unsafe impl Send for World {}

/// A page that is out. Going back is [`World::put`]'s.
#[derive(Debug)]
#[must_use]
pub struct Out(u32);

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// All pages free in the zone.
    pub fn new() -> Self {
        let metas: Box<[PageMetas]> = (0..PAGES.div_ceil(GROUP))
            .map(|_| PageMetas::default())
            .collect();
        let metas = NonNull::from(Box::leak(metas));
        // SAFETY: that many metas, which live until `drop` and are reached through copies of this value only.
        let handle = unsafe { Metas::new(metas.cast(), PAGES as u32) };
        let base = NonNull::from(&MEMORY.0).cast();
        let extras = Extras::layout(PAGES).map(|layout| layout.size());
        assert_eq!(extras, Ok(0), "models have no features");
        // SAFETY: nothing is there, as was just checked.
        let extras = unsafe { Extras::from_zeroed(NonNull::dangling(), PAGES) }.unwrap();
        // SAFETY: page-aligned, as many pages, static. Nobody reads or writes there.
        let frames = unsafe { Frames::new(base, handle, extras) };
        // SAFETY: integers (`ZeroInit`).
        let pcp = unsafe { core::mem::zeroed::<Pcp>() };
        let cell = Box::new(SlotCell::new(BiasedLock::new(), pcp));
        let cells = NonNull::from(Box::leak(cell));
        // SAFETY: one cell, new, which lives until `drop`.
        let slots = unsafe { Slots::from_zeroed(cells, 1) };
        let place = Box::leak(Box::<Shared<BiasedLock, Buddies>>::new_uninit());
        let shared = NonNull::from(&mut *place).cast();
        let span = Span { base, pages: PAGES };
        let extent = Extent::new(PAGES as u32, 0, 1);
        let layout = Buddies::layout(extent).unwrap();
        assert!(layout.align() <= align_of::<Piece>());
        let pieces: Box<[Piece]> = (0..layout.size().div_ceil(size_of::<Piece>()))
            .map(|_| Piece([0; 128]))
            .collect();
        let pieces = NonNull::from(Box::leak(pieces));
        let ground = Ground::new(extent, pieces.cast(), handle);
        // SAFETY: zeroed, of the layout, nobody else's, and lives until `drop`.
        let lower = unsafe { Buddies::new(ground) };
        // SAFETY: none.
        let tallies = unsafe { Tallies::from_zeroed(NonNull::dangling(), 0) };
        place.write(Shared::new(shared, frames, slots, tallies, span, lower));
        let world = Self {
            shared,
            frames,
            cells,
            metas,
            pieces,
            contents: (0..PAGES).map(|_| UnsafeCell::new(0)).collect(),
        };
        let range = Range {
            first: 0,
            pages: PAGES,
            zeroed: false,
        };
        world.shared().add_pages(None, range);
        world
    }

    fn shared(&self) -> &Shared<BiasedLock, Buddies> {
        // SAFETY: written in `new`, freed in `drop`.
        unsafe { self.shared.as_ref() }
    }

    fn slot(owner: bool) -> Option<Slot> {
        owner.then(|| Slot::new(0))
    }

    /// Uses the page's contents.
    fn touch(&self, page: u32) {
        // SAFETY: the caller has the page; loom fails if somebody else has it too.
        self.contents[page as usize].with_mut(|word| unsafe { *word += 1 });
    }

    fn hand_out(&self, page: u32) -> Out {
        let _ = self
            .frames
            .hand_out(page, Order::ZERO, Mobility::Unmovable, false, Who);
        self.touch(page);
        Out(page)
    }

    /// Takes a page: as the slot's owner, or around the lists.
    ///
    /// # Safety
    /// 1. An `owner` is the only one at any time.
    pub unsafe fn take(&self, owner: bool, attempt: Attempt) -> Option<Out> {
        // SAFETY: debt 1.
        let page = unsafe { self.shared().take(Self::slot(owner), PAGE.attempt(attempt)) };
        page.ok().map(|page| self.hand_out(page))
    }

    /// Takes up to `want` pages straight out of the zone.
    pub fn take_chunk(&self, want: usize) -> Vec<Out> {
        let mut runs = Runs::new();
        let req = PAGE.attempt(Attempt::NoWait);
        self.shared().take_chunk(None, req, want, &mut runs);
        runs::blocks(&runs, Order::ZERO)
            .map(|page| self.hand_out(page))
            .collect()
    }

    /// Frees a page: as the slot's owner, or around the lists.
    ///
    /// # Safety
    /// 1. As for [`Self::take`].
    pub unsafe fn put(&self, owner: bool, out: Out, attempt: Attempt) {
        self.touch(out.0);
        let page = self
            .frames
            .take_back(self.frames.address(out.0), Order::ZERO, Who)
            .unwrap();
        let state = State::listed(Order::ZERO, false);
        // SAFETY: debt 1.
        unsafe {
            self.shared().put(Self::slot(owner), page, state, attempt);
        }
    }

    /// Empties the slot's lists from outside.
    pub fn drain(&self) -> usize {
        self.shared().drain_slot(Slot::new(0))
    }

    /// Pages in the zone, on the lists, and in the stash after one holder more did its share.
    pub fn pages(&self) -> [usize; 3] {
        let lower = &self.shared().lower;
        lower.free_blocks();
        let listed = self.shared().list_stats().pages();
        [lower.free_pages(), listed, lower.waiting().pages]
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // SAFETY: from a box, and nobody else refers to it any more.
        drop(unsafe { Box::from_raw(self.shared.as_ptr()) });
        // SAFETY: as above.
        drop(unsafe { Box::from_raw(self.cells.as_ptr()) });
        // SAFETY: as above.
        drop(unsafe { Box::from_raw(self.metas.as_ptr()) });
        // SAFETY: as above.
        drop(unsafe { Box::from_raw(self.pieces.as_ptr()) });
    }
}
