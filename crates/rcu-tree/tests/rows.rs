//! Rows of the notes on Linux's tree RCU that its public face shows, one test each.
#![cfg(not(loom))]

mod common;

use common::tree;
use rcu_core::cpu::{BiasedLock, Cpus, PerSlot, Threads};
use rcu_core::{Callback, GracePeriod, Head, Rcu, Seq};
use rcu_tree::{Event, Geometry, Lane, Node, Trace, Tree, TreeSlot};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};

/// Notes what happens.
#[derive(Default)]
struct Log(Mutex<Vec<Event>>);

impl Trace for Log {
    fn event(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

fn traced(log: &'static Log) -> &'static Tree<'static, Threads, &'static Log> {
    let slots: Vec<_> = (0..Threads.nr_slots())
        .map(|_| TreeSlot::new(BiasedLock::new()))
        .collect();
    let geometry = Geometry::with_fanout(slots.len(), 8, 8);
    let nodes: Vec<_> = (0..geometry.nr_nodes()).map(|_| Node::new()).collect();
    let slots = PerSlot::from_slice(Box::leak(slots.into_boxed_slice()));
    let nodes = Box::leak(nodes.into_boxed_slice());
    // SAFETY: leaked before its first use; a thread keeps its slot.
    Box::leak(Box::new(unsafe {
        Tree::traced(Threads, slots, geometry, nodes, log)
    }))
}

/// G2, G3: start, then the tree's nodes, then reports, then the end, which comes before the next start.
#[test]
fn g2_g3_start_arm_report_end_in_turn() {
    let log: &'static Log = Box::leak(Box::default());
    let tree = traced(log);
    for round in 0..50 {
        let guard = (round % 2 == 0).then(|| tree.read_lock());
        let cookie = tree.start();
        tree.drive();
        drop(guard);
        tree.wait(cookie);
    }
    let (mut now, mut armed, mut ended) = (Seq::INITIAL, false, 0);
    for event in log.0.lock().unwrap().iter() {
        match *event {
            Event::Started(Lane::Normal, seq) => {
                assert!(!now.in_progress(), "the one before has not ended");
                assert_eq!(seq, now.started());
                (now, armed) = (seq, false);
            }
            Event::Armed(Lane::Normal) => {
                assert!(now.in_progress() && !armed);
                armed = true;
            }
            Event::Reported(_) => assert!(armed, "reported before the nodes were armed"),
            Event::Ended(Lane::Normal, seq) => {
                assert!(armed && now.in_progress());
                assert_eq!(seq, now.ended());
                now = seq;
                ended += 1;
            }
            _ => {}
        }
    }
    assert_eq!(ended, 50);
}

/// G4: however many ask while one is in progress, they share the next.
#[test]
fn g4_requests_during_a_grace_period_share_the_next() {
    let tree = tree(16, 64);
    let guard = tree.read_lock();
    tree.start();
    assert!(tree.drive());
    let cookies: Vec<_> = (0..20).map(|_| tree.start()).collect();
    drop(guard);
    while tree.drive() {
        std::thread::yield_now();
    }
    assert!(cookies.iter().all(|&cookie| tree.poll(cookie)));
    assert_eq!(tree.grace_periods(), 2);
}

/// G7: who was inside at the first scan and passed since is credited, though inside again.
#[test]
fn g7_who_passed_between_scans_is_credited() {
    let tree = tree(16, 64);
    let first = tree.read_lock();
    let cookie = tree.start();
    for _ in 0..10 {
        assert!(tree.drive() && !tree.poll(cookie));
    }
    drop(first);
    let second = tree.read_lock();
    tree.drive();
    assert!(tree.poll(cookie), "the section it waited for is over");
    drop(second);
}

/// G8: anybody may push, one at a time gets through, and nobody starts more than was asked for.
#[test]
fn g8_anybody_may_push() {
    let tree = tree(16, 64);
    let together = Barrier::new(4);
    for round in 1..=20 {
        let cookie = tree.start();
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    together.wait();
                    while !tree.poll(cookie) {
                        tree.drive();
                    }
                });
            }
        });
        assert_eq!(tree.grace_periods(), round);
    }
}

/// G9: an idle slot is in an extended quiescent state: nobody waits for its thread to do anything.
#[test]
fn g9_an_idle_slot_is_credited_without_running() {
    let tree = tree(8, 8);
    let (idle, waited) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|s| {
        s.spawn(|| {
            drop(tree.read_lock());
            idle.wait();
            waited.wait();
        });
        idle.wait();
        assert_eq!(tree.stats().slots_online, 1);
        let cookie = tree.start();
        tree.drive();
        let passed = tree.poll(cookie);
        waited.wait();
        assert!(passed, "waited for a thread that does nothing");
    });
}

/// G20: a slot that was idle while the numbers went round is waited for when it reads again.
#[test]
fn g20_a_slot_idle_across_the_wrap_is_waited_for() {
    let tree = tree(16, 64);
    let (idle, wrapped, inside, seen) = (
        Barrier::new(2),
        Barrier::new(2),
        Barrier::new(2),
        Barrier::new(2),
    );
    std::thread::scope(|s| {
        s.spawn(|| {
            drop(tree.read_lock());
            idle.wait();
            wrapped.wait();
            let guard = tree.read_lock();
            inside.wait();
            seen.wait();
            drop(guard);
        });
        idle.wait();
        for _ in 0..700 {
            tree.synchronize();
        }
        wrapped.wait();
        inside.wait();
        let cookie = tree.start();
        let early = (0..50).any(|_| {
            tree.drive();
            tree.poll(cookie)
        });
        seen.wait();
        assert!(!early, "its section was missed");
        tree.wait(cookie);
    });
}

/// G25: whether there is anything to do is known, and is no more once it is done.
#[test]
fn g25_what_is_left_to_do_is_known() {
    static RAN: AtomicUsize = AtomicUsize::new(0);
    /// # Safety
    /// None.
    unsafe fn count(_: NonNull<Head>) {
        RAN.fetch_add(1, Ordering::Relaxed);
    }
    let tree = tree(16, 64);
    assert!(!tree.has_work() && !tree.drive());
    let _ = tree.snapshot();
    assert!(!tree.has_work(), "a snapshot asks for nothing");
    tree.start();
    assert!(tree.has_work());
    assert!(!tree.drive() && !tree.has_work());
    let head: &'static Head = Box::leak(Box::new(Head::new()));
    // SAFETY: leaked, on no list, queued once.
    unsafe { tree.call(NonNull::from(head), Callback::Run(count)) };
    assert!(tree.has_work(), "a callback without a number");
    while tree.has_work() {
        tree.drive();
        tree.run_callbacks();
    }
    assert_eq!(RAN.load(Ordering::Relaxed), 1);
}

/// T36: whoever asks, pushes once and finds the machine taken may go: who has it looks again.
#[test]
fn t36_a_request_beside_another_driver_is_not_lost() {
    const THREADS: usize = 4;
    let tree = tree(16, 64);
    let (asked, looked) = (Barrier::new(THREADS), Barrier::new(THREADS));
    let lost = AtomicUsize::new(0);
    std::thread::scope(|s| {
        for _ in 0..THREADS {
            s.spawn(|| {
                for _ in 0..if cfg!(miri) { 5 } else { 200 } {
                    let cookie = tree.start();
                    tree.drive();
                    asked.wait();
                    lost.fetch_add(usize::from(!tree.poll(cookie)), Ordering::Relaxed);
                    looked.wait();
                }
            });
        }
    });
    assert_eq!(lost.into_inner(), 0, "nobody came back for them");
}

/// T37: what a slot passed before a grace period began does not count for it.
#[test]
fn t37_quiescent_states_of_before_do_not_count() {
    let tree = tree(16, 64);
    for passed in 0..5 {
        let before = tree.start();
        tree.wait(before);
        for _ in 0..passed {
            drop(tree.read_lock());
        }
        let guard = tree.read_lock();
        let cookie = tree.start();
        for _ in 0..20 {
            assert!(tree.drive() && !tree.poll(cookie));
        }
        drop(guard);
        tree.wait(cookie);
    }
}
