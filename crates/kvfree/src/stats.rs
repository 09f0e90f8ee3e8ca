//! What a front end counts.

use crate::waiting::Waiting;
use core::fmt;
use rcu_core::sync::atomic::{AtomicUsize, Ordering};

/// Counts of one front end, without what its allocator defers by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KvfreeStats {
    /// Objects that wait in blocks or by their heads.
    pub objects_waiting: usize,
    /// Bytes that wait in blocks or by their heads.
    pub bytes_waiting: usize,
    /// For how many rounds of the monitor the oldest of them has waited, at most: where one grows and grows, a reader stalls.
    pub oldest_rounds: u32,
    /// About how many bytes count against the limit: these, and what the allocator defers by itself.
    pub bytes_charged: usize,
    /// How many bytes may wait.
    pub bytes_limit: usize,
    /// Objects taken in though as much waited as may, since who retired them could neither wait nor fail.
    pub overdrawn: usize,
    /// Blocks that were freed.
    pub blocks_freed: usize,
    /// Objects that were freed from blocks.
    pub objects_in_blocks: usize,
    /// Objects that were linked by their heads.
    pub by_head: usize,
    /// Of these, objects retired without a slot, or while its lock was taken.
    pub shared: usize,
    /// Objects that `try_retire` gave back.
    pub refused: usize,
    /// Pages that are kept for blocks to come.
    pub pages_kept: usize,
    /// Passes over all slots that barriers have made: barriers that come together share one.
    pub barrier_passes: usize,
    /// Headless objects that had to wait for a grace period of their own.
    pub synchronized: usize,
    /// Destructors that panicked (contained under `std`).
    pub panicked: usize,
    /// Objects found to be retired while they waited; see [`DoubleRetire`](crate::DoubleRetire).
    pub doubles: usize,
    /// Batches and places that other threads were just busy with when the process was forked: what was in them is leaked.
    pub forgotten: usize,
}

/// What waits on one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotStats {
    /// Objects that wait in blocks or by their heads.
    pub objects_waiting: usize,
    /// Their bytes.
    pub bytes_waiting: usize,
    /// For how many rounds of the monitor the oldest of them has waited, at most.
    pub oldest_rounds: u32,
    /// Pages that are kept for blocks to come.
    pub pages_kept: usize,
    /// Objects that were linked by their heads here, for want of a block.
    pub by_head: usize,
}

impl SlotStats {
    pub(crate) fn of(waiting: &Waiting, now: u32) -> Self {
        Self {
            objects_waiting: waiting.nr_objects(),
            bytes_waiting: waiting.bytes(),
            oldest_rounds: waiting.age(now),
            pages_kept: waiting.nr_stock(),
            by_head: waiting.by_head(),
        }
    }
}

impl fmt::Display for SlotStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "waiting {} objects, {} bytes, the oldest for {} rounds; {} pages kept, by head {}",
            self.objects_waiting,
            self.bytes_waiting,
            self.oldest_rounds,
            self.pages_kept,
            self.by_head
        )
    }
}

impl KvfreeStats {
    pub(crate) fn add(&mut self, slot: &SlotStats) {
        self.objects_waiting += slot.objects_waiting;
        self.bytes_waiting += slot.bytes_waiting;
        self.oldest_rounds = self.oldest_rounds.max(slot.oldest_rounds);
        self.pages_kept += slot.pages_kept;
        self.by_head += slot.by_head;
    }
}

impl fmt::Display for KvfreeStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "waiting {} objects, {} bytes, the oldest for {} rounds; about {} of {} bytes charged, {} objects overdrawn, {} refused; \
             freed {} blocks of {} objects; by head {}, of these {} without a slot, by synchronize {}, panicked {}, twice {}; \
             {} pages kept, {} passes of barriers",
            self.objects_waiting,
            self.bytes_waiting,
            self.oldest_rounds,
            self.bytes_charged,
            self.bytes_limit,
            self.overdrawn,
            self.refused,
            self.blocks_freed,
            self.objects_in_blocks,
            self.by_head,
            self.shared,
            self.synchronized,
            self.panicked,
            self.doubles,
            self.pages_kept,
            self.barrier_passes
        )
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    blocks_freed: AtomicUsize,
    objects_in_blocks: AtomicUsize,
    shared: AtomicUsize,
    refused: AtomicUsize,
    synchronized: AtomicUsize,
    panicked: AtomicUsize,
    forgotten: AtomicUsize,
}

/// Adds to a statistic.
fn add(counter: &AtomicUsize, n: usize) {
    // ORDERING: Relaxed: a statistic.
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn block_freed(&self, objects: usize) {
        add(&self.blocks_freed, 1);
        add(&self.objects_in_blocks, objects);
    }

    /// A portion of a block was freed, with whose first one all of its objects count.
    pub(crate) fn portion_freed(&self, objects: usize, was_last: bool) {
        if objects > 0 {
            add(&self.objects_in_blocks, objects);
        }
        if was_last {
            add(&self.blocks_freed, 1);
        }
    }

    /// One object was linked by its head without a slot; slots count their own.
    pub(crate) fn shared(&self) {
        add(&self.shared, 1);
    }

    /// An object was given back.
    pub(crate) fn refused(&self) {
        add(&self.refused, 1);
    }

    pub(crate) fn synchronized(&self) {
        add(&self.synchronized, 1);
    }

    /// Something of a thread's that is gone was forgotten.
    pub(crate) fn forgotten(&self) {
        add(&self.forgotten, 1);
    }

    pub(crate) fn panicked(&self, n: usize) {
        if n > 0 {
            add(&self.panicked, n);
        }
    }

    pub(crate) fn read(&self) -> KvfreeStats {
        // ORDERING: Relaxed: a statistic.
        let get = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        KvfreeStats {
            blocks_freed: get(&self.blocks_freed),
            objects_in_blocks: get(&self.objects_in_blocks),
            by_head: get(&self.shared),
            shared: get(&self.shared),
            refused: get(&self.refused),
            synchronized: get(&self.synchronized),
            panicked: get(&self.panicked),
            forgotten: get(&self.forgotten),
            ..KvfreeStats::default()
        }
    }
}
