//! Threads that come, read a little, and go, in every way that a thread can end in.

use super::reader::{Look, call_one, read};
use super::subject::Subject;
use super::world::World;
use crate::books::{Count, Tally};
use crate::random::Random;
use crate::stage::Role;
use rcu_core::Guard;
use std::any::Any;
use std::cell::RefCell;
use std::thread;
use std::time::Duration;

/// As many threads end at about the same time, at most.
const BURST: usize = 16;

thread_local! {
    /// Dropped with the thread, before or after its slot.
    static AT_THE_END: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
}

/// Reads when it is dropped: if that is past the slot's end, without one.
struct Late<R: Subject>(&'static World<R>, Random);

impl<R: Subject> Drop for Late<R> {
    fn drop(&mut self) {
        let Self(world, random) = self;
        let mut tally = Tally::new();
        {
            let _guard = Guard::new(world.rcu);
            let look = Look::begin(world, random);
            thread::sleep(Duration::from_micros(random.below(300) as u64));
            look.end(world, &mut tally);
        }
        call_one(world, false, &mut tally);
        tally.one(Count::Late);
        world.stage.books.hand_in(&mut tally);
    }
}

/// A section that lasts until the thread is gone.
struct Lingering<R: Subject> {
    guard: Option<Guard<R>>,
    look: Option<Look<R>>,
    world: &'static World<R>,
}

impl<R: Subject> Drop for Lingering<R> {
    fn drop(&mut self) {
        let mut tally = Tally::new();
        thread::sleep(Duration::from_micros(100));
        if let Some(look) = self.look.take() {
            look.end(self.world, &mut tally);
        }
        drop(self.guard.take());
        tally.one(Count::Late);
        self.world.stage.books.hand_in(&mut tally);
    }
}

fn live<R: Subject>(world: &'static World<R>, mut random: Random) {
    let random = &mut random;
    let mut tally = Tally::new();
    let end = random.below(8);
    // What is registered before the thread's first section is dropped after its slot has gone.
    match end {
        0 => {
            let late: Box<dyn Any> = Box::new(Late(world, random.clone()));
            AT_THE_END.with_borrow_mut(|place| *place = Some(late));
        }
        1 => AT_THE_END.with_borrow_mut(|place| *place = None),
        _ => {}
    }
    // The first section is a long one, for a grace period that does not know of newcomers.
    {
        let _guard = Guard::new(world.rcu);
        let look = Look::begin(world, random);
        match random.below(4) {
            0 => thread::sleep(Duration::from_micros(random.below(1_000) as u64)),
            1 => thread::yield_now(),
            _ => {}
        }
        look.end(world, &mut tally);
    }
    for _ in 0..random.below(12) {
        read(world, random, &mut tally, None);
    }
    for _ in 0..random.below(4) {
        call_one(world, random.one_in(4), &mut tally);
    }
    match end {
        1 => {
            let guard = Guard::new(world.rcu);
            let look = Some(Look::begin(world, random));
            let guard = Some(guard);
            let lingering: Box<dyn Any> = Box::new(Lingering { guard, look, world });
            AT_THE_END.with_borrow_mut(|place| *place = Some(lingering));
        }
        2 => {
            let late: Box<dyn Any> = Box::new(Late(world, random.clone()));
            AT_THE_END.with_borrow_mut(|place| *place = Some(late));
        }
        _ => {}
    }
    tally.one(Count::Threads);
    world.stage.books.hand_in(&mut tally);
}

/// A burst of threads.
pub(crate) fn round<R: Subject>(world: &'static World<R>, role: &mut Role, random: &mut Random) {
    let burst = 1 + random.below(BURST);
    let threads: Vec<_> = (0..burst)
        .map(|n| {
            let choices = Random::of(random.next(), "thread", role.index, n as u64);
            thread::spawn(move || live(world, choices))
        })
        .collect();
    for thread in threads {
        // A panic in there is booked where it happens.
        let _ = thread.join();
    }
    world.rcu.breathe();
    thread::sleep(Duration::from_millis(random.below(10) as u64));
}
