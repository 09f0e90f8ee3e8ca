//! Models of the tree's ordering pairs, on the production code of `reader` and `gp_seq`.
//!
//! Run with `cargo xtask loom`; `--mutants` runs each with its pair weakened, which must fail.
//! What loom cannot show: `light` and `heavy` are full fences here (see `rcu_core::sync`), so neither that `heavy` reaches
//! readers who run no fence at all (the kernel's `membarrier` promises it), nor hardware on which a store may be seen by some
//! threads before others; and load buffering is not explored.
#![cfg(loom)]

use core::ptr::NonNull;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;
use rcu_core::{Callback, Head, fence};
use rcu_tree::Lane;
use rcu_tree::callbacks::model::Migration;
use rcu_tree::gp_seq::{GpSeq, Sequences};
use rcu_tree::reader::{Outcome, ReaderWord};

/// Two versions of an object; `which` publishes one, version 0 is retired and destroyed.
struct World {
    word: ReaderWord,
    gp: GpSeq,
    lanes: Sequences,
    which: AtomicUsize,
    versions: [UnsafeCell<usize>; 2],
}

const DESTROYED: usize = 0;

impl World {
    fn new() -> Arc<Self> {
        let world = Self {
            word: ReaderWord::new(),
            gp: GpSeq::new(),
            lanes: Sequences::new(),
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

    /// A whole grace period of one lane of two, as the machine drives it.
    fn lane_grace_period(&self, lane: Lane) {
        // `begin` runs a full fence, which is all that `heavy` is here.
        let stake = self.lanes.begin(lane);
        self.scan();
        self.lanes.finish(lane, stake);
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

/// P2 for a newcomer that finds its parent's bit set, or about to be, by another: it leaves a set bit alone (I4 of
/// `node`) but goes on to the root, and the driver, who reads from the root down, finds it. (It would not if the newcomer
/// stopped where the bit is set.)
#[test]
fn p2_newcomer_behind_another() {
    struct Registry {
        root: AtomicUsize,
        inner: AtomicUsize,
        leaf: AtomicUsize,
    }
    impl Registry {
        fn come(&self, bit: usize) {
            for (word, bit) in [(&self.leaf, bit), (&self.inner, 1), (&self.root, 1)] {
                if word.load(Ordering::Acquire) & bit == 0 {
                    word.fetch_or(bit, Ordering::Release);
                }
            }
            fence::full();
        }
    }
    model(|| {
        let world = World::new();
        let registry = Arc::new(Registry {
            root: AtomicUsize::new(0),
            inner: AtomicUsize::new(0),
            leaf: AtomicUsize::new(0),
        });
        let reader = thread::spawn({
            let (world, registry) = (world.clone(), registry.clone());
            move || {
                registry.come(1);
                world.section();
            }
        });
        let other = thread::spawn({
            let registry = registry.clone();
            move || registry.come(2)
        });
        world.which.store(1, Ordering::Release);
        fence::full();
        world.gp.start();
        fence::heavy();
        let above = [&registry.root, &registry.inner];
        if above.iter().all(|word| word.load(Ordering::Acquire) != 0)
            && registry.leaf.load(Ordering::Acquire) & 1 != 0
        {
            world.scan();
        }
        world.gp.end();
        world.destroy();
        reader.join().unwrap();
        other.join().unwrap();
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
                if !rcu_core::weakened!("p2") {
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

/// P5: whoever counts on a grace period unlinked before that grace period's fence. Without the full fence of `snapshot` (the
/// mutant) the unlinking may stay unseen by a reader that enters after the scan, though the cookie says that the grace period
/// began later.
#[test]
fn p5_unlink_vs_anothers_grace_period() {
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
        // Who polls need not see the end at the first look.
        for _ in 0..2 {
            if world.gp.poll(cookie) {
                world.destroy();
                break;
            }
            thread::yield_now();
        }
        driver.join().unwrap();
        reader.join().unwrap();
    });
}

/// P5 with a merged sequence: what a cookie counts on is joined before the fence, not after it.
#[test]
fn p5_join_vs_snapshot() {
    model(|| {
        let world = World::new();
        let reader = thread::spawn({
            let world = world.clone();
            move || world.section()
        });
        let driver = thread::spawn({
            let world = world.clone();
            move || world.lane_grace_period(Lane::Normal)
        });
        world.which.store(1, Ordering::Release);
        let cookie = world.lanes.polled().snapshot();
        if world.lanes.polled().poll(cookie) {
            world.destroy();
        }
        driver.join().unwrap();
        reader.join().unwrap();
    });
}

/// P4 and P5 with two lanes (I1 of `gp_seq`): a lane that joined a grace period which the other lane has ended does not
/// end the next one, which may have started after an unlinking that the first lane did not wait for.
#[test]
fn p4_merge_of_two_lanes() {
    model(|| {
        let world = World::new();
        let reader = thread::spawn({
            let world = world.clone();
            move || world.section()
        });
        // The expedited lane has begun; nobody it waits for is inside yet.
        let first = world.lanes.begin(Lane::Expedited);
        let normal = thread::spawn({
            let world = world.clone();
            move || world.lane_grace_period(Lane::Normal)
        });
        world.lanes.finish(Lane::Expedited, first);
        world.which.store(1, Ordering::Release);
        let cookie = world.lanes.polled().snapshot();
        // The next one of the expedited lane starts, and does not end: the normal lane may join it, or miss it.
        let _second = world.lanes.begin(Lane::Expedited);
        if world.lanes.polled().poll(cookie) {
            world.destroy();
        }
        normal.join().unwrap();
        reader.join().unwrap();
    });
}

/// I2 of `gp_seq` (R8): a full cookie taken before a small one is done when the small one is. The main thread drives:
/// loom looks for races from the later access back to the last one only, so the polling thread has to come later.
#[test]
fn p4_nest_of_full_and_small_cookies() {
    model(|| {
        let world = World::new();
        let taker = thread::spawn({
            let world = world.clone();
            move || {
                let full = world.lanes.snapshot_full();
                let small = world.lanes.polled().snapshot();
                if world.lanes.polled().poll(small) {
                    assert!(
                        world.lanes.poll_full(full),
                        "a full cookie missed a grace period"
                    );
                }
            }
        });
        let expedited = thread::spawn({
            let world = world.clone();
            move || {
                let stake = world.lanes.begin(Lane::Expedited);
                world.lanes.finish(Lane::Expedited, stake);
            }
        });
        let stake = world.lanes.begin(Lane::Normal);
        world.lanes.finish(Lane::Normal, stake);
        taker.join().unwrap();
        expedited.join().unwrap();
    });
}

/// A thread that is always inside and says once that it holds nothing.
fn quiescent_against_one_grace_period() {
    model(|| {
        let world = World::new();
        let reader = thread::spawn({
            let world = world.clone();
            move || {
                let mut entered = world.word.enter().expect("online");
                for _ in 0..2 {
                    let which = world.which.load(Ordering::Acquire);
                    world.versions[which].with(|v| {
                        // SAFETY: what the model checks: nobody destroys the version a reader found.
                        assert_ne!(unsafe { *v }, DESTROYED);
                    });
                    entered = world.word.quiescent(entered);
                }
                assert_eq!(world.word.exit(entered), Outcome::Done);
            }
        });
        world.which.store(1, Ordering::Release);
        fence::full();
        world.grace_period();
        world.destroy();
        reader.join().unwrap();
    });
}

/// P2: after a quiescent state the reader gets the new version, or the scan sees the state later.
#[test]
fn p2_quiescent_vs_scan() {
    quiescent_against_one_grace_period();
}

/// P3: what was read before a quiescent state comes before the destruction.
#[test]
fn p3_quiescent_vs_scan() {
    quiescent_against_one_grace_period();
}

/// A slot with a callback, and whether that has run. The callback gets its head, which is the first field.
#[repr(C)]
struct Leaving {
    head: Head,
    ran: AtomicUsize,
    world: Migration,
}

// SAFETY: heads and words are loom's atomics, lists are behind the locks that the model checks.
unsafe impl Sync for Leaving {}
// SAFETY: as above.
unsafe impl Send for Leaving {}

/// # Safety
/// `head` is the first field of a `Leaving`.
unsafe fn note_run(head: NonNull<Head>) {
    // SAFETY: the caller's debt.
    let leaving = unsafe { head.cast::<Leaving>().as_ref() };
    leaving.ran.store(1, Ordering::Relaxed);
}

/// T39 and I2 of the callbacks: a barrier looks at a slot and the orphans while the slot's callbacks move from one to
/// the other. Wherever it meets them, its head comes behind them.
#[test]
fn t39_barrier_vs_migration() {
    model(|| {
        let leaving = Arc::new(Leaving {
            head: Head::new(),
            ran: AtomicUsize::new(0),
            world: Migration::default(),
        });
        leaving.head.set_callback(Callback::Run(note_run));
        let head = NonNull::from(&*leaving).cast::<Head>();
        // SAFETY: the head lives as long as the model's run, and is queued once.
        unsafe { leaving.world.queue(head) };
        let owner = thread::spawn({
            let leaving = leaving.clone();
            move || leaving.world.go_offline()
        });
        leaving.world.post();
        let not_too_early = || {
            let ran = leaving.ran.load(Ordering::Relaxed) == 1;
            assert!(
                ran || !leaving.world.is_over(),
                "the barrier was over before the callback ran"
            );
        };
        not_too_early();
        owner.join().unwrap();
        leaving.world.run_all(not_too_early);
        assert!(leaving.world.is_over() && leaving.ran.load(Ordering::Relaxed) == 1);
    });
}

/// P8 (hint, emptied) and I11 of the callbacks: an owner has found a visitor inside and put its callback aside; the visitor
/// takes it in while the owner's barrier looks whether the slot holds anything.
#[test]
fn p8_aside_vs_barrier() {
    model(|| {
        let slot = Arc::new(Leaving {
            head: Head::new(),
            ran: AtomicUsize::new(0),
            world: Migration::default(),
        });
        slot.head.set_callback(Callback::Run(note_run));
        let head = NonNull::from(&*slot).cast::<Head>();
        // SAFETY: the head lives as long as the model's run, and is queued once.
        unsafe { slot.world.queue_beside_a_visitor(head) };
        let owner = thread::spawn({
            let slot = slot.clone();
            move || {
                slot.world.post();
                assert!(!slot.world.is_over(), "the barrier missed the callback");
            }
        });
        slot.world.visit();
        owner.join().unwrap();
        slot.world.run_all(|| ());
        assert!(slot.world.is_over() && slot.ran.load(Ordering::Relaxed) == 1);
    });
}
