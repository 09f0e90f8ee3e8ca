//! What a page costs: ours beside the peers, one workload generic over them.
//!
//! Run by `cargo xtask bench --layer pagealloc`, which repeats it and judges the ratios. Nothing touches the pages
//! themselves, so memory is not what is measured; buddy-heap does, because its free lists lie in them.
//!
//! | bench | one iteration |
//! |---|---|
//! | `order0`, `order3`, `order4`, `order9` | one block allocated and freed, by each thread: a hit each |
//! | `order10` | the same of the order without a list |
//! | `control` | 32 steps of arithmetic by each thread, which share nothing: what the machine makes of several threads |
//! | `flood` | a page of 4096 allocated and then freed, by each thread: the lower level, in batches |
//! | `mixed` | one of 256 blocks at random freed, and one of order 0 to 4 allocated, by each thread: lists, and sometimes the lower level |
//! | `hand-over` | a page allocated by one thread and freed by another |
//! | `bulk` | a 65,536th of: allocate as many pages, then free them, by the bulk calls where there are some |
//! | `free-in-order`, `free-random` | a 65,536th of freeing as many pages, which were allocated one by one before |
//! | `fragmentation`, `fragmentation-long` | nothing: the number is a count, see [`fragmentation`] |
//!
//! Peers: `buddy` is buddy_system_allocator's frame allocator, `buddy-locked` the same behind its spin lock, `buddy-heap` and
//! `buddy-heap-locked` its heap; `mimalloc` is asked for as many bytes, aligned to their size.

use buddy_system_allocator::{FrameAllocator, Heap, LockedFrameAllocator, LockedHeap};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode};
use mimalloc::MiMalloc;
use pagealloc::{BitTree, Buddies, Lower, Mmap, Order, PAGE_SIZE, PageAlloc, PageReq, Zone};
use rcu_core::cpu::Threads;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::OnceCell;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::mpsc::sync_channel;
use std::sync::{Barrier, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

/// Pages of a bulk pass.
const PASS: usize = 64 << 10;
/// Pages that each allocator has at most: 2 GiB.
const PAGES: usize = 512 << 10;
/// Pages of the fragmentation test: 1 GiB.
const FRAGMENTED: usize = 256 << 10;
/// Pages that a thread has out at once in a flood: more than its lists hold.
const FLOOD: usize = 4096;
/// Blocks that a thread of the mixed workload has out.
const MIXED: usize = 256;
/// Pages that go from one thread to the other at once.
const HANDFUL: usize = 64;
/// Pages in a huge block.
const HUGE: usize = 512;
/// Rounds of the fragmentation test as LLFree has it. A huge block's 256 pages out are hardly ever all freed in so few: the test tells nobody apart.
const ROUNDS: usize = 8;
/// Rounds that do: what is never allocated from meanwhile is free at the end (256 pages, of which a tenth goes each time, come to less than one).
const LONG: usize = 100;

/// One thread's handle of an allocator.
trait Pages {
    type Block: Copy;

    fn alloc(&mut self, order: u8) -> Option<Self::Block>;

    fn free(&mut self, block: Self::Block, order: u8);

    /// Pages up to `out`'s capacity.
    fn alloc_bulk(&mut self, out: &mut Vec<Self::Block>) {
        for _ in out.len()..out.capacity() {
            out.extend(self.alloc(0));
        }
    }

    fn free_bulk(&mut self, blocks: &[Self::Block]) {
        blocks.iter().for_each(|&block| self.free(block, 0));
    }
}

type OurZone = Zone<Threads, Mmap>;

fn zone<B: Lower>(pages: usize) -> Zone<Threads, Mmap, B> {
    let source = Mmap::reserve(pages * PAGE_SIZE).expect("address space");
    Zone::with_lower(Threads, source).expect("memory for the metadata")
}

static ZONE: LazyLock<OurZone> = LazyLock::new(|| zone(PAGES));
static FRAMES: LazyLock<LockedFrameAllocator> = LazyLock::new(|| {
    let frames = LockedFrameAllocator::new();
    frames.lock().add_frame(0, PAGES);
    frames
});
static HEAP: LazyLock<LockedHeap<33>> = LazyLock::new(|| {
    let locked = LockedHeap::empty();
    *locked.lock() = heap();
    locked
});

/// buddy_system_allocator's heap over as much memory as the others have, which is never freed.
fn heap() -> Heap<33> {
    let layout = Layout::from_size_align(PAGES * PAGE_SIZE, Order::MAX.bytes()).expect("small");
    // SAFETY: not empty.
    let memory = unsafe { std::alloc::alloc(layout) };
    assert!(!memory.is_null());
    let mut heap = Heap::empty();
    // SAFETY: memory that nobody else uses. The heap makes pointers of integers.
    unsafe { heap.init(memory.expose_provenance(), PAGES * PAGE_SIZE) };
    heap
}

#[inline(always)]
fn order(log2_pages: u8) -> Order {
    Order::new(log2_pages).expect("an order")
}

#[inline(always)]
fn layout(log2_pages: u8) -> Layout {
    let bytes = order(log2_pages).bytes();
    Layout::from_size_align(bytes, bytes).expect("a power of two")
}

struct Ours<'z, P>(&'z P);

impl<P: PageAlloc> Pages for Ours<'_, P> {
    type Block = NonNull<u8>;

    #[inline(always)]
    fn alloc(&mut self, log2_pages: u8) -> Option<NonNull<u8>> {
        self.0.alloc(PageReq::new(order(log2_pages))).ok()
    }

    #[inline(always)]
    fn free(&mut self, block: NonNull<u8>, log2_pages: u8) {
        // SAFETY: the benches free what they allocated, once.
        unsafe { self.0.free(block, order(log2_pages)) };
    }

    fn alloc_bulk(&mut self, out: &mut Vec<NonNull<u8>>) {
        let places: &mut [MaybeUninit<_>] = out.spare_capacity_mut();
        let got = self.0.alloc_bulk(PageReq::new(Order::ZERO), places);
        let len = out.len() + got;
        // SAFETY: filled from the front.
        unsafe { out.set_len(len) };
    }

    fn free_bulk(&mut self, blocks: &[NonNull<u8>]) {
        // SAFETY: as above.
        unsafe { self.0.free_bulk(blocks, Order::ZERO) };
    }
}

struct Frames(FrameAllocator);

impl Pages for Frames {
    type Block = usize;

    #[inline(always)]
    fn alloc(&mut self, log2_pages: u8) -> Option<usize> {
        self.0.alloc(1 << log2_pages)
    }

    #[inline(always)]
    fn free(&mut self, block: usize, log2_pages: u8) {
        self.0.dealloc(block, 1 << log2_pages);
    }
}

struct Bytes(Heap<33>);

impl Pages for Bytes {
    type Block = NonNull<u8>;

    #[inline(always)]
    fn alloc(&mut self, log2_pages: u8) -> Option<NonNull<u8>> {
        self.0.alloc(layout(log2_pages)).ok()
    }

    #[inline(always)]
    fn free(&mut self, block: NonNull<u8>, log2_pages: u8) {
        // SAFETY: the benches free what they allocated, once.
        unsafe { self.0.dealloc(block, layout(log2_pages)) };
    }
}

struct LockedFrames(&'static LockedFrameAllocator);

impl Pages for LockedFrames {
    type Block = usize;

    #[inline(always)]
    fn alloc(&mut self, log2_pages: u8) -> Option<usize> {
        self.0.lock().alloc(1 << log2_pages)
    }

    #[inline(always)]
    fn free(&mut self, block: usize, log2_pages: u8) {
        self.0.lock().dealloc(block, 1 << log2_pages);
    }
}

struct LockedBytes(&'static LockedHeap<33>);

impl Pages for LockedBytes {
    type Block = NonNull<u8>;

    #[inline(always)]
    fn alloc(&mut self, log2_pages: u8) -> Option<NonNull<u8>> {
        self.0.lock().alloc(layout(log2_pages)).ok()
    }

    #[inline(always)]
    fn free(&mut self, block: NonNull<u8>, log2_pages: u8) {
        // SAFETY: the benches free what they allocated, once.
        unsafe { self.0.lock().dealloc(block, layout(log2_pages)) };
    }
}

struct Mi;

impl Pages for Mi {
    type Block = NonNull<u8>;

    #[inline(always)]
    fn alloc(&mut self, log2_pages: u8) -> Option<NonNull<u8>> {
        // SAFETY: the layout is not empty.
        NonNull::new(unsafe { MiMalloc.alloc(layout(log2_pages)) })
    }

    #[inline(always)]
    fn free(&mut self, block: NonNull<u8>, log2_pages: u8) {
        // SAFETY: the benches free what they allocated, once.
        unsafe { MiMalloc.dealloc(block.as_ptr(), layout(log2_pages)) };
    }
}

/// `iterations` blocks, each freed before the next one.
#[inline(never)]
fn pairs<const ORDER: u8, P: Pages>(pages: &mut P, iterations: u64) {
    for _ in 0..iterations {
        let block = black_box(pages.alloc(ORDER)).expect("memory");
        pages.free(block, ORDER);
    }
}

/// `iterations` times 32 steps of arithmetic in registers, four at a time independent of each other, so that they fill a core.
#[inline(never)]
fn arithmetic((): &mut (), iterations: u64) {
    let mut dice = [1, 2, 3, 4].map(Dice);
    for _ in 0..iterations {
        for _ in 0..8 {
            for one in &mut dice {
                black_box(one.below(1 << 20));
            }
        }
    }
}

/// `iterations` pages, up to [`FLOOD`] out at once.
#[inline(never)]
fn flood<P: Pages>(pages: &mut P, iterations: u64) {
    let mut out = Vec::with_capacity(FLOOD);
    let mut left = iterations as usize;
    while left > 0 {
        let nr = left.min(FLOOD);
        out.extend((0..nr).map(|_| pages.alloc(0).expect("memory")));
        for block in out.drain(..) {
            pages.free(block, 0);
        }
        left -= nr;
    }
}

/// `iterations` times, one of [`MIXED`] blocks goes, whichever, and another comes: half of them single pages, a quarter pairs, and so on to
/// order 4, whose list holds one block.
#[inline(never)]
fn mixed<P: Pages>(pages: &mut P, iterations: u64) {
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    let mut next = |pages: &mut P| {
        let order = (dice.below(1 << 32).trailing_zeros() as u8).min(4);
        (
            pages.alloc(order).expect("memory"),
            order,
            dice.below(MIXED),
        )
    };
    let mut out: Vec<_> = (0..MIXED).map(|_| next(pages)).collect();
    for _ in 0..iterations {
        let new = next(pages);
        let (block, order, _) = core::mem::replace(&mut out[new.2], new);
        pages.free(block, order);
    }
    for (block, order, _) in out {
        pages.free(block, order);
    }
}

/// Blocks on their way to another thread.
struct Sent<T>(Vec<T>);

// SAFETY: block allocators let any thread free a block, and whoever receives it has it alone.
unsafe impl<T> Send for Sent<T> {}

/// `iterations` pages, allocated here and freed in another thread, which gives the boxes back.
fn hand_over<P: Pages>(iterations: u64, new: impl Fn() -> P + Sync) -> Duration {
    let handfuls = iterations.div_ceil(HANDFUL as u64);
    let (full, all_full) = sync_channel::<Sent<P::Block>>(16);
    let (empty, all_empty) = sync_channel(16);
    (0..16).for_each(|_| empty.send(Sent(Vec::with_capacity(HANDFUL))).expect("room"));
    let new = &new;
    let time = thread::scope(|scope| {
        scope.spawn(move || {
            let mut pages = new();
            for Sent(mut blocks) in all_full {
                blocks.drain(..).for_each(|block| pages.free(block, 0));
                // At the end nobody wants it.
                let _ = empty.send(Sent(blocks));
            }
        });
        let mut pages = new();
        let mut send = |handfuls| {
            for _ in 0..handfuls {
                let Sent(mut blocks) = all_empty.recv().expect("the other goes on");
                blocks.extend((0..HANDFUL).map(|_| pages.alloc(0).expect("memory")));
                full.send(Sent(blocks)).expect("the other goes on");
            }
        };
        send(200);
        let start = Instant::now();
        send(handfuls);
        let time = start.elapsed();
        drop(full);
        time
    });
    time.mul_f64(iterations as f64 / (handfuls * HANDFUL as u64) as f64)
}

/// `work` on each of `threads` threads, from the first one's start to the last one's end.
fn on_threads<P>(
    threads: usize,
    iterations: u64,
    new: impl Fn() -> P + Sync,
    work: impl Fn(&mut P, u64) + Sync,
) -> Duration {
    let barrier = Barrier::new(threads);
    let run = || {
        let mut pages = new();
        work(&mut pages, 10_000);
        barrier.wait();
        let start = Instant::now();
        work(&mut pages, iterations);
        (start, Instant::now())
    };
    let spans: Vec<(Instant, Instant)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().expect("no panic");
        threads.into_iter().map(join).collect()
    });
    let first = spans.iter().map(|span| span.0).min().expect("a thread");
    let last = spans.iter().map(|span| span.1).max().expect("a thread");
    last - first
}

/// The time of `iterations` pages, measured over whole passes.
fn by_passes(iterations: u64, mut pass: impl FnMut() -> Duration) -> Duration {
    let passes = iterations.div_ceil(PASS as u64);
    let time: Duration = (0..passes).map(|_| pass()).sum();
    time.mul_f64(iterations as f64 / (passes * PASS as u64) as f64)
}

fn bulk<P: Pages>(pages: &mut P) -> Duration {
    let mut out = Vec::with_capacity(PASS);
    let start = Instant::now();
    pages.alloc_bulk(&mut out);
    assert_eq!(out.len(), PASS);
    pages.free_bulk(&out);
    start.elapsed()
}

/// A generator that is the same in each run: Marsaglia's xorshift.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }

    fn shuffle<T>(&mut self, values: &mut [T]) {
        for last in (1..values.len()).rev() {
            values.swap(last, self.below(last + 1));
        }
    }
}

/// Only the frees are timed.
fn frees<P: Pages>(pages: &mut P, shuffled: bool) -> Duration {
    let mut out: Vec<_> = (0..PASS).map(|_| pages.alloc(0).expect("memory")).collect();
    if shuffled {
        Dice(0x2545_f491_4f6c_dd1d).shuffle(&mut out);
    }
    let start = Instant::now();
    for block in out {
        pages.free(block, 0);
    }
    start.elapsed()
}

/// LLFree's fragmentation test: 1 GiB is filled page by page, half of it freed at random, and then in each of the `rounds` a tenth of
/// what is out freed at random and allocated again. Says how many huge blocks have a page out then.
fn fragmentation<P: Pages>(
    rounds: usize,
    mut pages: P,
    number: impl Fn(P::Block) -> usize,
) -> usize {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut out: Vec<_> = core::iter::from_fn(|| pages.alloc(0)).collect();
    assert_eq!(out.len(), FRAGMENTED);
    dice.shuffle(&mut out);
    let mut free = |pages: &mut P, out: &mut Vec<P::Block>, nr: usize| {
        for _ in 0..nr {
            let block = out.swap_remove(dice.below(out.len()));
            pages.free(block, 0);
        }
    };
    free(&mut pages, &mut out, FRAGMENTED / 2);
    for _ in 0..rounds {
        let tenth = out.len() / 10;
        free(&mut pages, &mut out, tenth);
        out.extend((0..tenth).map(|_| pages.alloc(0).expect("as many were freed")));
    }
    let mut used = vec![false; FRAGMENTED / HUGE];
    for &block in &out {
        used[number(block) / HUGE] = true;
    }
    used.iter().filter(|&&used| used).count()
}

fn our_fragmentation<B: Lower>(rounds: usize) -> usize {
    let zone = zone::<B>(FRAGMENTED);
    let base = zone.span().base.addr().get();
    assert!(
        base.is_multiple_of(HUGE * PAGE_SIZE),
        "huge blocks are whole"
    );
    let number = |block: NonNull<u8>| (block.addr().get() - base) / PAGE_SIZE;
    fragmentation(rounds, Ours(&zone), number)
}

fn their_fragmentation(rounds: usize) -> usize {
    fragmentation(rounds, frames(FRAGMENTED), |frame| frame)
}

fn frames(pages: usize) -> Frames {
    let mut frames = FrameAllocator::new();
    frames.add_frame(0, pages);
    Frames(frames)
}

struct Bench<'g, 'c> {
    group: &'g mut BenchmarkGroup<'c, WallTime>,
}

impl Bench<'_, '_> {
    fn pairs<const ORDER: u8, P: Pages>(
        &mut self,
        name: &str,
        threads: &[usize],
        new: impl Fn() -> P + Sync,
    ) {
        self.threads(name, threads, new, pairs::<ORDER, P>);
    }

    fn threads<P>(
        &mut self,
        name: &str,
        threads: &[usize],
        new: impl Fn() -> P + Sync,
        work: impl Fn(&mut P, u64) + Sync,
    ) {
        for &threads in threads {
            self.group
                .bench_function(BenchmarkId::new(name, threads), |bencher| {
                    bencher.iter_custom(|n| on_threads(threads, n, &new, &work));
                });
        }
    }

    fn hand_over<P: Pages>(&mut self, name: &str, new: impl Fn() -> P + Sync) {
        self.group
            .bench_function(BenchmarkId::new(name, 2), |bencher| {
                bencher.iter_custom(|n| hand_over(n, &new));
            });
    }

    fn passes(&mut self, name: &str, mut pass: impl FnMut() -> Duration) {
        self.group
            .bench_function(BenchmarkId::new(name, 1), |bencher| {
                bencher.iter_custom(|n| by_passes(n, &mut pass));
            });
    }

    /// A count in the place of nanoseconds: the table has one column.
    fn count(&mut self, name: &str, measure: impl Fn() -> usize) {
        let count = OnceCell::new();
        self.group
            .bench_function(BenchmarkId::new(name, 0), |bencher| {
                bencher.iter_custom(|n| {
                    // criterion doubles `n` until real time has passed.
                    thread::sleep(Duration::from_millis(2));
                    Duration::from_nanos(*count.get_or_init(&measure) as u64 * n)
                });
            });
        if let Some(used) = count.get() {
            let all = FRAGMENTED / HUGE;
            println!("{name}: {} of {all} huge blocks are free", all - used);
        }
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200))
        .sample_size(20)
        .nresamples(1000)
        .configure_from_args();
    let mut group = criterion.benchmark_group("page");
    group.sampling_mode(SamplingMode::Flat);
    let mut bench = Bench { group: &mut group };

    let threads = [1, 2, 4];
    bench.pairs::<0, _>("order0", &threads, || Ours(&*ZONE));
    bench.pairs::<0, _>("order0-mimalloc", &threads, || Mi);
    bench.pairs::<0, _>("order0-buddy-locked", &threads, || LockedFrames(&FRAMES));
    bench.pairs::<0, _>("order0-buddy-heap-locked", &threads, || LockedBytes(&HEAP));
    bench.pairs::<0, _>("order0-buddy", &[1], || frames(PAGES));
    bench.pairs::<3, _>("order3", &[1, 2], || Ours(&*ZONE));
    bench.pairs::<3, _>("order3-mimalloc", &[1], || Mi);
    bench.pairs::<9, _>("order9", &threads, || Ours(&*ZONE));
    bench.pairs::<9, _>("order9-mimalloc", &[1], || Mi);
    bench.pairs::<9, _>("order9-buddy-locked", &threads, || LockedFrames(&FRAMES));

    bench.pairs::<4, _>("order4", &[1, 2], || Ours(&*ZONE));
    bench.pairs::<4, _>("order4-buddy-locked", &[1], || LockedFrames(&FRAMES));
    bench.pairs::<4, _>("order4-mimalloc", &[1], || Mi);
    bench.pairs::<10, _>("order10", &[1, 2], || Ours(&*ZONE));
    bench.pairs::<10, _>("order10-buddy-locked", &[1], || LockedFrames(&FRAMES));
    bench.threads("control", &threads, || (), arithmetic);
    let locked = || LockedFrames(&FRAMES);
    bench.threads("flood", &threads, || Ours(&*ZONE), flood);
    bench.threads("flood-buddy-locked", &[2, 4], locked, flood);
    bench.threads("mixed", &threads, || Ours(&*ZONE), mixed);
    bench.threads("mixed-buddy-locked", &threads, locked, mixed);
    bench.threads("mixed-mimalloc", &[1, 2], || Mi, mixed);
    bench.hand_over("hand-over", || Ours(&*ZONE));
    bench.hand_over("hand-over-buddy-locked", locked);
    bench.hand_over("hand-over-mimalloc", || Mi);

    let mut theirs = frames(PAGES);
    bench.passes("bulk", || bulk(&mut Ours(&*ZONE)));
    bench.passes("bulk-buddy", || bulk(&mut theirs));
    let mut bytes = Bytes(heap());
    bench.passes("bulk-buddy-heap", || bulk(&mut bytes));
    bench.passes("bulk-mimalloc", || bulk(&mut Mi));
    bench.passes("free-in-order", || frees(&mut Ours(&*ZONE), false));
    bench.passes("free-random", || frees(&mut Ours(&*ZONE), true));
    bench.passes("free-random-buddy", || frees(&mut theirs, true));

    for (name, rounds) in [("fragmentation", ROUNDS), ("fragmentation-long", LONG)] {
        bench.count(name, || our_fragmentation::<Buddies>(rounds));
        let bits = format!("{name}-bits");
        bench.count(&bits, || our_fragmentation::<BitTree>(rounds));
        let theirs = format!("{name}-buddy");
        bench.count(&theirs, || their_fragmentation(rounds));
    }
    group.finish();
    criterion.final_summary();
}
