//! Where a zone's memory comes from.

mod failing;
mod fixed;
mod map;
#[cfg(all(feature = "std", target_os = "linux"))]
mod mmap;

pub use failing::Failing;
pub use fixed::Fixed;
pub use map::MemoryMap;
#[cfg(all(feature = "std", target_os = "linux"))]
pub use mmap::{Mmap, MmapBuilder};

use core::alloc::Layout;
use core::fmt;
use core::ptr::NonNull;

/// All the addresses that a source's pages can ever have.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// The first byte, page-aligned.
    pub base: NonNull<u8>,
    /// How many pages follow.
    pub pages: usize,
}

/// Pages of a span that became usable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// The first page, counted from the span's start.
    pub first: usize,
    /// How many.
    pub pages: usize,
    /// Whether they read as zeroes.
    pub zeroed: bool,
}

/// What becomes of the memory behind free blocks of 2 MiB and more. See [`Source::decommit_policy`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Decommit {
    /// It is kept, until [`Zone::trim`](crate::Zone::trim) is called.
    #[default]
    Keep,
    /// [`Zone::tick`](crate::Zone::tick) gives back what nobody needed since the tick before: memory that is wanted again soon costs
    /// nothing, and the program's memory falls a tick after it was needed last, whether the machine is short of memory or not. (`MADV_FREE`, the
    /// system's own lazy way, frees only when it is.)
    Lazy,
    /// It goes back at once, in the free (at [`Attempt::NoWait`](crate::Attempt) and above) that completes a block, which then makes system calls.
    Now,
}

/// Why a source did not give memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SourceError {
    /// The region or reservation has no bytes.
    Empty,
    /// The region's end, or the size rounded up to pages, is past the end of the address space.
    Overflow,
    /// The region's start or size is not a multiple of the page size.
    Misaligned,
    /// The zone's own structures need this many bytes, and the region has fewer.
    TooSmall {
        /// Bytes needed.
        needed: usize,
    },
    /// A part of the region is another region's, or the zone's own structures lie there.
    Overlap,
    /// The region is not inside the source's addresses, or was never given.
    Outside,
    /// There are more regions than the source, or a zone, keeps account of.
    TooManyRegions,
    /// Everything has been given.
    Exhausted,
    /// The source cannot do this at all.
    Unsupported,
    /// The operating system refused, with this error number.
    System(i32),
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the region is empty: it needs a page at least"),
            Self::Overflow => f.write_str("the region ends past the end of the address space"),
            Self::Misaligned => f.write_str("the region is not made of whole, aligned pages: round its start up and its end down to 4096"),
            Self::TooSmall { needed } => write!(
                f,
                "the region is too small: the zone's own structures need {needed} bytes"
            ),
            Self::Overlap => f.write_str("a part of the region is taken already: the map lists these bytes twice"),
            Self::Outside => f.write_str("the region is not one that the source has"),
            Self::TooManyRegions => f.write_str("there are too many regions: join neighbours, or give the source more room for them"),
            Self::Exhausted => f.write_str("the source has given all its memory: free some, or reserve more"),
            Self::Unsupported => f.write_str("the source cannot do this"),
            Self::System(errno) => write!(f, "the system refused memory (error {errno})"),
        }
    }
}

impl core::error::Error for SourceError {}

/// Gives a zone memory: the seam between it and the machine.
///
/// Production: [`Mmap`](https://docs.rs/pagealloc), lazily, a range at a time. Minimal: [`Fixed`], a region of the
/// caller's. For tests: [`Failing`] around another one. The memory goes back when the source is dropped.
///
/// The zone calls `grow`, `decommit`, `add_range` and `remove_range` one at a time, with its regions locked, so none of them may call back into that zone where it
/// grows, trims, or adds or removes regions: it would wait for itself. One that panics leaves the zone usable; at worst the pages it was about are out for ever.
///
/// # Safety
/// An implementer keeps the guarantees below.
///
/// # Guarantees
/// 1. `span` is constant, its base page-aligned, its pages one allocation's (so that one pointer reaches all of them).
/// 2. `metadata` gives zeroed memory of the layout asked for, valid for reads and writes until the source is dropped, and
///    disjoint from every range. It succeeds at most once.
/// 3. Ranges lie in the span, are disjoint, and are valid for reads and writes until they are removed or the source is dropped.
///    `zeroed` is true only of pages that read as zeroes.
/// 4. Moving the source moves none of this memory.
/// 5. "Until the source is dropped" is for ever where it is forgotten: memory that is only borrowed takes an `unsafe` constructor.
pub unsafe trait Source {
    /// The addresses that ranges will have.
    fn span(&self) -> Span;

    /// Memory for the zone's own structures, at most 16 bytes for each page and a few KiB of the span. Called once, before any `grow`.
    ///
    /// # Errors
    /// There is too little; nothing has changed then.
    fn metadata(&self, layout: Layout) -> Result<NonNull<u8>, SourceError>;

    /// The next range, of at least `min_pages` pages if that is possible. May make system calls.
    ///
    /// # Errors
    /// There is no more now; nothing has changed then.
    #[doc(alias = "online_pages")]
    fn grow(&self, min_pages: usize) -> Result<Range, SourceError>;

    /// Whether a new zone should take every range at once, rather than when it runs dry.
    fn is_eager(&self) -> bool {
        false
    }

    /// Gives the pages' memory back to the system while keeping them usable; true if they read as
    /// zeroes from now on. The default keeps the memory.
    ///
    /// # Safety
    /// 1. `range` lies in ranges that `grow` gave, and nothing in it is in use.
    #[doc(alias = "MADV_DONTNEED")]
    unsafe fn decommit(&self, range: Range) -> bool {
        let _ = range;
        false
    }

    /// When a zone should call [`Self::decommit`] of its own accord. Constant.
    fn decommit_policy(&self) -> Decommit {
        Decommit::Keep
    }

    /// Makes a range usable that is in no range given so far, or that was removed; the same range, and whether it is zeroed.
    /// The default refuses.
    ///
    /// # Errors
    /// The source cannot; nothing has changed then.
    ///
    /// # Safety
    /// 1. Nothing in `range` is in use, and if the memory is the caller's to bring, it is valid as guarantee 3 says.
    #[doc(alias = "add_memory")]
    unsafe fn add_range(&self, range: Range) -> Result<Range, SourceError> {
        let _ = range;
        Err(SourceError::Unsupported)
    }

    /// Takes note that a zone does not use `range` any more. The default does nothing: the memory is where it was, for whoever removed it.
    ///
    /// # Safety
    /// 1. `range` lies in ranges that were given, and nothing in it is in use.
    #[doc(alias = "remove_memory")]
    unsafe fn remove_range(&self, range: Range) {
        let _ = range;
    }
    /// Whether [`Self::protect`] works here. The default says no.
    fn can_protect(&self) -> bool {
        false
    }

    /// Makes pages inaccessible, so that whoever touches them is caught by the processor, or accessible again.
    ///
    /// # Errors
    /// [`SourceError`]: nothing has changed then. The default is always [`SourceError::Unsupported`].
    ///
    /// # Safety
    /// 1. `range` lies in ranges that `grow` gave, and nothing in it is in use.
    /// 2. Until they are accessible again, the pages are used by nobody, whatever guarantee 3 says.
    #[doc(alias = "set_page_guard")]
    #[doc(alias = "mprotect")]
    unsafe fn protect(&self, range: Range, accessible: bool) -> Result<(), SourceError> {
        let _ = (range, accessible);
        Err(SourceError::Unsupported)
    }

    /// Memory outside of the span and of every zone, for what is larger than any block: zeroed, valid for reads and writes until
    /// [`Self::unmap_apart`], whatever becomes of the source, its address a multiple of `align`. The default has none.
    ///
    /// # Errors
    /// [`SourceError::Unsupported`]; [`SourceError::Empty`]; [`SourceError::Misaligned`] if `align` is no power of two;
    /// [`SourceError::Overflow`]; [`SourceError::System`].
    #[doc(alias = "vmalloc")]
    fn map_apart(&self, size_bytes: usize, align: usize) -> Result<NonNull<u8>, SourceError> {
        let _ = (size_bytes, align);
        Err(SourceError::Unsupported)
    }

    /// Gives memory apart back.
    ///
    /// # Safety
    /// 1. As for [`PageAlloc::unmap_apart`](crate::PageAlloc::unmap_apart).
    #[doc(alias = "vfree")]
    unsafe fn unmap_apart(&self, start: NonNull<u8>, size_bytes: usize) {
        let _ = (start, size_bytes);
    }

    /// Makes memory apart larger or smaller: see [`PageAlloc::remap_apart`](crate::PageAlloc::remap_apart). The default cannot.
    ///
    /// # Safety
    /// 1. As there.
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
