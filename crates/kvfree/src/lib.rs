#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]
// The models under loom take the protocols' files in by themselves.
#![cfg(not(loom))]

mod batched;
mod block;
mod budget;
mod config;
#[cfg(feature = "std")]
pub mod conformance;
mod doubles;
mod freeing;
mod glue;
#[cfg(feature = "slab")]
mod kmalloc;
mod no_sheaves;
mod objects;
mod passes;
mod rounds;
mod shared;
mod stats;
mod unbatched;
mod waiting;

pub use batched::Kvfree;
pub use budget::OverLimit;
pub use config::Config;
pub use doubles::DoubleRetire;
pub use glue::each_contained;
pub use no_sheaves::NoSheaves;
pub use objects::{DeferFree, DropFn, DropManyFn, Objects};
pub use stats::{KvfreeStats, SlotStats};
pub use unbatched::Unbatched;

#[cfg(feature = "allocator-api2")]
mod alloc_box;
#[cfg(feature = "std")]
mod boxes;
#[cfg(feature = "std")]
mod duty;
#[cfg(feature = "std")]
mod heap;
#[cfg(feature = "std")]
mod monitor;
#[cfg(feature = "std")]
pub mod stack;

#[cfg(feature = "allocator-api2")]
pub use alloc_box::AllocBox;
#[cfg(feature = "std")]
pub use heap::{
    GlobalBox, GlobalHeap, Heap, Memory, RcuBox, RcuBoxIn, RcuCell, RcuCellIn, Slab, System,
};
/// What users of the stack's pointers come across: one dependency is enough.
pub use rcu_core::{
    Cookie, GracePeriod, Guard, HasHead, Head, Online, OnlineGuard, Owned, Retired, SendGuard,
    has_head, read,
};
/// For [`stack!`].
#[cfg(feature = "std")]
#[doc(hidden)]
pub use rcu_tree as __rcu_tree;
#[cfg(feature = "allocator-api2")]
pub use stack::retire_box_in;
#[cfg(feature = "std")]
pub use stack::{
    Builder, Global, InUse, Stack, StackDomain, StackStats, TypedCache, barrier, cache, front,
    objects, pages, read_lock, retire, retire_box, retire_in_mightsleep, retire_mightsleep,
    retire_sized_mightsleep, stats, synchronize, unbatched,
};

/// Tests the example of the workspace's README.
#[cfg(all(doctest, feature = "std"))]
#[doc = include_str!("../../../README.md")]
struct WorkspaceReadme;
