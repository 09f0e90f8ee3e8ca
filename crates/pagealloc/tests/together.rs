//! Runs, regions and splits where histories, poison, guards and counts by order look at them.

#![cfg(all(feature = "std", target_os = "linux", not(loom)))]

use pagealloc::{Mmap, Order, PAGE_SIZE, PageAlloc, PageReq, Zone};
use rcu_core::cpu::Threads;

type UserZone = Zone<Threads, Mmap>;

fn order(log2_pages: u8) -> Order {
    Order::new(log2_pages).unwrap()
}

fn all_back(zone: &UserZone) {
    assert_eq!(zone.nr_allocated(), 0);
    let stats = zone.stats();
    for (o, of_order) in stats.orders.iter().enumerate() {
        assert_eq!(of_order.allocs, of_order.frees, "order {o}");
    }
}

/// Uses, checks and frees runs, aligned blocks and pieces; what is zeroed must be, poisoned before or not.
fn round(zone: &UserZone) {
    for pages in [1, 3, 7, 8, 300] {
        let run = zone.alloc_exact(pages, PageReq::new(Order::ZERO).zeroed());
        let run = run.unwrap();
        let size_bytes = pages * PAGE_SIZE;
        // SAFETY: the run is ours, and zeroed.
        let bytes = unsafe { core::slice::from_raw_parts_mut(run.as_ptr(), size_bytes) };
        assert!(bytes.iter().all(|&byte| byte == 0));
        bytes.fill(1);
        // SAFETY: the run is out.
        unsafe { zone.free_exact(run, pages) };
    }
    for o in 0..4 {
        let req = PageReq::new(order(o)).align(1 << 20).zeroed();
        let block = zone.alloc(req).unwrap();
        assert_eq!(block.addr().get() % (1 << 20), 0);
        // SAFETY: the block is ours.
        unsafe { block.write_bytes(2, order(o).bytes()) };
        // SAFETY: the block is out.
        unsafe { zone.free(block, order(o)) };
    }
    let block = zone.alloc(PageReq::new(order(3))).unwrap();
    // SAFETY: ours.
    unsafe { zone.split(block, order(3), order(1)) }.unwrap();
    // SAFETY: ours, all four.
    unsafe { zone.merge(block, order(1), order(2)) }.unwrap();
    // SAFETY: inside the block.
    let half = unsafe { block.add(order(2).bytes()) };
    // SAFETY: inside the block.
    let last = unsafe { half.add(order(1).bytes()) };
    for (piece, o) in [(block, 2), (half, 1), (last, 1)] {
        // SAFETY: out, and ours.
        unsafe { zone.free(piece, order(o)) };
    }
}

#[test]
fn p19_runs_and_pieces_count_by_order_and_come_back_whole() {
    let zone = Zone::new(Threads, Mmap::reserve(64 << 20).unwrap()).unwrap();
    for _ in 0..3 {
        round(&zone);
        all_back(&zone);
    }
    zone.drain_all();
    assert_eq!(zone.free_pages(), zone.total_pages());
}

#[test]
fn p19_memory_of_a_region_that_comes_back_changed_is_not_taken_for_damaged() {
    let zone = Zone::new(Threads, Mmap::reserve(64 << 20).unwrap()).unwrap();
    round(&zone);
    zone.drain_all();
    for region in zone.regions() {
        zone.remove_region(region).unwrap();
        // SAFETY: it was the zone's, and the source has it.
        unsafe { zone.add_region(region) }.unwrap();
    }
    round(&zone);
    zone.trim();
    round(&zone);
    all_back(&zone);
}

#[cfg(feature = "guard")]
mod guard {
    use super::*;
    use core::ptr::NonNull;
    use pagealloc::Guards;

    fn guarded() -> [UserZone; 2] {
        [Guards::after(Order::ZERO), Guards::around(Order::ZERO)]
            .map(|g| Zone::with_guards(Threads, Mmap::reserve(64 << 20).unwrap(), g).unwrap())
    }

    /// All of it is one piece, and usable to the last byte.
    fn is_whole(zone: &UserZone) {
        zone.drain_all();
        assert_eq!(zone.free_pages(), zone.total_pages());
        while let Ok(block) = zone.alloc(PageReq::new(Order::MAX)) {
            // SAFETY: the block is ours.
            unsafe { block.write_bytes(9, Order::MAX.bytes()) };
        }
        assert_eq!(zone.free_pages(), 0);
    }

    #[test]
    fn p19_blocks_with_and_without_guards_come_back_to_the_same_zone() {
        for zone in guarded() {
            for _ in 0..3 {
                let with: Vec<NonNull<u8>> = (0..20)
                    .map(|_| zone.alloc(PageReq::new(Order::ZERO)).unwrap())
                    .collect();
                let without: Vec<NonNull<u8>> = (0..20)
                    .map(|_| {
                        let req = PageReq::new(Order::ZERO).align(2 * PAGE_SIZE);
                        zone.alloc(req).unwrap()
                    })
                    .collect();
                for blocks in [&without, &with] {
                    // SAFETY: they are out.
                    unsafe { zone.free_bulk(blocks, Order::ZERO) };
                }
                all_back(&zone);
            }
            is_whole(&zone);
        }
    }

    #[test]
    fn p19_a_split_block_loses_its_guards() {
        for zone in guarded() {
            let block = zone.alloc(PageReq::new(order(2))).unwrap();
            assert!(zone.nr_allocated() > 4);
            // SAFETY: ours.
            unsafe { zone.split(block, order(2), Order::ZERO) }.unwrap();
            assert_eq!(zone.nr_allocated(), 4);
            for i in 0..4 {
                // SAFETY: inside the block.
                let page = unsafe { block.add(i * PAGE_SIZE) };
                // SAFETY: out, and ours.
                unsafe { zone.free(page, Order::ZERO) };
            }
            all_back(&zone);
            is_whole(&zone);
        }
    }
}
