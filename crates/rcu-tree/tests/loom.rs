//! Models of the tree's ordering pairs, on the production code of `reader` and `gp_seq`.
//!
//! Run with `cargo xtask loom`; `--mutants` runs each with its pair weakened, which must fail.
//! What loom cannot show: `light` and `heavy` are full fences here (see `rcu_core::sync`), and load
//! buffering is not explored.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;
use rcu_core::fence;
use rcu_tree::gp_seq::GpSeq;
use rcu_tree::reader::{Outcome, ReaderWord};

/// Two versions of an object; `which` publishes one, version 0 is retired and destroyed.
struct World {
    word: ReaderWord,
    gp: GpSeq,
    which: AtomicUsize,
    versions: [UnsafeCell<usize>; 2],
}

const DESTROYED: usize = 0;

impl World {
    fn new() -> Arc<Self> {
        let world = Self {
            word: ReaderWord::new(),
            gp: GpSeq::new(),
            which: AtomicUsize::new(0),
            versions: [UnsafeCell::new(1), UnsafeCell::new(2)],
        };
        world.word.set_online();
        Arc::new(world)
    }

    fn section(&self) {
        let entered = self.word.enter().expect("online");
        let which = self.which.load(Ordering::Acquire);
        self.versions[which].with(|v| {
            // SAFETY: what the model checks: nobody destroys the version a reader found.
            assert_ne!(unsafe { *v }, DESTROYED);
        });
        assert_eq!(self.word.exit(entered), Outcome::Done);
    }

    /// The driver's scan of the one slot, until it has passed.
    fn scan(&self) {
        let first = self.word.scan();
        if first.is_outside() {
            return;
        }
        while !self.word.scan().passed_since(first) {
            thread::yield_now();
        }
    }

    /// A whole grace period, as the machine drives it.
    fn grace_period(&self) {
        self.gp.start();
        fence::heavy();
        self.scan();
        self.gp.end();
    }

    fn destroy(&self) {
        // SAFETY: what the model checks: every reader that found version 0 is through.
        self.versions[0].with_mut(|v| unsafe { *v = DESTROYED });
    }
}

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.max_branches = 100_000;
    builder.check(f);
}

fn sections_against_one_grace_period(sections: usize) {
    model(move || {
        let world = World::new();
        let reader = thread::spawn({
            let world = world.clone();
            move || (0..sections).for_each(|_| world.section())
        });
        world.which.store(1, Ordering::Release);
        fence::full();
        world.grace_period();
        world.destroy();
        reader.join().unwrap();
    });
}

/// P2: the reader gets the new version, or the scan sees it inside.
#[test]
fn p2_enter_vs_scan() {
    sections_against_one_grace_period(1);
}

/// P3: what a section read comes before the destruction.
#[test]
fn p3_exit_vs_scan() {
    sections_against_one_grace_period(1);
}

/// P3 over two sections: the scan may read the second enter's store instead of the first exit's.
#[test]
fn p3_second_section() {
    sections_against_one_grace_period(2);
}

/// P4 and P5: who polls is not who drives; a cookie counts only on a later `heavy`.
#[test]
fn p4_end_vs_poll() {
    model(|| {
        let world = World::new();
        let reader = thread::spawn({
            let world = world.clone();
            move || world.section()
        });
        let driver = thread::spawn({
            let world = world.clone();
            move || world.grace_period()
        });
        world.which.store(1, Ordering::Release);
        let cookie = world.gp.snapshot();
        if world.gp.poll(cookie) {
            world.destroy();
        }
        driver.join().unwrap();
        reader.join().unwrap();
    });
}

/// P2 for a newcomer: published in the registry, full fence, then inside; the driver reads the registry after `heavy`.
#[test]
fn p2_newcomer_vs_driver() {
    model(|| {
        let world = World::new();
        let online = Arc::new(AtomicBool::new(false));
        let reader = thread::spawn({
            let (world, online) = (world.clone(), online.clone());
            move || {
                online.store(true, Ordering::Release);
                fence::full();
                world.section();
            }
        });
        world.which.store(1, Ordering::Release);
        fence::full();
        world.gp.start();
        fence::heavy();
        if online.load(Ordering::Acquire) {
            world.scan();
        }
        world.gp.end();
        world.destroy();
        reader.join().unwrap();
    });
}

/// I4 of the machine: a driver that sees that nobody takes part runs no `heavy`, only a full fence; a newcomer runs one
/// too. The newcomer's `light` is left out, and the driver is not who unlinks, so that nothing else orders them.
#[test]
fn p2_newcomer_vs_driver_without_heavy() {
    model(|| {
        let world = World::new();
        let online = Arc::new(AtomicBool::new(false));
        let reader = thread::spawn({
            let (world, online) = (world.clone(), online.clone());
            move || {
                online.store(true, Ordering::Release);
                fence::full();
                let which = world.which.load(Ordering::Acquire);
                // SAFETY: what the model checks: nobody destroys the version a reader found.
                world.versions[which].with(|v| assert_ne!(unsafe { *v }, DESTROYED));
            }
        });
        let driver = thread::spawn({
            let world = world.clone();
            move || {
                world.gp.start();
                if cfg!(not(weaken = "p2")) {
                    fence::full();
                }
                if !online.load(Ordering::Acquire) {
                    world.gp.end();
                }
            }
        });
        world.which.store(1, Ordering::Release);
        let cookie = world.gp.snapshot();
        if world.gp.poll(cookie) {
            // The newcomer, who is not waited for, must not find version 0.
            world.destroy();
        }
        driver.join().unwrap();
        if world.gp.poll(cookie) {
            world.destroy();
        }
        reader.join().unwrap();
    });
}
