//! The seams of this crate: whose objects are freed, and who defers their freeing.

use core::ptr::NonNull;
use rcu_core::{Head, HeadOffset};

/// An allocator whose objects can be retired: what lies below kvfree.
///
/// Production: `slab`'s `Kmalloc` (feature `slab`).
///
/// # Safety
/// An implementer keeps the guarantees below.
///
/// # Guarantees
/// 1. `try_defer` either takes the object, to free it after a grace period of the RCU that kvfree was given, or
///    returns false and has done nothing. It never blocks and allocates nothing that may wait.
/// 2. `free_bulk` frees every object, once, and may be called from any thread.
/// 3. `barrier` returns after every object that `try_defer` took before the call is really free.
pub unsafe trait Objects {
    /// Takes the object to its own batches, if it has any and can do so without waiting.
    ///
    /// # Safety
    /// 1. `object` came from this allocator, no new reader can find it, and it is given up if true comes back.
    unsafe fn try_defer(&self, object: NonNull<u8>) -> bool;

    /// As `try_defer`, if that is a push and no more: the way that most objects go, of which callers look at no limit. The provided
    /// one takes nothing.
    ///
    /// # Safety
    /// As for `try_defer`.
    #[inline]
    unsafe fn try_defer_hit(&self, _object: NonNull<u8>) -> bool {
        false
    }

    /// As `try_defer`, for a caller that may sleep: for memory, and a little so that a grace period may end. The provided one does as
    /// `try_defer`.
    ///
    /// # Safety
    /// As for `try_defer`. Not inside a section.
    #[inline]
    unsafe fn try_defer_mightsleep(&self, object: NonNull<u8>) -> bool {
        // SAFETY: the caller's debts.
        unsafe { self.try_defer(object) }
    }

    /// Whether the object is large enough to have pages of its own; these wait in a channel of their own.
    #[doc(alias = "is_vmalloc_addr")]
    fn is_large(&self, object: NonNull<u8>) -> bool;

    /// How many bytes freeing the object gives back.
    #[doc(alias = "ksize")]
    fn size_bytes(&self, object: NonNull<u8>) -> usize;

    /// Frees objects now, in whatever order; may reorder the slice.
    ///
    /// # Safety
    /// 1. Each came from this allocator, is given up, and no reader holds a reference to it.
    #[doc(alias = "kfree_bulk")]
    unsafe fn free_bulk(&self, objects: &mut [NonNull<u8>]);

    /// Blocks until every object taken by `try_defer` before is free.
    fn barrier(&self);

    /// Frees what has become ripe in the allocator's own batches, without waiting, and sees to it that the rest gets
    /// its grace period. Returns how many objects still wait.
    fn reap(&self) -> usize;

    /// About how many bytes `try_defer` took that are not free yet.
    fn waiting_bytes(&self) -> usize;
}

// SAFETY: a reference answers as its referent does.
unsafe impl<O: Objects + ?Sized> Objects for &O {
    #[inline]
    unsafe fn try_defer(&self, object: NonNull<u8>) -> bool {
        // SAFETY: the caller's debt 1.
        unsafe { (**self).try_defer(object) }
    }

    #[inline]
    unsafe fn try_defer_hit(&self, object: NonNull<u8>) -> bool {
        // SAFETY: the caller's debts.
        unsafe { (**self).try_defer_hit(object) }
    }

    #[inline]
    unsafe fn try_defer_mightsleep(&self, object: NonNull<u8>) -> bool {
        // SAFETY: the caller's debts.
        unsafe { (**self).try_defer_mightsleep(object) }
    }

    fn is_large(&self, object: NonNull<u8>) -> bool {
        (**self).is_large(object)
    }

    fn size_bytes(&self, object: NonNull<u8>) -> usize {
        (**self).size_bytes(object)
    }

    unsafe fn free_bulk(&self, objects: &mut [NonNull<u8>]) {
        // SAFETY: the caller's debt 1.
        unsafe { (**self).free_bulk(objects) };
    }

    fn barrier(&self) {
        (**self).barrier();
    }

    fn reap(&self) -> usize {
        (**self).reap()
    }

    fn waiting_bytes(&self) -> usize {
        (**self).waiting_bytes()
    }
}

/// What frees an object that is not of the [`Objects`]: drops it in place and gives its memory back.
pub type DropFn = unsafe fn(NonNull<u8>);

/// What frees many objects of one type that are not of the [`Objects`]: drops each in place and gives its memory back.
/// Returns how many destructors panicked; must not unwind. May reorder the slice.
pub type DropManyFn = unsafe fn(&mut [NonNull<u8>]) -> usize;

/// Deferred freeing: the face of the batching front end and of its unbatched twin.
///
/// # Safety
/// An implementer keeps the guarantees below.
///
/// # Guarantees
/// 1. Every object is freed exactly once, after a grace period that began after the call that retired it.
/// 2. `retire` never blocks, never waits for memory, and may be called inside a section and from callbacks.
/// 3. `barrier` returns after every object retired before the call, on any slot, is free.
pub unsafe trait DeferFree {
    /// Retires the object that `head` lies in (two arguments: the head makes it impossible to fail).
    ///
    /// # Safety
    /// 1. The object came from the allocator below, and `head` lies `offset` into it; both have the provenance
    ///    of the whole object.
    /// 2. No new reader can find the object, and it is given up.
    #[doc(alias = "kfree_rcu")]
    unsafe fn retire(&self, head: NonNull<Head>, offset: HeadOffset);

    /// Retires an object without a head. May sleep: for memory, or for a grace period. Not inside a section.
    ///
    /// # Safety
    /// 1. As for `retire`, but for the head.
    #[doc(alias = "kvfree_rcu_mightsleep")]
    unsafe fn retire_mightsleep(&self, object: NonNull<u8>);

    /// Blocks until everything retired before is free. Not inside a section, nor from a callback.
    #[doc(alias = "kvfree_rcu_barrier")]
    fn barrier(&self);
}
