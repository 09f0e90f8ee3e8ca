//! What each action calls, and what may overtake it in the middle.

use super::{Action, Before, CALLS, Small, shared_bit};
use crate::machine::advance;
use crate::trace::{Event, Lane, Trace};
use core::ptr::NonNull;
use rcu_core::cpu::Slot;
use std::cell::{Cell, RefCell};

/// Tells ghosts what happens, and lets one action overtake another.
pub(super) struct Listener<'w> {
    world: &'w Small,
    points: Cell<usize>,
    inject: Cell<Option<(usize, Action)>>,
    /// The injected action was possible.
    done: Cell<bool>,
    broken: RefCell<Option<String>>,
    /// The lane whose machine is locked by the action that listens.
    locked: Option<Lane>,
    /// The slot that it is about.
    slot: Option<usize>,
}

impl<'w> Listener<'w> {
    fn new(world: &'w Small, action: Action, inject: Option<(usize, Action)>) -> Self {
        let (locked, slot) = match action {
            Action::Advance(lane) | Action::Advances(lane, _) | Action::Drive(lane) => {
                (Some(lane), None)
            }
            Action::OnlineInTree(slot) | Action::OfflineInTree(slot) => (None, Some(slot)),
            _ => (None, None),
        };
        Self {
            world,
            points: Cell::new(0),
            inject: Cell::new(inject),
            done: Cell::new(false),
            broken: RefCell::new(None),
            locked,
            slot,
        }
    }

    /// Another call may come here.
    fn point(&self) {
        let at = self.points.get();
        self.points.set(at + 1);
        let mut led_to = self.world.check();
        if let Some((wanted, action)) = self.inject.get()
            && wanted == at
            && self.may_come(action)
            && self.world.is_possible(action)
        {
            self.inject.set(None);
            self.done.set(true);
            led_to = led_to.and_then(|()| self.world.perform(action, None).map(|_| ()));
        }
        if let Err(broken) = led_to {
            self.broken.borrow_mut().get_or_insert(broken);
        }
    }

    /// Whether `action` neither waits for a lock that is held nor is the same owner's.
    fn may_come(&self, action: Action) -> bool {
        match action {
            Action::MoveOff(_) => self.locked.is_none(),
            Action::Advance(lane) | Action::Advances(lane, _) | Action::Drive(lane) => {
                self.locked != Some(lane)
            }
            Action::Enter(slot)
            | Action::Exit(slot)
            | Action::ExitOldest(slot)
            | Action::Quiescent(slot)
            | Action::OnlineInTree(slot)
            | Action::OnlineInWord(slot)
            | Action::OfflineInWord(slot)
            | Action::OfflineInTree(slot)
            | Action::MovedOff(slot) => self.slot != Some(slot),
            _ => true,
        }
    }
}

impl Trace for Listener<'_> {
    fn event(&self, event: Event) {
        let mut ghost = self.world.ghost.borrow_mut();
        match event {
            Event::Started(lane, _) => {
                ghost.all().for_each(|b| b.began[lane.index()] = true);
            }
            Event::Ended(lane, _) => {
                for before in ghost.all().filter(|b| b.began[lane.index()]) {
                    let ended = &mut before.ended[lane.index()];
                    *ended = (*ended + 1).min(2);
                }
            }
            Event::NodeRead { .. } | Event::Reported(_) => return,
            _ => {}
        }
        drop(ghost);
        self.point();
    }
}

impl Small {
    /// Does it, and says how many points there were where it could be overtaken; `None` if what was to do so was not
    /// possible there.
    pub(super) fn perform(
        &self,
        action: Action,
        inside: Option<(usize, Action)>,
    ) -> Result<Option<usize>, String> {
        let listener = Listener::new(self, action, inside);
        let slot_of = |slot: usize| Slot::new(slot as u32);
        match action {
            Action::Enter(s) => {
                let entered = self.slots[s]
                    .reader
                    .enter()
                    .ok_or("an online slot did not enter")?;
                let mut ghost = self.ghost.borrow_mut();
                let depth = ghost.nr_guards(s);
                ghost.guards[s][depth] = Some(entered);
            }
            Action::Exit(s) => self.exit(s, false),
            Action::ExitOldest(s) => self.exit(s, true),
            Action::Quiescent(s) => {
                let mut ghost = self.ghost.borrow_mut();
                let entered = ghost.guards[s][0].ok_or("not inside")?;
                ghost.guards[s][0] = Some(self.slots[s].reader.quiescent(entered));
                ghost.all().for_each(|b| b.inside &= !(1 << s));
            }
            Action::OnlineInTree(s) => self.nodes().set_online(slot_of(s), &listener),
            Action::OnlineInWord(s) => self.slots[s].reader.set_online(),
            Action::OfflineInWord(s) => self.slots[s].reader.set_offline(),
            Action::OfflineInTree(s) => self.nodes().set_offline(slot_of(s), &listener),
            Action::EnterShared => {
                let place = self.shared.enter(&self.gp, Some(Slot::new(0)));
                self.ghost.borrow_mut().note_shared(place)?;
            }
            Action::ExitShared(i) => {
                let mut ghost = self.ghost.borrow_mut();
                let place = ghost.shared[i].take().ok_or("not inside")?;
                self.shared.exit(place);
                ghost.all().for_each(|b| b.inside &= !shared_bit(i));
            }
            Action::MoveOff(s) => {
                let states = [self.machines[0].lock(), self.machines[1].lock()];
                let place = self.shared.admit(&self.gp, Some(slot_of(s)), |lane| {
                    states[lane.index()].is_about_to_arm()
                        || self.nodes().is_waiting_for(lane, slot_of(s))
                });
                drop(states);
                let mut ghost = self.ghost.borrow_mut();
                let i = ghost.note_shared(place)?;
                ghost.moving[s] = Some(i);
                // It is one section that counts twice.
                for before in ghost.all().filter(|b| b.inside & 1 << s != 0) {
                    before.inside |= shared_bit(i);
                }
            }
            Action::MovedOff(s) => {
                self.ghost.borrow_mut().moving[s] = None;
                self.exit(s, false);
            }
            Action::TakeSmall => {
                let before = self.before();
                let mut ghost = self.ghost.borrow_mut();
                ghost.full_first = ghost.full.is_some();
                ghost.small = Some(before);
            }
            Action::TakeFull => {
                let before = self.before();
                let mut ghost = self.ghost.borrow_mut();
                ghost.full_first = false;
                ghost.full = Some(before);
            }
            Action::Ask(lane) => {
                let mut ghost = self.ghost.borrow_mut();
                let small = ghost.small.as_mut().ok_or("no cookie")?;
                small.asked = Some(lane);
                self.gp.request(lane, small.small);
            }
            Action::AskFull(lane) => {
                let mut ghost = self.ghost.borrow_mut();
                ghost.full.as_mut().ok_or("no cookie")?.asked = Some(lane);
                let own = self.gp.lane(lane);
                own.request(own.snapshot());
            }
            Action::Advance(lane) => self.advances(lane, 1, &listener),
            Action::Advances(lane, n) => self.advances(lane, n, &listener),
            Action::Drive(lane) => {
                self.with_machine(lane, &listener, |m, world| m.drive(world));
                let is_idle = self.machines[lane.index()].lock().is_idle();
                if is_idle && self.gp.is_needed(lane) {
                    return Err("T36: who drove left a request that nobody is at".into());
                }
            }
            Action::Queue => {
                let before = self.before();
                let mut ghost = self.ghost.borrow_mut();
                let n = ghost.nr_calls();
                let head = &self.heads[(ghost.oldest + n) % CALLS];
                // SAFETY: the head outlives the list, is not on it (fewer than `CALLS` are), and stays on this thread.
                unsafe { self.list.borrow_mut().enqueue(NonNull::from(head)) };
                ghost.calls[n] = Some(before);
            }
            Action::Number => self.number(&listener)?,
            Action::Run => self.run()?,
        }
        if let Some(broken) = listener.broken.take() {
            return Err(broken);
        }
        self.check()?;
        Ok((inside.is_none() || listener.done.get()).then(|| listener.points.get()))
    }

    fn exit(&self, s: usize, oldest: bool) {
        let mut ghost = self.ghost.borrow_mut();
        let depth = ghost.nr_guards(s);
        let which = if oldest { 0 } else { depth - 1 };
        let entered = ghost.guards[s][which].take().expect("inside");
        ghost.guards[s][which..].rotate_left(1);
        let _ = self.slots[s].reader.exit(entered);
        if depth == 1 {
            ghost.all().for_each(|b| b.inside &= !(1 << s));
        }
    }

    fn advances(&self, lane: Lane, n: u8, listener: &Listener<'_>) {
        self.with_machine(lane, listener, |machine, world| {
            for _ in 0..n {
                // A listener that drives the other lane looks at this one's lock.
                let _ = advance(&mut machine.lock(), world);
            }
        });
    }

    /// A cookie of each kind for what is unlinked now.
    fn before(&self) -> Before {
        Before {
            full: self.gp.snapshot_full(),
            small: self.gp.polled().snapshot(),
            inside: self.ghost.borrow().inside(),
            began: [false; 2],
            ended: [0; 2],
            asked: None,
        }
    }

    /// Numbers under the list's lock; what overtakes comes between the two looks at the sequence.
    fn number(&self, listener: &Listener<'_>) -> Result<(), String> {
        self.ghost.borrow_mut().numbering = true;
        let looks = Cell::new(0);
        let between = || {
            looks.set(looks.get() + 1);
            if looks.get() == 2 {
                listener.point();
            }
        };
        let mut list = self.list.borrow_mut();
        let numbered = list.number(
            || {
                between();
                self.gp.polled().snapshot()
            },
            || {
                between();
                self.gp.polled().load()
            },
        );
        self.ghost.borrow_mut().numbering = false;
        if let Some(cookie) = numbered {
            self.gp.polled().request(cookie);
        }
        if list.has_unnumbered() {
            return Err("T38: numbering left callbacks without a number".into());
        }
        Ok(())
    }

    /// Takes out what is ready and runs it at once.
    fn run(&self) -> Result<(), String> {
        let mut list = self.list.borrow_mut();
        list.advance(self.gp.polled().load());
        let mut ready = list.extract_done();
        let mut ghost = self.ghost.borrow_mut();
        while let Some(head) = ready.pop_front() {
            if head != NonNull::from(&self.heads[ghost.oldest]) {
                return Err("S1: callbacks run out of order".into());
            }
            let before = ghost.calls[0]
                .take()
                .ok_or("S8: a callback that was not queued")?;
            if before.inside != 0 || !self.gp.polled().poll(before.small) {
                return Err("R5: a callback ran before its grace period had ended".into());
            }
            ghost.calls.rotate_left(1);
            ghost.oldest = (ghost.oldest + 1) % CALLS;
            list.finished(1);
        }
        if list.len() != ghost.nr_calls() || list.in_flight() != 0 {
            return Err("S8: the list's length is not that of what is on it".into());
        }
        Ok(())
    }
}
