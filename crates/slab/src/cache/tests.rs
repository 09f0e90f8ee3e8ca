//! What needs a lock to be taken at the right moment.

use super::*;
use crate::common::{Hand, Pages};
use crate::stats::Event;
use crate::{CacheConfig, Checks, Stability};
use core::alloc::Layout;
use rcu_core::manual::ManualGp;

const CAP: usize = 5;

type Raw<'a> = RawCache<&'a Hand, &'a Pages, &'a ManualGp>;

/// Runs `test` on a cache of two slots; afterwards every page must be back.
fn with_cache(test: impl FnOnce(&Raw<'_>)) {
    // Sheaves are what is tested here.
    with(config().checks(Checks::empty()), test);
}

fn config() -> CacheConfig {
    CacheConfig::new("test", Layout::new::<[u64; 8]>()).sheaf_capacity(CAP)
}

fn with(config: CacheConfig, test: impl FnOnce(&Raw<'_>)) {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(2), ManualGp::new());
    // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
    let cache = unsafe { RawCache::new_scoped(config, &cpus, &pages, &gp) }.unwrap();
    test(&cache);
    cache.destroy().expect("nothing is out");
    assert_eq!(pages.outstanding(), 0);
}

fn free(cache: &Raw<'_>, objects: impl IntoIterator<Item = NonNull<u8>>) {
    for object in objects {
        // SAFETY: the test had the object.
        unsafe { cache.free(object) };
    }
}

#[test]
fn nothing_is_lost_where_every_lock_is_taken() {
    with_cache(|cache| {
        let inner = cache.inner();
        let objects: Vec<_> = (0..CAP).map(|_| cache.alloc().unwrap()).collect();
        let mut sheaf = inner.new_sheaf(Attempt::MayGrow).unwrap();
        for object in objects {
            assert!(sheaf.push(object));
        }
        let empty = inner.new_sheaf(Attempt::MayGrow).unwrap();
        {
            let _barn = inner.barn.0.enter();
            let _slabs = inner.slabs.0.lock();
            let mut dying = Dying::default();
            inner.stow(sheaf, Attempt::TryLock, &mut dying);
            inner.stow(empty, Attempt::TryLock, &mut dying);
            assert!(dying.pop().is_none());
        }
        let stats = cache.stats();
        assert_eq!((stats.live, stats.barn_full), (0, 1), "{stats}");
    });
}

#[test]
fn a_surplus_that_cannot_be_flushed_stays_in_the_barn() {
    with_cache(|cache| {
        let inner = cache.inner();
        let objects: Vec<_> = (0..30).map(|_| cache.alloc().unwrap()).collect();
        for &object in &objects {
            let mut sheaf = inner.new_sheaf(Attempt::MayGrow).unwrap();
            assert!(sheaf.push(object));
            inner.barn.0.enter().add_full(sheaf);
        }
        {
            let _slabs = inner.slabs.0.lock();
            inner.trim_barn(Attempt::TryLock);
        }
        assert_eq!(cache.stats().barn_full, 30);
        assert_eq!(cache.stats().live, 0);
        inner.trim_barn(Attempt::TryLock);
        assert_eq!(cache.stats().barn_full, 10);
    });
}

#[test]
fn allocating_and_retiring_wait_for_no_lock() {
    with_cache(|cache| {
        let inner = cache.inner();
        let mut objects = Vec::new();
        {
            let _barn = inner.barn.0.enter();
            // Partial slabs serve without the barn.
            for _ in 0..3 * CAP {
                objects.push(cache.alloc_attempt(Attempt::TryLock).unwrap());
            }
            let _slabs = inner.slabs.0.lock();
            while let Ok(object) = cache.alloc_attempt(Attempt::TryLock) {
                objects.push(object);
            }
            let refused = cache.alloc_attempt(Attempt::TryLock);
            assert_eq!(refused, Err(AllocError::Contended));
            for object in objects.split_off(CAP) {
                // SAFETY: the test had the object.
                unsafe { cache.retire(object) }.unwrap();
            }
        }
        assert_eq!(cache.stats().live, CAP);
        free(cache, objects);
    });
}

#[test]
fn while_a_visitor_is_in_the_shared_path_serves() {
    with_cache(|cache| {
        let inner = cache.inner();
        let object = cache.alloc().unwrap();
        {
            let _visitor = inner.slot(Slot::new(0)).cell.visit();
            let other = cache.alloc().unwrap();
            assert_ne!(object, other);
            // SAFETY: the test had the object.
            assert_eq!(unsafe { cache.retire(other) }, Err(other));
            free(cache, [other]);
            // Never waits: the slot is left for the next time.
            assert_eq!(cache.reap(), 1);
        }
        assert_eq!(cache.reap(), 0);
        free(cache, [object]);
    });
}

#[test]
fn a_slab_that_found_no_lock_is_not_leaked() {
    with_cache(|cache| {
        let inner = cache.inner();
        let slab = inner.new_slab(Attempt::TryLock).unwrap();
        let mut dying = Dying::default();
        dying.push(slab);
        assert_eq!(inner.bury(dying, Attempt::TryLock), 1);
    });
}

#[test]
fn l5_slabs_that_find_no_lock_wait_for_the_next_who_comes_by() {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(2), ManualGp::new());
    let config = CacheConfig::new("stable", Layout::new::<[u64; 8]>())
        .min_partial(0)
        .sheaf_capacity(CAP)
        .stability(Stability::Type);
    // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
    let cache = unsafe { RawCache::new_scoped(config, &cpus, &pages, &gp) }.unwrap();
    let object = cache.alloc().unwrap();
    free(&cache, [object]);
    cache.shrink(usize::MAX);
    let inner = cache.inner();
    gp.advance();
    {
        let _slabs = inner.slabs.0.lock();
        assert_eq!(inner.bury(Dying::default(), Attempt::TryLock), 0);
    }
    assert_eq!(cache.stats().slabs_waiting, 1);
    assert_eq!(inner.bury(Dying::default(), Attempt::TryLock), 1);
    // One that was never given out has no readers.
    let slab = inner.new_slab(Attempt::TryLock).unwrap();
    let out = pages.outstanding();
    inner.unborn(Some(slab), Attempt::TryLock);
    assert_eq!(
        (pages.outstanding(), cache.stats().slabs_waiting),
        (out - 1, 0)
    );
    cache.destroy().expect("nothing is out");
    assert_eq!(pages.outstanding(), 0);
}

/// Locks that somebody else holds, by bits.
const BARN: u8 = 1;
const SLABS: u8 = 2;
const SHEAVES: u8 = 4;
const DESCRIPTORS: u8 = 8;
const SLOT: u8 = 16;
const QUARANTINE: u8 = 32;

/// Runs `action` while the locks in `held` are taken.
fn holding<R>(cache: &Raw<'_>, held: u8, action: impl FnOnce() -> R) -> R {
    let inner = cache.inner();
    let wants = |lock| held & lock != 0;
    let _slot = wants(SLOT).then(|| inner.slot(Slot::new(0)).cell.visit());
    let _barn = wants(BARN).then(|| inner.barn.0.enter());
    let _quarantine = wants(QUARANTINE).then(|| inner.quarantine.0.lock());
    let _slabs = wants(SLABS).then(|| inner.slabs.0.lock());
    let _sheaves = wants(SHEAVES).then(|| inner.sheaves.0.hold());
    let _descriptors = wants(DESCRIPTORS).then(|| inner.descriptors.0.hold());
    action()
}

const ALL: u8 = BARN | SLABS | SHEAVES | DESCRIPTORS | SLOT | QUARANTINE;

#[test]
fn l12_a_free_that_finds_every_lock_taken_is_deferred() {
    let (attempts, checks) = (
        [Attempt::PcpOnly, Attempt::TryLock],
        [Checks::empty(), Checks::all()],
    );
    for (attempt, checks) in attempts.into_iter().flat_map(|a| checks.map(|c| (a, c))) {
        with(config().checks(checks), |cache| {
            let mut objects: Vec<_> = (0..3 * CAP).map(|_| cache.alloc().unwrap()).collect();
            let kept = objects.pop().unwrap();
            holding(cache, ALL, || {
                for &object in &objects {
                    // SAFETY: the test had the object.
                    unsafe { cache.free_attempt(object, attempt) };
                }
            });
            let stats = cache.stats();
            assert_eq!(
                stats.events.of(Event::FreeDefer),
                objects.len() as u64,
                "counted"
            );
            assert_eq!(stats.live, 1, "not lost: {stats}");
            free(cache, [kept]);
        });
    }
}

/// What drains the list, without `stats`, which does too.
#[test]
fn l12_what_was_deferred_is_drained_by_whoever_comes_next() {
    type Drain = fn(&Raw<'_>);
    let drains: [Drain; 5] = [
        |cache| cache.barrier(),
        |cache| assert_eq!(cache.reap(), 0),
        |cache| {
            cache.shrink(1);
        },
        |cache| {
            let object = cache.alloc_attempt(Attempt::TryLock).unwrap();
            free(cache, [object]);
        },
        // Finds the slot busy, and so the slow path.
        |cache| {
            let object = cache.alloc().unwrap();
            holding(cache, SLOT, || free(cache, [object]));
        },
    ];
    for (which, drain) in drains.into_iter().enumerate() {
        with_cache(|cache| {
            let inner = cache.inner();
            let objects: Vec<_> = (0..4).map(|_| cache.alloc().unwrap()).collect();
            // Empties `main`, so that the next allocation is a miss.
            inner.shrink(usize::MAX, Attempt::NoWait);
            holding(cache, ALL, || {
                for &object in &objects {
                    // SAFETY: the test had the object.
                    unsafe { cache.free_attempt(object, Attempt::TryLock) };
                }
            });
            assert!(!inner.deferred.is_empty());
            drain(cache);
            assert!(inner.deferred.is_empty(), "drain {which}");
        });
    }
}

#[test]
fn l12_destroy_finds_what_was_deferred() {
    with_cache(|cache| {
        let object = cache.alloc().unwrap();
        holding(cache, ALL, || {
            // SAFETY: the test had the object.
            unsafe { cache.free_attempt(object, Attempt::TryLock) };
        });
        // `with_cache` destroys it.
    });
}

/// The link of a deferred object lies behind one that must stay as it is.
#[test]
fn l2_an_object_that_stays_as_it_is_stays_so_while_it_is_deferred() {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(1), ManualGp::new());
    let config = CacheConfig::new("stable", Layout::new::<[u64; 8]>()).stability(Stability::Type);
    // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
    let cache = unsafe { Raw::new_scoped(config, &cpus, &pages, &gp) }.unwrap();
    let objects: Vec<_> = (0..6)
        .map(|_| cache.alloc().unwrap().cast::<[u64; 8]>())
        .collect();
    for object in &objects {
        // SAFETY: the test has the object.
        unsafe { object.write([0x5a5a; 8]) };
    }
    holding(&cache, ALL, || {
        for object in &objects {
            // SAFETY: the test had the object.
            unsafe { cache.free_attempt(object.cast(), Attempt::TryLock) };
        }
    });
    for object in &objects {
        // SAFETY: nobody else has it: the cache's memory, as it was left.
        assert_eq!(unsafe { object.read() }, [0x5a5a; 8]);
    }
    assert_eq!(
        (
            cache.stats().live,
            cache.stats().events.of(Event::FreeDefer)
        ),
        (0, 6)
    );
    cache.destroy().expect("nothing is out");
}

mod contended {
    use super::*;
    use crate::common::cases::cases;
    use core::mem::MaybeUninit;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Alloc,
        Bulk(usize),
        Free(usize),
        Retire(usize),
        Prefill(usize),
        Pop,
        GiveBack,
        Relieve(usize),
        Reap,
        Advance,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => Just(Op::Alloc),
            2 => (1..12_usize).prop_map(Op::Bulk),
            6 => any::<usize>().prop_map(Op::Free),
            4 => any::<usize>().prop_map(Op::Retire),
            2 => (1..12_usize).prop_map(Op::Prefill),
            3 => Just(Op::Pop),
            2 => Just(Op::GiveBack),
            1 => (1..9_usize).prop_map(Op::Relieve),
            1 => Just(Op::Reap),
            2 => Just(Op::Advance),
        ]
    }

    fn level() -> impl Strategy<Value = Attempt> {
        prop_oneof![Just(Attempt::PcpOnly), Just(Attempt::TryLock)]
    }

    proptest! {
        #![proptest_config(cases(400))]

        /// Whatever is taken at each moment: nobody waits (the test has one thread), nothing is lost, nothing is out twice.
        #[test]
        fn l12_h5_objects_are_conserved_where_locks_are_taken(
            stability in prop_oneof![
                Just(Stability::None),
                Just(Stability::Type),
                Just(Stability::Delayed),
            ],
            checks in prop_oneof![
                Just(Checks::empty()),
                Just(Checks::all()),
                any::<u8>().prop_map(Checks::from_bits_truncate),
            ],
            ops in prop::collection::vec((op(), 0..=ALL, level()), 0..120),
        ) {
            let checks = match stability {
                Stability::None => checks,
                _ => checks - Checks::POISON - Checks::QUARANTINE,
            };
            with(config().checks(checks).stability(stability), |cache| {
                let mut live: Vec<NonNull<u8>> = Vec::new();
                let mut aside: Vec<crate::RawPrefilled<'_, _, _, _>> = Vec::new();
                for (op, held, attempt) in &ops {
                    let attempt = *attempt;
                    let pick = |live: &mut Vec<_>, n: usize| match live.len() {
                        0 => None,
                        len => Some(live.swap_remove(n % len)),
                    };
                    holding(cache, *held, || match *op {
                        Op::Alloc => live.extend(cache.alloc_attempt(attempt)),
                        Op::Bulk(n) => {
                            let mut out = vec![MaybeUninit::uninit(); n];
                            if cache.alloc_bulk(&mut out, attempt).is_ok() {
                                // SAFETY: all or nothing, and it was all.
                                live.extend(out.iter().map(|o| unsafe { o.assume_init() }));
                            }
                        }
                        Op::Free(n) => {
                            if let Some(object) = pick(&mut live, n) {
                                // SAFETY: the test had the object.
                                unsafe { cache.free_attempt(object, attempt) };
                            }
                        }
                        Op::Retire(n) => {
                            if let Some(object) = pick(&mut live, n) {
                                // SAFETY: the test had the object.
                                live.extend(unsafe { cache.retire_attempt(object, attempt) }.err());
                            }
                        }
                        Op::Prefill(n) => {
                            if let Ok(some) = cache.prefill(n, attempt) {
                                assert!(some.len() >= n);
                                aside.push(some);
                            }
                        }
                        Op::Pop => {
                            if let Some(last) = aside.last_mut() {
                                let before = last.len();
                                let popped = last.pop();
                                assert_eq!(popped.is_some(), before > 0, "H12");
                                live.extend(popped);
                            }
                        }
                        Op::GiveBack => drop(aside.pop()),
                        Op::Relieve(pages) => {
                            cache.inner().shrink(pages, Attempt::TryLock);
                        }
                        Op::Reap => {
                            cache.reap();
                        }
                        Op::Advance => cache.gp().advance(),
                    });
                    let stats = cache.stats();
                    let out = live.len() + aside.iter().map(|a| a.len()).sum::<usize>();
                    assert_eq!(stats.live, out, "H5: {op:?} with {held:#b}: {stats}");
                    let mut sorted: Vec<_> = live.iter().map(|o| o.addr()).collect();
                    sorted.sort_unstable();
                    sorted.dedup();
                    assert_eq!(sorted.len(), live.len(), "out twice");
                }
                drop(aside);
                free(cache, live);
            });
        }
    }
}
