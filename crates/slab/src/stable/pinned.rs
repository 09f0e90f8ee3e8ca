//! References to objects of a type-stable cache: one that keeps the object, one that keeps only its memory.

use super::{Generation, Object, StableCache, TypeStable};
use crate::slabs::Holds;
use core::fmt;
use core::mem::{self, offset_of};
use core::ops::Deref;
use core::ptr::NonNull;
use pagealloc::PageAlloc;
use rcu_core::GracePeriod;
use rcu_core::cpu::Cpus;

/// A counted reference to an object of a [`StableCache`]: while it lasts, the object is the one that it is.
///
/// Dropping the last frees the object for reuse at once. It may be sent to, and dropped on, any thread; not in signal handlers and
/// interrupts. More than some millions of references to one object leak it.
///
/// The cache cannot be moved or destroyed under it:
///
/// ```compile_fail,E0505
/// # use rcu_core::{Domain, cpu::Threads};
/// # use slab::{StableCache, TypeStable};
/// fn end<T: TypeStable, P: pagealloc::PageAlloc, G: Domain>(cache: StableCache<T, Threads, P, G>) {
///     let pinned = cache.alloc(|_| ()).unwrap();
///     let _ = cache.destroy();
///     drop(pinned);
/// }
/// ```
#[must_use = "dropping the last reference frees the object"]
pub struct Pinned<'c, T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> {
    cache: &'c StableCache<T, C, P, G>,
    object: NonNull<Object<T>>,
}

// SAFETY: a counted reference to what is `Sync` and never dropped, and to the cache.
unsafe impl<T, C, P, G> Send for Pinned<'_, T, C, P, G>
where
    T: TypeStable,
    C: Cpus + Send + Sync,
    P: PageAlloc,
    G: GracePeriod + Send + Sync,
{
}
// SAFETY: as above.
unsafe impl<T, C, P, G> Sync for Pinned<'_, T, C, P, G>
where
    T: TypeStable,
    C: Cpus + Send + Sync,
    P: PageAlloc,
    G: GracePeriod + Send + Sync,
{
}

impl<'c, T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> Pinned<'c, T, C, P, G> {
    /// # Safety
    /// 1. A reference to `object`, of `cache`, is the caller's, and this value's from now on.
    pub(super) unsafe fn from_object(
        cache: &'c StableCache<T, C, P, G>,
        object: NonNull<Object<T>>,
    ) -> Self {
        Self { cache, object }
    }

    fn object(&self) -> &Object<T> {
        // SAFETY: I2: pinned, and the value is only shared (I3).
        unsafe { self.object.as_ref() }
    }

    pub(super) fn into_object(self) -> NonNull<Object<T>> {
        let object = self.object;
        mem::forget(self);
        object
    }

    pub(super) const fn object_ptr(&self) -> *const Object<T> {
        self.object.as_ptr()
    }

    /// The cache that the object is of.
    #[must_use]
    pub const fn cache(&self) -> &'c StableCache<T, C, P, G> {
        self.cache
    }

    /// Which of the objects that its memory has been this one is.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.object().word.generation()
    }

    /// A reference that does not keep the object, and finds it as long as it lives.
    pub fn downgrade(&self) -> StableRef<'c, T, C, P, G> {
        // SAFETY: the object is pinned, so its slab stays and may be held.
        unsafe { StableRef::new(self.cache, self.object, self.generation()) }
    }

    /// Whether both are references to one object.
    #[must_use]
    pub fn ptr_eq(&self, other: &Self) -> bool {
        self.object == other.object
    }

    /// Makes the reference raw, to keep it in a structure of one's own: with the provenance of the whole object.
    /// [`StableCache::from_raw`] takes it back.
    #[must_use = "the object leaks"]
    pub fn into_raw(self) -> NonNull<T> {
        let object = self.into_object();
        // SAFETY: inside of the object.
        unsafe { object.byte_add(offset_of!(Object<T>, value)) }.cast()
    }
}

impl<T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> Deref for Pinned<'_, T, C, P, G> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.object().value
    }
}

impl<T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> Clone for Pinned<'_, T, C, P, G> {
    fn clone(&self) -> Self {
        let got = self.object().word.get();
        debug_assert!(got.is_some(), "I1 of the word: pinned, and dead");
        // SAFETY: the reference was taken just now.
        unsafe { Self::from_object(self.cache, self.object) }
    }
}

impl<T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> Drop for Pinned<'_, T, C, P, G> {
    fn drop(&mut self) {
        if self.object().word.put() {
            // SAFETY: the last reference was this one's: the object is out, dead and ours. Readers who look at it know what memory
            // it is, and leave their sections.
            unsafe { self.cache.raw.free(self.object.cast()) };
        }
    }
}

impl<T: TypeStable + fmt::Debug, C: Cpus, P: PageAlloc, G: GracePeriod> fmt::Debug
    for Pinned<'_, T, C, P, G>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pinned").field(&**self).finish()
    }
}

/// A reference that keeps an object's *memory*, not the object: it finds the object as long as it lives, on any thread, in a
/// section or not.
///
/// While it lasts the pages of the object's slab are not given back (they are used for other objects of the cache all the
/// same).
#[must_use]
pub struct StableRef<'c, T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> {
    cache: &'c StableCache<T, C, P, G>,
    object: NonNull<Object<T>>,
    holds: Holds,
    generation: Generation,
}

// SAFETY: as for `Pinned`; the count is atomic.
unsafe impl<T, C, P, G> Send for StableRef<'_, T, C, P, G>
where
    T: TypeStable,
    C: Cpus + Send + Sync,
    P: PageAlloc,
    G: GracePeriod + Send + Sync,
{
}
// SAFETY: as above.
unsafe impl<T, C, P, G> Sync for StableRef<'_, T, C, P, G>
where
    T: TypeStable,
    C: Cpus + Send + Sync,
    P: PageAlloc,
    G: GracePeriod + Send + Sync,
{
}

impl<'c, T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> StableRef<'c, T, C, P, G> {
    /// # Safety
    /// 1. `object` is of `cache`, and the caller has it pinned, or found it in a section that lasts.
    pub(super) unsafe fn new(
        cache: &'c StableCache<T, C, P, G>,
        object: NonNull<Object<T>>,
        generation: Generation,
    ) -> Self {
        // SAFETY: debt 1.
        let holds = unsafe { cache.holds(object) };
        // SAFETY: debt 1.
        unsafe { holds.take() };
        Self {
            cache,
            object,
            holds,
            generation,
        }
    }

    /// Pins the object, unless it has died; also if it lives again as another.
    pub fn pin(&self) -> Option<Pinned<'c, T, C, P, G>> {
        // SAFETY: I2: the slab is held.
        unsafe { self.cache.pin(self.object, self.generation) }
    }

    /// Which of the objects that its memory has been this one was.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.generation
    }
}

impl<T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> StableCache<T, C, P, G> {
    /// Pins whatever `object` is.
    ///
    /// # Safety
    /// 1. `object` is of this cache, and its slab stays while this call lasts.
    pub(super) unsafe fn pin_any(
        &self,
        object: NonNull<Object<T>>,
    ) -> Option<(Pinned<'_, T, C, P, G>, Generation)> {
        // SAFETY: debt 1, and I1.
        let word = unsafe { &object.as_ref().word };
        let generation = word.get()?;
        // SAFETY: the reference was taken just now.
        Some((unsafe { Pinned::from_object(self, object) }, generation))
    }

    /// Pins `object` if it is the one of `generation`.
    ///
    /// # Safety
    /// As for [`Self::pin_any`].
    pub(super) unsafe fn pin(
        &self,
        object: NonNull<Object<T>>,
        generation: Generation,
    ) -> Option<Pinned<'_, T, C, P, G>> {
        // SAFETY: debt 1, and I1.
        let word = unsafe { &object.as_ref().word };
        // A hint that spares others' objects an addition and a subtraction.
        if word.generation() != generation {
            return None;
        }
        // SAFETY: debt 1.
        let (pinned, got) = unsafe { self.pin_any(object) }?;
        (got == generation).then_some(pinned)
    }
}

impl<T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> Clone for StableRef<'_, T, C, P, G> {
    fn clone(&self) -> Self {
        // SAFETY: `self` holds the slab.
        unsafe { self.holds.take() };
        Self {
            cache: self.cache,
            object: self.object,
            holds: self.holds,
            generation: self.generation,
        }
    }
}

impl<T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> Drop for StableRef<'_, T, C, P, G> {
    fn drop(&mut self) {
        // SAFETY: the hold is this value's, which ends.
        unsafe { self.holds.release() };
    }
}

impl<T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> PartialEq for StableRef<'_, T, C, P, G> {
    fn eq(&self, other: &Self) -> bool {
        (self.object, self.generation) == (other.object, other.generation)
    }
}

impl<T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> Eq for StableRef<'_, T, C, P, G> {}

impl<T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> fmt::Debug
    for StableRef<'_, T, C, P, G>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StableRef")
            .field("object", &self.object.as_ptr())
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}
