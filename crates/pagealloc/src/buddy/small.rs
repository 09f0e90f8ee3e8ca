//! The small orders: blocks that are bits of their group's word. See [`groups`](crate::groups) for the words and their invariants.

#![deny(unsafe_code)]

use super::Buddy;
use crate::api::{Mobility, Order};
use crate::frames::Metas;
use crate::groups::{GROUP, Group, SMALL, STARTS, Small, around, rank, smallest, whole};
use crate::index::{self, NONE};
use crate::meta::State;
use crate::runs::Run;
use core::ops::Range;

impl Buddy {
    /// The group that a page lies in, and its bit there.
    #[inline(always)]
    const fn group_of(&self, page: u32) -> (u32, u32) {
        let at = page + self.bias;
        (at >> SMALL, at & 63)
    }

    /// The first page of a group that is in the span.
    const fn first_of(&self, group: u32) -> u32 {
        (group << SMALL).saturating_sub(self.bias)
    }

    /// Makes a block of less than a group free.
    pub(super) fn put_small(&mut self, metas: Metas, block: u32, order: Order, zero: bool) {
        self.came(order, 1);
        if let Some((number, bit)) = self.set(metas, block, order, zero) {
            self.ranked_up(metas, number, bit);
        }
    }

    /// Makes single pages free, for as long as the runs are such and `mine`; says how many runs that were.
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
            if let Some((number, bit)) = self.set(metas, run.first, Order::ZERO, run.zero) {
                self.came(Order::ZERO, done - counted);
                counted = done;
                self.ranked_up(metas, number, bit);
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

    /// Sets a block's bits and its mark; where it completes a larger block than its group had, says where.
    #[inline(always)]
    fn set(
        &mut self,
        metas: Metas,
        block: u32,
        order: Order,
        zero: bool,
    ) -> Option<(u32, u32)> {
        let (number, bit) = self.group_of(block);
        metas.at(block).set_state(State::free(order, zero));
        let group = self.groups.at(number);
        debug_assert!(group.free & around(bit, order.get()) == 0, "groups I1");
        group.free |= around(bit, order.get());
        group.heads |= 1 << bit;
        let next = around(bit, group.rank.into());
        (group.free & next == next).then_some((number, bit))
    }

    /// What follows where the block around `bit` is larger than any that the group had.
    #[cold]
    fn ranked_up(&mut self, metas: Metas, number: u32, bit: u32) {
        let group = self.groups.get(number);
        let mut rank = group.rank;
        while rank as usize <= SMALL
            && group.free & around(bit, rank.into()) == around(bit, rank.into())
        {
            rank += 1;
        }
        self.ranked(metas, number, rank);
    }

    /// What follows where a group's rank may be another one now; that of a full group is beyond the last.
    fn ranked(&mut self, metas: Metas, number: u32, rank: u8) {
        if rank as usize <= SMALL {
            let mobility = self.blocks.of(self.first_of(number));
            self.set_rank(metas, number, rank, mobility);
            return;
        }
        // I2.
        let first = self.first_of(number);
        let mobility = self.blocks.of(first);
        let zero = self.clear(metas, number, !0);
        self.set_rank(metas, number, 0, mobility);
        self.free_pages -= GROUP.pages();
        self.put_large(metas, first, GROUP, zero);
    }

    /// Makes pages of one group free.
    pub(super) fn put_part(&mut self, metas: Metas, first: u32, end: u32, zero: bool) {
        let (number, _) = self.group_of(first);
        for (block, order) in index::blocks(first, end, self.bias) {
            self.tile(metas, block, order, zero);
        }
        self.free_pages += (end - first) as usize;
        self.ranked(metas, number, rank(self.groups.get(number).free));
    }

    /// The end of the group that a page lies in, as a page's number.
    #[inline(always)]
    pub(super) const fn end_of_group(&self, page: u32) -> u32 {
        let (number, _) = self.group_of(page);
        ((number + 1) << SMALL) - self.bias
    }

    fn tile(&mut self, metas: Metas, block: u32, order: Order, zero: bool) {
        let (number, bit) = self.group_of(block);
        metas.at(block).set_state(State::free(order, zero));
        let group = self.groups.at(number);
        group.free |= around(bit, order.get());
        group.heads |= 1 << bit;
        self.flow[order.get()] = self.flow[order.get()].wrapping_add(1);
    }

    /// Takes the marks off some of a group's pages, whole tiles; whether all of them were zero.
    fn clear(&mut self, metas: Metas, number: u32, pages: u64) -> bool {
        let group = self.groups.at(number);
        let mut heads = group.heads & pages;
        group.free &= !pages;
        group.heads &= !pages;
        let mut zero = true;
        while heads != 0 {
            // The page is in the span, though the group's first need not be.
            let meta = metas.at((number << SMALL) + heads.trailing_zeros() - self.bias);
            zero &= meta.state().is_zero();
            meta.set_state(State::INSIDE);
            heads &= heads - 1;
        }
        zero
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
        let zero = self.clear(metas, number, around(bit, order.get()));
        self.free_pages -= (end - block) as usize;
        self.flow[order.get()] = self.flow[order.get()].wrapping_sub(1);
        for (rest, order) in index::blocks(end, block + order.pages() as u32, self.bias) {
            self.tile(metas, rest, order, zero);
        }
        let group = self.groups.get(number);
        // One of the largest went; the others are what they were.
        if group.rank as usize == order.get() + 1 {
            self.set_rank(metas, number, rank(group.free), mobility);
        }
        zero
    }

    /// The free block around a page, if it is smaller than a group.
    pub(super) fn small_around(&self, page: u32) -> Option<(u32, Order)> {
        let (number, bit) = self.group_of(page);
        let free = self.groups.get(number).free;
        let order = (0..SMALL).take_while(|&o| free & around(bit, o) == around(bit, o));
        let order = order.last()?;
        let first = around(bit, order).trailing_zeros();
        Some(((number << SMALL) + first - self.bias, Order::at(order)))
    }

    /// The smallest block of at least `order` in a group that has one.
    pub(super) fn smallest_in(&self, number: u32, order: usize) -> Option<(u32, Order)> {
        let (bit, order) = smallest(self.groups.get(number).free, order)?;
        Some(((number << SMALL) + bit - self.bias, Order::at(order)))
    }

    fn set_rank(&mut self, metas: Metas, number: u32, rank: u8, mobility: Mobility) {
        let old = self.groups.get(number).rank;
        if old != rank {
            self.detach(number, mobility);
            self.groups.at(number).rank = rank;
            self.attach(metas, number, mobility);
        }
    }

    /// Puts a group on the list of its rank: in front, or at the end if it completes a free pair of groups (P3).
    fn attach(&mut self, metas: Metas, number: u32, mobility: Mobility) {
        let rank = self.groups.get(number).rank;
        if rank == 0 {
            return;
        }
        let first = (number << SMALL).checked_sub(self.bias);
        let last = first.is_some_and(|first| self.free_buddy(metas, first, GROUP).is_some());
        let area = &mut self.areas[mobility.get()][rank as usize - 1];
        let (prev, next) = if last {
            (area.last, NONE)
        } else {
            (NONE, area.first)
        };
        let group = self.groups.at(number);
        (group.prev, group.next) = (prev, next);
        match prev {
            NONE => area.first = number,
            prev => self.groups.at(prev).next = number,
        }
        match next {
            NONE => area.last = number,
            next => self.groups.at(next).prev = number,
        }
        area.nr += 1;
    }

    /// Takes a group off its list.
    fn detach(&mut self, number: u32, mobility: Mobility) {
        let &Group {
            prev, next, rank, ..
        } = self.groups.get(number);
        if rank == 0 {
            return;
        }
        let area = &mut self.areas[mobility.get()][rank as usize - 1];
        match prev {
            NONE => area.first = next,
            prev => self.groups.at(prev).next = next,
        }
        match next {
            NONE => area.last = prev,
            next => self.groups.at(next).prev = prev,
        }
        area.nr -= 1;
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
            if self.groups.get(number).rank > 0 {
                self.detach(number, old);
                self.attach(metas, number, new);
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
            let free = self.groups.get(number).free;
            let counts = || of.is_none_or(|of| of == self.blocks.of(self.first_of(number)));
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
        let gone = flow[order].wrapping_add(below).wrapping_sub(now[order] as u64);
        // Where others take and put meanwhile, less may have come than is there.
        below = (gone as i64).max(0) as u64 / 2;
        merges[order] = below;
    }
    merges
}

