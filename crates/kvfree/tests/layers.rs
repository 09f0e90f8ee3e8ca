//! The front end with its neighbours: the allocator's caches, and a zone that runs short of pages.

#![cfg(all(feature = "std", target_os = "linux", not(miri), not(loom)))]

mod common;

use common::{Failure, Pages};
use kvfree::{Config, DeferFree, Kvfree, NoSheaves, RcuBox, TypedCache};
use pagealloc::{Mmap, Order, PageAlloc, PageBlock, PageReq, Zone};
use rcu_core::cpu::Threads;
use rcu_core::{GracePeriod, Head, HeadOffset, Rcu};
use slab::{CacheConfig, Kmalloc, RawCache};
use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

rcu_tree::static_tree! {
    /// The domain of these tests.
    struct Layered;
}

type Real<'z> = &'z Zone<Threads, Mmap>;
type Kernel<'z> = Kmalloc<Threads, Real<'z>, Layered>;
type Raw<'z> = RawCache<Threads, Real<'z>, Layered>;

static CACHE: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());

unsafe fn free_to_cache(object: NonNull<u8>) {
    // SAFETY: set while objects of the cache are out; the lifetime is the test's.
    let cache = unsafe { &*CACHE.load(Ordering::Acquire).cast::<Raw<'static>>() };
    // SAFETY: from there, and its time has come.
    unsafe { cache.free(object) };
}

/// Objects of a cache come by the cache's sheaves and by the front end's blocks: the barrier waits for both, and the cache can go.
#[test]
fn k15_t9_barrier_on_a_cache_covers_sheaves_and_blocks() {
    let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
    // SAFETY: everything is dropped in the reverse order, and nothing forgotten.
    let kmalloc: Kernel<'_> = unsafe { Kmalloc::new_scoped(Threads, &zone, Layered) }.unwrap();
    // SAFETY: as above.
    let made = unsafe { Kvfree::new(Threads, &zone, Layered, &kmalloc, Config::new()) };
    let front = made.unwrap();
    for round in 0..3 {
        let config = CacheConfig::new("k15", Layout::new::<[u64; 8]>());
        // SAFETY: as above.
        let made: Result<Raw<'_>, _> =
            unsafe { RawCache::new_scoped(config, Threads, &zone, Layered) };
        let cache = made.unwrap();
        CACHE.store(
            std::ptr::from_ref(&cache).cast_mut().cast(),
            Ordering::Release,
        );
        let other = kmalloc.kmalloc(Layout::new::<[u64; 8]>()).unwrap();
        for n in 0..300 {
            let object = cache.alloc().unwrap();
            if n % 3 == round {
                // SAFETY: allocated just now; the function frees it where it came from.
                unsafe { front.retire_with_mightsleep(object, free_to_cache, 64) };
            } else {
                // SAFETY: allocated just now, and seen by nobody.
                let back = unsafe { cache.retire(object) };
                if let Err(object) = back {
                    Layered.synchronize();
                    // SAFETY: not taken, and nobody sees it.
                    unsafe { cache.free(object) };
                }
            }
        }
        assert!(front.stats().objects_waiting > 0);
        front.barrier_on(&cache);
        let stats = cache.stats();
        assert_eq!((stats.live, stats.waiting), (0, 0), "round {round}");
        // SAFETY: allocated above.
        unsafe { kmalloc.kfree(other) };
        assert!(
            cache.destroy().is_ok(),
            "T8: nothing of it is left anywhere"
        );
    }
    drop(front);
    assert!(kmalloc.destroy().is_ok());
    assert_eq!(zone.nr_allocated(), 0);
}

/// What waits in the allocator's own sheaves is counted when it is taken in, not when a monitor comes by.
#[test]
fn post_2019_what_sheaves_hold_stops_at_the_limit_though_nobody_ticks() {
    const LIMIT: usize = 1 << 20;
    const SIZE: usize = 512;
    let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
    // SAFETY: everything is dropped in the reverse order, and nothing forgotten.
    let kmalloc: Kernel<'_> = unsafe { Kmalloc::new_scoped(Threads, &zone, Layered) }.unwrap();
    let config = Config::new().hard_limit(LIMIT);
    // SAFETY: as above.
    let made = unsafe { Kvfree::new(Threads, &zone, Layered, &kmalloc, config) };
    let front = made.unwrap();
    // A section that stalls: nothing gets ripe.
    let section = Layered.read_lock();
    let mut taken = 0;
    let refused = loop {
        let object = kmalloc
            .kmalloc(Layout::from_size_align(SIZE, 8).unwrap())
            .unwrap();
        // SAFETY: allocated just now, and seen by nobody.
        match unsafe { front.try_retire(object) } {
            Ok(()) => taken += SIZE,
            Err(object) => break object,
        }
        assert!(taken <= 2 * LIMIT, "no limit");
    };
    // Objects that are looked after are larger than what was asked for.
    assert!(taken > LIMIT / 8, "{taken}");
    // SAFETY: it was given back, and nobody sees it.
    unsafe { kmalloc.kfree(refused) };
    drop(section);
    front.barrier();
    assert_eq!(front.stats().bytes_waiting, 0);
    drop(front);
    assert!(kmalloc.destroy().is_ok());
    assert_eq!(zone.nr_allocated(), 0);
}

/// A destructor that the monitor runs may destroy a cache, which waits for what was retired to it.
#[test]
fn t10_k17_a_destructor_may_destroy_a_cache() {
    static DESTROYED: AtomicUsize = AtomicUsize::new(0);
    struct Owner(Option<TypedCache<[u64; 4]>>);
    impl Drop for Owner {
        fn drop(&mut self) {
            let cache = self.0.take().unwrap();
            assert!(cache.destroy().is_ok());
            DESTROYED.fetch_add(1, Ordering::Release);
        }
    }
    for round in 1..=3 {
        let cache = kvfree::cache::<[u64; 4]>("t10").unwrap();
        for _ in 0..50 {
            let object = cache.alloc([0; 4]).unwrap();
            // SAFETY: allocated just now, and seen by nobody.
            unsafe { kvfree::retire_in_mightsleep(&cache, object) };
        }
        drop(RcuBox::new(Owner(Some(cache))));
        while DESTROYED.load(Ordering::Acquire) < round {
            std::thread::yield_now();
        }
    }
}

/// A zone that is full gets the pages back that the front end's ripe objects and its stock hold.
#[test]
fn k12_pressure_takes_what_is_ripe() {
    let zone = Zone::new(Threads, Mmap::reserve(16 << 20).unwrap()).unwrap();
    // SAFETY: everything is dropped in the reverse order, and nothing forgotten.
    let kmalloc: Kernel<'_> = unsafe { Kmalloc::new_scoped(Threads, &zone, Layered) }.unwrap();
    let objects = NoSheaves(&kmalloc);
    // SAFETY: nothing is deferred; dropped in the reverse order.
    let front = unsafe { Kvfree::new(Threads, &zone, Layered, objects, Config::new()) }.unwrap();
    let hook = front.shrinker();
    // SAFETY: it stays until it is taken off, below; it is on no list.
    unsafe { zone.add_pressure_hook(hook) };
    let large = Layout::from_size_align(70_000, 8).unwrap();
    // A page for the slot's list, where blocks come from.
    drop(PageBlock::new(&zone, PageReq::new(Order::ZERO)).unwrap());
    // In a section, so that nobody frees them before it has ended.
    let guard = rcu_core::read_lock::<Layered>();
    for _ in 0..20 {
        let head = kmalloc.kmalloc(large).unwrap().cast::<Head>();
        // SAFETY: fresh memory, large enough.
        unsafe { head.write(Head::new()) };
        // SAFETY: allocated just now, and seen by nobody.
        unsafe { front.retire(head, HeadOffset::from_bytes(0)) };
    }
    drop(guard);
    Layered.synchronize();
    // Ripe, but nobody has looked.
    assert_eq!(front.stats().objects_waiting, 20);
    let mut out = Vec::new();
    while let Ok(page) = PageBlock::new(&zone, PageReq::new(Order::ZERO)) {
        out.push(page);
    }
    // Heads may run foreign code, which is the monitor's.
    let stats = front.stats();
    assert_eq!(
        stats.objects_waiting, stats.by_head,
        "the allocation took them"
    );
    assert!(stats.by_head < 20);
    // Now the zone is full: the front end's own allocation strikes, while something is ripe by its head.
    let full = out.len();
    assert!(full > 20 * 5);
    zone.remove_pressure_hook(hook);
    drop(out);
    front.barrier();
    // SAFETY: it is on no list.
    unsafe { zone.add_pressure_hook(hook) };
    let objects: Vec<_> = (0..600)
        .map(|_| kmalloc.kmalloc(Layout::new::<[u64; 8]>()).unwrap())
        .collect();
    let mut out = Vec::new();
    while let Ok(page) = PageBlock::new(&zone, PageReq::new(Order::ZERO)) {
        out.push(page);
    }
    for object in objects {
        // SAFETY: allocated above, and seen by nobody.
        unsafe { front.retire_mightsleep(object) };
    }
    zone.remove_pressure_hook(hook);
    drop(out);
    front.barrier();
    assert_eq!(front.stats().objects_waiting, 0);
    let page = zone.alloc(PageReq::new(Order::ZERO)).unwrap();
    // SAFETY: allocated just now.
    unsafe { zone.free(page, Order::ZERO) };
    drop(front);
    assert!(kmalloc.destroy().is_ok(), "objects are lost");
    assert_eq!(zone.nr_allocated(), 0);
}

/// What one run of the channels below retires by functions of its own, and has seen dropped.
static DROPS: AtomicUsize = AtomicUsize::new(0);

unsafe fn free_to_kmalloc(object: NonNull<u8>) {
    DROPS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: set while objects are out; the lifetime is the test's.
    let kmalloc = unsafe { &*KMALLOC.load(Ordering::Acquire).cast::<Failing<'static>>() };
    // SAFETY: from there, and its time has come.
    unsafe { kmalloc.kfree(object) };
}

unsafe fn free_head_to_kmalloc(head: NonNull<Head>) {
    // SAFETY: heads lie at their objects' fronts here.
    unsafe { free_to_kmalloc(head.cast()) };
}

static KMALLOC: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());

type Failing<'p> = Kmalloc<Threads, &'p Pages, Layered>;

/// Retires something through every channel; says how often pages were asked for.
fn every_channel(failure: Failure) -> usize {
    const SIZES: [usize; 4] = [64, 512, 4096, 70_000];
    let pages = Pages::new();
    // SAFETY: everything is dropped in the reverse order, and nothing forgotten.
    let kmalloc: Failing<'_> = unsafe { Kmalloc::new_scoped(Threads, &pages, Layered) }.unwrap();
    KMALLOC.store(
        std::ptr::from_ref(&kmalloc).cast_mut().cast(),
        Ordering::Release,
    );
    let config = CacheConfig::new("channels", Layout::new::<[u64; 8]>());
    // SAFETY: as above.
    let made = unsafe { RawCache::new_scoped(config, Threads, &pages, Layered) };
    let cache: RawCache<_, _, Layered> = made.unwrap();
    // SAFETY: as above.
    let made = unsafe { Kvfree::new(Threads, &pages, Layered, &kmalloc, Config::new()) };
    let front = made.unwrap();
    let before = pages.calls();
    pages.set_failure(match failure {
        Failure::Once(n) => Failure::Once(before + n),
        Failure::From(n) => Failure::From(before + n),
        other => other,
    });
    let mut dropped = 0;
    DROPS.store(0, Ordering::Relaxed);
    for n in 0..60 {
        let size = SIZES[n % SIZES.len()];
        let layout = Layout::from_size_align(size, 8).unwrap();
        // What there is no memory for is not retired.
        if let Ok(object) = kmalloc.kmalloc(layout) {
            let head = object.cast::<Head>();
            // SAFETY: fresh memory, large enough.
            unsafe { head.write(Head::new()) };
            // SAFETY: the last word of it.
            let mark = unsafe { object.add(size - 8) }.cast::<usize>();
            // SAFETY: inside, and aligned.
            unsafe { mark.write(n) };
            let guard = rcu_core::read_lock::<Layered>();
            let in_section = (n / SIZES.len()).is_multiple_of(2);
            let guard = in_section.then_some(guard);
            match n / (2 * SIZES.len()) % 5 {
                // SAFETY: allocated just now; this test looks at it while a section keeps it.
                _ if in_section && n % 3 == 0 => unsafe {
                    front.retire(head, HeadOffset::from_bytes(0));
                },
                _ if in_section => {
                    dropped += 1;
                    let callback = rcu_core::Callback::Run(free_head_to_kmalloc);
                    // SAFETY: as above.
                    unsafe { front.retire_head(head, callback, size) };
                }
                // SAFETY: as above.
                0 | 3 => unsafe { front.retire_mightsleep(object) },
                1 => {
                    dropped += 1;
                    // SAFETY: as above.
                    unsafe { front.retire_with_mightsleep(object, free_to_kmalloc, size) };
                }
                _ => {
                    // SAFETY: as above.
                    if unsafe { front.try_retire(object) }.is_err() {
                        // SAFETY: still the test's, and seen by nobody.
                        unsafe { kmalloc.kfree(object) };
                    }
                }
            }
            if guard.is_some() {
                // SAFETY: the section keeps it.
                assert_eq!(unsafe { mark.read() }, n, "freed early");
            }
        }
        if let Ok(object) = cache.alloc() {
            // SAFETY: allocated just now, and seen by nobody.
            if let Err(object) = unsafe { cache.retire(object) } {
                Layered.synchronize();
                // SAFETY: not taken, and nobody sees it.
                unsafe { cache.free(object) };
            }
        }
        if n % 20 == 19 {
            front.tick();
        }
    }
    front.barrier_on(&cache);
    front.barrier();
    let stats = (front.stats(), cache.stats());
    assert_eq!(
        (stats.0.objects_waiting, stats.1.live + stats.1.waiting),
        (0, 0)
    );
    assert_eq!(DROPS.load(Ordering::Relaxed), dropped);
    let calls = pages.calls() - before;
    drop(front);
    assert!(
        cache.destroy().is_ok() && kmalloc.destroy().is_ok(),
        "objects are lost"
    );
    assert_eq!(pages.outstanding(), 0, "pages are lost");
    calls
}

/// Small, large, with drop glue, by heads, headless and typed, over pages that are refused always, or at each call there is.
#[test]
fn k3_every_channel_with_pages_that_fail_at_each_call_there_is() {
    every_channel(Failure::From(0));
    let calls = every_channel(Failure::Never);
    assert!(calls > 20, "{calls}");
    for n in 0..calls {
        every_channel(Failure::Once(n));
        every_channel(Failure::From(n));
    }
}
