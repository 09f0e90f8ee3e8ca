//! Who keeps a slab's pages beyond their readers: a count beside what the slabs lock guards.
//!
//! Not inside of [`Slab`], to which whoever has the lock makes exclusive references.

use super::Slab;
use crate::config::Shape;
use core::ptr::NonNull;
use pagealloc::PageAlloc;
use rcu_core::sync::atomic::{AtomicUsize, Ordering};
use static_assertions::const_assert;
#[cfg(not(loom))]
use static_assertions::const_assert_eq;

/// More references than this to one slab are the work of somebody who forgets them: the program ends before the count wraps.
const MAX_HOLDS: usize = isize::MAX as usize;

/// A slab's descriptor, two cache lines of which the first is hot, and beside it what others than the holder of the slabs lock touch.
#[repr(C, align(128))]
#[derive(Debug)]
pub(crate) struct Descriptor {
    slab: Slab,
    holds: AtomicUsize,
}
// Under loom words are larger than they look.
#[cfg(not(loom))]
const_assert_eq!(size_of::<Descriptor>(), 128);
const_assert!(core::mem::offset_of!(Descriptor, slab) == 0);

impl Descriptor {
    /// Makes the descriptor of a slab with all objects free, on no list, held by nobody. `nth` as for [`Slab::new`].
    pub(crate) fn new(cache: *const (), base: NonNull<u8>, shape: &Shape, nth: usize) -> Self {
        Self {
            slab: Slab::new(cache, base, shape, nth),
            holds: AtomicUsize::new(0),
        }
    }
}

/// Who keeps a slab's pages: a count in its descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holds(NonNull<AtomicUsize>);

impl Holds {
    /// The count of `slab`.
    ///
    /// # Safety
    /// 1. `slab` is the first field of a [`Descriptor`], with provenance for all of that.
    pub(super) unsafe fn of(slab: NonNull<Slab>) -> Self {
        let descriptor = slab.cast::<Descriptor>().as_ptr();
        // SAFETY: the field is inside of the descriptor (debt 1); no reference is made.
        let holds = unsafe { &raw mut (*descriptor).holds };
        // SAFETY: a field of what is not null.
        Self(unsafe { NonNull::new_unchecked(holds) })
    }

    /// The count of the slab that `object` lies in; `None` if it lies in none.
    ///
    /// # Safety
    /// 1. `object` is of a slab of a cache with `shape` over `pages`, which stays while this call lasts.
    pub(crate) unsafe fn of_object<P: PageAlloc>(
        shape: &Shape,
        pages: &P,
        object: *const u8,
    ) -> Option<Self> {
        let tag = pages.tag(object).filter(|tag| tag.tag == shape.tag)?;
        let slab = NonNull::new(tag.owner.cast::<Slab>())?;
        // SAFETY: debt 1, and I3: the tag was made from the descriptor's block.
        Some(unsafe { Self::of(slab) })
    }

    /// One more.
    ///
    /// # Safety
    /// 1. The slab cannot be given back meanwhile: the caller has a hold of it, an object of it that is out, or is in a
    ///    section in which it found an object of it (I5).
    pub(crate) unsafe fn take(self) {
        // SAFETY: descriptors last as long as their slabs (debt 1).
        let holds = unsafe { self.0.as_ref() };
        // ORDERING: Relaxed: what keeps the slab until now orders this before the look at the count: the object's way home and
        // the slabs lock, or the end of the section and its grace period (P3, P4).
        if holds.fetch_add(1, Ordering::Relaxed) > MAX_HOLDS {
            exhausted();
        }
    }

    /// One less.
    ///
    /// # Safety
    /// 1. The hold is the caller's, and the memory that it kept is not used any more.
    pub(crate) unsafe fn release(self) {
        // SAFETY: the slab is held until the subtraction (debt 1).
        let holds = unsafe { self.0.as_ref() };
        // ORDERING: P7 (user's side): what the holder did is before the page's next use.
        holds.fetch_sub(1, Ordering::Release);
    }

    pub(super) fn any(self) -> bool {
        // SAFETY: the caller is under the slabs lock with a slab of the lists, whose descriptor lives.
        let holds = unsafe { self.0.as_ref() };
        // ORDERING: P7 (taker's side).
        holds.load(Ordering::Acquire) > 0
    }
}

#[cold]
fn exhausted() -> ! {
    crate::fault::end(format_args!("slab: too many references to one slab"))
}
