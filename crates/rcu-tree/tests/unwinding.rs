//! Foreign code that panics, or leaves a guard behind, in the middle of the tree's work: no grace period ends early, no head
//! is on two lists, no hook stays behind.
#![cfg(all(feature = "std", not(loom)))]

#[path = "common/calls.rs"]
mod calls;
#[path = "common/odd.rs"]
mod odd;

use calls::{Log, call};
use odd::{Odd, odd, without_slot};
use rcu_core::cpu::{BiasedLock, Cpus, OfflineHook, PerSlot, Slot, Threads};
use rcu_core::{GracePeriod, Guard, Online, Rcu};
use rcu_tree::{Event, Geometry, NoTrace, Node, StallConfig, StallReport, Trace, Tree, TreeSlot};
use std::cell::{Cell, RefCell};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

thread_local! {
    /// How many more events the listener, or reports the reporter, survives on this thread; zero: all.
    static FUSE: Cell<usize> = const { Cell::new(0) };
    /// What to do at the next `Offline`.
    static AT_OFFLINE: Cell<Option<fn()>> = const { Cell::new(None) };
}

fn burn() {
    let left = FUSE.get();
    FUSE.set(left.saturating_sub(1));
    assert!(left != 1, "as the test wants it");
}

struct Fused;

impl Trace for Fused {
    fn event(&self, event: Event) {
        burn();
        if matches!(event, Event::Offline(_))
            && let Some(act) = AT_OFFLINE.take()
        {
            act();
        }
    }
}

fn fused_report(_: &StallReport<'_>) {
    burn();
}

const NEVER: StallConfig = StallConfig::never();
const AT_ONCE: StallConfig = StallConfig::new()
    .timeout(Duration::ZERO)
    .again_after(Duration::ZERO)
    .clock(|| Duration::from_secs(1))
    .report(fused_report);

/// Runs `f` while another thread is inside a section of `tree`.
fn with_reader<T: Trace + Sync>(tree: &'static Tree<'static, Odd, T>, f: impl FnOnce()) {
    let (entered, inside) = mpsc::channel();
    let (leave, told_to_leave) = mpsc::channel::<()>();
    thread::scope(|s| {
        s.spawn(move || {
            let _guard = tree.read_lock();
            entered.send(()).unwrap();
            let _ = told_to_leave.recv();
        });
        inside.recv().unwrap();
        f();
        drop(leave);
    });
}

/// Wherever in a grace period its listener panics: it and the next one wait for their readers all the same.
#[test]
fn a_listener_that_panics_ends_no_grace_period_early() {
    let mut panics = 0;
    for fuse in 1..40 {
        let tree = odd(Fused, NEVER);
        tree.synchronize();
        tree.start();
        FUSE.set(fuse);
        let drove = catch_unwind(AssertUnwindSafe(|| tree.drive()));
        FUSE.set(0);
        panics += usize::from(drove.is_err());
        with_reader(tree, || {
            let cookie = tree.start();
            for _ in 0..10 {
                tree.drive();
            }
            assert!(!tree.poll(cookie), "too early, after event {fuse}");
        });
    }
    assert!(panics >= 5, "only {panics} events");
}

/// Drives until the `fuse`-th event, whose listener panics; false if there are not as many.
fn drive_into_panic(tree: &Tree<'static, Odd, Fused>, fuse: usize) -> bool {
    FUSE.set(fuse);
    let drove = catch_unwind(AssertUnwindSafe(|| tree.drive()));
    FUSE.set(0);
    drove.is_err()
}

/// I7 of the machine (G11): a listener panics while a grace period waits for a section, perhaps before the tree has been told
/// so. The section moves off its slot, and that grace period waits for it all the same.
#[test]
fn a_section_that_moves_off_after_a_listeners_panic_is_waited_for() {
    let mut panics = 0;
    for fuse in 1..40 {
        let tree = odd(Fused, NEVER);
        let guard = tree.read_lock();
        let cookie = tree.start();
        panics += usize::from(drive_into_panic(tree, fuse));
        let moved = guard.into_send();
        for _ in 0..10 {
            tree.drive();
        }
        assert!(!tree.poll(cookie), "too early, after event {fuse}");
        drop(moved);
        tree.drive();
        assert!(tree.poll(cookie), "never, after event {fuse}");
    }
    assert!(panics >= 3, "only {panics} events");
}

/// As above, for a section that a thread enters when its slot is gone, inside one that the slot still counts.
#[test]
fn a_section_at_a_threads_end_after_a_listeners_panic_is_waited_for() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    struct Late {
        lingering: Option<Guard<&'static Tree<'static, Odd, Fused>>>,
        fuse: usize,
    }
    impl Drop for Late {
        fn drop(&mut self) {
            assert_eq!(Odd.current(), None, "the slot's destructor came first");
            let lingering = self.lingering.take().expect("kept");
            let tree = *lingering.rcu();
            let cookie = tree.start();
            let panicked = drive_into_panic(tree, self.fuse);
            PANICS.fetch_add(usize::from(panicked), Ordering::Relaxed);
            let late = tree.read_lock();
            drop(lingering);
            for _ in 0..10 {
                tree.drive();
            }
            assert!(!tree.poll(cookie), "too early, after event {}", self.fuse);
            drop(late);
            tree.wait(cookie);
        }
    }
    thread_local! {
        static KEPT: RefCell<Option<Late>> = const { RefCell::new(None) };
    }
    for fuse in 1..40 {
        let tree = odd(Fused, NEVER);
        thread::spawn(move || {
            // Registered for destruction before the slot is, so it is dropped after it.
            KEPT.with_borrow_mut(|kept| {
                let lingering = Some(tree.read_lock());
                *kept = Some(Late { lingering, fuse });
            });
        })
        .join()
        .unwrap();
    }
    let panics = PANICS.load(Ordering::Relaxed);
    assert!(panics >= 3, "only {panics} events");
}

/// R13: a stall report that panics unwinds through the barrier that noticed; the heads it has posted are on the lists still.
#[test]
fn r13_a_barrier_after_one_that_panicked_waits_for_every_callback() {
    let tree = odd(NoTrace, AT_ONCE);
    let log = Arc::new(Log::default());
    for round in 1..=3 {
        with_reader(tree, || {
            call(tree, &log, 2 * round);
            without_slot(|| call(tree, &log, 2 * round + 1));
            FUSE.set(1);
            assert!(catch_unwind(AssertUnwindSafe(|| tree.barrier())).is_err());
            assert_eq!(log.ran(), 4 * (round - 1), "a reader is inside");
        });
        call(tree, &log, 100);
        tree.barrier();
        assert_eq!(log.ran(), 4 * round - 1, "round {round}");
        call(tree, &log, 101);
        tree.barrier();
    }
}

static HOOKS: AtomicUsize = AtomicUsize::new(0);

/// Threads that count the hooks on their list.
struct Counted;

// SAFETY: those of `Threads`.
unsafe impl Cpus for Counted {
    type Lock = BiasedLock;

    fn nr_slots(&self) -> usize {
        Threads.nr_slots()
    }

    fn current(&self) -> Option<Slot> {
        Threads.current()
    }

    unsafe fn add_offline_hook(&self, hook: NonNull<OfflineHook>) {
        HOOKS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's debts.
        unsafe { Threads.add_offline_hook(hook) };
    }

    unsafe fn remove_offline_hook(&self, hook: NonNull<OfflineHook>) {
        HOOKS.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: the caller's debt.
        unsafe { Threads.remove_offline_hook(hook) };
    }

    unsafe fn release(&self, slot: Slot) {
        // SAFETY: the caller's debts.
        unsafe { Threads.release(slot) };
    }
}

/// I1 of the tree: a thread that ends later would look into a tree that is gone.
#[test]
fn a_tree_whose_drop_panics_leaves_no_hook_behind() {
    let slots: Vec<_> = (0..Threads.nr_slots())
        .map(|_| TreeSlot::new(BiasedLock::new()))
        .collect();
    let geometry = Geometry::new(slots.len());
    let nodes: Vec<_> = (0..geometry.nr_nodes()).map(|_| Node::new()).collect();
    thread::scope(|s| {
        s.spawn(|| {
            let slots = PerSlot::from_slice(&slots);
            // SAFETY: moved before its first use only, and dropped in its place; a thread keeps its slot.
            let tree = unsafe { Tree::new(Counted, slots, geometry, &nodes) };
            let tree = Box::new(tree.with_stall(AT_ONCE));
            let log = Arc::new(Log::default());
            mem::forget(tree.read_lock());
            call(&*tree, &log, 1);
            assert_eq!(HOOKS.load(Ordering::Relaxed), 1);
            FUSE.set(1);
            assert!(catch_unwind(AssertUnwindSafe(|| drop(tree))).is_err());
            assert_eq!(HOOKS.load(Ordering::Relaxed), 0);
        });
    });
}

/// A guard that a listener leaves behind while its slot goes offline is a section all the same.
#[test]
fn a_guard_that_is_left_behind_while_a_slot_goes_offline_is_waited_for() {
    thread_local! {
        static TREE: Cell<Option<&'static Tree<'static, Odd, Fused>>> = const { Cell::new(None) };
    }
    let tree = odd(Fused, NEVER);
    tree.synchronize();
    thread::spawn(move || {
        drop(tree.read_lock());
        TREE.set(Some(tree));
        AT_OFFLINE.set(Some(|| mem::forget(TREE.get().unwrap().read_lock())));
    })
    .join()
    .unwrap();
    let cookie = tree.start();
    for _ in 0..10 {
        tree.drive();
    }
    assert!(!tree.poll(cookie), "the guard was never dropped");
}

/// Going online again brings a slot online, whose listener panics: the thread is online all the same, once.
#[test]
fn a_thread_that_panics_on_its_way_online_is_online() {
    let tree = odd(Fused, NEVER);
    let mut online = without_slot(|| Online::new(tree));
    let back = catch_unwind(AssertUnwindSafe(|| online.offline(|| FUSE.set(1))));
    assert!(back.is_err());
    let cookie = tree.start();
    tree.drive();
    tree.drive();
    assert!(!tree.poll(cookie));
    online.quiescent();
    tree.drive();
    drop(online);
    tree.drive();
    assert!(tree.poll(cookie));
    with_reader(tree, || {
        let cookie = tree.start();
        tree.drive();
        assert!(!tree.poll(cookie));
    });
    tree.synchronize();
}
