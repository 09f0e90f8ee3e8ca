//! The functions that the compiler calls without being asked. By string instructions, which no compiler turns back into a
//! call of themselves.

use core::arch::asm;

/// # Safety
/// 1. As for C's `memcpy`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: reads and writes what the caller says (1); the direction flag is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") bytes => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// 1. As for C's `memmove`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= bytes {
        // SAFETY: writing upwards destroys nothing that is still to be read (1).
        return unsafe { memcpy(to, from, bytes) };
    }
    let (last_to, last_from) = (
        to.wrapping_add(bytes).wrapping_sub(1),
        from.wrapping_add(bytes).wrapping_sub(1),
    );
    // SAFETY: as above, from the end downwards; the direction flag is put back.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") bytes => _, inout("rdi") last_to => _,
            inout("rsi") last_from => _, options(nostack));
    }
    to
}

/// # Safety
/// 1. As for C's `memset`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, bytes: usize) -> *mut u8 {
    // SAFETY: writes what the caller says (1).
    unsafe {
        asm!("rep stosb", inout("rcx") bytes => _, inout("rdi") to => _, in("al") byte as u8,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// 1. As for C's `memcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, bytes: usize) -> i32 {
    let (mut a, mut b, mut left) = (a, b, bytes);
    while left > 0 {
        // SAFETY: inside of what the caller says (1).
        let (x, y) = (unsafe { a.read_volatile() }, unsafe { b.read_volatile() });
        if x != y {
            return i32::from(x) - i32::from(y);
        }
        (a, b, left) = (a.wrapping_add(1), b.wrapping_add(1), left - 1);
    }
    0
}

/// # Safety
/// 1. As for C's `bcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, bytes: usize) -> i32 {
    // SAFETY: the caller's debt.
    unsafe { memcmp(a, b, bytes) }
}
