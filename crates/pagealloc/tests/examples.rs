//! The examples, run as tests.

#![cfg(all(feature = "std", target_os = "linux", not(miri), not(loom)))]

#[path = "../examples/own_lower.rs"]
mod own_lower;

#[test]
fn a_lower_level_of_ones_own() {
    let [ours, yours] = own_lower::run();
    assert!(ours > 0 && yours > 0);
}
