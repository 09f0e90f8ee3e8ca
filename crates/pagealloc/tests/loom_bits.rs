//! Models of the bit tree's ordering pair, on the real area and hints with loom's words.
//!
//! Mutants: `--cfg weaken="p7_bits"` must make `p7_give_of_a_page_vs_claim_by_anothers_count` fail, `"p7_count"`
//! `p7_give_of_a_page_vs_claim_of_the_whole_half`, `"p7_hints"` `p7_give_vs_a_searcher_that_found_nothing`.
//!
//! Not shown: blocks larger than a half and smaller than four rows are not claimed against each other (a model's half has four
//! rows); the search over areas and the flags that keep slots apart, which are hints.

#![cfg(loom)]

use loom::sync::Arc;
use loom::thread;
use pagealloc::models_of_bits::{HALF, Out, World};

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(f);
}

/// The pages with these numbers are free.
fn world(free: &[Out]) -> Arc<World> {
    let world = World::default();
    free.iter().for_each(|&run| world.give(run));
    Arc::new(world)
}

#[test]
fn p7_give_of_a_page_vs_claim_by_anothers_count() {
    model(|| {
        // The claimer's count may be the higher page's, its bit the lower one's.
        let world = world(&[Out(3, 4)]);
        let giver = {
            let world = world.clone();
            thread::spawn(move || world.give(Out(0, 1)))
        };
        let got = world.claim(0, 1);
        assert_eq!(got.len(), 1, "one page was free all the time");
        giver.join().unwrap();
        assert_eq!(world.free(), (1, true));
    });
}

#[test]
fn p7_give_of_a_page_vs_claim_of_the_whole_half() {
    model(|| {
        let world = world(&[Out(1, 1 << HALF)]);
        let giver = {
            let world = world.clone();
            thread::spawn(move || world.give(Out(0, 1)))
        };
        let got = world.claim(HALF, 1);
        giver.join().unwrap();
        let left = if got.is_empty() { 1 << HALF } else { 0 };
        assert_eq!(world.free().0, left);
        got.into_iter().for_each(|run| world.give(run));
        assert_eq!(world.claim(HALF, 1), [Out(0, 1 << HALF)]);
    });
}

#[test]
fn p7_give_of_the_whole_half_vs_claim_of_a_page() {
    model(|| {
        let world = world(&[]);
        let giver = {
            let world = world.clone();
            thread::spawn(move || world.give(Out(0, 1 << HALF)))
        };
        let got = world.claim(0, 1);
        giver.join().unwrap();
        assert_eq!(world.free().0, (1 << HALF) - got.len());
    });
}

#[test]
fn p7_claims_of_one_word() {
    model(|| {
        // Pages 0 and 1 for either the pair or two singles, page 2 for a single only.
        let world = world(&[Out(0, 3)]);
        let other = {
            let world = world.clone();
            thread::spawn(move || world.claim(1, 1))
        };
        let single = world.claim(0, 1);
        let pair = other.join().unwrap();
        assert_eq!(single.len(), 1);
        assert_eq!(world.free().0, 2 - 2 * pair.len());
    });
}

#[test]
fn p7_claim_of_a_page_vs_claim_of_the_whole_half() {
    model(|| {
        let world = world(&[Out(0, 1 << HALF)]);
        let other = {
            let world = world.clone();
            thread::spawn(move || world.claim(HALF, 1))
        };
        let single = world.claim(0, 1);
        let whole = other.join().unwrap();
        assert_eq!(single.len() + whole.len(), 1);
        for run in single.into_iter().chain(whole) {
            world.give(run);
        }
        assert_eq!(world.free(), (1 << HALF, true));
    });
}

#[test]
fn p7_claim_of_rows_vs_claim_of_a_page() {
    model(|| {
        // Two rows: the larger claim may take one and have to give it back.
        let world = world(&[Out(0, 128)]);
        let other = {
            let world = world.clone();
            thread::spawn(move || world.claim(7, 1))
        };
        let single = world.claim(0, 1);
        let rows = other.join().unwrap();
        assert!(single.len() + rows.len() <= 1);
        for run in single.into_iter().chain(rows) {
            world.give(run);
        }
        assert_eq!(world.claim(7, 1), [Out(0, 128)]);
    });
}

#[test]
fn p7_give_vs_a_searcher_that_found_nothing() {
    model(|| {
        let world = world(&[]);
        let giver = {
            let world = world.clone();
            thread::spawn(move || world.give(Out(0, 1)))
        };
        world.forget();
        giver.join().unwrap();
        assert_eq!(world.free(), (1, true));
    });
}
