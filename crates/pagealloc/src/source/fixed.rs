//! A region of the caller's: a kernel's memory map entry, a static array, a part of a heap.

use super::{Range, Source, SourceError, Span};
use crate::api::PAGE_SIZE;
use core::alloc::Layout;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

/// A region that is there from the start. The zone's own structures are carved from its beginning.
///
/// ```
/// use core::mem::MaybeUninit;
/// use pagealloc::{Fixed, Zone};
/// use rcu_core::cpu::OneCpu;
///
/// // Or a `static`, or what the boot loader left.
/// let memory = vec![MaybeUninit::<u8>::uninit(); 64 << 10].leak();
/// // SAFETY: this program has one thread.
/// let cpu = unsafe { OneCpu::new() };
/// let zone = Zone::new(cpu, Fixed::new(memory).unwrap()).unwrap();
/// assert!(zone.total_pages() >= 12);
/// ```
///
/// The memory must be there for ever: a zone may be forgotten rather than dropped, and then its structures, which lie in the memory, stay
/// on its [`Cpus`](rcu_core::cpu::Cpus)' list of offline hooks. Memory that ends is for [`Fixed::borrowed`].
///
/// ```compile_fail,E0597
/// # use core::mem::MaybeUninit;
/// # use pagealloc::Fixed;
/// let mut memory = vec![MaybeUninit::<u8>::uninit(); 64 << 10];
/// let source = Fixed::new(&mut memory).unwrap();
/// ```
#[derive(Debug)]
pub struct Fixed<'a> {
    base: NonNull<u8>,
    pages: usize,
    /// The first page not given yet; 0 until the metadata is carved.
    next: AtomicUsize,
    /// The first page behind the metadata; no page before it is ever given.
    carved: AtomicUsize,
    /// Pages that one `grow` gives.
    step: usize,
    _region: PhantomData<&'a mut [MaybeUninit<u8>]>,
}

// SAFETY: the region is borrowed exclusively; handing parts of it out is by the atomic `next`.
unsafe impl Send for Fixed<'_> {}
// SAFETY: as above.
unsafe impl Sync for Fixed<'_> {}

impl Fixed<'static> {
    /// The whole pages inside `region`.
    ///
    /// # Errors
    /// [`SourceError::Empty`] if there is none.
    pub fn new(region: &'static mut [MaybeUninit<u8>]) -> Result<Self, SourceError> {
        // SAFETY: the region never ends.
        unsafe { Self::borrowed(region) }
    }
}

impl<'a> Fixed<'a> {
    /// The whole pages inside a `region` that may end.
    ///
    /// ```
    /// # use core::mem::MaybeUninit;
    /// # use pagealloc::{Fixed, Zone};
    /// # // SAFETY: this program has one thread.
    /// # let cpu = unsafe { rcu_core::cpu::OneCpu::new() };
    /// let mut memory = vec![MaybeUninit::<u8>::uninit(); 64 << 10];
    /// // SAFETY: the zone is dropped here, before the memory is.
    /// let source = unsafe { Fixed::borrowed(&mut memory) }.unwrap();
    /// drop(Zone::new(cpu, source).unwrap());
    /// ```
    ///
    /// # Errors
    /// [`SourceError::Empty`] if there is none.
    ///
    /// # Safety
    /// 1. The source, or the zone that was made of it, is dropped before `'a` ends: not forgotten, nor leaked.
    pub unsafe fn borrowed(region: &'a mut [MaybeUninit<u8>]) -> Result<Self, SourceError> {
        let start = NonNull::from_mut(region).cast::<u8>();
        let skip = start.align_offset(PAGE_SIZE);
        let Some(pages) = region.len().checked_sub(skip).map(|len| len / PAGE_SIZE) else {
            return Err(SourceError::Empty);
        };
        if pages == 0 {
            return Err(SourceError::Empty);
        }
        // SAFETY: `skip` is less than the region's length.
        let base = unsafe { start.add(skip) };
        Ok(Self::from_pages(base, pages))
    }

    /// The `size_bytes` bytes at `base`, both multiples of [`PAGE_SIZE`].
    ///
    /// ```
    /// # use pagealloc::{Fixed, SourceError};
    /// # use core::ptr::NonNull;
    /// #[repr(align(4096))]
    /// struct Region([u8; 65536]);
    /// let mut region = Region([0; 65536]);
    /// let base = NonNull::from(&mut region.0).cast();
    /// // SAFETY: `region` outlives the source and is used through it only.
    /// let source = unsafe { Fixed::from_raw(base, 65536) };
    /// assert!(source.is_ok());
    /// // SAFETY: as above.
    /// let odd = unsafe { Fixed::from_raw(base, 65535) };
    /// assert_eq!(odd.unwrap_err(), SourceError::Misaligned);
    /// ```
    ///
    /// # Errors
    /// [`SourceError::Empty`], [`SourceError::Misaligned`], [`SourceError::Overflow`].
    ///
    /// # Safety
    /// 1. The region is one allocation, valid for reads and writes for `'a`, and used by nobody else meanwhile.
    /// 2. As for [`Self::borrowed`], where `'a` ends.
    pub unsafe fn from_raw(base: NonNull<u8>, size_bytes: usize) -> Result<Self, SourceError> {
        if size_bytes == 0 {
            return Err(SourceError::Empty);
        }
        if !base.as_ptr().addr().is_multiple_of(PAGE_SIZE) || !size_bytes.is_multiple_of(PAGE_SIZE)
        {
            return Err(SourceError::Misaligned);
        }
        let end = base.as_ptr().addr().checked_add(size_bytes);
        if end.is_none() || size_bytes > isize::MAX as usize {
            return Err(SourceError::Overflow);
        }
        Ok(Self::from_pages(base, size_bytes / PAGE_SIZE))
    }

    const fn from_pages(base: NonNull<u8>, pages: usize) -> Self {
        Self {
            base,
            pages,
            next: AtomicUsize::new(0),
            carved: AtomicUsize::new(usize::MAX),
            step: usize::MAX,
            _region: PhantomData,
        }
    }

    /// The same region, given in steps of `pages` when the zone runs dry rather than at once.
    ///
    /// # Panics
    /// If `pages` is 0.
    #[must_use]
    pub const fn in_steps(mut self, pages: usize) -> Self {
        assert!(pages > 0, "a step of no pages");
        self.step = pages;
        self
    }
}

// SAFETY: 1 and 4: the region is one allocation (debt of the constructors) and stays where it is; 2: the
// first pages, zeroed here, taken off `next` for good; 3: `next` only rises, and stays in the region.
unsafe impl Source for Fixed<'_> {
    fn span(&self) -> Span {
        Span {
            base: self.base,
            pages: self.pages,
        }
    }

    fn metadata(&self, layout: Layout) -> Result<NonNull<u8>, SourceError> {
        let skip = self.base.align_offset(layout.align());
        let needed = skip.saturating_add(layout.size());
        let pages = needed.div_ceil(PAGE_SIZE).max(1);
        if pages >= self.pages {
            return Err(SourceError::TooSmall {
                needed: needed.saturating_add(PAGE_SIZE),
            });
        }
        // ORDERING: Relaxed: the pages were this source's before; a winner publishes nothing by it.
        let first = self
            .next
            .compare_exchange(0, pages, Ordering::Relaxed, Ordering::Relaxed);
        if first.is_err() {
            return Err(SourceError::Exhausted);
        }
        // ORDERING: Relaxed: as above.
        self.carved.store(pages, Ordering::Relaxed);
        // SAFETY: `needed` bytes lie inside the region.
        let start = unsafe { self.base.add(skip) };
        // SAFETY: as above, and the pages were just taken off `next`, so nobody else has them.
        unsafe { start.write_bytes(0, layout.size()) };
        Ok(start)
    }

    fn grow(&self, min_pages: usize) -> Result<Range, SourceError> {
        // ORDERING: Relaxed: as in `metadata`.
        let taken = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                let left = self.pages - next;
                (left > 0).then(|| next + left.min(self.step.max(min_pages)))
            });
        let first = taken.map_err(|_| SourceError::Exhausted)?;
        Ok(Range {
            first,
            pages: (self.pages - first).min(self.step.max(min_pages)),
            zeroed: false,
        })
    }

    fn is_eager(&self) -> bool {
        self.step == usize::MAX
    }

    unsafe fn add_range(&self, range: Range) -> Result<Range, SourceError> {
        // ORDERING: Relaxed: as in `metadata`; both only say which pages were given before.
        let (carved, next) = (
            self.carved.load(Ordering::Relaxed),
            self.next.load(Ordering::Relaxed),
        );
        let end = range.first.checked_add(range.pages);
        if range.first < carved || end.is_none_or(|end| end > next) {
            return Err(SourceError::Outside);
        }
        Ok(Range {
            zeroed: false,
            ..range
        })
    }
}
