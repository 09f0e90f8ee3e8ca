#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

mod batched;
mod block;
mod budget;
mod config;
#[cfg(feature = "std")]
pub mod conformance;
#[cfg(feature = "slab")]
mod kmalloc;
mod objects;
mod stats;
mod unbatched;
mod waiting;

pub use batched::Kvfree;
pub use budget::OverLimit;
pub use config::Config;
pub use objects::{DeferFree, DropFn, Objects};
pub use stats::KvfreeStats;
pub use unbatched::Unbatched;

#[cfg(feature = "std")]
mod heap;
#[cfg(feature = "std")]
mod monitor;
#[cfg(feature = "std")]
pub mod stack;

#[cfg(feature = "std")]
pub use heap::{Heap, RcuBox, RcuCell};
#[cfg(feature = "std")]
pub use stack::{
    Builder, Global, InUse, StackStats, TypedCache, barrier, cache, front, objects, pages,
    read_lock, retire, retire_box, retire_in_mightsleep, retire_mightsleep, stats, synchronize,
    unbatched,
};

/// Tests the example of the workspace's README.
#[cfg(all(doctest, feature = "std"))]
#[doc = include_str!("../../../README.md")]
struct WorkspaceReadme;
