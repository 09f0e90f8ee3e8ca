//! The end of a program that broke a contract.

use core::fmt;

/// What was found wrong with a pointer that came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// The object is free in its slab already.
    DoubleFree,
    /// The pointer is not into a slab of this cache.
    Foreign,
    /// The pointer is into a slab of this cache, but not to the start of an object.
    Misaligned,
    /// The object waits for its grace period, and is freed.
    FreedRetired,
    /// The object is free, and is retired.
    RetiredFreed,
    /// The object waits for its grace period, and is retired again.
    RetiredTwice,
    /// What lies beside the object was overwritten.
    RedZone,
    /// The object was written to while it was free.
    Poison,
    /// Memory by size came back with a layout that another class serves.
    Layout,
    /// The checks' own words beside the object were overwritten.
    Words,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DoubleFree => "object freed twice",
            Self::Foreign => "pointer is not from this cache",
            Self::Misaligned => "pointer is not to the start of an object",
            Self::FreedRetired => "retired object freed",
            Self::RetiredFreed => "freed object retired",
            Self::RetiredTwice => "object retired twice",
            Self::RedZone => "red zone overwritten",
            Self::Poison => "object written to after it was freed",
            Self::Layout => "memory came back with a layout of another class",
            Self::Words => "words of the checks before the object overwritten",
        })
    }
}

/// Aborts the program with a message that names the cache, the object and the slab.
///
/// Why not a panic: the caller may be inside a lock, and an allocator that goes on after memory was
/// freed twice hands it to two owners.
#[cold]
#[inline(never)]
pub(crate) fn broken(fault: Fault, cache: &str, object: *const u8, slab: *const u8) -> ! {
    broken_with(fault, cache, object, slab, format_args!(""))
}

/// As [`broken`], with more to say.
#[cold]
#[inline(never)]
pub(crate) fn broken_with(
    fault: Fault,
    cache: &str,
    object: *const u8,
    slab: *const u8,
    detail: fmt::Arguments<'_>,
) -> ! {
    end(format_args!(
        "slab: {fault}: cache {cache}, object {object:p}, slab {slab:p}{detail}"
    ))
}

/// Ends the program if it is dropped: around what is the user's and must not unwind.
pub(crate) struct NoUnwind {
    deed: &'static str,
    cache: &'static str,
}

impl NoUnwind {
    pub(crate) const fn new(deed: &'static str, cache: &'static str) -> Self {
        Self { deed, cache }
    }
}

impl Drop for NoUnwind {
    fn drop(&mut self) {
        end(format_args!(
            "slab: {} of cache {} panicked",
            self.deed, self.cache
        ));
    }
}

/// Ends the program with a message.
#[cfg(feature = "std")]
pub(crate) fn end(message: fmt::Arguments<'_>) -> ! {
    // Standard error is unbuffered, so this allocates nothing.
    eprintln!("{message}");
    std::process::abort()
}

/// Ends the program with a message.
#[cfg(not(feature = "std"))]
pub(crate) fn end(message: fmt::Arguments<'_>) -> ! {
    /// A panic cannot leave a function of this ABI: it ends the program where panics unwind.
    extern "C" fn no_return(message: &fmt::Arguments<'_>) -> ! {
        panic!("{message}")
    }
    no_return(&message)
}
