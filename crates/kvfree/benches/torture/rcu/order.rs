//! Readers that check each other's progress across a grace period.
//!
//! Reader A, inside a section, notes in the element that it holds how many rounds reader C has done so far. The element is
//! removed, a grace period passes, and whoever waited for it hands the note to reader B: B must see C at that round at
//! least. What carries the order from A's load to B's is the grace period and nothing else.

use super::Padded;
use crate::books::{Books, Count, Fault, Tally};
use crate::random::Random;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What lies in a reader's letter box.
#[derive(Default)]
struct Letter {
    /// [`EMPTY`], [`WRITING`] or [`FULL`].
    state: AtomicUsize,
    who: AtomicUsize,
    rounds: AtomicUsize,
}

const EMPTY: usize = 0;
const WRITING: usize = 1;
const FULL: usize = 2;

pub(crate) struct Order {
    /// How many rounds each reader has done: written by it alone.
    rounds: Box<[Padded<AtomicUsize>]>,
    boxes: Box<[Padded<Letter>]>,
    next: AtomicUsize,
}

impl Order {
    pub(crate) fn new(readers: usize) -> Self {
        Self {
            rounds: (0..readers).map(|_| Padded::default()).collect(),
            boxes: (0..readers).map(|_| Padded::default()).collect(),
            next: AtomicUsize::new(0),
        }
    }

    /// How far a reader is, as the calling one sees it: whom, and how many rounds.
    pub(crate) fn look(&self, random: &mut Random) -> (usize, usize) {
        let who = random.below(self.rounds.len());
        (who, self.rounds[who].0.load(Ordering::Relaxed))
    }

    /// Gives a note to some reader, if its box is empty.
    pub(crate) fn hand_out(&self, who: usize, rounds: usize) {
        let to = self.next.fetch_add(1, Ordering::Relaxed) % self.boxes.len();
        let letter = &self.boxes[to].0;
        let claimed =
            letter
                .state
                .compare_exchange(EMPTY, WRITING, Ordering::Relaxed, Ordering::Relaxed);
        if claimed.is_ok() {
            letter.who.store(who, Ordering::Relaxed);
            letter.rounds.store(rounds, Ordering::Relaxed);
            letter.state.store(FULL, Ordering::Release);
        }
    }

    /// Reader `me` has done another round, and looks whether there is a letter.
    pub(crate) fn round(&self, me: usize, books: &Books, tally: &mut Tally) {
        let own = &self.rounds[me].0;
        own.store(own.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let letter = &self.boxes[me].0;
        if letter.state.load(Ordering::Acquire) != FULL {
            return;
        }
        tally.one(Count::OrderChecks);
        let (who, rounds) = (&letter.who, &letter.rounds);
        let (who, noted) = (who.load(Ordering::Relaxed), rounds.load(Ordering::Relaxed));
        let seen = self.rounds[who].0.load(Ordering::Relaxed);
        books.check(seen >= noted, Fault::Order, || {
            format!("reader {who} is at round {seen} and was seen at {noted}")
        });
        letter.state.store(EMPTY, Ordering::Release);
    }
}
