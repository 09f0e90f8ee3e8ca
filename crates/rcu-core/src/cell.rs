//! A pointer that readers load while writers replace it.
//!
//! Source: `rcu_assign_pointer`, `rcu_dereference` and `rcu_replace_pointer`, made safe by types (R2): a load is tied
//! to a guard of the pointer's own domain *and* to the cell, and replacing gives the old pointer only as something
//! that waits for a grace period. Writers use a swap, so two of them never get the same old pointer.
//!
//! # Orderings
//! - P1. `swap`'s and `compare_exchange`'s Release / `load`'s Acquire: forbids seeing the pointer before the object.
//!
//! # Progress and contexts
//! `load` is one load. Replacing is one locked instruction, and retires; it may be done inside a section.

use crate::contract::{Domain, GracePeriod};
use crate::retired::Retired;
use crate::section::Section;
use crate::sync::atomic::{AtomicPtr, Ordering};
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr::{self, NonNull};

/// Of the two ways to publish, each with a mutant of its own.
#[inline(always)]
fn swap_order() -> Ordering {
    if crate::weakened!("p1") {
        Ordering::Acquire
    } else {
        Ordering::AcqRel
    }
}
#[inline(always)]
fn exchange_order() -> Ordering {
    if crate::weakened!("p1_exchange") {
        Ordering::Acquire
    } else {
        Ordering::AcqRel
    }
}

/// An owning pointer to an object that readers of `Domain` may hold references to.
///
/// # Safety
/// An implementer keeps the guarantees below.
///
/// # Guarantees
/// 1. `into_raw` and `from_raw` are inverse and touch nothing; the pointer stays valid in between.
/// 2. Dropping the pointer hands the object over to be dropped and freed after a grace period of `Domain`, on any
///    thread; so the object is `Send + Sync` if it crosses threads, and lives for `'static`.
/// 3. The pointer never gives out `&mut` to the object, and claims no uniqueness of it (hole 10 of the peers).
pub unsafe trait RcuPointer: Sized {
    /// What the pointer points to.
    type Target;
    /// Whose readers may look.
    type Domain: Domain;

    /// Gives the object up without dropping it.
    #[must_use]
    fn into_raw(self) -> NonNull<Self::Target>;

    /// Takes the object back.
    ///
    /// # Safety
    /// 1. `raw` came from `into_raw` of this type, and is taken back once.
    #[must_use]
    unsafe fn from_raw(raw: NonNull<Self::Target>) -> Self;

    /// Drops and frees the object at once.
    ///
    /// # Safety
    /// 1. As for `from_raw`; and no reader holds or can find a reference.
    unsafe fn drop_now(raw: NonNull<Self::Target>);
}

/// A place for an owning pointer (or none) that readers load under a guard and writers replace.
///
/// Dropping the cell retires what is in it.
///
/// A reference cannot outlive the guard:
/// ```compile_fail
/// use rcu_core::{Domain, Guard, RcuCell, RcuPointer};
/// fn leak<'a, P: RcuPointer>(cell: &'a RcuCell<P>, guard: Guard<P::Domain>) -> Option<&'a P::Target> {
///     cell.load(&guard)
/// }
/// ```
/// nor the cell:
/// ```compile_fail
/// use rcu_core::{Domain, Guard, RcuCell, RcuPointer};
/// fn leak<'a, P: RcuPointer>(cell: RcuCell<P>, guard: &'a Guard<P::Domain>) -> Option<&'a P::Target> {
///     cell.load(guard)
/// }
/// ```
/// and a guard of another domain is another type:
/// ```compile_fail
/// use rcu_core::{Domain, Guard, RcuCell, RcuPointer};
/// fn mix<P: RcuPointer, Other: Domain>(cell: &RcuCell<P>, guard: &Guard<Other>) {
///     cell.load(guard);
/// }
/// ```
pub struct RcuCell<P: RcuPointer> {
    pointer: AtomicPtr<P::Target>,
    _owns: PhantomData<*mut P>,
}

// SAFETY: sharing the cell shares the object and lets any thread take the pointer out.
unsafe impl<P: RcuPointer + Send + Sync> Sync for RcuCell<P> where P::Target: Send + Sync {}
// SAFETY: owning the cell is owning the pointer, and readers elsewhere may still see the object.
unsafe impl<P: RcuPointer + Send + Sync> Send for RcuCell<P> where P::Target: Send + Sync {}

/// A [`RcuCell::compare_exchange`] that found another pointer; gives the new one back.
#[must_use = "the pointer that was not stored is in here"]
pub struct CompareExchangeError<'g, P: RcuPointer> {
    /// What the cell holds instead.
    pub current: Option<&'g P::Target>,
    /// What was to be stored.
    pub new: Option<P>,
}

impl<P: RcuPointer> fmt::Debug for CompareExchangeError<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompareExchangeError")
            .field("current_is_some", &self.current.is_some())
            .finish_non_exhaustive()
    }
}

impl<P: RcuPointer> fmt::Display for CompareExchangeError<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the cell holds another pointer than expected")
    }
}

impl<P: RcuPointer> core::error::Error for CompareExchangeError<'_, P> {}

fn raw_or_null<T>(pointer: Option<NonNull<T>>) -> *mut T {
    pointer.map_or(ptr::null_mut(), NonNull::as_ptr)
}

impl<P: RcuPointer> RcuCell<P> {
    crate::const_fn! {
        /// A cell with nothing in it.
        #[must_use]
        pub const fn empty() -> Self {
            Self { pointer: AtomicPtr::new(ptr::null_mut()), _owns: PhantomData }
        }
    }

    /// A cell that holds `pointer`.
    #[must_use]
    pub fn new(pointer: P) -> Self {
        Self {
            pointer: AtomicPtr::new(pointer.into_raw().as_ptr()),
            _owns: PhantomData,
        }
    }

    /// The object in the cell, for as long as the guard's section lasts.
    #[inline(always)]
    #[must_use]
    #[doc(alias = "rcu_dereference")]
    pub fn load<'g>(&'g self, guard: &'g impl Section<P::Domain>) -> Option<&'g P::Target> {
        let _ = guard;
        // ORDERING: P1 (load side).
        let raw = self.pointer.load(Ordering::Acquire);
        // SAFETY: a pointer in the cell is valid, and stays so for a grace period after it is replaced, which
        // cannot end before the guard's section; the cell outlives `'g`, so it is not dropped meanwhile.
        unsafe { raw.as_ref() }
    }

    /// Whether the cell holds nothing at this moment. Needs no guard, since nothing is looked at.
    #[must_use]
    #[doc(alias = "rcu_access_pointer")]
    pub fn is_none(&self) -> bool {
        // ORDERING: Relaxed: the value only.
        self.pointer.load(Ordering::Relaxed).is_null()
    }

    /// Puts `new` into the cell and gives back what was there, to wait for a grace period.
    #[doc(alias = "rcu_replace_pointer")]
    pub fn swap(&self, new: Option<P>) -> Option<Retired<P>> {
        self.swap_raw(new).map(Retired::new)
    }

    /// Puts `new` into the cell and retires what was there.
    #[doc(alias = "rcu_assign_pointer")]
    pub fn store(&self, new: Option<P>) {
        drop(self.swap_raw(new));
    }

    /// Empties the cell.
    pub fn take(&self) -> Option<Retired<P>> {
        self.swap(None)
    }

    fn swap_raw(&self, new: Option<P>) -> Option<P> {
        let new = raw_or_null(new.map(P::into_raw));
        // ORDERING: P1 (publish side); Acquire, so that the old object's state is seen by its destructor.
        let old = self.pointer.swap(new, swap_order());
        // SAFETY: what was in the cell came from `into_raw`, and the swap took it out for us alone.
        NonNull::new(old).map(|old| unsafe { P::from_raw(old) })
    }

    /// Puts `new` into the cell if it still holds `current`, a reference from [`Self::load`] under `guard` (which
    /// keeps the address from being used again).
    ///
    /// # Errors
    /// The cell holds something else; `new` comes back.
    pub fn compare_exchange<'g>(
        &'g self,
        current: Option<&'g P::Target>,
        new: Option<P>,
        guard: &'g impl Section<P::Domain>,
    ) -> Result<Option<Retired<P>>, CompareExchangeError<'g, P>> {
        let _ = guard;
        let expected = current.map_or(ptr::null_mut(), |c| ptr::from_ref(c).cast_mut());
        let raw = new.map(P::into_raw);
        // ORDERING: P1 (publish side; load side on failure).
        match self.pointer.compare_exchange(
            expected,
            raw_or_null(raw),
            exchange_order(),
            Ordering::Acquire,
        ) {
            Ok(old) => {
                // SAFETY: as in `swap_raw`; `old` has the provenance that the cell held.
                Ok(NonNull::new(old).map(|old| Retired::new(unsafe { P::from_raw(old) })))
            }
            Err(found) => Err(CompareExchangeError {
                // SAFETY: as in `load`.
                current: unsafe { found.as_ref() },
                // SAFETY: it was not stored, so it is still ours.
                new: raw.map(|raw| unsafe { P::from_raw(raw) }),
            }),
        }
    }

    /// Replaces the object by what `f` makes of it, again and again until no other writer came in between.
    /// An empty cell is left alone; returns what was replaced.
    pub fn update(
        &self,
        guard: &impl Section<P::Domain>,
        mut f: impl FnMut(&P::Target) -> P,
    ) -> Option<Retired<P>> {
        loop {
            let current = self.load(guard)?;
            if let Ok(old) = self.compare_exchange(Some(current), Some(f(current)), guard) {
                return old;
            }
        }
    }

    /// Takes the pointer out of a cell that nobody shares.
    #[must_use]
    pub fn into_inner(self) -> Option<P> {
        ManuallyDrop::new(self).swap_raw(None)
    }
}

impl<P: RcuPointer> Drop for RcuCell<P> {
    fn drop(&mut self) {
        self.store(None);
    }
}

impl<P: RcuPointer> Default for RcuCell<P> {
    fn default() -> Self {
        Self::empty()
    }
}

impl<P: RcuPointer> From<P> for RcuCell<P> {
    fn from(pointer: P) -> Self {
        Self::new(pointer)
    }
}

/// Shows whether the cell is empty, never the object (a formatter has no guard: RUSTSEC-2026-0204).
impl<P: RcuPointer> fmt::Debug for RcuCell<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RcuCell")
            .field("is_none", &self.is_none())
            .finish()
    }
}

/// A cookie of the domain of `P`, for what was unlinked just now.
pub(crate) fn snapshot<P: RcuPointer>() -> crate::Cookie {
    P::Domain::default().snapshot()
}
