//! Which slots have lists, and whether lists may be used at all.
//!
//! Source: Linux `zone_pcp_disable` (row P12), and the bug in it: a length read without the lock left pages behind (T25). Why not
//! heights that every slot reads from one shared word: the hit would have to load it. So a height lies beside the list's length,
//! and closing is a visit to each slot that has ever had lists; what the gate adds is that no slot is missed.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `used` | one more than the highest slot that ever wanted lists; only rises | the slot's owner, inside its cell |
//! | `closed` | how many [`ListsDisabled`] there are | whoever makes or drops one; the child of a fork sets it to 0 |
//! | `forks` | how often that happened | the child of a fork, which has one thread |
//!
//! # Life
//! A slot's lists: height 0 → (owner: `used`, full fence, `closed` is 0) heights → (visitor, `closed` above 0) emptied, height 0 →
//! the owner's next slow path looks again.
//!
//! # Invariants
//! - I1. A slot's heights are raised only by its owner, inside its cell, after [`Gate::may_list`] said so in the same stay.
//! - I2. From the end of the visits until `closed` falls to 0, every list is empty and stays so. Take a slot's stay in which
//!   `may_list` said yes, and the closing: either the stay read `closed` before the closing's addition, or a previous closing was
//!   over. In the first case the full fences on both sides (store of `used`, fence, load of `closed` / addition to `closed`, fence, load of
//!   `used`) let the closer see the slot in `used`; its visit waits for the stay's end, finds heights and takes them. A stay that begins
//!   after the visit sees the addition, handed on by the local lock (P8), so it raises nothing while that is in force.
//! - I3. `closed` is never below the number of guards, so nested closings open with the last one. Guards that are forgotten count for ever;
//!   a count that they could overflow ends in a panic.
//!
//! - I4. A guard made before a fork counts for nothing in the child: most are of threads that are not there and would close the lists for ever.
//!
//! The model is `tests/loom_gate.rs`, with the mutant `gate`: the owner's fence left out.
//!
//! # Progress and contexts
//! The owner never waits, at any attempt level. Closing waits for each slot's owner in turn, a few instructions each.

#![deny(unsafe_code)]

use core::fmt;
use rcu_core::cpu::Slot;
use rcu_core::fence;
use rcu_core::sync::atomic::{AtomicU32, Ordering};

/// See the module's header.
#[derive(Debug)]
pub(crate) struct Gate {
    used: AtomicU32,
    closed: AtomicU32,
    forks: core::sync::atomic::AtomicU32,
}

impl Gate {
    rcu_core::const_fn! {
        pub(crate) const fn new() -> Self {
            Self {
                used: AtomicU32::new(0),
                closed: AtomicU32::new(0),
                forks: core::sync::atomic::AtomicU32::new(0),
            }
        }
    }

    fn forks(&self) -> u32 {
        // ORDERING: Relaxed: written while there is one thread.
        self.forks.load(Ordering::Relaxed)
    }

    /// Opens the gate in the child of a fork, whoever closed it in the parent (I4). The caller is the only thread.
    #[cfg(not(loom))]
    pub(crate) fn open_in_child(&self) {
        // ORDERING: Relaxed: there is one thread.
        self.forks.fetch_add(1, Ordering::Relaxed);
        // ORDERING: Relaxed: as above.
        self.closed.store(0, Ordering::Relaxed);
    }

    /// Notes that the slot, whose cell the caller is inside of as its owner, wants lists, and says whether it may.
    pub(crate) fn may_list(&self, slot: Slot) -> bool {
        // ORDERING: Relaxed: only spares the work below while closed; a stale 0 is looked at again.
        if self.closed.load(Ordering::Relaxed) != 0 {
            return false;
        }
        // ORDERING: Release / Acquire in `used`: who sees the slot's first block elsewhere sees this.
        self.used
            .fetch_max(slot.index() as u32 + 1, Ordering::Release);
        if !rcu_core::weakened!("gate") {
            fence::full();
        }
        // ORDERING: Relaxed: ordered after the store to `used` by the fence (I2).
        self.closed.load(Ordering::Relaxed) == 0
    }

    /// Slots below this may have lists.
    pub(crate) fn used(&self) -> u32 {
        // ORDERING: Acquire, as in `may_list`. A slot that is missed pushed nothing before the caller's last
        // synchronisation with it; counts of blocks are never read outside the slot's lock (T25).
        self.used.load(Ordering::Acquire)
    }

    /// From here on no slot that is visited raises its heights again. The caller visits all that [`Self::used`] says.
    pub(crate) fn close(&self) -> ListsDisabled<'_> {
        // ORDERING: Relaxed: ordered before the load of `used` by the fence (I2).
        let before = self.closed.fetch_add(1, Ordering::Relaxed);
        let disabled = ListsDisabled {
            gate: self,
            forks: self.forks(),
        };
        // Half of what there is: as many threads as may be in between cannot wrap it (I3).
        assert!(
            before < u32::MAX / 2,
            "two thousand million `ListsDisabled` were forgotten"
        );
        fence::full();
        disabled
    }
}

/// While this lives, no page is on any slot's list: every allocation and every free reaches the zone.
///
/// At [`Attempt::PcpOnly`](crate::Attempt::PcpOnly) allocations then fail, and frees go to the stash. Others end with the last one. In the child of a
/// fork all are over, whoever has them: [`Zone::before_fork`](crate::Zone::before_fork).
#[must_use = "the lists are in use again as soon as this is dropped"]
#[doc(alias = "zone_pcp_enable")]
pub struct ListsDisabled<'a> {
    gate: &'a Gate,
    /// The gate's when this was made (I4).
    forks: u32,
}

impl fmt::Debug for ListsDisabled<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListsDisabled").finish_non_exhaustive()
    }
}

impl Drop for ListsDisabled<'_> {
    fn drop(&mut self) {
        if self.forks == self.gate.forks() {
            // ORDERING: Relaxed: nothing is published by it; a slot that does not see it yet keeps without lists.
            self.gate.closed.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
