//! One word a slot says whether its reader is inside: enter, exit and the scan's view of it.
//!
//! Source: liburcu's memory-barrier flavour and Linux's idle counters (G9), merged into one word; the
//! second section's problem was found by the model (`p3_second_section`). Why not publish a
//! grace-period label instead: a label needs a load of a shared word on entry, a count does not.
//!
//! # State
//! | bits of the word | meaning | who writes |
//! |---|---|---|
//! | 0–15 | nesting depth; 0 means outside, an extended quiescent state | the slot's owner |
//! | 16 | the slot takes part in this tree | the slot's owner, outside |
//! | 17 | the owner's thread ended inside; the last exit takes the slot offline | the slot's owner |
//! | 18… | how many sections have begun, and how often the slot went offline | the slot's owner |
//!
//! # Life
//! The outermost enter adds one to the depth and to the count and is followed by `light`; a nested one adds to the
//! depth. Exit takes one from the depth. A quiescent state of a thread that stays inside is both in one store: it counts
//! on and leaves the depth at one; `light` follows as after an enter. The scan credits a slot that is outside, or whose
//! count differs from the one seen before.
//!
//! # Invariants
//! - I1. While bits 0–15 are not zero, the count does not change but at a quiescent state of the outermost level: a changed
//!   count means a moment at which the owner held no reference.
//!   (A signal handler between an enter's load and store can make the count repeat, never advance wrongly: the
//!   scan then waits for one section more.)
//! - I2. Only the owner stores to the word, so load and store need not be one operation. (A signal handler leaves bits
//!   0–17 as it found them, so between exit's load and store, inside, it leaves all.)
//! - I3. A word that somebody knows without asking the tree is online, or of nobody (`tree::remember`).
//! - I4. Exit stores `entered - 1` only if the word is equal to `entered`, and then that is what the general exit would
//!   store: no level but this one was entered and not left since, or as many were as were left of those outside it, and
//!   depths are all that differ between guards. A depth of one together with bit 17 never is an `entered`: bit 17 is
//!   set inside, and what is entered inside is nested. Anything else goes the general way.
//!
//! # Orderings
//! - P2. Enter's store, `light`, load of the pointer / unlink, `heavy`, the scan's load of the word: forbids that the
//!   reader gets the old pointer *and* the scan sees it outside.
//! - P3. Exit's Release / the scan's Acquire: a reader's last access comes before the end. Enter's store is a Release
//!   too: the scan may read it instead of the exit before it, and a plain store does not carry that exit's release on.
//!
//! # Progress and contexts
//! Enter and exit are wait-free, allocate nothing, and may come in signal handlers.
//! On x86-64 an outermost pair of a static tree is 4 loads (the word's address, the word twice, the fence mode), 2
//! stores, 3 predicted branches (outermost? the mode; as entered?); no locked instruction, no fence. Where the number
//! of a slot has to be looked up, it is 2 loads and 2 branches more.
//!
//! Why exit compares: what it stores then follows from what *enter* loaded, so the processor need not wait for enter's
//! store to come back through memory. Sections that follow each other are one chain of such waits: 4.0 cycles each
//! however many instructions were taken out, 2.7 with every second one cut (Sapphire Rapids).
//! Why the mode is not folded into the word: see `rcu_core::fence`, I1. After a refusal every *later* `light` has to
//! fence, and nobody but the owner may store to the word to tell it so.

use core::fmt;
use rcu_core::fence;
use rcu_core::sync::atomic::{AtomicUsize, Ordering};

const NEST: usize = 0xffff;
const ONLINE: usize = 1 << 16;
const LINGERING: usize = 1 << 17;
const SECTION: usize = 1 << 18;

/// Nesting deeper than this aborts: it can only come from forgotten guards (hole 3 of the peers).
const MAX_NEST: usize = NEST - 1;

#[inline(always)]
fn enter_order() -> Ordering {
    if rcu_core::weakened!("p3_enter") {
        Ordering::Relaxed
    } else {
        Ordering::Release
    }
}
#[inline(always)]
fn exit_order() -> Ordering {
    if rcu_core::weakened!("p3") {
        Ordering::Relaxed
    } else {
        Ordering::Release
    }
}

#[inline(always)]
fn quiescent_order() -> Ordering {
    if rcu_core::weakened!("p3_quiescent") {
        Ordering::Relaxed
    } else {
        Ordering::Release
    }
}

/// What the owner has to do beside leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// Nothing.
    Done,
    /// That was the last section of a thread that is gone; take the slot offline.
    Transition,
}

/// The word as one enter left it, for the matching exit to compare with (I4). Of a word of nobody: what somebody else
/// noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entered(usize);

impl Entered {
    /// A note beside a word of nobody, which no such word is equal to.
    pub(crate) const fn note(note: u8) -> Self {
        Self(note as usize)
    }

    /// What was noted.
    pub(crate) const fn noted(self) -> usize {
        self.0
    }
}

/// The reader's word of one slot.
pub struct ReaderWord(AtomicUsize);

/// What the scan saw of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen(usize);

impl Seen {
    /// Whether the slot was outside when this was seen.
    #[must_use]
    pub const fn is_outside(self) -> bool {
        self.0 & NEST == 0
    }

    /// Whether the slot was outside at some moment between `earlier` and this.
    #[must_use]
    pub const fn passed_since(self, earlier: Self) -> bool {
        self.is_outside() || self.0 / SECTION != earlier.0 / SECTION
    }

    /// How deep sections nested.
    #[must_use]
    pub const fn nesting(self) -> usize {
        self.0 & NEST
    }

    /// Whether the slot took part.
    #[must_use]
    pub const fn is_online(self) -> bool {
        self.0 & ONLINE != 0
    }

    /// Whether the owner's thread had ended inside a section.
    #[must_use]
    pub const fn is_lingering(self) -> bool {
        self.0 & LINGERING != 0
    }

    /// How many sections had begun, as far as the bits go.
    #[must_use]
    pub const fn sections(self) -> usize {
        self.0 / SECTION
    }

    /// As a raw word, to be kept between scans.
    #[must_use]
    pub const fn raw(self) -> usize {
        self.0
    }

    /// From a raw word.
    #[must_use]
    pub const fn from_raw(raw: usize) -> Self {
        Self(raw)
    }
}

impl Default for ReaderWord {
    fn default() -> Self {
        Self::new()
    }
}

impl ReaderWord {
    rcu_core::const_fn! {
        /// Outside, and not taking part.
        #[must_use]
        pub const fn new() -> Self {
            Self(AtomicUsize::new(0))
        }
    }

    rcu_core::const_fn! {
        /// A word of nobody's that is never stored to: entering and leaving by it always is a [`Outcome::Transition`].
        #[must_use]
        pub const fn of_nobody() -> Self {
            Self(AtomicUsize::new(LINGERING | 1))
        }
    }

    /// Enters a section, or one level deeper; `None`: the slot does not take part yet, bring it online and enter again.
    #[inline(always)]
    pub fn enter(&self) -> Option<Entered> {
        // ORDERING: Relaxed: same thread (I2).
        let word = self.0.load(Ordering::Relaxed);
        if word & (NEST | ONLINE) == ONLINE {
            return Some(self.enter_outermost(word));
        }
        self.enter_nested(word)
    }

    /// As [`Self::enter`], for a word that is online or [of nobody](Self::of_nobody): one test instead of two.
    #[inline(always)]
    pub fn enter_known(&self) -> Option<Entered> {
        // ORDERING: Relaxed: same thread (I2).
        let word = self.0.load(Ordering::Relaxed);
        if word & NEST == 0 {
            debug_assert!(word & ONLINE != 0, "I3: knew a word that is offline");
            return Some(self.enter_outermost(word));
        }
        self.enter_nested(word)
    }

    #[inline(always)]
    fn enter_outermost(&self, word: usize) -> Entered {
        let entered = word.wrapping_add(SECTION | 1);
        // ORDERING: P2 and P3 (enter side).
        self.0.store(entered, enter_order());
        if !rcu_core::weakened!("p2") {
            fence::light();
        }
        Entered(entered)
    }

    #[inline(always)]
    fn enter_nested(&self, word: usize) -> Option<Entered> {
        if word & ONLINE == 0 {
            return None;
        }
        if word & NEST >= MAX_NEST {
            nesting_overflow();
        }
        // ORDERING: P3 (enter side); the outermost enter's fence covers this level (P2).
        self.0.store(word + 1, enter_order());
        Some(Entered(word + 1))
    }

    /// Leaves one level; the outermost ends the section. `entered` need not be of this level: it is compared.
    #[inline(always)]
    pub fn exit(&self, entered: Entered) -> Outcome {
        // ORDERING: Relaxed: same thread (I2).
        let word = self.0.load(Ordering::Relaxed);
        debug_assert!(word & NEST != 0, "I2: left a section that was not entered");
        if word == entered.0 {
            // ORDERING: P3 (exit side): a release also where the section goes on, since the scan may read this store.
            self.0.store(entered.0.wrapping_sub(1), exit_order());
            return Outcome::Done;
        }
        self.exit_other(word)
    }

    /// Leaves one level of a word that is not as it was after entering: guards were dropped out of order, a guard was
    /// forgotten, or the thread has ended.
    #[cold]
    #[inline(never)]
    fn exit_other(&self, word: usize) -> Outcome {
        if word & (NEST | LINGERING) == LINGERING | 1 {
            return Outcome::Transition;
        }
        // ORDERING: P3 (exit side): as in `exit`.
        self.0.store(word - 1, exit_order());
        Outcome::Done
    }

    /// Leaves the outermost level and enters it anew, in one store: as it is entered now. Nested, nothing happens. The
    /// caller is inside.
    #[inline(always)]
    #[must_use]
    pub fn quiescent(&self, entered: Entered) -> Entered {
        // ORDERING: Relaxed: same thread (I2).
        let word = self.0.load(Ordering::Relaxed);
        debug_assert!(word & NEST != 0, "I2: quiescent outside a section");
        if word & NEST != 1 {
            return entered;
        }
        let anew = word.wrapping_add(SECTION);
        // ORDERING: P3 (exit side) and P2 (enter side).
        self.0.store(anew, quiescent_order());
        if !rcu_core::weakened!("p2_quiescent") {
            fence::light();
        }
        Entered(anew)
    }

    /// What the scan sees. The caller has run `heavy` since the sequence was bumped.
    #[inline]
    #[must_use]
    pub fn scan(&self) -> Seen {
        // ORDERING: P2 (scan side, after `heavy`) and P3 (scan side).
        Seen(self.0.load(Ordering::Acquire))
    }

    /// What the word says, for people: nothing may be concluded from it.
    #[must_use]
    pub fn look(&self) -> Seen {
        // ORDERING: Relaxed: a report for people.
        Seen(self.0.load(Ordering::Relaxed))
    }

    /// The owner's own nesting depth.
    #[must_use]
    pub fn nesting(&self) -> usize {
        // ORDERING: Relaxed: same thread (I2).
        self.0.load(Ordering::Relaxed) & NEST
    }

    /// Whether the slot takes part, as its owner knows.
    #[inline]
    #[must_use]
    pub fn is_online(&self) -> bool {
        // ORDERING: Relaxed: same thread (I2).
        self.0.load(Ordering::Relaxed) & ONLINE != 0
    }

    /// Makes the slot take part. The caller has published it in the tree and run a full fence.
    pub fn set_online(&self) {
        // ORDERING: Relaxed: same thread (I2).
        let word = self.0.load(Ordering::Relaxed);
        // ORDERING: P3 (a store that the scan may read carries the exits before it on).
        self.0.store(word | ONLINE, Ordering::Release);
    }

    /// Ends the slot's part; whoever owns the slot next starts outside. Only outside, or at the last exit.
    pub fn set_offline(&self) {
        // ORDERING: Relaxed: same thread (I2).
        let word = self.0.load(Ordering::Relaxed);
        debug_assert!(word & NEST <= 1, "I1: took a slot offline inside a section");
        let count = (word / SECTION).wrapping_add(1).wrapping_mul(SECTION);
        // ORDERING: P3 (exit side): the count moves on, as at an exit.
        self.0.store(count, Ordering::Release);
    }

    /// Ends the slot's part in the place of an owner that is gone, wherever it was: in the child of a fork.
    pub fn reset_after_fork(&self) {
        // ORDERING: Relaxed: there is one thread.
        let word = self.0.load(Ordering::Relaxed);
        if word & (SECTION - 1) != 0 {
            let count = (word / SECTION).wrapping_add(1).wrapping_mul(SECTION);
            // ORDERING: P3: as any store that the scan may read.
            self.0.store(count, Ordering::Release);
        }
    }

    /// Notes that the owner's thread ends inside a section.
    pub fn set_lingering(&self) {
        // ORDERING: Relaxed: same thread (I2).
        let word = self.0.load(Ordering::Relaxed);
        // ORDERING: P3: as any store that the scan may read.
        self.0.store(word | LINGERING, Ordering::Release);
    }
}

impl fmt::Debug for ReaderWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // ORDERING: Relaxed: a report for people.
        let word = self.0.load(Ordering::Relaxed);
        f.debug_struct("ReaderWord")
            .field("nesting", &(word & NEST))
            .field("online", &(word & ONLINE != 0))
            .field("lingering", &(word & LINGERING != 0))
            .field("sections", &(word / SECTION))
            .finish()
    }
}

#[cold]
#[inline(never)]
pub(crate) fn nesting_overflow() -> ! {
    /// Panicking while panicking aborts, with or without `std`.
    struct Abort;
    impl Drop for Abort {
        fn drop(&mut self) {
            panic!("aborting: the section count cannot be trusted any more");
        }
    }
    let _abort = Abort;
    panic!(
        "too many read-side critical sections (nested {MAX_NEST} deep, or a word of them): guards were forgotten"
    );
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// For who puts words into a state (`machine::explorer`).
    impl ReaderWord {
        pub(crate) fn set_raw(&self, raw: usize) {
            self.0.store(raw, Ordering::Relaxed);
        }
    }

    impl Entered {
        pub(crate) fn is_of(self, seen: Seen) -> bool {
            self.0 == seen.0
        }
    }

    fn online() -> ReaderWord {
        let word = ReaderWord::new();
        assert_eq!(word.enter(), None);
        word.set_online();
        word
    }

    #[test]
    fn nesting_keeps_the_count_and_the_next_section_moves_it() {
        let word = online();
        assert!(word.scan().is_outside());
        let outer = word.enter().unwrap();
        let first = word.scan();
        let inner = word.enter_known().unwrap();
        assert_eq!(word.exit(inner), Outcome::Done);
        assert!(!word.scan().passed_since(first), "I1");
        assert_eq!(word.exit(outer), Outcome::Done);
        assert!(word.scan().is_outside());
        let again = word.enter_known().unwrap();
        assert!(!word.scan().is_outside());
        assert!(word.scan().passed_since(first));
        assert_ne!(outer, again);
    }

    #[test]
    fn tokens_may_be_given_back_in_any_order() {
        let word = online();
        let tokens = [0; 3].map(|_| word.enter().unwrap());
        let seen = word.scan();
        for token in tokens {
            assert!(!word.scan().passed_since(seen));
            assert_eq!(word.exit(token), Outcome::Done);
        }
        assert!(word.scan().is_outside());
    }

    #[test]
    fn a_forgotten_guard_keeps_the_section() {
        let word = online();
        let outer = word.enter().unwrap();
        let _ = word.enter().unwrap();
        let seen = word.scan();
        assert_eq!(word.exit(outer), Outcome::Done);
        assert!(!word.scan().passed_since(seen), "I4");
    }

    #[test]
    fn a_word_of_nobody_is_neither_entered_nor_left() {
        let word = ReaderWord::of_nobody();
        assert_eq!(word.enter(), None);
        assert_eq!(word.enter_known(), None);
        assert_eq!(word.exit(Entered::note(0)), Outcome::Transition);
        assert_eq!(word.exit(Entered::note(0)), Outcome::Transition);
    }

    #[test]
    fn g20_a_count_that_goes_round_passes_and_spoils_no_other_bit() {
        let word = ReaderWord(AtomicUsize::new((usize::MAX / SECTION * SECTION) | ONLINE));
        let entered = word.enter().unwrap();
        let first = word.scan();
        assert_eq!(word.exit(entered), Outcome::Done);
        assert!(word.enter().is_some());
        assert!(word.scan().passed_since(first));
        assert_eq!((word.scan().sections(), word.nesting()), (1, 1));
        assert!(word.is_online() && !word.scan().is_lingering());
        // All the way round looks like the same section: the scan waits for one more, and credits nobody too early.
        assert!(!Seen::from_raw(first.raw()).passed_since(first));
    }

    #[test]
    fn after_a_fork_an_owner_that_is_gone_is_outside_wherever_it_was() {
        let word = online();
        for deep in 0..3 {
            for _ in 0..deep {
                assert!(word.enter().is_some());
            }
            if deep == 2 {
                word.set_lingering();
            }
            let seen = word.scan();
            word.reset_after_fork();
            assert!(word.scan().is_outside() && word.scan().passed_since(seen));
            assert_eq!(word.enter(), None);
            word.set_online();
        }
    }

    #[test]
    fn a_lingering_slot_goes_offline_at_its_last_exit() {
        let word = online();
        let outer = word.enter().unwrap();
        let inner = word.enter().unwrap();
        word.set_lingering();
        let late = word.enter().unwrap();
        let seen = word.scan();
        assert_eq!(word.exit(outer), Outcome::Done);
        assert_eq!(word.exit(late), Outcome::Done);
        assert!(!word.scan().passed_since(seen));
        assert_eq!(word.exit(inner), Outcome::Transition);
        assert!(
            !word.scan().passed_since(seen),
            "still inside until taken offline"
        );
        word.set_offline();
        assert!(word.scan().passed_since(seen) && word.scan().is_outside());
        assert_eq!(word.enter(), None);
    }
}
