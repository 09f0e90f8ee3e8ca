//! A handler that is installed once, in a process of its own: it meddles with every fork.

#![cfg(all(feature = "std", unix, not(loom), not(miri)))]

#[path = "common/child.rs"]
mod child;

use child::{check, fork as in_child};
use rcu_core::cpu::{Cpus, Threads};
use rcu_core::fork;
use std::sync::Barrier;

/// Runs `then` while `n` other threads sit on slots.
fn with_threads(n: usize, then: impl FnOnce()) {
    let together = Barrier::new(n + 1);
    std::thread::scope(|s| {
        for _ in 0..n {
            s.spawn(|| {
                assert!(Threads.current().is_some());
                together.wait();
                together.wait();
            });
        }
        together.wait();
        then();
        together.wait();
    });
}

#[test]
fn an_installed_handler_needs_no_call() {
    // SAFETY: this program forks outside of RCU, and keeps no guards meanwhile.
    unsafe { fork::install() }.unwrap();
    // SAFETY: as above.
    unsafe { fork::install() }.unwrap();
    let mine = Threads.current();
    let before = fork::generation();
    with_threads(3, || {
        let child = in_child(|| {
            check(fork::generation() == before + 1);
            check(Threads.nr_online() == 1 && Threads.current() == mine);
            let grandchild = in_child(|| check(fork::generation() == before + 2));
            check(grandchild == Ok(()));
        });
        assert_eq!(child, Ok(()));
    });
}
