//! Objects set aside for one caller, who then cannot fail to get them (H12).
//!
//! Source: Linux `mm/slub.c` (6.18), `kmem_cache_prefill_sheaf` (facts only). Why a chain of ordinary sheaves and not one large
//! array: sheaves come from the pool as they are, and go to slot, barn or slabs as they are.
//!
//! # Invariants
//! - I1. The objects are out of their slabs and in no place that others look at: they count as live.
//! - I2. If `head` has no objects, `rest` has none. Sheaves in `rest` have objects.

use super::{Inner, RawCache};
use crate::sheaf::{Sheaf, SheafList};
use crate::slabs::Dying;
use crate::stats::Event;

use core::fmt;
use core::panic::Location;
use core::ptr::NonNull;
use pagealloc::{AllocError, Attempt, PageAlloc};
use rcu_core::GracePeriod;
use rcu_core::cpu::Cpus;

/// Objects set aside by [`RawCache::prefill`]. What is left when it is dropped goes back to the cache, without waiting.
#[doc(alias = "slab_sheaf")]
pub struct RawPrefilled<'a, C: Cpus, P: PageAlloc, G: GracePeriod> {
    cache: &'a RawCache<C, P, G>,
    head: Option<Sheaf>,
    rest: SheafList,
    /// Who asked for it.
    by: &'static Location<'static>,
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> RawCache<C, P, G> {
    /// Sets at least `objects` objects aside: as many [`pop`](RawPrefilled::pop)s will not fail, wait, or take a lock. More than a sheaf
    /// holds are a chain of sheaves.
    ///
    /// # Errors
    /// If not enough memory can be had within `attempt`; what was got has been given back.
    ///
    /// ```
    /// # use core::alloc::Layout;
    /// # use pagealloc::{Attempt, Mmap, Zone};
    /// # use rcu_core::{NoReaders, cpu::Threads};
    /// # let zone: &'static _ = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    /// let config = slab::CacheConfig::new("node", Layout::new::<[u64; 4]>());
    /// let cache = slab::RawCache::new(config, Threads, zone, NoReaders)?;
    /// // Before the lock is taken, under which nothing may fail:
    /// let mut nodes = cache.prefill(3, Attempt::MayGrow)?;
    /// // Under the lock:
    /// let node = nodes.pop().expect("three were set aside");
    /// # // SAFETY: the object came from this cache, and nobody else knows it.
    /// # unsafe { cache.free(node) };
    /// # Ok::<(), Box<dyn core::error::Error>>(())
    /// ```
    #[track_caller]
    #[doc(alias = "kmem_cache_prefill_sheaf")]
    pub fn prefill(
        &self,
        objects: usize,
        attempt: Attempt,
    ) -> Result<RawPrefilled<'_, C, P, G>, AllocError> {
        let mut prefilled = RawPrefilled {
            cache: self,
            head: None,
            rest: SheafList::new(),
            by: Location::caller(),
        };
        prefilled.refill(objects, attempt)?;
        Ok(prefilled)
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> RawPrefilled<'_, C, P, G> {
    /// How many objects there are: that many pops will not fail.
    #[must_use]
    #[doc(alias = "kmem_cache_sheaf_size")]
    pub fn len(&self) -> usize {
        self.head.as_ref().map_or(0, Sheaf::len) + self.rest.objects()
    }

    /// Whether there are no objects.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes an object; its contents are unspecified. It is freed as any other of the cache. Never fails while [`Self::len`] is not zero, never
    /// waits and takes no lock that somebody may hold; in any context.
    #[track_caller]
    #[doc(alias = "kmem_cache_alloc_from_sheaf")]
    pub fn pop(&mut self) -> Option<NonNull<u8>> {
        loop {
            if let Some(object) = self.head.as_mut().and_then(Sheaf::pop) {
                let inner = self.cache.inner();
                if inner.shape.is_checked() {
                    inner.hand_on(object, Location::caller());
                }
                inner.reveal(object);
                return Some(object);
            }
            let next = self.rest.pop_front()?;
            if let Some(emptied) = self.head.replace(next) {
                self.cache.inner().drop_sheaf(emptied);
            }
        }
    }

    /// Sees to it that there are at least `objects` objects.
    ///
    /// # Errors
    /// If not enough memory can be had within `attempt`; what there is stays.
    #[doc(alias = "kmem_cache_refill_sheaf")]
    pub fn refill(&mut self, objects: usize, attempt: Attempt) -> Result<(), AllocError> {
        let inner = self.cache.inner();
        let missing = objects.saturating_sub(self.len());
        if missing == 0 {
            return Ok(());
        }
        inner.settle_deferred(attempt);
        let ready = inner.take_ready(attempt);
        inner.tally(match &ready {
            _ if objects > inner.shape.sheaf_cap as usize => Event::PrefillOversize,
            Some(sheaf) if sheaf.len() >= missing => Event::PrefillFast,
            _ => Event::PrefillSlow,
        });
        if let Some(sheaf) = ready {
            self.add(sheaf);
        }
        while self.len() < objects {
            let sheaf = match inner.take_ready(attempt) {
                Some(sheaf) => sheaf,
                None => self.fill_one(objects - self.len(), attempt)?,
            };
            self.add(sheaf);
        }
        Ok(())
    }

    /// A sheaf of objects from the slabs or, failing those, of at most `want` from wherever the cache has some.
    fn fill_one(&self, want: usize, attempt: Attempt) -> Result<Sheaf, AllocError> {
        let inner = self.cache.inner();
        let mut vessel = inner.empty_sheaf(attempt)?;
        let is_short = inner.shape.is_checked() || inner.refill(&mut vessel, attempt).is_err();
        if is_short {
            while vessel.len() < want.min(vessel.cap()) {
                match self.alloc_one(attempt) {
                    Ok(object) => {
                        let pushed = vessel.push(object);
                        debug_assert!(pushed, "an empty sheaf has room");
                    }
                    Err(error) if vessel.is_empty() => {
                        inner.drop_sheaf(vessel);
                        return Err(error);
                    }
                    Err(_) => break,
                }
            }
        }
        Ok(vessel)
    }

    /// An object from wherever the cache has one. In a cache that checks, it is allocated by whoever prefills.
    fn alloc_one(&self, attempt: Attempt) -> Result<NonNull<u8>, AllocError> {
        let inner = self.cache.inner();
        if inner.shape.is_checked() {
            inner.alloc_checked(attempt, self.by)
        } else {
            self.cache.alloc_attempt(attempt)
        }
    }

    fn add(&mut self, sheaf: Sheaf) {
        // INVARIANT: I2: it has objects, and an empty `head` is left to the next pop.
        debug_assert!(!sheaf.is_empty(), "I2: no objects in a filled sheaf");
        self.rest.push_front(sheaf);
    }

    /// Gives back what is left, as dropping does: to the slot as its spare if that has none, else to the barn, else to the slabs.
    #[doc(alias = "kmem_cache_return_sheaf")]
    pub fn give_back(self) {
        drop(self);
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Drop for RawPrefilled<'_, C, P, G> {
    fn drop(&mut self) {
        let inner = self.cache.inner();
        if let Some(sheaf) = self.head.take() {
            inner.take_back(sheaf, self.by);
        }
        while let Some(sheaf) = self.rest.pop_front() {
            inner.take_back(sheaf, self.by);
        }
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> fmt::Debug for RawPrefilled<'_, C, P, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawPrefilled")
            .field("cache", &self.cache)
            .field("len", &self.len())
            .finish()
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Inner<C, P, G> {
    /// A sheaf with objects that slot or barn have ready.
    fn take_ready(&self, attempt: Attempt) -> Option<Sheaf> {
        if self.shape.is_checked() {
            return None;
        }
        if let Some(local) = self.local()
            // SAFETY: the slot is the caller's, from `current` just now.
            && let Some(mut slot) = unsafe { local.cell.try_enter() }
        {
            let own = self.own_sheaf(&mut slot);
            return own.or_else(|| {
                let mut stock = self.barn.0.lock(attempt)?;
                self.barn_sheaf(&mut slot, &mut stock, self.number_of(local))
            });
        }
        self.barn.0.lock(attempt)?.take_any()
    }

    /// A sheaf without objects, from the barn or the pool.
    fn empty_sheaf(&self, attempt: Attempt) -> Result<Sheaf, AllocError> {
        let kept = self.barn.0.lock(attempt).and_then(|mut s| s.take_empty());
        kept.map_or_else(|| self.new_sheaf(attempt), Ok)
    }

    /// Takes back a sheaf that was a caller's, set aside `by` whom. Never waits.
    fn take_back(&self, mut sheaf: Sheaf, by: &'static Location<'static>) {
        const ATTEMPT: Attempt = Attempt::TryLock;
        if self.shape.is_checked() {
            while let Some(object) = sheaf.pop() {
                self.free_checked(object, ATTEMPT, by);
            }
            return self.stow(sheaf, ATTEMPT, &mut Dying::default());
        }
        let mut rest = Some(self.hide_ripe(sheaf));
        if let Some(local) = self.local()
            // SAFETY: the slot is the caller's, from `current` just now.
            && let Some(mut slot) = unsafe { local.cell.try_enter() }
            && slot.spare.is_none()
        {
            slot.spare = rest.take();
        }
        if let Some(sheaf) = rest {
            let mut dying = Dying::default();
            self.stow(sheaf, ATTEMPT, &mut dying);
            self.bury(dying, ATTEMPT);
        }
    }
}
