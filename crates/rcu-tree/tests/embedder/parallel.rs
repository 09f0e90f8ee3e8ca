//! Threads that each play a CPU, side by side.

use super::machine::{EmbeddedTree, Item, Machine, on, tick, tick_in_section};
use super::{count, counter};
use rcu_core::{Callback, GracePeriod, Head, Rcu};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;

const CPUS: u32 = 3;
const ROUNDS: usize = if cfg!(miri) { 20 } else { 400 };

/// An object that readers look at, and that stays in memory after its end so that they can see it.
#[repr(C)]
struct Published {
    head: Head,
    is_dead: AtomicBool,
}

static DIED: AtomicUsize = AtomicUsize::new(0);

impl Published {
    fn new(all: &Mutex<Vec<NonNull<Self>>>) -> *mut Self {
        let fresh = NonNull::from(Box::leak(Box::new(Self {
            head: Head::new(),
            is_dead: AtomicBool::new(false),
        })));
        all.lock().unwrap().push(fresh);
        fresh.as_ptr()
    }

    /// # Safety
    /// 1. `head` is that of an object of this test.
    unsafe fn die(head: NonNull<Head>) {
        // SAFETY: the head is the first field of an object that stays until the test's end (1).
        let this = unsafe { head.cast::<Self>().as_ref() };
        // Seen in time only if nothing orders it after the reader.
        if !this.is_dead.swap(true, Ordering::Relaxed) {
            DIED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// `NonNull` is not `Send`; these are objects full of atomics.
struct Objects(Mutex<Vec<NonNull<Published>>>);

// SAFETY: the objects are `Sync`, and freed when the threads are through.
unsafe impl Sync for Objects {}

fn look(object: *mut Published) {
    // SAFETY: objects stay until the test's end.
    let object = unsafe { &*object };
    assert!(
        !object.is_dead.load(Ordering::Relaxed),
        "a callback ran before a reader was through"
    );
}

fn read_and_retire(
    machine: &Machine,
    tree: &EmbeddedTree,
    objects: &Objects,
    shared: &AtomicPtr<Published>,
    cpu: u32,
) {
    for round in 0..ROUNDS {
        let token = tree.enter();
        let object = shared.load(Ordering::Acquire);
        look(object);
        // The clock ticks in the middle.
        tick_in_section(tree);
        let inner = tree.enter();
        look(object);
        // SAFETY: entered just now, on this CPU.
        unsafe { tree.exit(inner) };
        tick_in_section(tree);
        look(object);
        // SAFETY: entered above, on this CPU.
        unsafe { tree.exit(token) };
        if round % 4 == cpu as usize {
            let old = shared.swap(Published::new(&objects.0), Ordering::AcqRel);
            let head = NonNull::new(old).expect("never null").cast();
            // SAFETY: unlinked by the swap, once, and kept until the test's end.
            unsafe { tree.call(head, Callback::Run(Published::die)) };
        }
        tick(tree);
        if round % 50 == 49 {
            assert!(!machine.unplug(cpu));
            assert!(!machine.is_plugged(cpu));
            tick(tree);
            machine.plug(cpu);
        }
    }
}

#[test]
fn cpus_side_by_side_are_interrupted_in_the_middle_of_sections() {
    let (machine, tree) = Machine::up(CPUS as usize, 2, 2);
    let objects = Objects(Mutex::new(Vec::new()));
    let shared = AtomicPtr::new(Published::new(&objects.0));
    thread::scope(|scope| {
        for cpu in 0..CPUS {
            let (objects, shared) = (&objects, &shared);
            scope.spawn(move || on(cpu, || read_and_retire(machine, tree, objects, shared, cpu)));
        }
    });
    on(0, || tree.barrier());
    let all = objects.0.into_inner().unwrap();
    assert_eq!(
        DIED.load(Ordering::Relaxed),
        all.len() - 1,
        "all but the last"
    );
    for object in all {
        // SAFETY: leaked by `new`, no callback of it is queued, and the threads are through.
        drop(unsafe { Box::from_raw(object.as_ptr()) });
    }
}

/// The CPUs but the first read and tick until `f` is through on the first.
fn while_others_tick(f: impl FnOnce(&'static EmbeddedTree)) {
    let (_, tree) = Machine::up(CPUS as usize, 2, 2);
    let through = AtomicBool::new(false);
    thread::scope(|scope| {
        for cpu in 1..CPUS {
            let through = &through;
            scope.spawn(move || {
                on(cpu, || {
                    while !through.load(Ordering::Acquire) {
                        tree.read(|_| tick_in_section(tree));
                        tick(tree);
                        thread::yield_now();
                    }
                });
            });
        }
        on(0, || f(tree));
        through.store(true, Ordering::Release);
    });
}

#[test]
fn r13_a_barrier_on_one_cpu_while_others_tick() {
    while_others_tick(|tree| {
        let ran = counter();
        for round in 1..=10 {
            (0..20).for_each(|_| Item::call(tree, &ran));
            tree.barrier();
            assert_eq!(count(&ran), 20 * round);
        }
    });
}

#[test]
fn synchronize_on_one_cpu_while_others_tick() {
    while_others_tick(|tree| {
        for _ in 0..20 {
            let cookie = tree.snapshot();
            tree.synchronize();
            assert!(tree.poll(cookie));
            let cookie = tree.snapshot_full();
            tree.synchronize_expedited();
            assert!(tree.poll_full(cookie));
        }
    });
}

#[test]
fn t36_whoever_finds_a_driver_at_work_may_leave_its_request_to_it() {
    let (_, tree) = Machine::up(CPUS as usize, 2, 2);
    let together = Barrier::new(CPUS as usize);
    thread::scope(|scope| {
        for cpu in 0..CPUS {
            let together = &together;
            scope.spawn(move || {
                on(cpu, || {
                    tree.read(|_| ());
                    for _ in 0..ROUNDS / 2 {
                        together.wait();
                        let cookie = tree.start();
                        tree.drive();
                        together.wait();
                        // Nobody drives any more, and nobody was inside.
                        assert!(tree.poll(cookie), "a request was lost");
                    }
                });
            });
        }
    });
}
