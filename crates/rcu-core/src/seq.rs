//! Grace-period sequence numbers and the cookies taken from them.
//!
//! Source: Linux `kernel/rcu/rcu.h`, `rcu_seq_*` (facts and constants only).
//!
//! # State
//! | bits of the word | meaning |
//! |---|---|
//! | 0–1 | phase: 0 idle, not 0 a grace period is in progress |
//! | 2… | how many grace periods have ended |
//!
//! # Life
//! `start` adds one to the phase; `end` rounds up to the next idle value. A cookie is the idle
//! value that the sequence must reach before everything unlinked before the cookie is unseen:
//! one whole grace period later, or two while one is in progress, because that one may have
//! looked at a reader before the unlinking (R5).
//!
//! Numbers wrap. All comparisons are by wrapping difference, so [`Seq`] and [`Cookie`] have no
//! `PartialOrd`; sequences start [300 grace periods before the wrap](Seq::INITIAL), so that every
//! run of every test wraps (T44).

use core::fmt;

/// Bits of the phase.
const PHASE_BITS: u32 = 2;
/// Mask of the phase.
const PHASE: usize = (1 << PHASE_BITS) - 1;

/// How far behind a cookie the sequence may be seen by someone who polls a word that is updated
/// later than the one the cookie came from; further behind means that the cookie is so old that
/// the counter has gone round (R11, T34: three whole grace periods and one).
const GUARD_BAND: usize = 3 * (PHASE + 1) + 1;

/// A grace-period sequence number: a count of grace periods and a phase, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Seq(usize);

/// A point of the sequence that must be reached before memory unlinked earlier may be freed.
///
/// Copied and compared freely; a live cookie is valid for half the number space (2⁶¹ grace periods on 64-bit).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
#[doc(alias = "rcu_gp_oldstate")]
pub struct Cookie(usize);

/// `a` is at or after `b`, across the wrap.
const fn at_or_after(a: usize, b: usize) -> bool {
    a.wrapping_sub(b) <= usize::MAX / 2
}

impl Seq {
    /// Where every sequence starts: 300 grace periods before it wraps.
    #[doc(alias = "RCU_SEQ_CTR_SHIFT")]
    pub const INITIAL: Self = Self(0usize.wrapping_sub(300 << PHASE_BITS));

    /// The sequence with this raw word.
    #[must_use]
    pub const fn from_raw(raw: usize) -> Self {
        Self(raw)
    }

    /// The raw word, to be kept in an atomic.
    #[must_use]
    pub const fn raw(self) -> usize {
        self.0
    }

    /// Whether a grace period is in progress.
    #[must_use]
    #[doc(alias = "rcu_gp_in_progress")]
    pub const fn in_progress(self) -> bool {
        self.0 & PHASE != 0
    }

    /// The value once a grace period that starts now has started.
    #[must_use]
    #[doc(alias = "rcu_seq_start")]
    pub const fn started(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// The value once the grace period in progress has ended.
    #[must_use]
    #[doc(alias = "rcu_seq_end")]
    pub const fn ended(self) -> Self {
        Self((self.0 | PHASE).wrapping_add(1))
    }

    /// The cookie for what is unlinked before this value was read (R5, R6).
    ///
    /// ```
    /// # use rcu_core::Seq;
    /// let cookie = |raw| Seq::from_raw(raw).snapshot().raw();
    /// assert_eq!([cookie(0), cookie(1), cookie(3), cookie(4)], [4, 8, 8, 8]);
    /// ```
    #[must_use]
    #[doc(alias = "rcu_seq_snap")]
    pub const fn snapshot(self) -> Cookie {
        Cookie(self.0.wrapping_add(2 * PHASE + 1) & !PHASE)
    }

    /// Whether `cookie` has been reached. Always so for [`Cookie::COMPLETED`] (R9).
    #[must_use]
    #[doc(alias = "rcu_seq_done")]
    pub const fn is_done(self, cookie: Cookie) -> bool {
        cookie.is_completed_mark() || at_or_after(self.0, cookie.0)
    }

    /// Whether `cookie` has been reached, or is so old that the numbers have gone round since (R11).
    #[must_use]
    #[doc(alias = "rcu_seq_done_exact")]
    pub const fn is_done_exact(self, cookie: Cookie) -> bool {
        self.is_done(cookie) || !at_or_after(self.0, cookie.0.wrapping_sub(GUARD_BAND))
    }

    /// Whether the grace period that ends at `cookie` has started.
    #[must_use]
    #[doc(alias = "rcu_seq_started")]
    pub const fn has_started(self, cookie: Cookie) -> bool {
        let base = cookie.0.wrapping_sub(1) & !PHASE;
        self.0 != base && at_or_after(self.0, base)
    }

    /// Whether a grace period ended between `old` and this value.
    #[must_use]
    #[doc(alias = "rcu_seq_completed_gp")]
    pub const fn ended_since(self, old: Self) -> bool {
        let now = self.0 & !PHASE;
        old.0 != now && at_or_after(now, old.0)
    }

    /// Whether a grace period started between `old` and this value.
    #[must_use]
    #[doc(alias = "rcu_seq_new_gp")]
    pub const fn started_since(self, old: Self) -> bool {
        let base = old.0.wrapping_add(PHASE) & !PHASE;
        self.0 != base && at_or_after(self.0, base)
    }

    /// One more than the whole grace periods that lie between `old` and this value; zero if the two
    /// are the same. Over-estimates: more than one means that perhaps a whole one has passed.
    #[must_use]
    #[doc(alias = "rcu_seq_diff")]
    pub const fn grace_periods_since(self, old: Self) -> usize {
        if self.0 == old.0 {
            return 0;
        }
        let first = old.0.wrapping_add(PHASE) & !PHASE;
        let last = self.0 & !PHASE;
        if at_or_after(last, first) {
            (last.wrapping_sub(first) >> PHASE_BITS) + 1
        } else {
            1
        }
    }

    /// How many grace periods have ended between the start of numbering and this value.
    #[must_use]
    pub const fn completed(self) -> usize {
        self.0.wrapping_sub(Self::INITIAL.0) >> PHASE_BITS
    }
}

impl Cookie {
    /// A cookie that is always done (R9). Its phase bits are set, which no other cookie's are.
    #[doc(alias = "RCU_GET_STATE_COMPLETED")]
    pub const COMPLETED: Self = Self(1);

    /// The cookie with this raw word.
    #[must_use]
    pub const fn from_raw(raw: usize) -> Self {
        Self(raw)
    }

    /// The raw word, to be kept in memory.
    #[must_use]
    pub const fn raw(self) -> usize {
        self.0
    }

    /// Whether this is [`Self::COMPLETED`].
    #[must_use]
    pub const fn is_completed_mark(self) -> bool {
        self.0 == Self::COMPLETED.0
    }

    /// Whether this cookie is reached no later than `other`.
    #[must_use]
    pub const fn is_no_later_than(self, other: Self) -> bool {
        self.is_completed_mark() || (!other.is_completed_mark() && at_or_after(other.0, self.0))
    }

    /// How many cookies of one sequence can differ and be not yet done at any moment (R10).
    #[doc(alias = "NUM_ACTIVE_RCU_POLL_OLDSTATE")]
    pub const MAX_ACTIVE: usize = 2;
}

/// A cookie over two sequences, that of normal and that of expedited grace periods: done as soon as *either* says so,
/// and so never missing a grace period of either kind (R8).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[doc(alias = "rcu_gp_oldstate")]
pub struct FullCookie {
    normal: Cookie,
    expedited: Cookie,
}

impl FullCookie {
    /// A cookie that is always done (R9).
    pub const COMPLETED: Self = Self::new(Cookie::COMPLETED, Cookie::COMPLETED);

    /// How many full cookies can differ and be not yet done at any moment (R10).
    #[doc(alias = "NUM_ACTIVE_RCU_POLL_FULL_OLDSTATE")]
    pub const MAX_ACTIVE: usize = 4;

    /// Of both sequences.
    #[must_use]
    pub const fn new(normal: Cookie, expedited: Cookie) -> Self {
        Self { normal, expedited }
    }

    /// Where there is one sequence only, it stands for both.
    #[must_use]
    pub const fn of_one_sequence(cookie: Cookie) -> Self {
        Self::new(cookie, cookie)
    }

    /// The cookie of the normal sequence.
    #[must_use]
    pub const fn normal(self) -> Cookie {
        self.normal
    }

    /// The cookie of the expedited sequence.
    #[must_use]
    pub const fn expedited(self) -> Cookie {
        self.expedited
    }
}

impl fmt::Debug for FullCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FullCookie({:?}, {:?})", self.normal, self.expedited)
    }
}

impl fmt::Debug for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seq({}.{})", (self.0 >> PHASE_BITS), self.0 & PHASE)
    }
}

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_completed_mark() {
            f.write_str("Cookie(completed)")
        } else {
            write!(f, "Cookie({})", self.0 >> PHASE_BITS)
        }
    }
}
