//! What the checks do while nothing is wrong, and what they report. What they find is in `faults.rs`.
#![cfg(not(loom))]

mod common;
#[path = "common/victim.rs"]
mod victim;

use common::{Failure, Pages};
use pagealloc::Attempt;
use rcu_core::cpu::Threads;
use slab::{CLASS_BYTES, Cache, CacheConfig, Checks, CreateError, LeakReport, RawCache};
use std::alloc::Layout;
use std::mem::MaybeUninit;
use std::panic::Location;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use victim::{Raw, SIZE, cache, free, kmalloc, retire, scribble};

fn byte(object: NonNull<u8>, at: usize) -> u8 {
    // SAFETY: inside the object.
    let place = unsafe { object.add(at) };
    // SAFETY: the slab's memory is there, and written by the checks.
    unsafe { place.read() }
}

#[test]
fn l15_free_objects_are_filled_and_retired_ones_are_not() {
    let cache = cache(Checks::POISON);
    let (object, _keeps_the_slab) = (cache.alloc().unwrap(), cache.alloc().unwrap());
    assert!((0..SIZE).all(|at| byte(object, at) == 0x5a));
    scribble(object, 5, 7);
    retire(&cache, object);
    assert_eq!(byte(object, 5), 7, "a reader may look");
    cache.barrier();
    assert!((0..SIZE - 1).all(|at| byte(object, at) == 0x6b));
    assert_eq!(byte(object, SIZE - 1), 0xa5);
}

#[test]
fn l15_a_freed_object_is_kept_back_until_something_lets_it_go() {
    let release: [fn(&Raw); 3] = [
        |c| {
            c.shrink(usize::MAX);
        },
        Raw::barrier,
        // What was retired is free then, not kept back either.
        |c| {
            retire(c, c.alloc().unwrap());
            c.barrier();
        },
    ];
    for release in release {
        let cache = cache(Checks::QUARANTINE);
        let _keeps_the_slab = cache.alloc().unwrap();
        let object = cache.alloc().unwrap();
        free(&cache, object);
        assert_eq!(cache.stats().kept_back, 1);
        // More than what there is beside it.
        let per_slab = cache.stats().objects_per_slab;
        let others: Vec<_> = (0..per_slab).map(|_| cache.alloc().unwrap()).collect();
        assert!(!others.contains(&object));
        release(&cache);
        let stats = cache.stats();
        assert_eq!((stats.kept_back, stats.live), (0, per_slab + 1), "{stats}");
        for object in others {
            free(&cache, object);
        }
        // Not all of a slab is kept back for ever.
        for _ in 0..1000 {
            free(&cache, cache.alloc().unwrap());
        }
        assert_eq!(cache.stats().kept_back, 512);
    }
}

#[test]
fn l15_a_destroyed_cache_keeps_nothing_back() {
    let cache = cache(Checks::QUARANTINE);
    let pages = *cache.pages();
    free(&cache, cache.alloc().unwrap());
    assert_eq!(cache.stats().kept_back, 1);
    cache.destroy().expect("nothing is out");
    assert_eq!(pages.outstanding(), 0);
}

#[test]
fn l15_what_is_kept_back_serves_when_memory_is_short() {
    let cache = cache(Checks::QUARANTINE);
    let pages = *cache.pages();
    let first = cache.alloc().unwrap();
    free(&cache, first);
    pages.set_failure(Failure::From(pages.calls()));
    let per_slab = cache.stats().objects_per_slab;
    let got: Vec<_> = std::iter::from_fn(|| cache.alloc().ok()).collect();
    assert_eq!(got.len(), per_slab);
    assert_eq!(got.last(), Some(&first));
}

#[test]
fn l15_slabs_are_handed_out_in_random_order() {
    let addresses = |checks| {
        let cache = cache(checks);
        let mut out = vec![MaybeUninit::uninit(); 3 * cache.stats().objects_per_slab];
        cache.alloc_bulk(&mut out, Attempt::MayGrow).unwrap();
        // SAFETY: all or nothing, and it was all.
        let object = |o: MaybeUninit<NonNull<u8>>| unsafe { o.assume_init() };
        let addresses: Vec<_> = out.into_iter().map(|o| object(o).addr().get()).collect();
        let mut sorted = addresses.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), addresses.len());
        let bytes = cache.object_bytes();
        let neighbours = |w: &&[usize]| w[0].abs_diff(w[1]) == bytes;
        addresses.windows(2).filter(neighbours).count() * 2 > addresses.len()
    };
    assert!(addresses(Checks::empty()), "neighbours follow each other");
    // By chance, one or two in a hundred do.
    assert!(!addresses(Checks::RANDOM));
    assert!(!addresses(Checks::all()));
}

#[test]
fn l15_the_largest_object_has_no_room_for_checks() {
    let layout = Layout::from_size_align(slab::MAX_OBJECT_BYTES, 8).unwrap();
    let config = CacheConfig::new("large", layout).checks(Checks::RED_ZONE);
    let made = RawCache::new(
        config,
        Threads,
        Box::leak(Box::new(Pages::new())) as &Pages,
        rcu_core::NoReaders,
    );
    assert!(matches!(made, Err(CreateError::TooLarge { bytes }) if bytes > layout.size()));
}

#[test]
fn l15_all_of_a_checked_class_is_usable() {
    let km = kmalloc();
    for bytes in CLASS_BYTES {
        // No class is aligned to more than 8 KiB.
        let align = 1 << bytes.trailing_zeros().min(13);
        let layout = Layout::from_size_align(bytes, align).unwrap();
        let memory: Vec<_> = (0..3).map(|_| km.kmalloc(layout).unwrap()).collect();
        for &memory in &memory {
            assert_eq!(memory.addr().get() % align, 0);
            // SAFETY: the memory is ours.
            let usable = unsafe { km.ksize(memory) };
            assert_eq!(usable, bytes);
            // SAFETY: so many bytes are promised.
            unsafe { memory.write_bytes(0xff, usable) };
        }
        for memory in memory {
            // SAFETY: the memory was ours.
            unsafe { km.kfree(memory) };
        }
    }
    km.destroy().expect("nothing is out");
}

/// H2: such a cache has no sheaf to hand out from, so the fast paths, which know of no checks, miss.
#[test]
fn l15_checked_caches_miss_every_time() {
    for checks in [Checks::AT_ONCE, Checks::OWNER, Checks::all()] {
        let cache = cache(checks);
        for _ in 0..3 {
            let objects: Vec<_> = (0..100).map(|_| cache.alloc().unwrap()).collect();
            for (n, &object) in objects.iter().enumerate() {
                if n % 3 == 0 {
                    retire(&cache, object);
                } else {
                    free(&cache, object);
                }
                let slot = cache.slot_stats().next().unwrap();
                assert_eq!((slot.main, slot.spare), (0, 0), "{slot}");
            }
            cache.gp().advance();
        }
        let stats = cache.stats();
        assert_eq!(stats.alloc_misses, 300, "{stats}");
        assert_eq!(stats.free_misses, 198, "{stats}");
        assert_eq!(stats.sheaves_recycled, 0, "{stats}");
        assert!(stats.waiting > 0 && stats.live == 0, "{stats}");
    }
}

#[test]
fn l15_live_objects_are_reported_by_owner() {
    let cache = cache(Checks::OWNER);
    let here = |line: u32, site: &Location<'_>| (site.file(), site.line()) == (file!(), line);
    let first = line!() + 1;
    let mut objects: Vec<_> = (0..70).map(|_| cache.alloc().unwrap()).collect();
    let mut out = [MaybeUninit::uninit(); 3];
    let second = line!() + 1;
    cache.alloc_bulk(&mut out, Attempt::MayGrow).unwrap();
    free(&cache, objects.pop().unwrap());
    retire(&cache, objects.pop().unwrap());
    let report = cache.leak_report();
    assert_eq!((report.name(), report.live()), ("victim", 71));
    let count = |line| {
        let mut sites = report.sites().iter();
        let site = sites.find(|s| s.allocated_by.is_some_and(|by| here(line, by)));
        site.map(|site| site.objects)
    };
    assert_eq!((count(first), count(second)), (Some(68), Some(3)));
    let text = report.to_string();
    assert!(
        text.starts_with("cache victim: 71 objects of 61 bytes live\n        68 allocated at "),
        "{text}"
    );
    // Without owners there is one group, without checks a number.
    for (checks, sites) in [(Checks::AT_ONCE, 1), (Checks::empty(), 0)] {
        let cache = victim::cache(checks);
        let _live = [cache.alloc().unwrap(), cache.alloc().unwrap()];
        let report = cache.leak_report();
        assert_eq!((report.live(), report.sites().len()), (2, sites));
    }
}

#[test]
fn l15_more_sites_than_there_is_room_for_are_counted() {
    #[track_caller]
    fn a(cache: &Raw) -> NonNull<u8> {
        cache.alloc().unwrap()
    }
    let c = &cache(Checks::OWNER);
    let objects = [
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
        a(c),
    ];
    let report = c.leak_report();
    assert_eq!((report.live(), report.sites().len()), (36, 32));
    assert!(
        report
            .to_string()
            .ends_with("\n         4 allocated at other places")
    );
    for object in objects {
        free(c, object);
    }
}

#[test]
fn l15_leaks_of_all_classes_are_reported() {
    let km = kmalloc();
    let memory = [40, 100].map(|size| {
        km.kmalloc(Layout::from_size_align(size, 8).unwrap())
            .unwrap()
    });
    let report = km.leak_report().to_string();
    for word in [
        "cache kmalloc-48: 1 objects",
        "cache kmalloc-112: 1 objects",
        file!(),
    ] {
        assert!(report.contains(word), "{report}");
    }
    for memory in memory {
        // SAFETY: the memory was ours.
        unsafe { km.kfree(memory) };
    }
    assert_eq!(km.leak_report().to_string(), "");
}

#[test]
fn l15_a_cache_that_ends_tells_of_what_is_out() {
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    fn tell(report: &LeakReport) {
        assert_eq!(report.sites().len(), 1);
        TOLD.fetch_add(report.live(), Ordering::Relaxed);
    }
    let pages: &'static Pages = Box::leak(Box::new(Pages::new()));
    for leaked in [0_u64, 3] {
        let config = Cache::<u64, Threads, &Pages, rcu_core::NoReaders>::config("told")
            .checks(Checks::OWNER)
            .leaks_to(tell);
        let cache = Cache::with_config(config, Threads, pages, rcu_core::NoReaders).unwrap();
        for value in 0..leaked {
            let _ = cache.alloc(value).unwrap();
        }
        assert_eq!(cache.leak_report().live(), leaked as usize);
        drop(cache);
        assert_eq!(TOLD.load(Ordering::Relaxed), leaked as usize);
    }
}
