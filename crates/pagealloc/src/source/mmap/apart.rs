//! Mappings of their own, for what is larger than any block.
//!
//! Why they are not cut from the reservation: that is given out once, chunk by chunk, and what a huge block leaves behind there
//! would be found again only by a search for neighbours; the system does that for mappings, and can move them without copying.

use super::super::SourceError;
use super::errno;
use crate::api::PAGE_SIZE;
use core::ptr::{self, NonNull};

/// Maps `size_bytes`, rounded up to pages, at a multiple of `align`.
pub(super) fn map(size_bytes: usize, align: usize) -> Result<NonNull<u8>, SourceError> {
    if size_bytes == 0 {
        return Err(SourceError::Empty);
    }
    if !align.is_power_of_two() {
        return Err(SourceError::Misaligned);
    }
    let size = pages(size_bytes).ok_or(SourceError::Overflow)?;
    // The most that has to be skipped in front: mappings are aligned to pages.
    let skip = align.max(PAGE_SIZE) - PAGE_SIZE;
    let whole = size.checked_add(skip).ok_or(SourceError::Overflow)?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh private mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(ptr::null_mut(), whole, prot, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(errno());
    }
    let start = NonNull::new(start.cast::<u8>()).ok_or(SourceError::System(libc::EFAULT))?;
    let front = start.addr().get().next_multiple_of(align.max(PAGE_SIZE)) - start.addr().get();
    // SAFETY: at most `skip`, so inside the mapping.
    let aligned = unsafe { start.add(front) };
    // SAFETY: the mapping is this call's, and so is what lies in front of the aligned part.
    unsafe { end(start, front) };
    // SAFETY: at most the mapping's end.
    let behind = unsafe { aligned.add(size) };
    // SAFETY: as above, and behind it.
    unsafe { end(behind, skip - front) };
    Ok(aligned)
}

/// Whole pages.
fn pages(size_bytes: usize) -> Option<usize> {
    let size = size_bytes.checked_next_multiple_of(PAGE_SIZE)?;
    (size <= isize::MAX as usize).then_some(size)
}

/// Ends a mapping or a part of one; nothing if it is empty.
///
/// # Safety
/// 1. The part is the caller's, and not used any more.
unsafe fn end(start: NonNull<u8>, size: usize) {
    if size > 0 {
        // SAFETY: 1.
        let rc = unsafe { libc::munmap(start.as_ptr().cast(), size) };
        // It fails where the system has no memory to note the hole: then only addresses and memory are lost.
        debug_assert!(rc == 0 || errno() == SourceError::System(libc::ENOMEM));
    }
}

/// # Safety
/// 1. `start` came from [`map`] or [`remap`] with this size, and is not used any more.
pub(super) unsafe fn unmap(start: NonNull<u8>, size_bytes: usize) {
    // SAFETY: 1; the same rounding as when it was mapped, so there was no overflow.
    unsafe { end(start, size_bytes.next_multiple_of(PAGE_SIZE)) };
}

/// # Safety
/// 1. `start` came from [`map`] or [`remap`] with `old_bytes`; if another address is returned, it is not used any more, and what is past
///    `new_bytes` in no case.
pub(super) unsafe fn remap(
    start: NonNull<u8>,
    old_bytes: usize,
    new_bytes: usize,
    may_move: bool,
) -> Option<NonNull<u8>> {
    let (old, new) = (pages(old_bytes)?, pages(new_bytes).filter(|&new| new > 0)?);
    let flags = if may_move { libc::MREMAP_MAYMOVE } else { 0 };
    // SAFETY: a whole mapping of the caller's, who gives up what goes (1).
    let moved = unsafe { libc::mremap(start.as_ptr().cast(), old, new, flags) };
    if moved == libc::MAP_FAILED {
        return None;
    }
    NonNull::new(moved.cast())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_apart_is_zeroed_aligned_and_keeps_its_contents_when_it_grows() {
        for align in [1, PAGE_SIZE, 8 << 20] {
            let size = (5 << 20) + 1;
            let start = map(size, align).unwrap();
            assert!(start.addr().get().is_multiple_of(align));
            // SAFETY: so many bytes are mapped.
            let last = unsafe { start.add(size - 1) };
            // SAFETY: as above, and zeroed memory is initialised.
            assert_eq!(unsafe { last.read() }, 0);
            // SAFETY: as above.
            unsafe { start.write(7) };
            // SAFETY: mapped with this size, and the old address is not used any more.
            let moved = unsafe { remap(start, size, 4 * size, true) }.unwrap();
            // SAFETY: the contents came along.
            assert_eq!(unsafe { moved.read() }, 7);
            // SAFETY: four times as many bytes are mapped.
            let last = unsafe { moved.add(4 * size - 1) };
            // SAFETY: as above.
            assert_eq!(unsafe { last.read() }, 0);
            // SAFETY: mapped with this size, not used any more.
            unsafe { unmap(moved, 4 * size) };
        }
    }

    #[test]
    fn what_cannot_be_mapped_is_told_apart() {
        assert_eq!(map(0, 1), Err(SourceError::Empty));
        assert_eq!(map(1, 3), Err(SourceError::Misaligned));
        assert_eq!(map(usize::MAX, 1), Err(SourceError::Overflow));
        assert_eq!(
            map(1 << 40, 1 << 63),
            Err(SourceError::System(libc::ENOMEM))
        );
    }
}
