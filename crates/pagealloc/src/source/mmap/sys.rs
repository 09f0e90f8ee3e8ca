//! The system's calls on ranges of a reservation, and what stands for them under Miri.
//!
//! Miri maps memory that may be read and written, whole, and knows neither protection nor advice. There all of a mapping
//! is usable from the beginning, and memory that is taken away is overwritten with zeroes, as it would read afterwards.

use super::super::SourceError;
use super::errno;
use core::ptr::{self, NonNull};

/// Maps `len` fresh bytes at an address of the kernel's choice.
pub(super) fn map(len: usize, prot: libc::c_int) -> Result<NonNull<u8>, SourceError> {
    #[cfg(not(miri))]
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    #[cfg(miri)]
    let (flags, prot) = (
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        prot | libc::PROT_READ | libc::PROT_WRITE,
    );
    // SAFETY: a fresh private mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(errno());
    }
    NonNull::new(start.cast()).ok_or(SourceError::System(libc::EFAULT))
}

/// Says something about a range.
///
/// # Safety
/// 1. The range lies in one mapping of the caller's, page by page.
/// 2. What the advice changes of its contents is nobody's.
#[cfg(not(miri))]
pub(super) unsafe fn advise(
    start: *mut libc::c_void,
    len: usize,
    advice: libc::c_int,
) -> Result<(), SourceError> {
    // SAFETY: 1 and 2.
    let rc = unsafe { libc::madvise(start, len, advice) };
    if rc == 0 { Ok(()) } else { Err(errno()) }
}

#[cfg(miri)]
pub(super) unsafe fn advise(
    start: *mut libc::c_void,
    len: usize,
    advice: libc::c_int,
) -> Result<(), SourceError> {
    match advice {
        // SAFETY: 1 and 2.
        libc::MADV_DONTNEED => unsafe { start.cast::<u8>().write_bytes(0, len) },
        libc::MADV_POPULATE_WRITE => {}
        _ => return Err(SourceError::System(libc::EINVAL)),
    }
    Ok(())
}

/// Makes a range usable, or not.
///
/// # Safety
/// 1. The range lies in one mapping of the caller's, page by page.
/// 2. Nobody has it, if it becomes less usable.
#[cfg(not(miri))]
pub(super) unsafe fn protect(
    start: *mut libc::c_void,
    len: usize,
    prot: libc::c_int,
) -> Result<(), SourceError> {
    // SAFETY: 1 and 2.
    let rc = unsafe { libc::mprotect(start, len, prot) };
    if rc == 0 { Ok(()) } else { Err(errno()) }
}

#[cfg(miri)]
pub(super) unsafe fn protect(
    _start: *mut libc::c_void,
    _len: usize,
    _prot: libc::c_int,
) -> Result<(), SourceError> {
    Ok(())
}
