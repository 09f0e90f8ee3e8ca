//! The end of a program that broke an `unsafe` contract.

use core::fmt;

/// Stops the program: a caller broke the contract of an `unsafe` function, so the zone's state, or
/// memory that somebody else owns, may be damaged already.
///
/// With `std`, prints and aborts, because unwinding would run drop glue over the damage. Without, it
/// panics: what that means is the embedder's choice.
#[cold]
#[inline(never)]
#[doc(alias = "bad_page")]
pub(crate) fn broken(what: fmt::Arguments<'_>) -> ! {
    #[cfg(feature = "std")]
    {
        std::eprintln!("pagealloc: broken contract: {what}");
        std::process::abort()
    }
    #[cfg(not(feature = "std"))]
    panic!("pagealloc: broken contract: {what}")
}
