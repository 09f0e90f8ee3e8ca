//! Whose duty it is to look after what waits: of a thread, of one about to come, or of who retires next.
//!
//! # State
//! | `state` | meaning | left by |
//! |---|---|---|
//! | `ABSENT` | nobody has it, and nothing waits or somebody is just about to say so | [`Duty::call`] |
//! | `CALLED` | somebody is about to begin | who was called |
//! | `RUNNING` | somebody looks again and again | [`Duty::leave`] |
//!
//! # Invariants
//! - I1. Who retires notes its object, runs a full fence, then reads `state`; who leaves stores `ABSENT`, runs a full
//!   fence, then looks: one of them sees the other's store.
//! - I2. Who takes `state` from `ABSENT` to another state has the duty to look, and whatever else goes with it, alone.

use rcu_core::fence;
use rcu_core::sync::atomic::{AtomicU32, Ordering};

const ABSENT: u32 = 0;
const CALLED: u32 = 1;
const RUNNING: u32 = 2;

#[inline(always)]
fn leave_order() -> Ordering {
    if rcu_core::weakened!("duty_leave") {
        Ordering::Relaxed
    } else {
        Ordering::Release
    }
}

/// See the module.
pub(crate) struct Duty {
    state: AtomicU32,
}

/// What is to be done by who noted an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Called {
    /// The duty is the caller's now: to see to it that somebody begins.
    Here,
    /// Somebody is about to begin.
    Before,
    /// Somebody runs.
    Running,
}

impl Duty {
    rcu_core::const_fn! {
        pub(crate) const fn new() -> Self {
            Self {
                state: AtomicU32::new(ABSENT),
            }
        }
    }

    /// Something was noted.
    pub(crate) fn call(&self) -> Called {
        if !rcu_core::weakened!("duty_call") {
            fence::full();
        }
        // ORDERING: Relaxed: I1, by the full fence above.
        match self.state.load(Ordering::Relaxed) {
            ABSENT if self.take(CALLED) => Called::Here,
            RUNNING => Called::Running,
            _ => Called::Before,
        }
    }

    /// Takes over from nobody (I2).
    fn take(&self, state: u32) -> bool {
        // ORDERING: Acquire meets the Release in `leave`: what goes with the duty is whole.
        self.state
            .compare_exchange(ABSENT, state, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    /// Who has the duty begins.
    pub(crate) fn begin(&self) {
        // ORDERING: Relaxed: the state is the caller's to change (I2).
        self.state.store(RUNNING, Ordering::Relaxed);
    }

    /// Gives the duty back to whoever retires next, then `look`s once more; false if the caller has it again, for something waits.
    pub(crate) fn leave(&self, look: impl FnOnce() -> bool) -> bool {
        // ORDERING: Release: what goes with the duty is whole for whoever takes over.
        self.state.store(ABSENT, leave_order());
        fence::full();
        look() || !self.take(RUNNING)
    }

    /// Nobody has it: for a fork's child, whose one thread is the caller.
    pub(crate) fn reset_after_fork(&self) {
        // ORDERING: Relaxed: there is one thread.
        self.state.store(ABSENT, Ordering::Relaxed);
    }

    /// In the words of reports.
    pub(crate) fn name(&self) -> &'static str {
        // ORDERING: Relaxed: a report for people.
        match self.state.load(Ordering::Relaxed) {
            ABSENT => "absent",
            CALLED => "called",
            _ => "running",
        }
    }

    /// Whether somebody has it.
    pub(crate) fn is_taken(&self) -> bool {
        // ORDERING: Relaxed: for reports.
        self.state.load(Ordering::Relaxed) != ABSENT
    }
}
