//! For the models: one lane's machine over a few slots, and sections of no slot.

use super::{Machine, World};
use crate::gp_counts::GpCounts;
use crate::gp_seq::Sequences;
use crate::node::{Geometry, Node, Nodes};
use crate::reader::Entered;
use crate::shared_readers::{Place, SharedReaders};
use crate::slot::TreeSlot;
use crate::stall::Stalls;
use crate::trace::{Lane, NoTrace};
use rcu_core::Cookie;
use rcu_core::cpu::{PerSlot, Slot, SpinLock};

/// A tree with one lane, without callbacks.
#[derive(Debug)]
pub struct OneLane {
    gp: Sequences,
    geometry: Geometry,
    nodes: Vec<Node>,
    slots: Vec<TreeSlot<SpinLock>>,
    shared: SharedReaders,
    machine: Machine,
    counts: GpCounts,
    stalls: Stalls,
}

/// Where a section of no slot is counted.
#[derive(Debug)]
pub struct Counted(Place);

/// A section on a slot.
#[derive(Debug)]
pub struct OnSlot {
    slot: Slot,
    entered: Entered,
}

const LANE: Lane = Lane::Normal;

impl OneLane {
    /// So many slots under fanouts of two, none of which takes part.
    #[must_use]
    pub fn new(slots: usize) -> Self {
        let geometry = Geometry::with_fanout(slots, 2, 2);
        Self {
            gp: Sequences::new(),
            geometry,
            nodes: (0..geometry.nr_nodes()).map(|_| Node::new()).collect(),
            slots: (0..slots).map(|_| TreeSlot::new(SpinLock::new())).collect(),
            shared: SharedReaders::new(),
            machine: Machine::new(),
            counts: GpCounts::new(),
            stalls: Stalls::new(),
        }
    }

    fn nodes(&self) -> Nodes<'_> {
        Nodes::new(self.geometry, &self.nodes)
    }

    /// As `Tree::enter_send`.
    #[must_use]
    pub fn enter_shared(&self) -> Counted {
        Counted(self.shared.enter(&self.gp, Some(Slot::new(0))))
    }

    /// As `Tree::exit_send`.
    pub fn exit_shared(&self, section: Counted) {
        if self.shared.exit(section.0) && self.gp.lane(LANE).load().in_progress() {
            self.push(|machine, world| {
                machine.insist(world);
            });
        }
    }

    /// Makes `slot` take part, and enters a section on it.
    ///
    /// # Panics
    /// If there is no such slot, or it takes part already.
    #[must_use]
    pub fn enter(&self, slot: u32) -> OnSlot {
        let slot = Slot::new(slot);
        let word = &self.slots[slot.index()].reader;
        self.nodes().set_online(slot, &NoTrace);
        word.set_online();
        let entered = word.enter().expect("online");
        OnSlot { slot, entered }
    }

    /// Leaves the section, and the slot takes part no longer.
    pub fn exit_and_leave(&self, section: OnSlot) {
        let word = &self.slots[section.slot.index()].reader;
        // Whether somebody has to be told is nothing to who leaves altogether.
        let _ = word.exit(section.entered);
        word.set_offline();
        self.nodes().set_offline(section.slot, &NoTrace);
    }

    /// As the driver does when a grace period has started.
    pub fn arm(&self) {
        self.nodes().arm(LANE, &NoTrace);
    }

    /// Whether no slot is waited for any more, as the driver looks.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.nodes().is_clear(LANE)
    }

    /// A cookie for what was unlinked before.
    #[must_use]
    pub fn snapshot(&self) -> Cookie {
        self.gp.polled().snapshot()
    }

    /// Asks for it.
    pub fn ask(&self, cookie: Cookie) {
        self.gp.request(LANE, cookie);
    }

    /// Whether it is done.
    #[must_use]
    pub fn poll(&self, cookie: Cookie) -> bool {
        self.gp.polled().poll(cookie)
    }

    /// Pushes on until somebody is in the way or nothing is asked for.
    pub fn drive(&self) {
        self.push(|machine, world| {
            machine.drive(world);
        });
    }

    fn push(&self, f: impl FnOnce(&Machine, &World<'_, '_, SpinLock, NoTrace>)) {
        let nodes = self.nodes();
        let slots = PerSlot::from_slice(&self.slots);
        f(
            &self.machine,
            &World {
                lane: LANE,
                gp: &self.gp,
                nodes: &nodes,
                slots: &slots,
                shared: &self.shared,
                own: None,
                trace: &NoTrace,
                counts: &self.counts,
                stalls: &self.stalls,
            },
        );
    }
}
