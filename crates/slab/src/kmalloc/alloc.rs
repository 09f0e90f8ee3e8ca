//! `Kmalloc` as an allocator of the standard kinds.

use super::{Kmalloc, class_of};
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};
use pagealloc::{Attempt, PageAlloc};
use rcu_core::GracePeriod;
use rcu_core::cpu::Cpus;

// SAFETY: memory is aligned and large enough for its layout (`class_of`; runs are aligned to a power of two no less than their size, or as
// asked for), overlaps no other (the caches' I1), and nothing here unwinds.
unsafe impl<C: Cpus, P: PageAlloc, G: GracePeriod> GlobalAlloc for Kmalloc<C, P, G> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Not by way of `kmalloc`: its two ways meet in a result that has to be put together in memory.
        let Some(class) = class_of(layout) else {
            return self.large_or_null(layout);
        };
        let memory = self.cache(class).alloc();
        memory.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    #[inline]
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if let Some(memory) = NonNull::new(memory) {
            // SAFETY: the caller's: it came from here for this layout and is not used any more; no reader is told of it.
            unsafe { self.kfree_sized(memory, layout) };
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.kzalloc(layout)
            .map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    /// Moves whatever gets a layout of another class, also where that is smaller: [`Self::dealloc`] is to find it there. Null, and nothing has
    /// changed, if there is no memory for that.
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let Some(memory) = NonNull::new(memory) else {
            return ptr::null_mut();
        };
        let Ok(new) = Layout::from_size_align(new_size, layout.align()) else {
            return ptr::null_mut();
        };
        // SAFETY: the caller's: it came from here for this layout, and the old address is not used any more if there is another.
        let moved = unsafe { self.resize_sized(memory, layout, new) };
        moved.map_or(ptr::null_mut(), NonNull::as_ptr)
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Kmalloc<C, P, G> {
    #[cold]
    #[inline(never)]
    fn large_or_null(&self, layout: Layout) -> *mut u8 {
        let memory = self.large(layout, Attempt::MayGrow, false);
        memory.map_or(ptr::null_mut(), NonNull::as_ptr)
    }
}
