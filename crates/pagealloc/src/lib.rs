#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

mod api;
mod broken;
mod buddy;
pub mod conformance;
mod frames;
mod gate;
mod index;
mod lower;
mod meta;
mod mobility;
mod pcp;
mod pressure;
mod runs;
mod shared;
mod source;
mod stash;
mod stats;
mod watermark;
mod zone;

pub use api::{
    AllocError, Attempt, Mobility, Order, PAGE_SHIFT, PAGE_SIZE, PageAlloc, PageReq, PageTag,
    Reserve,
};
pub use gate::ListsDisabled;
#[cfg(target_has_atomic = "64")]
pub use lower::BitTree;
#[cfg(all(loom, feature = "std", target_has_atomic = "64"))]
#[doc(hidden)]
pub use lower::models as models_of_bits;
pub use lower::{Buddies, Extent, Ground, Lower, Waiting, Wanted};
pub use mobility::{Claim, Fallback, Steal};
pub use pressure::PressureHook;
pub use runs::{Run, Runs};
#[cfg(all(feature = "std", target_os = "linux"))]
pub use source::Mmap;
pub use source::{Failing, Fixed, Range, Source, SourceError, Span};
pub use stats::{AttemptStats, ZoneStats};
pub use watermark::Watermarks;
pub use zone::{Zone, ZoneError};
