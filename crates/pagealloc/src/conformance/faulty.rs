//! Lower levels with one fault each: the proof that the suite fails on what it is there to find.

use crate::api::{AllocError, Attempt, Mobility, Order};
use crate::lower::{Changes, Extent, Ground, Lower, ORDERS, Waiting, Wanted};
use crate::mobility::{Fallback, TYPES};
use crate::runs::{Run, Runs};
use core::alloc::{Layout, LayoutError};
use core::sync::atomic::{AtomicUsize, Ordering};
use rcu_core::cpu::Slot;

/// Every fifth free loses a page.
pub const LOSES: u8 = 0;
/// What was handed out stays free.
pub const DOUBLES: u8 = 1;
/// Says that whatever it hands out reads as zeroes.
pub const ZEROES: u8 = 2;
/// Blocks start half a block too late.
pub const SHIFTS: u8 = 3;
/// A range that cannot be taken loses its first page.
pub const KEEPS: u8 = 4;
/// Isolating a range leaves some of it.
pub const SKIPS: u8 = 5;
/// What was needed a moment ago counts as idle.
pub const ALL_IDLE: u8 = 6;
/// Free blocks are not shown.
pub const HIDES: u8 = 7;
/// Says that it is contended where it may wait.
pub const CONTENDS: u8 = 8;
/// Offers what reads as zeroes to be given back.
pub const OFFERS_CLEAN: u8 = 9;
/// Miscounts its free pages.
pub const MISCOUNTS: u8 = 10;
/// Needs three bytes more a page.
pub const FAT: u8 = 11;
/// Keeps a page for a slot that went.
pub const CLINGS: u8 = 12;
/// Its types have no blocks.
pub const NO_TYPES: u8 = 13;
/// Does not tell what waits.
pub const SILENT: u8 = 14;

/// `B` with one fault.
#[derive(Debug)]
pub struct Faulty<B, const FAULT: u8> {
    inner: B,
    calls: AtomicUsize,
}

impl<B, const FAULT: u8> Faulty<B, FAULT> {
    /// Whether the fault is this one, and it is time for it again.
    fn every(&self, nr: usize, fault: u8) -> bool {
        // ORDERING: Relaxed: a counter.
        FAULT == fault && (self.calls.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(nr)
    }
}

fn one(run: Run) -> Runs {
    let mut runs = Runs::new();
    if run.first < run.end {
        runs.push(run);
    }
    runs
}

// SAFETY: not so, which is the point; in tests only, whose pages are numbers.
unsafe impl<B: Lower, const FAULT: u8> Lower for Faulty<B, FAULT> {
    type Held<'a>
        = B::Held<'a>
    where
        Self: 'a;

    fn layout(extent: Extent) -> Result<Layout, LayoutError> {
        let layout = B::layout(extent)?;
        let more = if FAULT == FAT { 3 } else { 0 } * extent.pages() as usize;
        Layout::from_size_align(layout.size() + more, layout.align())
    }

    unsafe fn new(ground: Ground) -> Self {
        Self {
            // SAFETY: debt 1 is passed on; there may be more memory than needed.
            inner: unsafe { B::new(ground) },
            calls: AtomicUsize::new(0),
        }
    }

    unsafe fn add(&self, slot: Option<Slot>, run: Run) {
        // SAFETY: debt 1.
        unsafe { self.inner.add(slot, run) };
    }

    fn take(&self, wanted: Wanted, runs: &mut Runs) -> Result<(), AllocError> {
        if wanted.attempt == Attempt::NoWait && self.every(7, CONTENDS) {
            return Err(AllocError::Contended);
        }
        if FAULT == SHIFTS && wanted.order > Order::ZERO && wanted.order < Order::MAX {
            let larger = Wanted {
                order: Order::at(wanted.order.get() + 1),
                nr: 1,
                ..wanted
            };
            let mut whole = Runs::new();
            self.inner.take(larger, &mut whole)?;
            let (run, pages) = (whole[0], wanted.order.pages() as u32);
            let (first, end) = (run.first + pages / 2, run.end - pages / 2);
            let rest = [Run { end: first, ..run }, Run { first: end, ..run }];
            for run in rest {
                // SAFETY: just taken.
                unsafe { self.give(wanted.slot, &one(run), Attempt::NoWait) };
            }
            runs.push(Run { first, end, ..run });
            return Ok(());
        }
        self.inner.take(wanted, runs)?;
        if FAULT == DOUBLES {
            // SAFETY: just taken; that the caller has them too is the fault, and their memory is nobody's.
            unsafe { self.inner.give(wanted.slot, runs, Attempt::NoWait) };
        }
        if FAULT == ZEROES {
            runs.iter_mut().for_each(|run| run.zero = true);
        }
        Ok(())
    }

    unsafe fn take_range(&self, run: Run) -> bool {
        // SAFETY: debt 1.
        let taken = unsafe { self.inner.take_range(run) };
        if !taken && FAULT == KEEPS {
            let end = run.first + 1;
            // SAFETY: a part of it.
            let _ = unsafe { self.inner.take_range(Run { end, ..run }) };
        }
        taken
    }

    unsafe fn give(&self, slot: Option<Slot>, runs: &Runs, attempt: Attempt) {
        let mut runs = runs.clone();
        if self.every(5, LOSES)
            && let Some(run) = runs.first_mut()
            && run.end > run.first + 1
        {
            run.end -= 1;
        }
        // SAFETY: debt 1, of some of them.
        unsafe { self.inner.give(slot, &runs, attempt) };
    }

    unsafe fn take_within(&self, range: Run, from: u32, runs: &mut Runs) -> u32 {
        // SAFETY: debt 1.
        let at = unsafe { self.inner.take_within(range, from, runs) };
        if FAULT == SKIPS
            && let Some(run) = runs.last_mut().filter(|run| run.end > run.first + 1)
        {
            run.end -= 1;
            let (first, end) = (run.end, run.end + 1);
            let left = Run { first, end, ..*run };
            // SAFETY: just taken, and kept from the caller.
            unsafe { self.inner.give(None, &one(left), Attempt::NoWait) };
        }
        at
    }

    fn take_dirty(&self) -> Option<Run> {
        self.inner.take_dirty().map(|run| Run {
            zero: run.zero || FAULT == OFFERS_CLEAN,
            ..run
        })
    }

    fn dirty_pages(&self) -> usize {
        self.inner.dirty_pages()
    }

    fn idle_pages(&self) -> usize {
        if FAULT == ALL_IDLE {
            return self.dirty_pages();
        }
        self.inner.idle_pages()
    }

    fn free_at(&self, page: u32) -> Option<Order> {
        self.inner.free_at(page).filter(|_| FAULT != HIDES)
    }

    fn changes(&self) -> Changes {
        self.inner.changes()
    }

    fn free_pages(&self) -> usize {
        self.inner.free_pages() + usize::from(FAULT == MISCOUNTS)
    }

    fn free_blocks(&self) -> [usize; ORDERS] {
        self.inner.free_blocks()
    }

    fn mobility_of(&self, page: u32) -> Option<Mobility> {
        self.inner.mobility_of(page)
    }

    fn free_blocks_of(&self, mobility: Mobility) -> [usize; ORDERS] {
        if FAULT == NO_TYPES {
            return [0; ORDERS];
        }
        self.inner.free_blocks_of(mobility)
    }

    fn set_fallback(&self, fallback: [Fallback; TYPES]) {
        self.inner.set_fallback(fallback);
    }

    fn waiting(&self) -> Waiting {
        if FAULT == SILENT {
            return Waiting::default();
        }
        self.inner.waiting()
    }

    fn settle(&self) {
        self.inner.settle();
    }

    fn leave(&self, slot: Slot) {
        self.inner.leave(slot);
        if FAULT == CLINGS {
            let wanted = Wanted::new(Order::ZERO, 1, Attempt::NoWait);
            let _ = self.inner.take(wanted, &mut Runs::new());
        }
    }

    fn hold(&self) -> Self::Held<'_> {
        self.inner.hold()
    }
}
