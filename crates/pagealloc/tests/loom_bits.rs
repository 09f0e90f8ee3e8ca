//! Models of the bit tree's ordering pair, on the real area and hints with loom's words.
//!
//! | transition | models |
//! |---|---|
//! | a page's bit claimed, by its own count or another's | `p7_give_of_a_page_vs_claim_by_anothers_count`, `p7_claims_of_one_word` |
//! | rows claimed as one block, or given back by a claim that failed | `p7_give_of_a_page_vs_claim_of_rows`, `p7_claim_of_rows_vs_claim_of_a_page`, `p7_failed_claim_of_rows_vs_claim_of_the_whole_half` |
//! | a half claimed as a whole | `p7_give_of_a_page_vs_claim_of_the_whole_half`, `p7_claim_of_a_page_vs_claim_of_the_whole_half` |
//! | an area claimed as a whole | `p7_give_of_a_page_vs_claim_of_the_whole_area`, `p7_claim_of_a_half_vs_claim_of_the_whole_area` |
//! | a page, many pages (a drain), a half given | the above, `p7_drain_of_many_vs_claim_of_pages`, `p7_give_of_the_whole_half_vs_claim_of_a_page` |
//! | a range isolated for a region's removal, or given back by one that failed | `p7_give_of_a_page_vs_removal_of_its_range`, `p7_failed_removal_vs_claim_of_the_whole_half`, `p7_failed_removal_of_two_halves_vs_claim` |
//! | hints set and cleared | `p7_give_vs_a_searcher_that_found_nothing`, `p7_give_vs_a_searcher_for_a_whole_half` |
//! | a half marked idle, and claimed from | `p7_claim_vs_tick` |
//!
//! Mutants: the givers' sides `--cfg weaken="p7_bits"`, `"p7_count"`, a failed claimer's `"p7_back"`, the searcher's `"p7_hints"`; the claimers' `"p7_claim_bits"`, `"p7_claim_count"`,
//! `"p7_claim_row"`, `"p7_claim_range"`, `"p7_claim_whole"`; and two that are no orderings: `"bits_back"` gives counts back before the bits,
//! `"bits_idle"` marks a half that somebody has just claimed from. Which test must see which is in `xtask`'s list.
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

#[test]
fn p7_give_of_a_page_vs_claim_of_rows() {
    model(|| {
        // There are counts for two rows elsewhere, so that the claimer's need not be the page's.
        let world = world(&[Out(1, 1 << HALF)]);
        let giver = {
            let world = world.clone();
            thread::spawn(move || world.give(Out(0, 1)))
        };
        let got = world.claim(7, 1);
        assert_eq!(got.len(), 1, "two rows were free all the time");
        giver.join().unwrap();
        got.into_iter().for_each(|run| world.give(run));
        assert_eq!(world.free(), (1 << HALF, true));
    });
}

#[test]
fn p7_give_of_a_page_vs_claim_of_the_whole_area() {
    model(|| {
        let world = world(&[Out(1, 2 << HALF)]);
        let giver = {
            let world = world.clone();
            thread::spawn(move || world.give(Out(0, 1)))
        };
        let got = world.claim(HALF + 1, 1);
        giver.join().unwrap();
        got.into_iter().for_each(|run| world.give(run));
        assert_eq!(world.claim(HALF + 1, 1), [Out(0, 2 << HALF)]);
    });
}

#[test]
fn p7_claim_of_a_half_vs_claim_of_the_whole_area() {
    model(|| {
        let world = world(&[Out(0, 2 << HALF)]);
        let other = {
            let world = world.clone();
            thread::spawn(move || world.claim(HALF, 1))
        };
        let whole = world.claim(HALF + 1, 1);
        let half = other.join().unwrap();
        assert_eq!(whole.len() + half.len(), 1, "one of them, never both");
    });
}

#[test]
fn p7_drain_of_many_vs_claim_of_pages() {
    model(|| {
        // Two rows and a bit come back at once.
        let world = world(&[Out(130, 131)]);
        let drain = {
            let world = world.clone();
            thread::spawn(move || world.give(Out(0, 130)))
        };
        let got = world.claim(0, 3);
        assert!((1..=3).contains(&got.iter().map(|run| run.1 - run.0).sum::<u32>()));
        drain.join().unwrap();
        got.into_iter().for_each(|run| world.give(run));
        assert_eq!(world.free(), (131, true));
    });
}

#[test]
fn p7_give_of_a_page_vs_removal_of_its_range() {
    model(|| {
        // As above: the count may be the other page's.
        let world = world(&[Out(3, 4)]);
        let giver = {
            let world = world.clone();
            thread::spawn(move || world.give(Out(0, 1)))
        };
        let taken = world.claim_range(Out(0, 1));
        giver.join().unwrap();
        assert_eq!(world.free(), (2 - usize::from(taken), true));
    });
}

/// Claims two rows, or their range, while somebody makes that fail between the first and the second, and then claims the half.
fn fails(claim: impl Fn(&World) -> Vec<Out> + Copy + Sync + Send + 'static) {
    model(move || {
        let world = world(&[Out(0, 1 << HALF)]);
        let other = {
            let world = world.clone();
            thread::spawn(move || claim(&world))
        };
        let page = Out(64, 65);
        let mut got = Vec::new();
        if world.claim_range(page) {
            world.give(page);
            got = world.claim(HALF, 1);
        }
        let rows = other.join().unwrap();
        assert!(rows.len() + got.len() <= 1);
        got.into_iter().chain(rows).for_each(|run| world.give(run));
        assert_eq!(world.claim(HALF, 1), [Out(0, 1 << HALF)]);
    });
}

#[test]
fn p7_failed_claim_of_rows_vs_claim_of_the_whole_half() {
    fails(|world| world.claim(7, 1));
}

#[test]
fn p7_failed_removal_vs_claim_of_the_whole_half() {
    fails(|world| {
        let range = Out(0, 128);
        world
            .claim_range(range)
            .then_some(range)
            .into_iter()
            .collect()
    });
}

#[test]
fn p7_failed_removal_of_two_halves_vs_claim() {
    model(|| {
        // The upper half's page is out, so the lower one's pages must come back.
        let end = 1 << HALF;
        let world = world(&[Out(end - 2, end), Out(end + 1, end + 2)]);
        let other = {
            let world = world.clone();
            thread::spawn(move || world.claim(0, 1))
        };
        assert!(!world.claim_range(Out(end - 2, end + 2)));
        let got = other.join().unwrap();
        assert_eq!(world.free(), (3 - got.len(), true));
        got.into_iter().for_each(|run| world.give(run));
        assert_eq!(
            world.claim(0, 3).len(),
            2,
            "two of a half, one of the other"
        );
    });
}

#[test]
fn p7_give_vs_a_searcher_for_a_whole_half() {
    model(|| {
        let world = world(&[Out(1, 1 << HALF)]);
        let giver = {
            let world = world.clone();
            thread::spawn(move || world.give(Out(0, 1)))
        };
        world.forget_whole();
        giver.join().unwrap();
        assert!(world.whole_is_hinted());
    });
}

#[test]
fn p7_claim_vs_tick() {
    model(|| {
        let world = world(&[Out(0, 1 << HALF)]);
        let other = {
            let world = world.clone();
            thread::spawn(move || world.claim(0, 1))
        };
        assert_eq!(world.idle(), 0, "nothing was marked before");
        let page = other.join().unwrap();
        assert!(!world.is_idle(0), "whoever marked it, a page is out");
        page.into_iter().for_each(|run| world.give(run));
        assert!(!world.is_idle(0));
        assert_eq!((world.idle(), world.idle()), (0, 1 << HALF));
    });
}
