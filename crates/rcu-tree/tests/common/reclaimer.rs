//! Boxes that wait for a tree of these tests' own.

use rcu_core::{Callback, Head, Rcu, Reclaimer};
use std::mem::offset_of;
use std::ptr::NonNull;

rcu_tree::static_tree! {
    /// Readers of these tests.
    pub(crate) struct Readers;
}

/// Boxes of the global allocator with a head in front, one callback each.
#[derive(Clone, Copy, Default)]
pub(crate) struct Boxes;

#[repr(C)]
struct WithHead<T> {
    head: Head,
    value: T,
}

impl<T> WithHead<T> {
    fn head_of(object: NonNull<T>) -> NonNull<Head> {
        // SAFETY: objects of `Boxes` lie in a `WithHead`, at this offset.
        unsafe { object.cast::<u8>().sub(offset_of!(Self, value)) }.cast()
    }

    /// # Safety
    /// `head` is that of a leaked box, given up.
    unsafe fn free(head: NonNull<Head>) {
        // SAFETY: the head is the first field of a leaked box.
        drop(unsafe { Box::from_raw(head.cast::<Self>().as_ptr()) });
    }
}

// SAFETY: boxes stay where they are; `call` waits for a grace period, never fails and never blocks.
unsafe impl Reclaimer for Boxes {
    type Domain = Readers;

    fn allocate<T: Send + Sync + 'static>(&self, value: T) -> Result<NonNull<T>, T> {
        let head = Head::new();
        let whole = NonNull::from(Box::leak(Box::new(WithHead { head, value })));
        // SAFETY: the value lies inside the box.
        Ok(unsafe { whole.cast::<u8>().add(offset_of!(WithHead<T>, value)) }.cast())
    }

    unsafe fn retire<T: 'static>(&self, object: NonNull<T>) {
        let head = WithHead::head_of(object);
        // SAFETY: given up by the caller; `T: Send`, so any thread may drop it.
        unsafe { Readers.call(head, Callback::Run(WithHead::<T>::free)) };
    }

    unsafe fn free<T: 'static>(&self, object: NonNull<T>) {
        // SAFETY: given up by the caller, and unseen.
        unsafe { WithHead::<T>::free(WithHead::head_of(object)) };
    }
}
