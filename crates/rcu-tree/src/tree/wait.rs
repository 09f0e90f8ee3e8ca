//! Asking for grace periods, and waiting for them.
//!
//! | who asks | lane | waits for |
//! |---|---|---|
//! | `start`, `wait`, `synchronize`, callbacks | normal, or as the policy says | the small cookie |
//! | `start_expedited`, `wait_expedited` | expedited, or as the policy says | the small cookie |
//! | `synchronize_expedited` | the same | the small cookie; the full one where a normal grace period is in progress |
//! | `wait_full`, `wait_full_expedited` | as their small forms | the full cookie |
//!
//! So every cookie taken before a `synchronize` is done after it, be it small or full; and an expedited one needs one
//! grace period of its lane though a normal one is held up.

use super::Tree;
use crate::machine::Driven;
use crate::trace::{Event, Lane, Trace};
use crate::waiters::Until;
use rcu_core::cpu::Cpus;
use rcu_core::sync::atomic::{AtomicUsize, Ordering};
use rcu_core::{Cookie, FullCookie, GracePeriod};

/// Which lane serves whom.
#[derive(Debug)]
pub(super) struct Policy {
    /// How many want everything expedited.
    expedite: AtomicUsize,
    /// 1 if nothing is to be.
    normal_only: AtomicUsize,
}

impl Policy {
    rcu_core::const_fn! {
        pub(super) const fn new() -> Self {
            Self { expedite: AtomicUsize::new(0), normal_only: AtomicUsize::new(0) }
        }
    }

    /// The lane for who asked for an expedited grace period, or did not.
    fn lane(&self, hurry: bool) -> Lane {
        // ORDERING: Relaxed: either lane is right at any time.
        if self.normal_only.load(Ordering::Relaxed) != 0 {
            return Lane::Normal;
        }
        // ORDERING: Relaxed: as above.
        if hurry || self.expedite.load(Ordering::Relaxed) != 0 {
            Lane::Expedited
        } else {
            Lane::Normal
        }
    }
}

impl<'a, C: Cpus, T: Trace> Tree<'a, C, T> {
    /// From now on `synchronize` and `wait` use expedited grace periods, until [`Self::unexpedite`] has been called as
    /// often as this. An embedder that wants its boot expedited calls this first.
    #[doc(alias = "rcu_expedite_gp")]
    pub fn expedite(&self) {
        // ORDERING: Relaxed: either lane is right at any time.
        self.policy.expedite.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes one [`Self::expedite`] back.
    ///
    /// # Panics
    /// If there is none to take back; the count is as before then.
    #[doc(alias = "rcu_unexpedite_gp")]
    pub fn unexpedite(&self) {
        let count = &self.policy.expedite;
        // ORDERING: Relaxed: either lane is right at any time.
        let mut nesting = count.load(Ordering::Relaxed);
        loop {
            assert!(nesting > 0, "unexpedite without expedite");
            // ORDERING: Relaxed: as above.
            match count.compare_exchange_weak(
                nesting,
                nesting - 1,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => nesting = now,
            }
        }
    }

    /// Whether everything is to use normal grace periods, also what asks for expedited ones. Stronger than
    /// [`Self::expedite`].
    #[doc(alias = "rcu_normal")]
    pub fn set_normal_only(&self, normal_only: bool) {
        // ORDERING: Relaxed: either lane is right at any time.
        self.policy
            .normal_only
            .store(usize::from(normal_only), Ordering::Relaxed);
    }

    /// Pushes one lane on; true if readers, or another driver, are in the way.
    pub(super) fn drive_lane(&self, lane: Lane) -> bool {
        let driven = self.machine(lane).drive(&self.world(lane));
        self.after(lane, driven)
    }

    /// Pushes grace periods on after `work` callbacks have been queued or run, if that is worth a look at the slots.
    pub(super) fn drive_for(&self, work: usize) -> bool {
        let mut in_the_way = false;
        for lane in Lane::ALL {
            let driven = self.machine(lane).drive_for(work, &self.world(lane));
            in_the_way |= self.after(lane, driven);
        }
        in_the_way
    }

    /// As `drive_lane`, for both, by someone who took a reader out of the way and will not look again.
    pub(super) fn insist(&self) {
        for lane in Lane::ALL {
            if self.gp.is_needed(lane) {
                let driven = self.machine(lane).insist(&self.world(lane));
                self.after(lane, driven);
            }
        }
    }

    /// A lane was driven: wakes who waited for what has ended, and looks at the other lane, whose grace period waits for
    /// nobody any more if it started before the one that has just ended (I4 of `gp_seq`).
    fn after(&self, lane: Lane, driven: Driven) -> bool {
        if driven.ended {
            self.wake_done();
            let other = match lane {
                Lane::Normal => Lane::Expedited,
                Lane::Expedited => Lane::Normal,
            };
            if self.machine(other).nudge(&self.world(other)).ended {
                self.wake_done();
            }
        }
        driven.in_the_way
    }

    fn wake_done(&self) {
        for waiters in &self.waiters {
            waiters.wake_done(&|until| self.is_done(until), &|| self.woke());
        }
    }

    fn woke(&self) {
        self.trace.event(Event::Wakeup);
    }

    fn is_done(&self, until: Until) -> bool {
        match until {
            Until::Small(cookie) => self.gp.polled().poll(cookie),
            Until::Full(cookie) => self.gp.poll_full(cookie),
        }
    }

    fn request(&self, lane: Lane, cookie: Cookie) -> bool {
        let first = self.gp.request(lane, cookie);
        if first {
            self.trace.event(Event::Requested(lane));
        }
        first
    }

    /// Blocks until `until`, which grace periods of `lane` lead to that have been asked for.
    #[track_caller]
    fn wait_for(&self, lane: Lane, until: Until) {
        self.check_outside("waiting for a grace period");
        self.waiters[lane.index()].wait(
            lane,
            until,
            &|until| self.is_done(until),
            &|| {
                self.drive_lane(lane) && {
                    self.check_stalls();
                    true
                }
            },
            &|| self.woke(),
        );
        self.after_wait();
    }

    #[track_caller]
    fn wait_small(&self, hurry: bool, cookie: Cookie) {
        if !self.poll(cookie) {
            let lane = self.policy.lane(hurry);
            self.request(lane, cookie);
            self.wait_for(lane, Until::Small(cookie));
        }
    }

    #[track_caller]
    fn wait_full_by(&self, hurry: bool, cookie: FullCookie) {
        if !self.poll_full(cookie) {
            let lane = self.policy.lane(hurry);
            let own = self.gp.lane(lane);
            if own.request(own.snapshot()) {
                self.trace.event(Event::Requested(lane));
            }
            self.wait_for(lane, Until::Full(cookie));
        }
    }
}

// SAFETY: 1: `gp_seq` (I1, P4, P5), `reader` (P2, P3), `node` (P3) and `machine` (I2) give the order, slot by slot and
// for readers without a slot (`shared_readers`); 2: the sequences only go forwards; 3: `wait` drives; a passed
// section changes its word (I1 of `reader`); 4: `snapshot`, `start`, `poll`, `drive` take try-locks only, but for the shared
// readers' and the waiters' few instructions, and run nothing; 5: I2 of `gp_seq`.
unsafe impl<C: Cpus, T: Trace> GracePeriod for Tree<'_, C, T> {
    fn snapshot(&self) -> Cookie {
        self.gp.polled().snapshot()
    }

    fn start(&self) -> Cookie {
        let cookie = self.snapshot();
        if self.request(Lane::Normal, cookie) {
            self.kick();
        }
        cookie
    }

    #[inline]
    fn poll(&self, cookie: Cookie) -> bool {
        self.gp.polled().poll(cookie)
    }

    fn wait(&self, cookie: Cookie) {
        self.wait_small(false, cookie);
    }

    fn drive(&self) -> bool {
        let mut in_the_way = false;
        for lane in Lane::ALL {
            in_the_way |= self.drive_lane(lane);
        }
        in_the_way
    }

    fn synchronize(&self) {
        self.wait_small(false, self.snapshot());
    }

    fn synchronize_expedited(&self) {
        let full = self.snapshot_full();
        if self.gp.lane(Lane::Normal).load().in_progress() {
            self.wait_full_by(true, full);
        } else {
            self.wait_small(true, self.snapshot());
        }
    }

    fn start_expedited(&self) -> Cookie {
        let cookie = self.snapshot();
        let lane = self.policy.lane(true);
        if self.request(lane, cookie) {
            self.drive_lane(lane);
            self.kick();
        }
        cookie
    }

    fn wait_expedited(&self, cookie: Cookie) {
        self.wait_small(true, cookie);
    }

    fn snapshot_full(&self) -> FullCookie {
        self.gp.snapshot_full()
    }

    fn poll_full(&self, cookie: FullCookie) -> bool {
        self.gp.poll_full(cookie)
    }

    fn wait_full(&self, cookie: FullCookie) {
        self.wait_full_by(false, cookie);
    }

    fn wait_full_expedited(&self, cookie: FullCookie) {
        self.wait_full_by(true, cookie);
    }

    fn grace_periods(&self) -> usize {
        Lane::ALL
            .iter()
            .map(|&lane| self.gp.lane(lane).load().completed())
            .sum()
    }
}
