//! Where no thread is to be had: waiters do what the tree's threads would.
#![cfg(all(feature = "std", target_os = "linux", not(loom), not(miri)))]

#[path = "common/calls.rs"]
mod calls;
#[path = "common/seccomp.rs"]
mod seccomp;

use calls::{Log, call, call_lazy};
use rcu_core::{GracePeriod, Rcu};
use std::sync::Arc;

rcu_tree::static_tree! { struct Alone; }

#[test]
fn g21_waiters_run_callbacks_where_no_thread_can_be_started() {
    if !seccomp::deny_threads() {
        return;
    }
    assert!(std::thread::Builder::new().spawn(|| ()).is_err());
    let log = Arc::new(Log::default());
    for round in 0..3 {
        (0..600).for_each(|n| call(&Alone, &log, n));
        call_lazy(&Alone, &log, 600);
        let cookie = Alone.start();
        Alone.wait(cookie);
        Alone.barrier();
        assert_eq!(log.ran(), 601 * (round + 1));
    }
}
