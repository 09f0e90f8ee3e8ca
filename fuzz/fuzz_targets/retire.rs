//! The front end: every object is freed once, after its grace period, whatever pages fail.

#![no_main]

#[path = "../../crates/kvfree/tests/common/mod.rs"]
mod common;
#[path = "../../crates/kvfree/tests/common/ops.rs"]
mod ops;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|case: ops::Case| {
    ops::run(&case.ops, case.failure, case.defer);
});
