//! A child of a threaded process goes on allocating and freeing.

#![cfg(all(feature = "std", target_os = "linux", not(loom), not(miri)))]

#[path = "../../rcu-core/tests/common/child.rs"]
mod child;

use child::{check, fork, on_a_thread};
use pagealloc::{Mmap, PageAlloc, Zone};
use rcu_core::cpu::Threads;
use rcu_core::fork::{Still, hold_still};
use rcu_core::manual::ManualGp;
use slab::{CacheConfig, Kmalloc, RawCache};
use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

mod cfg {
    //! Sizes, in one place.
    pub(crate) const FORKS: usize = if cfg!(thread_sanitizer) { 6 } else { 12 };
    pub(crate) const THREADS: usize = 3;
}

type Pages = &'static Zone<Threads, Mmap>;
type Kernel = Kmalloc<Threads, Pages, &'static ManualGp>;

const SIZES: [usize; 6] = [16, 64, 200, 1000, 4096, 70_000];

fn layout(round: usize) -> Layout {
    Layout::from_size_align(SIZES[round % SIZES.len()], 8).unwrap()
}

/// One of everything.
fn use_it_all<P: PageAlloc>(kernel: &Kmalloc<Threads, P, &ManualGp>, round: usize) {
    let memory: Vec<NonNull<u8>> = (0..50)
        .map(|i| {
            let memory = kernel.kmalloc(layout(round + i)).unwrap();
            let mark = memory.addr().get();
            // SAFETY: fresh memory, large enough.
            unsafe { memory.cast::<usize>().write(mark) };
            memory
        })
        .collect();
    for (i, one) in memory.into_iter().enumerate() {
        // SAFETY: allocated above.
        let mark = unsafe { one.cast::<usize>().read() };
        check(mark == one.addr().get());
        // SAFETY: this call's, and no reader is told of it.
        if i % 3 > 0 || unsafe { kernel.retire(one) }.is_err() {
            // SAFETY: this call's still.
            unsafe { kernel.kfree(one) };
        }
    }
    match round % 40 {
        10 => kernel.barrier(),
        20 => drop(kernel.shrink(4)),
        30 => drop(kernel.reap()),
        _ => {}
    }
}

/// Tells the others that it is over, also by a panic.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One test at a time: a thread that ends visits every cache of its process, so all must be held over a fork.
#[test]
fn caches_over_a_fork() {
    nobody_is_inside_while_a_fork_is_on_its_way();
    a_child_of_a_threaded_process_goes_on();
    // Last: what is listed stays so, and then nothing may be held by hand.
    listed_layers_hold_still_by_themselves();
}

/// Forks of somebody who knows nothing of the caches; threads come and go meanwhile, also on slots that nobody has at the moment of a fork.
fn listed_layers_hold_still_by_themselves() {
    let gp: &'static ManualGp = Box::leak(Box::new(ManualGp::auto()));
    let zone: Pages = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    let kernel: &'static Kernel = Box::leak(Box::new(Kernel::new(Threads, zone, gp).unwrap()));
    let config = CacheConfig::new("listed", layout(2));
    let cache = RawCache::new(config, Threads, zone, gp).unwrap();
    let cache: &'static RawCache<_, _, _> = Box::leak(Box::new(cache));
    // SAFETY: listed once; this program forks below only, and unloads nothing.
    unsafe { hold_still(Box::leak(Box::new(Still::new(zone)))) }.unwrap();
    // SAFETY: as above.
    unsafe { hold_still(Box::leak(Box::new(Still::new(kernel)))) }.unwrap();
    // SAFETY: as above.
    unsafe { hold_still(Box::leak(Box::new(Still::new(cache)))) }.unwrap();
    let use_both = move |round: usize| {
        use_it_all(kernel, round);
        let object = cache.alloc().unwrap();
        // SAFETY: allocated above; no reader is told of it.
        unsafe { cache.free(object) };
        if round.is_multiple_of(7) {
            // Visits every slot, those without a thread included.
            cache.shrink(usize::MAX);
            kernel.reap();
        }
    };
    // No thread begins in the middle of a fork but by `on_a_thread`.
    let begun = Barrier::new(cfg::THREADS + 1);
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        for seed in 0..cfg::THREADS {
            let (begun, done) = (&begun, &done);
            s.spawn(move || {
                begun.wait();
                let mut round = seed;
                while !done.load(Ordering::Relaxed) {
                    use_both(round);
                    round += 1;
                    if round.is_multiple_of(20) {
                        on_a_thread(move || use_both(round));
                    }
                }
            });
        }
        begun.wait();
        let over = Done(&done);
        for i in 0..cfg::FORKS {
            use_both(i);
            let result = fork(|| {
                for round in 0..120 {
                    use_both(round);
                }
                for round in 0..4 {
                    let late = std::thread::spawn(move || use_both(round * 10));
                    check(late.join().is_ok());
                }
                kernel.barrier();
                cache.shrink(usize::MAX);
                kernel.shrink(usize::MAX);
                zone.drain_all();
                // A child's child.
                check(fork(|| use_both(30)).is_ok());
            });
            assert_eq!(result, Ok(()), "a child's check failed at that line");
        }
        drop(over);
    });
    kernel.barrier();
    let stats = kernel.stats();
    assert!(stats.classes.iter().all(|class| class.live == 0), "{stats}");
}

fn a_child_of_a_threaded_process_goes_on() {
    let gp: &'static ManualGp = Box::leak(Box::new(ManualGp::auto()));
    let zone: Pages = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    let kernel: &'static Kernel = Box::leak(Box::new(Kernel::new(Threads, zone, gp).unwrap()));
    // No thread begins in the middle of a fork but by `on_a_thread`.
    let begun = Barrier::new(cfg::THREADS + 1);
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        for seed in 0..cfg::THREADS {
            let (begun, done) = (&begun, &done);
            s.spawn(move || {
                begun.wait();
                let mut round = seed;
                while !done.load(Ordering::Relaxed) {
                    use_it_all(kernel, round);
                    round += 1;
                    if round.is_multiple_of(50) {
                        // Slots come and go.
                        on_a_thread(move || use_it_all(kernel, round));
                    }
                }
            });
        }
        begun.wait();
        let over = Done(&done);
        for i in 0..cfg::FORKS {
            use_it_all(kernel, i);
            let caches = kernel.before_fork();
            let pages = zone.before_fork();
            // Each side ends the holding by itself.
            let mut held = Some((caches, pages));
            let result = fork(|| {
                let (caches, pages) = held.take().expect("held over the fork");
                // SAFETY: the first thing that the child does; it has no guards.
                unsafe { rcu_core::fork::after_fork_child() };
                // SAFETY: the child's only thread, which held the zone over the fork.
                unsafe { pages.after_fork_child() };
                // SAFETY: as above.
                unsafe { caches.after_fork_child() };
                for round in 0..120 {
                    use_it_all(kernel, round);
                }
                // The slots of the threads that are gone have new owners.
                for round in 0..4 {
                    check(
                        std::thread::spawn(move || use_it_all(kernel, round * 10))
                            .join()
                            .is_ok(),
                    );
                }
                kernel.barrier();
                check(kernel.waiting_objects() == 0);
                kernel.shrink(usize::MAX);
                zone.drain_all();
            });
            assert_eq!(result, Ok(()), "a child's check failed at that line");
            let (caches, pages) = held.take().expect("the parent's");
            pages.after_fork_parent();
            caches.after_fork_parent();
        }
        drop(over);
    });
    kernel.barrier();
    let stats = kernel.stats();
    assert!(stats.classes.iter().all(|class| class.live == 0), "{stats}");
}

/// What the lock protects: nobody gets in while the fork is on its way, and all go on afterwards.
fn nobody_is_inside_while_a_fork_is_on_its_way() {
    let gp: &'static ManualGp = Box::leak(Box::new(ManualGp::auto()));
    let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
    // SAFETY: destroyed below, before the zone ends; a panic drops it.
    let kernel = unsafe { Kmalloc::new_scoped(Threads, &zone, gp) }.unwrap();
    let kernel = &kernel;
    use_it_all(kernel, 0);
    let caches = kernel.before_fork();
    let pages = zone.before_fork();
    let got_in = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            use_it_all(kernel, 0);
            got_in.store(true, Ordering::Release);
        });
        // Whatever it does until here, it is not through.
        std::thread::yield_now();
        assert!(!got_in.load(Ordering::Acquire));
        drop(pages);
        drop(caches);
    });
    assert!(got_in.load(Ordering::Acquire));
    use_it_all(kernel, 0);
}
