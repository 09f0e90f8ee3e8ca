//! Where a block goes that is freed while no lock may be waited for: a stack that only grows, until
//! somebody takes all of it.
//!
//! Source: Treiber 1986, push and take-all only; Linux `llist`, used for `free_pages_nolock` (P16).
//! Why take-all: a pop by compare-exchange would need a counter against reuse (ABA); a swap does not.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `head` | the block pushed last, or `NONE` | anyone, by compare-exchange; the holder of the arena's lock, by swap |
//! | a stashed head's `next` | the block pushed before it, or `NONE` | the pusher, before its push |
//! | `peak` | the most that `pages` ever was | pushers |
//! | `pages` | pages pushed and not yet merged | pushers (+) before their push, the holder of the arena's lock (−) |
//!
//! # Invariants
//! - I1. A block is pushed by its owner and then belongs to the stash; the one who swaps owns all of them.
//! - I2. At rest, `pages` is the sum over the stash and the chain that the zone still has to work off.
//!
//! # Orderings
//! - P7 (stash). Push: Release / swap: Acquire. Forbids merging, and so handing out again, a block before its
//!   last owner's accesses. A push continues the release sequence of the ones below it: it is a read-modify-write.
//!
//! # Progress and contexts
//! Push is lock-free and right in any context; taking all is wait-free. The stash holds at most what was
//! out, and every holder of the lock works off a chunk of it (T31).

#![deny(unsafe_code)]

use crate::api::Order;
use crate::frames::Metas;
use crate::index::NONE;
use crate::meta::State;
use rcu_core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Weakened by the mutant `p7_stash`.
#[inline(always)]
fn p7_push_order() -> Ordering {
    if rcu_core::weakened!("p7_stash") {
        Ordering::Relaxed
    } else {
        Ordering::Release
    }
}

/// Weakened by the mutant `p7_take`.
#[inline(always)]
fn p7_take_order() -> Ordering {
    if rcu_core::weakened!("p7_take") {
        Ordering::Relaxed
    } else {
        Ordering::Acquire
    }
}

/// Freed blocks that wait for a holder of the arena's lock.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Stash {
    head: AtomicU32,
    pages: AtomicUsize,
    pushes: AtomicUsize,
    peak: AtomicUsize,
}

impl Stash {
    rcu_core::const_fn! {
        pub(crate) const fn new() -> Self {
            Self {
                head: AtomicU32::new(NONE),
                pages: AtomicUsize::new(0),
                pushes: AtomicUsize::new(0),
                peak: AtomicUsize::new(0),
            }
        }
    }

    /// Pushes a block that the caller owns.
    #[doc(alias = "llist_add")]
    pub(crate) fn push(&self, metas: Metas, block: u32, order: Order) {
        let meta = metas.at(block);
        meta.set_state(State::stashed(order));
        // ORDERING: Relaxed: counters; exact at rest only (I2).
        let before = self.pages.fetch_add(order.pages(), Ordering::Relaxed);
        // ORDERING: Relaxed: a counter.
        self.peak
            .fetch_max(before + order.pages(), Ordering::Relaxed);
        // ORDERING: Relaxed: a counter.
        self.pushes.fetch_add(1, Ordering::Relaxed);
        // ORDERING: Relaxed: checked again by the compare-exchange.
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            meta.set_next(head);
            // ORDERING: P7 (stash, push side).
            match self
                .head
                .compare_exchange_weak(head, block, p7_push_order(), Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Whether there seems to be nothing.
    pub(crate) fn is_empty(&self) -> bool {
        // ORDERING: Relaxed: a hint; what is missed is found by the next holder.
        self.head.load(Ordering::Relaxed) == NONE
    }

    /// Takes everything: the newest block, linked to the rest.
    #[doc(alias = "llist_del_all")]
    pub(crate) fn take_all(&self) -> u32 {
        // ORDERING: P7 (stash, take side).
        self.head.swap(NONE, p7_take_order())
    }

    /// Notes that `pages` are back in the zone.
    pub(crate) fn worked_off(&self, pages: usize) {
        // ORDERING: Relaxed: a counter.
        self.pages.fetch_sub(pages, Ordering::Relaxed);
    }

    /// Pages that wait.
    pub(crate) fn pages(&self) -> usize {
        // ORDERING: Relaxed: a counter.
        self.pages.load(Ordering::Relaxed)
    }

    /// The most pages that ever waited.
    pub(crate) fn peak(&self) -> usize {
        // ORDERING: Relaxed: a counter.
        self.peak.load(Ordering::Relaxed)
    }

    /// Blocks ever pushed.
    pub(crate) fn pushes(&self) -> usize {
        // ORDERING: Relaxed: a counter.
        self.pushes.load(Ordering::Relaxed)
    }
}
