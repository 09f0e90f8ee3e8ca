//! What a zone offers over its lower level, as tests of the latter: regions, memory given back, slots that go, reports, types.

use super::{Contents, Model, SLOTS, Stand, random};
use crate::api::{AllocError, Attempt, Mobility, Order};
use crate::lower::{Changes, Extent, Lower, ORDERS, Wanted};
use crate::mobility::Fallback;
use crate::runs::{Run, Runs};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};
use rcu_core::cpu::Slot;
use std::vec::Vec;

const PAGE: Wanted = Wanted::new(Order::ZERO, 1, Attempt::NoWait);

impl<B: Lower> Model<B> {
    /// Takes what is free in a range, as the removal of a region does.
    fn isolate(&mut self, first: u32, end: u32) -> Vec<Run> {
        let range = Run {
            first,
            end,
            zero: false,
        };
        let (mut at, mut kept) = (first, Vec::new());
        while at < end {
            let mut runs = Runs::new();
            // SAFETY: the callers' ranges lie inside.
            let next = unsafe { self.lower().take_within(range, at, &mut runs) };
            assert!(next > at, "it goes on");
            for &run in &runs {
                assert!(first <= run.first && run.end <= end, "inside of the range");
                for page in &mut self.free[run.first as usize..run.end as usize] {
                    let was_zero = page.take().expect("a page that was free");
                    assert!(was_zero || !run.zero, "not known to be zero");
                }
                kept.push(run);
            }
            at = next;
        }
        let range = &self.free[first as usize..end as usize];
        assert!(
            range.iter().all(Option::is_none),
            "a free page was passed over"
        );
        kept
    }
}

/// `take_within`, and `add` of pages that were there before (guarantee 6).
pub fn regions_come_and_go<B: Lower>() {
    let mut random = random(11);
    let mut model = Model::<B>::new(5000, 300);
    model.add(0, 5000, true);
    let mut removed = Vec::new();
    for round in 0..if cfg!(miri) { 3 } else { 60 } {
        (0..5).for_each(|_| model.step(random()));
        model.lower().settle();
        let first = random() as u32 % 5000;
        let end = (first + 1 + random() as u32 % [40, 900, 3000][round % 3]).min(5000);
        let mut kept = model.isolate(first, end);
        model.check();
        if round % 2 == 1 {
            removed.append(&mut kept);
        }
        // A removal that failed.
        for run in kept {
            let mut runs = Runs::new();
            runs.push(run);
            // SAFETY: just taken.
            unsafe { model.lower().give(None, &runs, Attempt::NoWait) };
            model.free[run.first as usize..run.end as usize].fill(Some(run.zero));
        }
        if round % 4 == 0 {
            for run in removed.drain(..) {
                model.add(run.first, run.end, false);
            }
        }
        model.check();
    }
    for run in removed {
        model.add(run.first, run.end, false);
    }
    model.finish();
}

/// `idle_pages`.
pub fn idle_pages_are_those_that_nobody_needed<B: Lower>() {
    const ALL: usize = 8 * 1024;
    let mut model = Model::<B>::new(ALL as u32, 0);
    model.add(0, ALL as u32, false);
    let need = |model: &mut Model<B>, order: usize, nr: usize| {
        let mut left = nr;
        while left > 0 {
            left -= model.take(Wanted::new(Order::at(order), left, Attempt::NoWait));
        }
        model.give(0, nr, false, Attempt::NoWait);
    };
    model.lower().idle_pages();
    for _ in 0..2 {
        assert_eq!(model.lower().idle_pages(), ALL, "nobody came");
    }
    need(&mut model, 10, 8);
    assert_eq!(model.lower().idle_pages(), 0, "all were needed");
    assert_eq!(model.lower().idle_pages(), ALL);
    need(&mut model, 10, 3);
    assert_eq!(model.lower().idle_pages(), 5 * 1024, "three were");
    model.lower().idle_pages();
    need(&mut model, 0, 1);
    let idle = model.lower().idle_pages();
    assert!((7 * 1024..ALL).contains(&idle), "a page of one was: {idle}");
    while let Some(run) = model.lower().take_dirty() {
        let mut runs = Runs::new();
        runs.push(Run { zero: true, ..run });
        // SAFETY: just taken, of memory that is not there and so reads as it likes.
        unsafe { model.lower().give(None, &runs, Attempt::NoWait) };
    }
    let idle = [(); 2].map(|()| model.lower().idle_pages());
    assert_eq!(idle[1], 0, "what has no memory is not idle");
}

/// `leave`, and that what is kept apart for one is found by another before anybody is told that there is nothing.
pub fn slots_that_leave_keep_nothing<B: Lower>() {
    let mut model = Model::<B>::new(6000, 77);
    model.add(0, 6000, false);
    for round in 0..3 {
        for slot in (0..SLOTS).map(Slot::new) {
            for attempt in [Attempt::MayGrow, Attempt::NoWait] {
                let wanted = Wanted::new(Order::ZERO, 40, attempt);
                model.take(wanted.on(Some(slot)));
            }
            model.give(round, 30, false, Attempt::NoWait);
            if round != 1 {
                model.lower().leave(slot);
            }
        }
        model.check();
        for attempt in [Attempt::TryLock, Attempt::NoWait] {
            let all = Wanted::new(Order::ZERO, 64, attempt).on(Some(Slot::new(0)));
            while model.take(all) > 0 {}
        }
        assert_eq!(model.lower().free_pages(), 0, "everything is out");
        while !model.out.is_empty() {
            model.give(0, 64, false, Attempt::NoWait);
        }
    }
    model.finish();
}

/// `waiting`, `changes`, `free_pages`: what watermarks and statistics rest on.
pub fn what_waits_is_counted<B: Lower>() {
    let mut model = Model::<B>::new(3000, 10);
    model.add(0, 3000, false);
    let mut last = Changes::default();
    for round in 0..if cfg!(miri) { 2 } else { 20 } {
        while model.out.len() < 300 {
            model.take(Wanted::new(Order::at(round % 3), 50, Attempt::NoWait));
        }
        let ever = model.lower().waiting().blocks_ever;
        let free = model.lower().free_pages();
        let mut runs = Runs::new();
        for (first, order) in model.out.drain(..60) {
            let end = first + order.pages() as u32;
            model.free[first as usize..end as usize].fill(Some(false));
            runs.push(Run {
                first,
                end,
                zero: false,
            });
        }
        let given: u32 = runs.iter().map(|run| run.end - run.first).sum();
        {
            let lower = &model.stand.lower;
            let _held = lower.hold();
            // SAFETY: blocks that were out.
            unsafe { lower.give(None, &runs, Attempt::PcpOnly) };
            let waiting = lower.waiting();
            let all = lower.free_pages() + waiting.pages;
            assert_eq!(all, free + given as usize, "what waits is free, too");
            assert!(waiting.peak_pages >= waiting.pages);
            assert!(waiting.pages == 0 || waiting.blocks_ever > ever);
        }
        model.check();
        let now = model.lower().changes();
        let risen = |a: [u64; ORDERS], b: [u64; ORDERS]| a.iter().zip(b).all(|(a, b)| *a <= b);
        assert!(risen(last.splits, now.splits) && risen(last.merges, now.merges));
        assert!(last.waits <= now.waits);
        last = now;
    }
    model.finish();
}

/// `mobility_of`, `free_blocks_of`, `set_fallback`.
pub fn types_are_kept_by_pageblock_or_not_at_all<B: Lower>() {
    const PAGES: u32 = 8 * 1024;
    let mut model = Model::<B>::new(PAGES, 0);
    model.add(0, PAGES, false);
    let kept = model.lower().mobility_of(0).is_some();
    // Safe code may ask about any number.
    for page in [PAGES, u32::MAX] {
        assert_eq!(model.lower().mobility_of(page), None, "no such page");
        assert_eq!(model.lower().free_at(page), None, "no such page");
    }
    for round in 0..3 {
        for mobility in Mobility::ALL {
            for order in [0, 3, 9] {
                model.take(Wanted::new(Order::at(order), 3, Attempt::NoWait).mobility(mobility));
            }
        }
        let types: Vec<_> = (0..PAGES)
            .map(|page| model.lower().mobility_of(page))
            .collect();
        assert!(types.iter().all(|of| of.is_some() == kept));
        let all = model.lower().free_blocks();
        let by_type = Mobility::ALL.map(|of| model.lower().free_blocks_of(of));
        for order in 0..ORDERS {
            if kept {
                let sum: usize = by_type.iter().map(|blocks| blocks[order]).sum();
                assert_eq!(sum, all[order], "each block has one type");
            } else {
                assert!(by_type.iter().all(|blocks| blocks[order] == all[order]));
            }
        }
        model.give(round, 5, false, Attempt::NoWait);
    }
    model
        .lower()
        .set_fallback([(); Mobility::ALL.len()].map(|()| Fallback::never()));
    for mobility in Mobility::ALL {
        let there = model.lower().free_blocks_of(mobility) != [0; ORDERS];
        let mut runs = Runs::new();
        let taken = model.lower().take(PAGE.mobility(mobility), &mut runs);
        if there {
            let page = runs.first().expect("a free page of the type").first;
            let of = model.lower().mobility_of(page);
            assert!(!kept || of == Some(mobility), "of its own type");
            // SAFETY: just taken.
            unsafe { model.lower().give(None, &runs, Attempt::NoWait) };
        } else {
            assert_eq!(taken, Err(AllocError::Exhausted), "nothing to steal");
        }
    }
    model.check();
}

/// `layout`: with what the zone keeps about each page, at most 16 bytes of it.
pub fn it_keeps_at_most_two_bytes_a_page<B: Lower>() {
    let size = |pages: u32, slots| {
        let layout = B::layout(Extent::new(pages, 0, slots));
        layout.expect("a layout for this many pages").size()
    };
    for slots in [1, 64] {
        for pages in (14..28).map(|log2| 1 << log2) {
            let more = size(2 * pages, slots) - size(pages, slots);
            assert!(more <= 2 * pages as usize, "{more} bytes for {pages} pages");
        }
    }
}

/// Ends the other threads, however this one ends.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        // ORDERING: Relaxed: only ends loops.
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Removals, memory given back, and looks, while others take and give (guarantees 1, 2, 5 and 6).
pub fn removals_race_with_everything<B: Lower>() {
    const PAGES: u32 = 4 * 1024;
    let stand = &Stand::<B>::new(PAGES, 0);
    let whole = Run {
        first: 0,
        end: PAGES,
        zero: false,
    };
    // SAFETY: all its pages, for the first time.
    unsafe { stand.lower.add(None, whole) };
    let fresh = stand.lower.free_blocks();
    let contents = &Contents((0..PAGES).map(|_| UnsafeCell::new(0)).collect());
    let have = |run: Run, me: u64| (run.first..run.end).for_each(|page| contents.swap(page, 0, me));
    let back = move |run: Run, me: u64, zero: bool| {
        (run.first..run.end).for_each(|page| contents.swap(page, me, 0));
        let mut runs = Runs::new();
        runs.push(Run { zero, ..run });
        // SAFETY: the callers took them.
        unsafe { stand.lower.give(None, &runs, Attempt::NoWait) };
    };
    let steps = if cfg!(miri) { 20 } else { 1000 };
    let busy = &AtomicUsize::new(2);
    std::thread::scope(|scope| {
        for me in 1..=2 {
            scope.spawn(move || {
                let _done = Done(busy);
                let (slot, mut random) = (Some(Slot::new(me as u32)), random(me));
                let mut out: Vec<Run> = Vec::new();
                for _ in 0..steps {
                    let random = random();
                    let order = ((random >> 32) as u32 | 1 << 10).trailing_zeros() as usize;
                    let nr = 1 + (random >> 20) as usize % 30;
                    let wanted = Wanted::new(Order::at(order), nr, Attempt::NoWait).on(slot);
                    let mut runs = Runs::new();
                    if stand.lower.take(wanted, &mut runs).is_ok() {
                        runs.iter().for_each(|&run| have(run, me));
                        out.extend(runs.iter());
                    }
                    while out.len() > 40 {
                        let which = (random >> 8) as usize % out.len();
                        back(out.swap_remove(which), me, false);
                    }
                }
                out.into_iter().for_each(|run| back(run, me, false));
            });
        }
        scope.spawn(move || {
            // ORDERING: Relaxed: only ends the loop.
            while busy.load(Ordering::Relaxed) > 0 {
                // What moves from one part of the lower level to another meanwhile may be counted in each.
                let most = (PAGES * SLOTS) as usize;
                assert!(stand.lower.dirty_pages() <= most);
                assert!(stand.lower.idle_pages() <= most);
                stand.lower.free_blocks();
                stand.lower.free_at(1024);
                if let Some(run) = stand.lower.take_dirty() {
                    have(run, 8);
                    back(run, 8, true);
                }
                std::thread::yield_now();
            }
        });
        let mut random = random(9);
        // ORDERING: Relaxed: only ends the loop.
        while busy.load(Ordering::Relaxed) > 0 {
            let first = random() as u32 % PAGES;
            let end = PAGES.min(first + 1 + random() as u32 % 1500);
            let range = Run {
                first,
                end,
                zero: false,
            };
            let (mut at, mut kept) = (first, Vec::new());
            while at < end {
                let mut runs = Runs::new();
                // SAFETY: inside.
                at = unsafe { stand.lower.take_within(range, at, &mut runs) };
                runs.iter().for_each(|&run| have(run, 9));
                kept.extend(runs.iter());
            }
            kept.into_iter().for_each(|run| back(run, 9, false));
        }
    });
    stand.lower.settle();
    assert_eq!(stand.lower.free_pages(), PAGES as usize);
    assert_eq!(stand.lower.free_blocks(), fresh, "merged");
}
