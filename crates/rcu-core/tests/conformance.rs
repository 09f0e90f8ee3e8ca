//! The implementations of this crate against the crate's own conformance tests.

#![cfg(all(feature = "std", not(loom)))]

use rcu_core::cpu::{BiasedLock, OneCpu, SpinLock, Threads, UpLock};
use rcu_core::manual::ManualGp;
use rcu_core::{NoReaders, cpus_conformance, grace_period_conformance, local_lock_conformance};

grace_period_conformance!(no_readers, NoReaders);
grace_period_conformance!(no_readers_by_reference, &&NoReaders);
grace_period_conformance!(manual_gp, ManualGp::auto());

local_lock_conformance!(biased_lock, BiasedLock::new());
local_lock_conformance!(biased_lock_threads, threads: BiasedLock::new());
local_lock_conformance!(spin_lock, SpinLock::new());
local_lock_conformance!(spin_lock_threads, threads: SpinLock::new());
local_lock_conformance!(
    up_lock,
    // SAFETY: the suite uses it from one thread, or finds that out.
    unsafe { UpLock::new() }
);

cpus_conformance!(threads_as_slots, Threads);
cpus_conformance!(threads_as_slots_threads, threads: Threads);
cpus_conformance!(by_reference, &Threads);
cpus_conformance!(one_cpu, one_cpu());

fn one_cpu() -> OneCpu {
    // SAFETY: each test uses its value from one thread.
    unsafe { OneCpu::new() }
}
