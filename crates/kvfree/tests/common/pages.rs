//! Pages from the global allocator, behind one mutex, that fail when told to.

use pagealloc::{AllocError, Attempt, Order, PageAlloc, PageReq, PageTag};
use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard};

/// When the source refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Never,
    /// The call with this number, counted from 0.
    Once(usize),
    /// That call and all later ones.
    From(usize),
    /// Whatever may not wait.
    Below(Attempt),
}

struct Block {
    memory: NonNull<u8>,
    order: Order,
    tag: PageTag,
}

struct State {
    blocks: BTreeMap<usize, Block>,
    calls: usize,
    refused: usize,
    failure: Failure,
}

// SAFETY: blocks and tags are plain addresses here.
unsafe impl Send for State {}

/// Runs at every call that may wait: the world turns meanwhile.
type Meanwhile = Box<dyn Fn() + Send>;

pub(crate) struct Pages {
    state: Mutex<State>,
    meanwhile: Mutex<Option<Meanwhile>>,
}

impl Pages {
    pub(crate) const fn new() -> Self {
        Self::failing(Failure::Never)
    }

    pub(crate) const fn failing(failure: Failure) -> Self {
        let blocks = BTreeMap::new();
        Self {
            state: Mutex::new(State {
                blocks,
                calls: 0,
                refused: 0,
                failure,
            }),
            meanwhile: Mutex::new(None),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn set_failure(&self, failure: Failure) {
        self.state().failure = failure;
    }

    /// What happens while an allocation waits, once.
    pub(crate) fn meanwhile(&self, f: impl Fn() + Send + 'static) {
        *self.meanwhile.lock().unwrap() = Some(Box::new(f));
    }

    /// How often memory was asked for.
    pub(crate) fn calls(&self) -> usize {
        self.state().calls
    }

    pub(crate) fn refused(&self) -> usize {
        self.state().refused
    }

    /// Blocks that are out.
    pub(crate) fn outstanding(&self) -> usize {
        self.state().blocks.len()
    }
}

fn layout(order: Order) -> Layout {
    Layout::from_size_align(order.bytes(), order.bytes()).unwrap()
}

// SAFETY: the global allocator's memory is valid and disjoint; one mutex around everything (it waits at every level, which tests
// without signal handlers do not mind); tags are kept by block.
unsafe impl PageAlloc for Pages {
    fn alloc(&self, req: PageReq) -> Result<NonNull<u8>, AllocError> {
        if req.attempt == Attempt::MayGrow
            && let Some(f) = self.meanwhile.lock().unwrap().take()
        {
            f();
        }
        let mut state = self.state();
        let call = state.calls;
        state.calls += 1;
        let fails = match state.failure {
            Failure::Never => false,
            Failure::Once(n) => call == n,
            Failure::From(n) => call >= n,
            Failure::Below(attempt) => req.attempt < attempt,
        };
        if fails {
            state.refused += 1;
            return Err(AllocError::OutOfMemory);
        }
        // SAFETY: the layout is not empty.
        let memory = unsafe { std::alloc::alloc_zeroed(layout(req.order)) };
        let memory = NonNull::new(memory).ok_or(AllocError::OutOfMemory)?;
        if !req.zero {
            // SAFETY: freshly allocated, this long.
            unsafe { memory.write_bytes(0xa5, req.order.bytes()) };
        }
        let block = Block {
            memory,
            order: req.order,
            tag: PageTag::NONE,
        };
        state.blocks.insert(memory.addr().get(), block);
        Ok(memory)
    }

    unsafe fn free_at(&self, block: NonNull<u8>, order: Order, _attempt: Attempt) {
        let mut state = self.state();
        let found = state.blocks.remove(&block.addr().get());
        let found = found.expect("freed a block that is not out");
        assert_eq!(found.order, order);
        // SAFETY: allocated above with this layout.
        unsafe { std::alloc::dealloc(found.memory.as_ptr(), layout(order)) };
    }

    unsafe fn set_tag(&self, block: NonNull<u8>, order: Order, tag: PageTag) {
        let mut state = self.state();
        let found = state.blocks.get_mut(&block.addr().get());
        let found = found.expect("tagged a block that is not out");
        assert_eq!(found.order, order);
        found.tag = tag;
    }

    fn tag(&self, address: *const u8) -> Option<PageTag> {
        let state = self.state();
        let (start, block) = state.blocks.range(..=address.addr()).next_back()?;
        (address.addr() - start < block.order.bytes()).then_some(block.tag)
    }

    fn order_of(&self, block: *const u8) -> Option<Order> {
        self.state().blocks.get(&block.addr()).map(|b| b.order)
    }
}
