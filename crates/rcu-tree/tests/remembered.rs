//! Threads that read while they end: what they remember of their slot must not outlive it (`tree::remember`, I1).
#![cfg(not(loom))]

use rcu_core::cpu::{Cpus, Threads};
use rcu_core::{GracePeriod, Guard, read_lock};
use std::cell::RefCell;
use std::sync::mpsc;
use std::thread;

rcu_tree::static_tree! {
    struct Leaving;
}

/// Reads when its thread ends.
struct Late;

/// A section on this thread holds a grace period up, and its end lets it pass.
fn section_counts() {
    let guard = read_lock::<Leaving>();
    let cookie = Leaving.start();
    thread::spawn(|| Leaving.drive()).join().unwrap();
    assert!(!Leaving.poll(cookie), "the section was not seen");
    drop(guard);
    Leaving.wait(cookie);
}

impl Drop for Late {
    fn drop(&mut self) {
        if Threads.current_if_online().is_none() {
            // The slot is gone; another thread gets it, reads by it and stays inside.
            let (started, wait_started) = mpsc::channel();
            let (stop, wait_stop) = mpsc::channel::<()>();
            let other = thread::spawn(move || {
                let guard = read_lock::<Leaving>();
                started.send(()).unwrap();
                wait_stop.recv().unwrap();
                drop(guard);
            });
            wait_started.recv().unwrap();
            // By the other's word this would be a nested section, and out of step with the other's exit.
            let ours = read_lock::<Leaving>();
            let cookie = Leaving.start();
            stop.send(()).unwrap();
            other.join().unwrap();
            Leaving.drive();
            assert!(!Leaving.poll(cookie), "ours was the other's word");
            drop(ours);
            Leaving.wait(cookie);
        }
        section_counts();
    }
}

thread_local! {
    static BEFORE: Late = const { Late };
    static AFTER: Late = const { Late };
    static HELD: RefCell<Option<Guard<Leaving>>> = const { RefCell::new(None) };
}

#[test]
fn i1_destructors_before_and_after_the_slot_has_gone_read_safely() {
    for _ in 0..20 {
        let thread = thread::spawn(|| {
            BEFORE.with(|_| ());
            section_counts();
            AFTER.with(|_| ());
        });
        thread.join().unwrap();
    }
    Leaving.synchronize();
}

#[test]
fn i1_a_guard_that_outlives_the_slot_ends_its_section() {
    for _ in 0..20 {
        let thread = thread::spawn(|| {
            HELD.with(|_| ());
            section_counts();
            HELD.with(|held| *held.borrow_mut() = Some(read_lock()));
        });
        thread.join().unwrap();
        Leaving.synchronize();
    }
}
