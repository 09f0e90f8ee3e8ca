//! Memory that is free, and AddressSanitizer.
//!
//! The sanitizer knows the heap of the C library and the stack. Of an allocator over pages of its own it knows nothing, so an access to
//! something freed goes unnoticed there. In a build with `--cfg address_sanitizer` (and the sanitizer itself: `cargo xtask asan`) the
//! allocators of this workspace say by these two what is free; in every other build the two are nothing.
//!
//! What this cannot show: an access to memory that was handed out again in between (nothing is kept back), and to the objects of
//! type-stable caches, whose readers may look at free ones.
//!
//! Under `std` only, for there is no sanitizer without a C library.

#[cfg(all(address_sanitizer, feature = "std", not(loom)))]
mod on {
    use core::ffi::c_void;

    unsafe extern "C" {
        pub(super) safe fn __asan_poison_memory_region(start: *const c_void, bytes: usize);
        pub(super) safe fn __asan_unpoison_memory_region(start: *const c_void, bytes: usize);
    }
}

/// Says that nobody may touch these bytes until [`reveal`]. Bytes of a word of eight that is not hidden whole may stay visible.
///
/// Changes no byte of it, so that it harms nobody who has been told wrongly: he is reported.
#[inline(always)]
pub fn hide(start: core::ptr::NonNull<u8>, bytes: usize) {
    #[cfg(all(address_sanitizer, feature = "std", not(loom)))]
    on::__asan_poison_memory_region(start.as_ptr().cast_const().cast(), bytes);
    let _ = (start, bytes);
}

/// Says that these bytes may be used.
#[inline(always)]
pub fn reveal(start: core::ptr::NonNull<u8>, bytes: usize) {
    #[cfg(all(address_sanitizer, feature = "std", not(loom)))]
    on::__asan_unpoison_memory_region(start.as_ptr().cast_const().cast(), bytes);
    let _ = (start, bytes);
}
