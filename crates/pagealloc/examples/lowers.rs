//! What a page costs when a slot's list does not serve it, over either lower level, with one thread and with several.
//!
//! Run with `cargo run --release -p pagealloc --example lowers`. Each figure is the median of the rounds, nanoseconds of wall time by
//! page and thread; levels and thread counts take turns, so that a machine that drifts drifts for all.

use pagealloc::{Attempt, BitTree, Buddies, Lower, Mmap, Order, PageAlloc, PageReq, Zone};
use rcu_core::cpu::Threads;
use std::ptr::NonNull;
use std::sync::Barrier;
use std::time::Instant;

/// Pages that a thread has at once: more than its lists hold, so that every round goes through the lower level.
const FLOOD: usize = 512;
const TIMES: usize = 2500;
const ROUNDS: usize = 9;
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

/// A pair of an order that no list has.
fn pair<B: Lower>(zone: &Over<B>, order: u8, threads: usize) -> f64 {
    let order = Order::new(order).expect("an order");
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
    for (what, mut values) in figures {
        values.sort_by(f64::total_cmp);
        let (low, median, high) = (
            values[0],
            values[values.len() / 2],
            values[values.len() - 1],
        );
        println!("{what:44} {median:8.1} ns ({low:.1} to {high:.1})");
    }
}
