//! What safe code may do to the caches: nothing undefined, nothing freed twice, nothing lost that is said to be back.

#![cfg(not(loom))]

#[path = "../../rcu-core/tests/common/aborts.rs"]
mod aborts;
mod common;

use aborts::aborts;
use common::Pages;
use pagealloc::Attempt;
use rcu_core::NoReaders;
use rcu_core::cpu::Threads;
use rcu_core::manual::ManualGp;
#[cfg(all(feature = "std", target_os = "linux", not(miri)))]
use rcu_core::{Cookie, GracePeriod};
use slab::{
    Cache, CacheConfig, Checks, CreateError, RawCache, Stability, StableCache, StableCell,
    TypeStable,
};
use std::alloc::Layout;
use std::mem::forget;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

fn pages() -> &'static Pages {
    Box::leak(Box::new(Pages::new()))
}

fn gp() -> &'static ManualGp {
    Box::leak(Box::new(ManualGp::new()))
}

struct Word(AtomicU64);

impl TypeStable for Word {
    fn construct() -> Self {
        Self(AtomicU64::new(0))
    }
}

type Words<G> = StableCache<Word, Threads, &'static Pages, G>;

/// Layouts that `Layout` allows and no address space has room for.
fn impossible() -> impl Iterator<Item = Layout> {
    let top = 1_usize << (usize::BITS - 1);
    let most = isize::MAX as usize;
    let aligned = [top, top >> 1, top >> 2].map(|align| (0, align));
    [(most, 1), (most - 4095, 4096), (most / 2, 1), (1, top >> 1)]
        .into_iter()
        .chain(aligned)
        .map(|(size, align)| Layout::from_size_align(size, align).unwrap())
}

#[test]
fn layouts_that_cannot_be_are_refused_without_a_panic() {
    let pages = pages();
    for layout in impossible() {
        for stability in [Stability::None, Stability::Type] {
            for checks in [Checks::empty(), Checks::AT_ONCE, Checks::RED_ZONE] {
                let config = CacheConfig::new("impossible", layout);
                let config = config.stability(stability).checks(checks);
                let error = RawCache::new(config, Threads, pages, NoReaders).unwrap_err();
                assert!(matches!(error, CreateError::TooLarge { .. }), "{layout:?}");
            }
        }
    }
    assert_eq!(pages.outstanding(), 0);
}

#[cfg(all(feature = "std", target_os = "linux", not(miri)))]
#[test]
fn memory_that_cannot_be_is_refused_without_a_panic() {
    use pagealloc::{Mmap, Zone};
    let zone: &'static _ = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    let km = slab::Kmalloc::new(Threads, zone, NoReaders).unwrap();
    for layout in impossible() {
        // Nothing at an address that is a multiple of a quarter of all of them may even be had.
        if let Ok(memory) = km.kmalloc(layout) {
            assert!(memory.addr().get().is_multiple_of(layout.align()));
            // SAFETY: allocated just now.
            unsafe { km.kfree(memory) };
        }
        for attempt in [Attempt::PcpOnly, Attempt::TryLock, Attempt::NoWait] {
            assert!(km.kmalloc_attempt(layout, attempt).is_err());
        }
        #[cfg(feature = "allocator-api2")]
        {
            use allocator_api2::alloc::Allocator;
            if let Ok(memory) = km.allocate_zeroed(layout) {
                assert!(
                    memory
                        .cast::<u8>()
                        .addr()
                        .get()
                        .is_multiple_of(layout.align())
                );
                // SAFETY: allocated just now.
                unsafe { km.deallocate(memory.cast(), layout) };
            }
        }
    }
    km.destroy().unwrap();
}

#[test]
fn extreme_configurations_neither_overflow_nor_lose_anything() {
    let (pages, gp) = (pages(), gp());
    for n in [0, 1, usize::MAX / 2, usize::MAX] {
        let config = Cache::<u64, Threads, &Pages, &ManualGp>::config("extreme");
        let config = config
            .sheaf_capacity(1)
            .ask_after(n)
            .min_partial(n)
            .waiting_limit(n.max(1 << 20));
        let cache = Cache::<u64, _, _, _>::with_config(config, Threads, pages, gp).unwrap();
        for _ in 0..100 {
            let value = cache.alloc(7).unwrap();
            // SAFETY: the test's own; nobody reads it.
            unsafe { cache.retire(value) }.unwrap();
        }
        cache.raw().reap();
        cache.raw().shrink(usize::MAX);
        assert!(cache.prefill(0, Attempt::MayGrow).unwrap().is_empty());
        cache.destroy().unwrap();
        assert_eq!(pages.outstanding(), 0, "{n}");
    }
}

#[test]
fn too_many_objects_at_once_give_back_what_was_got() {
    let pages = pages();
    let cache = Cache::<u64, _, _, _>::new("many", Threads, pages, NoReaders).unwrap();
    pages.set_failure(common::Failure::From(pages.calls() + 50));
    assert!(cache.prefill(usize::MAX, Attempt::MayGrow).is_err());
    pages.set_failure(common::Failure::Never);
    let mut some = cache.prefill(3, Attempt::MayGrow).unwrap();
    let before = some.len();
    pages.set_failure(common::Failure::From(pages.calls() + 50));
    assert!(some.refill(usize::MAX, Attempt::MayGrow).is_err());
    pages.set_failure(common::Failure::Never);
    assert!(some.len() >= before, "what there was stays");
    some.give_back();
    cache.destroy().unwrap();
    assert_eq!(pages.outstanding(), 0);
}

/// Tells by its drop that it was dropped, and how.
struct Bomb<'a>(&'a AtomicUsize);

impl Drop for Bomb<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
        panic!("a value's drop");
    }
}

#[test]
fn a_value_whose_drop_panics_leaves_no_object_out() {
    let (pages, drops) = (pages(), AtomicUsize::new(0));
    let cache = Cache::<Bomb<'_>, _, _, _>::new("bombs", Threads, pages, NoReaders).unwrap();
    for attempt in [None, Some(Attempt::TryLock)] {
        let bomb = cache.alloc(Bomb(&drops)).unwrap();
        let freed = catch_unwind(AssertUnwindSafe(|| match attempt {
            // SAFETY: the test's own, not used any more.
            None => unsafe { cache.free(bomb) },
            // SAFETY: as above.
            Some(attempt) => unsafe { cache.free_attempt(bomb, attempt) },
        }));
        assert!(freed.is_err());
        assert_eq!(cache.raw().stats().live, 0);
    }
    assert_eq!(drops.load(Ordering::Relaxed), 2, "once each");
    cache.destroy().unwrap();
    assert_eq!(pages.outstanding(), 0);
}

#[test]
fn what_is_forgotten_is_out_and_nothing_else_is_lost() {
    let pages = pages();
    let config = Words::<NoReaders>::config("forgotten").leaks_to(|_| ());
    let cache = Words::with_config(config, Threads, pages, NoReaders).unwrap();
    let word = cache.alloc(|_| ()).unwrap();
    // The memory is held for ever, but nobody can look any more: `destroy` has every page.
    forget(word.downgrade());
    drop(word);
    cache.raw().shrink(usize::MAX);
    assert!(pages.outstanding() > 2, "held");
    cache.destroy().unwrap();
    assert_eq!(pages.outstanding(), 0);

    let cache = Words::new("forgotten", Threads, pages, NoReaders).unwrap();
    let cell = StableCell::new(&cache);
    cell.store(Some(cache.alloc(|_| ()).unwrap()));
    forget(cell);
    forget(cache.raw().prefill(1, Attempt::MayGrow).unwrap());
    let busy = cache.destroy().unwrap_err();
    assert!(busy.live >= 2 && !busy.samples.is_empty());
    // As good as before, elsewhere.
    let cache = Box::new(busy.cache);
    let before = cache.raw().stats().live;
    drop(cache.alloc(|word| word.0.store(1, Ordering::Relaxed)));
    assert_eq!(cache.raw().stats().live, before);
    assert_eq!(cache.destroy().unwrap_err().live, before);
}

#[test]
fn an_initialiser_may_use_the_cache_that_it_is_called_by() {
    let pages = pages();
    let cache = Words::new("nested", Threads, pages, NoReaders).unwrap();
    let outer = cache.alloc(|outer| {
        let inner = cache.alloc(|_| ()).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _ = cache.alloc(|_| panic!("in the midst"));
        }));
        assert!(panicked.is_err());
        cache.raw().shrink(usize::MAX);
        cache.raw().barrier();
        inner.0.store(5, Ordering::Relaxed);
        outer
            .0
            .store(inner.0.load(Ordering::Relaxed), Ordering::Relaxed);
    });
    assert_eq!(outer.unwrap().0.load(Ordering::Relaxed), 5);
    cache.destroy().unwrap();
    assert_eq!(pages.outstanding(), 0);
}

/// Allocates from its own cache while it is built, for the first slab.
struct Nested(AtomicU64);

static NESTED: OnceLock<StableCache<Nested, Threads, &'static Pages, NoReaders>> = OnceLock::new();
static IN_CONSTRUCTOR: AtomicBool = AtomicBool::new(true);

impl TypeStable for Nested {
    fn construct() -> Self {
        if IN_CONSTRUCTOR.swap(false, Ordering::Relaxed) {
            let cache = NESTED.get().unwrap();
            let word = cache.alloc(|w| w.0.store(9, Ordering::Relaxed)).unwrap();
            cache.raw().shrink(usize::MAX);
            cache.raw().barrier();
            assert_eq!(word.0.load(Ordering::Relaxed), 9);
        }
        Self(AtomicU64::new(0))
    }
}

#[test]
fn a_constructor_may_use_the_cache_that_it_builds_for() {
    let cache = StableCache::new("nested", Threads, pages(), NoReaders).unwrap();
    let cache = NESTED.get_or_init(|| cache);
    let word = cache.alloc(|_| ()).unwrap();
    assert_eq!(cache.raw().stats().live, 1);
    drop(word);
    assert!(!IN_CONSTRUCTOR.load(Ordering::Relaxed));
    assert_eq!(cache.raw().stats().live, 0);
}

static WATCHED: OnceLock<Words<&'static ManualGp>> = OnceLock::new();
static WATCHES: AtomicUsize = AtomicUsize::new(0);

fn watch() {
    // Every call by way of the cache that calls.
    let cache = WATCHED.get().unwrap();
    WATCHES.fetch_add(1, Ordering::Relaxed);
    cache.raw().reap();
    drop(cache.alloc(|_| ()).unwrap());
    cache.raw().shrink(1);
}

#[test]
fn a_watch_may_use_the_cache_that_calls_it() {
    let (pages, gp) = (pages(), gp());
    let config = Words::<&ManualGp>::config("watched")
        .stability(Stability::Delayed)
        .sheaf_capacity(2)
        .watched_by(watch);
    let cache = Words::with_config(config, Threads, pages, gp).unwrap();
    let cache = WATCHED.get_or_init(|| cache);
    for _ in 0..20 {
        drop(cache.alloc(|_| ()).unwrap());
    }
    assert!(WATCHES.load(Ordering::Relaxed) > 0);
    cache.raw().barrier();
    assert_eq!(cache.raw().stats().live, 0);
}

#[test]
fn a_watch_that_panics_ends_the_program() {
    let deed = || {
        let config = Words::<&ManualGp>::config("watched")
            .stability(Stability::Delayed)
            .watched_by(|| panic!("a watch"));
        let cache = Words::with_config(config, Threads, pages(), gp()).unwrap();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(cache.alloc(|_| ()).unwrap())));
        std::process::exit(0);
    };
    aborts(
        "a_watch_that_panics_ends_the_program",
        deed,
        &["the watch of cache watched panicked"],
    );
}

#[test]
fn whoever_is_told_of_leaks_may_panic_and_use_the_same_pages() {
    static PAGES: Pages = Pages::new();
    fn tell(leaks: &slab::LeakReport) {
        assert_eq!(leaks.live(), 1);
        let other = Cache::<u64, _, _, _>::new("other", Threads, &PAGES, NoReaders).unwrap();
        let value = other.alloc(7).unwrap();
        // SAFETY: the test's own, not used any more.
        unsafe { other.free(value) };
        other.destroy().unwrap();
        panic!("told");
    }
    let config = CacheConfig::new("leaky", Layout::new::<[u64; 8]>()).leaks_to(tell);
    let cache = RawCache::new(config, Threads, &PAGES, NoReaders).unwrap();
    cache.alloc().unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| drop(cache))).is_err());
    assert_eq!(PAGES.outstanding(), 1, "the leaked object's slab");
}

#[cfg(all(feature = "std", target_os = "linux", not(miri)))]
macro_rules! as_no_readers {
    ($name:ident) => {
        // SAFETY: nobody reads here, as with `NoReaders`.
        unsafe impl GracePeriod for $name {
            fn snapshot(&self) -> Cookie {
                NoReaders.snapshot()
            }

            fn start(&self) -> Cookie {
                NoReaders.start()
            }

            fn poll(&self, cookie: Cookie) -> bool {
                NoReaders.poll(cookie)
            }

            fn wait(&self, cookie: Cookie) {
                NoReaders.wait(cookie);
            }

            fn drive(&self) -> bool {
                NoReaders.drive()
            }

            fn grace_periods(&self) -> usize {
                NoReaders.grace_periods()
            }
        }
    };
}

/// Grace periods whose clones are the user's own code.
#[cfg(all(feature = "std", target_os = "linux", not(miri)))]
#[derive(Debug)]
struct Panics;

#[cfg(all(feature = "std", target_os = "linux", not(miri)))]
impl Clone for Panics {
    #[allow(clippy::panic, reason = "the point")]
    fn clone(&self) -> Self {
        panic!("a clone")
    }
}

#[cfg(all(feature = "std", target_os = "linux", not(miri)))]
as_no_readers!(Panics);

#[cfg(all(feature = "std", target_os = "linux", not(miri)))]
#[test]
fn no_global_allocator_unwinds() {
    let deed = || {
        let heap = slab::GlobalKmalloc::with(Panics);
        // As by the standard library, which must not see a panic come out of it.
        let _ = catch_unwind(AssertUnwindSafe(|| heap.kmalloc().is_some()));
        std::process::exit(0);
    };
    aborts(
        "no_global_allocator_unwinds",
        deed,
        &["the making", "panicked"],
    );
}

/// Grace periods whose clone makes another allocator, and then asks the first.
#[cfg(all(feature = "std", target_os = "linux", not(miri)))]
mod two {
    use super::*;
    use slab::GlobalKmalloc;

    static FIRST: GlobalKmalloc<Nests> = GlobalKmalloc::with(Nests);
    static SECOND: GlobalKmalloc = GlobalKmalloc::new();

    struct Nests;

    impl Clone for Nests {
        fn clone(&self) -> Self {
            if FIRST.zone().is_none() {
                assert!(
                    SECOND.kmalloc().is_some(),
                    "another's making is none of ours"
                );
                assert!(FIRST.kmalloc().is_none(), "refused, not waited for");
            }
            Self
        }
    }

    as_no_readers!(Nests);

    #[test]
    fn an_allocator_made_in_the_making_of_another_leaves_that_s_guard() {
        assert!(FIRST.kmalloc().is_some());
        assert!(SECOND.stats().is_some());
    }
}
