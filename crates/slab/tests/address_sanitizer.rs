//! In a build with AddressSanitizer (`cargo xtask asan`), a use after free inside the allocator is reported: each is done in a
//! child process, which has to say so.

#![cfg(all(address_sanitizer, feature = "std", target_os = "linux", not(loom)))]

#[path = "../../rcu-core/tests/common/aborts.rs"]
mod aborts;
mod common;

use aborts::aborts;
use common::Pages;
use pagealloc::{Attempt, Mmap, Zone};
use rcu_core::GracePeriod;
use rcu_core::cpu::Threads;
use rcu_core::manual::ManualGp;
use slab::{CacheConfig, Checks, Kmalloc, RawCache};
use std::alloc::Layout;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

const REPORT: [&str; 2] = [
    "ERROR: AddressSanitizer: use-after-poison",
    "WRITE of size 8",
];

type Raw = RawCache<Threads, &'static Zone<Threads, Mmap>, &'static ManualGp>;

fn gp() -> &'static ManualGp {
    static GP: ManualGp = ManualGp::new();
    &GP
}

/// Without checks of its own, whatever features are on.
fn cache() -> Raw {
    let zone = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    let config = CacheConfig::new("victim", Layout::new::<[u64; 8]>()).checks(Checks::empty());
    RawCache::new(config, Threads, &*zone, gp()).unwrap()
}

fn touch(object: NonNull<u8>) {
    // SAFETY: the object's memory is there; whether it is the test's is the question.
    unsafe { object.cast::<u64>().write_volatile(1) };
}

fn free(cache: &Raw, object: NonNull<u8>) {
    // SAFETY: the test had the object.
    unsafe { cache.free(object) };
}

fn retire(cache: &Raw, object: NonNull<u8>) {
    // SAFETY: the test had the object.
    unsafe { cache.retire(object) }.unwrap();
}

#[test]
fn a_freed_object_is_hidden() {
    let deed = || {
        let cache = cache();
        let object = cache.alloc().unwrap();
        touch(object);
        free(&cache, object);
        touch(object);
    };
    aborts("a_freed_object_is_hidden", deed, &REPORT);
}

#[test]
fn one_that_was_never_allocated_is_hidden() {
    let deed = || {
        let cache = cache();
        let object = cache.alloc().unwrap();
        // SAFETY: inside the slab, or the page before it, which nobody has.
        touch(unsafe { object.byte_add(64) });
    };
    aborts("one_that_was_never_allocated_is_hidden", deed, &REPORT);
}

#[test]
fn one_of_many_freed_at_once_is_hidden() {
    let deed = || {
        let cache = cache();
        let mut many = [MaybeUninit::uninit(); 20];
        cache.alloc_bulk(&mut many, Attempt::MayGrow).unwrap();
        // SAFETY: filled just now.
        let mut many = many.map(|object| unsafe { object.assume_init() });
        many.iter().for_each(|&object| touch(object));
        let victim = many[7];
        // SAFETY: the test had them.
        unsafe { cache.free_bulk(&mut many) };
        touch(victim);
    };
    aborts("one_of_many_freed_at_once_is_hidden", deed, &REPORT);
}

/// Readers may look at what is retired until their section ends.
#[test]
fn a_retired_object_is_visible_until_its_grace_period_has_passed() {
    let cache = cache();
    let object = cache.alloc().unwrap();
    retire(&cache, object);
    touch(object);
    cache.reap();
    cache.reap();
    touch(object);
    let deed = || {
        gp().synchronize();
        cache.reap();
        cache.reap();
        touch(object);
    };
    aborts(
        "a_retired_object_is_visible_until_its_grace_period_has_passed",
        deed,
        &REPORT,
    );
}

/// A full sheaf whose time has come becomes the one to allocate from: what it hands out is shown, the others are not.
#[test]
fn the_objects_of_a_recycled_sheaf_are_hidden_but_for_those_handed_out() {
    let deed = || {
        let cache = cache();
        let objects: Vec<_> = (0..1500).map(|_| cache.alloc().unwrap()).collect();
        objects.iter().for_each(|&object| retire(&cache, object));
        objects.iter().for_each(|&object| touch(object));
        gp().synchronize();
        let mut again = Vec::new();
        while cache.stats().sheaves_recycled == 0 {
            again.push(cache.alloc().unwrap());
        }
        again.iter().for_each(|&object| touch(object));
        let last = again.pop().unwrap();
        free(&cache, last);
        // The one that would be handed out next but one.
        let next = cache.alloc().unwrap();
        let after = cache.alloc().unwrap();
        touch(next);
        touch(after);
        free(&cache, after);
        touch(after);
    };
    aborts(
        "the_objects_of_a_recycled_sheaf_are_hidden_but_for_those_handed_out",
        deed,
        &REPORT,
    );
}

#[test]
fn memory_by_size_is_hidden_when_it_is_freed() {
    for (test, size) in [("small", 100), ("large", 100_000)] {
        let deed = || {
            let pages = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
            let heap = Kmalloc::new(Threads, &*pages, gp()).unwrap();
            let memory = heap
                .kmalloc(Layout::from_size_align(size, 8).unwrap())
                .unwrap();
            touch(memory);
            // SAFETY: allocated just now.
            unsafe { heap.kfree(memory) };
            touch(memory);
        };
        if size == 100 && cfg!(feature = "checks") {
            // Every cache looks after its objects itself then.
            continue;
        }
        eprintln!("{test}");
        aborts("memory_by_size_is_hidden_when_it_is_freed", deed, &REPORT);
    }
}

/// The pages of a slab are given back as they came: visible, to whoever keeps pages in another way than the zone.
#[test]
fn pages_are_given_back_visible() {
    let pages = Box::leak(Box::new(Pages::new()));
    let config = CacheConfig::new("guest", Layout::new::<[u64; 8]>()).checks(Checks::empty());
    let cache = RawCache::new(config, Threads, &*pages, gp()).unwrap();
    let objects: Vec<_> = (0..1000).map(|_| cache.alloc().unwrap()).collect();
    for object in objects {
        // SAFETY: allocated above.
        unsafe { cache.free(object) };
    }
    cache.destroy().unwrap();
    assert_eq!(pages.outstanding(), 0);
}
