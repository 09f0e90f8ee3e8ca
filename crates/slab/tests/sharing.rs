//! What waits is counted over all slots, and is there for whoever allocates.

mod common;

use common::{Hand, Pages};
use pagealloc::Attempt;
use rcu_core::manual::ManualGp;
use rcu_core::{Cookie, GracePeriod};
use slab::{CacheConfig, Checks, RawCache};
use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

const CAP: usize = 5;
/// As much of it as may wait before a grace period is asked for.
const ASK: usize = 16 * CAP;

type Raw<'a, G = &'a ManualGp> = RawCache<&'a Hand, &'a Pages, G>;

fn config() -> CacheConfig {
    let layout = Layout::new::<[u64; 8]>();
    let config = CacheConfig::new("sharing", layout).sheaf_capacity(CAP);
    config.ask_after(ASK).checks(Checks::empty())
}

/// Runs `test` on a cache over `gp`; afterwards every page must be back.
fn with_cache<G: GracePeriod + Copy + Send + Sync>(
    gp: G,
    test: impl FnOnce(&Raw<'_, G>, &Hand, &Pages),
) {
    let (pages, cpus) = (Pages::new(), Hand::new(3));
    // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
    let cache = unsafe { RawCache::new_scoped(config(), &cpus, &pages, gp) }.unwrap();
    test(&cache, &cpus, &pages);
    cache.destroy().expect("nothing is out");
    assert_eq!(pages.outstanding(), 0);
}

fn alloc<G: GracePeriod>(cache: &Raw<'_, G>, n: usize) -> Vec<NonNull<u8>> {
    (0..n).map(|_| cache.alloc().unwrap()).collect()
}

fn retire<G: GracePeriod>(cache: &Raw<'_, G>, objects: impl IntoIterator<Item = NonNull<u8>>) {
    for object in objects {
        // SAFETY: the test had the object.
        assert!(unsafe { cache.retire(object) }.is_ok());
    }
}

fn free<G: GracePeriod>(cache: &Raw<'_, G>, objects: Vec<NonNull<u8>>) {
    for object in objects {
        // SAFETY: the test had the object.
        unsafe { cache.free(object) };
    }
}

/// All but a slot's share is there for the others.
#[test]
fn h12_what_one_slot_retires_another_one_allocates() {
    let gp = ManualGp::new();
    with_cache(&gp, |cache, cpus, pages| {
        cpus.go(Some(0));
        let objects = alloc(cache, 20 * CAP);
        retire(cache, objects);
        gp.advance();
        gp.advance();
        cpus.go(Some(1));
        let calls = pages.calls();
        let again = alloc(cache, 10 * CAP);
        assert_eq!(pages.calls(), calls, "no page was asked for");
        assert!(cache.waiting_objects() <= 9 * CAP);
        free(cache, again);
    });
}

/// However the work is spread, as much is in flight as one asking covers, and a little for each slot.
#[test]
fn uneven_slots_need_no_more_memory_than_even_ones() {
    let gp = ManualGp::auto();
    with_cache(&gp, |cache, cpus, _| {
        let turn = |slot: u32, objects: usize| {
            cpus.go(Some(slot));
            for _ in 0..objects {
                let object = alloc(cache, 1);
                retire(cache, object);
            }
        };
        for round in 0..200_u32 {
            // One slot does nearly all for a while, then another.
            let busy = round / 20 % 3;
            turn(busy, 3 * ASK);
            turn((busy + 1) % 3, CAP);
        }
        // Asked for at a threshold's worth; a share, a main, a spare and an open sheaf for each slot, and a slab's rest.
        let stats = cache.stats();
        let enough = 2 * ASK + 3 * 8 * CAP + 2 * stats.objects_per_slab;
        assert!(
            stats.slabs * stats.objects_per_slab <= enough,
            "{} slabs of {}",
            stats.slabs,
            stats.objects_per_slab
        );
    });
}

/// It is asked by the sum: two slots with a little more than half of it each make one request.
#[test]
fn slots_ask_together() {
    let gp = ManualGp::new();
    with_cache(&gp, |cache, cpus, _| {
        for slot in [0, 1] {
            cpus.go(Some(slot));
            assert!(!gp.is_wanted(), "half of it is no reason to ask");
            let objects = alloc(cache, ASK / 2 + CAP);
            retire(cache, objects);
        }
        assert!(gp.is_wanted());
    });
}

/// Grace periods that no push ends, and a count of the pushes.
struct Stalled<'a> {
    gp: &'a ManualGp,
    pushes: AtomicUsize,
}

// SAFETY: as its `gp`; pushes do nothing, which progress leaves to the test.
unsafe impl GracePeriod for &Stalled<'_> {
    fn snapshot(&self) -> Cookie {
        self.gp.snapshot()
    }
    fn start(&self) -> Cookie {
        self.gp.start()
    }
    fn poll(&self, cookie: Cookie) -> bool {
        self.gp.poll(cookie)
    }
    fn wait(&self, cookie: Cookie) {
        self.gp.wait(cookie);
    }
    fn drive(&self) -> bool {
        self.pushes.fetch_add(1, Ordering::Relaxed);
        true
    }
    fn grace_periods(&self) -> usize {
        self.gp.grace_periods()
    }
}

/// With a reader that stays inside, who may sleep waits a little, once for a grace period, and goes on; who may not, never does.
#[test]
fn lingering_ends_and_is_not_repeated() {
    let gp = ManualGp::new();
    let stalled = Stalled {
        gp: &gp,
        pushes: AtomicUsize::new(0),
    };
    with_cache(&stalled, |cache, cpus, _| {
        cpus.go(Some(0));
        let objects = alloc(cache, 8 * ASK);
        let mut pushes = Vec::new();
        for (i, &object) in objects.iter().enumerate() {
            let attempt = if i < 4 * ASK {
                Attempt::TryLock
            } else {
                Attempt::MayGrow
            };
            let before = stalled.pushes.load(Ordering::Relaxed);
            // SAFETY: the test had the object.
            assert!(unsafe { cache.retire_attempt(object, attempt) }.is_ok());
            pushes.push(stalled.pushes.load(Ordering::Relaxed) - before);
        }
        let (never, may): (Vec<usize>, Vec<usize>) =
            (pushes[..4 * ASK].to_vec(), pushes[4 * ASK..].to_vec());
        assert!(never.iter().all(|&n| n <= 1), "no lingering: {never:?}");
        let long = may.iter().filter(|&&n| n > 1).count();
        assert!((1..=8).contains(&long), "once for each asking: {long}");
        gp.advance();
        gp.advance();
    });
}
