//! Reaching into every slot: barrier, the monitor's reaping, shrinking, and a slot's end.
//!
//! # Why nothing slips through a barrier
//! It visits *every* slot that ever held a sheaf, whether it looks empty or not, and the orphans last (T15). At each moment a waiting
//! sheaf is in its slot's cell or among the orphans (I1 of the cache): sealing, recycling, letting go and orphaning each happen
//! inside the local lock that the barrier takes. So what was retired before the barrier is found in `rcu`, in a line, or among the
//! orphans, or is free already.

use super::slot::SlotState;
use super::{Inner, RawCache};
use crate::barn::{Stock, later};
use crate::sheaf::{Sheaf, SheafList};
use crate::slabs::Dying;
use pagealloc::{Attempt, PageAlloc, PageTag};
use rcu_core::GracePeriod;
use rcu_core::cpu::{Cpus, Slot};

impl<C: Cpus, P: PageAlloc, G: GracePeriod> RawCache<C, P, G> {
    /// Waits until every object that was retired before this call, on any slot, is free. Not in a read section.
    #[doc(alias = "kvfree_rcu_barrier_on_cache")]
    #[doc(alias = "flush_rcu_sheaves_on_cache")]
    pub fn barrier(&self) {
        self.inner().barrier();
    }

    /// Frees what needs no waiting for, on all slots, and asks for a grace period if something is left: the monitor's tick. Says how many
    /// retired objects still wait.
    ///
    /// A sheaf that is not full is sealed at the second call that finds it so; sheaves that are ripe are let go on slots that have not
    /// missed an allocation since the last call (others will consume them themselves). Never waits; slots that are busy are left for
    /// the next call, and count as one object.
    pub fn reap(&self) -> usize {
        self.inner().reap()
    }

    /// Empties all sheaves that need no waiting for into the slabs and gives all empty slabs back. Says how many pages that were.
    #[doc(alias = "kmem_cache_shrink")]
    pub fn shrink(&self) -> usize {
        self.inner().shrink()
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Inner<C, P, G> {
    /// Lets at most `most` ripe sheaves go from the slot's line to the barn, inside both locks, and says how many.
    pub(super) fn flush_line(&self, slot: &mut SlotState, stock: &mut Stock, most: usize) -> usize {
        let mut gone = 0;
        while gone < most
            && let Some(ripe) = slot.take_ripe(&self.gp)
        {
            self.count_let_go(ripe.len());
            stock.add_full(ripe);
            gone += 1;
        }
        gone
    }

    fn seal(&self, slot: &mut SlotState) {
        let sealed = slot.seal(&self.gp);
        self.count_waiting(sealed);
    }

    fn adopt_ripe(&self, stock: &mut Stock) {
        let objects = stock.adopt_ripe(&self.gp);
        self.count_let_go(objects);
    }

    pub(super) fn barrier(&self) {
        let mut last = None;
        for local in self.used() {
            let mut slot = local.cell.visit();
            self.seal(&mut slot);
            last = later(last, slot.line.last_cookie());
        }
        last = later(last, self.barn.0.enter().latest_orphan());
        // Nothing waited anywhere: what was retired before is free already.
        let Some(cookie) = last else {
            return;
        };
        self.gp.wait(cookie);
        for local in self.used() {
            let mut slot = local.cell.visit();
            let all = slot.line.sheaves();
            self.flush_line(&mut slot, &mut self.barn.0.enter(), all);
        }
        self.adopt_ripe(&mut self.barn.0.enter());
        self.trim_barn(Attempt::NoWait);
    }

    fn reap(&self) -> usize {
        const ATTEMPT: Attempt = Attempt::TryLock;
        let mut waiting = 0;
        let mut is_unripe = false;
        for local in self.used() {
            let Some(mut slot) = local.cell.try_visit() else {
                waiting += 1;
                continue;
            };
            let tick = slot.tick();
            if tick.seal {
                self.seal(&mut slot);
            }
            if tick.flush
                && let Some(mut stock) = self.barn.0.lock(ATTEMPT)
            {
                let all = slot.line.sheaves();
                self.flush_line(&mut slot, &mut stock, all);
            }
            waiting += slot.rcu.len() + slot.line.objects();
            is_unripe |= (slot.line.last_cookie()).is_some_and(|c| !self.gp.poll(c));
        }
        match self.barn.0.lock(ATTEMPT) {
            Some(mut stock) => {
                self.adopt_ripe(&mut stock);
                waiting += stock.orphans.objects();
                is_unripe |= !stock.orphans.is_empty();
            }
            None => waiting += 1,
        }
        self.trim_barn(ATTEMPT);
        if is_unripe {
            self.gp.start();
            self.gp.drive();
        }
        waiting
    }

    fn shrink(&self) -> usize {
        for local in self.used() {
            let mut slot = local.cell.visit();
            let mut stock = self.barn.0.enter();
            let all = slot.line.sheaves();
            self.flush_line(&mut slot, &mut stock, all);
            self.evict(&mut slot, &mut stock);
        }
        self.empty_barn();
        let mut dying = Dying::default();
        self.slabs.0.lock().take_empty(&mut dying);
        let slabs = self.bury(dying, Attempt::NoWait);
        slabs * self.shape.order.pages() + self.sheaves.0.trim(&self.pages)
    }

    /// Takes the slot's sheaves that do not wait to the barn, whatever that has.
    fn evict(&self, slot: &mut SlotState, stock: &mut Stock) {
        let idle = if slot.rcu.len() == 0 {
            slot.rcu.uninstall()
        } else {
            None
        };
        let sheaves: [Option<Sheaf>; 3] = [slot.main.uninstall(), slot.spare.take(), idle];
        for sheaf in sheaves.into_iter().flatten() {
            if !sheaf.is_empty() {
                stock.add_full(sheaf);
            } else if let Err(sheaf) = stock.put_empty(sheaf) {
                self.drop_sheaf(sheaf);
            }
        }
    }

    /// Puts everything in the barn that does not wait back into slabs and pool.
    fn empty_barn(&self) {
        let mut dying = Dying::default();
        let mut full = SheafList::new();
        {
            let mut stock = self.barn.0.enter();
            self.adopt_ripe(&mut stock);
            while let Some(sheaf) = stock.take_full(0) {
                full.push_back(sheaf);
            }
            stock.forget();
            while let Some(sheaf) = stock.take_empty() {
                self.drop_sheaf(sheaf);
            }
        }
        while let Some(sheaf) = full.pop_front() {
            match self.flush(sheaf, Attempt::NoWait, &mut dying) {
                Ok(emptied) => self.drop_sheaf(emptied),
                Err(sheaf) => self.barn.0.leave(sheaf),
            }
        }
        self.bury(dying, Attempt::NoWait);
    }

    /// Brings every object that is not with a user back into its slab, and says how many are out. Waits for grace periods.
    pub(super) fn quiesce(&self) -> usize {
        self.barrier();
        for local in self.used() {
            let mut slot = local.cell.visit();
            self.evict(&mut slot, &mut self.barn.0.enter());
        }
        self.empty_barn();
        self.slabs.0.lock().inuse()
    }

    /// Leaves the pages of slabs with objects to those who have the objects, for ever; the descriptors come home.
    pub(super) fn forget_used(&self) {
        let mut lost = Dying::default();
        self.slabs.0.lock().take_used(&mut lost);
        while let Some(slab) = lost.pop() {
            // SAFETY: the slab is on no list, so this call has its descriptor alone.
            let base = unsafe { slab.as_ref() }.base;
            // SAFETY: the block came from `pages` with this order, and is the cache's.
            unsafe { self.pages.set_tag(base, self.shape.order, PageTag::NONE) };
            // SAFETY: the descriptor came from this pool; the tag does not lead to it any more.
            unsafe { self.descriptors.0.put(slab.cast()) };
        }
    }

    /// Hands over what a slot holds that goes offline: what waits to the orphans, the rest to the barn.
    fn hand_over(&self, slot: Slot) {
        {
            let mut slot = self.slot(slot).cell.visit();
            self.seal(&mut slot);
            let mut stock = self.barn.0.enter();
            while let Some(sheaf) = slot.line.pop_front() {
                stock.orphans.push_back(sheaf);
            }
            self.evict(&mut slot, &mut stock);
        }
        self.trim_barn(Attempt::NoWait);
    }

    /// The offline hook.
    ///
    /// # Safety
    /// 1. `inner` leads to the cache whose hook this is, which lives.
    /// 2. The caller owns `slot`.
    pub(super) unsafe fn offline(inner: *const (), slot: Slot) -> bool {
        // SAFETY: debt 1: the hook is removed before the cache ends.
        let this = unsafe { &*inner.cast::<Self>() };
        this.hand_over(slot);
        true
    }
}
