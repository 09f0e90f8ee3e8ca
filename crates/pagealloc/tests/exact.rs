//! Runs of any length, alignment beyond the order's own, split and merge: by example, and against a set of pages.

#![cfg(not(loom))]

mod buffer;
mod cases;
#[macro_use]
mod each;

use buffer::{fixed, written};
use cases::cases;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use pagealloc::{
    AllocError, Attempt, Fixed, Order, PAGE_SIZE, PageAlloc, PageReq, PageTag, SplitError, Zone,
};
use proptest::prelude::*;
use rcu_core::cpu::OneCpu;
use std::collections::BTreeMap;

over_each_lower! {

const PAGE: PageReq = PageReq::new(Order::ZERO);

type SmallZone<'a> = Zone<OneCpu, Fixed<'a>>;

fn order(log2_pages: u8) -> Order {
    Order::new(log2_pages).unwrap()
}

fn memory(pages: usize) -> Vec<MaybeUninit<u8>> {
    written(pages * PAGE_SIZE)
}

fn zone(memory: &mut [MaybeUninit<u8>]) -> SmallZone<'_> {
    // SAFETY: each test uses its zone in its own thread only.
    let cpu = unsafe { OneCpu::new() };
    Zone::new(cpu, fixed(memory)).unwrap()
}

fn page_of(block: NonNull<u8>, nr: usize) -> NonNull<u8> {
    // SAFETY: callers stay inside the block.
    unsafe { block.add(nr * PAGE_SIZE) }
}

fn is_zero(block: NonNull<u8>, bytes: usize) -> bool {
    (0..bytes).step_by(61).chain([bytes - 1]).all(|i| {
        // SAFETY: callers stay inside the block.
        let byte = unsafe { block.add(i) };
        // SAFETY: callers own the block and asked for zeroes.
        unsafe { byte.read() == 0 }
    })
}

#[test]
fn every_length_up_to_the_largest_block_comes_and_goes_whole() {
    let mut memory = memory(5000);
    let zone = zone(&mut memory);
    let fresh = zone.stats().free_blocks;
    for pages in (1..70).chain([127, 128, 129, 300, 511, 512, 513, 1000, 1023, 1024]) {
        for attempt in [Attempt::NoWait, Attempt::TryLock, Attempt::PcpOnly] {
            let run = zone.alloc_exact(pages, PAGE.zeroed()).unwrap();
            assert!(is_zero(run, pages * PAGE_SIZE));
            assert_eq!(zone.nr_allocated(), pages, "the rest went back at once");
            assert_eq!(zone.exact_pages(run.as_ptr()), Some(pages));
            let align = pages.next_power_of_two() * PAGE_SIZE;
            assert!(run.addr().get().is_multiple_of(align));
            if pages.is_power_of_two() {
                assert_eq!(zone.order_of(run.as_ptr()), Order::for_size(align));
            } else {
                assert_eq!(zone.order_of(run.as_ptr()), None, "not a block");
            }
            // SAFETY: the run is ours.
            unsafe { run.write_bytes(0xff, pages * PAGE_SIZE) };
            // SAFETY: it came with this length.
            unsafe { zone.free_exact_at(run, pages, attempt) };
            assert_eq!(zone.exact_pages(run.as_ptr()), None);
            assert_eq!(zone.nr_allocated(), 0);
        }
    }
    zone.drain_all();
    assert_eq!(zone.stats().free_blocks, fresh);
}

#[test]
fn lengths_and_alignments_that_no_block_has_are_invalid() {
    let mut memory = memory(1200);
    let zone = zone(&mut memory);
    for pages in [0, 1025, usize::MAX, usize::MAX / PAGE_SIZE + 2] {
        assert_eq!(zone.alloc_exact(pages, PAGE), Err(AllocError::Invalid));
    }
    for align in [3, 4097, 3 * PAGE_SIZE, 8 << 20, usize::MAX, 1 << 63] {
        for attempt in [Attempt::PcpOnly, Attempt::MayGrow] {
            let req = PAGE.align(align).attempt(attempt);
            assert_eq!(zone.alloc(req), Err(AllocError::Invalid), "{align}");
            assert_eq!(zone.alloc_exact(5, req), Err(AllocError::Invalid));
            assert_eq!(zone.alloc_bulk(req, &mut [MaybeUninit::uninit(); 3]), 0);
        }
    }
    assert_eq!(zone.nr_allocated(), 0);
    assert_eq!(
        zone.alloc_exact(3, PAGE.attempt(Attempt::PcpOnly)),
        Err(AllocError::Empty)
    );
}

#[test]
fn blocks_are_aligned_up_to_the_largest_block() {
    let mut memory = memory(5000);
    let zone = zone(&mut memory);
    let fresh = zone.stats().free_blocks;
    let mut out = Vec::new();
    for log2_pages in [0, 1, 3, 5, 9] {
        // The list has blocks that are aligned to less.
        let size = order(log2_pages).bytes();
        let page = zone.alloc(PAGE).unwrap();
        for align in (0..=10).map(|o| PAGE_SIZE << o).chain([0, 1, 8]) {
            let req = PageReq::new(order(log2_pages)).align(align).zeroed();
            let block = zone.alloc(req).unwrap();
            assert!(block.addr().get().is_multiple_of(align.max(size)));
            assert!(is_zero(block, size));
            assert_eq!(zone.order_of(block.as_ptr()), Some(order(log2_pages)));
            // SAFETY: ours.
            unsafe { block.write_bytes(0xff, size) };
            if log2_pages < 3 {
                out.push((block, order(log2_pages)));
            } else {
                // SAFETY: it came with this order.
                unsafe { zone.free(block, order(log2_pages)) };
            }
        }
        // SAFETY: the page is out.
        unsafe { zone.free(page, Order::ZERO) };
    }
    let req = PAGE.align(64 << 10);
    let mut places = [MaybeUninit::uninit(); 5];
    assert_eq!(zone.alloc_bulk(req, &mut places), 5);
    for place in places {
        // SAFETY: filled.
        let block: NonNull<u8> = unsafe { place.assume_init() };
        assert!(block.addr().get().is_multiple_of(64 << 10));
        out.push((block, Order::ZERO));
    }
    let pages: usize = out.iter().map(|(_, order)| order.pages()).sum();
    assert_eq!(zone.nr_allocated(), pages);
    for (block, order) in out {
        // SAFETY: it came with this order.
        unsafe { zone.free(block, order) };
    }
    zone.drain_all();
    assert_eq!(zone.stats().free_blocks, fresh);
}

/// Linux freed the tail of a block whose head was still referenced; here the pieces are blocks of their own.
#[test]
fn t33_pieces_of_a_split_block_are_freed_one_by_one() {
    let mut memory = memory(3000);
    let zone = zone(&mut memory);
    let fresh = zone.stats().free_blocks;
    for (from, to) in [(3, 0), (3, 2), (10, 0), (10, 9), (5, 5)] {
        let (from, to) = (order(from), order(to));
        let block = zone.alloc(PageReq::new(from)).unwrap();
        // SAFETY: the block is ours.
        unsafe { zone.split(block, from, to) }.unwrap();
        let pieces = from.pages() / to.pages();
        for i in 0..pieces {
            let piece = page_of(block, i * to.pages());
            assert_eq!(zone.order_of(piece.as_ptr()), Some(to));
            assert_eq!(zone.nr_allocated(), from.pages() - i * to.pages());
            // The front first: the others stay.
            // SAFETY: a block of its own.
            unsafe { zone.free(piece, to) };
        }
        zone.drain_all();
        assert_eq!(zone.stats().free_blocks, fresh);
    }
}

#[test]
fn split_and_merge_take_each_other_back() {
    let mut memory = memory(3000);
    let zone = zone(&mut memory);
    let (whole, half) = (order(4), order(3));
    let block = zone.alloc(PageReq::new(whole)).unwrap();
    let tag = PageTag {
        owner: core::ptr::without_provenance_mut(77),
        tag: 5,
    };
    // SAFETY: the block is ours.
    unsafe { zone.set_tag(block, whole, tag) };
    // SAFETY: as above.
    let refused = unsafe { zone.split(block, whole, order(5)) };
    assert_eq!(refused, Err(SplitError::Order));
    // SAFETY: as above.
    unsafe { zone.split(block, whole, half) }.unwrap();
    let second = page_of(block, 8);
    for piece in [block, second] {
        assert_eq!(zone.tag(piece.as_ptr()), Some(tag), "pieces keep the note");
        assert_eq!(zone.order_of(piece.as_ptr()), Some(half));
    }
    // SAFETY: both are ours.
    let refused = unsafe { zone.merge(second, half, whole) };
    assert_eq!(refused, Err(SplitError::Misaligned));
    // SAFETY: as above.
    let refused = unsafe { zone.merge(block, half, order(2)) };
    assert_eq!(refused, Err(SplitError::Order));
    assert_eq!(zone.tag(second.as_ptr()), Some(tag), "nothing changed");
    // SAFETY: as above.
    unsafe { zone.merge(block, half, whole) }.unwrap();
    assert_eq!(zone.order_of(block.as_ptr()), Some(whole));
    assert_eq!(zone.order_of(second.as_ptr()), None);
    for nr in 0..16 {
        let page = page_of(block, nr).as_ptr().cast_const();
        assert_eq!(zone.tag(page), Some(PageTag::NONE));
    }
    // SAFETY: one block again.
    unsafe { zone.free(block, whole) };
    assert_eq!(zone.nr_allocated(), 0);
    // A note on a piece is gone from whoever gets the page next.
    let block = zone.alloc(PageReq::new(half)).unwrap();
    // SAFETY: ours.
    unsafe { zone.set_tag(block, half, tag) };
    // SAFETY: ours.
    unsafe { zone.split(block, half, Order::ZERO) }.unwrap();
    for nr in 0..8 {
        // SAFETY: a block of its own.
        unsafe { zone.free(page_of(block, nr), Order::ZERO) };
        assert_eq!(zone.tag(page_of(block, nr).as_ptr()), Some(PageTag::NONE));
    }
}

#[derive(Clone, Debug)]
enum Op {
    Exact {
        pages: usize,
        align: usize,
        attempt: Attempt,
    },
    Split {
        which: usize,
        into: u8,
    },
    Free {
        which: usize,
        attempt: Attempt,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let attempt = || {
        use Attempt::{MayGrow, NoWait, PcpOnly, TryLock};
        prop_oneof![Just(PcpOnly), Just(TryLock), Just(NoWait), Just(MayGrow)]
    };
    prop_oneof![
        4 => (1..200_usize, 0..11_u8, attempt()).prop_map(|(pages, align, attempt)| Op::Exact {
            pages,
            align: if align < 6 { 0 } else { PAGE_SIZE << align },
            attempt,
        }),
        1 => (any::<usize>(), 0..8_u8).prop_map(|(which, into)| Op::Split { which, into }),
        4 => (any::<usize>(), attempt()).prop_map(|(which, attempt)| Op::Free { which, attempt }),
    ]
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn runs_do_not_overlap_and_nothing_is_lost(
        ops in prop::collection::vec(op(), 1..120),
        pages in 600..3000_usize,
    ) {
        let mut memory = memory(pages);
        let zone = zone(&mut memory);
        let fresh = zone.stats().free_blocks;
        let mut out = BTreeMap::<usize, (NonNull<u8>, usize)>::new();
        for op in ops {
            match op {
                Op::Exact { pages, align, attempt } => {
                    let req = PAGE.align(align).attempt(attempt);
                    let Ok(run) = zone.alloc_exact(pages, req) else { continue };
                    let start = run.addr().get();
                    let end = start + pages * PAGE_SIZE;
                    prop_assert_eq!(start % align.max(PAGE_SIZE), 0);
                    let below = out.range(..end).next_back();
                    prop_assert!(below.is_none_or(|(at, (_, n))| at + n * PAGE_SIZE <= start));
                    out.insert(start, (run, pages));
                }
                Op::Split { which, into } => {
                    let blocks: Vec<_> = out.values().filter(|(_, n)| n.is_power_of_two()).copied().collect();
                    let Some(&(block, n)) = blocks.get(which % blocks.len().max(1)) else { continue };
                    let (from, into) = (Order::for_size(n * PAGE_SIZE).unwrap(), order(into));
                    // SAFETY: a block of that order, and ours.
                    let split = unsafe { zone.split(block, from, into) };
                    prop_assert_eq!(split.is_ok(), into <= from);
                    if split.is_ok() {
                        for i in 0..n / into.pages() {
                            let piece = page_of(block, i * into.pages());
                            out.insert(piece.addr().get(), (piece, into.pages()));
                        }
                    }
                }
                Op::Free { which, attempt } => {
                    let Some(&start) = out.keys().nth(which % out.len().max(1)) else { continue };
                    let (run, pages) = out.remove(&start).unwrap();
                    prop_assert_eq!(zone.exact_pages(run.as_ptr()), Some(pages));
                    // SAFETY: it came, or was cut, with this length.
                    unsafe { zone.free_exact_at(run, pages, attempt) };
                }
            }
            let expected: usize = out.values().map(|(_, n)| n).sum();
            prop_assert_eq!(zone.nr_allocated(), expected);
        }
        for (run, pages) in out.into_values() {
            // SAFETY: as above.
            unsafe { zone.free_exact(run, pages) };
        }
        zone.drain_all();
        prop_assert_eq!(zone.stats().free_blocks, fresh);
    }
}

}
