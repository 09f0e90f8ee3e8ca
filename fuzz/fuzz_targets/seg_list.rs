//! Segmented callback lists: order, counts and numbers are those of a model made of vectors.

#![no_main]

#[path = "../../crates/rcu-core/tests/common/seg_ops.rs"]
mod seg_ops;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|case: seg_ops::Case| {
    seg_ops::seg_list(&case.ops, case.start);
});
