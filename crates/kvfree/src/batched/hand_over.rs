//! What comes to be shared: from slots that go offline, and from who retires without one.

use super::{Inner, Kvfree};
use crate::objects::Objects;
use crate::waiting::Waiting;
use core::ptr::{self, NonNull};
use pagealloc::PageAlloc;
use rcu_core::cpu::{Cpus, Slot};
use rcu_core::sync::atomic::Ordering;
use rcu_core::{CbList, Head, Rcu};

impl<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> Kvfree<C, P, R, O> {
    /// # Safety
    /// 1. `data` is the `Inner` that listed the hook; the caller owns `slot`.
    pub(super) unsafe fn offline_hook(data: *const (), slot: Slot) -> bool {
        // SAFETY: the hook is taken off before `Inner` goes (1).
        let inner = unsafe { &*data.cast::<Inner<C, P, R, O>>() };
        // ORDERING: Relaxed: the owner raised it itself.
        if slot.index() < inner.used.load(Ordering::Relaxed) {
            let slot = inner.slot(slot);
            let mut waiting = slot.waiting.visit();
            inner.orphans.lock().merge(&mut waiting, &inner.rcu);
            let stock = waiting.take_stock();
            slot.note_nonempty(false);
            drop(waiting);
            inner.free_blocks(stock);
            inner.config.watch(false);
        }
        true
    }
}

impl<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> Inner<C, P, R, O> {
    /// A lock-free push; true if the list was empty.
    pub(super) fn push_shared(&self, head: NonNull<Head>) -> bool {
        // ORDERING: Relaxed: only compared and linked to, not followed.
        let mut first = self.shared.load(Ordering::Relaxed);
        loop {
            // SAFETY: the retiring caller handed over a valid head.
            unsafe { head.as_ref() }.set_next(first);
            // ORDERING: P8 (shared list): Release hands the object over.
            match self.shared.compare_exchange_weak(
                first,
                head.as_ptr(),
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return first.is_null(),
                Err(now) => first = now,
            }
        }
    }

    /// Moves what is on the shared list to the orphans.
    pub(super) fn take_shared(&self, orphans: &mut Waiting) {
        // ORDERING: P8 (shared list): Acquire meets the pushes' Releases.
        let mut next = self.shared.swap(ptr::null_mut(), Ordering::Acquire);
        let mut heads = CbList::new();
        while let Some(head) = NonNull::new(next) {
            // SAFETY: heads on the shared list are valid, and this thread took them all.
            next = unsafe { head.as_ref() }.next();
            // SAFETY: valid, and just taken off the shared list.
            unsafe { heads.push_back(head) };
        }
        orphans.push_heads(heads);
    }
}
