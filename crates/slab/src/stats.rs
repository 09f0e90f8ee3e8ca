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
    /// Empty slabs of a type-stable cache that wait for their readers, or are held by a [`StableRef`](crate::StableRef).
    pub slabs_waiting: usize,
    /// Objects in a slab.
    pub objects_per_slab: usize,
    /// Bytes of the slabs' pages, of those that wait too.
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
}

impl fmt::Display for CacheStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<16} {:>8} live {:>8} sheaved {:>8} waiting {:>6} B/obj {:>4} obj/slab {:>6} slabs {:>8} KiB : misses {}/{} : sealed {} recycled {}",
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
        )
    }
}
