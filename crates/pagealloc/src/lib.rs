#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

mod api;
mod block;
mod broken;
mod buddy;
pub mod conformance;
mod frames;
mod heatmap;
#[cfg_attr(not(feature = "history"), path = "history/off.rs")]
mod history;
mod index;
mod meta;
mod pcp;
#[cfg_attr(not(feature = "poison"), path = "poison/off.rs")]
mod poison;
mod runs;
mod shared;
mod source;
mod stash;
mod stats;
mod zone;

pub use api::{AllocError, Attempt, Order, PAGE_SHIFT, PAGE_SIZE, PageAlloc, PageReq, PageTag};
pub use block::{Contents, Filled, PageBlock, Unfilled};
#[cfg(all(feature = "std", target_os = "linux"))]
pub use source::Mmap;
pub use source::{Failing, Fixed, Range, Source, SourceError, Span};
pub use stats::{AttemptStats, OrderStats, SlotStats, ZoneStats};
#[cfg(feature = "guard")]
pub use zone::guard::Guards;
pub use zone::{Zone, ZoneError};
