//! Regions that come and go while the zone is in use.
//!
//! A removal runs beside allocations and frees: it holds `growing`, so that nobody grows the zone meanwhile, and takes the zone lock step by step.
//! The region's free pages are taken out first, so that they are not handed out meanwhile (see `shared::memory`); pages on slots' lists can go
//! out until the lists are drained, and then the region is busy.

use super::Zone;
use crate::lower::Lower;
use crate::regions::{RegionBusy, RegionError};
use crate::source::{Range, Source};
use rcu_core::cpu::Cpus;

impl<C: Cpus, S: Source, B: Lower> Zone<C, S, B> {
    /// The ranges of the span that the zone has now, in ascending order; neighbours count as one. Waits for who adds or removes one.
    pub fn regions(&self) -> impl Iterator<Item = Range> + use<C, S, B> {
        let pieces = self.shared().growing.lock().pieces();
        pieces.map(|(first, end)| Range {
            first: first as usize,
            pages: (end - first) as usize,
            zeroed: false,
        })
    }

    /// Makes `range` free pages of the zone, if the source agrees. [`Span::range`](crate::Span::range) makes a range of an address.
    ///
    /// # Errors
    /// [`RegionError`], but neither `Missing` nor `Busy`; nothing has changed then.
    ///
    /// # Safety
    /// 1. The memory is valid for reads and writes, through the pointer of the zone's span, until the range is removed or the zone dropped. A source that
    ///    brings the memory itself ([`Mmap`](https://docs.rs/pagealloc)) sees to that, and so does every source for what it gave and lost before.
    /// 2. Nobody else uses it meanwhile.
    #[doc(alias = "add_memory")]
    #[doc(alias = "online_pages")]
    pub unsafe fn add_region(&self, range: Range) -> Result<(), RegionError> {
        let (first, end) = self.span().check(range)?;
        let mut regions = self.shared().growing.lock();
        regions.add((first, end))?;
        // SAFETY: nothing in it is in use: it is not the zone's, and debt 2.
        match unsafe { self.source.add_range(range) } {
            Ok(given) => {
                // As in `Zone::grow`.
                let slot = self.cpus.current_if_online();
                let range = Range {
                    zeroed: given.zeroed,
                    ..range
                };
                self.shared().add_pages(slot, range);
                self.shared().counters.grew();
                Ok(())
            }
            Err(error) => {
                let undone = regions.remove((first, end));
                debug_assert!(undone.is_ok(), "what was just added is there");
                Err(error.into())
            }
        }
    }

    /// Takes `range` out of the zone, if none of its pages is out; others may allocate and free meanwhile. Afterwards the memory is the
    /// caller's, as far as the source leaves it usable ([`Fixed`](crate::Fixed) and [`MemoryMap`](crate::MemoryMap) do), and
    /// no address in it is handed out until it is added again.
    ///
    /// Drains all lists and the stash, waits for each slot's owner in turn, and looks at the metadata of each page of the range in bounded holds of the zone lock.
    ///
    /// # Errors
    /// [`RegionError::Busy`] with how many pages are out, and the first of them: ask again when they are back. [`RegionError::Missing`] if not all of
    /// the range is the zone's. Otherwise as for [`Self::add_region`]. Nothing has changed then.
    #[doc(alias = "offline_pages")]
    #[doc(alias = "remove_memory")]
    pub fn remove_region(&self, range: Range) -> Result<(), RegionError> {
        let (first, end) = self.span().check(range)?;
        let mut regions = self.shared().growing.lock();
        regions.find((first, end))?;
        match self.shared().take_region(first, end) {
            Ok(()) => {
                let removed = regions.remove((first, end));
                debug_assert!(removed.is_ok(), "it was found just now");
                // SAFETY: all of it was the zone's, so the source gave it, and every page is free and on no list.
                unsafe { self.source.remove_range(range) };
                Ok(())
            }
            Err((pages_out, page)) => {
                let first = self.frames.address(page);
                Err(RegionBusy { pages_out, first }.into())
            }
        }
    }
}
