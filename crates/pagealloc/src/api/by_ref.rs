//! A reference to a page allocator is one.

use super::{AllocError, Attempt, Order, PageAlloc, PageReq, PageTag};
use crate::pressure::PressureHook;
use core::mem::MaybeUninit;
use core::ptr::NonNull;

// SAFETY: a reference answers as its referent does.
unsafe impl<P: PageAlloc + ?Sized> PageAlloc for &P {
    #[inline]
    fn alloc(&self, req: PageReq) -> Result<NonNull<u8>, AllocError> {
        (**self).alloc(req)
    }

    #[inline]
    unsafe fn free_at(&self, block: NonNull<u8>, order: Order, attempt: Attempt) {
        // SAFETY: the caller's debt 1.
        unsafe { (**self).free_at(block, order, attempt) };
    }

    fn alloc_bulk(&self, req: PageReq, out: &mut [MaybeUninit<NonNull<u8>>]) -> usize {
        (**self).alloc_bulk(req, out)
    }

    fn fill_bulk(&self, req: PageReq, places: &mut [Option<NonNull<u8>>]) -> usize {
        (**self).fill_bulk(req, places)
    }

    unsafe fn free_bulk(&self, blocks: &[NonNull<u8>], order: Order) {
        // SAFETY: the caller's debts.
        unsafe { (**self).free_bulk(blocks, order) };
    }

    unsafe fn set_tag(&self, block: NonNull<u8>, order: Order, tag: PageTag) {
        // SAFETY: the caller's debt 1.
        unsafe { (**self).set_tag(block, order, tag) };
    }

    #[inline]
    fn tag(&self, address: *const u8) -> Option<PageTag> {
        (**self).tag(address)
    }

    fn order_of(&self, block: *const u8) -> Option<Order> {
        (**self).order_of(block)
    }

    unsafe fn add_pressure_hook(&self, hook: NonNull<PressureHook>) {
        // SAFETY: the caller's debts.
        unsafe { (**self).add_pressure_hook(hook) };
    }

    fn remove_pressure_hook(&self, hook: NonNull<PressureHook>) {
        (**self).remove_pressure_hook(hook);
    }

    fn alloc_run(&self, pages: usize, req: PageReq) -> Result<NonNull<u8>, AllocError> {
        (**self).alloc_run(pages, req)
    }

    unsafe fn free_run_at(&self, run: NonNull<u8>, pages: usize, attempt: Attempt) {
        // SAFETY: the caller's debt 1.
        unsafe { (**self).free_run_at(run, pages, attempt) };
    }

    fn run_pages(&self, run: *const u8) -> Option<usize> {
        (**self).run_pages(run)
    }

    fn map_apart(&self, size_bytes: usize, align: usize) -> Result<NonNull<u8>, AllocError> {
        (**self).map_apart(size_bytes, align)
    }

    unsafe fn unmap_apart(&self, start: NonNull<u8>, size_bytes: usize) {
        // SAFETY: the caller's debt 1.
        unsafe { (**self).unmap_apart(start, size_bytes) };
    }

    unsafe fn remap_apart(
        &self,
        start: NonNull<u8>,
        old_bytes: usize,
        new_bytes: usize,
        may_move: bool,
    ) -> Option<NonNull<u8>> {
        // SAFETY: the caller's debt 1.
        unsafe { (**self).remap_apart(start, old_bytes, new_bytes, may_move) }
    }
}
