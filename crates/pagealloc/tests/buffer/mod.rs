//! Memory of a test's own, and sources over it. Filled at once: byte by byte, as `vec!` does it without optimisation, takes most of a test's time.

#![allow(dead_code, reason = "not every file needs all of it")]

use core::mem::MaybeUninit;
use pagealloc::Fixed;

/// A source over memory that outlives the zone: no test forgets one.
pub(crate) fn fixed(memory: &mut [MaybeUninit<u8>]) -> Fixed<'_> {
    // SAFETY: the zone is dropped before the memory is.
    unsafe { Fixed::borrowed(memory) }.unwrap()
}

/// Memory that holds nothing.
pub(crate) fn unwritten(bytes: usize) -> Vec<MaybeUninit<u8>> {
    Box::new_uninit_slice(bytes).into_vec()
}

/// Memory that does not read as zeroes.
pub(crate) fn written(bytes: usize) -> Vec<MaybeUninit<u8>> {
    let mut memory = unwritten(bytes);
    // SAFETY: as many bytes are there.
    unsafe { memory.as_mut_ptr().write_bytes(0xa5, bytes) };
    memory
}
