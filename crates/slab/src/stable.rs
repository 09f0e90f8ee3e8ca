//! Type-stable caches: an object that was freed may be another one at once, and stays of its type for whoever still looks.
//!
//! Source: Hugh Dickins' `SLAB_DESTROY_BY_RCU` of 2004, since 4.12 `SLAB_TYPESAFE_BY_RCU` (`include/linux/slab.h`; facts only).
//! Why not retire every object: what is allocated and freed all the time (connections, dentries, handles) is warm in the
//! cache when it is used again at once, and nothing waits. What waits is a slab's pages, and only when all of its objects are
//! home. The price is the protocol below.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `Object.word` | see `word` | whoever has a reference, or looks for one; at birth, and when it is made anew, the object's owner |
//! | `Object.value` | the user's | through `&T` only, from the constructor to the end of the slab |
//! | `StableCell.pointer` | an object of the cell's cache, of which the cell has a reference; or null | whoever swaps |
//!
//! # Life of an object
//! Built by [`TypeStable::construct`] with its slab. Allocated: made anew through `&T` *while it is dead*, so that nobody can pin it
//! half made; then `reset` gives it a generation and its first reference. Published, found, pinned by others. The last reference
//! frees it, to be allocated again at once, by anyone. Nothing is written to it in between: its state is outside (T22).
//!
//! # The protocol of a reader (L5)
//! 1. In a section, find the object ([`StableCell::load`], a chain of [`rcu_core::NullsHead`]). From here on it is an object of the
//!    type until the section ends, perhaps not the one that was found.
//! 2. Pin it, if it is alive ([`Found::pin_any`] and the others).
//! 3. *Then* look whether it is the one sought: by key ([`Found::try_pin_if`]), by generation ([`Found::try_pin`],
//!    [`StableRef::pin`]), or by place ([`StableCell::pin`]). If not, drop it, and look for it anew.
//!
//! All of this is safe code. Who leaves step 3 out has a valid object of the type, and the wrong one; no checker of memory
//! sees that. [`Stability::Delayed`] hides it (T24), so tests of readers run without.
//!
//! # Invariants
//! - I1. An object's memory holds an initialised [`Object<T>`] from its slab's birth until the slab's pages are given back.
//! - I2. Those go back after a grace period that began after the last of the slab's objects had come home, and when nobody holds
//!   the slab. So an object that was alive at some moment of a section lasts as long as the section; one that is pinned, or in
//!   a cell, lasts; one that somebody has a [`StableRef`] to lasts.
//! - I3. `value` is never written but through `&T`, which others may have: no drop, no second construction, no zeroes, no poison.
//!
//! # Orderings
//! - P6. See `word`.
//! - P1. `StableCell`: swap (Release) / load (Acquire).
//!
//! # Progress and contexts
//! Finding and pinning are wait-free, in any context. Dropping the last reference frees: not in signal handlers and interrupts.

mod cell;
mod found;
mod pinned;
mod word;

pub use cell::StableCell;
pub use found::Found;
pub use pinned::{Pinned, StableRef};
pub use word::Generation;

use crate::cache::{Busy, RawCache};
use crate::config::{CacheConfig, Stability};
use crate::error::CreateError;
use crate::slabs::Holds;
use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::mem::{needs_drop, offset_of};
use core::ptr::NonNull;
use pagealloc::{AllocError, Attempt, PageAlloc};
use rcu_core::Section;
use rcu_core::cpu::Cpus;
use rcu_core::{Domain, GracePeriod};
use word::PinWord;

/// A type whose objects a [`StableCache`] has: built once, shared ever after, and never dropped.
///
/// Whatever readers without a reference look at is an atomic word, or behind a lock that `construct` made and nothing makes
/// again (T21), or a link of a chain. The type needs no dropping: an object dies and is another one without being dropped.
pub trait TypeStable: Sync + Sized {
    /// An object that is free: its value before its first life. Called for each object of each new slab, without locks.
    ///
    /// # Aborts
    /// The program, if it panics.
    #[doc(alias = "ctor")]
    fn construct() -> Self;
}

/// An object as it lies in its slab.
#[repr(C)]
struct Object<T> {
    word: PinWord,
    value: T,
}

impl<T: TypeStable> Object<T> {
    /// The constructor of a slab's objects.
    ///
    /// # Safety
    /// 1. `at` is memory of `Object<T>`'s layout, and the caller's.
    unsafe fn construct(at: NonNull<u8>) {
        let object = Self {
            word: PinWord::dead(),
            value: T::construct(),
        };
        // SAFETY: debt 1.
        unsafe { at.cast::<Self>().write(object) };
    }
}

/// A cache of `T`s that may be found by readers who hold nothing, and are reused under them.
///
/// ```
/// use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
/// use pagealloc::{Mmap, Zone};
/// use rcu_core::{cpu::Threads, read_lock};
/// use slab::{StableCache, StableCell, TypeStable};
///
/// struct Session { user: AtomicU64, hits: AtomicU64 }
///
/// impl TypeStable for Session {
///     fn construct() -> Self {
///         Self { user: AtomicU64::new(0), hits: AtomicU64::new(0) }
///     }
/// }
///
/// rcu_tree::static_tree! { struct Sessions; }
///
/// let zone: &'static _ = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
/// let cache = StableCache::<Session, _, _, _>::new("session", Threads, zone, Sessions).unwrap();
/// let place = StableCell::new(&cache);
///
/// // A writer: makes the object what it is to be, then publishes it.
/// place.store(Some(cache.alloc(|s| s.user.store(7, Relaxed)).unwrap()));
///
/// // A reader: finds, pins, and only then looks whom it has.
/// let guard = read_lock::<Sessions>();
/// let found = place.load(&guard).unwrap();
/// let session = found.try_pin_if(|s| s.user.load(Relaxed) == 7).unwrap();
/// drop(guard);
/// session.hits.fetch_add(1, Relaxed);
///
/// // Freed at once when the last reference goes; what was found can be another session right away.
/// let later = session.downgrade();
/// place.store(None);
/// drop(session);
/// let other = cache.alloc(|s| s.user.store(8, Relaxed)).unwrap();
/// assert!(later.pin().is_none());
/// # drop((other, later, place));
/// # cache.destroy().unwrap();
/// ```
///
/// Objects are not dropped, so types that need it do not compile:
///
/// ```compile_fail,E0080
/// # use rcu_core::{NoReaders, cpu::Threads};
/// # use pagealloc::{Mmap, Zone};
/// struct Named(std::sync::Mutex<String>);
/// impl slab::TypeStable for Named {
///     fn construct() -> Self { Self(std::sync::Mutex::new(String::new())) }
/// }
/// # let zone: &'static _ = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
/// let names = slab::StableCache::<Named, _, _, _>::new("names", Threads, zone, NoReaders);
/// ```
///
/// What lives for ever in one may not be taken for what does not, nor the other way round:
///
/// ```compile_fail
/// # use slab::StableCache;
/// fn shorten<'a, 'c, C: rcu_core::cpu::Cpus, P: pagealloc::PageAlloc, G: rcu_core::Domain>(
///     cache: &'c StableCache<&'static str, C, P, G>,
/// ) -> &'c StableCache<&'a str, C, P, G> {
///     cache
/// }
/// ```
///
/// Dropping it is dropping its [`RawCache`]: that waits for grace periods, so not in a read section.
///
/// A type-stable cache shares its slabs with no other cache, whatever its layout (no cache does), and its objects are never
/// zeroed or filled; [`CacheConfig::checks`] says what cannot be asked of it. Slabs that were given up are counted by
/// `CacheStats::slabs_waiting`; [`RawCache::reap`], [`RawCache::shrink`] and the cache's slow paths let them go.
#[doc(alias = "SLAB_TYPESAFE_BY_RCU")]
#[doc(alias = "SLAB_DESTROY_BY_RCU")]
pub struct StableCache<T, C: Cpus, P: PageAlloc, G: GracePeriod> {
    raw: RawCache<C, P, G>,
    _objects: PhantomData<fn(T) -> T>,
}

impl<T, C, P, G> StableCache<T, C, P, G>
where
    T: TypeStable,
    C: Cpus + Send + Sync,
    P: PageAlloc,
    G: GracePeriod + Send + Sync,
{
    /// The configuration of a type-stable cache of `T`s, to be adjusted and passed to [`Self::with_config`].
    pub const fn config(name: &'static str) -> CacheConfig {
        CacheConfig::new(name, Layout::new::<Object<T>>()).stability(Stability::Type)
    }

    /// Makes a cache.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn new(name: &'static str, cpus: C, pages: P, gp: G) -> Result<Self, CreateError>
    where
        C: 'static,
        P: 'static,
        G: 'static,
    {
        Self::with_config(Self::config(name), cpus, pages, gp)
    }

    /// Makes a cache after a configuration from [`Self::config`]. Its constructor is [`TypeStable::construct`], whatever the
    /// configuration says.
    ///
    /// # Errors
    /// See [`CreateError`]: [`NotTypeStable`](CreateError::NotTypeStable) for checks that write to free objects, or keep them back,
    /// and for [`Stability::None`]; [`WrongLayout`](CreateError::WrongLayout) if the configuration is not from [`Self::config`].
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
    /// # use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
    /// # use pagealloc::{Mmap, Zone};
    /// # use rcu_core::{NoReaders, cpu::Threads};
    /// # use slab::{StableCache, TypeStable};
    /// # struct Key(AtomicU64);
    /// # impl TypeStable for Key { fn construct() -> Self { Self(AtomicU64::new(0)) } }
    /// let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
    /// let config = StableCache::<Key, Threads, &Zone<Threads, Mmap>, NoReaders>::config("key");
    /// // SAFETY: destroyed below, before the zone ends.
    /// let cache: StableCache<Key, _, _, _> =
    ///     unsafe { StableCache::new_scoped(config, Threads, &zone, NoReaders) }.unwrap();
    /// assert!(cache.destroy().is_ok(), "nothing is out");
    /// ```
    pub unsafe fn new_scoped(
        config: CacheConfig,
        cpus: C,
        pages: P,
        gp: G,
    ) -> Result<Self, CreateError> {
        const {
            assert!(!needs_drop::<T>(), "a type-stable object is not dropped");
        }
        if !config.is_stable() {
            return Err(CreateError::NotTypeStable(crate::Checks::empty()));
        }
        // SAFETY: the layout is checked below before any object is built: slabs are made for allocations only.
        let config = unsafe { config.constructor(Object::<T>::construct) };
        // SAFETY: the caller's debt.
        let raw = unsafe { RawCache::new_scoped(config, cpus, pages, gp) }?;
        if raw.layout() != Layout::new::<Object<T>>() {
            return Err(CreateError::WrongLayout);
        }
        // INVARIANT: I1, I2: objects of `raw` are built by `Object::construct`, and the cache is type-stable.
        Ok(Self {
            raw,
            _objects: PhantomData,
        })
    }

    /// Destroys the cache and gives every page back. Waits for grace periods; not in a read section.
    ///
    /// # Errors
    /// Gives the cache back if objects of it are out: references to them were forgotten, or made raw.
    #[doc(alias = "kmem_cache_destroy")]
    pub fn destroy(self) -> Result<(), Busy<Self>> {
        self.raw.destroy().map_err(|busy| Busy {
            live: busy.live,
            pending: busy.pending,
            samples: busy.samples,
            cache: Self {
                raw: busy.cache,
                _objects: PhantomData,
            },
        })
    }
}

impl<T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> StableCache<T, C, P, G> {
    /// Allocates an object and makes it what it is to be: `init` gets it as its last life, or its constructor, left it. Only
    /// when `init` has returned can anybody pin it. May make system calls for more pages.
    ///
    /// # Errors
    /// If no memory can be had.
    #[doc(alias = "kmem_cache_alloc")]
    pub fn alloc(&self, init: impl FnOnce(&T)) -> Result<Pinned<'_, T, C, P, G>, AllocError> {
        self.alloc_attempt(Attempt::MayGrow, init)
    }

    /// As [`Self::alloc`], going as far as `attempt` for memory.
    ///
    /// # Errors
    /// If no memory can be had within `attempt`.
    pub fn alloc_attempt(
        &self,
        attempt: Attempt,
        init: impl FnOnce(&T),
    ) -> Result<Pinned<'_, T, C, P, G>, AllocError> {
        /// Takes the object back if `init` panics: it has not come to life.
        struct Unborn<'c, C: Cpus, P: PageAlloc, G: GracePeriod>(
            &'c RawCache<C, P, G>,
            NonNull<u8>,
        );
        impl<C: Cpus, P: PageAlloc, G: GracePeriod> Drop for Unborn<'_, C, P, G> {
            fn drop(&mut self) {
                // SAFETY: the object came from this cache just now, and readers know what memory it is.
                unsafe { self.0.free(self.1) };
            }
        }
        let raw = self.raw.alloc_attempt(attempt)?;
        let unborn = Unborn(&self.raw, raw);
        let place = raw.cast::<Object<T>>();
        // SAFETY: I1: built with its slab.
        let object = unsafe { place.as_ref() };
        init(&object.value);
        core::mem::forget(unborn);
        object.word.reset();
        // SAFETY: the first reference is this call's.
        Ok(unsafe { Pinned::from_object(self, place) })
    }

    /// What was found by way of the user's own pointers, in a section.
    ///
    /// ```
    /// use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
    /// # use pagealloc::{Mmap, Zone};
    /// # use rcu_core::{cpu::Threads, read_lock};
    /// # use slab::{StableCache, TypeStable};
    /// # struct Key(AtomicU64);
    /// # impl TypeStable for Key { fn construct() -> Self { Self(AtomicU64::new(0)) } }
    /// # rcu_tree::static_tree! { struct Keys; }
    /// # let zone: &'static _ = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    /// # let cache = StableCache::<Key, _, _, _>::new("key", Threads, zone, Keys).unwrap();
    /// // A structure that keeps one object, by a raw reference.
    /// let kept = cache.alloc(|key| key.0.store(7, Relaxed)).unwrap().into_raw();
    ///
    /// let guard = read_lock::<Keys>();
    /// // SAFETY: the structure's object lives.
    /// let found = unsafe { cache.found(kept, &guard) };
    /// // SAFETY: made raw once, and taken out of the structure.
    /// drop(unsafe { cache.from_raw(kept) });
    /// assert_eq!(found.get().0.load(Relaxed), 7, "while the section lasts, a `Key`");
    /// assert!(found.pin_any().is_none(), "though a free one");
    /// ```
    ///
    /// # Safety
    /// 1. `value` is the address of an object of this cache (as from [`Pinned::into_raw`], or of a part of it that has
    ///    the same address and the whole object's provenance) that was alive at some moment since `section` began.
    pub unsafe fn found<'g>(
        &self,
        value: NonNull<T>,
        section: &'g impl Section<G>,
    ) -> Found<'_, 'g, T, C, P, G>
    where
        G: Domain,
    {
        let _ = section;
        // SAFETY: debt 1: inside of an object.
        let object = unsafe { value.byte_sub(offset_of!(Object<T>, value)) }.cast();
        // SAFETY: debt 1, and I2: the memory lasts as long as the section.
        unsafe { Found::new(self, object) }
    }

    /// The reference that [`Pinned::into_raw`] made raw.
    ///
    /// # Safety
    /// 1. `value` came from [`Pinned::into_raw`] of an object of this cache, and was not made a reference since.
    ///
    /// ```
    /// # use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
    /// # use pagealloc::{Mmap, Zone};
    /// # use rcu_core::{NoReaders, cpu::Threads};
    /// # use slab::{StableCache, TypeStable};
    /// # struct Key(AtomicU64);
    /// # impl TypeStable for Key { fn construct() -> Self { Self(AtomicU64::new(0)) } }
    /// # let zone: &'static _ = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    /// # let cache = StableCache::<Key, _, _, _>::new("key", Threads, zone, NoReaders).unwrap();
    /// let raw = cache.alloc(|key| key.0.store(7, Relaxed)).unwrap().into_raw();
    /// // … kept in a structure of one's own …
    /// // SAFETY: made raw once, just now.
    /// let key = unsafe { cache.from_raw(raw) };
    /// assert_eq!(key.0.load(Relaxed), 7);
    /// ```
    pub unsafe fn from_raw(&self, value: NonNull<T>) -> Pinned<'_, T, C, P, G> {
        // SAFETY: debt 1: inside of an object.
        let object = unsafe { value.byte_sub(offset_of!(Object<T>, value)) }.cast();
        // SAFETY: debt 1: the reference is this call's.
        unsafe { Pinned::from_object(self, object) }
    }

    /// Who keeps the slab of `object`.
    ///
    /// # Safety
    /// 1. `object` is an object of this cache, and its slab stays while this call lasts.
    unsafe fn holds(&self, object: NonNull<Object<T>>) -> Holds {
        // SAFETY: debt 1.
        match unsafe { self.raw.holds(object.as_ptr().cast()) } {
            Some(holds) => holds,
            None => crate::fault::broken(
                crate::fault::Fault::Foreign,
                self.raw.name(),
                object.as_ptr().cast(),
                core::ptr::null(),
            ),
        }
    }
}

impl<T, C: Cpus, P: PageAlloc, G: GracePeriod> StableCache<T, C, P, G> {
    /// The cache below, for its numbers and for `reap`, `shrink` and `barrier`.
    pub fn raw(&self) -> &RawCache<C, P, G> {
        &self.raw
    }
}

impl<T, C: Cpus, P: PageAlloc, G: GracePeriod> fmt::Debug for StableCache<T, C, P, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StableCache").field(&self.raw).finish()
    }
}
