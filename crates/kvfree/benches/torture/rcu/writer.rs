//! Writers: those that replace elements, and those that only ask for grace periods.

use super::element::Element;
use super::reader::{call_one, read};
use super::subject::Subject;
use super::world::World;
use crate::books::{Count, Fault};
use crate::random::Random;
use crate::stage::{Play, Role};
use rcu_core::{Cookie, FullCookie, Guard};
use std::hint;
use std::thread;
use std::time::Duration;

/// A way to wait for a grace period.
#[derive(Clone, Copy, Debug)]
enum Way {
    Synchronize,
    Expedited,
    /// Take a cookie, do something else, wait for it.
    Cond,
    CondExpedited,
    CondFull,
    CondFullExpedited,
    /// Ask for a grace period, and look again and again.
    Poll,
    PollExpedited,
    PollFull,
    PollFullExpedited,
}

const WAYS: [Way; 10] = [
    Way::Synchronize,
    Way::Expedited,
    Way::Cond,
    Way::CondExpedited,
    Way::CondFull,
    Way::CondFullExpedited,
    Way::Poll,
    Way::PollExpedited,
    Way::PollFull,
    Way::PollFullExpedited,
];

/// Cookies that somebody who polls keeps beside the one that is waited for.
const ALIVE: usize = 4;

fn doze(random: &mut Random) {
    match random.below(64) {
        0 => thread::sleep(Duration::from_micros(random.below(2_000) as u64)),
        1..8 => thread::yield_now(),
        _ => (0..random.below(200)).for_each(|_| hint::spin_loop()),
    }
}

/// Looks at `done` until it says yes. Says whether it did in time.
fn poll<R: Subject>(world: &World<R>, drives: bool, mut done: impl FnMut() -> bool) -> bool {
    let begun = world.stage.now();
    while !done() {
        if drives {
            world.rcu.drive();
        }
        if world.stage.now() - begun > world.stage.patience {
            world.stage.books.fault(Fault::Progress, || {
                format!(
                    "a polled cookie was not done for {:?}",
                    world.stage.patience
                )
            });
            return false;
        }
        thread::yield_now();
        world.rcu.breathe();
    }
    true
}

/// As [`poll`], with a few other cookies alive, of which none that was done may ever be not done again.
fn poll_among<R: Subject>(world: &World<R>, random: &mut Random, cookie: Cookie) -> bool {
    let rcu = world.rcu;
    let mut others: [Option<Cookie>; ALIVE] = [const { None }; ALIVE];
    let kept = 1 + random.below(ALIVE);
    let drives = random.one_in(2);
    let mut seen: Option<Cookie> = None;
    let finished = poll(world, drives, || {
        for other in &mut others[..kept] {
            match *other {
                Some(cookie) if rcu.poll(cookie) => {
                    seen = Some(cookie);
                    *other = None;
                }
                Some(_) => {}
                None => *other = Some(rcu.snapshot()),
            }
        }
        rcu.poll(cookie)
    });
    let books = &world.stage.books;
    let stays = seen.is_none_or(|cookie| rcu.poll(cookie)) && rcu.poll(Cookie::COMPLETED);
    books.check(stays, Fault::Cookie6, || format!("{seen:?}"));
    finished
}

/// Waits for a whole grace period in one of many ways, and checks cookies around it. False if none came.
fn grace_period<R: Subject>(
    world: &'static World<R>,
    random: &mut Random,
    role: &mut Role,
) -> bool {
    let rcu = world.rcu;
    let way = random.pick(&WAYS);
    let small = rcu.snapshot();
    let full = rcu.snapshot_full();
    let cond = |random: &mut Random| {
        let small = rcu.snapshot();
        let full = rcu.snapshot_full();
        doze(random);
        (small, full)
    };
    // The cookie that the wait was for, which must be done now, small and full.
    let waited: (Option<Cookie>, Option<FullCookie>) = match way {
        Way::Synchronize => {
            rcu.synchronize();
            (Some(small), Some(full))
        }
        Way::Expedited => {
            rcu.synchronize_expedited();
            // Where two kinds overlap, a small cookie may need another one (R7).
            (None, Some(full))
        }
        Way::Cond => {
            let (small, _) = cond(random);
            rcu.wait(small);
            (Some(small), None)
        }
        Way::CondExpedited => {
            let (small, _) = cond(random);
            rcu.wait_expedited(small);
            (Some(small), None)
        }
        Way::CondFull => {
            let (_, full) = cond(random);
            rcu.wait_full(full);
            (None, Some(full))
        }
        Way::CondFullExpedited => {
            let (_, full) = cond(random);
            rcu.wait_full_expedited(full);
            (None, Some(full))
        }
        Way::Poll | Way::PollExpedited => {
            let cookie = match way {
                Way::Poll => rcu.start(),
                _ => rcu.start_expedited(),
            };
            if !poll_among(world, random, cookie) {
                return false;
            }
            (Some(cookie), None)
        }
        Way::PollFull | Way::PollFullExpedited => {
            let cookie = match way {
                Way::PollFull => rcu.start_full(),
                _ => rcu.start_full_expedited(),
            };
            if !poll(world, random.one_in(2), || rcu.poll_full(cookie)) {
                return false;
            }
            (None, Some(cookie))
        }
    };
    let books = role.books();
    if let Some(cookie) = waited.0 {
        role.tally.one(Count::CookieChecks);
        books.check(rcu.poll(cookie), Fault::Cookie4, || {
            format!("{cookie:?} after {way:?}")
        });
        // An older cookie is done when a younger one is.
        books.check(rcu.poll(small), Fault::Cookie3, || {
            format!("{small:?} after {cookie:?} by {way:?}")
        });
    }
    if let Some(cookie) = waited.1 {
        role.tally.one(Count::CookieChecks);
        books.check(rcu.poll_full(cookie), Fault::Cookie5, || {
            format!("{cookie:?} after {way:?}")
        });
    }
    let polls = matches!(
        way,
        Way::Poll | Way::PollExpedited | Way::PollFull | Way::PollFullExpedited
    );
    role.tally
        .one(if polls { Count::Polls } else { Count::Syncs });
    true
}

/// In a section, cookies that are taken there are not done, and nothing is.
fn check_cookies<R: Subject>(world: &World<R>, role: &mut Role) {
    let (rcu, books) = (world.rcu, role.books());
    let _guard = Guard::new(rcu);
    let (small, full) = (rcu.snapshot(), rcu.snapshot_full());
    books.check(!rcu.poll(small), Fault::Cookie1, || {
        format!("{small:?} at once")
    });
    books.check(!rcu.poll_full(full), Fault::Cookie2, || {
        format!("{full:?} at once")
    });
    let done = rcu.poll(Cookie::COMPLETED);
    books.check(done, Fault::Cookie6, || "the completed cookie".into());
    role.tally.add(Count::CookieChecks, 3);
}

/// A writer, with the elements that it removed and has not recycled yet.
pub(crate) struct Writer<R: Subject> {
    world: &'static World<R>,
    removed: Vec<&'static Element<R>>,
}

impl<R: Subject> Writer<R> {
    pub(crate) const fn new(world: &'static World<R>) -> Self {
        Self {
            world,
            removed: Vec::new(),
        }
    }

    /// A grace period has passed since the last of them was removed.
    fn advance(&mut self) {
        self.removed.retain(|element| element.advance());
    }
}

impl<R: Subject> Play for Writer<R> {
    fn round(&mut self, role: &mut Role, random: &mut Random) {
        let world = self.world;
        check_cookies(world, role);
        let cell = random.below(16);
        let how = random.below(16);
        let dozes = random.one_in(4);
        if let Some(new) = world.take() {
            role.tally.one(Count::Updates);
            if let Some(old) = world.publish(cell, new) {
                match how {
                    0..5 => old.call(false),
                    5..7 => {
                        role.tally.one(Count::LazyCalls);
                        old.call(true);
                    }
                    _ => self.removed.push(old),
                }
            }
        } else {
            role.tally.one(Count::Starved);
            thread::sleep(Duration::from_micros(50));
        }
        if how >= 7 && grace_period(world, random, role) {
            self.advance();
        }
        if dozes {
            doze(random);
        }
        read(world, random, &mut role.tally, None);
        world.rcu.breathe();
    }

    /// Recycles all that it removed.
    fn rest(&mut self, role: &mut Role) {
        while !self.removed.is_empty() {
            self.world.rcu.synchronize();
            role.tally.one(Count::Syncs);
            self.advance();
        }
        self.world.rcu.breathe();
    }
}

/// A round of a writer without data: asks, waits, queues, and now and then has everything run.
pub(crate) fn fake<R: Subject>(world: &'static World<R>, role: &mut Role, random: &mut Random) {
    match random.below(32) {
        0 => {
            world.rcu.barrier();
            role.tally.one(Count::Barriers);
        }
        1..6 => {
            call_one(world, random.one_in(4), &mut role.tally);
        }
        6..8 => check_cookies(world, role),
        _ => {
            grace_period(world, random, role);
        }
    }
    doze(random);
    world.rcu.breathe();
}
