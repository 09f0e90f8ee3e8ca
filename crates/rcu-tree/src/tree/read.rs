//! Readers, and how their slots come and go.

use super::Tree;
use crate::reader::{Entered, Outcome, ReaderWord};
use crate::slot::TreeSlot;
use crate::trace::Trace;
use core::fmt;
use core::ptr::{self, NonNull};
use rcu_core::cpu::{Cpus, OfflineHook, Slot};
use rcu_core::sync::atomic::Ordering;
use rcu_core::{Callback, Head, Rcu};

/// What a reader gives back: the word of its slot, or what stands for one of a reader without a slot.
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

    /// Lists the offline hook, once (I1).
    pub(super) fn list_hook(&self) {
        // ORDERING: Acquire meets the Release below: the hook is listed.
        if self.hooked.load(Ordering::Acquire) != 0 {
            return;
        }
        let _lock = self.hook_lock.lock();
        // ORDERING: Relaxed: under `hook_lock`.
        if self.hooked.load(Ordering::Relaxed) != 0 {
            return;
        }
        // SAFETY: `offline` may run on any slot's owner while the tree is there.
        let hook = unsafe { OfflineHook::new(Self::offline_hook, ptr::from_ref(self).cast()) };
        // SAFETY: under `hook_lock`, before anyone else looks.
        let place = unsafe { &mut *self.hook.get() };
        let hook = NonNull::from(place.write(hook));
        // SAFETY: the hook stays until `drop` takes it off the list, and is on no list yet.
        unsafe { self.cpus.add_offline_hook(hook) };
        // ORDERING: Release: whoever sees 1 knows the hook listed.
        self.hooked.store(1, Ordering::Release);
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

    #[cold]
    #[inline(never)]
    pub(super) fn exit_slow(&self, word: *const ReaderWord) {
        match self.shared.bank_of(word) {
            Some(bank) => self.shared.exit(bank),
            None => self.end_lingering(word),
        }
    }

    /// The last section of a thread that has ended is over.
    fn end_lingering(&self, word: *const ReaderWord) {
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
            if let Some(entered) = own.reader.enter() {
                return Token {
                    word: &raw const *own.reader,
                    entered,
                };
            }
            debug_assert!(false, "I2: the slot was just brought online");
        }
        Token {
            word: self.shared.word(self.shared.enter(&self.gp)),
            entered: Entered::NOTHING,
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
        // SAFETY: the token is a word of this tree's slots or shared readers, which outlive it, entered on this thread (1).
        let word = unsafe { &*token.word };
        if word.exit(token.entered) == Outcome::Transition {
            self.exit_slow(token.word);
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
