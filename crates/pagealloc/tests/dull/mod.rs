//! A page allocator with nothing to it: one mutex around the global allocator and a map.

use pagealloc::{AllocError, Attempt, Order, PageAlloc, PageReq, PageTag};
use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Mutex;

/// Blocks that are out, by address.
#[derive(Default)]
pub(crate) struct Dull(Mutex<BTreeMap<usize, (Order, PageTag)>>);

// SAFETY: the tags' pointers are kept, not followed.
unsafe impl Send for Dull {}
// SAFETY: as above.
unsafe impl Sync for Dull {}

fn layout(order: Order) -> Layout {
    Layout::from_size_align(order.bytes(), order.bytes()).unwrap()
}

// SAFETY: 1: the global allocator's promise; 2: it frees; 3: it has no zone lock; 4: the map.
unsafe impl PageAlloc for Dull {
    fn alloc(&self, req: PageReq) -> Result<NonNull<u8>, AllocError> {
        let layout = layout(req.order);
        let block = if req.zero {
            // SAFETY: the layout is not empty.
            unsafe { std::alloc::alloc_zeroed(layout) }
        } else {
            // SAFETY: as above.
            unsafe { std::alloc::alloc(layout) }
        };
        let block = NonNull::new(block).ok_or(AllocError::OutOfMemory)?;
        let note = (req.order, PageTag::NONE);
        self.0.lock().unwrap().insert(block.addr().get(), note);
        Ok(block)
    }

    unsafe fn free_at(&self, block: NonNull<u8>, order: Order, _attempt: Attempt) {
        let noted = self.0.lock().unwrap().remove(&block.addr().get());
        assert_eq!(noted.map(|(order, _)| order), Some(order));
        // SAFETY: the block came from `alloc` with this layout.
        unsafe { std::alloc::dealloc(block.as_ptr(), layout(order)) };
    }

    unsafe fn set_tag(&self, block: NonNull<u8>, order: Order, tag: PageTag) {
        let note = (order, tag);
        assert!(
            self.0
                .lock()
                .unwrap()
                .insert(block.addr().get(), note)
                .is_some()
        );
    }

    fn tag(&self, address: *const u8) -> Option<PageTag> {
        let map = self.0.lock().unwrap();
        let (start, (order, tag)) = map.range(..=address.addr()).next_back()?;
        (address.addr() - start < order.bytes()).then_some(*tag)
    }

    fn order_of(&self, block: *const u8) -> Option<Order> {
        self.0
            .lock()
            .unwrap()
            .get(&block.addr())
            .map(|(order, _)| *order)
    }
}
