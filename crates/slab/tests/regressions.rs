//! Bugs that slab allocators had, by the row of the reference that tells of them.

#![cfg(not(loom))]

mod common;
#[path = "common/one_cache.rs"]
mod one_cache;

use common::{Canary, Failure, Hand, Pages};
use one_cache::{Raw, with_cache};
use pagealloc::{Attempt, Fixed, Zone};
use rcu_core::GracePeriod;
use rcu_core::cpu::{Cpus, OneCpu, Threads};
use rcu_core::manual::ManualGp;
use slab::{CacheConfig, Checks, RawCache};
use std::alloc::Layout;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

const CAP: usize = 5;

fn config() -> CacheConfig {
    CacheConfig::new("regression", Layout::from_size_align(64, 8).unwrap()).sheaf_capacity(CAP)
}

/// Of a cache whose sheaves, or choice of slabs, are what is tested.
fn unchecked() -> CacheConfig {
    config().checks(Checks::empty())
}

fn alloc(cache: &Raw<'_>, n: usize) -> Vec<NonNull<u8>> {
    let mut out = vec![MaybeUninit::uninit(); n];
    cache.alloc_bulk(&mut out, Attempt::MayGrow).unwrap();
    // SAFETY: all or nothing, and it was all.
    let objects: Vec<_> = out
        .into_iter()
        .map(|o| unsafe { o.assume_init() })
        .collect();
    for &object in &objects {
        Canary::hand_out(object, |c| cache.gp().poll(c));
    }
    objects
}

fn retire(cache: &Raw<'_>, objects: &[NonNull<u8>]) {
    for &object in objects {
        Canary::retire(object, cache.gp().snapshot());
        // SAFETY: the test had the object.
        unsafe { cache.retire(object) }.expect("memory for sheaves is there");
    }
}

fn free(cache: &Raw<'_>, objects: &[NonNull<u8>]) {
    for &object in objects {
        Canary::free(object);
        // SAFETY: the test had the object.
        unsafe { cache.free(object) };
    }
}

/// The barrier of one cache forgot to wait for what its sheaves had already handed to RCU.
#[test]
fn t9_barrier_waits_for_sealed_sheaves_too() {
    with_cache(8, config(), |cache, _, _, gp| {
        let objects = alloc(cache, 4 * CAP + 1);
        retire(cache, &objects);
        assert_eq!(cache.waiting_objects(), 4 * CAP);
        assert_eq!(cache.stats().waiting, 4 * CAP + 1);
        let before = gp.grace_periods();
        cache.barrier();
        assert!(gp.grace_periods() > before);
        assert_eq!(cache.stats().waiting, 0);
    });
}

/// A barrier skipped CPUs whose sheaf looked absent while it was being detached.
#[test]
fn h10_t15_barrier_visits_every_slot() {
    with_cache(8, config(), |cache, cpus, _, _| {
        for slot in 0..8 {
            cpus.go(Some(slot));
            let objects = alloc(cache, CAP + slot as usize);
            retire(cache, &objects);
            if slot % 3 == 0 {
                cpus.bounce();
            }
        }
        cpus.go(None);
        cache.barrier();
        assert_eq!(cache.stats().waiting, 0);
        assert_eq!(cache.stats().live, 0);
    });
}

/// A thread that ends puts what the barn has too much of back into the slabs; a barrier beside it waits for that too.
#[test]
fn t15_nothing_is_on_its_way_when_a_barrier_returns() {
    let (pages, gp) = (Pages::new(), ManualGp::auto());
    // SAFETY: the cache is dropped below, before what it borrows ends.
    let cache = unsafe { RawCache::new_scoped(config().ask_after(CAP), Threads, &pages, &gp) };
    let cache = cache.unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // Takes a slot and gives it back: its end trims the barn of every cache there is.
                    std::thread::spawn(|| Threads.current()).join().unwrap();
                }
            });
        }
        for _ in 0..300 {
            let objects: Vec<_> = (0..40 * CAP).map(|_| cache.alloc().unwrap()).collect();
            for object in objects {
                // SAFETY: the thread had the object.
                if let Err(object) = unsafe { cache.retire(object) } {
                    // SAFETY: there are no readers.
                    unsafe { cache.free(object) };
                }
            }
            cache.barrier();
            let stats = cache.stats();
            if (stats.live, stats.waiting) != (0, 0) {
                done.store(true, Ordering::Relaxed);
                panic!("a barrier left something on its way: {stats}");
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// While other threads seal, flush and wait for the same sheaves, what was retired before a barrier is free after it.
#[test]
fn t15_barriers_do_not_overtake_each_other() {
    const NOISE: usize = 2;
    let (pages, gp) = (Pages::new(), ManualGp::auto());
    // SAFETY: the cache is dropped below, before what it borrows ends.
    let cache = unsafe { RawCache::new_scoped(config().ask_after(CAP), Threads, &pages, &gp) };
    let cache = cache.unwrap();
    let retire = |object: NonNull<u8>| {
        // SAFETY: the thread had the object.
        if let Err(object) = unsafe { cache.retire(object) } {
            // SAFETY: there are no readers.
            unsafe { cache.free(object) };
        }
    };
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        for _ in 0..NOISE {
            s.spawn(|| {
                // One object a thread waits at any time.
                while !done.load(Ordering::Relaxed) {
                    retire(cache.alloc().unwrap());
                    cache.reap();
                    cache.barrier();
                }
            });
        }
        for _ in 0..300 {
            let objects: Vec<_> = (0..10 * CAP).map(|_| cache.alloc().unwrap()).collect();
            objects.into_iter().for_each(retire);
            cache.barrier();
            let waiting = cache.stats().waiting;
            if waiting > NOISE {
                done.store(true, Ordering::Relaxed);
            }
            assert!(waiting <= NOISE, "{waiting} objects slipped through");
        }
        done.store(true, Ordering::Relaxed);
    });
    cache.barrier();
    assert_eq!(cache.stats().waiting, 0);
    drop(cache);
    assert_eq!(pages.outstanding(), 0);
}

/// A sheaf that a refill had filled in part was freed as if it were empty.
#[test]
fn t16_partial_sheaf_is_not_lost() {
    for fail_after in 0..12 {
        with_cache(8, config().sheaf_capacity(100), |cache, _, pages, _| {
            let mut objects = alloc(cache, 3);
            pages.set_failure(Failure::From(pages.calls() + fail_after));
            while let Ok(object) = cache.alloc() {
                Canary::hand_out(object, |_| true);
                objects.push(object);
                assert_eq!(cache.stats().live, objects.len());
            }
            let stats = cache.stats();
            assert_eq!(
                stats.live,
                stats.slabs * stats.objects_per_slab,
                "unused: {stats}"
            );
            free(cache, &objects);
            pages.set_failure(Failure::Never);
            assert_eq!(cache.stats().live, 0);
        });
    }
}

/// An empty sheaf leaked on the way back, and an inverted condition sent every sheaf the slow way.
#[test]
fn t17_sheaves_circulate() {
    with_cache(8, unchecked().ask_after(CAP), |cache, _, pages, gp| {
        let mut calls = 0;
        for round in 0..1000 {
            let objects = alloc(cache, CAP);
            retire(cache, &objects);
            gp.advance();
            if round == 50 {
                calls = pages.calls();
            }
        }
        assert_eq!(pages.calls(), calls, "the steady state asks for memory");
        let stats = cache.stats();
        assert!(stats.sheaves_recycled > 900, "{stats}");
    });
}

/// The barn's limits are checked as a hint: they may be passed for a moment, not for good.
#[test]
fn h1_t18_barn_limits_are_soft() {
    with_cache(8, config(), |cache, cpus, _, gp| {
        for slot in 0..8 {
            cpus.go(Some(slot));
            let objects = alloc(cache, 30 * CAP);
            let (now, later) = objects.split_at(15 * CAP);
            free(cache, now);
            retire(cache, later);
        }
        let slots = cpus_of(cache);
        for _ in 0..4 {
            gp.advance();
            cache.reap();
            let stats = cache.stats();
            assert!(
                stats.barn_full <= 10 + slots && stats.barn_empty <= 10 + slots,
                "{stats}"
            );
        }
        assert_eq!(cache.stats().waiting, 0);
    });
}

fn cpus_of(cache: &Raw<'_>) -> usize {
    use rcu_core::cpu::Cpus;
    cache.cpus().nr_slots()
}

/// A cache was taken down while objects of it waited for their grace period.
#[test]
fn t19_destroy_waits() {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(2), ManualGp::new());
    // SAFETY: the cache is destroyed below, before what it borrows ends.
    let cache = unsafe { RawCache::new_scoped(config(), &cpus, &pages, &gp) }.unwrap();
    let objects = alloc(&cache, 3 * CAP);
    retire(&cache, &objects);
    assert_eq!(gp.grace_periods(), 0);
    cache.destroy().expect("what was retired is not out");
    assert!(gp.grace_periods() >= 1);
    assert_eq!(pages.outstanding(), 0);
}

/// A cache with objects out is given back; one that is dropped loses just their slabs.
#[test]
fn l14_destroying_a_busy_cache_gives_it_back() {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(2), ManualGp::new());
    // SAFETY: the cache is dropped below, before what it borrows ends.
    let cache = unsafe { RawCache::new_scoped(config(), &cpus, &pages, &gp) }.unwrap();
    let objects = alloc(&cache, 3);
    let busy = cache.destroy().expect_err("three objects are out");
    assert_eq!(busy.live, 3);
    assert!(busy.to_string().contains("3 objects live"));
    let more = alloc(&busy.cache, 100);
    free(&busy.cache, &more);
    drop(busy);
    assert_eq!(pages.outstanding(), 1, "the slab with the three objects");
    objects.into_iter().for_each(Canary::check);
}

/// The array of retired objects becomes the allocation sheaf as it is.
#[test]
fn h7_a_ripe_sheaf_becomes_the_allocation_sheaf() {
    with_cache(8, unchecked(), |cache, _, _, gp| {
        let objects = alloc(cache, CAP + 1);
        let rest = alloc(cache, 2 * CAP);
        retire(cache, &objects);
        // Sealed, not ripe: the next allocations come from elsewhere.
        let mut got = alloc(cache, CAP);
        assert!(got.iter().all(|o| !objects.contains(o)));
        gp.advance();
        let spare = cache.stats().in_sheaves;
        got.extend(alloc(cache, spare));
        let again = alloc(cache, CAP);
        let sorted = |objects: &[_]| {
            let mut objects = objects.to_vec();
            objects.sort_unstable();
            objects
        };
        assert_eq!(sorted(&again), sorted(&objects[..CAP]), "the array");
        assert_eq!(cache.stats().sheaves_recycled, 1);
        free(cache, &got);
        free(cache, &again);
        free(cache, &rest);
    });
}

/// Nothing is asked for until enough waits; then one grace period serves all.
#[test]
fn grace_periods_are_asked_for_by_the_threshold() {
    with_cache(8, config().ask_after(10 * CAP), |cache, _, _, gp| {
        let objects = alloc(cache, 20 * CAP);
        retire(cache, &objects[..10 * CAP]);
        assert!(!gp.is_wanted());
        retire(cache, &objects[10 * CAP..10 * CAP + 1]);
        assert!(gp.is_wanted());
        gp.advance();
        assert!(!gp.is_wanted());
        // While the head of the line is ripe there is no need to ask.
        retire(cache, &objects[10 * CAP + 1..]);
        assert!(!gp.is_wanted());
    });
}

/// The monitor seals what has been quiet, and asks.
#[test]
fn reaping_frees_a_quiet_slot() {
    with_cache(8, config(), |cache, cpus, _, gp| {
        let objects = alloc(cache, 2);
        retire(cache, &objects);
        cpus.go(Some(1));
        assert_eq!(cache.reap(), 2);
        assert!(!gp.is_wanted(), "seen for the first time");
        assert_eq!(cache.reap(), 2);
        assert!(gp.is_wanted());
        gp.advance();
        assert_eq!(cache.reap(), 0);
        assert_eq!(cache.waiting_objects(), 0);
    });
}

/// A thread without a slot can allocate and free, and is told that it cannot retire.
#[test]
fn without_a_slot_the_shared_path_serves() {
    with_cache(8, config(), |cache, cpus, _, _| {
        cpus.go(None);
        let objects = alloc(cache, 4 * CAP);
        // SAFETY: the test had the object.
        assert_eq!(unsafe { cache.retire(objects[0]) }, Err(objects[0]));
        free(cache, &objects);
        assert_eq!(cache.stats().in_sheaves, 0);
    });
}

/// Retiring without memory for a sheaf gives the object back and loses nothing.
#[test]
fn h9_retiring_without_memory_gives_the_object_back() {
    with_cache(8, config().sheaf_capacity(509), |cache, cpus, pages, gp| {
        let objects = alloc(cache, 1200);
        cpus.go(Some(1));
        pages.set_failure(Failure::From(0));
        // SAFETY: the test had the object.
        assert_eq!(unsafe { cache.retire(objects[0]) }, Err(objects[0]));
        pages.set_failure(Failure::Never);
        retire(cache, &objects[..509]);
        pages.set_failure(Failure::From(0));
        // SAFETY: the test had the object.
        assert_eq!(unsafe { cache.retire(objects[509]) }, Err(objects[509]));
        // The full sheaf was sealed all the same.
        assert_eq!(cache.waiting_objects(), 509);
        gp.advance();
        pages.set_failure(Failure::Never);
        retire(cache, &objects[509..]);
    });
}

/// A slot's end hands over everything, and what waits keeps waiting.
#[test]
fn h11_a_slot_that_ends_hands_over_what_waits() {
    with_cache(8, config(), |cache, cpus, _, gp| {
        let objects = alloc(cache, 3 * CAP + 2);
        retire(cache, &objects);
        cpus.bounce();
        cpus.go(Some(5));
        assert_eq!(cache.stats().waiting, 3 * CAP + 2);
        let others = alloc(cache, 10 * CAP);
        assert!(others.iter().all(|o| !objects.contains(o)));
        free(cache, &others);
        gp.advance();
        cache.shrink(usize::MAX);
        assert_eq!(cache.stats().waiting, 0);
        assert_eq!(cache.stats().slabs, 0);
    });
}

/// Some empty slabs are kept, the others are given back.
#[test]
fn l3_as_many_empty_slabs_are_kept_as_configured() {
    with_cache(8, unchecked().min_partial(2), |cache, cpus, _, _| {
        cpus.go(None);
        let per_slab = cache.stats().objects_per_slab;
        for _ in 0..10 {
            let objects = alloc(cache, 5 * per_slab);
            assert_eq!(cache.stats().slabs, 5);
            free(cache, &objects);
            assert_eq!(cache.stats().slabs, 2);
        }
        assert_eq!(cache.shrink(usize::MAX), 2);
    });
}

/// The fullest slab is refilled from first, so that others can become empty.
#[test]
fn l13_refills_take_from_the_fullest_slab() {
    with_cache(8, unchecked(), |cache, cpus, _, _| {
        cpus.go(None);
        let per_slab = cache.stats().objects_per_slab;
        let mut objects = alloc(cache, 2 * per_slab);
        objects.sort_unstable();
        // Nearly all of the first slab, and little of the second.
        let keep = objects.split_off(per_slab / 4 * 3);
        free(cache, &objects);
        let one = keep[per_slab - 1];
        let mut keep = keep;
        keep.retain(|&o| o != one);
        free(cache, &[one]);
        assert_eq!(alloc(cache, 1), [one]);
        keep.push(one);
        free(cache, &keep);
    });
}

/// The same code on one CPU, over a fixed piece of memory: what a kernel without threads has.
#[test]
fn one_cpu_and_a_fixed_region_suffice() {
    let mut memory = vec![MaybeUninit::<u8>::uninit(); 1 << 20];
    // SAFETY: this value is used by this thread only.
    let cpu = unsafe { OneCpu::new() };
    // SAFETY: the zone is dropped before the memory is.
    let source = unsafe { Fixed::borrowed(&mut memory) }.unwrap();
    let zone = Zone::new(cpu, source).unwrap();
    let gp = ManualGp::new();
    // Frames would take the memory that is counted.
    let config = config().checks(Checks::empty());
    // SAFETY: the cache is destroyed below, before what it borrows ends.
    let cache = unsafe { RawCache::new_scoped(config, cpu, &zone, &gp) }.unwrap();
    let mut objects: Vec<_> = std::iter::from_fn(|| cache.alloc().ok()).collect();
    assert!(objects.len() > (1 << 20) / 64 / 2, "{}", cache.stats());
    for object in objects.drain(..) {
        // SAFETY: the test had the object.
        if let Err(object) = unsafe { cache.retire(object) } {
            // SAFETY: as above; there are no readers.
            unsafe { cache.free(object) };
        }
    }
    cache.destroy().expect("nothing is out");
    zone.drain_all();
    assert_eq!(zone.nr_allocated(), 0);
}
