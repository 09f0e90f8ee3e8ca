//! The reader of allocation traces: it refuses with one line, or what it lets through passes again, byte for byte.

#![no_main]
#![allow(dead_code, reason = "a part of xtask is used")]

#[path = "../../xtask/src/cargo.rs"]
mod cargo;
#[path = "../../xtask/src/scale/trace.rs"]
mod trace;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| trace::accepts_only_what_it_passes_on(bytes));
