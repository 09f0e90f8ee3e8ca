//! The unbatched twin: one callback an object, as before 2019 (K20), freed by its offset, as in 2008 (K1).
//!
//! For differential tests, for measurements, and for machines that cannot spare a page a CPU.

use crate::objects::{DeferFree, Objects};
use core::fmt;
use core::ptr::NonNull;
use rcu_core::{Callback, Head, HeadOffset, Rcu};

/// Deferred freeing by `call_rcu`.
pub struct Unbatched<R, O> {
    rcu: R,
    objects: O,
}

impl<R: Rcu, O: Objects> Unbatched<R, O> {
    /// The twin over these layers.
    ///
    /// # Safety
    /// 1. `rcu` was given a way to free objects by offset (`with_free`), which frees objects of `objects`.
    ///
    /// For an example see [`unbatched`](crate::stack::Stack::unbatched), which puts one together.
    pub const unsafe fn new(rcu: R, objects: O) -> Self {
        Self { rcu, objects }
    }

    /// The allocator whose objects are retired.
    pub const fn objects(&self) -> &O {
        &self.objects
    }
}

// SAFETY: 1 and 2: `Rcu::call`, and `synchronize` for the headless; 3: `Rcu::barrier`.
unsafe impl<R: Rcu, O: Objects> DeferFree for Unbatched<R, O> {
    unsafe fn retire(&self, head: NonNull<Head>, offset: HeadOffset) {
        // SAFETY: the caller's debts, and that of `new` for the offset.
        unsafe { self.rcu.call(head, Callback::Free(offset)) };
    }

    unsafe fn retire_mightsleep(&self, object: NonNull<u8>) {
        self.rcu.synchronize();
        // SAFETY: a grace period has passed since the caller gave the object up.
        unsafe { self.objects.free_bulk(&mut [object]) };
    }

    fn barrier(&self) {
        self.rcu.barrier();
    }
}

impl<R, O> fmt::Debug for Unbatched<R, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unbatched").finish_non_exhaustive()
    }
}
