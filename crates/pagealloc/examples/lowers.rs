//! What a page costs when a slot's list does not serve it, over either lower level, with one thread and with several.
//!
//! Run with `cargo run --release -p pagealloc --example lowers`. Each figure is the median of the rounds, nanoseconds of wall time by
//! page (or block) and thread; levels and thread counts take turns, so that a machine that drifts drifts for all.

use pagealloc::{Attempt, BitTree, Buddies, Lower, Mmap, Order, PageAlloc, PageReq, Zone};
use rcu_core::cpu::Threads;
use std::ptr::NonNull;
use std::sync::Barrier;
use std::time::Instant;

/// Pages that a thread has at once: more than its lists hold, so that every round goes through the lower level.
const FLOOD: usize = 512;
const TIMES: usize = 2500;
const ROUNDS: usize = 9;
/// Pages that come back in an order that has nothing to do with where they lie.
const SCATTERED: usize = 4096;
const SCATTERED_TIMES: usize = 150;
/// Blocks of 2 MiB that a thread has at once: more than its list holds.
const HUGE: usize = 32;
const HUGE_TIMES: usize = 400;
/// Blocks of an order without lists: each pair goes through the lower level.
const PAIRS: usize = 100_000;

type Over<B> = Zone<Threads, Mmap, B>;

fn zone<B: Lower>() -> Over<B> {
    Zone::with_lower(Threads, Mmap::reserve(4 << 30).expect("addresses")).expect("a zone")
}

/// Runs `work` in `threads` threads at once, and returns nanoseconds of one unit of `units`.
fn timed(threads: usize, units: usize, work: impl Fn() + Sync) -> f64 {
    let (work, barrier) = (&work, &Barrier::new(threads));
    let nanos: u128 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(move || {
                    // Slots and lists are set up before the clock starts.
                    work();
                    barrier.wait();
                    let start = Instant::now();
                    work();
                    start.elapsed().as_nanos()
                })
            })
            .collect();
        let times = threads.into_iter().map(|t| t.join().expect("no panic"));
        times.max().unwrap_or(0)
    });
    nanos as f64 / units as f64
}

/// Allocates and frees [`FLOOD`] pages, again and again.
fn flood<B: Lower>(zone: &Over<B>, threads: usize) -> f64 {
    timed(threads, FLOOD * TIMES, || {
        let mut pages = [NonNull::dangling(); FLOOD];
        for _ in 0..TIMES {
            for page in &mut pages {
                *page = zone.alloc(PageReq::new(Order::ZERO)).expect("memory");
            }
            for page in pages {
                // SAFETY: the page came from this zone, and is forgotten here.
                unsafe { zone.free(page, Order::ZERO) };
            }
        }
    })
}

/// Allocates [`SCATTERED`] pages and frees them crosswise, again and again.
fn scattered<B: Lower>(zone: &Over<B>, threads: usize) -> f64 {
    timed(threads, SCATTERED * SCATTERED_TIMES, || {
        let mut pages = vec![NonNull::dangling(); SCATTERED];
        for _ in 0..SCATTERED_TIMES {
            for page in &mut pages {
                *page = zone.alloc(PageReq::new(Order::ZERO)).expect("memory");
            }
            // A stride without a common factor: each once.
            for i in 0..SCATTERED {
                let page = pages[i * 1597 % SCATTERED];
                // SAFETY: the page came from this zone, and is forgotten here.
                unsafe { zone.free(page, Order::ZERO) };
            }
        }
    })
}

/// Allocates and frees [`HUGE`] blocks of 2 MiB, again and again.
fn huge<B: Lower>(zone: &Over<B>, threads: usize) -> f64 {
    let order = Order::new(9).expect("an order");
    timed(threads, HUGE * HUGE_TIMES, || {
        let mut blocks = [NonNull::dangling(); HUGE];
        for _ in 0..HUGE_TIMES {
            for block in &mut blocks {
                *block = zone.alloc(PageReq::new(order)).expect("memory");
            }
            for block in blocks {
                // SAFETY: the block came from this zone, and is forgotten here.
                unsafe { zone.free(block, order) };
            }
        }
    })
}

/// A pair without lists, in which the second would find the first.
fn pair<B: Lower>(zone: &Over<B>, order: u8, threads: usize) -> f64 {
    let order = Order::new(order).expect("an order");
    let _lists = zone.disable_lists();
    timed(threads, PAIRS, || {
        for _ in 0..PAIRS {
            let block = zone
                .alloc(PageReq::new(order).attempt(Attempt::MayGrow))
                .expect("memory");
            // SAFETY: the block came from this zone, and is forgotten here.
            unsafe { zone.free(block, order) };
        }
    })
}

/// One round of every figure for one lower level, in zones of its own.
fn measure<B: Lower>(name: &str, figures: &mut Vec<(String, Vec<f64>)>) {
    let mut note =
        |what: String, value: f64| match figures.iter_mut().find(|(name, _)| *name == what) {
            Some((_, values)) => values.push(value),
            None => figures.push((what, vec![value])),
        };
    for threads in [1, 2, 4] {
        let zone = zone::<B>();
        note(
            format!("flood of {FLOOD}, {threads} threads, {name}"),
            flood(&zone, threads),
        );
        note(
            format!("{SCATTERED} freed crosswise, {threads} threads, {name}"),
            scattered(&zone, threads),
        );
        note(
            format!("{HUGE} blocks of order 9, {threads} threads, {name}"),
            huge(&zone, threads),
        );
        for order in [4, 7] {
            let value = pair(&zone, order, threads);
            note(
                format!("order-{order} pair, {threads} threads, {name}"),
                value,
            );
        }
    }
}

fn main() {
    let mut figures = Vec::new();
    for _ in 0..ROUNDS {
        measure::<Buddies>("buddies", &mut figures);
        measure::<BitTree>("bit tree", &mut figures);
    }
    figures.sort_by(|a, b| a.0.cmp(&b.0));
    let mut bits = 0.0;
    // In the order of names, the bit tree's figure comes before the buddies'.
    for (i, (what, mut values)) in figures.into_iter().enumerate() {
        values.sort_by(f64::total_cmp);
        let (low, median, high) = (
            values[0],
            values[values.len() / 2],
            values[values.len() - 1],
        );
        print!("{what:48} {median:8.1} ns ({low:.1} to {high:.1})");
        if i % 2 == 0 {
            bits = median;
            println!();
        } else {
            println!(", bit tree {:.2} of that", bits / median);
        }
    }
}
