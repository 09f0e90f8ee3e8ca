//! Types: who sits where, who may take what, and that it all merges in the end (P4, T32).

use super::*;
use Mobility::{Movable, Reclaimable, Unmovable};

/// What is out: head, order, and what it was asked for as.
type Out = Vec<(u32, Order, Mobility)>;

fn random(state: &mut u64, below: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % below
}

/// As the zone does it: takes, and marks as out.
fn allocate(buddy: &mut Buddy, metas: Metas, order: Order, mobility: Mobility) -> Option<u32> {
    let (page, _) = take_of(buddy, metas, order, mobility)?;
    metas
        .at(page)
        .set_state(State::allocated(order).with(mobility));
    Some(page)
}

#[test]
fn p4_types_stay_apart_while_there_are_whole_pageblocks() {
    let (mut memory, pages) = (Vec::new(), 8192);
    let metas = metas(&mut memory, pages);
    let mut buddy = build(pages, 0);
    buddy.put_run(metas, run(0, pages as u32));
    for i in 0..3000 {
        let mobility = Mobility::ALL[i % 3];
        let page = allocate(&mut buddy, metas, Order::ZERO, mobility).unwrap();
        assert_eq!(buddy.blocks.of(page), mobility);
    }
    check(&buddy, metas);
    // 1000 pages each: two pageblocks each were touched, as one block of the largest order.
    assert_eq!(buddy.free_blocks()[10], 5);
}

#[test]
fn p4_the_largest_block_of_the_most_suitable_type_is_claimed_first() {
    for (mobility, first, second) in [
        (Unmovable, Reclaimable, Movable),
        (Movable, Reclaimable, Unmovable),
        (Reclaimable, Unmovable, Movable),
    ] {
        let (mut memory, pages) = (Vec::new(), 4096);
        let metas = metas(&mut memory, pages);
        let mut buddy = build(pages, 0);
        buddy.blocks.set(0, 1024, second);
        buddy.blocks.set(1024, 512, first);
        buddy.blocks.set(2048, 512, second);
        buddy.put(metas, 0, Order::at(10), false);
        buddy.put(metas, 1024, Order::at(9), false);
        buddy.put(metas, 2048, Order::at(9), false);
        // The largest first, although of the less suitable type; and both its pageblocks.
        assert_eq!(
            allocate(&mut buddy, metas, Order::at(10), mobility),
            Some(0)
        );
        assert_eq!(buddy.blocks.of(0), mobility);
        assert_eq!(buddy.blocks.of(512), mobility);
        // Of equal size, the more suitable one.
        assert_eq!(
            allocate(&mut buddy, metas, Order::ZERO, mobility),
            Some(1024)
        );
        assert_eq!(buddy.blocks.of(1024), mobility);
        assert_eq!(buddy.blocks.of(2048), second, "one was enough");
        check(&buddy, metas);
    }
}

/// A span of one pageblock, `used` of whose pages are out for `mobility`, one by one and spread evenly.
fn half_used(buddy: &mut Buddy, metas: Metas, used: usize, mobility: Mobility) -> Vec<u32> {
    buddy.blocks.set(0, 512, mobility);
    buddy.put_run(metas, run(0, 512));
    let mut out: Vec<u32> = (0..512)
        .map(|_| allocate(buddy, metas, Order::ZERO, mobility).unwrap())
        .collect();
    out.sort_unstable();
    let mut kept = Vec::new();
    for (i, page) in out.into_iter().enumerate() {
        // Blocks of 16 go back or stay together, so that a claim by movable requests is considered too.
        if (i / 16) % 32 < used / 16 {
            kept.push(page);
        } else {
            buddy.put(metas, page, Order::ZERO, false);
        }
    }
    kept
}

#[test]
fn p4_a_pageblock_is_claimed_if_half_of_it_is_compatible() {
    for (used, claimed) in [(0, true), (256, true), (272, false), (496, false)] {
        for mobility in [Movable, Unmovable, Reclaimable] {
            let mut memory = Vec::new();
            let metas = metas(&mut memory, 512);
            let mut buddy = build(512, 0);
            let old = if mobility == Movable {
                Unmovable
            } else {
                Movable
            };
            let kept = half_used(&mut buddy, metas, used, old);
            let free = buddy.free_pages();
            let page = allocate(&mut buddy, metas, Order::ZERO, mobility).unwrap();
            let now = if claimed { mobility } else { old };
            assert_eq!(buddy.blocks.of(page), now, "{used} of {old:?}");
            check(&buddy, metas);
            let of: usize = (0..ORDERS).map(|o| buddy.free_blocks_of(now)[o] << o).sum();
            assert_eq!(of, free - 1, "all that is free moved, or stayed");
            // T32: what comes back is sorted in by what the pageblock is now, whatever it was asked for as.
            for page in kept {
                buddy.put(metas, page, Order::ZERO, false);
            }
            buddy.put(metas, page, Order::ZERO, false);
            check(&buddy, metas);
            assert_eq!(buddy.free_blocks_of(now)[9], 1);
        }
    }
}

#[test]
fn p4_pages_out_for_the_same_type_count_as_compatible() {
    let mut memory = Vec::new();
    let metas = metas(&mut memory, 512);
    let mut buddy = build(512, 0);
    let kept = half_used(&mut buddy, metas, 496, Movable);
    // Most of what is out was stolen by unmovable requests before.
    for &page in &kept[..300] {
        let stolen = State::allocated(Order::ZERO).with(Unmovable);
        metas.at(page).set_state(stolen);
    }
    assert!(allocate(&mut buddy, metas, Order::ZERO, Unmovable).is_some());
    assert_eq!(buddy.blocks.of(0), Unmovable);
    check(&buddy, metas);
}

#[test]
fn p4_a_block_is_stolen_from_the_largest_or_the_smallest_as_the_policy_says() {
    for (mobility, from) in [(Unmovable, 40), (Reclaimable, 40), (Movable, 4)] {
        let mut memory = Vec::new();
        let metas = metas(&mut memory, 512);
        let old = if mobility == Movable {
            Unmovable
        } else {
            Movable
        };
        let mut buddy = build(512, 0);
        buddy.blocks.set(0, 512, old);
        buddy.put(metas, 4, Order::at(1), false);
        buddy.put(metas, 40, Order::at(3), false);
        let mut runs = Runs::new();
        buddy.take(metas, Order::ZERO, mobility, 50, &mut runs);
        // No more of it than one block, whatever was wanted.
        let end = if from == 40 { 48 } else { 6 };
        assert_eq!(runs.len(), 1);
        assert_eq!((runs[0].first, runs[0].end), (from, end));
        assert_eq!(buddy.blocks.of(0), old, "stolen, not claimed");
        check(&buddy, metas);
    }
}

#[test]
fn p4_the_policy_can_be_replaced() {
    let mut memory = Vec::new();
    let metas = metas(&mut memory, 1024);
    let mut buddy = build(1024, 0);
    buddy.put_run(metas, run(0, 1024));
    buddy.set_fallback([Fallback::never(); TYPES]);
    for mobility in [Movable, Reclaimable] {
        assert_eq!(allocate(&mut buddy, metas, Order::ZERO, mobility), None);
    }
    // Only movable requests may take anything, and only from unmovable pageblocks, without claiming.
    let mut table = [Fallback::never(); TYPES];
    table[Movable.get()] = Fallback {
        order: [Some(Unmovable), None],
        steal: Steal::Smallest,
        ..Fallback::never()
    };
    buddy.set_fallback(table);
    assert_eq!(allocate(&mut buddy, metas, Order::ZERO, Reclaimable), None);
    let page = allocate(&mut buddy, metas, Order::ZERO, Movable).unwrap();
    assert_eq!(buddy.blocks.of(page), Unmovable);
    check(&buddy, metas);
}

#[test]
fn t32_pageblocks_of_two_types_merge_and_are_accounted_once() {
    for (last, other) in [(0, 512), (512, 0)] {
        let mut memory = Vec::new();
        let metas = metas(&mut memory, 1024);
        let mut buddy = build(1024, 0);
        buddy.blocks.set(0, 512, Movable);
        buddy.blocks.set(512, 512, Reclaimable);
        buddy.put(metas, other, Order::at(9), true);
        let mobility = buddy.blocks.of(last);
        buddy.put(metas, last, Order::at(9), true);
        check(&buddy, metas);
        assert_eq!(buddy.free_blocks_of(mobility)[10], 1);
        assert_eq!(buddy.free_pages(), 1024);
        assert_eq!([0, 512].map(|page| buddy.blocks.of(page)), [mobility; 2]);
    }
    // And where it comes back at once, as neighbours joined to one run.
    let mut memory = Vec::new();
    let metas = metas(&mut memory, 1024);
    let mut buddy = build(1024, 0);
    buddy.blocks.set(512, 512, Reclaimable);
    buddy.put_run(metas, run(0, 1024));
    check(&buddy, metas);
    assert_eq!(buddy.free_blocks()[10], 1);
}

/// The whole of a larger block's tail comes back, page by page, while its head is still out.
#[test]
fn t33_a_tail_may_come_back_while_the_head_is_out() {
    let mut memory = Vec::new();
    let metas = metas(&mut memory, 64);
    let mut buddy = build(64, 0);
    buddy.put_run(metas, run(0, 64));
    let page = allocate(&mut buddy, metas, Order::at(4), Unmovable).unwrap();
    // Split by its owner into single pages.
    for page in page..page + 16 {
        metas.at(page).set_state(State::allocated(Order::ZERO));
    }
    for page in page + 1..page + 16 {
        buddy.put(metas, page, Order::ZERO, false);
        check(&buddy, metas);
    }
    assert_eq!(buddy.free_pages(), 63);
    assert_eq!(buddy.free_blocks()[..6], [1, 1, 1, 1, 1, 1]);
    buddy.put(metas, page, Order::ZERO, false);
    check(&buddy, metas);
    assert_eq!(buddy.free_blocks()[6], 1);
}

#[test]
fn p4_pages_are_conserved_across_types_and_merge_fully() {
    for bias in [0, 300, 512, 1023] {
        let mut state = 0x2545_f491_4f6c_dd1d + u64::from(bias);
        let (mut memory, pages) = (Vec::new(), 6000);
        let metas = metas(&mut memory, pages);
        let mut buddy = build(pages, bias);
        buddy.put_run(metas, run(2, pages as u32));
        let whole = buddy.free_blocks();
        let mut out: Out = Vec::new();
        for step in 0..6000_u32 {
            // Waves: nearly everything out, then half of it.
            let filling = (step / 1500).is_multiple_of(2);
            let allocating = random(&mut state, 10) < if filling { 8 } else { 3 };
            if allocating || out.is_empty() {
                let order =
                    Order::at((random(&mut state, 1 << 7) | 1 << 6).trailing_zeros() as usize);
                let mobility = Mobility::ALL[random(&mut state, 3) as usize];
                if let Some(page) = allocate(&mut buddy, metas, order, mobility) {
                    out.push((page, order, mobility));
                }
            } else {
                let which = random(&mut state, out.len() as u64) as usize;
                let (page, order, mobility) = out.swap_remove(which);
                let state = metas.at(page).state();
                assert!(
                    state == State::allocated(order).with(mobility),
                    "nobody touched it"
                );
                buddy.put(metas, page, order, false);
            }
            let held: usize = out.iter().map(|(_, order, _)| order.pages()).sum();
            assert_eq!(buddy.free_pages() + held, pages - 2);
            if step % 50 == 0 {
                check(&buddy, metas);
            }
        }
        while !out.is_empty() {
            let which = random(&mut state, out.len() as u64) as usize;
            let (page, order, _) = out.swap_remove(which);
            buddy.put(metas, page, order, false);
        }
        check(&buddy, metas);
        // Whatever the order of the frees and whatever the pageblocks became.
        assert_eq!(buddy.free_blocks(), whole);
    }
}
