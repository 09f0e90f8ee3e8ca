//! A list to which anyone can add without waiting, and from which all is taken at once.
//!
//! What a try-lock could not deliver goes here: whoever holds the lock next takes it in. Source: the
//! kernel's deferred frees of `kfree_nolock` (6.18). Why not a Treiber stack with single pops:
//! popping one node meets ABA, taking all does not.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `head` | the newest node, or null | adders by compare-exchange; takers by exchange with null |
//!
//! # Orderings
//! - P6. `push` (Release) / `take_all` (Acquire): the taker sees the node's link and everything the adder wrote to
//!   the node before. (Mutants: `p6_inbox` weakens the adder's side, `p6_deferred` the taker's; the models are `tests/loom_cache.rs`.)
//!
//! # Progress
//! `take_all` is wait-free, `push` lock-free. Both may be used in any context.

use core::ptr::{self, NonNull};
use rcu_core::sync::atomic::{AtomicPtr, Ordering};

/// P6: what adding and taking are worth, and their mutants.
#[inline(always)]
fn add_order() -> Ordering {
    if rcu_core::weakened!("p6_inbox") {
        Ordering::Relaxed
    } else {
        Ordering::Release
    }
}
#[inline(always)]
fn take_order() -> Ordering {
    if rcu_core::weakened!("p6_deferred") {
        Ordering::Relaxed
    } else {
        Ordering::Acquire
    }
}

/// The first word of a node: the next one.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) next: Option<NonNull<Link>>,
}

/// The list.
#[derive(Debug)]
pub(crate) struct Inbox {
    head: AtomicPtr<Link>,
}

impl Inbox {
    rcu_core::const_fn! {
        /// An empty list.
        pub(crate) const fn new() -> Self {
            Self {
                head: AtomicPtr::new(ptr::null_mut()),
            }
        }
    }

    /// Adds a node.
    ///
    /// # Safety
    /// 1. `node` is valid for writes of a [`Link`], and is the list's until it is taken.
    pub(crate) unsafe fn push(&self, node: NonNull<Link>) {
        // ORDERING: Relaxed: looked at again by the exchange; not followed.
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            let link = Link {
                next: NonNull::new(head),
            };
            // SAFETY: the node is writable (debt 1), and nobody else knows it yet.
            unsafe { node.write(link) };
            // ORDERING: P6 (adder's side).
            match self.head.compare_exchange_weak(
                head,
                node.as_ptr(),
                add_order(),
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Whether there seems to be nothing: a hint.
    pub(crate) fn is_empty(&self) -> bool {
        // ORDERING: Relaxed: a hint; what is missed is found by who comes next.
        self.head.load(Ordering::Relaxed).is_null()
    }

    /// Takes all nodes, newest first, linked to each other.
    pub(crate) fn take_all(&self) -> Option<NonNull<Link>> {
        // Saves the exchange; what is missed is taken next time.
        if self.is_empty() {
            return None;
        }
        // ORDERING: P6 (taker's side).
        NonNull::new(self.head.swap(ptr::null_mut(), take_order()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_add_is_taken_once() {
        let inbox = Inbox::new();
        struct Node(Link);
        // SAFETY: a node is used by one thread at a time, as the list hands it on.
        unsafe impl Send for Node {}
        let mut nodes: [Vec<Node>; 2] =
            core::array::from_fn(|_| (0..500).map(|_| Node(Link { next: None })).collect());
        let mut taken = 0;
        let count = |mut at: Option<NonNull<Link>>| {
            let mut n = 0;
            while let Some(node) = at {
                n += 1;
                // SAFETY: the nodes outlive the scope below, and taken ones are this thread's.
                at = unsafe { node.as_ref() }.next;
            }
            n
        };
        std::thread::scope(|s| {
            for half in &mut nodes {
                let inbox = &inbox;
                s.spawn(move || {
                    for node in half.iter_mut() {
                        // SAFETY: the node is writable and used for nothing else.
                        unsafe { inbox.push(NonNull::from(&mut node.0)) };
                    }
                });
            }
            for _ in 0..100 {
                taken += count(inbox.take_all());
            }
        });
        taken += count(inbox.take_all());
        assert_eq!(taken, 1000);
        assert!(inbox.take_all().is_none());
    }
}
