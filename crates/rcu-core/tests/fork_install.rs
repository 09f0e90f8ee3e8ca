//! A handler that is installed once, in a process of its own: it meddles with every fork.

#![cfg(all(feature = "std", unix, not(loom), not(miri)))]

#[path = "common/child.rs"]
mod child;
#[path = "common/slots.rs"]
mod slots;

use child::{check, fork as in_child};
use rcu_core::cpu::{Cpus, Threads};
use rcu_core::fork;
use slots::with_threads;

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
