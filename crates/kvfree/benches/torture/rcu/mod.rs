//! Torture of an RCU: rcutorture's ideas (Linux `kernel/rcu/rcutorture.c`; facts and ideas, no code) over the trait `Rcu`.

mod barriers;
mod churn;
mod element;
mod order;
mod pressure;
mod reader;
pub(crate) mod subject;
mod world;
mod writer;

use crate::Running;
use crate::random::Random;
use crate::stage::{Play, Role, Stage};
use reader::{Letter, Receiver};
use std::sync::mpsc;
use std::thread;
use subject::Subject;
use world::World;
use writer::Writer;

/// Two cache lines of its own, since lines are fetched in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

const READERS: usize = 4;
const WRITERS: usize = 2;
const FAKES: usize = 3;
/// Sections on their way to another thread at a time.
const POST: usize = 16;

/// One round of a role.
type Round<R> = fn(&'static World<R>, &mut Role, &mut Random);

/// A role without anything to put down. Reads once a round besides, and for long now and then: whatever slot a detector
/// forgets, its reader is to tell.
struct Simple<R: Subject, F>(&'static World<R>, F);

impl<R, F> Play for Simple<R, F>
where
    R: Subject,
    F: FnMut(&mut Role, &mut Random) + Send + 'static,
{
    fn round(&mut self, role: &mut Role, random: &mut Random) {
        self.1(role, random);
        if random.one_in(4) {
            reader::long(self.0, random, &mut role.tally);
        } else {
            reader::read(self.0, random, &mut role.tally, None);
        }
    }

    fn rest(&mut self, _role: &mut Role) {
        self.0.rcu.breathe();
    }
}

/// Starts every role over `rcu`.
pub(crate) fn start<R: Subject>(rcu: R, stage: &'static Stage) -> Running {
    let world = World::new(rcu, stage, READERS);
    let (post, letters) = mpsc::sync_channel::<Letter<R>>(POST);
    let mut threads = Vec::new();
    for n in 0..READERS {
        let post = post.clone();
        let play = move |role: &mut Role, random: &mut Random| {
            reader::read(world, random, &mut role.tally, Some(&post));
            world.order.round(n, role.books(), &mut role.tally);
            if random.one_in(16) {
                rcu.breathe();
            }
        };
        threads.push(stage.role("reader", n, Simple(world, play)));
    }
    for n in 0..WRITERS {
        threads.push(stage.role("writer", n, Writer::new(world)));
    }
    for n in 0..FAKES {
        let play = move |role: &mut _, random: &mut _| writer::fake(world, role, random);
        threads.push(stage.role("fake", n, Simple(world, play)));
    }
    threads.push(stage.role("receiver", 0, Receiver::new(world, letters)));
    let rounds: [(&'static str, Round<R>); 4] = [
        ("barrier", barriers::round),
        ("churn", churn::round),
        ("pressure", pressure::round),
        ("knobs", pressure::knobs),
    ];
    for (name, round) in rounds {
        let play = move |role: &mut _, random: &mut _| round(world, role, random);
        threads.push(stage.role(name, 0, Simple(world, play)));
    }
    threads.push(thread::spawn(move || pressure::stutter(world, stage)));
    Running {
        threads,
        finish: Box::new(move || {
            rcu.reset_knobs();
            pressure::settle(world);
        }),
        own: Box::new(move || rcu.tell()),
        progress: Box::new(move || rcu.grace_periods() as u64),
    }
}
