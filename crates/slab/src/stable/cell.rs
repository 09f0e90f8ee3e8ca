//! A place where an object of a type-stable cache can be found.

use super::{Found, Object, Pinned, StableCache, TypeStable};
use core::fmt;
use core::ptr::{self, NonNull};
use pagealloc::PageAlloc;
use rcu_core::Section;
use rcu_core::cpu::Cpus;
use rcu_core::sync::atomic::{AtomicPtr, Ordering};
use rcu_core::{Domain, GracePeriod};

/// A place for one object, which it keeps: readers find it in sections, writers swap it.
///
/// Many of them make a table of the user's own shape; chains are made of [`rcu_core::NullsHead`] and
/// [`StableCache::found`].
///
/// A section of another RCU than the cache's is another type:
///
/// ```compile_fail,E0277
/// # use rcu_core::{Domain, Guard, cpu::Cpus};
/// # use slab::{StableCell, TypeStable};
/// fn look<T: TypeStable, C: Cpus, P: pagealloc::PageAlloc, G: Domain, Other: Domain>(
///     cell: &StableCell<'_, T, C, P, G>,
///     guard: &Guard<Other>,
/// ) -> bool {
///     cell.load(guard).is_some()
/// }
/// ```
pub struct StableCell<'c, T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> {
    cache: &'c StableCache<T, C, P, G>,
    /// An object of `cache` of which a reference is the cell's, or null.
    pointer: AtomicPtr<Object<T>>,
}

// SAFETY: as for `Pinned`: a counted reference, swapped atomically.
unsafe impl<T, C, P, G> Send for StableCell<'_, T, C, P, G>
where
    T: TypeStable,
    C: Cpus + Send + Sync,
    P: PageAlloc,
    G: GracePeriod + Send + Sync,
{
}
// SAFETY: as above.
unsafe impl<T, C, P, G> Sync for StableCell<'_, T, C, P, G>
where
    T: TypeStable,
    C: Cpus + Send + Sync,
    P: PageAlloc,
    G: GracePeriod + Send + Sync,
{
}

impl<'c, T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> StableCell<'c, T, C, P, G> {
    /// An empty place for objects of `cache`.
    #[must_use]
    pub fn new(cache: &'c StableCache<T, C, P, G>) -> Self {
        Self {
            cache,
            pointer: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Finds the object, if there is one.
    #[doc(alias = "rcu_dereference")]
    pub fn load<'g>(&self, section: &'g impl Section<G>) -> Option<Found<'c, 'g, T, C, P, G>>
    where
        G: Domain,
    {
        let _ = section;
        // ORDERING: P1 (load side).
        let object = NonNull::new(self.pointer.load(Ordering::Acquire))?;
        // SAFETY: the cell has a reference to what it leads to, so the object was alive in the section, of the RCU that the cache's
        // slabs wait for (`Domain`: all values of the type act on one).
        Some(unsafe { Found::new(self.cache, object) })
    }

    /// Pins the object that is here: found, pinned, and found here again, so this one and not its successor in the same memory.
    /// Tries again as often as somebody swaps it meanwhile.
    pub fn pin(&self, section: &impl Section<G>) -> Option<Pinned<'c, T, C, P, G>>
    where
        G: Domain,
    {
        loop {
            let found = self.load(section)?;
            if let Some(pinned) = found.pin_any() {
                // ORDERING: P1 (load side): not before the reference was taken, which was by Acquire. The cell's own reference is to an
                // object that lives, and so is ours, and one memory holds one object at a time.
                let now = self.pointer.load(Ordering::Acquire);
                if ptr::eq(now, pinned.object_ptr()) {
                    return Some(pinned);
                }
            }
        }
    }

    /// Puts `object` here and returns the one that was.
    ///
    /// # Panics
    /// If `object` is of another cache.
    #[doc(alias = "rcu_replace_pointer")]
    pub fn swap(&self, object: Option<Pinned<'c, T, C, P, G>>) -> Option<Pinned<'c, T, C, P, G>> {
        let new = object.map_or(ptr::null_mut(), |pinned| {
            let is_of_this = ptr::eq(pinned.cache(), self.cache);
            assert!(is_of_this, "an object of another cache");
            pinned.into_object().as_ptr()
        });
        // ORDERING: P1 (publish side: Release); Acquire, since what was here is the caller's now.
        let old = NonNull::new(self.pointer.swap(new, Ordering::AcqRel))?;
        // SAFETY: the cell's reference, which is the caller's now.
        Some(unsafe { Pinned::from_object(self.cache, old) })
    }

    /// Puts `object` here and lets the one go that was. If that was its last reference, its memory may be another object at once.
    ///
    /// # Panics
    /// If `object` is of another cache.
    #[doc(alias = "rcu_assign_pointer")]
    pub fn store(&self, object: Option<Pinned<'c, T, C, P, G>>) {
        drop(self.swap(object));
    }

    /// The cache whose objects may be here.
    #[must_use]
    pub const fn cache(&self) -> &'c StableCache<T, C, P, G> {
        self.cache
    }
}

impl<T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> Drop for StableCell<'_, T, C, P, G> {
    fn drop(&mut self) {
        self.store(None);
    }
}

impl<T: TypeStable, C: Cpus, P: PageAlloc, G: GracePeriod> fmt::Debug
    for StableCell<'_, T, C, P, G>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // ORDERING: Relaxed: the value only.
        let object = self.pointer.load(Ordering::Relaxed);
        f.debug_tuple("StableCell").field(&object).finish()
    }
}
