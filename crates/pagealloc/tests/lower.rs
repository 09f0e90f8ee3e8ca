//! The lower levels: the suite that both pass, operation strings against a set of pages, and what a zone over each is worth.

#![cfg(all(feature = "std", target_os = "linux", not(loom)))]

mod buffer;
mod cases;

use buffer::written;
use cases::cases;
use pagealloc::conformance::checks::{Out, churn};
use pagealloc::conformance::forbidden::Forbidden;
use pagealloc::conformance::lowers::Model;
use pagealloc::{
    AllocError, Attempt, BitTree, Buddies, Fixed, Lower, Mmap, Order, PageAlloc, PageReq, Zone,
    lower_conformance, page_alloc_conformance,
};
use proptest::prelude::*;
use rcu_core::cpu::{OneCpu, Threads};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};

lower_conformance!(buddies, Buddies);
lower_conformance!(bit_tree, BitTree);
lower_conformance!(not_forbidden, Forbidden<Buddies>);

const PAGE: PageReq = PageReq::new(Order::ZERO);

fn over_mmap<B: Lower>(bytes: usize) -> Zone<Threads, Mmap, B> {
    Zone::with_lower(Threads, Mmap::reserve(bytes).unwrap()).unwrap()
}

fn region(bytes: usize) -> &'static mut [MaybeUninit<u8>] {
    written(bytes).leak()
}

fn over_region() -> Zone<Threads, Fixed<'static>, BitTree> {
    Zone::with_lower(Threads, Fixed::new(region(40 << 20)).unwrap()).unwrap()
}

fn over_steps() -> Zone<Threads, Fixed<'static>, BitTree> {
    let source = Fixed::new(region(48 << 20)).unwrap().in_steps(1500);
    Zone::with_lower(Threads, source).unwrap()
}

fn on_one_cpu() -> Zone<OneCpu, Fixed<'static>, BitTree> {
    // SAFETY: each test below uses its zone from its own thread only.
    let cpu = unsafe { OneCpu::new() };
    Zone::with_lower(cpu, Fixed::new(region(40 << 20)).unwrap()).unwrap()
}

page_alloc_conformance!(zone_over_bits, over_mmap::<BitTree>(256 << 20), threads);
page_alloc_conformance!(zone_over_bits_in_a_region, over_region(), threads);
page_alloc_conformance!(zone_over_bits_in_steps, over_steps(), threads);
page_alloc_conformance!(zone_over_bits_on_one_cpu, on_one_cpu());

fn a_string_of_steps<B: Lower>(bias: u32, cuts: &[u32], steps: &[u64]) {
    let pages = 4096;
    let mut model = Model::<B>::new(pages, bias);
    let mut cuts: Vec<u32> = cuts.iter().map(|cut| cut % pages).collect();
    cuts.extend([0, pages]);
    cuts.sort_unstable();
    for (i, ends) in cuts.windows(2).enumerate() {
        if ends[0] < ends[1] {
            model.add(ends[0], ends[1], i % 2 == 0);
        }
    }
    // However the ranges were cut, it is one region.
    model.check();
    for &step in steps {
        model.step(step);
    }
    model.check();
    model.finish();
}

proptest! {
    #![proptest_config(cases(if cfg!(miri) { 1 } else { 40 }))]

    #[test]
    fn p1_buddies_are_a_set_of_pages(bias in 0..1024_u32, cuts: [u32; 4], steps in proptest::collection::vec(any::<u64>(), 1..150)) {
        a_string_of_steps::<Buddies>(bias, &cuts, &steps);
    }

    #[test]
    fn p1_bits_are_a_set_of_pages(bias in 0..1024_u32, cuts: [u32; 4], steps in proptest::collection::vec(any::<u64>(), 1..150)) {
        a_string_of_steps::<BitTree>(bias, &cuts, &steps);
    }
}

fn all_back<B: Lower>(zone: &Zone<Threads, Mmap, B>) {
    assert_eq!(zone.nr_allocated(), 0);
    zone.drain_all();
    let stats = zone.stats();
    assert_eq!(stats.free_pages, stats.total_pages, "{stats}");
    assert_eq!(
        stats.free_blocks[10] * 1024,
        stats.total_pages,
        "merged: {stats}"
    );
}

#[test]
fn threads_come_and_go_over_bits_while_others_drain() {
    let zone = &over_mmap::<BitTree>(1 << 30);
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
        for generation in 0..4 {
            let threads: Vec<_> = (0..4)
                .map(|n| scope.spawn(move || churn(zone, generation * 16 + n, 3000)))
                .collect();
            threads.into_iter().for_each(|t| t.join().unwrap());
        }
        // ORDERING: Relaxed: as above.
        stop.store(true, Ordering::Relaxed);
    });
    all_back(zone);
}

/// Allocates and frees at `PcpOnly` after the lower level was armed, and frees more than the list holds.
fn pcp_only_touches_nothing<B: Lower>() {
    let zone = over_mmap::<Forbidden<B>>(4 << 30);
    let out: Vec<Out> = (0..300).map(|_| Out::take(&zone, Order::ZERO)).collect();
    zone.lower().arm(true);
    out.into_iter()
        .for_each(|out| out.give_back_at(&zone, Attempt::PcpOnly));
    for _ in 0..2 {
        let out: Vec<Out> = core::iter::from_fn(|| {
            let page = zone.alloc(PAGE.attempt(Attempt::PcpOnly));
            page.map(|page| {
                // SAFETY: the page is out.
                unsafe { zone.free_at(page, Order::ZERO, Attempt::PcpOnly) };
                Out::take_at(&zone, PAGE.attempt(Attempt::PcpOnly))
            })
            .ok()
        })
        .collect();
        // At least the list's height at first.
        assert!(out.len() >= 28, "{}", out.len());
        assert_eq!(
            zone.alloc(PAGE.attempt(Attempt::PcpOnly)),
            Err(AllocError::Empty)
        );
        out.into_iter()
            .for_each(|out| out.give_back_at(&zone, Attempt::PcpOnly));
    }
    zone.lower().arm(false);
    assert_eq!(zone.nr_allocated(), 0);
}

#[test]
fn p15_pcp_only_touches_no_lower_level() {
    pcp_only_touches_nothing::<Buddies>();
    pcp_only_touches_nothing::<BitTree>();
}

#[test]
#[should_panic(expected = "the lower level was touched")]
fn p15_the_trap_of_that_test_works() {
    let zone = over_mmap::<Forbidden<Buddies>>(64 << 20);
    zone.lower().arm(true);
    let _ = zone.alloc(PAGE.attempt(Attempt::TryLock));
}

/// With bits there is nothing that somebody could hold, so `TryLock` is as good as `NoWait`.
#[test]
fn p15_over_bits_try_lock_is_never_contended() {
    let zone = &over_mmap::<BitTree>(1 << 30);
    Out::take(zone, Order::MAX).give_back(zone);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(move || {
                for _ in 0..20 {
                    let take = |_| zone.alloc(PAGE.attempt(Attempt::TryLock));
                    let out: Vec<_> = (0..250).map(take).collect();
                    assert!(!out.contains(&Err(AllocError::Contended)));
                    for page in out.into_iter().flatten() {
                        // SAFETY: the page is out.
                        unsafe { zone.free_at(page, Order::ZERO, Attempt::TryLock) };
                    }
                }
            });
        }
    });
    assert_eq!(zone.stats().attempt(Attempt::TryLock).contended, 0);
    all_back(zone);
}

/// Two slots that start in a zone that may grow get memory of their own, and a zone that may not grow is shared.
fn slots_are_kept_apart<B: Lower>() {
    let zone = &over_mmap::<B>(64 << 20);
    let area = |page: usize| page / Order::MAX.bytes();
    let first = zone.alloc(PAGE).unwrap().addr().get();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| zone.alloc(PAGE).unwrap().addr().get());
        assert_ne!(area(first), area(second.join().unwrap()));
    });
    let small = &over_mmap::<B>(4 << 20);
    let first = small.alloc(PAGE).unwrap().addr().get();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| small.alloc(PAGE).unwrap().addr().get());
        assert_eq!(area(first), area(second.join().unwrap()));
    });
}

#[test]
fn slots_are_kept_apart_as_long_as_there_is_room() {
    slots_are_kept_apart::<Buddies>();
    slots_are_kept_apart::<BitTree>();
}

/// A slot whose own part has nothing left finds what is in the others', down to the last page.
fn the_last_page_is_found<B: Lower>() {
    let zone = &over_mmap::<B>(32 << 20);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope
                .spawn(|| {
                    for order in [0, 3, 9].map(|o| Order::new(o).unwrap()) {
                        Out::take(zone, order).give_back(zone);
                    }
                })
                .join()
                .unwrap();
        }
    });
    let mut out = Vec::new();
    while let Ok(page) = zone.alloc(PAGE) {
        out.push(page);
    }
    assert_eq!(out.len(), 8 * 1024);
    for page in out {
        // SAFETY: the page is out.
        unsafe { zone.free(page, Order::ZERO) };
    }
    all_back(zone);
}

#[test]
fn the_last_page_is_found_whoever_has_it() {
    the_last_page_is_found::<Buddies>();
    the_last_page_is_found::<BitTree>();
}

/// Half of the pages are out, and for a while a tenth of them comes and goes at random: what lies behind the line drains.
#[test]
fn p2_p3_pages_that_come_and_go_leave_huge_blocks_free() {
    const PAGES: usize = if cfg!(miri) { 4 << 10 } else { 16 << 10 };
    const ROUNDS: usize = if cfg!(miri) { 1 } else { 128 };
    let zone = over_mmap::<Buddies>(PAGES * 4096);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |end: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % end as u64) as usize
    };
    let mut out: Vec<_> = core::iter::from_fn(|| zone.alloc(PAGE).ok()).collect();
    assert_eq!(out.len(), PAGES);
    let mut free = |out: &mut Vec<_>, nr: usize| {
        for _ in 0..nr {
            let page = out.swap_remove(below(out.len()));
            // SAFETY: out, with this order.
            unsafe { zone.free(page, Order::ZERO) };
        }
    };
    free(&mut out, PAGES / 2);
    for _ in 0..ROUNDS {
        free(&mut out, PAGES / 20);
        out.extend((0..PAGES / 20).map(|_| zone.alloc(PAGE).unwrap()));
    }
    zone.drain_all();
    let blocks = zone.stats().free_blocks;
    let huge = blocks[9] + 2 * blocks[10];
    // Of 16 there could be; by order alone it is none.
    assert!(huge >= 8 || cfg!(miri), "{huge} huge blocks are free");
    free(&mut out, PAGES / 2);
    all_back(&zone);
}
