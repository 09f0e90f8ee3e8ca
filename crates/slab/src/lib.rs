#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;

mod barn;
mod cache;
mod checks;
mod config;
mod error;
mod fault;
mod fork;
#[cfg(all(feature = "std", target_os = "linux", not(loom)))]
mod global;
mod inbox;
mod kmalloc;
mod leaks;
mod pool;
mod sheaf;
mod slabs;
mod stable;
mod stats;
mod typed;

pub use cache::{Busy, CacheFork, RawCache, RawPrefilled};
pub use checks::Checks;
pub use config::{CacheConfig, Constructor, MAX_OBJECT_BYTES, Stability};
pub use error::CreateError;
pub use fork::KmallocFork;
#[cfg(all(feature = "std", target_os = "linux", not(loom)))]
pub use global::{GlobalKmalloc, GlobalPages};
pub use kmalloc::{CLASS_BYTES, Kmalloc, KmallocStats, MAX_CLASS_BYTES, NR_CLASSES};
pub use leaks::{LeakReport, LeakSite};
pub use stable::{Found, Generation, Pinned, StableCache, StableCell, StableRef, TypeStable};
pub use stats::{CacheStats, Event, Events, MemoryStats, SlotStats};
pub use typed::{AllocFailed, Cache, Prefilled};
