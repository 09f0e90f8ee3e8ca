//! Trees in the child of a fork, whatever the other threads were doing in them.

#![cfg(all(feature = "std", unix, not(loom), not(miri)))]

#[path = "../../rcu-core/tests/common/child.rs"]
mod child;
mod common;

use child::{check, fork, on_a_thread};
use common::tree;
use rcu_core::cpu::{BiasedLock, Cpus, PerSlot, Threads};
use rcu_core::{Callback, GracePeriod, Guard, Head, HeadFn, Rcu};
use rcu_tree::{Event, Geometry, Node, Trace, Tree, TreeSlot, after_fork_child};
use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Barrier, LazyLock, Mutex, PoisonError};

type Threaded = &'static Tree<'static, Threads>;

rcu_tree::static_tree! { struct Worked; }

/// What a test leaves half done at a fork is in the children of other tests, too: one at a time.
fn alone() -> impl Drop {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forks; the child puts RCU right and runs `child`.
fn in_child(child: impl FnOnce()) -> Result<(), i32> {
    fork(|| {
        // SAFETY: the first thing that the child does. The tests fork outside of RCU, and have guards on slots only.
        unsafe { after_fork_child() };
        child();
    })
}

static QUEUED: AtomicUsize = AtomicUsize::new(0);
static RUN: AtomicUsize = AtomicUsize::new(0);

/// # Safety
/// `head` is a box's.
unsafe fn count(head: NonNull<Head>) {
    // SAFETY: queued by `queue`, once.
    drop(unsafe { Box::from_raw(head.as_ptr()) });
    RUN.fetch_add(1, Ordering::Relaxed);
}

fn queue(tree: Threaded) {
    QUEUED.fetch_add(1, Ordering::Relaxed);
    let head = NonNull::from(Box::leak(Box::new(Head::new())));
    // SAFETY: freed by its callback, which any thread may run.
    unsafe { tree.call(head, Callback::Run(count)) };
}

/// One of everything that a thread does with a tree.
fn use_it_all(tree: Threaded) {
    drop(tree.read_lock());
    queue(tree);
    let cookie = tree.start();
    tree.drive();
    tree.synchronize();
    check(tree.poll(cookie));
    tree.run_callbacks();
    tree.barrier();
}

const ALIVE: usize = 0xa11e;

/// Replaced and freed all the time.
static CURRENT: AtomicPtr<(Head, AtomicUsize)> = AtomicPtr::new(std::ptr::null_mut());

fn replace(tree: Threaded) {
    let new = Box::into_raw(Box::new((Head::new(), AtomicUsize::new(ALIVE))));
    let old = CURRENT.swap(new, Ordering::AcqRel);
    if !old.is_null() {
        tree.synchronize();
        // SAFETY: unlinked, and a grace period has passed.
        let old = unsafe { Box::from_raw(old) };
        old.1.store(0xdead, Ordering::Relaxed);
    }
}

/// What `_guard` protects, or null.
fn element(_guard: &Guard<Threaded>) -> Option<&AtomicUsize> {
    // SAFETY: freed a grace period after it was replaced.
    unsafe { CURRENT.load(Ordering::Acquire).as_ref() }.map(|element| &element.1)
}

#[test]
fn t45_a_fork_in_the_middle_of_everything() {
    let _alone = alone();
    const ROUNDS: usize = 25;
    let worked: Threaded = Worked::tree();
    let driven = tree(4, 8);
    // No thread begins in the middle of a fork but by `on_a_thread`.
    let (begun, stop) = (Barrier::new(10), AtomicBool::new(false));
    let children = std::thread::scope(|s| {
        let busy = |work: &'static (dyn Fn(Threaded) + Sync)| {
            for tree in [worked, driven] {
                let (begun, stop) = (&begun, &stop);
                s.spawn(move || {
                    begun.wait();
                    while !stop.load(Ordering::Relaxed) {
                        work(tree);
                    }
                });
            }
        };
        busy(&|tree| {
            let guard = tree.read_lock();
            std::hint::black_box(element(&guard));
        });
        busy(&|tree| {
            // Not faster than they are run.
            for _ in 0..300 {
                queue(tree);
            }
            tree.barrier();
        });
        busy(&|tree| {
            tree.synchronize();
            tree.run_callbacks();
        });
        busy(&|tree| {
            on_a_thread(move || {
                drop(tree.read_lock());
                queue(tree);
            });
        });
        s.spawn(|| {
            begun.wait();
            while !stop.load(Ordering::Relaxed) {
                replace(worked);
            }
        });
        begun.wait();
        let children: Vec<_> = (0..ROUNDS)
            .map(|round| {
                for tree in [worked, driven] {
                    queue(tree);
                }
                let before = worked.start();
                let guard = (round % 2 == 0).then(|| worked.read_lock());
                let seen = guard.as_ref().and_then(|guard| element(guard));
                let child = in_child(|| {
                    check(Threads.nr_online() <= 1);
                    check(worked.stats().slots_online <= 1 && driven.stats().slots_online <= 1);
                    if let Some(guard) = &guard {
                        let cookie = worked.start();
                        for _ in 0..10 {
                            worked.drive();
                            worked.run_callbacks();
                            check(!worked.poll(cookie));
                        }
                        check(
                            element(guard).is_none_or(|now| now.load(Ordering::Relaxed) == ALIVE),
                        );
                        check(seen.is_none_or(|then| then.load(Ordering::Relaxed) == ALIVE));
                        // It stays the child's: the parent has its own.
                        // SAFETY: a copy of the parent's guard, which is never dropped in this process.
                        drop(unsafe { std::ptr::read(guard) });
                        worked.wait(cookie);
                    }
                    // The worker that the child starts does it.
                    let cookie = worked.start();
                    while !(worked.poll(cookie) && worked.poll(before)) {
                        std::thread::yield_now();
                    }
                    for tree in [driven, worked] {
                        use_it_all(tree);
                    }
                    std::thread::scope(|s| {
                        for tree in [worked, driven, worked] {
                            s.spawn(move || {
                                for _ in 0..20 {
                                    use_it_all(tree);
                                }
                            });
                        }
                    });
                    replace(worked);
                });
                drop(guard);
                child
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        children
    });
    assert_eq!(children, [Ok(()); ROUNDS]);
}

#[test]
fn r4_callbacks_that_wait_at_a_fork_run_once_in_either_process() {
    let _alone = alone();
    static HERE: AtomicUsize = AtomicUsize::new(0);
    /// # Safety
    /// None.
    unsafe fn here(_: NonNull<Head>) {
        HERE.fetch_add(1, Ordering::Relaxed);
    }
    let tree = tree(16, 64);
    let heads: [Head; 600] = [const { Head::new() }; 600];
    for head in &heads {
        // SAFETY: the head lives until the barrier below, in either process.
        unsafe { tree.call(NonNull::from(head), Callback::Run(here)) };
    }
    let child = in_child(|| {
        check(tree.has_work());
        tree.barrier();
        check(HERE.load(Ordering::Relaxed) == 600);
        check(tree.stats().callbacks_lost == 0 && !tree.has_work());
    });
    assert_eq!(HERE.load(Ordering::Relaxed), 0);
    tree.barrier();
    assert_eq!((child, HERE.load(Ordering::Relaxed)), (Ok(()), 600));
}

/// Runs `forks` while another thread is where `stuck` puts it: `stuck` calls what it is given in the middle.
fn while_stuck<R>(stuck: impl FnOnce(&dyn Fn()) + Send, forks: impl FnOnce() -> R) -> R {
    let (there, go) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|s| {
        s.spawn(|| {
            stuck(&|| {
                there.wait();
                go.wait();
            });
        });
        there.wait();
        let result = forks();
        go.wait();
        result
    })
}

#[test]
fn a_reader_that_the_child_does_not_have_holds_nothing_up() {
    let _alone = alone();
    let tree = tree(16, 64);
    let child = while_stuck(
        |here| {
            let _guard = tree.read_lock();
            here();
        },
        || {
            let cookie = tree.start();
            assert!(tree.drive(), "in the way");
            let child = in_child(|| {
                check(!tree.poll(cookie));
                tree.wait(cookie);
                use_it_all(tree);
            });
            tree.drive();
            assert!(!tree.poll(cookie), "the parent's reader is still there");
            child
        },
    );
    assert_eq!(child, Ok(()));
}

#[test]
fn g2_a_grace_period_in_progress_at_a_fork_waits_for_the_callers_guard() {
    let _alone = alone();
    for scanned in [1, 3] {
        let tree = tree(4, 8);
        let guard = tree.read_lock();
        let cookie = tree.start();
        for _ in 0..scanned {
            assert!(tree.drive() && !tree.poll(cookie), "in the way");
        }
        let child = in_child(|| {
            for _ in 0..3 {
                check(tree.drive() && !tree.poll(cookie));
            }
            // SAFETY: a copy of the parent's guard, which is never dropped in this process.
            drop(unsafe { std::ptr::read(&raw const guard) });
            check(!tree.drive() && tree.poll(cookie));
            use_it_all(tree);
        });
        drop(guard);
        tree.wait(cookie);
        assert_eq!(child, Ok(()));
    }
}

#[test]
fn a_shared_reader_that_the_child_does_not_have_holds_nothing_up() {
    let _alone = alone();
    struct Late(Threaded, &'static [Barrier; 2]);
    impl Drop for Late {
        fn drop(&mut self) {
            let guard = self.0.read_lock();
            assert_eq!(Threads.current(), None, "without a slot");
            self.1[0].wait();
            self.1[1].wait();
            drop(guard);
        }
    }
    thread_local! {
        static LATE: RefCell<Option<Late>> = const { RefCell::new(None) };
    }
    static GATES: LazyLock<[Barrier; 2]> = LazyLock::new(|| [Barrier::new(2), Barrier::new(2)]);
    let tree = tree(16, 64);
    let late = std::thread::spawn(move || {
        // Noted for destruction before the slot is, so destroyed after it.
        LATE.with_borrow_mut(|late| *late = Some(Late(tree, &GATES)));
        drop(tree.read_lock());
    });
    GATES[0].wait();
    let cookie = tree.start();
    tree.drive();
    assert!(!tree.poll(cookie), "in the way");
    let child = in_child(|| {
        tree.wait(cookie);
        use_it_all(tree);
    });
    GATES[1].wait();
    late.join().unwrap();
    assert_eq!(child, Ok(()));
}

#[test]
fn callbacks_of_a_batch_that_another_thread_runs_are_counted_as_lost() {
    let _alone = alone();
    static GATES: LazyLock<[Barrier; 2]> = LazyLock::new(|| [Barrier::new(2), Barrier::new(2)]);
    static AFTER: AtomicUsize = AtomicUsize::new(0);
    /// # Safety
    /// None.
    unsafe fn waits(_: NonNull<Head>) {
        GATES[0].wait();
        GATES[1].wait();
    }
    /// # Safety
    /// None.
    unsafe fn after(_: NonNull<Head>) {
        AFTER.fetch_add(1, Ordering::Relaxed);
    }
    let tree = tree(16, 64);
    let heads: [Head; 4] = [const { Head::new() }; 4];
    let funcs: [HeadFn; 4] = [waits, after, after, after];
    for (head, func) in heads.iter().zip(funcs) {
        // SAFETY: the heads live until the barriers below.
        unsafe { tree.call(NonNull::from(head), Callback::Run(func)) };
    }
    let child = std::thread::scope(|s| {
        s.spawn(|| tree.barrier());
        GATES[0].wait();
        let later = Head::new();
        // SAFETY: lives until the barrier below.
        unsafe { tree.call(NonNull::from(&later), Callback::Run(after)) };
        let child = in_child(|| {
            // The barrier's head, which nobody waits for, may be among the lost ones.
            check((4..=6).contains(&tree.stats().callbacks_lost));
            use_it_all(tree);
            check(AFTER.load(Ordering::Relaxed) == 1);
            check(!tree.has_work());
        });
        GATES[1].wait();
        tree.barrier();
        child
    });
    assert_eq!((child, AFTER.load(Ordering::Relaxed)), (Ok(()), 4));
}

#[test]
fn t39_a_barrier_that_waits_at_a_fork_leaves_its_heads_to_the_next_one() {
    let _alone = alone();
    let tree = tree(16, 64);
    let guard = tree.read_lock();
    let child = std::thread::scope(|s| {
        queue(tree);
        let start = tree.grace_periods();
        s.spawn(|| {
            queue(tree);
            tree.barrier();
        });
        // The barrier has posted its heads when it pushes: it has asked for a grace period, which waits for us.
        while !tree.drive() {
            std::thread::yield_now();
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(tree.grace_periods(), start);
        let child = in_child(|| {
            // SAFETY: a copy of the parent's guard, which is never dropped in this process.
            drop(unsafe { std::ptr::read(&raw const guard) });
            for _ in 0..3 {
                use_it_all(tree);
            }
            check(tree.stats().callbacks_lost == 0);
            check(!tree.has_work());
        });
        drop(guard);
        child
    });
    assert_eq!(child, Ok(()));
}

/// A listener that stops a thread that asked for it at the next event of its choice.
#[derive(Default)]
struct Stopper {
    at: AtomicUsize,
    gates: [Gate; 2],
}

#[derive(Default)]
struct Gate(AtomicBool);

impl Gate {
    fn wait(&self) {
        while !self.0.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
    }
}

const STARTED: usize = 1;
const ARMED: usize = 2;
const SCANS: usize = 3;
const ENDED: usize = 4;
const JOINS: usize = 5;
const LEAVES: usize = 6;

impl Trace for Stopper {
    fn event(&self, event: Event) {
        let now = match event {
            Event::Started(..) => STARTED,
            Event::Armed(_) => ARMED,
            Event::SlotRead(_) => SCANS,
            Event::Ended(..) => ENDED,
            Event::NodeWrite { .. } => JOINS,
            Event::Offline(_) => LEAVES,
            _ => 0,
        };
        let asked = |at| {
            self.at
                .compare_exchange(at, 0, Ordering::AcqRel, Ordering::Relaxed)
        };
        if now != 0 && asked(now).is_ok() {
            self.gates[0].0.store(true, Ordering::Release);
            self.gates[1].wait();
        }
    }
}

#[test]
fn a_thread_that_stops_anywhere_in_a_tree_leaves_it_usable_in_the_child() {
    let _alone = alone();
    for (at, work) in [
        (STARTED, use_traced as fn(&Tree<'_, Threads, &Stopper>)),
        (ARMED, use_traced),
        (SCANS, use_traced),
        (ENDED, use_traced),
        (JOINS, use_traced),
        (LEAVES, |tree| drop(tree.read_lock())),
    ] {
        let stopper = Stopper::default();
        let slots: Vec<_> = (0..Threads.nr_slots())
            .map(|_| TreeSlot::new(BiasedLock::new()))
            .collect();
        let geometry = Geometry::new(slots.len());
        let nodes: Vec<_> = (0..geometry.nr_nodes()).map(|_| Node::new()).collect();
        let slots = PerSlot::from_slice(&slots);
        // SAFETY: the tree is neither moved nor forgotten below; a thread keeps its slot.
        let tree = unsafe { Tree::traced(Threads, slots, geometry, &nodes, &stopper) };
        drop(tree.read_lock());
        let child = std::thread::scope(|s| {
            let other = s.spawn(|| {
                stopper.at.store(at, Ordering::Release);
                work(&tree);
            });
            stopper.gates[0].wait();
            let child = in_child(|| {
                stopper.gates[1].0.store(true, Ordering::Relaxed);
                for _ in 0..3 {
                    use_traced(&tree);
                }
                std::thread::scope(|s| {
                    s.spawn(|| use_traced(&tree));
                });
            });
            stopper.gates[1].0.store(true, Ordering::Release);
            other.join().unwrap();
            child
        });
        assert_eq!(child, Ok(()), "stopped at {at}");
    }
}

fn use_traced(tree: &Tree<'_, Threads, &Stopper>) {
    drop(tree.read_lock());
    tree.synchronize();
    tree.barrier();
}
