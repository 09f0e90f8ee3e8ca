//! What happens on the simulated machine, round by round.
//!
//! # A round
//! 1. A storm: every slot of a random stretch that is there goes, and every one that is away comes back. A slot that
//!    is inside a section stays, or (one in four) goes all the same and *lingers* until its last exit.
//! 2. Every slot in turn: outside, it may enter a section, for none to three rounds; inside, it may nest deeper, or
//!    leave when its time has come. One in [`CALL`] queues a callback.
//! 3. At a random place in 2, somebody asks for a grace period, drives once, and runs the callbacks that are ready:
//!    the worker's part, or one CPU's tick. There may be more of them (`--drivers`).
//!
//! After as many grace periods as wanted every slot leaves and goes, and a barrier must find every callback. What that
//! costs is not reported, but held against the bounds.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};

use rcu_core::cpu::{PerSlot, Slot, SpinLock};
use rcu_core::{Callback, Cookie, GracePeriod, Head, Rcu};
use rcu_tree::{Geometry, Node, Token, Tree, TreeSlot};

use super::cpus::SimCpus;
use super::ledger::{LEVELS, Ledger, Period};
use super::options::Case;

/// Sections that are entered end within this many rounds.
const ROUNDS_INSIDE: u32 = 4;
/// Deepest nesting.
const DEEPEST: usize = 4;
/// One of so many slots queues a callback in a round.
const CALL: u32 = 64;
/// Rounds in which no grace period ends before something must be wrong: many times the longest section.
const PATIENCE: u32 = 64;

type SimTree<'m> = Tree<'m, &'m SimCpus, &'m Ledger>;

/// What one run found.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) levels: usize,
    pub(crate) nodes: usize,
    /// Of slots, nodes and the tree itself, shared out.
    pub(crate) bytes_per_slot: f64,
    /// Writes of nodes, by level, when all slots came for the first time.
    pub(crate) coming_up: [u64; LEVELS],
    pub(crate) periods: Vec<Period>,
    pub(crate) callbacks: u64,
    /// The first bound that was broken.
    pub(crate) broken: Option<String>,
}

/// Runs one machine. `ended` is told how many grace periods have ended.
///
/// An error is a fault of the tree: a grace period or a callback too early, too late, or lost.
pub(crate) fn run(case: &Case, ended: impl Fn(u64)) -> Result<Run, String> {
    let nr_slots = case.slots as usize;
    let geometry = Geometry::with_fanout(nr_slots, case.fanout_leaf as usize, case.fanout as usize);
    let cpus = SimCpus::new(nr_slots);
    let ledger = Ledger::new(case);
    let slots: Box<[TreeSlot<SpinLock>]> = (0..nr_slots)
        .map(|_| TreeSlot::new(SpinLock::new()))
        .collect();
    let nodes: Box<[Node]> = (0..geometry.nr_nodes()).map(|_| Node::new()).collect();
    // SAFETY: the tree stays in this variable, and nobody uses it after this function; one thread plays one slot at a
    // time, which leaves its sections before another's turn counts, or keeps their words to itself.
    let tree = unsafe {
        Tree::traced(
            &cpus,
            PerSlot::from_slice(&slots),
            geometry,
            &nodes,
            &ledger,
        )
    };
    // A tree with a fault may wait for ever when dropped.
    let mut tree = ManuallyDrop::new(tree);
    let mut world = World {
        case,
        tree: &tree,
        cpus: &cpus,
        ledger: &ledger,
        places: (0..nr_slots).map(|_| Place::default()).collect(),
        objects: Objects::default(),
        cookies: Vec::new(),
        called: 0,
        round: 0,
        random: Random(case.seed ^ (u64::from(case.slots) << 32)),
    };
    let coming_up = world.come_up();
    world.live(ended)?;
    let mut periods = ledger.periods();
    // One drive may end two.
    periods.truncate(case.grace_periods as usize);
    world.end()?;
    let callbacks = world.called;
    drop(world);
    // SAFETY: once, and the tree is not used any more.
    unsafe { ManuallyDrop::drop(&mut tree) };
    let bytes = size_of_val(&*slots) + size_of_val(&*nodes) + size_of::<SimTree<'_>>();
    Ok(Run {
        levels: geometry.levels(),
        nodes: geometry.nr_nodes(),
        bytes_per_slot: bytes as f64 / nr_slots as f64,
        coming_up,
        periods,
        callbacks,
        broken: ledger.broken(),
    })
}

/// How a slot stands to the tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Standing {
    #[default]
    Away,
    Here,
    /// Gone inside a section.
    Lingering,
}

/// A simulated CPU.
#[derive(Debug, Default)]
struct Place {
    standing: Standing,
    /// The levels of its section.
    tokens: Vec<Token>,
    /// When the section began.
    began: u64,
    /// The round in which it ends.
    ends: u32,
}

struct World<'w, 'm> {
    case: &'w Case,
    tree: &'w SimTree<'m>,
    cpus: &'m SimCpus,
    ledger: &'m Ledger,
    places: Vec<Place>,
    objects: Objects,
    /// Cookies that are not done yet, and when they were taken.
    cookies: Vec<(Cookie, u64)>,
    called: u64,
    round: u32,
    random: Random,
}

impl World<'_, '_> {
    /// Every slot comes for the first time.
    fn come_up(&mut self) -> [u64; LEVELS] {
        for index in 0..self.case.slots {
            self.come(index);
        }
        self.ledger.begin().registry
    }

    fn live(&mut self, ended: impl Fn(u64)) -> Result<(), String> {
        let wanted = self.case.grace_periods as usize;
        let mut seen = (0, 0);
        while self.ledger.nr_ended() < wanted {
            self.round += 1;
            self.storm();
            let mut drive_at: Vec<u32> = (0..self.case.drivers)
                .map(|_| self.random.below(self.case.slots))
                .collect();
            drive_at.sort_unstable_by(|a, b| b.cmp(a));
            for index in 0..self.case.slots {
                while drive_at.pop_if(|at| *at == index).is_some() {
                    self.drive();
                }
                self.act(index);
            }
            let now = self.ledger.nr_ended();
            if now > seen.0 {
                seen = (now, self.round);
                ended(now.min(wanted) as u64);
            } else if self.round - seen.1 > PATIENCE {
                self.ledger
                    .accuse("it does not end, long after the last section that it waits for");
            }
            self.ledger.take_fault().map_or(Ok(()), Err)?;
        }
        Ok(())
    }

    /// Everybody leaves, and nothing may be left.
    fn end(&mut self) -> Result<(), String> {
        for index in 0..self.case.slots {
            while !self.places[index as usize].tokens.is_empty() {
                self.exit(index);
            }
            if self.places[index as usize].standing == Standing::Here {
                self.go(index);
            }
        }
        self.cpus.switch_to(None);
        self.ledger.tick();
        self.tree.barrier();
        if self.ledger.callbacks_run() != self.called {
            self.ledger.accuse(&format!(
                "{} callbacks were queued and {} ran",
                self.called,
                self.ledger.callbacks_run()
            ));
        }
        self.ledger.take_fault().map_or(Ok(()), Err)
    }

    fn storm(&mut self) {
        if self.case.churn == 0 {
            return;
        }
        let slots = u64::from(self.case.slots);
        let reached = (slots * u64::from(self.case.churn)).div_ceil(100);
        let start = u64::from(self.random.below(self.case.slots));
        for index in (start..start + reached).map(|at| (at % slots) as u32) {
            match self.places[index as usize].standing {
                Standing::Away => self.come(index),
                Standing::Here => {
                    let inside = !self.places[index as usize].tokens.is_empty();
                    if !inside || self.random.below(4) == 0 {
                        self.go(index);
                    }
                }
                Standing::Lingering => {}
            }
        }
    }

    /// The turn of one slot.
    fn act(&mut self, index: u32) {
        let place = &self.places[index as usize];
        if !place.tokens.is_empty() {
            if place.ends <= self.round {
                self.exit_all(index);
            } else if place.standing == Standing::Here
                && place.tokens.len() < DEEPEST
                && self.random.below(8) == 0
            {
                self.enter(index);
            }
        } else if place.standing == Standing::Here && self.random.percent(self.case.readers) {
            let rounds = self.random.below(ROUNDS_INSIDE);
            self.places[index as usize].ends = self.round + rounds;
            self.enter(index);
            if rounds == 0 {
                self.exit_all(index);
            }
        }
        if self.places[index as usize].standing == Standing::Here && self.random.below(CALL) == 0 {
            self.call(index);
        }
    }

    fn switch_to(&self, index: u32) -> Slot {
        let slot = Slot::new(index);
        self.cpus.switch_to(Some(slot));
        slot
    }

    /// The slot's first section brings it online.
    fn come(&mut self, index: u32) {
        self.places[index as usize].standing = Standing::Here;
        self.enter(index);
        self.exit(index);
    }

    fn go(&mut self, index: u32) {
        self.ledger.tick();
        let slot = self.switch_to(index);
        let kept = self.cpus.unplug(slot);
        let place = &mut self.places[index as usize];
        if kept == place.tokens.is_empty() {
            self.ledger.accuse(
                "a slot is kept if and only if it is inside a section, and this one was not so",
            );
        }
        place.standing = if kept {
            Standing::Lingering
        } else {
            Standing::Away
        };
    }

    fn enter(&mut self, index: u32) {
        let now = self.ledger.tick();
        self.switch_to(index);
        let token = self.tree.enter();
        let place = &mut self.places[index as usize];
        if place.tokens.is_empty() {
            place.began = now;
            self.ledger.enter(now);
        }
        place.tokens.push(token);
    }

    /// Leaves one level.
    fn exit(&mut self, index: u32) {
        self.ledger.tick();
        let slot = self.switch_to(index);
        let place = &mut self.places[index as usize];
        if place.standing == Standing::Lingering {
            // The CPU itself is gone.
            self.cpus.switch_to(None);
        }
        let Some(token) = place.tokens.pop() else {
            return;
        };
        if place.tokens.is_empty() {
            self.ledger.leave(place.began);
        }
        // SAFETY: the token came from this tree and is given back once.
        unsafe { self.tree.exit(token) };
        if place.tokens.is_empty() && place.standing == Standing::Lingering {
            if !self.cpus.was_released(slot) {
                self.ledger
                    .accuse("a slot that lingered was not given back");
            }
            place.standing = Standing::Away;
        }
    }

    fn exit_all(&mut self, index: u32) {
        while !self.places[index as usize].tokens.is_empty() {
            self.exit(index);
        }
    }

    fn call(&mut self, index: u32) {
        let now = self.ledger.tick();
        self.switch_to(index);
        let head = self.objects.take(self.ledger, now);
        self.called += 1;
        // SAFETY: the object stays until the run is over, is on no list, and no reader knows it.
        unsafe { self.tree.call(head, Callback::Run(Object::ran)) };
    }

    /// Asks, drives once, runs what is ready, and judges each.
    fn drive(&mut self) {
        let driver = (0..8)
            .map(|_| self.random.below(self.case.slots))
            .find(|index| {
                let place = &self.places[*index as usize];
                place.standing == Standing::Here && place.tokens.is_empty()
            });
        self.cpus.switch_to(driver.map(Slot::new));
        let now = self.ledger.tick();
        self.cookies.push((self.tree.start(), now));
        self.ledger.tick();
        self.ledger.driven(self.tree.drive());
        self.ledger.tick();
        self.tree.run_callbacks();
        let (tree, ledger) = (self.tree, self.ledger);
        self.cookies.retain(|(cookie, taken)| {
            let done = tree.poll(*cookie);
            if done && !ledger.passed(*taken) {
                ledger.accuse("a cookie is done while a section is open that began before it");
            }
            !done
        });
        if self.cookies.len() > (PATIENCE * self.case.drivers) as usize {
            self.ledger
                .accuse("cookies that were asked for are not done");
        }
    }
}

/// What a callback is for.
#[repr(C)]
#[derive(Debug)]
struct Object {
    head: Head,
    /// When it was queued; zero while it is not.
    called: Cell<u64>,
    ledger: *const Ledger,
}

impl Object {
    /// # Safety
    /// 1. `head` is that of an object of a run that is not over.
    unsafe fn ran(head: NonNull<Head>) {
        // SAFETY: the head is the first field, and was made from the whole object (1).
        let object = unsafe { head.cast::<Self>().as_ref() };
        // SAFETY: the run's ledger is there as long as the run (1).
        let ledger = unsafe { &*object.ledger };
        ledger.ran(object.called.replace(0));
    }
}

/// The objects of one run. They stay where they are, and are used again.
#[derive(Debug, Default)]
struct Objects {
    all: Vec<NonNull<Object>>,
    /// Where to look next for one that is not queued.
    next: usize,
}

impl Objects {
    /// The head of an object that is not queued, now queued at `now`.
    fn take(&mut self, ledger: &Ledger, now: u64) -> NonNull<Head> {
        // They come back roughly in the order they went, so the next is the likeliest.
        let next = self.all.get(self.next).copied().filter(|object| {
            // SAFETY: objects stay until this is dropped, and only this thread has them.
            unsafe { object.as_ref() }.called.get() == 0
        });
        let object = next.unwrap_or_else(|| {
            let fresh = Box::new(Object {
                head: Head::new(),
                called: Cell::new(0),
                ledger: ptr::from_ref(ledger),
            });
            let fresh = NonNull::from(Box::leak(fresh));
            self.all.insert(self.next, fresh);
            fresh
        });
        self.next = (self.next + 1) % self.all.len();
        // SAFETY: as above.
        unsafe { object.as_ref() }.called.set(now);
        object.cast()
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        for object in self.all.drain(..) {
            // SAFETY: leaked by `take`. If the run has a fault, heads may still be listed, in a tree that nobody uses.
            drop(unsafe { Box::from_raw(object.as_ptr()) });
        }
    }
}

/// Numbers that follow from a seed (splitmix64).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not zero.
    fn below(&mut self, limit: u32) -> u32 {
        (((self.next() >> 32) * u64::from(limit)) >> 32) as u32
    }

    fn percent(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_machines_of_many_shapes_keep_the_model_and_the_bounds() {
        let shapes = [
            (1, 2, 2),
            (2, 2, 2),
            (16, 2, 2),
            (27, 3, 3),
            (81, 3, 3),
            (256, 4, 4),
            (256, 16, 64),
        ];
        for (slots, fanout_leaf, fanout) in shapes {
            for (seed, readers, churn) in [
                (1, 25, 2),
                (2, 90, 30),
                (3, 0, 100),
                (4, 100, 0),
                (5, 50, 10),
            ] {
                let case = Case {
                    slots,
                    fanout_leaf,
                    fanout,
                    seed,
                    grace_periods: 12,
                    readers,
                    churn,
                    drivers: 1 + seed as u32 % 3,
                };
                let run = run(&case, |_| ()).unwrap_or_else(|fault| panic!("{case:?}: {fault}"));
                assert_eq!(run.broken, None, "{case:?}");
                assert_eq!(run.periods.len(), 12);
            }
        }
    }

    #[test]
    fn a_seed_gives_one_history_and_another_seed_another() {
        let history = |seed| {
            let case = Case {
                slots: 64,
                fanout_leaf: 4,
                fanout: 4,
                seed,
                grace_periods: 8,
                readers: 30,
                churn: 5,
                drivers: 1,
            };
            let run = run(&case, |_| ()).expect("a good run");
            format!("{run:?}")
        };
        assert_eq!(history(7), history(7));
        assert_ne!(history(7), history(8));
    }

    #[test]
    fn bringing_all_slots_up_writes_inner_nodes_once_a_child() {
        let case = Case {
            slots: 256,
            fanout_leaf: 4,
            fanout: 4,
            seed: 1,
            grace_periods: 1,
            readers: 0,
            churn: 0,
            drivers: 1,
        };
        let run = run(&case, |_| ()).expect("a good run");
        assert_eq!(run.coming_up, [4, 16, 64, 256]);
        // Armed once; all slots of a leaf, then all children of a node, are reported at once.
        assert_eq!(run.periods[0].writes, [1 + 4, 4 + 16, 16 + 64, 64 + 64]);
    }
}
