//! Objects that are retired while they wait (K18).
//!
//! Source: Linux, where debug objects find the second `kfree_rcu` of a head, say so, and leave it at the first.
//!
//! # When it is found
//! | object | debug builds, feature `debug-retire` | else |
//! |---|---|---|
//! | with a head | at once ([`Head::begin_call`](rcu_core::Head::begin_call)) | as without one |
//! | without one, in a block | at once, by the table below | when the block is freed, if it is there twice; the second is not freed |
//! | in a sheaf of `slab` | with [`slab::Checks::AT_ONCE`] | when the sheaf is flushed: `slab` ends the program |
//!
//! What was freed in between, and given out again, cannot be told from an honest object by anyone but the allocator.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | a way of a set | the address of an object that waits in a block, or 0 | who retires it, who frees its block |
//!
//! # Invariants
//! - I1. An address is put in before its object is in a block, and taken out after the block is out of every line and before
//!   the object is freed; so whoever finds its own object there retires it for a second time.
//! - I2. A full set forgets: an object may go unwatched, and none is blamed that is not there.
//!
//! # Contexts
//! Any: a set is scanned, no lock is taken.

use core::fmt;
use core::ptr::NonNull;
use rcu_core::sync::atomic::{AtomicUsize, Ordering};

/// Whether objects without a head are watched while they wait.
pub(crate) const WATCHED: bool = cfg!(any(debug_assertions, feature = "debug-retire"));

/// How many are reported for one front end: as many as the kernel says.
const MAX_REPORTS: usize = 3;

const SETS: usize = if WATCHED { 512 } else { 0 };
const WAYS: usize = 4;

/// An object that was retired while it waited. It is freed once, for the first time it was.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct DoubleRetire {
    /// The object. Only its address means anything.
    pub object: NonNull<u8>,
    /// Whether the second call is the one that found it, and is still on the stack; if not, it was found as it was freed.
    pub is_at_once: bool,
}

impl fmt::Display for DoubleRetire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = if self.is_at_once { "again" } else { "twice" };
        write!(
            f,
            "the object at {:p} was retired {found} while it waited",
            self.object
        )
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Doubles {
    sets: [[AtomicUsize; WAYS]; SETS],
    seen: AtomicUsize,
}

impl Doubles {
    pub(crate) const fn new() -> Self {
        Self {
            sets: [const { [const { AtomicUsize::new(0) }; WAYS] }; SETS],
            seen: AtomicUsize::new(0),
        }
    }

    fn set_of(&self, address: usize) -> Option<&[AtomicUsize; WAYS]> {
        let hash = (address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        self.sets.get(hash as usize % SETS.max(1))
    }

    /// Notes an object that is about to wait; false if it waits already.
    pub(crate) fn begin(&self, object: NonNull<u8>) -> bool {
        let address = object.addr().get();
        let Some(set) = self.set_of(address) else {
            return true;
        };
        // ORDERING: Relaxed, here and below: the value only; of two threads that retire one object at a time, both may pass.
        if set.iter().any(|way| way.load(Ordering::Relaxed) == address) {
            return false;
        }
        for way in set {
            // ORDERING: Relaxed: as above.
            let taken = way.compare_exchange(0, address, Ordering::Relaxed, Ordering::Relaxed);
            if taken.is_ok() {
                break;
            }
        }
        true
    }

    /// Forgets an object that waits no more.
    pub(crate) fn end(&self, object: NonNull<u8>) {
        let address = object.addr().get();
        for way in self.set_of(address).into_iter().flatten() {
            // ORDERING: Relaxed: the value only; the object's next life is ordered after this by its allocator.
            let _ = way.compare_exchange(address, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Counts some; whether they are to be reported.
    pub(crate) fn count(&self, n: usize) -> bool {
        // ORDERING: Relaxed: a statistic.
        self.seen.fetch_add(n, Ordering::Relaxed) < MAX_REPORTS
    }

    /// How many there were.
    pub(crate) fn seen(&self) -> usize {
        // ORDERING: Relaxed: a statistic.
        self.seen.load(Ordering::Relaxed)
    }
}
