//! A cache: objects are conserved, reused after their grace period only, and every page comes back.

#![no_main]

#[path = "../../crates/slab/tests/common/mod.rs"]
mod common;
#[path = "../../crates/slab/tests/common/ops.rs"]
mod ops;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|case: ops::Case| {
    ops::play(&case.setup, &case.ops, case.failure);
});
