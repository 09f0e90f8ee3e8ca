//! Type-stable caches from above: readers who hold nothing, in sections of a tree, of a single CPU's RCU, and none.

#![cfg(not(loom))]

mod common;

use common::Pages;
use rcu_core::cpu::{SpinMutex, Threads};
use rcu_core::{Domain, GracePeriod, read_lock};
use rcu_tiny::{Tiny, TinyStatic};
use slab::{Checks, Stability, StableCache, StableCell, TypeStable};
use std::ptr::NonNull;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

mod cfg {
    //! Sizes, in one place.

    /// Lookups of all readers together: ten million with `STRESS_LONG` set, as `cargo xtask test-all --long` has it.
    pub(crate) fn lookups() -> usize {
        if cfg!(any(miri, thread_sanitizer)) {
            2_000
        } else if std::env::var_os("STRESS_LONG").is_some() {
            10_000_000
        } else {
            100_000
        }
    }
    pub(crate) const READERS: usize = 3;
    pub(crate) const WRITERS: usize = 2;
    pub(crate) const PLACES: usize = 16;
    /// What the writers do at the least while readers look.
    pub(crate) const TURNS: usize = 3_000;
}

rcu_tree::static_tree! {
    /// Readers of these tests.
    struct OnTree;
}

// SAFETY: one test uses it, on one thread.
static TINY: TinyStatic = unsafe { TinyStatic::new(Tiny::new()) };
rcu_core::domain! {
    /// Readers on one CPU.
    struct OnTiny = TINY: Tiny;
}

/// `b` is the square of `a`, and `a` says in which place the object is.
struct Square {
    a: AtomicU64,
    b: AtomicU64,
    lock: SpinMutex<u64>,
}

impl TypeStable for Square {
    fn construct() -> Self {
        Self {
            a: AtomicU64::new(0),
            b: AtomicU64::new(0),
            lock: SpinMutex::new(0),
        }
    }
}

impl Square {
    fn make(&self, a: u64) {
        self.a.store(a, Ordering::Relaxed);
        self.b.store(a * a, Ordering::Relaxed);
    }

    fn a(&self) -> u64 {
        self.a.load(Ordering::Relaxed)
    }
}

type Squares<G> = StableCache<Square, Threads, &'static Pages, G>;
type Place<'c, G> = StableCell<'c, Square, Threads, &'static Pages, G>;

fn cache<G: Domain>(stability: Stability) -> Squares<G> {
    let pages: &'static Pages = Box::leak(Box::new(Pages::new()));
    let config = Squares::<G>::config("square")
        .checks(Checks::empty())
        .stability(stability);
    Squares::with_config(config, Threads, pages, G::default()).unwrap()
}

/// Destroys a cache, of which nothing is out, and every page must be back.
fn end<G: Domain>(cache: Squares<G>) {
    let pages = *cache.raw().pages();
    cache.destroy().expect("nothing is out");
    assert_eq!(pages.outstanding(), 0);
}

/// What a lookup came to.
#[derive(Debug, PartialEq, Eq)]
enum Lookup {
    Nothing,
    Right,
    /// Another object than the one sought, or one half made.
    Wrong,
}

/// Whether to look again whom one got: leaving it out is the bug that the self-check must catch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Recheck {
    Yes,
    No,
}

/// The kernel's self-check of such readers: finds what is in the place numbered `index`, pins it, looks at `a` again, and then
/// `b` must be its square. `between` comes after the object was found and before it is pinned.
fn look<G: Domain>(
    place: &Place<'_, G>,
    index: u64,
    recheck: Recheck,
    between: impl FnOnce(),
) -> Lookup {
    let belongs = |square: &Square| square.a() % cfg::PLACES as u64 == index;
    let guard = read_lock::<G>();
    let Some(found) = place.load(&guard) else {
        return Lookup::Nothing;
    };
    between();
    let pinned = match recheck {
        Recheck::Yes => found.try_pin_if(belongs),
        Recheck::No => found.pin_any(),
    };
    drop(guard);
    let Some(pinned) = pinned else {
        return Lookup::Nothing;
    };
    let (a, b) = (pinned.a(), pinned.b.load(Ordering::Relaxed));
    if belongs(&pinned) && b == a * a {
        Lookup::Right
    } else {
        Lookup::Wrong
    }
}

/// A small generator: xorshift.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state >> 8
}

/// Writers allocate and free as fast as they can, from place to place, while readers look.
fn self_check<G: Domain>(stability: Stability) {
    let cache = cache::<G>(stability);
    let right = AtomicUsize::new(0);
    {
        let places: Vec<_> = (0..cfg::PLACES as u64)
            .map(|index| {
                let place = Place::new(&cache);
                place.store(Some(cache.alloc(|s| s.make(index)).unwrap()));
                place
            })
            .collect();
        let stop = AtomicBool::new(false);
        let wrong = AtomicUsize::new(0);
        let turns = AtomicUsize::new(0);
        std::thread::scope(|s| {
            let readers: Vec<_> = (0..cfg::READERS)
                .map(|n| {
                    let (places, right, wrong, turns) = (&places, &right, &wrong, &turns);
                    s.spawn(move || {
                        let mut state = 0x9e37_79b9_7f4a_7c15 ^ n as u64;
                        let (enough, mut looks) = (cfg::lookups() / cfg::READERS + 1, 0);
                        while looks < enough || turns.load(Ordering::Relaxed) < cfg::TURNS {
                            looks += 1;
                            if looks.is_multiple_of(256) || looks > enough {
                                std::thread::yield_now();
                            }
                            let index = random(&mut state) % cfg::PLACES as u64;
                            let place = &places[index as usize];
                            match look(place, index, Recheck::Yes, || ()) {
                                Lookup::Nothing => {}
                                Lookup::Right => _ = right.fetch_add(1, Ordering::Relaxed),
                                Lookup::Wrong => _ = wrong.fetch_add(1, Ordering::Relaxed),
                            }
                        }
                    })
                })
                .collect();
            for n in 0..cfg::WRITERS {
                let (places, cache, stop, turns) = (&places, &cache, &stop, &turns);
                s.spawn(move || {
                    let mut state = 0x2545_f491_4f6c_dd1d ^ n as u64;
                    let mut held = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        turns.fetch_add(1, Ordering::Relaxed);
                        let index = random(&mut state) % cfg::PLACES as u64;
                        let a = random(&mut state) % 1000 * cfg::PLACES as u64 + index;
                        match random(&mut state) % 8 {
                            0 => places[index as usize].store(None),
                            1 => held.push(cache.alloc(|s| s.make(a)).unwrap()),
                            2 => held.clear(),
                            3 if random(&mut state) & 0xff == 0 => {
                                cache.raw().shrink(usize::MAX);
                            }
                            _ => places[index as usize]
                                .store(Some(cache.alloc(|s| s.make(a)).unwrap())),
                        }
                        if held.len() > 300 {
                            held.clear();
                        }
                    }
                });
            }
            let ended: Vec<_> = readers.into_iter().map(|r| r.join()).collect();
            stop.store(true, Ordering::Relaxed);
            assert!(ended.iter().all(Result::is_ok));
        });
        assert_eq!(wrong.load(Ordering::Relaxed), 0);
    }
    assert!(right.load(Ordering::Relaxed) > 0, "nobody found anything");
    end(cache);
}

#[test]
fn l5_the_self_check_holds_under_heavy_reuse() {
    self_check::<OnTree>(Stability::Type);
}

#[test]
fn l7_the_self_check_holds_where_objects_wait() {
    self_check::<OnTree>(Stability::Delayed);
}

/// One reader and one writer, hand in hand: the writer replaces, frees and allocates between the reader's finding and pinning.
fn look_while_reused(stability: Stability, recheck: Recheck) -> Lookup {
    let cache = cache::<OnTree>(stability);
    let result = {
        let [one, two] = [(); 2].map(|()| Place::new(&cache));
        one.store(Some(cache.alloc(|s| s.make(cfg::PLACES as u64)).unwrap()));
        let (found, reused) = (Barrier::new(2), Barrier::new(2));
        std::thread::scope(|s| {
            let reader = s.spawn(|| {
                look(&one, 0, recheck, || {
                    found.wait();
                    reused.wait();
                })
            });
            found.wait();
            // This thread had the object, so it is the next that it gets, unless objects wait.
            one.store(None);
            two.store(Some(
                cache.alloc(|s| s.make(cfg::PLACES as u64 + 1)).unwrap(),
            ));
            reused.wait();
            reader.join().unwrap()
        })
    };
    end(cache);
    result
}

/// The deliberately broken reader of the self-check, caught each time.
#[test]
fn t24_a_reader_that_does_not_look_again_is_caught() {
    assert_eq!(
        look_while_reused(Stability::Type, Recheck::No),
        Lookup::Wrong
    );
}

/// The same reader is not caught where objects wait: so checks of readers are not to be made there.
#[test]
fn t24_delaying_objects_hides_the_missing_look() {
    let hidden = look_while_reused(Stability::Delayed, Recheck::No);
    assert_eq!(hidden, Lookup::Nothing);
}

#[test]
fn l7_a_reader_that_looks_again_is_right_in_both_modes() {
    for stability in [Stability::Type, Stability::Delayed] {
        assert_eq!(look_while_reused(stability, Recheck::Yes), Lookup::Nothing);
    }
}

/// A whole life in one thread, under any RCU: found, freed, another, pinned by each of the ways.
fn stale_reader<G: Domain>() {
    let cache = cache::<G>(Stability::Type);
    {
        let (place, other) = (Place::<G>::new(&cache), Place::<G>::new(&cache));
        place.store(Some(cache.alloc(|s| s.make(3)).unwrap()));
        let guard = read_lock::<G>();
        let found = place.load(&guard).unwrap();
        let (by_generation, later) = (found.try_pin().unwrap(), found.downgrade());
        assert_eq!((by_generation.a(), place.pin(&guard).unwrap().a()), (3, 3));
        drop(by_generation);
        assert!(found.is_current());

        place.store(None);
        assert!(!found.is_current() && found.pin_any().is_none(), "dead");
        assert!(place.pin(&guard).is_none());
        other.store(Some(cache.alloc(|s| s.make(4)).unwrap()));
        assert_eq!(found.a(), 4, "the same memory, another object");
        assert!(!found.is_current());
        assert!(found.try_pin().is_none() && later.pin().is_none());
        assert!(found.try_pin_if(|s| s.a() == 3).is_none());
        assert_eq!(found.try_pin_if(|s| s.a() == 4).unwrap().a(), 4);
        assert_eq!(
            cache.raw().stats().live,
            1,
            "nothing that was let go is lost"
        );
        other.store(None);
        drop(guard);
        drop(later);
    }
    end(cache);
}

#[test]
fn l5_stale_readers_of_a_tree() {
    stale_reader::<OnTree>();
}

#[test]
fn l5_stale_readers_on_one_cpu() {
    stale_reader::<OnTiny>();
}

/// The key was looked at before the reference was taken, or written after the count.
#[test]
fn t20_post_2004_the_look_comes_after_the_reference_and_the_key_before_the_count() {
    let cache = cache::<OnTree>(Stability::Type);
    {
        let place = Place::new(&cache);
        place.store(Some(cache.alloc(|s| s.make(1)).unwrap()));
        let guard = read_lock::<OnTree>();
        let found = place.load(&guard).unwrap();
        // While the look lasts, the object is pinned: what is freed then is not used again.
        let pinned = found.try_pin_if(|s| {
            place.store(None);
            let next = cache.alloc(|s| s.make(2)).unwrap();
            assert!(!std::ptr::eq(&raw const *next, s));
            s.a() == 1
        });
        assert_eq!(pinned.unwrap().a(), 1);
        // A look that says no lets go of the last reference.
        assert_eq!(cache.raw().stats().live, 0);
        // Nobody gets a reference to an object that is being made.
        place.store(Some(cache.alloc(|s| s.make(1)).unwrap()));
        let found = place.load(&guard).unwrap();
        place.store(None);
        let made = cache.alloc(|s| {
            assert!(std::ptr::eq(s, found.get()), "the same memory");
            assert!(found.pin_any().is_none(), "half made");
            s.make(5);
            assert!(found.pin_any().is_none(), "made, and not alive");
        });
        assert_eq!(found.pin_any().unwrap().a(), 5);
        drop(made);
    }
    end(cache);
}

/// A lock was made anew at each allocation, while a stale reader held it.
#[test]
fn t21_post_2004_a_lock_outlasts_the_lives_of_its_object() {
    let cache = cache::<OnTree>(Stability::Type);
    {
        let place = Place::new(&cache);
        place.store(Some(cache.alloc(|s| s.make(1)).unwrap()));
        let guard = read_lock::<OnTree>();
        let found = place.load(&guard).unwrap();
        let stale = found.get().lock.lock();
        place.store(None);
        let reused = cache.alloc(|s| s.make(2)).unwrap();
        assert!(std::ptr::eq(&raw const *reused, found.get()));
        assert!(reused.lock.try_lock().is_none(), "the stale reader has it");
        drop(stale);
        assert!(reused.lock.try_lock().is_some());
    }
    end(cache);
}

/// The cache ended under a reader who still looked at what had been freed.
#[test]
fn t19_destroy_waits_for_a_reader_of_a_free_object() {
    let cache = cache::<OnTree>(Stability::Type);
    let left = AtomicBool::new(false);
    let (found, freed) = (Barrier::new(2), Barrier::new(2));
    let pages = *cache.raw().pages();
    let place = AtomicPtr::new(cache.alloc(|s| s.make(9)).unwrap().into_raw().as_ptr());
    std::thread::scope(|s| {
        s.spawn(|| {
            let guard = read_lock::<OnTree>();
            let object = place.load(Ordering::Acquire);
            found.wait();
            freed.wait();
            for _ in 0..200 {
                // SAFETY: found in this section, which lasts; the object's memory is a `Square` as long.
                assert_eq!(unsafe { &*object }.a(), 9);
                std::thread::yield_now();
            }
            left.store(true, Ordering::Release);
            drop(guard);
        });
        found.wait();
        let object = NonNull::new(place.load(Ordering::Relaxed)).unwrap();
        // SAFETY: made raw above, once.
        drop(unsafe { cache.from_raw(object) });
        freed.wait();
        cache.destroy().expect("nothing is out");
        assert!(left.load(Ordering::Acquire), "the reader was still inside");
    });
    assert_eq!(pages.outstanding(), 0);
}

/// References of many threads to one object: the last frees it, once.
#[test]
fn l5_the_last_of_many_references_frees() {
    let cache = cache::<OnTree>(Stability::Type);
    {
        let place = Place::new(&cache);
        for round in 0..50 {
            let object = cache.alloc(|s| s.make(round)).unwrap();
            let weak = object.downgrade();
            place.store(Some(object));
            std::thread::scope(|s| {
                for _ in 0..3 {
                    s.spawn(|| {
                        for _ in 0..20 {
                            let pinned = place.pin(&read_lock::<OnTree>());
                            let other = weak.pin();
                            if let (Some(a), Some(b)) = (&pinned, &other) {
                                assert!(a.ptr_eq(b));
                            }
                            let _more = pinned.clone();
                        }
                    });
                }
                place.store(None);
            });
            assert!(weak.pin().is_none());
            assert_eq!(cache.raw().stats().live, 0);
        }
        assert!(OnTree.grace_periods() < usize::MAX);
    }
    end(cache);
}
