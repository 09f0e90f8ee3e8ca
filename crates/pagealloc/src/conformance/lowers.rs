//! What every [`Lower`] must do, and a lower level beside a model of it, for tests.

pub mod offers;

use crate::api::{AllocError, Attempt, Mobility, Order};
use crate::frames::Metas;
use crate::lower::{Extent, Ground, Lower, ORDERS, Wanted};
use crate::runs::{self, Run, Runs};
use core::cell::UnsafeCell;
use core::ptr::NonNull;
use rcu_core::cpu::Slot;
use std::vec;
use std::vec::Vec;

/// Makes a module of tests that check a type against the guarantees of [`Lower`], and against what it says is the same of all.
///
/// What these tests find is shown by lower levels with one fault each (`conformance::faulty`).
///
/// ```
/// # mod demo {
/// use pagealloc::{Buddies, lower_conformance};
///
/// lower_conformance!(my_lower, Buddies);
/// # }
/// ```
#[macro_export]
macro_rules! lower_conformance {
    ($name:ident, $lower:ty) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            #[test]
            fn blocks_are_aligned_disjoint_and_merge_again() {
                $crate::conformance::lowers::blocks_are_aligned_disjoint_and_merge_again::<$lower>(
                );
            }

            #[test]
            fn holes_are_never_handed_out() {
                $crate::conformance::lowers::holes_are_never_handed_out::<$lower>();
            }

            #[test]
            fn zero_is_true_of_every_page() {
                $crate::conformance::lowers::zero_is_true_of_every_page::<$lower>();
            }

            #[test]
            fn give_waits_for_nobody_below_no_wait() {
                $crate::conformance::lowers::give_waits_for_nobody_below_no_wait::<$lower>();
            }

            #[test]
            fn whole_blocks_are_shown_once() {
                $crate::conformance::lowers::whole_blocks_are_shown_once::<$lower>();
            }

            #[test]
            fn a_range_is_taken_whole_or_not_at_all() {
                $crate::conformance::lowers::a_range_is_taken_whole_or_not_at_all::<$lower>();
            }

            #[test]
            fn threads_never_have_the_same_page() {
                $crate::conformance::lowers::threads_never_have_the_same_page::<$lower>();
            }

            #[test]
            fn regions_come_and_go() {
                $crate::conformance::lowers::offers::regions_come_and_go::<$lower>();
            }

            #[test]
            fn idle_pages_are_those_that_nobody_needed() {
                $crate::conformance::lowers::offers::idle_pages_are_those_that_nobody_needed::<
                    $lower,
                >();
            }

            #[test]
            fn slots_that_leave_keep_nothing() {
                $crate::conformance::lowers::offers::slots_that_leave_keep_nothing::<$lower>();
            }

            #[test]
            fn what_waits_is_counted() {
                $crate::conformance::lowers::offers::what_waits_is_counted::<$lower>();
            }

            #[test]
            fn types_are_kept_by_pageblock_or_not_at_all() {
                $crate::conformance::lowers::offers::types_are_kept_by_pageblock_or_not_at_all::<
                    $lower,
                >();
            }

            #[test]
            fn it_keeps_at_most_two_bytes_a_page() {
                $crate::conformance::lowers::offers::it_keeps_at_most_two_bytes_a_page::<$lower>();
            }

            #[test]
            fn removals_race_with_everything() {
                $crate::conformance::lowers::offers::removals_race_with_everything::<$lower>();
            }
        }
    };
}

/// Slots that a test's lower level is made for.
const SLOTS: u32 = 4;

/// Words of the greatest alignment that a layout asks for here, zeroed.
#[derive(Debug)]
#[repr(align(128))]
struct Piece(#[expect(dead_code, reason = "reached through a pointer only")] [UnsafeCell<u8>; 128]);

fn zeroed(bytes: usize) -> Vec<Piece> {
    let zero = || Piece([const { UnsafeCell::new(0) }; 128]);
    (0..bytes.div_ceil(128).max(1)).map(|_| zero()).collect()
}

/// A lower level with the memory it stands on.
#[derive(Debug)]
pub struct Stand<B> {
    lower: B,
    extent: Extent,
    metas: Metas,
    _memory: Vec<Piece>,
    _metas: Vec<Piece>,
}

// SAFETY: the memory is touched by the lower level only, which is `Send`.
unsafe impl<B: Lower> Send for Stand<B> {}
// SAFETY: as above, and `Sync`.
unsafe impl<B: Lower> Sync for Stand<B> {}

impl<B: Lower> Stand<B> {
    /// An empty one over a span of `pages` pages that begins `bias` pages after an aligned address.
    ///
    /// # Panics
    /// If its layout is refused, or aligned to more than 128 bytes.
    #[must_use]
    pub fn new(pages: u32, bias: u32) -> Self {
        let extent = Extent::new(pages, bias, SLOTS);
        let layout = B::layout(extent).expect("a layout for a small span");
        assert!(layout.align() <= align_of::<Piece>());
        let mut memory = zeroed(layout.size());
        let mut metas = zeroed(Metas::layout(pages as usize).expect("a small span").size());
        let first = NonNull::from_mut(&mut metas[..]).cast();
        // SAFETY: zeroed memory for that many, kept beside the value.
        let pages = unsafe { Metas::new(first, pages) };
        let ground = Ground::new(extent, NonNull::from_mut(&mut memory[..]).cast(), pages);
        Self {
            // SAFETY: zeroed, of the layout, kept beside the value, and nobody else's.
            lower: unsafe { B::new(ground) },
            extent,
            metas: pages,
            _memory: memory,
            _metas: metas,
        }
    }

    /// The lower level.
    pub const fn lower(&self) -> &B {
        &self.lower
    }
}

/// A lower level beside a set of its free pages, for one thread.
#[derive(Debug)]
pub struct Model<B> {
    stand: Stand<B>,
    /// By page: `None` where it is out or was never added, else whether it reads as zeroes.
    free: Vec<Option<bool>>,
    out: Vec<(u32, Order)>,
}

impl<B: Lower> Model<B> {
    /// An empty one.
    #[must_use]
    pub fn new(pages: u32, bias: u32) -> Self {
        Self {
            stand: Stand::new(pages, bias),
            free: vec![None; pages as usize],
            out: Vec::new(),
        }
    }

    /// The lower level.
    pub const fn lower(&self) -> &B {
        &self.stand.lower
    }

    /// Adds pages.
    ///
    /// # Panics
    /// If there are no such pages, or they were added before.
    pub fn add(&mut self, first: u32, end: u32, zero: bool) {
        // Panics where there are no such pages.
        let pages = &mut self.free[first as usize..end as usize];
        assert!(pages.iter().all(Option::is_none), "added twice");
        pages.fill(Some(zero));
        // SAFETY: inside, and not added before.
        unsafe { self.lower().add(None, Run { first, end, zero }) };
    }

    /// The blocks of an order all of whose pages are free.
    fn whole(&self, order: Order) -> impl Iterator<Item = u32> + '_ {
        let pages = order.pages() as u32;
        let bias = self.stand.extent.bias();
        let start = pages.wrapping_sub(bias) % pages;
        let free = move |at: u32| {
            let pages = at as usize..(at + pages) as usize;
            self.free
                .get(pages)
                .is_some_and(|p| p.iter().all(Option::is_some))
        };
        (start..self.free.len() as u32)
            .step_by(pages as usize)
            .filter(move |&at| free(at))
    }

    /// Takes blocks and checks what came; returns how many.
    ///
    /// # Panics
    /// If the lower level breaks a guarantee.
    pub fn take(&mut self, wanted: Wanted) -> usize {
        let order = wanted.order;
        let mut runs = Runs::new();
        let taken = self.lower().take(wanted, &mut runs);
        if let Err(error) = taken {
            assert!(runs.is_empty(), "nothing was taken");
            assert_eq!(error, AllocError::Exhausted, "nobody else is here");
            assert!(
                wanted.attempt == Attempt::MayGrow || self.whole(order).next().is_none(),
                "a free block of {order:?} was missed"
            );
            return 0;
        }
        let before = self.out.len();
        for &Run { first, end, zero } in &runs {
            for page in &mut self.free[first as usize..end as usize] {
                let was_zero = page.take().expect("a page that was free");
                assert!(was_zero || !zero, "not known to be zero");
            }
            assert!((end - first).is_multiple_of(order.pages() as u32));
        }
        for block in runs::blocks(&runs, order) {
            let aligned = block + self.stand.extent.bias();
            assert!(aligned.is_multiple_of(order.pages() as u32), "aligned");
            self.out.push((block, order));
        }
        let got = self.out.len() - before;
        assert!((1..=wanted.nr.min(Runs::CAPACITY)).contains(&got));
        got
    }

    /// Gives blocks back, `nr` of them from the one numbered `which` on.
    pub fn give(&mut self, which: usize, nr: usize, zero: bool, attempt: Attempt) {
        let mut runs = Runs::new();
        for _ in 0..nr.min(Runs::CAPACITY).min(self.out.len()) {
            let (first, order) = self.out.swap_remove(which % self.out.len());
            let end = first + order.pages() as u32;
            self.free[first as usize..end as usize].fill(Some(zero));
            runs.join(Run { first, end, zero });
        }
        let slot = Some(Slot::new(which as u32 % SLOTS));
        // SAFETY: blocks that were out.
        unsafe { self.lower().give(slot, &runs, attempt) };
    }

    /// Gives everything back in pieces of a page to a block, and checks that it merges to what it was at first.
    ///
    /// # Panics
    /// If it does not.
    pub fn finish(mut self) {
        while !self.out.is_empty() {
            self.give(self.out.len() * 5 / 7, 3, false, Attempt::NoWait);
        }
        self.lower().settle();
        self.check();
    }

    /// Conservation, and each page in the largest block that it can be part of.
    ///
    /// # Panics
    /// If it is not so.
    pub fn check(&self) {
        self.lower().settle();
        let free = self.free.iter().flatten().count();
        assert_eq!(self.lower().waiting().pages, 0);
        assert_eq!(self.lower().free_pages(), free);
        let mut larger = 0;
        let mut expected = [0; ORDERS];
        for order in (0..ORDERS).rev().map(Order::at) {
            let nr = self.whole(order).count();
            expected[order.get()] = nr - larger;
            larger = 2 * nr;
        }
        assert_eq!(self.lower().free_blocks(), expected, "merged");
        assert_eq!(self.drawn(), expected, "the picture");
    }

    /// The free blocks that a picture of the zone shows.
    fn drawn(&self) -> [usize; ORDERS] {
        let (mut at, mut drawn) = (0, [0; ORDERS]);
        while at < self.free.len() as u32 {
            let state = self.stand.metas.at(at).state();
            let order = if state.is_free() {
                Some(state.order())
            } else {
                self.lower().free_at(at)
            };
            order.inspect(|order| drawn[order.get()] += 1);
            at += order.map_or(1, |order| order.pages() as u32);
        }
        drawn
    }

    /// A step of a long mix, chosen by `random`.
    pub fn step(&mut self, random: u64) {
        let which = (random >> 24) as usize;
        let attempt = match random >> 4 & 3 {
            0 => Attempt::TryLock,
            1 => Attempt::MayGrow,
            _ => Attempt::NoWait,
        };
        if random & 1 == 0 {
            // Small blocks mostly.
            let order = ((random >> 32) as u32 | 1 << 10).trailing_zeros() as usize;
            let slot = (random >> 6) as u32 % (SLOTS + 1);
            let slot = (slot < SLOTS).then(|| Slot::new(slot));
            let wanted = Wanted::new(Order::at(order), 1 + which % 70, attempt);
            let mobility = Mobility::ALL[(random >> 48) as usize % Mobility::ALL.len()];
            self.take(wanted.mobility(mobility).on(slot));
        } else {
            let attempt = if random & 2 == 0 {
                Attempt::PcpOnly
            } else {
                attempt
            };
            self.give(which, 1 + which % 64, random & 4 == 0, attempt);
        }
    }
}

fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Guarantees 1 and 5.
pub fn blocks_are_aligned_disjoint_and_merge_again<B: Lower>() {
    for (seed, bias) in [(1, 0), (2, 1), (3, 512), (4, 1023)] {
        let mut random = random(seed);
        let mut model = Model::<B>::new(5000, bias);
        model.add(0, 5000, true);
        model.check();
        for _ in 0..if cfg!(miri) { 20 } else { 300 } {
            model.step(random());
        }
        model.check();
        model.finish();
    }
}

/// Guarantee 1, where pages are missing.
pub fn holes_are_never_handed_out<B: Lower>() {
    let mut model = Model::<B>::new(4000, 700);
    for (first, end) in [(3, 64), (65, 1300), (1301, 1302), (2000, 3900)] {
        model.add(first, end, false);
    }
    model.check();
    for order in (0..ORDERS).rev().map(Order::at) {
        while model.take(Wanted::new(order, 64, Attempt::NoWait)) > 0 {}
    }
    assert_eq!(model.lower().free_pages(), 0, "everything is out");
    model.finish();
}

/// Guarantee 1, of `Run::zero`: pages keep what they came with while nobody has them, as far as blocks allow.
pub fn zero_is_true_of_every_page<B: Lower>() {
    let mut model = Model::<B>::new(1024, 0);
    model.add(0, 1024, true);
    let largest = Wanted::new(Order::MAX, 1, Attempt::NoWait);
    let zero = |model: &mut Model<B>| {
        let mut runs = Runs::new();
        model.lower().take(largest, &mut runs).expect("whole");
        let zero = runs[0].zero;
        // SAFETY: just taken.
        unsafe { model.lower().give(None, &runs, Attempt::NoWait) };
        zero
    };
    assert!(zero(&mut model), "fresh memory is not cleared again");
    for order in [0, 3, 6, 7, 9].map(Order::at) {
        model.take(Wanted::new(order, 2, Attempt::NoWait));
        model.give(0, 1, false, Attempt::NoWait);
        model.give(0, 1, true, Attempt::NoWait);
        model.lower().settle();
        assert!(!zero(&mut model), "{order:?}: a part was used");
        let mut runs = Runs::new();
        model.lower().take(largest, &mut runs).expect("whole");
        runs[0].zero = true;
        // SAFETY: just taken.
        unsafe { model.lower().give(None, &runs, Attempt::NoWait) };
        model.free.fill(Some(true));
        assert!(zero(&mut model), "cleared as a whole");
    }
}

/// Guarantees 3 and 4: with every lock held by somebody else for as long as this takes.
pub fn give_waits_for_nobody_below_no_wait<B: Lower>() {
    let mut model = Model::<B>::new(3000, 10);
    model.add(0, 3000, false);
    for order in [0, 0, 2, 5, 8].map(Order::at) {
        model.take(Wanted::new(order, 40, Attempt::NoWait));
    }
    let (mut first, mut second) = (Runs::new(), Runs::new());
    for (i, (block, order)) in model.out.drain(..).enumerate().take(128) {
        let run = Run {
            first: block,
            end: block + order.pages() as u32,
            zero: false,
        };
        model.free[run.first as usize..run.end as usize].fill(Some(false));
        if i % 2 == 0 {
            first.push(run);
        } else {
            second.push(run);
        }
    }
    {
        let lower = &model.stand.lower;
        let _held = lower.hold();
        // SAFETY: taken above.
        unsafe { lower.give(None, &first, Attempt::PcpOnly) };
        // SAFETY: taken above.
        unsafe { lower.give(Some(Slot::new(1)), &second, Attempt::TryLock) };
        let mut runs = Runs::new();
        let wanted = Wanted::new(Order::ZERO, 1, Attempt::TryLock);
        match lower.take(wanted, &mut runs) {
            // SAFETY: just taken.
            Ok(()) => unsafe { lower.give(None, &runs, Attempt::PcpOnly) },
            Err(error) => assert_eq!(error, AllocError::Contended),
        }
    }
    model.check();
}

/// `take_dirty`, `dirty_pages`.
pub fn whole_blocks_are_shown_once<B: Lower>() {
    let mut model = Model::<B>::new(8 * 1024, 0);
    model.add(0, 8 * 1024, false);
    // One block of order 9 out, so that its buddy is one.
    model.take(Wanted::new(Order::at(9), 1, Attempt::NoWait));
    assert_eq!(model.lower().dirty_pages(), 7 * 1024 + 512);
    let mut shown = Vec::new();
    for pages in [1024; 7].into_iter().chain([512]) {
        let run = model.lower().take_dirty().expect("one more");
        assert!(!run.zero);
        assert_eq!(run.end - run.first, pages, "the largest first");
        shown.push(run.first);
        let mut runs = Runs::new();
        runs.push(Run { zero: true, ..run });
        // SAFETY: just taken.
        unsafe { model.lower().give(None, &runs, Attempt::NoWait) };
    }
    assert_eq!(model.lower().take_dirty(), None);
    assert_eq!(model.lower().dirty_pages(), 0);
    shown.sort_unstable();
    shown.dedup();
    assert_eq!(shown.len(), 8, "each once");
    model.free.fill(Some(true));
    let (first, order) = model.out[0];
    model.free[first as usize..first as usize + order.pages()].fill(None);
    model.check();
    model.finish();
}

/// `take_range`.
pub fn a_range_is_taken_whole_or_not_at_all<B: Lower>() {
    let mut random = random(5);
    let mut model = Model::<B>::new(5000, 300);
    model.add(0, 5000, true);
    let mut ranges = 0;
    for round in 0..if cfg!(miri) { 5 } else { 200 } {
        let first = random() as u32 % 5000;
        let end = (first + 1 + random() as u32 % [5, 70, 700, 3000][round % 4]).min(5000);
        let pages = first as usize..end as usize;
        let run = Run {
            first,
            end,
            zero: false,
        };
        model.lower().settle();
        let is_free = model.free[pages.clone()].iter().all(Option::is_some);
        // SAFETY: inside the model's pages.
        let taken = unsafe { model.lower().take_range(run) };
        assert_eq!(taken, is_free, "{run:?}");
        ranges += usize::from(is_free);
        if is_free {
            model.free[pages.clone()].fill(None);
            model.check();
            let mut runs = Runs::new();
            runs.push(run);
            // SAFETY: just taken.
            unsafe { model.lower().give(None, &runs, Attempt::NoWait) };
            model.free[pages].fill(Some(false));
        }
        model.check();
        (0..3).for_each(|_| model.step(random()));
    }
    assert!(
        (10..190).contains(&ranges) || cfg!(miri),
        "{ranges}: both happen"
    );
    model.finish();
}

/// Contents of pages, which race where two threads have one, or one without the other's accesses.
#[derive(Debug)]
struct Contents(Vec<UnsafeCell<u64>>);

// SAFETY: each belongs to the page's owner, which is what is tested.
unsafe impl Sync for Contents {}

impl Contents {
    fn swap(&self, page: u32, expected: u64, new: u64) {
        let value = self.0[page as usize].get();
        // SAFETY: the page is the caller's.
        let before = unsafe { value.read() };
        assert_eq!(before, expected, "page {page} has another owner");
        // SAFETY: as above.
        unsafe { value.write(new) };
    }
}

/// Guarantees 1, 2 and 5 with several threads.
pub fn threads_never_have_the_same_page<B: Lower>() {
    const PAGES: u32 = 6000;
    let stand = &Stand::<B>::new(PAGES, 100);
    let whole = Run {
        first: 0,
        end: PAGES,
        zero: false,
    };
    // SAFETY: all its pages, for the first time.
    unsafe { stand.lower.add(None, whole) };
    let fresh = stand.lower.free_blocks();
    let contents = &Contents((0..PAGES).map(|_| UnsafeCell::new(0)).collect());
    std::thread::scope(|scope| {
        for me in 1..=u64::from(SLOTS) {
            scope.spawn(move || {
                let slot = Some(Slot::new(me as u32 - 1));
                let mut random = random(me);
                let mut out: Vec<Run> = Vec::new();
                let mut steps = if cfg!(miri) { 30 } else { 3000 };
                while steps > 0 || !out.is_empty() {
                    let random = random();
                    let mut runs = Runs::new();
                    if steps > 0 && random & 1 == 0 && out.len() < 300 {
                        let order = ((random >> 32) as u32 | 1 << 10).trailing_zeros() as usize;
                        let nr = 1 + (random >> 20) as usize % 64;
                        let attempt = [Attempt::TryLock, Attempt::NoWait][random as usize >> 1 & 1];
                        let wanted = Wanted::new(Order::at(order), nr, attempt).on(slot);
                        if stand.lower.take(wanted, &mut runs).is_ok() {
                            let pages = runs.iter().flat_map(|run| run.first..run.end);
                            pages.for_each(|page| contents.swap(page, 0, me));
                            out.extend(runs.iter());
                        }
                    } else if !out.is_empty() {
                        for _ in 0..out.len().min(1 + random as usize % 20) {
                            let run = out.swap_remove((random >> 8) as usize % out.len());
                            (run.first..run.end).for_each(|page| contents.swap(page, me, 0));
                            runs.join(run);
                        }
                        let attempt = [Attempt::PcpOnly, Attempt::TryLock, Attempt::NoWait]
                            [(random >> 4) as usize % 3];
                        // SAFETY: this thread's.
                        unsafe { stand.lower.give(slot, &runs, attempt) };
                    }
                    steps -= usize::from(steps > 0);
                }
                stand.lower.leave(Slot::new(me as u32 - 1));
            });
        }
    });
    stand.lower.settle();
    assert_eq!(stand.lower.free_pages(), PAGES as usize);
    assert_eq!(stand.lower.free_blocks(), fresh, "merged");
}
