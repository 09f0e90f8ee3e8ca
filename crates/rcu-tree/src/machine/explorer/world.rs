//! The small world: what its steps are, and what must hold in each of its states.
//!
//! # Rules
//! | rule | looked at |
//! |---|---|
//! | R1, R5: no cookie is done, and no callback ready, while a section is inside that was when it was taken or queued | in every state, and wherever a call can be overtaken |
//! | R7: a small cookie is done after two grace periods of one lane; I2 of `gp_seq`: not before a full one taken earlier | the same |
//! | R8, T34, T35: a full cookie is done after one whole grace period of either lane | the same |
//! | S1, S4, T38: numbering leaves nothing without a number; callbacks run in order | after each numbering and each run |
//! | T36: who drives leaves no request behind that nobody is at | after each drive |
//! | T37, T39, T41: once all sections are left, whatever was asked for ends and every callback runs | from every state |

mod act;
mod key;
mod rules;
mod words;

use super::super::{Machine, Phase, World};
use super::Explore;
use crate::gp_counts::GpCounts;
use crate::gp_seq::Sequences;
use crate::node::{Geometry, Node, Nodes};
use crate::reader::Entered;
use crate::shared_readers::{Place, SharedReaders};
use crate::slot::TreeSlot;
use crate::stall::Stalls;
use crate::trace::Lane;
use act::Listener;
use rcu_core::cpu::{PerSlot, Slot, SpinLock};
use rcu_core::{Cookie, FullCookie, Head, SegList, Seq};
use std::cell::RefCell;

/// Slots at the most.
const SLOTS: usize = 4;
/// Nodes at the most: four slots under fanouts of two.
const NODES: usize = 3;
/// Sections of no slot at the most.
const SHARED: usize = 2;
/// Callbacks on the list at the most.
const CALLS: usize = 3;
/// How deep sections nest at the most.
const NEST: usize = 2;

/// How much there is of everything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope {
    pub(super) slots: usize,
    /// Of leaves and of inner nodes.
    pub(super) fanout: usize,
    pub(super) lanes: &'static [Lane],
    pub(super) nest: usize,
    /// Whether slots come and go; else all take part from the beginning.
    pub(super) come_and_go: bool,
    pub(super) quiescent: bool,
    pub(super) shared: usize,
    pub(super) moves: bool,
    pub(super) small: bool,
    pub(super) full: bool,
    pub(super) calls: usize,
    /// Whether another step is tried in the middle of each.
    pub(super) overtake: bool,
    /// What has happened before the first state.
    pub(super) after: &'static [Action],
}

impl Scope {
    /// Readers on so many slots, and a small cookie.
    pub(super) const fn of(slots: usize) -> Self {
        Self {
            slots,
            fanout: 16,
            lanes: &[Lane::Normal],
            nest: 1,
            come_and_go: false,
            quiescent: false,
            shared: 0,
            moves: false,
            small: true,
            full: false,
            calls: 0,
            overtake: true,
            after: &[],
        }
    }
}

/// What somebody can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Enter(usize),
    /// Leaves by the youngest guard.
    Exit(usize),
    /// Leaves by the oldest guard.
    ExitOldest(usize),
    Quiescent(usize),
    /// A slot is published in the tree; then its word says so.
    OnlineInTree(usize),
    OnlineInWord(usize),
    /// A slot's word says no; then it leaves the tree.
    OfflineInWord(usize),
    OfflineInTree(usize),
    EnterShared,
    ExitShared(usize),
    /// A section is counted among the shared; then its slot's word is left.
    MoveOff(usize),
    MovedOff(usize),
    TakeSmall,
    TakeFull,
    /// Asks a lane for what the small cookie waits for.
    Ask(Lane),
    AskFull(Lane),
    /// The machine leaves one phase; or so many.
    Advance(Lane),
    Advances(Lane, u8),
    Drive(Lane),
    Queue,
    /// Numbers what is queued, and asks.
    Number,
    /// Runs what is ready.
    Run,
}

/// An action, and one that overtakes it at its n-th point.
#[derive(Clone, Copy)]
pub(super) struct Step {
    action: Action,
    inside: Option<(usize, Action)>,
}

impl core::fmt::Debug for Step {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?}", self.action)?;
        self.inside.map_or(Ok(()), |(at, by)| {
            write!(f, ", overtaken at point {at} by {by:?}")
        })
    }
}

/// What is known of a cookie, or of a callback, from when it was taken or queued.
#[derive(Clone, Copy, Debug)]
struct Before {
    full: FullCookie,
    small: Cookie,
    /// Sections that were inside then and still are, one bit each.
    inside: u8,
    /// Whether a lane has started a grace period since.
    began: [bool; 2],
    /// How many it has started and ended since, two at the most.
    ended: [u8; 2],
    /// Which lane was asked for it.
    asked: Option<Lane>,
}

/// What no word says.
#[derive(Clone, Debug, Default)]
struct Ghost {
    guards: [[Option<Entered>; NEST]; SLOTS],
    shared: [Option<Place>; SHARED],
    /// The shared section that a slot's section is being moved to.
    moving: [Option<usize>; SLOTS],
    small: Option<Before>,
    full: Option<Before>,
    /// Whether the full cookie was taken first.
    full_first: bool,
    /// Callbacks, the oldest first, and which head that one is.
    calls: [Option<Before>; CALLS],
    oldest: usize,
    /// The list is locked.
    numbering: bool,
}

impl Ghost {
    fn all(&mut self) -> impl Iterator<Item = &mut Before> {
        self.small
            .iter_mut()
            .chain(&mut self.full)
            .chain(self.calls.iter_mut().flatten())
    }

    fn nr_guards(&self, slot: usize) -> usize {
        self.guards[slot].iter().flatten().count()
    }

    fn nr_calls(&self) -> usize {
        self.calls.iter().flatten().count()
    }

    /// The sections that are inside.
    fn inside(&self) -> u8 {
        let slots = (0..SLOTS)
            .filter(|&s| self.nr_guards(s) > 0)
            .map(|s| 1 << s);
        let shared = (0..SHARED).filter(|&i| self.shared[i].is_some());
        slots.chain(shared.map(shared_bit)).sum()
    }
}

fn shared_bit(i: usize) -> u8 {
    1 << (SLOTS + i)
}

/// All words.
#[derive(Clone, Debug)]
pub(super) struct State {
    gp: [usize; 7],
    machines: [(Phase, Seq); 2],
    nodes: [[u64; 3]; NODES],
    words: [usize; SLOTS],
    first_seen: [[usize; 2]; SLOTS],
    shared: ([[usize; 4]; SLOTS], usize),
    list: List,
    ghost: Ghost,
}

/// A segmented list, as far as it can be seen.
#[derive(Clone, Copy, Debug, Default)]
struct List {
    lengths: [usize; 4],
    cookies: [Option<Cookie>; 2],
}

/// The production code over memory of its own, in one state after the other.
pub(super) struct Small {
    scope: Scope,
    gp: Sequences,
    geometry: Geometry,
    nodes: Vec<Node>,
    slots: Vec<TreeSlot<SpinLock>>,
    shared: SharedReaders,
    machines: [Machine; 2],
    counts: GpCounts,
    stalls: Stalls,
    heads: [Head; CALLS],
    list: RefCell<SegList>,
    ghost: RefCell<Ghost>,
    actions: Vec<Action>,
}

impl Small {
    pub(super) fn new(scope: Scope) -> Self {
        let geometry = Geometry::with_fanout(scope.slots, scope.fanout, scope.fanout);
        assert!(geometry.nr_nodes() <= NODES && scope.slots <= SLOTS);
        let world = Self {
            scope,
            gp: Sequences::new(),
            geometry,
            nodes: (0..geometry.nr_nodes()).map(|_| Node::new()).collect(),
            slots: (0..scope.slots)
                .map(|_| TreeSlot::new(SpinLock::new()))
                .collect(),
            shared: SharedReaders::new(),
            machines: [Machine::new(), Machine::new()],
            counts: GpCounts::new(),
            stalls: Stalls::new(),
            heads: core::array::from_fn(|_| Head::new()),
            list: RefCell::new(SegList::new()),
            ghost: RefCell::new(Ghost::default()),
            actions: all_actions(&scope),
        };
        if !scope.come_and_go {
            for slot in 0..scope.slots {
                world.begin_with(Action::OnlineInTree(slot));
                world.begin_with(Action::OnlineInWord(slot));
            }
        }
        scope.after.iter().for_each(|&step| world.begin_with(step));
        world
    }

    fn begin_with(&self, action: Action) {
        assert!(self.is_possible(action), "{action:?} is not possible");
        if let Err(broken) = self.perform(action, None) {
            panic!("{broken}, at {action:?}");
        }
        self.drop_done();
    }

    fn nodes(&self) -> Nodes<'_> {
        Nodes::new(self.geometry, &self.nodes)
    }

    fn with_machine<R>(
        &self,
        lane: Lane,
        listener: &Listener<'_>,
        f: impl FnOnce(&Machine, &World<'_, '_, SpinLock, Listener<'_>>) -> R,
    ) -> R {
        let nodes = self.nodes();
        let slots = PerSlot::from_slice(&self.slots);
        f(
            &self.machines[lane.index()],
            &World {
                lane,
                gp: &self.gp,
                nodes: &nodes,
                slots: &slots,
                shared: &self.shared,
                own: None,
                trace: listener,
                counts: &self.counts,
                stalls: &self.stalls,
            },
        )
    }

    fn is_possible(&self, action: Action) -> bool {
        let ghost = self.ghost.borrow();
        let word = |slot: usize| self.slots[slot].reader.look();
        let in_tree = |slot| {
            let mut online = false;
            self.nodes()
                .for_each_online(|s| online |= s == Slot::new(slot as u32));
            online
        };
        let depth = |slot| ghost.nr_guards(slot);
        match action {
            Action::Enter(s) => {
                word(s).is_online() && depth(s) < self.scope.nest && ghost.moving[s].is_none()
            }
            Action::Exit(s) => depth(s) > 0 && ghost.moving[s].is_none(),
            Action::ExitOldest(s) => depth(s) > 1 && ghost.moving[s].is_none(),
            Action::Quiescent(s) => depth(s) == 1 && ghost.moving[s].is_none(),
            Action::OnlineInTree(s) => !word(s).is_online() && !in_tree(s),
            Action::OnlineInWord(s) => !word(s).is_online() && in_tree(s),
            Action::OfflineInWord(s) => word(s).is_online() && depth(s) == 0,
            Action::OfflineInTree(s) => !word(s).is_online() && in_tree(s),
            Action::EnterShared => ghost.shared[..self.scope.shared].contains(&None),
            Action::ExitShared(i) => ghost.shared[i].is_some() && !ghost.moving.contains(&Some(i)),
            Action::MoveOff(s) => {
                depth(s) > 0
                    && ghost.moving[s].is_none()
                    && ghost.shared[..self.scope.shared].contains(&None)
            }
            Action::MovedOff(s) => ghost.moving[s].is_some(),
            Action::TakeSmall => ghost.small.is_none(),
            Action::TakeFull => ghost.full.is_none(),
            Action::Ask(_) => ghost.small.is_some_and(|b| b.asked.is_none()),
            Action::AskFull(_) => ghost.full.is_some_and(|b| b.asked.is_none()),
            Action::Advance(_) | Action::Advances(..) | Action::Drive(_) => true,
            Action::Queue => ghost.nr_calls() < self.scope.calls && !ghost.numbering,
            Action::Number | Action::Run => ghost.nr_calls() > 0 && !ghost.numbering,
        }
    }
}

impl Ghost {
    fn note_shared(&mut self, place: Place) -> Result<usize, String> {
        let free = self.shared.iter().position(Option::is_none);
        let i = free.ok_or("no room for a section")?;
        self.shared[i] = Some(place);
        Ok(i)
    }
}

fn all_actions(scope: &Scope) -> Vec<Action> {
    let mut all = Vec::new();
    for s in 0..scope.slots {
        all.extend([Action::Enter(s), Action::Exit(s)]);
        if scope.nest > 1 {
            all.push(Action::ExitOldest(s));
        }
        if scope.quiescent {
            all.push(Action::Quiescent(s));
        }
        if scope.come_and_go {
            all.extend([
                Action::OnlineInTree(s),
                Action::OnlineInWord(s),
                Action::OfflineInWord(s),
                Action::OfflineInTree(s),
            ]);
        }
        if scope.moves {
            all.extend([Action::MoveOff(s), Action::MovedOff(s)]);
        }
    }
    if scope.shared > 0 {
        all.push(Action::EnterShared);
        all.extend((0..scope.shared).map(Action::ExitShared));
    }
    for &lane in scope.lanes {
        all.push(Action::Advance(lane));
        if scope.small {
            all.push(Action::Ask(lane));
        }
        if scope.full {
            all.push(Action::AskFull(lane));
        }
    }
    if scope.small {
        all.push(Action::TakeSmall);
    }
    if scope.full {
        all.push(Action::TakeFull);
    }
    if scope.calls > 0 {
        all.extend([Action::Queue, Action::Number, Action::Run]);
    }
    all
}

impl Explore for Small {
    type State = State;
    type Key = Vec<u8>;
    type Step = Step;

    fn first(&self) -> State {
        self.save()
    }

    fn key(&self, state: &State) -> Vec<u8> {
        key::of(state)
    }

    fn steps(&self, from: &State, visit: &mut dyn FnMut(Step, Result<State, String>)) {
        let mut step = |action: Action, inside: Option<(usize, Action)>| -> usize {
            self.restore(from);
            if !self.is_possible(action) {
                return 0;
            }
            let led_to = self.perform(action, inside);
            let points = match &led_to {
                Ok(Some(points)) => *points,
                Ok(None) => return 0,
                Err(_) => 0,
            };
            self.drop_done();
            visit(Step { action, inside }, led_to.map(|_| self.save()));
            points
        };
        let drives = self.scope.lanes.iter().map(|&lane| Action::Drive(lane));
        for action in self.actions.iter().copied().chain(drives) {
            let points = step(action, None);
            if !self.scope.overtake {
                continue;
            }
            for at in 0..points {
                for &by in &self.actions {
                    step(action, Some((at, by)));
                }
                if action == Action::Number {
                    for &lane in self.scope.lanes {
                        for n in 2..=6 {
                            step(action, Some((at, Action::Advances(lane, n))));
                        }
                    }
                }
            }
        }
    }

    fn check_future(&self, state: &State) -> Result<(), String> {
        self.restore(state);
        self.check_end()
    }
}

impl Small {
    /// Forgets cookies that are done: they were looked at when they became so.
    fn drop_done(&self) {
        let mut ghost = self.ghost.borrow_mut();
        ghost.small = ghost.small.filter(|b| !self.gp.polled().poll(b.small));
        ghost.full = ghost.full.filter(|b| !self.gp.poll_full(b.full));
        ghost.full_first &= ghost.small.is_some() && ghost.full.is_some();
    }
}
