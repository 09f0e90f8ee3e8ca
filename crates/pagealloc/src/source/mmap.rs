//! Anonymous memory of the operating system: a large reservation, made usable chunk by chunk.

mod apart;
mod sys;

use super::{Decommit, Range, Source, SourceError, Span};
use crate::api::{Order, PAGE_SHIFT};
use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use rcu_core::cpu::SpinMutex;

/// Bytes that one `grow` makes usable, and the alignment of all of them: the largest block, so that
/// every chunk is one free block and a grown zone starts unfragmented.
const CHUNK: usize = Order::MAX.bytes();
const CHUNK_PAGES: usize = CHUNK >> PAGE_SHIFT;

/// What [`Mmap::new`] reserves if it can: more than most machines have, and only addresses.
const RESERVE: usize = if cfg!(miri) {
    // There it is memory.
    LEAST
} else if usize::BITS >= 64 {
    64 << 30
} else {
    512 << 20
};
/// Below this, halving stops and the system's refusal is reported.
const LEAST: usize = 16 * CHUNK;

/// Memory from `mmap(2)`: addresses reserved at once, memory when it is touched first.
///
/// Nothing counts as used before it is: neither the span nor its metadata (a 256th of it).
#[derive(Debug)]
pub struct Mmap {
    /// Kept for its end.
    _span: Mapping,
    /// The first chunk, 4 MiB aligned, inside `_span`.
    base: NonNull<u8>,
    chunks: usize,
    next: AtomicUsize,
    metadata: SpinMutex<Option<Mapping>>,
    options: Options,
}

/// What a builder was told.
#[derive(Clone, Copy, Debug, Default)]
struct Options {
    decommit: Decommit,
    huge_pages: bool,
    populate: bool,
}

/// How an [`Mmap`] is to be. See [`Mmap::builder`].
#[derive(Clone, Copy, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct MmapBuilder {
    size_bytes: Option<usize>,
    options: Options,
}

impl MmapBuilder {
    /// Reserves `size_bytes` of addresses, as [`Mmap::reserve`] does, rather than what [`Mmap::new`] finds.
    pub const fn reserve(mut self, size_bytes: usize) -> Self {
        self.size_bytes = Some(size_bytes);
        self
    }

    /// When the memory behind free blocks goes back to the system. [`Decommit::Keep`] unless said otherwise.
    pub const fn decommit(mut self, policy: Decommit) -> Self {
        self.options.decommit = policy;
        self
    }

    /// Asks the system for transparent huge pages: fewer faults and TLB misses, and memory comes 2 MiB at a time. Only advice:
    /// where the system has none, nothing changes.
    #[doc(alias = "MADV_HUGEPAGE")]
    pub const fn huge_pages(mut self, yes: bool) -> Self {
        self.options.huge_pages = yes;
        self
    }

    /// Puts memory behind each 4 MiB when they become the zone's, rather than page by page at the first use: growing takes
    /// longer and may fail for want of memory, and using the pages does neither.
    #[doc(alias = "MAP_POPULATE")]
    pub const fn populate(mut self, yes: bool) -> Self {
        self.options.populate = yes;
        self
    }

    /// Reserves the addresses.
    ///
    /// # Errors
    /// As for [`Mmap::new`] and [`Mmap::reserve`].
    pub fn build(self) -> Result<Mmap, SourceError> {
        let mut source = match self.size_bytes {
            Some(size_bytes) => Mmap::reserve(size_bytes),
            None => Mmap::new(),
        }?;
        source.options = self.options;
        if self.options.huge_pages {
            // A refusal (no such pages on this system) costs speed only.
            let _ = source.advise(source.whole(), libc::MADV_HUGEPAGE);
        }
        Ok(source)
    }
}

// SAFETY: the mappings belong to this value; chunks are handed out by the atomic `next`.
unsafe impl Send for Mmap {}
// SAFETY: as above.
unsafe impl Sync for Mmap {}

impl Mmap {
    /// Memory with other properties than [`Self::new`]'s.
    ///
    /// ```
    /// use pagealloc::{Decommit, Mmap, Zone};
    /// use rcu_core::cpu::Threads;
    ///
    /// let source = Mmap::builder().reserve(1 << 30).huge_pages(true).decommit(Decommit::Lazy).build().unwrap();
    /// let zone = Zone::new(Threads, source).unwrap();
    /// assert_eq!(zone.tick().trimmed, 0, "nothing was free");
    /// ```
    pub const fn builder() -> MmapBuilder {
        MmapBuilder {
            size_bytes: None,
            options: Options {
                decommit: Decommit::Keep,
                huge_pages: false,
                populate: false,
            },
        }
    }

    /// Reserves 64 GiB of addresses, or what a limit on them allows (leaving as much again to others).
    ///
    /// # Errors
    /// [`SourceError::System`] if not even 64 MiB can be reserved.
    pub fn new() -> Result<Self, SourceError> {
        let mut size = RESERVE;
        loop {
            match Self::reserve(size) {
                // Somebody limits addresses: leave half of what there is to the rest of the program.
                Ok(source) if size < RESERVE => {
                    drop(source);
                    return Self::reserve(size / 2);
                }
                Ok(source) => return Ok(source),
                Err(_) if size > LEAST => size /= 2,
                Err(error) => return Err(error),
            }
        }
    }

    /// Reserves `size_bytes` of addresses, rounded up to 4 MiB: the most the zone can ever grow to.
    ///
    /// # Errors
    /// [`SourceError::Empty`], [`SourceError::Overflow`], or [`SourceError::System`].
    pub fn reserve(size_bytes: usize) -> Result<Self, SourceError> {
        if size_bytes == 0 {
            return Err(SourceError::Empty);
        }
        let chunks = size_bytes.div_ceil(CHUNK);
        let size = chunks.checked_add(1).and_then(|n| n.checked_mul(CHUNK));
        let size = size.ok_or(SourceError::Overflow)?;
        let span = Mapping::new(size, libc::PROT_NONE)?;
        let skip = span.start.align_offset(CHUNK);
        // SAFETY: `skip` is less than `CHUNK`, of which the mapping has one more than the span.
        let base = unsafe { span.start.add(skip) };
        Ok(Self {
            _span: span,
            base,
            chunks,
            next: AtomicUsize::new(0),
            metadata: SpinMutex::new(None),
            options: Options::default(),
        })
    }

    /// Bytes of addresses reserved: the most the zone can grow to.
    #[must_use]
    pub const fn reserved_bytes(&self) -> usize {
        self.chunks * CHUNK
    }

    /// All chunks.
    const fn whole(&self) -> Range {
        Range {
            first: 0,
            pages: self.chunks * CHUNK_PAGES,
            zeroed: true,
        }
    }

    /// Says something about `range` that changes no contents in use.
    fn advise(&self, range: Range, advice: libc::c_int) -> Result<(), SourceError> {
        let len = range.pages << PAGE_SHIFT;
        // SAFETY: the range lies in our mapping; the callers' advice touches nothing that is in use.
        unsafe { sys::advise(self.address(range), len, advice) }
    }

    /// Makes `range`, which nobody has, readable and writable, or nothing.
    fn set_protection(&self, range: Range, prot: libc::c_int) -> Result<(), SourceError> {
        let len = range.pages << PAGE_SHIFT;
        // SAFETY: the range lies in our mapping, and nobody has it now.
        unsafe { sys::protect(self.address(range), len, prot) }
    }

    /// Makes `range`, which nobody has, usable.
    fn open(&self, range: Range) -> Result<(), SourceError> {
        self.set_protection(range, libc::PROT_READ | libc::PROT_WRITE)?;
        if !self.options.populate {
            return Ok(());
        }
        match self.advise(range, libc::MADV_POPULATE_WRITE) {
            // Linux before 5.14 does not know the advice.
            Err(SourceError::System(libc::EINVAL)) => {
                self.touch(range);
                Ok(())
            }
            Err(error) => {
                self.close(range);
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    /// Writes zeroes into each page of `range`, which nobody has and which reads as zeroes.
    fn touch(&self, range: Range) {
        let start: *mut u8 = self.address(range).cast();
        for page in 0..range.pages {
            // SAFETY: inside the range.
            let page = unsafe { start.add(page << PAGE_SHIFT) };
            // SAFETY: writable, for the range was just opened, and nobody's.
            unsafe { page.write_volatile(0) };
        }
    }

    /// Takes the memory behind `range`, which nobody has, away, and its usability.
    fn close(&self, range: Range) {
        // Both can fail only for want of the system's own memory; what is left then is memory that nobody uses.
        let _ = self.advise(range, libc::MADV_DONTNEED);
        let _ = self.set_protection(range, libc::PROT_NONE);
    }

    /// The address of `range`.
    fn address(&self, range: Range) -> *mut libc::c_void {
        debug_assert!((range.first + range.pages) << PAGE_SHIFT <= self.reserved_bytes());
        // SAFETY: ranges lie in the span.
        let start = unsafe { self.base.add(range.first << PAGE_SHIFT) };
        start.as_ptr().cast()
    }
}

// SAFETY: 1 and 4: one mapping, aligned by its constructor; 2: a fresh mapping, kept until drop; 3: chunks are taken
// off `next` once, lie in the span, and are fresh anonymous memory, so zero.
unsafe impl Source for Mmap {
    fn span(&self) -> Span {
        Span {
            base: self.base,
            pages: self.chunks * CHUNK_PAGES,
        }
    }

    fn metadata(&self, layout: Layout) -> Result<NonNull<u8>, SourceError> {
        let mut metadata = self.metadata.lock();
        if metadata.is_some() {
            return Err(SourceError::Exhausted);
        }
        debug_assert!(layout.align() <= 4096, "a mapping is page-aligned");
        let mapping = Mapping::new(layout.size(), libc::PROT_READ | libc::PROT_WRITE)?;
        // Metadata is touched here and there: a huge page would commit 2 MiB for each spot.
        // SAFETY: the mapping is ours; the advice changes no contents. A refusal costs memory only.
        let _ = unsafe {
            sys::advise(
                mapping.start.as_ptr().cast(),
                mapping.len,
                libc::MADV_NOHUGEPAGE,
            )
        };
        let start = mapping.start;
        *metadata = Some(mapping);
        Ok(start)
    }

    fn grow(&self, min_pages: usize) -> Result<Range, SourceError> {
        let chunks = min_pages.div_ceil(CHUNK_PAGES).max(1);
        // ORDERING: Relaxed: the addresses were this source's before; the count publishes nothing.
        let first = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                (chunks <= self.chunks - next).then(|| next + chunks)
            })
            .map_err(|_| SourceError::Exhausted)?;
        let range = Range {
            first: first * CHUNK_PAGES,
            pages: chunks * CHUNK_PAGES,
            zeroed: true,
        };
        let Err(error) = self.open(range) else {
            return Ok(range);
        };
        // Only addresses are lost if somebody took a later chunk meanwhile.
        // ORDERING: Relaxed: as above.
        let _ =
            self.next
                .compare_exchange(first + chunks, first, Ordering::Relaxed, Ordering::Relaxed);
        Err(error)
    }

    unsafe fn decommit(&self, range: Range) -> bool {
        // The range is unused (debt 1), and reads as zeroes afterwards.
        self.advise(range, libc::MADV_DONTNEED).is_ok()
    }

    fn decommit_policy(&self) -> Decommit {
        self.options.decommit
    }

    unsafe fn add_range(&self, range: Range) -> Result<Range, SourceError> {
        // ORDERING: Relaxed: as in `grow`; only what was given before can have been removed.
        let given = self.next.load(Ordering::Relaxed) * CHUNK_PAGES;
        let end = range.first.checked_add(range.pages);
        if end.is_none_or(|end| end > given) {
            return Err(SourceError::Outside);
        }
        self.open(range)?;
        // Fresh, unless giving it back failed at its removal.
        let zeroed = self.options.populate || self.advise(range, libc::MADV_DONTNEED).is_ok();
        Ok(Range { zeroed, ..range })
    }

    unsafe fn remove_range(&self, range: Range) {
        self.close(range);
    }

    fn can_protect(&self) -> bool {
        !cfg!(miri)
    }

    unsafe fn protect(&self, range: Range, accessible: bool) -> Result<(), SourceError> {
        let prot = if accessible {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_NONE
        };
        // The range is unused (debts 1 and 2).
        self.set_protection(range, prot)
    }

    fn map_apart(&self, size_bytes: usize, align: usize) -> Result<NonNull<u8>, SourceError> {
        apart::map(size_bytes, align)
    }

    unsafe fn unmap_apart(&self, start: NonNull<u8>, size_bytes: usize) {
        // SAFETY: the caller's debt 1.
        unsafe { apart::unmap(start, size_bytes) };
    }

    unsafe fn remap_apart(
        &self,
        start: NonNull<u8>,
        old_bytes: usize,
        new_bytes: usize,
        may_move: bool,
    ) -> Option<NonNull<u8>> {
        // SAFETY: the caller's debt 1.
        unsafe { apart::remap(start, old_bytes, new_bytes, may_move) }
    }
}

/// A mapping that ends with the value.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping may be used and ended from any thread.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(len: usize, prot: libc::c_int) -> Result<Self, SourceError> {
        let start = sys::map(len, prot)?;
        Ok(Self { start, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and its user is gone with the value that held it.
        let rc = unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert_eq!(rc, 0, "unmapping our own mapping");
    }
}

fn errno() -> SourceError {
    SourceError::System(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_grows_by_aligned_chunks_until_it_is_used_up() {
        let source = Mmap::reserve(2 * CHUNK - 1).unwrap();
        assert_eq!(source.reserved_bytes(), 2 * CHUNK);
        assert_eq!(source.base.as_ptr().addr() % CHUNK, 0);
        for first in [0, CHUNK_PAGES] {
            let range = source.grow(1).unwrap();
            assert_eq!((range.first, range.pages), (first, CHUNK_PAGES));
            let byte = source.address(range).cast::<u8>();
            // SAFETY: the range is usable now.
            unsafe { byte.write(1) };
            // SAFETY: nothing in the range is in use.
            assert!(unsafe { source.decommit(range) });
            // SAFETY: still usable.
            assert_eq!(unsafe { byte.read() }, 0);
        }
        assert_eq!(source.grow(1), Err(SourceError::Exhausted));
    }

    #[test]
    fn touching_keeps_the_zeroes() {
        let source = Mmap::reserve(CHUNK).unwrap();
        let range = source.grow(1).unwrap();
        source.touch(range);
        let last = Range {
            first: CHUNK_PAGES - 1,
            pages: 1,
            ..range
        };
        // SAFETY: the range is usable.
        assert_eq!(unsafe { source.address(last).cast::<u8>().read() }, 0);
    }

    #[test]
    fn bad_sizes_are_told_apart() {
        assert_eq!(Mmap::reserve(0).unwrap_err(), SourceError::Empty);
        assert_eq!(
            Mmap::reserve(usize::MAX).unwrap_err(),
            SourceError::Overflow
        );
        assert!(matches!(
            Mmap::reserve(1 << 60).unwrap_err(),
            SourceError::System(_)
        ));
    }

    #[test]
    fn metadata_comes_once_and_zeroed() {
        let source = Mmap::reserve(1).unwrap();
        let layout = Layout::from_size_align(1 << 20, 128).unwrap();
        let start = source.metadata(layout).unwrap();
        // SAFETY: a mebibyte was given.
        let last = unsafe { start.add((1 << 20) - 1) };
        // SAFETY: as above, and zeroed memory is initialised.
        assert_eq!(unsafe { last.read() }, 0);
        assert_eq!(source.metadata(layout), Err(SourceError::Exhausted));
    }
}
