//! A zone, over both lower levels: pages are conserved, blocks do not overlap, free pages merge fully.

#![no_main]

#[path = "../../crates/pagealloc/tests/buffer/mod.rs"]
mod buffer;
#[path = "../../crates/pagealloc/tests/ops/mod.rs"]
mod ops;

use libfuzzer_sys::fuzz_target;
use pagealloc::{BitTree, Buddies, PAGE_SIZE};

fuzz_target!(|case: ops::Case| {
    let mut memory = buffer::written(case.pages * PAGE_SIZE);
    case.play::<Buddies>(&mut memory);
    case.play::<BitTree>(&mut memory);
});
