//! The published sequences, what is asked of them, and how the two lanes' grace periods merge into one.
//!
//! Source: Linux `rcu_state.gp_seq`, `expedited_sequence` and `gp_seq_polled` (R7, R8). Why a third sequence: a cookie of
//! one word is to be done by whichever lane comes first, and to be polled by one load.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `lanes[l].seq` | the grace periods of lane l | lane l's driver |
//! | `lanes[l].needed` | the latest cookie of that sequence somebody asked for | anyone, only forwards |
//! | `polled.seq` | the merged sequence: small cookies, callbacks | both drivers, by compare-exchange |
//! | `polled.needed` | the latest small cookie that the normal lane is to reach | anyone, only forwards |
//! | `quick` | the latest small cookie that the expedited lane is to reach | anyone, only forwards |
//!
//! # Life of a lane's grace period
//! | step | word | value |
//! |---|---|---|
//! | join | `polled.seq` | started, if it was idle; else as it is; the value is the driver's *stake* |
//! | start | `lanes[l].seq` | started |
//! | fence, arm, scan | | (`machine`) |
//! | end | `lanes[l].seq` | ended |
//! | leave | `polled.seq` | ended, if it still is the stake; else the other lane has ended it |
//!
//! # Invariants
//! - I1. *Never early.* `polled.seq` leaves the value p only by a lane whose stake is p, which had read or written p before
//!   its fence. A cookie that counts on p was taken when the sequence was before p, so its fence precedes that lane's
//!   (P5), and the lane has waited for every reader that the cookie is about.
//! - I2. *Nested.* A lane joins before it starts and leaves after it has ended. So who took a full cookie and then a small
//!   one, and finds the small one done by lane l, finds lane l past the full one: l started its grace period after the
//!   small cookie was taken, hence after the full one was, and ended it before it left. The reverse does not hold: where
//!   the lanes overlap, a small cookie taken while p was in progress may need a second grace period (R7).
//! - I3. *Progress.* A lane that runs two grace periods reaches every small cookie: its first one ends what was in
//!   progress, or finds it ended, and its second one's stake is no earlier than the one the cookie counts on.
//! - I4. `needed` and `quick` stay within a quarter of the number space of their sequence: whoever ends a grace period
//!   drags them along (G20). So comparing across half the space never takes an old need for a new one, though the other
//!   lane alone runs for ever. A stake does not grow old either: who ends a grace period of one lane pushes the other
//!   lane's, whose readers are through by then (`machine`).
//!
//! # Orderings
//! - P4. `end`'s and `leave`'s Release / `poll`'s Acquire: what follows a true poll comes after every reader that the
//!   grace period waited for (the driver acquired their exits, P3). Every later store to `polled.seq` is a
//!   read-modify-write and carries the release on.
//! - P5. The caller's unlinking, `snapshot`'s full fence, its load of a sequence / the driver's join and start, its fence,
//!   its scan: the load missed the driver's store or what the driver joined, so the caller's fence comes first. The same
//!   for a lane's own sequence and full cookies.
//!
//! # Progress
//! Wait-free, but for `request`, `join` and `keep_up`, which are lock-free. `poll` is one load.

use crate::trace::Lane;
use core::fmt;
use crossbeam_utils::CachePadded;
use rcu_core::fence;
use rcu_core::sync::atomic::{AtomicUsize, Ordering};
use rcu_core::{Cookie, FullCookie, Seq};

#[inline(always)]
fn end_order() -> Ordering {
    if rcu_core::weakened!("p4") {
        Ordering::Relaxed
    } else {
        Ordering::Release
    }
}

/// The latest cookie that somebody asked for.
struct Needed(AtomicUsize);

impl Needed {
    rcu_core::const_fn! {
        const fn new(seq: Seq) -> Self {
            Self(AtomicUsize::new(seq.raw()))
        }
    }

    fn load(&self) -> Cookie {
        // ORDERING: Relaxed: a hint that is checked again; ordered by the callers' full fences where it matters.
        Cookie::from_raw(self.0.load(Ordering::Relaxed))
    }

    /// True if nobody had asked for as much.
    fn request(&self, cookie: Cookie) -> bool {
        let mut needed = self.load();
        while !cookie.is_no_later_than(needed) {
            match self.replace(needed, cookie) {
                Ok(()) => return true,
                Err(now) => needed = now,
            }
        }
        false
    }

    /// Drags what was asked for long ago along to `seq`, which is idle and far past it (I4).
    fn keep_up(&self, seq: Seq) {
        let needed = self.load();
        if seq
            .raw()
            .wrapping_sub(needed.raw())
            .wrapping_sub(usize::MAX / 4)
            <= usize::MAX / 4
        {
            // Losing to somebody who asks for more is as good.
            let _ = self.replace(needed, Cookie::from_raw(seq.raw()));
        }
    }

    /// Forgets what was asked for of a sequence that is at `seq`, in the child of a fork.
    fn reset_after_fork(&self, seq: Seq) {
        let reached = seq.raw().wrapping_sub(usize::from(seq.in_progress()));
        // ORDERING: Relaxed: there is one thread.
        self.0.store(reached, Ordering::Relaxed);
    }

    fn replace(&self, old: Cookie, new: Cookie) -> Result<(), Cookie> {
        // ORDERING: Relaxed: as for `load`.
        self.0
            .compare_exchange(old.raw(), new.raw(), Ordering::Relaxed, Ordering::Relaxed)
            .map(|_| ())
            .map_err(Cookie::from_raw)
    }
}

/// One sequence of grace periods, and what is asked of it.
pub struct GpSeq {
    seq: CachePadded<AtomicUsize>,
    needed: CachePadded<Needed>,
}

impl Default for GpSeq {
    fn default() -> Self {
        Self::new()
    }
}

impl GpSeq {
    rcu_core::const_fn! {
        /// Idle, near the wrap, with nothing asked for.
        #[must_use]
        pub const fn new() -> Self {
            Self::starting_at(Seq::INITIAL)
        }
    }

    rcu_core::const_fn! {
        /// Idle at `seq`, with nothing asked for.
        pub(crate) const fn starting_at(seq: Seq) -> Self {
            Self {
                seq: CachePadded::new(AtomicUsize::new(seq.raw())),
                needed: CachePadded::new(Needed::new(seq)),
            }
        }
    }

    /// The sequence now, for the driver and for statistics.
    #[must_use]
    pub fn load(&self) -> Seq {
        // ORDERING: P4 (poll side): whoever acts on an ended grace period comes after it.
        Seq::from_raw(self.seq.load(Ordering::Acquire))
    }

    /// A cookie for what the caller unlinked before.
    #[must_use]
    pub fn snapshot(&self) -> Cookie {
        if !rcu_core::weakened!("p5") {
            fence::full();
        }
        // P5 (snapshot side), after the full fence; P4 (poll side): the value's end happened before.
        let seq = self.load();
        if rcu_core::weakened!("r5") && seq.in_progress() {
            // The mutant counts on the grace period in progress.
            return Cookie::from_raw(seq.ended().raw());
        }
        seq.snapshot()
    }

    /// Whether `cookie` has been reached.
    #[inline]
    #[must_use]
    pub fn poll(&self, cookie: Cookie) -> bool {
        self.load().is_done_exact(cookie)
    }

    /// Asks that grace periods run until `cookie`. True if nobody had asked for as much.
    pub fn request(&self, cookie: Cookie) -> bool {
        self.needed.request(cookie)
    }

    /// Whether a grace period is in progress or asked for.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        let seq = self.load();
        seq.in_progress() || !seq.is_done(self.needed.load())
    }

    /// Starts a grace period. The driver only, idle; it runs `heavy` next.
    pub fn start(&self) {
        let seq = self.load();
        debug_assert!(!seq.in_progress());
        // ORDERING: P5 (driver side): ordered before the scan by `heavy`. Release, so that a reader who is
        // counted by this value (see `shared_readers`) comes after what came before it, the join included.
        self.seq.store(seq.started().raw(), Ordering::Release);
    }

    /// Forgets what was asked for, in the child of a fork: who asks next is then told to see to it that somebody drives.
    fn reset_after_fork(&self) {
        self.needed.reset_after_fork(self.load());
    }

    /// Ends the grace period. The driver only, after it saw every reader pass.
    pub fn end(&self) {
        // ORDERING: Relaxed: only the driver stores.
        let seq = Seq::from_raw(self.seq.load(Ordering::Relaxed));
        debug_assert!(seq.in_progress());
        // ORDERING: P4 (end side).
        self.seq.store(seq.ended().raw(), end_order());
        self.needed.keep_up(seq.ended());
    }

    /// Starts a grace period of a merged sequence, or joins the one in progress. The started value.
    fn join(&self) -> Seq {
        let mut seq = self.load();
        while !seq.in_progress() {
            // ORDERING: P5 (driver side): ordered before the scan by the driver's fence. AcqRel: carries P4 on.
            match self.seq.compare_exchange(
                seq.raw(),
                seq.started().raw(),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return seq.started(),
                Err(now) => seq = Seq::from_raw(now),
            }
        }
        seq
    }

    /// Ends the grace period that `stake` is the started value of, unless that has happened already (I1).
    fn leave(&self, stake: Seq) {
        let stake = if rcu_core::weakened!("p4_merge") {
            // What is in progress now, whoever started it.
            self.load()
        } else {
            stake
        };
        // ORDERING: P4 (end side); on failure, Relaxed: the other lane has ended it.
        let _ = self.seq.compare_exchange(
            stake.raw(),
            stake.ended().raw(),
            end_order(),
            Ordering::Relaxed,
        );
    }
}

impl fmt::Debug for GpSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpSeq")
            .field("seq", &self.load())
            .field("needed", &self.needed.load())
            .finish()
    }
}

/// The sequences of one tree.
pub struct Sequences {
    polled: GpSeq,
    lanes: [GpSeq; Lane::ALL.len()],
    quick: CachePadded<Needed>,
}

impl Default for Sequences {
    fn default() -> Self {
        Self::new()
    }
}

impl Sequences {
    rcu_core::const_fn! {
        /// All idle, near the wrap, with nothing asked for.
        #[must_use]
        pub const fn new() -> Self {
            Self::starting_at(Seq::INITIAL)
        }
    }

    rcu_core::const_fn! {
        const fn starting_at(seq: Seq) -> Self {
            Self {
                polled: GpSeq::starting_at(seq),
                lanes: [GpSeq::starting_at(seq), GpSeq::starting_at(seq)],
                quick: CachePadded::new(Needed::new(seq)),
            }
        }
    }

    /// The merged sequence, which small cookies and callbacks go by. Asked for there, the normal lane runs.
    #[inline]
    #[must_use]
    pub const fn polled(&self) -> &GpSeq {
        &self.polled
    }

    /// The sequence of one lane.
    #[inline]
    #[must_use]
    pub const fn lane(&self, lane: Lane) -> &GpSeq {
        &self.lanes[lane.index()]
    }

    /// A full cookie for what the caller unlinked before.
    #[must_use]
    pub fn snapshot_full(&self) -> FullCookie {
        fence::full();
        // P5 (snapshot side), after the full fence, for each of the two; T34: the words that the drivers write, no copies.
        FullCookie::new(
            self.lane(Lane::Normal).load().snapshot(),
            self.lane(Lane::Expedited).load().snapshot(),
        )
    }

    /// Whether `cookie` has been reached, by either lane.
    #[must_use]
    pub fn poll_full(&self, cookie: FullCookie) -> bool {
        self.lane(Lane::Normal).poll(cookie.normal())
            || !rcu_core::weakened!("r8") && self.lane(Lane::Expedited).poll(cookie.expedited())
    }

    /// Asks that `lane` runs until the small `cookie` is done. True if nobody had asked that lane for as much.
    pub fn request(&self, lane: Lane, cookie: Cookie) -> bool {
        match lane {
            Lane::Normal => self.polled.request(cookie),
            Lane::Expedited => self.quick.request(cookie),
        }
    }

    /// Whether a grace period of `lane` is in progress or asked for.
    #[must_use]
    pub fn is_needed(&self, lane: Lane) -> bool {
        let small = match lane {
            Lane::Normal => &self.polled.needed,
            Lane::Expedited => &self.quick,
        };
        self.lane(lane).is_needed() || !self.polled.load().is_done(small.load())
    }

    /// Forgets what was asked for, in the child of a fork. A driver that is gone may have left the merged sequence in
    /// progress with no lane that has a stake in it: the next grace period of either lane joins and ends it (I3).
    pub(crate) fn reset_after_fork(&self) {
        self.polled.reset_after_fork();
        for lane in &self.lanes {
            lane.reset_after_fork();
        }
        self.quick.reset_after_fork(self.polled.load());
    }

    /// A stake in a grace period of the merged sequence that has ended: leaving it ends none. For a lane whose driver is
    /// gone, and may not have noted what it joined. To take what is in progress now would be to leave (I1) what the lane
    /// may not have joined before it started, and break I2.
    pub(crate) fn no_stake(&self) -> Seq {
        let seq = self.polled.load();
        let idle = seq.raw().wrapping_sub(usize::from(seq.in_progress()));
        // In progress, and a value that the sequence itself never has: it starts at the next one but two.
        Seq::from_raw(idle.wrapping_sub(1))
    }

    /// Joins the merged sequence, starts `lane`'s, and runs a full fence: the stake. The lane's driver only, idle; it
    /// runs `heavy` next if anyone takes part.
    #[must_use]
    pub fn begin(&self, lane: Lane) -> Seq {
        if rcu_core::weakened!("p5_join") {
            self.lane(lane).start();
            fence::full();
            return self.polled.join();
        }
        let stake = self.polled.join();
        self.lane(lane).start();
        fence::full();
        stake
    }

    /// Ends `lane`'s grace period, then the merged one. The lane's driver only, after it saw every reader pass.
    pub fn finish(&self, lane: Lane, stake: Seq) {
        if rcu_core::weakened!("p4_nest") {
            self.polled.leave(stake);
            self.lane(lane).end();
            return;
        }
        self.lane(lane).end();
        self.polled.leave(stake);
        self.polled.needed.keep_up(stake.ended());
        self.quick.keep_up(stake.ended());
    }
}

impl fmt::Debug for Sequences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sequences")
            .field("polled", &self.polled)
            .field("normal", self.lane(Lane::Normal))
            .field("expedited", self.lane(Lane::Expedited))
            .field("quick", &self.quick.load())
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
