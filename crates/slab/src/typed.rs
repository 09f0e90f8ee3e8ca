//! Caches of values of one type.

use crate::cache::{Busy, RawCache, RawPrefilled};
use crate::config::CacheConfig;
use crate::error::CreateError;
use crate::leaks::LeakReport;
use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::mem::{forget, needs_drop};
use core::ptr::NonNull;
use pagealloc::{AllocError, Attempt, PageAlloc};
use rcu_core::GracePeriod;
use rcu_core::cpu::Cpus;

/// A value that found no memory, and why.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AllocFailed<T> {
    /// Why.
    pub error: AllocError,
    /// The value, given back.
    pub value: T,
}

impl<T> fmt::Debug for AllocFailed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AllocFailed")
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Display for AllocFailed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl<T> core::error::Error for AllocFailed<T> {}

/// An object whose value is just dropped. Frees it if that panics: it is nobody's any more.
struct Unwound<'c, C: Cpus, P: PageAlloc, G: GracePeriod> {
    raw: &'c RawCache<C, P, G>,
    object: NonNull<u8>,
    attempt: Attempt,
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Drop for Unwound<'_, C, P, G> {
    fn drop(&mut self) {
        // SAFETY: the debts of `Cache::free`; the value was dropped, as far as it goes.
        unsafe { self.raw.free_attempt(self.object, self.attempt) };
    }
}

/// A cache of `T`s: a typed face over [`RawCache`], and dropped as that is.
pub struct Cache<T, C: Cpus, P: PageAlloc, G: GracePeriod> {
    raw: RawCache<C, P, G>,
    /// The cache takes and gives values of `T`, and stores none of its own.
    _values: PhantomData<fn(T) -> T>,
}

impl<T, C, P, G> Cache<T, C, P, G>
where
    C: Cpus + Send + Sync,
    P: PageAlloc,
    G: GracePeriod + Send + Sync,
{
    /// The configuration of a cache of `T`s, to be adjusted and passed to [`Self::with_config`].
    pub const fn config(name: &'static str) -> CacheConfig {
        CacheConfig::new(name, Layout::new::<T>())
    }

    /// Makes a cache.
    ///
    /// # Errors
    /// See [`RawCache::new`].
    pub fn new(name: &'static str, cpus: C, pages: P, gp: G) -> Result<Self, CreateError>
    where
        C: 'static,
        P: 'static,
        G: 'static,
    {
        Self::with_config(Self::config(name), cpus, pages, gp)
    }

    /// Makes a cache after a configuration from [`Self::config`].
    ///
    /// # Errors
    /// See [`RawCache::new`]; [`CreateError::WrongLayout`] if the configuration's layout is not that of `T`,
    /// [`CreateError::WritesValues`] if it is for a type-stable cache, which is a [`StableCache`](crate::StableCache).
    pub fn with_config(config: CacheConfig, cpus: C, pages: P, gp: G) -> Result<Self, CreateError>
    where
        C: 'static,
        P: 'static,
        G: 'static,
    {
        // SAFETY: what is borrowed for ever outlives a forgotten handle (debt 1).
        unsafe { Self::new_scoped(config, cpus, pages, gp) }
    }

    /// Makes a cache of borrowed parts.
    ///
    /// # Errors
    /// As for [`Self::with_config`].
    ///
    /// # Safety
    /// As for [`RawCache::new_scoped`].
    ///
    /// ```
    /// use pagealloc::{Mmap, Zone};
    /// use rcu_core::{NoReaders, cpu::Threads};
    /// use slab::Cache;
    ///
    /// let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
    /// let config = Cache::<u64, Threads, &Zone<Threads, Mmap>, NoReaders>::config("local");
    /// // SAFETY: destroyed below, before the zone ends.
    /// let cache: Cache<u64, _, _, _> =
    ///     unsafe { Cache::new_scoped(config, Threads, &zone, NoReaders) }.unwrap();
    /// assert!(cache.destroy().is_ok(), "nothing is out");
    /// ```
    pub unsafe fn new_scoped(
        config: CacheConfig,
        cpus: C,
        pages: P,
        gp: G,
    ) -> Result<Self, CreateError> {
        if config.is_stable() {
            return Err(CreateError::WritesValues);
        }
        // SAFETY: the caller's debt.
        let raw = unsafe { RawCache::new_scoped(config, cpus, pages, gp) }?;
        if raw.layout() != Layout::new::<T>() {
            return Err(CreateError::WrongLayout);
        }
        // INVARIANT: objects of `raw` have the layout of `T`.
        Ok(Self {
            raw,
            _values: PhantomData,
        })
    }

    /// Destroys the cache and gives every page back. Waits for grace periods; not in a read section.
    ///
    /// # Errors
    /// Gives the cache back if users still have objects of it.
    pub fn destroy(self) -> Result<(), Busy<Self>> {
        self.raw.destroy().map_err(|busy| Busy {
            live: busy.live,
            pending: busy.pending,
            samples: busy.samples,
            cache: Self {
                raw: busy.cache,
                _values: PhantomData,
            },
        })
    }
}

impl<T, C: Cpus, P: PageAlloc, G: GracePeriod> Cache<T, C, P, G> {
    /// Allocates an object that holds `value`. May make system calls for more pages.
    ///
    /// # Errors
    /// Gives the value back if there is no memory.
    #[inline]
    #[track_caller]
    pub fn alloc(&self, value: T) -> Result<NonNull<T>, AllocFailed<T>> {
        match self.raw.alloc() {
            Ok(object) => {
                let object = object.cast::<T>();
                // SAFETY: the object is this call's, of `T`'s layout.
                unsafe { object.write(value) };
                Ok(object)
            }
            Err(error) => Err(AllocFailed { error, value }),
        }
    }

    /// Sets at least `objects` objects aside for values that then cannot fail to find memory: see [`RawCache::prefill`].
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub fn prefill(
        &self,
        objects: usize,
        attempt: Attempt,
    ) -> Result<Prefilled<'_, T, C, P, G>, AllocError> {
        Ok(Prefilled {
            raw: self.raw.prefill(objects, attempt)?,
            _values: PhantomData,
        })
    }

    /// Drops the value and frees its object for reuse at once, also if the value's drop panics. Not from signal handlers and interrupts.
    ///
    /// # Safety
    /// 1. `object` came from [`Self::alloc`] of this cache, is not used any more, and was neither freed nor retired since.
    /// 2. No reader can still find it (else retire it).
    ///
    /// ```
    /// # use pagealloc::{Attempt, Mmap, Zone};
    /// # use rcu_core::{NoReaders, cpu::Threads};
    /// # use slab::Cache;
    /// # let zone: &'static _ = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    /// # let names = Cache::new("name", Threads, zone, NoReaders).unwrap();
    /// let name = names.alloc(String::from("Ada")).unwrap();
    /// // SAFETY: from this cache, and nobody else has it.
    /// unsafe { names.free(name) }; // drops the string
    /// ```
    #[inline]
    #[track_caller]
    pub unsafe fn free(&self, object: NonNull<T>) {
        // Before a freed value is dropped once more. Without the feature that would cost the fast path a branch.
        #[cfg(feature = "checks")]
        if needs_drop::<T>() {
            self.raw.expect_live(object.cast(), Attempt::NoWait);
        }
        let home = Unwound {
            raw: &self.raw,
            object: object.cast(),
            attempt: Attempt::NoWait,
        };
        // SAFETY: debt 1: initialised and not used any more. No lock of ours is held.
        unsafe { object.drop_in_place() };
        forget(home);
        // SAFETY: debts 1 and 2.
        unsafe { self.raw.free(object.cast()) };
    }

    /// Drops the value and frees its object for reuse, going as far as `attempt`: see [`RawCache::free_attempt`].
    ///
    /// # Safety
    /// As for [`Self::free`]; dropping the value is right in the caller's context, and above [`Attempt::TryLock`] that is no signal
    /// handler or interrupt.
    ///
    /// ```
    /// # use pagealloc::{Attempt, Mmap, Zone};
    /// # use rcu_core::{NoReaders, cpu::Threads};
    /// # use slab::Cache;
    /// # let zone: &'static _ = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    /// # let names = Cache::new("name", Threads, zone, NoReaders).unwrap();
    /// let name = names.alloc([b'A', b'd', b'a']).unwrap();
    /// // SAFETY: from this cache, nobody else has it, and there is nothing to drop.
    /// unsafe { names.free_attempt(name, Attempt::TryLock) };
    /// ```
    #[inline]
    #[track_caller]
    pub unsafe fn free_attempt(&self, object: NonNull<T>, attempt: Attempt) {
        // As in `free`.
        #[cfg(feature = "checks")]
        if needs_drop::<T>() {
            self.raw.expect_live(object.cast(), attempt);
        }
        let home = Unwound {
            raw: &self.raw,
            object: object.cast(),
            attempt,
        };
        // SAFETY: the caller's debts, as in `free`.
        unsafe { object.drop_in_place() };
        forget(home);
        // SAFETY: the caller's debts.
        unsafe { self.raw.free_attempt(object.cast(), attempt) };
    }

    /// Frees an object for reuse after a grace period. Never waits; see [`RawCache::retire`].
    ///
    /// The value is forgotten, not dropped, so `T` must need no dropping: this fails to compile with `String` for `u64`.
    ///
    /// ```
    /// use rcu_core::{NoReaders, cpu::Threads};
    /// use slab::Cache;
    ///
    /// fn forget<P: pagealloc::PageAlloc>(hits: &Cache<u64, Threads, P, NoReaders>) {
    ///     let counter = hits.alloc(0).unwrap();
    ///     // SAFETY: the object came from this cache, and nobody else knows it.
    ///     if let Err(counter) = unsafe { hits.retire(counter) } {
    ///         // SAFETY: as above; it was given back.
    ///         unsafe { hits.free(counter) };
    ///     }
    /// }
    /// # use pagealloc::{Mmap, Zone};
    /// # let zone: &'static _ = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    /// # forget(&Cache::new("hits", Threads, zone, NoReaders).unwrap());
    /// ```
    ///
    /// ```compile_fail,E0080
    /// # use rcu_core::{NoReaders, cpu::Threads};
    /// # use slab::Cache;
    /// fn forget<P: pagealloc::PageAlloc>(names: &Cache<String, Threads, P, NoReaders>) {
    ///     let name = names.alloc(String::new()).unwrap();
    ///     let _ = unsafe { names.retire(name) };
    /// }
    /// # use pagealloc::{Mmap, Zone};
    /// # let zone: &'static _ = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    /// # forget(&Cache::new("names", Threads, zone, NoReaders).unwrap());
    /// ```
    ///
    /// # Errors
    /// Gives the object back if it cannot be taken without waiting; it is then still the caller's.
    ///
    /// # Safety
    /// 1. `object` came from [`Self::alloc`] of this cache, and was neither freed nor retired since.
    /// 2. No *new* reader can find it; readers that have found it stay within their sections.
    #[inline]
    #[track_caller]
    pub unsafe fn retire(&self, object: NonNull<T>) -> Result<(), NonNull<T>> {
        const { assert!(!needs_drop::<T>(), "a retired value is not dropped") };
        // SAFETY: debts 1 and 2.
        unsafe { self.raw.retire(object.cast()) }.map_err(NonNull::cast)
    }

    /// Frees an object for reuse after a grace period, going as far as `attempt` for a sheaf; see
    /// [`RawCache::retire_attempt`]. The value is forgotten, not dropped, as by [`Self::retire`].
    ///
    /// # Errors
    /// As for [`Self::retire`], within `attempt`.
    ///
    /// # Safety
    /// As for [`Self::retire`]. Above [`Attempt::TryLock`], not from signal handlers and interrupts.
    ///
    /// ```
    /// # use pagealloc::{Attempt, Mmap, Zone};
    /// # use rcu_core::{NoReaders, cpu::Threads};
    /// # use slab::Cache;
    /// # let zone: &'static _ = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    /// # let names = Cache::new("name", Threads, zone, NoReaders).unwrap();
    /// let name = names.alloc([b'A', b'd', b'a']).unwrap();
    /// // SAFETY: from this cache, no new reader can find it, and this is no interrupt handler.
    /// let taken = unsafe { names.retire_attempt(name, Attempt::MayGrow) };
    /// assert!(taken.is_ok(), "there is memory");
    /// ```
    #[inline]
    #[track_caller]
    pub unsafe fn retire_attempt(
        &self,
        object: NonNull<T>,
        attempt: Attempt,
    ) -> Result<(), NonNull<T>> {
        const { assert!(!needs_drop::<T>(), "a retired value is not dropped") };
        // SAFETY: the caller's debts.
        unsafe { self.raw.retire_attempt(object.cast(), attempt) }.map_err(NonNull::cast)
    }

    /// Which values are out; see [`RawCache::leak_report`].
    pub fn leak_report(&self) -> LeakReport {
        self.raw.leak_report()
    }

    /// The cache below, which allocates memory without values.
    pub fn raw(&self) -> &RawCache<C, P, G> {
        &self.raw
    }
}

impl<T, C: Cpus, P: PageAlloc, G: GracePeriod> fmt::Debug for Cache<T, C, P, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cache").field(&self.raw).finish()
    }
}

/// Objects set aside by [`Cache::prefill`], without values yet. What is left when it is dropped goes back to the cache.
pub struct Prefilled<'a, T, C: Cpus, P: PageAlloc, G: GracePeriod> {
    /// INVARIANT: objects of a cache whose layout is that of `T`.
    raw: RawPrefilled<'a, C, P, G>,
    _values: PhantomData<fn(T) -> T>,
}

impl<T, C: Cpus, P: PageAlloc, G: GracePeriod> Prefilled<'_, T, C, P, G> {
    /// Takes an object that holds `value`: see [`RawPrefilled::pop`]. Never fails while [`Self::len`] is not zero.
    ///
    /// # Errors
    /// Gives the value back if no object is left.
    #[track_caller]
    pub fn pop(&mut self, value: T) -> Result<NonNull<T>, T> {
        let Some(object) = self.raw.pop() else {
            return Err(value);
        };
        let object = object.cast::<T>();
        // SAFETY: the object is this call's, of `T`'s layout.
        unsafe { object.write(value) };
        Ok(object)
    }

    /// How many objects there are: that many pops will not fail.
    #[must_use]
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// Whether there are no objects.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// Sees to it that there are at least `objects` objects.
    ///
    /// # Errors
    /// See [`RawPrefilled::refill`].
    pub fn refill(&mut self, objects: usize, attempt: Attempt) -> Result<(), AllocError> {
        self.raw.refill(objects, attempt)
    }

    /// Gives back what is left, as dropping does.
    pub fn give_back(self) {
        drop(self);
    }
}

impl<T, C: Cpus, P: PageAlloc, G: GracePeriod> fmt::Debug for Prefilled<'_, T, C, P, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Prefilled").field(&self.raw).finish()
    }
}
