//! Strict mode: the end of a section ends the grace period that waits for it.
#![cfg(all(feature = "strict", not(loom)))]

mod common;
#[path = "common/odd.rs"]
mod odd;

use common::tree;
use odd::{Odd, odd, without_slot};
use rcu_core::cpu::{Cpus, Threads};
use rcu_core::{GracePeriod, Guard, Online, Rcu};
use rcu_tree::{Event, StallConfig, Trace, Tree};
use std::cell::{Cell, RefCell};
use std::sync::OnceLock;
use std::thread;

#[test]
fn g24_the_outermost_exit_ends_the_grace_period() {
    let tree = tree(16, 64);
    let (outer, inner) = (tree.read_lock(), tree.read_lock());
    let cookie = tree.start();
    tree.drive();
    let scans = tree.gp_stats().normal.scans;
    drop(outer);
    assert!(!tree.poll(cookie));
    assert_eq!(
        tree.gp_stats().normal.scans,
        scans,
        "only the outermost looks"
    );
    drop(inner);
    assert!(tree.poll(cookie), "nobody drove but the exit");
    let before = tree.grace_periods();
    drop(tree.read_lock());
    assert_eq!(
        tree.grace_periods(),
        before,
        "what nobody asked for is not driven"
    );
}

#[test]
fn g24_a_grace_period_asked_for_is_started_and_ended_by_exits() {
    let tree = tree(16, 64);
    let guard = tree.read_lock();
    let cookie = tree.start();
    assert!(!tree.poll(cookie));
    drop(guard);
    assert!(tree.poll(cookie));
}

#[test]
fn g24_the_last_of_several_readers_ends_it() {
    let tree = tree(16, 64);
    let mine = tree.read_lock();
    let cookie = tree.start();
    tree.drive();
    thread::scope(|s| {
        s.spawn(|| {
            let theirs = tree.read_lock();
            drop(theirs);
            assert!(!tree.poll(cookie));
        });
    });
    drop(mine);
    assert!(tree.poll(cookie));
}

#[test]
fn g24_quiescent_states_and_readers_without_a_slot_end_it_too() {
    let tree = odd(rcu_tree::NoTrace, StallConfig::never());
    let mut online = Online::new(tree);
    let cookie = tree.start();
    tree.drive();
    assert!(!tree.poll(cookie));
    online.quiescent();
    assert!(tree.poll(cookie));
    drop(online);
    without_slot(|| {
        let guard = tree.read_lock();
        let cookie = tree.start();
        tree.drive();
        assert!(!tree.poll(cookie));
        drop(guard);
        assert!(tree.poll(cookie));
    });
}

/// The last exit of a thread that has ended takes its slot offline, which reports, and then drives.
#[test]
fn t42_a_lingering_exit_that_reports_ends_it_once() {
    struct Kept(
        #[expect(dead_code, reason = "kept for its end")] Guard<&'static Tree<'static, Threads>>,
    );
    thread_local! {
        static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) };
    }
    let tree = tree(16, 64);
    let cookie = thread::spawn(move || {
        // Registered before the slot, so dropped after it.
        KEPT.with_borrow_mut(|_| ());
        let guard = tree.read_lock();
        let cookie = tree.start();
        tree.drive();
        KEPT.with_borrow_mut(|kept| *kept = Some(Kept(guard)));
        cookie
    })
    .join()
    .unwrap();
    assert!(tree.poll(cookie), "its last exit drove");
    assert_eq!(tree.stats().slots_online, 0);
}

/// A listener that reads, as a logger over RCU would.
#[derive(Default)]
struct Reads(OnceLock<&'static Tree<'static, Odd, &'static Reads>>);

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    static DEEPEST: Cell<usize> = const { Cell::new(0) };
}

impl Trace for Reads {
    fn event(&self, event: Event) {
        // A slot that comes or goes is offline while this is told, and a section would bring it online.
        if matches!(
            event,
            Event::Online(_) | Event::Offline(_) | Event::NodeWrite { .. }
        ) {
            return;
        }
        let depth = DEPTH.get() + 1;
        DEPTH.set(depth);
        DEEPEST.set(DEEPEST.get().max(depth));
        assert!(depth < 10, "an exit in an exit in an exit");
        if let Some(tree) = self.0.get() {
            drop(tree.read_lock());
        }
        DEPTH.set(depth - 1);
    }
}

#[test]
fn t42_an_exit_in_the_middle_of_what_an_exit_does_goes_no_deeper() {
    static LISTENER: Reads = Reads(OnceLock::new());
    let tree = odd(&LISTENER, StallConfig::never());
    assert!(Odd.current().is_some());
    drop(tree.read_lock());
    LISTENER.0.set(tree).unwrap();
    for _ in 0..100 {
        let guard = tree.read_lock();
        let cookie = tree.start();
        drop(guard);
        assert!(tree.poll(cookie));
    }
    assert_eq!(DEEPEST.get(), 1, "the machine's lock was taken");
}
