//! How much waits in a cache, and when a grace period is asked for.
//!
//! One count for all slots, and for all caches of one allocator: a grace period makes everybody's sheaves ripe, so it is asked for by whoever
//! seals the sheaf that brings the count to the threshold. With a count for each slot, n threads would ask n times as often, or n times as
//! much would wait; so would n size classes.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `objects` | objects in sealed sheaves | whoever seals one, or lets one go |
//! | `waiting` | what they weigh (small ones more than their bytes) | whoever seals one, or lets one go |
//! | `bytes` | bytes in sealed sheaves | whoever seals one, or lets one go |
//! | `unasked` | what was sealed, by weight, since a grace period was last asked for | whoever seals them; zero: whoever asks |
//! | `asked` | the cookie last asked for | whoever asks |
//! | `in_vain` | the cookie that somebody waited for a little, and it did not come | who waited |
//!
//! `bytes` is there so that whoever keeps a budget does not have to ask each of an allocator's caches, a sheaf of which may be a few objects.
//!
//! They share a line, which a slot writes once a sheaf. All but the first are an [`Asking`], perhaps another cache's.
//!
//! # Orderings
//! None: these are numbers, and hints whether driving is worth while. Objects are handed out by their sheaf's own cookie.

use core::sync::atomic::{AtomicUsize, Ordering};
use rcu_core::sync::Backoff;
use rcu_core::{Cookie, GracePeriod};

/// How often, and how long, who may sleep waits for one grace period: a few of a scheduler's time slices in all.
#[cfg(feature = "std")]
const NAPS: u32 = 100;
#[cfg(feature = "std")]
const NAP: core::time::Duration = core::time::Duration::from_micros(50);

/// How much waits in one cache.
#[derive(Debug)]
pub(crate) struct Waiting {
    objects: AtomicUsize,
    /// Of the cache, unless it asks with another one.
    pub(crate) asking: Asking,
}

/// What grace periods are asked for, and which was.
#[derive(Debug)]
pub(crate) struct Asking {
    waiting: AtomicUsize,
    bytes: AtomicUsize,
    unasked: AtomicUsize,
    asked: AtomicUsize,
    in_vain: AtomicUsize,
}

impl Waiting {
    pub(crate) const fn new() -> Self {
        Self {
            objects: AtomicUsize::new(0),
            asking: Asking {
                waiting: AtomicUsize::new(0),
                bytes: AtomicUsize::new(0),
                unasked: AtomicUsize::new(0),
                asked: AtomicUsize::new(Cookie::COMPLETED.raw()),
                in_vain: AtomicUsize::new(Cookie::COMPLETED.raw()),
            },
        }
    }

    pub(crate) fn objects(&self) -> usize {
        // ORDERING: Relaxed: a number; it may be out of date when it is used anyway.
        self.objects.load(Ordering::Relaxed)
    }

    /// Counts the objects of a sheaf that was just sealed.
    pub(crate) fn sealed(&self, objects: usize) {
        // ORDERING: Relaxed: a number for statistics and budgets.
        self.objects.fetch_add(objects, Ordering::Relaxed);
    }

    /// Counts objects that do not wait any more.
    pub(crate) fn let_go(&self, objects: usize) {
        // ORDERING: Relaxed: a number for statistics and budgets.
        self.objects.fetch_sub(objects, Ordering::Relaxed);
    }
}

impl Asking {
    /// Counts what was just sealed, by its weight and its bytes.
    pub(crate) fn sealed(&self, weight: usize, bytes: usize) {
        // ORDERING: Relaxed: a number for budgets.
        self.waiting.fetch_add(weight, Ordering::Relaxed);
        // ORDERING: Relaxed: as above.
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        // ORDERING: Relaxed: as above.
        self.unasked.fetch_add(weight, Ordering::Relaxed);
    }

    /// Counts what does not wait any more.
    pub(crate) fn let_go(&self, weight: usize, bytes: usize) {
        // ORDERING: Relaxed: a number for budgets.
        self.waiting.fetch_sub(weight, Ordering::Relaxed);
        // ORDERING: Relaxed: as above.
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// What the sealed sheaves weigh.
    pub(crate) fn weight(&self) -> usize {
        // ORDERING: Relaxed: a number; it may be out of date when it is used anyway.
        self.waiting.load(Ordering::Relaxed)
    }

    /// Bytes in sealed sheaves.
    pub(crate) fn bytes(&self) -> usize {
        // ORDERING: Relaxed: as above.
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether it is time to ask for a grace period; then counts as asked.
    pub(crate) fn should_ask(&self, threshold_bytes: usize) -> bool {
        // ORDERING: Relaxed: of two who come at once, the second finds less, or asks for the same grace period.
        self.unasked.load(Ordering::Relaxed) >= threshold_bytes
            // ORDERING: Relaxed: as above.
            && self.unasked.swap(0, Ordering::Relaxed) >= threshold_bytes
    }

    /// The cookie last asked for.
    pub(crate) fn asked(&self) -> Cookie {
        // ORDERING: Relaxed: a hint; the cookie is polled again.
        Cookie::from_raw(self.asked.load(Ordering::Relaxed))
    }

    pub(crate) fn set_asked(&self, cookie: Cookie) {
        // ORDERING: Relaxed: a hint, as above.
        self.asked.store(cookie.raw(), Ordering::Relaxed);
    }

    /// Waits until `cookie`, the one that was asked for last, is done, but for so long only that a reader which lost its CPU gets it back;
    /// and not at all if somebody waited for it in vain already. Holds no lock.
    pub(crate) fn linger(&self, cookie: Cookie, gp: &impl GracePeriod) {
        // ORDERING: Relaxed: a hint: two that wait do no harm.
        if self.in_vain.load(Ordering::Relaxed) == cookie.raw() {
            return;
        }
        let backoff = Backoff::new();
        while !backoff.is_completed() {
            gp.drive();
            if gp.poll(cookie) {
                return;
            }
            backoff.snooze();
        }
        // A yield lets those run who wait for this CPU; a sleep lets others come to it.
        #[cfg(feature = "std")]
        for _ in 0..NAPS {
            std::thread::sleep(NAP);
            gp.drive();
            if gp.poll(cookie) {
                return;
            }
        }
        // ORDERING: Relaxed: a hint, as above.
        self.in_vain.store(cookie.raw(), Ordering::Relaxed);
    }
}
