//! Readers that no slot stands for: threads beyond the last slot, or past their thread-local destructors, and sections
//! that belong to no thread at all.
//!
//! Counts under locks, by the parity of the grace periods that the reader came before. Why not one count: it might
//! never be seen at zero while such readers overlap. Why sharded: tasks that enter and leave in parallel are not to meet
//! at one lock.
//!
//! # State
//! | field | meaning |
//! |---|---|
//! | `shards[s].inside[b]` | readers inside that entered in shard s while the *banks* of the two lanes were b; under the shard's lock |
//! | `used` | bit s: shard s has ever had a reader; sticky |
//!
//! The bank of a lane flips when a grace period of it starts: `(seq + 3) / 4 mod 2`. A count's index holds both lanes'
//! banks, the normal one in bit 0, the expedited one in bit 1.
//!
//! # Invariants
//! - I1. A grace period of a lane waits for the bank that was current before it started; the other one was drained by
//!   the lane's grace period before, so everyone there entered after this one's start.
//! - I2. A section that moves here from a slot ([`SharedReaders::admit`]) counts, for a lane whose grace period still waits
//!   for the slot, in the bank which that grace period waits for, and otherwise in the current one: it began after the
//!   start, or after the slot was credited. The first is sometimes stricter than needed, at most once a slot and grace
//!   period, since the next scan finds the slot past its section: moves cannot starve a grace period.
//! - I3. Sections of one thread that overlap are one, whichever ends last: a grace period that waits for one of them waits
//!   for those that the thread enters meanwhile. Where all are counted at one place, so is the next, under the same lock
//!   ([`SharedReaders::enter_at`]): a driver sees one of them. Else it is admitted, as in I2. A thread knows its sections by
//!   its [marks](crate::marks).
//!
//! # Orderings
//! - P2 (shared side): the reader runs a full fence between reading a lane's sequence and its section; the driver has run
//!   a full fence after bumping it. If the reader read the old value it is counted before the driver's look, by the
//!   shard's lock (had it come after, the lock would have shown it the new value); if it read the new one, the driver's
//!   join came before that, so the writer's fence (P5) came before the reader's, and it sees the unlinking.
//! - P2 (a shard's first reader): sets its bit in `used`, then the full fence; the driver reads `used` after its own. A
//!   driver that misses the bit misses a reader who sees what was unlinked: the newcomer's argument.
//! - P3 (shared side): the exit's unlock / the driver's lock.
//!
//! # Progress
//! Blocking, for the lock's few instructions. Not for signal handlers of such threads.

use crate::gp_seq::Sequences;
use crate::reader::{Entered, ReaderWord, nesting_overflow};
use crate::trace::Lane;
#[cfg(loom)]
use core::array;
use crossbeam_utils::CachePadded;
use rcu_core::Seq;
use rcu_core::cpu::{Slot, SpinMutex};
use rcu_core::fence;
use rcu_core::sync::atomic::{AtomicUsize, Ordering};

/// How many locks the readers are spread over: more than a few tasks enter or leave at the same moment.
pub(crate) const NR_SHARDS: usize = 16;
/// One for each pair of banks.
pub(crate) const NR_COUNTS: usize = 1 << Lane::ALL.len();

/// The current bank of a sequence, 0 or 1. A grace period in progress waits for the other one.
const fn current_bank(seq: Seq) -> usize {
    (seq.raw().wrapping_add(3) >> 2) & 1
}

/// Where a reader is counted: its shard, and its bank in each lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u8);

impl Place {
    /// Raw values are below this.
    pub(crate) const LIMIT: usize = NR_SHARDS * NR_COUNTS;

    fn new(shard: usize, count: usize) -> Self {
        Self((shard % NR_SHARDS * NR_COUNTS + count) as u8)
    }

    pub(crate) const fn raw(self) -> usize {
        self.0 as usize
    }

    /// For a reader's token.
    pub(crate) const fn noted(self) -> Entered {
        Entered::note(self.0)
    }

    /// The place with this raw value, which came from [`Self::raw`].
    pub(crate) fn from_raw(raw: usize) -> Self {
        debug_assert!(raw < Self::LIMIT, "not a place");
        Self((raw % Self::LIMIT) as u8)
    }

    const fn shard(self) -> usize {
        self.raw() / NR_COUNTS
    }

    pub(crate) const fn count(self) -> usize {
        self.raw() % NR_COUNTS
    }

    #[cfg(all(test, not(loom)))]
    const fn bank(self, lane: Lane) -> usize {
        self.count() >> lane.index() & 1
    }
}

#[derive(Debug)]
struct Shard {
    inside: SpinMutex<[usize; NR_COUNTS]>,
}

#[derive(Debug)]
pub(crate) struct SharedReaders {
    shards: [CachePadded<Shard>; NR_SHARDS],
    used: CachePadded<AtomicUsize>,
    /// Spreads readers without a slot.
    turn: CachePadded<AtomicUsize>,
    /// What readers without a slot have in place of a word; only its address matters.
    word: ReaderWord,
}

impl SharedReaders {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Self {
        Self {
            shards: [const { CachePadded::new(Shard::new()) }; NR_SHARDS],
            used: CachePadded::new(AtomicUsize::new(0)),
            turn: CachePadded::new(AtomicUsize::new(0)),
            word: ReaderWord::of_nobody(),
        }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Self {
        Self {
            shards: array::from_fn(|_| CachePadded::new(Shard::new())),
            used: CachePadded::new(AtomicUsize::new(0)),
            turn: CachePadded::new(AtomicUsize::new(0)),
            word: ReaderWord::of_nobody(),
        }
    }

    /// The word of nobody that stands for all places. Leaving by it always is a
    /// [`Transition`](crate::reader::Outcome::Transition).
    pub(crate) const fn word(&self) -> &ReaderWord {
        &self.word
    }

    /// Enters; `slot` is the caller's, if it has one, and only a hint where to count.
    #[cold]
    pub(crate) fn enter(&self, gp: &Sequences, slot: Option<Slot>) -> Place {
        let shard = slot.map_or_else(
            // ORDERING: Relaxed: only spreads.
            || self.turn.fetch_add(1, Ordering::Relaxed) % NR_SHARDS,
            |slot| slot.index() % NR_SHARDS,
        );
        self.use_shard(shard);
        let mut inside = self.shards[shard].inside.lock();
        let count = Lane::ALL
            .iter()
            .map(|&lane| current_bank(gp.lane(lane).load()) << lane.index())
            .sum();
        add_one(&mut inside[count]);
        drop(inside);
        if !rcu_core::weakened!("p2_shared") {
            fence::full();
        }
        Place::new(shard, count)
    }

    /// Enters once more where the calling thread is inside already (I3), behind the fence of its first section.
    #[cold]
    pub(crate) fn enter_at(&self, place: Place) {
        let mut inside = self.shards[place.shard()].inside.lock();
        debug_assert!(inside[place.count()] > 0, "I3: nobody is inside there");
        add_one(&mut inside[place.count()]);
    }

    /// Whether the grace period in progress of `lane`, if there is one, waits for those at the index `count`.
    pub(crate) fn waits_for_count(gp: &Sequences, lane: Lane, count: usize) -> bool {
        let seq = gp.lane(lane).load();
        seq.in_progress() && count >> lane.index() & 1 != current_bank(seq)
    }

    /// Counts a section that is inside already, on `slot` or of a thread that has none any more. `waited_for` says whether the
    /// grace period in progress of a lane, if there is one, still waits for it, or is going to (I2, I3). The machines of both lanes are locked.
    pub(crate) fn admit(
        &self,
        gp: &Sequences,
        slot: Option<Slot>,
        waited_for: impl Fn(Lane) -> bool,
    ) -> Place {
        let shard = slot.map_or(0, Slot::index) % NR_SHARDS;
        self.use_shard(shard);
        let count: usize = Lane::ALL
            .iter()
            .map(|&lane| {
                let current = current_bank(gp.lane(lane).load());
                let before = waited_for(lane) && !rcu_core::weakened!("g11");
                (current ^ usize::from(before)) << lane.index()
            })
            .sum();
        add_one(&mut self.shards[shard].inside.lock()[count]);
        Place::new(shard, count)
    }

    /// Notes that there are readers in `shard`. A full fence follows before the section; or the machines are locked.
    fn use_shard(&self, shard: usize) {
        // ORDERING: Relaxed: sticky; who finds its bit set runs its full fence all the same (P2).
        if self.used.load(Ordering::Relaxed) & (1 << shard) == 0 {
            // ORDERING: P2 (a shard's first reader), by the full fence that follows.
            self.used.fetch_or(1 << shard, Ordering::Release);
        }
    }

    /// Leaves. True if that was the last one of its count, which a grace period may be waiting for.
    #[cold]
    pub(crate) fn exit(&self, place: Place) -> bool {
        let mut inside = self.shards[place.shard()].inside.lock();
        let count = &mut inside[place.count()];
        debug_assert!(*count > 0, "left a section that was not entered");
        *count -= 1;
        *count == 0
    }

    /// Forgets every reader, in the child of a fork.
    ///
    /// # Safety
    /// 1. This is the child of a fork and the caller its only thread, inside none of these functions.
    /// 2. No section of here from before the fork is used or left.
    pub(crate) unsafe fn reset_after_fork(&self) {
        for shard in &self.shards {
            // SAFETY: there is no other thread, and the caller does not hold the lock (1).
            let (mut inside, _) = unsafe { shard.inside.seize() };
            *inside = [0; NR_COUNTS];
        }
    }

    /// How many of these readers the grace period in progress of `lane` waits for. For people.
    pub(crate) fn waited_for(&self, gp: &Sequences, lane: Lane) -> usize {
        let before = current_bank(gp.lane(lane).load()) ^ 1;
        let of_shard = |shard: &CachePadded<Shard>| -> usize {
            let inside = shard.inside.lock();
            (0..NR_COUNTS)
                .filter(|count| count >> lane.index() & 1 == before)
                .map(|count| inside[count])
                .sum()
        };
        self.shards.iter().map(of_shard).sum()
    }

    /// Whether the grace period in progress of `lane` waits for none of these readers. The lane's driver only.
    pub(crate) fn is_clear(&self, gp: &Sequences, lane: Lane) -> bool {
        // ORDERING: P2 (driver's read, after its full fence).
        let used = self.used.load(Ordering::Acquire);
        if used == 0 {
            return true;
        }
        let now = current_bank(gp.lane(lane).load());
        let before = now ^ usize::from(!rcu_core::weakened!("t47"));
        (0..NR_SHARDS).filter(|s| used >> s & 1 != 0).all(|s| {
            let inside = self.shards[s].inside.lock();
            (0..NR_COUNTS)
                .filter(|count| count >> lane.index() & 1 == before)
                .all(|count| inside[count] == 0)
        })
    }
}

/// Counts one more. Aborts where that is not possible any more: it can only come from forgotten guards (hole 3 of the
/// peers), and a count that went round would let a grace period end under its readers.
fn add_one(count: &mut usize) {
    match count.checked_add(1) {
        Some(more) => *count = more,
        None => nesting_overflow(),
    }
}

impl Shard {
    rcu_core::const_fn! {
        const fn new() -> Self {
            Self { inside: SpinMutex::new([0; NR_COUNTS]) }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// The counts of the first shards, and which shards are used.
    type Words = ([[usize; NR_COUNTS]; 4], usize);

    /// For who puts readers into a state (`machine::explorer`).
    impl SharedReaders {
        pub(crate) fn words(&self) -> Words {
            let inside = core::array::from_fn(|s| *self.shards[s].inside.lock());
            (inside, self.used.load(Ordering::Relaxed))
        }

        pub(crate) fn set_words(&self, (inside, used): Words) {
            for (shard, inside) in self.shards.iter().zip(inside) {
                *shard.inside.lock() = inside;
            }
            self.used.store(used, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_grace_period_waits_for_those_before_it_and_for_nobody_after() {
        for lane in Lane::ALL {
            let (gp, readers) = (Sequences::new(), SharedReaders::new());
            for round in 0..1000 {
                let slot = Some(Slot::new(round % 40));
                let before = readers.enter(&gp, slot);
                let stake = gp.begin(lane);
                assert!(!readers.is_clear(&gp, lane));
                let after = readers.enter(&gp, None);
                assert_ne!(before.bank(lane), after.bank(lane));
                assert!(readers.exit(before));
                assert!(readers.is_clear(&gp, lane));
                gp.finish(lane, stake);
                let idle = readers.enter(&gp, slot);
                assert_eq!(after.bank(lane), idle.bank(lane));
                let stake = gp.begin(lane);
                readers.exit(after);
                assert!(!readers.is_clear(&gp, lane));
                readers.exit(idle);
                assert!(readers.is_clear(&gp, lane));
                gp.finish(lane, stake);
            }
        }
    }

    #[test]
    fn g17_each_lane_has_its_own_banks() {
        let (gp, readers) = (Sequences::new(), SharedReaders::new());
        let first = readers.enter(&gp, None);
        let normal = gp.begin(Lane::Normal);
        let second = readers.enter(&gp, None);
        let expedited = gp.begin(Lane::Expedited);
        let third = readers.enter(&gp, None);
        readers.exit(first);
        assert!(
            readers.is_clear(&gp, Lane::Normal),
            "only waits for the first"
        );
        assert!(
            !readers.is_clear(&gp, Lane::Expedited),
            "waits for the second too"
        );
        gp.finish(Lane::Normal, normal);
        readers.exit(second);
        assert!(readers.is_clear(&gp, Lane::Expedited));
        gp.finish(Lane::Expedited, expedited);
        readers.exit(third);
    }

    #[test]
    fn places_survive_being_raw() {
        for raw in 0..Place::LIMIT {
            assert_eq!(Place::from_raw(raw).raw(), raw);
        }
        let place = Place::new(NR_SHARDS - 1, NR_COUNTS - 1);
        assert_eq!(
            (place.shard(), place.count()),
            (NR_SHARDS - 1, NR_COUNTS - 1)
        );
    }

    /// T47: readers overlap for ever, each in the bank that was current when it came, however long ago that was. Every
    /// one holds up the first grace period that starts after it came, and no later one starts before it has gone.
    #[test]
    fn t47_a_bank_fetched_long_ago_is_waited_for() {
        for lane in Lane::ALL {
            let (gp, readers) = (Sequences::new(), SharedReaders::new());
            let mut slow = readers.enter(&gp, None);
            for _ in 0..1000 {
                let stake = gp.begin(lane);
                for _ in 0..3 {
                    let newcomer = readers.enter(&gp, None);
                    assert_ne!(
                        newcomer.bank(lane),
                        slow.bank(lane),
                        "counted with those of before"
                    );
                    assert!(!readers.is_clear(&gp, lane), "overtook the slow one");
                    readers.exit(newcomer);
                    assert!(!readers.is_clear(&gp, lane), "taken for the slow one");
                }
                let next = readers.enter(&gp, None);
                readers.exit(slow);
                assert!(
                    readers.is_clear(&gp, lane),
                    "waits for one of after its start"
                );
                gp.finish(lane, stake);
                slow = next;
            }
            readers.exit(slow);
        }
    }
}
