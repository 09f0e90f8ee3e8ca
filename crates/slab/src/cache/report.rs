//! A cache's numbers.

use super::{Inner, RawCache};
use crate::stats::CacheStats;
use pagealloc::PageAlloc;
use rcu_core::GracePeriod;
use rcu_core::cpu::Cpus;

impl<C: Cpus, P: PageAlloc, G: GracePeriod> RawCache<C, P, G> {
    /// The cache's numbers. Visits every slot that was used.
    #[must_use]
    #[doc(alias = "get_slabinfo")]
    pub fn stats(&self) -> CacheStats {
        self.inner().stats()
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Inner<C, P, G> {
    fn stats(&self) -> CacheStats {
        let mut stats = CacheStats {
            name: self.shape.name,
            object_bytes: self.shape.size,
            objects_per_slab: self.shape.nr_objects,
            ..CacheStats::default()
        };
        for local in self.used() {
            let slot = local.cell.visit();
            let spare = slot.spare.as_ref().map_or(0, |s| s.len());
            stats.in_sheaves += slot.main.len() + spare;
            stats.waiting += slot.rcu.len() + slot.line.objects();
            stats.alloc_misses += u64::from(slot.counts.alloc_misses);
            stats.free_misses += u64::from(slot.counts.free_misses);
            stats.sheaves_sealed += u64::from(slot.counts.sealed);
            stats.sheaves_recycled += u64::from(slot.counts.recycled);
        }
        {
            let stock = self.barn.0.enter();
            (stats.barn_full, stats.barn_empty) = stock.sheaves();
            stats.in_sheaves += stock.objects();
            stats.waiting += stock.orphans.objects();
        }
        let (inuse, slabs, kept) = {
            let slabs = self.slabs.0.lock();
            (slabs.inuse(), slabs.nr_slabs(), slabs.nr_kept())
        };
        // Objects may have moved between the looks.
        stats.live = inuse.saturating_sub(stats.in_sheaves + stats.waiting);
        stats.slabs = slabs;
        stats.slabs_waiting = kept;
        stats.slab_bytes = (slabs + kept) * self.shape.order.bytes();
        stats.meta_bytes = self.sheaves.0.bytes() + self.descriptors.0.bytes();
        stats
    }
}
