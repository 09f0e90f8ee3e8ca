//! Checked caches for tests that mistreat their objects.
#![allow(dead_code, reason = "each test file uses its part")]

use crate::common::{Hand, Pages};
use rcu_core::cpu::Threads;
use rcu_core::manual::ManualGp;
use slab::{CacheConfig, Checks, Kmalloc, RawCache};
use std::alloc::Layout;
use std::ptr::NonNull;

/// Not whole words, so that rounding up adds to the right zone.
pub(crate) const SIZE: usize = 61;

pub(crate) type Raw = RawCache<&'static Hand, &'static Pages, &'static ManualGp>;

/// A cache of parts of its own.
pub(crate) fn cache(checks: Checks) -> Raw {
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
pub(crate) fn free(cache: &Raw, object: NonNull<u8>) {
    // SAFETY: the test had the object, or breaks the contract on purpose.
    unsafe { cache.free(object) };
}

#[track_caller]
pub(crate) fn retire(cache: &Raw, object: NonNull<u8>) {
    // SAFETY: the test had the object, or breaks the contract on purpose.
    unsafe { cache.retire(object) }.unwrap();
}

/// Writes a byte where the test says, which is inside the slab.
pub(crate) fn scribble(object: NonNull<u8>, at: isize, byte: u8) {
    // SAFETY: inside the slab.
    let place = unsafe { object.offset(at) };
    // SAFETY: the slab's memory is there; that it is not the test's is the point.
    unsafe { place.write(byte) };
}

pub(crate) fn kmalloc() -> Kmalloc<Threads, &'static Pages, rcu_core::NoReaders> {
    let pages = Box::leak(Box::new(Pages::new()));
    Kmalloc::new_checked(Threads, &*pages, rcu_core::NoReaders, Checks::all()).unwrap()
}
