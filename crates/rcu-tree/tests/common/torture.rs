//! The scenario of the stress tests.

use rcu_core::cpu::Threads;
use rcu_core::{GracePeriod, Head, Rcu};
use rcu_tree::{Trace, Tree};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// rcutorture's idea: an element's pipe count says how many grace periods ago it was removed.
#[repr(C)]
pub(crate) struct Element {
    head: Head,
    pipe: AtomicUsize,
    alive: AtomicBool,
}

impl Element {
    pub(crate) fn publish() -> *mut Self {
        Box::into_raw(Box::new(Self {
            head: Head::new(),
            pipe: AtomicUsize::new(0),
            alive: AtomicBool::new(true),
        }))
    }
}

fn read<T: Trace>(tree: &Tree<'_, Threads, T>, current: &AtomicPtr<Element>, spin: usize) {
    let _guard = tree.read_lock();
    let _nested = tree.read_lock();
    // SAFETY: published elements are freed after a grace period only, which is what is tested.
    let element = unsafe { &*current.load(Ordering::Acquire) };
    assert!(
        element.alive.load(Ordering::Relaxed),
        "freed under a reader"
    );
    for _ in 0..spin {
        std::hint::spin_loop();
    }
    assert!(
        element.pipe.load(Ordering::Relaxed) <= 1,
        "a grace period too short"
    );
    assert!(
        element.alive.load(Ordering::Relaxed),
        "freed under a reader"
    );
}

/// Threads that come and go, read an element that is replaced `rounds` times, and never see it two grace periods old.
pub(crate) fn no_grace_period_is_too_short<T: Trace + Sync>(
    tree: &Tree<'_, Threads, T>,
    rounds: usize,
) {
    let current = AtomicPtr::new(Element::publish());
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    read(tree, &current, n % 64);
                    n += 1;
                    if n % 64 == 0 {
                        // Where CPUs are few, the writer is to have its turn before the time slice is over.
                        std::thread::yield_now();
                    }
                }
            });
        }
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                s.spawn(|| (0..16).for_each(|n| read(tree, &current, n)))
                    .join()
                    .unwrap();
            }
        });
        for n in 0..rounds {
            let old = current.swap(Element::publish(), Ordering::AcqRel);
            // SAFETY: `old` was unlinked just now and is freed below, after two grace periods.
            let element = unsafe { &*old };
            element.pipe.store(1, Ordering::Relaxed);
            if n % 2 == 0 {
                tree.synchronize();
            } else {
                let cookie = tree.start();
                while !tree.poll(cookie) {
                    tree.drive();
                    std::thread::yield_now();
                }
            }
            element.pipe.store(2, Ordering::Relaxed);
            element.alive.store(false, Ordering::Relaxed);
            // SAFETY: unlinked, and a grace period has passed.
            drop(unsafe { Box::from_raw(old) });
        }
        stop.store(true, Ordering::Relaxed);
    });
    // SAFETY: nobody reads any more.
    drop(unsafe { Box::from_raw(current.into_inner()) });
    assert!(tree.stats().grace_periods >= rounds);
}
