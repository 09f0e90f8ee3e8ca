//! The first word of an object in type-stable memory: which object it is at the moment, and how many references it has.
//!
//! Source: Linux `lib/rcuref.c` for the zones (facts only; as `rcu_core::RefCount`, which counts the same way and has no
//! generation). Why one word: whoever pins an object learns in the same instruction which object it got.
//!
//! # State
//! The upper bits hold the number of references less one, the lower the generation, so that what overflows the count leaves
//! the generation alone:
//!
//! | count | zone | meaning |
//! |---|---|---|
//! | `0…` | live | one reference or more |
//! | `10…` | saturated | too many: counted no more, the object leaks |
//! | `11…` | dead | free: no reference, and none to be had; drifts around the middle |
//! | all ones | none | the last reference was dropped, and who dropped it has not marked the object dead yet |
//!
//! On machines with 64-bit atomics the count has 24 bits and the generation 40, elsewhere 16 and 16. A generation comes round after
//! 2⁴⁰ lives of one object, hours of doing nothing else; who still has a reference to the first then finds a live object of
//! the same type: the wrong one, as a stale name does, never memory of another type. (The key of the object, if it has
//! one, tells.)
//!
//! # Life
//! Dead from the constructor on. `reset` by whoever was given the object: next generation, one reference. `put` of the last: live →
//! none by one subtraction, none → dead by compare-exchange; a `get` in between revives the object, and the `put` was not the last.
//!
//! # Invariants
//! - I1. From one `reset` to the next, one `put` returns true, and no `get` after it in the word's order of changes succeeds.
//! - I2. The count is an eighth of its range away from the next zone wherever a zone could be left by mistake, and every
//!   operation that finds itself outside of the live zone moves it back to the middle.
//! - I3. The generation changes in `reset` only, while the object is dead and the caller's.
//!
//! # Orderings
//! - P6 (pin side). `reset` (Release) / `get` (Acquire): who got a reference sees what the object was made into before. So a look at its
//!   identity *after* that sees this life's, which cannot change while the reference lasts; a look before it proves nothing (T20).
//! - P6 (release side). `put` (Release) / the last `put` (Acquire): the object's next user is after what every former one did.
//!
//! # Progress and contexts
//! `get` and `put` are one locked instruction, in any context; off the live zone, one more. Wait-free.

use rcu_core::sync::atomic::Ordering;

#[cfg(any(loom, target_has_atomic = "64"))]
mod bits {
    pub(super) type Word = u64;
    pub(super) type Atomic = rcu_core::sync::atomic::AtomicU64;
    /// Bits of the generation.
    pub(super) const GENERATION: u32 = 40;
}
#[cfg(not(any(loom, target_has_atomic = "64")))]
mod bits {
    pub(super) type Word = usize;
    pub(super) type Atomic = rcu_core::sync::atomic::AtomicUsize;
    /// Bits of the generation.
    pub(super) const GENERATION: u32 = usize::BITS / 2;
}
use bits::{Atomic, Word};

/// One reference.
const REF: Word = 1 << bits::GENERATION;
/// The generation's bits.
const GENERATION: Word = REF - 1;
/// The first of the saturated zone: above it the object is not live.
const NOT_LIVE: Word = 1 << (Word::BITS - 1);
/// The middle of the saturated zone.
const SATURATED: Word = NOT_LIVE | NOT_LIVE >> 2;
/// The first of the dead zone.
const RELEASED: Word = NOT_LIVE | NOT_LIVE >> 1;
/// The middle of the dead zone.
const DEAD: Word = RELEASED | NOT_LIVE >> 2;
/// The count that is none.
const NONE: Word = !GENERATION;

/// What `get`'s addition is worth, and its mutant.
#[inline(always)]
fn get_order() -> Ordering {
    if rcu_core::weakened!("p6_pin") {
        Ordering::Relaxed
    } else {
        Ordering::Acquire
    }
}

/// Which of the objects that one piece of type-stable memory has been and will be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Generation(Word);

/// Generation and count. See the module.
#[derive(Debug)]
pub(crate) struct PinWord(Atomic);

impl PinWord {
    /// The word of an object that is free.
    pub(crate) fn dead() -> Self {
        Self(Atomic::new(DEAD))
    }

    /// Starts the next life, with one reference. What was written to the object before is seen by every `get` of this life.
    ///
    /// The object is dead and the caller's.
    pub(crate) fn reset(&self) {
        // ORDERING: Relaxed: the generation is the caller's (I3).
        let old = self.0.load(Ordering::Relaxed);
        debug_assert!(old >= RELEASED, "I1: made anew while it has references");
        let new = old.wrapping_add(1) & GENERATION;
        // ORDERING: P6 (pin side).
        #[cfg(not(loom))]
        self.0.store(new, Ordering::Release);
        // ORDERING: P6 (pin side). A swap, since loom loses track of where a plain store stands among read-modify-writes
        // that it is not ordered with.
        #[cfg(loom)]
        self.0.swap(new, Ordering::Release);
    }

    /// Which object it is at the moment.
    pub(crate) fn generation(&self) -> Generation {
        // ORDERING: Relaxed: one's own while one has a reference, else a hint.
        Generation(self.0.load(Ordering::Relaxed) & GENERATION)
    }

    /// Takes a reference to whatever the object is, and says which it is; `None` if it is free.
    #[inline]
    pub(crate) fn get(&self) -> Option<Generation> {
        // ORDERING: P6 (pin side).
        let now = self.0.fetch_add(REF, get_order()).wrapping_add(REF);
        (now < NOT_LIVE || self.get_slow(now)).then_some(Generation(now & GENERATION))
    }

    #[cold]
    fn get_slow(&self, now: Word) -> bool {
        if now >= RELEASED {
            self.still(now, DEAD);
            return false;
        }
        self.still(now, SATURATED);
        true
    }

    /// Moves a count that is not live back to the middle of its zone (I2), unless somebody else changes it.
    fn still(&self, now: Word, middle: Word) {
        let middle = middle | (now & GENERATION);
        // ORDERING: Relaxed: a count outside of the live zone guards nothing.
        let _ = self
            .0
            .compare_exchange(now, middle, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Drops a reference; true if it was the last: the object is dead and the caller's, to be freed.
    #[inline]
    pub(crate) fn put(&self) -> bool {
        // ORDERING: P6 (release side).
        let now = self.0.fetch_sub(REF, Ordering::Release).wrapping_sub(REF);
        now >= NOT_LIVE && self.put_slow(now)
    }

    #[cold]
    fn put_slow(&self, now: Word) -> bool {
        if now & NONE == NONE {
            let dead = DEAD | (now & GENERATION);
            // ORDERING: P6 (release side): Acquire meets every `put`'s Release, which the later read-modify-writes carried on.
            return self
                .0
                .compare_exchange(now, dead, Ordering::Acquire, Ordering::Relaxed)
                .is_ok();
        }
        self.still(now, if now >= RELEASED { DEAD } else { SATURATED });
        false
    }

    /// Whether there is a reference at the moment. A hint.
    pub(crate) fn is_live(&self) -> bool {
        // ORDERING: Relaxed: a hint.
        self.0.load(Ordering::Relaxed) < RELEASED
    }
}

/// Takes a reference and *then* looks whether it is to what was sought (T20). What is not is dropped.
pub(crate) fn pin_if<R>(
    get: impl FnOnce() -> Option<R>,
    is_it: impl FnOnce() -> bool,
) -> Option<R> {
    if rcu_core::weakened!("t20") {
        // The mutant looks while the object can still become another one.
        return if is_it() { get() } else { None };
    }
    let pinned = get()?;
    is_it().then_some(pinned)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const LAST: Word = 5;

    fn at(word: Word) -> PinWord {
        PinWord(Atomic::new(word | LAST))
    }

    fn count(word: &PinWord) -> Word {
        // ORDERING: Relaxed: one thread.
        word.0.load(Ordering::Relaxed) & !GENERATION
    }

    #[test]
    fn l5_every_border_of_every_zone_and_the_generation_stays() {
        let max = NOT_LIVE - REF;
        // count before; get: result, count after; put: result, count after
        for (before, got, after_get, last, after_put) in [
            (0, true, REF, true, DEAD),
            (REF, true, 2 * REF, false, 0),
            (max - REF, true, max, false, max - 2 * REF),
            (max, true, SATURATED, false, max - REF),
            (NOT_LIVE, true, SATURATED, false, max),
            (SATURATED, true, SATURATED, false, SATURATED),
            (RELEASED - REF, false, DEAD, false, SATURATED),
            (RELEASED, false, DEAD, false, SATURATED),
            (RELEASED + REF, false, DEAD, false, DEAD),
            (DEAD, false, DEAD, false, DEAD),
            (NONE, true, 0, false, DEAD),
        ] {
            let word = at(before);
            assert_eq!(word.get().is_some(), got, "{before:#x}");
            assert_eq!(count(&word), after_get, "{before:#x}");
            assert_eq!(word.generation(), Generation(LAST));
            let word = at(before);
            assert_eq!((word.put(), count(&word)), (last, after_put), "{before:#x}");
            assert_eq!(word.generation(), Generation(LAST));
        }
    }

    #[test]
    fn l5_too_many_references_leak_the_object() {
        let word = at(NOT_LIVE - REF);
        assert!(word.get().is_some());
        assert!(!(0..1000).any(|_| word.put()));
        assert!(word.get().is_some() && word.is_live());
    }

    #[test]
    fn l5_generations_come_round_and_leave_the_count_alone() {
        let word = PinWord(Atomic::new(DEAD | GENERATION));
        word.reset();
        assert_eq!(word.generation(), Generation(0));
        assert_eq!(word.get(), Some(Generation(0)));
        assert_eq!((word.put(), word.put()), (false, true));
        assert!(!word.is_live());
        word.reset();
        assert_eq!(word.get(), Some(Generation(1)));
    }
}
