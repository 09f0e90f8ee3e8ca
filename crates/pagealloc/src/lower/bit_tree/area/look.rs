//! Looks at an area: what is free in it, what of that may have memory behind it, and what of that nobody needed of late.
//!
//! Nothing here claims; who acts on what it says claims, and that tells. The idle bits are hints: set where a half is whole, cleared by the same
//! exchange that takes a count from it, so that a half which has one was whole ever since.

#![deny(unsafe_code)]

use super::super::bits::{ROW_ORDER, ROW_PAGES, blocks, mask, spread};
use super::{Area, HALF_ORDER, HALF_PAGES, HALF_ROWS, IDLE, UPPER, WHOLE, Word};
use core::array;
use rcu_core::sync::atomic::Ordering;

impl Area {
    /// Whether a half, all of which is free, has a page that is not known to read as zeroes. A look.
    fn is_dirty(&self, half: usize) -> bool {
        // A page that is out has no zero bit (I4).
        let rows = &self.zero[half * HALF_ROWS..(half + 1) * HALF_ROWS];
        // ORDERING: Relaxed: a look.
        rows.iter()
            .any(|row| row.load(Ordering::Relaxed) != u64::MAX)
    }

    /// The halves that could be claimed as a block, or as a part of one, with a page that is not known to read as zeroes.
    fn dirty_halves(&self, word: Word) -> [bool; 2] {
        let dirty = [0, 1].map(|half| word.count(half) == WHOLE && self.is_dirty(half));
        if word.is_whole() {
            // The largest block is dirty as a whole.
            return [dirty[0] || dirty[1]; 2];
        }
        dirty
    }

    /// Pages of free blocks of a half at least that are not known to read as zeroes. A look, no claim.
    pub(in crate::lower::bit_tree) fn dirty_pages(&self) -> usize {
        let dirty = self.dirty_halves(self.word());
        dirty.into_iter().filter(|&is| is).count() << HALF_ORDER
    }

    /// Whether nobody claimed from the halves that are whole since the last [`Self::idle_pages`]. A look.
    pub(in crate::lower::bit_tree) fn is_idle(&self) -> bool {
        let word = self.word();
        (0..2).all(|half| word.count(half) != WHOLE || word.is_idle(half))
    }

    /// How many of the dirty pages are in halves that nobody claimed from since the last call.
    pub(in crate::lower::bit_tree) fn idle_pages(&self) -> usize {
        let (word, mut pages) = (self.word(), 0);
        for (half, is_dirty) in self.dirty_halves(word).into_iter().enumerate() {
            if is_dirty && word.is_idle(half) {
                pages += HALF_PAGES;
            } else if is_dirty {
                self.begin_idling(half);
            }
        }
        pages
    }

    /// Notes that a half is whole from now on until somebody claims from it.
    fn begin_idling(&self, half: usize) {
        let bit = IDLE << (half as u32 * UPPER);
        // ORDERING: Relaxed: a hint; the word's release sequence goes on.
        let _ = self
            .word
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                // Not where somebody claimed meanwhile, which the mutant forgets.
                (Word(word).count(half) == WHOLE || rcu_core::weakened!("bits_idle"))
                    .then_some(word | bit)
            });
    }

    /// The largest free block that begins at a page. A look.
    pub(in crate::lower::bit_tree) fn free_at(&self, page: u32) -> Option<usize> {
        let (word, at) = (self.word(), page as usize);
        if at == 0 && word.is_whole() {
            return Some(HALF_ORDER + 1);
        }
        if at.is_multiple_of(HALF_PAGES) && word.count(at / HALF_PAGES) == WHOLE {
            return Some(HALF_ORDER);
        }
        // ORDERING: Relaxed: a look.
        let row = |row: usize| self.rows.0[row].load(Ordering::Relaxed);
        let (first, start) = (at / ROW_PAGES, (at % ROW_PAGES) as u32);
        let free = |order: &usize| {
            let is_aligned = at.is_multiple_of(1 << order);
            is_aligned
                && if *order > ROW_ORDER {
                    (first..first + (1 << (order - ROW_ORDER))).all(|at| row(at) == u64::MAX)
                } else {
                    let bits = mask(start, 1 << order);
                    row(first) & bits == bits
                }
        };
        (0..HALF_ORDER).rev().find(free)
    }

    /// Adds the free blocks to `sum`, by order, each page in the largest that it is part of. Others should be still.
    pub(in crate::lower::bit_tree) fn add_blocks(&self, sum: &mut [usize]) {
        if self.word().is_whole() {
            sum[HALF_ORDER + 1] += 1;
            return;
        }
        for half in 0..2 {
            if self.word().count(half) == WHOLE {
                sum[HALF_ORDER] += 1;
                continue;
            }
            let mut rows: [u64; HALF_ROWS] = array::from_fn(|row| {
                // ORDERING: Relaxed: a report.
                self.rows.0[half * HALF_ROWS + row].load(Ordering::Relaxed)
            });
            for order in (0..HALF_ORDER).rev() {
                if order > ROW_ORDER {
                    for group in rows.chunks_mut(1 << (order - ROW_ORDER)) {
                        if group.iter().all(|&row| row == u64::MAX) {
                            sum[order] += 1;
                            group.fill(0);
                        }
                    }
                } else {
                    for row in &mut rows {
                        let heads = blocks(*row, order);
                        sum[order] += heads.count_ones() as usize;
                        *row &= !spread(heads, order);
                    }
                }
            }
        }
    }
}
