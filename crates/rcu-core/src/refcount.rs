//! A reference count that never wraps.
//!
//! Source: Linux `lib/rcuref.c` and `include/linux/rcuref.h` (facts only; R22). Why not a compare-exchange loop that
//! refuses to count from zero: under contention it is several times dearer than one unconditional addition, and readers
//! of an RCU-protected table contend for exactly this word.
//!
//! # State
//! The word holds the number of references less one, so that dropping the last makes it "negative":
//!
//! | word | zone | meaning |
//! |---|---|---|
//! | `0x0000_0000 ..= 0x7fff_ffff` | live | one reference, up to 2³¹ |
//! | `0x8000_0000 ..= 0xbfff_ffff` | saturated | too many: counted no more, the object leaks |
//! | `0xc000_0000 ..= 0xffff_fffe` | dead | no reference, and none to be had; drifts around the middle |
//! | `0xffff_ffff` | none | the last reference was dropped, and who dropped it has not marked the object dead yet |
//!
//! # Life
//! `put` of the last reference: live → none by one subtraction, then none → dead by compare-exchange. A `get` may come in
//! between: it finds none, makes it one, and has revived the object; the compare-exchange fails and `put` says that it was
//! not the last. Whoever succeeds is alone (I1).
//!
//! # Invariants
//! - I1. From one reset to the next, one `put` returns true, by the one none → dead exchange, and no `get` that comes after
//!   it in the word's order of changes succeeds.
//! - I2. The word is 2²⁹ operations away from the next zone wherever a zone could be left by mistake, and every
//!   operation that finds itself outside the live zone moves it back to the middle. So no number of threads wraps it.
//! - I3. `put` decides by the value that its own subtraction made, never by a second load: between the two another thread
//!   may drop the last reference and free the word.
//!
//! # Orderings
//! - P4 (reference's side). `put`'s Release / the last `put`'s Acquire: the last owner sees what every other did with the object.
//! - P1 (type-stable memory). `reset`'s Release / `get`'s Acquire: a reader that got a reference to an object that was
//!   made into another one sees that other one's identity when it looks again. (The kernel's `rcuref_get` orders nothing,
//!   since its objects wait for a grace period.)
//!
//! A `get` that fails writes by compare-exchange only, from dead to dead: a plain store could hit a count that was
//! `reset` meanwhile. (The kernel's stores, which rules type-stable memory out.)
//!
//! # Progress and contexts
//! `get` and `put` are one locked instruction, in any context; off the live zone, one more. All wait-free.

use crate::sync::atomic::{AtomicU32, Ordering};
use core::fmt;

/// One reference.
const ONE: u32 = 0;
/// The most references that are counted.
const MAX: u32 = 0x7fff_ffff;
/// The middle of the saturated zone.
const SATURATED: u32 = 0xa000_0000;
/// The first of the dead zone.
const RELEASED: u32 = 0xc000_0000;
/// The middle of the dead zone.
const DEAD: u32 = 0xe000_0000;
/// The last reference was dropped just now.
const NONE: u32 = u32::MAX;

#[inline(always)]
fn reset_order() -> Ordering {
    if crate::weakened!("p1_reset") {
        Ordering::Relaxed
    } else {
        Ordering::Release
    }
}

#[inline(always)]
fn put_order() -> Ordering {
    if crate::weakened!("p4_put") {
        Ordering::Relaxed
    } else {
        Ordering::Release
    }
}

/// A saturating reference count for objects that readers find without owning them.
///
/// A reader that found the object inside a section calls [`Self::get`]; if that succeeds, the object is the reader's until
/// [`Self::put`], also after the section. The one `put` that returns true has the object to itself and retires it.
///
/// Too many references (a leak of 2³¹ of them) saturate the count: the object is never freed, which is the lesser evil.
///
/// ```
/// use rcu_core::RefCount;
/// let count = RefCount::new(1);
/// assert!(count.get());
/// assert!(!count.put(), "one is left");
/// assert!(count.put(), "the last: retire the object");
/// assert!(!count.get(), "too late");
/// ```
#[doc(alias = "rcuref_t")]
#[doc(alias = "refcount_t")]
pub struct RefCount {
    word: AtomicU32,
}

const fn word_of(refs: u32) -> u32 {
    assert!(
        refs > 0 && refs - 1 <= MAX,
        "a count starts with 1 to 2^31 references"
    );
    refs - 1
}

impl RefCount {
    /// The most references that are counted; more saturate.
    pub const MAX_REFS: u32 = MAX + 1;

    crate::const_fn! {
        /// A count of `refs` references.
        ///
        /// # Panics
        /// If `refs` is 0 or above [`Self::MAX_REFS`].
        #[doc(alias = "rcuref_init")]
        #[must_use]
        pub const fn new(refs: u32) -> Self {
            Self { word: AtomicU32::new(word_of(refs)) }
        }
    }

    crate::const_fn! {
        /// A count whose object is dead from the start: for type-stable memory before its first [`Self::reset`].
        #[must_use]
        pub const fn dead() -> Self {
            Self { word: AtomicU32::new(DEAD) }
        }
    }

    /// Starts anew with `refs` references: for an object in type-stable memory that is about to be published again. What
    /// was written to the object before is seen by every reader whose [`Self::get`] succeeds.
    ///
    /// The object is the caller's alone: its count is dead. (A count that is reset while others hold references forgets
    /// them.)
    ///
    /// # Panics
    /// As [`Self::new`].
    #[doc(alias = "refcount_set_release")]
    pub fn reset(&self, refs: u32) {
        // ORDERING: P1 (publish side).
        #[cfg(not(loom))]
        self.word.store(word_of(refs), reset_order());
        // ORDERING: P1 (publish side). A swap, since loom loses track of where a plain store stands among
        // read-modify-writes that it is not ordered with.
        #[cfg(loom)]
        self.word.swap(word_of(refs), reset_order());
    }

    /// Takes a reference, unless the object is dead. The object's memory must be kept by something else meanwhile: a section,
    /// a reference that the caller has, or type-stable memory.
    ///
    /// In type-stable memory the object may have become another one since it was found: look at its identity again
    /// *after* this.
    #[doc(alias = "rcuref_get")]
    #[doc(alias = "refcount_inc_not_zero_acquire")]
    #[inline]
    #[must_use = "false: the object is dead, and no reference was taken"]
    pub fn get(&self) -> bool {
        // ORDERING: P1 (load side).
        let now = self.word.fetch_add(1, Ordering::Acquire).wrapping_add(1);
        now <= MAX || self.get_slow(now)
    }

    #[cold]
    fn get_slow(&self, now: u32) -> bool {
        if now >= RELEASED {
            self.still_dead(now);
            return false;
        }
        // ORDERING: Relaxed: counts no more, and never will again (I2).
        self.word.store(SATURATED, Ordering::Relaxed);
        true
    }

    /// Moves a dead word back to the middle of its zone (I2), unless somebody else changes it.
    fn still_dead(&self, now: u32) {
        // ORDERING: Relaxed: a dead count guards nothing.
        let _ = self
            .word
            .compare_exchange(now, DEAD, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Drops a reference; true if it was the last: the object is dead, the caller's alone, and may be retired (readers may
    /// still find it, so it is not freed at once). After false the object is not to be touched.
    ///
    /// A `put` too many finds the object dead, and does nothing.
    #[doc(alias = "rcuref_put")]
    #[inline]
    #[must_use = "true: the caller has to retire the object"]
    pub fn put(&self) -> bool {
        // ORDERING: P4 (reference's side).
        let now = self.word.fetch_sub(1, put_order()).wrapping_sub(1);
        now > MAX && self.put_slow(now)
    }

    #[cold]
    fn put_slow(&self, now: u32) -> bool {
        if now == NONE {
            return self.mark_dead();
        }
        if now >= RELEASED {
            self.still_dead(now);
        } else {
            // ORDERING: Relaxed: as in `get_slow`.
            self.word.store(SATURATED, Ordering::Relaxed);
        }
        false
    }

    /// None → dead, unless a `get` revived the object (I1).
    fn mark_dead(&self) -> bool {
        if crate::weakened!("refcount") {
            // The mutant marks what a `get` may have revived.
            // ORDERING: Acquire, as below: only the test of the value is left out.
            self.word.swap(DEAD, Ordering::Acquire);
            return true;
        }
        // ORDERING: P4 (last reference's side): Acquire meets every `put`'s Release, which the later read-modify-writes
        // carried on.
        self.word
            .compare_exchange(NONE, DEAD, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    /// How many references there are at this moment; 0 if the object is dead. A hint; more than [`Self::MAX_REFS`] means
    /// saturated.
    #[doc(alias = "rcuref_read")]
    #[must_use]
    pub fn read(&self) -> u32 {
        // ORDERING: Relaxed: a hint.
        let word = self.word.load(Ordering::Relaxed);
        if word >= RELEASED { 0 } else { word + 1 }
    }

    /// Whether no reference is left at this moment. Final, but for the moment in which the last is being dropped, and for
    /// [`Self::reset`].
    #[doc(alias = "rcuref_is_dead")]
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.read() == 0
    }

    /// Whether there were too many references to count, so that the object leaks.
    #[must_use]
    pub fn is_saturated(&self) -> bool {
        self.read() > Self::MAX_REFS
    }
}

/// One reference.
impl Default for RefCount {
    fn default() -> Self {
        Self::new(ONE + 1)
    }
}

impl fmt::Debug for RefCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RefCount")
            .field("refs", &self.read())
            .field("is_saturated", &self.is_saturated())
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn at(word: u32) -> RefCount {
        let word = AtomicU32::new(word);
        RefCount { word }
    }

    fn word(count: &RefCount) -> u32 {
        // ORDERING: Relaxed: one thread.
        count.word.load(Ordering::Relaxed)
    }

    #[test]
    fn r22_every_border_of_every_zone() {
        // word before; get: result, word after; put: result, word after
        for (before, got, after_get, dropped, after_put) in [
            (ONE, true, 1, true, DEAD),
            (1, true, 2, false, ONE),
            (MAX - 1, true, MAX, false, MAX - 2),
            (MAX, true, SATURATED, false, MAX - 1),
            (MAX + 1, true, SATURATED, false, MAX),
            (SATURATED, true, SATURATED, false, SATURATED),
            (RELEASED - 2, true, SATURATED, false, SATURATED),
            (RELEASED - 1, false, DEAD, false, SATURATED),
            (RELEASED, false, DEAD, false, SATURATED),
            (RELEASED + 1, false, DEAD, false, DEAD),
            (DEAD, false, DEAD, false, DEAD),
            (NONE - 1, false, DEAD, false, DEAD),
            (NONE, true, ONE, false, DEAD),
        ] {
            let count = at(before);
            assert_eq!((count.get(), word(&count)), (got, after_get), "{before:#x}");
            let count = at(before);
            assert_eq!(
                (count.put(), word(&count)),
                (dropped, after_put),
                "{before:#x}"
            );
        }
    }

    #[test]
    fn r22_saturated_never_dies() {
        let count = at(MAX);
        assert!(count.get() && count.is_saturated() && !count.is_dead());
        assert!(!(0..1000).any(|_| count.put()));
        assert!(count.get() && count.is_saturated());
    }

    #[test]
    fn r22_reads_what_it_counts() {
        assert_eq!(at(MAX).read(), RefCount::MAX_REFS);
        for dead in [RELEASED, DEAD, NONE] {
            assert!(at(dead).is_dead(), "{dead:#x}");
        }
        assert_eq!(
            format!("{:?}", RefCount::new(3)),
            "RefCount { refs: 3, is_saturated: false }"
        );
    }
}
