//! The stress scenarios with delays where the engine's steps are close together (G23), so that others come in between.
#![cfg(all(feature = "std", not(loom)))]

mod common;
#[path = "common/torture.rs"]
mod torture;

use rcu_core::cpu::{BiasedLock, Cpus, PerSlot, Threads};
use rcu_core::{Callback, GracePeriod, Head, Rcu};
use rcu_tree::{Event, Geometry, Node, Trace, Tree, TreeSlot};
use std::hint;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use torture::Element;

const ROUNDS: usize = if cfg!(miri) { 5 } else { 40 };

/// Waits at the events of `which`, by turns for nothing, a few spins, a yield, or a sleep.
struct Delays {
    which: fn(&Event) -> bool,
    turn: AtomicUsize,
    waited: AtomicUsize,
}

impl Delays {
    fn at(which: fn(&Event) -> bool) -> Self {
        Self {
            which,
            turn: AtomicUsize::new(0),
            waited: AtomicUsize::new(0),
        }
    }
}

impl Trace for Delays {
    fn event(&self, event: Event) {
        if !(self.which)(&event) {
            return;
        }
        // By a step without a common factor with the number of events in a grace period.
        let turn = self.turn.fetch_add(7, Ordering::Relaxed) % 48;
        match turn {
            0 => thread::sleep(Duration::from_micros(100)),
            1..8 => thread::yield_now(),
            8..24 => (0..turn * 16).for_each(|_| hint::spin_loop()),
            _ => return,
        }
        self.waited.fetch_add(1, Ordering::Relaxed);
    }
}

/// A tree with several levels that waits at the events of `which`.
fn slow(
    which: fn(&Event) -> bool,
) -> (
    &'static Tree<'static, Threads, &'static Delays>,
    &'static Delays,
) {
    let nr_slots = Threads.nr_slots();
    let slots: Vec<_> = (0..nr_slots)
        .map(|_| TreeSlot::new(BiasedLock::new()))
        .collect();
    let geometry = Geometry::with_fanout(nr_slots, 8, 8);
    let nodes: Vec<_> = (0..geometry.nr_nodes()).map(|_| Node::new()).collect();
    let slots = PerSlot::from_slice(Box::leak(slots.into_boxed_slice()));
    let nodes = Box::leak(nodes.into_boxed_slice());
    let delays: &Delays = Box::leak(Box::new(Delays::at(which)));
    // SAFETY: leaked before its first use; a thread keeps its slot.
    let tree = unsafe { Tree::traced(Threads, slots, geometry, nodes, delays) };
    (Box::leak(Box::new(tree)), delays)
}

fn torture(which: fn(&Event) -> bool) {
    let (tree, delays) = slow(which);
    torture::no_grace_period_is_too_short(tree, ROUNDS);
    assert!(delays.waited.load(Ordering::Relaxed) > 0, "it never waited");
}

#[test]
fn g23_delays_between_start_and_fence() {
    torture(|event| matches!(event, Event::Started(..)));
}

#[test]
fn g23_delays_between_arming_and_the_first_scan() {
    torture(|event| matches!(event, Event::Armed(..) | Event::SlotRead(..)));
}

#[test]
fn g23_delays_after_the_end() {
    torture(|event| matches!(event, Event::Ended(..)));
}

#[test]
fn g23_delays_between_nodes() {
    torture(|event| matches!(event, Event::NodeWrite { .. } | Event::Reported(..)));
}

#[test]
fn g23_delays_while_slots_come_and_go() {
    torture(|event| matches!(event, Event::Online(..) | Event::Offline(..)));
}

#[test]
fn g23_delays_everywhere_lose_no_callback() {
    static FREED: AtomicUsize = AtomicUsize::new(0);
    /// # Safety
    /// `head` belongs to an `Element` from `publish`, freed once.
    unsafe fn free_element(head: NonNull<Head>) {
        // SAFETY: the head is the first field.
        drop(unsafe { Box::from_raw(head.cast::<Element>().as_ptr()) });
        FREED.fetch_add(1, Ordering::Relaxed);
    }
    let (tree, _) = slow(|_| true);
    let per_thread = 50;
    let rounds = ROUNDS / 5;
    for round in 0..rounds {
        thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    for _ in 0..per_thread {
                        let element = NonNull::new(Element::publish()).unwrap();
                        let _guard = tree.read_lock();
                        // SAFETY: never published, queued once, freed by any thread.
                        unsafe { tree.call(element.cast(), Callback::Run(free_element)) };
                    }
                });
            }
            if round % 3 == 0 {
                tree.barrier();
            } else {
                tree.synchronize();
            }
        });
    }
    tree.barrier();
    assert_eq!(FREED.load(Ordering::Relaxed), rounds * 2 * per_thread);
}
