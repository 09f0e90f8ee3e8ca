//! What only shows from inside: shared barriers, and the count of overloaded slots.

use super::*;
use crate::node::{Geometry, Node};
use crate::trace::NoTrace;
use rcu_core::cpu::SpinLock;
use rcu_core::{Callback, Head};
use std::sync::atomic::AtomicBool;

/// A slot's callbacks without readers: grace periods pass by hand.
struct World {
    callbacks: Callbacks,
    gp: GpSeq,
    nodes: Vec<Node>,
    slots: Vec<TreeSlot<SpinLock>>,
    heads: Vec<Head>,
}

/// # Safety
/// None.
unsafe fn nothing(_: NonNull<Head>) {}

impl World {
    fn new(config: CallbackConfig, heads: usize) -> Self {
        let mut callbacks = Callbacks::new();
        callbacks.set_config(config);
        let world = Self {
            callbacks,
            gp: GpSeq::new(),
            nodes: vec![Node::new()],
            slots: vec![TreeSlot::new(SpinLock::new())],
            heads: (0..heads).map(|_| Head::new()).collect(),
        };
        world.with(|lists| lists.nodes.set_online(Slot::new(0), &NoTrace));
        world
    }

    fn with<R>(&self, f: impl FnOnce(&Lists<'_, '_, SpinLock, NoTrace>) -> R) -> R {
        f(&Lists {
            gp: &self.gp,
            nodes: &Nodes::new(Geometry::new(1), &self.nodes),
            slots: &PerSlot::from_slice(&self.slots),
            trace: &NoTrace,
        })
    }

    fn calls(&self) -> &SlotCalls<SpinLock> {
        &self.slots[0].calls
    }

    fn queue(&self, index: usize) -> Queued {
        let head = &self.heads[index];
        head.set_callback(Callback::Run(nothing));
        // SAFETY: the head outlives the list, and is queued once; the lock needs no owner.
        unsafe {
            self.callbacks
                .queue(&self.gp, Some(self.calls()), NonNull::from(head))
        }
    }

    /// A grace period, and a turn on either side of it.
    fn pass(&self) -> usize {
        self.with(|lists| {
            let before = self.callbacks.run(lists, &|| ());
            self.gp.start();
            self.gp.end();
            before + self.callbacks.run(lists, &|| ())
        })
    }
}

#[test]
fn r13_callers_that_come_during_a_barrier_share_the_next() {
    let world = World::new(CallbackConfig::new(), 1);
    world.queue(0);
    let waiting = AtomicUsize::new(0);
    let shared = AtomicUsize::new(0);
    let begun = AtomicBool::new(false);
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                while !begun.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
                let mut counted = false;
                let by_another = world.with(|lists| {
                    world.callbacks.barrier(lists, |_| {
                        if !std::mem::replace(&mut counted, true) {
                            waiting.fetch_add(1, Ordering::AcqRel);
                        }
                        std::thread::yield_now();
                    })
                });
                shared.fetch_add(usize::from(by_another), Ordering::Relaxed);
            });
        }
        let first = world.with(|lists| {
            world.callbacks.barrier(lists, |_| {
                begun.store(true, Ordering::Release);
                if waiting.load(Ordering::Acquire) == 3 {
                    world.pass();
                }
                std::thread::yield_now();
            })
        });
        assert!(!first, "nobody was there to share with");
    });
    assert_eq!(shared.into_inner(), 2, "one of the three ran it for all");
}

#[test]
fn g16_a_slot_is_overloaded_from_the_mark_until_it_is_below() {
    const CHUNKS: usize = 8;
    let config = CallbackConfig::new().qhimark(500).qovld(4 * queue::CHUNK);
    let world = World::new(config, CHUNKS * queue::CHUNK + 1);
    let overloaded = || world.callbacks.overloaded.load(Ordering::Relaxed);
    let mut flooded_at = Vec::new();
    world.gp.start();
    for n in 0..world.heads.len() {
        if world.queue(n) == Queued::Flooded {
            flooded_at.push(n + 1);
        }
        let len = n + 1;
        // Looked at whenever the owner numbers its callbacks.
        assert!(overloaded() <= usize::from(len >= 4 * queue::CHUNK));
    }
    world.gp.end();
    assert_eq!(overloaded(), 1);
    let first = *flooded_at.first().unwrap();
    assert!(first > 500 && first <= 500 + queue::CHUNK, "{flooded_at:?}");
    while world.calls().has_callbacks() {
        world.pass();
    }
    assert_eq!(overloaded(), 0);
}

#[test]
fn t38_the_owner_leaves_nothing_unnumbered_for_long() {
    let world = World::new(CallbackConfig::new(), 3 * queue::CHUNK + 1);
    let mut numbered = 0;
    for n in 0..world.heads.len() {
        numbered += usize::from(world.queue(n) == Queued::Numbered);
        let mut list = world.calls().queue.visit();
        assert!(list.list.nr_unnumbered() < queue::CHUNK);
        assert_eq!(list.list.len(), n + 1);
        list.list.advance(world.gp.load());
    }
    assert_eq!(numbered, 3);
    while world.calls().has_callbacks() {
        world.pass();
    }
}

#[test]
fn t39_a_barrier_leaves_nothing_on_a_slot_gone_offline_whose_batch_is_being_run() {
    let world = World::new(CallbackConfig::new(), 2);
    let posts = barrier::Posts::default();
    world.queue(0);
    assert_eq!(world.with(|lists| world.callbacks.run(lists, &|| ())), 0);
    world.gp.start();
    world.gp.end();
    world.queue(1);
    let left = AtomicBool::new(false);
    world.with(|lists| {
        // Called with the first batch in flight, since the second callback has just asked for a grace period.
        world.callbacks.run(lists, &|| {
            if left.swap(true, Ordering::Relaxed) {
                return;
            }
            // The owner has handed its callbacks over, and is about to leave the tree.
            assert!(world.callbacks.migrate(world.calls()));
            posts.count.store(1, Ordering::Relaxed);
            world.callbacks.post(lists.gp, &posts, world.calls());
            world.callbacks.post_orphans(&posts);
            posts.count.fetch_sub(1, Ordering::Relaxed);
            assert_ne!(posts.count.load(Ordering::Relaxed), 0);
            lists.nodes.set_offline(Slot::new(0), &NoTrace);
        })
    });
    assert!(left.into_inner(), "the slot went offline in the middle");
    while world.callbacks.has_orphans() {
        world.pass();
    }
    assert!(world.calls().is_idle());
    assert_eq!(posts.count.into_inner(), 0, "a head has nobody to run it");
}
