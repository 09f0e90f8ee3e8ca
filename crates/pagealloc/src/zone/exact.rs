//! Blocks that are not just an order's: aligned further, of any number of pages, cut in smaller ones or put together.

use super::Zone;
use crate::api::{AllocError, Attempt, Order, PAGE_SIZE, PageAlloc, PageReq};
use crate::history::Who;
use crate::lower::Lower;
use crate::runs::Run;
use crate::source::Source;
use core::fmt;
use core::ptr::NonNull;
use rcu_core::cpu::Cpus;

/// Why blocks were not split or merged. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SplitError {
    /// The pieces would be larger than the block.
    Order,
    /// A block of the new order cannot start there.
    Misaligned,
}

impl fmt::Display for SplitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Order => "a piece cannot be larger than the whole: the second order must not be above the first (for a merge, below)",
            Self::Misaligned => "no block of the new order can start there: its address must be a multiple of its size",
        })
    }
}

impl core::error::Error for SplitError {}

impl<C: Cpus, S: Source, B: Lower> Zone<C, S, B> {
    /// Allocates where the alignment is more than the order's own: the front of a larger block, whose rest goes back.
    #[cold]
    #[inline(never)]
    pub(super) fn alloc_aligned(&self, req: PageReq, who: Who) -> Result<NonNull<u8>, AllocError> {
        let whole = req.aligned_order().ok_or(AllocError::Invalid)?;
        let (page, _) = self.take_front(whole, req.order.pages(), req)?;
        self.count(|count| count.allocated(req.order, 1));
        Ok(self
            .frames
            .hand_out(page, req.order, req.mobility, req.zero, who))
    }

    /// Takes a block and gives all but its first `pages` back. The first page, marked as if on a list, and whether they read as zeroes.
    /// The whole counts as back; what is kept, the caller counts.
    fn take_front(
        &self,
        whole: Order,
        pages: usize,
        req: PageReq,
    ) -> Result<(u32, bool), AllocError> {
        let first = self.take_slow(PageReq {
            order: whole,
            align: 0,
            ..req
        })?;
        self.count(|count| count.freed(whole, 1));
        let zero = self.frames.metas.at(first).state().is_zero();
        let rest = Run {
            first: first + pages as u32,
            end: first + whole.pages() as u32,
            zero,
        };
        if rest.first < rest.end {
            let slot = self.cpus.current();
            self.shared().put_run(slot, rest, req.attempt);
        }
        Ok((first, zero))
    }

    /// Pages of the run, or of the block, that starts at `address` and is out.
    #[doc(alias = "ksize")]
    pub fn exact_pages(&self, address: *const u8) -> Option<usize> {
        self.frames.run_pages(address)
    }

    /// Makes blocks of order `into` of one block of `order`, each to be freed on its own from now on. They keep the block's note.
    ///
    /// Takes no lock; as long as the block has pieces. A block with guards loses them, which makes system calls.
    ///
    /// ```
    /// # #[cfg(all(feature = "std", target_os = "linux"))] {
    /// use pagealloc::{Mmap, Order, PAGE_SIZE, PageAlloc, PageReq, Zone};
    /// use rcu_core::cpu::Threads;
    ///
    /// let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
    /// let block = zone.alloc(PageReq::new(Order::new(1).unwrap())).unwrap();
    /// // SAFETY: the block is out with this order, and ours.
    /// unsafe { zone.split(block, Order::new(1).unwrap(), Order::ZERO) }.unwrap();
    /// // SAFETY: the second page of the block.
    /// let second = unsafe { block.add(PAGE_SIZE) };
    /// for page in [second, block] {
    ///     // SAFETY: a page of its own since the split, and not used any more.
    ///     unsafe { zone.free(page, Order::ZERO) };
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`SplitError::Order`] if `into` is more than `order`.
    ///
    /// # Safety
    /// 1. `block` came from this zone with this `order` and is still out; the caller owns it.
    #[doc(alias = "split_page")]
    #[cfg_attr(feature = "history", track_caller)]
    pub unsafe fn split(
        &self,
        block: NonNull<u8>,
        order: Order,
        into: Order,
    ) -> Result<(), SplitError> {
        if into > order {
            return Err(SplitError::Order);
        }
        let who = Who::now(&self.cpus, Attempt::NoWait);
        self.frames.split(block, order, into, who);
        #[cfg(feature = "guard")]
        if into < order {
            self.unguard(self.frames.page(block), order);
        }
        self.count(|count| {
            count.freed(order, 1);
            count.allocated(into, order.pages() / into.pages());
        });
        Ok(())
    }

    /// Makes one block of order `into` of neighbouring blocks of `order`, to be freed as a whole from now on. Their notes are gone.
    ///
    /// Takes no lock; as long as there are pieces.
    ///
    /// # Errors
    /// [`SplitError::Order`] if `order` is more than `into`; [`SplitError::Misaligned`] if `block` is not aligned to `into`.
    ///
    /// # Safety
    /// 1. The blocks from `block` on, `into.pages() / order.pages()` of them, came from this zone with this `order` and are still out; the
    ///    caller owns all of them.
    ///
    /// ```
    /// # #[cfg(all(feature = "std", target_os = "linux"))] {
    /// # use pagealloc::{Mmap, Order, PageAlloc, PageReq, Zone};
    /// # use rcu_core::cpu::Threads;
    /// # let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
    /// let (one, two) = (Order::ZERO, Order::new(1).unwrap());
    /// let pair = zone.alloc(PageReq::new(two)).unwrap();
    /// // SAFETY: the block is the caller's.
    /// unsafe { zone.split(pair, two, one) }.unwrap();
    /// // … the two pages are used apart …
    /// // SAFETY: both pages of the pair are still out, and the caller's.
    /// unsafe { zone.merge(pair, one, two) }.unwrap();
    /// // SAFETY: a block of this order again.
    /// unsafe { zone.free(pair, two) };
    /// # }
    /// ```
    #[cfg_attr(feature = "history", track_caller)]
    pub unsafe fn merge(
        &self,
        block: NonNull<u8>,
        order: Order,
        into: Order,
    ) -> Result<(), SplitError> {
        if into < order {
            return Err(SplitError::Order);
        }
        let who = Who::now(&self.cpus, Attempt::NoWait);
        if !self.frames.merge(block, order, into, who) {
            return Err(SplitError::Misaligned);
        }
        self.count(|count| {
            count.freed(order, into.pages() / order.pages());
            count.allocated(into, 1);
        });
        Ok(())
    }
}

impl<C: Cpus + Send + Sync, S: Source + Send + Sync, B: Lower> Zone<C, S, B> {
    /// Allocates `pages` pages in a row, as `req` says but for its order: what the next larger block has in excess goes back at once.
    ///
    /// The run is aligned as a block of that larger order is, and is freed by [`Self::free_exact`] as a whole: past the slot's lists, unless
    /// the length is a power of two. Then it is a block, and may be freed as one.
    ///
    /// ```
    /// # #[cfg(all(feature = "std", target_os = "linux"))] {
    /// use pagealloc::{Mmap, Order, PageReq, Zone};
    /// use rcu_core::cpu::Threads;
    ///
    /// let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
    /// let run = zone.alloc_exact(300, PageReq::new(Order::ZERO).zeroed()).unwrap();
    /// assert_eq!(zone.exact_pages(run.as_ptr()), Some(300));
    /// // SAFETY: the run came from `alloc_exact` with this length, and is not used any more.
    /// unsafe { zone.free_exact(run, 300) };
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`AllocError::Invalid`] for no pages, for more than the largest block, or an alignment that cannot be served; otherwise as for
    /// [`PageAlloc::alloc`].
    #[doc(alias = "alloc_pages_exact")]
    #[cfg_attr(feature = "history", track_caller)]
    pub fn alloc_exact(&self, pages: usize, req: PageReq) -> Result<NonNull<u8>, AllocError> {
        let size = pages.checked_mul(PAGE_SIZE).filter(|&size| size > 0);
        let order = size.and_then(Order::for_size).ok_or(AllocError::Invalid)?;
        let req = PageReq { order, ..req };
        if order.pages() == pages {
            return self.alloc(req);
        }
        let whole = req.aligned_order().ok_or(AllocError::Invalid)?;
        let (first, is_zero) = self.take_front(whole, pages, req)?;
        let end = first + pages as u32;
        let orders = self.frames.run_orders(first, end);
        self.count(|count| orders.for_each(|order| count.allocated(order, 1)));
        let who = Who::now(&self.cpus, req.attempt);
        Ok(self
            .frames
            .hand_out_run(first, end, req.mobility, req.zero, is_zero, who))
    }

    /// Frees a run. May wait for one of the zone's locks.
    ///
    /// # Safety
    /// 1. `run` came from [`Self::alloc_exact`] of this zone with the same `pages`, and is not used any more.
    ///
    /// ```
    /// # #[cfg(all(feature = "std", target_os = "linux"))] {
    /// # use pagealloc::{Mmap, Order, PageAlloc, PageReq, Zone};
    /// # use rcu_core::cpu::Threads;
    /// # let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
    /// let run = zone.alloc_exact(11, PageReq::new(Order::ZERO)).unwrap();
    /// // SAFETY: from there, as many pages, and not used any more.
    /// unsafe { zone.free_exact(run, 11) };
    /// # }
    /// ```
    #[doc(alias = "free_pages_exact")]
    #[cfg_attr(feature = "history", track_caller)]
    pub unsafe fn free_exact(&self, run: NonNull<u8>, pages: usize) {
        // SAFETY: the caller's debt.
        unsafe { self.free_exact_at(run, pages, Attempt::NoWait) };
    }

    /// Frees a run, going as far as `attempt`: below [`Attempt::NoWait`] it waits for nobody.
    ///
    /// # Safety
    /// As for [`Self::free_exact`].
    ///
    /// ```
    /// # #[cfg(all(feature = "std", target_os = "linux"))] {
    /// # use pagealloc::{Mmap, Order, PageAlloc, PageReq, Zone};
    /// # use rcu_core::cpu::Threads;
    /// # let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
    /// use pagealloc::Attempt;
    /// let run = zone.alloc_exact(11, PageReq::new(Order::ZERO)).unwrap();
    /// // In an interrupt handler.
    /// // SAFETY: from there, as many pages, and not used any more.
    /// unsafe { zone.free_exact_at(run, 11, Attempt::TryLock) };
    /// # }
    /// ```
    #[cfg_attr(feature = "history", track_caller)]
    pub unsafe fn free_exact_at(&self, run: NonNull<u8>, pages: usize, attempt: Attempt) {
        if let Some(order) = Order::for_size(pages.saturating_mul(PAGE_SIZE))
            && order.pages() == pages
        {
            // SAFETY: the caller's debt; such a run is a block.
            return unsafe { self.free_at(run, order, attempt) };
        }
        let (first, end) = self
            .frames
            .take_back_run(run, pages, Who::now(&self.cpus, attempt));
        let orders = self.frames.run_orders(first, end);
        self.count(|count| orders.for_each(|order| count.freed(order, 1)));
        let run = Run {
            first,
            end,
            zero: false,
        };
        let slot = self.cpus.current();
        self.shared().put_run(slot, run, attempt);
        self.after_free(attempt);
    }
}
