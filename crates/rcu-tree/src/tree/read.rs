//! Readers, and how their slots come and go.

use super::Tree;
use crate::reader::{Outcome, ReaderWord};
use crate::shared_readers::Bank;
use crate::slot::TreeSlot;
use crate::trace::Trace;
use core::fmt;
use core::ptr::{self, NonNull};
use rcu_core::cpu::{Cpus, Slot};
use rcu_core::{Callback, Head, Rcu};

/// What a reader gives back: the word of its slot, or the bank of a reader without a slot.
#[derive(Clone, Copy)]
pub struct Token(*const ReaderWord);

impl Token {
    /// Addresses below this are banks; no word lies in the first page.
    const BANKS: usize = 2;
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.addr() < Self::BANKS {
            write!(f, "Token(shared bank {})", self.0.addr())
        } else {
            f.write_str("Token(slot)")
        }
    }
}

impl<'a, C: Cpus, T: Trace> Tree<'a, C, T> {
    /// The caller's slot in this tree, online.
    pub(super) fn own_slot(&self) -> Option<&TreeSlot<C::Lock>> {
        let slot = self.cpus.current()?;
        // SAFETY: `Cpus` guarantees slots below `nr_slots`, which is the array's length.
        let own = unsafe { self.slots.get_unchecked(slot) };
        if !own.reader.is_online() {
            self.bring_online(slot, own);
        }
        Some(own)
    }

    #[cold]
    #[inline(never)]
    pub(super) fn bring_online(&self, slot: Slot, own: &TreeSlot<C::Lock>) {
        self.list_hook();
        own.reader.set_online();
        self.nodes.set_online(slot, &self.trace);
    }

    /// # Safety
    /// 1. `tree` is the tree that listed the hook; the caller owns `slot`.
    pub(super) unsafe fn offline_hook(tree: *const (), slot: Slot) -> bool {
        // SAFETY: the hook's data is the tree, which takes the hook off before it goes (1).
        let tree = unsafe { &*tree.cast::<Self>() };
        let Some(own) = tree.slots.get(slot) else {
            return true;
        };
        if !own.reader.is_online() {
            return true;
        }
        if own.reader.nesting() > 0 {
            own.reader.set_lingering();
            return false;
        }
        tree.take_offline(slot, own);
        true
    }

    pub(super) fn take_offline(&self, slot: Slot, own: &TreeSlot<C::Lock>) {
        own.reader.set_offline();
        if self.callbacks.migrate(own) {
            self.kick();
        }
        self.nodes.set_offline(slot, &self.trace);
    }

    /// The last section of a thread that has ended is over.
    #[cold]
    #[inline(never)]
    pub(super) fn end_lingering(&self, word: *const ReaderWord) {
        let offset = word.addr() - self.slots.as_ptr().addr().get();
        let slot = Slot::new((offset / size_of::<TreeSlot<C::Lock>>()) as u32);
        if let Some(own) = self.slots.get(slot) {
            self.take_offline(slot, own);
            // SAFETY: the hook returned false for this slot, once, and the tree has let go of it.
            unsafe { self.cpus.release(slot) };
        }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn enter_slow(&self) -> Token {
        if let Some(own) = self.own_slot() {
            if own.reader.enter() == Outcome::Done {
                return Token(&raw const *own.reader);
            }
            debug_assert!(false, "I2: the slot was just brought online");
        }
        Token(ptr::without_provenance(self.shared.enter(&self.gp).index()))
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
            if own.reader.enter() == Outcome::Done {
                return Token(&raw const *own.reader);
            }
        }
        self.enter_slow()
    }

    #[inline(always)]
    unsafe fn exit(&self, token: Token) {
        if token.0.addr() >= Token::BANKS {
            // SAFETY: the token is a word of this tree's slots, which outlive it, entered on this thread (1).
            let word = unsafe { &*token.0 };
            if word.exit() == Outcome::Transition {
                self.end_lingering(token.0);
            }
        } else {
            self.shared.exit(Bank::from_index(token.0.addr()));
        }
    }

    unsafe fn call(&self, head: NonNull<Head>, callback: Callback) {
        // SAFETY: the head is valid (1).
        unsafe { head.as_ref() }.set_callback(callback);
        // SAFETY: the caller's debts.
        unsafe { self.queue(head) };
    }

    fn barrier(&self) {
        self.check_outside("a barrier");
        self.wait_for_callbacks();
    }
}
