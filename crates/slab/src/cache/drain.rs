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
use crate::pool::lock;
use crate::sheaf::Sheaf;
use crate::slabs::Dying;
use crate::stats::Event;
use pagealloc::{Attempt, PageAlloc, PageTag};
use rcu_core::GracePeriod;
use rcu_core::cpu::{Cpus, Slot};

impl<C: Cpus, P: PageAlloc, G: GracePeriod> RawCache<C, P, G> {
    /// Waits until every object that was retired before this call, on any slot, is free, and the pages of every slab of a
    /// type-stable cache that was given up before are back or in use again. Not in a read section.
    #[doc(alias = "kvfree_rcu_barrier_on_cache")]
    #[doc(alias = "flush_rcu_sheaves_on_cache")]
    pub fn barrier(&self) {
        self.inner().barrier();
    }

    /// Frees what needs no waiting for, on all slots, and asks for a grace period if something is left: the monitor's tick. Says how many
    /// retired objects still wait, and slabs of a type-stable cache.
    ///
    /// A sheaf that is not full is sealed at the second call that finds it so; sheaves that are ripe are let go on slots that have not
    /// missed an allocation since the last call (others will consume them themselves). Never waits; slots that are busy are left for
    /// the next call, and count as one object.
    pub fn reap(&self) -> usize {
        self.inner().reap()
    }

    /// Gives about `budget` pages of unused memory back, as far as there are so many: empty slabs first, then those that become
    /// empty as the barn's sheaves and then the slots', one after the other, are emptied into them. Stops when there are enough, so that the
    /// last step may give some more. `usize::MAX` is everything. Says how many pages that were.
    ///
    /// Slabs of a type-stable cache wait for a grace period, which this asks for: those that wait count for the budget, though not
    /// as pages given back.
    ///
    /// Nothing is sorted (L13): slabs are kept on lists by quarters of objects out at all times, and refills take from the
    /// fullest first, so that the emptiest have the best chance to become empty.
    #[doc(alias = "kmem_cache_shrink")]
    pub fn shrink(&self, budget: usize) -> usize {
        self.inner().shrink(budget, Attempt::NoWait)
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Inner<C, P, G> {
    /// Lets at most `most` ripe sheaves go from the slot's line to the barn, inside both locks, and says how many.
    pub(super) fn flush_line(&self, slot: &mut SlotState, stock: &mut Stock, most: usize) -> usize {
        let mut gone = 0;
        while gone < most
            && let Some(ripe) = slot.take_ripe(&self.gp)
        {
            let ripe = self.hide_ripe(ripe);
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

    pub(super) fn adopt_ripe(&self, stock: &mut Stock) {
        let objects = stock.adopt_ripe(&self.gp, |objects| self.hide_all(objects));
        self.count_let_go(objects);
    }

    pub(super) fn barrier(&self) {
        self.settle_deferred(Attempt::NoWait);
        let mut last = None;
        // The mutant: what a slot hands over between the two looks is seen by neither.
        if rcu_core::weakened!("t15") {
            last = self.barn.0.enter().latest_orphan();
        }
        for local in self.used() {
            let mut slot = local.cell.visit();
            self.seal(&mut slot);
            last = later(last, slot.line.last_cookie());
        }
        if !rcu_core::weakened!("t15") {
            last = later(last, self.barn.0.enter().latest_orphan());
        }
        last = later(last, self.seal_slabs());
        // Nothing waited anywhere: what was retired before is free already.
        let Some(cookie) = last else {
            self.end_quarantine(Attempt::NoWait);
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
        self.end_quarantine(Attempt::NoWait);
    }

    fn reap(&self) -> usize {
        const ATTEMPT: Attempt = Attempt::TryLock;
        self.settle_deferred(ATTEMPT);
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
                if stock.are_orphans_idle() {
                    self.adopt_ripe(&mut stock);
                }
                waiting += stock.orphans.objects();
                is_unripe |= !stock.orphans.is_empty();
            }
            None => waiting += 1,
        }
        self.trim_barn(ATTEMPT);
        let (_, slabs) = self.bury_all(Dying::default(), ATTEMPT);
        waiting += slabs;
        if is_unripe {
            self.gp.start();
            self.gp.drive();
        }
        waiting
    }

    /// As [`RawCache::shrink`], going as far as `attempt`: at [`Attempt::TryLock`] it passes by what is busy.
    pub(super) fn shrink(&self, budget: usize, attempt: Attempt) -> usize {
        self.settle_deferred(attempt);
        let mut freed = self.bury(Dying::default(), attempt) * self.shape.order.pages();
        freed += self.discard(self.missing(budget, freed, attempt), attempt);
        if self.missing(budget, freed, attempt) > 0 {
            freed = self.empty_barn(budget, freed, attempt);
        }
        for local in self.used() {
            if self.missing(budget, freed, attempt) == 0 {
                break;
            }
            let slot = match attempt {
                Attempt::PcpOnly | Attempt::TryLock => local.cell.try_visit(),
                Attempt::NoWait | Attempt::MayGrow => Some(local.cell.visit()),
            };
            if let Some(mut slot) = slot
                && let Some(mut stock) = self.barn.0.lock(attempt)
            {
                let all = slot.line.sheaves();
                self.flush_line(&mut slot, &mut stock, all);
                self.evict(&mut slot, &mut stock);
            }
            freed = self.empty_barn(budget, freed, attempt);
        }
        if self.missing(budget, freed, attempt) > 0 {
            freed += self.sheaves.0.trim(&self.pages, attempt);
        }
        let (slabs, _) = self.bury_all(Dying::default(), attempt);
        freed + slabs * self.shape.order.pages()
    }

    /// Pages that are missing from `budget`, when `freed` were given back and what waits will be.
    fn missing(&self, budget: usize, freed: usize, attempt: Attempt) -> usize {
        let mut waiting = 0;
        if self.shape.is_stable()
            && let Some(slabs) = lock(&self.slabs.0, attempt)
        {
            waiting = slabs.nr_waiting() * self.shape.order.pages();
        }
        budget.saturating_sub(freed + waiting)
    }

    /// Gives empty slabs of about `budget` pages up, and says how many pages were given back.
    fn discard(&self, budget: usize, attempt: Attempt) -> usize {
        let pages = self.shape.order.pages();
        let mut dying = Dying::default();
        match lock(&self.slabs.0, attempt) {
            Some(mut slabs) => {
                slabs.take_some_empty(&self.shape, budget.div_ceil(pages), &mut dying);
            }
            None => return 0,
        }
        self.bury(dying, attempt) * pages
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

    /// Puts what is in the barn and does not wait back into slabs and pool, until nothing is missing from `budget`; says how many
    /// pages were given back, `freed` included.
    fn empty_barn(&self, budget: usize, mut freed: usize, attempt: Attempt) -> usize {
        let Some(mut stock) = self.barn.0.lock(attempt) else {
            return freed;
        };
        self.adopt_ripe(&mut stock);
        stock.forget();
        while let Some(sheaf) = stock.take_empty() {
            self.drop_sheaf(sheaf);
        }
        drop(stock);
        while let missing @ 1.. = self.missing(budget, freed, attempt) {
            match self.flush_one(attempt) {
                Some(pages) => freed += pages + self.discard(missing, attempt),
                None => break,
            }
        }
        if self.missing(budget, freed, attempt) > 0
            && let Some(pages) = self.end_quarantine(attempt)
        {
            freed += pages;
            freed += self.discard(self.missing(budget, freed, attempt), attempt);
        }
        freed
    }

    /// Puts one sheaf of the barn's back into the slabs, and says how many pages that gave back.
    fn flush_one(&self, attempt: Attempt) -> Option<usize> {
        let mut dying = Dying::default();
        {
            let mut stock = self.barn.0.lock(attempt)?;
            let sheaf = stock.take_any()?;
            self.tally(Event::FlushOther);
            // Inside the barn's lock, as in `trim_barn` (T15).
            match self.flush(sheaf, attempt, &mut dying) {
                Ok(emptied) => self.drop_sheaf(emptied),
                Err(sheaf) => {
                    stock.add_full(sheaf);
                    return None;
                }
            }
        }
        Some(self.bury(dying, attempt) * self.shape.order.pages())
    }

    /// Brings every object that is not with a user back into its slab, and says how many are out. Waits for grace periods.
    pub(super) fn quiesce(&self) -> usize {
        self.barrier();
        for local in self.used() {
            let mut slot = local.cell.visit();
            self.evict(&mut slot, &mut self.barn.0.enter());
        }
        self.settle_deferred(Attempt::NoWait);
        self.empty_barn(usize::MAX, 0, Attempt::NoWait);
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
    ///
    /// # Safety
    /// 1. The caller owns `slot`.
    unsafe fn hand_over(&self, slot: Slot) {
        let cell = &self.slot(slot).cell;
        // As its owner if nobody visits: a visit takes a heavy fence, and a thread has as many caches to leave as there are.
        // SAFETY: debt 1.
        if let Some(mut slot) = unsafe { cell.try_enter() } {
            if slot.is_bare() {
                return;
            }
            self.orphan(&mut slot);
        } else {
            self.orphan(&mut cell.visit());
        }
        self.trim_barn(Attempt::NoWait);
    }

    /// Empties a slot into the barn.
    fn orphan(&self, slot: &mut SlotState) {
        self.seal(slot);
        let mut stock = self.barn.0.enter();
        while let Some(sheaf) = slot.line.pop_front() {
            stock.orphans.push_back(sheaf);
        }
        self.evict(slot, &mut stock);
    }

    /// The offline hook.
    ///
    /// # Safety
    /// 1. `inner` leads to the cache whose hook this is, which lives.
    /// 2. The caller owns `slot`.
    pub(super) unsafe fn offline(inner: *const (), slot: Slot) -> bool {
        // SAFETY: debt 1: the hook is removed before the cache ends.
        let this = unsafe { &*inner.cast::<Self>() };
        // SAFETY: debt 2.
        unsafe { this.hand_over(slot) };
        true
    }
}
