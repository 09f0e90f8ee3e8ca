//! Putting the production code into a state, word by word.

use super::{CALLS, List, NODES, SLOTS, Small, State};
use crate::machine::Machine;
use core::ptr::NonNull;
use rcu_core::sync::atomic::Ordering;
use rcu_core::{SegList, Seq};

impl Small {
    pub(super) fn save(&self) -> State {
        let machine = |m: &Machine| {
            let state = m.lock();
            (state.phase, state.stake)
        };
        let list = self.list.borrow();
        let mut state = State {
            gp: self.gp.words(),
            machines: self.machines.each_ref().map(machine),
            nodes: [[0; 3]; NODES],
            words: [0; SLOTS],
            first_seen: [[0; 2]; SLOTS],
            shared: self.shared.words(),
            list: List {
                lengths: list.seglens(),
                cookies: [
                    list.pending_cookie(),
                    list.last_cookie().filter(|_| list.seglens()[2] > 0),
                ],
            },
            ghost: self.ghost.borrow().clone(),
        };
        for (to, node) in state.nodes.iter_mut().zip(&self.nodes) {
            *to = node.words();
        }
        for (s, slot) in self.slots.iter().enumerate() {
            state.words[s] = slot.reader.look().raw();
            // ORDERING: Relaxed: one thread.
            state.first_seen[s] = slot
                .first_seen
                .each_ref()
                .map(|w| w.load(Ordering::Relaxed));
        }
        state
    }

    pub(super) fn restore(&self, state: &State) {
        self.gp.set_words(state.gp);
        for (machine, &(phase, stake)) in self.machines.iter().zip(&state.machines) {
            let mut its = machine.lock();
            (its.phase, its.stake) = (phase, stake);
        }
        for (&words, node) in state.nodes.iter().zip(&self.nodes) {
            node.set_words(words);
        }
        for (s, slot) in self.slots.iter().enumerate() {
            slot.reader.set_raw(state.words[s]);
            for (word, &seen) in slot.first_seen.iter().zip(&state.first_seen[s]) {
                // ORDERING: Relaxed: one thread.
                word.store(seen, Ordering::Relaxed);
            }
        }
        self.shared.set_words(state.shared);
        *self.ghost.borrow_mut() = state.ghost.clone();
        *self.list.borrow_mut() = self.rebuild(&state.list, state.ghost.oldest);
    }

    /// The list with these segments, of the heads from `oldest` on.
    fn rebuild(&self, like: &List, oldest: usize) -> SegList {
        let mut list = SegList::new();
        let mut next = oldest;
        let mut queue = |list: &mut SegList, n: usize| {
            for _ in 0..n {
                let head = &self.heads[next % CALLS];
                next += 1;
                // SAFETY: as in `perform`; the list that the head was on is forgotten.
                unsafe { list.enqueue(NonNull::from(head)) };
            }
        };
        queue(&mut list, like.lengths[0]);
        // Any grace period that has ended will do.
        let past = Seq::INITIAL.started().ended();
        list.accelerate(Seq::INITIAL.snapshot());
        list.advance(past);
        for (&n, cookie) in like.lengths[1..3].iter().zip(like.cookies) {
            queue(&mut list, n);
            if let Some(cookie) = cookie {
                list.accelerate(cookie);
            }
        }
        queue(&mut list, like.lengths[3]);
        debug_assert_eq!(list.seglens(), like.lengths);
        list
    }
}
