//! The implementations of this crate against the crate's own conformance tests.

#![cfg(all(feature = "std", not(loom)))]

use rcu_core::cpu::{BiasedLock, SpinLock, UpLock};
use rcu_core::manual::ManualGp;
use rcu_core::{NoReaders, grace_period_conformance, local_lock_conformance};

grace_period_conformance!(no_readers, NoReaders);
grace_period_conformance!(no_readers_by_reference, &&NoReaders);
grace_period_conformance!(manual_gp, ManualGp::auto());

local_lock_conformance!(biased_lock, BiasedLock::new());
local_lock_conformance!(biased_lock_threads, threads: BiasedLock::new());
local_lock_conformance!(spin_lock, SpinLock::new());
local_lock_conformance!(spin_lock_threads, threads: SpinLock::new());
local_lock_conformance!(up_lock, UpLock::new());
