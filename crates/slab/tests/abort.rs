//! What ends the program: each case runs in a child process.

#![cfg(not(loom))]

mod common;

use common::Pages;
use rcu_core::NoReaders;
use rcu_core::cpu::Threads;
use slab::{CacheConfig, Kmalloc, RawCache};
use std::alloc::Layout;
use std::process::Command;
use std::ptr::NonNull;

const CASE: &str = "SLAB_ABORT_CASE";

/// Runs `deed` in a child of its own, which must abort and say all of `words`.
fn aborts(case: &str, deed: impl FnOnce(), words: &[&str]) {
    if std::env::var_os(CASE).is_some() {
        deed();
        return;
    }
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new(program);
    let output = child
        .args(["--exact", case, "--nocapture"])
        .env(CASE, "1")
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "the child lived on: {message}");
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
}

fn pages() -> &'static Pages {
    static PAGES: Pages = Pages::new();
    &PAGES
}

fn cache(name: &'static str) -> RawCache<Threads, &'static Pages, NoReaders> {
    let config = CacheConfig::new(name, Layout::new::<[u64; 8]>());
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
        cache.shrink();
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
        mine.shrink();
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
        cache.shrink();
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
        cache.shrink();
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
