//! Numbers, slot by slot.

use super::{Inner, RawCache};
use crate::checks::Quarantine;
use crate::stats::{CacheStats, Event, MemoryStats, SlotStats};
use pagealloc::{Attempt, PageAlloc};
use rcu_core::GracePeriod;
use rcu_core::cpu::{Cpus, Slot};
use rcu_core::sync::atomic::Ordering;

impl<C: Cpus, P: PageAlloc, G: GracePeriod> RawCache<C, P, G> {
    /// The cache's numbers. Visits every slot that was used.
    #[must_use]
    #[doc(alias = "get_slabinfo")]
    pub fn stats(&self) -> CacheStats {
        self.inner().stats()
    }

    /// The numbers of one slot; `None` if it never held a sheaf of this cache, nor missed one.
    #[must_use]
    pub fn stats_of(&self, slot: Slot) -> Option<SlotStats> {
        let inner = self.inner();
        // ORDERING: Relaxed: as for `Inner::used`.
        (slot.index() < inner.nr_used.load(Ordering::Relaxed)).then(|| inner.stats_of(slot))
    }

    /// The numbers of every slot that was used, each visited as the iterator comes to it.
    pub fn slot_stats(&self) -> impl Iterator<Item = SlotStats> {
        let inner = self.inner();
        // ORDERING: Relaxed: as for `Inner::used`.
        let nr = inner.nr_used.load(Ordering::Relaxed);
        (0..nr).map(|i| inner.stats_of(Slot::new(i as u32)))
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Inner<C, P, G> {
    /// Counts `event` for the caller's slot, or for those without one.
    pub(super) fn tally(&self, event: Event) {
        match self.cpus.current_if_online() {
            // ORDERING: Relaxed: as for `Inner::used`: what is counted in a slot must be found there.
            Some(slot) if slot.index() < self.nr_used.load(Ordering::Relaxed) => {
                self.slot(slot).tally.count(event);
            }
            _ => self.tally.count(event),
        }
    }

    fn stats_of(&self, slot: Slot) -> SlotStats {
        let local = self.slot(slot);
        let events = local.tally.events();
        let state = local.cell.visit();
        SlotStats {
            slot,
            main: state.main.len(),
            spare: state.spare.as_ref().map_or(0, |s| s.len()),
            unsealed: state.rcu.len(),
            sealed: state.line.objects(),
            line: state.line.sheaves(),
            alloc_misses: u64::from(state.counts.alloc_misses),
            free_misses: u64::from(state.counts.free_misses),
            sheaves_sealed: u64::from(state.counts.sealed),
            sheaves_recycled: u64::from(state.counts.recycled),
            events,
        }
    }

    pub(super) fn stats(&self) -> CacheStats {
        let mut stats = CacheStats {
            name: self.shape.name,
            object_bytes: self.shape.size,
            objects_per_slab: self.shape.nr_objects,
            events: self.tally.events(),
            ..CacheStats::default()
        };
        self.settle_deferred(Attempt::NoWait);
        // ORDERING: Relaxed: as for `Inner::used`.
        for slot in 0..self.nr_used.load(Ordering::Relaxed) {
            let slot = self.stats_of(Slot::new(slot as u32));
            stats.in_sheaves += slot.main + slot.spare;
            stats.waiting += slot.unsealed + slot.sealed;
            stats.alloc_misses += slot.alloc_misses;
            stats.free_misses += slot.free_misses;
            stats.sheaves_sealed += slot.sheaves_sealed;
            stats.sheaves_recycled += slot.sheaves_recycled;
            stats.events.add(&slot.events);
        }
        {
            let stock = self.barn.0.enter();
            (stats.barn_full, stats.barn_empty) = stock.sheaves();
            stats.in_sheaves += stock.objects();
            stats.waiting += stock.orphans.objects();
        }
        stats.kept_back = self.quarantine.0.lock().len();
        let (inuse, slabs, kept) = {
            let slabs = self.slabs.0.lock();
            (slabs.inuse(), slabs.nr_slabs(), slabs.nr_kept())
        };
        // Objects may have moved between the looks.
        stats.live = inuse.saturating_sub(stats.in_sheaves + stats.waiting + stats.kept_back);
        stats.slabs = slabs;
        stats.slabs_waiting = kept;
        stats.slab_bytes = (slabs + kept) * self.shape.order.bytes();
        stats.meta_bytes = self.sheaves.0.bytes() + self.descriptors.0.bytes();
        stats.memory = self.memory(slabs, kept, stats.live);
        stats
    }

    fn memory(&self, slabs: usize, kept: usize, live: usize) -> MemoryStats {
        let shape = &self.shape;
        let size = shape.layout.size();
        let objects = slabs * shape.nr_objects;
        let live = live.min(objects);
        let ring = self.quarantine.0.lock().page().is_some();
        MemoryStats {
            live: live * size,
            idle: (objects - live) * size,
            around: objects * (shape.size - size),
            tails: slabs * (shape.order.bytes() - shape.nr_objects * shape.size),
            waiting: kept * shape.order.bytes(),
            sheaves: self.sheaves.0.bytes(),
            descriptors: self.descriptors.0.bytes(),
            slots: self.slots_order.bytes(),
            cache: self.inner_order.bytes(),
            quarantine: usize::from(ring) * Quarantine::ORDER.bytes(),
        }
    }
}
