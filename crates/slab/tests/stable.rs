//! Type-stable caches from below: what waits, what does not, and what is never written to.

#![cfg(not(loom))]

#[path = "../../rcu-core/tests/common/aborts.rs"]
mod aborts;
mod common;

use aborts::aborts;
use common::{Hand, Pages};
use rcu_core::cpu::Threads;
use rcu_core::manual::ManualGp;
use rcu_core::{GracePeriod, NoReaders};
use slab::{Cache, CacheConfig, Checks, CreateError, RawCache, Stability, StableCache, TypeStable};
use std::alloc::Layout;
use std::collections::BTreeSet;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const CAP: usize = 5;
/// Objects of a slab: seven words and the one behind them that a free which meets a lock may write, of a page.
const IN_SLAB: usize = 64;

type Raw<'a> = RawCache<&'a Hand, &'a Pages, &'a ManualGp>;

const MARK: u64 = 0x5eed_5eed_5eed_5eed;

/// # Safety
/// `object` is the memory of eight words.
unsafe fn build(object: NonNull<u8>) {
    // SAFETY: the caller's debt.
    unsafe { object.cast::<[u64; 7]>().write([MARK; 7]) };
}

fn config(stability: Stability) -> CacheConfig {
    let config = CacheConfig::new("stable", Layout::new::<[u64; 7]>())
        .sheaf_capacity(CAP)
        .min_partial(1)
        .checks(Checks::empty())
        .stability(stability);
    // SAFETY: `build` writes seven words.
    unsafe { config.constructor(build) }
}

/// Runs `test` on a cache of two slots, and destroys it; afterwards every page must be back.
fn with_cache(config: CacheConfig, test: impl FnOnce(&Raw<'_>, &Hand, &Pages, &ManualGp)) {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(2), ManualGp::new());
    // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
    let cache = unsafe { RawCache::new_scoped(config, &cpus, &pages, &gp) }.unwrap();
    test(&cache, &cpus, &pages, &gp);
    cache.destroy().expect("nothing is out");
    assert_eq!(pages.outstanding(), 0);
}

fn alloc(cache: &Raw<'_>, n: usize) -> Vec<NonNull<u8>> {
    (0..n).map(|_| cache.alloc().unwrap()).collect()
}

fn free(cache: &Raw<'_>, objects: impl IntoIterator<Item = NonNull<u8>>) {
    for object in objects {
        // SAFETY: the test had the object; nobody reads but by knowing what memory it is.
        unsafe { cache.free(object) };
    }
}

fn first_word(object: NonNull<u8>) -> u64 {
    // SAFETY: objects are built, and their pages are out, when this is called.
    unsafe { object.cast::<u64>().read() }
}

#[test]
fn l5_post_2004_an_object_is_used_again_at_once_and_its_pages_wait() {
    with_cache(config(Stability::Type), |cache, _, pages, gp| {
        let object = cache.alloc().unwrap();
        free(cache, [object]);
        assert_eq!(cache.alloc().unwrap(), object, "reused at once");
        free(cache, [object]);

        let objects = alloc(cache, 6 * IN_SLAB);
        let all = pages.outstanding();
        free(cache, objects);
        assert_eq!(cache.shrink(usize::MAX), 0, "readers may look");
        let stats = cache.stats();
        assert_eq!((stats.slabs, stats.slabs_waiting), (0, 6), "{stats:?}");
        assert!(stats.slab_bytes >= 6 * 4096);
        // Sheaves went; slabs did not.
        gp.begin();
        gp.end();
        gp.begin();
        let before = pages.outstanding();
        assert!(before >= 6 && before <= all);
        assert_eq!(cache.reap(), 0, "their grace period has passed");
        assert_eq!(pages.outstanding(), before - 6);
        assert_eq!(cache.stats().slabs_waiting, 0);
        gp.end();
    });
}

#[test]
fn l5_a_grace_period_that_began_before_does_not_count() {
    with_cache(config(Stability::Type), |cache, _, _, gp| {
        let objects = alloc(cache, 2 * IN_SLAB);
        gp.begin();
        free(cache, objects);
        cache.shrink(usize::MAX);
        gp.end();
        assert_eq!(cache.reap(), 2, "that one had begun before");
        assert!(gp.is_wanted(), "so another is asked for");
        gp.advance();
        assert_eq!(cache.reap(), 0);
    });
}

#[test]
fn l5_what_waits_is_revived_before_pages_are_asked_for() {
    with_cache(config(Stability::Type), |cache, _, pages, gp| {
        let objects: BTreeSet<_> = alloc(cache, 3 * IN_SLAB).into_iter().collect();
        free(cache, objects.iter().copied());
        cache.shrink(usize::MAX);
        assert_eq!(cache.stats().slabs_waiting, 3);
        let pages_out = pages.outstanding();
        let again: BTreeSet<_> = alloc(cache, 3 * IN_SLAB).into_iter().collect();
        assert_eq!(again, objects, "the same memory");
        assert!(
            pages.outstanding() <= pages_out + 1,
            "but for a page of sheaves"
        );
        let stats = cache.stats();
        assert_eq!((stats.slabs, stats.slabs_waiting), (3, 0));
        // A cookie from their former death must not count for the next one.
        gp.advance();
        free(cache, again);
        cache.shrink(usize::MAX);
        assert_eq!(cache.stats().slabs_waiting, 3);
        assert_eq!(cache.reap(), 3);
    });
}

#[test]
fn l6_memory_that_waits_is_bounded_by_what_was_in_use() {
    with_cache(config(Stability::Type), |cache, _, _, gp| {
        for round in 0..20 {
            let objects = alloc(cache, 4 * IN_SLAB);
            free(cache, objects);
            if round % 3 == 0 {
                cache.shrink(usize::MAX);
            }
            let stats = cache.stats();
            // No grace period ends: the same slabs die and come back.
            assert!(stats.slabs + stats.slabs_waiting <= 5, "{stats:?}");
        }
        assert_eq!(gp.grace_periods(), 0);
    });
}

#[test]
fn l6_grace_periods_are_asked_for_by_what_was_given_up() {
    with_cache(config(Stability::Type), |cache, _, pages, gp| {
        let slabs = 600 << 10 >> 12;
        let objects = alloc(cache, slabs * IN_SLAB);
        free(cache, objects);
        assert!(gp.is_wanted(), "{:?}", cache.stats());
        let before = pages.outstanding();
        gp.advance();
        // Whatever puts objects into their slabs lets them go: more than the barn keeps.
        let few = alloc(cache, 100 * CAP);
        free(cache, few);
        assert!(pages.outstanding() < before - 100);
    });
}

#[test]
fn l6_a_barrier_waits_for_pages_too() {
    with_cache(config(Stability::Type), |cache, _, pages, gp| {
        let objects = alloc(cache, 3 * IN_SLAB);
        free(cache, objects);
        cache.shrink(usize::MAX);
        let before = pages.outstanding();
        cache.barrier();
        assert!(gp.grace_periods() > 0);
        assert_eq!(pages.outstanding(), before - 3);
    });
}

#[test]
fn l6_the_constructor_runs_once_for_each_object_of_a_slab() {
    static HERE: AtomicUsize = AtomicUsize::new(0);
    /// # Safety
    /// As for `build`.
    unsafe fn count(object: NonNull<u8>) {
        HERE.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's debt.
        unsafe { build(object) };
    }
    // SAFETY: `count` writes seven words.
    let config = unsafe { config(Stability::Type).constructor(count) };
    with_cache(config, |cache, _, _, _| {
        for _ in 0..50 {
            let objects = alloc(cache, IN_SLAB);
            assert!(objects.iter().all(|&o| first_word(o) == MARK));
            free(cache, objects);
        }
        let stats = cache.stats();
        let slabs = stats.slabs + stats.slabs_waiting;
        assert_eq!(HERE.load(Ordering::Relaxed), slabs * IN_SLAB);
    });
    // A constructor without stability: the same, by slab.
    let config = CacheConfig::new("built", Layout::new::<[u64; 7]>()).min_partial(0);
    // SAFETY: as above.
    let config = unsafe { config.checks(Checks::empty()).constructor(count) };
    HERE.store(0, Ordering::Relaxed);
    with_cache(config, |cache, _, _, _| {
        let object = cache.alloc().unwrap();
        assert_eq!(
            (first_word(object), HERE.load(Ordering::Relaxed) % IN_SLAB),
            (MARK, 0)
        );
        free(cache, [object]);
    });
}

#[test]
fn t22_a_free_object_is_never_written_to() {
    with_cache(config(Stability::Type), |cache, cpus, _, gp| {
        let objects = alloc(cache, 3 * IN_SLAB);
        for (n, object) in objects.iter().enumerate() {
            // SAFETY: the test has the object.
            unsafe { object.cast::<[u64; 7]>().write([n as u64; 7]) };
        }
        let intact = || {
            objects.iter().enumerate().all(|(n, object)| {
                // SAFETY: the pages are out until a grace period has passed, and nobody writes.
                unsafe { object.cast::<[u64; 7]>().read() == [n as u64; 7] }
            })
        };
        free(cache, objects.iter().copied());
        assert!(intact(), "in sheaves and slabs");
        cpus.bounce();
        cache.reap();
        cache.shrink(usize::MAX);
        assert!(intact(), "while their pages wait");
        let again = alloc(cache, 3 * IN_SLAB);
        assert!(intact(), "and when they are out again");
        free(cache, again);
        cache.shrink(usize::MAX);
        assert_eq!(gp.grace_periods(), 0);
        assert!(intact());
    });
}

#[test]
fn l7_delayed_objects_wait_too() {
    with_cache(config(Stability::Delayed), |cache, _, _, gp| {
        let first: BTreeSet<_> = alloc(cache, 3 * CAP).into_iter().collect();
        free(cache, first.iter().copied());
        assert_eq!((cache.stats().live, cache.stats().waiting), (0, 3 * CAP));
        let second: BTreeSet<_> = alloc(cache, 3 * CAP).into_iter().collect();
        assert!(first.is_disjoint(&second), "reused before a grace period");
        gp.advance();
        let third: BTreeSet<_> = alloc(cache, 2 * CAP).into_iter().collect();
        assert!(third.is_subset(&first), "reused after one");
        free(cache, second);
        free(cache, third);
        let mut many = [std::mem::MaybeUninit::uninit(); 2 * CAP];
        cache
            .alloc_bulk(&mut many, pagealloc::Attempt::MayGrow)
            .unwrap();
        // SAFETY: filled just now.
        let mut many = many.map(|o| unsafe { o.assume_init() });
        // SAFETY: the objects are the test's.
        unsafe { cache.free_bulk(&mut many) };
        assert_eq!(cache.stats().live, 0);
    });
}

#[test]
fn l7_a_delayed_object_that_finds_no_room_to_wait_is_free_at_once() {
    with_cache(config(Stability::Delayed), |cache, _, pages, _| {
        let objects = alloc(cache, 40 * CAP);
        pages.set_failure(common::Failure::From(0));
        free(cache, objects);
        pages.set_failure(common::Failure::Never);
        assert_eq!(cache.stats().live, 0, "nothing is lost");
        cache.barrier();
    });
}

#[test]
fn t9_destroy_waits_for_delayed_objects_and_then_for_their_pages() {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(2), ManualGp::new());
    // SAFETY: the cache is destroyed below, before what it borrows ends.
    let cache = unsafe { RawCache::new_scoped(config(Stability::Delayed), &cpus, &pages, &gp) };
    let cache = cache.unwrap();
    for slot in 0..2 {
        cpus.go(Some(slot));
        let objects = alloc(&cache, 2 * IN_SLAB);
        free(&cache, objects);
    }
    assert_eq!(gp.grace_periods(), 0);
    cache.destroy().expect("what waits is not out");
    assert!(gp.grace_periods() >= 2, "first the objects, then the pages");
    assert_eq!(pages.outstanding(), 0);
}

#[test]
fn t19_post_2004_destroy_and_drop_wait_for_pages() {
    for drops in [false, true] {
        let (pages, cpus, gp) = (Pages::new(), Hand::new(1), ManualGp::new());
        // SAFETY: the cache is destroyed below, before what it borrows ends.
        let cache = unsafe { RawCache::new_scoped(config(Stability::Type), &cpus, &pages, &gp) };
        let cache = cache.unwrap();
        let objects = alloc(&cache, IN_SLAB);
        free(&cache, objects);
        assert_eq!(gp.grace_periods(), 0);
        if drops {
            drop(cache);
        } else {
            cache.destroy().expect("nothing is out");
        }
        assert!(gp.grace_periods() >= 1);
        assert_eq!(pages.outstanding(), 0);
    }
}

#[test]
fn l6_post_2004_what_writes_to_free_objects_is_refused() {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(1), ManualGp::new());
    let refusal = |checks: Checks, stability: Stability| {
        // SAFETY: it is not made, or dropped at once.
        let made =
            unsafe { RawCache::new_scoped(config(stability).checks(checks), &cpus, &pages, &gp) };
        made.err()
    };
    for stability in [Stability::Type, Stability::Delayed] {
        for bad in [
            Checks::POISON,
            Checks::QUARANTINE,
            Checks::POISON | Checks::QUARANTINE,
        ] {
            let refused = refusal(bad | Checks::RED_ZONE, stability);
            assert_eq!(refused, Some(CreateError::NotTypeStable(bad)));
        }
        assert_eq!(refusal(Checks::AT_ONCE | Checks::RED_ZONE, stability), None);
    }
    assert_eq!(pages.outstanding(), 0);
    // What the `checks` feature asks for of every cache is not held against this one.
    let config = CacheConfig::new("default", Layout::new::<u64>()).stability(Stability::Type);
    // SAFETY: dropped at once.
    assert!(unsafe { RawCache::new_scoped(config, &cpus, &pages, &gp) }.is_ok());
}

struct Word(AtomicU64);

impl TypeStable for Word {
    fn construct() -> Self {
        Self(AtomicU64::new(0))
    }
}

#[test]
fn l6_only_a_stable_cache_is_type_stable() {
    let pages: &'static Pages = Box::leak(Box::new(Pages::new()));
    let config = Cache::<u64, Threads, &Pages, NoReaders>::config("values");
    let values = Cache::<u64, _, _, _>::with_config(
        config.stability(Stability::Type),
        Threads,
        pages,
        NoReaders,
    );
    assert_eq!(values.err(), Some(CreateError::WritesValues));
    let made =
        |config| StableCache::<Word, _, _, _>::with_config(config, Threads, pages, NoReaders).err();
    let config = StableCache::<Word, Threads, &Pages, NoReaders>::config("words");
    let none = CreateError::NotTypeStable(Checks::empty());
    assert_eq!(made(config.stability(Stability::None)), Some(none));
    let other = CacheConfig::new("other", Layout::new::<[u64; 9]>()).stability(Stability::Type);
    assert_eq!(made(other), Some(CreateError::WrongLayout));
    assert_eq!(made(config.stability(Stability::Delayed)), None);
    assert_eq!(pages.outstanding(), 0);
}

#[test]
fn l5_without_readers_references_find_their_object() {
    let pages: &'static Pages = Box::leak(Box::new(Pages::new()));
    let cache = StableCache::<Word, _, _, _>::new("words", Threads, pages, NoReaders).unwrap();
    let one = cache.alloc(|w| w.0.store(1, Ordering::Relaxed)).unwrap();
    let weak = one.downgrade();
    let again = weak.pin().unwrap();
    assert!(again.ptr_eq(&one) && again.generation() == weak.generation());
    drop((one, again));
    assert!(weak.pin().is_none(), "dead");
    let two = cache.alloc(|w| w.0.store(2, Ordering::Relaxed)).unwrap();
    assert!(weak.pin().is_none(), "another by now");
    assert_ne!(two.downgrade(), weak);
    assert_eq!(two.downgrade(), two.clone().downgrade());
    drop((two, weak));
    assert_eq!(cache.raw().stats().live, 0);
    cache.destroy().unwrap();
    assert_eq!(pages.outstanding(), 0);
}

#[test]
fn l5_a_reference_holds_the_pages_and_not_the_object() {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(1), ManualGp::new());
    let config = StableCache::<Word, &Hand, &Pages, &ManualGp>::config("words").min_partial(0);
    // SAFETY: the cache is destroyed below, before what it borrows ends.
    let cache = unsafe { StableCache::<Word, _, _, _>::new_scoped(config, &cpus, &pages, &gp) };
    let cache = cache.unwrap();
    let live: Vec<_> = (0..2000).map(|_| cache.alloc(|_| ()).unwrap()).collect();
    let weak = live[1000].downgrade();
    let twin = weak.clone();
    drop(live);
    assert_eq!(cache.raw().stats().live, 0, "the objects are free");
    cache.raw().shrink(usize::MAX);
    gp.advance();
    cache.raw().reap();
    assert_eq!(cache.raw().stats().slabs_waiting, 1, "one slab is held");
    assert!(weak.pin().is_none());
    drop(weak);
    gp.advance();
    cache.raw().reap();
    assert_eq!(cache.raw().stats().slabs_waiting, 1, "by the other");
    // What is held is used again like the rest.
    let object = cache.alloc(|w| w.0.store(5, Ordering::Relaxed)).unwrap();
    let stats = cache.raw().stats();
    assert_eq!((stats.slabs, stats.slabs_waiting), (1, 0));
    assert!(twin.pin().is_none_or(|pinned| pinned.ptr_eq(&object)));
    drop((object, twin));
    cache.raw().shrink(usize::MAX);
    gp.advance();
    cache.raw().reap();
    assert_eq!(cache.raw().stats().slabs_waiting, 0);
    cache.destroy().unwrap();
    assert_eq!(pages.outstanding(), 0);
}

#[test]
fn t20_a_panic_half_way_gives_the_object_back() {
    let pages: &'static Pages = Box::leak(Box::new(Pages::new()));
    let cache = StableCache::<Word, _, _, _>::new("words", Threads, pages, NoReaders).unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = cache.alloc(|_| panic!("half way"));
    }));
    assert!(panicked.is_err());
    assert_eq!(cache.raw().stats().live, 0);
    let forgotten = cache.alloc(|_| ()).unwrap();
    std::mem::forget(forgotten);
    let busy = cache.destroy().unwrap_err();
    assert_eq!(busy.live, 1);
}

#[test]
fn l6_a_constructor_that_panics_ends_the_program() {
    struct Fails;
    impl TypeStable for Fails {
        fn construct() -> Self {
            panic!("no")
        }
    }
    let deed = || {
        let pages: &'static Pages = Box::leak(Box::new(Pages::new()));
        let cache = StableCache::<Fails, _, _, _>::new("fails", Threads, pages, NoReaders).unwrap();
        let _ = cache.alloc(|_| ());
    };
    let test = "l6_a_constructor_that_panics_ends_the_program";
    aborts(test, deed, &["constructor of cache fails"]);
}
