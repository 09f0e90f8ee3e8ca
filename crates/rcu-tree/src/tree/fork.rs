//! How a tree gets its hooks listed, and what it does in the child of a fork.
//!
//! # State
//! | `hooked` | meaning | left by |
//! |---|---|---|
//! | `UNLISTED` | no slot came online yet | the first one that does |
//! | `LISTING` + n | a thread of the process of [generation](rcu_core::fork::generation) n is listing the hook | that thread; in a later generation, whoever comes |
//! | `LISTED` | the hook is on the list | dropping the tree |
//!
//! # Invariants
//! - I1. One thread writes the hook, while it is on no list. A thread of an earlier generation is not there to go on; and
//!   if it had got as far as listing the hook, the hook has been run since and has stored `LISTED`.
//! - I2. After the hook has run in the child, the tree is as if the one thread there is were the only one that ever used
//!   it, save that the sequences go on: cookies from before the fork stay valid. Modes (who runs callbacks, what is
//!   expedited, hurried or suppressed) and counts are as they were.
//!
//! # Why the child starts no worker
//! It may be about to call `exec`. Nothing is driven before somebody asks again; so that whoever asks next sees to a
//! worker, nothing counts as asked for, and the slots' lists are empty: the callbacks are with the orphans.
//!
//! What is assumed of `fork`: the child finds a consistent cut, in which each thread stands between two of its
//! instructions and nobody saw what has not happened. Linux copies memory while no thread of the parent can write to it.

use super::Tree;
use crate::marks;
use crate::trace::{Lane, NoTrace, Trace};
use core::ptr::{self, NonNull};
use rcu_core::cpu::{Cpus, OfflineHook, Slot};
use rcu_core::fence;
use rcu_core::fork::generation;
use rcu_core::sync::Backoff;
use rcu_core::sync::atomic::Ordering;

pub(super) const UNLISTED: usize = 0;
pub(super) const LISTED: usize = 1;
const LISTING: usize = 2;

impl<C: Cpus, T: Trace> Tree<'_, C, T> {
    /// Lists the hook, once (I1).
    pub(super) fn list_hook(&self) {
        let mine = LISTING + generation();
        let backoff = Backoff::new();
        loop {
            // ORDERING: Acquire meets the Release below: the hook is listed.
            let seen = self.hooked.load(Ordering::Acquire);
            if seen == LISTED {
                return;
            }
            if seen == mine {
                backoff.snooze();
                continue;
            }
            // ORDERING: Relaxed: what was written of the hook before is written anew.
            if self
                .hooked
                .compare_exchange(seen, mine, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
            {
                break;
            }
        }
        // SAFETY: `offline_hook` may run on any slot's owner while the tree is there.
        let hook = unsafe { OfflineHook::new(Self::offline_hook, ptr::from_ref(self).cast()) };
        // SAFETY: `fork_hook` may run in the child of a fork while the tree is there; a caller of the tree's functions is
        // inside one, and a thread that forks is inside none (its own debt).
        let hook = unsafe { hook.with_fork(Self::fork_hook) };
        // SAFETY: this thread alone is at it (I1), before anyone else looks.
        let place = unsafe { &mut *self.hook.get() };
        let hook = NonNull::from(place.write(hook));
        // SAFETY: the hook stays until `drop` takes it off the list, and is on no list yet.
        unsafe { self.cpus.add_offline_hook(hook) };
        // ORDERING: Release: whoever sees `LISTED` knows the hook listed.
        self.hooked.store(LISTED, Ordering::Release);
    }

    /// Makes the tree the survivor's alone (I2).
    ///
    /// # Safety
    /// 1. `tree` is the tree that listed the hook.
    /// 2. This is the child of a fork and the caller its only thread, inside no function of the tree; `survivor` is its
    ///    slot, if it has one.
    /// 3. No section without a slot from before the fork is used or left.
    unsafe fn fork_hook(tree: *const (), survivor: Option<Slot>) {
        // SAFETY: the hook's data is the tree, which takes the hook off before it goes (1).
        let tree = unsafe { &*tree.cast::<Self>() };
        // ORDERING: Relaxed: there is one thread. The hook is being run, so it is listed (I1).
        tree.hooked.store(LISTED, Ordering::Relaxed);
        tree.nodes.reset_after_fork();
        for (slot, own) in tree.slots.iter() {
            if Some(slot) != survivor {
                own.reader.reset_after_fork();
            } else if own.reader.is_online() {
                tree.nodes.set_online(slot, &NoTrace);
            }
        }
        fence::full();
        // SAFETY: 2 and 3.
        unsafe { tree.shared.reset_after_fork() };
        for lane in Lane::ALL {
            // SAFETY: 2; the fence above.
            unsafe {
                tree.machine(lane)
                    .reset_after_fork(lane, &tree.gp, &tree.nodes)
            };
        }
        tree.gp.reset_after_fork();
        for waiters in &tree.waiters {
            // SAFETY: 2.
            unsafe { waiters.reset_after_fork() };
        }
        // SAFETY: 2.
        unsafe { tree.stalls.reset_after_fork() };
        // Of sections without a slot, which are no more (3); the caller runs no callback (2).
        marks::forget(tree.mark());
        // SAFETY: 2.
        unsafe { tree.callbacks.reset_after_fork(&tree.slots) };
        tree.worker.reset_after_fork();
    }
}

#[cfg(all(test, feature = "std", not(loom)))]
mod tests {
    use super::*;
    use crate::{Geometry, Node, TreeSlot};
    use rcu_core::GracePeriod;
    use rcu_core::cpu::{BiasedLock, PerSlot, Threads};

    #[test]
    fn a_listing_that_a_thread_of_the_parent_began_is_taken_over() {
        let slots: Vec<_> = (0..Threads.nr_slots())
            .map(|_| TreeSlot::new(BiasedLock::new()))
            .collect();
        let geometry = Geometry::new(slots.len());
        let nodes: Vec<_> = (0..geometry.nr_nodes()).map(|_| Node::new()).collect();
        // SAFETY: neither moved nor forgotten below; a thread keeps its slot.
        let tree = unsafe { Tree::new(Threads, PerSlot::from_slice(&slots), geometry, &nodes) };
        // ORDERING: Relaxed: one thread.
        tree.hooked
            .store(LISTING + generation() + 1, Ordering::Relaxed);
        assert!(tree.own_slot().is_some());
        // ORDERING: Relaxed: one thread.
        let hooked = tree.hooked.load(Ordering::Relaxed);
        assert_eq!(hooked, LISTED);
        tree.synchronize();
    }
}
