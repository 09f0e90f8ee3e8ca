//! The numbers, against the page source and against what was done.
#![cfg(not(loom))]

mod common;

use common::{Hand, Pages};
use pagealloc::Attempt;
use rcu_core::NoReaders;
use rcu_core::cpu::{Slot, Threads};
use rcu_core::manual::ManualGp;
use slab::{CacheConfig, Checks, Event, Kmalloc, MemoryStats, RawCache};
use std::alloc::Layout;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

const CAP: usize = 5;

type Raw<'a> = RawCache<&'a Hand, &'a Pages, &'a ManualGp>;

fn alloc(cache: &Raw<'_>, n: usize) -> Vec<NonNull<u8>> {
    let mut out = vec![MaybeUninit::uninit(); n];
    cache.alloc_bulk(&mut out, Attempt::MayGrow).unwrap();
    // SAFETY: all or nothing, and it was all.
    let object = |o: MaybeUninit<NonNull<u8>>| unsafe { o.assume_init() };
    out.into_iter().map(object).collect()
}

fn free(cache: &Raw<'_>, objects: Vec<NonNull<u8>>) {
    for object in objects {
        // SAFETY: the test had the object.
        unsafe { cache.free(object) };
    }
}

fn with_cache(config: CacheConfig, test: impl FnOnce(&Raw<'_>, &Hand, &Pages)) {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(3), ManualGp::new());
    // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
    let cache = unsafe { RawCache::new_scoped(config, &cpus, &pages, &gp) }.unwrap();
    test(&cache, &cpus, &pages);
    cache.destroy().expect("nothing is out");
    assert_eq!(pages.outstanding(), 0);
}

#[test]
fn h13_memory_is_accounted_for_to_the_byte() {
    for checks in [
        Checks::empty(),
        Checks::all(),
        Checks::RED_ZONE,
        Checks::RANDOM,
    ] {
        for size in [0, 1, 24, 61, 1000, 5000, 70_000] {
            let layout = Layout::from_size_align(size, 8).unwrap();
            let config = CacheConfig::new("bytes", layout).checks(checks);
            with_cache(config, |cache, cpus, pages| {
                let look = |live: usize| {
                    let memory = cache.stats().memory;
                    assert_eq!(memory.total(), pages.outstanding_bytes(), "{memory}");
                    assert_eq!(memory.live, live * size);
                };
                look(0);
                let mut objects = alloc(cache, 100);
                look(100);
                cpus.go(Some(1));
                for object in objects.drain(..50) {
                    // SAFETY: the test had the object.
                    unsafe { cache.retire(object) }.unwrap();
                }
                look(50);
                free(cache, objects);
                look(0);
                cache.barrier();
                look(0);
                cache.shrink(usize::MAX);
                look(0);
                assert_eq!(cache.stats().memory.slabs(), 0);
            });
        }
    }
}

#[test]
fn h13_the_sum_over_all_caches_is_what_the_page_source_is_short_of() {
    for checks in [Checks::empty(), Checks::all()] {
        let pages: &'static Pages = Box::leak(Box::new(Pages::new()));
        let km = Kmalloc::new_checked(Threads, pages, NoReaders, checks).unwrap();
        let memory: Vec<_> = [1, 10, 100, 1000, 5000, 10_000, 100_000]
            .into_iter()
            .cycle()
            .take(200)
            .map(|size| km.kmalloc(Layout::from_size_align(size, 1).unwrap()))
            .collect::<Result<_, _>>()
            .unwrap();
        let check = || {
            let stats = km.stats();
            let small: usize = stats.classes.iter().map(|c| c.memory.total()).sum();
            assert_eq!(small + stats.large_bytes, pages.outstanding_bytes());
        };
        check();
        for memory in memory {
            // SAFETY: the memory was ours.
            unsafe { km.kfree(memory) };
        }
        check();
        km.shrink(usize::MAX);
        check();
        km.destroy().expect("nothing is out");
        assert_eq!(pages.outstanding(), 0);
    }
}

#[test]
fn h13_events_are_counted_where_they_happen() {
    let layout = Layout::new::<[u64; 8]>();
    let config = CacheConfig::new("events", layout)
        .sheaf_capacity(CAP)
        .checks(Checks::empty());
    with_cache(config, |cache, cpus, _| {
        let of = |slot: u32, event| {
            let stats = cache.stats_of(Slot::new(slot));
            stats.map_or(0, |stats| stats.events.of(event))
        };
        assert_eq!(cache.stats_of(Slot::new(0)), None);
        let first = alloc(cache, CAP);
        assert_eq!(of(0, Event::Refill), 1);
        assert_eq!((of(0, Event::SlabNew), of(0, Event::BarnGetFail)), (1, 1));
        let rest = alloc(cache, 40 * CAP);
        // The last sheaf from a slab may hold fewer.
        assert!((41..=45).contains(&of(0, Event::Refill)));

        cpus.go(Some(1));
        assert_eq!(cache.stats_of(Slot::new(1)), None);
        // Some sheaves stay here, ten fill the barn, the rest goes to the slabs.
        free(cache, rest);
        assert_eq!(of(1, Event::BarnPut), 10);
        assert!(of(1, Event::FlushMain) > 0);
        assert_eq!(of(1, Event::BarnPutFail), of(1, Event::FlushMain));
        assert_eq!(of(0, Event::BarnPut), 0);

        // The spare comes first, then the barn. (The first object that a slot frees goes to its slab.)
        let again = alloc(cache, 3 * CAP - 1);
        assert_eq!((of(1, Event::Swap), of(1, Event::BarnGet)), (1, 1));

        cpus.go(None);
        let before = cache.stats().events;
        free(cache, again);
        free(cache, first);
        let singles = alloc(cache, 1);
        free(cache, singles);
        let after = cache.stats().events;
        let grown = |event| after.of(event) - before.of(event);
        assert_eq!(grown(Event::FreeSingle), 4 * CAP as u64);
        assert_eq!(grown(Event::AllocSingle), 1);

        // The whole is the sum of its slots, and of what had none.
        let stats = cache.stats();
        let slots: Vec<_> = cache.slot_stats().collect();
        assert_eq!(slots.len(), 2);
        let misses: u64 = slots.iter().map(|s| s.alloc_misses).sum();
        assert_eq!(misses, stats.alloc_misses);
        let sheaved: usize = slots.iter().map(|s| s.main + s.spare).sum();
        assert_eq!(sheaved + stats.barn_full * CAP, stats.in_sheaves, "{stats}");
        for event in [Event::Refill, Event::BarnPut, Event::Swap] {
            let sum: u64 = slots.iter().map(|s| s.events.of(event)).sum();
            assert_eq!(sum, stats.events.of(event), "{}", event.name());
        }

        cache.shrink(usize::MAX);
        let events = cache.stats().events;
        assert_eq!(events.of(Event::SlabGone), events.of(Event::SlabNew));
        assert!(events.of(Event::FlushOther) > 0);
    });
}

#[test]
fn h13_retired_sheaves_are_counted_by_slot() {
    let layout = Layout::new::<[u64; 8]>();
    let config = CacheConfig::new("events", layout)
        .sheaf_capacity(CAP)
        .checks(Checks::empty());
    with_cache(config, |cache, cpus, _| {
        let objects = alloc(cache, 3 * CAP + 2);
        cpus.go(Some(2));
        for &object in &objects[1..] {
            // SAFETY: the test had the object.
            unsafe { cache.retire(object) }.unwrap();
        }
        let stats = cache.stats_of(Slot::new(2)).unwrap();
        assert_eq!((stats.unsealed, stats.sealed, stats.line), (1, 3 * CAP, 3));
        assert_eq!(stats.sheaves_sealed, 3);
        cpus.go(None);
        // SAFETY: the test had the object.
        assert!(unsafe { cache.retire(objects[0]) }.is_err());
        assert_eq!(cache.stats().events.of(Event::RetireFail), 1);
        // SAFETY: it was given back.
        unsafe { cache.free(objects[0]) };
    });
}

#[test]
fn h13_numbers_are_displayed_by_name() {
    let layout = Layout::new::<[u64; 8]>();
    let config = CacheConfig::new("shown", layout).checks(Checks::empty());
    with_cache(config, |cache, _, pages| {
        let objects = alloc(cache, 3);
        let stats = cache.stats();
        let line = stats.to_string();
        assert!(line.starts_with("shown") && !line.contains('\n'), "{line}");
        let long = format!("{stats:#}");
        let total = format!("\n  {} bytes: live 192 ", pages.outstanding_bytes());
        assert!(long.starts_with(&line) && long.contains(&total), "{long}");
        assert!(
            long.contains("refill 1") && long.contains("slab-new"),
            "{long}"
        );
        let slot = cache.slot_stats().next().unwrap().to_string();
        assert!(
            slot.starts_with("slot 0") && slot.contains("refill 1"),
            "{slot}"
        );
        assert_eq!(MemoryStats::default().total(), 0);
        free(cache, objects);
    });
}
