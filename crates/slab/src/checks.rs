//! What a cache checks beyond what costs nothing.
//!
//! Source: Linux `mm/slub.c` and `include/linux/poison.h`, `slab_debug=FZPU` (facts and constants only).
//!
//! # What the fast paths pay
//! Nothing, not even a branch. A cache with any check of [`Checks::EACH`] never has objects in a slot's `main`, and its `rcu` sheaf
//! always looks full (`Installed::push_closed`): every call misses, and the slow paths do the checking. ([`Checks::RANDOM`] acts
//! where a sheaf is refilled, and leaves the sheaves be.)
//!
//! # Parts
//! `frame`: what lies around each object, and what is looked at there. `quarantine`: freed objects that are kept back.
//! `cache/checked.rs`: the way of an object through a checked cache.

mod frame;
mod quarantine;

pub(crate) use frame::{Checked, Frame, Move};
pub(crate) use quarantine::Quarantine;

bitflags::bitflags! {
    /// What a cache checks beyond what costs nothing; none by default, all with the `checks` feature.
    ///
    /// Always checked, at the latest when a sheaf is flushed: that an object is out, of this cache, and the start of one. (What
    /// was freed twice, and is allocated and freed over and over again without a flush, stays unseen so long.)
    /// What is found broken ends the program, with a message that names the cache, the object and the slab.
    ///
    /// Every check but [`Self::RANDOM`] takes the cache's calls off the fast paths, needs at least 40 bytes an object, and
    /// implies [`Self::AT_ONCE`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    #[doc(alias = "slab_debug")]
    pub struct Checks: u8 {
        /// A double or foreign free is found at once, not when the sheaf is flushed; the free of a retired object, and the
        /// retiring of a freed one, too.
        #[doc(alias = "SLAB_CONSISTENCY_CHECKS")]
        const AT_ONCE = 1;
        /// Bytes before and after each object, which are looked at when it is allocated, freed and retired, and once more at
        /// the end of its grace period: 8 to 128 on each side, those that rounding up the size adds included.
        #[doc(alias = "SLAB_RED_ZONE")]
        const RED_ZONE = 2;
        /// Free objects are filled with `0x6b`, the last byte with `0xa5`, and looked at when they are allocated again; what is
        /// allocated is filled with `0x5a`. Retired objects are left alone until their grace period is over.
        #[doc(alias = "SLAB_POISON")]
        const POISON = 4;
        /// Who allocated and who freed (or retired) is kept beside each object, for messages and leak reports. The line is
        /// that of the call into this crate.
        #[doc(alias = "SLAB_STORE_USER")]
        const OWNER = 8;
        /// Freed objects are kept back for a while, so that a late use meets poison and not another object: the last 512 of
        /// the cache, or 256 KiB of them. `shrink`, `barrier`, `destroy` and want of memory let them go.
        const QUARANTINE = 16;
        /// A slab gives its objects out in random order, so that nobody comes to rely on neighbours. No defence against an
        /// attacker: the numbers are seeded with addresses and are not cryptographic.
        #[doc(alias = "SLAB_FREELIST_RANDOM")]
        const RANDOM = 32;
    }
}

impl Checks {
    /// Those that look at each object.
    pub(crate) const EACH: Self = Self::RANDOM.complement();
}
