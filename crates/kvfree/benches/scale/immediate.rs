//! Allocators that free at once: what a replayed trace costs them, in time and in memory.

use crate::engines::Engine;
use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A global allocator as an engine: `retire` frees.
pub(crate) struct Immediate<'a, A>(&'a A);

impl<'a, A: GlobalAlloc> Immediate<'a, A> {
    pub(crate) fn new(allocator: &'a A) -> Self {
        Self(allocator)
    }
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("sizes are checked before")
}

// SAFETY: memory of the allocator, of the size asked for.
unsafe impl<A: GlobalAlloc + Sync> Engine for Immediate<'_, A> {
    #[inline]
    fn alloc(&self, size: usize) -> NonNull<u8> {
        // SAFETY: sizes are above zero.
        NonNull::new(unsafe { self.0.alloc(layout(size)) }).expect("memory")
    }

    #[inline]
    unsafe fn retire(&self, object: NonNull<u8>, size: usize) {
        // SAFETY: as the caller owes.
        unsafe { self.0.dealloc(object.as_ptr(), layout(size)) };
    }

    fn finish(&self, _retired: usize) {}

    fn outstanding(&self, _retired: usize, _in_use: &[NonNull<u8>]) -> Option<usize> {
        Some(0)
    }

    fn waiting_bytes(&self, _retired: usize, _size: usize) -> usize {
        0
    }

    #[inline]
    fn read(&self, cell: &AtomicPtr<usize>) {
        // SAFETY: the cell holds a leaked word.
        black_box(unsafe { *cell.load(Ordering::Acquire) });
    }
}

/// rusty_alloc's own entry points: the crate has no `GlobalAlloc`.
pub(crate) struct Rusty;

// SAFETY: they are `malloc` and `free`; no layout here asks for more than their alignment.
unsafe impl GlobalAlloc for Rusty {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        rusty_alloc::alloc::malloc(layout.size())
    }

    #[inline]
    unsafe fn dealloc(&self, memory: *mut u8, _layout: Layout) {
        // SAFETY: as the caller owes.
        unsafe { rusty_alloc::alloc::free_inline(memory) };
    }
}
