//! The buddy system against its invariants, over metadata on the heap.

use super::*;
use crate::meta::PageMeta;
use core::ptr::NonNull;

/// Metadata for tests; must outlive the `Metas`.
fn metas(memory: &mut Vec<u128>, pages: usize) -> Metas {
    assert!(size_of::<PageMeta>() <= 16);
    memory.resize(pages, 0);
    let first = NonNull::new(memory.as_mut_ptr()).unwrap().cast();
    // SAFETY: zeroed memory for at least that many metas, kept by the caller.
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

/// I1 to I4, by walking everything.
fn check(buddy: &Buddy, metas: Metas) {
    let mut owner = vec![None; metas.len() as usize];
    let mut pages = 0;
    let lists = Mobility::ALL
        .into_iter()
        .flat_map(|m| (0..ORDERS).map(move |o| (m, Order::at(o))));
    for (mobility, order) in lists {
        let area = buddy.areas[mobility.get()][order.get()];
        let (mut at, mut before, mut nr) = (area.first, NONE, 0);
        while at != NONE {
            let meta = metas.at(at);
            assert!(meta.state().is_free_at(order));
            assert_eq!(meta.prev(), before);
            assert_eq!((at + buddy.bias) % order.pages() as u32, 0, "aligned");
            for page in at..at + order.pages() as u32 {
                assert_eq!(owner[page as usize].replace(at), None, "disjoint");
                assert_eq!(buddy.blocks.of(page), mobility, "I4");
                assert!(page == at || metas.at(page).state() == State::INSIDE);
            }
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
    assert_eq!(buddy.free_pages(), pages);
}

#[test]
fn splits_and_merges_back_whatever_the_bias() {
    for bias in [0, 1, 300, 1023] {
        let (mut memory, pages) = (Vec::new(), 5000);
        let metas = metas(&mut memory, pages);
        let mut bytes = Vec::new();
        let mut buddy = Buddy::new(bias, types(&mut bytes, pages, bias));
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
fn the_smallest_sufficient_block_is_cut() {
    let mut memory = Vec::new();
    let metas = metas(&mut memory, 64);
    let mut bytes = Vec::new();
    let mut buddy = Buddy::new(0, types(&mut bytes, 64, 0));
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
fn a_block_that_will_merge_soon_is_kept_out_of_circulation() {
    let mut memory = Vec::new();
    let metas = metas(&mut memory, 64);
    let mut bytes = Vec::new();
    let mut buddy = Buddy::new(0, types(&mut bytes, 64, 0));
    buddy.put(metas, 16, Order::ZERO, false);
    // 2 and 3 are free, 1 is out: 0 waits for 1 to form an order-2 block.
    buddy.put(metas, 2, Order::at(1), false);
    buddy.put(metas, 0, Order::ZERO, false);
    assert_eq!(take_one(&mut buddy, metas, Order::ZERO), Some((16, false)));
    assert_eq!(take_one(&mut buddy, metas, Order::ZERO), Some((0, false)));
    check(&buddy, metas);
}

#[test]
fn only_blocks_that_are_zero_as_a_whole_count_as_zero() {
    let mut memory = Vec::new();
    let metas = metas(&mut memory, 64);
    let mut bytes = Vec::new();
    let mut buddy = Buddy::new(0, types(&mut bytes, 64, 0));
    buddy.put_run(metas, run(0, 64));
    for used in [0, 32] {
        let taken = take_one(&mut buddy, metas, Order::at(6));
        assert_eq!(taken, Some((0, true)));
        // Either half first: it must not matter which one finds the other.
        buddy.put(metas, used, Order::at(5), false);
        buddy.put(metas, 32 - used, Order::at(5), true);
        let last = buddy.take_last(metas, Order::at(6));
        assert_eq!(last, Some((0, false)));
        buddy.put(metas, 32 - used, Order::at(5), true);
        buddy.put(metas, used, Order::at(5), false);
        let last = buddy.take_last(metas, Order::at(6));
        assert_eq!(last, Some((0, false)));
        assert_eq!(buddy.free_pages(), 0);
        buddy.put_run(metas, run(0, 64));
        check(&buddy, metas);
    }
}

mod mobility;
