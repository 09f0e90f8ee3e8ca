//! Every lock of a zone, held over a fork.

use super::Shared;
use crate::lower::Lower;
use crate::pcp::Pcp;
use crate::pressure::Held;
use crate::regions::Regions;
use core::ptr;
use rcu_core::cpu::{LocalCell, LocalLock, Slot, SpinGuard};

/// Evidence that nobody is inside a zone: its lists, its lower level, its regions and its hooks are whole. Leaves them when dropped.
pub(crate) struct SharedHeld<'a, L: LocalLock, B: Lower + 'a> {
    shared: &'a Shared<L, B>,
    /// Cells below this are held, by forgotten guards.
    nr: u32,
    hooks: Held<'a>,
    _lower: B::Held<'a>,
    _growing: SpinGuard<'a, Regions>,
}

impl<L: LocalLock, B: Lower> Shared<L, B> {
    /// Takes every lock, waiting for whoever is inside: first that of growing, then the slots' cells, then the lower level's.
    pub(crate) fn hold(&self) -> SharedHeld<'_, L, B> {
        let growing = self.growing.lock();
        let mut nr = 0;
        loop {
            while nr < self.gate.used() {
                if let Some(cell) = self.slots.get(Slot::new(nr)) {
                    // Left by `SharedHeld`.
                    core::mem::forget(cell.visit());
                }
                nr += 1;
            }
            let lower = self.lower.hold();
            // A slot that came since may have taken blocks before the lower level was held: once more, in order.
            if self.gate.used() == nr {
                return SharedHeld {
                    shared: self,
                    nr,
                    hooks: self.pressure.hold(),
                    _lower: lower,
                    _growing: growing,
                };
            }
        }
    }
}

impl<L: LocalLock, B: Lower> SharedHeld<'_, L, B> {
    fn cells(&self, nr: u32) -> impl Iterator<Item = (u32, &LocalCell<L, Pcp>)> {
        (0..nr).filter_map(|slot| Some((slot, self.shared.slots.get(Slot::new(slot))?)))
    }

    /// Leaves everything in the child of a fork, and forgets what threads that are not there were doing outside of locks. Slots from
    /// `seen` on were never anybody's.
    ///
    /// # Safety
    /// 1. This is the child of a fork that the caller did while it had this value, and its only thread.
    pub(crate) unsafe fn leave_in_child(mut self, seen: usize) {
        // Not only those that are used: a thread on another slot may have been looking into its cell.
        for (slot, cell) in self.cells(seen as u32) {
            // SAFETY: there is no other thread (1), and this one's guard was forgotten.
            let (mut pcp, whole) = unsafe { cell.seize() };
            // Those held from before the fork are whole. In the others a first block or two may have been on their way.
            if slot >= self.nr && !whole {
                let pcp: *mut Pcp = ptr::from_mut(&mut *pcp);
                // SAFETY: the cell is held; all-zero is an unused one (`ZeroInit`), and needs no dropping.
                unsafe { pcp.write_bytes(0, 1) };
            }
        }
        self.hooks.forget_runner();
        // No model forks.
        #[cfg(not(loom))]
        self.shared.gate.open_in_child();
        // Left already.
        self.nr = 0;
    }
}

impl<L: LocalLock, B: Lower> Drop for SharedHeld<'_, L, B> {
    fn drop(&mut self) {
        for (_, cell) in self.cells(self.nr) {
            // SAFETY: `hold` forgot this cell's guard, and cells are left once.
            unsafe { cell.unvisit() };
        }
    }
}
