//! The model of closing all lists while a slot opens its own for the first time (`gate` I2), on the real gate and local lock.
//!
//! Mutant: `--cfg weaken="gate"` must make `p12_closing_vs_first_use` fail. Not shown: lists and zone, which are a number here.

#![cfg(all(loom, feature = "std"))]

#[expect(unreachable_pub, reason = "public in the crate that this file is of")]
#[path = "../src/gate.rs"]
mod gate;

use gate::Gate;
use loom::sync::Arc;
use loom::thread;
use rcu_core::cpu::{BiasedLock, LocalCell, Slot};

struct Lists {
    open: bool,
    pages: usize,
}

struct World {
    gate: Gate,
    cell: LocalCell<BiasedLock, Lists>,
}

impl World {
    /// As the owner's slow path does it: opens the lists if it may, then keeps a page if they are open.
    fn stay(&self) {
        // SAFETY: each model has one owner.
        if let Some(mut lists) = unsafe { self.cell.try_enter() } {
            lists.open = lists.open || self.gate.may_list(Slot::new(0));
            lists.pages += usize::from(lists.open);
        }
    }

    /// As `Shared::disable_lists` does it, up to the visits' end.
    fn empty(&self) {
        if self.gate.used() > 0 {
            let mut lists = self.cell.visit();
            lists.pages = 0;
            lists.open = false;
        }
    }
}

fn world() -> Arc<World> {
    Arc::new(World {
        gate: Gate::new(),
        cell: LocalCell::new(
            BiasedLock::new(),
            Lists {
                open: false,
                pages: 0,
            },
        ),
    })
}

#[test]
fn p12_closing_vs_first_use() {
    loom::model(|| {
        let world = world();
        let owner = {
            let world = world.clone();
            thread::spawn(move || {
                world.stay();
                world.stay();
            })
        };
        let closed = world.gate.close();
        world.empty();
        owner.join().unwrap();
        assert_eq!(world.cell.visit().pages, 0, "I2");
        drop(closed);
        world.stay();
        assert_eq!(world.cell.visit().pages, 1, "open again");
    });
}

/// Another closing that is over, or not, opens nothing while this one lasts.
#[test]
fn p12_a_closing_within_another() {
    loom::model(|| {
        let world = world();
        let owner = {
            let world = world.clone();
            thread::spawn(move || world.stay())
        };
        let other = {
            let world = world.clone();
            thread::spawn(move || {
                // Its visits are left out: two visitors that spin are more than a model can take.
                drop(world.gate.close());
            })
        };
        let closed = world.gate.close();
        world.empty();
        owner.join().unwrap();
        other.join().unwrap();
        assert_eq!(world.cell.visit().pages, 0, "I2");
        drop(closed);
    });
}
