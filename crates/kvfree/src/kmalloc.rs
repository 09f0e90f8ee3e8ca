//! `slab`'s general allocator as the objects below kvfree.

use crate::objects::Objects;
use core::ptr::NonNull;
use pagealloc::{Attempt, PageAlloc};
use rcu_core::GracePeriod;
use rcu_core::cpu::Cpus;
use slab::Kmalloc;

// SAFETY: 1: `Kmalloc::retire` takes an object into a sheaf that waits for a grace period, or gives it back; 2:
// `Kmalloc::free_bulk`; 3: `Kmalloc::barrier`, which visits every slot of every class.
unsafe impl<C: Cpus + Send + Sync, P: PageAlloc, G: GracePeriod + Send + Sync> Objects
    for Kmalloc<C, P, G>
{
    #[inline]
    unsafe fn try_defer(&self, object: NonNull<u8>) -> bool {
        // SAFETY: the caller's debt 1.
        unsafe { self.retire(object) }.is_ok()
    }

    #[inline(always)]
    unsafe fn try_defer_hit(&self, object: NonNull<u8>) -> bool {
        // SAFETY: the caller's debt 1.
        unsafe { self.retire_hit(object) }
    }

    unsafe fn try_defer_mightsleep(&self, object: NonNull<u8>) -> bool {
        // SAFETY: the caller's debt 1; it may sleep.
        unsafe { self.retire_attempt(object, Attempt::MayGrow) }.is_ok()
    }

    fn is_large(&self, object: NonNull<u8>) -> bool {
        self.is_large(object.as_ptr())
    }

    fn size_bytes(&self, object: NonNull<u8>) -> usize {
        // SAFETY: callers of kvfree only pass objects of this allocator.
        unsafe { self.ksize(object) }
    }

    unsafe fn free_bulk(&self, objects: &mut [NonNull<u8>]) {
        // SAFETY: the caller's debt 1.
        unsafe { self.free_bulk(objects) };
    }

    fn barrier(&self) {
        self.barrier();
    }

    fn reap(&self) -> usize {
        self.reap()
    }

    fn waiting_bytes(&self) -> usize {
        self.waiting_bytes()
    }
}
