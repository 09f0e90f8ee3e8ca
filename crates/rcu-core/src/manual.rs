//! Grace periods that end when a test says so.
//!
//! The dull twin of the real implementations: nobody can read under it, so it may end a grace
//! period at any moment, and a test chooses the moment. What a layer above must not do early, it
//! then does visibly early.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `seq` | the [`Seq`] | whoever begins or ends, by compare-exchange |
//! | `wanted` | the latest cookie that was asked for | `start`, by compare-exchange |
//!
//! # Orderings
//! - P4. `end` (Release) / `poll` (Acquire), as in every implementation.
//! - P5. `snapshot`: full fence, then the load of `seq`.
//!
//! # Progress
//! Lock-free. `wait` ends what it waits for itself.

use crate::contract::GracePeriod;
use crate::fence;
use crate::seq::{Cookie, Seq};
use crate::sync::atomic::{AtomicUsize, Ordering};
use core::fmt;

/// A [`GracePeriod`] without readers, whose grace periods a test begins and ends by hand.
///
/// `wait` on a cookie that is not done begins and ends grace periods itself, so that whatever waits
/// ends. `drive` only reports, unless the value was made by [`Self::auto`]: so "progress by
/// `drive`" (guarantee 3 of [`GracePeriod`]) is up to the test. The other guarantees hold: there is
/// no section that could be cut short.
///
/// ```
/// use rcu_core::GracePeriod;
/// use rcu_core::manual::ManualGp;
///
/// let gp = ManualGp::new();
/// gp.begin();
/// let cookie = gp.start();
/// gp.end();
/// assert!(!gp.poll(cookie), "that one had begun before the cookie");
/// gp.advance();
/// assert!(gp.poll(cookie));
/// ```
pub struct ManualGp {
    seq: AtomicUsize,
    wanted: AtomicUsize,
    auto: bool,
}

impl ManualGp {
    crate::const_fn! {
        /// Grace periods by hand: `drive` does nothing.
        #[must_use]
        pub const fn new() -> Self {
            Self::with_auto(false)
        }
    }

    crate::const_fn! {
        /// Grace periods that `drive` pushes on, one step (begin, or end) a call.
        #[must_use]
        pub const fn auto() -> Self {
            Self::with_auto(true)
        }
    }

    crate::const_fn! {
        const fn with_auto(auto: bool) -> Self {
            Self {
                seq: AtomicUsize::new(Seq::INITIAL.raw()),
                wanted: AtomicUsize::new(Cookie::COMPLETED.raw()),
                auto,
            }
        }
    }

    /// The sequence now.
    #[must_use]
    pub fn seq(&self) -> Seq {
        // ORDERING: P4 (poll side).
        Seq::from_raw(self.seq.load(Ordering::Acquire))
    }

    /// Whether a cookie of [`start`](GracePeriod::start) is not done yet.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        // ORDERING: Relaxed: a number only; a request that is missed is seen by the next call.
        let wanted = Cookie::from_raw(self.wanted.load(Ordering::Relaxed));
        !self.seq().is_done(wanted)
    }

    /// Begins a grace period. Does nothing if one is in progress.
    pub fn begin(&self) {
        let now = self.seq();
        if !now.in_progress() {
            self.step(now, now.started());
        }
    }

    /// Ends the grace period in progress. Does nothing if there is none.
    pub fn end(&self) {
        let now = self.seq();
        if now.in_progress() {
            self.step(now, now.ended());
        }
    }

    /// Lets a whole grace period pass: ends one in progress, then begins and ends another.
    pub fn advance(&self) {
        self.end();
        self.begin();
        self.end();
    }

    /// Another thread that came first did as well.
    fn step(&self, from: Seq, to: Seq) {
        // ORDERING: P4 (end side): Release, and Acquire so that the next end carries it on.
        let _ =
            self.seq
                .compare_exchange(from.raw(), to.raw(), Ordering::AcqRel, Ordering::Relaxed);
    }

    fn push(&self) {
        if self.seq().in_progress() {
            self.end();
        } else {
            self.begin();
        }
    }
}

impl Default for ManualGp {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ManualGp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManualGp")
            .field("seq", &self.seq())
            .field("wanted", &self.is_wanted())
            .field("auto", &self.auto)
            .finish()
    }
}

// SAFETY: 1 holds for every cookie, as there is no way to enter a section, and `poll`'s Acquire
// meets the Release of the end that made it true; 2: the sequence only grows; 3: `wait` pushes
// itself (`drive` as documented); 4: nothing here blocks, allocates or calls back.
unsafe impl GracePeriod for ManualGp {
    fn snapshot(&self) -> Cookie {
        fence::full();
        // ORDERING: Relaxed: P5, after the full fence.
        Seq::from_raw(self.seq.load(Ordering::Relaxed)).snapshot()
    }

    fn start(&self) -> Cookie {
        let cookie = self.snapshot();
        // ORDERING: Relaxed: a number only, looked at again by the exchange.
        let mut wanted = self.wanted.load(Ordering::Relaxed);
        while !cookie.is_no_later_than(Cookie::from_raw(wanted)) {
            // ORDERING: Relaxed: a number only.
            match self.wanted.compare_exchange_weak(
                wanted,
                cookie.raw(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => wanted = now,
            }
        }
        cookie
    }

    fn poll(&self, cookie: Cookie) -> bool {
        self.seq().is_done(cookie)
    }

    fn wait(&self, cookie: Cookie) {
        while !self.poll(cookie) {
            self.push();
        }
    }

    fn drive(&self) -> bool {
        if self.auto && self.is_wanted() {
            self.push();
        }
        self.is_wanted() || self.seq().in_progress()
    }

    fn grace_periods(&self) -> usize {
        self.seq().completed()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn by_hand_drive_leaves_it_alone() {
        let gp = ManualGp::new();
        let cookie = gp.start();
        for _ in 0..10 {
            assert!(gp.drive());
        }
        assert!(!gp.poll(cookie));
        gp.advance();
        assert!(gp.poll(cookie) && !gp.drive());
        assert_eq!(gp.grace_periods(), 1);
    }

    #[test]
    fn wait_ends_what_it_waits_for() {
        let gp = ManualGp::new();
        gp.begin();
        gp.wait(gp.snapshot());
        assert_eq!(gp.grace_periods(), 2);
    }

    #[test]
    fn one_in_progress_is_ended_when_driven() {
        let gp = ManualGp::auto();
        let cookie = gp.start();
        assert!(gp.drive());
        assert!(!gp.drive());
        assert!(gp.poll(cookie));
        gp.begin();
        assert!(gp.drive(), "in progress, wanted by nobody");
    }
}
