//! `Online`: threads that are always inside, but for the moments at which they say otherwise.
#![cfg(all(feature = "std", not(loom)))]

mod common;
#[path = "common/puppet.rs"]
mod puppet;

use common::tree;
use puppet::puppet;
use rcu_core::{GracePeriod, Online, Rcu};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

const ROUNDS: usize = if cfg!(miri) { 4 } else { 200 };

/// Drives `tree` as long as that changes anything.
fn drive(tree: &impl GracePeriod) {
    for _ in 0..4 {
        tree.drive();
    }
}

#[test]
fn g10_a_thread_that_is_always_online_lets_grace_periods_pass_when_it_says_so() {
    let tree = tree(16, 64);
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        let (ready, is_ready) = mpsc::channel();
        let stop = &stop;
        s.spawn(move || {
            let mut online = Online::new(tree);
            ready.send(()).unwrap();
            while !stop.load(Ordering::Relaxed) {
                online.quiescent();
            }
        });
        is_ready.recv().unwrap();
        for _ in 0..ROUNDS {
            tree.synchronize();
            tree.synchronize_expedited();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Never early: what an online thread has loaded is alive until its next quiescent state.
#[test]
fn g10_nothing_is_freed_between_two_quiescent_states() {
    let tree = tree(16, 64);
    let current = AtomicPtr::new(Box::into_raw(Box::new(AtomicUsize::new(1))));
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        s.spawn(|| {
            let mut online = Online::new(tree);
            while !stop.load(Ordering::Relaxed) {
                let _guard = online.guard();
                // SAFETY: replaced objects are freed after a grace period only, which is what is tested.
                let value = unsafe { &*current.load(Ordering::Acquire) };
                for _ in 0..16 {
                    assert_eq!(value.load(Ordering::Relaxed), 1, "freed under a reader");
                }
                online.quiescent();
            }
        });
        for n in 0..ROUNDS {
            let new = Box::into_raw(Box::new(AtomicUsize::new(1)));
            let old = current.swap(new, Ordering::AcqRel);
            if n % 2 == 0 {
                tree.synchronize();
            } else {
                tree.synchronize_expedited();
            }
            // SAFETY: unlinked, and a grace period has passed.
            let old = unsafe { Box::from_raw(old) };
            old.store(0, Ordering::Relaxed);
        }
        stop.store(true, Ordering::Relaxed);
    });
    // SAFETY: nobody reads any more.
    drop(unsafe { Box::from_raw(current.into_inner()) });
}

#[test]
fn g10_holds_grace_periods_up_until_it_is_quiescent() {
    let tree = tree(16, 64);
    let mut online = Online::new(tree);
    let (normal, expedited) = (tree.start(), tree.start_expedited());
    for _ in 0..8 {
        tree.drive();
        assert!(!tree.poll(normal) && !tree.poll(expedited));
    }
    for _ in 0..4 {
        online.quiescent();
        tree.drive();
    }
    assert!(tree.poll(normal) && tree.poll(expedited));
}

#[test]
fn g10_nested_guards_keep_a_quiescent_state_from_passing_anything() {
    let tree = tree(16, 64);
    let mut online = Online::new(tree);
    let nested = tree.read_lock();
    let cookie = tree.start();
    for _ in 0..4 {
        online.quiescent();
        tree.drive();
        assert!(!tree.poll(cookie));
    }
    drop(nested);
    for _ in 0..4 {
        tree.drive();
        assert!(!tree.poll(cookie), "not said yet");
    }
    online.quiescent();
    tree.drive();
    tree.drive();
    assert!(tree.poll(cookie));
}

#[test]
fn g10_offline_blocks_nothing_and_synchronize_waits_for_others_only() {
    let tree = tree(16, 64);
    let mut online = Online::new(tree);
    let cookie = tree.start();
    tree.drive();
    online.offline(|| {
        thread::scope(|s| {
            s.spawn(|| tree.wait(cookie));
        });
    });
    assert!(tree.poll(cookie));
    let (small, full) = (tree.snapshot(), tree.snapshot_full());
    online.synchronize();
    assert!(tree.poll(small) && tree.poll_full(full));
    let later = tree.start();
    drive(tree);
    assert!(!tree.poll(later), "online again");
}

#[test]
fn g10_goes_online_again_though_the_blocking_call_panics() {
    let tree = tree(16, 64);
    let mut online = Online::new(tree);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        online.offline(|| panic!("on purpose"));
    }));
    assert!(panicked.is_err());
    let cookie = tree.start();
    drive(tree);
    assert!(!tree.poll(cookie));
    drop(online);
    tree.drive();
    tree.drive();
    assert!(tree.poll(cookie));
}

/// Forgetting a section leaks it: grace periods end no more, but nothing is freed early.
#[test]
fn g10_a_forgotten_online_is_never_too_early() {
    let tree = tree(16, 64);
    thread::spawn(move || std::mem::forget(Online::new(tree)))
        .join()
        .unwrap();
    let (small, full) = (tree.start(), tree.start_full_expedited());
    for _ in 0..8 {
        tree.drive();
    }
    assert!(!tree.poll(small) && !tree.poll_full(full));
}

/// A thread without a slot: its quiescent states go through the shared readers.
#[test]
fn g10_online_without_a_slot() {
    let (tree, cpus, _) = puppet(2);
    cpus.go(None);
    let mut online = Online::new(tree);
    let (normal, expedited) = (tree.start(), tree.start_expedited());
    drive(tree);
    assert!(!tree.poll(normal) && !tree.poll(expedited));
    for _ in 0..4 {
        online.quiescent();
        tree.drive();
    }
    assert!(tree.poll(normal) && tree.poll(expedited));
    let held = tree.start();
    drive(tree);
    assert!(!tree.poll(held));
    drop(online);
    drive(tree);
    assert!(tree.poll(held));
}
