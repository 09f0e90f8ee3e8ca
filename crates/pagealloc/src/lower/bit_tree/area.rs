//! An area of the bit tree: 1024 pages in two halves, each a count over eight rows of 64 bits.
//!
//! Source: LLFree (ATC'23): counts that are taken before bits are looked for. Different: the two halves' counts share a word, so
//! that one compare-exchange claims the largest block, and there is no flag for a half that is out as a whole: whoever takes
//! all its counts owns its rows and clears them, so that it may come back in parts.
//!
//! # State
//! | word | bits | meaning | who writes |
//! |---|---|---|---|
//! | `word` | 0–9 and 16–25 | free pages of the lower and the upper half that nobody has counts for | claimers (−), givers (+) |
//! | `word` | 10 and 26 | nobody claimed from the half since the last tick; a hint | who counts idle pages (set), claimers (clear) |
//! | `word` | 31 | a slot keeps to this area; a hint | that slot |
//! | `rows[r]` | 64 | bit set: page is free | claimers who have counts for it (1 → 0), its owner (0 → 1) |
//! | `zero[r]` | 64 | bit set: page is free, or just claimed, and reads as zeroes | the page's owner |
//!
//! # Life
//! A page: out → (row bit set) → (counted) free → (count taken) → (row bit cleared) out. What a claimer did not find it gives
//! back as counts.
//!
//! # Invariants
//! - I1. Set bits of a half = its count + counts taken whose bits are not cleared yet + bits set whose counts are still to come.
//! - I2. A half whose count is full (512) has all its bits set, and no claimer under way in it, by I1. One whose pages are all one
//!   owner's has no set bit, and by I1 no claimer that still looks for any: its rows are that owner's alone, for plain stores.
//! - I3. A claimer holds at most as many bits as counts, one that gives up in the middle included.
//! - I4. The zero bit of a page that is out is clear.
//!
//! # Orderings
//! - P7 (bits). Giver: bits set (Release), then count added (Release) / claimer: count taken (Acquire), then bits cleared (Acquire).
//!   The bits' pair: a claimer whose count came from another page finds this one's bit. The count's pair: a claimer of a
//!   whole half looks at no bit; one of a page of a half that came back whole finds bits that were set by plain stores. Both words are
//!   only added to and exchanged between a Release and the Acquire that meets it, so one release sequence carries them all.
//!   A failed claimer: bits set again, then counts given back (Release) / claimer of a whole half: count taken (Acquire), then rows cleared by
//!   plain stores, which must not be overtaken by the bits.
//!   Forbids that the new owner's accesses race with the old one's, and that a bit is set of a page that is out.
//!
//! # Progress and contexts
//! Lock-free in any context: an exchange fails because another one succeeded. A claim of one page that has its count looks until it
//! finds a bit (one is there, I1). Larger blocks are looked for once: where others claim and give parts of one at that
//! moment it may be missed, and so may a whole half while a claimer gives back counts.

#![deny(unsafe_code)]

mod look;
mod orders;

use super::bits::{ROW_ORDER, ROW_PAGES, blocks, lowest, mask, spread};
use crate::broken::broken;
use core::array;
use orders::{
    back_count_order, give_bits_order, give_count_order, take_bits_order, take_count_order,
    take_range_order, take_row_order, take_whole_order,
};
use rcu_core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Rows of a half: 2 MiB in production; in models as few as show every path, for loom follows each word.
const HALF_ROWS: usize = if cfg!(loom) { 4 } else { 8 };
const ROWS: usize = 2 * HALF_ROWS;
/// Pages of a half.
const HALF_PAGES: usize = HALF_ROWS * ROW_PAGES;
/// The order of a half.
pub(super) const HALF_ORDER: usize = HALF_PAGES.ilog2() as usize;
/// Pages of an area.
pub(super) const AREA_PAGES: usize = 2 * HALF_PAGES;

const COUNT: u32 = 0x3ff;
const UPPER: u32 = 16;
/// Beside a half's count.
const IDLE: u32 = 1 << 10;
const KEPT: u32 = 1 << 31;
const WHOLE: u32 = HALF_PAGES as u32;

/// What an area's word says, for those who search.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Word(u32);

impl Word {
    const fn count(self, half: usize) -> u32 {
        self.0 >> (half as u32 * UPPER) & COUNT
    }

    /// Nobody claimed from the half since a tick.
    pub(super) const fn is_idle(self, half: usize) -> bool {
        self.0 >> (half as u32 * UPPER) & IDLE != 0
    }

    pub(super) const fn free(self) -> usize {
        (self.count(0) + self.count(1)) as usize
    }

    pub(super) const fn is_kept(self) -> bool {
        self.0 & KEPT != 0
    }

    /// Both halves are free as a whole.
    pub(super) const fn is_whole(self) -> bool {
        self.free() == AREA_PAGES
    }

    /// One half is free as a whole.
    pub(super) const fn has_whole_half(self) -> bool {
        self.count(0) == WHOLE || self.count(1) == WHOLE
    }
}

/// What a step made true of an area that was not so before, and that searchers should hear of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct News {
    /// It has free pages again.
    pub(super) some: bool,
    /// It has a whole half again.
    pub(super) whole: bool,
}

/// What a claim got.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Claim {
    /// Blocks.
    pub(super) got: usize,
    /// Of counts that were given back.
    pub(super) news: News,
}

/// Receives claimed pages: first, one past the last (within the area), whether they read as zeroes.
type Out<'a> = &'a mut dyn FnMut(u32, u32, bool);

#[derive(Debug)]
#[repr(align(64))]
struct Line<T>(T);

/// 1024 pages. All-zero bytes are an area without free pages.
#[derive(Debug)]
pub(super) struct Area {
    /// In a line of its own: searchers of other areas and claimers of this one do not meet.
    word: Line<AtomicU32>,
    rows: Line<[AtomicU64; ROWS]>,
    zero: [AtomicU64; ROWS],
}

impl Default for Area {
    fn default() -> Self {
        Self {
            word: Line(AtomicU32::new(0)),
            rows: Line(array::from_fn(|_| AtomicU64::new(0))),
            zero: array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Area {
    pub(super) fn word(&self) -> Word {
        // ORDERING: Relaxed: a hint, checked again by a claim.
        Word(self.word.0.load(Ordering::Relaxed))
    }

    /// Claims the area for one slot; whether it was nobody's.
    pub(super) fn keep(&self) -> bool {
        // ORDERING: Relaxed: a hint.
        self.word.0.fetch_or(KEPT, Ordering::Relaxed) & KEPT == 0
    }

    /// Gives it up again.
    pub(super) fn unkeep(&self) {
        // ORDERING: Relaxed: a hint.
        self.word.0.fetch_and(!KEPT, Ordering::Relaxed);
    }

    /// Claims up to `want` blocks of `order`, and gives their pages to `out` in ascending order within each half.
    pub(super) fn claim(&self, order: usize, want: usize, out: Out<'_>) -> Claim {
        let mut claim = Claim::default();
        if order > HALF_ORDER {
            claim.got = usize::from(self.claim_whole(0, 2, out));
            return claim;
        }
        for half in 0..2 {
            let left = want - claim.got;
            if left == 0 {
                break;
            }
            if order == HALF_ORDER {
                claim.got += usize::from(self.claim_whole(half, 1, out));
            } else if order > ROW_ORDER {
                self.claim_rows(half, order, left, &mut claim, out);
            } else {
                self.claim_in_rows(half, order, left, &mut claim, out);
            }
        }
        claim
    }

    /// Takes counts for up to `want` blocks; returns for how many.
    fn take_counts(&self, half: usize, order: usize, want: usize) -> usize {
        let shift = half as u32 * UPPER;
        // ORDERING: Relaxed: checked again by the compare-exchange.
        let mut word = self.word.0.load(Ordering::Relaxed);
        loop {
            let n = want.min((Word(word).count(half) as usize) >> order);
            if n == 0 {
                return 0;
            }
            let next = (word - (((n << order) as u32) << shift)) & !(IDLE << shift);
            // ORDERING: P7 (bits, count's claim side).
            match self.word.0.compare_exchange_weak(
                word,
                next,
                take_count_order(),
                Ordering::Relaxed,
            ) {
                Ok(_) => return n,
                Err(now) => word = now,
            }
        }
    }

    /// Gives counts back that no bits were found for.
    fn return_counts(&self, half: usize, pages: usize) -> News {
        let add = (pages as u32) << (half as u32 * UPPER);
        // ORDERING: P7 (bits, a failed claimer's side).
        let before = self.word.0.fetch_add(add, back_count_order());
        Self::news(before, add)
    }

    /// Gives back what a claimer got that did not find all: its bits first (I3), or somebody who has a count finds no bit, and who claims
    /// the whole half finds one set later. The mutant does it the other way round.
    fn undo(&self, half: usize, pages: usize, bits: impl FnOnce()) -> News {
        if rcu_core::weakened!("bits_back") {
            let news = self.return_counts(half, pages);
            bits();
            return news;
        }
        bits();
        self.return_counts(half, pages)
    }

    fn news(before: u32, add: u32) -> News {
        let (before, after) = (Word(before), Word(before.wrapping_add(add)));
        News {
            some: before.free() == 0,
            whole: after.has_whole_half() && !before.has_whole_half(),
        }
    }

    /// Claims `halves` halves from `first` as one block.
    fn claim_whole(&self, first: usize, halves: usize, out: Out<'_>) -> bool {
        let full =
            (first..first + halves).fold(0, |sum, half| sum | WHOLE << (half as u32 * UPPER));
        let mask =
            (first..first + halves).fold(0, |sum, half| sum | COUNT << (half as u32 * UPPER));
        let idle = (first..first + halves).fold(0, |sum, half| sum | IDLE << (half as u32 * UPPER));
        // ORDERING: Relaxed: checked again by the compare-exchange.
        let mut word = self.word.0.load(Ordering::Relaxed);
        loop {
            if word & mask != full {
                return false;
            }
            // ORDERING: P7 (bits, count's claim side).
            match self.word.0.compare_exchange_weak(
                word,
                word & !(mask | idle),
                take_whole_order(),
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        let rows = first * HALF_ROWS..(first + halves) * HALF_ROWS;
        let mut is_zero = true;
        for row in rows.clone() {
            // ORDERING: Relaxed: the rows are ours alone (I2).
            self.rows.0[row].store(0, Ordering::Relaxed);
            is_zero &= self.take_zero(row, u64::MAX) == u64::MAX;
        }
        out(
            (rows.start * ROW_PAGES) as u32,
            (rows.end * ROW_PAGES) as u32,
            is_zero,
        );
        true
    }

    /// Claims blocks of more than a row and less than a half: all rows of one, or none.
    fn claim_rows(&self, half: usize, order: usize, want: usize, claim: &mut Claim, out: Out<'_>) {
        let (step, goal) = (1 << (order - ROW_ORDER), claim.got + want);
        for first in (half * HALF_ROWS..(half + 1) * HALF_ROWS).step_by(step) {
            let rows = first..first + step;
            // ORDERING: Relaxed: a look, before counts are disturbed.
            let free = |row: usize| self.rows.0[row].load(Ordering::Relaxed) == u64::MAX;
            if claim.got == goal {
                return;
            }
            if !rows.clone().all(free) || self.take_counts(half, order, 1) == 0 {
                continue;
            }
            let taken = rows.clone().take_while(|&row| self.take_row(row)).count();
            if taken < step {
                let news = self.undo(half, 1 << order, || {
                    for row in first..first + taken {
                        // ORDERING: Relaxed: nobody wrote to these pages; the row's release sequence goes on.
                        self.rows.0[row].fetch_or(u64::MAX, Ordering::Relaxed);
                    }
                });
                claim.news.some |= news.some;
                claim.news.whole |= news.whole;
                continue;
            }
            let is_zero = rows.clone().fold(true, |is, row| {
                is & (self.take_zero(row, u64::MAX) == u64::MAX)
            });
            out(
                (rows.start * ROW_PAGES) as u32,
                (rows.end * ROW_PAGES) as u32,
                is_zero,
            );
            claim.got += 1;
        }
    }

    fn take_row(&self, row: usize) -> bool {
        self.rows.0[row]
            // ORDERING: P7 (bits, claim side).
            .compare_exchange(u64::MAX, 0, take_row_order(), Ordering::Relaxed)
            .is_ok()
    }

    /// Claims blocks of a row at most.
    fn claim_in_rows(
        &self,
        half: usize,
        order: usize,
        want: usize,
        claim: &mut Claim,
        out: Out<'_>,
    ) {
        let rows = half * HALF_ROWS..(half + 1) * HALF_ROWS;
        let seen = if order == 0 {
            want
        } else {
            // A look first, so that counts are not disturbed in vain.
            // ORDERING: Relaxed: as said.
            let blocks =
                |row: usize| blocks(self.rows.0[row].load(Ordering::Relaxed), order).count_ones();
            rows.clone().map(|row| blocks(row) as usize).sum()
        };
        if seen == 0 {
            return;
        }
        let counted = self.take_counts(half, order, want.min(seen));
        let mut got = 0;
        while got < counted {
            for row in rows.clone() {
                got += self.claim_in_row(row, order, counted - got, out);
                if got == counted {
                    break;
                }
            }
            // A single page must be there (I1): others moved between rows that were looked at before and after.
            if order > 0 || got > 0 {
                break;
            }
        }
        claim.got += got;
        if got < counted {
            let news = self.return_counts(half, (counted - got) << order);
            claim.news.some |= news.some;
            claim.news.whole |= news.whole;
        }
    }

    fn claim_in_row(&self, row: usize, order: usize, want: usize, out: Out<'_>) -> usize {
        // ORDERING: Relaxed: checked again by the compare-exchange.
        let mut value = self.rows.0[row].load(Ordering::Relaxed);
        loop {
            let heads = lowest(blocks(value, order), want);
            if heads == 0 {
                return 0;
            }
            let bits = spread(heads, order);
            // ORDERING: P7 (bits, claim side).
            match self.rows.0[row].compare_exchange_weak(
                value,
                value & !bits,
                take_bits_order(),
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    self.show(row, order, bits, out);
                    return heads.count_ones() as usize;
                }
                Err(now) => value = now,
            }
        }
    }

    /// Claims exactly the pages `first` to before `end`, or none of them.
    pub(super) fn claim_range(&self, first: u32, end: u32) -> Result<(), News> {
        let mut news = News::default();
        for (half, from, to) in parts(first, end) {
            if !self.claim_part(half, from, to, &mut news) {
                if (first as usize) < from {
                    // The lower half's part, as it was.
                    let back = self.give(first, from as u32, false);
                    news.some |= back.some;
                    news.whole |= back.whole;
                }
                return Err(news);
            }
        }
        for (_, from, to) in parts(first, end) {
            for (row, bits) in rows(from, to) {
                self.take_zero(row, bits);
            }
        }
        Ok(())
    }

    fn claim_part(&self, half: usize, from: usize, to: usize, news: &mut News) -> bool {
        let want = to - from;
        let counted = self.take_counts(half, 0, want);
        let taken = rows(from, to)
            .take_while(|&(row, bits)| counted == want && self.take_bits(row, bits))
            .count();
        if taken == rows(from, to).count() {
            return true;
        }
        if counted > 0 {
            let back = self.undo(half, counted, || {
                for (row, bits) in rows(from, to).take(taken) {
                    // ORDERING: Relaxed: nobody wrote to these pages; the row's release sequence goes on.
                    self.rows.0[row].fetch_or(bits, Ordering::Relaxed);
                }
            });
            news.some |= back.some;
            news.whole |= back.whole;
        }
        false
    }

    fn take_bits(&self, row: usize, bits: u64) -> bool {
        // ORDERING: P7 (bits, claim side); a failure changes nothing.
        let taken = self.rows.0[row].fetch_update(take_range_order(), Ordering::Relaxed, |value| {
            (value & bits == bits).then_some(value & !bits)
        });
        taken.is_ok()
    }

    /// Tells `out` about claimed pages of a row: in pieces as long as all or none of a piece is zero, else by block.
    fn show(&self, row: usize, order: usize, bits: u64, out: Out<'_>) {
        let zero = self.take_zero(row, bits);
        let first = (row * ROW_PAGES) as u32;
        let mut left = bits;
        while left != 0 {
            let start = left.trailing_zeros();
            let len = (left >> start).trailing_ones();
            let piece = mask(start, len);
            left &= !piece;
            let step = if zero & piece == piece || zero & piece == 0 {
                len
            } else {
                1 << order
            };
            for at in (start..start + len).step_by(step as usize) {
                let part = mask(at, step);
                out(first + at, first + at + step, zero & part == part);
            }
        }
    }

    /// Which of the pages, just claimed, read as zeroes; it is forgotten here (I4).
    fn take_zero(&self, row: usize, bits: u64) -> u64 {
        // ORDERING: Relaxed: the pages are ours, and came by P7.
        let zero = self.zero[row].load(Ordering::Relaxed) & bits;
        if zero != 0 {
            // ORDERING: Relaxed: as above; the other bits are other owners'.
            self.zero[row].fetch_and(!bits, Ordering::Relaxed);
        }
        zero
    }

    /// Takes pages back, `first` to before `end`.
    ///
    /// Aborts if one of them is free already.
    pub(super) fn give(&self, first: u32, end: u32, zero: bool) -> News {
        debug_assert!(first < end && end as usize <= AREA_PAGES);
        let mut add = 0;
        for (half, from, to) in parts(first, end) {
            let is_whole = to - from == HALF_PAGES;
            for (row, bits) in rows(from, to) {
                self.give_row(row, bits, zero, is_whole);
            }
            add |= ((to - from) as u32) << (half as u32 * UPPER);
        }
        // ORDERING: P7 (bits, count's give side).
        let before = self.word.0.fetch_add(add, give_count_order());
        Self::news(before, add)
    }

    fn give_row(&self, row: usize, bits: u64, zero: bool, is_alone: bool) {
        if zero {
            // ORDERING: Relaxed: before the pages' P7; the other bits are other owners'.
            self.zero[row].fetch_or(bits, Ordering::Relaxed);
        }
        let word = &self.rows.0[row];
        let before = if is_alone {
            // ORDERING: Relaxed: the rows are ours alone (I2).
            let before = word.load(Ordering::Relaxed);
            // ORDERING: Relaxed: as above; the count's pair carries it.
            word.store(u64::MAX, Ordering::Relaxed);
            before
        } else {
            // ORDERING: P7 (bits, give side).
            word.fetch_or(bits, give_bits_order())
        };
        if before & bits != 0 {
            free_already(row, before & bits);
        }
    }
}

#[cold]
#[inline(never)]
fn free_already(row: usize, bits: u64) -> ! {
    broken(format_args!(
        "pages given back that are free already: {bits:#x} of row {row} of their area"
    ))
}

/// The parts of a range of pages by half.
fn parts(first: u32, end: u32) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..2).filter_map(move |half| {
        let from = (first as usize).max(half * HALF_PAGES);
        let to = (end as usize).min((half + 1) * HALF_PAGES);
        (from < to).then_some((half, from, to))
    })
}

/// The rows of a range of pages, with the bits of each.
fn rows(from: usize, to: usize) -> impl Iterator<Item = (usize, u64)> {
    (from / ROW_PAGES..to.div_ceil(ROW_PAGES)).map(move |row| {
        let start = from.max(row * ROW_PAGES);
        let len = to.min((row + 1) * ROW_PAGES) - start;
        (row, mask((start % ROW_PAGES) as u32, len as u32))
    })
}

#[cfg(test)]
mod tests;
