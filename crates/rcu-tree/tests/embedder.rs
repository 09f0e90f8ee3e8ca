//! An embedder without threads of the library's: simulated CPUs with a spin lock each, hotplug and interrupts, and
//! everything that happens happens in somebody's tick.
#![cfg(not(loom))]

#[path = "embedder/machine.rs"]
mod machine;
#[path = "embedder/parallel.rs"]
mod parallel;
#[path = "embedder/random.rs"]
mod random;

use machine::{
    EmbeddedTree, Item, Machine, interrupt_next_lock_holder, on, serve, tick, tick_in_section,
    ticked,
};
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
    let handler = |tree: &'static EmbeddedTree| {
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
        assert_eq!(count(&ran), 0, "a tick runs those of its own CPU");
        (0..ENOUGH).for_each(|_| serve(tree));
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
    (0..ENOUGH).for_each(|_| on(0, || tick(tree)));
    assert_eq!(count(&ran), 2);
}

/// Words of slots that grace periods of either lane have read in `rounds` rounds of ticks on `cpus` CPUs, each of which
/// queues a callback in each round.
fn words_read(tree: &EmbeddedTree, cpus: u32, rounds: usize, ran: &Arc<AtomicUsize>) -> usize {
    let read = || {
        let stats = tree.gp_stats();
        stats.normal.slots_scanned + stats.expedited.slots_scanned
    };
    let before = read();
    for _ in 0..rounds {
        for cpu in 0..cpus {
            on(cpu, || {
                if tree
                    .slot_stats(rcu_core::cpu::Slot::new(cpu))
                    .is_some_and(|its| its.nesting == 0)
                {
                    Item::call(tree, ran);
                    tick(tree);
                }
            });
        }
    }
    read() - before
}

#[test]
fn g7_however_many_cpus_tick_the_slots_are_looked_at_a_few_times_a_tick() {
    const CPUS: u32 = 64;
    const ROUNDS: usize = 50;
    let (_, tree) = Machine::up(CPUS as usize, 4, 4);
    let ran = counter();
    (0..CPUS).for_each(|cpu| on(cpu, || tree.read(|_| ())));
    let most = 4 * CPUS as usize * ROUNDS;
    let read = words_read(tree, CPUS, ROUNDS, &ran);
    assert!(read <= most, "{read} words, nobody inside");
    assert!(
        count(&ran) >= (ROUNDS - 4) * CPUS as usize,
        "{}",
        count(&ran)
    );

    let tokens: Vec<_> = (0..CPUS / 2).map(|cpu| on(cpu, || tree.enter())).collect();
    let cookie = on(CPUS - 1, || tree.start_expedited());
    let read = words_read(tree, CPUS, ROUNDS, &ran);
    assert!(read <= most, "{read} words, half of the CPUs inside");
    assert!(!tree.poll(cookie));
    for (cpu, token) in (0..).zip(tokens) {
        // SAFETY: entered above, on this CPU.
        on(cpu, || unsafe { tree.exit(token) });
    }
    for _ in 0..4 {
        (0..CPUS).for_each(|cpu| on(cpu, || tick(tree)));
    }
    assert!(tree.poll(cookie), "and it has ended all the same");
    assert!(!tree.has_work());
}

#[test]
fn g25_a_clock_that_stands_still_delays_ticks_and_stops_nothing() {
    let (_, tree) = Machine::up(8, 2, 2);
    let ran = counter();
    let stopped = std::time::Duration::from_secs(1);
    for _ in 0..3 {
        let token = on(7, || tree.enter());
        (0..8).for_each(|cpu| on(cpu, || Item::call(tree, &ran)));
        for _ in 0..ENOUGH {
            let pending = on(0, || tree.tick(stopped));
            assert!(pending.grace_period);
        }
        // SAFETY: entered above, on this CPU.
        on(7, || unsafe { tree.exit(token) });
        for _ in 0..3 * ENOUGH {
            (0..8).for_each(|cpu| {
                let _ = on(cpu, || tree.tick(stopped));
            });
        }
        assert!(!tree.has_work());
    }
    assert_eq!(count(&ran), 24);
}

#[test]
fn g25_a_cpu_that_ticks_only_while_something_is_pending_loses_nothing() {
    const CPUS: u32 = 9;
    let (_, tree) = Machine::up(CPUS as usize, 3, 3);
    let ran = counter();
    let mut called = 0;
    let mut random = 88_172_645_463_325_252_u64;
    let mut below = |limit: u32| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 32) as u32 % limit
    };
    let mut awake = [false; CPUS as usize];
    let mut inside: Vec<_> = (0..CPUS).map(|_| None).collect();
    for _ in 0..2000 {
        let cpu = below(CPUS);
        let place = &mut inside[cpu as usize];
        let awake = &mut awake[cpu as usize];
        on(cpu, || match (below(6), place.take()) {
            (0, None) => *place = Some(tree.enter()),
            // SAFETY: entered on this CPU, and given back once.
            (0 | 1, Some(token)) => unsafe { tree.exit(token) },
            (2, token) => {
                Item::call(tree, &ran);
                called += 1;
                *awake = true;
                *place = token;
            }
            (3.., None) if *awake => *awake = !ticked(tree).is_nothing(),
            (_, token) => *place = token,
        });
    }
    for (cpu, token) in (0..).zip(inside) {
        if let Some(token) = token {
            // SAFETY: entered on this CPU, and given back once.
            on(cpu, || unsafe { tree.exit(token) });
        }
    }
    let mut rounds = 0;
    while awake.contains(&true) {
        for cpu in 0..CPUS {
            let awake = &mut awake[cpu as usize];
            *awake = *awake && on(cpu, || !ticked(tree).is_nothing());
        }
        rounds += 1;
        assert!(rounds < ENOUGH, "something stays pending: {tree:?}");
    }
    assert_eq!(count(&ran), called);
    assert!(!tree.has_work());
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
