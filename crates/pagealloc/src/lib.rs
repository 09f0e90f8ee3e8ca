#![doc = include_str!("../README.md")]
//!
//! # A kernel hands over its memory map
//!
//! What a kernel brings: its processors ([`Cpus`](rcu_core::cpu::Cpus)), where physical memory is mapped, and the list that the firmware left.
//!
//! ```
//! use core::ptr::NonNull;
//! use pagealloc::{Attempt, MemoryMap, Order, PAGE_SIZE, PageAlloc, PageReq, SourceError, Zone};
//! use rcu_core::cpu::{Cpus, OfflineHook, Slot, UpLock};
//!
//! /// One processor. Interrupt handlers may allocate, too: `UpLock` tells when one came in between.
//! struct BootCpu;
//!
//! // SAFETY: 1: slot 0 of 1; 2: whoever runs runs on this processor; it never goes offline, so that no hook need be run.
//! unsafe impl Cpus for BootCpu {
//!     type Lock = UpLock;
//!
//!     fn nr_slots(&self) -> usize {
//!         1
//!     }
//!
//!     fn current(&self) -> Option<Slot> {
//!         Some(Slot::new(0))
//!     }
//!
//!     unsafe fn add_offline_hook(&self, _hook: NonNull<OfflineHook>) {}
//!
//!     unsafe fn remove_offline_hook(&self, _hook: NonNull<OfflineHook>) {}
//! }
//!
//! /// What the firmware says: physical start, bytes, and whether it is memory to be used.
//! const FIRMWARE: [(usize, usize, bool); 4] = [
//!     (0x00_0000, 0x09_f000, true),
//!     (0x0f_0000, 0x01_0000, false), // the firmware itself
//!     (0x10_0000, 0x30_0000, true),
//!     (0x60_0000, 0x20_0000, true),
//! ];
//! # #[repr(align(4096))]
//! # struct Machine([u8; 0x90_0000]);
//! # fn direct_map() -> NonNull<u8> {
//! #     let memory = std::alloc::Layout::new::<Machine>();
//! #     // SAFETY: the layout has a size.
//! #     NonNull::new(unsafe { std::alloc::alloc(memory) }).unwrap()
//! # }
//!
//! fn init(direct_map: NonNull<u8>) -> Result<Zone<BootCpu, MemoryMap<16>>, pagealloc::ZoneError> {
//!     let mut map = MemoryMap::new(direct_map)?;
//!     for (start, size_bytes, usable) in FIRMWARE {
//!         if usable {
//!             // SAFETY: mapped at this offset for good, and nobody uses it before the allocator is there.
//!             unsafe { map.add(start, size_bytes) }?;
//!         }
//!     }
//!     // SAFETY: mapped, too: a slot for memory that may be plugged in later.
//!     unsafe { map.reserve(0x80_0000, 0x10_0000) }?;
//!     // What does not fit is refused, and nothing has changed.
//!     // SAFETY: as above.
//!     assert_eq!(unsafe { map.add(0x09_e000, 0x2000) }, Err(SourceError::Overlap));
//!     // The zone's own structures, at most 16 bytes a page, are cut off the largest region.
//!     Zone::new(BootCpu, map)
//! }
//!
//! let zone = init(direct_map()).unwrap();
//! let usable = (0x09_f000 + 0x30_0000 + 0x20_0000) / PAGE_SIZE;
//! assert!(zone.total_pages() > usable - usable / 20);
//! assert_eq!(zone.regions().count(), 3);
//!
//! // A stack, a page table, a buffer of 44 KiB for a device that wants it on a 64 KiB boundary.
//! let stack = zone.alloc(PageReq::new(Order::for_size(16 << 10).unwrap())).unwrap();
//! let table = zone.alloc(PageReq::new(Order::ZERO).zeroed()).unwrap();
//! let buffer = zone.alloc_exact(11, PageReq::new(Order::ZERO).align(64 << 10)).unwrap();
//! assert_eq!(zone.nr_allocated(), 4 + 1 + 11);
//!
//! // In an interrupt handler: what is at hand, or a reason why not.
//! let _ = zone.alloc(PageReq::new(Order::ZERO).attempt(Attempt::PcpOnly));
//!
//! // A megabyte is plugged in, used, and taken out again.
//! let start = zone.span().base.as_ptr().wrapping_add(0x80_0000);
//! let plugged = zone.span().range(start, 0x10_0000).unwrap();
//! // SAFETY: it is there now, and nobody uses it.
//! unsafe { zone.add_region(plugged) }.unwrap();
//! assert_eq!(zone.regions().last().unwrap().pages, 0x30_0000 / PAGE_SIZE, "next to its neighbour");
//! zone.remove_region(plugged).unwrap();
//! ```
#![cfg_attr(not(any(feature = "std", test)), no_std)]

mod api;
mod block;
mod broken;
mod buddy;
pub mod conformance;
mod frames;
mod gate;
mod groups;
mod heatmap;
#[cfg_attr(not(feature = "history"), path = "history/off.rs")]
mod history;
mod index;
mod lower;
mod meta;
mod mobility;
#[cfg(all(loom, feature = "std", not(feature = "history")))]
#[doc(hidden)]
pub mod models;
mod pcp;
#[cfg_attr(not(feature = "poison"), path = "poison/off.rs")]
mod poison;
mod pressure;
mod regions;
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
pub use block::{Contents, Filled, PageBlock, Unfilled};
pub use gate::ListsDisabled;
#[cfg(target_has_atomic = "64")]
pub use lower::BitTree;
#[cfg(all(loom, feature = "std", target_has_atomic = "64"))]
#[doc(hidden)]
pub use lower::models as models_of_bits;
pub use lower::{Buddies, Changes, Extent, Ground, Lower, Waiting, Wanted};
pub use mobility::{Claim, Fallback, Steal};
pub use pressure::PressureHook;
pub use regions::{MAX_REGIONS, RegionBusy, RegionError};
pub use runs::{Run, Runs};
pub use source::{Decommit, Failing, Fixed, MemoryMap, Range, Source, SourceError, Span};
#[cfg(all(feature = "std", target_os = "linux"))]
pub use source::{Mmap, MmapBuilder};
pub use stats::{AttemptStats, OrderStats, SlotStats, ZoneStats};
pub use watermark::Watermarks;
#[cfg(feature = "guard")]
pub use zone::guard::Guards;
pub use zone::{SplitError, Ticked, Zone, ZoneError, ZoneFork};
