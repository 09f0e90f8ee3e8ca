//! Heads that anyone may hand over without a lock, taken by whoever comes next, all at once.
//!
//! What is queued while a local lock is taken (by a visitor, or by the very thread that a signal interrupted), or on a
//! thread without a slot, comes here. Why not a queue with a tail: a push would be two steps, and a thread that stops
//! between them would hide what comes after. Why not single pops: they meet ABA; taking all does not.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `newest` | the newest head, linked to older ones; or null | pushers by compare-exchange; takers by exchange with null |
//!
//! # Orderings
//! - P8 (hand-over). `push`'s Release / `take`'s Acquire: the taker sees the links, and what the pusher did before. Pushes in
//!   between are read-modify-writes, so they carry the earlier Releases on.
//! - P8 (emptied). `take`'s Release / `is_empty`'s Acquire: who finds nothing where something was comes after whoever took
//!   it, and sees what the taker did before: a word that says where it went.
//!
//! # Progress and contexts
//! `take` is wait-free, `push` lock-free. Both in any context, signal handlers and read sections included.

use crate::cb_list::CbList;
use crate::head::Head;
use crate::sync::atomic::{AtomicPtr, Ordering};
use core::fmt;
use core::ptr::{self, NonNull};

#[inline(always)]
fn push_order() -> Ordering {
    if crate::weakened!("p8_push") {
        Ordering::Relaxed
    } else {
        Ordering::Release
    }
}

#[inline(always)]
fn emptied_order() -> Ordering {
    if crate::weakened!("p8_emptied") {
        Ordering::Relaxed
    } else {
        Ordering::Acquire
    }
}

/// A lock-free place for heads.
#[doc(alias = "llist_head")]
pub struct HeadStack {
    newest: AtomicPtr<Head>,
}

impl HeadStack {
    crate::const_fn! {
        /// Nothing in it.
        #[must_use]
        pub const fn new() -> Self {
            Self { newest: AtomicPtr::new(ptr::null_mut()) }
        }
    }

    /// Hands `head` over; true if nothing was there before, so that somebody may have to be told.
    ///
    /// # Safety
    /// 1. `head` stays valid until it was popped from the list that [`Self::take`] returns it in.
    /// 2. It is on no list, and may be moved to another thread; nobody else writes to it until then.
    ///
    /// ```
    /// use core::ptr::NonNull;
    /// use rcu_core::{Head, HeadStack};
    ///
    /// let (first, second) = (Head::new(), Head::new());
    /// let stack = HeadStack::new();
    /// // SAFETY: the heads outlive the stack, and are on no list.
    /// assert!(unsafe { stack.push(NonNull::from(&first)) });
    /// // SAFETY: as above.
    /// assert!(!unsafe { stack.push(NonNull::from(&second)) });
    /// assert_eq!(stack.take().pop_front(), Some(NonNull::from(&first)));
    /// ```
    #[doc(alias = "llist_add")]
    pub unsafe fn push(&self, head: NonNull<Head>) -> bool {
        // ORDERING: Relaxed: only compared and linked to, not followed.
        let mut newest = self.newest.load(Ordering::Relaxed);
        loop {
            // SAFETY: valid (1), and nobody else's yet (2).
            unsafe { head.as_ref() }.set_next(newest);
            // ORDERING: P8 (hand-over, pusher's side).
            match self.newest.compare_exchange_weak(
                newest,
                head.as_ptr(),
                push_order(),
                Ordering::Relaxed,
            ) {
                Ok(_) => return newest.is_null(),
                Err(now) => newest = now,
            }
        }
    }

    /// Whether nothing is there. A hint; but where something was and is no more, the caller sees what its taker did before
    /// it took it.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        // ORDERING: P8 (emptied): meets `take`'s Release. Not followed.
        self.newest.load(emptied_order()).is_null()
    }

    /// Takes everything, oldest first.
    #[doc(alias = "llist_del_all")]
    pub fn take(&self) -> CbList {
        let mut taken = CbList::new();
        if self.is_empty() {
            return taken;
        }
        // ORDERING: P8 (hand-over, taker's side; emptied).
        let mut newest = self.newest.swap(ptr::null_mut(), Ordering::AcqRel);
        let mut oldest: *mut Head = ptr::null_mut();
        while let Some(head) = NonNull::new(newest) {
            // SAFETY: heads in here are valid, and this call took them all.
            let head_ref = unsafe { head.as_ref() };
            newest = head_ref.next();
            head_ref.set_next(oldest);
            oldest = head.as_ptr();
        }
        while let Some(head) = NonNull::new(oldest) {
            // SAFETY: as above.
            oldest = unsafe { head.as_ref() }.next();
            // SAFETY: valid, and on no list any more.
            unsafe { taken.push_back(head) };
        }
        taken
    }
}

impl Default for HeadStack {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for HeadStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeadStack")
            .field("is_empty", &self.is_empty())
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_head_is_taken_once_and_in_each_pushers_order() {
        const EACH: usize = if cfg!(miri) { 50 } else { 5_000 };
        let heads: [Vec<Head>; 2] =
            core::array::from_fn(|_| (0..EACH).map(|_| Head::new()).collect());
        let stack = HeadStack::new();
        let mut taken: Vec<*const Head> = Vec::new();
        let mut drain = || {
            let mut list = stack.take();
            while let Some(head) = list.pop_front() {
                taken.push(head.as_ptr());
            }
            taken.len()
        };
        std::thread::scope(|s| {
            for half in &heads {
                let stack = &stack;
                s.spawn(move || {
                    for head in half {
                        // SAFETY: the heads outlive the scope, and each is pushed once.
                        unsafe { stack.push(NonNull::from(head)) };
                    }
                });
            }
            while drain() < 2 * EACH {
                std::thread::yield_now();
            }
        });
        for half in &heads {
            let range = half.as_ptr_range();
            let mine: Vec<_> = taken.iter().filter(|h| range.contains(h)).collect();
            assert_eq!(mine.len(), EACH);
            assert!(mine.windows(2).all(|w| w[0] < w[1]), "out of order");
        }
    }
}
