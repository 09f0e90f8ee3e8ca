//! Blocks that own themselves: pages in safe Rust.
//!
//! Source: Linux's reference count of a page (`set_page_refcounted`, row P17), where the allocator hands out *frozen* pages of count 0 and
//! a public wrapper makes them owned. Here the state is the type: a frozen block is an address ([`PageAlloc::alloc`], as slab and
//! kvfree use it), an owned one a [`PageBlock`], and [`PageBlock::into_raw`] and [`PageBlock::from_raw`] lead from one to the other.
//! There is no count: who wants to share a block puts it into an `Arc`.
//!
//! # Invariants
//! - I1. A `PageBlock` is the only user of a block of its order that is out, of its allocator.
//! - I2. With `Contents = Filled`, every byte of it is initialised.

use crate::api::{AllocError, Attempt, Order, PageAlloc, PageReq};
use core::fmt;
use core::marker::PhantomData;
use core::mem::{ManuallyDrop, MaybeUninit};
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use core::slice;

mod sealed {
    pub trait Contents {}
    impl Contents for super::Unfilled {}
    impl Contents for super::Filled {}
}

/// What is known about the bytes of a [`PageBlock`]: [`Unfilled`] or [`Filled`].
pub trait Contents: sealed::Contents {}
impl Contents for Unfilled {}
impl Contents for Filled {}

/// Nothing: they are not to be read before they are written.
#[derive(Debug)]
pub enum Unfilled {}

/// They are initialised, so the block is a slice of bytes.
#[derive(Debug)]
pub enum Filled {}

/// A block of pages that goes back to its allocator when it is dropped.
///
/// It borrows the allocator, which so outlives it. Dropping may wait for one of the zone's locks, as [`PageAlloc::free`] does; where that is not
/// allowed, use [`Self::free_at`].
///
/// ```
/// # #[cfg(all(feature = "std", target_os = "linux"))] {
/// use pagealloc::{Mmap, Order, PageBlock, PageReq, Zone};
/// use rcu_core::cpu::Threads;
///
/// let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
/// let mut block = PageBlock::zeroed(&zone, PageReq::new(Order::new(1).unwrap())).unwrap();
/// assert_eq!(block.len(), 8192);
/// block[5000] = 1;
/// drop(block);
/// assert_eq!(zone.nr_allocated(), 0);
/// # }
/// ```
///
/// A block cannot outlive its zone:
///
/// ```compile_fail,E0505
/// # use pagealloc::{Mmap, Order, PageBlock, PageReq, Zone};
/// # use rcu_core::cpu::Threads;
/// let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
/// let block = PageBlock::zeroed(&zone, PageReq::new(Order::ZERO)).unwrap();
/// drop(zone);
/// drop(block);
/// ```
///
/// And bytes that nobody wrote cannot be read:
///
/// ```compile_fail,E0608
/// # use pagealloc::{Mmap, Order, PageBlock, PageReq, Zone};
/// # use rcu_core::cpu::Threads;
/// let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
/// let block = PageBlock::new(&zone, PageReq::new(Order::ZERO)).unwrap();
/// let byte = block[0];
/// ```
#[must_use = "the block is freed when it is dropped"]
#[doc(alias = "struct folio")]
#[doc(alias = "set_page_refcounted")]
pub struct PageBlock<'z, P: PageAlloc + ?Sized, C: Contents = Filled> {
    pages: &'z P,
    start: NonNull<u8>,
    order: Order,
    contents: PhantomData<C>,
}

// SAFETY: the block's only user (I1), an address that any thread may use, and an allocator that is `Sync`.
unsafe impl<P: PageAlloc + ?Sized, C: Contents> Send for PageBlock<'_, P, C> {}
// SAFETY: as above; a shared block is bytes to be read.
unsafe impl<P: PageAlloc + ?Sized, C: Contents> Sync for PageBlock<'_, P, C> {}

impl<'z, P: PageAlloc + ?Sized> PageBlock<'z, P, Unfilled> {
    /// Allocates a block whose bytes are to be written first.
    ///
    /// # Errors
    /// As [`PageAlloc::alloc`].
    #[cfg_attr(feature = "history", track_caller)]
    pub fn new(pages: &'z P, req: PageReq) -> Result<Self, AllocError> {
        let start = pages.alloc(req)?;
        // SAFETY: it just came from there, and nobody else has it.
        Ok(unsafe { Self::from_raw(pages, start, req.order) })
    }

    /// Zeroes the whole block.
    pub fn zero(self) -> PageBlock<'z, P, Filled> {
        // SAFETY: the block is this value's alone (I1).
        unsafe { self.start.write_bytes(0, self.order.bytes()) };
        // SAFETY: all of it was just written.
        unsafe { self.assume_filled() }
    }

    /// The block as bytes, which the caller wrote.
    ///
    /// # Safety
    /// 1. Every byte of the block is initialised.
    ///
    /// ```
    /// # #[cfg(all(feature = "std", target_os = "linux"))] {
    /// # use pagealloc::{Mmap, Order, PageBlock, PageReq, Zone};
    /// # use rcu_core::cpu::Threads;
    /// # let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
    /// let mut block = PageBlock::new(&zone, PageReq::new(Order::ZERO)).unwrap();
    /// for byte in block.as_uninit() {
    ///     byte.write(7);
    /// }
    /// // SAFETY: just written, all of it.
    /// let block = unsafe { block.assume_filled() };
    /// assert_eq!(block[100], 7);
    /// # }
    /// ```
    pub unsafe fn assume_filled(self) -> PageBlock<'z, P, Filled> {
        let (pages, order) = (self.pages, self.order);
        // SAFETY: `into_raw` gave it up; filled by debt 1.
        unsafe { PageBlock::from_raw(pages, self.into_raw(), order) }
    }
}

impl<'z, P: PageAlloc + ?Sized> PageBlock<'z, P, Filled> {
    /// Allocates a block that reads as zeroes, whether `req` asks for that or not.
    ///
    /// # Errors
    /// As [`PageAlloc::alloc`].
    #[cfg_attr(feature = "history", track_caller)]
    #[doc(alias = "get_zeroed_page")]
    pub fn zeroed(pages: &'z P, req: PageReq) -> Result<Self, AllocError> {
        let start = pages.alloc(req.zeroed())?;
        // SAFETY: it just came from there, nobody else has it, and it reads as zeroes.
        Ok(unsafe { Self::from_raw(pages, start, req.order) })
    }

    /// The bytes for as long as the allocator is borrowed. The block is not freed any more.
    #[must_use]
    pub fn leak(self) -> &'z mut [u8] {
        let len = self.order.bytes();
        // SAFETY: the block stays out and nobody else's (I1), in memory that its allocator keeps while it is borrowed; filled (I2).
        unsafe { slice::from_raw_parts_mut(self.into_raw().as_ptr(), len) }
    }
}

impl<'z, P: PageAlloc + ?Sized, C: Contents> PageBlock<'z, P, C> {
    /// Takes over a block.
    ///
    /// ```
    /// # #[cfg(all(feature = "std", target_os = "linux"))] {
    /// # use pagealloc::{Filled, Mmap, Order, PageBlock, PageReq, Zone};
    /// # use rcu_core::cpu::Threads;
    /// # let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
    /// let raw = PageBlock::zeroed(&zone, PageReq::new(Order::ZERO)).unwrap().into_raw();
    /// // SAFETY: the block came from this zone with this order, is zeroed, and has no other user.
    /// let block = unsafe { PageBlock::<_, Filled>::from_raw(&zone, raw, Order::ZERO) };
    /// assert_eq!(block[4095], 0);
    /// # }
    /// ```
    ///
    /// # Safety
    /// 1. `start` came from `pages` with this `order`, and nobody else uses or frees the block.
    /// 2. If `C` is [`Filled`], every byte of it is initialised.
    pub const unsafe fn from_raw(pages: &'z P, start: NonNull<u8>, order: Order) -> Self {
        // INVARIANT: I1 by debt 1, I2 by debt 2.
        Self {
            pages,
            start,
            order,
            contents: PhantomData,
        }
    }

    /// Gives the block up without freeing it: from now on it is the caller's, an address.
    #[must_use]
    pub fn into_raw(self) -> NonNull<u8> {
        ManuallyDrop::new(self).start
    }

    /// Frees the block, going as far as `attempt`: at [`Attempt::PcpOnly`] and [`Attempt::TryLock`] without waiting for anybody.
    #[cfg_attr(feature = "history", track_caller)]
    pub fn free_at(self, attempt: Attempt) {
        let this = ManuallyDrop::new(self);
        // SAFETY: the block is out with this order and this value its only user (I1), which is gone.
        unsafe { this.pages.free_at(this.start, this.order, attempt) };
    }

    /// The block's address.
    #[must_use]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The block's order.
    #[must_use]
    pub const fn order(&self) -> Order {
        self.order
    }

    /// The block's allocator.
    #[must_use]
    pub const fn allocator(&self) -> &'z P {
        self.pages
    }
}

impl<P: PageAlloc + ?Sized> PageBlock<'_, P, Unfilled> {
    /// The bytes, to be written.
    #[must_use]
    pub const fn as_uninit(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: the block is valid for that many bytes (`PageAlloc` 1), and this value's alone (I1).
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.order.bytes()) }
    }
}

impl<P: PageAlloc + ?Sized> Deref for PageBlock<'_, P, Filled> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: as in `as_uninit`, and initialised (I2).
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.order.bytes()) }
    }
}

impl<P: PageAlloc + ?Sized> DerefMut for PageBlock<'_, P, Filled> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_uninit`, and initialised (I2).
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.order.bytes()) }
    }
}

impl<P: PageAlloc + ?Sized, C: Contents> Drop for PageBlock<'_, P, C> {
    #[cfg_attr(feature = "history", track_caller)]
    fn drop(&mut self) {
        // SAFETY: the block is out with this order and this value its only user (I1), which is ending.
        unsafe { self.pages.free(self.start, self.order) };
    }
}

impl<P: PageAlloc + ?Sized, C: Contents> fmt::Debug for PageBlock<'_, P, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageBlock")
            .field("start", &self.start)
            .field("order", &self.order)
            .finish_non_exhaustive()
    }
}
