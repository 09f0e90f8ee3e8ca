//! The RCUs under test.

pub(crate) mod broken;
pub(crate) mod plain;
pub(crate) mod tiny;
pub(crate) mod trees;

/// Takes `membarrier` away, as the tree's own tests do.
#[cfg(target_os = "linux")]
#[path = "../../../../rcu-tree/tests/common/seccomp.rs"]
mod seccomp;
