//! A static tree's reader keeps the address of its word in a thread-local.
//!
//! Why not find it by the slot's number each time, as [`Tree::enter`](rcu_core::Rcu::enter) does: that is a comparison,
//! a shift and an addition more, and the word has to be asked whether it is online.
//!
//! # State
//! | a thread's `Remembered` | meaning | who writes |
//! |---|---|---|
//! | `UNKNOWN` | no section yet; the slow path finds the word | initial |
//! | a slot's word | the thread owns the slot, which is online | the slow path |
//! | `ENDED` | the thread's slot is gone, or going; the slow path does not remember any more | the offline hook |
//!
//! `UNKNOWN` and `ENDED` are [words of nobody](ReaderWord::of_nobody): entering by them fails the one test that nested
//! sections fail too, so the common path has no test for them.
//!
//! # Invariants
//! - I1. A slot's word is remembered only while its slot is the thread's own and online: it is put there by its thread
//!   after it entered by it; the offline hook, which runs on the owner before the slot is taken offline, lingers or
//!   gets another owner, replaces it by `ENDED`; and nothing replaces `ENDED`. A slot goes offline in no other way.
//! - I2. Signal handlers: one that comes between the slow path's enter and its store of the address stores the same.

use super::{Token, Tree};
use crate::place;
use crate::reader::ReaderWord;
use crate::trace::Trace;
use core::cell::Cell;
use core::fmt;
use core::panic::Location;
use rcu_core::cpu::Cpus;
use std::thread::LocalKey;

static UNKNOWN: ReaderWord = ReaderWord::of_nobody();
static ENDED: ReaderWord = ReaderWord::of_nobody();

/// A thread's word in one static tree. For [`static_tree!`](crate::static_tree).
#[doc(hidden)]
pub struct Remembered(Cell<*const ReaderWord>);

impl Remembered {
    /// Nothing is known yet.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "made in thread-locals only")]
    pub const fn new() -> Self {
        Self(Cell::new(&raw const UNKNOWN))
    }

    /// The slot of the calling thread is going (I1).
    pub fn forget(&self) {
        self.0.set(&raw const ENDED);
    }
}

impl fmt::Debug for Remembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remembered")
    }
}

impl<C: Cpus, T: Trace> Tree<'static, C, T> {
    /// Gives the tree the way to make the calling thread forget its word, which `enter_remembered` needs.
    #[doc(hidden)]
    #[must_use]
    pub const fn with_forget(mut self, forget: fn()) -> Self {
        self.forget = Some(forget);
        self
    }

    /// Enters by the word that the calling thread remembers.
    ///
    /// # Safety
    /// 1. `remembered` is a thread-local of this tree alone, and the function of `with_forget` forgets it.
    #[doc(hidden)]
    #[inline(always)]
    #[track_caller]
    pub unsafe fn enter_remembered(
        &'static self,
        remembered: &'static LocalKey<Remembered>,
    ) -> Token {
        let word = remembered.with(|r| r.0.get());
        // SAFETY: a static, or a word of this static tree (1, I1).
        if let Some(entered) = unsafe { &*word }.enter_known() {
            if place::KEPT
                && let Some(own) = self.slots.get(self.slot_of(word))
            {
                own.entered(Location::caller());
            }
            return Token { word, entered };
        }
        self.enter_unknown(remembered)
    }

    #[cold]
    #[inline(never)]
    #[track_caller]
    fn enter_unknown(&'static self, remembered: &'static LocalKey<Remembered>) -> Token {
        let token = self.enter_slow();
        remembered.with(|r| {
            if core::ptr::eq(r.0.get(), &raw const UNKNOWN) && self.place_of(token).is_none() {
                r.0.set(token.word);
            }
        });
        token
    }
}
