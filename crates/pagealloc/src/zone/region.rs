//! Regions that come and go while the zone is in use.
//!
//! A removal runs beside allocations and frees: it holds `growing`, so that nobody grows the zone meanwhile, and takes the arenas' locks step by step.
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
    ///
    /// The crate's documentation has an example.
    #[doc(alias = "add_memory")]
    #[doc(alias = "online_pages")]
    pub unsafe fn add_region(&self, range: Range) -> Result<(), RegionError> {
        let (first, end) = self.span().check(range)?;
        let mut regions = self.shared().growing.lock();
        // Noted when the source has agreed, for it may also panic.
        let mut with_it = regions.clone();
        with_it.add((first, end))?;
        // SAFETY: nothing in it is in use: it is not the zone's, and debt 2.
        let given = unsafe { self.source.add_range(range) }?;
        *regions = with_it;
        let range = Range {
            zeroed: given.zeroed,
            ..range
        };
        // As in `Zone::grow`.
        self.shared()
            .add_pages(self.cpus.current_if_online(), range);
        self.shared().counters.grew();
        Ok(())
    }

    /// Takes `range` out of the zone, if none of its pages is out; others may allocate and free meanwhile. Afterwards the memory is the
    /// caller's, as far as the source leaves it usable ([`Fixed`](crate::Fixed) and [`MemoryMap`](crate::MemoryMap) do), and
    /// no address in it is handed out until it is added again.
    ///
    /// Where not all of the range is free in the zone, closes all lists as [`Self::disable_lists`] does until it is through, and merges the stash. Waits
    /// for each slot's owner in turn, and looks at the metadata of each page of the range in bounded holds of the arenas' locks.
    ///
    /// ```
    /// # #[cfg(all(feature = "std", target_os = "linux"))] {
    /// # use pagealloc::{Mmap, Order, PageBlock, PageReq, RegionError, Zone};
    /// # use rcu_core::cpu::Threads;
    /// # let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
    /// let block = PageBlock::zeroed(&zone, PageReq::new(Order::ZERO)).unwrap();
    /// let all = zone.regions().next().unwrap();
    /// let refused = zone.remove_region(all).unwrap_err();
    /// assert!(refused.is_retryable());
    /// let RegionError::Busy(busy) = refused else { unreachable!() };
    /// assert_eq!((busy.pages_out, busy.first.as_ptr()), (1, block.as_ptr()));
    /// drop(block);
    /// zone.remove_region(all).unwrap();
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`RegionError::Busy`] with how many pages are out, or on their way, and the first of them: ask again when they are back.
    /// [`RegionError::Missing`] if not all of the range is the zone's. Otherwise as for [`Self::add_region`]. Nothing has changed then.
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
