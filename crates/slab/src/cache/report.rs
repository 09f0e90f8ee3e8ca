//! A cache's numbers.

use super::{Inner, RawCache};
use crate::stats::CacheStats;
use core::sync::atomic::{AtomicUsize, Ordering};
use pagealloc::{Attempt, PageAlloc};
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
        self.settle_deferred(Attempt::NoWait);
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
            stats.barn_gets = stock.tally.gets;
            stats.barn_gets_failed = stock.tally.gets_failed;
            stats.barn_puts = stock.tally.puts;
            stats.barn_puts_failed = stock.tally.puts_failed;
        }
        let (inuse, slabs) = {
            let slabs = self.slabs.0.lock();
            stats.refills = slabs.tally.refills;
            stats.flushes = slabs.tally.flushes;
            stats.objects_flushed = slabs.tally.flushed;
            (slabs.inuse(), slabs.nr_slabs())
        };
        // Objects may have moved between the looks.
        stats.live = inuse.saturating_sub(stats.in_sheaves + stats.waiting);
        stats.slabs = slabs;
        stats.slab_bytes = slabs * self.shape.order.bytes();
        // ORDERING: Relaxed: numbers for statistics.
        let read = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        let counts = &self.counts;
        stats.sheaves_made = read(&counts.sheaves_made);
        stats.sheaves_dropped = read(&counts.sheaves_dropped);
        stats.prefills = read(&counts.prefills);
        stats.prefills_ready = read(&counts.prefills_ready);
        stats.prefills_oversize = read(&counts.prefills_oversize);
        stats.frees_deferred = read(&counts.deferred);
        stats.retires_refused = read(&counts.refused);
        stats.retires_over_limit = read(&counts.over_limit);
        stats.meta_bytes = self.sheaves.0.bytes() + self.descriptors.0.bytes();
        stats
    }
}
