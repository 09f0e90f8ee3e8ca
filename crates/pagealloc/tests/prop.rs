//! Operation strings against a dull model: the set of blocks that are out.

#![cfg(not(loom))]

mod buffer;
mod cases;
#[macro_use]
mod each;
mod ops;

use arbitrary::{Arbitrary, Unstructured};
use buffer::{fixed, written};
use cases::{cases, dear};
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use ops::{Case, Op};
use pagealloc::{
    Attempt, Failing, Order, PAGE_SIZE, PageAlloc, PageReq, Range, Source, SourceError, Span, Zone,
};
use proptest::prelude::*;
use std::alloc::Layout;
use std::sync::Mutex;

over_each_lower! {

type Run<S> = ops::Run<S, Lower>;

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![8 => 0..4_u8, 2 => 4..9_u8, 1 => 9..11_u8].prop_map(|o| Order::new(o).unwrap())
}

fn attempt() -> impl Strategy<Value = Attempt> {
    use Attempt::{MayGrow, NoWait, PcpOnly, TryLock};
    prop_oneof![Just(PcpOnly), Just(TryLock), Just(NoWait), Just(MayGrow)]
}

fn req() -> impl Strategy<Value = PageReq> {
    (order(), attempt(), any::<bool>()).prop_map(|(order, attempt, zero)| {
        let req = PageReq::new(order).attempt(attempt);
        if zero { req.zeroed() } else { req }
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => req().prop_map(|req| Op::Alloc { req }),
        2 => (req(), 0..200_usize).prop_map(|(req, nr)| Op::AllocBulk { req, nr }),
        7 => (any::<usize>(), attempt()).prop_map(|(which, attempt)| Op::Free { which, attempt }),
        2 => (order(), 0..200_usize).prop_map(|(order, nr)| Op::FreeBulk { order, nr }),
        2 => (any::<usize>(), any::<u32>()).prop_map(|(which, tag)| Op::Tag { which, tag }),
        1 => Just(Op::DrainSlot),
        1 => Just(Op::DrainAll),
        1 => Just(Op::Trim),
    ]
}

fn memory(pages: usize) -> Vec<MaybeUninit<u8>> {
    written(pages * PAGE_SIZE)
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn p1_pages_are_conserved_and_merge_fully(
        ops in prop::collection::vec(op(), 1..120),
        pages in 20..4000_usize,
        backwards in any::<bool>(),
    ) {
        let mut memory = memory(pages);
        let untouched = Run::new(fixed(&mut memory)).zone.stats().free_blocks;
        let mut run = Run::new(fixed(&mut memory));
        ops.iter().for_each(|op| run.step(op));
        // Free pages lie as if nothing had ever happened, whatever the order of the frees.
        prop_assert_eq!(run.finish(backwards), untouched);
    }
}

#[test]
fn p1_growing_in_steps_is_the_same_as_at_once() {
    dear(24, (prop::collection::vec(op(), 1..60), 1..700_usize), |(ops, step)| {
        let mut memory = memory(2500);
        let whole = Run::new(fixed(&mut memory)).finish(false);
        let mut run = Run::new(fixed(&mut memory).in_steps(step));
        ops.iter().for_each(|op| run.step(op));
        // Whatever the source still has, and more than it has.
        while run.zone.alloc(PageReq::new(Order::ZERO)).map(|block| run.came(block, PageReq::new(Order::ZERO))).is_ok() {}
        prop_assert_eq!(run.finish(true), whole);
        Ok(())
    });
}

#[test]
fn a_source_may_fail_at_any_point() {
    dear(12, prop::collection::vec(op(), 1..60), |ops| {
        let mut memory = memory(1600);
        let step = 100;
        for n in 0..18 {
            for forever in [false, true] {
                let source = fixed(&mut memory).in_steps(step);
                let source = if forever { Failing::after(source, n) } else { Failing::at(source, n) };
                let mut run = Run::new(source);
                ops.iter().for_each(|op| run.step(op));
                let source = run.zone.source();
                assert!(source.failures() <= source.calls());
                run.finish(n % 2 == 0);
            }
        }
        Ok(())
    });
}

/// Memory whose ranges come cut and ordered as a list says, until they are out; a range may be of any size.
#[derive(Debug)]
struct Dealt {
    memory: NonNull<u8>,
    pages: usize,
    metadata: Mutex<Option<(NonNull<u8>, Layout)>>,
    /// The next one is the last.
    ranges: Mutex<Vec<Range>>,
}

// SAFETY: pointers to memory that the value owns.
unsafe impl Send for Dealt {}
// SAFETY: as above.
unsafe impl Sync for Dealt {}

impl Dealt {
    fn layout(pages: usize) -> Layout {
        // The alignment decides how blocks lie, so it is the same for all.
        Layout::from_size_align(pages * PAGE_SIZE, Order::MAX.bytes()).unwrap()
    }

    /// Ranges that end where `cuts` say, in the order that `keys` sort them in.
    fn new(pages: usize, cuts: &[usize], keys: &[u32]) -> Self {
        // SAFETY: not empty.
        let memory = unsafe { std::alloc::alloc(Self::layout(pages)) };
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % pages).collect();
        ends.extend([0, pages]);
        ends.sort_unstable();
        ends.dedup();
        let range = |pair: &[usize]| Range {
            first: pair[0],
            pages: pair[1] - pair[0],
            zeroed: false,
        };
        let ranges = ends.windows(2).map(range).enumerate();
        let mut keyed: Vec<_> = ranges.map(|(n, r)| (keys[n % keys.len()], n, r)).collect();
        keyed.sort_unstable_by_key(|&(key, n, _)| (key.rotate_left(n as u32), n));
        Self {
            memory: NonNull::new(memory).unwrap(),
            pages,
            metadata: Mutex::new(None),
            ranges: Mutex::new(keyed.into_iter().map(|(_, _, range)| range).collect()),
        }
    }
}

// SAFETY: 1: one allocation, aligned; 2: zeroed, freed in `drop`; 3: the cuts of the span, each once; 4: the heap stays.
unsafe impl Source for Dealt {
    fn span(&self) -> Span {
        Span {
            base: self.memory,
            pages: self.pages,
        }
    }

    fn metadata(&self, layout: Layout) -> Result<NonNull<u8>, SourceError> {
        // SAFETY: a zone's structures are not empty.
        let memory = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).unwrap();
        *self.metadata.lock().unwrap() = Some((memory, layout));
        Ok(memory)
    }

    fn grow(&self, _min_pages: usize) -> Result<Range, SourceError> {
        let next = self.ranges.lock().unwrap().pop();
        next.ok_or(SourceError::Exhausted)
    }

    fn is_eager(&self) -> bool {
        true
    }
}

impl Drop for Dealt {
    fn drop(&mut self) {
        if let Some((memory, layout)) = self.metadata.lock().unwrap().take() {
            // SAFETY: from `alloc_zeroed` with this layout.
            unsafe { std::alloc::dealloc(memory.as_ptr(), layout) };
        }
        // SAFETY: from `alloc` with this layout.
        unsafe { std::alloc::dealloc(self.memory.as_ptr(), Self::layout(self.pages)) };
    }
}

proptest! {
    #![proptest_config(cases(48))]

    /// Neighbouring regions that are added one by one merge across their borders, whatever comes first.
    #[test]
    fn p1_regions_may_come_in_any_order_and_size(
        pages in 1..6000_usize,
        cuts in prop::collection::vec(any::<usize>(), 0..40),
        keys in prop::collection::vec(any::<u32>(), 1..40),
        ops in prop::collection::vec(op(), 0..40),
    ) {
        let at_once = Run::new(Dealt::new(pages, &[], &[0])).zone.stats().free_blocks;
        let mut run = Run::new(Dealt::new(pages, &cuts, &keys));
        prop_assert_eq!(run.zone.total_pages(), pages);
        prop_assert_eq!(run.zone.stats().free_blocks, at_once);
        ops.iter().for_each(|op| run.step(op));
        prop_assert_eq!(run.finish(false), at_once);
    }
}

proptest! {
    #![proptest_config(cases(48))]

    /// What the fuzzer does, from bytes.
    #[test]
    fn bytes_are_operations_too(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        if let Ok(case) = Case::arbitrary(&mut Unstructured::new(&bytes)) {
            case.play::<Lower>(&mut memory(case.pages));
        }
    }
}

/// What the fuzzer found worth keeping. Nothing is looked for where the crate is alone.
#[test]
fn the_fuzzers_corpus_passes() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/pages");
    let Ok(files) = std::fs::read_dir(corpus) else {
        return;
    };
    let mut played = 0;
    for file in files {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let case = Case::arbitrary(&mut Unstructured::new(&bytes)).unwrap();
        case.play::<Lower>(&mut memory(case.pages));
        played += 1;
    }
    assert!(played > 0);
}

}
