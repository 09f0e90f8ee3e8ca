//! Regions added and removed while the zone is in use: by example, against a model, and from several threads.

#![cfg(not(loom))]

mod buffer;
mod cases;
#[macro_use]
mod each;

use buffer::{fixed, written};
use cases::cases;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use pagealloc::{
    Attempt, Fixed, MemoryMap, Order, PAGE_SIZE, PageAlloc, PageReq, Range, RegionError, Source,
    SourceError, Zone, ZoneError,
};
use proptest::prelude::*;
use rcu_core::cpu::OneCpu;
use std::collections::{BTreeMap, BTreeSet};

over_each_lower! {

const PAGE: PageReq = PageReq::new(Order::ZERO);

fn cpu() -> OneCpu {
    // SAFETY: each test uses its zone in its own thread only.
    unsafe { OneCpu::new() }
}

fn memory(pages: usize) -> Vec<MaybeUninit<u8>> {
    written((pages + 1) * PAGE_SIZE)
}

/// The first page boundary.
fn base(memory: &mut [MaybeUninit<u8>]) -> NonNull<u8> {
    let start = NonNull::from_mut(memory).cast::<u8>();
    // SAFETY: less than a page, of which there is one more than needed.
    unsafe { start.add(start.align_offset(PAGE_SIZE)) }
}

const fn range(first: usize, pages: usize) -> Range {
    Range {
        first,
        pages,
        zeroed: false,
    }
}

fn page_number(zone: &Zone<OneCpu, impl Source>, block: NonNull<u8>) -> usize {
    (block.addr().get() - zone.span().base.addr().get()) / PAGE_SIZE
}

fn regions(zone: &Zone<OneCpu, impl Source>) -> Vec<(usize, usize)> {
    zone.regions().map(|r| (r.first, r.pages)).collect()
}

/// Everything there is, as pages.
fn take_all(zone: &Zone<OneCpu, impl Source + Send + Sync>) -> Vec<NonNull<u8>> {
    core::iter::from_fn(|| zone.alloc(PAGE).ok()).collect()
}

fn free_all(zone: &Zone<OneCpu, impl Source + Send + Sync>, pages: Vec<NonNull<u8>>) {
    for page in pages {
        // SAFETY: the page is out.
        unsafe { zone.free(page, Order::ZERO) };
    }
}

#[test]
fn a_memory_map_with_holes_is_one_zone() {
    let mut memory = memory(1000);
    let mut map = MemoryMap::<4>::new(base(&mut memory)).unwrap();
    for (first, pages) in [(500, 400), (10, 90), (101, 99)] {
        // SAFETY: inside the memory, disjoint, used through the map only.
        unsafe { map.add(first * PAGE_SIZE, pages * PAGE_SIZE) }.unwrap();
    }
    let zone = Zone::new(cpu(), map).unwrap();
    assert_eq!(zone.span().pages, 890);
    let regions = regions(&zone);
    assert_eq!(&regions[..2], [(0, 90), (91, 99)]);
    // The zone's own structures are cut off the largest region.
    let (first, pages) = regions[2];
    assert_eq!(first + pages, 890);
    assert!(first > 490 && pages > 380, "{regions:?}");
    let out = take_all(&zone);
    assert_eq!(out.len(), 90 + 99 + pages);
    assert_eq!(zone.total_pages(), out.len());
    for page in &out {
        let number = page_number(&zone, *page);
        assert!(
            regions
                .iter()
                .any(|(first, pages)| (*first..first + pages).contains(&number))
        );
        // SAFETY: ours.
        unsafe { page.write_bytes(1, PAGE_SIZE) };
    }
    free_all(&zone, out);
    zone.drain_all();
    // Nothing merges across a hole of one page, whatever the alignment.
    assert_eq!(zone.free_pages(), zone.total_pages());
}

#[test]
fn metadata_may_lie_elsewhere_and_regions_may_come_later() {
    let mut memory = memory(600);
    let start = base(&mut memory);
    // SAFETY: the last 100 pages of the memory.
    let apart = unsafe { start.add(500 * PAGE_SIZE) };
    // SAFETY: as above.
    unsafe { apart.write_bytes(0, 100 * PAGE_SIZE) };
    let new = |bytes| {
        let mut map = MemoryMap::<2>::new(start).unwrap();
        // SAFETY: inside the memory, used through the map only.
        unsafe { map.add(0, 10 * PAGE_SIZE) }.unwrap();
        // SAFETY: as above.
        unsafe { map.reserve(400 * PAGE_SIZE, 100 * PAGE_SIZE) }.unwrap();
        // SAFETY: zeroed, in no region, used by nobody else.
        unsafe { map.metadata_at(apart, bytes) };
        map
    };
    let refused = Zone::new(cpu(), new(8000 - 1)).unwrap_err();
    assert!(
        matches!(refused, ZoneError::Source(SourceError::TooSmall { needed }) if needed > 8000)
    );
    // SAFETY: as above.
    unsafe { apart.write_bytes(0, 100 * PAGE_SIZE) };
    let zone = Zone::new(cpu(), new(100 * PAGE_SIZE)).unwrap();
    assert_eq!(zone.total_pages(), 10, "no page is lost");
    // SAFETY: memory that nobody uses.
    unsafe { zone.add_region(range(450, 50)) }.unwrap();
    assert_eq!(regions(&zone), [(0, 10), (450, 50)]);
    let out = take_all(&zone);
    assert_eq!(out.len(), 60);
    free_all(&zone, out);
    zone.remove_region(range(450, 50)).unwrap();
    assert_eq!((zone.total_pages(), regions(&zone)), (10, vec![(0, 10)]));
}

#[test]
fn bad_regions_are_told_apart_and_change_nothing() {
    let mut memory = memory(600);
    let zone = Zone::new(cpu(), fixed(&mut memory)).unwrap();
    let pages = zone.span().pages;
    let own = pages - zone.total_pages();
    let before = (regions(&zone), zone.stats());
    let cases = [
        (range(0, 0), RegionError::Empty),
        (range(usize::MAX, 2), RegionError::Overflow),
        (range(pages, 1), RegionError::Outside),
        (range(pages - 1, 2), RegionError::Outside),
        (range(1 << 40, 1), RegionError::Outside),
    ];
    for (bad, error) in cases {
        assert_eq!(zone.remove_region(bad), Err(error));
        // SAFETY: it is refused.
        assert_eq!(unsafe { zone.add_region(bad) }, Err(error));
    }
    for there in [range(own, 1), range(own - 1, 2), range(pages - 1, 1)] {
        // SAFETY: as above.
        assert_eq!(unsafe { zone.add_region(there) }, Err(RegionError::Overlap));
    }
    for missing in [range(0, 1), range(own - 1, 2), range(0, pages)] {
        assert_eq!(zone.remove_region(missing), Err(RegionError::Missing));
    }
    // The zone's own structures are no memory to be added.
    // SAFETY: it is refused.
    let own = unsafe { zone.add_region(range(0, own)) };
    assert_eq!(own, Err(RegionError::Source(SourceError::Outside)));
    assert_eq!((regions(&zone), zone.stats()), before);
}

#[test]
fn a_region_is_busy_while_pages_are_out_and_names_the_first() {
    let mut memory = memory(3000);
    let zone = Zone::new(cpu(), fixed(&mut memory)).unwrap();
    let fresh = zone.stats().free_blocks;
    let mut out = take_all(&zone);
    out.sort_unstable();
    // Of the pages 1000 to 2000: 1500 and 1700 stay out, 1600 lies on a list, 1601 in the stash.
    let stay = [1500, 1700];
    let all = out.len();
    for page in out {
        let number = page_number(&zone, page);
        if stay.contains(&number) {
            continue;
        }
        let attempt = if number == 1601 {
            Attempt::PcpOnly
        } else {
            Attempt::NoWait
        };
        // SAFETY: the page is out.
        unsafe { zone.free_at(page, Order::ZERO, attempt) };
    }
    let region = range(1000, 1000);
    // SAFETY: inside the span.
    let page = |number: usize| unsafe { zone.span().base.add(number * PAGE_SIZE) };
    for number in stay {
        let Err(RegionError::Busy(busy)) = zone.remove_region(region) else {
            panic!("pages are out");
        };
        assert_eq!(busy.pages_out, if number == 1500 { 2 } else { 1 });
        assert_eq!(busy.first, page(number));
        assert!(busy.to_string().contains("of the region are out"));
        let stats = zone.stats();
        assert_eq!(
            (stats.total_pages, stats.list_pages, stats.stash_pages),
            (all, 0, 0)
        );
        assert_eq!(stats.nr_allocated(), busy.pages_out, "all is back");
        // SAFETY: the page is out.
        unsafe { zone.free(page(number), Order::ZERO) };
    }
    zone.remove_region(region).unwrap();
    assert_eq!(zone.total_pages(), all - 1000);
    // The memory is the caller's now.
    for number in region.first..region.first + region.pages {
        // SAFETY: removed, so nobody else's.
        unsafe { page(number).write_bytes(0xab, PAGE_SIZE) };
    }
    let rest = take_all(&zone);
    assert_eq!(rest.len(), all - 1000);
    assert!(
        rest.iter()
            .all(|page| !(1000..2000).contains(&page_number(&zone, *page)))
    );
    assert_eq!(zone.remove_region(region), Err(RegionError::Missing));
    free_all(&zone, rest);
    // SAFETY: nobody uses it any more.
    unsafe { zone.add_region(region) }.unwrap();
    zone.drain_all();
    assert_eq!(
        zone.stats().free_blocks,
        fresh,
        "as if nothing had happened"
    );
}

#[derive(Clone, Debug)]
enum Op {
    Alloc {
        req: PageReq,
    },
    Free {
        which: usize,
        attempt: Attempt,
    },
    Exact {
        pages: usize,
    },
    Add {
        first: usize,
        pages: usize,
    },
    Remove {
        first: usize,
        pages: usize,
    },
    /// Whatever lies free around a page: likely to succeed.
    RemoveFree {
        at: usize,
    },
    AddBack {
        which: usize,
    },
    Trim,
}

fn op(pages: usize) -> impl Strategy<Value = Op> {
    use Attempt::{MayGrow, NoWait, PcpOnly, TryLock};
    let attempt = || prop_oneof![Just(PcpOnly), Just(TryLock), Just(NoWait), Just(MayGrow)];
    let piece = || (0..pages, prop_oneof![1..20_usize, 1..600_usize]);
    let orders = prop_oneof![6 => 0..4_u8, 1 => 4..11_u8];
    prop_oneof![
        8 => (orders, attempt()).prop_map(|(o, attempt)| {
            Op::Alloc { req: PageReq::new(Order::new(o).unwrap()).attempt(attempt) }
        }),
        2 => (1..100_usize).prop_map(|pages| Op::Exact { pages }),
        8 => (any::<usize>(), attempt()).prop_map(|(which, attempt)| Op::Free { which, attempt }),
        1 => piece().prop_map(|(first, pages)| Op::Add { first, pages }),
        2 => piece().prop_map(|(first, pages)| Op::Remove { first, pages }),
        2 => (0..pages).prop_map(|at| Op::RemoveFree { at }),
        2 => any::<usize>().prop_map(|which| Op::AddBack { which }),
        1 => Just(Op::Trim),
    ]
}

const PAGES: usize = 2500;

/// A zone, the pages it should have, and what should be out of it.
struct Run<'a> {
    zone: Zone<OneCpu, Fixed<'a>>,
    /// Pages that the zone's own structures lie in: never anybody's.
    own: usize,
    has: BTreeSet<usize>,
    out: BTreeMap<usize, (NonNull<u8>, usize)>,
    removed: Vec<Range>,
}

impl Run<'_> {
    fn is_out(&self, page: usize) -> bool {
        let below = self.out.range(..=page).next_back();
        below.is_some_and(|(first, (_, pages))| page < first + pages)
    }

    fn came(&mut self, block: NonNull<u8>, pages: usize) {
        let first = page_number(&self.zone, block);
        for page in first..first + pages {
            assert!(self.has.contains(&page), "page {page} is not the zone's");
            assert!(!self.is_out(page), "page {page} is out");
        }
        // SAFETY: ours.
        unsafe { block.write_bytes(0xcc, PAGE_SIZE) };
        self.out.insert(first, (block, pages));
    }

    fn remove(&mut self, range: Range) {
        let mut pages = range.first..range.first + range.pages;
        let answer = self.zone.remove_region(range);
        if pages.end > self.zone.span().pages {
            assert_eq!(answer, Err(RegionError::Outside));
        } else if !pages.clone().all(|page| self.has.contains(&page)) {
            assert_eq!(answer, Err(RegionError::Missing));
        } else if let Some(first) = pages.clone().find(|page| self.is_out(*page)) {
            let Err(RegionError::Busy(busy)) = answer else {
                panic!("{answer:?} though page {first} is out");
            };
            assert_eq!(page_number(&self.zone, busy.first), first);
            assert_eq!(
                busy.pages_out,
                pages.filter(|page| self.is_out(*page)).count()
            );
        } else {
            assert_eq!(answer, Ok(()));
            for page in pages.by_ref() {
                self.has.remove(&page);
            }
            self.removed.push(range);
            // SAFETY: in the span.
            let start = unsafe { self.zone.span().base.add(range.first * PAGE_SIZE) };
            // SAFETY: the caller's now.
            unsafe { start.write_bytes(0xee, range.pages * PAGE_SIZE) };
        }
    }

    fn add(&mut self, range: Range) {
        let pages = range.first..range.first + range.pages;
        // SAFETY: either it is refused or it is memory of the region that nobody uses.
        let answer = unsafe { self.zone.add_region(range) };
        if pages.end > self.zone.span().pages {
            assert_eq!(answer, Err(RegionError::Outside));
        } else if pages.clone().any(|page| self.has.contains(&page)) {
            assert_eq!(answer, Err(RegionError::Overlap));
        } else if range.first < self.own {
            assert_eq!(answer, Err(RegionError::Source(SourceError::Outside)));
        } else {
            assert_eq!(answer, Ok(()));
            self.has.extend(pages);
        }
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Alloc { req } => {
                if let Ok(block) = self.zone.alloc(req) {
                    self.came(block, req.order.pages());
                }
            }
            Op::Exact { pages } => {
                if let Ok(run) = self.zone.alloc_exact(pages, PAGE) {
                    self.came(run, pages);
                }
            }
            Op::Free { which, attempt } => {
                if let Some(&first) = self.out.keys().nth(which % self.out.len().max(1)) {
                    let (block, pages) = self.out.remove(&first).unwrap();
                    // SAFETY: it came with this length; a run of a power of two is a block.
                    unsafe { self.zone.free_exact_at(block, pages, attempt) };
                }
            }
            Op::Add { first, pages } => self.add(range(first, pages)),
            Op::Remove { first, pages } => self.remove(range(first, pages)),
            Op::RemoveFree { at } => {
                let free = |page: &usize| self.has.contains(page) && !self.is_out(*page);
                let end = (at..PAGES).find(|page| !free(page)).unwrap_or(PAGES);
                if at < end && self.removed.len() < 20 {
                    self.remove(range(at, end - at));
                }
            }
            Op::AddBack { which } => {
                if !self.removed.is_empty() {
                    let range = self.removed.swap_remove(which % self.removed.len());
                    self.add(range);
                }
            }
            Op::Trim => {
                self.zone.trim();
            }
        }
        let out: usize = self.out.values().map(|(_, pages)| pages).sum();
        assert_eq!(self.zone.nr_allocated(), out);
        assert_eq!(self.zone.total_pages(), self.has.len());
    }
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn no_block_is_ever_handed_out_of_a_removed_region(
        ops in prop::collection::vec(op(PAGES), 1..100),
    ) {
        let mut memory = memory(PAGES - 1);
        let zone = Zone::new(cpu(), fixed(&mut memory)).unwrap();
        let fresh = zone.stats().free_blocks;
        let own = zone.span().pages - zone.total_pages();
        let has: BTreeSet<usize> = (own..zone.span().pages).collect();
        let mut run = Run { zone, own, has: has.clone(), out: BTreeMap::new(), removed: Vec::new() };
        ops.iter().for_each(|op| run.step(op));
        // The zone's regions are the pages that it should have.
        let pages = run.zone.regions().flat_map(|r| r.first..r.first + r.pages);
        prop_assert!(pages.eq(run.has.iter().copied()));
        for (block, pages) in std::mem::take(&mut run.out).into_values() {
            // SAFETY: as above.
            unsafe { run.zone.free_exact(block, pages) };
        }
        // All back: merged as if nothing had happened.
        let missing: Vec<usize> = has.difference(&run.has).copied().collect();
        for page in missing {
            run.add(range(page, 1));
        }
        run.zone.drain_all();
        prop_assert_eq!(run.zone.stats().free_blocks, fresh);
    }
}

#[cfg(all(feature = "std", target_os = "linux"))]
mod threads {
    use super::*;
    use pagealloc::Mmap;
    use rcu_core::cpu::Threads;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Chunks of 4 MiB that come and go; the first stays, so that there is always something.
    const CHUNKS: usize = 4;
    const CHUNK_PAGES: usize = 1024;
    const ROUNDS: usize = 60;

    /// Ends the other threads, however the test ends.
    struct StopAtTheEnd<'a>(&'a AtomicBool);

    impl Drop for StopAtTheEnd<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn removal_races_with_allocation() {
        let zone = &Zone::new(
            Threads,
            Mmap::reserve(CHUNKS * CHUNK_PAGES * PAGE_SIZE).unwrap(),
        )
        .unwrap();
        let whole = PageReq::new(Order::MAX);
        let blocks: Vec<_> = (0..CHUNKS).map(|_| zone.alloc(whole).unwrap()).collect();
        for block in blocks {
            // SAFETY: the block is out.
            unsafe { zone.free(block, Order::MAX) };
        }
        let base = zone.span().base.addr().get();
        let chunk_of =
            move |block: NonNull<u8>| (block.addr().get() - base) / (CHUNK_PAGES * PAGE_SIZE);
        let removed = &[const { AtomicBool::new(false) }; CHUNKS];
        let stop = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            for seed in 0..2_usize {
                scope.spawn(move || {
                    let mut held: Vec<(NonNull<u8>, Order)> = Vec::new();
                    let mut random = seed + 1;
                    while !stop.load(Ordering::Relaxed) {
                        random = random
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1);
                        let roll = random >> 33;
                        if roll % 100 < 45 && held.len() < 50 {
                            let order = Order::new((roll / 100 % 4) as u8).unwrap();
                            // Growing would bring nothing, and a failure is nobody's fault here.
                            let req = PageReq::new(order).attempt(Attempt::NoWait);
                            if let Ok(block) = zone.alloc(req) {
                                held.push((block, order));
                                // SAFETY: ours.
                                unsafe { block.write_bytes(seed as u8, order.bytes()) };
                            }
                        } else if !held.is_empty() {
                            let (block, order) = held.swap_remove(roll % held.len());
                            // The owner of a block sees it in a chunk that is there.
                            assert!(!removed[chunk_of(block)].load(Ordering::SeqCst));
                            // SAFETY: ours.
                            assert_eq!(unsafe { block.read() }, seed as u8);
                            let attempt = [Attempt::PcpOnly, Attempt::NoWait][roll / 1000 % 2];
                            // SAFETY: the block is out.
                            unsafe { zone.free_at(block, order, attempt) };
                        }
                    }
                    for (block, order) in held {
                        // SAFETY: the block is out.
                        unsafe { zone.free(block, order) };
                    }
                });
            }
            let _stop = StopAtTheEnd(stop);
            for round in 0..ROUNDS {
                let chunk = 1 + round % (CHUNKS - 1);
                let range = range(chunk * CHUNK_PAGES, CHUNK_PAGES);
                match zone.remove_region(range) {
                    Ok(()) => {
                        removed[chunk].store(true, Ordering::SeqCst);
                        std::thread::yield_now();
                        removed[chunk].store(false, Ordering::SeqCst);
                        // SAFETY: removed, and nobody uses it.
                        unsafe { zone.add_region(range) }.unwrap();
                    }
                    Err(RegionError::Busy(busy)) => {
                        assert!((1..=CHUNK_PAGES).contains(&busy.pages_out));
                        assert_eq!(chunk_of(busy.first), chunk);
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        });
        assert_eq!(zone.nr_allocated(), 0);
        assert_eq!(zone.total_pages(), CHUNKS * CHUNK_PAGES);
        // With nobody about, every chunk can go; and with all gone there is nothing.
        for chunk in 0..CHUNKS {
            zone.remove_region(range(chunk * CHUNK_PAGES, CHUNK_PAGES))
                .unwrap();
        }
        assert_eq!((zone.total_pages(), zone.regions().count()), (0, 0));
        assert!(zone.alloc(PAGE).is_err());
    }

    #[test]
    fn a_removed_chunk_of_a_mapping_comes_back_as_zeroes() {
        let zone = Zone::new(Threads, Mmap::reserve(CHUNK_PAGES * PAGE_SIZE).unwrap()).unwrap();
        let whole = PageReq::new(Order::MAX);
        let all = range(0, CHUNK_PAGES);
        // SAFETY: it is refused.
        let early = unsafe { zone.add_region(all) };
        assert_eq!(
            early,
            Err(RegionError::Source(SourceError::Outside)),
            "never given"
        );
        assert_eq!(zone.regions().count(), 0);
        let block = zone.alloc(whole).unwrap();
        // SAFETY: ours.
        unsafe { block.write_bytes(0xff, Order::MAX.bytes()) };
        // SAFETY: the block is out.
        unsafe { zone.free(block, Order::MAX) };
        zone.remove_region(all).unwrap();
        assert!(zone.alloc(whole).is_err());
        // SAFETY: removed, and nobody uses it.
        unsafe { zone.add_region(all) }.unwrap();
        assert_eq!(zone.trim(), 0, "known to be untouched");
        let block = zone.alloc(whole.zeroed()).unwrap();
        // SAFETY: ours, and zeroed.
        let bytes = unsafe { core::slice::from_raw_parts(block.as_ptr(), Order::MAX.bytes()) };
        assert!(bytes.iter().all(|&byte| byte == 0));
        // SAFETY: the block is out.
        unsafe { zone.free(block, Order::MAX) };
    }
}

}
