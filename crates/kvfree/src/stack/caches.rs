//! The typed caches of a stack, so that its monitor and its barrier know them.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `first`, an entry's `next` | all entries there ever were; none is taken out | pushed by compare-exchange |
//! | an entry's `state` | `FREE`, `OWNED` by who makes or ends a cache, or `LIVE`: shows its cache | taken from `FREE` by compare-exchange, else its owner |
//! | an entry's `lookers` | how many look at the cache, or are about to find out that they must not | who looks |
//! | an entry's `cache`, `made` | the cache again, and the how-manieth it was | its owner |
//!
//! # Invariants
//! - I1. A cache lives for as long as its entry shows it: who looks counts itself, runs a full fence, then reads `state`; who ends
//!   the cache stores `OWNED`, runs a full fence, then waits for `lookers` to be zero: one of them sees the other's store.
//! - I2. Entries are never freed, but used again: there are as many as there were caches at one time.
//!
//! # Progress
//! Looking waits for nobody. Ending a cache waits for the looks at it, a barrier's grace period among them, as it waits for
//! one anyway. There is no lock, so none that the child of a fork would find taken.

use super::{Global, Pages, Stack, StackDomain};
use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr;
use core::time::Duration;
use rcu_core::cpu::Threads;
use rcu_core::fence;
use rcu_core::sync::Backoff;
use rcu_core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use slab::{Busy, Cache, CacheConfig, CacheStats, CreateError, RawCache};

type Raw<D> = RawCache<Threads, Pages, D>;

const FREE: u32 = 0;
const OWNED: u32 = 1;
const LIVE: u32 = 2;

/// How long who ends a cache sleeps between two looks at who still looks.
const PAUSE: Duration = Duration::from_micros(50);

/// What the monitor and the barrier know of one cache.
struct Entry<D: StackDomain> {
    next: AtomicPtr<Entry<D>>,
    state: AtomicU32,
    lookers: AtomicUsize,
    cache: UnsafeCell<Option<(usize, ManuallyDrop<Raw<D>>)>>,
}

// SAFETY: `cache` is written by the owner alone, and read by who has seen `LIVE` while counted (I1); a cache is shared by
// all threads.
unsafe impl<D: StackDomain> Sync for Entry<D> {}

/// All entries of one stack.
pub(super) struct Caches<D: StackDomain> {
    first: AtomicPtr<Entry<D>>,
    made: AtomicUsize,
}

/// Stops looking, whoever panics.
struct Look<'e>(&'e AtomicUsize);

impl Drop for Look<'_> {
    fn drop(&mut self) {
        // ORDERING: Release meets the Acquire in `hide`: the look is over.
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl<D: StackDomain> Entry<D> {
    /// Calls `look` with the cache and its number, if it has not ended.
    fn look<T>(&self, look: impl FnOnce(usize, &Raw<D>) -> T) -> Option<T> {
        // ORDERING: Relaxed: I1, by the full fence.
        self.lookers.fetch_add(1, Ordering::Relaxed);
        let _look = Look(&self.lookers);
        fence::full();
        // ORDERING: Acquire meets the Release in `show`: the cache is there.
        if self.state.load(Ordering::Acquire) != LIVE {
            return None;
        }
        // SAFETY: nobody writes while this look is counted (I1).
        let cache = unsafe { &*self.cache.get() };
        cache.as_ref().map(|(number, cache)| look(*number, cache))
    }

    /// Shows a cache.
    ///
    /// # Safety
    /// 1. The caller owns the entry, and hides the cache before it ends.
    unsafe fn show(&self, number: usize, cache: ManuallyDrop<Raw<D>>) {
        // SAFETY: the owner's (1).
        unsafe { *self.cache.get() = Some((number, cache)) };
        // ORDERING: Release meets the Acquire in `look`.
        self.state.store(LIVE, Ordering::Release);
    }

    /// Takes the cache out of the others' sight, and says its number. The caller owns the entry from then on.
    fn hide(&self) -> usize {
        // ORDERING: Relaxed: I1, by the full fence.
        self.state.store(OWNED, Ordering::Relaxed);
        fence::full();
        let backoff = Backoff::new();
        // ORDERING: Acquire meets the Release of the last look.
        while self.lookers.load(Ordering::Acquire) != 0 {
            backoff.snooze();
            if backoff.is_completed() {
                std::thread::sleep(PAUSE);
            }
        }
        // SAFETY: the owner's, and nobody looks (I1).
        let cache = unsafe { (*self.cache.get()).take() };
        cache.map_or(0, |(number, _)| number)
    }

    fn give_up(&self) {
        // ORDERING: Release meets the Acquire of who takes it next.
        self.state.store(FREE, Ordering::Release);
    }
}

impl<D: StackDomain> Caches<D> {
    pub(super) const fn new() -> Self {
        Self {
            first: AtomicPtr::new(ptr::null_mut()),
            made: AtomicUsize::new(0),
        }
    }

    fn entries(&self) -> impl Iterator<Item = &'static Entry<D>> {
        let at = |entry: &AtomicPtr<Entry<D>>| -> Option<&'static Entry<D>> {
            // ORDERING: Acquire meets the Release of `own`: the entry is whole.
            let entry = entry.load(Ordering::Acquire);
            // SAFETY: entries are leaked (I2).
            unsafe { entry.as_ref() }
        };
        core::iter::successors(at(&self.first), move |entry| at(&entry.next))
    }

    /// An entry for a new cache; the caller's own.
    fn own(&self) -> &'static Entry<D> {
        let free = self.entries().find(|entry| {
            let state = &entry.state;
            // ORDERING: Acquire meets the Release of `give_up`.
            (state.compare_exchange(FREE, OWNED, Ordering::Acquire, Ordering::Relaxed)).is_ok()
        });
        if let Some(free) = free {
            return free;
        }
        let entry: &'static Entry<D> = Box::leak(Box::new(Entry {
            next: AtomicPtr::new(ptr::null_mut()),
            state: AtomicU32::new(OWNED),
            lookers: AtomicUsize::new(0),
            cache: UnsafeCell::new(None),
        }));
        // ORDERING: Relaxed: checked by the exchange.
        let mut first = self.first.load(Ordering::Relaxed);
        loop {
            // ORDERING: Relaxed: nobody else knows the entry yet.
            entry.next.store(first, Ordering::Relaxed);
            let mine = ptr::from_ref(entry).cast_mut();
            // ORDERING: Release meets the Acquire in `entries`.
            match (self.first).compare_exchange(first, mine, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return entry,
                Err(found) => first = found,
            }
        }
    }

    /// Lets every cache free what is ripe, and says how much still waits.
    pub(super) fn reap(&self) -> usize {
        let reaped = |entry: &Entry<D>| entry.look(|_, cache| cache.reap());
        self.entries().filter_map(reaped).sum()
    }

    /// Waits until what was retired to any cache before is free.
    pub(super) fn barrier(&self) {
        self.entries().for_each(|entry| {
            entry.look(|_, cache| cache.barrier());
        });
    }

    /// The numbers of every cache, in the order of their making.
    pub(super) fn stats(&self) -> Vec<CacheStats> {
        let stats = |entry: &Entry<D>| entry.look(|number, cache| (number, cache.stats()));
        let mut all: Vec<_> = self.entries().filter_map(stats).collect();
        all.sort_by_key(|(number, _)| *number);
        all.into_iter().map(|(_, stats)| stats).collect()
    }

    /// Forgets who looked in the parent.
    ///
    /// # Safety
    /// 1. The caller is the only thread of a fork's child, and inside no function of the stack.
    pub(super) unsafe fn reset_after_fork(&self) {
        for entry in self.entries() {
            // ORDERING: Relaxed: there is one thread.
            entry.lookers.store(0, Ordering::Relaxed);
        }
    }
}

impl<D: StackDomain> fmt::Debug for Caches<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caches").finish_non_exhaustive()
    }
}

/// A typed cache of a stack, by default of the default one: a [`Cache`] that its monitor and its
/// [`barrier`](super::barrier) know.
///
/// Dropping it waits for what was retired to it, as [`Self::destroy`] does.
pub struct TypedCache<T, D: StackDomain = Global> {
    cache: ManuallyDrop<Cache<T, Threads, Pages, D>>,
    entry: &'static Entry<D>,
}

impl<T> TypedCache<T> {
    /// The configuration of a cache of `T`s, to be adjusted and passed to [`Self::with_config`].
    pub const fn config(name: &'static str) -> CacheConfig {
        CacheConfig::new(name, Layout::new::<T>())
    }

    /// Makes a cache in the default stack after a configuration from [`Self::config`]. Whom that tells that something waits
    /// is the stack's own monitor, whatever it says.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn with_config(config: CacheConfig) -> Result<Self, CreateError> {
        Self::with_config_in(config)
    }
}

impl<T, D: StackDomain> TypedCache<T, D> {
    /// Makes a cache in the stack of `D`: see [`Self::with_config`](TypedCache::with_config).
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn with_config_in(config: CacheConfig) -> Result<Self, CreateError> {
        let stack: &'static Stack<D> = D::stack();
        // The monitor pushes grace periods by the stack's own threads, which are made here and not in a signal handler.
        stack.front();
        let config = config.watched_by(|| D::stack().monitor.watch(false));
        let cache = Cache::with_config(config, Threads, stack.pages(), D::default())?;
        // SAFETY: hidden before the cache ends (I1).
        let again = unsafe { cache.raw().share() };
        let entry = stack.caches.own();
        // ORDERING: Relaxed: a number.
        let number = stack.caches.made.fetch_add(1, Ordering::Relaxed);
        // SAFETY: owned since just now; `destroy` and `drop` hide it.
        unsafe { entry.show(number, again) };
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
    pub fn destroy(self) -> Result<(), Busy<Self>> {
        let mut this = ManuallyDrop::new(self);
        let (entry, number) = (this.entry, this.entry.hide());
        // SAFETY: taken once: `this` is never dropped.
        let cache = unsafe { ManuallyDrop::take(&mut this.cache) };
        match cache.destroy() {
            Ok(()) => {
                entry.give_up();
                Ok(())
            }
            Err(busy) => {
                // SAFETY: as in `with_config_in`.
                let again = unsafe { busy.cache.raw().share() };
                // SAFETY: owned since `hide`; the value given back hides it again.
                unsafe { entry.show(number, again) };
                // What others retired by address meanwhile, the monitor has not seen.
                D::stack().monitor.watch(false);
                Err(Busy {
                    live: busy.live,
                    pending: busy.pending,
                    samples: busy.samples,
                    cache: Self {
                        cache: ManuallyDrop::new(busy.cache),
                        entry,
                    },
                })
            }
        }
    }
}

impl<T, D: StackDomain> Drop for TypedCache<T, D> {
    fn drop(&mut self) {
        self.entry.hide();
        // SAFETY: dropped once, here.
        unsafe { ManuallyDrop::drop(&mut self.cache) };
        self.entry.give_up();
    }
}

impl<T, D: StackDomain> Deref for TypedCache<T, D> {
    type Target = Cache<T, Threads, Pages, D>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.cache
    }
}

impl<T, D: StackDomain> fmt::Debug for TypedCache<T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TypedCache").field(&*self.cache).finish()
    }
}
