//! Sections that belong to no thread: entered so, or moved off a slot, in every state of the two machines.
#![cfg(all(feature = "std", not(loom)))]

mod common;
#[path = "../examples/send_guard.rs"]
mod example;
#[path = "common/puppet.rs"]
mod puppet;

use common::tree;
use proptest::prelude::*;
use puppet::{Puppet, PuppetTree, ended, puppet};
use rcu_core::{Cookie, FullCookie, GracePeriod, Guard, Rcu, RcuSend, SendGuard};
use rcu_tree::{Lane, SendToken, Token};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

/// Drives `tree` as long as that changes anything.
fn drive(tree: &impl GracePeriod) {
    for _ in 0..4 {
        tree.drive();
    }
}

#[test]
fn g11_the_example_does_what_it_says() {
    example::run();
}

#[test]
fn g11_a_section_that_changes_its_thread_holds_up_both_lanes() {
    let tree = tree(16, 64);
    for moved in [false, true] {
        let guard = if moved {
            tree.read_lock().into_send()
        } else {
            SendGuard::new(tree)
        };
        let (normal, expedited) = (tree.start(), tree.start_expedited());
        thread::spawn(move || {
            drive(tree);
            assert!(!tree.poll(normal) && !tree.poll(expedited));
            drop(guard);
        })
        .join()
        .unwrap();
        assert!(
            tree.poll(normal) && tree.poll(expedited),
            "who leaves last drives"
        );
    }
}

#[test]
fn g11_a_domain_has_them_too() {
    rcu_tree::static_tree! { struct Domain; }
    fn is_send<T: Send + Sync>(_: &T) {}
    let guard = rcu_core::read_lock::<Domain>().into_send();
    is_send(&guard);
    let cookie = Domain.start();
    drive(&Domain);
    assert!(!Domain.poll(cookie));
    drop(guard);
    Domain.wait(cookie);
    let guard = SendGuard::new(Domain);
    let held = Domain.start_expedited();
    assert!(!Domain.poll(held));
    drop(guard);
    Domain.wait_expedited(held);
}

/// How a lane's grace period stands to the slot that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    Idle,
    /// It waits for the section.
    Waits,
    /// It has credited the slot, and waits for another one.
    Credited,
}

const STANDS: [Stand; 3] = [Stand::Idle, Stand::Waits, Stand::Credited];

fn start(tree: &PuppetTree, lane: Lane) {
    match lane {
        Lane::Normal => tree.start(),
        Lane::Expedited => tree.start_expedited(),
    };
    tree.drive();
}

#[test]
fn g11_t41_a_move_in_every_state_of_both_machines() {
    for normal in STANDS {
        for expedited in STANDS {
            for nested in [false, true] {
                move_off_in(normal, expedited, nested);
            }
        }
    }
}

fn move_off_in(normal: Stand, expedited: Stand, nested: bool) {
    const MOVER: Option<u32> = Some(3);
    const OTHER: Option<u32> = Some(5);
    let stands = [normal, expedited];
    let what = format!("{stands:?}, nested {nested}");
    let (tree, cpus, _) = puppet(8);
    cpus.go(OTHER);
    let other = tree.enter();
    cpus.go(MOVER);
    // The lanes that are to have credited the mover start while it is in an earlier section.
    let earlier = tree.enter();
    for lane in Lane::ALL {
        if stands[lane.index()] == Stand::Credited {
            start(tree, lane);
        }
    }
    // SAFETY: entered above.
    unsafe { tree.exit(earlier) };
    tree.drive();
    let token = tree.enter();
    let outer = nested.then(|| tree.enter());
    for lane in Lane::ALL {
        if stands[lane.index()] == Stand::Waits {
            start(tree, lane);
        }
    }
    let before = Lane::ALL.map(|lane| ended(tree, lane));
    let full = tree.snapshot_full();
    // SAFETY: entered above, moved once.
    let moved = unsafe { tree.move_off(token) };
    if let Some(outer) = outer {
        // SAFETY: entered above.
        unsafe { tree.exit(outer) };
    }
    // SAFETY: entered above.
    unsafe { tree.exit(other) };
    drive(tree);
    for lane in Lane::ALL {
        let ended = ended(tree, lane) - before[lane.index()];
        let expected = usize::from(stands[lane.index()] == Stand::Credited);
        assert_eq!(ended, expected, "{lane:?} in {what}");
    }
    let small = [tree.start(), tree.start_expedited()];
    drive(tree);
    assert!(!tree.poll_full(full), "{what}");
    assert!(small.iter().all(|&c| !tree.poll(c)), "{what}");
    // SAFETY: moved above.
    unsafe { tree.exit_send(moved) };
    drive(tree);
    assert!(
        tree.poll_full(full) && small.iter().all(|&c| tree.poll(c)),
        "{what}"
    );
}

#[test]
fn g11_a_section_of_no_slot_is_moved_by_name_only() {
    let (tree, cpus, _) = puppet(2);
    cpus.go(None);
    let token = tree.enter();
    let cookie = tree.start();
    // SAFETY: entered above.
    let moved = unsafe { tree.move_off(token) };
    drive(tree);
    assert!(!tree.poll(cookie));
    // SAFETY: moved above.
    unsafe { tree.exit_send(moved) };
    assert!(tree.poll(cookie), "who leaves last drives");
}

/// Overlapping sections never starve a grace period, whether entered or moved: it ends when those before it have.
#[test]
fn g11_overlapping_sections_starve_nobody() {
    for moves in [false, true] {
        let (tree, cpus, _) = puppet(8);
        let mut live: Vec<SendToken> = Vec::new();
        let mut enter = |n: usize| {
            cpus.go(Some((n % 8) as u32));
            if moves {
                // SAFETY: entered just now.
                live.push(unsafe { tree.move_off(tree.enter()) });
            } else {
                live.push(tree.enter_send());
            }
            if live.len() > 3 {
                // SAFETY: taken off the list, so given back once.
                unsafe { tree.exit_send(live.remove(0)) };
            }
        };
        for n in 0..200 {
            enter(n);
            if n % 20 != 10 {
                continue;
            }
            let cookies = [tree.start(), tree.start_expedited()];
            let full = tree.snapshot_full();
            // Three sections are live; each grace period outlasts those it found, and at most two are needed.
            for m in 0..9 {
                enter(n + m);
            }
            assert!(
                cookies.iter().all(|&c| tree.poll(c)),
                "moves {moves}, round {n}"
            );
            assert!(tree.poll_full(full));
        }
    }
}

/// Tasks that hop from thread to thread while a writer frees what they no longer see.
#[test]
fn g11_nothing_is_freed_under_a_section_on_its_way() {
    const ROUNDS: usize = if cfg!(miri) { 4 } else { 300 };
    let tree = tree(16, 64);
    let current = AtomicPtr::new(Box::into_raw(Box::new(AtomicUsize::new(1))));
    let stop = AtomicBool::new(false);
    let check = |element: *mut AtomicUsize| {
        // SAFETY: freed after a grace period only, which is what is tested.
        let value = unsafe { &*element }.load(Ordering::Relaxed);
        assert_eq!(value, 1, "freed under a section");
    };
    thread::scope(|s| {
        let (send, receive) = mpsc::sync_channel::<(SendGuard<_>, AtomicPtr<AtomicUsize>)>(4);
        let (current, stop) = (&current, &stop);
        s.spawn(move || {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let guard = if n % 3 == 0 {
                    let guard = SendGuard::new(tree);
                    let element = current.load(Ordering::Acquire);
                    (guard, element)
                } else {
                    let guard = Guard::new(tree);
                    let element = current.load(Ordering::Acquire);
                    check(element);
                    (guard.into_send(), element)
                };
                if send.send((guard.0, AtomicPtr::new(guard.1))).is_err() {
                    return;
                }
            }
        });
        s.spawn(move || {
            for (guard, element) in receive {
                check(element.into_inner());
                drop(guard);
            }
        });
        for n in 0..ROUNDS {
            let new = Box::into_raw(Box::new(AtomicUsize::new(1)));
            let old = current.swap(new, Ordering::AcqRel);
            match n % 3 {
                0 => tree.synchronize(),
                1 => tree.synchronize_expedited(),
                _ => tree.wait_full(tree.start_full()),
            }
            // SAFETY: unlinked, and a grace period has passed.
            let old = unsafe { Box::from_raw(old) };
            old.store(0, Ordering::Relaxed);
        }
        stop.store(true, Ordering::Relaxed);
    });
    // SAFETY: nobody reads any more.
    drop(unsafe { Box::from_raw(current.into_inner()) });
}

/// One thing that happens on a machine of four CPUs.
#[derive(Clone, Copy, Debug)]
enum Step {
    Enter(Option<u32>),
    EnterSend(Option<u32>),
    Leave(usize),
    Move(usize),
    Quiescent(usize),
    Start,
    StartExpedited,
    Drive,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let cpu = prop_oneof![4 => (0..4u32).prop_map(Some), 1 => Just(None)];
    let step = prop_oneof![
        4 => cpu.clone().prop_map(Step::Enter),
        2 => cpu.prop_map(Step::EnterSend),
        5 => any::<usize>().prop_map(Step::Leave),
        3 => any::<usize>().prop_map(Step::Move),
        2 => any::<usize>().prop_map(Step::Quiescent),
        2 => Just(Step::Start),
        2 => Just(Step::StartExpedited),
        4 => Just(Step::Drive),
    ];
    prop::collection::vec(step, 1..80)
}

/// What holds a section.
#[derive(Clone, Copy, Debug)]
enum Held {
    Slot(Option<u32>, Token),
    Send(SendToken),
}

/// The dull model: each section and each cookie with the moment at which it came about.
struct World {
    tree: &'static PuppetTree,
    cpus: &'static Puppet,
    now: usize,
    live: Vec<(usize, Held)>,
    cookies: Vec<(usize, Cookie, FullCookie)>,
}

impl World {
    fn step(&mut self, step: Step) {
        let tree = self.tree;
        self.now += 1;
        let pick = |n: usize| (!self.live.is_empty()).then(|| n % self.live.len());
        match step {
            Step::Enter(cpu) => {
                self.cpus.go(cpu);
                self.live.push((self.now, Held::Slot(cpu, tree.enter())));
            }
            Step::EnterSend(cpu) => {
                self.cpus.go(cpu);
                self.live.push((self.now, Held::Send(tree.enter_send())));
            }
            Step::Leave(n) => {
                let Some(n) = pick(n) else { return };
                let (_, held) = self.live.swap_remove(n);
                self.leave(held);
            }
            Step::Move(n) => {
                let Some(n) = pick(n) else { return };
                if let Held::Slot(cpu, token) = self.live[n].1 {
                    self.cpus.go(cpu);
                    // SAFETY: entered, and replaced by what it was moved to.
                    self.live[n].1 = Held::Send(unsafe { tree.move_off(token) });
                }
            }
            Step::Quiescent(n) => {
                let Some(n) = pick(n) else { return };
                if let Held::Slot(cpu, token) = self.live[n].1 {
                    self.cpus.go(cpu);
                    // SAFETY: entered, and replaced.
                    let token = unsafe { tree.quiescent_state(token) };
                    self.live[n] = (self.now, Held::Slot(cpu, token));
                }
            }
            Step::Start => {
                tree.start();
            }
            Step::StartExpedited => {
                tree.start_expedited();
            }
            Step::Drive => {
                tree.drive();
            }
        }
    }

    fn leave(&self, held: Held) {
        match held {
            Held::Slot(cpu, token) => {
                self.cpus.go(cpu);
                // SAFETY: entered, and off the list.
                unsafe { self.tree.exit(token) };
            }
            // SAFETY: entered or moved, and off the list.
            Held::Send(token) => unsafe { self.tree.exit_send(token) },
        }
    }

    fn check(&mut self) {
        let (small, full) = (self.tree.snapshot(), self.tree.snapshot_full());
        self.cookies.push((self.now, small, full));
        for &(taken, small, full) in &self.cookies {
            let (small, full) = (self.tree.poll(small), self.tree.poll_full(full));
            if self.live.iter().any(|&(since, _)| since <= taken) {
                assert!(!small && !full, "too early");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 400 }))]

    #[test]
    fn g11_g10_sections_of_all_kinds_against_a_dull_model(steps in steps()) {
        let (tree, cpus, _) = puppet(4);
        let mut world = World { tree, cpus, now: 0, live: Vec::new(), cookies: Vec::new() };
        for step in steps {
            world.step(step);
            world.check();
        }
        let asked = [tree.start(), tree.start_expedited()];
        for (_, held) in std::mem::take(&mut world.live) {
            world.leave(held);
        }
        drive(tree);
        prop_assert!(asked.iter().all(|&c| tree.poll(c)), "progress");
        for &(_, small, full) in &world.cookies {
            prop_assert!(tree.poll(small) && tree.poll_full(full));
        }
        // What is counted twice or not at all shows in the next grace period.
        tree.synchronize();
        tree.synchronize_expedited();
    }
}
