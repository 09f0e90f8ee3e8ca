//! How many cases a property runs.

use proptest::prelude::ProptestConfig;

/// What `cargo xtask test-all` sets `PROPTEST_CASES` to, and what counts where nothing is set.
const USUAL: u64 = 64;

/// `n` cases by default; where `PROPTEST_CASES` is set, in proportion to it, so that dear properties stay fewer.
pub(crate) fn cases(n: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok();
    let asked = asked.and_then(|words| words.parse::<u64>().ok());
    let cases = u64::from(n) * asked.unwrap_or(USUAL) / USUAL;
    ProptestConfig {
        cases: u32::try_from(cases).unwrap_or(u32::MAX).max(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}
