//! Every point at which memory is asked for, refused: the n-th request alone, and it and all after it, for all n.

mod common;

use common::{Failure, Hand, Pages};
use pagealloc::{AllocError, Attempt};
use rcu_core::manual::ManualGp;
use slab::{CacheConfig, Checks, CreateError, Kmalloc, RawCache};
use std::alloc::Layout;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

const CAP: usize = 5;

type Raw<'a> = RawCache<&'a Hand, &'a Pages, &'a ManualGp>;

/// What a step works on. `live` are the objects that the test has.
struct World<'w, 'a> {
    cache: &'w Raw<'a>,
    cpus: &'w Hand,
    gp: &'w ManualGp,
    live: Vec<NonNull<u8>>,
}

impl World<'_, '_> {
    fn alloc(&mut self, n: usize) {
        for _ in 0..n {
            self.live.extend(self.cache.alloc());
        }
    }

    /// H5: what the cache counts as live is what the test has, and none of it twice.
    fn check(&self, aside: usize) {
        let stats = self.cache.stats();
        assert_eq!(stats.live, self.live.len() + aside, "lost or torn: {stats}");
        let mut addresses: Vec<_> = self.live.iter().map(|o| o.addr()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), self.live.len(), "out twice");
    }
}

/// Runs `prepare` with memory and then `step` with a source that fails at its n-th call, for all n. With all checks and with
/// none; says how many calls there were with none.
fn at_every_point(
    prepare: impl Fn(&mut World<'_, '_>),
    step: impl Fn(&mut World<'_, '_>),
) -> usize {
    let run = |checks: Checks, failure: fn(usize) -> Failure, n: usize| {
        let (pages, cpus, gp) = (Pages::new(), Hand::new(3), ManualGp::new());
        let layout = Layout::from_size_align(1000, 8).unwrap();
        let config = CacheConfig::new("failures", layout)
            .sheaf_capacity(CAP)
            .min_partial(0)
            .checks(checks);
        // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
        let cache = unsafe { RawCache::new_scoped(config, &cpus, &pages, &gp) }.unwrap();
        let (cpus, gp) = (&cpus, &gp);
        let mut world = World {
            cache: &cache,
            cpus,
            gp,
            live: Vec::new(),
        };
        prepare(&mut world);
        let before = pages.calls();
        pages.set_failure(failure(before + n));
        step(&mut world);
        let calls = pages.calls() - before;
        world.check(0);
        // Still as good as before.
        pages.set_failure(Failure::Never);
        world.alloc(3 * CAP);
        world.check(0);
        let World { live, .. } = world;
        for object in live {
            // SAFETY: the test had the object.
            unsafe { cache.free(object) };
        }
        cache.destroy().expect("nothing is out");
        assert_eq!(pages.outstanding(), 0, "pages are lost");
        calls
    };
    [Checks::all(), Checks::empty()].map(|checks| {
        let calls = run(checks, |_| Failure::Never, 0);
        for n in 0..=calls {
            run(checks, Failure::Once, n);
            run(checks, Failure::From, n);
        }
        calls
    })[1]
}

fn nothing(_: &mut World<'_, '_>) {}

#[test]
fn alloc_at_every_failure_point() {
    for slot in [Some(0), None] {
        let calls = at_every_point(nothing, |world| {
            world.cpus.go(slot);
            world.alloc(80);
        });
        assert!(calls >= 3, "{calls}");
    }
}

#[test]
fn alloc_bulk_at_every_failure_point() {
    for attempt in [Attempt::MayGrow, Attempt::TryLock] {
        let calls = at_every_point(nothing, |world| {
            let mut out = vec![MaybeUninit::uninit(); 100];
            let before = world.cache.stats().live;
            match world.cache.alloc_bulk(&mut out, attempt) {
                // SAFETY: all or nothing, and it was all.
                Ok(()) => world
                    .live
                    .extend(out.iter().map(|o| unsafe { o.assume_init() })),
                Err(_) => assert_eq!(world.cache.stats().live, before, "L9: nothing"),
            }
        });
        assert!(calls >= 4, "{calls}");
    }
}

#[test]
fn h12_prefill_at_every_failure_point() {
    for attempt in [Attempt::MayGrow, Attempt::TryLock] {
        for slot in [Some(0), None] {
            let calls = at_every_point(
                |world| world.alloc(7),
                |world| {
                    world.cpus.go(slot);
                    let Ok(mut aside) = world.cache.prefill(60, attempt) else {
                        return world.check(0);
                    };
                    assert!(aside.len() >= 60);
                    world.check(aside.len());
                    for _ in 0..58 {
                        world.live.push(aside.pop().expect("set aside"));
                    }
                    // What is there stays there, whether there comes more or not.
                    let before = aside.len();
                    match aside.refill(90, attempt) {
                        Ok(()) => assert!(aside.len() >= 90),
                        Err(_) => assert!(aside.len() >= before),
                    }
                    world.check(aside.len());
                    drop(aside);
                },
            );
            assert!(calls >= 4, "{calls}");
        }
    }
}

#[test]
fn h9_retire_at_every_failure_point() {
    let calls = at_every_point(
        // Slots that never had a sheaf.
        |world| {
            world.cpus.go(None);
            world.alloc(100);
        },
        |world| {
            for slot in [Some(0), Some(1), None] {
                world.cpus.go(slot);
                for object in world.live.split_off(world.live.len() - 30) {
                    // SAFETY: the test had the object.
                    let refused = unsafe { world.cache.retire(object) };
                    world.live.extend(refused.err());
                }
                world.check(0);
                world.gp.advance();
            }
            world.cache.barrier();
            assert_eq!(world.cache.stats().waiting, 0);
        },
    );
    assert!(calls >= 1, "{calls}");
}

#[test]
fn l8_free_bulk_at_every_failure_point() {
    let calls = at_every_point(
        // Slots that never had a sheaf: frees have to find some.
        |world| {
            world.cpus.go(None);
            world.alloc(120);
        },
        |world| {
            for slot in [0, 1] {
                world.cpus.go(Some(slot));
                let mut objects = world.live.split_off(world.live.len() - 50);
                // SAFETY: the test had the objects.
                unsafe { world.cache.free_bulk(&mut objects) };
                world.check(0);
            }
            while let Some(object) = world.live.pop() {
                // SAFETY: the test had the object.
                unsafe { world.cache.free_attempt(object, Attempt::TryLock) };
            }
        },
    );
    assert!(calls >= 1, "{calls}");
}

#[test]
fn l14_creation_and_destruction_at_every_failure_point() {
    let run = |failure: Failure| {
        let (pages, cpus, gp) = (Pages::failing(failure), Hand::new(2), ManualGp::new());
        let config = CacheConfig::new("failures", Layout::new::<[u64; 9]>()).sheaf_capacity(CAP);
        // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
        match unsafe { RawCache::new_scoped(config, &cpus, &pages, &gp) } {
            Err(error) => assert_eq!(error, CreateError::Memory(AllocError::OutOfMemory)),
            Ok(cache) => {
                let mut objects: Vec<_> = (0..40).filter_map(|_| cache.alloc().ok()).collect();
                let cache = match (objects.is_empty(), cache.destroy()) {
                    (true, ended) => return (ended.is_ok(), pages.calls()),
                    (false, ended) => ended.expect_err("objects are out").cache,
                };
                for object in objects.drain(..) {
                    // SAFETY: the test had the object.
                    if let Err(object) = unsafe { cache.retire(object) } {
                        // SAFETY: as above; there are no readers.
                        unsafe { cache.free(object) };
                    }
                }
                let calls = pages.calls();
                // Ends whatever the source says: it asks for nothing.
                pages.set_failure(Failure::From(0));
                cache.destroy().expect("nothing is out");
                assert_eq!(pages.calls(), calls);
            }
        }
        assert_eq!(pages.outstanding(), 0, "pages are lost");
        (true, pages.calls())
    };
    let (_, calls) = run(Failure::Never);
    assert!(calls >= 5, "{calls}");
    for n in 0..=calls {
        assert!(run(Failure::Once(n)).0);
        assert!(run(Failure::From(n)).0);
    }
}

#[test]
fn kmalloc_s_creation_at_every_failure_point() {
    let run = |failure: Failure| {
        let (pages, cpus, gp) = (Pages::failing(failure), Hand::new(2), ManualGp::new());
        // SAFETY: the allocator is destroyed below, before what it borrows ends.
        if let Ok(km) = unsafe { Kmalloc::new_scoped(&cpus, &pages, &gp) } {
            km.destroy().expect("nothing is out");
        }
        assert_eq!(pages.outstanding(), 0, "pages are lost");
        pages.calls()
    };
    let calls = run(Failure::Never);
    for n in 0..=calls {
        run(Failure::Once(n));
        run(Failure::From(n));
    }
}
