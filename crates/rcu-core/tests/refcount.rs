//! R22: the reference count against a model, and under threads.

#![cfg(not(loom))]

use proptest::prelude::*;
use rcu_core::RefCount;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const THREADS: usize = 3;
const ROUNDS: usize = if cfg!(miri) { 20 } else { 500 };

proptest! {
    /// On one thread it counts like a number that refuses to leave zero.
    #[test]
    fn r22_counts_like_a_number(start in 1u32..4, steps in prop::collection::vec(any::<bool>(), 0..60)) {
        let count = RefCount::new(start);
        let mut refs = start;
        for get in steps {
            if get {
                prop_assert_eq!(count.get(), refs > 0);
                refs += u32::from(refs > 0);
            } else {
                prop_assert_eq!(count.put(), refs == 1);
                refs = refs.saturating_sub(1);
            }
            prop_assert_eq!(count.read(), refs);
            prop_assert_eq!(count.is_dead(), refs == 0);
        }
    }
}

#[test]
fn r22_starts_with_a_count_that_makes_sense() {
    for refs in [0, RefCount::MAX_REFS + 1] {
        assert!(catch_unwind(|| RefCount::new(refs)).is_err(), "{refs}");
    }
    assert_eq!(RefCount::new(RefCount::MAX_REFS).read(), RefCount::MAX_REFS);
    assert!(RefCount::dead().is_dead() && !RefCount::default().is_dead());
}

#[test]
fn r22_a_dead_count_starts_anew_by_reset_only() {
    let count = RefCount::dead();
    assert!(!count.get() && !count.put());
    count.reset(2);
    assert!(!count.put() && count.put() && !count.get());
}

/// Each round: threads take and drop references while one drops the first. One `put` is the last; whoever has a reference
/// finds the object alive.
#[test]
fn r22_one_put_is_the_last_and_no_get_follows_it() {
    let alive = AtomicBool::new(true);
    let (lasts, got) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let put = |count: &RefCount| {
        if count.put() {
            assert!(alive.swap(false, Ordering::AcqRel), "two were the last");
            lasts.fetch_add(1, Ordering::Relaxed);
        }
    };
    for round in 0..ROUNDS {
        let count = RefCount::new(1);
        alive.store(true, Ordering::Release);
        std::thread::scope(|s| {
            for _ in 1..THREADS {
                s.spawn(|| {
                    while count.get() {
                        assert!(alive.load(Ordering::Acquire), "got after the last");
                        got.fetch_add(1, Ordering::Relaxed);
                        put(&count);
                        std::hint::spin_loop();
                    }
                });
            }
            put(&count);
        });
        assert_eq!(lasts.load(Ordering::Relaxed), round + 1);
        assert!(!count.get());
    }
}
