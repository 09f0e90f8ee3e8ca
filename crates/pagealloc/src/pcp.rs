//! A slot's own page lists: the arrays that most allocations and frees end in.
//!
//! Source: Linux `struct per_cpu_pages` (rows P7 to P9, P11). Why arrays of page numbers and not
//! linked lists: a push and a pop touch one line, not the freed page's metadata neighbours, and the
//! oldest blocks are at the bottom, where a drain takes them.
//!
//! A list an order and type of [`Mobility`], unmovable first, so that what slab and kvfree use shares a line with the lock. Linux
//! numbers them `types * order + type`; here the order is known at compile time at most calls, so the place in the array is too.
//!
//! # Heights
//! Row P9, which keeps its counters on every allocation and free. Here a hit writes what it wrote before: the length and the hits.
//! What happened between two visits of a list to the zone is read off those: the hits are the pops, and pops plus growth
//! are the pushes. The constants are Linux's, scaled: a batch doubles [`SCALE_MAX`] times up to what was the batch before, for
//! the list is an array, and larger batches would hold the arena's lock longer (T27).
//!
//! - *Refill*: the batch doubles with each refill since which nothing was freed, halves with every free; the height grows by a batch.
//! - *Overflow*: `freed` grows by what was freed (halves with every allocation) and says how many blocks leave, at least a
//!   batch; the height rises to hold that much and a batch.
//! - *Zone short of pages*: the height falls by what was freed; while pressure hooks run, to four batches.
//! - *Tick*: the height falls by an eighth.
//!
//! # What a drain takes
//! The oldest blocks of the list that overflowed, a batch or more, at most [`CHUNK`] under one hold; the lower level, if it keeps types, reads that of
//! each block's pageblock again (P11, T32). Why not round robin over a slot's lists, as in Linux: there they share one count and one height,
//! so a push to one makes all of them pay; here each has its own height and drains itself, and where all are drained they are drained
//! whole.
//!
//! # Invariants
//! - I1. `len <= high <= CAPACITY` of each list.
//!   Unchecked accesses rest on it, because a bounds check on the hit path is a branch, and its panic a landing pad.
//! - I2. Blocks on the list of class `c` have state `LISTED` at the class's order and no other user.

use crate::api::{Attempt, Mobility, Order};
use crate::mobility::TYPES;
use crate::stats::{ATTEMPTS, SlotStats};
use arrayvec::ArrayVec;
use rcu_core::cpu::ZeroInit;
use static_assertions::const_assert;

/// How many orders have a list: all but the largest. In Linux 0 to 3 (`PAGE_ALLOC_COSTLY_ORDER`) and 9 (a huge page) have one.
const KINDS: usize = Order::MAX.get();

/// A list an order and type.
pub(crate) const CLASSES: usize = KINDS * TYPES;

/// How often a batch may double (Linux `PCP_BATCH_SCALE_MAX`, 5 of its 6, for batches of up to 2016 pages; here up to 63).
const SCALE_MAX: u8 = 3;

/// Blocks that go to or come from the zone under one lock hold: 63 single pages, as Linux does it
/// for large zones, so that the lock costs a sixty-third; for larger blocks the same number of
/// pages, so that the hold takes no longer; one of the others, which are worth 63 lists already or may as well be split.
const BATCH: [usize; KINDS] = [63, 31, 15, 7, 1, 1, 1, 1, 1, 1];

/// Blocks on a full list: two batches, so that a slot which goes up and down by less than a batch
/// never sees the zone. From order 4 to 8 one block, for who frees one and allocates the next: what two of each would keep
/// from merging is worth more. All lists of a type full, a slot hoards 3.9 MiB and two huge pages.
const CAPACITY: [usize; KINDS] = [126, 62, 30, 14, 1, 1, 1, 1, 1, 2];

/// Room for the list of a class, by its index.
const fn capacity(class: usize) -> usize {
    CAPACITY[class % KINDS]
}

const START: [usize; CLASSES + 1] = {
    let mut start = [0; CLASSES + 1];
    let mut c = 0;
    while c < CLASSES {
        start[c + 1] = start[c] + capacity(c);
        c += 1;
    }
    start
};

/// A slot may keep at most this part of the zone's span on one list (a 256th); a list that could
/// hold fewer than two blocks then holds none, where there is room for two. Without it one slot would swallow a small zone.
const SHARE: usize = 256;
/// Single pages a slot may keep whatever the zone's size.
const LEAST_SINGLES: usize = 4;

/// Room for a batch of any class, and the bound on the blocks moved under one hold of an arena's lock (T27).
pub(crate) const CHUNK: usize = 64;
const_assert!(BATCH[0] < CHUNK);

/// Blocks on their way between a list and the zone.
pub(crate) type Batch = ArrayVec<u32, CHUNK>;

/// One of the orders that have lists, and a type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Class(u8);

impl Class {
    /// The class of `order`'s blocks of `mobility`, if they have one.
    #[inline(always)]
    pub(crate) const fn of(order: Order, mobility: Mobility) -> Option<Self> {
        if order.get() >= KINDS {
            return None;
        }
        Some(Self(mobility as u8 * KINDS as u8 + order.get() as u8))
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..CLASSES as u8).map(Self)
    }

    pub(crate) const fn order(self) -> Order {
        Order::at(self.kind())
    }

    const fn kind(self) -> usize {
        self.index() % KINDS
    }

    #[inline(always)]
    const fn index(self) -> usize {
        self.0 as usize
    }
}

/// How long a zone's lists may get: at first and at least, and at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heights {
    min: [u16; CLASSES],
    max: [u16; CLASSES],
}

impl Heights {
    /// For a zone over `pages` pages.
    #[doc(alias = "zone_highsize")]
    pub(crate) const fn for_span(pages: usize) -> Self {
        let mut heights = Self {
            min: [0; CLASSES],
            max: [0; CLASSES],
        };
        let mut c = 0;
        while c < CLASSES {
            let order = c % KINDS;
            let mut blocks = (pages / SHARE) >> order;
            if order == 0 && blocks < LEAST_SINGLES {
                blocks = LEAST_SINGLES;
            }
            blocks = min(blocks, capacity(c));
            heights.max[c] = if blocks < min(2, capacity(c)) {
                0
            } else {
                blocks as u16
            };
            let four = 4 * heights.least_batch(Class(c as u8)) as usize;
            heights.min[c] = min(four, heights.max[c] as usize) as u16;
            c += 1;
        }
        heights
    }

    /// The most that moves at once: a batch, and half of the list.
    const fn most(&self, class: Class) -> u16 {
        let half = self.max[class.index()].div_ceil(2) as usize;
        min(BATCH[class.kind()], half) as u16
    }

    /// The batch that nothing has doubled: an eighth of a batch, but two blocks where there are two in one (as Linux for
    /// large orders), and never more than half of the list.
    const fn least_batch(&self, class: Class) -> u16 {
        let batch = BATCH[class.kind()];
        let eighth = ((batch + 1) >> SCALE_MAX).saturating_sub(1);
        let least = if eighth < 2 { min(batch, 2) } else { eighth };
        min(least, self.most(class) as usize) as u16
    }

    /// The batch after `doublings`.
    #[doc(alias = "zone_batchsize")]
    const fn batch(&self, class: Class, doublings: u8) -> u16 {
        let batch = ((self.least_batch(class) as usize + 1) << doublings) - 1;
        min(batch, self.most(class) as usize) as u16
    }
}

const fn min(a: usize, b: usize) -> usize {
    if a < b { a } else { b }
}

/// How the zone is off when a list overflows or runs dry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Weather {
    Fair,
    /// Fewer pages are free than the high watermark says: lists do not grow.
    Low,
    /// Pressure hooks are running: what is freed is wanted elsewhere.
    Relieving,
}

/// One list: what a hit touches, and what its height is made from.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct List {
    /// Allocations that it served.
    hits: u64,
    len: u16,
    high: u16,
    /// Blocks freed without as many allocations, as far as the last visit to the zone knew.
    freed: u16,
    /// How often the next refill's batch is doubled.
    factor: u8,
}

/// A list as its last visit to the zone left it.
#[derive(Clone, Copy, Debug)]
struct Before {
    /// The low bits: between two visits there may be more hits than that, and then a height is a little off.
    hits: u32,
    len: u16,
}

/// What a slot's lists did, besides hits. A hit is counted by two increments, on its list and at its level, and a free by none: how many
/// blocks were put on a list follows from what left it, what came from the zone and what is there.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Tally {
    /// By order: blocks that went to the zone, less those that came from it.
    gone: [u64; KINDS],
    refills: u64,
    refilled: u64,
    drains: u64,
    drained: u64,
}

impl Tally {
    const fn gone(&mut self, class: Class, blocks: u64) {
        let gone = &mut self.gone[class.kind()];
        *gone = gone.wrapping_add(blocks);
    }
}

/// A slot's lists. All-zero bytes are empty lists that take nothing until [`Self::set_up`].
#[derive(Debug)]
#[doc(alias = "per_cpu_pages")]
#[repr(C)]
pub(crate) struct Pcp {
    /// Hits by attempt level. In front, so that a single page's hit is in one line with the lock.
    levels: [u64; ATTEMPTS],
    lists: [List; CLASSES],
    before: [Before; CLASSES],
    ready: bool,
    tally: Tally,
    blocks: [u32; START[CLASSES]],
}

const_assert!(size_of::<Pcp>() <= 4096 - 8);

// SAFETY: integers and a `bool` of value zero; it owns nothing.
unsafe impl ZeroInit for Pcp {}

impl Pcp {
    pub(crate) const fn is_ready(&self) -> bool {
        self.ready
    }

    /// Lets the lists grow up to their least heights in `heights`, and further by themselves.
    #[cold]
    pub(crate) fn set_up(&mut self, heights: &Heights) {
        for class in Class::all() {
            self.lists[class.index()].high = heights.min[class.index()];
        }
        self.ready = true;
    }

    /// Lets the lists, which are empty, take nothing until they are set up again.
    #[cold]
    pub(crate) fn close(&mut self) {
        debug_assert!(self.lists.iter().all(|list| list.len == 0), "I1");
        for list in &mut self.lists {
            list.high = 0;
        }
        self.ready = false;
    }

    /// Notes that `blocks` that were pushed came from the zone.
    pub(crate) fn note_refill(&mut self, class: Class, blocks: usize) {
        if blocks > 0 {
            self.tally.gone(class, 0_u64.wrapping_sub(blocks as u64));
            self.tally.refilled += blocks as u64;
            self.tally.refills += 1;
        }
    }

    pub(crate) fn stats(&self) -> SlotStats {
        let mut stats = SlotStats {
            refills: self.tally.refills,
            refilled: self.tally.refilled,
            drains: self.tally.drains,
            drained: self.tally.drained,
            ..SlotStats::default()
        };
        for (attempt, hits) in stats.attempts.iter_mut().zip(self.levels) {
            attempt.hits = hits;
        }
        for class in Class::all() {
            let (list, order) = (&self.lists[class.index()], class.order().get());
            stats.blocks[order] += list.len as usize;
            stats.hits[order] += list.hits;
            stats.frees[order] += u64::from(list.len) + list.hits;
        }
        for (frees, gone) in stats.frees.iter_mut().zip(self.tally.gone) {
            *frees = frees.wrapping_add(gone);
        }
        stats
    }

    /// Takes the block freed last, for a request at `attempt`, which is noted and not looked at.
    #[inline(always)]
    pub(crate) fn pop(&mut self, class: Class, attempt: Attempt) -> Option<u32> {
        let list = &mut self.lists[class.index()];
        let len = list.len;
        if len == 0 {
            return None;
        }
        list.len = len - 1;
        list.hits += 1;
        self.levels[attempt as usize] += 1;
        let top = START[class.index()] + len as usize - 1;
        debug_assert!(top < START[class.index() + 1], "I1");
        // SAFETY: the class's part of the array has `CAPACITY` places, at least `len` (I1).
        Some(*unsafe { self.blocks.get_unchecked(top) })
    }

    /// Puts a block on top; false if the list is full.
    #[inline(always)]
    #[must_use]
    pub(crate) fn push(&mut self, class: Class, block: u32) -> bool {
        let list = &mut self.lists[class.index()];
        let len = list.len;
        if len >= list.high {
            return false;
        }
        let top = START[class.index()] + len as usize;
        debug_assert!(top < START[class.index() + 1], "I1");
        // SAFETY: the class's part of the array has `CAPACITY` places, at least `high` (I1), above `len`.
        *unsafe { self.blocks.get_unchecked_mut(top) } = block;
        list.len = len + 1;
        true
    }

    /// Whether the list takes blocks at all.
    pub(crate) const fn takes(&self, class: Class) -> bool {
        self.lists[class.index()].high > 0
    }

    /// Brings the two counters up to date with what happened since the last time.
    fn look_back(&mut self, class: Class, heights: &Heights) {
        let before = self.before[class.index()];
        let list = &mut self.lists[class.index()];
        let pops = u64::from((list.hits as u32).wrapping_sub(before.hits));
        let pushes = (pops + u64::from(list.len)).saturating_sub(u64::from(before.len));
        list.factor >>= pushes.min(7);
        let most = heights.least_batch(class) << SCALE_MAX;
        let left = u64::from(list.freed >> pops.min(15)) + pushes.saturating_sub(pops);
        list.freed = left.min(u64::from(most)) as u16;
        self.settle(class);
    }

    /// What happens to the list from here on is what [`Self::look_back`] sees next.
    pub(crate) const fn settle(&mut self, class: Class) {
        let list = &self.lists[class.index()];
        self.before[class.index()] = Before {
            hits: list.hits as u32,
            len: list.len,
        };
    }

    /// How many blocks the list, which has run dry, should get; 0 if it takes none.
    #[doc(alias = "nr_pcp_alloc")]
    pub(crate) fn refill_size(
        &mut self,
        class: Class,
        heights: &Heights,
        weather: Weather,
    ) -> usize {
        if !self.takes(class) {
            return 0;
        }
        self.look_back(class, heights);
        let least = heights.least_batch(class);
        let list = &mut self.lists[class.index()];
        if weather == Weather::Fair {
            list.high = (list.high + least).min(heights.max[class.index()]);
        }
        let room = list.high.saturating_sub(list.len + least).max(least);
        let batch = heights.batch(class, list.factor);
        if batch <= room && list.factor < SCALE_MAX {
            list.factor += 1;
        }
        batch.min(room).min(list.high - list.len).into()
    }

    /// Lets the list, which is full, grow if what was freed lately says so; whether it takes one more block now.
    #[doc(alias = "nr_pcp_high")]
    pub(crate) fn makes_room(&mut self, class: Class, heights: &Heights, weather: Weather) -> bool {
        self.look_back(class, heights);
        let list = &mut self.lists[class.index()];
        let need = list.freed + heights.least_batch(class);
        if weather == Weather::Fair && list.high < need {
            list.high = need.min(heights.max[class.index()]).max(list.high);
        }
        list.len < list.high
    }

    /// How many of its oldest blocks the list, which is full and made no room, has to let go of now. At most a [`CHUNK`].
    #[doc(alias = "nr_pcp_free")]
    pub(crate) fn overflow_size(
        &mut self,
        class: Class,
        heights: &Heights,
        weather: Weather,
    ) -> usize {
        let least = heights.least_batch(class);
        let list = &mut self.lists[class.index()];
        let mut aim = list.high;
        if weather > Weather::Fair {
            aim = aim
                .saturating_sub(list.freed.max(least))
                .max(heights.min[class.index()]);
        }
        if weather == Weather::Relieving {
            aim = aim.min(4 * least);
        }
        let most = list.high.saturating_sub(least).max(least);
        let n = list
            .freed
            .clamp(least, most)
            .max((list.len + 1).saturating_sub(aim))
            .min(BATCH[class.kind()] as u16)
            .min(list.len);
        // I1: as far down as those that leave make room for, one more block included.
        list.high = aim.max(list.len - n + 1).min(list.high);
        n.into()
    }

    /// Lets the height fall by an eighth, and says how many blocks are above it now. The caller takes them, then calls
    /// [`Self::lower`].
    #[doc(alias = "decay_pcp_high")]
    pub(crate) fn decayed(&self, class: Class, heights: &Heights) -> (u16, usize) {
        let list = &self.lists[class.index()];
        let most = heights.least_batch(class) << SCALE_MAX;
        let high = (list.high - list.high / 8)
            .max(list.len.saturating_sub(most))
            .max(heights.min[class.index()])
            .min(list.high);
        (high, list.len.saturating_sub(high).into())
    }

    /// The second half of a decay.
    pub(crate) fn lower(&mut self, class: Class, high: u16) {
        let list = &mut self.lists[class.index()];
        debug_assert!(list.len <= high && high <= list.high, "I1");
        list.high = high;
    }

    /// Takes up to `n` of the oldest blocks (P11), as a slice that `leave` sees before they are gone.
    pub(crate) fn take_oldest(
        &mut self,
        class: Class,
        n: usize,
        leave: impl FnOnce(&[u32]),
    ) -> usize {
        let start = START[class.index()];
        let len = self.lists[class.index()].len as usize;
        let n = n.min(len);
        let list = &mut self.blocks[start..start + len];
        leave(&list[..n]);
        list.copy_within(n.., 0);
        self.tally.gone(class, n as u64);
        self.tally.drained += n as u64;
        self.tally.drains += u64::from(n > 0);
        self.lists[class.index()].len = (len - n) as u16;
        // They were not allocated, so what was pushed since must not seem to be fewer.
        let before = &mut self.before[class.index()];
        before.len = before.len.saturating_sub(n as u16);
        n
    }
}

#[cfg(test)]
mod tests;
