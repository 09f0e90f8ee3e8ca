//! H12: objects set aside.

mod common;
#[path = "common/one_cache.rs"]
mod one_cache;

use common::{Failure, Hand, Pages};
use one_cache::{alloc, free, with_cache};
use pagealloc::{AllocError, Attempt};
use rcu_core::manual::ManualGp;
use slab::{Cache, CacheConfig, Checks, Event, RawCache};
use std::alloc::Layout;

const CAP: usize = 5;

fn config() -> CacheConfig {
    CacheConfig::new("prefill", Layout::from_size_align(64, 8).unwrap()).sheaf_capacity(CAP)
}

/// Of a cache that hands out from sheaves.
fn unchecked() -> CacheConfig {
    config().checks(Checks::empty())
}

#[test]
fn h12_pops_of_what_was_set_aside_cannot_fail() {
    for n in [0, 1, CAP - 1, CAP, CAP + 1, 7 * CAP + 3] {
        with_cache(4, config(), |cache, _, pages, _| {
            let mut aside = cache.prefill(n, Attempt::MayGrow).unwrap();
            assert!(aside.len() >= n);
            assert_eq!(cache.stats().live, aside.len(), "they count as live");
            // No memory, and nothing in the cache.
            pages.set_failure(Failure::From(0));
            cache.shrink(usize::MAX);
            let calls = pages.calls();
            let objects: Vec<_> = (0..n).map(|_| aside.pop().expect("set aside")).collect();
            assert_eq!(pages.calls(), calls, "no page was asked for");
            let more = aside.len();
            assert_eq!(
                std::iter::from_fn(|| aside.pop())
                    .map(|o| free(cache, [o]))
                    .count(),
                more
            );
            assert!(aside.pop().is_none() && aside.is_empty());
            free(cache, objects);
        });
    }
}

#[test]
fn h12_more_than_a_sheaf_is_a_chain_of_sheaves() {
    with_cache(4, config(), |cache, _, _, _| {
        let aside = cache.prefill(10 * CAP, Attempt::MayGrow).unwrap();
        assert!(aside.len() >= 10 * CAP);
        let stats = cache.stats();
        assert_eq!(stats.events.of(Event::PrefillOversize), 1, "{stats}");
    });
}

#[test]
fn h12_what_is_left_goes_back_as_a_whole() {
    with_cache(4, unchecked(), |cache, _, _, _| {
        let aside = cache.prefill(CAP, Attempt::MayGrow).unwrap();
        let slabs = cache.stats().slabs;
        aside.give_back();
        let stats = cache.stats();
        assert_eq!(
            (
                stats.live,
                stats.in_sheaves,
                stats.events.of(Event::FlushMain)
            ),
            (0, CAP, 0),
            "the spare"
        );
        // The second finds the spare, and needs neither barn nor slabs.
        let aside = cache.prefill(CAP, Attempt::PcpOnly).unwrap();
        assert_eq!(cache.stats().events.of(Event::PrefillFast), 1);
        let other = cache.prefill(CAP, Attempt::MayGrow).unwrap();
        drop(other);
        drop(aside);
        let stats = cache.stats();
        assert_eq!(
            (stats.in_sheaves, stats.barn_full),
            (2 * CAP, 1),
            "spare and barn"
        );
        assert_eq!(stats.slabs, slabs);
        // More than barn and slot hold: the rest goes back into the slabs.
        let aside = cache.prefill(40 * CAP, Attempt::MayGrow).unwrap();
        drop(aside);
        let stats = cache.stats();
        assert_eq!((stats.live, stats.barn_full), (0, 10), "{stats}");
    });
}

#[test]
fn h12_refilling_tops_up() {
    with_cache(4, config(), |cache, _, pages, _| {
        let mut aside = cache.prefill(CAP, Attempt::MayGrow).unwrap();
        let mut objects: Vec<_> = (0..3).filter_map(|_| aside.pop()).collect();
        aside.refill(CAP + 2, Attempt::MayGrow).unwrap();
        assert!(aside.len() >= CAP + 2);
        let before = aside.len();
        aside.refill(before, Attempt::PcpOnly).unwrap();
        assert_eq!(aside.len(), before, "there are enough already");
        pages.set_failure(Failure::From(0));
        assert_eq!(
            aside.refill(10_000, Attempt::MayGrow),
            Err(AllocError::OutOfMemory)
        );
        assert!(aside.len() >= before, "what there is stays");
        objects.extend(std::iter::from_fn(|| aside.pop()));
        free(cache, objects);
    });
}

#[test]
fn h12_without_a_slot_and_from_another_slot() {
    with_cache(4, config(), |cache, cpus, _, _| {
        cpus.go(None);
        let mut aside = cache.prefill(2 * CAP, Attempt::MayGrow).unwrap();
        cpus.go(Some(2));
        let object = aside.pop().unwrap();
        cpus.go(Some(3));
        drop(aside);
        free(cache, [object]);
    });
}

#[test]
fn h12_objects_that_are_all_in_the_slot_are_found() {
    with_cache(4, unchecked(), |cache, _, pages, _| {
        // Everything there is lies in `main` and the spare of this slot, and no page can be had.
        let objects = alloc(cache, cache.stats().objects_per_slab.max(64));
        pages.set_failure(Failure::From(0));
        let two: Vec<_> = objects[..2].to_vec();
        free(cache, two);
        let mut aside = cache.prefill(1, Attempt::MayGrow).unwrap();
        let object = aside.pop().unwrap();
        drop(aside);
        free(cache, [object]);
        free(cache, objects[2..].iter().copied());
    });
}

#[test]
fn h12_values_set_aside() {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(1), ManualGp::new());
    let config = Cache::<String, &Hand, &Pages, &ManualGp>::config("names");
    // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
    let cache: Cache<String, _, _, _> =
        unsafe { Cache::new_scoped(config, &cpus, &pages, &gp) }.unwrap();
    let mut aside = cache.prefill(3, Attempt::MayGrow).unwrap();
    let names = ["a", "b", "c"].map(|name| aside.pop(name.to_owned()).unwrap());
    assert_eq!(aside.is_empty(), cfg!(feature = "checks"));
    aside.refill(4, Attempt::MayGrow).unwrap();
    assert!(aside.len() >= 4);
    aside.give_back();
    let mut none = cache.prefill(0, Attempt::MayGrow).unwrap();
    assert_eq!(none.pop("d".to_owned()), Err("d".to_owned()));
    drop(none);
    for (name, expected) in names.into_iter().zip(["a", "b", "c"]) {
        // SAFETY: the value is the test's.
        assert_eq!(unsafe { name.as_ref() }, expected);
        // SAFETY: as above, and it is not used any more.
        unsafe { cache.free_attempt(name, Attempt::TryLock) };
    }
    cache.destroy().expect("nothing is out");
    assert_eq!(pages.outstanding(), 0);
}

/// A forgotten handle loses its objects and its memory, and nothing else.
#[test]
fn h12_a_forgotten_handle_is_a_leak() {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(1), ManualGp::new());
    // SAFETY: the cache is dropped below, before what it borrows ends.
    let cache = unsafe { RawCache::new_scoped(config(), &cpus, &pages, &gp) }.unwrap();
    let aside = cache.prefill(CAP, Attempt::MayGrow).unwrap();
    let live = aside.len();
    std::mem::forget(aside);
    let busy = cache.destroy().expect_err("objects are lost");
    assert_eq!(busy.live, live);
    drop(busy);
    assert!(
        pages.outstanding() >= 1,
        "the slab of the lost objects stays"
    );
}

/// What is set aside counts as allocated by whoever prefills, and from a pop on by whoever popped.
#[test]
fn h12_l15_what_is_set_aside_is_live_and_has_an_owner() {
    with_cache(4, config().checks(Checks::all()), |cache, _, pages, _| {
        const BEFORE: u32 = line!();
        let mut aside = cache.prefill(2 * CAP, Attempt::MayGrow).unwrap();
        let object = aside.pop().unwrap();
        let lines = || -> Vec<_> {
            let report = cache.leak_report();
            let sites = report.sites().iter();
            sites
                .map(|s| (s.allocated_by.unwrap().line() - BEFORE, s.objects))
                .collect()
        };
        let mut now = lines();
        now.sort_unstable();
        assert_eq!(now, [(1, 2 * CAP - 1), (2, 1)]);
        // Nothing of it needs memory, and what is left is free again.
        pages.set_failure(Failure::From(0));
        aside.give_back();
        assert_eq!(lines(), [(2, 1)]);
        assert_eq!((cache.stats().live, cache.stats().in_sheaves), (1, 0));
        free(cache, [object]);
    });
}
