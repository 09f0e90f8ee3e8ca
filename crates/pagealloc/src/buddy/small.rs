//! The small orders: blocks that are bits of their group's word. See [`groups`](crate::groups) for the words and their invariants.

#![deny(unsafe_code)]

use super::{Area, Buddy};
use crate::api::{Mobility, Order};
use crate::frames::Metas;
use crate::groups::{
    FULL, GROUP, SMALL, STARTS, Small, UNRANKED, all, around, range, rank, smallest, whole,
};
use crate::index::{self, NONE};
use crate::meta::State;
use crate::pcp::CHUNK;
use crate::runs::{Run, Runs};
use core::ops::Range;

impl Buddy {
    /// The group that a page lies in, and its bit there.
    #[inline(always)]
    const fn group_of(&self, page: u32) -> (u32, u32) {
        let at = page + self.bias;
        (at >> SMALL, at & 63)
    }

    /// The first page of a group that is in the span.
    pub(super) const fn first_of(&self, group: u32) -> u32 {
        (group << SMALL).saturating_sub(self.bias)
    }

    /// Makes a block of less than a group free. Its head's state may be anything before.
    pub(super) fn put_small(&mut self, metas: Metas, block: u32, order: Order, zero: bool) {
        metas.at(block).set_state(State::INSIDE);
        self.came(order, 1);
        if let Some(number) = self.set(block, order, zero) {
            self.grew(metas, number);
        }
    }

    /// Makes single pages, which are not marked, free, for as long as the runs are such and `mine`; says how many runs that were.
    #[inline]
    pub(crate) fn put_singles(
        &mut self,
        metas: Metas,
        runs: &[Run],
        mine: impl Fn(u32) -> bool,
    ) -> usize {
        let (mut done, mut counted) = (0, 0);
        for run in runs {
            if run.end - run.first != 1 || !mine(run.first) {
                break;
            }
            done += 1;
            if let Some(number) = self.set(run.first, Order::ZERO, run.zero) {
                self.came(Order::ZERO, done - counted);
                counted = done;
                self.grew(metas, number);
            }
        }
        self.came(Order::ZERO, done - counted);
        done
    }

    fn came(&mut self, order: Order, blocks: usize) {
        self.free_pages += blocks << order.get();
        let flow = &mut self.flow[order.get()];
        *flow = flow.wrapping_add(blocks as u64);
    }

    /// Sets a block's bits; where it completes a larger block than its group had, says which group.
    #[inline(always)]
    fn set(&self, block: u32, order: Order, zero: bool) -> Option<u32> {
        let (number, bit) = self.group_of(block);
        let group = self.groups.get(number);
        let free = group.put(around(bit, order.get()), zero);
        // The usual case apart: it is two instructions.
        let grew = if group.list() == UNRANKED {
            free == FULL
        } else {
            let next = around(bit, group.rank().into());
            free & next == next
        };
        grew.then_some(number)
    }

    /// What follows where a group has a larger block than before, or may be full.
    #[cold]
    fn grew(&mut self, metas: Metas, number: u32) {
        if self.groups.get(number).free() == FULL {
            self.whole(metas, number);
        } else {
            self.move_to(metas, number, UNRANKED, self.type_of(number));
        }
    }

    /// Makes a full group a block (groups I2).
    fn whole(&mut self, metas: Metas, number: u32) {
        let (first, mobility) = (self.first_of(number), self.type_of(number));
        let zero = self.groups.get(number).take(FULL);
        self.move_to(metas, number, 0, mobility);
        self.free_pages -= GROUP.pages();
        self.put_large(metas, first, GROUP, zero);
    }

    /// Sorts some of the groups that grew in by what they have now.
    #[inline]
    pub(super) fn rank_some(&mut self, metas: Metas) {
        if self.has_unranked() {
            self.rank_some_slow(metas);
        }
    }

    #[cold]
    fn rank_some_slow(&mut self, metas: Metas) {
        for _ in 0..CHUNK {
            // The first that grew: the last may well grow on.
            let number = self.unranked.last;
            if number == NONE {
                break;
            }
            let list = rank(self.groups.get(number).free());
            self.move_to(metas, number, list, self.type_of(number));
        }
    }

    /// Whether there are groups whose blocks cannot be found by their order.
    pub(crate) const fn has_unranked(&self) -> bool {
        self.unranked.last != NONE
    }

    /// Makes pages of one group free.
    pub(super) fn put_part(&mut self, metas: Metas, first: u32, end: u32, zero: bool) {
        let (number, bit) = self.group_of(first);
        self.left(first, end);
        self.free_pages += (end - first) as usize;
        let pages = range(bit, bit + (end - first));
        match self.groups.get(number).put(pages, zero) {
            FULL => self.whole(metas, number),
            free => self.move_to(metas, number, rank(free), self.type_of(number)),
        }
    }

    /// The end of the group that a page lies in, as a page's number.
    #[inline(always)]
    pub(super) const fn end_of_group(&self, page: u32) -> u32 {
        let (number, _) = self.group_of(page);
        ((number + 1) << SMALL) - self.bias
    }

    /// Counts pages of one group that became free, as blocks.
    fn left(&mut self, first: u32, end: u32) {
        for (_, order) in index::blocks(first, end, self.bias) {
            let flow = &mut self.flow[order.get()];
            *flow = flow.wrapping_add(1);
        }
    }

    /// Takes the pages up to `end` out of the free block at `block`, which is as large as it can be; whether they are zero.
    pub(super) fn take_small(
        &mut self,
        metas: Metas,
        block: u32,
        order: Order,
        end: u32,
        mobility: Mobility,
    ) -> bool {
        let (number, bit) = self.group_of(block);
        let group = self.groups.get(number);
        let zero = group.take(range(bit, bit + (end - block)));
        let (free, list) = (group.free(), group.list());
        self.free_pages -= (end - block) as usize;
        self.flow[order.get()] = self.flow[order.get()].wrapping_sub(1);
        self.left(end, block + order.pages() as u32);
        if list == order.get() as u8 + 1 || free == 0 {
            // One of the largest went; the others are what they were.
            self.move_to(metas, number, rank(free), mobility);
        }
        zero
    }

    /// Takes all blocks of `order` out of a group, if these are no more than `want`; how many it took.
    ///
    /// Why all at once: neighbours go out as runs, and the group leaves its list once.
    pub(super) fn take_group(
        &mut self,
        metas: Metas,
        number: u32,
        order: Order,
        want: usize,
        runs: &mut Runs,
    ) -> usize {
        let blocks = all(self.groups.get(number).free(), order.get());
        let n = blocks.count_ones() as usize;
        if n > want {
            return 0;
        }
        let (mut these, mut o) = (blocks, order.get());
        while these != 0 {
            let above = these & these >> (1 << o) & STARTS[o + 1];
            let went = u64::from(whole(these, above, o).count_ones());
            self.flow[o] = self.flow[o].wrapping_sub(went);
            self.splits[o] += if o > order.get() { went } else { 0 };
            (these, o) = (above, o + 1);
        }
        let mut pages = (0..order.get()).fold(blocks, |pages, o| pages | pages << (1 << o));
        while pages != 0 {
            // I2: there is a 0 behind or before, so neither shift is by 64.
            let bit = pages.trailing_zeros();
            let len = (pages >> bit).trailing_ones();
            let run = range(bit, bit + len);
            let first = (number << SMALL) + bit - self.bias;
            let zero = self.groups.get(number).take(run);
            let end = first + len;
            runs.push(Run { first, end, zero });
            pages &= !run;
        }
        self.free_pages -= n << order.get();
        let rank = rank(self.groups.get(number).free());
        self.move_to(metas, number, rank, self.type_of(number));
        n
    }

    /// Whether a page lies in a free block smaller than a group.
    pub(super) fn is_small(&self, page: u32) -> bool {
        let (number, bit) = self.group_of(page);
        self.groups.get(number).free() >> bit & 1 == 1
    }

    /// How many pages of the range, one or more whole groups, do.
    pub(super) fn small_pages(&self, pages: Range<u32>) -> usize {
        let (first, _) = self.group_of(pages.start);
        let (last, _) = self.group_of(pages.end - 1);
        let free = |number| self.groups.get(number).free().count_ones() as usize;
        (first..=last).map(free).sum()
    }

    /// The free block around a page, if it is smaller than a group.
    pub(super) fn small_around(&self, page: u32) -> Option<(u32, Order)> {
        let (number, bit) = self.group_of(page);
        let free = self.groups.get(number).free();
        let order = (0..SMALL).take_while(|&o| free & around(bit, o) == around(bit, o));
        let order = order.last()?;
        let first = around(bit, order).trailing_zeros();
        Some(((number << SMALL) + first - self.bias, Order::at(order)))
    }

    /// The smallest block of at least `order` in a group that has one.
    pub(super) fn smallest_in(&self, number: u32, order: usize) -> Option<(u32, Order)> {
        let (bit, order) = smallest(self.groups.get(number).free(), order)?;
        Some(((number << SMALL) + bit - self.bias, Order::at(order)))
    }

    /// The type of a group's pageblock.
    fn type_of(&self, number: u32) -> Mobility {
        self.blocks.of(self.first_of(number))
    }

    /// The list with that number, and of that type where it is one of a type.
    const fn list(&mut self, list: u8, mobility: Mobility) -> &mut Area {
        if list == UNRANKED {
            &mut self.unranked
        } else {
            &mut self.areas[mobility.get()][list as usize - 1]
        }
    }

    /// Puts a group, whose pageblock has that type, on another list or none.
    fn move_to(&mut self, metas: Metas, number: u32, list: u8, mobility: Mobility) {
        if self.groups.get(number).list() != list {
            self.detach(number, mobility);
            self.attach(metas, number, list, mobility);
        }
    }

    /// Puts a group on a list: in front, or at the end if it completes a free pair of groups (P3) or lies above the line.
    fn attach(&mut self, metas: Metas, number: u32, list: u8, mobility: Mobility) {
        let groups = self.groups;
        let group = groups.get(number);
        group.set_list(list);
        group.set_rank(list.min(SMALL as u8));
        if list == 0 {
            return;
        }
        let first = (number << SMALL).checked_sub(self.bias);
        let likely = |first| self.free_buddy(metas, first, GROUP).is_some();
        let above = self.first_of(number) >= self.line;
        let last = list != UNRANKED && (above || first.is_some_and(likely));
        let area = self.list(list, mobility);
        let (prev, next) = if last {
            (area.last, NONE)
        } else {
            (NONE, area.first)
        };
        if prev == NONE {
            area.first = number;
        }
        if next == NONE {
            area.last = number;
        }
        area.nr += 1;
        group.set_prev(prev);
        group.set_next(next);
        if prev != NONE {
            groups.get(prev).set_next(number);
        }
        if next != NONE {
            groups.get(next).set_prev(number);
        }
    }

    /// Takes a group off its list.
    fn detach(&mut self, number: u32, mobility: Mobility) {
        let groups = self.groups;
        let group = groups.get(number);
        let (prev, next, list) = (group.prev(), group.next(), group.list());
        if list == 0 {
            return;
        }
        let area = self.list(list, mobility);
        if prev == NONE {
            area.first = next;
        }
        if next == NONE {
            area.last = prev;
        }
        area.nr -= 1;
        if prev != NONE {
            groups.get(prev).set_next(next);
        }
        if next != NONE {
            groups.get(next).set_prev(prev);
        }
    }

    /// Moves what is free in the range, whole pageblocks of the span, from one type's lists to another's.
    pub(super) fn change_lists(
        &mut self,
        metas: Metas,
        range: Range<u32>,
        old: Mobility,
        new: Mobility,
    ) {
        let (mut number, _) = self.group_of(range.start);
        let (last, _) = self.group_of(range.end - 1);
        while number <= last {
            let list = self.groups.get(number).list();
            if list == UNRANKED {
                // Sorted in by what its pageblock is then.
            } else if list > 0 {
                self.detach(number, old);
                self.attach(metas, number, list, new);
            } else if let Some(state) = metas.get(self.first_of(number)).map(|meta| meta.state())
                && state.is_free()
            {
                let (page, order) = (self.first_of(number), state.order());
                self.unlink_from(metas, page, order, old);
                self.link_to(metas, page, order, state.is_zero(), false, new);
                number += (order.pages() >> SMALL) as u32;
                continue;
            }
            number += 1;
        }
    }

    /// The free blocks of the groups, by order; of one type's pageblocks or all.
    pub(crate) fn small_blocks(&self, groups: Range<u32>, of: Option<Mobility>) -> Small {
        let mut blocks = [0; SMALL];
        for number in groups {
            let free = self.groups.get(number).free();
            let counts = || of.is_none_or(|of| of == self.type_of(number));
            if free != 0 && counts() {
                let mut these = free;
                for (order, blocks) in blocks.iter_mut().enumerate() {
                    let above = these & these >> (1 << order) & STARTS[order + 1];
                    *blocks += whole(these, above, order).count_ones() as usize;
                    these = above;
                }
            }
        }
        blocks
    }

    /// Small blocks that were put and left over, less those taken, by order. With those that are there now it says how many merged.
    pub(crate) const fn flow(&self) -> [u64; SMALL] {
        self.flow
    }
}

/// How many pairs of buddies merged: whatever of an order came, from outside or merged from the order below, and neither
/// went nor is there, did.
pub(crate) fn merged(flow: [u64; SMALL], now: Small) -> [u64; SMALL] {
    let mut merges = [0; SMALL];
    let mut below = 0_u64;
    for order in 0..SMALL {
        let gone = flow[order]
            .wrapping_add(below)
            .wrapping_sub(now[order] as u64);
        // Where others take and put meanwhile, less may have come than is there.
        below = (gone as i64).max(0) as u64 / 2;
        merges[order] = below;
    }
    merges
}
