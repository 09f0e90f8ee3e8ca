//! The zone by example: small regions, bad input, growth, memory that is only addresses, statistics.

#![cfg(not(loom))]

mod buffer;
#[macro_use]
mod each;

use buffer::{fixed, unwritten as memory};
use core::ptr::NonNull;
use pagealloc::{
    AllocError, Attempt, Failing, Fixed, Order, PAGE_SIZE, PageAlloc, PageReq, Range, Source,
    SourceError, Span, Zone, ZoneError,
};
use rcu_core::cpu::OneCpu;
use std::alloc::Layout;

over_each_lower! {

const PAGE: PageReq = PageReq::new(Order::ZERO);

fn cpu() -> OneCpu {
    // SAFETY: each test uses its zone in its own thread only.
    unsafe { OneCpu::new() }
}

fn order(log2_pages: u8) -> Order {
    Order::new(log2_pages).unwrap()
}

#[test]
fn a_region_of_64_kib_is_enough() {
    let mut memory = memory(64 << 10);
    let zone = Zone::new(cpu(), fixed(&mut memory)).unwrap();
    let total = zone.total_pages();
    // One goes to alignment, three to the zone's structures.
    assert!(total >= 12, "{total} of 16 pages are usable");
    let mut out = Vec::new();
    while let Ok(page) = zone.alloc(PAGE) {
        out.push(page);
    }
    assert_eq!(out.len(), total);
    assert_eq!(zone.alloc(PAGE), Err(AllocError::OutOfMemory));
    assert_eq!(
        zone.alloc(PAGE.attempt(Attempt::NoWait)),
        Err(AllocError::Exhausted)
    );
    for page in out {
        // SAFETY: the page is out.
        unsafe { zone.free(page, Order::ZERO) };
    }
    // What lies on the slot's own list merges when a larger block is wanted.
    assert!(zone.stats().list_pages > 0);
    let block = zone.alloc(PageReq::new(order(2)).attempt(Attempt::NoWait));
    // SAFETY: the block is out.
    unsafe { zone.free(block.unwrap(), order(2)) };
    assert_eq!(zone.nr_allocated(), 0);
}

/// Takes every page there is; returns a run of `pages` of them, aligned to that.
fn take_all<S: Source + Send + Sync>(zone: &Zone<OneCpu, S>, pages: usize) -> Vec<NonNull<u8>> {
    let mut out: Vec<_> = core::iter::from_fn(|| zone.alloc(PAGE).ok()).collect();
    out.sort_unstable();
    let bytes = pages * PAGE_SIZE;
    let from = out.windows(pages).position(|run| {
        let (first, last) = (run[0].addr().get(), run[pages - 1].addr().get());
        first % bytes == 0 && last - first == bytes - PAGE_SIZE
    });
    let from = from.expect("the region holds such a block");
    out[from..from + pages].to_vec()
}

#[test]
fn what_lies_on_the_slots_own_lists_is_merged_when_it_is_needed() {
    let mut memory = memory(64 << 10);
    let zone = Zone::new(cpu(), fixed(&mut memory)).unwrap();
    for page in take_all(&zone, 4) {
        // SAFETY: the page is out.
        unsafe { zone.free(page, Order::ZERO) };
    }
    assert_eq!(zone.stats().list_pages, 4);
    let large = PageReq::new(order(2));
    for attempt in [Attempt::PcpOnly, Attempt::TryLock] {
        assert!(zone.alloc(large.attempt(attempt)).is_err());
    }
    assert!(zone.alloc(large.attempt(Attempt::NoWait)).is_ok());
}

#[test]
fn what_waits_in_the_stash_is_merged_when_it_is_needed() {
    let mut memory = memory(8 << 20);
    let zone = Zone::new(cpu(), fixed(&mut memory)).unwrap();
    let block = take_all(&zone, 512);
    // Far neighbours first, so that nothing is whole before the last chunk.
    for i in 0..512 {
        // SAFETY: the page is out.
        unsafe { zone.free_at(block[i * 77 % 512], Order::ZERO, Attempt::PcpOnly) };
    }
    assert!(
        zone.alloc(PageReq::new(order(9)).attempt(Attempt::NoWait))
            .is_ok()
    );
    assert_eq!(zone.stats().stashed_blocks > 450, IS_BUDDIES);
}

#[test]
fn a_zone_may_be_moved() {
    let mut memory = memory(1 << 20);
    let zone = Zone::new(cpu(), fixed(&mut memory)).unwrap();
    let page = zone.alloc(PAGE).unwrap();
    let moved = Box::new(zone);
    assert_eq!(moved.order_of(page.as_ptr()), Some(Order::ZERO));
    // SAFETY: the page is out.
    unsafe { moved.free(page, Order::ZERO) };
    assert_eq!(moved.nr_allocated(), 0);
}

#[test]
fn bad_regions_are_told_apart() {
    assert_eq!(Fixed::new(&mut []).unwrap_err(), SourceError::Empty);
    assert_eq!(
        Fixed::new(memory(100).leak()).unwrap_err(),
        SourceError::Empty
    );
    let whole = NonNull::without_provenance((1_usize << 20).try_into().unwrap());
    let odd = NonNull::without_provenance(((1_usize << 20) + 8).try_into().unwrap());
    let last = NonNull::without_provenance((usize::MAX - PAGE_SIZE + 1).try_into().unwrap());
    for (base, size, error) in [
        (whole, 0, SourceError::Empty),
        (whole, PAGE_SIZE + 1, SourceError::Misaligned),
        (odd, PAGE_SIZE, SourceError::Misaligned),
        (last, PAGE_SIZE, SourceError::Overflow),
        (whole, 1 << 63, SourceError::Overflow),
    ] {
        // SAFETY: the region is refused, so it is not used.
        let refused = unsafe { Fixed::from_raw(base, size) };
        assert_eq!(refused.unwrap_err(), error, "{base:p} {size}");
    }
    let mut tiny = memory(2 * PAGE_SIZE);
    let refused = Zone::new(cpu(), fixed(&mut tiny)).unwrap_err();
    assert!(
        matches!(refused, ZoneError::Source(SourceError::TooSmall { needed }) if needed > PAGE_SIZE),
        "{refused}"
    );
}

/// A source that claims a span of any size.
struct Claims(usize);

// SAFETY: it never gives anything.
unsafe impl Source for Claims {
    fn span(&self) -> Span {
        Span {
            base: NonNull::without_provenance(PAGE_SIZE.try_into().unwrap()),
            pages: self.0,
        }
    }

    fn metadata(&self, _layout: Layout) -> Result<NonNull<u8>, SourceError> {
        Err(SourceError::Exhausted)
    }

    fn grow(&self, _min_pages: usize) -> Result<Range, SourceError> {
        Err(SourceError::Exhausted)
    }
}

#[test]
fn bad_spans_are_refused() {
    for pages in [0, u32::MAX as usize, usize::MAX] {
        let refused = Zone::new(cpu(), Claims(pages)).unwrap_err();
        assert_eq!(refused, ZoneError::Pages(pages));
        assert!(refused.to_string().contains(&pages.to_string()));
    }
    let refused = Zone::new(cpu(), Claims(100)).unwrap_err();
    assert_eq!(refused, ZoneError::Source(SourceError::Exhausted));
}

#[test]
fn p14_a_zone_grows_only_where_that_is_allowed() {
    let mut memory = memory(1 << 20);
    let source = Failing::at(fixed(&mut memory).in_steps(16), 1);
    let zone = Zone::new(cpu(), source).unwrap();
    assert_eq!(zone.total_pages(), 0);
    for (attempt, error) in [
        (Attempt::PcpOnly, AllocError::Empty),
        (Attempt::TryLock, AllocError::Exhausted),
        (Attempt::NoWait, AllocError::Exhausted),
    ] {
        assert_eq!(zone.alloc(PAGE.attempt(attempt)), Err(error));
        assert!(error.is_retryable());
    }
    let got: Vec<_> = (0..16).map(|_| zone.alloc(PAGE).unwrap()).collect();
    assert_eq!(zone.stats().grows, 1);
    assert_eq!(
        zone.alloc(PAGE),
        Err(AllocError::OutOfMemory),
        "the source fails once"
    );
    assert!(zone.alloc(PAGE).is_ok());
    assert_eq!((zone.source().calls(), zone.source().failures()), (3, 1));
    assert_eq!(zone.nr_allocated(), got.len() + 1);
}

#[test]
fn p1_the_order_of_frees_does_not_matter() {
    let mut memory = memory(4 << 20);
    let zone = Zone::new(cpu(), fixed(&mut memory)).unwrap();
    let fresh = zone.stats().free_blocks;
    // Strides that share no factor with 600, so that each page comes up once.
    for stride in [1, 7, 101, 499, 599] {
        let out: Vec<_> = (0..600).map(|_| zone.alloc(PAGE).unwrap()).collect();
        for i in 0..600 {
            // SAFETY: the page is out.
            unsafe { zone.free(out[i * stride % 600], Order::ZERO) };
        }
        zone.drain_all();
        assert_eq!(zone.stats().free_blocks, fresh);
    }
}

#[test]
fn statistics_read_like_buddyinfo() {
    let mut memory = memory(8 << 20);
    let zone = Zone::new(cpu(), fixed(&mut memory)).unwrap();
    let kept = zone.alloc(PageReq::new(order(4))).unwrap();
    for _ in 0..5 {
        let page = zone.alloc(PAGE).unwrap();
        // SAFETY: the page is out.
        unsafe { zone.free(page, Order::ZERO) };
    }
    assert_eq!(
        zone.alloc(PageReq::new(order(10)).attempt(Attempt::PcpOnly)),
        Err(AllocError::Empty)
    );
    let stats = zone.stats();
    assert_eq!(stats.nr_allocated(), 16);
    assert_eq!(stats.hits, 4);
    assert_eq!(stats.attempt(Attempt::MayGrow).misses, 2);
    assert_eq!(stats.attempt(Attempt::PcpOnly).empty, 1);
    let text = stats.to_string();
    assert!(text.starts_with("free blocks by order:"), "{text}");
    assert!(text.contains("16 out"), "{text}");
    assert!(
        text.contains(" PcpOnly: 0 hits, 1 misses, of these 0 contended, 1 empty"),
        "{text}"
    );
    assert_eq!(zone.free_pages(), stats.free_pages);
    // SAFETY: the block is out.
    unsafe { zone.free(kept, order(4)) };
}

#[cfg(all(feature = "std", target_os = "linux"))]
mod committed {
    use super::*;
    use pagealloc::Mmap;
    use rcu_core::cpu::Threads;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    /// How many of the block's pages have memory behind them; `None` where the system does not tell.
    fn committed(block: NonNull<u8>, pages: usize) -> Option<usize> {
        let map = File::open("/proc/self/pagemap").ok()?;
        let mut entries = vec![0; pages * 8];
        let first = block.addr().get() / PAGE_SIZE;
        map.read_exact_at(&mut entries, first as u64 * 8).ok()?;
        Some(
            entries
                .chunks(8)
                .filter(|entry| entry[7] & 0x80 != 0)
                .count(),
        )
    }

    #[test]
    fn a_zeroed_block_of_fresh_memory_commits_nothing() {
        let zone = Zone::new(Threads, Mmap::reserve(64 << 20).unwrap()).unwrap();
        let large = PageReq::new(order(6)).zeroed();
        let block = zone.alloc(large).unwrap();
        let before = committed(block, 64);
        assert!(matches!(before, None | Some(0)), "{before:?}");
        // SAFETY: the block is ours.
        unsafe { block.write_bytes(0xff, order(6).bytes()) };
        assert!(before.is_none() || committed(block, 64) == Some(64));
        // SAFETY: the block is out.
        unsafe { zone.free(block, order(6)) };
        // What was used is cleared, and a block that is only in part fresh is cleared as a whole.
        let whole = PageReq::new(Order::MAX).zeroed();
        let block = zone.alloc(whole).unwrap();
        // SAFETY: zeroed, and ours.
        let bytes = unsafe { core::slice::from_raw_parts(block.as_ptr(), Order::MAX.bytes()) };
        assert!(bytes.iter().all(|&byte| byte == 0));
        // SAFETY: the block is out.
        unsafe { zone.free(block, Order::MAX) };
        // Trimmed memory is as good as fresh.
        assert_eq!(zone.trim(), Order::MAX.pages());
        assert_eq!(zone.trim(), 0, "once is enough");
        let block = zone.alloc(whole).unwrap();
        assert!(before.is_none() || committed(block, 1024) == Some(0));
    }

    #[test]
    fn metadata_is_committed_as_the_zone_grows() {
        let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
        assert!(zone.source().reserved_bytes() >= 32 << 20);
        assert_eq!(zone.total_pages(), 0);
        let page = zone.alloc(PAGE).unwrap();
        assert_eq!(zone.total_pages(), 1024);
        // SAFETY: the page is out.
        unsafe { zone.free(page, Order::ZERO) };
    }

    #[test]
    fn what_lies_on_other_slots_lists_is_taken_before_giving_up() {
        let zone = &Zone::new(Threads, Mmap::reserve(4 << 20).unwrap()).unwrap();
        let out: Vec<_> = core::iter::from_fn(|| zone.alloc(PAGE).ok()).collect();
        assert_eq!(out.len(), 1024);
        let (freed, is_freed) = std::sync::mpsc::channel();
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        let page = out[0].addr();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // SAFETY: the page is out.
                unsafe {
                    zone.free(
                        NonNull::new(zone.span().base.as_ptr().with_addr(page.get())).unwrap(),
                        Order::ZERO,
                    )
                };
                freed.send(()).unwrap();
                let _ = is_done.recv();
            });
            is_freed.recv().unwrap();
            let no_wait = zone.alloc(PAGE.attempt(Attempt::NoWait));
            assert_eq!(no_wait, Err(AllocError::Exhausted));
            assert!(zone.alloc(PAGE).is_ok());
            drop(done);
        });
    }

    #[test]
    fn a_reservation_is_the_most_there_will_be() {
        let zone = Zone::new(Threads, Mmap::reserve(8 << 20).unwrap()).unwrap();
        let whole = PageReq::new(Order::MAX);
        let out = [zone.alloc(whole).unwrap(), zone.alloc(whole).unwrap()];
        assert_eq!(zone.alloc(whole), Err(AllocError::OutOfMemory));
        assert_eq!(zone.alloc(PAGE), Err(AllocError::OutOfMemory));
        for block in out {
            // SAFETY: the blocks are out.
            unsafe { zone.free(block, Order::MAX) };
        }
        assert_eq!(zone.nr_allocated(), 0);
    }
}

}
