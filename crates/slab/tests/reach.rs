//! What a cache can be asked for beyond `alloc` and `free`, and where: contexts that may not wait, and little memory.
#![cfg(not(loom))]

mod common;
#[path = "common/one_cache.rs"]
mod one_cache;

use common::{Failure, Hand, Pages};
use one_cache::{alloc, free, with_cache};
use pagealloc::{AllocError, Attempt, Fixed, Mmap, Order, PageAlloc, PageReq, Zone};
use rcu_core::NoReaders;
use rcu_core::cpu::Threads;
use rcu_core::manual::ManualGp;
use slab::{CacheConfig, Checks, Event, Kmalloc, RawCache};
use std::alloc::Layout;
use std::mem::MaybeUninit;

const CAP: usize = 5;

fn unchecked(name: &'static str, layout: Layout) -> CacheConfig {
    CacheConfig::new(name, layout).checks(Checks::empty())
}

fn config() -> CacheConfig {
    // Sheaves, and numbers of pages, are what is tested here; `prop` has the rest of it with checks.
    unchecked("reach", Layout::from_size_align(64, 8).unwrap()).sheaf_capacity(CAP)
}

/// The regression of a block driver whose allocations may not wait: every miss went to the slow path, for no sheaf was refilled.
#[test]
fn l12_a_miss_that_may_not_wait_refills_at_its_level() {
    for attempt in [Attempt::PcpOnly, Attempt::TryLock, Attempt::NoWait] {
        let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
        let gp = ManualGp::new();
        // The zone and this thread's list have pages.
        let blocks = [(); 40].map(|()| zone.alloc(PageReq::new(Order::ZERO)).unwrap());
        for block in blocks {
            // SAFETY: the block came from the zone just now.
            unsafe { zone.free(block, Order::ZERO) };
        }
        let config = unchecked("nowait", Layout::new::<[u64; 8]>()).sheaf_capacity(32);
        // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
        let cache = unsafe { RawCache::new_scoped(config, Threads, &zone, &gp) }.unwrap();
        let objects: Vec<_> = (0..20 * 32)
            .map(|_| cache.alloc_attempt(attempt).unwrap())
            .collect();
        let stats = cache.stats();
        assert!(
            stats.alloc_misses <= 2 * 20,
            "{attempt:?}: a hit by the sheaf, {stats}"
        );
        assert!(stats.events.of(Event::Refill) >= 10, "{stats}");
        for object in objects {
            // SAFETY: the test had the object.
            unsafe { cache.free_attempt(object, attempt) };
        }
        assert_eq!(cache.stats().live, 0);
        cache.destroy().expect("nothing is out");
    }
}

#[test]
fn l12_kmalloc_frees_whatever_it_is_where_nobody_may_wait() {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(1), ManualGp::new());
    // SAFETY: the allocator is destroyed below, before what it borrows ends; a panic drops it.
    let km = unsafe { Kmalloc::new_scoped(&cpus, &pages, &gp) }.unwrap();
    for bytes in [8, 100, 5000, 70_000] {
        let layout = Layout::from_size_align(bytes, 8).unwrap();
        let memory = km.kmalloc_attempt(layout, Attempt::TryLock).unwrap();
        // SAFETY: the test had the memory.
        unsafe { km.kfree_attempt(memory, Attempt::TryLock) };
    }
    km.destroy().expect("nothing is out");
    assert_eq!(pages.outstanding(), 0);
}

#[test]
fn what_waits_is_bounded() {
    let limit = 6 * CAP;
    let config = config().waiting_limit(limit * 64).ask_after(1000);
    with_cache(4, config, |cache, _, _, gp| {
        let objects = alloc(cache, 20 * CAP);
        let mut refused = Vec::new();
        for &object in &objects {
            // SAFETY: the test had the object.
            refused.extend(unsafe { cache.retire(object) }.err());
            assert!(cache.waiting_objects() <= limit);
            assert!(cache.waiting_bytes() <= limit * 64);
            assert!(
                cache.stats().waiting <= limit + CAP,
                "and a sheaf of the slot's"
            );
        }
        assert!(!refused.is_empty());
        assert_eq!(
            cache.stats().events.of(Event::RetireOverLimit),
            refused.len() as u64,
            "counted"
        );
        assert!(gp.is_wanted(), "and a grace period was asked for");
        // What has waited long enough makes room, for as much.
        gp.advance();
        gp.advance();
        let again: Vec<_> = refused
            .into_iter()
            // SAFETY: the test has the object still.
            .filter_map(|object| unsafe { cache.retire(object) }.err())
            .collect();
        assert!(
            again.len() < 20 * CAP - limit - CAP,
            "{} were refused again",
            again.len()
        );
        free(cache, again);
    });
}

#[test]
fn l13_shrink_gives_back_about_its_budget() {
    with_cache(4, config().min_partial(20), |cache, cpus, pages, _| {
        cpus.go(None);
        let per_slab = cache.stats().objects_per_slab;
        let objects = alloc(cache, 12 * per_slab);
        free(cache, objects);
        let (slabs, all) = (cache.stats().slabs, pages.outstanding());
        assert!(slabs >= 12);
        assert_eq!(cache.shrink(0), 0);
        assert_eq!(cache.stats().slabs, slabs);
        // Slabs of one page each: exactly.
        for budget in [1, 3] {
            let before = pages.outstanding();
            assert_eq!(cache.shrink(budget), budget);
            assert_eq!(before - pages.outstanding(), budget);
        }
        let rest = cache.shrink(usize::MAX);
        assert_eq!(cache.stats().slabs, 0);
        assert!(rest + 4 <= all);
        assert_eq!(cache.shrink(usize::MAX), 0);
    });
}

#[test]
fn l13_shrink_empties_barn_and_slots_as_far_as_it_must() {
    with_cache(4, config(), |cache, cpus, _, _| {
        let per_slab = cache.stats().objects_per_slab;
        for slot in 0..4 {
            cpus.go(Some(slot));
            let objects = alloc(cache, per_slab);
            free(cache, objects);
        }
        let before = cache.stats();
        assert!(before.in_sheaves > 4 * CAP);
        assert!(cache.shrink(1) >= 1);
        let between = cache.stats();
        assert!(
            between.in_sheaves > 0,
            "not everything for one page: {between}"
        );
        cache.shrink(usize::MAX);
        assert_eq!((cache.stats().in_sheaves, cache.stats().slabs), (0, 0));
    });
}

#[test]
fn l14_a_busy_cache_tells_some_of_what_is_live() {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(2), ManualGp::new());
    // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
    let mut cache = unsafe { RawCache::new_scoped(config(), &cpus, &pages, &gp) }.unwrap();
    for n in [1, 3, 8, 200] {
        let objects = alloc(&cache, n);
        let waits = alloc(&cache, 1)[0];
        // SAFETY: the test had the object.
        unsafe { cache.retire(waits) }.unwrap();
        let busy = cache.destroy().expect_err("objects are out");
        assert_eq!(
            (busy.live, busy.pending, busy.samples.len()),
            (n, 0, n.min(8))
        );
        let mut addresses: Vec<_> = busy.samples.to_vec();
        assert!(busy.to_string().contains(&format!("{:#x}", addresses[0])));
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), n.min(8), "each once");
        let is_live = |at: &usize| objects.iter().any(|o| o.addr().get() == *at);
        assert!(addresses.iter().all(is_live));
        cache = busy.cache;
        free(&cache, objects);
    }
    cache.destroy().expect("nothing is out");
    assert_eq!(pages.outstanding(), 0);
}

#[test]
fn l14_a_busy_kmalloc_tells_some_of_what_is_live() {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(1), ManualGp::new());
    // SAFETY: the allocator is destroyed below, before what it borrows ends; a panic drops it.
    let km = unsafe { Kmalloc::new_scoped(&cpus, &pages, &gp) }.unwrap();
    let out = [40, 1000].map(|bytes| {
        km.kmalloc(Layout::from_size_align(bytes, 8).unwrap())
            .unwrap()
    });
    let busy = km.destroy().expect_err("two are out");
    assert_eq!(busy.samples.to_vec(), out.map(|o| o.addr().get()));
    for memory in out {
        // SAFETY: the test had the memory.
        unsafe { busy.cache.kfree(memory) };
    }
    busy.cache.destroy().expect("nothing is out");
}

/// 256 KiB, less what the zone and the caches need.
fn small(cpus: &Hand, test: impl FnOnce(&Zone<&Hand, Fixed<'_>>)) {
    let mut memory = vec![MaybeUninit::<u8>::uninit(); 256 << 10];
    // SAFETY: the zone is dropped before the memory is.
    let source = unsafe { Fixed::borrowed(&mut memory) }.unwrap();
    let zone = Zone::new(cpus, source).unwrap();
    test(&zone);
    zone.drain_all();
    assert_eq!(zone.nr_allocated(), 0);
}

#[test]
fn what_one_cache_keeps_is_given_up_for_another() {
    let (cpus, gp) = (Hand::new(2), ManualGp::new());
    small(&cpus, |zone| {
        let (a, b) = (
            config().min_partial(1000),
            unchecked("other", Layout::new::<[u64; 16]>()),
        );
        // SAFETY: the caches are destroyed below, before what they borrow ends; a panic drops them.
        let [a, b] =
            [a, b].map(|config| unsafe { RawCache::new_scoped(config, &cpus, zone, &gp) }.unwrap());
        let mut objects: Vec<_> = std::iter::from_fn(|| a.alloc().ok()).collect();
        assert!(b.alloc().is_err(), "all pages are the first one's");
        // Some go back to sheaves and slabs, some wait and are ripe.
        for (i, object) in objects.drain(..).enumerate() {
            // SAFETY: the test had the object.
            if i % 2 == 0 || unsafe { a.retire(object) }.is_err() {
                // SAFETY: as above.
                unsafe { a.free(object) };
            }
        }
        gp.advance();
        gp.advance();
        assert!(
            zone.free_pages() < 2,
            "{} pages are free",
            zone.free_pages()
        );
        let got: Vec<_> = std::iter::from_fn(|| b.alloc().ok()).collect();
        assert!(got.len() > 500, "{}", got.len());
        for object in got {
            // SAFETY: the test had the object.
            unsafe { b.free(object) };
        }
        a.destroy().expect("nothing is out");
        b.destroy().expect("nothing is out");
    });
}

/// The hook runs inside the cache's own request for a slab, and takes from the cache's other slot.
#[test]
fn a_cache_under_pressure_of_its_own_does_not_wait_for_itself() {
    let (cpus, gp) = (Hand::new(2), ManualGp::new());
    small(&cpus, |zone| {
        let layout = Layout::new::<[u8; 4096]>();
        let config = unchecked("pages", layout).sheaf_capacity(100);
        // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
        let cache = unsafe { RawCache::new_scoped(config, &cpus, zone, &gp) }.unwrap();
        let objects: Vec<_> = std::iter::from_fn(|| cache.alloc().ok()).collect();
        let n = objects.len();
        assert!(n > 20, "{n}");
        // All in the sheaves of slot 1.
        cpus.go(Some(1));
        for object in objects {
            // SAFETY: the test had the object.
            unsafe { cache.free(object) };
        }
        cpus.go(Some(0));
        let again: Vec<_> = std::iter::from_fn(|| cache.alloc().ok()).collect();
        assert!(again.len() + 16 >= n, "{} of {n}", again.len());
        for object in again {
            // SAFETY: the test had the object.
            unsafe { cache.free(object) };
        }
        cache.destroy().expect("nothing is out");
    });
}

#[test]
fn h13_every_path_is_counted() {
    with_cache(4, config(), |cache, cpus, pages, gp| {
        let fresh = cache.stats();
        assert_eq!(
            (
                fresh.events.of(Event::Refill),
                fresh.alloc_misses,
                fresh.events.of(Event::SheafNew)
            ),
            (0, 0, 0)
        );
        let objects = alloc(cache, 40 * CAP);
        let after = cache.stats();
        assert!(
            after.alloc_misses >= 8
                && after.events.of(Event::Refill) >= 8
                && after.events.of(Event::SheafNew) > 0
        );
        assert!(after.events.of(Event::BarnGetFail) > 0, "the barn had none");
        free(cache, objects);
        let after = cache.stats();
        assert!(
            after.free_misses > 0
                && after.events.of(Event::BarnPut) == 10
                && after.events.of(Event::BarnPutFail) > 0
        );
        assert!(after.events.of(Event::FlushMain) > 0);
        let objects = alloc(cache, 15 * CAP);
        assert!(cache.stats().events.of(Event::BarnGet) >= 10);
        let (retired, kept) = objects.split_at(3 * CAP);
        for &object in retired {
            // SAFETY: the test had the object.
            unsafe { cache.retire(object) }.unwrap();
        }
        gp.advance();
        gp.advance();
        free(cache, kept.iter().copied());
        let before = cache.stats();
        assert_eq!(before.sheaves_sealed, 2);
        let objects = alloc(cache, 60 * CAP);
        assert!(cache.stats().sheaves_recycled >= 1);
        cpus.go(None);
        // SAFETY: the test had the object.
        assert!(unsafe { cache.retire(objects[0]) }.is_err());
        cpus.go(Some(3));
        cache.shrink(usize::MAX);
        pages.set_failure(Failure::From(0));
        let refused = objects.iter().filter(|o| {
            // SAFETY: the test had the object.
            let refused = unsafe { cache.retire(**o) };
            refused.map_err(|object| free(cache, [object])).is_err()
        });
        let refused = refused.count();
        pages.set_failure(Failure::Never);
        let stats = cache.stats();
        assert_eq!(stats.events.of(Event::RetireFail), refused as u64 + 1);
        cache.shrink(usize::MAX);
        assert!(cache.stats().events.of(Event::SheafGone) > 0);
        let lines = format!("{stats:#}");
        assert!(lines.contains("recycled") && lines.contains("retire-fail"));
    });
}

#[test]
fn l1_slabs_hold_enough_objects_and_waste_little() {
    for (bytes, order) in [
        (64, 0),
        (192, 1),
        (256, 1),
        (1024, 3),
        (4096, 3),
        (32768, 5),
        (65536, 6),
    ] {
        let pages = Pages::new();
        let (cpus, gp) = (Hand::new(1), ManualGp::new());
        let config = unchecked("l1", Layout::from_size_align(bytes, 8).unwrap());
        // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
        let cache = unsafe { RawCache::new_scoped(config, &cpus, &pages, &gp) }.unwrap();
        let object = cache.alloc().unwrap();
        let stats = cache.stats();
        assert_eq!(
            stats.slab_bytes,
            stats.slabs * (pagealloc::PAGE_SIZE << order)
        );
        let used = stats.objects_per_slab * stats.object_bytes;
        assert!((stats.slab_bytes / stats.slabs - used) * 8 <= stats.slab_bytes);
        // SAFETY: the test had the object.
        unsafe { cache.free(object) };
        cache.destroy().expect("nothing is out");
    }
}

/// Mixed sizes, large blocks too, in any order; nothing at all as well. Another slot's objects go the same way.
#[test]
fn l8_bulk_free_over_mixed_caches_and_large_blocks() {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(2), ManualGp::new());
    // SAFETY: the allocator is destroyed below, before what it borrows ends; a panic drops it.
    let km = unsafe { Kmalloc::new_scoped(&cpus, &pages, &gp) }.unwrap();
    // SAFETY: an empty slice has nothing wrong in it.
    unsafe { km.free_bulk(&mut []) };
    let sizes = [8, 3000, 64, 64, 20_000, 96, 8192, 9000, 70_000, 1, 400_000];
    let mut memory: Vec<_> = (0..400)
        .map(|i| {
            cpus.go(Some(i as u32 % 2));
            km.kmalloc(Layout::from_size_align(sizes[i * 7 % sizes.len()], 8).unwrap())
                .unwrap()
        })
        .collect();
    assert!(km.stats().large_bytes > 0);
    // SAFETY: the test had the memory.
    unsafe { km.free_bulk(&mut memory) };
    let stats = km.stats();
    assert_eq!(stats.large_bytes, 0);
    assert!(stats.classes.iter().all(|class| class.live == 0), "{stats}");
    km.destroy().expect("nothing is out");
    assert_eq!(pages.outstanding(), 0);
}

#[test]
fn l9_bulk_allocation_is_all_or_nothing() {
    with_cache(4, config(), |cache, _, pages, _| {
        let per_slab = cache.stats().objects_per_slab;
        let kept = alloc(cache, per_slab);
        for attempt in [
            Attempt::MayGrow,
            Attempt::NoWait,
            Attempt::TryLock,
            Attempt::PcpOnly,
        ] {
            cache.shrink(usize::MAX);
            pages.set_failure(Failure::From(0));
            let mut out = vec![MaybeUninit::uninit(); 3 * per_slab];
            let refused = cache.alloc_bulk(&mut out, attempt);
            assert_eq!(refused, Err(AllocError::OutOfMemory));
            assert_eq!(cache.stats().live, kept.len(), "nothing");
            pages.set_failure(Failure::Never);
            cache.alloc_bulk(&mut out, attempt).unwrap();
            assert_eq!(cache.stats().live, kept.len() + out.len(), "all");
            // SAFETY: all or nothing, and it was all.
            free(cache, out.iter().map(|o| unsafe { o.assume_init() }));
        }
        free(cache, kept);
    });
}

/// H2: by the argument, or by a budget of bytes; H3 and H4 in the order of their sources and places.
#[test]
fn h2_h3_h4_sheaves_serve_before_the_barn_and_the_barn_before_the_slabs() {
    with_cache(4, config(), |cache, cpus, _, _| {
        let objects = alloc(cache, 4 * CAP);
        let start = cache.stats();
        // `main` and the spare: no more than these go to the slot.
        free(cache, objects[..2 * CAP].iter().copied());
        let kept = cache.stats();
        assert_eq!(
            kept.events.of(Event::BarnPut),
            start.events.of(Event::BarnPut),
            "H4: main, then spare"
        );
        free(cache, objects[2 * CAP..].iter().copied());
        let put = cache.stats();
        assert!(
            put.events.of(Event::BarnPut) > kept.events.of(Event::BarnPut),
            "H4: then the barn"
        );
        assert_eq!(
            put.events.of(Event::FlushMain),
            start.events.of(Event::FlushMain),
            "H4: and not the slabs"
        );
        let again = alloc(cache, 4 * CAP);
        let got = cache.stats();
        assert!(
            got.events.of(Event::BarnGet) > put.events.of(Event::BarnGet),
            "H3: the barn after the spare"
        );
        assert_eq!(
            got.events.of(Event::Refill),
            put.events.of(Event::Refill),
            "H3: and before the slabs"
        );
        let more = alloc(cache, 30 * CAP);
        assert!(
            cache.stats().events.of(Event::Refill) > got.events.of(Event::Refill),
            "H3: then the slabs"
        );
        // Another slot has sheaves of its own.
        cpus.go(Some(1));
        free(cache, again);
        free(cache, more);
    });
    with_cache(
        4,
        unchecked("h2", Layout::new::<[u64; 8]>()),
        |cache, _, _, _| {
            let first = cache.alloc().unwrap();
            let stats = cache.stats();
            assert!(
                stats.in_sheaves < 509,
                "by bytes: 509 of 64 bytes are within 32 KiB"
            );
            free(cache, [first]);
        },
    );
}

/// The cookie is taken when the last object has come: a grace period that began before does not do.
#[test]
fn h7_the_sheaf_waits_for_its_last_object() {
    with_cache(4, config(), |cache, _, _, gp| {
        let objects = alloc(cache, 2 * CAP);
        let rest = cache.stats().in_sheaves;
        let mut kept = alloc(cache, rest);
        for &object in &objects[..CAP - 1] {
            // SAFETY: the test had the object.
            unsafe { cache.retire(object) }.unwrap();
        }
        gp.begin();
        for &object in &objects[CAP - 1..=CAP] {
            // SAFETY: the test had the object.
            unsafe { cache.retire(object) }.unwrap();
        }
        gp.end();
        assert_eq!(cache.stats().waiting, CAP + 1);
        let next = alloc(cache, 1);
        assert!(!objects[..=CAP].contains(&next[0]), "not yet");
        kept.extend(next);
        let rest = cache.stats().in_sheaves;
        kept.extend(alloc(cache, rest));
        gp.advance();
        let ripe = alloc(cache, CAP);
        assert!(ripe.iter().all(|o| objects[..CAP].contains(o)));
        free(cache, ripe);
        free(cache, kept);
        free(cache, objects[CAP + 1..].iter().copied());
    });
}

/// The next sheaf for retired objects: the empty spare, one of the barn's, and new memory last.
#[test]
fn h8_an_empty_sheaf_is_found_before_one_is_made() {
    with_cache(4, config(), |cache, _, _, _| {
        let objects = alloc(cache, 8 * CAP);
        let before = cache.stats();
        for &object in &objects {
            // SAFETY: the test had the object.
            unsafe { cache.retire(object) }.unwrap();
        }
        let after = cache.stats();
        let sealed = (after.sheaves_sealed - before.sheaves_sealed) as usize;
        assert_eq!(sealed, 7);
        // Eight sheaves, less the empty ones that the allocations left in slot and barn.
        let left = before.barn_empty;
        assert!(
            after.events.of(Event::SheafNew) - before.events.of(Event::SheafNew) <= 8 - left as u64
        );
        assert_eq!(after.barn_empty, 0);
    });
}

/// `NoReaders` ripens at once: the slot's line is recycled for ever without a page more.
#[test]
fn h7_recycling_needs_no_memory() {
    let pages = Pages::new();
    let cpus = Hand::new(1);
    // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
    let cache = unsafe { RawCache::new_scoped(config(), &cpus, &pages, NoReaders) }.unwrap();
    let round = || {
        for _ in 0..4 * CAP {
            let object = cache.alloc().unwrap();
            // SAFETY: the test had the object.
            unsafe { cache.retire(object) }.unwrap();
        }
    };
    round();
    pages.set_failure(Failure::From(0));
    (0..50).for_each(|_| round());
    cache.destroy().expect("nothing is out");
    assert_eq!(pages.outstanding(), 0);
}
