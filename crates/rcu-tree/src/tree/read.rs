//! Readers, and how their slots come and go.

use super::Tree;
use crate::marks::{self, Counted, Doing, Nest};
use crate::place;
use crate::reader::{Entered, Outcome, ReaderWord};
use crate::shared_readers::{Place, SharedReaders};
use crate::slot::TreeSlot;
use crate::trace::Trace;
use core::fmt;
use core::panic::Location;
use core::ptr::{self, NonNull};
use rcu_core::cpu::{Cpus, Slot};
use rcu_core::{Callback, Head, Rcu};

/// What a reader gives back: the word of its slot and what entering made of it; or a word of nobody, and the place of a
/// reader without a slot.
#[derive(Clone, Copy)]
pub struct Token {
    pub(super) word: *const ReaderWord,
    pub(super) entered: Entered,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl<'a, C: Cpus, T: Trace> Tree<'a, C, T> {
    /// The caller's slot in this tree, online. None while the caller is inside a section that the slot does not count, as of
    /// a thread that got its slot meanwhile: what it enters by the slot then would be another section (I3 of `shared_readers`).
    pub(super) fn own_slot(&self) -> Option<&TreeSlot<C::Lock>> {
        let slot = self.cpus.current()?;
        // SAFETY: `Cpus` guarantees slots below `nr_slots`, which is the array's length.
        let own = unsafe { self.slots.get_unchecked(slot) };
        if !own.reader.is_online() {
            if marks::nest(self.mark()).is_some() {
                return None;
            }
            self.bring_online(slot, own);
        }
        Some(own)
    }

    #[cold]
    #[inline(never)]
    pub(super) fn bring_online(&self, slot: Slot, own: &TreeSlot<C::Lock>) {
        self.list_hook();
        // The tree first: a handler that comes in between finds the word as it was, and comes here itself.
        self.nodes.set_online(slot, &self.trace);
        own.reader.set_online();
    }

    /// # Safety
    /// 1. `tree` is the tree that listed the hook; the caller owns `slot`.
    pub(super) unsafe fn offline_hook(tree: *const (), slot: Slot) -> bool {
        // SAFETY: the hook's data is the tree, which takes the hook off before it goes (1).
        let tree = unsafe { &*tree.cast::<Self>() };
        let Some(own) = tree.slots.get(slot) else {
            return true;
        };
        if let Some(forget) = tree.forget
            && tree.cpus.current_if_online() == Some(slot)
        {
            forget();
        }
        if !own.reader.is_online() {
            return true;
        }
        if own.reader.nesting() == 0 && tree.take_offline(slot, own) {
            return true;
        }
        own.reader.set_lingering();
        // Not to be found by the slot any more, which its thread forgets.
        let by = Some(Counted::By(slot));
        marks::enter(tree.mark(), Doing::Section, own.place.get(), by);
        false
    }

    /// False if the slot is online again, and inside: what was called in the middle of this has left a guard behind.
    #[must_use]
    pub(super) fn take_offline(&self, slot: Slot, own: &TreeSlot<C::Lock>) -> bool {
        loop {
            own.reader.set_offline();
            if self.callbacks.migrate(&own.calls) {
                self.kick_runner();
            }
            self.nodes.set_offline(slot, &self.trace);
            // A handler on top of this may have brought the slot online again, and then its word said so although the
            // tree has just been told otherwise: no grace period would wait for the next owner.
            if !own.reader.is_online() {
                return true;
            }
            if own.reader.nesting() > 0 {
                return false;
            }
        }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn exit_slow(&self, token: Token) {
        if let Some(place) = self.place_of(token) {
            self.shared.exit(place);
            marks::leave(self.mark(), Doing::Section, Some(Counted::At(place)));
        } else {
            self.end_lingering(token.word);
        }
        self.left(|| true);
    }

    /// Where the section of `token` is counted, if it is not by a slot's word.
    #[inline]
    pub(super) fn place_of(&self, token: Token) -> Option<Place> {
        ptr::eq(token.word, self.shared.word()).then(|| Place::from_raw(token.entered.noted()))
    }

    /// The last section of a thread that has ended is over.
    pub(super) fn end_lingering(&self, word: *const ReaderWord) {
        let slot = self.slot_of(word);
        if let Some(own) = self.slots.get(slot) {
            if !self.take_offline(slot, own) {
                own.reader.set_lingering();
                return;
            }
            marks::leave(self.mark(), Doing::Section, Some(Counted::By(slot)));
            // SAFETY: the hook returned false for this slot, once, and the tree has let go of it.
            unsafe { self.cpus.release(slot) };
        }
    }

    /// Counts another section of a thread that is inside some which its own slot does not count (I3 of `shared_readers`).
    fn enter_nest(&self, nest: &Nest) -> Place {
        if let Some(place) = nest.place() {
            self.shared.enter_at(place);
            return place;
        }
        let states = self.lock_machines();
        self.shared.admit(&self.gp, nest.slot(), |lane| {
            let by_slot = |slot| self.waits_for_slot(&states, lane, slot);
            nest.slot().is_some_and(by_slot)
                || nest.any(|count| SharedReaders::waits_for_count(&self.gp, lane, count))
        })
    }

    #[cold]
    #[inline(never)]
    #[track_caller]
    pub(super) fn enter_slow(&self) -> Token {
        if let Some(own) = self.own_slot() {
            if let Some(entered) = own.reader.enter() {
                own.entered(Location::caller());
                return Token {
                    word: &raw const *own.reader,
                    entered,
                };
            }
            debug_assert!(false, "I2: the slot was just brought online");
        }
        let counted = match marks::nest(self.mark()) {
            None => self.shared.enter(&self.gp, None),
            Some(nest) => self.enter_nest(&nest),
        };
        self.shared_place.note(Location::caller());
        let place = Some(Location::caller()).filter(|_| place::KEPT);
        let at = Some(Counted::At(counted));
        marks::enter(self.mark(), Doing::Section, place, at);
        Token {
            word: self.shared.word(),
            entered: counted.noted(),
        }
    }
}

// SAFETY: 5: `reader` (wait-free, nesting) and `shared_readers`; 6: `callbacks` (I1, I3, T38); 7: `callbacks::barrier`.
unsafe impl<C: Cpus, T: Trace> Rcu for Tree<'_, C, T> {
    type Token = Token;

    #[inline(always)]
    fn enter(&self) -> Token {
        if let Some(slot) = self.cpus.current_if_online() {
            // SAFETY: `Cpus` guarantees slots below `nr_slots`, which is the array's length.
            let own = unsafe { self.slots.get_unchecked(slot) };
            if let Some(entered) = own.reader.enter() {
                own.entered(Location::caller());
                return Token {
                    word: &raw const *own.reader,
                    entered,
                };
            }
        }
        self.enter_slow()
    }

    #[inline(always)]
    unsafe fn exit(&self, token: Token) {
        // SAFETY: the token is a word of this tree's slots or of its shared readers, which outlive it, entered on this
        // thread (1).
        let word = unsafe { &*token.word };
        if word.exit(token.entered) == Outcome::Transition {
            self.exit_slow(token);
        } else {
            self.left(|| word.nesting() == 0);
        }
    }

    #[inline(always)]
    unsafe fn quiescent_state(&self, token: Token) -> Token {
        if self.place_of(token).is_some() {
            self.exit_slow(token);
            return self.enter_slow();
        }
        // SAFETY: the token is a word of this tree's slots, which outlive it, entered on this thread (1).
        let word = unsafe { &*token.word };
        let entered = word.quiescent(token.entered);
        if place::KEPT
            && let Some(own) = self.slots.get(self.slot_of(token.word))
        {
            own.entered(Location::caller());
        }
        self.left(|| word.nesting() == 1);
        Token { entered, ..token }
    }

    unsafe fn call(&self, head: NonNull<Head>, callback: Callback) {
        // SAFETY: the head is valid (1).
        if !unsafe { head.as_ref() }.begin_call(callback) {
            return;
        }
        // SAFETY: the caller's debts.
        unsafe { self.queue(head) };
    }

    unsafe fn call_lazy(&self, head: NonNull<Head>, callback: Callback) {
        // SAFETY: the head is valid (1).
        if !unsafe { head.as_ref() }.begin_call(callback) {
            return;
        }
        // SAFETY: the caller's debts.
        unsafe { self.queue_lazily(head) };
    }

    fn barrier(&self) {
        self.check_outside("a barrier");
        self.check_no_callback("a barrier");
        self.wait_for_callbacks();
    }
}
