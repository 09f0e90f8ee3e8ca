//! The shared suites where `membarrier` is denied from the start: both sides run full fences.
#![cfg(all(feature = "std", target_os = "linux", not(loom), not(miri)))]

mod common;
#[path = "common/seccomp.rs"]
mod seccomp;

use common::tree;
use rcu_core::cpu::Threads;
use rcu_core::{grace_period_conformance, rcu_conformance};
use rcu_tree::Tree;
use std::sync::OnceLock;

fn fenced() -> &'static Tree<'static, Threads> {
    static DENIED: OnceLock<bool> = OnceLock::new();
    seccomp::assert_fenced(*DENIED.get_or_init(seccomp::deny_membarrier));
    tree(16, 64)
}

grace_period_conformance!(gp, fenced());
rcu_conformance!(rcu, fenced());
rcu_conformance!(threads, threads: fenced());
