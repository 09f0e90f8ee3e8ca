//! Readers without a slot: threads beyond the last slot, or past their thread-local destructors.
//!
//! Two counts under a lock, by the parity of the grace period that the reader came before. Why not one
//! count: it might never be seen at zero while such readers overlap.
//!
//! # State
//! | field | meaning |
//! |---|---|
//! | `inside[p]` | readers inside that entered while the *bank* of the sequence was p |
//!
//! The bank of a sequence value flips when a grace period starts: `(seq + 3) / 4 mod 2`.
//!
//! # Invariants
//! - I1. A grace period waits for the bank that was current before it started; the other one was drained by the
//!   grace period before, so everyone there entered after this one's start.
//!
//! # Orderings
//! - P2 (shared side): the reader runs a full fence between reading the sequence and its section; the driver has run
//!   `heavy` after bumping it. If the reader read the old value it is counted before the driver's look, by the lock;
//!   if it read the new one, the writer's fence (P5) came before the reader's, so it sees the unlinking.
//! - P3 (shared side): the exit's unlock / the driver's lock.
//!
//! # Progress
//! Blocking, for the lock's few instructions. Not for signal handlers of such threads.

use crate::gp_seq::GpSeq;
use crate::reader::ReaderWord;
use core::ptr;
use rcu_core::Seq;
use rcu_core::cpu::SpinMutex;
use rcu_core::fence;

/// Which of the two counts a reader is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bank(bool);

impl Bank {
    const fn of(seq: Seq) -> Self {
        Self((seq.raw().wrapping_add(3) >> 2) & 1 == 1)
    }

    /// The bank that a grace period in progress waits for.
    const fn before(seq: Seq) -> Self {
        Self(!Self::of(seq).0)
    }

    const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The shared counts of one tree.
#[derive(Debug, Default)]
pub(crate) struct SharedReaders {
    inside: SpinMutex<[usize; 2]>,
    /// What readers without a slot have in place of a word, one a bank; only the addresses matter.
    words: [ReaderWord; 2],
}

impl SharedReaders {
    rcu_core::const_fn! {
        pub(crate) const fn new() -> Self {
            Self {
                inside: SpinMutex::new([0; 2]),
                words: [ReaderWord::of_nobody(), ReaderWord::of_nobody()],
            }
        }
    }

    /// The word that stands for `bank`. Leaving by it always is a [`Transition`](crate::reader::Outcome::Transition).
    pub(crate) fn word(&self, bank: Bank) -> &ReaderWord {
        &self.words[bank.index()]
    }

    /// The bank that `word` stands for, if it is one of these.
    pub(crate) fn bank_of(&self, word: *const ReaderWord) -> Option<Bank> {
        let index = self.words.iter().position(|w| ptr::eq(w, word))?;
        Some(Bank(index == 1))
    }

    #[cold]
    pub(crate) fn enter(&self, gp: &GpSeq) -> Bank {
        let mut inside = self.inside.lock();
        let bank = Bank::of(gp.load());
        inside[bank.index()] += 1;
        drop(inside);
        fence::full();
        bank
    }

    #[cold]
    pub(crate) fn exit(&self, bank: Bank) {
        let mut inside = self.inside.lock();
        debug_assert!(
            inside[bank.index()] > 0,
            "left a section that was not entered"
        );
        inside[bank.index()] -= 1;
    }

    /// Whether the grace period in progress waits for none of these readers.
    pub(crate) fn is_clear(&self, gp: &GpSeq) -> bool {
        self.inside.lock()[Bank::before(gp.load()).index()] == 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_grace_period_waits_for_those_before_it_and_for_nobody_after() {
        let (gp, readers) = (GpSeq::new(), SharedReaders::new());
        for _ in 0..1000 {
            let before = readers.enter(&gp);
            gp.start();
            assert!(!readers.is_clear(&gp));
            let after = readers.enter(&gp);
            assert_ne!(before, after);
            readers.exit(before);
            assert!(readers.is_clear(&gp));
            gp.end();
            let idle = readers.enter(&gp);
            assert_eq!(after, idle);
            gp.start();
            readers.exit(after);
            assert!(!readers.is_clear(&gp));
            readers.exit(idle);
            assert!(readers.is_clear(&gp));
            gp.end();
        }
    }
}
