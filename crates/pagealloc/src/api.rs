//! What a page allocator is: requests, attempts, errors and the trait that slab and kvfree build on.

mod by_ref;

use crate::pcp::CHUNK;
use crate::pressure::PressureHook;
use core::fmt;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use static_assertions::const_assert;

/// Bytes in a page.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// Base-two logarithm of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// Base-two logarithm of a block's pages: 0 to 10, so blocks of 4 KiB to 4 MiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Order(u8);

impl Order {
    /// One page.
    pub const ZERO: Self = Self(0);
    /// The largest block (1024 pages).
    #[doc(alias = "MAX_PAGE_ORDER")]
    pub const MAX: Self = Self(10);

    /// The order of `log2_pages`, if it is at most [`Self::MAX`].
    #[must_use]
    pub const fn new(log2_pages: u8) -> Option<Self> {
        if log2_pages <= Self::MAX.0 {
            Some(Self(log2_pages))
        } else {
            None
        }
    }

    /// The smallest order whose block holds `size_bytes` (zero counts as one byte).
    #[must_use]
    #[doc(alias = "get_order")]
    pub const fn for_size(size_bytes: usize) -> Option<Self> {
        let pages = size_bytes.div_ceil(PAGE_SIZE);
        if pages > 1 << Self::MAX.0 {
            return None;
        }
        Some(Self(pages.next_power_of_two().trailing_zeros() as u8))
    }

    /// The order `index`, which the caller knows to be at most [`Self::MAX`].
    pub(crate) const fn at(index: usize) -> Self {
        debug_assert!(index <= Self::MAX.0 as usize);
        Self(index as u8)
    }

    /// The logarithm, as an index.
    #[inline]
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }

    /// Pages in a block.
    #[inline]
    #[must_use]
    pub const fn pages(self) -> usize {
        1 << self.0
    }

    /// Bytes in a block, which is also the block's alignment.
    #[inline]
    #[must_use]
    pub const fn bytes(self) -> usize {
        PAGE_SIZE << self.0
    }
}

/// How far an allocation may go when the slot's list has nothing. Examined only after the list
/// came up empty, so a hit costs the same at every level.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Attempt {
    /// The slot's own list or nothing: no lock is touched. Right in any context.
    #[doc(alias = "__rcu_alloc_page_lockless")]
    PcpOnly,
    /// The zone too, as far as its locks are free now.
    #[doc(alias = "alloc_pages_nolock")]
    TryLock,
    /// The zone, waiting for its locks (short, bounded holds); no growth.
    #[doc(alias = "GFP_NOWAIT")]
    NoWait,
    /// The zone, and more memory from the source when it is empty. May make system calls.
    #[doc(alias = "GFP_KERNEL")]
    MayGrow,
}

/// What becomes of a block's contents: blocks of one kind are kept together, so that large blocks stay possible elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
#[doc(alias = "migratetype")]
pub enum Mobility {
    /// Stays where it is until its owner frees it. What slab and kvfree ask for.
    #[default]
    #[doc(alias = "MIGRATE_UNMOVABLE")]
    Unmovable = 0,
    /// Its owner can copy it elsewhere, or will free it soon.
    #[doc(alias = "__GFP_MOVABLE")]
    Movable = 1,
    /// Its owner gives it back when asked (see `PressureHook`): caches.
    #[doc(alias = "__GFP_RECLAIMABLE")]
    Reclaimable = 2,
}

impl Mobility {
    /// All of them, by number.
    pub const ALL: [Self; 3] = [Self::Unmovable, Self::Movable, Self::Reclaimable];

    /// The number, as an index.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> usize {
        self as usize
    }

    /// The one with this number; numbers that no other has are `Unmovable`'s.
    #[inline(always)]
    pub(crate) const fn at(number: u32) -> Self {
        match number {
            1 => Self::Movable,
            2 => Self::Reclaimable,
            _ => Self::Unmovable,
        }
    }
}

/// How far below the low end of its watermarks a request may take the zone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Reserve {
    /// Not at all: what is free below the lowest watermark is for others.
    #[default]
    #[doc(alias = "__GFP_NOMEMALLOC")]
    None,
    /// Half of it, and at an attempt that does not grow five eighths: for those who cannot wait and must not fail often.
    #[doc(alias = "__GFP_HIGH")]
    #[doc(alias = "GFP_ATOMIC")]
    High,
    /// All of it: for those who free memory by it, a few pages at a time.
    #[doc(alias = "__GFP_MEMALLOC")]
    All,
}

/// Why there is no page, and so which retry makes sense.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum AllocError {
    /// This slot's list has none: retry at a higher [`Attempt`].
    Empty,
    /// The slot's list or a lock of the zone's was taken at this moment: retry later or at [`Attempt::NoWait`].
    Contended,
    /// The zone has no block of this order: retry at [`Attempt::MayGrow`], or after freeing.
    Exhausted,
    /// What is free is kept in reserve: retry at [`Attempt::MayGrow`], after freeing, or with a [`Reserve`].
    Reserved,
    /// The source has no more memory to give.
    OutOfMemory,
    /// No allocator can serve this request: alignment above the largest block, or not a power of two.
    Invalid,
}

impl AllocError {
    /// Whether asking again, later or at a higher [`Attempt`], can help without anything being freed.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::Empty | Self::Contended | Self::Exhausted | Self::Reserved
        )
    }
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the slot's page list is empty; retry at a higher attempt level",
            Self::Contended => "the page lock is taken at this moment; retry later or wait for it",
            Self::Exhausted => {
                "the zone has no such block; retry with growth allowed or after freeing"
            }
            Self::Reserved => {
                "what is free in the zone is kept in reserve; retry with growth allowed or after freeing"
            }
            Self::OutOfMemory => "the memory source has no more memory",
            Self::Invalid => "the request's alignment or order cannot be served",
        })
    }
}

impl core::error::Error for AllocError {}

/// One request for a block of pages.
///
/// ```
/// use pagealloc::{Attempt, Order, PageReq};
/// let req = PageReq::new(Order::ZERO).zeroed().attempt(Attempt::NoWait);
/// assert_eq!(req.order.bytes(), 4096);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[must_use]
pub struct PageReq {
    /// The block's order. Blocks are aligned to their size.
    pub order: Order,
    /// Bytes that the block's address must be a multiple of, a power of two up to the largest block; 0, or at most the
    /// block's own size, asks for nothing more.
    pub align: usize,
    /// Whether the block must read as zeroes.
    pub zero: bool,
    /// How far to go.
    pub attempt: Attempt,
    /// What becomes of the block.
    pub mobility: Mobility,
    /// What the request may take of the zone's reserve.
    pub reserve: Reserve,
}

impl PageReq {
    /// A block of `order`, contents unspecified, growing if need be.
    pub const fn new(order: Order) -> Self {
        Self {
            order,
            align: 0,
            zero: false,
            attempt: Attempt::MayGrow,
            mobility: Mobility::Unmovable,
            reserve: Reserve::None,
        }
    }

    /// The same, reading as zeroes.
    #[doc(alias = "__GFP_ZERO")]
    pub const fn zeroed(mut self) -> Self {
        self.zero = true;
        self
    }

    /// The same, at an address that is a multiple of `bytes`. What is more than the order's own alignment is cut out of a larger block,
    /// whose rest goes back at once, and is not served by the slot's list of that order.
    pub const fn align(mut self, bytes: usize) -> Self {
        self.align = bytes;
        self
    }

    /// Whether any block of the order will do.
    #[inline(always)]
    pub(crate) const fn is_plain(&self) -> bool {
        self.align == 0 || (self.align.is_power_of_two() && self.align <= self.order.bytes())
    }

    /// The order whose blocks are large and aligned enough; `None` if no block is, or the alignment is none.
    pub(crate) const fn aligned_order(&self) -> Option<Order> {
        if self.is_plain() {
            return Some(self.order);
        }
        if !self.align.is_power_of_two() {
            return None;
        }
        Order::for_size(self.align)
    }

    /// The same, going as far as `attempt`.
    pub const fn attempt(mut self, attempt: Attempt) -> Self {
        self.attempt = attempt;
        self
    }

    /// The same, kept with others of `mobility`.
    pub const fn mobility(mut self, mobility: Mobility) -> Self {
        self.mobility = mobility;
        self
    }

    /// The same, taking as much of the zone's reserve as `reserve` says.
    pub const fn reserve(mut self, reserve: Reserve) -> Self {
        self.reserve = reserve;
        self
    }

    /// The same for those who must not fail easily: half of the reserve, or more with [`Attempt::NoWait`].
    #[doc(alias = "GFP_ATOMIC")]
    pub const fn high(self) -> Self {
        self.reserve(Reserve::High)
    }
}

/// All of a request but its alignment: small enough for a register, which a hit then need not write to memory for the case that it
/// is none.
#[derive(Clone, Copy)]
pub(crate) struct SmallReq {
    order: Order,
    zero: bool,
    attempt: Attempt,
    mobility: Mobility,
    reserve: Reserve,
}

const_assert!(size_of::<SmallReq>() <= size_of::<u64>());

impl SmallReq {
    #[inline(always)]
    pub(crate) const fn of(req: PageReq) -> Self {
        Self {
            order: req.order,
            zero: req.zero,
            attempt: req.attempt,
            mobility: req.mobility,
            reserve: req.reserve,
        }
    }

    pub(crate) const fn with(self, align: usize) -> PageReq {
        PageReq {
            order: self.order,
            zero: self.zero,
            attempt: self.attempt,
            align,
            mobility: self.mobility,
            reserve: self.reserve,
        }
    }
}

/// What an owner notes about its pages, to be found again from any address inside them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageTag {
    /// The owner's pointer (a slab's descriptor, say); null in pages nobody tagged.
    pub owner: *mut (),
    /// The owner's number (a size class, say).
    pub tag: u32,
}

impl PageTag {
    /// The tag of pages that nobody tagged.
    pub const NONE: Self = Self {
        owner: core::ptr::null_mut(),
        tag: 0,
    };
}

/// A source of pages for the layers above.
///
/// Production: `Zone`. Every implementation runs `page_alloc_conformance!`.
///
/// # Safety
/// An implementer keeps the guarantees below.
///
/// # Guarantees
/// 1. A block that `alloc` returned is valid for reads and writes of `order.bytes()`, aligned to that,
///    and overlaps no other block that is out; its provenance covers the whole block. If `zero` was asked for, it reads as zeroes.
///    It stays so until it is freed or the allocator is gone.
/// 2. `free` never fails, at any level; at [`Attempt::PcpOnly`] and [`Attempt::TryLock`] it waits for nobody.
/// 3. `alloc` and `free` at [`Attempt::PcpOnly`] touch no lock but the slot's own local one.
/// 4. `tag` finds what `set_tag` noted last for the block that `address` lies in, and [`PageTag::NONE`] for a block that
///    was not tagged since it was allocated.
/// 5. Guarantee 1 holds of whole runs and of memory apart, too; `run_pages` says how many pages there are, at least as many as asked
///    for, and `tag` finds nothing at the latter.
pub unsafe trait PageAlloc: Send + Sync {
    /// Allocates one block.
    ///
    /// # Errors
    /// See [`AllocError`]; nothing has changed then.
    #[cfg_attr(feature = "history", track_caller)]
    fn alloc(&self, req: PageReq) -> Result<NonNull<u8>, AllocError>;

    /// Frees one block, going as far as `attempt` when the slot's list is full.
    ///
    /// # Safety
    /// 1. `block` came from `alloc` of this allocator with the same `order`, and is not used any more.
    #[cfg_attr(feature = "history", track_caller)]
    unsafe fn free_at(&self, block: NonNull<u8>, order: Order, attempt: Attempt);

    /// Frees one block. May wait for one of the allocator's locks.
    ///
    /// # Safety
    /// As for [`Self::free_at`].
    #[cfg_attr(feature = "history", track_caller)]
    unsafe fn free(&self, block: NonNull<u8>, order: Order) {
        // SAFETY: the caller's debt 1.
        unsafe { self.free_at(block, order, Attempt::NoWait) };
    }

    /// Fills `out` from the front with blocks and says how many it got; tries for at least one.
    #[doc(alias = "alloc_pages_bulk")]
    #[cfg_attr(feature = "history", track_caller)]
    fn alloc_bulk(&self, req: PageReq, out: &mut [MaybeUninit<NonNull<u8>>]) -> usize {
        for (n, place) in out.iter_mut().enumerate() {
            match self.alloc(req) {
                Ok(block) => place.write(block),
                Err(_) => return n,
            };
        }
        out.len()
    }

    /// Puts a block in each of the `places` that has none, from the front, and says how many have one then; if any has none, tries for at least one.
    ///
    /// For a caller who comes again for what was not to be had. What is in a place stays there.
    ///
    /// ```
    /// # #[cfg(all(feature = "std", target_os = "linux"))] {
    /// use pagealloc::{Attempt, Mmap, Order, PageAlloc, PageReq, Zone};
    ///
    /// let zone = Zone::new(rcu_core::cpu::Threads, Mmap::new().unwrap()).unwrap();
    /// let (page, mut places) = (PageReq::new(Order::ZERO), [None; 100]);
    /// // Nothing is at hand: now for some of them without waiting, later for the rest.
    /// assert_eq!(zone.fill_bulk(page.attempt(Attempt::PcpOnly), &mut places), 0);
    /// assert_eq!(zone.fill_bulk(page, &mut places), 100);
    /// let blocks = places.map(|place| place.unwrap());
    /// // SAFETY: they came from this zone with this order, and are not used any more.
    /// unsafe { zone.free_bulk(&blocks, Order::ZERO) };
    /// # }
    /// ```
    #[doc(alias = "alloc_pages_bulk_array")]
    #[cfg_attr(feature = "history", track_caller)]
    fn fill_bulk(&self, req: PageReq, places: &mut [Option<NonNull<u8>>]) -> usize {
        let mut batch = [MaybeUninit::uninit(); CHUNK];
        let missing = places.iter().filter(|place| place.is_none()).count();
        let (mut left, mut vacant) = (missing, places.iter_mut().filter(|p| p.is_none()));
        while left > 0 {
            let want = left.min(CHUNK);
            let got = self.alloc_bulk(req, &mut batch[..want]);
            for (block, place) in batch[..got].iter().zip(&mut vacant) {
                // SAFETY: filled from the front.
                *place = Some(unsafe { block.assume_init() });
            }
            left -= got;
            if got < want {
                break;
            }
        }
        places.len() - left
    }

    /// Frees blocks of one order.
    ///
    /// # Safety
    /// As for [`Self::free_at`], for each of them.
    #[cfg_attr(feature = "history", track_caller)]
    unsafe fn free_bulk(&self, blocks: &[NonNull<u8>], order: Order) {
        for &block in blocks {
            // SAFETY: the caller's debt 1, for this block.
            unsafe { self.free(block, order) };
        }
    }

    /// Notes `tag` for every page of a block.
    ///
    /// # Safety
    /// 1. `block` came from `alloc` with this `order` and is still out; the caller owns it.
    unsafe fn set_tag(&self, block: NonNull<u8>, order: Order, tag: PageTag);

    /// What was noted for the page that `address` lies in; `None` outside of this allocator's memory.
    #[doc(alias = "virt_to_slab")]
    fn tag(&self, address: *const u8) -> Option<PageTag>;

    /// The order of the allocated block that starts at `block`; `None` if there is none.
    #[doc(alias = "compound_order")]
    fn order_of(&self, block: *const u8) -> Option<Order>;

    /// Has `hook` called when memory runs low, if this allocator asks anybody; the provided version does not.
    ///
    /// # Safety
    /// 1. `hook` stays valid and in place until [`Self::remove_pressure_hook`] returned for it, or the allocator was dropped.
    /// 2. It is on no list.
    unsafe fn add_pressure_hook(&self, hook: NonNull<PressureHook>) {
        let _ = hook;
    }

    /// Takes `hook` off, if it is listed. Waits while it runs; not to be called from the hook.
    fn remove_pressure_hook(&self, hook: NonNull<PressureHook>) {
        let _ = hook;
    }

    /// Allocates at least `pages` pages in a row, as `req` says but for its order, aligned as a block of the next larger order is. To be freed
    /// by [`Self::free_run_at`]. The provided version gives that whole block.
    ///
    /// # Errors
    /// [`AllocError::Invalid`] for no pages or more than the largest block; otherwise as for [`Self::alloc`].
    #[doc(alias = "alloc_pages_exact")]
    #[cfg_attr(feature = "history", track_caller)]
    fn alloc_run(&self, pages: usize, req: PageReq) -> Result<NonNull<u8>, AllocError> {
        let order = order_of_pages(pages).ok_or(AllocError::Invalid)?;
        self.alloc(PageReq { order, ..req })
    }

    /// Frees what [`Self::alloc_run`] gave.
    ///
    /// # Safety
    /// 1. `run` came from `alloc_run` of this allocator, has so many pages by [`Self::run_pages`], and is not used any more.
    #[doc(alias = "free_pages_exact")]
    #[cfg_attr(feature = "history", track_caller)]
    unsafe fn free_run_at(&self, run: NonNull<u8>, pages: usize, attempt: Attempt) {
        if let Some(order) = order_of_pages(pages) {
            // SAFETY: a block of that order (1).
            unsafe { self.free_at(run, order, attempt) };
        }
    }

    /// How many pages the block, or what [`Self::alloc_run`] gave, has that starts at `run`; `None` if nothing that is out starts there.
    fn run_pages(&self, run: *const u8) -> Option<usize> {
        self.order_of(run).map(Order::pages)
    }

    /// Memory apart from the allocator's own: of any size, reading as zeroes, its address a multiple of `align`, a power of two. No
    /// [`Self::tag`] is ever found there. Makes system calls. The provided version has none to give.
    ///
    /// # Errors
    /// [`AllocError::Invalid`] if there is no such memory, [`AllocError::OutOfMemory`] if there is no more.
    #[doc(alias = "vmalloc")]
    fn map_apart(&self, size_bytes: usize, align: usize) -> Result<NonNull<u8>, AllocError> {
        let _ = (size_bytes, align);
        Err(AllocError::Invalid)
    }

    /// Gives memory apart back.
    ///
    /// # Safety
    /// 1. `start` came from [`Self::map_apart`] or [`Self::remap_apart`] of this allocator with this size, and is not used any more.
    #[doc(alias = "vfree")]
    unsafe fn unmap_apart(&self, start: NonNull<u8>, size_bytes: usize) {
        let _ = (start, size_bytes);
    }

    /// Makes memory apart larger or smaller without copying; what is new reads as zeroes. With `may_move` it may be elsewhere afterwards,
    /// aligned to a page. `None`, and nothing has changed, if that cannot be done.
    ///
    /// # Safety
    /// 1. `start` came from [`Self::map_apart`] or this function, of this allocator, with `old_bytes`; if another address is returned, it is not used
    ///    any more, and what is past `new_bytes` in no case.
    #[doc(alias = "mremap")]
    unsafe fn remap_apart(
        &self,
        start: NonNull<u8>,
        old_bytes: usize,
        new_bytes: usize,
        may_move: bool,
    ) -> Option<NonNull<u8>> {
        let _ = (start, old_bytes, new_bytes, may_move);
        None
    }
}

/// The order of the smallest block with so many pages, if there is one, and `pages` is not zero.
fn order_of_pages(pages: usize) -> Option<Order> {
    let size = pages.checked_mul(PAGE_SIZE).filter(|&size| size > 0);
    size.and_then(Order::for_size)
}
