//! What a cache tells about itself.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};
use rcu_core::cpu::{Slot, ZeroInit};

/// What happens off the fast paths, counted for each slot. (What the fast paths do is not counted at all.)
///
/// Source: Linux `mm/slub.c` (6.18), `enum stat_item` (names only).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[doc(alias = "stat_item")]
pub enum Event {
    /// An allocation exchanged `main` with a spare that had objects, or a free with one that had room.
    Swap,
    /// A sheaf was filled from the slabs.
    #[doc(alias = "SHEAF_REFILL")]
    Refill,
    /// A sheaf that a slot had too much of was emptied into the slabs.
    #[doc(alias = "SHEAF_FLUSH")]
    FlushMain,
    /// A sheaf was emptied into the slabs for another reason: the barn has too many, shrinking, the end of the cache.
    FlushOther,
    /// A sheaf with objects was taken from the barn.
    #[doc(alias = "BARN_GET")]
    BarnGet,
    /// None was there.
    BarnGetFail,
    /// A sheaf with objects was put into the barn.
    #[doc(alias = "BARN_PUT")]
    BarnPut,
    /// There were too many, or the lock was taken.
    BarnPutFail,
    /// A prefilled sheaf came from the slot or the barn as it was.
    #[doc(alias = "SHEAF_PREFILL_FAST")]
    PrefillFast,
    /// One had to be filled.
    PrefillSlow,
    /// One larger than the cache's sheaves was made.
    PrefillOversize,
    /// An object could not be retired.
    #[doc(alias = "FREE_RCU_SHEAF_FAIL")]
    RetireFail,
    /// Of those: because as much waits [as may](crate::CacheConfig::waiting_limit).
    RetireOverLimit,
    /// An object was taken from a slab singly.
    AllocSingle,
    /// An object was put into its slab singly.
    FreeSingle,
    /// An object was freed where every lock was taken, and left for whoever has one next.
    #[doc(alias = "defer_free")]
    FreeDefer,
    /// A sheaf was made.
    SheafNew,
    /// A sheaf's memory was given back to the cache's pool.
    SheafGone,
    /// A slab was made.
    #[doc(alias = "ALLOC_SLAB")]
    SlabNew,
    /// A slab was given back.
    #[doc(alias = "FREE_SLAB")]
    SlabGone,
}

impl Event {
    /// All events, in the order of their counters.
    pub const ALL: [Self; 20] = [
        Self::Swap,
        Self::Refill,
        Self::FlushMain,
        Self::FlushOther,
        Self::BarnGet,
        Self::BarnGetFail,
        Self::BarnPut,
        Self::BarnPutFail,
        Self::PrefillFast,
        Self::PrefillSlow,
        Self::PrefillOversize,
        Self::RetireFail,
        Self::RetireOverLimit,
        Self::AllocSingle,
        Self::FreeSingle,
        Self::FreeDefer,
        Self::SheafNew,
        Self::SheafGone,
        Self::SlabNew,
        Self::SlabGone,
    ];

    /// The event's name, as displayed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Swap => "swap",
            Self::Refill => "refill",
            Self::FlushMain => "flush-main",
            Self::FlushOther => "flush-other",
            Self::BarnGet => "barn-get",
            Self::BarnGetFail => "barn-get-fail",
            Self::BarnPut => "barn-put",
            Self::BarnPutFail => "barn-put-fail",
            Self::PrefillFast => "prefill-fast",
            Self::PrefillSlow => "prefill-slow",
            Self::PrefillOversize => "prefill-oversize",
            Self::RetireFail => "retire-fail",
            Self::RetireOverLimit => "retire-over-limit",
            Self::AllocSingle => "alloc-single",
            Self::FreeSingle => "free-single",
            Self::FreeDefer => "free-defer",
            Self::SheafNew => "sheaf-new",
            Self::SheafGone => "sheaf-gone",
            Self::SlabNew => "slab-new",
            Self::SlabGone => "slab-gone",
        }
    }
}

/// How often each [`Event`] happened (wraps at 2³² a slot). Displayed as `name count` pairs, those that are zero left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events([u64; Event::ALL.len()]);

impl Events {
    /// How often `event` happened.
    #[must_use]
    pub const fn of(&self, event: Event) -> u64 {
        self.0[event as usize]
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, n) in self.0.iter_mut().zip(other.0) {
            *sum += n;
        }
    }
}

impl fmt::Display for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gap = "";
        for event in Event::ALL {
            if self.of(event) > 0 {
                write!(f, "{gap}{} {}", event.name(), self.of(event))?;
                gap = " ";
            }
        }
        Ok(())
    }
}

/// The counters of one slot. All-zero is none.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Tally([AtomicU32; Event::ALL.len()]);

// SAFETY: zero is valid for integers.
unsafe impl ZeroInit for Tally {}

impl Tally {
    pub(crate) fn count(&self, event: Event) {
        // ORDERING: Relaxed: a number for statistics.
        self.0[event as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn events(&self) -> Events {
        // ORDERING: Relaxed: numbers for statistics.
        let load = |count: &AtomicU32| u64::from(count.load(Ordering::Relaxed));
        Events(core::array::from_fn(|i| load(&self.0[i])))
    }
}

/// The numbers of one slot of a cache. Displayed as one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotStats {
    /// Whose.
    pub slot: Slot,
    /// Objects in `main`.
    pub main: usize,
    /// Objects in the spare.
    pub spare: usize,
    /// Retired objects in a sheaf that is not sealed yet.
    pub unsealed: usize,
    /// Retired objects in sealed sheaves.
    pub sealed: usize,
    /// Sheaves in line, sealed and with objects.
    pub line: usize,
    /// Allocations that found `main` empty (wraps).
    pub alloc_misses: u64,
    /// Frees that found `main` full (wraps).
    pub free_misses: u64,
    /// Sheaves of retired objects that were sealed (wraps).
    pub sheaves_sealed: u64,
    /// Of those, how many became an allocation sheaf as they were (wraps).
    pub sheaves_recycled: u64,
    /// What else happened off the fast paths.
    pub events: Events,
}

impl fmt::Display for SlotStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "slot {:<3} main {:>4} spare {:>4} retired {:>4} + {} in {} sheaves : misses {}/{} : sealed {} recycled {} : {}",
            self.slot.index(),
            self.main,
            self.spare,
            self.unsealed,
            self.sealed,
            self.line,
            self.alloc_misses,
            self.free_misses,
            self.sheaves_sealed,
            self.sheaves_recycled,
            self.events,
        )
    }
}

/// Where a cache's memory is, to the byte: the parts sum up to what it has from its page source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryStats {
    /// Of the slabs' pages: objects that users have, as large as was asked for.
    pub live: usize,
    /// Of the slabs' pages: objects that are free or wait, as above.
    pub idle: usize,
    /// Of the slabs' pages: what rounding up objects, and the checks, add to each.
    pub around: usize,
    /// Of the slabs' pages: ends that hold no whole object.
    pub tails: usize,
    /// Pages of empty slabs that wait for their readers, or that somebody holds.
    pub waiting: usize,
    /// Pages of sheaves, in use or not.
    pub sheaves: usize,
    /// Pages of slab descriptors, in use or not.
    pub descriptors: usize,
    /// The array of slots.
    pub slots: usize,
    /// The cache itself.
    pub cache: usize,
    /// The quarantine's ring.
    pub quarantine: usize,
}

impl MemoryStats {
    /// Bytes of the slabs' pages.
    #[must_use]
    pub const fn slabs(&self) -> usize {
        self.live + self.idle + self.around + self.tails + self.waiting
    }

    /// Bytes of all pages that the cache has.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.slabs() + self.sheaves + self.descriptors + self.slots + self.cache + self.quarantine
    }
}

impl fmt::Display for MemoryStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes: live {} idle {} around {} tails {} waiting {} sheaves {} descriptors {} slots {} cache {} quarantine {}",
            self.total(),
            self.live,
            self.idle,
            self.around,
            self.tails,
            self.waiting,
            self.sheaves,
            self.descriptors,
            self.slots,
            self.cache,
            self.quarantine,
        )
    }
}

/// A cache's numbers, taken slot by slot while it runs: exact only when nobody else uses it.
///
/// Displayed as one line in the manner of `/proc/slabinfo`; with `{:#}`, two more: [`Self::memory`] and [`Self::events`].
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
    /// Freed objects that are kept back ([`Checks::QUARANTINE`](crate::Checks::QUARANTINE)).
    pub kept_back: usize,
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
    /// What else happened off the fast paths, of all slots and of callers without one.
    pub events: Events,
    /// Where the memory is.
    pub memory: MemoryStats,
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
        )?;
        if f.alternate() {
            write!(f, "\n  {}\n  {}", self.memory, self.events)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h13_every_event_has_the_counter_of_its_own() {
        let tally = Tally::default();
        for (i, event) in Event::ALL.into_iter().enumerate() {
            assert_eq!(event as usize, i);
            (0..=i).for_each(|_| tally.count(event));
        }
        let mut events = tally.events();
        events.add(&tally.events());
        assert!(
            (0..)
                .zip(Event::ALL)
                .all(|(i, e)| events.of(e) == 2 * (i + 1))
        );
    }
}
