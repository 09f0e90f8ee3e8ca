//! Two lanes of grace periods: cookies of both sizes, the expedited kind, who waits and who is woken.
#![cfg(all(feature = "std", not(loom)))]

mod common;
#[path = "common/puppet.rs"]
mod puppet;

use common::tree;
use puppet::{Log, ended, puppet};
use rcu_core::cpu::{BiasedLock, Cpus, PerSlot, Threads};
use rcu_core::{Cookie, FullCookie, GracePeriod, Rcu};
use rcu_tree::{Event, Geometry, Lane, Node, Tree, TreeSlot};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

const LOOPS: usize = if cfg!(miri) { 4 } else { 200 };

/// Drives `tree` as long as that changes anything.
fn drive<C: Cpus, T: rcu_tree::Trace>(tree: &Tree<'_, C, T>) {
    for _ in 0..4 {
        tree.drive();
    }
}

#[test]
fn r16_t46_with_nobody_online_a_wait_completes_every_earlier_cookie() {
    for expedited in [false, true] {
        let tree = tree(16, 64);
        let (small, full) = (tree.snapshot(), tree.snapshot_full());
        assert!(!tree.poll(small) && !tree.poll_full(full));
        if expedited {
            tree.synchronize_expedited();
        } else {
            tree.synchronize();
        }
        assert!(tree.poll(small) && tree.poll_full(full));
        let stats = tree.stats();
        assert_eq!(stats.slots_online, 0);
        let counts = (stats.grace_periods, stats.expedited);
        assert_eq!(counts, if expedited { (0, 1) } else { (1, 0) });
    }
}

#[test]
fn r8_full_cookies_are_done_after_any_wait_and_not_before() {
    let tree = tree(16, 64);
    let waits: [&dyn Fn(); 6] = [
        &|| tree.synchronize(),
        &|| tree.synchronize_expedited(),
        &|| tree.wait(tree.start()),
        &|| tree.wait_expedited(tree.start_expedited()),
        &|| tree.wait_full(tree.start_full()),
        &|| tree.wait_full_expedited(tree.start_full_expedited()),
    ];
    for (n, wait) in waits.iter().enumerate() {
        let cookie = tree.snapshot_full();
        assert!(!tree.poll_full(cookie), "wait {n}");
        wait();
        assert!(tree.poll_full(cookie), "wait {n}");
    }
    assert!(tree.poll_full(FullCookie::COMPLETED) && tree.poll(Cookie::COMPLETED));
    tree.wait_full(FullCookie::COMPLETED);
    tree.wait_full_expedited(FullCookie::COMPLETED);
}

/// `let f = snapshot_full(); wait(start()); poll_full(f)`, while the other lane does what it likes.
#[test]
fn r8_full_cookie_never_misses_while_the_lanes_overlap() {
    let tree = tree(8, 8);
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                drop(tree.read_lock());
            }
        });
        let waiters: Vec<_> = [false, true]
            .into_iter()
            .map(|hurry| {
                s.spawn(move || {
                    for n in 0..LOOPS {
                        let full = tree.snapshot_full();
                        match (hurry, n % 2) {
                            (false, 0) => tree.synchronize(),
                            (false, _) => tree.wait(tree.start()),
                            (true, 0) => tree.synchronize_expedited(),
                            (true, _) => tree.wait_expedited(tree.start_expedited()),
                        }
                        assert!(tree.poll_full(full), "hurry {hurry}, round {n}");
                    }
                })
            })
            .collect();
        for waiter in waiters {
            waiter.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let stats = tree.stats();
    assert!(stats.grace_periods > 0 && stats.expedited > 0);
}

#[test]
fn r10_so_many_cookies_are_active_at_most() {
    let (tree, cpus, _) = puppet(4);
    let mut small = Vec::new();
    let mut full = Vec::new();
    for n in 0..200u32 {
        cpus.go(Some(n % 4));
        let token = tree.enter();
        match n % 5 {
            0 => {
                tree.start();
            }
            2 => {
                tree.start_expedited();
            }
            _ => {
                tree.drive();
            }
        }
        small.push(tree.snapshot());
        full.push(tree.snapshot_full());
        // SAFETY: entered above, on this thread.
        unsafe { tree.exit(token) };
        small.retain(|&c| !tree.poll(c));
        small.dedup();
        full.retain(|&c| !tree.poll_full(c));
        full.dedup();
        assert!(small.len() <= Cookie::MAX_ACTIVE, "{small:?}");
        assert!(full.len() <= FullCookie::MAX_ACTIVE, "{full:?}");
    }
}

#[test]
fn r12_g17_an_expedited_grace_period_starts_at_once_beside_a_normal_one() {
    let (tree, cpus, log) = puppet(4);
    let token = tree.enter();
    cpus.go(Some(1));
    let normal = tree.start();
    tree.drive();
    log.take();
    let expedited = tree.start_expedited();
    let events = log.take();
    let started = |lane| {
        let is_start = |e: &Event| matches!(e, Event::Started(l, _) if *l == lane);
        events.iter().filter(|&e| is_start(e)).count()
    };
    assert_eq!(
        (started(Lane::Normal), started(Lane::Expedited)),
        (0, 1),
        "{events:?}"
    );
    assert!(events.contains(&Event::Requested(Lane::Expedited)));
    drive(tree);
    assert!(!tree.poll(normal) && !tree.poll(expedited));
    // SAFETY: entered above, on this thread.
    unsafe { tree.exit(token) };
    drive(tree);
    assert!(tree.poll(normal) && tree.poll(expedited));
}

#[test]
fn r15_policy_chooses_the_lane() {
    let tree = tree(16, 64);
    let counts = || (ended(tree, Lane::Normal), ended(tree, Lane::Expedited));
    tree.synchronize();
    assert_eq!(counts(), (1, 0));
    tree.expedite();
    tree.expedite();
    tree.synchronize();
    tree.unexpedite();
    tree.wait(tree.snapshot());
    assert_eq!(counts(), (1, 2), "nests");
    tree.set_normal_only(true);
    tree.synchronize();
    tree.synchronize_expedited();
    tree.wait_expedited(tree.start_expedited());
    assert_eq!(counts(), (4, 2), "both set: normal");
    tree.set_normal_only(false);
    tree.unexpedite();
    tree.synchronize();
    assert_eq!(counts(), (5, 2));
    let unbalanced = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| tree.unexpedite()));
    assert!(unbalanced.is_err());
    tree.synchronize();
    assert_eq!(counts(), (6, 2), "the count is as before");
    tree.synchronize_expedited();
    assert_eq!(counts(), (6, 3));
}

#[test]
fn r7_waits_end_for_cookies_of_any_age_in_either_lane() {
    let tree = tree(16, 64);
    let old: Vec<_> = (0..20)
        .map(|n| {
            if n % 3 == 0 {
                tree.synchronize_expedited();
            }
            (tree.snapshot(), tree.snapshot_full())
        })
        .collect();
    for &(small, full) in old.iter().rev() {
        tree.wait(small);
        tree.wait_full_expedited(full);
        assert!(tree.poll(small) && tree.poll_full(full));
    }
}

/// S9: a callback queued for a normal grace period is released by an expedited one that somebody else ran.
#[test]
fn s9_an_expedited_grace_period_releases_callbacks() {
    use rcu_core::{Callback, Head};
    use std::ptr::NonNull;
    static RUN: AtomicUsize = AtomicUsize::new(0);
    unsafe fn count(_: NonNull<Head>) {
        RUN.fetch_add(1, Ordering::Relaxed);
    }
    let tree = tree(16, 64);
    let head = Box::leak(Box::new(Head::new()));
    // SAFETY: the head is leaked and on no list; the function may run anywhere.
    unsafe { tree.call(NonNull::from(&*head), Callback::Run(count)) };
    let reader = tree.read_lock();
    assert_eq!(tree.run_callbacks(), 0, "numbers it");
    drop(reader);
    let normal = ended(tree, Lane::Normal);
    tree.synchronize_expedited();
    tree.synchronize_expedited();
    assert_eq!(tree.run_callbacks(), 1);
    assert_eq!(RUN.load(Ordering::Relaxed), 1);
    assert!(ended(tree, Lane::Normal) <= normal + 1);
}

#[test]
fn g2_g17_events_of_a_lane_come_in_order_and_no_word_is_written_too_often() {
    const FANOUT: usize = 2;
    let (tree, cpus, log) = puppet(16);
    let tokens: Vec<_> = (0..16)
        .map(|slot| {
            cpus.go(Some(slot));
            tree.enter()
        })
        .collect();
    for lane in Lane::ALL {
        log.take();
        match lane {
            Lane::Normal => tree.start(),
            Lane::Expedited => tree.start_expedited(),
        };
        drive(tree);
        for (slot, &token) in (0..).zip(&tokens) {
            cpus.go(Some(slot));
            // SAFETY: entered above or below, on this thread.
            unsafe { tree.exit(token) };
            tree.drive();
            tree.drive();
            let _ = tree.enter();
        }
        drive(tree);
        let events = log.take();
        let steps: Vec<_> = events
            .iter()
            .filter_map(|e| match e {
                Event::Requested(l) => Some(("requested", *l)),
                Event::Started(l, _) => Some(("started", *l)),
                Event::Armed(l) => Some(("armed", *l)),
                Event::Ended(l, _) => Some(("ended", *l)),
                _ => None,
            })
            .collect();
        let expected = ["requested", "started", "armed", "ended"].map(|step| (step, lane));
        assert_eq!(steps, expected);
        let reported = events.iter().filter(|e| matches!(e, Event::Reported(_)));
        assert_eq!(reported.count(), 16, "each slot once");
        let mut writes = std::collections::HashMap::new();
        for event in &events {
            if let Event::NodeWrite { level, index } = event {
                *writes.entry((*level, *index)).or_insert(0) += 1;
            }
        }
        assert_eq!(writes.len(), 1 + 2 + 4 + 8, "every node takes part");
        assert!(writes.values().all(|&n| n <= FANOUT + 1), "{writes:?}");
    }
}

/// G18: waiters share grace periods.
#[test]
fn g18_all_who_wait_for_the_same_cookie_share_its_grace_periods() {
    let tree = tree(16, 64);
    for round in 0..4 {
        let before = tree.grace_periods();
        let guard = tree.read_lock();
        let ready = Barrier::new(9);
        thread::scope(|s| {
            for _ in 0..8 {
                s.spawn(|| {
                    let cookie = tree.start();
                    ready.wait();
                    tree.wait(cookie);
                    assert!(tree.poll(cookie));
                });
            }
            ready.wait();
            if round % 2 == 1 {
                // Lets them go to sleep.
                thread::sleep(Duration::from_millis(5));
            }
            drop(guard);
        });
        assert!(tree.grace_periods() - before <= 2, "round {round}");
    }
}

#[test]
fn g18_many_waiters_in_both_lanes_all_return() {
    let tree = tree(16, 64);
    let stop = AtomicBool::new(false);
    let synchronized = AtomicUsize::new(0);
    thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _guard = tree.read_lock();
            }
        });
        let waiters: Vec<_> = (0..8)
            .map(|thread| {
                let synchronized = &synchronized;
                s.spawn(move || {
                    for n in 0..LOOPS {
                        if (n + thread) % 4 == 0 {
                            tree.synchronize_expedited();
                        } else {
                            tree.synchronize();
                        }
                        synchronized.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for waiter in waiters {
            waiter.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(synchronized.load(Ordering::Relaxed), 8 * LOOPS);
    // Nobody asks for more than two grace periods, nor for one that nobody waits for.
    assert!(tree.grace_periods() <= 2 * 8 * LOOPS);
}

/// A tree of threads that tells `log`.
fn logged(log: &'static Log) -> &'static Tree<'static, Threads, &'static Log> {
    let nr_slots = Threads.nr_slots();
    let slots: Vec<_> = (0..nr_slots)
        .map(|_| TreeSlot::new(BiasedLock::new()))
        .collect();
    let geometry = Geometry::new(nr_slots);
    let nodes: Vec<_> = (0..geometry.nr_nodes()).map(|_| Node::new()).collect();
    let slots = PerSlot::from_slice(Box::leak(slots.into_boxed_slice()));
    let nodes = Box::leak(nodes.into_boxed_slice());
    // SAFETY: leaked before its first use; a thread keeps its slot.
    Box::leak(Box::new(unsafe {
        Tree::traced(Threads, slots, geometry, nodes, log)
    }))
}

/// Sleepers wake because somebody says so: the one who drives the grace period's end is none of the waiters.
#[test]
fn g18_sleepers_are_woken_and_told_of() {
    let log: &'static Log = Box::leak(Box::default());
    let tree = logged(log);
    let woken = |events: &[Event]| events.iter().filter(|&&e| e == Event::Wakeup).count();
    let mut seen = 0;
    // A waiter may be slow to fall asleep; so often as it takes.
    for _ in 0..200 {
        let guard = tree.read_lock();
        thread::scope(|s| {
            let (ready, is_ready) = mpsc::channel();
            for _ in 0..3 {
                let ready = ready.clone();
                s.spawn(move || {
                    let cookie = tree.start();
                    ready.send(()).unwrap();
                    tree.wait(cookie);
                });
            }
            (0..3).for_each(|_| is_ready.recv().unwrap());
            thread::sleep(Duration::from_millis(2));
            drop(guard);
        });
        seen += woken(&log.take());
        if seen > 0 {
            return;
        }
    }
    panic!("nobody was ever woken");
}

/// I4 of `machine`: with no other slot online nothing is scanned.
#[test]
fn i4_a_grace_period_of_one_reads_no_other_slot() {
    let (tree, cpus, log) = puppet(4);
    cpus.go(None);
    for lane in Lane::ALL {
        match lane {
            Lane::Normal => tree.synchronize(),
            Lane::Expedited => tree.synchronize_expedited(),
        }
        let events = log.take();
        assert!(
            !events.iter().any(|e| matches!(e, Event::SlotRead(_))),
            "{events:?}"
        );
    }
}
