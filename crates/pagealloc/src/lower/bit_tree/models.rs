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
