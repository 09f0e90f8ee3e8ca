//! Sections that belong to no thread: entered or moved into the shared readers, left anywhere.
//!
//! Source: Linux' preemptible readers (G11), whose blocked tasks wait on lists of the leaf they blocked at. Why counts and
//! not lists: nobody boosts a task here, and a count cannot be left in a wrong place (T41).
//!
//! # Life of a move
//! | step | the section counts |
//! |---|---|
//! | lock both machines | in the slot's word |
//! | admit: count it among the shared readers (I2 there) | twice |
//! | unlock | twice |
//! | leave the slot's word | among the shared readers |
//! | insist: drive if a grace period is wanted | |
//!
//! # Invariants
//! - I1. While both machines are locked no grace period starts, arms or ends, in either lane. So each lane's grace
//!   period either is over before the section is counted twice, or sees the count whenever it finds the word left: the
//!   count comes before the unlock, and the word is left after it.
//! - I2. Who finds a machine locked by a move leaves, as before another driver; the move insists afterwards.

use super::Tree;
use super::read::Token;
use crate::machine::State;
use crate::marks::{self, Counted, Doing};
use crate::reader::{Outcome, ReaderWord};
use crate::shared_readers::Place;
use crate::slot::TreeSlot;
use crate::trace::{Lane, Trace};
use core::fmt;
use core::panic::Location;
use rcu_core::RcuSend;
use rcu_core::cpu::{Cpus, Slot, SpinGuard};

/// What a section gives back that belongs to no thread: where it is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SendToken(Place);

impl fmt::Debug for SendToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SendToken({})", self.0.raw())
    }
}

impl<C: Cpus, T: Trace> Tree<'_, C, T> {
    /// Leaves a section that is counted among the shared readers, and drives if somebody may be waiting for that.
    pub(super) fn exit_shared(&self, place: Place) {
        let last = self.shared.exit(place);
        // A grace period that starts after this look takes the count's lock later, and finds the section gone.
        if last
            && Lane::ALL
                .iter()
                .any(|&l| self.gp.lane(l).load().in_progress())
        {
            self.insist();
        }
    }

    /// Both machines' locks, in their order. Blocking, for one pass of each.
    pub(super) fn lock_machines(&self) -> [SpinGuard<'_, State>; Lane::ALL.len()] {
        Lane::ALL.map(|lane| self.machine(lane).lock())
    }

    /// Whether the grace period in progress of `lane`, if there is one, waits for the section that is inside on `slot`.
    pub(super) fn waits_for_slot(
        &self,
        states: &[SpinGuard<'_, State>; Lane::ALL.len()],
        lane: Lane,
        slot: Slot,
    ) -> bool {
        states[lane.index()].is_about_to_arm() || self.nodes.is_waiting_for(lane, slot)
    }

    /// The slot that `word` belongs to, which is a word of this tree.
    pub(super) fn slot_of(&self, word: *const ReaderWord) -> Slot {
        let offset = word.addr() - self.slots.as_ptr().addr().get();
        Slot::new((offset / size_of::<TreeSlot<C::Lock>>()) as u32)
    }
}

// SAFETY: 8: the shared readers count for every grace period of both lanes (`shared_readers`); a move has no gap (I1).
unsafe impl<C: Cpus, T: Trace> RcuSend for Tree<'_, C, T> {
    type SendToken = SendToken;

    fn enter_send(&self) -> SendToken {
        let place = self.shared.enter(&self.gp, self.cpus.current_if_online());
        self.shared_place.note(Location::caller());
        SendToken(place)
    }

    unsafe fn exit_send(&self, token: SendToken) {
        self.exit_shared(token.0);
    }

    unsafe fn move_off(&self, token: Token) -> SendToken {
        if let Some(place) = self.place_of(token) {
            marks::leave(self.mark(), Doing::Section, Some(Counted::At(place)));
            return SendToken(place);
        }
        let slot = self.slot_of(token.word);
        let states = self.lock_machines();
        let place = self.shared.admit(&self.gp, Some(slot), |lane| {
            self.waits_for_slot(&states, lane, slot)
        });
        drop(states);
        self.shared_place.note(Location::caller());
        // SAFETY: the token is a word of this tree's slots, which outlive it, entered on this thread (1).
        if unsafe { &*token.word }.exit(token.entered) == Outcome::Transition {
            self.end_lingering(token.word);
        }
        self.insist();
        SendToken(place)
    }
}
