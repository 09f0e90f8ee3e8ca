//! What a zone does with types, watermarks, heights and lists that are disabled: rows P4, P5, P9, P12, P14 and their bugs.

#![cfg(not(loom))]

mod buffer;
mod cases;
#[macro_use]
mod each;

use buffer::{fixed, unwritten as memory};
use cases::cases;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use pagealloc::{
    AllocError, Attempt, Fallback, Fixed, Mobility, Order, PAGE_SIZE, PageAlloc, PageReq,
    PressureHook, Reserve, Watermarks, Zone,
};
use proptest::prelude::*;
use rcu_core::cpu::OneCpu;
use std::cell::{Cell, RefCell};

over_each_lower! {

const PAGE: PageReq = PageReq::new(Order::ZERO);

type SmallZone<'a> = Zone<OneCpu, Fixed<'a>>;

fn zone(memory: &mut [MaybeUninit<u8>]) -> SmallZone<'_> {
    // SAFETY: each test uses its zone in its own thread only.
    let cpu = unsafe { OneCpu::new() };
    Zone::new(cpu, fixed(memory)).unwrap()
}

fn order(log2_pages: u8) -> Order {
    Order::new(log2_pages).unwrap()
}

fn free(zone: &SmallZone<'_>, block: NonNull<u8>, order: Order) {
    // SAFETY: the caller had it from this zone with this order.
    unsafe { zone.free(block, order) };
}

/// As many pages as there are for `req`.
fn drink(zone: &SmallZone<'_>, req: PageReq) -> Vec<NonNull<u8>> {
    core::iter::from_fn(|| zone.alloc(req).ok()).collect()
}

#[test]
fn p4_a_zone_keeps_types_apart() {
    let mut memory = memory(32 << 20);
    let zone = zone(&mut memory);
    let mut out = Vec::new();
    for i in 0..2400 {
        let mobility = Mobility::ALL[i % 3];
        let block = zone.alloc(PAGE.mobility(mobility)).unwrap();
        let of = IS_BUDDIES.then_some(mobility);
        assert_eq!(zone.mobility_of(block.as_ptr()), of);
        out.push(block);
    }
    for block in out {
        free(&zone, block, Order::ZERO);
    }
    zone.drain_all();
    let stats = zone.stats();
    let by_type = Mobility::ALL.map(|mobility| zone.free_blocks_of(mobility));
    for o in 0..=10 {
        let of = by_type.iter().map(|blocks| blocks[o]).sum::<usize>();
        // Where types are not kept, each finds all.
        let all = if IS_BUDDIES { 1 } else { 3 };
        assert_eq!(stats.free_blocks[o] * all, of);
    }
    assert!(by_type.iter().all(|blocks| blocks[9] + blocks[10] > 0));
    assert_eq!(zone.mobility_of(core::ptr::null()), None);
}

over_buddies! {

#[test]
fn p4_the_embedders_policy_decides() {
    let mut memory = memory(8 << 20);
    let zone = zone(&mut memory);
    let asked = RefCell::new(Vec::new());
    zone.set_fallback(|mobility| {
        asked.borrow_mut().push(mobility);
        Fallback::never()
    });
    assert_eq!(asked.into_inner(), Mobility::ALL, "once each");
    let movable = PAGE.mobility(Mobility::Movable).attempt(Attempt::NoWait);
    assert_eq!(zone.alloc(movable), Err(AllocError::Exhausted));
    assert_eq!(
        zone.alloc(movable.attempt(Attempt::MayGrow)),
        Err(AllocError::OutOfMemory)
    );
    let page = zone.alloc(PAGE).unwrap();
    zone.set_fallback(Fallback::linux);
    let other = zone.alloc(movable).unwrap();
    free(&zone, other, Order::ZERO);
    free(&zone, page, Order::ZERO);
    assert_eq!(zone.nr_allocated(), 0);
}

}

#[test]
fn p7_each_type_has_lists_of_its_own() {
    let mut memory = memory(32 << 20);
    let zone = zone(&mut memory);
    for o in [0, 1, 2, 3].map(order) {
        for mobility in Mobility::ALL {
            let req = PageReq::new(o).mobility(mobility);
            let kept = zone.alloc(req).unwrap();
            let block = zone.alloc(req).unwrap();
            free(&zone, block, o);
            for other in Mobility::ALL.into_iter().filter(|&m| m > mobility) {
                let req = PageReq::new(o).mobility(other).attempt(Attempt::PcpOnly);
                assert_eq!(zone.alloc(req), Err(AllocError::Empty));
            }
            let again = zone.alloc(req.attempt(Attempt::PcpOnly));
            assert_eq!(again, Ok(block), "the one freed last");
            free(&zone, block, o);
            free(&zone, kept, o);
        }
    }
}

over_buddies! {

#[test]
fn t32_a_page_whose_pageblock_changed_type_goes_to_the_new_types_lists() {
    // One pageblock and a bit, so that everybody meets in it.
    let mut memory = memory(2 << 20);
    let zone = zone(&mut memory);
    let movable = PAGE.mobility(Mobility::Movable);
    let reclaimable = PAGE.mobility(Mobility::Reclaimable);
    let out = drink(&zone, movable);
    assert!(out.len() > 200);
    let total = zone.total_pages();
    // Two thirds come back; the others' pageblocks are then claimed for another type.
    let mut kept = Vec::new();
    for (i, page) in out.into_iter().enumerate() {
        if i % 3 == 0 {
            kept.push(page);
        } else {
            free(&zone, page, Order::ZERO);
        }
    }
    zone.drain_all();
    let other = zone.alloc(reclaimable).unwrap();
    let claimed = zone.mobility_of(other.as_ptr()).unwrap();
    assert_eq!(claimed, Mobility::Reclaimable);
    let same: Vec<_> = kept
        .iter()
        .copied()
        .filter(|page| zone.mobility_of(page.as_ptr()) == Some(claimed))
        .collect();
    assert!(!same.is_empty(), "asked for as movable, claimed meanwhile");
    // Off the lists of the type that the pageblock has now.
    zone.drain_all();
    free(&zone, same[0], Order::ZERO);
    assert_eq!(
        zone.alloc(movable.attempt(Attempt::PcpOnly)),
        Err(AllocError::Empty)
    );
    let again = zone.alloc(reclaimable.attempt(Attempt::PcpOnly));
    assert_eq!(again, Ok(same[0]));
    free(&zone, same[0], Order::ZERO);
    for page in kept.into_iter().filter(|&page| page != same[0]) {
        free(&zone, page, Order::ZERO);
    }
    free(&zone, other, Order::ZERO);
    // A drain reads the types under the lock, so the accounts of all types add up.
    zone.drain_all();
    let pages = |mobility| -> usize {
        let blocks = zone.free_blocks_of(mobility);
        (0..=10).map(|o| blocks[o] << o).sum()
    };
    assert_eq!(Mobility::ALL.map(pages).iter().sum::<usize>(), total);
    assert_eq!(zone.free_pages(), total);
}

}

#[test]
fn p5_p14_the_reserve_is_for_those_who_ask() {
    let mut memory = memory(4 << 20);
    let zone = zone(&mut memory);
    let marks = Watermarks::for_pages(zone.total_pages(), 64, 10);
    zone.set_watermarks(marks);
    assert_eq!(zone.watermarks(), marks);
    let disabled = zone.disable_lists();
    let mut out = Vec::new();
    for (attempt, reserve, left) in [
        (Attempt::TryLock, Reserve::None, 64),
        (Attempt::NoWait, Reserve::None, 64),
        (Attempt::MayGrow, Reserve::None, 64),
        (Attempt::MayGrow, Reserve::High, 32),
        (Attempt::NoWait, Reserve::High, 24),
        (Attempt::NoWait, Reserve::All, 0),
    ] {
        let req = PAGE.attempt(attempt).reserve(reserve);
        out.extend(drink(&zone, req));
        assert_eq!(zone.free_pages(), left, "{attempt:?} {reserve:?}");
        let error = zone.alloc(req).unwrap_err();
        assert_eq!(
            error,
            match attempt {
                Attempt::MayGrow => AllocError::OutOfMemory,
                _ if left == 0 => AllocError::Exhausted,
                _ => AllocError::Reserved,
            }
        );
        // The same of many at once.
        let mut places = [MaybeUninit::uninit(); 8];
        assert_eq!(zone.alloc_bulk(req, &mut places), 0);
    }
    drop(disabled);
    for page in out {
        free(&zone, page, Order::ZERO);
    }
    assert_eq!(zone.nr_allocated(), 0);
}

#[test]
fn p5_a_batch_for_the_list_stops_at_the_reserve() {
    let mut memory = memory(64 << 20);
    let zone = zone(&mut memory);
    zone.set_watermarks(Watermarks::for_pages(0, 1000, 0));
    let out = drink(&zone, PAGE.attempt(Attempt::NoWait));
    assert_eq!(zone.free_pages(), 1000);
    assert_eq!(zone.stats().list_pages, 0);
    // A larger block needs as many pages more than the reserve, and a block of the order.
    for page in &out[..3] {
        free(&zone, *page, Order::ZERO);
    }
    zone.drain_all();
    let two = PageReq::new(order(1)).attempt(Attempt::NoWait);
    assert_eq!(zone.free_pages(), 1003);
    let block = zone.alloc(two).unwrap();
    assert_eq!(zone.alloc(two), Err(AllocError::Reserved));
    let block_high = zone.alloc(two.high()).unwrap();
    free(&zone, block_high, order(1));
    free(&zone, block, order(1));
    for page in &out[3..] {
        free(&zone, *page, Order::ZERO);
    }
    assert_eq!(zone.nr_allocated(), 0);
}

/// A cache that gives its pages back when asked.
struct Cache<'a> {
    zone: &'a SmallZone<'a>,
    pages: RefCell<Vec<NonNull<u8>>>,
    calls: Cell<usize>,
    wanted: Cell<usize>,
}

impl Cache<'_> {
    // SAFETY: `data` is a `Cache` that is alive.
    unsafe fn shrink(data: *const (), pages: usize) -> usize {
        // SAFETY: as above; one thread.
        let cache = unsafe { &*data.cast::<Cache<'_>>() };
        cache.calls.set(cache.calls.get() + 1);
        cache.wanted.set(pages);
        // No lock is held: all of this would wait for ever, or fail, under one.
        drop(cache.zone.hold_zone_lock());
        cache.zone.drain_all();
        let page = cache.zone.alloc(PAGE.reserve(Reserve::All));
        if let Ok(page) = page {
            free(cache.zone, page, Order::ZERO);
        }
        let taken: Vec<_> = {
            let mut all = cache.pages.borrow_mut();
            let from = all.len().saturating_sub(pages);
            all.drain(from..).collect()
        };
        for page in &taken {
            free(cache.zone, *page, Order::ZERO);
        }
        taken.len()
    }
}

#[test]
fn p5_hooks_are_called_once_a_fall_and_outside_of_all_locks() {
    let mut memory = memory(4 << 20);
    let zone = &zone(&mut memory);
    let marks = Watermarks {
        min: 40,
        low: 60,
        high: 80,
    };
    zone.set_watermarks(marks);
    let _disabled = zone.disable_lists();
    let cache = Cache {
        zone,
        pages: RefCell::new(Vec::new()),
        calls: Cell::new(0),
        wanted: Cell::new(0),
    };
    // SAFETY: the cache outlives the hook's listing, and everything stays in this thread.
    let hook = unsafe { PressureHook::new(Cache::shrink, (&raw const cache).cast()) };
    // SAFETY: taken off below, before it goes.
    unsafe { zone.add_pressure_hook(NonNull::from_ref(&hook)) };
    let mut out = Vec::new();
    while zone.free_pages() > 60 {
        out.push(zone.alloc(PAGE).unwrap());
    }
    assert_eq!(cache.calls.get(), 0);
    // Levels that may not run it leave a note.
    for attempt in [Attempt::TryLock, Attempt::NoWait] {
        out.push(zone.alloc(PAGE.attempt(attempt)).unwrap());
        assert_eq!(cache.calls.get(), 0);
    }
    out.push(zone.alloc(PAGE).unwrap());
    assert_eq!(cache.calls.get(), 1);
    assert_eq!(cache.wanted.get(), 81 - 57);
    // It had nothing; while the zone stays low it is not asked again.
    while zone.free_pages() > 41 {
        out.push(zone.alloc(PAGE).unwrap());
    }
    zone.tick();
    assert_eq!(cache.calls.get(), 1);
    // Above high, and below low again: asked again, by a tick this time.
    for page in out.split_off(out.len() - 40) {
        free(zone, page, Order::ZERO);
    }
    while zone.free_pages() > 59 {
        out.push(zone.alloc(PAGE.attempt(Attempt::NoWait)).unwrap());
    }
    assert_eq!(cache.calls.get(), 1);
    zone.tick();
    assert_eq!(cache.calls.get(), 2);
    // An allocation that would fail asks too, and gets what the hook gave.
    cache.pages.replace(out.split_off(out.len() - 10));
    while zone.free_pages() > 40 {
        out.push(zone.alloc(PAGE.attempt(Attempt::NoWait)).unwrap());
    }
    assert_eq!(
        zone.alloc(PAGE.attempt(Attempt::NoWait)),
        Err(AllocError::Reserved)
    );
    assert_eq!(cache.calls.get(), 2);
    out.push(zone.alloc(PAGE).unwrap());
    assert_eq!(cache.calls.get(), 3);
    assert_eq!(cache.pages.borrow().len(), 0);
    zone.remove_pressure_hook(NonNull::from_ref(&hook));
    while let Ok(page) = zone.alloc(PAGE) {
        out.push(page);
    }
    assert_eq!(cache.calls.get(), 3, "taken off");
    for page in out {
        free(zone, page, Order::ZERO);
    }
    assert_eq!(zone.nr_allocated(), 0);
}

#[test]
fn p9_ticks_let_lists_get_lower() {
    let mut memory = memory(256 << 20);
    let zone = zone(&mut memory);
    // Up: many allocations, so that lists become high, and then full.
    let out: Vec<_> = (0..3000).map(|_| zone.alloc(PAGE).unwrap()).collect();
    for page in out {
        free(&zone, page, Order::ZERO);
    }
    let mut held = vec![zone.stats().list_pages];
    for _ in 0..30 {
        let before = zone.stats().list_pages;
        assert_eq!(zone.tick().drained, before - zone.stats().list_pages);
        held.push(zone.stats().list_pages);
    }
    assert!(held.is_sorted_by(|a, b| a >= b), "{held:?}");
    assert!(held[0] > 28, "{held:?}");
    assert!(*held.last().unwrap() <= 28, "{held:?}");
    assert_eq!(zone.nr_allocated(), 0);
}

#[test]
fn p9_refills_grow_with_consecutive_allocations() {
    let mut memory = memory(256 << 20);
    let zone = zone(&mut memory);
    let out: Vec<_> = (0..2000).map(|_| zone.alloc(PAGE).unwrap()).collect();
    let misses = zone.stats().attempt(Attempt::MayGrow).misses;
    // With single batches it would be 286, with full ones from the start 32.
    assert!((32..45).contains(&misses), "{misses}");
    for page in out {
        free(&zone, page, Order::ZERO);
    }
}

#[test]
fn p12_disabled_lists_stay_empty_and_come_back() {
    let mut memory = memory(64 << 20);
    let zone = zone(&mut memory);
    let some = |zone: &SmallZone<'_>| {
        for o in [0, 1, 2, 3, 9].map(order) {
            for mobility in Mobility::ALL {
                for attempt in [Attempt::PcpOnly, Attempt::NoWait] {
                    let block = zone.alloc(PageReq::new(o).mobility(mobility)).unwrap();
                    // SAFETY: the block is out.
                    unsafe { zone.free_at(block, o, attempt) };
                }
            }
        }
    };
    some(&zone);
    assert!(zone.stats().list_pages > 0);
    let outer = zone.disable_lists();
    assert_eq!(zone.stats().list_pages, 0);
    let inner = zone.disable_lists();
    some(&zone);
    let mut places = [MaybeUninit::uninit(); 100];
    assert_eq!(zone.alloc_bulk(PAGE, &mut places), 100);
    // SAFETY: all were filled.
    let blocks = places.map(|place| unsafe { place.assume_init() });
    // SAFETY: the blocks are out.
    unsafe { zone.free_bulk(&blocks, Order::ZERO) };
    assert_eq!(zone.stats().list_pages, 0);
    assert_eq!(
        zone.alloc(PAGE.attempt(Attempt::PcpOnly)),
        Err(AllocError::Empty)
    );
    drop(outer);
    some(&zone);
    zone.tick();
    assert_eq!(zone.stats().list_pages, 0, "the inner one is still there");
    drop(inner);
    some(&zone);
    assert!(zone.stats().list_pages > 0);
    zone.drain_all();
    let stats = zone.stats();
    assert_eq!(stats.free_pages, stats.total_pages);
}

#[derive(Clone, Debug)]
enum Op {
    Alloc(PageReq),
    Free(usize, Attempt),
    Marks(usize),
    Tick,
    Disable(bool),
}

fn op() -> impl Strategy<Value = Op> {
    use Attempt::{MayGrow, NoWait, PcpOnly, TryLock};
    let attempt = || prop_oneof![Just(PcpOnly), Just(TryLock), Just(NoWait), Just(MayGrow)];
    let order = prop_oneof![8 => 0..4_u8, 2 => 4..11_u8].prop_map(order);
    let mobility = (0..3_usize).prop_map(|m| Mobility::ALL[m]);
    let reserve = prop_oneof![Just(Reserve::None), Just(Reserve::High), Just(Reserve::All)];
    let req = (order, attempt(), mobility, reserve).prop_map(|(order, attempt, m, reserve)| {
        PageReq::new(order)
            .attempt(attempt)
            .mobility(m)
            .reserve(reserve)
    });
    prop_oneof![
        12 => req.prop_map(Op::Alloc),
        9 => (any::<usize>(), attempt()).prop_map(|(which, attempt)| Op::Free(which, attempt)),
        1 => (0..200_usize).prop_map(Op::Marks),
        1 => Just(Op::Tick),
        1 => any::<bool>().prop_map(Op::Disable),
    ]
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn p4_p5_p12_pages_are_conserved_whatever_their_types_and_merge_fully(
        ops in prop::collection::vec(op(), 1..300),
        pages in 20..3000_usize,
    ) {
        let mut memory = memory(pages * PAGE_SIZE);
        let fresh = zone(&mut memory).stats().free_blocks;
        let zone = zone(&mut memory);
        let mut out: Vec<(NonNull<u8>, Order)> = Vec::new();
        let mut disabled = Vec::new();
        for op in ops {
            match op {
                Op::Alloc(req) => if let Ok(block) = zone.alloc(req) {
                    let (start, end) = (block.addr().get(), block.addr().get() + req.order.bytes());
                    for (other, order) in &out {
                        let other = other.addr().get();
                        prop_assert!(end <= other || other + order.bytes() <= start, "no overlap");
                    }
                    prop_assert_eq!(zone.order_of(block.as_ptr()), Some(req.order));
                    out.push((block, req.order));
                },
                Op::Free(which, attempt) => if !out.is_empty() {
                    let (block, order) = out.swap_remove(which % out.len());
                    // SAFETY: the block is out.
                    unsafe { zone.free_at(block, order, attempt) };
                },
                Op::Marks(min) => zone.set_watermarks(Watermarks::for_pages(pages, min, 10)),
                Op::Tick => { zone.tick(); }
                Op::Disable(true) => disabled.push(zone.disable_lists()),
                Op::Disable(false) => { disabled.pop(); }
            }
            let held: usize = out.iter().map(|(_, order)| order.pages()).sum();
            prop_assert_eq!(zone.nr_allocated(), held);
            prop_assert!(disabled.is_empty() || zone.stats().list_pages == 0);
        }
        for (block, order) in out {
            free(&zone, block, order);
        }
        zone.drain_all();
        prop_assert_eq!(zone.stats().free_blocks, fresh);
    }
}

}
