//! What the loom models of the bit tree run: one area with its hints, and pages whose contents loom watches.
//!
//! Not [`BitTree`](super::BitTree) itself: its words lie in zeroed memory, which loom's cannot be made from. A page that two have at
//! once, or that reaches its next user without its last user's accesses, is a race on its contents.

use super::area::{Area, HALF_ORDER};
use super::hints::{Hints, Kind};
use loom::cell::UnsafeCell;
use std::vec::Vec;

/// The order of a half in the models.
pub const HALF: usize = HALF_ORDER;

/// Pages with contents: the first ones.
const WATCHED: usize = 4;

/// One area.
#[derive(Debug, Default)]
pub struct World {
    area: Area,
    hints: Hints,
    contents: [UnsafeCell<usize>; WATCHED],
}

// SAFETY: contents belong to their pages' owners, which is what is tested.
unsafe impl Sync for World {}
// SAFETY: as above.
unsafe impl Send for World {}

/// Pages that are out: first, and one past the last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Out(pub u32, pub u32);

impl World {
    /// Claims up to `want` blocks, and writes to each of their pages.
    pub fn claim(&self, order: usize, want: usize) -> Vec<Out> {
        let mut runs = Vec::new();
        let claim = self
            .area
            .claim(order, want, &mut |first, end, _| runs.push(Out(first, end)));
        self.hints.note(0, claim.news);
        let pages: u32 = runs.iter().map(|run| run.1 - run.0).sum();
        assert_eq!(pages as usize, claim.got << order);
        runs.iter().for_each(|&run| self.write(run));
        runs
    }

    fn write(&self, Out(first, end): Out) {
        for page in first..end.min(WATCHED as u32) {
            // SAFETY: the page is the caller's; loom fails if it is not.
            self.contents[page as usize].with_mut(|value| unsafe { *value += 1 });
        }
    }

    /// Writes to pages that are out, and gives them back.
    pub fn give(&self, run: Out) {
        self.write(run);
        let news = self.area.give(run.0, run.1, false);
        self.hints.note(0, news);
    }

    /// Claims exactly these pages, and writes to each, or none.
    pub fn claim_range(&self, run: Out) -> bool {
        match self.area.claim_range(run.0, run.1) {
            Ok(()) => self.write(run),
            Err(news) => {
                self.hints.note(0, news);
                return false;
            }
        }
        true
    }

    /// What a tick does: how many pages nobody needed since the last.
    pub fn idle(&self) -> usize {
        self.area.idle_pages()
    }

    /// Whether a half is marked as one that nobody claimed from since a tick.
    pub fn is_idle(&self, half: usize) -> bool {
        self.area.word().is_idle(half)
    }

    /// What a searcher does that finds an area without a whole half.
    pub fn forget_whole(&self) {
        self.hints
            .forget(0, Kind::Whole, || self.area.word().has_whole_half());
    }

    /// Whether a searcher would look for a whole half.
    pub fn whole_is_hinted(&self) -> bool {
        self.hints.load(Kind::Whole) & 1 == 1
    }

    /// What a searcher does that finds an area without free pages.
    pub fn forget(&self) {
        self.hints
            .forget(0, Kind::Some, || self.area.word().free() > 0);
    }

    /// Free pages, and whether a searcher would look for them.
    pub fn free(&self) -> (usize, bool) {
        (
            self.area.word().free(),
            self.hints.load(Kind::Some) & 1 == 1,
        )
    }
}
