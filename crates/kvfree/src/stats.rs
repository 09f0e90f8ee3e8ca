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
    /// Headless objects that had to wait for a grace period of their own.
    pub synchronized: usize,
    /// Destructors that panicked (contained under `std`).
    pub panicked: usize,
    /// Objects found to be retired while they waited; see [`DoubleRetire`](crate::DoubleRetire).
    pub doubles: usize,
    /// Batches and places that other threads were just busy with when the process was forked: what was in them is leaked.
    pub forgotten: usize,
}

impl KvfreeStats {
    pub(crate) fn add(&mut self, waiting: &Waiting) {
        self.objects_waiting += waiting.nr_objects();
        self.bytes_waiting += waiting.bytes();
        self.by_head += waiting.by_head();
    }
}

impl fmt::Display for KvfreeStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "waiting {} objects, {} bytes; about {} of {} bytes charged, {} objects overdrawn; freed {} blocks of {} objects; by head {}, by synchronize {}, panicked {}, twice {}",
            self.objects_waiting,
            self.bytes_waiting,
            self.bytes_charged,
            self.bytes_limit,
            self.overdrawn,
            self.blocks_freed,
            self.objects_in_blocks,
            self.by_head,
            self.synchronized,
            self.panicked,
            self.doubles
        )
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    blocks_freed: AtomicUsize,
    objects_in_blocks: AtomicUsize,
    by_head: AtomicUsize,
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

    /// One object was linked by its head without a slot; slots count their own.
    pub(crate) fn by_head(&self) {
        add(&self.by_head, 1);
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
            objects_waiting: 0,
            bytes_waiting: 0,
            bytes_charged: 0,
            bytes_limit: 0,
            overdrawn: 0,
            blocks_freed: get(&self.blocks_freed),
            objects_in_blocks: get(&self.objects_in_blocks),
            by_head: get(&self.by_head),
            synchronized: get(&self.synchronized),
            panicked: get(&self.panicked),
            doubles: 0,
            forgotten: get(&self.forgotten),
        }
    }
}
