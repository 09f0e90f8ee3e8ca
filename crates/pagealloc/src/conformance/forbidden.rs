//! A lower level that must not be touched: the proof that somebody does without it.

use crate::api::{AllocError, Attempt, Mobility, Order};
use crate::lower::{Changes, Extent, Ground, Lower, ORDERS, Waiting, Wanted};
use crate::mobility::{Fallback, TYPES};
use crate::runs::{Run, Runs};
use core::alloc::{Layout, LayoutError};
use core::sync::atomic::{AtomicBool, Ordering};
use rcu_core::cpu::Slot;

/// A lower level that panics when something touches it that could take a lock, from the moment it is armed.
#[derive(Debug)]
pub struct Forbidden<B> {
    inner: B,
    armed: AtomicBool,
}

impl<B> Forbidden<B> {
    /// From here on it must not be touched, but for frees at [`Attempt::PcpOnly`], which take no lock.
    pub fn arm(&self, armed: bool) {
        // ORDERING: Relaxed: tests synchronise by other means.
        self.armed.store(armed, Ordering::Relaxed);
    }

    fn touch(&self) -> &B {
        // ORDERING: Relaxed: as above.
        let armed = self.armed.load(Ordering::Relaxed);
        assert!(!armed, "the lower level was touched");
        &self.inner
    }
}

// SAFETY: the inner one's guarantees, or a panic before anything is done.
unsafe impl<B: Lower> Lower for Forbidden<B> {
    type Held<'a>
        = B::Held<'a>
    where
        Self: 'a;

    fn layout(extent: Extent) -> Result<Layout, LayoutError> {
        B::layout(extent)
    }

    unsafe fn new(ground: Ground) -> Self {
        Self {
            // SAFETY: debt 1 is passed on.
            inner: unsafe { B::new(ground) },
            armed: AtomicBool::new(false),
        }
    }

    unsafe fn add(&self, slot: Option<Slot>, run: Run) {
        // SAFETY: debt 1.
        unsafe { self.touch().add(slot, run) };
    }

    fn take(&self, wanted: Wanted, runs: &mut Runs) -> Result<(), AllocError> {
        self.touch().take(wanted, runs)
    }

    unsafe fn take_range(&self, run: Run) -> bool {
        // SAFETY: debt 1.
        unsafe { self.touch().take_range(run) }
    }

    unsafe fn give(&self, slot: Option<Slot>, runs: &Runs, attempt: Attempt) {
        let inner = if attempt == Attempt::PcpOnly {
            &self.inner
        } else {
            self.touch()
        };
        // SAFETY: debt 1.
        unsafe { inner.give(slot, runs, attempt) };
    }

    unsafe fn take_within(&self, range: Run, from: u32, runs: &mut Runs) -> u32 {
        // SAFETY: debt 1.
        unsafe { self.touch().take_within(range, from, runs) }
    }

    fn take_dirty(&self) -> Option<Run> {
        self.touch().take_dirty()
    }

    fn dirty_pages(&self) -> usize {
        self.touch().dirty_pages()
    }

    fn idle_pages(&self) -> usize {
        self.touch().idle_pages()
    }

    fn free_at(&self, page: u32) -> Option<Order> {
        // A look, which waits for nobody.
        self.inner.free_at(page)
    }

    fn changes(&self) -> Changes {
        self.touch().changes()
    }

    fn free_pages(&self) -> usize {
        self.touch().free_pages()
    }

    fn free_blocks(&self) -> [usize; ORDERS] {
        self.touch().free_blocks()
    }

    fn mobility_of(&self, page: u32) -> Option<Mobility> {
        // A hint, which waits for nobody.
        self.inner.mobility_of(page)
    }

    fn free_blocks_of(&self, mobility: Mobility) -> [usize; ORDERS] {
        self.touch().free_blocks_of(mobility)
    }

    fn set_fallback(&self, fallback: [Fallback; TYPES]) {
        self.touch().set_fallback(fallback);
    }

    fn waiting(&self) -> Waiting {
        self.touch().waiting()
    }

    fn settle(&self) {
        self.touch().settle();
    }

    fn leave(&self, slot: Slot) {
        // Threads of other tests end too.
        self.inner.leave(slot);
    }

    fn hold(&self) -> Self::Held<'_> {
        self.touch().hold()
    }
}
