//! A dull page source, slots by hand, and objects that know what they are.
#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

#[cfg(not(loom))]
#[path = "../../../pagealloc/tests/cases/mod.rs"]
pub(crate) mod cases;
#[path = "../../../rcu-core/tests/common/hand.rs"]
mod hand;

pub(crate) use hand::Hand;

use pagealloc::{AllocError, Attempt, Order, PageAlloc, PageReq, PageTag};
use rcu_core::Cookie;
use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// When a page source fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Never,
    /// The call with this number, counted from 0.
    Once(usize),
    /// That call and all later ones.
    From(usize),
}

struct Block {
    memory: NonNull<u8>,
    order: Order,
    align: usize,
    tag: PageTag,
}

struct State {
    blocks: BTreeMap<usize, Block>,
    calls: usize,
    failure: Failure,
}

// SAFETY: blocks and tags are plain addresses here.
unsafe impl Send for State {}

/// Pages from the global allocator, behind one mutex.
pub(crate) struct Pages(Mutex<State>, AtomicUsize);

impl Pages {
    pub(crate) const fn new() -> Self {
        Self::failing(Failure::Never)
    }

    pub(crate) const fn failing(failure: Failure) -> Self {
        let state = State {
            blocks: BTreeMap::new(),
            calls: 0,
            failure,
        };
        Self(Mutex::new(state), AtomicUsize::new(0))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn set_failure(&self, failure: Failure) {
        self.state().failure = failure;
    }

    /// How often memory was asked for.
    pub(crate) fn calls(&self) -> usize {
        self.state().calls
    }

    /// How often somebody looked for a tag.
    pub(crate) fn looks(&self) -> usize {
        self.1.load(Ordering::Relaxed)
    }

    /// Blocks that are out.
    pub(crate) fn outstanding(&self) -> usize {
        self.state().blocks.len()
    }
}

impl Pages {
    /// Bytes of the blocks that are out.
    pub(crate) fn outstanding_bytes(&self) -> usize {
        self.state().blocks.values().map(|b| b.order.bytes()).sum()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // Blocks that a test lost on purpose.
        for block in self.state().blocks.values() {
            // SAFETY: allocated below with this layout.
            unsafe { std::alloc::dealloc(block.memory.as_ptr(), layout(block.order, block.align)) };
        }
    }
}

fn layout(order: Order, align: usize) -> Layout {
    Layout::from_size_align(order.bytes(), order.bytes().max(align)).unwrap()
}

// SAFETY: the global allocator's memory is valid and disjoint; one mutex around everything (it waits at every level, which a test
// without signal handlers does not mind); tags are kept by block.
unsafe impl PageAlloc for Pages {
    fn alloc(&self, req: PageReq) -> Result<NonNull<u8>, AllocError> {
        let mut state = self.state();
        let call = state.calls;
        state.calls += 1;
        let fails = match state.failure {
            Failure::Never => false,
            Failure::Once(n) => call == n,
            Failure::From(n) => call >= n,
        };
        if fails {
            return Err(AllocError::OutOfMemory);
        }
        // SAFETY: the layout is not empty.
        let memory = unsafe { std::alloc::alloc_zeroed(layout(req.order, req.align)) };
        let memory = NonNull::new(memory).ok_or(AllocError::OutOfMemory)?;
        if !req.zero {
            // SAFETY: freshly allocated, this long.
            unsafe { memory.write_bytes(0xa5, req.order.bytes()) };
        }
        let block = Block {
            memory,
            order: req.order,
            align: req.align,
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
        unsafe { std::alloc::dealloc(found.memory.as_ptr(), layout(order, found.align)) };
    }

    unsafe fn set_tag(&self, block: NonNull<u8>, order: Order, tag: PageTag) {
        let mut state = self.state();
        let found = state.blocks.get_mut(&block.addr().get());
        let found = found.expect("tagged a block that is not out");
        assert_eq!(found.order, order);
        found.tag = tag;
    }

    fn tag(&self, address: *const u8) -> Option<PageTag> {
        self.1.fetch_add(1, Ordering::Relaxed);
        let state = self.state();
        let (start, block) = state.blocks.range(..=address.addr()).next_back()?;
        (address.addr() - start < block.order.bytes()).then_some(block.tag)
    }

    fn order_of(&self, block: *const u8) -> Option<Order> {
        self.state().blocks.get(&block.addr()).map(|b| b.order)
    }
}

/// What an object's memory says about it. The cache never writes there.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Canary {
    state: usize,
    cookie: usize,
    tail: usize,
}

const LIVE: usize = 0x1234_5678_9abc_def0;
const FREED: usize = 0x0fed_cba9_8765_4321;
const RETIRED: usize = 0x5555_aaaa_5555_aaaa;

impl Canary {
    fn at(object: NonNull<u8>) -> NonNull<Self> {
        assert!(object.cast::<Self>().is_aligned());
        object.cast()
    }

    fn read(object: NonNull<u8>) -> Self {
        // SAFETY: objects of these tests have room for a canary and are initialised by the page source.
        unsafe { Self::at(object).read() }
    }

    fn write(object: NonNull<u8>, state: usize, cookie: usize) {
        let mark = state ^ object.addr().get();
        let canary = Self {
            state: mark,
            cookie,
            tail: !mark,
        };
        // SAFETY: as above; the object is the caller's.
        unsafe { Self::at(object).write(canary) };
    }

    fn is(object: NonNull<u8>, state: usize) -> bool {
        let canary = Self::read(object);
        canary.state == state ^ object.addr().get() && canary.tail == !canary.state
    }

    /// Checks that an object that was just handed out may be, and marks it as out.
    pub(crate) fn hand_out(object: NonNull<u8>, done: impl FnOnce(Cookie) -> bool) {
        assert!(!Self::is(object, LIVE), "handed out twice");
        if Self::is(object, RETIRED) {
            let cookie = Cookie::from_raw(Self::read(object).cookie);
            assert!(done(cookie), "handed out before its grace period ended");
        }
        Self::write(object, LIVE, 0);
    }

    /// Makes an object's first value. As its last user left it from then on, in a cache that keeps it so.
    ///
    /// # Safety
    /// 1. `object` is the caller's.
    pub(crate) unsafe fn build(object: NonNull<u8>) {
        Self::write(object, FREED, 0);
    }

    /// Checks that a free object is as it was left.
    pub(crate) fn check_kept(object: NonNull<u8>) {
        let is_kept = Self::is(object, FREED) || Self::is(object, RETIRED);
        assert!(is_kept, "T22: written to while it was free");
    }

    /// Checks that an object is out and was left alone.
    pub(crate) fn check(object: NonNull<u8>) {
        assert!(Self::is(object, LIVE), "written to while it was out");
    }

    pub(crate) fn free(object: NonNull<u8>) {
        Self::check(object);
        Self::write(object, FREED, 0);
    }

    /// `cookie` is taken before the object is retired: a bound from below on the cache's own.
    pub(crate) fn retire(object: NonNull<u8>, cookie: Cookie) {
        Self::check(object);
        Self::write(object, RETIRED, cookie.raw());
    }

    /// Takes a `retire` back that the cache refused.
    pub(crate) fn refuse(object: NonNull<u8>) {
        assert!(Self::is(object, RETIRED));
        Self::write(object, LIVE, 0);
    }
}
