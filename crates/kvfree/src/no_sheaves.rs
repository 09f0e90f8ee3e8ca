//! An allocator whose own batches are left aside: everything waits in blocks and by heads.

use crate::objects::Objects;
use core::ptr::NonNull;

/// The objects of `O`, none of which it defers by itself: "sheaves off", as a type.
///
/// For differential tests, for measurements, and where the allocator waits for grace periods of another RCU than the front end.
///
/// ```
/// # #[cfg(feature = "std")] {
/// use kvfree::{Config, DeferFree, Kvfree, NoSheaves};
/// use rcu_core::cpu::Threads;
///
/// let objects = NoSheaves(kvfree::objects());
/// // SAFETY: the allocator defers nothing; everything that is borrowed is static.
/// let front = unsafe { Kvfree::new(Threads, kvfree::pages(), kvfree::Global, objects, Config::new()) };
/// let front = front.unwrap();
/// let object = kvfree::objects().kmalloc(core::alloc::Layout::new::<u64>()).unwrap();
/// // SAFETY: it came from these objects, and nobody knows it.
/// unsafe { front.retire_mightsleep(object.cast()) };
/// assert_eq!(front.stats().objects_waiting, 1);
/// front.barrier();
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoSheaves<O>(
    /// Whose objects are freed.
    pub O,
);

// SAFETY: 1: nothing is taken; 2: as the allocator's own; 3: nothing was taken.
unsafe impl<O: Objects> Objects for NoSheaves<O> {
    #[inline]
    unsafe fn try_defer(&self, _object: NonNull<u8>) -> bool {
        false
    }

    fn is_large(&self, object: NonNull<u8>) -> bool {
        self.0.is_large(object)
    }

    fn size_bytes(&self, object: NonNull<u8>) -> usize {
        self.0.size_bytes(object)
    }

    unsafe fn free_bulk(&self, objects: &mut [NonNull<u8>]) {
        // SAFETY: the caller's debt 1.
        unsafe { self.0.free_bulk(objects) };
    }

    fn barrier(&self) {}

    fn reap(&self) -> usize {
        0
    }

    fn waiting_bytes(&self) -> usize {
        0
    }
}
