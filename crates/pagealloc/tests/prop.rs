//! Operation strings against a dull model: the set of blocks that are out.

#![cfg(not(loom))]

mod buffer;
#[macro_use]
mod each;

use buffer::{fixed, written};
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use pagealloc::{
    AllocError, Attempt, Failing, Order, PAGE_SIZE, PageAlloc, PageReq, PageTag, Range, Source,
    SourceError, Span, Zone,
};
use proptest::prelude::*;
use rcu_core::cpu::{OneCpu, Slot};
use std::alloc::Layout;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

over_each_lower! {

#[derive(Clone, Debug)]
enum Op {
    Alloc { req: PageReq },
    AllocBulk { req: PageReq, nr: usize },
    Free { which: usize, attempt: Attempt },
    FreeBulk { order: Order, nr: usize },
    Tag { which: usize, tag: u32 },
    DrainSlot,
    DrainAll,
    Trim,
}

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

/// A zone and what should be out of it.
struct Run<S: Source + Send + Sync> {
    zone: Zone<OneCpu, S>,
    out: BTreeMap<usize, (NonNull<u8>, Order, u32)>,
}

impl<S: Source + Send + Sync> Run<S> {
    fn new(source: S) -> Self {
        // SAFETY: a run stays in one thread.
        let cpu = unsafe { OneCpu::new() };
        Self {
            zone: Zone::new(cpu, source).unwrap(),
            out: BTreeMap::new(),
        }
    }

    fn pages_out(&self) -> usize {
        self.out.values().map(|(_, order, _)| order.pages()).sum()
    }

    /// No overlap, alignment, zeroes; then a mark in the first and the last word.
    fn came(&mut self, block: NonNull<u8>, req: PageReq) {
        let (start, size) = (block.addr().get(), req.order.bytes());
        assert_eq!(start % size, 0);
        let span = self.zone.span();
        let offset = start - span.base.addr().get();
        assert!(offset + size <= span.pages * PAGE_SIZE);
        if let Some((below, (_, order, _))) = self.out.range(..=start).next_back() {
            assert!(below + order.bytes() <= start);
        }
        if let Some((above, _)) = self.out.range(start..).next() {
            assert!(start + size <= *above);
        }
        if req.zero {
            // SAFETY: the block is ours, `size` bytes, zeroed.
            let bytes = unsafe { core::slice::from_raw_parts(block.as_ptr(), size) };
            assert!(
                bytes
                    .iter()
                    .step_by(509)
                    .chain(bytes.last())
                    .all(|&b| b == 0)
            );
        }
        for word in Self::words(block, req.order) {
            // SAFETY: inside the block.
            unsafe { word.write(start) };
        }
        self.out.insert(start, (block, req.order, 0));
    }

    fn words(block: NonNull<u8>, order: Order) -> [*mut usize; 2] {
        let block = block.as_ptr();
        [0, order.bytes() - size_of::<usize>()].map(|at| block.wrapping_add(at).cast())
    }

    /// Takes a block out of the model, its mark unharmed.
    fn going(&mut self, start: usize) -> (NonNull<u8>, Order) {
        let (block, order, tag) = self.out.remove(&start).unwrap();
        for word in Self::words(block, order) {
            // SAFETY: inside the block, written when it came.
            assert_eq!(unsafe { word.read() }, start);
        }
        assert_eq!(self.zone.order_of(block.as_ptr()), Some(order));
        let last = block.as_ptr().wrapping_add(order.bytes() - 1);
        assert_eq!(self.zone.tag(last).unwrap().tag, tag);
        (block, order)
    }

    fn pick(&self, which: usize) -> Option<usize> {
        let nr = self.out.len();
        (nr > 0).then(|| *self.out.keys().nth(which % nr).unwrap())
    }

    fn free(&mut self, start: usize, attempt: Attempt) {
        let (block, order) = self.going(start);
        // SAFETY: the block came from the zone with this order.
        unsafe { self.zone.free_at(block, order, attempt) };
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Alloc { req } => match self.zone.alloc(req) {
                Ok(block) => self.came(block, req),
                Err(error) => self.refused(req, error),
            },
            Op::AllocBulk { req, nr } => {
                let mut places = vec![MaybeUninit::uninit(); nr];
                let got = self.zone.alloc_bulk(req, &mut places);
                assert!(got <= nr);
                for place in &places[..got] {
                    // SAFETY: filled from the front.
                    self.came(unsafe { place.assume_init() }, req);
                }
            }
            Op::Free { which, attempt } => {
                if let Some(start) = self.pick(which) {
                    self.free(start, attempt);
                }
            }
            Op::FreeBulk { order, nr } => {
                let starts: Vec<usize> = self
                    .out
                    .iter()
                    .filter_map(|(&start, (_, o, _))| (*o == order).then_some(start))
                    .take(nr)
                    .collect();
                let blocks: Vec<_> = starts.into_iter().map(|s| self.going(s).0).collect();
                // SAFETY: the blocks came from the zone with this order.
                unsafe { self.zone.free_bulk(&blocks, order) };
            }
            Op::Tag { which, tag } => {
                if let Some(start) = self.pick(which) {
                    let entry = self.out.get_mut(&start).unwrap();
                    entry.2 = tag;
                    let owner = core::ptr::without_provenance_mut(start);
                    // SAFETY: the block is out.
                    unsafe { self.zone.set_tag(entry.0, entry.1, PageTag { owner, tag }) };
                }
            }
            Op::DrainSlot => {
                self.zone.drain_slot(Slot::new(0));
                assert_eq!(self.zone.stats().list_pages, 0);
            }
            Op::DrainAll => {
                self.zone.drain_all();
                let stats = self.zone.stats();
                assert_eq!((stats.list_pages, stats.stash_pages), (0, 0));
            }
            Op::Trim => {
                self.zone.trim();
            }
        }
        // Conservation.
        assert_eq!(self.zone.nr_allocated(), self.pages_out());
    }

    fn refused(&self, req: PageReq, error: AllocError) {
        match (req.attempt, error) {
            (Attempt::PcpOnly, AllocError::Empty) => {}
            (Attempt::TryLock | Attempt::NoWait, AllocError::Exhausted) => {}
            // Then there really is no page anywhere.
            (Attempt::MayGrow, AllocError::OutOfMemory) if req.order == Order::ZERO => {
                assert_eq!(self.zone.total_pages(), self.pages_out());
            }
            (Attempt::MayGrow, AllocError::OutOfMemory) => {}
            _ => panic!("{error:?} for {req:?}"),
        }
    }

    /// Frees everything, every other block from the back, and returns how the free pages lie.
    fn finish(mut self, backwards: bool) -> [usize; 11] {
        // Looked up once: to search the map for the n-th block each time took longer than the frees.
        let mut starts: VecDeque<usize> = self.out.keys().copied().collect();
        let last = |starts: &mut VecDeque<usize>| match backwards {
            true => starts.pop_back(),
            false => starts.pop_front(),
        };
        while let Some(start) = last(&mut starts) {
            self.free(start, Attempt::NoWait);
            if let Some(start) = starts.remove(starts.len() / 2) {
                self.free(start, Attempt::PcpOnly);
            }
        }
        assert!(self.out.is_empty());
        self.zone.drain_all();
        let stats = self.zone.stats();
        assert_eq!(stats.nr_allocated(), 0);
        assert_eq!(stats.free_pages, stats.total_pages);
        stats.free_blocks
    }
}

fn memory(pages: usize) -> Vec<MaybeUninit<u8>> {
    written(pages * PAGE_SIZE)
}

fn cases(n: u32) -> ProptestConfig {
    ProptestConfig {
        cases: n,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(96))]

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

    #[test]
    fn p1_growing_in_steps_is_the_same_as_at_once(
        ops in prop::collection::vec(op(), 1..60),
        step in 1..700_usize,
    ) {
        let mut memory = memory(2500);
        let whole = Run::new(fixed(&mut memory)).finish(false);
        let mut run = Run::new(fixed(&mut memory).in_steps(step));
        ops.iter().for_each(|op| run.step(op));
        // Whatever the source still has, and more than it has.
        while run.zone.alloc(PageReq::new(Order::ZERO)).map(|block| run.came(block, PageReq::new(Order::ZERO))).is_ok() {}
        prop_assert_eq!(run.finish(true), whole);
    }
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn a_source_may_fail_at_any_point(ops in prop::collection::vec(op(), 1..60)) {
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
    }
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

}
