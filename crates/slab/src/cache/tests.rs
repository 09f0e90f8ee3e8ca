//! What needs a lock to be taken at the right moment.

use super::*;
use crate::CacheConfig;
use crate::common::{Hand, Pages};
use core::alloc::Layout;
use rcu_core::manual::ManualGp;

const CAP: usize = 5;

type Raw<'a> = RawCache<&'a Hand, &'a Pages, &'a ManualGp>;

/// Runs `test` on a cache of two slots; afterwards every page must be back.
fn with_cache(test: impl FnOnce(&Raw<'_>)) {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(2), ManualGp::new());
    let layout = Layout::new::<[u64; 8]>();
    let config = CacheConfig::new("test", layout).sheaf_capacity(CAP);
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
        .stability(crate::Stability::Type);
    // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
    let cache = unsafe { RawCache::new_scoped(config, &cpus, &pages, &gp) }.unwrap();
    let object = cache.alloc().unwrap();
    free(&cache, [object]);
    cache.shrink();
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
