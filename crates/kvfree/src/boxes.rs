//! Functions that drop and free many foreign objects of one type.

use crate::glue::each_contained;
use core::alloc::Layout;
use core::mem::needs_drop;
use core::ptr::NonNull;

/// Drops and frees boxes of the global allocator; returns how many destructors panicked.
///
/// Without drop glue this is a loop over `dealloc` with one layout.
///
/// # Safety
/// 1. Each came from `Box::<T>::into_raw`, once, and nobody sees it.
pub(crate) unsafe fn free_boxes<T>(objects: &mut [NonNull<u8>]) -> usize {
    if needs_drop::<T>() {
        return each_contained(objects, |object| {
            // SAFETY: 1. A box frees its memory also if its value's destructor panics.
            drop(unsafe { Box::from_raw(object.cast::<T>().as_ptr()) });
        });
    }
    // SAFETY: a box's memory is of its type's layout (1), and there is nothing to drop.
    unsafe { dealloc_many(objects, Layout::new::<T>()) };
    0
}

/// Gives memory of the global allocator back.
///
/// # Safety
/// 1. Each was allocated with this layout, once, and nobody sees it.
pub(crate) unsafe fn dealloc_many(objects: &[NonNull<u8>], layout: Layout) {
    if layout.size() == 0 {
        return;
    }
    for object in objects {
        // SAFETY: 1.
        unsafe { std::alloc::dealloc(object.as_ptr(), layout) };
    }
}

/// As [`free_boxes`], for boxes of an allocator without a size.
///
/// # Safety
/// 1. As for [`free_boxes`], from boxes of `A`, any value of which frees what any other allocated.
#[cfg(feature = "allocator-api2")]
pub(crate) unsafe fn free_boxes_in<T, A>(objects: &mut [NonNull<u8>]) -> usize
where
    A: allocator_api2::alloc::Allocator + Default,
{
    use allocator_api2::boxed::Box;
    each_contained(objects, |object| {
        // SAFETY: 1.
        drop(unsafe { Box::from_raw_in(object.cast::<T>().as_ptr(), A::default()) });
    })
}
