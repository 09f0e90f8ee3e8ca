//! Which pages of its span a zone has: a short, sorted table of ranges.
//!
//! Why not a bit a page: it would have to be written for every page that the source gives, which commits the metadata that
//! blocks leave untouched. A zone's memory is a handful of ranges.

#![deny(unsafe_code)]

use crate::api::{PAGE_SHIFT, PAGE_SIZE};
use crate::source::{Range, SourceError, Span};
use arrayvec::ArrayVec;
use core::fmt;
use core::ptr::NonNull;

/// Ranges that a zone's memory can consist of; neighbours count as one. Memory maps of real machines have a dozen usable entries.
pub const MAX_REGIONS: usize = 64;

/// Why a region was not added or removed. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RegionError {
    /// The region has no pages.
    Empty,
    /// The region's end is past the end of the address space.
    Overflow,
    /// The region's start or size is not a multiple of the page size.
    Misaligned,
    /// The region is not, or not as a whole, inside the zone's span.
    Outside,
    /// A part of the region belongs to the zone already.
    Overlap,
    /// A part of the region does not belong to the zone.
    Missing,
    /// The zone's memory would be in more than [`MAX_REGIONS`] pieces.
    TooMany,
    /// Pages of the region are out.
    Busy(RegionBusy),
    /// The source refused the region.
    Source(SourceError),
}

impl RegionError {
    /// Whether asking again later can help: pages were out, or on their way from one place to another.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::Busy(_))
    }
}

/// The pages that keep a region from being removed.
///
/// Pages on lists, of whatever slot, and in the stash, do not: they are fetched. But a page that an allocation or a free of another
/// thread has in its hands at that moment counts as out, so where pages come and go, this may pass, and the removal is to be tried again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegionBusy {
    /// How many pages of it are out, or were on their way when the region was looked at.
    pub pages_out: usize,
    /// The first of them.
    pub first: NonNull<u8>,
}

// SAFETY: an address that is only told.
#[expect(unsafe_code, reason = "errors travel between threads")]
unsafe impl Send for RegionBusy {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "errors travel between threads")]
unsafe impl Sync for RegionBusy {}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the region is empty",
            Self::Overflow => "the region ends past the end of the address space",
            Self::Misaligned => "the region is not made of whole, aligned pages",
            Self::Outside => "the region is not inside the zone's span",
            Self::Overlap => "a part of the region belongs to the zone already",
            Self::Missing => "a part of the region does not belong to the zone",
            Self::TooMany => "the zone's memory would be in too many pieces",
            Self::Busy(busy) => return busy.fmt(f),
            Self::Source(error) => return error.fmt(f),
        })
    }
}

impl fmt::Display for RegionBusy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pages_out, first } = self;
        write!(
            f,
            "{pages_out} pages of the region are out, the first at {first:p}"
        )
    }
}

impl core::error::Error for RegionError {}
impl core::error::Error for RegionBusy {}

impl From<RegionBusy> for RegionError {
    fn from(busy: RegionBusy) -> Self {
        Self::Busy(busy)
    }
}

impl From<SourceError> for RegionError {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

impl Span {
    /// The pages from `start` on, `size_bytes` of them, as a range of this span (not known to be zeroed).
    ///
    /// ```
    /// use core::ptr::NonNull;
    /// use pagealloc::{RegionError, Span};
    ///
    /// let base = NonNull::<u8>::without_provenance((1 << 20).try_into().unwrap());
    /// let span = Span { base, pages: 16 };
    /// let second = base.as_ptr().wrapping_add(4096);
    /// assert_eq!(span.range(second, 8192).unwrap().first, 1);
    /// assert_eq!(span.range(second, 65536), Err(RegionError::Outside));
    /// ```
    ///
    /// # Errors
    /// [`RegionError::Empty`], [`RegionError::Misaligned`], [`RegionError::Overflow`], [`RegionError::Outside`].
    #[doc(alias = "phys_to_pfn")]
    pub fn range(&self, start: *const u8, size_bytes: usize) -> Result<Range, RegionError> {
        if size_bytes == 0 {
            return Err(RegionError::Empty);
        }
        if !start.addr().is_multiple_of(PAGE_SIZE) || !size_bytes.is_multiple_of(PAGE_SIZE) {
            return Err(RegionError::Misaligned);
        }
        if start.addr().checked_add(size_bytes).is_none() {
            return Err(RegionError::Overflow);
        }
        let offset = start.addr().checked_sub(self.base.addr().get());
        let range = Range {
            first: offset.ok_or(RegionError::Outside)? >> PAGE_SHIFT,
            pages: size_bytes >> PAGE_SHIFT,
            zeroed: false,
        };
        self.check(range)?;
        Ok(range)
    }

    /// The numbers of the range's first page and of the one past its last.
    pub(crate) fn check(&self, range: Range) -> Result<(u32, u32), RegionError> {
        if range.pages == 0 {
            return Err(RegionError::Empty);
        }
        let end = range.first.checked_add(range.pages);
        match end.ok_or(RegionError::Overflow)? {
            end if end <= self.pages => Ok((range.first as u32, end as u32)),
            _ => Err(RegionError::Outside),
        }
    }
}

/// Pages from the first number to before the second.
pub(crate) type Piece = (u32, u32);

/// Disjoint, ascending, none touching the next.
#[derive(Clone, Debug)]
pub(crate) struct Regions(ArrayVec<Piece, MAX_REGIONS>);

impl Regions {
    pub(crate) const fn new() -> Self {
        Self(ArrayVec::new_const())
    }

    pub(crate) fn pieces(&self) -> impl Iterator<Item = Piece> + use<> {
        self.0.clone().into_iter()
    }

    /// Adds a piece of at least one page.
    pub(crate) fn add(&mut self, (first, end): Piece) -> Result<(), RegionError> {
        let at = self.0.partition_point(|piece| piece.1 < first);
        // From here on: pieces that end at `first` or behind.
        let joins_below = self.0.get(at).is_some_and(|piece| piece.1 == first);
        let next = at + usize::from(joins_below);
        let above = self.0.get(next).copied();
        if above.is_some_and(|piece| piece.0 < end) {
            return Err(RegionError::Overlap);
        }
        let joins_above = above.is_some_and(|piece| piece.0 == end);
        match (joins_below, joins_above) {
            (true, true) => {
                self.0[at].1 = self.0[next].1;
                self.0.remove(next);
            }
            (true, false) => self.0[at].1 = end,
            (false, true) => self.0[next].0 = first,
            (false, false) => {
                let full = |_| RegionError::TooMany;
                self.0.try_insert(at, (first, end)).map_err(full)?;
            }
        }
        Ok(())
    }

    /// Where the piece lies, if all of it is there and taking it out leaves no more pieces than fit.
    pub(crate) fn find(&self, (first, end): Piece) -> Result<usize, RegionError> {
        let at = self.0.partition_point(|piece| piece.1 < end);
        let piece = self.0.get(at).filter(|piece| piece.0 <= first);
        let piece = piece.ok_or(RegionError::Missing)?;
        if piece.0 < first && end < piece.1 && self.0.is_full() {
            return Err(RegionError::TooMany);
        }
        Ok(at)
    }

    /// Takes a piece out.
    pub(crate) fn remove(&mut self, (first, end): Piece) -> Result<(), RegionError> {
        let at = self.find((first, end))?;
        let whole = self.0[at];
        match (whole.0 < first, end < whole.1) {
            (false, false) => {
                self.0.remove(at);
            }
            (true, false) => self.0[at].1 = first,
            (false, true) => self.0[at].0 = end,
            (true, true) => {
                self.0[at].1 = first;
                self.0.insert(at + 1, (end, whole.1));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
