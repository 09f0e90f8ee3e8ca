//! The buddy system against its invariants, over metadata on the heap.

use super::*;
use crate::groups::{self, Group, UNRANKED};
use crate::meta::{self, PageMetas};
use core::ptr::NonNull;

/// Metadata for tests; must outlive the `Metas`.
fn metas(memory: &mut Vec<PageMetas>, pages: usize) -> Metas {
    memory.resize_with(pages.div_ceil(meta::GROUP), PageMetas::default);
    let first = NonNull::new(memory.as_mut_ptr()).unwrap();
    // SAFETY: zeroed metadata of that many pages, kept by the caller.
    #[expect(unsafe_code, reason = "metadata has to come from somewhere")]
    unsafe {
        Metas::new(first, pages as u32)
    }
}

const fn run(first: u32, end: u32) -> Run {
    Run {
        first,
        end,
        zero: true,
    }
}

/// Types for tests; the memory must outlive them.
fn types(memory: &mut Vec<u8>, pages: usize, bias: u32) -> PageBlocks {
    let bytes = PageBlocks::nr_bytes(pages);
    memory.resize(bytes, 0);
    let first = NonNull::new(memory.as_mut_ptr()).unwrap();
    // SAFETY: zeroed memory of that many bytes, kept by the caller.
    #[expect(unsafe_code, reason = "types have to lie somewhere")]
    unsafe {
        PageBlocks::from_zeroed(first, bytes, bias)
    }
}

/// Groups for tests; the memory must outlive them.
fn groups(memory: &mut Vec<Group>, pages: usize, bias: u32) -> Groups {
    let areas = (pages + bias as usize).div_ceil(Order::MAX.pages());
    memory.resize_with(Groups::nr(areas), Group::default);
    let first = NonNull::new(memory.as_mut_ptr()).unwrap();
    // SAFETY: zeroed groups, that many, kept by the caller.
    #[expect(unsafe_code, reason = "groups have to lie somewhere")]
    unsafe {
        Groups::from_zeroed(first, memory.len())
    }
}

/// A buddy system for tests with the memory behind it.
struct Built {
    buddy: Buddy,
    _types: Vec<u8>,
    _groups: Vec<Group>,
}

impl core::ops::Deref for Built {
    type Target = Buddy;

    fn deref(&self) -> &Buddy {
        &self.buddy
    }
}

impl core::ops::DerefMut for Built {
    fn deref_mut(&mut self) -> &mut Buddy {
        &mut self.buddy
    }
}

fn build(pages: usize, bias: u32) -> Built {
    let (mut bytes, mut memory) = (Vec::new(), Vec::new());
    let types = types(&mut bytes, pages, bias);
    let groups = groups(&mut memory, pages, bias);
    Built {
        buddy: Buddy::new(bias, types, groups),
        _types: bytes,
        _groups: memory,
    }
}

impl Buddy {
    /// Free blocks by order.
    fn free_blocks(&self) -> [usize; ORDERS] {
        self.blocks_of(None)
    }

    fn free_blocks_of(&self, mobility: Mobility) -> [usize; ORDERS] {
        self.blocks_of(Some(mobility))
    }

    fn blocks_of(&self, of: Option<Mobility>) -> [usize; ORDERS] {
        let mut blocks = self.large_blocks(of);
        let small = self.small_blocks(self.groups.range(), of);
        blocks[..SMALL].copy_from_slice(&small);
        blocks
    }
}

fn take_one(buddy: &mut Buddy, metas: Metas, order: Order) -> Option<(u32, bool)> {
    take_of(buddy, metas, order, Mobility::Unmovable)
}

fn take_of(
    buddy: &mut Buddy,
    metas: Metas,
    order: Order,
    mobility: Mobility,
) -> Option<(u32, bool)> {
    let mut runs = Runs::new();
    buddy.take(metas, order, mobility, 1, &mut runs);
    runs.first().map(|run| (run.first, run.zero))
}

/// I1 to I4, and those of the groups, by walking everything.
fn check(buddy: &Buddy, metas: Metas) {
    let mut owner = vec![None; metas.len() as usize];
    let mut own = |head: u32, order: Order, mobility| {
        assert!(metas.at(head).state().is_free_at(order));
        assert_eq!((head + buddy.bias) % order.pages() as u32, 0, "aligned");
        for page in head..head + order.pages() as u32 {
            assert_eq!(owner[page as usize].replace(head), None, "disjoint");
            assert_eq!(buddy.blocks.of(page), mobility, "I4");
            assert!(page == head || metas.at(page).state() == State::INSIDE);
        }
    };
    let (mut pages, mut dirty) = (0, 0);
    let lists = Mobility::ALL
        .into_iter()
        .flat_map(|m| (SMALL..ORDERS).map(move |o| (m, Order::at(o))));
    for (mobility, order) in lists {
        let area = buddy.areas[mobility.get()][order.get()];
        let (mut at, mut before, mut nr) = (area.first, NONE, 0);
        let mut zeroes = false;
        while at != NONE {
            let meta = metas.at(at);
            if order >= HUGE {
                dirty += if meta.state().is_zero() {
                    0
                } else {
                    order.pages()
                };
                assert!(!zeroes || meta.state().is_zero(), "I4");
                zeroes |= meta.state().is_zero();
            }
            assert_eq!(meta.prev(), before);
            own(at, order, mobility);
            if order < Order::MAX {
                assert_eq!(buddy.free_buddy(metas, at, order), None, "merged");
            }
            nr += 1;
            (before, at) = (at, meta.next());
        }
        assert_eq!(area.last, before);
        assert_eq!(area.nr, nr);
        pages += (nr as usize) << order.get();
    }
    let mut listed = Vec::new();
    let ranks = 1..=SMALL as u8;
    let lists = Mobility::ALL
        .into_iter()
        .flat_map(|m| ranks.clone().map(move |rank| (Some(m), rank)))
        .chain([(None, UNRANKED)]);
    for (mobility, list) in lists {
        let area = match mobility {
            Some(mobility) => buddy.areas[mobility.get()][usize::from(list) - 1],
            None => buddy.unranked,
        };
        let (mut at, mut before, mut nr) = (area.first, NONE, 0);
        while at != NONE {
            let group = buddy.groups.get(at);
            assert_eq!(group.prev(), before);
            assert_eq!(group.list(), list, "groups I3");
            let free = group.free();
            for bit in (0..64).filter(|bit| free >> bit & 1 == 1) {
                let page = (at << SMALL) + bit - buddy.bias;
                assert!(metas.at(page).state() == State::INSIDE);
                assert_eq!(owner[page as usize].replace(page), None, "disjoint");
                let type_now = buddy.blocks.of(page);
                assert_eq!(mobility.unwrap_or(type_now), type_now, "I4");
            }
            assert_eq!(group.zero() & !free, 0, "groups I1");
            assert_ne!(free, !0, "groups I2");
            pages += free.count_ones() as usize;
            listed.push(at);
            nr += 1;
            (before, at) = (at, group.next());
        }
        assert_eq!(area.last, before);
        assert_eq!(area.nr, nr);
    }
    for number in buddy.groups.range() {
        let group = buddy.groups.get(number);
        let rank = match group.list() {
            UNRANKED => SMALL as u8,
            _ => groups::rank(group.free()),
        };
        assert_eq!(group.rank(), rank);
        assert_eq!(listed.contains(&number), group.free() != 0);
    }
    assert_eq!(buddy.free_pages(), pages);
    assert_eq!(buddy.dirty_pages(), dirty);
}

#[test]
fn p1_p2_splits_and_merges_back_whatever_the_bias() {
    for bias in [0, 1, 300, 1023] {
        let (mut memory, pages) = (Vec::new(), 5000);
        let metas = metas(&mut memory, pages);
        let mut buddy = build(pages, bias);
        buddy.put_run(metas, run(3, pages as u32));
        check(&buddy, metas);
        let whole = buddy.free_blocks();
        let mut out = Vec::new();
        for round in 0..60 {
            let order = Order::at((round * 7) % 5);
            let mut runs = Runs::new();
            buddy.take(metas, order, Mobility::Unmovable, round, &mut runs);
            for run in &runs {
                assert!(run.zero);
                let blocks = (run.first..run.end).step_by(order.pages());
                out.extend(blocks.map(|page| (page, order)));
            }
            check(&buddy, metas);
        }
        assert_eq!(
            out.iter().map(|(_, order)| order.pages()).sum::<usize>(),
            pages - 3 - buddy.free_pages()
        );
        // Back in an order that has nothing to do with how they came.
        while !out.is_empty() {
            let (page, order) = out.swap_remove((out.len() * 31) / 47);
            buddy.put(metas, page, order, true);
            check(&buddy, metas);
        }
        assert_eq!(buddy.free_blocks(), whole);
    }
}

#[test]
fn p2_the_smallest_sufficient_block_is_cut() {
    let mut memory = Vec::new();
    let metas = metas(&mut memory, 64);
    let mut buddy = build(64, 0);
    buddy.put(metas, 8, Order::at(3), false);
    buddy.put(metas, 32, Order::at(5), false);
    let got = take_one(&mut buddy, metas, Order::at(1));
    assert_eq!(
        got,
        Some((8, false)),
        "from the block of order 3, its low part"
    );
    assert_eq!(buddy.free_blocks()[..6], [0, 1, 1, 0, 0, 1]);
    check(&buddy, metas);
}

#[test]
fn p3_a_block_that_will_merge_soon_is_kept_out_of_circulation() {
    let mut memory = Vec::new();
    let metas = metas(&mut memory, 64);
    let mut buddy = build(64, 0);
    buddy.put(metas, 16, Order::ZERO, false);
    // 2 and 3 are free, 1 is out: 0 waits for 1 to form an order-2 block.
    buddy.put(metas, 2, Order::at(1), false);
    buddy.put(metas, 0, Order::ZERO, false);
    assert_eq!(take_one(&mut buddy, metas, Order::ZERO), Some((16, false)));
    assert_eq!(take_one(&mut buddy, metas, Order::ZERO), Some((0, false)));
    check(&buddy, metas);
}

/// What is above goes last, though smaller and freed later.
#[test]
fn p2_p3_groups_under_the_line_go_first() {
    for (line, expected) in [
        (false, [576, 128, 0, 1, 2, 3]),
        (true, [128, 0, 1, 2, 3, 576]),
    ] {
        let mut memory = Vec::new();
        let metas = metas(&mut memory, 1024);
        let mut buddy = build(1024, 0);
        for (first, end) in [(0, 4), (128, 129), (576, 577)] {
            buddy.put_run(metas, run(first, end));
        }
        if line {
            buddy.draw_line(300);
        }
        let pages = [(); 6].map(|()| take_one(&mut buddy, metas, Order::ZERO).unwrap().0);
        assert_eq!(pages, expected);
        check(&buddy, metas);
    }
}

#[test]
fn only_blocks_that_are_zero_as_a_whole_count_as_zero() {
    let mut memory = Vec::new();
    let metas = metas(&mut memory, 64);
    let mut buddy = build(64, 0);
    buddy.put_run(metas, run(0, 64));
    for used in [0, 32] {
        let taken = take_one(&mut buddy, metas, Order::at(6));
        assert_eq!(taken, Some((0, true)));
        // Either half first: it must not matter which one finds the other.
        buddy.put(metas, used, Order::at(5), false);
        buddy.put(metas, 32 - used, Order::at(5), true);
        let last = take_one(&mut buddy, metas, Order::at(6));
        assert_eq!(last, Some((0, false)));
        buddy.put(metas, 32 - used, Order::at(5), true);
        buddy.put(metas, used, Order::at(5), false);
        let last = take_one(&mut buddy, metas, Order::at(6));
        assert_eq!(last, Some((0, false)));
        assert_eq!(buddy.free_pages(), 0);
        buddy.put_run(metas, run(0, 64));
        check(&buddy, metas);
    }
}

mod mobility;

#[test]
fn dirty_blocks_come_first_and_idle_ones_are_counted() {
    let mut memory = Vec::new();
    let metas = metas(&mut memory, 8 * 1024);
    let mut buddy = build(8 * 1024, 0);
    buddy.put_run(metas, run(0, 6 * 1024));
    assert_eq!(buddy.take_dirty(metas, Order::MAX), None);
    for used in [2, 4] {
        let block = used * 1024;
        for run in take_within(&mut buddy, metas, block, block + 1024) {
            buddy.put_run(metas, Run { zero: false, ..run });
        }
        check(&buddy, metas);
    }
    assert_eq!(buddy.dirty_pages(), 2048);
    assert_eq!(buddy.idle_pages(), 0, "not since the start");
    assert_eq!(
        take_one(&mut buddy, metas, Order::MAX),
        Some((4 * 1024, false))
    );
    buddy.put(metas, 4 * 1024, Order::MAX, false);
    assert_eq!(buddy.idle_pages(), 1024, "one was needed");
    assert_eq!(buddy.idle_pages(), 2048);
    for block in [4 * 1024, 2 * 1024] {
        assert_eq!(buddy.take_dirty(metas, Order::MAX), Some(block));
        buddy.put(metas, block, Order::MAX, true);
        check(&buddy, metas);
    }
    assert_eq!(buddy.take_dirty(metas, Order::MAX), None);
    assert_eq!((buddy.dirty_pages(), buddy.idle_pages()), (0, 0));
}

/// Everything free in the range.
fn take_within(buddy: &mut Buddy, metas: Metas, first: u32, end: u32) -> Vec<Run> {
    let (mut at, mut all) = (first, Vec::new());
    while at < end {
        let mut runs = Runs::new();
        let next = buddy.take_within(metas, (first, end), at, &mut runs);
        assert!(next > at, "the scan goes on");
        at = next;
        all.extend(&*runs);
        check(buddy, metas);
    }
    all
}

#[test]
fn what_is_free_within_a_range_is_taken_and_nothing_else() {
    for bias in [0, 7, 1023] {
        for (first, end) in [(0, 3000), (5, 6), (100, 1500), (511, 513), (1024, 3000)] {
            let (mut memory, pages) = (Vec::new(), 3000);
            let metas = metas(&mut memory, pages as usize);
            let mut buddy = build(pages as usize, bias);
            buddy.put_run(metas, run(0, pages));
            let whole = buddy.free_blocks();
            // Some are out, before, inside and behind.
            let mut out = Vec::new();
            for _ in 0..400 {
                let order = Order::at(out.len() % 4);
                out.push((take_one(&mut buddy, metas, order).unwrap().0, order));
            }
            for i in (0..400).rev().step_by(2) {
                let (page, order) = out.swap_remove(i);
                buddy.put(metas, page, order, true);
            }
            let inside = |page: &u32| (first..end).contains(page);
            let is_out = |page: &u32| {
                let mut out = out.iter();
                out.any(|(block, order)| (*block..block + order.pages() as u32).contains(page))
            };
            let expected: Vec<u32> = (first..end).filter(|page| !is_out(page)).collect();
            let before = buddy.free_pages();
            let runs = take_within(&mut buddy, metas, first, end);
            let taken: Vec<u32> = runs.iter().flat_map(|run| run.first..run.end).collect();
            assert_eq!(taken, expected);
            assert!(runs.iter().all(|run| run.zero));
            assert_eq!(buddy.free_pages(), before - taken.len());
            // Again: what came back meanwhile, merged with what lies outside.
            let (back, stay): (Vec<_>, Vec<_>) = out.into_iter().partition(|b| inside(&b.0));
            for (page, order) in back {
                buddy.put(metas, page, order, true);
            }
            let again = take_within(&mut buddy, metas, first, end);
            for run in runs.into_iter().chain(again) {
                buddy.put_run(metas, run);
                check(&buddy, metas);
            }
            for (page, order) in stay {
                buddy.put(metas, page, order, true);
            }
            assert_eq!(buddy.free_blocks(), whole);
        }
    }
}

/// What grew is sorted in a chunk at a time; until then a request may find nothing, and says that there is more.
#[test]
fn t27_what_grew_is_found_however_much_of_it_there_is() {
    let (mut memory, groups) = (Vec::new(), 300);
    let metas = metas(&mut memory, groups * 64);
    let mut buddy = build(groups * 64, 0);
    // The first has a block of order 1, made last; the others single pages.
    for group in (0..groups as u32).rev() {
        buddy.put(metas, group * 64, Order::ZERO, false);
    }
    buddy.put(metas, 1, Order::ZERO, false);
    check(&buddy, metas);
    let mut takes = 0;
    let found = loop {
        takes += 1;
        let found = take_one(&mut buddy, metas, Order::at(1));
        check(&buddy, metas);
        if found.is_some() || !buddy.has_unranked() {
            break found;
        }
    };
    assert_eq!(found, Some((0, false)));
    assert!(takes > 1, "not all under one hold");
    assert_eq!(merges(&buddy)[..2], [1, 0]);
}

fn merges(buddy: &Buddy) -> [u64; SMALL] {
    small::merged(buddy.flow(), buddy.small_blocks(buddy.groups.range(), None))
}

/// They are not counted where they happen.
#[test]
fn merges_of_small_blocks_follow_from_what_came_and_what_is_there() {
    let mut memory = Vec::new();
    let metas = metas(&mut memory, 128);
    let mut buddy = build(128, 0);
    for page in [5, 7, 4, 6] {
        buddy.put(metas, page, Order::ZERO, false);
    }
    assert_eq!(merges(&buddy), [2, 1, 0, 0, 0, 0]);
    buddy.put(metas, 0, Order::at(2), false);
    assert_eq!(merges(&buddy), [2, 1, 1, 0, 0, 0]);
    // A split is no merge, and what comes back merges again.
    let (page, _) = take_one(&mut buddy, metas, Order::ZERO).unwrap();
    assert_eq!(merges(&buddy), [2, 1, 1, 0, 0, 0]);
    buddy.put(metas, page, Order::ZERO, false);
    assert_eq!(merges(&buddy), [3, 2, 2, 0, 0, 0]);
    // Up to a whole group.
    for block in [8_u32, 16, 32] {
        let order = Order::at(block.trailing_zeros() as usize);
        buddy.put(metas, block, order, false);
    }
    assert_eq!(merges(&buddy), [3, 2, 2, 1, 1, 1]);
    assert_eq!(buddy.free_blocks()[6], 1);
}
