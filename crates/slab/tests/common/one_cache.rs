//! One cache over dull pages, with slots by hand and grace periods by hand.
#![allow(dead_code, reason = "each test file uses its part")]

use super::common::{Hand, Pages};
use rcu_core::manual::ManualGp;
use slab::{CacheConfig, RawCache};
use std::ptr::NonNull;

pub(crate) type Raw<'a> = RawCache<&'a Hand, &'a Pages, &'a ManualGp>;

/// Runs `test` on a cache of `slots` slots; afterwards every page must be back.
pub(crate) fn with_cache(
    slots: usize,
    config: CacheConfig,
    test: impl FnOnce(&Raw<'_>, &Hand, &Pages, &ManualGp),
) {
    let (pages, cpus, gp) = (Pages::new(), Hand::new(slots), ManualGp::new());
    // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
    let cache = unsafe { RawCache::new_scoped(config, &cpus, &pages, &gp) }.unwrap();
    test(&cache, &cpus, &pages, &gp);
    cache.destroy().expect("nothing is out");
    assert_eq!(pages.outstanding(), 0);
}

pub(crate) fn alloc(cache: &Raw<'_>, n: usize) -> Vec<NonNull<u8>> {
    (0..n).map(|_| cache.alloc().unwrap()).collect()
}

pub(crate) fn free(cache: &Raw<'_>, objects: impl IntoIterator<Item = NonNull<u8>>) {
    for object in objects {
        // SAFETY: the test had the object.
        unsafe { cache.free(object) };
    }
}
