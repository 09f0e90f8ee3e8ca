//! The callbacks of one slot, in four segments by how far their grace period has come.
//!
//! Source: Linux `kernel/rcu/rcu_segcblist.c` (facts only). Why four lists and not one list with
//! four tails, as there: a tail that points into the list itself cannot be moved and is not empty
//! when it is all zero; moving a segment into an empty one is three words either way.
//!
//! # State
//! | segment | its callbacks wait for | cookie |
//! |---|---|---|
//! | `DONE` | nothing; they may run | none |
//! | `WAIT` | the earliest grace period that any of them needs | `cookies[0]` |
//! | `NEXT_READY` | a later one | `cookies[1]` |
//! | `NEXT` | a number | none |
//!
//! A cookie is a pair, of normal and of expedited grace periods: either makes its segment ready (S9), so that somebody
//! else's hurry releases callbacks early. Segments are told apart by the normal half, and that is what their owner asks
//! for. Where there is one sequence only, both halves are the same.
//!
//! Beside them `len` counts the linked callbacks *and* the batch that was extracted and is being run.
//! All of it is written by the holder of the slot's local lock only.
//!
//! # Life of a callback
//! `enqueue` puts it into `NEXT`; `accelerate` gives it a number; `advance` moves it on when the
//! sequence has come that far; `extract_done` takes it out; it runs, outside every lock;
//! `finished` forgets it.
//!
//! # Invariants
//! - I1. Segments in order, each oldest first, are the order of queueing (S1).
//! - I2. If `WAIT` is empty so is `NEXT_READY`; if neither is, `WAIT`'s cookie is no later, in either half (S1).
//! - I3. A cookie means something only while its segment is not empty.
//! - I4. `len` is the sum of the segments plus the batch in flight, and is raised before a callback is
//!   linked: it never under-reports, so that a barrier may post in vain but never misses one (S2, S8).

#[cfg(all(test, not(loom)))]
mod tests;

use crate::cb_list::CbList;
use crate::head::Head;
use crate::seq::{Cookie, FullCookie, Seq};
use core::fmt;
use core::ptr::NonNull;

const DONE: usize = 0;
const WAIT: usize = 1;
const NEXT_READY: usize = 2;
const NEXT: usize = 3;

/// How many segments there are.
const NR: usize = 4;

/// Callbacks in order of queueing, in segments by grace period.
///
/// Bookkeeping only: it takes and gives back heads, and whoever runs them answers for its numbers.
/// All-zero bytes are the empty list.
///
/// # Invariants
/// See the module: order (I1), numbers (I2, I3), count (I4).
#[doc(alias = "rcu_segcblist")]
pub struct SegList {
    segments: [CbList; NR],
    /// Of `WAIT` and `NEXT_READY`.
    cookies: [FullCookie; 2],
    len: usize,
}

// SAFETY: four empty lists, two numbers that mean nothing (I3), a zero length.
unsafe impl crate::cpu::ZeroInit for SegList {}

impl SegList {
    /// An empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            segments: [const { CbList::new() }; NR],
            cookies: [FullCookie::of_one_sequence(Cookie::from_raw(0)); 2],
            len: 0,
        }
    }

    /// How many callbacks are linked or being run (I4).
    #[must_use]
    #[doc(alias = "rcu_segcblist_n_cbs")]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether no callback is linked or being run.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many callbacks each segment holds: done, waiting, waiting for longer, without a number.
    #[must_use]
    pub fn seglens(&self) -> [usize; NR] {
        self.segments.each_ref().map(CbList::len)
    }

    /// How many callbacks were extracted and are not [`finished`](Self::finished).
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.len - self.seglens().iter().sum::<usize>()
    }

    /// Queues `head`, to run after a grace period that it has no number for yet (S2).
    ///
    /// # Safety
    /// 1. `head` stays valid until it was popped from a list that [`Self::extract_done`] returned.
    /// 2. It is on no list.
    /// 3. It may be moved to another thread.
    ///
    /// ```
    /// use core::ptr::NonNull;
    /// use rcu_core::{Head, SegList, Seq};
    ///
    /// let head = Head::new();
    /// let mut callbacks = SegList::new();
    /// let idle = Seq::INITIAL;
    /// // SAFETY: the head outlives the list, is on no other, and stays on this thread.
    /// unsafe { callbacks.enqueue(NonNull::from(&head)) };
    /// assert!(callbacks.accelerate(idle.snapshot()));
    /// callbacks.advance(idle.started().ended());
    /// assert_eq!(callbacks.extract_done().pop_front(), Some(NonNull::from(&head)));
    /// callbacks.finished(1);
    /// assert!(callbacks.is_empty());
    /// ```
    #[inline]
    #[doc(alias = "rcu_segcblist_enqueue")]
    pub unsafe fn enqueue(&mut self, head: NonNull<Head>) {
        self.len += 1;
        // SAFETY: the caller's debts 1 to 3.
        unsafe { self.segments[NEXT].push_back(head) };
    }

    /// Queues `head` to run right after the last callback there is, without a grace period of its
    /// own (S5). Does nothing and returns false if there is no callback, linked or running.
    ///
    /// If the only ones are being run, `head` becomes ready: whoever runs them is to extract again
    /// after they have [`finished`](Self::finished), not before.
    ///
    /// # Safety
    /// As for [`Self::enqueue`].
    ///
    /// ```
    /// use core::ptr::NonNull;
    /// use rcu_core::{Head, SegList};
    ///
    /// let (object, barrier) = (Head::new(), Head::new());
    /// let mut callbacks = SegList::new();
    /// // SAFETY: the heads outlive the list, are on no other, and stay on this thread.
    /// assert!(!unsafe { callbacks.entrain(NonNull::from(&barrier)) });
    /// // SAFETY: as above.
    /// unsafe { callbacks.enqueue(NonNull::from(&object)) };
    /// // SAFETY: as above.
    /// assert!(unsafe { callbacks.entrain(NonNull::from(&barrier)) });
    /// assert_eq!(callbacks.seglens(), [0, 0, 0, 2]);
    /// ```
    #[doc(alias = "rcu_segcblist_entrain")]
    pub unsafe fn entrain(&mut self, head: NonNull<Head>) -> bool {
        if self.len == 0 {
            return false;
        }
        self.len += 1;
        let last = (WAIT..NR)
            .rev()
            .find(|&i| !self.segments[i].is_empty())
            .unwrap_or(DONE);
        // SAFETY: the caller's debts 1 to 3.
        unsafe { self.segments[last].push_back(head) };
        true
    }

    /// Moves what `now` has made ready to `DONE` (S3). Idempotent.
    #[doc(alias = "rcu_segcblist_advance")]
    pub fn advance(&mut self, now: Seq) {
        self.advance_full(|cookie| now.is_done(cookie.normal()));
    }

    /// As [`Self::advance`], by whatever says that a cookie is done: either kind of grace period (S9).
    pub fn advance_full(&mut self, is_done: impl Fn(FullCookie) -> bool) {
        for segment in [WAIT, NEXT_READY] {
            // The mutant takes both segments for ready when one is.
            let cookie = self.cookies[if crate::weakened!("s3") {
                0
            } else {
                segment - WAIT
            }];
            if self.segments[segment].is_empty() || !is_done(cookie) {
                break;
            }
            let ready = self.segments[segment].take();
            self.segments[DONE].append(ready);
        }
        if self.segments[WAIT].is_empty() {
            self.segments[WAIT] = self.segments[NEXT_READY].take();
            self.cookies[0] = self.cookies[1];
        }
        self.check();
    }

    /// Gives `cookie` to everything that has no number or a later one, in the earliest segment
    /// that is empty or does not wait for less (S4). Returns whether callbacks wait for `cookie`
    /// now, so that the caller has to see to that grace period. Idempotent.
    ///
    /// False with callbacks left in `NEXT` means that both numbered segments wait for earlier grace
    /// periods; [`Self::snap_advance_accelerate`] never gets there.
    ///
    /// `cookie` is from a snapshot taken after every callback here was queued: an older one would
    /// let them run too early.
    #[doc(alias = "rcu_segcblist_accelerate")]
    pub fn accelerate(&mut self, cookie: Cookie) -> bool {
        self.accelerate_full(FullCookie::of_one_sequence(cookie))
    }

    /// As [`Self::accelerate`], with the number of either kind of grace period (S9): the caller has to see to the
    /// normal half. A segment that gets nothing new keeps its expedited half, which may come sooner.
    pub fn accelerate_full(&mut self, cookie: FullCookie) -> bool {
        let normal = cookie.normal();
        debug_assert!(!normal.is_completed_mark(), "I3: not a number to wait for");
        let earlier = |i: usize| {
            let its = self.cookies[i - WAIT].normal();
            !self.segments[i].is_empty() && its != normal && its.is_no_later_than(normal)
        };
        let segment = if earlier(NEXT_READY) {
            // I2: `WAIT` waits for an earlier one still.
            return false;
        } else if earlier(WAIT) {
            NEXT_READY
        } else {
            WAIT
        };
        let before = self.segments[segment].len();
        for later in segment + 1..NR {
            let moved = self.segments[later].take();
            self.segments[segment].append(moved);
        }
        if self.segments[segment].is_empty() {
            return false;
        }
        let its = &mut self.cookies[segment - WAIT];
        if self.segments[segment].len() > before || its.normal() != normal {
            *its = cookie;
        }
        self.check();
        true
    }

    /// [`advance`](Self::advance) to `now`, then [`accelerate`](Self::accelerate) to `snapshot`;
    /// returns what the latter does, and leaves nothing without a number.
    ///
    /// The order is *snapshot, then read the sequence, then this* (T38): `now` is at or after the
    /// value that `snapshot` was taken from. Then of the cookies before `snapshot` at most one is
    /// not done at `now`, so that a segment is free. The other way round a grace period may end and
    /// another start in between, both segments stay occupied, and the youngest callbacks stay in
    /// `NEXT` with nobody asked to come back for them.
    pub fn snap_advance_accelerate(&mut self, snapshot: Cookie, now: Seq) -> bool {
        self.advance(now);
        let waits = self.accelerate(snapshot);
        debug_assert!(
            self.segments[NEXT].is_empty(),
            "T38: the sequence was read before the snapshot"
        );
        waits
    }

    /// The three steps with their inputs in the right order: takes a `snapshot`, reads `now`, then
    /// [`snap_advance_accelerate`](Self::snap_advance_accelerate) (T38). Afterwards nothing is without a number.
    ///
    /// Returns the snapshot if callbacks wait for it now: the caller asks for that grace period. An empty list takes
    /// no snapshot.
    pub fn number(
        &mut self,
        snapshot: impl FnOnce() -> Cookie,
        now: impl FnOnce() -> Seq,
    ) -> Option<Cookie> {
        if self.is_empty() {
            return None;
        }
        let (cookie, now) = if crate::weakened!("t38") {
            let now = now();
            (snapshot(), now)
        } else {
            let cookie = snapshot();
            (cookie, now())
        };
        self.snap_advance_accelerate(cookie, now).then_some(cookie)
    }

    /// As [`Self::number`], with cookies of both kinds of grace periods (S9): `is_done` is asked after the snapshot was
    /// taken, and what is returned is to be asked for by its normal half.
    pub fn number_full(
        &mut self,
        snapshot: impl FnOnce() -> FullCookie,
        is_done: impl Fn(FullCookie) -> bool,
    ) -> Option<FullCookie> {
        if self.is_empty() {
            return None;
        }
        let cookie = snapshot();
        self.advance_full(is_done);
        let waits = self.accelerate_full(cookie);
        debug_assert!(
            self.segments[NEXT].is_empty(),
            "T38: asked before the snapshot"
        );
        waits.then_some(cookie)
    }

    /// Takes out what is ready to run. It counts on (S6) until it is [`finished`](Self::finished)
    /// or [put back](Self::insert_done).
    #[doc(alias = "rcu_segcblist_extract_done_cbs")]
    pub fn extract_done(&mut self) -> CbList {
        self.segments[DONE].take()
    }

    /// Puts the rest of an extracted batch back, in front of what has become ready since (S6).
    #[doc(alias = "rcu_segcblist_insert_done_cbs")]
    pub fn insert_done(&mut self, rest: CbList) {
        if crate::weakened!("s6") {
            self.segments[DONE].append(rest);
            return;
        }
        self.segments[DONE].push_front_list(rest);
        self.check();
    }

    /// Forgets `count` callbacks of an extracted batch, which have returned.
    pub fn finished(&mut self, count: usize) {
        debug_assert!(count <= self.in_flight(), "I4: more than were extracted");
        self.len -= count;
    }

    /// Queues all of `list` behind everything, to run after a grace period that it has no number for yet: what was
    /// kept aside comes in.
    #[doc(alias = "rcu_segcblist_insert_pend_cbs")]
    pub fn insert_pending(&mut self, list: CbList) {
        self.len += list.len();
        self.segments[NEXT].append(list);
    }

    /// Takes over callbacks whose grace period is over, in front of what is ready here: the rest of a batch whose own
    /// list is no more (S7).
    pub fn adopt_done(&mut self, ready: CbList) {
        self.len += ready.len();
        self.segments[DONE].push_front_list(ready);
        self.check();
    }

    /// Takes over the callbacks of `other`, whose slot is no more (S7): the ready ones in front of
    /// this list's ready ones, the rest behind everything, to start over without a number.
    ///
    /// A batch of `other` that is in flight stays counted there, to be
    /// [`finished`](Self::finished) there. Wait for it before merging if a callback may have been
    /// [entrained](Self::entrain) behind it, which would otherwise overtake it here.
    #[doc(alias = "rcu_segcblist_merge")]
    pub fn merge(&mut self, other: &mut Self) {
        let in_flight = other.in_flight();
        self.len += other.len - in_flight;
        other.len = in_flight;
        self.segments[DONE].push_front_list(other.segments[DONE].take());
        for segment in WAIT..NR {
            self.segments[NEXT].append(other.segments[segment].take());
        }
        self.check();
    }

    /// Unlinks every callback that `which` points out, and returns how many. Looks at each.
    pub fn remove_if(&mut self, mut which: impl FnMut(NonNull<Head>) -> bool) -> usize {
        let mut removed = 0;
        for segment in &mut self.segments {
            let mut all = segment.take();
            while let Some(head) = all.pop_front() {
                if which(head) {
                    removed += 1;
                } else {
                    // SAFETY: just unlinked from this very segment, whose debts it keeps.
                    unsafe { segment.push_back(head) };
                }
            }
        }
        self.len -= removed;
        if self.segments[WAIT].is_empty() {
            self.segments[WAIT] = self.segments[NEXT_READY].take();
            self.cookies[0] = self.cookies[1];
        }
        self.check();
        removed
    }

    /// Whether callbacks are ready to run.
    #[must_use]
    #[doc(alias = "rcu_segcblist_ready_cbs")]
    pub const fn has_ready(&self) -> bool {
        !self.segments[DONE].is_empty()
    }

    /// Whether callbacks have no number yet.
    #[must_use]
    pub const fn has_unnumbered(&self) -> bool {
        !self.segments[NEXT].is_empty()
    }

    /// How many callbacks have no number yet.
    #[must_use]
    pub const fn nr_unnumbered(&self) -> usize {
        self.segments[NEXT].len()
    }

    /// The earliest cookie that callbacks wait for.
    #[must_use]
    #[doc(alias = "rcu_segcblist_nextgp")]
    pub fn pending_cookie(&self) -> Option<Cookie> {
        (!self.segments[WAIT].is_empty()).then_some(self.cookies[0].normal())
    }

    /// The latest cookie that callbacks wait for.
    #[must_use]
    pub fn last_cookie(&self) -> Option<Cookie> {
        if self.segments[NEXT_READY].is_empty() {
            self.pending_cookie()
        } else {
            Some(self.cookies[1].normal())
        }
    }

    /// Asserts I2 and I4 in debug builds.
    fn check(&self) {
        debug_assert!(
            !self.segments[WAIT].is_empty() || self.segments[NEXT_READY].is_empty(),
            "I2: a gap"
        );
        debug_assert!(
            self.segments[NEXT_READY].is_empty()
                || self.cookies[0]
                    .normal()
                    .is_no_later_than(self.cookies[1].normal()),
            "I2: numbers out of order"
        );
        debug_assert!(
            self.seglens().iter().sum::<usize>() <= self.len,
            "I4: under-reported"
        );
    }
}

impl Default for SegList {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SegList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SegList")
            .field("len", &self.len)
            .field("seglens", &self.seglens())
            .field("waits_for", &self.pending_cookie())
            .field("then_for", &self.last_cookie())
            .finish()
    }
}
