//! What only shows from inside: shared barriers, and the count of overloaded slots.

use super::*;
use crate::node::{Geometry, Node};
use crate::trace::NoTrace;
use rcu_core::cpu::SpinLock;
use rcu_core::{Callback, Head, HeadFn};
use std::cell::RefCell;
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

thread_local! {
    static RAN: RefCell<Vec<*mut Head>> = const { RefCell::new(Vec::new()) };
}

/// # Safety
/// None.
unsafe fn note(head: NonNull<Head>) {
    RAN.with_borrow_mut(|ran| ran.push(head.as_ptr()));
}

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
        self.queue_for(index, nothing)
    }

    fn queue_for(&self, index: usize, func: HeadFn) -> Queued {
        let head = &self.heads[index];
        head.set_callback(Callback::Run(func));
        // SAFETY: the head outlives the list, and is queued once; the lock needs no owner.
        unsafe {
            self.callbacks
                .queue(&self.gp, Some(self.calls()), NonNull::from(head))
        }
    }

    fn park_for(&self, index: usize, func: HeadFn) -> Queued {
        let head = &self.heads[index];
        head.set_callback(Callback::Run(func));
        // SAFETY: the head outlives the list, and is queued once; the lock needs no owner.
        unsafe {
            self.callbacks
                .park(&self.gp, Some(self.calls()), NonNull::from(head))
        }
    }

    /// Calls `f` as an owner that meets a visitor.
    fn beside_a_visitor(&self, f: impl FnOnce()) {
        let _inside = self.calls().queue.visit();
        f();
    }

    /// Which heads [`note`] has run on this thread, in their order.
    fn noted(&self) -> Vec<usize> {
        let index = |head: *mut Head| self.heads.iter().position(|h| core::ptr::eq(h, head));
        RAN.with_borrow_mut(|ran| ran.drain(..).filter_map(index).collect())
    }

    /// A grace period, and a turn on either side of it.
    fn pass(&self) -> usize {
        self.with(|lists| {
            let before = self.callbacks.run(lists, &|_| ());
            self.gp.start();
            self.gp.end();
            before + self.callbacks.run(lists, &|_| ())
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
    assert_eq!(world.with(|lists| world.callbacks.run(lists, &|_| ())), 0);
    world.gp.start();
    world.gp.end();
    world.queue(1);
    let left = AtomicBool::new(false);
    world.with(|lists| {
        // Called with the first batch in flight, since the second callback has just asked for a grace period.
        world.callbacks.run(lists, &|_| {
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

#[test]
fn t45_orphans_that_wait_at_a_fork_ask_anew_in_the_child() {
    let world = World::new(CallbackConfig::new(), 1);
    world.queue(0);
    assert!(world.callbacks.migrate(world.calls()));
    let run = || world.with(|lists| world.callbacks.run(lists, &|_| ()));
    assert_eq!(run(), 0, "numbered");
    // Whoever drives has joined, and does not come back.
    world.gp.start();
    // SAFETY: one thread, inside none of these functions.
    world.with(|lists| unsafe { world.callbacks.reset_after_fork(lists.slots) });
    assert_eq!(run(), 0, "a grace period has to pass");
    let asked_now = world.gp.request(world.gp.snapshot());
    assert!(!asked_now, "they have asked for one themselves");
    world.gp.end();
    assert_eq!(world.pass(), 1);
    assert!(!world.callbacks.has_orphans());
}

/// An owner meets a visitor now and then: the callback thread comes twice a turn. What it queues meanwhile keeps its place.
#[test]
fn r4_what_came_while_a_visitor_was_inside_keeps_its_place() {
    for inside in 0..1usize << 6 {
        let world = World::new(CallbackConfig::new(), 6);
        for n in 0..6 {
            let queue = || {
                let led_to = world.queue_for(n, note);
                assert_ne!(led_to, Queued::Parked);
            };
            if inside >> n & 1 == 0 {
                queue();
            } else {
                world.beside_a_visitor(queue);
            }
        }
        assert!(world.calls().has_callbacks() && !world.calls().is_idle());
        assert_eq!(world.pass(), 6, "{inside:#b}");
        assert_eq!(world.noted(), [0, 1, 2, 3, 4, 5], "{inside:#b}");
        assert!(world.calls().is_idle());
    }
}

#[test]
fn r17_lazy_callbacks_keep_their_order_beside_a_visitor() {
    let world = World::new(CallbackConfig::new(), 5);
    assert_eq!(world.park_for(0, note), Queued::Parked);
    world.beside_a_visitor(|| assert_eq!(world.park_for(1, note), Queued::Aside));
    assert_eq!(world.calls().parked(), 1);
    assert_eq!(world.park_for(2, note), Queued::Parked);
    assert_eq!(world.calls().parked(), 1, "the first is among the ordinary");
    world.beside_a_visitor(|| assert_eq!(world.park_for(3, note), Queued::Aside));
    assert_eq!(world.queue_for(4, note), Queued::Behind);
    assert_eq!(world.pass(), 5);
    assert_eq!(world.noted(), [0, 1, 2, 3, 4]);
    assert_eq!(world.calls().parked(), 0);
}

#[test]
fn r13_t39_what_is_aside_is_found_by_barriers_migrations_forks_and_counts() {
    let aside = |world: &World| {
        world.beside_a_visitor(|| {
            assert_eq!(world.queue_for(0, note), Queued::Aside);
            assert_eq!(world.queue_for(1, note), Queued::Behind);
        });
    };
    let world = World::new(CallbackConfig::new(), 2);
    aside(&world);
    let posts = barrier::Posts::default();
    world.callbacks.post(&world.gp, &posts, world.calls());
    assert_eq!(posts.count.load(Ordering::Relaxed), 1, "found");
    world.pass();
    assert_eq!(posts.count.into_inner(), 0);
    assert_eq!(world.noted(), [0, 1]);

    let world = World::new(CallbackConfig::new(), 2);
    aside(&world);
    assert!(world.callbacks.migrate(world.calls()));
    assert!(world.calls().is_idle() && world.callbacks.has_orphans());
    world.pass();
    assert_eq!(world.noted(), [0, 1]);

    let world = World::new(CallbackConfig::new(), 2);
    aside(&world);
    // SAFETY: one thread, inside none of these functions.
    world.with(|lists| unsafe { world.callbacks.reset_after_fork(lists.slots) });
    assert!(world.calls().is_idle() && world.callbacks.lost() == 0);
    world.pass();
    assert_eq!(world.noted(), [0, 1]);

    let world = World::new(CallbackConfig::new(), 2);
    aside(&world);
    let queued = || world.with(|lists| world.callbacks.stats(lists).queued);
    assert_eq!((queued(), queued()), (2, 2));
    world.pass();
    assert_eq!(world.noted(), [0, 1]);

    let world = World::new(CallbackConfig::new(), 2);
    aside(&world);
    // SAFETY: the lock needs no owner.
    let left = unsafe { world.callbacks.left(&world.gp, Some(world.calls())) };
    assert!(left.unnumbered && !left.ready);
    world.pass();
    assert_eq!(world.noted(), [0, 1]);
}
