//! Threads that come and go, read, retire and wait: no grace period too short, no callback lost.
#![cfg(all(feature = "std", not(loom)))]

mod common;
#[path = "common/torture.rs"]
mod torture;

use common::tree;
use rcu_core::cpu::{Cpus, Threads};
use rcu_core::{Callback, GracePeriod, Guard, Head, Rcu};
use rcu_tree::Tree;
use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use torture::Element;

/// Sizes, smaller where a checker runs.
mod cfg {
    pub(crate) const ROUNDS: usize = if cfg!(miri) {
        20
    } else if cfg!(feature = "strict") {
        // Every exit drives.
        200
    } else {
        1_000
    };
    pub(crate) const CHURN: usize = if cfg!(miri) { 5 } else { 300 };
}

#[test]
fn no_grace_period_is_too_short_while_threads_come_and_go() {
    torture::no_grace_period_is_too_short(tree(16, 64), cfg::ROUNDS);
}

static FREED: AtomicUsize = AtomicUsize::new(0);

/// # Safety
/// `head` belongs to an `Element` from `publish`, freed once.
unsafe fn free_element(head: NonNull<Head>) {
    // SAFETY: the head is the first field.
    drop(unsafe { Box::from_raw(head.cast::<Element>().as_ptr()) });
    FREED.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn g19_callbacks_of_ended_threads_are_run() {
    rcu_tree::static_tree! { struct Churn; }
    let per_thread = 50;
    for _ in 0..cfg::CHURN {
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    for _ in 0..per_thread {
                        let element = NonNull::new(Element::publish()).unwrap();
                        let _guard = Churn.read_lock();
                        // SAFETY: never published, queued once, freed by any thread.
                        unsafe { Churn.call(element.cast(), Callback::Run(free_element)) };
                    }
                });
            }
        });
    }
    Churn.barrier();
    assert_eq!(FREED.load(Ordering::Relaxed), cfg::CHURN * 2 * per_thread);
}

#[test]
fn t41_a_guard_outlives_its_threads_slot() {
    let tree = tree(16, 64);
    struct Kept(Guard<&'static Tree<'static, Threads>>);
    impl Drop for Kept {
        fn drop(&mut self) {
            assert_eq!(Threads.current(), None, "the slot's destructor came first");
            let rcu = self.0.rcu();
            let cookie = rcu.start();
            rcu.drive();
            assert!(!rcu.poll(cookie), "the guard's section was missed");
        }
    }
    thread_local! {
        static KEPT: RefCell<Vec<Kept>> = const { RefCell::new(Vec::new()) };
    }
    for _ in 0..20 {
        std::thread::spawn(move || {
            // Registered for destruction before the slot is, so it is dropped after it.
            KEPT.with_borrow_mut(|kept| kept.push(Kept(tree.read_lock())));
        })
        .join()
        .unwrap();
        tree.synchronize();
    }
    assert!(tree.stats().slots_online <= 1);
}

#[test]
fn threads_without_a_slot_read_on_the_shared_path() {
    let tree = tree(16, 64);
    struct ReadLate(&'static Tree<'static, Threads>);
    impl Drop for ReadLate {
        fn drop(&mut self) {
            assert_eq!(Threads.current(), None, "the slot's destructor came first");
            let guard = self.0.read_lock();
            let cookie = self.0.start();
            self.0.drive();
            assert!(!self.0.poll(cookie), "the shared reader was missed");
            drop(guard);
        }
    }
    thread_local! {
        static LATE: RefCell<Option<ReadLate>> = const { RefCell::new(None) };
    }
    std::thread::spawn(move || {
        LATE.with_borrow_mut(|late| *late = Some(ReadLate(tree)));
        drop(tree.read_lock());
    })
    .join()
    .unwrap();
    tree.synchronize();
}

#[test]
#[should_panic(expected = "inside a read-side critical section")]
fn synchronize_inside_a_section_panics_instead_of_hanging() {
    let tree = tree(16, 64);
    let _guard = tree.read_lock();
    tree.synchronize();
}

#[test]
#[should_panic(expected = "inside a read-side critical section")]
fn a_barrier_inside_a_section_panics_instead_of_hanging() {
    let tree = tree(16, 64);
    let _guard = tree.read_lock();
    tree.barrier();
}

#[test]
fn a_panicking_callback_is_contained() {
    /// # Safety
    /// None.
    unsafe fn bad(_: NonNull<Head>) {
        panic!("on purpose");
    }
    let tree = tree(16, 64);
    static HEADS: [Head; 3] = [const { Head::new() }; 3];
    for head in &HEADS {
        // SAFETY: static, queued once.
        unsafe { tree.call(NonNull::from(head), Callback::Run(bad)) };
    }
    tree.barrier();
    assert_eq!(tree.stats().callbacks_panicked, 3);
}

#[test]
fn callbacks_queued_while_a_visitor_is_in_are_not_lost() {
    rcu_tree::static_tree! { struct Busy; }
    static RUN: AtomicUsize = AtomicUsize::new(0);
    /// # Safety
    /// `head` belongs to an `Element` from `publish`, freed once.
    unsafe fn count(head: NonNull<Head>) {
        // SAFETY: the head is the first field.
        drop(unsafe { Box::from_raw(head.cast::<Element>().as_ptr()) });
        RUN.fetch_add(1, Ordering::Relaxed);
    }
    let stop = AtomicBool::new(false);
    let n = cfg::ROUNDS * 20;
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                Busy.barrier();
            }
        });
        for _ in 0..n {
            let element = NonNull::new(Element::publish()).unwrap();
            // SAFETY: never published, queued once, freed by any thread.
            unsafe { Busy.call(element.cast(), Callback::Run(count)) };
        }
        stop.store(true, Ordering::Relaxed);
    });
    Busy.barrier();
    assert_eq!(RUN.load(Ordering::Relaxed), n);
}

#[test]
fn dropping_a_tree_runs_what_is_queued() {
    use rcu_core::cpu::{BiasedLock, PerSlot};
    use rcu_tree::{Geometry, Node, TreeSlot};
    static RUN: AtomicUsize = AtomicUsize::new(0);
    /// # Safety
    /// None.
    unsafe fn count(_: NonNull<Head>) {
        RUN.fetch_add(1, Ordering::Relaxed);
    }
    let slots: Vec<_> = (0..Threads.nr_slots())
        .map(|_| TreeSlot::new(BiasedLock::new()))
        .collect();
    let geometry = Geometry::new(slots.len());
    let nodes: Vec<_> = (0..geometry.nr_nodes()).map(|_| Node::new()).collect();
    let head = Head::new();
    {
        // SAFETY: neither moved nor forgotten.
        let tree = unsafe { Tree::new(Threads, PerSlot::from_slice(&slots), geometry, &nodes) };
        // SAFETY: the head outlives the tree, which runs the callback before it goes.
        unsafe { tree.call(NonNull::from(&head), Callback::Run(count)) };
    }
    assert_eq!(RUN.load(Ordering::Relaxed), 1);
    std::thread::spawn(|| Threads.current()).join().unwrap();
}
