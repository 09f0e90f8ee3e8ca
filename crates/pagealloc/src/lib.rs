#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

mod api;
mod broken;
mod buddy;
pub mod conformance;
mod frames;
mod index;
mod meta;
mod pcp;
mod regions;
mod runs;
mod shared;
mod source;
mod stash;
mod stats;
mod zone;

pub use api::{AllocError, Attempt, Order, PAGE_SHIFT, PAGE_SIZE, PageAlloc, PageReq, PageTag};
pub use regions::{MAX_REGIONS, RegionBusy, RegionError};
pub use source::{Decommit, Failing, Fixed, MemoryMap, Range, Source, SourceError, Span};
#[cfg(all(feature = "std", target_os = "linux"))]
pub use source::{Mmap, MmapBuilder};
pub use stats::{AttemptStats, ZoneStats};
pub use zone::{SplitError, Zone, ZoneError};
