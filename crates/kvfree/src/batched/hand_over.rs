//! What comes to be shared: from slots that go offline, and from who retires without one.

use super::{Inner, Kvfree};
use crate::objects::Objects;
use crate::waiting::Waiting;
use pagealloc::PageAlloc;
use rcu_core::Rcu;
use rcu_core::cpu::{Cpus, Slot};
use rcu_core::sync::atomic::Ordering;

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
    /// Counts an object that is about to be retired without a slot.
    pub(super) fn note_shared(&self, bytes: usize) {
        self.budget.charge(bytes);
        // ORDERING: Relaxed: a number.
        self.shared_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Moves what was retired without a slot to the orphans.
    pub(super) fn take_shared(&self, orphans: &mut Waiting) {
        // ORDERING: Relaxed: a number; what is pushed in between comes with the next take.
        let bytes = self.shared_bytes.swap(0, Ordering::Relaxed);
        let heads = self.shared.take();
        if heads.is_empty() {
            // ORDERING: Relaxed: as above: its object is still on its way.
            self.shared_bytes.fetch_add(bytes, Ordering::Relaxed);
        } else {
            orphans.push_heads(heads, bytes);
        }
    }
}
