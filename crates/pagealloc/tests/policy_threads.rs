//! Types and disabled lists while threads allocate and free: rows P12, T25 and T32.

#![cfg(all(feature = "std", target_os = "linux", not(loom)))]

#[macro_use]
mod each;

use pagealloc::conformance::checks::churn;
use pagealloc::{Mmap, Mobility, Order, PageAlloc, PageReq, Zone};
use rcu_core::cpu::{Cpus, Threads};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

over_each_lower! {

mod cfg {
    /// How often each worker comes around while lists are disabled and enabled.
    pub(super) const TURNS: usize = if cfg!(miri) { 2 } else { 150 };
    pub(super) const STEPS: usize = if cfg!(miri) { 50 } else { 3000 };
}

fn order(log2_pages: u8) -> Order {
    Order::new(log2_pages).unwrap()
}

/// T25 and P12: whatever others do meanwhile, and although some of them do it for the first time.
#[test]
fn t25_p12_no_page_is_on_any_list_while_they_are_disabled() {
    let zone = &Zone::new(Threads, Mmap::reserve(256 << 20).unwrap()).unwrap();
    let working = &AtomicUsize::new(3);
    let at_work = || {
        std::thread::yield_now();
        // ORDERING: Relaxed: only ends loops.
        working.load(Ordering::Relaxed) > 0
    };
    std::thread::scope(|scope| {
        for seed in 0..3 {
            scope.spawn(move || {
                for _ in 0..cfg::TURNS {
                    if seed < 2 {
                        churn(zone, seed, 200);
                    } else {
                        // A newcomer, whose lists nobody has seen before.
                        std::thread::scope(|scope| {
                            scope.spawn(|| churn(zone, 99, 100));
                        });
                    }
                    std::thread::yield_now();
                }
                // ORDERING: Relaxed: as above.
                working.fetch_sub(1, Ordering::Relaxed);
            });
        }
        // Two who disable, in and out of each other; now and then nobody does.
        for _ in 0..2 {
            scope.spawn(|| {
                while at_work() {
                    let _disabled = zone.disable_lists();
                    for _ in 0..3 {
                        let stats = zone.stats();
                        assert_eq!(stats.list_pages, 0, "{stats}");
                        std::thread::yield_now();
                    }
                }
            });
        }
    });
    assert_eq!(zone.nr_allocated(), 0);
    zone.drain_all();
    let stats = zone.stats();
    assert_eq!(stats.free_pages, stats.total_pages);
    assert_eq!(stats.free_blocks[10] * 1024, stats.total_pages, "{stats}");
}

#[test]
fn p12_draining_one_slot_leaves_the_others_alone() {
    let zone = &Zone::new(Threads, Mmap::reserve(64 << 20).unwrap()).unwrap();
    let barrier = &Barrier::new(2);
    std::thread::scope(|scope| {
        let other = scope.spawn(move || {
            churn(zone, 1, 500);
            let slot = Threads.current().unwrap();
            barrier.wait();
            barrier.wait();
            slot
        });
        churn(zone, 2, 500);
        barrier.wait();
        let slot = Threads.current().unwrap();
        let all = zone.stats().list_pages;
        let mine = zone.drain_slot(slot);
        assert!(mine > 0 && mine < all, "{mine} of {all}");
        assert_eq!(zone.stats().list_pages, all - mine);
        assert_eq!(zone.drain_slot(slot), 0);
        barrier.wait();
        assert_ne!(other.join().unwrap(), slot);
    });
    assert_eq!(zone.nr_allocated(), 0);
}

/// Types are mixed by every thread, while a drain comes at every moment.
#[test]
fn t32_types_add_up_while_threads_mix_them() {
    let zone = &Zone::new(Threads, Mmap::reserve(64 << 20).unwrap()).unwrap();
    std::thread::scope(|scope| {
        for seed in 0..3_usize {
            scope.spawn(move || {
                let mut out = Vec::new();
                for i in 0..cfg::STEPS {
                    let mobility = Mobility::ALL[(i + seed) % 3];
                    let o = order([0, 0, 1, 3, 5][(i * 7 + seed) % 5]);
                    if let Ok(block) = zone.alloc(PageReq::new(o).mobility(mobility)) {
                        out.push((block, o));
                    }
                    if out.len() > 200 {
                        for _ in 0..120 {
                            let (block, o) = out.swap_remove((i * 31) % out.len());
                            // SAFETY: the block is out.
                            unsafe { zone.free(block, o) };
                        }
                    }
                    if i % 500 == 0 {
                        zone.drain_all();
                    }
                }
                for (block, o) in out {
                    // SAFETY: the block is out.
                    unsafe { zone.free(block, o) };
                }
            });
        }
    });
    zone.drain_all();
    let stats = zone.stats();
    assert_eq!(stats.free_pages, stats.total_pages, "{stats}");
    assert_eq!(stats.free_blocks[10] * 1024, stats.total_pages, "{stats}");
}

}
