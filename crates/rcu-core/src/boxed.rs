//! A box whose object outlives it by a grace period.

use crate::cell::RcuPointer;
use crate::section::Section;
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;

/// Where the objects of [`RcuBox`]es live and how they are retired: the seam to kvfree.
///
/// # Safety
/// An implementer keeps the guarantees below.
///
/// # Guarantees
/// 1. `allocate` moves the value to memory of its own, valid and at rest until `retire` or `free`.
/// 2. `retire` drops the object in place and frees its memory after a grace period of `Domain` that began after the
///    call; it never fails, never blocks and may be called inside a section.
/// 3. All values of the type act as one.
pub unsafe trait Reclaimer: Copy + Default + Send + Sync + 'static {
    /// Whose readers may look at the objects.
    type Domain: crate::contract::Domain;

    /// Moves `value` to fresh memory.
    ///
    /// # Errors
    /// Gives the value back if there is no memory.
    fn allocate<T: Send + Sync + 'static>(&self, value: T) -> Result<NonNull<T>, T>;

    /// Drops and frees `object` after a grace period.
    ///
    /// # Safety
    /// 1. `object` came from `allocate::<T>` (so `T` is `Send + Sync`) and is given up once.
    /// 2. No new reader can find it.
    #[doc(alias = "kvfree_rcu")]
    unsafe fn retire<T: 'static>(&self, object: NonNull<T>);

    /// Drops and frees `object` now.
    ///
    /// # Safety
    /// 1. As for `retire`.
    /// 2. No reader holds a reference to it.
    unsafe fn free<T: 'static>(&self, object: NonNull<T>);
}

/// A box that readers may look into, and whose object therefore outlives it by a grace period.
///
/// Gives `&T` only; dropping it retires the object. To change the object, publish another one, or take it back
/// through [`Retired::try_take`](crate::Retired::try_take).
///
/// What is in it may have cells for more of its kind:
///
/// ```
/// use rcu_core::{RcuBox, RcuCell, Reclaimer};
/// struct Node<R: Reclaimer> {
///     value: u64,
///     next: RcuCell<RcuBox<Node<R>, R>>,
/// }
/// fn share<T: Send + Sync>() {}
/// fn a_list_is_shared<R: Reclaimer>() {
///     share::<Node<R>>();
/// }
/// ```
pub struct RcuBox<T: 'static, R: Reclaimer> {
    object: NonNull<T>,
    _reclaimer: PhantomData<(T, R)>,
}

// SAFETY: `T: Send + Sync`, and the reclaimer takes objects from any thread. (Boxes are only made of such `T`s. That it is not
// asked for elsewhere lets a node have a cell for another node: the compiler would go round in circles.)
unsafe impl<T: Send + Sync + 'static, R: Reclaimer> Send for RcuBox<T, R> {}
// SAFETY: only `&T` is given out.
unsafe impl<T: Send + Sync + 'static, R: Reclaimer> Sync for RcuBox<T, R> {}

impl<T: Send + Sync + 'static, R: Reclaimer> RcuBox<T, R> {
    /// Moves `value` into a box.
    ///
    /// # Panics
    /// If there is no memory; see [`Self::try_new`].
    #[must_use]
    pub fn new(value: T) -> Self {
        match Self::try_new(value) {
            Ok(this) => this,
            Err(_) => panic!("out of memory for an RcuBox of {} bytes", size_of::<T>()),
        }
    }

    /// Moves `value` into a box.
    ///
    /// # Errors
    /// Gives the value back if there is no memory.
    pub fn try_new(value: T) -> Result<Self, T> {
        let object = R::default().allocate(value)?;
        Ok(Self {
            object,
            _reclaimer: PhantomData,
        })
    }
}

impl<T: 'static, R: Reclaimer> RcuBox<T, R> {
    /// The object, for as long as the guard's section lasts, even if the box is dropped meanwhile.
    #[must_use]
    pub fn rcu_ref<'g>(&self, guard: &'g impl Section<R::Domain>) -> &'g T {
        let _ = guard;
        // SAFETY: the object is valid while the box is, and for a grace period afterwards, which cannot end
        // before the guard's section does.
        unsafe { self.object.as_ref() }
    }
}

// SAFETY: 1: the pointer is the box's one field; 2: `Reclaimer::retire`; 3: only `&T` is given out.
unsafe impl<T: 'static, R: Reclaimer> RcuPointer for RcuBox<T, R> {
    type Target = T;
    type Domain = R::Domain;

    fn into_raw(self) -> NonNull<T> {
        ManuallyDrop::new(self).object
    }

    unsafe fn from_raw(raw: NonNull<T>) -> Self {
        Self {
            object: raw,
            _reclaimer: PhantomData,
        }
    }

    unsafe fn drop_now(raw: NonNull<T>) {
        // SAFETY: the object came from `allocate`, is given up (1), and nobody looks at it.
        unsafe { R::default().free(raw) };
    }
}

impl<T: 'static, R: Reclaimer> Deref for RcuBox<T, R> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: valid while the box is.
        unsafe { self.object.as_ref() }
    }
}

impl<T: 'static, R: Reclaimer> Drop for RcuBox<T, R> {
    fn drop(&mut self) {
        // SAFETY: from `allocate`, given up here; whoever published the box has unlinked it, since it is owned here.
        unsafe { R::default().retire(self.object) };
    }
}

impl<T: fmt::Debug + 'static, R: Reclaimer> fmt::Debug for RcuBox<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<T: fmt::Display + 'static, R: Reclaimer> fmt::Display for RcuBox<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}
