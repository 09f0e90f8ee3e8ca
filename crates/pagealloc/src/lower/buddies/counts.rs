//! What the arenas have and did, summed one after the other.

#![deny(unsafe_code)]

use super::{Buddies, Changes, ORDERS};
use crate::api::Mobility;
use crate::buddy::small::merged;
use crate::groups::{Groups, SMALL, Small};
use core::sync::atomic::Ordering;

impl Buddies {
    /// The free blocks by order, of one type's pageblocks or all.
    pub(super) fn count(&self, of: Option<Mobility>) -> [usize; ORDERS] {
        let mut blocks = self.fold([0; ORDERS], |sum, arena| {
            let mut free = arena.lock();
            // Each holder does its share.
            self.work_off(arena, &mut free);
            let blocks = free.buddy.large_blocks(of);
            arena.leave(free);
            core::array::from_fn(|order| sum[order] + blocks[order])
        });
        let small = self.small_blocks(of);
        blocks.iter_mut().zip(small).for_each(|(sum, n)| *sum += n);
        blocks
    }

    /// Those smaller than a group, an area at a time: holds stay short (T27).
    fn small_blocks(&self, of: Option<Mobility>) -> Small {
        let mut sum = Small::default();
        // ORDERING: Relaxed: an area without a home had no pages so far.
        let is_used = |area: &usize| self.home_word(*area).load(Ordering::Relaxed) > 0;
        for area in (0..self.extent.areas()).filter(is_used) {
            let (arena, free) = self.lock_home_of(area);
            let blocks = free.buddy.small_blocks(Groups::of_area(area), of);
            arena.leave(free);
            sum.iter_mut().zip(blocks).for_each(|(sum, n)| *sum += n);
        }
        sum
    }

    /// What the arenas did.
    pub(super) fn sum_of_changes(&self) -> Changes {
        let (mut sum, mut flow) = (Changes::default(), [0_u64; SMALL]);
        for arena in self.arenas() {
            let free = arena.lock();
            let (splits, merges) = free.buddy.changes();
            for order in 0..ORDERS {
                sum.splits[order] += splits[order];
                sum.merges[order] += merges[order];
            }
            let flows = flow.iter_mut().zip(free.buddy.flow());
            flows.for_each(|(sum, n)| *sum = sum.wrapping_add(n));
            arena.leave(free);
            // ORDERING: Relaxed: a counter.
            sum.waits += arena.waits.load(Ordering::Relaxed);
        }
        let small = merged(flow, self.small_blocks(None));
        sum.merges
            .iter_mut()
            .zip(small)
            .for_each(|(sum, n)| *sum += n);
        sum
    }
}
