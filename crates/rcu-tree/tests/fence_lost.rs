//! `membarrier` is there at first and taken away while readers run: no reader is missed, nothing aborts.
#![cfg(all(feature = "std", target_os = "linux", not(loom), not(miri)))]

mod common;
#[path = "common/seccomp.rs"]
mod seccomp;

use common::tree;
use rcu_core::{GracePeriod, Rcu, fence};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// Grace periods before and after the filter.
const ROUNDS: usize = 2_000;

/// Alive until a grace period after it was replaced.
struct Element(AtomicUsize);

const ALIVE: usize = 0xa11e;
const DEAD: usize = 0xdead;

fn publish() -> *mut Element {
    Box::into_raw(Box::new(Element(AtomicUsize::new(ALIVE))))
}

#[test]
fn a_filter_that_comes_later_misses_no_reader() {
    let tree = tree(16, 64);
    let before = fence::probe();
    let current = AtomicPtr::new(publish());
    let stop = AtomicBool::new(false);
    let read = || {
        while !stop.load(Ordering::Relaxed) {
            let _guard = tree.read_lock();
            // SAFETY: elements are freed after a grace period only, which is what is tested.
            let element = unsafe { &*current.load(Ordering::Acquire) };
            for _ in 0..8 {
                assert_eq!(
                    element.0.load(Ordering::Relaxed),
                    ALIVE,
                    "freed under a reader"
                );
            }
        }
    };
    let update = || {
        for _ in 0..ROUNDS {
            let old = current.swap(publish(), Ordering::AcqRel);
            tree.synchronize();
            // SAFETY: unlinked, and a grace period has passed.
            let old = unsafe { Box::from_raw(old) };
            old.0.store(DEAD, Ordering::Relaxed);
        }
    };
    let denied = std::thread::scope(|s| {
        s.spawn(read);
        s.spawn(read);
        update();
        let denied = seccomp::deny_membarrier();
        update();
        stop.store(true, Ordering::Relaxed);
        denied
    });
    // SAFETY: nobody reads any more.
    drop(unsafe { Box::from_raw(current.into_inner()) });
    seccomp::assert_fenced(denied);
    eprintln!("before: {before:?}; filter installed: {denied}");
}
