//! How many cases a property runs.

#![allow(dead_code, reason = "not every file needs all of it")]

use proptest::prelude::*;
use proptest::test_runner::{TestCaseResult, TestRunner};

/// What `cargo xtask test-all` sets `PROPTEST_CASES` to, and what counts where nothing is set.
const USUAL: u64 = 64;

/// `n` cases where `PROPTEST_CASES` is not set; where it is, `proptest!` runs as many as that says, whatever stands here.
pub(crate) fn cases(n: u32) -> ProptestConfig {
    ProptestConfig {
        cases: n,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Runs a dear property: `n` cases by default, and in proportion to `PROPTEST_CASES` where that is set, so that it stays a few among
/// many. Not by `proptest!`, where the variable would win.
pub(crate) fn dear<S: Strategy>(
    n: u32,
    strategy: S,
    property: impl Fn(S::Value) -> TestCaseResult,
) {
    let asked = std::env::var("PROPTEST_CASES").ok();
    let asked = asked.and_then(|words| words.parse::<u64>().ok());
    let scaled = u64::from(n) * asked.unwrap_or(USUAL) / USUAL;
    let config = cases(u32::try_from(scaled).unwrap_or(u32::MAX).max(1));
    if let Err(error) = TestRunner::new(config).run(&strategy, property) {
        panic!("{error}");
    }
}
