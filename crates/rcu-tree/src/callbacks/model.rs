//! For the models: one slot that goes offline while a barrier looks for its callbacks.

use super::barrier::Posts;
use super::queue::number;
use super::{Callbacks, SlotCalls};
use crate::gp_seq::GpSeq;
use core::ptr::NonNull;
use rcu_core::cpu::SpinLock;
use rcu_core::sync::atomic::{AtomicUsize, Ordering};
use rcu_core::{CbList, Head};

/// A slot, the orphans, and what a barrier has posted.
#[derive(Debug)]
pub struct Migration {
    callbacks: Callbacks,
    calls: SlotCalls<SpinLock>,
    gp: GpSeq,
    online: AtomicUsize,
    posts: Posts,
}

impl Default for Migration {
    fn default() -> Self {
        Self {
            callbacks: Callbacks::new(),
            calls: SlotCalls::new(SpinLock::new()),
            gp: GpSeq::new(),
            online: AtomicUsize::new(1),
            posts: Posts::default(),
        }
    }
}

impl Migration {
    /// Queues `head` on the slot.
    ///
    /// # Safety
    /// 1. The debts of `Rcu::call`, with the callback noted in `head`.
    pub unsafe fn queue(&self, head: NonNull<Head>) {
        // SAFETY: the caller's debts; the lock needs no owner.
        unsafe { self.callbacks.queue(&self.gp, Some(&self.calls), head) };
    }

    /// Queues `head` while a visitor is inside the slot's lists, so that it is put aside.
    ///
    /// # Safety
    /// 1. The debts of `Rcu::call`, with the callback noted in `head`.
    pub unsafe fn queue_beside_a_visitor(&self, head: NonNull<Head>) {
        let _inside = self.calls.queue.visit();
        // SAFETY: the caller's debts.
        unsafe { self.queue(head) };
    }

    /// Comes as a visitor and takes in what was put aside, as whoever runs callbacks does first.
    pub fn visit(&self) {
        let mut queue = self.calls.queue.visit();
        if self.calls.collect(&mut queue) {
            self.callbacks.settle(&self.calls, &mut queue);
        }
    }

    /// As `Tree::take_offline`.
    pub fn go_offline(&self) {
        self.callbacks.migrate(&self.calls);
        // ORDERING: as in `Nodes::set_offline`.
        self.online.fetch_and(0, Ordering::Release);
    }

    /// As `Callbacks::barrier`, up to the wait.
    pub fn post(&self) {
        // ORDERING: Relaxed: published with the heads.
        self.posts.count.store(1, Ordering::Relaxed);
        // ORDERING: as in `Nodes::for_each_online`.
        if self.online.load(Ordering::Acquire) != 0 {
            self.callbacks.post(&self.gp, &self.posts, &self.calls);
        }
        self.callbacks.post_orphans(&self.posts);
        // ORDERING: as in `Callbacks::barrier`.
        self.posts.count.fetch_sub(1, Ordering::Release);
    }

    /// Whether a barrier that has posted would return now.
    pub fn is_over(&self) -> bool {
        // ORDERING: as in `Callbacks::barrier`.
        self.posts.count.load(Ordering::Acquire) == 0
    }

    /// Runs everything, calling `after` after each callback.
    pub fn run_all(&self, after: impl Fn()) {
        let mut queue = self.calls.queue.visit();
        self.calls.collect(&mut queue);
        let mut orphans = self.callbacks.orphans.lock();
        for list in [&mut queue.list, &mut orphans.list] {
            number(&self.gp, list);
            self.gp.start();
            self.gp.end();
            number(&self.gp, list);
            let mut batch: CbList = list.extract_done();
            while let Some(head) = batch.pop_front() {
                // SAFETY: popped heads are valid.
                if let rcu_core::Callback::Run(func) = unsafe { head.as_ref() }.callback() {
                    // SAFETY: a grace period has passed; run once.
                    unsafe { func(head) };
                }
                after();
            }
        }
    }
}
