//! Several regions with holes between them: a kernel's memory map.
//!
//! # Life
//! A region: [`MemoryMap::add`] → pending → (`metadata` may cut the zone's own structures off its front) → `grow` → given. What is added
//! to the zone later ([`Zone::add_region`](crate::Zone::add_region)) is not entered here: the zone keeps account of it.

use super::{Range, Source, SourceError, Span};
use crate::api::{PAGE_SHIFT, PAGE_SIZE};
use crate::regions::MAX_REGIONS;
use arrayvec::ArrayVec;
use core::alloc::Layout;
use core::ptr::NonNull;
use rcu_core::cpu::SpinMutex;

/// Pages from the first number to before the second, counted from the map's base.
type Piece = (usize, usize);

/// Memory in up to `N` regions of one range of addresses.
///
/// A zone keeps at most 16 bytes of metadata for each page from the lowest region's start to the highest one's end, **holes included**.
/// By default they are cut off the front of the largest region, memory for the holes' metadata with them. Where holes are large, hand
/// over addresses that get memory when they are used ([`Self::metadata_at`]): then a hole costs addresses only, for its metadata is never touched.
///
/// The crate's documentation has an example.
#[derive(Debug)]
#[doc(alias = "memblock")]
pub struct MemoryMap<const N: usize> {
    base: NonNull<u8>,
    /// Disjoint, ascending.
    regions: ArrayVec<Piece, N>,
    /// Addresses that a zone can have, memory or not; empty before the first region.
    span: Piece,
    /// Memory for the zone's structures: where, and how many bytes.
    metadata: Option<(NonNull<u8>, usize)>,
    progress: SpinMutex<Progress>,
}

#[derive(Debug)]
struct Progress {
    /// The next region to be given.
    next: usize,
    /// The region that the zone's structures were cut off, and its pages from which on it is free.
    carved: Option<(usize, Piece)>,
    done: bool,
}

// SAFETY: the regions are the map's alone (debt of `add`), and it only keeps account of them.
unsafe impl<const N: usize> Send for MemoryMap<N> {}
// SAFETY: as above; what changes is behind a lock.
unsafe impl<const N: usize> Sync for MemoryMap<N> {}

/// A piece of whole pages.
fn piece(start: usize, size_bytes: usize) -> Result<Piece, SourceError> {
    if size_bytes == 0 {
        return Err(SourceError::Empty);
    }
    if !start.is_multiple_of(PAGE_SIZE) || !size_bytes.is_multiple_of(PAGE_SIZE) {
        return Err(SourceError::Misaligned);
    }
    let end = start
        .checked_add(size_bytes)
        .filter(|&end| end <= isize::MAX as usize);
    let end = end.ok_or(SourceError::Overflow)?;
    Ok((start >> PAGE_SHIFT, end >> PAGE_SHIFT))
}

const fn overlap(one: Piece, other: Piece) -> bool {
    one.0 < other.1 && other.0 < one.1
}

impl<const N: usize> MemoryMap<N> {
    const FITS: () = assert!(N <= MAX_REGIONS, "a zone keeps account of fewer regions");

    /// No memory yet, at offsets from `base`: in a kernel, where physical address 0 is mapped.
    ///
    /// # Errors
    /// [`SourceError::Misaligned`] if `base` is not page-aligned.
    pub fn new(base: NonNull<u8>) -> Result<Self, SourceError> {
        const { Self::FITS };
        if !base.addr().get().is_multiple_of(PAGE_SIZE) {
            return Err(SourceError::Misaligned);
        }
        Ok(Self {
            base,
            regions: ArrayVec::new(),
            span: (0, 0),
            metadata: None,
            progress: SpinMutex::new(Progress {
                next: 0,
                carved: None,
                done: false,
            }),
        })
    }

    /// Checks that the piece's addresses exist.
    fn checked(&self, start: usize, size_bytes: usize) -> Result<Piece, SourceError> {
        let piece = piece(start, size_bytes)?;
        let end = self.base.addr().get().checked_add(piece.1 << PAGE_SHIFT);
        end.map(|_| piece).ok_or(SourceError::Overflow)
    }

    fn widen(&mut self, piece: Piece) {
        self.span = if self.span.1 == 0 {
            piece
        } else {
            (self.span.0.min(piece.0), self.span.1.max(piece.1))
        };
    }

    /// Adds the `size_bytes` bytes that begin `start` bytes behind the base. In any order.
    ///
    /// # Errors
    /// [`SourceError::Empty`], [`SourceError::Misaligned`], [`SourceError::Overflow`], [`SourceError::Overlap`], or [`SourceError::TooManyRegions`] for
    /// more than `N`; nothing has changed then.
    ///
    /// # Safety
    /// 1. The region is in the allocation of the map's base, valid for reads and writes through it for as long as the map lives, and used by nobody
    ///    else meanwhile.
    ///
    /// The crate's documentation has an example.
    #[doc(alias = "memblock_add")]
    pub unsafe fn add(&mut self, start: usize, size_bytes: usize) -> Result<(), SourceError> {
        let piece = self.checked(start, size_bytes)?;
        if self.regions.iter().any(|&other| overlap(piece, other)) {
            return Err(SourceError::Overlap);
        }
        let at = self.regions.partition_point(|other| other.0 < piece.0);
        let full = |_| SourceError::TooManyRegions;
        self.regions.try_insert(at, piece).map_err(full)?;
        self.widen(piece);
        Ok(())
    }

    /// Lets the zone have these addresses one day: there may be holes, or nothing, now, and memory added later by
    /// [`Zone::add_region`](crate::Zone::add_region).
    ///
    /// # Errors
    /// As for [`Self::add`], but overlaps are no error.
    ///
    /// # Safety
    /// 1. The addresses are in the allocation of the map's base.
    ///
    /// The crate's documentation has an example.
    pub unsafe fn reserve(&mut self, start: usize, size_bytes: usize) -> Result<(), SourceError> {
        let piece = self.checked(start, size_bytes)?;
        self.widen(piece);
        Ok(())
    }

    /// Takes the zone's own structures from the `size_bytes` bytes at `start` rather than from the largest region.
    ///
    /// # Safety
    /// 1. They are valid for reads and writes for as long as the map lives, read as zeroes, are in no region, and are used by nobody else.
    ///
    /// As for [`Self::add`], the example is in the crate's documentation.
    pub unsafe fn metadata_at(&mut self, start: NonNull<u8>, size_bytes: usize) {
        self.metadata = Some((start, size_bytes));
    }

    /// The pages of a piece, counted from the span's start.
    const fn range(&self, piece: Piece) -> Range {
        Range {
            first: piece.0 - self.span.0,
            pages: piece.1 - piece.0,
            zeroed: false,
        }
    }

    fn address(&self, page: usize) -> NonNull<u8> {
        // SAFETY: in the base's allocation (debts of `add` and `reserve`).
        unsafe { self.base.add(page << PAGE_SHIFT) }
    }

    /// Cuts `layout` off the front of the largest region.
    fn carve(&self, progress: &mut Progress, layout: Layout) -> Result<NonNull<u8>, SourceError> {
        let largest =
            (0..self.regions.len()).max_by_key(|&i| self.regions[i].1 - self.regions[i].0);
        let region = largest.ok_or(SourceError::Empty)?;
        let (first, end) = self.regions[region];
        let start = self.address(first);
        let skip = start.align_offset(layout.align());
        let needed = skip.saturating_add(layout.size());
        let pages = needed.div_ceil(PAGE_SIZE).max(1);
        if pages > end - first || (pages == end - first && self.regions.len() == 1) {
            let needed = needed.saturating_add(PAGE_SIZE);
            return Err(SourceError::TooSmall { needed });
        }
        progress.carved = Some((region, (first, first + pages)));
        // SAFETY: `needed` bytes lie inside the region.
        let start = unsafe { start.add(skip) };
        // SAFETY: as above; nobody has the region's front, for it is given from behind it on.
        unsafe { start.write_bytes(0, layout.size()) };
        Ok(start)
    }
}

// SAFETY: 1 and 4: debts of `new`, `add` and `reserve`, and the map owns no memory; 2: cut off a region that `grow` gives without it, and zeroed here,
// or the debt of `metadata_at`; 3: regions are disjoint (`add`), valid (its debt), and given once by `next`.
unsafe impl<const N: usize> Source for MemoryMap<N> {
    fn span(&self) -> Span {
        Span {
            base: self.address(self.span.0),
            pages: self.span.1 - self.span.0,
        }
    }

    fn metadata(&self, layout: Layout) -> Result<NonNull<u8>, SourceError> {
        let mut progress = self.progress.lock();
        // What was given is not to be cut.
        if progress.done || progress.next > 0 {
            return Err(SourceError::Exhausted);
        }
        let start = match self.metadata {
            Some((start, size_bytes)) => {
                let skip = start.align_offset(layout.align());
                let needed = skip.saturating_add(layout.size());
                if needed > size_bytes {
                    return Err(SourceError::TooSmall { needed });
                }
                // SAFETY: inside the memory that was handed over.
                unsafe { start.add(skip) }
            }
            None => self.carve(&mut progress, layout)?,
        };
        progress.done = true;
        Ok(start)
    }

    fn grow(&self, _min_pages: usize) -> Result<Range, SourceError> {
        let mut progress = self.progress.lock();
        loop {
            let region = progress.next;
            let &(mut first, end) = self.regions.get(region).ok_or(SourceError::Exhausted)?;
            progress.next = region + 1;
            if let Some((carved, cut)) = progress.carved
                && carved == region
            {
                first = cut.1;
            }
            if first < end {
                return Ok(self.range((first, end)));
            }
        }
    }

    fn is_eager(&self) -> bool {
        true
    }

    unsafe fn add_range(&self, range: Range) -> Result<Range, SourceError> {
        let first = range.first.checked_add(self.span.0);
        let end = first.and_then(|first| first.checked_add(range.pages));
        let (Some(first), Some(end)) = (first, end.filter(|&end| end <= self.span.1)) else {
            return Err(SourceError::Outside);
        };
        let progress = self.progress.lock();
        let is_taken = |&other: &Piece| overlap((first, end), other);
        // What holds the zone's structures is no free memory, and what is still to come is not lost.
        if progress.carved.is_some_and(|(_, cut)| is_taken(&cut))
            || self.regions[progress.next..].iter().any(is_taken)
        {
            return Err(SourceError::Overlap);
        }
        Ok(Range {
            zeroed: false,
            ..range
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map<const N: usize>(base: usize) -> MemoryMap<N> {
        MemoryMap::new(NonNull::without_provenance(base.try_into().unwrap())).unwrap()
    }

    #[test]
    fn bad_regions_are_told_apart_and_change_nothing() {
        let odd = NonNull::without_provenance(4100.try_into().unwrap());
        assert_eq!(
            MemoryMap::<1>::new(odd).unwrap_err(),
            SourceError::Misaligned
        );
        let mut map = map::<2>(1 << 20);
        // SAFETY: no zone is made over the map, so no address in it is used.
        let mut add = |start, size| unsafe { map.add(start, size) };
        add(0x4000, 0x4000).unwrap();
        for (start, size, error) in [
            (0x1000, 0, SourceError::Empty),
            (0x1001, 0x1000, SourceError::Misaligned),
            (0x1000, 0xfff, SourceError::Misaligned),
            (usize::MAX - 0xfff, 0x1000, SourceError::Overflow),
            (isize::MAX as usize - 0xfff, 0x1000, SourceError::Overflow),
            (0x3000, 0x2000, SourceError::Overlap),
            (0x4000, 0x4000, SourceError::Overlap),
            (0x5000, 0x1000, SourceError::Overlap),
            (0x7000, 0x9000, SourceError::Overlap),
        ] {
            assert_eq!(add(start, size), Err(error), "{start:#x} {size:#x}");
        }
        add(0x8000, 0x1000).unwrap();
        assert_eq!(add(0xa000, 0x1000), Err(SourceError::TooManyRegions));
        let span = map.span();
        assert_eq!(
            (span.base.addr().get(), span.pages),
            ((1 << 20) + 0x4000, 5)
        );
        assert_eq!(&map.regions[..], [(4, 8), (8, 9)]);
    }

    #[test]
    fn nothing_is_cut_off_a_region_that_was_given() {
        let mut map = map::<2>(1 << 20);
        // SAFETY: nobody uses the addresses: the map writes to what it cuts only.
        unsafe { map.add(0x4000, 0x4000) }.unwrap();
        assert!(map.grow(1).is_ok());
        let layout = Layout::from_size_align(64, 64).unwrap();
        assert_eq!(map.metadata(layout), Err(SourceError::Exhausted));
    }

    #[test]
    fn regions_are_given_in_order_whatever_the_order_they_came_in() {
        let mut map = map::<4>(1 << 20);
        for start in [0x9000, 0x1000, 0x5000] {
            // SAFETY: nobody uses the addresses.
            unsafe { map.add(start, 0x2000) }.unwrap();
        }
        // SAFETY: as above.
        unsafe { map.reserve(0x20000, 0x1000) }.unwrap();
        assert_eq!(map.span().pages, 0x20);
        // SAFETY: nobody uses it.
        let add = |first, pages| unsafe {
            map.add_range(Range {
                first,
                pages,
                zeroed: true,
            })
        };
        assert_eq!(add(1, 8), Err(SourceError::Overlap), "still to come");
        let given: [_; 3] = [(); 3]
            .map(|()| map.grow(1).unwrap())
            .map(|r| (r.first, r.pages));
        assert_eq!(given, [(0, 2), (4, 2), (8, 2)]);
        assert_eq!(map.grow(1), Err(SourceError::Exhausted));
        assert_eq!(add(30, 3), Err(SourceError::Outside));
        assert_eq!(add(usize::MAX, 3), Err(SourceError::Outside));
        assert!(add(31, 1).is_ok_and(|range| !range.zeroed));
    }
}
