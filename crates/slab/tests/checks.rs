//! What the checks find, and that they find nothing else.

#[path = "common/child.rs"]
mod child;
mod common;

use child::aborts;
use common::{Failure, Hand, Pages};
use pagealloc::Attempt;
use rcu_core::cpu::Threads;
use rcu_core::manual::ManualGp;
use slab::{CLASS_BYTES, Cache, CacheConfig, Checks, CreateError, Kmalloc, LeakReport, RawCache};
use std::alloc::Layout;
use std::mem::MaybeUninit;
use std::panic::Location;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Not whole words, so that rounding up adds to the right zone.
const SIZE: usize = 61;

type Raw = RawCache<&'static Hand, &'static Pages, &'static ManualGp>;

/// A cache of parts of its own.
fn cache(checks: Checks) -> Raw {
    let config = CacheConfig::new("victim", Layout::from_size_align(SIZE, 4).unwrap());
    let (cpus, pages, gp) = (Hand::new(2), Pages::new(), ManualGp::new());
    let [cpus, pages, gp] = [
        Box::leak(Box::new(cpus)) as &'static dyn std::any::Any,
        Box::leak(Box::new(pages)),
        Box::leak(Box::new(gp)),
    ];
    RawCache::new(
        config.checks(checks),
        cpus.downcast_ref().unwrap(),
        pages.downcast_ref().unwrap(),
        gp.downcast_ref().unwrap(),
    )
    .unwrap()
}

#[track_caller]
fn free(cache: &Raw, object: NonNull<u8>) {
    // SAFETY: the test had the object, or breaks the contract on purpose.
    unsafe { cache.free(object) };
}

#[track_caller]
fn retire(cache: &Raw, object: NonNull<u8>) {
    // SAFETY: the test had the object, or breaks the contract on purpose.
    unsafe { cache.retire(object) }.unwrap();
}

/// Writes a byte where the test says, which is inside the slab.
fn scribble(object: NonNull<u8>, at: isize, byte: u8) {
    // SAFETY: inside the slab.
    let place = unsafe { object.offset(at) };
    // SAFETY: the slab's memory is there; that it is not the test's is the point.
    unsafe { place.write(byte) };
}

fn byte(object: NonNull<u8>, at: usize) -> u8 {
    // SAFETY: inside the object.
    let place = unsafe { object.add(at) };
    // SAFETY: the slab's memory is there, and written by the checks.
    unsafe { place.read() }
}

/// A test that `deed`, done to a cache with these checks, ends the program with all of `words`.
macro_rules! caught {
    ($name:ident, $checks:expr, $words:expr, $deed:expr) => {
        #[test]
        fn $name() {
            let deed: fn(&Raw) = $deed;
            let deed = || deed(&cache($checks));
            aborts(stringify!($name), deed, &$words);
        }
    };
}

const DOUBLE: [&str; 4] = [
    "slab: object freed twice",
    "cache victim",
    "object 0x",
    "slab 0x",
];

caught!(l15_at_once_freed_twice, Checks::AT_ONCE, DOUBLE, |cache| {
    let object = cache.alloc().unwrap();
    free(cache, object);
    free(cache, object);
});

caught!(
    l15_at_once_freed_twice_in_bulk,
    Checks::AT_ONCE,
    DOUBLE,
    |cache| {
        let (a, b) = (cache.alloc().unwrap(), cache.alloc().unwrap());
        // SAFETY: none: the test breaks the contract on purpose.
        unsafe { cache.free_bulk(&mut [a, b, a]) };
    }
);

caught!(
    l15_at_once_freed_twice_on_another_slot,
    Checks::AT_ONCE,
    DOUBLE,
    |cache| {
        let object = cache.alloc().unwrap();
        free(cache, object);
        cache.cpus().go(Some(1));
        free(cache, object);
    }
);

caught!(
    l15_at_once_freed_twice_from_the_quarantine,
    Checks::QUARANTINE,
    DOUBLE,
    |cache| {
        let object = cache.alloc().unwrap();
        free(cache, object);
        let other = cache.alloc().unwrap();
        assert_ne!(object, other);
        free(cache, object);
    }
);

caught!(
    l15_at_once_retired_object_freed,
    Checks::AT_ONCE,
    ["retired object freed", "cache victim"],
    |cache| {
        let object = cache.alloc().unwrap();
        retire(cache, object);
        free(cache, object);
    }
);

caught!(
    l15_at_once_freed_object_retired,
    Checks::AT_ONCE,
    ["freed object retired", "cache victim"],
    |cache| {
        let object = cache.alloc().unwrap();
        free(cache, object);
        retire(cache, object);
    }
);

caught!(
    l15_at_once_retired_twice,
    Checks::AT_ONCE,
    ["object retired twice", "cache victim"],
    |cache| {
        let object = cache.alloc().unwrap();
        retire(cache, object);
        retire(cache, object);
    }
);

caught!(
    l15_at_once_freed_after_the_grace_period_of_its_retirement,
    Checks::AT_ONCE,
    DOUBLE,
    |cache| {
        let object = cache.alloc().unwrap();
        let _keeps_the_slab = cache.alloc().unwrap();
        retire(cache, object);
        cache.barrier();
        free(cache, object);
    }
);

caught!(
    l15_at_once_foreign,
    Checks::AT_ONCE,
    ["pointer is not from this cache", "cache victim"],
    |mine| {
        let other = cache(Checks::AT_ONCE);
        free(mine, other.alloc().unwrap());
    }
);

caught!(
    l15_at_once_retired_foreign,
    Checks::AT_ONCE,
    ["pointer is not from this cache", "cache victim"],
    |cache| {
        retire(
            cache,
            NonNull::from(Box::leak(Box::new([0_u64; 32]))).cast(),
        )
    }
);

caught!(
    l15_at_once_misaligned,
    Checks::AT_ONCE,
    ["start of an object", "cache victim"],
    |cache| {
        let object = cache.alloc().unwrap();
        // SAFETY: inside the object.
        free(cache, unsafe { object.add(8) });
    }
);

caught!(
    l15_words_overwritten,
    Checks::AT_ONCE,
    ["words of the checks before the object overwritten"],
    |cache| {
        let object = cache.alloc().unwrap();
        (1..=40).for_each(|at| scribble(object, -at, 0x41));
        free(cache, object);
    }
);

caught!(
    l15_red_zone_right_at_free,
    Checks::RED_ZONE,
    [
        "red zone overwritten",
        "right, byte +61: is 0x41, should be 0xcc",
        "cc cc",
        " 41 ",
    ],
    |cache| {
        let object = cache.alloc().unwrap();
        scribble(object, SIZE as isize, 0x41);
        free(cache, object);
    }
);

caught!(
    l15_red_zone_left_at_free,
    Checks::RED_ZONE,
    [
        "red zone overwritten",
        "left, byte -1: is 0x00, should be 0xcc",
    ],
    |cache| {
        let object = cache.alloc().unwrap();
        scribble(object, -1, 0);
        free(cache, object);
    }
);

caught!(
    l15_red_zone_at_retire,
    Checks::RED_ZONE,
    ["red zone overwritten", "right, byte +68"],
    |cache| {
        let object = cache.alloc().unwrap();
        scribble(object, 68, 1);
        retire(cache, object);
    }
);

caught!(
    l15_red_zone_at_the_end_of_the_grace_period,
    Checks::RED_ZONE,
    ["red zone overwritten", "left, byte -8"],
    |cache| {
        let object = cache.alloc().unwrap();
        retire(cache, object);
        scribble(object, -8, 1);
        cache.barrier();
    }
);

caught!(
    l15_red_zone_at_alloc,
    Checks::RED_ZONE,
    ["red zone overwritten", "should be 0xbb"],
    |cache| {
        let object = cache.alloc().unwrap();
        free(cache, object);
        scribble(object, SIZE as isize + 1, 1);
        cache.alloc().unwrap();
    }
);

caught!(
    l15_poison_at_alloc,
    Checks::POISON,
    [
        "object written to after it was freed",
        "inside, byte +17: is 0x42, should be 0x6b",
        "+16: 6b 42 6b",
    ],
    |cache| {
        let object = cache.alloc().unwrap();
        free(cache, object);
        scribble(object, 17, 0x42);
        cache.alloc().unwrap();
    }
);

caught!(
    l15_poison_of_the_last_byte,
    Checks::POISON,
    ["byte +60: is 0x6b, should be 0xa5"],
    |cache| {
        let object = cache.alloc().unwrap();
        free(cache, object);
        scribble(object, SIZE as isize - 1, 0x6b);
        cache.alloc().unwrap();
    }
);

caught!(
    l15_poison_after_the_grace_period,
    Checks::POISON,
    ["object written to after it was freed", "byte +0"],
    |cache| {
        let object = cache.alloc().unwrap();
        let _keeps_the_slab = cache.alloc().unwrap();
        retire(cache, object);
        cache.barrier();
        scribble(object, 0, 1);
        cache.alloc().unwrap();
    }
);

#[test]
fn l15_owners_are_in_the_message() {
    const BEFORE: u32 = line!();
    let deed = || {
        let cache = cache(Checks::OWNER);
        let object = cache.alloc().unwrap();
        free(&cache, object);
        free(&cache, object);
    };
    let at = |deed: &str, line: u32| format!("{deed} at {}:{}:", file!(), BEFORE + line);
    let lines = [
        at("last allocated", 3),
        at("last freed or retired", 4),
        at("now freed", 5),
    ];
    aborts(
        "l15_owners_are_in_the_message",
        deed,
        &[&lines[0], &lines[1], &lines[2]],
    );
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
    let release: [fn(&Raw); 2] = [
        |c| {
            c.shrink();
        },
        Raw::barrier,
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

fn kmalloc() -> Kmalloc<Threads, &'static Pages, rcu_core::NoReaders> {
    let pages = Box::leak(Box::new(Pages::new()));
    Kmalloc::new_checked(Threads, &*pages, rcu_core::NoReaders, Checks::all()).unwrap()
}

#[test]
fn l15_all_of_a_checked_class_is_usable() {
    let km = kmalloc();
    for bytes in CLASS_BYTES {
        let align = 1 << bytes.trailing_zeros();
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

#[test]
fn l15_the_byte_after_a_class_is_not() {
    let deed = || {
        let km = kmalloc();
        let memory = km.kmalloc(Layout::new::<[u8; 96]>()).unwrap();
        scribble(memory, 96, 0);
        // SAFETY: none: the test breaks the contract on purpose.
        unsafe { km.kfree(memory) };
    };
    let words = [
        "red zone overwritten",
        "cache kmalloc-96",
        "right, byte +96",
        file!(),
    ];
    aborts("l15_the_byte_after_a_class_is_not", deed, &words);
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
        let cache = self::cache(checks);
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
        "cache kmalloc-64: 1 objects",
        "cache kmalloc-128: 1 objects",
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
