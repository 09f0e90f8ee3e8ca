//! Runs of any number of pages, and blocks cut into smaller ones or put together.
//!
//! Source: Linux `alloc_pages_exact`, `free_pages_exact`, `split_page`. There an exact run is loose pages, and a free of the wrong
//! length is not noticed. Here it is the few blocks that its pages form, largest first as alignment allows; each says in its state whether a block
//! of the same run comes before it or behind it, so that a free of a part, or of more, is found. A run of one block is an ordinary block.

use super::{Culprit, Frames};
use crate::api::{Mobility, Order, PAGE_SIZE, PageTag};
use crate::broken::broken;
use crate::history::Who;
use crate::index;
use crate::meta::State;
use core::fmt::{self, Display};
use core::ptr::NonNull;
use rcu_core::sanitize;

impl Frames {
    fn bias(&self) -> u32 {
        index::bias(self.base.as_ptr().addr())
    }

    /// Marks pages as a run that is out and says where it is, zeroed if `zero` and not known to be (`is_zero`).
    ///
    /// The pages must have just come off a list, so that they are the caller's, with no head among them but the first.
    pub(crate) fn hand_out_run(
        &self,
        first: u32,
        end: u32,
        mobility: Mobility,
        zero: bool,
        is_zero: bool,
        who: Who,
    ) -> NonNull<u8> {
        let start = self.address(first);
        sanitize::reveal(start, (end - first) as usize * PAGE_SIZE);
        for (block, state) in self.parts(first, end, mobility) {
            // SAFETY: the block is the caller's, off every list.
            let checked = unsafe {
                self.extras
                    .poison
                    .check(block, self.address(block), state.order())
            };
            if let Err(written) = checked {
                self.written_after_free(block, written);
            }
        }
        if zero && !is_zero {
            // SAFETY: free memory of the span (I1) that nobody else has, being off every list.
            unsafe { start.write_bytes(0, (end - first) as usize * PAGE_SIZE) };
        }
        for (block, state) in self.parts(first, end, mobility) {
            self.metas.at(block).set_state(state);
            // SAFETY: the page exists, or `at` had not returned.
            unsafe { self.extras.histories.allocated(block, state.order(), who) };
        }
        start
    }

    /// The orders of the blocks that a run consists of.
    pub(crate) fn run_orders(&self, first: u32, end: u32) -> impl Iterator<Item = Order> {
        index::blocks(first, end, self.bias()).map(|(_, order)| order)
    }

    /// The blocks of a run, each with the state that says so.
    fn parts(
        &self,
        first: u32,
        end: u32,
        mobility: Mobility,
    ) -> impl Iterator<Item = (u32, State)> {
        index::blocks(first, end, self.bias()).map(move |(block, order)| {
            let behind = block + order.pages() as u32;
            let state = State::part(order, block > first, behind < end);
            (block, state.with(mobility))
        })
    }

    /// Takes a run back from its owner: its pages, no head among them marked. Aborts if no run of `pages` that is out starts at `start`.
    pub(crate) fn take_back_run(&self, start: NonNull<u8>, pages: usize, who: Who) -> (u32, u32) {
        let max = Order::MAX.pages();
        let Some((first, meta)) = self
            .page_at(start.as_ptr())
            .filter(|_| (1..=max).contains(&pages))
        else {
            broken(format_args!(
                "freed {pages} pages at {start:p}, which cannot be a run of this zone ({} pages at {:p}){}",
                self.metas.len(),
                self.base,
                Culprit(Some(who)),
            ));
        };
        let end = first + pages as u32;
        let mobility = meta.state().mobility();
        // All are looked at before any is changed: a message leaves what it tells of as it was.
        for (block, expected) in self.parts(first, end, mobility) {
            let state = self.metas.get(block).map(|meta| meta.state());
            if state != Some(expected) {
                self.no_such_run(start, pages, block, who);
            }
        }
        for (block, state) in self.parts(first, end, mobility) {
            if !self.metas.at(block).claim(state, State::INSIDE) {
                self.no_such_run(start, pages, block, who);
            }
            // SAFETY: the page exists, or `at` had not returned.
            unsafe { self.extras.histories.freed(block, state.order(), who) };
            // SAFETY: as above, and the block was the freer's, who gave it up.
            unsafe {
                self.extras
                    .poison
                    .fill(block, self.address(block), state.order());
            }
        }
        sanitize::hide(start, pages * PAGE_SIZE);
        (first, end)
    }

    /// Aborts: the page `wrong` is not the start of the block that a run of `pages` at `start` would have there.
    #[cold]
    fn no_such_run(&self, start: NonNull<u8>, pages: usize, wrong: u32, who: Who) -> ! {
        let state = self.metas.get(wrong).map(|meta| meta.state());
        let around = fmt::from_fn(|f| match state {
            Some(_) => self.tell(wrong).fmt(f),
            None => Ok(()),
        });
        broken(format_args!(
            "freed {pages} pages at {start:p}, but page {wrong} is {}{around}{}",
            state.map_or("past the zone's end", State::name),
            Culprit(Some(who)),
        ))
    }

    /// Pages of the run, or of the block, that starts at `address` and is out.
    pub(crate) fn run_pages(&self, address: *const u8) -> Option<usize> {
        let (first, meta) = self.page_at(address)?;
        let (mut at, mut state) = (first, meta.state());
        if !state.is_allocated() && !state.has_more() || state.is_continued() {
            return None;
        }
        while state.has_more() {
            at += state.order().pages() as u32;
            state = self.metas.get(at)?.state();
        }
        Some((at - first) as usize + state.order().pages())
    }

    /// Makes blocks of order `into`, at most `order`, of an owner's block. They keep its note.
    pub(crate) fn split(&self, block: NonNull<u8>, order: Order, into: Order, who: Who) {
        let page = self.block(block, order, "split", Some(who));
        let whole = self.metas.at(page).state();
        let state = if whole.is_tagged() {
            State::tagged(into)
        } else {
            State::allocated(into)
        };
        let state = state.with(whole.mobility());
        for piece in (page..page + order.pages() as u32).step_by(into.pages()) {
            self.metas.at(piece).set_state(state);
            // SAFETY: the page exists, or `at` had not returned.
            unsafe { self.extras.histories.allocated(piece, into, who) };
        }
    }

    /// Makes one block of order `into`, at least `order`, of neighbouring blocks of an owner's, without a note. False, and nothing
    /// changed, if a block of that order cannot start there.
    pub(crate) fn merge(&self, block: NonNull<u8>, order: Order, into: Order, who: Who) -> bool {
        if !block.addr().get().is_multiple_of(into.bytes()) {
            return false;
        }
        let first = self.block(block, order, "merged", Some(who));
        let pieces = (first..first + into.pages() as u32).step_by(order.pages());
        let mut noted = false;
        for piece in pieces.clone() {
            if piece >= self.metas.len() {
                broken(format_args!(
                    "merged blocks from {block:p} (page {first}) on, past the zone's end"
                ));
            }
            self.block(self.address(piece), order, "merged", Some(who));
            noted |= self.metas.at(piece).state().is_tagged();
        }
        for piece in pieces.skip(1) {
            self.metas.at(piece).set_state(State::INSIDE);
        }
        if noted {
            self.note_all(first, into, PageTag::NONE);
        }
        let meta = self.metas.at(first);
        meta.set_state(State::allocated(into).with(meta.state().mobility()));
        // SAFETY: the page exists, or `at` had not returned.
        unsafe { self.extras.histories.allocated(first, into, who) };
        true
    }
}
