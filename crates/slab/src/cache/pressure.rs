//! What a cache does when pages run low.
//!
//! Every cache lists a [`PressureHook`](pagealloc::PressureHook) where its pages come from. It runs inside somebody's request for
//! pages, perhaps the cache's own, so it waits for nothing: it passes by slots and locks that are busy. It finds no lock of its own
//! thread's, for no page is asked for under one (*Contexts* of the cache).

use super::Inner;
use pagealloc::{Attempt, PageAlloc};
use rcu_core::GracePeriod;
use rcu_core::cpu::Cpus;

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Inner<C, P, G> {
    /// The pressure hook.
    ///
    /// # Safety
    /// 1. `inner` leads to the cache whose hook this is, which lives.
    pub(super) unsafe fn relieve(inner: *const (), pages: usize) -> usize {
        // SAFETY: debt 1: the hook is removed before the cache ends.
        let this = unsafe { &*inner.cast::<Self>() };
        this.shrink(pages, Attempt::TryLock)
    }
}
