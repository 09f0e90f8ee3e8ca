//! Freeing what was taken out, outside of every lock, in rounds that a barrier can wait for.

use super::{Inner, KvSlot};
use crate::block::{Block, Kind, Line};
use crate::budget::Budget;
use crate::doubles::{DoubleRetire, WATCHED};
use crate::freeing::Freeing;
use crate::glue::contained;
use crate::objects::Objects;
use crate::waiting::{Batch, STOCK};
use core::ptr::NonNull;
use pagealloc::{Attempt, Order, PageAlloc, PageReq};
use rcu_core::cpu::Cpus;
use rcu_core::sync::atomic::Ordering;
use rcu_core::{Callback, CbList, Rcu};

/// How many objects linked by heads are gathered before they are freed in bulk.
const GATHER: usize = 64;

impl<L> KvSlot<L> {
    /// How many empty blocks may be kept here now (K7).
    pub(super) fn most_stock(&self) -> usize {
        // ORDERING: Relaxed: a hint.
        match self.back_off.load(Ordering::Relaxed) {
            0 => STOCK,
            1 => 1,
            _ => 0,
        }
    }

    /// The same, for the monitor, whose rounds end the back-off: after a shrinker came by none, then once one, then as many as before.
    pub(super) fn pass_back_off(&self) -> usize {
        let most = self.most_stock();
        // ORDERING: Relaxed: a hint; a shrinker that comes by just now may be forgotten.
        let rounds = self.back_off.load(Ordering::Relaxed);
        if rounds > 0 {
            // ORDERING: Relaxed: as above.
            self.back_off.store(rounds - 1, Ordering::Relaxed);
        }
        most
    }
}

/// Discharges what is being freed, also if that panics.
struct Discharge<'b>(&'b Budget, usize);

impl Drop for Discharge<'_> {
    fn drop(&mut self) {
        self.0.discharge(self.1);
    }
}

/// What a barrier has taken out. Given back if the barrier never gets to free it: its wait panics inside a section.
pub(super) struct Taken<'i, C: Cpus, P: PageAlloc, R: Rcu, O: Objects> {
    inner: &'i Inner<C, P, R, O>,
    pub(super) batch: Batch,
}

impl<'i, C: Cpus, P: PageAlloc, R: Rcu, O: Objects> Taken<'i, C, P, R, O> {
    pub(super) fn new(inner: &'i Inner<C, P, R, O>) -> Self {
        Self {
            inner,
            batch: Batch::new(),
        }
    }

    pub(super) fn into_batch(mut self) -> Batch {
        core::mem::replace(&mut self.batch, Batch::new())
    }
}

impl<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> Drop for Taken<'_, C, P, R, O> {
    fn drop(&mut self) {
        if !self.batch.is_empty() {
            let batch = core::mem::replace(&mut self.batch, Batch::new());
            self.inner.orphans.lock().put_back(batch);
            self.inner.config.watch(false);
        }
    }
}

impl<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> Inner<C, P, R, O> {
    /// Frees a batch whose grace period is over, and gives its blocks back, empty. No lock of a slot is held.
    pub(super) fn free(&self, mut batch: Batch) -> Line {
        let mut empty = Line::new();
        let _freeing = Freeing::begin(self.identity());
        let _discharge = Discharge(&self.budget, batch.charged);
        while let Some(mut block) = batch.blocks.pop() {
            // SAFETY: taken out, so ours.
            let b = unsafe { block.as_mut() };
            debug_assert!(self.rcu.poll(b.cookie), "T2: freed before its grace period");
            self.counters.block_freed(b.nr_uncounted());
            if WATCHED {
                b.for_each(|object| self.doubles.end(object));
            }
            // SAFETY: the block's cookie is done.
            let freed = unsafe { b.free_all(&self.objects) };
            self.counters.panicked(freed.panicked);
            if let Some(object) = freed.double {
                // Who is told may panic; the rest of the batch is freed all the same.
                contained(|| self.found_double(object, freed.doubles, false));
            }
            empty.push(block);
        }
        self.free_heads(batch.heads);
        empty
    }

    /// Discharges so much when it is dropped.
    pub(super) fn discharging(&self, bytes: usize) -> impl Sized + use<'_, C, P, R, O> {
        Discharge(&self.budget, bytes)
    }

    /// Objects that are about to be freed do not wait any more.
    pub(super) fn forget_doubles(&self, objects: &[NonNull<u8>]) {
        if WATCHED {
            objects.iter().for_each(|&object| self.doubles.end(object));
        }
    }

    /// Counts objects that were retired while they waited, `object` one of them, and says so.
    #[cold]
    pub(super) fn found_double(&self, object: NonNull<u8>, n: usize, is_at_once: bool) {
        if self.doubles.count(n) {
            self.config
                .tell_double(&DoubleRetire { object, is_at_once });
        }
    }

    /// Adds blocks for a slot that found none (K7), without waiting for memory (T3).
    pub(super) fn refill(&self, empty: &mut Line, most: usize) {
        let req = PageReq::new(Order::ZERO).attempt(Attempt::NoWait);
        while empty.len() < most {
            let Ok(page) = self.pages.alloc(req) else {
                return;
            };
            // SAFETY: a page of our own, just allocated.
            empty.push(unsafe { Block::init(page, Kind::Small) });
        }
    }

    pub(super) fn free_blocks(&self, mut blocks: Line) {
        while let Some(block) = blocks.pop() {
            // SAFETY: a block is a page of this allocator, empty and ours.
            unsafe { self.pages.free(block.cast::<Block>().cast(), Order::ZERO) };
        }
    }

    /// Frees objects linked by their heads, gathered for bulk where they only want to be freed.
    fn free_heads(&self, mut heads: CbList) {
        let mut gathered = [NonNull::<u8>::dangling(); GATHER];
        let mut n = 0;
        while let Some(head) = heads.pop_front() {
            // SAFETY: a popped head is valid until its object is freed, below.
            match unsafe { head.as_ref() }.callback() {
                Callback::Free(offset) => {
                    // SAFETY: the offset was noted for this head by whoever retired it.
                    gathered[n] = unsafe { offset.object(head) };
                    n += 1;
                    if n == GATHER {
                        // SAFETY: their grace period is over, and they are freed once.
                        unsafe { self.objects.free_bulk(&mut gathered) };
                        n = 0;
                    }
                }
                Callback::Run(func) => {
                    // SAFETY: its grace period is over, and it is run once.
                    self.counters.panicked(contained(|| unsafe { func(head) }));
                }
                _ => unreachable!("a callback is a function or an offset"),
            }
        }
        if n > 0 {
            // SAFETY: their grace period is over, and they are freed once.
            unsafe { self.objects.free_bulk(&mut gathered[..n]) };
        }
    }
}
