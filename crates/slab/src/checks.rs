//! What a cache checks beyond what costs nothing.
//!
//! Source: Linux `mm/slub.c` and `include/linux/poison.h`, `slab_debug=FZPU` (facts and constants only).

bitflags::bitflags! {
    /// What a cache checks beyond what costs nothing; none by default, all with the `checks` feature.
    ///
    /// Always checked, at the latest when a sheaf is flushed: that an object is out, of this cache, and the start of one.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    #[doc(alias = "slab_debug")]
    pub struct Checks: u8 {
        /// A double or foreign free is found at once, not when the sheaf is flushed.
        #[doc(alias = "SLAB_CONSISTENCY_CHECKS")]
        const AT_ONCE = 1;
        /// Bytes before and after each object, which are looked at when it is freed.
        #[doc(alias = "SLAB_RED_ZONE")]
        const RED_ZONE = 2;
        /// Free objects are filled, and looked at when they are allocated again.
        #[doc(alias = "SLAB_POISON")]
        const POISON = 4;
        /// Who allocated and who freed is kept beside each object, for reports.
        #[doc(alias = "SLAB_STORE_USER")]
        const OWNER = 8;
        /// Freed objects are kept back for a while, so that a late use meets poison and not another object.
        const QUARANTINE = 16;
        /// A new slab gives its objects out in random order.
        #[doc(alias = "SLAB_FREELIST_RANDOM")]
        const RANDOM = 32;
    }
}
