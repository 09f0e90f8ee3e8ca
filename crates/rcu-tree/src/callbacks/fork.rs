//! The callbacks in the child of a fork: see [`super`].

use super::queue::{SlotCalls, SlotQueue};
use super::{Callbacks, Orphans};
use crate::slot::TreeSlot;
use rcu_core::SegList;
use rcu_core::cpu::{LocalLock, PerSlot};
use rcu_core::sync::atomic::Ordering;

impl Callbacks {
    /// How many callbacks forks have lost, about.
    pub(crate) fn lost(&self) -> usize {
        // ORDERING: Relaxed: a statistic.
        self.lost.load(Ordering::Relaxed)
    }

    /// Takes every callback to the orphans, the caller's too: with all lists empty, the next callback that is queued is
    /// the first one, and its queuer sees to threads. What another thread was running or moving is lost: what it holds
    /// cannot be found, and its list is not to be trusted.
    ///
    /// # Safety
    /// 1. This is the child of a fork and the caller its only thread, inside none of these functions.
    pub(crate) unsafe fn reset_after_fork<L: LocalLock>(&self, slots: &PerSlot<'_, TreeSlot<L>>) {
        // SAFETY: there is no other thread, and the caller does not hold the lock (1).
        let (mut orphans, whole) = unsafe { self.orphans.seize() };
        let mut lost = give_up(&mut orphans.list, whole);
        orphans.awaited = 0;
        // They start over, as the slots' do: what they were waiting for was asked for by nobody who is here, and whoever was
        // to end it may have gone.
        let mut waiting = core::mem::take(&mut orphans.list);
        orphans.list.merge(&mut waiting);
        self.take_shared(&mut orphans);
        for (_, slot) in slots.iter() {
            // SAFETY: as the caller's (1).
            lost += unsafe { slot.calls.reset_after_fork(&mut orphans) };
        }
        // SAFETY: as above.
        let (posts, no_barrier) = unsafe { self.barrier.seize_after_fork() };
        if !no_barrier {
            // Nobody waits for its heads any more, and the next barrier uses them again.
            let orphans_head = posts.head();
            let start = slots.as_ptr().addr().get();
            let in_slots = start..start + slots.len() * size_of::<TreeSlot<L>>();
            orphans
                .list
                .remove_if(|head| head == orphans_head || in_slots.contains(&head.addr().get()));
        }
        // ORDERING: Relaxed: there is one thread.
        self.overloaded.store(0, Ordering::Relaxed);
        // ORDERING: Relaxed: a statistic.
        self.lost.fetch_add(lost, Ordering::Relaxed);
    }
}

impl<L: LocalLock> SlotCalls<L> {
    /// Moves what is here to `orphans`, or forgets it; returns how many callbacks that loses.
    ///
    /// # Safety
    /// 1. As for [`Callbacks::reset_after_fork`].
    unsafe fn reset_after_fork(&self, orphans: &mut Orphans) -> usize {
        // SAFETY: there is no other thread, and the caller is not inside (1).
        let (mut queue, whole) = unsafe { self.queue.seize() };
        let mut lost = 0;
        if whole {
            queue.unpark();
        } else {
            lost += queue.bypass.len();
        }
        lost += give_up(&mut queue.list, whole);
        orphans.list.merge(&mut queue.list);
        // Never half changed: pushed and taken by one instruction.
        orphans.list.insert_pending(self.take_aside());
        *queue = SlotQueue::new();
        self.publish(&queue);
        // ORDERING: Relaxed: a time, of another clock than the child's.
        self.since.store(0, Ordering::Relaxed);
        lost
    }
}

/// Makes a list usable whose holder, or whose batch's runner, is gone; returns how many callbacks that loses.
fn give_up(list: &mut SegList, whole: bool) -> usize {
    if whole {
        let lost = list.in_flight();
        list.finished(lost);
        lost
    } else {
        let lost = list.len();
        *list = SegList::new();
        lost
    }
}
