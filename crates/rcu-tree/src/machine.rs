//! The grace-period machine: passive, driven by whoever needs progress.
//!
//! Source: Linux `rcu_gp_kthread` (G2, G3, G7) as a state machine behind a try-lock instead of a thread, so that a
//! waiter, a full batch, a worker thread or a kernel's tick can push it.
//!
//! # State
//! | state | sequence | left when |
//! |---|---|---|
//! | idle | phase 0 | somebody asked for a later cookie: start, fence, arm the tree |
//! | first scan | phase 1 | right away: slots outside are credited, words of the others noted |
//! | scanning | phase 1 | the tree and the shared readers are clear: end |
//!
//! # Invariants
//! - I1. One driver at a time: the machine's lock.
//! - I2. The tree is armed after the fence that follows the start, so every slot that is not waited for registers
//!   after that fence and sees what was unlinked before the start (P2, newcomer).
//! - I3. Whoever asks and finds the lock taken leaves; the driver looks again after it has let go, and both run a full
//!   fence between their store and their load, so one of them sees the other's (T36).
//! - I4. The fence is `heavy`, unless no slot but the driver's own takes part: then nobody's `light` has to be met. A
//!   newcomer runs a full fence before it enters, as the driver does before it looks; one of them sees the other. So a
//!   process with one reading thread, or none, pays no system call for a grace period.
//!
//! # Progress
//! `drive` never waits: one pass at a time. A reader inside holds up the end, nothing else.

use crate::gp_seq::GpSeq;
use crate::node::Nodes;
use crate::reader::Seen;
use crate::shared_readers::SharedReaders;
use crate::slot::TreeSlot;
use crate::trace::{Event, Lane, NoTrace, Trace};
use rcu_core::cpu::{LocalLock, PerSlot, Slot, SpinMutex};
use rcu_core::fence;
use rcu_core::sync::atomic::Ordering;

/// Where the machine stands.
#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    FirstScan,
    Scanning,
}

/// The driver's own state.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    state: SpinMutex<State>,
}

/// What the machine works on.
pub(crate) struct World<'t, 'a, L, T> {
    pub(crate) gp: &'t GpSeq,
    pub(crate) nodes: &'t Nodes<'a>,
    pub(crate) slots: &'t PerSlot<'a, TreeSlot<L>>,
    pub(crate) shared: &'t SharedReaders,
    /// The slot that the driver owns and nobody else can be on.
    pub(crate) own: Option<Slot>,
    pub(crate) trace: &'t T,
}

impl Machine {
    rcu_core::const_fn! {
        pub(crate) const fn new() -> Self {
            Self { state: SpinMutex::new(State::Idle) }
        }
    }

    /// Pushes on until a reader is in the way or nothing is asked for; true in the first case.
    pub(crate) fn drive<L: LocalLock, T: Trace>(&self, world: &World<'_, '_, L, T>) -> bool {
        loop {
            fence::full();
            if !world.gp.is_needed() {
                return false;
            }
            let Some(mut state) = self.state.try_lock() else {
                // I3: whoever holds the lock looks again.
                return true;
            };
            if !step(&mut state, world) {
                return true;
            }
        }
    }

    /// Goes on from the sequence, which tells more than the state that a driver was just changing, in the child of a
    /// fork: a grace period in progress waits for whoever takes part in `nodes` now, as if it had just been armed.
    ///
    /// # Safety
    /// 1. This is the child of a fork and the caller its only thread, not driving; it has run a full fence in the child.
    pub(crate) unsafe fn reset_after_fork(&self, gp: &GpSeq, nodes: &Nodes<'_>) {
        // SAFETY: there is no other thread, and the caller does not hold the lock (1).
        let (mut state, _) = unsafe { self.state.seize() };
        *state = if gp.load().in_progress() {
            // I2: the caller's fence came after the start.
            nodes.arm(&NoTrace);
            State::FirstScan
        } else {
            State::Idle
        };
    }
}

/// One step; false if readers are in the way.
fn step<L: LocalLock, T: Trace>(state: &mut State, world: &World<'_, '_, L, T>) -> bool {
    if *state == State::Idle {
        if !world.gp.is_needed() {
            return true;
        }
        world.gp.start();
        world
            .trace
            .event(Event::Started(Lane::Normal, world.gp.load()));
        fence::full();
        if world.nodes.any_online_but(world.own) {
            fence::heavy();
        }
        world.nodes.arm(world.trace);
        world.trace.event(Event::Armed(Lane::Normal));
        *state = State::FirstScan;
    }
    let first = *state == State::FirstScan;
    world.nodes.scan(world.trace, |slot| {
        let Some(slot) = world.slots.get(slot) else {
            return true;
        };
        let seen = slot.reader.scan();
        if seen.is_outside() {
            return true;
        }
        if first {
            // ORDERING: Relaxed: the driver's own, under the machine's lock.
            slot.first_seen.store(seen.raw(), Ordering::Relaxed);
            return false;
        }
        // ORDERING: Relaxed: the driver's own, under the machine's lock.
        seen.passed_since(Seen::from_raw(slot.first_seen.load(Ordering::Relaxed)))
    });
    *state = State::Scanning;
    if !world.nodes.is_clear() || !world.shared.is_clear(world.gp) {
        return false;
    }
    world.gp.end();
    world
        .trace
        .event(Event::Ended(Lane::Normal, world.gp.load()));
    *state = State::Idle;
    true
}
