//! What a reader found in a section: an object of the type, perhaps not the one that it was.

use super::word::pin_if;
use super::{Generation, Object, Pinned, StableCache, StableRef, TypeStable};
use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::NonNull;
use pagealloc::PageAlloc;
use rcu_core::GracePeriod;
use rcu_core::cpu::Cpus;

/// An object that was found in a section, and may die, and live again as another, while one looks at it. Its memory
/// is a `T` as long as the section lasts.
///
/// Dereferences to whatever the object is at the moment: for looking at atomic keys, and taking the locks that the constructor made.
/// To use it, pin it.
///
/// ```compile_fail
/// use rcu_core::{Domain, Guard, cpu::Cpus};
/// use slab::{Found, StableCell, TypeStable};
/// fn leak<'c, T: TypeStable, C: Cpus, P: pagealloc::PageAlloc, G: Domain>(
///     cell: &StableCell<'c, T, C, P, G>,
///     guard: Guard<G>,
/// ) -> Option<Found<'c, 'c, T, C, P, G>> {
///     cell.load(&guard)
/// }
/// ```
#[must_use]
pub struct Found<'c, 'g, T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> {
    cache: &'c StableCache<T, C, P, G>,
    object: NonNull<Object<T>>,
    generation: Generation,
    _section: PhantomData<&'g T>,
}

impl<T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> Clone for Found<'_, '_, T, C, P, G> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> Copy for Found<'_, '_, T, C, P, G> {}

impl<'c, 'g, T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> Found<'c, 'g, T, C, P, G> {
    /// # Safety
    /// 1. `object` is of `cache`, and was alive at some moment since a section began that lasts for `'g`.
    pub(super) unsafe fn new(
        cache: &'c StableCache<T, C, P, G>,
        object: NonNull<Object<T>>,
    ) -> Self {
        // SAFETY: debt 1, and I2.
        let generation = unsafe { object.as_ref() }.word.generation();
        Self {
            cache,
            object,
            generation,
            _section: PhantomData,
        }
    }

    fn object(&self) -> &'g Object<T> {
        // SAFETY: I2: the memory lasts as long as the section, and the value is only shared (I3).
        unsafe { self.object.as_ref() }
    }

    /// Whatever the object is at the moment, for as long as the section lasts.
    #[must_use]
    pub fn get(&self) -> &'g T {
        &self.object().value
    }

    /// Which object it was when it was found: the one that was published there, or a later one already.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether it is still the object that it was when it was found. A hint: not, a moment later.
    #[must_use]
    pub fn is_current(&self) -> bool {
        let word = &self.object().word;
        word.generation() == self.generation && word.is_live()
    }

    /// Pins the object if it is alive and still the one of [`Self::generation`]. (Whether that is the one that was sought,
    /// its key must say.)
    pub fn try_pin(&self) -> Option<Pinned<'c, T, C, P, G>> {
        // SAFETY: I2: the memory lasts as long as the section.
        unsafe { self.cache.pin(self.object, self.generation) }
    }

    /// Pins the object if it is alive and, looked at *when it is pinned*, the one sought (T20). If it is not, it is let go again,
    /// and freed, should its last other reference have gone meanwhile.
    #[doc(alias = "refcount_inc_not_zero_acquire")]
    pub fn try_pin_if(&self, is_it: impl FnOnce(&T) -> bool) -> Option<Pinned<'c, T, C, P, G>> {
        pin_if(|| self.pin_any(), || is_it(self.get()))
    }

    /// Pins the object, if it is alive, whatever it is by now: who does not look whom it got has the wrong one some day.
    pub fn pin_any(&self) -> Option<Pinned<'c, T, C, P, G>> {
        // SAFETY: I2: the memory lasts as long as the section.
        let (pinned, _) = unsafe { self.cache.pin_any(self.object) }?;
        Some(pinned)
    }

    /// A reference that outlives the section, and finds the object of [`Self::generation`] as long as it lives.
    pub fn downgrade(&self) -> StableRef<'c, T, C, P, G> {
        // SAFETY: found in a section that lasts.
        unsafe { StableRef::new(self.cache, self.object, self.generation) }
    }
}

impl<T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> Deref for Found<'_, '_, T, C, P, G> {
    type Target = T;

    fn deref(&self) -> &T {
        self.get()
    }
}

impl<T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> fmt::Debug
    for Found<'_, '_, T, C, P, G>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found")
            .field("object", &self.object.as_ptr())
            .field("generation", &self.generation)
            .field("is_current", &self.is_current())
            .finish_non_exhaustive()
    }
}
