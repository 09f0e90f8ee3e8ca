//! Models of the machine and the shared readers: what passes between who drives and who is driven for.
//!
//! Run with `cargo xtask loom`; `cargo xtask mutants` runs them with their pairs weakened. One lane; the other one's part
//! is in `loom.rs`, and every order of whole calls in `machine/explorer.rs`.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use rcu_tree::machine::model::OneLane;

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.max_branches = 100_000;
    builder.check(f);
}

/// T36, I3 of the machine: who asks and finds another driver at it leaves; whoever of them is last sees both requests.
#[test]
fn t36_request_vs_driver() {
    model(|| {
        let tree = Arc::new(OneLane::new(1));
        let ask_and_drive = |tree: &OneLane| {
            let cookie = tree.snapshot();
            tree.ask(cookie);
            tree.drive();
            cookie
        };
        let other = thread::spawn({
            let tree = tree.clone();
            move || ask_and_drive(&tree)
        });
        let mine = ask_and_drive(&tree);
        let others = other.join().unwrap();
        assert!(tree.poll(mine) && tree.poll(others), "a request is lost");
    });
}

/// I5 of the machine: a section of no slot that ends while a driver looks is seen by the driver or ends the grace period
/// itself; nobody comes back later.
#[test]
fn i5_last_section_vs_driver() {
    model(|| {
        let tree = Arc::new(OneLane::new(1));
        let section = tree.enter_shared();
        let cookie = tree.snapshot();
        tree.ask(cookie);
        let driver = thread::spawn({
            let tree = tree.clone();
            move || tree.drive()
        });
        tree.exit_shared(section);
        driver.join().unwrap();
        assert!(tree.poll(cookie), "nobody looks again");
    });
}

/// P2 (shared side): a reader without a slot finds the new version, or is counted where the driver looks. Who unlinks,
/// who drives and who reads are three, so that only the fences order them.
#[test]
fn p2_shared_vs_scan() {
    model(|| {
        let tree = Arc::new(OneLane::new(1));
        let which = Arc::new(AtomicUsize::new(0));
        let retired = Arc::new(UnsafeCell::new(1));
        tree.ask(tree.snapshot());
        let driver = thread::spawn({
            let tree = tree.clone();
            move || tree.drive()
        });
        let reader = thread::spawn({
            let (tree, which, retired) = (tree.clone(), which.clone(), retired.clone());
            move || {
                // It is inside for ever, so that a grace period that counts it never ends.
                let _inside = tree.enter_shared();
                if which.load(Ordering::Relaxed) == 0 {
                    // SAFETY: what the model checks: nobody destroys what a reader found.
                    assert_eq!(retired.with(|v| unsafe { *v }), 1);
                }
            }
        });
        which.store(1, Ordering::Relaxed);
        let cookie = tree.snapshot();
        if tree.poll(cookie) {
            // SAFETY: what the model checks.
            retired.with_mut(|v| unsafe { *v = 0 });
        }
        driver.join().unwrap();
        if tree.poll(cookie) {
            // SAFETY: what the model checks.
            retired.with_mut(|v| unsafe { *v = 0 });
        }
        reader.join().unwrap();
    });
}

/// P3 (up the tree): two slots under one leaf leave their sections and the tree, and whoever is last tells the root. Who
/// finds that clear comes after both sections, though it has read neither's word. Who looks is spawned last: a report loads
/// its word before it exchanges it, which hides earlier loads from loom.
#[test]
fn p3_reports_vs_look_at_the_root() {
    model(|| {
        // The third slot makes a second leaf, and so a root.
        let tree = Arc::new(OneLane::new(3));
        let retired = Arc::new(UnsafeCell::new(1));
        let sections = [0, 1].map(|slot| tree.enter(slot));
        tree.arm();
        let [mine, others] = sections.map(|section| {
            let (tree, retired) = (tree.clone(), retired.clone());
            move || {
                // SAFETY: what the model checks: nobody destroys what a reader found.
                assert_eq!(retired.with(|v| unsafe { *v }), 1);
                tree.exit_and_leave(section);
            }
        });
        let other = thread::spawn(others);
        let driver = thread::spawn({
            let (tree, retired) = (tree.clone(), retired.clone());
            move || {
                if tree.is_clear() {
                    // SAFETY: what the model checks.
                    retired.with_mut(|v| unsafe { *v = 0 });
                }
            }
        });
        mine();
        other.join().unwrap();
        driver.join().unwrap();
        assert!(tree.is_clear(), "a report is lost");
    });
}
