//! What ends the program: each case runs in a child process.

#![cfg(not(loom))]

#[path = "../../rcu-core/tests/common/aborts.rs"]
mod aborts;
mod common;

use aborts::aborts;
use common::{Hand, Pages};
use rcu_core::NoReaders;
use rcu_core::cpu::Threads;
use slab::{CacheConfig, Checks, Kmalloc, RawCache};
use std::alloc::Layout;
use std::ptr::NonNull;

fn pages() -> &'static Pages {
    static PAGES: Pages = Pages::new();
    &PAGES
}

fn cache(name: &'static str) -> RawCache<Threads, &'static Pages, NoReaders> {
    // What is found without any of them.
    let config = CacheConfig::new(name, Layout::new::<[u64; 8]>()).checks(Checks::empty());
    RawCache::new(config, Threads, pages(), NoReaders).unwrap()
}

#[test]
fn freeing_twice_is_found_when_the_sheaf_is_flushed() {
    let deed = || {
        let cache = cache("victim");
        let object = cache.alloc().unwrap();
        // SAFETY: none: the test breaks the contract on purpose.
        unsafe { cache.free(object) };
        // SAFETY: none, as above.
        unsafe { cache.free(object) };
        cache.shrink(usize::MAX);
    };
    let words = ["freed twice", "cache victim", "object 0x", "slab 0x"];
    aborts(
        "freeing_twice_is_found_when_the_sheaf_is_flushed",
        deed,
        &words,
    );
}

#[test]
fn retiring_twice_is_found_when_the_sheaf_is_flushed() {
    let deed = || {
        let cache = cache("victim");
        let object = cache.alloc().unwrap();
        // SAFETY: none: the test breaks the contract on purpose.
        let _ = unsafe { cache.retire(object) };
        // SAFETY: none, as above.
        let _ = unsafe { cache.retire(object) };
        drop(cache);
    };
    aborts(
        "retiring_twice_is_found_when_the_sheaf_is_flushed",
        deed,
        &["freed twice"],
    );
}

#[test]
fn another_cache_s_object_is_found() {
    let deed = || {
        let (mine, other) = (cache("mine"), cache("other"));
        let object = other.alloc().unwrap();
        // SAFETY: none: the test breaks the contract on purpose.
        unsafe { mine.free(object) };
        mine.shrink(usize::MAX);
    };
    aborts(
        "another_cache_s_object_is_found",
        deed,
        &["not from this cache", "cache mine"],
    );
}

#[test]
fn memory_of_elsewhere_is_found() {
    let deed = || {
        let cache = cache("mine");
        // SAFETY: none: the test breaks the contract on purpose.
        unsafe { cache.free(NonNull::from(Box::leak(Box::new([0_u64; 8]))).cast()) };
        cache.shrink(usize::MAX);
    };
    aborts(
        "memory_of_elsewhere_is_found",
        deed,
        &["not from this cache"],
    );
}

#[test]
fn a_pointer_into_an_object_is_found() {
    let deed = || {
        let cache = cache("mine");
        let object = cache.alloc().unwrap();
        // SAFETY: inside the object.
        let inside = unsafe { object.add(8) };
        // SAFETY: none: the test breaks the contract on purpose.
        unsafe { cache.free(inside) };
        cache.shrink(usize::MAX);
    };
    aborts(
        "a_pointer_into_an_object_is_found",
        deed,
        &["start of an object"],
    );
}

#[test]
fn kfree_of_memory_of_elsewhere_is_found() {
    let deed = || {
        let km = Kmalloc::new(Threads, pages(), NoReaders).unwrap();
        // SAFETY: none: the test breaks the contract on purpose.
        unsafe { km.kfree(NonNull::from(Box::leak(Box::new([0_u64; 8]))).cast()) };
    };
    aborts(
        "kfree_of_memory_of_elsewhere_is_found",
        deed,
        &["not from this cache", "kmalloc"],
    );
}

#[test]
fn kfree_of_a_typed_object_is_found_at_once() {
    let deed = || {
        let km = Kmalloc::new(Threads, pages(), NoReaders).unwrap();
        let cache = cache("typed");
        let object = cache.alloc().unwrap();
        // SAFETY: none: the test breaks the contract on purpose.
        unsafe { km.kfree(object) };
    };
    aborts(
        "kfree_of_a_typed_object_is_found_at_once",
        deed,
        &["not from this cache", "kmalloc"],
    );
}

#[test]
fn l15_freeing_twice_in_bulk_is_found_when_the_sheaf_is_flushed() {
    let deed = || {
        let cache = cache("victim");
        let object = cache.alloc().unwrap();
        // SAFETY: none: the test breaks the contract on purpose.
        unsafe { cache.free_bulk(&mut [object, object]) };
        cache.shrink(usize::MAX);
    };
    aborts(
        "l15_freeing_twice_in_bulk_is_found_when_the_sheaf_is_flushed",
        deed,
        &["freed twice", "cache victim"],
    );
}

#[test]
fn l15_freeing_a_retired_object_is_found_when_the_sheaves_are_flushed() {
    let deed = || {
        let cache = cache("victim");
        let _keeps_the_slab = cache.alloc().unwrap();
        let object = cache.alloc().unwrap();
        // SAFETY: none: the test breaks the contract on purpose.
        let _ = unsafe { cache.retire(object) };
        // SAFETY: none, as above.
        unsafe { cache.free(object) };
        drop(cache);
    };
    aborts(
        "l15_freeing_a_retired_object_is_found_when_the_sheaves_are_flushed",
        deed,
        &["freed twice", "cache victim"],
    );
}

#[test]
fn l15_kfree_twice_is_found_when_the_sheaf_is_flushed() {
    let deed = || {
        let km = Kmalloc::new_checked(Threads, pages(), NoReaders, Checks::empty()).unwrap();
        let memory = km.kmalloc(Layout::new::<[u64; 8]>()).unwrap();
        // SAFETY: none: the test breaks the contract on purpose.
        unsafe { km.kfree(memory) };
        // SAFETY: none, as above.
        unsafe { km.kfree(memory) };
        km.shrink(usize::MAX);
    };
    aborts(
        "l15_kfree_twice_is_found_when_the_sheaf_is_flushed",
        deed,
        &["freed twice", "cache kmalloc-64"],
    );
}

#[test]
fn l15_what_a_thread_freed_twice_is_found_when_another_flushes() {
    let deed = || {
        let cache = cache("victim");
        std::thread::scope(|s| {
            s.spawn(|| {
                let object = cache.alloc().unwrap();
                // SAFETY: none: the test breaks the contract on purpose.
                unsafe { cache.free(object) };
                // SAFETY: none, as above.
                unsafe { cache.free(object) };
            });
        });
        // The thread's end handed its sheaves over.
        cache.shrink(usize::MAX);
    };
    aborts(
        "l15_what_a_thread_freed_twice_is_found_when_another_flushes",
        deed,
        &["freed twice", "cache victim"],
    );
}

#[test]
fn l15_freeing_twice_without_a_slot_is_found_at_once() {
    let deed = || {
        let cpus: &'static Hand = Box::leak(Box::new(Hand::new(1)));
        let config = CacheConfig::new("victim", Layout::new::<[u64; 8]>()).checks(Checks::empty());
        let cache = RawCache::new(config, cpus, pages(), NoReaders).unwrap();
        cpus.go(None);
        let _keeps_the_slab = cache.alloc().unwrap();
        let object = cache.alloc().unwrap();
        // SAFETY: none: the test breaks the contract on purpose.
        unsafe { cache.free(object) };
        // SAFETY: none, as above.
        unsafe { cache.free(object) };
    };
    aborts(
        "l15_freeing_twice_without_a_slot_is_found_at_once",
        deed,
        &["freed twice", "cache victim"],
    );
}

/// Without debug assertions the layout is believed.
#[cfg(debug_assertions)]
#[test]
fn a_layout_of_another_class_is_found() {
    use std::alloc::GlobalAlloc;
    let deed = || {
        let km = Kmalloc::new(Threads, pages(), NoReaders).unwrap();
        let memory = km
            .kmalloc(Layout::from_size_align(100, 8).unwrap())
            .unwrap();
        let wrong = Layout::from_size_align(60, 4).unwrap();
        // SAFETY: none: the test breaks the contract on purpose.
        unsafe { km.dealloc(memory.as_ptr(), wrong) };
    };
    let words = [
        "layout of another class",
        "cache kmalloc-112",
        "60 bytes aligned to 4",
        "kmalloc-64 serves",
    ];
    aborts("a_layout_of_another_class_is_found", deed, &words);
}

#[cfg(debug_assertions)]
#[test]
fn a_small_layout_of_large_memory_is_found() {
    let deed = || {
        let km = Kmalloc::new(Threads, pages(), NoReaders).unwrap();
        let memory = km
            .kmalloc(Layout::from_size_align(100_000, 8).unwrap())
            .unwrap();
        let wrong = Layout::from_size_align(8, 8).unwrap();
        // SAFETY: none: the test breaks the contract on purpose.
        unsafe { km.kfree_sized(memory, wrong) };
    };
    let words = [
        "layout of another class",
        "cache large memory",
        "kmalloc-8 serves",
    ];
    aborts("a_small_layout_of_large_memory_is_found", deed, &words);
}
