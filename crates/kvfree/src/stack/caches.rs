//! The typed caches of the default stack, so that its monitor and its barrier know them.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `CACHES` | the entries of all typed caches there are | who makes one or ends one, under its lock |
//! | an entry's `cache` | the cache again, or nothing once it ends | who ends it, under the entry's lock |
//!
//! # Invariants
//! - I1. A cache lives for as long as its entry shows it: who looks holds the entry's lock shared, who ends the cache takes it
//!   alone and empties the entry first.
//!
//! # Progress
//! Looking never waits for who makes a cache, for that is no part of any look: entries are taken out of `CACHES` before.
//! Ending a cache waits for the looks at it, a barrier's grace period among them, as it waits for one anyway.

use super::{Global, MONITOR, Pages, pages};
use core::alloc::Layout;
use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::Deref;
use rcu_core::cpu::Threads;
use slab::{Busy, Cache, CacheConfig, CreateError, RawCache};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

type Raw = RawCache<Threads, Pages, Global>;

/// What the monitor and the barrier know of one cache.
struct Entry(RwLock<Option<ManuallyDrop<Raw>>>);

static CACHES: Mutex<Vec<Arc<Entry>>> = Mutex::new(Vec::new());

/// What is guarded stays whole whoever panics: it is replaced in one step.
fn list() -> MutexGuard<'static, Vec<Arc<Entry>>> {
    CACHES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    /// Calls `look` with the cache, if it has not ended.
    fn look<T: Default>(&self, look: impl FnOnce(&Raw) -> T) -> T {
        let cache = self.0.read().unwrap_or_else(PoisonError::into_inner);
        cache.as_ref().map_or_else(T::default, |cache| look(cache))
    }
}

/// Lets every cache free what is ripe, and says how much still waits.
pub(super) fn reap() -> usize {
    let entries = list().clone();
    entries.iter().map(|entry| entry.look(Raw::reap)).sum()
}

/// Waits until what was retired to any cache before is free.
pub(super) fn barrier() {
    let entries = list().clone();
    entries.iter().for_each(|entry| entry.look(Raw::barrier));
}

/// The numbers of every cache, in the order of their making.
pub(super) fn stats() -> Vec<slab::CacheStats> {
    let entries = list().clone();
    (entries.iter())
        .filter_map(|entry| entry.look(|cache| Some(cache.stats())))
        .collect()
}

/// A typed cache of the default stack: a [`Cache`] that its monitor and [`barrier`](super::barrier) know.
///
/// Dropping it waits for what was retired to it, as [`Self::destroy`] does.
pub struct TypedCache<T> {
    cache: ManuallyDrop<Cache<T, Threads, Pages, Global>>,
    entry: Arc<Entry>,
}

impl<T> TypedCache<T> {
    /// The configuration of a cache of `T`s, to be adjusted and passed to [`Self::with_config`].
    pub const fn config(name: &'static str) -> CacheConfig {
        CacheConfig::new(name, Layout::new::<T>())
    }

    /// Makes a cache after a configuration from [`Self::config`]. Whom that tells that something waits is the stack's own
    /// monitor, whatever it says.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn with_config(config: CacheConfig) -> Result<Self, CreateError> {
        // The monitor pushes grace periods by the stack's own threads, which are made here and not in a signal handler.
        super::front();
        let config = config.watched_by(|| MONITOR.watch(false));
        let cache = Cache::with_config(config, Threads, pages(), Global)?;
        // SAFETY: the entry gives it up before the cache ends (I1).
        let again = unsafe { cache.raw().share() };
        let entry = Arc::new(Entry(RwLock::new(Some(again))));
        list().push(Arc::clone(&entry));
        Ok(Self {
            cache: ManuallyDrop::new(cache),
            entry,
        })
    }

    /// Destroys the cache and gives every page back. Waits for grace periods; not in a read section.
    ///
    /// # Errors
    /// Gives the cache back if users still have objects of it.
    #[doc(alias = "kmem_cache_destroy")]
    pub fn destroy(mut self) -> Result<(), Busy<Self>> {
        self.hide();
        // SAFETY: taken once: `self` is forgotten just below.
        let cache = unsafe { ManuallyDrop::take(&mut self.cache) };
        let entry = Arc::clone(&self.entry);
        let this = ManuallyDrop::new(self);
        // SAFETY: the field is not used again, for `this` is never dropped.
        drop(unsafe { core::ptr::read(&raw const this.entry) });
        cache.destroy().map_err(|busy| {
            // SAFETY: as in `with_config`.
            let again = unsafe { busy.cache.raw().share() };
            *(entry.0.write()).unwrap_or_else(PoisonError::into_inner) = Some(again);
            list().push(Arc::clone(&entry));
            Busy {
                live: busy.live,
                pending: busy.pending,
                samples: busy.samples,
                cache: Self {
                    cache: ManuallyDrop::new(busy.cache),
                    entry,
                },
            }
        })
    }

    /// Takes the cache out of the others' sight (I1).
    fn hide(&self) {
        list().retain(|entry| !Arc::ptr_eq(entry, &self.entry));
        *(self.entry.0.write()).unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl<T> Drop for TypedCache<T> {
    fn drop(&mut self) {
        self.hide();
        // SAFETY: dropped once, here.
        unsafe { ManuallyDrop::drop(&mut self.cache) };
    }
}

impl<T> Deref for TypedCache<T> {
    type Target = Cache<T, Threads, Pages, Global>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.cache
    }
}

impl<T> fmt::Debug for TypedCache<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TypedCache").field(&*self.cache).finish()
    }
}
