//! The example, run as a test.

#![cfg(all(feature = "std", target_os = "linux", not(miri), not(loom)))]

#[path = "../examples/connections.rs"]
mod connections;

#[test]
fn connections_come_and_go_under_lookups() {
    assert!(connections::run() > 0);
}
