//! A front end in the child of a fork.
//!
//! What waits whole in the parent waits on in the child, among the orphans, and is freed there, too: child and parent have
//! their own copies. What another thread had taken out to free it, or was just changing, is leaked in the child, and counted.

use super::{Inner, Kvfree};
use crate::objects::Objects;
use crate::waiting::Waiting;
use core::mem;
use core::ops::DerefMut;
use core::ptr;
use pagealloc::PageAlloc;
use rcu_core::Rcu;
use rcu_core::cpu::{Cpus, Slot};

/// Forgets what may be half changed.
fn forget(mut waiting: impl DerefMut<Target = Waiting>) {
    // SAFETY: valid for writes; nothing of the old value is looked at, which may be half written.
    unsafe { ptr::write(&raw mut *waiting, Waiting::new()) };
}

impl<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> Kvfree<C, P, R, O> {
    /// # Safety
    /// 1. `data` is the `Inner` that listed the hook.
    /// 2. This is the child of a fork and the caller its only thread, inside no function of the front end.
    pub(super) unsafe fn fork_hook(data: *const (), _survivor: Option<Slot>) {
        // SAFETY: the hook is taken off before `Inner` goes (1).
        let inner = unsafe { &*data.cast::<Inner<C, P, R, O>>() };
        // SAFETY: 2.
        drop(unsafe { inner.barrier_lock.seize() });
        // SAFETY: 2.
        let (mut orphans, whole) = unsafe { inner.orphans.seize() };
        if !whole {
            inner.counters.forgotten();
            forget(&mut *orphans);
        }
        // All of them: a thread that was in the middle of its first push had its lock, and had not yet made its slot known.
        for (_, slot) in inner.slots.iter() {
            if slot.rounds.reset_after_fork() {
                // Its batch is on the stack of a thread that is gone.
                inner.counters.forgotten();
            }
            // SAFETY: 2.
            let (mut waiting, whole) = unsafe { slot.waiting.seize() };
            if whole {
                // All of it, open blocks too, so that the next object here is the first, and somebody is told of it.
                orphans.merge(&mut waiting, &inner.rcu);
            } else {
                inner.counters.forgotten();
                forget(&mut *waiting);
            }
            slot.note_nonempty(false);
        }
        // What another thread was about to push is counted, and never comes.
        inner.take_shared(&mut orphans);
        inner.shared.reset_after_fork();
        // What was charged for the forgotten is nobody's.
        inner.budget.recharge(orphans.charged());
        inner.passes.reset_after_fork();
        mem::drop(orphans);
    }
}
