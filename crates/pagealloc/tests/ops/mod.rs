//! Strings of operations over a zone, and what must be true after each: for the properties and for the fuzzer.

use crate::buffer::fixed;
use arbitrary::{Arbitrary, Unstructured};
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use pagealloc::{
    AllocError, Attempt, Failing, Lower, Order, PAGE_SIZE, PageAlloc, PageReq, PageTag, Source,
    Zone,
};
use rcu_core::cpu::{OneCpu, Slot};
use std::collections::{BTreeMap, VecDeque};

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Alloc { req: PageReq },
    AllocBulk { req: PageReq, nr: usize },
    Free { which: usize, attempt: Attempt },
    FreeBulk { order: Order, nr: usize },
    Tag { which: usize, tag: u32 },
    DrainSlot,
    DrainAll,
    Trim,
}

fn order(u: &mut Unstructured<'_>) -> arbitrary::Result<Order> {
    const ORDERS: [u8; 16] = [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 8, 9, 10];
    Ok(Order::new(*u.choose(&ORDERS)?).unwrap())
}

fn attempt(u: &mut Unstructured<'_>) -> arbitrary::Result<Attempt> {
    use Attempt::{MayGrow, NoWait, PcpOnly, TryLock};
    u.choose(&[PcpOnly, TryLock, NoWait, MayGrow]).copied()
}

fn request(u: &mut Unstructured<'_>) -> arbitrary::Result<PageReq> {
    let req = PageReq::new(order(u)?).attempt(attempt(u)?);
    Ok(if u.arbitrary()? { req.zeroed() } else { req })
}

impl<'a> Arbitrary<'a> for Op {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let kind = u.int_in_range(0..=23_u8)?;
        let n = usize::from(u.arbitrary::<u8>()?);
        Ok(match kind {
            0..8 => Self::Alloc { req: request(u)? },
            8..10 => Self::AllocBulk {
                req: request(u)?,
                nr: n,
            },
            10..17 => Self::Free {
                which: n,
                attempt: attempt(u)?,
            },
            17..19 => Self::FreeBulk {
                order: order(u)?,
                nr: n,
            },
            19..21 => Self::Tag {
                which: n,
                tag: u.arbitrary()?,
            },
            21 => Self::DrainSlot,
            22 => Self::DrainAll,
            _ => Self::Trim,
        })
    }
}

/// One string, and the memory that it is run in.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) ops: Vec<Op>,
    pub(crate) pages: usize,
    /// How many pages the source gives at a time.
    pub(crate) step: usize,
    /// The call at which the source fails, and whether it does so from then on.
    pub(crate) failure: Option<(usize, bool)>,
    pub(crate) backwards: bool,
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let pages = u.int_in_range(20..=3000)?;
        let step = u.int_in_range(1..=1500)?;
        let failure = match u.int_in_range(0..=60_u8)? {
            n @ 0..20 => Some((usize::from(n), u.arbitrary()?)),
            _ => None,
        };
        let backwards = u.arbitrary()?;
        let mut ops = Vec::new();
        while !u.is_empty() && ops.len() < 300 {
            ops.push(u.arbitrary()?);
        }
        Ok(Self {
            ops,
            pages,
            step,
            failure,
            backwards,
        })
    }
}

impl Case {
    /// Runs it in `memory` of [`Self::pages`] pages.
    pub(crate) fn play<B: Lower>(&self, memory: &mut [MaybeUninit<u8>]) {
        let source = fixed(memory).in_steps(self.step);
        let source = match self.failure {
            Some((n, true)) => Failing::after(source, n),
            Some((n, false)) => Failing::at(source, n),
            None => Failing::after(source, usize::MAX),
        };
        let mut run = Run::<_, B>::new(source);
        self.ops.iter().for_each(|op| run.step(op));
        run.finish(self.backwards);
    }
}

/// A zone and what should be out of it.
pub(crate) struct Run<S: Source + Send + Sync, B: Lower> {
    pub(crate) zone: Zone<OneCpu, S, B>,
    out: BTreeMap<usize, (NonNull<u8>, Order, u32)>,
}

impl<S: Source + Send + Sync, B: Lower> Run<S, B> {
    pub(crate) fn new(source: S) -> Self {
        // SAFETY: a run stays in one thread.
        let cpu = unsafe { OneCpu::new() };
        Self {
            zone: Zone::with_lower(cpu, source).unwrap(),
            out: BTreeMap::new(),
        }
    }

    fn pages_out(&self) -> usize {
        self.out.values().map(|(_, order, _)| order.pages()).sum()
    }

    /// No overlap, alignment, zeroes; then a mark in the first and the last word.
    pub(crate) fn came(&mut self, block: NonNull<u8>, req: PageReq) {
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

    pub(crate) fn step(&mut self, op: &Op) {
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
    pub(crate) fn finish(mut self, backwards: bool) -> [usize; 11] {
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
