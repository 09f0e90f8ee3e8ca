//! Floods of callbacks, readers that leave no gap, stalls, knobs, pauses: what must not keep grace periods from ending.

use super::subject::Subject;
use super::world::World;
use crate::books::{Count, Fault};
use crate::random::Random;
use crate::stage::{Role, Stage};
use rcu_core::{Callback, Guard, Head};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// Callbacks of one flood, and how often so many of them must come round.
const FLOOD: usize = 1_000;
const MANY: usize = 100;
const ROUNDS: usize = 3;

struct Flood<R: Subject> {
    rcu: R,
    over: AtomicBool,
    /// Callbacks that have come round often enough; those that are out.
    round: AtomicUsize,
    out: AtomicUsize,
    launders: AtomicUsize,
}

#[repr(C)]
struct Drop_<R: Subject> {
    head: Head,
    rounds: AtomicUsize,
    flood: &'static Flood<R>,
}

/// # Safety
/// 1. `head` is of a `Drop_<R>` made by a box, whose time has come.
unsafe fn launder<R: Subject>(head: NonNull<Head>) {
    let drop = head.cast::<Drop_<R>>();
    // SAFETY: 1, and the head is the first field.
    let this = unsafe { drop.as_ref() };
    let flood = this.flood;
    flood.launders.fetch_add(1, Ordering::Relaxed);
    if this.rounds.fetch_add(1, Ordering::Relaxed) + 1 == ROUNDS {
        flood.round.fetch_add(1, Ordering::Relaxed);
    }
    if flood.over.load(Ordering::Relaxed) {
        // SAFETY: 1: it is queued nowhere else.
        std::mem::drop(unsafe { Box::from_raw(drop.as_ptr()) });
        flood.out.fetch_sub(1, Ordering::Release);
    } else {
        // SAFETY: the head is the callback's again.
        unsafe { flood.rcu.call(head, Callback::Run(launder::<R>)) };
    }
}

/// Callbacks that queue themselves again: many of them must come round a few times, and all come to an end.
pub(crate) fn flood<R: Subject>(world: &'static World<R>, role: &mut Role) {
    let rcu = world.rcu;
    let flood: &'static Flood<R> = Box::leak(Box::new(Flood {
        rcu,
        over: AtomicBool::new(false),
        round: AtomicUsize::new(0),
        out: AtomicUsize::new(0),
        launders: AtomicUsize::new(0),
    }));
    for _ in 0..FLOOD {
        let drop = Box::new(Drop_ {
            head: Head::new(),
            rounds: AtomicUsize::new(0),
            flood,
        });
        flood.out.fetch_add(1, Ordering::Relaxed);
        let head = NonNull::from(Box::leak(drop)).cast();
        // SAFETY: nobody else knows the box, which its last callback takes back, on whatever thread.
        unsafe { rcu.call(head, Callback::Run(launder::<R>)) };
    }
    let begun = role.stage.now();
    let waited = |until: &dyn Fn() -> bool, what: &dyn Fn() -> String| {
        while !until() {
            if role.stage.now() - begun > role.stage.patience * 2 {
                role.books().fault(Fault::Progress, what);
                return;
            }
            rcu.breathe();
            thread::sleep(Duration::from_micros(200));
        }
    };
    waited(&|| flood.round.load(Ordering::Relaxed) >= MANY, &|| {
        let (round, all) = (flood.round.load(Ordering::Relaxed), FLOOD);
        format!("{round} of a flood of {all} callbacks came round {ROUNDS} times")
    });
    flood.over.store(true, Ordering::Relaxed);
    waited(&|| flood.out.load(Ordering::Acquire) == 0, &|| {
        format!("{:?} callbacks of a flood are still out", flood.out)
    });
    let launders = flood.launders.load(Ordering::Relaxed);
    role.tally.one(Count::Floods);
    role.tally.add(Count::Launders, launders as u64);
}

/// A reader that leaves no gap between its sections: grace periods must end all the same.
pub(crate) fn tight_reader<R: Subject>(world: &'static World<R>, role: &mut Role) {
    let rcu = world.rcu;
    let begun = role.stage.now();
    let mut cookies = 0;
    let mut cookie = rcu.start();
    let mut sections: u64 = 0;
    while cookies < 2 && role.stage.now() - begun < role.stage.patience {
        for _ in 0..1_000 {
            drop(Guard::new(rcu));
        }
        sections += 1_000;
        if rcu.poll(cookie) {
            cookies += 1;
            cookie = rcu.start();
        }
    }
    role.books().check(cookies >= 2, Fault::Progress, || {
        format!("{cookies} grace periods beside a reader with {sections} sections without a gap")
    });
    role.tally.add(Count::Reads, sections);
}

/// By turns a flood and a reader without gaps, or a stall where those are told.
pub(crate) fn round<R: Subject>(world: &'static World<R>, role: &mut Role, random: &mut Random) {
    match random.below(3) {
        0 => flood(world, role),
        1 => tight_reader(world, role),
        _ => stall(world, role),
    }
    world.rcu.breathe();
    role.stage
        .sleep(Duration::from_millis(200 + random.below(800) as u64));
}

/// A reader that stays inside for too long: that must be told.
fn stall<R: Subject>(world: &'static World<R>, role: &mut Role) {
    let rcu = world.rcu;
    let Some((timeout, before)) = rcu.stalls() else {
        return;
    };
    let told = || rcu.stalls().map_or(0, |(_, told)| told) - before;
    role.tally.one(Count::Stalls);
    let begun = role.stage.now();
    {
        let _guard = Guard::new(rcu);
        while told() == 0 && role.stage.now() - begun < timeout * 2 + role.stage.patience {
            rcu.start();
            thread::sleep(timeout / 20);
        }
    }
    role.books().check(told() > 0, Fault::NotTold, || {
        format!("a section that lasted for {:?}", role.stage.now() - begun)
    });
    role.tally.add(Count::StallsTold, told() as u64);
}

/// Turns a knob.
pub(crate) fn knobs<R: Subject>(world: &'static World<R>, role: &mut Role, random: &mut Random) {
    if world.rcu.turn_a_knob(random) {
        role.tally.one(Count::Knobs);
    }
    role.stage
        .sleep(Duration::from_millis(20 + random.below(200) as u64));
}

/// Runs and rests by turns; after each rest all that was removed must have been recycled.
pub(crate) fn stutter<R: Subject>(world: &'static World<R>, stage: &'static Stage) {
    let run = (stage.seconds / 4).clamp(Duration::from_millis(400), Duration::from_secs(5));
    while !stage.is_over() {
        stage.sleep(run);
        let rested = stage.pause(|| settle(world));
        if rested {
            stage.books.one(Count::Pauses);
        }
    }
}

/// Nobody is at work: waits until everything is back where it belongs.
pub(crate) fn settle<R: Subject>(world: &'static World<R>) {
    let begun = world.stage.now();
    let books = &world.stage.books;
    while let Some(where_they_are) = world.stuck() {
        if world.stage.now() - begun > world.stage.patience {
            books.fault(Fault::Stuck, || where_they_are);
            return;
        }
        world.rcu.barrier();
        thread::yield_now();
    }
    while world.outstanding.load(Ordering::Acquire) > 0 {
        let left = &world.outstanding;
        if world.stage.now() - begun > world.stage.patience {
            books.fault(Fault::Lost, || format!("{left:?} callbacks have not run"));
            return;
        }
        world.rcu.barrier();
        thread::yield_now();
    }
}
