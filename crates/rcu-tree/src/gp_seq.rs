//! The published sequence and what is asked of it.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `seq` | the grace-period sequence | the machine's driver |
//! | `needed` | the latest cookie somebody asked for | anyone, only forwards |
//!
//! # Orderings
//! - P4. `end`'s Release / `poll`'s Acquire: what follows a true poll comes after every reader that the
//!   grace period waited for (the driver acquired their exits, P3).
//! - P5. The caller's unlinking, `snapshot`'s full fence, its load of `seq` / `start`'s store of `seq`, the
//!   driver's fence: a cookie that counts on a grace period was taken before that grace period's fence.
//!
//! # Progress
//! Wait-free, but for `request`, which is lock-free.

use core::fmt;
use crossbeam_utils::CachePadded;
use rcu_core::fence;
use rcu_core::sync::atomic::{AtomicUsize, Ordering};
use rcu_core::{Cookie, Seq};

const END: Ordering = if cfg!(weaken = "p4") {
    Ordering::Relaxed
} else {
    Ordering::Release
};

/// The grace-period sequence of one tree.
pub struct GpSeq {
    seq: CachePadded<AtomicUsize>,
    needed: CachePadded<AtomicUsize>,
}

impl Default for GpSeq {
    fn default() -> Self {
        Self::new()
    }
}

impl GpSeq {
    rcu_core::const_fn! {
        /// Idle, near the wrap, with nothing asked for.
        #[must_use]
        pub const fn new() -> Self {
            Self {
                seq: CachePadded::new(AtomicUsize::new(Seq::INITIAL.raw())),
                needed: CachePadded::new(AtomicUsize::new(Seq::INITIAL.raw())),
            }
        }
    }

    /// The sequence now, for the driver and for statistics.
    #[must_use]
    pub fn load(&self) -> Seq {
        // ORDERING: P4 (poll side): whoever acts on an ended grace period comes after it.
        Seq::from_raw(self.seq.load(Ordering::Acquire))
    }

    /// A cookie for what the caller unlinked before.
    #[must_use]
    pub fn snapshot(&self) -> Cookie {
        fence::full();
        // ORDERING: P5 (snapshot side), after the full fence; P4 (poll side): the value's end happened before.
        Seq::from_raw(self.seq.load(Ordering::Acquire)).snapshot()
    }

    /// Whether `cookie` has been reached.
    #[inline]
    #[must_use]
    pub fn poll(&self, cookie: Cookie) -> bool {
        // ORDERING: P4 (poll side).
        let seq = Seq::from_raw(self.seq.load(Ordering::Acquire));
        seq.is_done_exact(cookie) || cookie.is_completed_mark()
    }

    /// Asks that grace periods run until `cookie`. True if nobody had asked for as much.
    pub fn request(&self, cookie: Cookie) -> bool {
        // ORDERING: Relaxed: a hint that is checked again; the driver's re-check is ordered by full fences.
        let mut needed = self.needed.load(Ordering::Relaxed);
        while !cookie.is_no_later_than(Cookie::from_raw(needed)) {
            // ORDERING: Relaxed: as above.
            match self.needed.compare_exchange_weak(
                needed,
                cookie.raw(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => needed = now,
            }
        }
        false
    }

    /// Whether a grace period is in progress or asked for.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        let seq = self.load();
        // ORDERING: Relaxed: ordered by the caller's full fence where it matters.
        seq.in_progress() || !seq.is_done(Cookie::from_raw(self.needed.load(Ordering::Relaxed)))
    }

    /// Starts a grace period. The driver only, idle; it runs `heavy` next.
    pub fn start(&self) {
        let seq = self.load();
        debug_assert!(!seq.in_progress());
        // ORDERING: P5 (driver side): ordered before the scan by `heavy`. Release, so that a reader who is
        // counted by this value (see `shared_readers`) comes after what came before it.
        self.seq.store(seq.started().raw(), Ordering::Release);
    }

    /// Forgets what was asked for, in the child of a fork: who asks next is then told to see to it that somebody drives.
    pub(crate) fn reset_after_fork(&self) {
        let seq = self.load();
        let reached = seq.raw().wrapping_sub(usize::from(seq.in_progress()));
        // ORDERING: Relaxed: there is one thread.
        self.needed.store(reached, Ordering::Relaxed);
    }

    /// Ends the grace period. The driver only, after it saw every reader pass.
    pub fn end(&self) {
        // ORDERING: Relaxed: only the driver stores.
        let seq = Seq::from_raw(self.seq.load(Ordering::Relaxed));
        debug_assert!(seq.in_progress());
        // ORDERING: P4 (end side).
        self.seq.store(seq.ended().raw(), END);
    }
}

impl fmt::Debug for GpSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // ORDERING: Relaxed: a report for people.
        let needed = Cookie::from_raw(self.needed.load(Ordering::Relaxed));
        f.debug_struct("GpSeq")
            .field("seq", &self.load())
            .field("needed", &needed)
            .finish()
    }
}
