//! `Kmalloc` as an allocator of the collections of `allocator-api2`.

use super::{CLASS_BYTES, Kmalloc, class_of};
use allocator_api2::alloc::{AllocError, Allocator};
use core::alloc::Layout;
use core::num::NonZero;
use core::ptr::NonNull;
use pagealloc::PageAlloc;
use rcu_core::GracePeriod;
use rcu_core::cpu::Cpus;

/// What an allocation of nothing is given: no memory, an address of the right alignment.
fn nothing(layout: Layout) -> NonNull<[u8]> {
    let address = NonZero::new(layout.align()).unwrap_or(NonZero::<usize>::MIN);
    NonNull::slice_from_raw_parts(NonNull::without_provenance(address), 0)
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Kmalloc<C, P, G> {
    /// All that an allocation may use.
    ///
    /// # Safety
    /// As for [`Self::kfree_sized`]; it stays allocated.
    unsafe fn whole(&self, memory: NonNull<u8>, layout: Layout) -> NonNull<[u8]> {
        // SAFETY: the caller's debt.
        NonNull::slice_from_raw_parts(memory, unsafe { self.sized_bytes(memory, layout) })
    }

    /// # Safety
    /// As for [`Allocator::grow`] and [`Allocator::shrink`].
    unsafe fn resize(
        &self,
        memory: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        if old.size() == 0 {
            return self.allocate(new);
        }
        if new.size() == 0 {
            // SAFETY: not used any more, and came from here.
            unsafe { self.deallocate(memory, old) };
            return Ok(nothing(new));
        }
        // SAFETY: came from here and fits the old layout; only the caller uses it.
        let moved = unsafe { self.resize_sized(memory, old, new) };
        let moved = moved.map_err(|_| AllocError)?;
        // SAFETY: out, and the caller's.
        Ok(unsafe { self.whole(moved, new) })
    }
}

// SAFETY: as for `GlobalAlloc`; moving the value moves no memory, and it has no clones.
unsafe impl<C: Cpus, P: PageAlloc, G: GracePeriod> Allocator for Kmalloc<C, P, G> {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            return Ok(nothing(layout));
        }
        let memory = self.kmalloc(layout).map_err(|_| AllocError)?;
        // SAFETY: out, and the caller's.
        Ok(unsafe { self.whole(memory, layout) })
    }

    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            return Ok(nothing(layout));
        }
        // What is said to be there is zeroed: all of the class.
        let class = class_of(layout).map(|class| CLASS_BYTES[class]);
        let size = class.unwrap_or(layout.size());
        let whole = Layout::from_size_align(size, layout.align()).map_err(|_| AllocError)?;
        let memory = self.kzalloc(whole).map_err(|_| AllocError)?;
        // SAFETY: out, and the caller's.
        Ok(unsafe { self.whole(memory, whole) })
    }

    unsafe fn deallocate(&self, memory: NonNull<u8>, layout: Layout) {
        if layout.size() > 0 {
            // SAFETY: the caller's: it came from here for a layout that this one fits, and is not used any more.
            unsafe { self.kfree_sized(memory, layout) };
        }
    }

    unsafe fn grow(
        &self,
        memory: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's debts.
        unsafe { self.resize(memory, old, new) }
    }

    unsafe fn grow_zeroed(
        &self,
        memory: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's debts.
        let grown = unsafe { self.resize(memory, old, new) }?;
        // SAFETY: inside of the block: it is no smaller than before.
        let rest = unsafe { grown.cast::<u8>().add(old.size()) };
        // SAFETY: as above, and the caller's.
        unsafe { rest.write_bytes(0, grown.len() - old.size()) };
        Ok(grown)
    }

    unsafe fn shrink(
        &self,
        memory: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's debts.
        unsafe { self.resize(memory, old, new) }
    }
}
