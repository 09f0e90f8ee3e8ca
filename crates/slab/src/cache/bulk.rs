//! Many objects in one call.

use super::RawCache;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use pagealloc::{AllocError, Attempt, PageAlloc};
use rcu_core::GracePeriod;
use rcu_core::cpu::Cpus;

impl<C: Cpus, P: PageAlloc, G: GracePeriod> RawCache<C, P, G> {
    /// Fills `out` with objects: all of it or nothing.
    ///
    /// # Errors
    /// If not enough memory can be had within `attempt`; what was got has been freed again, and `out` holds nothing.
    #[track_caller]
    #[doc(alias = "kmem_cache_alloc_bulk")]
    pub fn alloc_bulk(
        &self,
        out: &mut [MaybeUninit<NonNull<u8>>],
        attempt: Attempt,
    ) -> Result<(), AllocError> {
        let mut got = 0;
        while got < out.len() {
            got += self.pop_many(&mut out[got..]);
            let Some(place) = out.get_mut(got) else {
                break;
            };
            match self.inner().alloc_slow(attempt) {
                Ok(object) => {
                    place.write(object);
                    got += 1;
                }
                Err(error) => {
                    for place in &out[..got] {
                        // SAFETY: the first `got` places were written above.
                        let object = unsafe { place.assume_init() };
                        // SAFETY: the object came from this cache just now; `attempt` is right where the caller is.
                        unsafe { self.free_attempt(object, attempt) };
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn pop_many(&self, out: &mut [MaybeUninit<NonNull<u8>>]) -> usize {
        let Some(local) = self.local() else {
            return 0;
        };
        // SAFETY: the slot is the caller's, from `current` just now.
        match unsafe { local.cell.try_enter() } {
            Some(mut slot) => {
                let got = slot.main.pop_many(out);
                for place in &out[..got] {
                    // SAFETY: `pop_many` wrote so many.
                    self.inner().reveal(unsafe { place.assume_init() });
                }
                got
            }
            None => 0,
        }
    }

    /// Frees `objects` for reuse at once; they may be reordered. What the slot's sheaves cannot hold goes to the barn a whole
    /// sheaf at a time, or to the slabs under one hold of their lock.
    ///
    /// # Safety
    /// As for [`Self::free`], for each of them; they differ from each other.
    ///
    /// ```
    /// # use core::alloc::Layout;
    /// # use pagealloc::{Attempt, Mmap, Zone};
    /// # use rcu_core::{NoReaders, cpu::Threads};
    /// # use slab::{CacheConfig, RawCache};
    /// # let zone: &'static _ = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    /// # let config = CacheConfig::new("example", Layout::new::<[u64; 4]>());
    /// # let cache = RawCache::new(config, Threads, zone, NoReaders).unwrap();
    /// let mut objects = [const { core::mem::MaybeUninit::uninit() }; 20];
    /// cache.alloc_bulk(&mut objects, Attempt::MayGrow).unwrap();
    /// // SAFETY: all are there.
    /// let mut objects = objects.map(|object| unsafe { object.assume_init() });
    /// // SAFETY: from this cache, different from each other, and nobody else has them.
    /// unsafe { cache.free_bulk(&mut objects) };
    /// ```
    #[track_caller]
    #[doc(alias = "kmem_cache_free_bulk")]
    pub unsafe fn free_bulk(&self, objects: &mut [NonNull<u8>]) {
        self.inner().hide_all(objects);
        let mut rest = &objects[..];
        while let Some((&next, after)) = rest.split_first() {
            let pushed = self.push_many(rest);
            if pushed > 0 {
                rest = &rest[pushed..];
                continue;
            }
            // Turns the slot's sheaves over and makes room for more, or goes to the slab.
            self.free_slow(next, Attempt::NoWait);
            rest = after;
        }
    }

    fn push_many(&self, objects: &[NonNull<u8>]) -> usize {
        let Some(local) = self.local() else {
            return 0;
        };
        // SAFETY: the slot is the caller's, from `current` just now.
        match unsafe { local.cell.try_enter() } {
            Some(mut slot) => slot.main.push_many(objects),
            None => 0,
        }
    }
}
