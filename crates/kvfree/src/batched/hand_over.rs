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
    /// Moves what was retired without a slot to the orphans. When each was retired is not known: they wait for a grace period from now on.
    pub(super) fn take_shared(&self, orphans: &mut Waiting) {
        let (heads, bytes) = self.shared.take();
        if !heads.is_empty() {
            orphans.push_heads(heads, bytes, self.rcu.snapshot(), self.now());
        }
    }
}
