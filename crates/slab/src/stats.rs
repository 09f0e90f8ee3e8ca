//! What a cache tells about itself.

use core::fmt;

/// A cache's numbers, taken slot by slot while it runs: exact only when nobody else uses it.
///
/// Displayed as one line in the manner of `/proc/slabinfo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[doc(alias = "slabinfo")]
pub struct CacheStats {
    /// The cache's name.
    pub name: &'static str,
    /// Bytes from one object to the next.
    pub object_bytes: usize,
    /// Objects that users have.
    pub live: usize,
    /// Objects in sheaves, free to hand out without asking the slabs.
    pub in_sheaves: usize,
    /// Objects that were retired and are not free yet.
    pub waiting: usize,
    /// Slabs.
    pub slabs: usize,
    /// Objects in a slab.
    pub objects_per_slab: usize,
    /// Bytes of the slabs' pages.
    pub slab_bytes: usize,
    /// Bytes of the pages of sheaves and descriptors.
    pub meta_bytes: usize,
    /// Sheaves with objects in the barn.
    pub barn_full: usize,
    /// Sheaves without objects in the barn.
    pub barn_empty: usize,
    /// Allocations that found `main` empty (wraps).
    pub alloc_misses: u64,
    /// Frees that found `main` full (wraps).
    pub free_misses: u64,
    /// Sheaves of retired objects that were sealed (wraps).
    pub sheaves_sealed: u64,
    /// Of those, how many became an allocation sheaf as they were (wraps).
    pub sheaves_recycled: u64,
    /// Times that objects were taken from slabs (wraps).
    pub refills: u64,
    /// Times that objects were put back into slabs (wraps).
    pub flushes: u64,
    /// Objects that were put back into slabs (wraps).
    pub objects_flushed: u64,
    /// Sheaves of memory taken from the pool (wraps).
    pub sheaves_made: usize,
    /// Sheaves of memory given back to the pool (wraps).
    pub sheaves_dropped: usize,
    /// Full sheaves got from the barn (wraps).
    pub barn_gets: u64,
    /// Times that the barn had none (wraps).
    pub barn_gets_failed: u64,
    /// Full sheaves put into the barn (wraps).
    pub barn_puts: u64,
    /// Times that the barn had enough (wraps).
    pub barn_puts_failed: u64,
    /// Prefilled handles that were filled (wraps).
    pub prefills: usize,
    /// Of those, how many found all they wanted in one sheaf that was there (wraps).
    pub prefills_ready: usize,
    /// Of those, how many wanted more than a sheaf holds (wraps).
    pub prefills_oversize: usize,
    /// Frees that found every lock taken and were deferred (wraps).
    pub frees_deferred: usize,
    /// Retired objects that were given back for want of memory or of a lock (wraps).
    pub retires_refused: usize,
    /// Retired objects that were given back because as much waited as may (wraps).
    pub retires_over_limit: usize,
}

impl fmt::Display for CacheStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<16} {:>8} live {:>8} sheaved {:>8} waiting {:>6} B/obj {:>4} obj/slab {:>6} slabs {:>8} KiB : misses {}/{} : sealed {} recycled {} refused {}/{} : deferred {}",
            self.name,
            self.live,
            self.in_sheaves,
            self.waiting,
            self.object_bytes,
            self.objects_per_slab,
            self.slabs,
            (self.slab_bytes + self.meta_bytes) >> 10,
            self.alloc_misses,
            self.free_misses,
            self.sheaves_sealed,
            self.sheaves_recycled,
            self.retires_refused,
            self.retires_over_limit,
            self.frees_deferred,
        )
    }
}
