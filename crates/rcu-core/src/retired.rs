//! What was taken out of sight and waits for its readers.

use crate::cell::{RcuPointer, snapshot};
use crate::contract::GracePeriod;
use crate::seq::Cookie;
use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

/// An object that no new reader can find, with the cookie after which no old one holds it.
///
/// Dropping it hands the object to its domain. Keeping it, and asking [`Self::try_take`] later, gives the
/// object back for reuse without a trip through the allocator.
#[must_use = "dropped, the object is freed after its grace period"]
pub struct Retired<P: RcuPointer> {
    pointer: ManuallyDrop<P>,
    cookie: Cookie,
}

impl<P: RcuPointer> Retired<P> {
    pub(crate) fn new(pointer: P) -> Self {
        Self {
            pointer: ManuallyDrop::new(pointer),
            cookie: snapshot::<P>(),
        }
    }

    /// The cookie that has to be done before the object is unseen.
    #[must_use]
    pub const fn cookie(&self) -> Cookie {
        self.cookie
    }

    /// Whether no reader holds the object any more.
    #[must_use]
    pub fn is_ripe(&self) -> bool {
        P::Domain::default().poll(self.cookie)
    }

    /// The object, exclusively, if its grace period is over.
    ///
    /// # Errors
    /// Gives itself back if it is not.
    pub fn try_take(self) -> Result<Owned<P>, Self> {
        if !self.is_ripe() {
            return Err(self);
        }
        Ok(self.into_owned())
    }

    /// The object, exclusively, after waiting for its grace period. Blocks; not inside a section.
    #[must_use]
    pub fn wait(self) -> Owned<P> {
        P::Domain::default().wait(self.cookie);
        self.into_owned()
    }

    fn into_owned(self) -> Owned<P> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is never dropped, so the pointer is taken once.
        let pointer = unsafe { ManuallyDrop::take(&mut this.pointer) };
        // INVARIANT: the cookie is done, so no reader holds the object; it was unlinked before.
        Owned {
            raw: pointer.into_raw(),
        }
    }
}

impl<P: RcuPointer> Drop for Retired<P> {
    fn drop(&mut self) {
        // SAFETY: dropped once, here; `into_owned` never drops.
        unsafe { ManuallyDrop::drop(&mut self.pointer) };
    }
}

impl<P: RcuPointer> fmt::Debug for Retired<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retired")
            .field("cookie", &self.cookie)
            .finish_non_exhaustive()
    }
}

/// An object that no reader sees: owned like a box, and publishable again.
///
/// # Invariants
/// No reader holds a reference to the object or can find it.
pub struct Owned<P: RcuPointer> {
    raw: NonNull<P::Target>,
}

// SAFETY: owning it is owning the pointer and the object.
unsafe impl<P: RcuPointer + Send> Send for Owned<P> where P::Target: Send {}
// SAFETY: sharing it shares the object.
unsafe impl<P: RcuPointer + Sync> Sync for Owned<P> where P::Target: Sync {}

impl<P: RcuPointer> Owned<P> {
    /// The pointer, to be published.
    #[must_use]
    pub fn into_pointer(self) -> P {
        let raw = ManuallyDrop::new(self).raw;
        // SAFETY: the raw pointer came from `into_raw`, and `self` is not dropped.
        unsafe { P::from_raw(raw) }
    }
}

impl<P: RcuPointer> Deref for Owned<P> {
    type Target = P::Target;

    fn deref(&self) -> &P::Target {
        // SAFETY: valid and owned.
        unsafe { self.raw.as_ref() }
    }
}

impl<P: RcuPointer> DerefMut for Owned<P> {
    fn deref_mut(&mut self) -> &mut P::Target {
        // SAFETY: valid, owned, and by the type's invariant unseen by readers.
        unsafe { self.raw.as_mut() }
    }
}

impl<P: RcuPointer> Drop for Owned<P> {
    fn drop(&mut self) {
        // SAFETY: the raw pointer came from `into_raw` and is given up here; no reader sees it (invariant).
        unsafe { P::drop_now(self.raw) };
    }
}

impl<P: RcuPointer> fmt::Debug for Owned<P>
where
    P::Target: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Owned").field(&**self).finish()
    }
}
