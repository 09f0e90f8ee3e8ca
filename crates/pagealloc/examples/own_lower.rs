//! A layer swapped: a lower page allocator of one's own, under the zone as it is.
//!
//! ```sh
//! cargo run -p pagealloc --example own_lower
//! cargo test -p pagealloc --test examples     # the conformance suite on it
//! ```
//!
//! One byte a page, free or not, claimed by compare-exchange from the lowest address on: no lists, no locks, nothing to
//! split or to merge. It is as slow as its search is long, and that is all that is wrong with it. The zone above brings the
//! lists of each slot, watermarks, regions, checks and statistics.
//!
//! # Orderings
//! - P7. Pages given, Release / claimed, Acquire: what their last user did is before what the next one does.

use pagealloc::{
    AllocError, Attempt, Buddies, Extent, Ground, Lower, Mmap, Order, PageBlock, PageReq, Run,
    Runs, Wanted, Zone,
};
use rcu_core::cpu::{Slot, Threads};
use std::alloc::{Layout, LayoutError};
use std::slice;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

/// Not there, or somebody's. Memory is zeroed, so this is what a byte begins with.
const TAKEN: u8 = 0;
const FREE: u8 = 1;
/// Free, and reads as zeroes.
const ZERO: u8 = 2;

const ORDERS: usize = Order::MAX.get() + 1;
/// What can be given back to the system: 4 MiB, and 2 MiB.
const HUGE: [u32; 2] = [1024, 512];

/// Free pages as bytes.
#[derive(Debug)]
pub(crate) struct FirstFit {
    extent: Extent,
    pages: &'static [AtomicU8],
    /// By area: somebody took something since the last `idle_pages`.
    used: &'static [AtomicU8],
    nr_free: AtomicUsize,
}

impl FirstFit {
    /// Whether all pages of a run are free, and whether all read as zeroes.
    fn look(&self, first: u32, end: u32) -> Option<bool> {
        // ORDERING: Relaxed: a look; `claim` decides.
        let mut states = (self.pages[first as usize..end as usize].iter())
            .map(|page| page.load(Ordering::Relaxed));
        states.try_fold(true, |zero, state| {
            (state != TAKEN).then_some(zero && state == ZERO)
        })
    }

    /// Takes a run of free pages, all or none.
    fn claim(&self, first: u32, end: u32) -> Option<Run> {
        let mut zero = self.look(first, end)?;
        for at in first..end {
            // ORDERING: P7 (claim side).
            let state = self.pages[at as usize].swap(TAKEN, Ordering::Acquire);
            if state == TAKEN {
                // Somebody came first. What was claimed goes back as dirty, since its state is not kept.
                self.put_back(first, at, FREE);
                return None;
            }
            zero &= state == ZERO;
        }
        // ORDERING: Relaxed: a hint.
        self.used[self.extent.area_of(first)].store(1, Ordering::Relaxed);
        // ORDERING: Relaxed: a number; who gave these pages has added them before (P7).
        self.nr_free
            .fetch_sub((end - first) as usize, Ordering::Relaxed);
        Some(Run { first, end, zero })
    }

    fn put_back(&self, first: u32, end: u32, state: u8) {
        for page in &self.pages[first as usize..end as usize] {
            // ORDERING: P7 (give side).
            page.store(state, Ordering::Release);
        }
    }

    fn put(&self, run: Run) {
        let state = if run.zero { ZERO } else { FREE };
        // ORDERING: Relaxed: a number. Before the pages are given, so that no claimer takes them off first (P7).
        self.nr_free
            .fetch_add((run.end - run.first) as usize, Ordering::Relaxed);
        self.put_back(run.first, run.end, state);
    }

    /// Where blocks of so many pages may begin: by address, not by number.
    fn starts(&self, pages: u32) -> impl Iterator<Item = u32> + use<> {
        let (bias, all) = (self.extent.bias(), self.extent.pages());
        let first = bias.next_multiple_of(pages) - bias;
        (first..(all + 1).saturating_sub(pages)).step_by(pages as usize)
    }

    /// Free blocks of 2 MiB that do not read as zeroes.
    fn dirty(&self, pages: u32) -> impl Iterator<Item = u32> + '_ {
        let is_dirty = move |&first: &u32| self.look(first, first + pages) == Some(false);
        self.starts(pages).filter(is_dirty)
    }

    /// The largest free block that begins at a page.
    fn largest_at(&self, page: u32) -> Option<Order> {
        let is_free = |order: &Order| {
            let (pages, address) = (order.pages() as u32, page + self.extent.bias());
            let fits = page + pages <= self.extent.pages();
            fits && address.is_multiple_of(pages) && self.look(page, page + pages).is_some()
        };
        // What is not free in a block is not free in the larger ones around it.
        let orders = (0..ORDERS as u8).filter_map(Order::new);
        orders.take_while(is_free).last()
    }
}

// SAFETY: 1: a page goes out only to who made its byte `TAKEN`, from `starts` of the block's size; `zero` is what every byte
// said; 2: P7; 3 and 4: there is nothing to wait for; 5: a block is free when its pages are; 6: the provided `take_within` asks
// `take_range` for every page.
unsafe impl Lower for FirstFit {
    type Held<'a> = ();

    fn layout(extent: Extent) -> Result<Layout, LayoutError> {
        Layout::array::<AtomicU8>(extent.pages() as usize + extent.areas())
    }

    unsafe fn new(ground: Ground) -> Self {
        let extent = ground.extent();
        let nr = extent.pages() as usize + extent.areas();
        // SAFETY: zeroed memory of the layout above, nobody else's for as long as this value is used (debt 1).
        let bytes = unsafe { slice::from_raw_parts(ground.memory().cast().as_ptr(), nr) };
        let (pages, used) = bytes.split_at(extent.pages() as usize);
        let nr_free = AtomicUsize::new(0);
        Self {
            extent,
            pages,
            used,
            nr_free,
        }
    }

    unsafe fn add(&self, _slot: Option<Slot>, run: Run) {
        self.put(run);
    }

    fn take(&self, wanted: Wanted, runs: &mut Runs) -> Result<(), AllocError> {
        let pages = wanted.order.pages() as u32;
        let nr = wanted.nr.min(Runs::CAPACITY);
        let found = self
            .starts(pages)
            .filter_map(|first| self.claim(first, first + pages))
            .take(nr);
        found.for_each(|run| runs.join(run));
        if runs.is_empty() {
            return Err(AllocError::Exhausted);
        }
        Ok(())
    }

    unsafe fn take_range(&self, run: Run) -> bool {
        self.claim(run.first, run.end).is_some()
    }

    unsafe fn give(&self, _slot: Option<Slot>, runs: &Runs, _attempt: Attempt) {
        runs.iter().for_each(|run| self.put(*run));
    }

    fn take_dirty(&self) -> Option<Run> {
        HUGE.iter().find_map(|&pages| {
            self.dirty(pages)
                .find_map(|first| self.claim(first, first + pages))
        })
    }

    fn dirty_pages(&self) -> usize {
        self.dirty(HUGE[1]).count() * HUGE[1] as usize
    }

    fn idle_pages(&self) -> usize {
        // ORDERING: Relaxed: a hint.
        let used = self
            .used
            .iter()
            .map(|area| area.swap(0, Ordering::Relaxed) != 0);
        let used: Vec<bool> = used.collect();
        let idle = self
            .dirty(HUGE[1])
            .filter(|&first| !used[self.extent.area_of(first)]);
        idle.count() * HUGE[1] as usize
    }

    fn free_pages(&self) -> usize {
        // ORDERING: Relaxed: a number.
        self.nr_free.load(Ordering::Relaxed)
    }

    fn free_blocks(&self) -> [usize; ORDERS] {
        let (mut blocks, mut page) = ([0; ORDERS], 0);
        while page < self.extent.pages() {
            let order = self.largest_at(page);
            order.inspect(|order| blocks[order.get()] += 1);
            page += order.map_or(1, |order| order.pages() as u32);
        }
        blocks
    }

    fn free_at(&self, page: u32) -> Option<Order> {
        (page < self.extent.pages())
            .then(|| self.largest_at(page))
            .flatten()
    }

    fn hold(&self) {}
}

#[cfg(test)]
pagealloc::lower_conformance!(conformance, FirstFit);

/// The same program over the zone's own lower level and over this one.
///
/// # Panics
/// If a page is lost, or in two hands.
pub(crate) fn run() -> [usize; 2] {
    fn exercise<B: Lower>() -> usize {
        let source = Mmap::reserve(32 << 20).expect("addresses");
        let zone = Zone::<_, _, B>::with_lower(Threads, source).expect("a zone");
        std::thread::scope(|s| {
            for seed in 1..3_usize {
                let zone = &zone;
                s.spawn(move || {
                    let mut blocks = Vec::new();
                    for i in 0..500 {
                        let order = Order::new((i * seed % 6) as u8).expect("at most 5");
                        let block =
                            PageBlock::new(zone, PageReq::new(order)).expect("32 MiB are enough");
                        blocks.push(block);
                        if i.is_multiple_of(3) {
                            drop(blocks.swap_remove(i * seed % blocks.len()));
                        }
                    }
                });
            }
        });
        assert_eq!(zone.nr_allocated(), 0);
        zone.total_pages()
    }
    [exercise::<Buddies>(), exercise::<FirstFit>()]
}

#[allow(dead_code, reason = "the tests call `run`")]
fn main() {
    let [ours, yours] = run();
    println!("zones of {ours} and {yours} pages, everything given back");
}
