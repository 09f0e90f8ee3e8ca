//! A model of the pair P5, on the production code of `gp_seq` and `reader`: unlink, snapshot; a grace period that
//! somebody else drives; free.
//!
//! The mutant `--cfg weaken="p5"` leaves the full fence of `snapshot` out: then the unlinking may stay unseen by a
//! reader that enters after the scan, though the cookie says that the grace period began later.
//! What loom cannot show: that `heavy` reaches readers who run no fence at all (both are full fences here; the kernel's
//! `membarrier` promises it), and hardware on which a store may be seen by some threads before others.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
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

    /// A whole grace period, as the machine drives it.
    fn grace_period(&self) {
        self.gp.start();
        fence::heavy();
        let first = self.word.scan();
        while !first.is_outside() && !self.word.scan().passed_since(first) {
            thread::yield_now();
        }
        self.gp.end();
    }

    /// Unlinks version 0 and, if the cookie is done by `grace_periods` of somebody else, destroys it.
    fn unlink_and_destroy(&self) {
        self.which.store(1, Ordering::Release);
        let cookie = self.gp.snapshot();
        // Who polls need not see the end at the first look.
        for _ in 0..2 {
            if self.gp.poll(cookie) {
                // SAFETY: what the model checks: every reader that found version 0 is through.
                self.versions[0].with_mut(|v| unsafe { *v = DESTROYED });
                return;
            }
            thread::yield_now();
        }
    }
}

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.max_branches = 100_000;
    builder.check(f);
}

/// P5: whoever counts on a grace period unlinked before that grace period's fence.
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
        world.unlink_and_destroy();
        driver.join().unwrap();
        reader.join().unwrap();
    });
}
