//! Models of the ways a free page takes from one user to the next, on the real lists, stash and buddy system.
//!
//! Mutants: `--cfg weaken="p7_stash"` and `"p7_take"` must make `p7_stash_push_vs_take_all` fail, and rcu-core's `"p8"`
//! `p8_remote_drain_vs_owner`.
//!
//! Not shown:
//! - the asymmetry of the local lock's fences, which are full fences on both sides here;
//! - the words inside of a list or of the buddy system as such, which loom does not watch: two that are inside at
//!   once show by what they do to a page (its contents, which loom watches; its state, which `take_back` checks; the count);
//! - `Zone`'s own two lines of a hit, which are `Shared`'s (`models`).

#![cfg(all(loom, feature = "std", not(feature = "history")))]

use loom::sync::Arc;
use loom::thread;
use pagealloc::Attempt;
use pagealloc::models::{Out, PAGES, World};

/// Explores `f`, with fewer preemptions than usual where a step is long: the buddy system is some dozen
/// accesses to page states, each a point to be preempted at.
fn model(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(
        builder
            .preemption_bound
            .unwrap_or(preemptions)
            .min(preemptions),
    );
    builder.check(f);
}

/// Every page is in one place, and a last round of use finds each of them once.
fn all_there(world: &World) {
    world.drain();
    assert_eq!(world.pages(), [PAGES, 0, 0]);
    assert_eq!(world.take_chunk(PAGES + 1).len(), PAGES);
}

fn take_at(world: &World, owner: bool, attempt: Attempt) -> Option<Out> {
    // SAFETY: each model has one owner.
    unsafe { world.take(owner, attempt) }
}

fn put_at(world: &World, owner: bool, out: Out, attempt: Attempt) {
    // SAFETY: as above.
    unsafe { world.put(owner, out, attempt) }
}

/// One frees without a lock; a holder of the arena's lock merges what was pushed and hands it on.
#[test]
fn p7_stash_push_vs_take_all() {
    model(3, || {
        let world = Arc::new(World::new());
        let mut out = world.take_chunk(PAGES);
        let rest = out.split_off(2);
        let holder = {
            let world = world.clone();
            thread::spawn(move || {
                let mine = [(); 2].map(|()| take_at(&world, false, Attempt::TryLock));
                mine.into_iter()
                    .flatten()
                    .for_each(|out| put_at(&world, false, out, Attempt::NoWait));
            })
        };
        for out in out {
            put_at(&world, false, out, Attempt::PcpOnly);
        }
        holder.join().unwrap();
        rest.into_iter()
            .for_each(|out| put_at(&world, false, out, Attempt::NoWait));
        all_there(&world);
    });
}

/// Two push at once: who takes both by what the later one wrote has the earlier one's page too (the release sequence).
#[test]
fn p7_two_pushers_vs_take_all() {
    model(2, || {
        let world = Arc::new(World::new());
        let mut out = world.take_chunk(PAGES).into_iter();
        let holder = {
            let world = world.clone();
            thread::spawn(move || {
                let mine = world.take_chunk(PAGES);
                mine.into_iter()
                    .for_each(|out| put_at(&world, false, out, Attempt::PcpOnly));
            })
        };
        let pusher = {
            let (world, mine) = (world.clone(), out.next().unwrap());
            thread::spawn(move || put_at(&world, false, mine, Attempt::PcpOnly))
        };
        put_at(&world, false, out.next().unwrap(), Attempt::PcpOnly);
        pusher.join().unwrap();
        holder.join().unwrap();
        out.for_each(|out| put_at(&world, false, out, Attempt::NoWait));
        all_there(&world);
    });
}

/// The owner frees to its list and allocates from it while somebody empties it and uses what was there.
#[test]
fn p8_remote_drain_vs_owner() {
    model(2, || {
        let world = Arc::new(World::new());
        let first = take_at(&world, true, Attempt::NoWait).unwrap();
        let visitor = {
            let world = world.clone();
            thread::spawn(move || {
                let drained = world.drain();
                let mine = take_at(&world, false, Attempt::NoWait);
                if let Some(out) = mine {
                    put_at(&world, false, out, Attempt::NoWait);
                }
                drained
            })
        };
        put_at(&world, true, first, Attempt::PcpOnly);
        let second = take_at(&world, true, Attempt::PcpOnly);
        assert!(visitor.join().unwrap() <= PAGES);
        if let Some(out) = second {
            put_at(&world, true, out, Attempt::PcpOnly);
        }
        all_there(&world);
    });
}

/// The same with an owner who goes to the zone: it refills its list from the pages that the visitor puts there.
#[test]
fn p8_remote_drain_vs_refill() {
    model(1, || {
        let world = Arc::new(World::new());
        let first = take_at(&world, true, Attempt::NoWait).unwrap();
        put_at(&world, true, first, Attempt::PcpOnly);
        let visitor = {
            let world = world.clone();
            thread::spawn(move || world.drain())
        };
        let out: Vec<_> = (0..PAGES)
            .filter_map(|_| take_at(&world, true, Attempt::NoWait))
            .collect();
        assert!(visitor.join().unwrap() <= PAGES);
        out.into_iter()
            .for_each(|out| put_at(&world, true, out, Attempt::PcpOnly));
        all_there(&world);
    });
}
