//! Who runs, who rests, and when it is over.
//!
//! # Life
//! Roles are threads that go through rounds. Between two rounds each comes to the [gate](Stage::gate), inside of no section:
//! there it rests while there is a pause, and learns that the run is over.

use crate::books::{Books, Fault, Tally};
use crate::random::Random;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often the main thread looks around.
pub(crate) const LOOK: Duration = Duration::from_millis(50);
/// More time than this between two looks was somebody else's.
const MOST: Duration = Duration::from_millis(200);

pub(crate) struct Stage {
    pub(crate) seed: u64,
    pub(crate) seconds: Duration,
    /// How long nothing may move before that is a fault.
    pub(crate) patience: Duration,
    pub(crate) books: Books,
    /// Milliseconds in which this process has run.
    ran: AtomicU64,
    over: AtomicBool,
    paused: AtomicBool,
    roles: AtomicUsize,
    resting: AtomicUsize,
}

/// What a role does.
pub(crate) trait Play: Send + 'static {
    /// One round.
    fn round(&mut self, role: &mut Role, random: &mut Random);

    /// Puts everything down, since there is a pause, or it is over. Called again and again while the pause lasts.
    fn rest(&mut self, role: &mut Role);
}

/// A thread in its role.
pub(crate) struct Role {
    pub(crate) stage: &'static Stage,
    pub(crate) tally: Tally,
    pub(crate) index: usize,
    name: &'static str,
    round: u64,
}

impl Stage {
    pub(crate) fn new(seed: u64, seconds: Duration, patience: Duration) -> Self {
        Self {
            seed,
            seconds,
            patience,
            books: Books::new(),
            ran: AtomicU64::new(0),
            over: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            roles: AtomicUsize::new(0),
            resting: AtomicUsize::new(0),
        }
    }

    /// Called about every `LOOK` by the main thread, which saw so much time pass since the last time.
    pub(crate) fn tick(&self, passed: Duration) {
        let passed = passed.min(MOST).as_millis() as u64;
        self.ran.fetch_add(passed, Ordering::Relaxed);
    }

    /// The time for which this process has run: what patience is measured by. On a machine that is suspended, or gives all its
    /// time to others, nothing moves either.
    pub(crate) fn now(&self) -> Duration {
        Duration::from_millis(self.ran.load(Ordering::Relaxed))
    }

    /// Ends the run.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Starts a thread that plays a role. Its rounds end when the run is over.
    pub(crate) fn role(
        &'static self,
        name: &'static str,
        index: usize,
        mut play: impl Play,
    ) -> JoinHandle<()> {
        self.roles.fetch_add(1, Ordering::AcqRel);
        let main = move || {
            let _leaving = Leaving(self);
            let mut role = Role {
                stage: self,
                tally: Tally::new(),
                index,
                name,
                round: 0,
            };
            while self.gate(&mut role, &mut play) {
                let mut random = role.random();
                play.round(&mut role, &mut random);
                role.round += 1;
            }
            play.rest(&mut role);
            self.books.hand_in(&mut role.tally);
        };
        thread::Builder::new()
            .name(format!("{name}{index}"))
            .spawn(main)
            .expect("a thread")
    }

    /// Between two rounds. False when it is over.
    fn gate(&self, role: &mut Role, play: &mut impl Play) -> bool {
        if self.paused.load(Ordering::Relaxed) {
            play.rest(role);
            self.books.hand_in(&mut role.tally);
            self.resting.fetch_add(1, Ordering::AcqRel);
            while self.paused.load(Ordering::Acquire) && !self.is_over() {
                thread::sleep(Duration::from_millis(2));
                play.rest(role);
            }
            self.resting.fetch_sub(1, Ordering::AcqRel);
        }
        if role.round % 64 == 63 {
            self.books.hand_in(&mut role.tally);
        }
        !self.over.load(Ordering::Relaxed)
    }

    /// Has every role rest while `f` runs. False if some would not, or it is over.
    pub(crate) fn pause(&self, f: impl FnOnce()) -> bool {
        self.paused.store(true, Ordering::Release);
        let begun = self.now();
        let all_rest = loop {
            if self.is_over() {
                break false;
            }
            if self.resting.load(Ordering::Acquire) >= self.roles.load(Ordering::Acquire) {
                break true;
            }
            if self.now() - begun > self.patience {
                let (resting, roles) = (&self.resting, &self.roles);
                self.books.fault(Fault::Progress, || {
                    format!("{resting:?} of {roles:?} roles came to rest")
                });
                break false;
            }
            thread::sleep(Duration::from_millis(1));
        };
        if all_rest {
            f();
        }
        self.paused.store(false, Ordering::Release);
        all_rest
    }

    /// Sleeps, unless it is over before.
    pub(crate) fn sleep(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_over() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(Duration::from_millis(20)));
        }
    }
}

struct Leaving(&'static Stage);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.roles.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Role {
    /// Of a thread that is there for a moment only, and comes to no gate.
    pub(crate) const fn guest(stage: &'static Stage, index: usize) -> Self {
        Self {
            stage,
            tally: Tally::new(),
            index,
            name: "guest",
            round: 0,
        }
    }

    /// Hands its counts in.
    pub(crate) fn leave(mut self) {
        self.stage.books.hand_in(&mut self.tally);
    }

    pub(crate) fn books(&self) -> &'static Books {
        &self.stage.books
    }

    /// The choices of this round.
    pub(crate) fn random(&self) -> Random {
        Random::of(self.stage.seed, self.name, self.index, self.round)
    }
}
