//! How sheaves turn over between slots and barn, counted and not timed.

mod common;
#[path = "common/one_cache.rs"]
mod one_cache;

use common::{Hand, Pages};
use one_cache::{Raw, alloc, free};
use pagealloc::Attempt;
use rcu_core::manual::ManualGp;
use slab::{CacheConfig, Checks, Kmalloc, RawCache};
use std::alloc::Layout;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

const CAP: usize = 5;

/// Runs `test` on a cache of objects of so many bytes; afterwards every page must be back.
fn with_cache(bytes: usize, test: impl FnOnce(&Raw<'_>, &Hand, &Pages)) {
    let layout = Layout::from_size_align(bytes, 8).unwrap();
    let config = CacheConfig::new("turnover", layout)
        .sheaf_capacity(CAP)
        .checks(Checks::empty());
    one_cache::with_cache(2, config, |cache, cpus, pages, _| test(cache, cpus, pages));
}

#[test]
fn what_one_slot_allocates_and_another_frees_comes_back_by_whole_sheaves() {
    const SHEAVES: usize = 20;
    with_cache(64, |cache, cpus, pages| {
        let round = || {
            cpus.go(Some(0));
            let objects = alloc(cache, SHEAVES * CAP);
            cpus.go(Some(1));
            free(cache, objects);
        };
        // The barn learns how much it has to keep.
        (0..5).for_each(|_| round());
        let (before, calls) = (cache.stats(), pages.calls());
        (0..10).for_each(|_| round());
        let after = cache.stats();
        assert_eq!(
            after.alloc_misses - before.alloc_misses,
            10 * SHEAVES as u64
        );
        assert_eq!(after.free_misses - before.free_misses, 10 * SHEAVES as u64);
        assert_eq!(pages.calls(), calls, "no slab was touched");
        assert_eq!(after.slabs, before.slabs);
    });
}

#[test]
fn a_slots_first_free_is_not_its_first_allocation() {
    const LINE: usize = 64;
    with_cache(8, |cache, cpus, _| {
        cpus.go(Some(0));
        let mut objects = alloc(cache, 2);
        cpus.go(Some(1));
        free(cache, objects.pop());
        // Again and again: what a slot frees of its own it does allocate next.
        for _ in 0..3 {
            let mine = cache.alloc().unwrap();
            let apart = mine.addr().get() / LINE != objects[0].addr().get() / LINE;
            assert!(apart, "{mine:?} shares a line with {:?}", objects[0]);
            free(cache, [mine]);
        }
        free(cache, objects);
    });
}

#[test]
fn coloured_slabs_begin_at_different_lines() {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(1), ManualGp::new());
    let layout = Layout::from_size_align(1280, 64).unwrap();
    for (colour, lines) in [(false, 16), (true, 64)] {
        let config = CacheConfig::new("colours", layout)
            .colour(colour)
            .checks(Checks::empty());
        // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
        let cache = unsafe { RawCache::new_scoped(config, &cpus, &pages, &gp) }.unwrap();
        cpus.go(Some(0));
        let objects = alloc(&cache, 500);
        let mut sets: Vec<_> = (objects.iter()).map(|o| o.addr().get() / 64 % 64).collect();
        sets.sort_unstable();
        sets.dedup();
        assert_eq!(sets.len(), lines);
        free(&cache, objects);
        cache.destroy().expect("nothing is out");
    }
    assert_eq!(pages.outstanding(), 0);
}

/// Frames begin at their slab's colour, and whoever looks for an object finds it there.
#[test]
fn coloured_objects_are_checked_where_they_lie() {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(1), ManualGp::auto());
    for (size, align) in [(1280, 64), (24, 8), (100, 4), (2560, 128), (320, 64)] {
        for checks in [Checks::RANDOM, Checks::POISON, Checks::all()] {
            let layout = Layout::from_size_align(size, align).unwrap();
            let config = CacheConfig::new("coloured", layout).colour(true);
            let config = config.checks(checks);
            // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
            let cache = unsafe { RawCache::new_scoped(config, &cpus, &pages, &gp) }.unwrap();
            cpus.go(Some(0));
            for round in 0..3 {
                let mut objects = alloc(&cache, 700);
                objects.sort_unstable();
                let apart = |w: &[NonNull<u8>]| w[1].addr().get() - w[0].addr().get() >= size;
                assert!(objects.windows(2).all(apart), "{size} {checks:?}");
                for object in &objects {
                    assert!(object.addr().get().is_multiple_of(align));
                    // SAFETY: the test has the object, which is so large.
                    unsafe { object.write_bytes(0x77, size) };
                }
                assert_eq!(cache.leak_report().live(), 700);
                let rest = objects.split_off(350 + round);
                free(&cache, objects);
                for object in rest {
                    // SAFETY: the test had the object, and nobody looks for it.
                    unsafe { cache.retire(object) }.unwrap();
                }
                cache.barrier();
                assert_eq!(cache.stats().live, 0);
            }
            cache.destroy().expect("nothing is out");
        }
    }
    assert_eq!(pages.outstanding(), 0);
}

#[test]
fn bulk_calls_move_every_object_once() {
    with_cache(64, |cache, cpus, _| {
        cpus.go(Some(0));
        for n in [1, CAP - 1, CAP, CAP + 1, 3 * CAP + 2, 40 * CAP] {
            let mut out = vec![MaybeUninit::uninit(); n];
            cache.alloc_bulk(&mut out, Attempt::MayGrow).unwrap();
            // SAFETY: all or nothing, and it was all.
            let take = |o: MaybeUninit<_>| unsafe { o.assume_init() };
            let mut objects: Vec<NonNull<u8>> = out.into_iter().map(take).collect();
            objects.sort_unstable();
            objects.dedup();
            assert_eq!(objects.len(), n, "an object was given out twice");
            assert_eq!(cache.stats().live, n);
            let (left, right) = objects.split_at_mut(n / 2);
            // SAFETY: the test had the objects.
            unsafe { cache.free_bulk(right) };
            assert_eq!(cache.stats().live, n / 2);
            // SAFETY: as above.
            unsafe { cache.free_bulk(left) };
            assert_eq!(cache.stats().live, 0);
        }
    });
}

/// Objects of two slabs, freed by turns, go home by fours: one look for the slab's tag each.
#[test]
fn l8_objects_of_a_slab_go_home_together() {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(1), ManualGp::new());
    let layout = Layout::from_size_align(64, 8).unwrap();
    let config = CacheConfig::new("mixed", layout).checks(Checks::empty());
    // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
    let cache = unsafe { RawCache::new_scoped(config, &cpus, &pages, &gp) }.unwrap();
    let mut objects = alloc(&cache, 128);
    objects.sort_unstable();
    let (one, other) = objects.split_at(64);
    free(&cache, one.iter().zip(other).flat_map(|(&a, &b)| [a, b]));
    let before = pages.looks();
    cache.shrink(usize::MAX);
    let looks = pages.looks() - before;
    assert_eq!(cache.stats().slabs, 0);
    assert!(looks <= 128 / 4 + 2, "{looks} looks");
    cache.destroy().expect("nothing is out");
    assert_eq!(pages.outstanding(), 0);
}

/// What one call frees is taken by classes, not in the order in which it comes.
#[test]
fn l8_mixed_classes_are_sorted_as_they_are_freed() {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(1), ManualGp::new());
    // SAFETY: the allocator is destroyed below, before what it borrows ends; a panic drops it.
    let km = unsafe { Kmalloc::new_scoped(&cpus, &pages, &gp) }.unwrap();
    let kmalloc = |size| {
        km.kmalloc(Layout::from_size_align(size, 8).unwrap())
            .unwrap()
    };
    let mut memory: Vec<_> = (0..64).map(|i| kmalloc([64, 1000][i % 2])).collect();
    let small: Vec<_> = memory.iter().copied().step_by(2).collect();
    // SAFETY: the test had the memory.
    unsafe { km.free_bulk(&mut memory) };
    let runs = memory.chunk_by(|a, b| small.contains(a) == small.contains(b));
    let runs = runs.count();
    assert!(runs <= 64 / 4 + 1, "{runs} runs of a class");
    km.destroy().expect("nothing is out");
    assert_eq!(pages.outstanding(), 0);
}
