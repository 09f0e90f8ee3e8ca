//! The grace-period machine of one lane: passive, driven by whoever needs progress.
//!
//! Source: Linux `rcu_gp_kthread` (G2, G3, G7) and `tree_exp.h` (G17) as one state machine behind a try-lock instead of two
//! sets of threads, so that a waiter, a full batch, a worker thread or a kernel's tick can push it. A tree has one for
//! each lane; they share nothing but the merged sequence, so that an expedited grace period starts at once though a
//! normal one is held up. What makes a grace period expedited is who drives it: the requester, at once and without
//! sleeping (`waiters`).
//!
//! # State
//! | phase | lane's sequence | left when |
//! |---|---|---|
//! | idle | phase 0 | somebody asked for a later cookie: join, start |
//! | begun | phase 1 | right away: fence, arm the tree |
//! | first scan | phase 1 | right away: slots outside are credited, words of the others noted |
//! | scanning | phase 1 | the tree and the shared readers are clear: end, leave |
//!
//! | word | meaning | who writes |
//! |---|---|---|
//! | `state` | the phase, and the stake in the merged sequence (`gp_seq`) | the driver, under the lock |
//! | `again` | somebody changed something and found the lock taken | set by whoever leaves, cleared by the driver |
//! | `owed` | words of slots that the last look read, less the work done since (`drive_for`) | the driver; who works |
//! | `ticked` | the tick, by the embedder's clock, in which one looked last (`drive_at`) | who comes first in a tick |
//!
//! # Invariants
//! - I1. One driver of a lane at a time: the machine's lock. Whoever holds both takes the normal lane's first.
//! - I2. The tree is armed after the fence that follows the start, so every slot that is not waited for registers
//!   after that fence and sees what was unlinked before the start (P2, newcomer).
//! - I3. Whoever asks and finds the lock taken leaves. The driver looks again after a grace period's end; before that the
//!   request is seen by whoever ends it. Both run a full fence between their store and their load, so one of them sees
//!   the other's (T36).
//! - I4. The fence is `heavy`, unless no slot but the driver's own takes part: then nobody's `light` has to be met. A
//!   newcomer runs a full fence before it enters, as the driver does before it looks; one of them sees the other. So a
//!   process with one reading thread, or none, pays no system call for a grace period.
//! - I5. Whoever took a reader out of the way and will not come back (a section without a thread) *insists*: it sets `again`
//!   before it tries the lock; the driver clears `again` when it has the lock and reads it after it has let go, with
//!   full fences in between. So either it gets the lock or the driver looks once more.
//! - I6. A look at the nodes and the look at the shared readers that follows it are made under the lock that a section
//!   takes to move from one to the other (`tree::send`). So the section is seen in one of them.
//! - I7. The phase says how far the sequences and the nodes are whenever a listener or a clock is called, which may panic: the
//!   next driver goes on from there, and neither starts nor ends anything twice.
//!
//! # Progress
//! `drive` never waits: one pass at a time, and another for each who insisted meanwhile. A reader inside holds up the
//! end, nothing else.

#[cfg(all(test, not(loom)))]
mod explorer;
#[cfg(loom)]
#[doc(hidden)]
pub mod model;

use crate::gp_counts::GpCounts;
use crate::gp_seq::Sequences;
use crate::node::Nodes;
use crate::reader::Seen;
use crate::shared_readers::SharedReaders;
use crate::slot::TreeSlot;
use crate::stall::Stalls;
use crate::trace::{Event, Lane, NoTrace, Trace};
use rcu_core::Seq;
use rcu_core::cpu::{LocalLock, PerSlot, Slot, SpinGuard, SpinMutex};
use rcu_core::fence;
use rcu_core::sync::atomic::{AtomicUsize, Ordering};

/// Where the machine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Begun,
    FirstScan,
    Scanning,
}

/// What the driver keeps from step to step.
#[derive(Debug)]
pub(crate) struct State {
    phase: Phase,
    stake: Seq,
    /// Words of slots that the last look read.
    looked_at: usize,
}

impl State {
    pub(crate) fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// Whether a grace period has started that will wait for every slot that takes part, though the nodes do not say so
    /// yet: whoever drove was stopped by a listener that panicked (I7).
    pub(crate) fn is_about_to_arm(&self) -> bool {
        self.phase == Phase::Begun && !rcu_core::weakened!("g11_begun")
    }
}

/// The driver's own state, for one lane.
#[derive(Debug)]
pub(crate) struct Machine {
    state: SpinMutex<State>,
    again: AtomicUsize,
    owed: AtomicUsize,
    ticked: AtomicUsize,
}

/// What the machine works on.
pub(crate) struct World<'t, 'a, L, T> {
    pub(crate) lane: Lane,
    pub(crate) gp: &'t Sequences,
    pub(crate) nodes: &'t Nodes<'a>,
    pub(crate) slots: &'t PerSlot<'a, TreeSlot<L>>,
    pub(crate) shared: &'t SharedReaders,
    /// The slot that the driver owns and nobody else can be on.
    pub(crate) own: Option<Slot>,
    pub(crate) trace: &'t T,
    pub(crate) counts: &'t GpCounts,
    pub(crate) stalls: &'t Stalls,
}

/// What came of a drive.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Driven {
    /// Readers, or another driver, are in the way.
    pub(crate) in_the_way: bool,
    /// A grace period has been ended.
    pub(crate) ended: bool,
}

impl Machine {
    rcu_core::const_fn! {
        pub(crate) const fn new() -> Self {
            Self {
                state: SpinMutex::new(State { phase: Phase::Idle, stake: Seq::INITIAL, looked_at: 0 }),
                again: AtomicUsize::new(0),
                owed: AtomicUsize::new(0),
                ticked: AtomicUsize::new(0),
            }
        }
    }

    /// Keeps every driver out: meanwhile no grace period of the lane starts, arms or ends. Blocking, for one pass.
    pub(crate) fn lock(&self) -> SpinGuard<'_, State> {
        self.state.lock()
    }

    /// Pushes on until a reader is in the way or nothing is asked for.
    pub(crate) fn drive<L: LocalLock, T: Trace>(&self, world: &World<'_, '_, L, T>) -> Driven {
        let mut driven = Driven::default();
        loop {
            if !rcu_core::weakened!("t36_fence") {
                fence::full();
            }
            if !world.gp.is_needed(world.lane) {
                driven.in_the_way = false;
                return driven;
            }
            driven.in_the_way = true;
            let Some(mut state) = self.state.try_lock() else {
                // I3: whoever ends the grace period looks again.
                return driven;
            };
            // ORDERING: Acquire: I5; what the one who insisted did comes before this look.
            self.again.swap(0, Ordering::Acquire);
            let ended = step(&mut state, world);
            // ORDERING: Relaxed: a rate; see `drive_for`.
            self.owed.store(state.looked_at, Ordering::Relaxed);
            drop(state);
            driven.ended |= ended;
            if (!ended || rcu_core::weakened!("t36")) && !self.is_asked_again() {
                return driven;
            }
        }
    }

    /// As [`Self::drive`], by someone who comes by after every `work` callbacks: does nothing until as many have been dealt
    /// with as words of slots were read by the last look. Else looks would come with the callbacks, which grow with the
    /// slots as what one look reads does: their cost would grow with the square. Only for those who leave the rest to
    /// somebody that comes anyway (a worker, a tick).
    pub(crate) fn drive_for<L: LocalLock, T: Trace>(
        &self,
        work: usize,
        world: &World<'_, '_, L, T>,
    ) -> Driven {
        // ORDERING: Relaxed: a rate: an update that gets lost moves a look a little.
        let owed = self.owed.load(Ordering::Relaxed);
        if owed <= work {
            return self.drive(world);
        }
        // ORDERING: Relaxed: as above.
        self.owed.store(owed - work, Ordering::Relaxed);
        Driven {
            in_the_way: world.gp.is_needed(world.lane),
            ended: false,
        }
    }

    /// As [`Self::drive`], by someone who comes by on every CPU in every `tick`, a number that goes round: looks if nobody
    /// who comes that way has looked in this tick, else as [`Self::drive_for`]. So the ticks of n CPUs make about one look
    /// at n slots in a tick and not n, and a clock that stands still slows them down and does not stop them.
    pub(crate) fn drive_at<L: LocalLock, T: Trace>(
        &self,
        tick: usize,
        work: usize,
        world: &World<'_, '_, L, T>,
    ) -> Driven {
        if !world.gp.is_needed(world.lane) {
            return Driven::default();
        }
        // ORDERING: Relaxed: a rate, as in `drive_for`; only one of those who come at once has to look.
        let last = self.ticked.load(Ordering::Relaxed);
        let is_later = tick.wrapping_sub(last).cast_signed() > 0;
        if is_later
            && self
                .ticked
                // ORDERING: Relaxed: as above.
                .compare_exchange(last, tick, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            return self.drive(world);
        }
        self.drive_for(work, world)
    }

    /// As [`Self::drive`], by someone who took a reader out of the way and will not look again (I5).
    pub(crate) fn insist<L: LocalLock, T: Trace>(&self, world: &World<'_, '_, L, T>) -> Driven {
        // ORDERING: Release: I5.
        self.again.store(1, Ordering::Release);
        self.drive(world)
    }

    /// One look at the grace period in progress, if there is one and nobody else is at it; none is started.
    pub(crate) fn nudge<L: LocalLock, T: Trace>(&self, world: &World<'_, '_, L, T>) -> Driven {
        let mut driven = Driven::default();
        if !world.gp.lane(world.lane).load().in_progress() {
            return driven;
        }
        if let Some(mut state) = self.state.try_lock()
            && !state.is_idle()
        {
            driven.ended = step(&mut state, world);
        }
        // I5: this driver too may have kept out someone who insisted.
        if self.is_asked_again() {
            let more = self.drive(world);
            driven.ended |= more.ended;
        }
        driven
    }

    fn is_asked_again(&self) -> bool {
        fence::full();
        // ORDERING: Relaxed: I5, by the full fence above.
        self.again.load(Ordering::Relaxed) != 0 && !rcu_core::weakened!("i5")
    }

    /// Goes on from the sequence, which tells more than the state that a driver was just changing, in the child of a
    /// fork: a grace period in progress waits for whoever takes part in `nodes` now, as if it had just been armed.
    ///
    /// # Safety
    /// 1. This is the child of a fork and the caller its only thread, not driving; it has run a full fence in the child.
    pub(crate) unsafe fn reset_after_fork(&self, lane: Lane, gp: &Sequences, nodes: &Nodes<'_>) {
        // SAFETY: there is no other thread, and the caller does not hold the lock (1).
        let (mut state, whole) = unsafe { self.state.seize() };
        if !whole {
            state.stake = gp.no_stake();
        }
        state.looked_at = 0;
        state.phase = if gp.lane(lane).load().in_progress() {
            // I2: the caller's fence came after the start.
            nodes.arm(lane, &NoTrace);
            Phase::FirstScan
        } else {
            Phase::Idle
        };
        for word in [&self.again, &self.owed, &self.ticked] {
            // ORDERING: Relaxed: there is one thread.
            word.store(0, Ordering::Relaxed);
        }
    }
}

/// One step; true if it ended a grace period.
fn step<L: LocalLock, T: Trace>(state: &mut State, world: &World<'_, '_, L, T>) -> bool {
    loop {
        match advance(state, world) {
            Advance::Moved => {}
            Advance::Ended => return true,
            Advance::Stopped => return false,
        }
    }
}

/// What came of an attempt to leave a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Advance {
    /// The next phase is left right away, too.
    Moved,
    /// That was the grace period's last phase.
    Ended,
    /// Readers are in the way, or nobody asks for a grace period.
    Stopped,
}

/// Leaves one phase, if that can be.
fn advance<L: LocalLock, T: Trace>(state: &mut State, world: &World<'_, '_, L, T>) -> Advance {
    match state.phase {
        Phase::Idle => begin(state, world),
        Phase::Begun => arm(state, world),
        Phase::FirstScan => look(state, world, true),
        Phase::Scanning => look(state, world, false),
    }
}

fn begin<L: LocalLock, T: Trace>(state: &mut State, world: &World<'_, '_, L, T>) -> Advance {
    let World { lane, gp, .. } = *world;
    if !gp.is_needed(lane) {
        return Advance::Stopped;
    }
    state.stake = gp.begin(lane);
    state.phase = Phase::Begun;
    world
        .trace
        .event(Event::Started(lane, gp.lane(lane).load()));
    Advance::Moved
}

fn arm<L: LocalLock, T: Trace>(state: &mut State, world: &World<'_, '_, L, T>) -> Advance {
    if world.nodes.any_online_but(world.own) {
        fence::heavy();
        world.counts.fenced();
    }
    world.nodes.arm(world.lane, world.trace);
    state.phase = Phase::FirstScan;
    world.trace.event(Event::Armed(world.lane));
    Advance::Moved
}

/// Looks at the readers that are waited for, and ends the grace period if none is left.
fn look<L: LocalLock, T: Trace>(
    state: &mut State,
    world: &World<'_, '_, L, T>,
    first: bool,
) -> Advance {
    let World {
        lane, gp, trace, ..
    } = *world;
    let passed = |slot| {
        let Some(slot) = world.slots.get(slot) else {
            return true;
        };
        let seen = slot.reader.scan();
        if seen.is_outside() {
            return true;
        }
        let first_seen = &slot.first_seen[lane.index()];
        if first {
            // ORDERING: Relaxed: the driver's own, under the machine's lock.
            first_seen.store(seen.raw(), Ordering::Relaxed);
            // The mutant takes a reader that it will look at again for one that has passed.
            return rcu_core::weakened!("g7");
        }
        // ORDERING: Relaxed: the driver's own, under the machine's lock.
        let before = Seen::from_raw(first_seen.load(Ordering::Relaxed));
        // The mutant takes another depth for another section.
        seen.passed_since(before) || rcu_core::weakened!("r1_nesting") && seen != before
    };
    let (mut looked_at, mut inside) = (0, 0);
    world.nodes.scan(lane, trace, |slot| {
        let has_passed = passed(slot);
        looked_at += 1;
        inside += usize::from(!has_passed);
        has_passed
    });
    world.counts.scanned(first, looked_at, inside);
    state.phase = Phase::Scanning;
    state.looked_at = looked_at;
    // I6.
    if !world.nodes.is_clear(lane) || !world.shared.is_clear(gp, lane) {
        return Advance::Stopped;
    }
    world.stalls.ended(lane, gp.lane(lane).load());
    gp.finish(lane, state.stake);
    state.phase = Phase::Idle;
    trace.event(Event::Ended(lane, gp.lane(lane).load()));
    Advance::Ended
}
