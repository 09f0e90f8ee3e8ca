//! Threads that allocate, free, hand over, drain, come and go; at the end every page is back.

#![cfg(all(feature = "std", target_os = "linux", not(loom)))]

#[macro_use]
mod each;

use pagealloc::conformance::checks::{Out, churn};
use pagealloc::{Mmap, Order, PageAlloc, PageReq, Zone};
use rcu_core::cpu::Threads;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

over_each_lower! {

mod cfg {
    pub(super) const THREADS: usize = 4;
    pub(super) const GENERATIONS: usize = if cfg!(miri) { 2 } else { 12 };
    pub(super) const STEPS: usize = if cfg!(miri) { 50 } else { 4000 };
}

type UserZone = Zone<Threads, Mmap>;

fn zone(bytes: usize) -> UserZone {
    Zone::new(Threads, Mmap::reserve(bytes).unwrap()).unwrap()
}

fn all_back(zone: &UserZone) {
    let stats = zone.stats();
    assert_eq!(stats.nr_allocated(), 0, "{stats}");
    zone.drain_all();
    let stats = zone.stats();
    assert_eq!(stats.free_pages, stats.total_pages, "{stats}");
    assert_eq!(
        stats.free_blocks[10] * 1024,
        stats.total_pages,
        "merged: {stats}"
    );
}

fn bulk(zone: &UserZone, order: Order, rounds: usize) {
    let mut places = [MaybeUninit::uninit(); 150];
    for round in 0..rounds {
        let got = zone.alloc_bulk(PageReq::new(order), &mut places[..round % 150]);
        let blocks: Vec<NonNull<u8>> = places[..got]
            .iter()
            // SAFETY: filled from the front.
            .map(|place| unsafe { place.assume_init() })
            .collect();
        for block in &blocks {
            // SAFETY: a block of at least a page, which is ours.
            unsafe { block.cast::<usize>().write(block.addr().get()) };
        }
        for block in &blocks {
            // SAFETY: written above.
            assert_eq!(unsafe { block.cast::<usize>().read() }, block.addr().get());
        }
        // SAFETY: the blocks came from this zone with this order.
        unsafe { zone.free_bulk(&blocks, order) };
    }
}

#[test]
fn threads_come_and_go_while_others_drain() {
    let zone = &zone(1 << 30);
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // ORDERING: Relaxed: only ends the loop.
            while !stop.load(Ordering::Relaxed) {
                zone.drain_all();
                zone.trim();
                std::thread::yield_now();
            }
        });
        for generation in 0..cfg::GENERATIONS {
            let threads: Vec<_> = (0..cfg::THREADS)
                .map(|n| {
                    scope.spawn(move || {
                        churn(zone, (generation * 16 + n) as u64, cfg::STEPS);
                        bulk(zone, Order::new(n as u8 % 4).unwrap(), cfg::STEPS / 40);
                    })
                })
                .collect();
            threads.into_iter().for_each(|t| t.join().unwrap());
        }
        // ORDERING: Relaxed: as above.
        stop.store(true, Ordering::Relaxed);
    });
    all_back(zone);
}

#[test]
fn pages_freed_by_another_thread_come_back() {
    let zone = &zone(1 << 30);
    std::thread::scope(|scope| {
        for n in 0..cfg::THREADS as u8 / 2 {
            let (sender, receiver) = mpsc::sync_channel::<Out>(200);
            scope.spawn(move || {
                for _ in 0..cfg::STEPS {
                    let out = Out::take(zone, Order::new(n % 4).unwrap());
                    sender.send(out).unwrap();
                }
            });
            scope.spawn(move || receiver.into_iter().for_each(|out| out.give_back(zone)));
        }
    });
    all_back(zone);
}

#[test]
fn a_thread_that_ends_leaves_nothing_on_its_lists() {
    let zone: &'static UserZone = Box::leak(Box::new(zone(64 << 20)));
    let held = std::thread::spawn(|| {
        Out::take(zone, Order::ZERO).give_back(zone);
        zone.stats().list_pages
    });
    assert!(held.join().unwrap() > 0, "the lists were used");
    assert_eq!(zone.stats().list_pages, 0);
    all_back(zone);
}

#[test]
fn a_small_zone_is_shared_by_many() {
    // 8 MiB and as many threads as would swallow it if lists were high.
    let zone = &zone(8 << 20);
    std::thread::scope(|scope| {
        for n in 0..cfg::THREADS as u64 {
            scope.spawn(move || churn(zone, n, cfg::STEPS));
        }
    });
    all_back(zone);
}

#[test]
fn a_zone_may_end_while_threads_with_lists_live_on() {
    let (to_thread, zones) = mpsc::channel::<std::sync::Arc<UserZone>>();
    let (done, from_thread) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        for zone in zones {
            churn(&*zone, 1, 500);
            drop(zone);
            done.send(()).unwrap();
        }
    });
    for _ in 0..20 {
        let zone = std::sync::Arc::new(zone(64 << 20));
        to_thread.send(zone.clone()).unwrap();
        from_thread.recv().unwrap();
        drop(zone);
    }
    drop(to_thread);
    thread.join().unwrap();
}

}
