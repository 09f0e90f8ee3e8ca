//! An embedder without threads of the library's: simulated CPUs with a spin lock each, hotplug and interrupts, and
//! everything that happens happens in somebody's tick.
#![cfg(not(loom))]

#[path = "embedder/machine.rs"]
mod machine;
#[path = "embedder/parallel.rs"]
mod parallel;
#[path = "embedder/random.rs"]
mod random;

use machine::{Item, Machine, interrupt_next_lock_holder, on, tick, tick_in_section};
use rcu_core::{GracePeriod, Rcu};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// More rounds of ticks than anything here needs.
const ENOUGH: usize = 20;

fn counter() -> Arc<AtomicUsize> {
    Arc::new(AtomicUsize::new(0))
}

fn count(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::Acquire)
}

#[test]
fn ticks_alone_move_grace_periods_and_callbacks() {
    for (cpus, leaf, inner) in [(1, 2, 2), (8, 2, 2), (27, 3, 3), (40, 16, 64)] {
        let (_, tree) = Machine::up(cpus, leaf, inner);
        let cpus = cpus as u32;
        let ran = counter();
        let reader = cpus / 2;
        let token = on(reader, || tree.enter());
        for cpu in 0..cpus {
            on(cpu, || (0..3).for_each(|_| Item::call(tree, &ran)));
        }
        let cookie = on(0, || tree.start());
        for _ in 0..ENOUGH {
            on(reader, || tick_in_section(tree));
            (0..cpus)
                .filter(|cpu| *cpu != reader)
                .for_each(|cpu| on(cpu, || tick(tree)));
        }
        assert!(!tree.poll(cookie), "{cpus} CPUs: a reader is inside");
        assert_eq!(count(&ran), 0);
        // SAFETY: entered above, on this CPU.
        on(reader, || unsafe { tree.exit(token) });
        for _ in 0..ENOUGH {
            (0..cpus).for_each(|cpu| on(cpu, || tick(tree)));
        }
        assert!(tree.poll(cookie));
        assert_eq!(count(&ran), 3 * cpus as usize);
        assert!(!tree.has_work());
    }
}

#[test]
fn t36_t46_what_is_asked_for_before_any_cpu_is_online_is_not_lost() {
    let (machine, tree) = Machine::boot(6, 2, 2);
    let ran = counter();
    (0..5).for_each(|_| Item::call(tree, &ran));
    let before = tree.start();
    tree.synchronize();
    assert!(
        tree.poll(before),
        "T46: the boot CPU's wait completes what came before"
    );
    tree.synchronize_expedited();

    // A section without a CPU counts too.
    let token = tree.enter();
    let cookie = tree.start();
    let expedited = tree.start_expedited();
    (0..ENOUGH).for_each(|_| tick_in_section(tree));
    assert!(!tree.poll(cookie) && !tree.poll(expedited));
    machine.plug(0);
    (0..ENOUGH).for_each(|_| on(0, || tick_in_section(tree)));
    assert!(!tree.poll(cookie) && !tree.poll(expedited));
    // SAFETY: entered above, on this thread.
    unsafe { tree.exit(token) };
    on(0, || Item::call(tree, &ran));
    (0..ENOUGH).for_each(|_| on(0, || tick(tree)));
    assert!(tree.poll(cookie) && tree.poll(expedited));
    assert_eq!(count(&ran), 6);
}

#[test]
fn t26_an_interrupt_over_a_held_local_lock_takes_the_shared_path() {
    let (_, tree) = Machine::up(4, 2, 2);
    let ran = counter();
    let handled = counter();
    let handler = |tree: &'static machine::EmbeddedTree| {
        let (ran, handled) = (ran.clone(), handled.clone());
        interrupt_next_lock_holder(move || {
            let token = tree.enter();
            Item::call(tree, &ran);
            tick_in_section(tree);
            // SAFETY: entered above, on this CPU.
            unsafe { tree.exit(token) };
            handled.fetch_add(1, Ordering::Relaxed);
        });
    };
    on(1, || {
        // The owner is interrupted while it queues; then the visitor that collects what is ready.
        handler(tree);
        Item::call(tree, &ran);
        assert_eq!(count(&handled), 1);
        handler(tree);
        tick(tree);
        assert_eq!(count(&handled), 2);
        (0..ENOUGH).for_each(|_| tick(tree));
    });
    assert_eq!(count(&ran), 3);
    on(2, || tree.barrier());
    assert!(!tree.has_work());
}

#[test]
fn g19_s7_a_cpu_that_is_unplugged_is_not_waited_for_and_leaves_its_callbacks_to_others() {
    let (machine, tree) = Machine::up(8, 2, 2);
    let ran = counter();
    let token = on(1, || tree.enter());
    let other = on(2, || tree.enter());
    on(2, || (0..4).for_each(|_| Item::call(tree, &ran)));
    let cookie = on(0, || tree.start());
    on(0, || tick(tree));
    // SAFETY: entered above, on this CPU.
    on(2, || unsafe { tree.exit(other) });
    assert!(!machine.unplug(2), "it is outside");
    on(0, || tick(tree));
    assert!(!tree.poll(cookie), "CPU 1 is inside");
    // SAFETY: entered above, on this CPU.
    on(1, || unsafe { tree.exit(token) });
    (0..ENOUGH).for_each(|_| on(0, || tick(tree)));
    assert!(tree.poll(cookie));
    assert_eq!(count(&ran), 4);

    // It comes back, and counts again.
    machine.plug(2);
    let token = on(2, || tree.enter());
    let cookie = on(0, || tree.start());
    (0..ENOUGH).for_each(|_| on(0, || tick(tree)));
    assert!(!tree.poll(cookie));
    // SAFETY: entered above, on this CPU.
    on(2, || unsafe { tree.exit(token) });
    on(0, || tick(tree));
    assert!(tree.poll(cookie));
}

#[test]
fn an_interrupt_over_a_cpu_on_its_way_out_does_not_hide_the_next_owner() {
    let (machine, tree) = Machine::up(4, 2, 2);
    let ran = counter();
    on(1, || Item::call(tree, &ran));
    let (handled, again) = (counter(), ran.clone());
    let seen = handled.clone();
    // It hits where the callbacks are handed over, and brings the slot online again.
    interrupt_next_lock_holder(move || {
        tree.read(|_| Item::call(tree, &again));
        seen.fetch_add(1, Ordering::Relaxed);
    });
    assert!(!machine.unplug(1));
    assert_eq!(count(&handled), 1);
    assert_eq!(tree.stats().slots_online, 0);

    machine.plug(1);
    let token = on(1, || tree.enter());
    let cookie = on(0, || tree.start());
    (0..ENOUGH).for_each(|_| on(0, || tick(tree)));
    assert!(!tree.poll(cookie), "CPU 1 is inside");
    // SAFETY: entered above, on this CPU.
    on(1, || unsafe { tree.exit(token) });
    (0..ENOUGH).for_each(|_| on(0, || tick(tree)));
    assert!(tree.poll(cookie));
    assert_eq!(count(&ran), 2);
}

#[test]
fn t41_a_leaf_whose_cpus_have_all_gone_holds_nothing_up() {
    let (machine, tree) = Machine::up(8, 2, 2);
    for cpu in 0..8 {
        // SAFETY: entered just now, on this CPU.
        on(cpu, || unsafe { tree.exit(tree.enter()) });
    }
    let token = on(4, || tree.enter());
    let cookie = on(0, || tree.start());
    on(0, || tick(tree));
    // SAFETY: entered above, on this CPU.
    on(4, || unsafe { tree.exit(token) });
    for cpu in 4..8 {
        assert!(!machine.unplug(cpu));
    }
    on(0, || tick(tree));
    assert!(tree.poll(cookie));
    let cookie = on(0, || tree.start());
    on(0, || tick(tree));
    assert!(
        tree.poll(cookie),
        "and none of them is waited for by the next"
    );
}

#[test]
fn cpus_that_idle_for_ever_hold_nothing_up() {
    let (_, tree) = Machine::up(64, 4, 4);
    let ran = counter();
    // Every third CPU reads once and queues a callback, and is not heard of again; the others never come.
    for cpu in (0..63).step_by(3) {
        on(cpu, || {
            tree.read(|_| Item::call(tree, &ran));
        });
    }
    on(63, || {
        for _ in 0..10 {
            let cookie = tree.start();
            tick(tree);
            tick(tree);
            assert!(tree.poll(cookie));
        }
    });
    assert_eq!(count(&ran), 21);
}

#[test]
fn a_callback_may_queue_another_and_ticks_run_that_too() {
    let (_, tree) = Machine::up(2, 2, 2);
    let ran = counter();
    on(0, || Item::call(tree, &ran));
    let again = ran.clone();
    // The interrupt stands for a callback's own call: it comes while the list is being run.
    interrupt_next_lock_holder(move || Item::call(tree, &again));
    (0..ENOUGH).for_each(|_| on(1, || tick(tree)));
    assert_eq!(count(&ran), 2);
}

#[test]
fn barrier_and_synchronize_need_nobody_else() {
    let (machine, tree) = Machine::up(5, 2, 2);
    let ran = counter();
    for cpu in 0..5 {
        on(cpu, || (0..=cpu).for_each(|_| Item::call(tree, &ran)));
    }
    machine.unplug(3);
    on(4, || tree.barrier());
    assert_eq!(count(&ran), 15);
    let cookie = tree.snapshot();
    on(0, || tree.synchronize());
    assert!(tree.poll(cookie));
}
