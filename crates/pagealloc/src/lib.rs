#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

mod api;
mod broken;
mod buddy;
pub mod conformance;
mod frames;
mod index;
mod lower;
mod meta;
mod pcp;
mod runs;
mod shared;
mod source;
mod stash;
mod stats;
mod zone;

pub use api::{AllocError, Attempt, Order, PAGE_SHIFT, PAGE_SIZE, PageAlloc, PageReq, PageTag};
#[cfg(target_has_atomic = "64")]
pub use lower::BitTree;
#[cfg(all(loom, feature = "std", target_has_atomic = "64"))]
#[doc(hidden)]
pub use lower::models as models_of_bits;
pub use lower::{Buddies, Extent, Ground, Lower, Waiting, Wanted};
pub use runs::{Run, Runs};
#[cfg(all(feature = "std", target_os = "linux"))]
pub use source::Mmap;
pub use source::{Failing, Fixed, Range, Source, SourceError, Span};
pub use stats::{AttemptStats, ZoneStats};
pub use zone::{Zone, ZoneError};
