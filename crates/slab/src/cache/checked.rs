//! The way of an object through a cache that looks at each of them.
//!
//! # Life of an object
//! In its slab (free) → [`Inner::alloc_checked`] → its user (live) → (free) the quarantine, where there is one → its slab; or → (retire)
//! `rcu` of a slot, its line, the barn (retired) → with its sheaf, after the grace period, [`Inner::put_home`] → the quarantine, its slab.
//! Nothing is handed out from sheaves: what is let go into the barn goes home from there at once (`trim_barn`). What is set aside
//! ([`RawPrefilled`](super::RawPrefilled)) is live, and whoever prefilled has it until a pop. A free that meets a lock claims its object at once,
//! and leaves it with the deferred.
//!
//! # Invariants
//! - I1. `main` and `spare` are vacant, and `rcu` looks full, whenever a local lock is left: the fast paths miss.
//! - I2. An object's state in its frame is live while a user has it or it is set aside, retired while it is in a slot's sheaf, free otherwise.
//!
//! # Contexts
//! Lock order: barn → quarantine → slabs. Objects are looked at and filled under these two: a broken one ends the program there,
//! and nothing else is called. `retire` needs the slabs lock to find the object's slab; it gives the object back if that is taken.
//!
//! # Manual poisoning (AddressSanitizer)
//! Not done. The calls would go where an object changes hands: unpoison in `alloc_checked` before `hand_out` looks at it, and poison it
//! in `give_back` and `put_home` after `claim` and `come_home` have filled it (for birth: in `birth`). What is read of an object in
//! between, zones and words, must be unpoisoned around `Checked`'s calls, or left out of what is poisoned.

use super::{Inner, RawCache};
use crate::checks::{Checked, Move, Quarantine};
use crate::leaks::LeakReport;
use crate::pool::lock;
use crate::slabs::{Dying, Slab, Slabs, expect_object};
use crate::stats::Event;
use core::mem::MaybeUninit;
use core::panic::Location;
use core::ptr::NonNull;
use pagealloc::{AllocError, Attempt, PageAlloc};
use rcu_core::GracePeriod;
use rcu_core::cpu::{Cpus, SpinGuard};

impl<C: Cpus, P: PageAlloc, G: GracePeriod> RawCache<C, P, G> {
    /// Which objects users have, and with [`Checks::OWNER`](crate::Checks::OWNER) who allocated them.
    ///
    /// Exact when nobody else uses the cache; without any check of each object, a number only.
    ///
    /// # Complexity
    /// Every object is looked at, under the lock of the slabs.
    pub fn leak_report(&self) -> LeakReport {
        self.inner().leak_report()
    }

    /// Ends the program if the cache checks its objects, and `object` is not one that a user has. Looks as far as `attempt` goes.
    #[cfg(feature = "checks")]
    #[track_caller]
    pub(crate) fn expect_live(&self, object: NonNull<u8>, attempt: Attempt) {
        let inner = self.inner();
        if inner.shape.is_checked()
            && let Some(mut slabs) = lock(&inner.slabs.0, attempt)
        {
            let found = slabs.locate(inner.identity(), &inner.shape, &inner.pages, object);
            inner.checked(found).expect_live(Location::caller());
        }
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Inner<C, P, G> {
    fn checked(&self, object: NonNull<u8>) -> Checked<'_> {
        // SAFETY: objects come here from a slab of this cache, by its base; the slab stays while one is out of it, and while
        // the slabs lock is held.
        unsafe { Checked::new(&self.shape, object) }
    }

    /// Makes the frames of a slab that is in no list yet.
    pub(super) fn birth(&self, slab: &Slab) {
        if !self.shape.is_checked() {
            return;
        }
        for index in 0..self.shape.nr_objects {
            // SAFETY: the slab has so many.
            let object = unsafe { slab.object(&self.shape, index) };
            let checked = self.checked(object);
            // SAFETY: the slab is this call's alone.
            unsafe { checked.birth() };
        }
    }

    /// Allocates from the slabs, whatever waits ripe brought there first.
    pub(super) fn alloc_checked(
        &self,
        attempt: Attempt,
        by: &'static Location<'static>,
    ) -> Result<NonNull<u8>, AllocError> {
        if self.let_one_go(attempt) {
            self.trim_barn(attempt);
        }
        let mut born: Option<NonNull<Slab>> = None;
        // Once: what cannot be brought home now, because the caller interrupted who holds the lock, cannot be later either.
        let mut may_go_home = true;
        loop {
            let mut object = [MaybeUninit::uninit()];
            let got = {
                let Some(mut slabs) = lock(&self.slabs.0, attempt) else {
                    self.unborn(born, attempt);
                    return Err(AllocError::Contended);
                };
                if let Some(slab) = born.take() {
                    // SAFETY: the descriptor came from `new_slab`.
                    unsafe { slabs.add(slab, &self.shape) };
                }
                slabs.refill(&self.shape, &mut object)
            };
            if got > 0 {
                // SAFETY: `refill` wrote it.
                let object = unsafe { object[0].assume_init() };
                self.checked(object).hand_out(by);
                return Ok(object);
            }
            if core::mem::take(&mut may_go_home) && self.let_orphans_go(attempt) {
                continue;
            }
            match self.new_slab(attempt) {
                Ok(slab) => born = Some(slab),
                // Memory is short: what is kept back has to serve.
                Err(error) => {
                    self.end_quarantine(attempt).ok_or(error)?;
                }
            }
        }
    }

    /// Lets the eldest sheaf of the caller's line go, if it is ripe.
    fn let_one_go(&self, attempt: Attempt) -> bool {
        let Some(local) = self.local() else {
            return false;
        };
        // SAFETY: the slot is the caller's, from `current` just now.
        let Some(mut slot) = (unsafe { local.cell.try_enter() }) else {
            return false;
        };
        slot.counts.alloc_misses = slot.counts.alloc_misses.wrapping_add(1);
        let Some(mut stock) = self.barn.0.lock(attempt) else {
            return false;
        };
        self.flush_line(&mut slot, &mut stock, 1) > 0
    }

    /// Brings home what the barn has that is ripe, and says whether there was any.
    fn let_orphans_go(&self, attempt: Attempt) -> bool {
        let Some(mut stock) = self.barn.0.lock(attempt) else {
            return false;
        };
        self.adopt_ripe(&mut stock);
        let any = stock.objects() > 0;
        drop(stock);
        if any {
            self.trim_barn(attempt);
        }
        any
    }

    /// Both locks under which objects go home; `None` if they are not to be had.
    pub(super) fn home(
        &self,
        attempt: Attempt,
    ) -> Option<(SpinGuard<'_, Quarantine>, SpinGuard<'_, Slabs>)> {
        let kept = lock(&self.quarantine.0, attempt)?;
        let slabs = lock(&self.slabs.0, attempt)?;
        Some((kept, slabs))
    }

    /// Frees an object.
    pub(super) fn free_checked(
        &self,
        object: NonNull<u8>,
        attempt: Attempt,
        by: &'static Location<'static>,
    ) {
        let mut dying = Dying::default();
        if let Some((mut kept, mut slabs)) = self.home(attempt) {
            let found = slabs.locate(self.identity(), &self.shape, &self.pages, object);
            self.checked(found).claim(Move::Free, by);
            self.give_back(found, &mut kept, &mut slabs, &mut dying);
        } else {
            expect_object(self.identity(), &self.shape, &self.pages, object);
            self.checked(object).claim(Move::Free, by);
            self.defer(object);
        }
        self.count(|counts| counts.free_misses = counts.free_misses.wrapping_add(1));
        self.bury(dying, attempt);
    }

    /// Notes that an object which was set aside goes to a user.
    pub(super) fn hand_on(&self, object: NonNull<u8>, by: &'static Location<'static>) {
        self.checked(object).hand_on(by);
    }

    /// Claims an object that is about to wait, and finds it by its slab; `None` if the lock is not to be had.
    pub(super) fn claim_retired(
        &self,
        object: NonNull<u8>,
        attempt: Attempt,
        deed: Move,
        by: &'static Location<'static>,
    ) -> Option<NonNull<u8>> {
        let mut slabs = lock(&self.slabs.0, attempt)?;
        let found = slabs.locate(self.identity(), &self.shape, &self.pages, object);
        self.checked(found).claim(deed, by);
        Some(found)
    }

    /// The object could not be retired after all.
    pub(super) fn unclaim(&self, found: NonNull<u8>) {
        self.checked(found).unclaim();
    }

    /// Takes objects home whose grace period is over: all or, if a lock is not to be had, none.
    pub(super) fn put_home(
        &self,
        objects: &[NonNull<u8>],
        attempt: Attempt,
        dying: &mut Dying,
    ) -> bool {
        let Some((mut kept, mut slabs)) = self.home(attempt) else {
            return false;
        };
        for &object in objects {
            self.checked(object).come_home();
            self.give_back(object, &mut kept, &mut slabs, dying);
        }
        true
    }

    /// Keeps a free object back, where there is a quarantine, and puts the one in its slab that has to go for it.
    pub(super) fn give_back(
        &self,
        object: NonNull<u8>,
        kept: &mut Quarantine,
        slabs: &mut Slabs,
        dying: &mut Dying,
    ) {
        if let Some(mut eldest) = kept.swap(object) {
            let eldest = core::slice::from_mut(&mut eldest);
            slabs.put(self.identity(), &self.shape, &self.pages, eldest, dying);
        }
    }

    /// Puts everything that is kept back into the slabs, and says how many pages that gave back; `None` if nothing was.
    pub(super) fn end_quarantine(&self, attempt: Attempt) -> Option<usize> {
        let mut dying = Dying::default();
        let mut ended = 0;
        if let Some((mut kept, mut slabs)) = self.home(attempt) {
            while let Some(mut object) = kept.pop() {
                let object = core::slice::from_mut(&mut object);
                slabs.put(
                    self.identity(),
                    &self.shape,
                    &self.pages,
                    object,
                    &mut dying,
                );
                ended += 1;
            }
        }
        let pages = self.bury(dying, attempt) * self.shape.order.pages();
        (ended > 0).then(|| {
            self.tally(Event::FlushOther);
            pages
        })
    }

    /// Changes the counters of the caller's slot, if that is to be had.
    fn count(&self, change: impl FnOnce(&mut super::slot::Counts)) {
        if let Some(local) = self.local()
            // SAFETY: the slot is the caller's, from `current` just now.
            && let Some(mut slot) = unsafe { local.cell.try_enter() }
        {
            change(&mut slot.counts);
        }
    }

    pub(super) fn leak_report(&self) -> LeakReport {
        let mut report = LeakReport::new(&self.shape);
        if !self.shape.is_checked() {
            report.count(self.stats().live);
            return report;
        }
        let mut slabs = self.slabs.0.lock();
        slabs.each_out(&self.shape, |object| {
            let checked = self.checked(object);
            if checked.is_live() {
                report.add(object, checked.allocated_by());
            }
        });
        drop(slabs);
        report
    }
}
