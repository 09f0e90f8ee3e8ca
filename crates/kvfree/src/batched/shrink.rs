//! The shrinker: what is given back when pages run short (K12).
//!
//! Source: Linux `kfree_rcu_shrink_count` and `kfree_rcu_shrink_scan`; facts only. Why back off: who fills its stock right after it was
//! drained plays ping-pong with whoever drains (T4).
//!
//! # Contexts
//! May run in the midst of somebody's allocation, whatever that one holds: no foreign code (it is the monitor's, soon), and no lock but by
//! trying it. Nothing here waits for a grace period. What allocates here holds no lock that this takes: a retiring thread asks the
//! page allocator for pages outside of its slot's lock, or at `PcpOnly`, which runs no hook.

use super::{Inner, Kvfree};
use crate::block::{Block, Kind, Line};
use crate::objects::Objects;
use crate::waiting::Batch;
use core::ptr::NonNull;
use pagealloc::{PAGE_SIZE, PageAlloc, PressureHook};
use rcu_core::Rcu;
use rcu_core::cpu::Cpus;
use rcu_core::sync::atomic::Ordering;

impl<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> Kvfree<C, P, R, O> {
    /// How much a shrinker would find: objects that wait in blocks or by their heads, and pages that are kept for blocks to come. And tells
    /// every slot to keep none for [`Config::back_off`](crate::Config::back_off) rounds of the monitor, and then one before it
    /// keeps as many as before. Visits the slots that are not busy.
    #[doc(alias = "kfree_rcu_shrink_count")]
    pub fn shrink_count(&self) -> usize {
        let inner = self.inner();
        let mut count = inner.shared.objects();
        for slot in inner.used_slots() {
            // ORDERING: Relaxed: a hint.
            (slot.back_off).store(inner.config.back_off, Ordering::Relaxed);
            if let Some(waiting) = slot.waiting.try_visit() {
                count += waiting.nr_objects() + waiting.nr_stock();
            }
        }
        let orphans = inner.orphans.try_lock();
        count + orphans.map_or(0, |orphans| orphans.nr_objects())
    }

    /// Gives back about `pages` pages at most: those that are kept for blocks to come, then those of objects that are ripe and run no
    /// foreign code. Hurries grace period and monitor for the rest. Says how many pages that were, without those of
    /// small objects.
    ///
    /// Never waits, but for the locks that freeing takes: not inside of signal handlers.
    #[doc(alias = "kfree_rcu_shrink_scan")]
    pub fn shrink_scan(&self, pages: usize) -> usize {
        let inner = self.inner();
        let mut freed = 0;
        for slot in inner.used_slots() {
            if freed >= pages {
                return freed;
            }
            if let Some(mut waiting) = slot.waiting.try_visit() {
                let stock = waiting.take_stock();
                drop(waiting);
                freed += inner.give_back(stock);
            }
        }
        for slot in inner.used_slots() {
            if freed >= pages {
                return freed;
            }
            if let Some(round) = slot.rounds.begin() {
                let batch = slot.waiting.try_visit().map(|mut waiting| {
                    waiting.seal(&inner.rcu);
                    waiting.take_ripe(&inner.rcu, false)
                });
                freed += batch.map_or(0, |batch| inner.free_and_give_back(batch));
                drop(round);
            }
        }
        // Orphans have no round: a barrier's lock is held while they are freed (I1).
        if let Some(lock) = inner.barrier_lock.try_lock() {
            let batch =
                (inner.orphans.try_lock()).map(|mut orphans| orphans.take_ripe(&inner.rcu, false));
            freed += batch.map_or(0, |batch| inner.free_and_give_back(batch));
            drop(lock);
        }
        inner.objects.reap();
        if freed < pages {
            inner.rcu.start();
            inner.rcu.drive();
            inner.config.watch(true);
        }
        freed
    }

    /// The hook that asks this front end for pages when a zone runs short: [`Self::shrink_count`], then [`Self::shrink_scan`]. Part of the
    /// front end: it stays where it is until that is dropped, and whoever lists it with a zone takes it off before.
    #[must_use]
    #[doc(alias = "register_shrinker")]
    pub fn shrinker(&self) -> NonNull<PressureHook> {
        NonNull::from(&self.inner().pressure)
    }

    /// # Safety
    /// 1. `data` is the `Inner` that the hook lies in.
    pub(super) unsafe fn shrink(data: *const (), pages: usize) -> usize {
        let inner = NonNull::new(data.cast_mut().cast::<Inner<C, P, R, O>>());
        let Some(inner) = inner else { return 0 };
        // Not dropped: it is not the owner's.
        let order = pagealloc::Order::ZERO;
        let this = core::mem::ManuallyDrop::new(Self { inner, order });
        this.shrink_count();
        this.shrink_scan(pages)
    }
}

impl<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> Inner<C, P, R, O> {
    fn give_back(&self, empty: Line) -> usize {
        let pages = empty.len();
        self.free_blocks(empty);
        pages
    }

    fn free_and_give_back(&self, batch: Batch) -> usize {
        let large = batch.blocks.iter().filter(|b| b.kind() == Kind::Large);
        let pages = large.map(Block::bytes).sum::<usize>() / PAGE_SIZE;
        pages + self.give_back(self.free(batch))
    }
}
