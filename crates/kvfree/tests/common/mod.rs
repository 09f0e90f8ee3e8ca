//! Layers for tests: slots by hand, dull pages, grace periods by hand, and an allocator that keeps books.
#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

mod front;
#[path = "../../../rcu-core/tests/common/hand.rs"]
mod hand;
mod ledger;
mod pages;
mod rcu;

pub(crate) use front::{BLOCK, Books, Front, front, retire, retire_head, retire_many, retire_with};
pub(crate) use hand::Hand;
pub(crate) use ledger::{Defer, Item, LARGE_BYTES, Ledger};
pub(crate) use pages::{Failure, Pages};
pub(crate) use rcu::ManualRcu;

/// A small generator of numbers: xorshift.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(0x9e37_79b9_7f4a_7c15 ^ (seed + 1).wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }
}
