//! What one slot keeps: its sheaves, the line of those that wait, and its counters.
//!
//! Source: Linux `mm/slub.c` (6.18), `struct slub_percpu_sheaves` (facts and constants only).
//!
//! # Invariants
//! - I1. Objects in `main` and `spare` are free to hand out.
//! - I2. Objects in `rcu` and `line` were retired. Each sheaf in `line` has a cookie that was taken after the last of its
//!   objects was retired, so it may be handed out once that is done. Cookies in the line do not go back in time.

use crate::sheaf::{Installed, Sheaf, SheafList};
use crate::stats::Tally;
use core::ptr::NonNull;
use rcu_core::GracePeriod;
use rcu_core::cpu::{LocalCell, LocalLock, Slot, ZeroInit};
#[cfg(not(loom))]
use static_assertions::const_assert;

/// A slot's sheaves. All-zero is a slot without any.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct SlotState {
    /// Allocation and freeing go here.
    pub(crate) main: Installed,
    /// Retired objects go here.
    #[doc(alias = "rcu_free")]
    pub(crate) rcu: Installed,
    /// A sheaf with objects or without, to swap with `main`.
    pub(crate) spare: Option<Sheaf>,
    /// Sealed sheaves, eldest first.
    pub(crate) line: SheafList,
    /// `rcu` had objects already when the monitor last came by.
    is_aged: bool,
    pub(crate) counts: Counts,
    /// `counts.alloc_misses` when the monitor last came by.
    seen_misses: u32,
}

/// How often the slow paths were taken. Wrap.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) alloc_misses: u32,
    pub(crate) free_misses: u32,
    /// Sheaves of retired objects sealed.
    pub(crate) sealed: u32,
    /// Of those, how many became an allocation sheaf as they were.
    pub(crate) recycled: u32,
}

// SAFETY: zero is valid for each field (`Installed`, `SheafList`: their own; `Option<Sheaf>`: `None`
// by the niche of `NonNull`; integers; false), and owns nothing.
unsafe impl ZeroInit for SlotState {}

impl SlotState {
    /// Installs `sheaf` as `main` and gives back an emptied one that found no place as spare.
    pub(crate) fn renew_main(&mut self, sheaf: Sheaf) -> Option<Sheaf> {
        let old = self.main.install(sheaf)?;
        debug_assert!(old.is_empty(), "T16: objects in a replaced main sheaf");
        if self.spare.is_none() {
            self.spare = Some(old);
            return None;
        }
        Some(old)
    }

    /// Whether there is no sheaf at all.
    pub(crate) fn is_bare(&self) -> bool {
        let is_idle = self.main.is_vacant() && self.rcu.is_vacant();
        is_idle && self.spare.is_none() && self.line.is_empty()
    }

    /// Takes the spare if it has objects.
    pub(crate) fn take_spare_full(&mut self) -> Option<Sheaf> {
        self.spare.take_if(|s| !s.is_empty())
    }

    /// Takes a sheaf without objects from the spare or, if that is empty, from `main`.
    pub(crate) fn take_empty(&mut self) -> Option<Sheaf> {
        let spare = self.spare.take_if(|s| s.is_empty());
        if spare.is_none() && self.main.len() == 0 {
            return self.main.uninstall();
        }
        spare
    }

    /// Takes the eldest sealed sheaf if its cookie is done.
    pub(crate) fn take_ripe<G: GracePeriod>(&mut self, gp: &G) -> Option<Sheaf> {
        let cookie = self.line.first()?.cookie();
        if gp.poll(cookie) || rcu_core::weakened!("p4_ripe") {
            self.line.pop_front()
        } else {
            None
        }
    }

    /// Puts the sheaf of retired objects in line, if it has any, and says how many it had.
    ///
    /// The cookie is taken while the local lock is held, so that whoever visits the slot finds the
    /// objects either in `rcu` or behind their cookie (T15).
    pub(crate) fn seal<G: GracePeriod>(&mut self, gp: &G) -> usize {
        if self.rcu.len() == 0 {
            return 0;
        }
        let Some(mut sheaf) = self.rcu.uninstall() else {
            return 0;
        };
        let objects = sheaf.len();
        sheaf.set_cookie(gp.snapshot());
        // INVARIANT: I2: everything in the sheaf was retired before the cookie was taken.
        self.line.push_back(sheaf);
        self.is_aged = false;
        self.counts.sealed = self.counts.sealed.wrapping_add(1);
        objects
    }

    /// The monitor's tick: whether `rcu` has had objects since the last one, and whether the owner
    /// has not missed an allocation since, so that its line will not be consumed.
    pub(crate) fn tick(&mut self) -> Tick {
        let has_retired = self.rcu.len() > 0;
        let tick = Tick {
            seal: has_retired && self.is_aged,
            flush: self.counts.alloc_misses == self.seen_misses,
        };
        self.is_aged = has_retired;
        self.seen_misses = self.counts.alloc_misses;
        tick
    }
}

/// What the monitor should do to a slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tick {
    pub(crate) seal: bool,
    pub(crate) flush: bool,
}

/// The cell of `slot`, where `first` is that of slot 0: see `SlotsPlan` in `build`.
#[inline(always)]
pub(crate) fn cell_of<L>(first: NonNull<SlotCell<L>>, slot: Slot) -> NonNull<SlotCell<L>> {
    let offset = slot.index() * size_of::<SlotCell<L>>();
    let cell = first.as_ptr().map_addr(|address| address ^ offset);
    // SAFETY: no cell is at address zero: they are in one block with the first.
    unsafe { NonNull::new_unchecked(cell) }
}

/// A slot's line of memory: its local lock, what that guards, and counters beside it.
#[repr(C, align(128))]
pub(crate) struct SlotCell<L> {
    pub(crate) cell: LocalCell<L, SlotState>,
    pub(crate) tally: Tally,
}

// SAFETY: zero is valid for the cell (its own impl) and the counters.
unsafe impl<L: LocalLock> ZeroInit for SlotCell<L> {}
// A slot is a power of two of bytes, its first 128 what the fast paths use, or a shift to find it becomes a multiplication.
#[cfg(not(loom))]
const_assert!(size_of::<SlotCell<rcu_core::cpu::BiasedLock>>() == 256);
#[cfg(not(loom))]
const_assert!(size_of::<SlotCell<rcu_core::cpu::SpinLock>>() == 256);

#[cfg(loom)]
impl<L: LocalLock> SlotCell<L> {
    /// A cell for a model: loom's words must be made, zeroed memory will not do.
    pub(crate) fn new() -> Self {
        Self {
            cell: LocalCell::new(L::for_model(), SlotState::default()),
            tally: Tally::default(),
        }
    }
}
