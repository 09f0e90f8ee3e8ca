//! Histories by a seed, on one thread that plays all CPUs, against a model of which sections are open.

use super::machine::{
    EmbeddedTree, Machine, interrupt_next_lock_holder, on, tick, tick_in_section,
};
use rcu_core::{Callback, Cookie, GracePeriod, Head, Rcu};
use rcu_tree::Token;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ptr::NonNull;

const CPUS: u32 = 12;
const STEPS: usize = if cfg!(miri) { 200 } else { 3000 };

/// What must be true; of this thread's history.
#[derive(Default)]
struct Model {
    now: u64,
    /// When the open sections began.
    open: BTreeSet<u64>,
    called: usize,
    ran: usize,
    /// A panic in a callback would be contained.
    fault: Option<String>,
}

thread_local! {
    static MODEL: RefCell<Model> = RefCell::default();
}

fn model<R>(f: impl FnOnce(&mut Model) -> R) -> R {
    MODEL.with_borrow_mut(f)
}

impl Model {
    fn later(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn passed(&self, time: u64) -> bool {
        self.open.first().is_none_or(|oldest| *oldest > time)
    }
}

#[repr(C)]
struct Stamped {
    head: Head,
    called: u64,
}

fn call(tree: &EmbeddedTree) {
    let called = model(|model| {
        model.called += 1;
        model.later()
    });
    let item = NonNull::from(Box::leak(Box::new(Stamped {
        head: Head::new(),
        called,
    })));
    // SAFETY: a fresh item that nobody else knows, freed by its callback only.
    unsafe { tree.call(item.cast(), Callback::Run(ran)) };
}

/// # Safety
/// 1. `head` is that of a leaked `Stamped`.
unsafe fn ran(head: NonNull<Head>) {
    // SAFETY: the head is the first field of a leaked box (1).
    let item = unsafe { Box::from_raw(head.cast::<Stamped>().as_ptr()) };
    model(|model| {
        model.ran += 1;
        if !model.passed(item.called) {
            model.fault = Some(format!("a callback of {} at {}", item.called, model.now));
        }
    });
}

/// One CPU's section.
#[derive(Default)]
struct Place {
    tokens: Vec<Token>,
    began: u64,
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 32) % u64::from(limit)) as u32
    }
}

fn enter(tree: &EmbeddedTree, place: &mut Place) {
    let now = model(Model::later);
    place.tokens.push(tree.enter());
    if place.tokens.len() == 1 {
        place.began = now;
        model(|model| model.open.insert(now));
    }
}

fn exit(tree: &EmbeddedTree, place: &mut Place) {
    if place.tokens.len() == 1 {
        model(|model| model.open.remove(&place.began));
    }
    if let Some(token) = place.tokens.pop() {
        // SAFETY: entered on this CPU, and given back once.
        unsafe { tree.exit(token) };
    }
}

fn history(seed: u64) {
    let (machine, tree) = Machine::boot(CPUS as usize, 2, 3);
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut places: Vec<Place> = (0..CPUS).map(|_| Place::default()).collect();
    let mut cookies: Vec<(Cookie, u64)> = Vec::new();
    for _ in 0..STEPS {
        let cpu = random.below(CPUS);
        let place = &mut places[cpu as usize];
        let inside = !place.tokens.is_empty();
        match random.below(16) {
            // A CPU that is not plugged reads and calls without a slot; it is not plugged inside such a section.
            0..3 if place.tokens.len() < 4 => on(cpu, || enter(tree, place)),
            0..7 if inside => on(cpu, || exit(tree, place)),
            7 | 8 => on(cpu, || call(tree)),
            9 => {
                let taken = model(Model::later);
                let cookie = match random.below(2) {
                    0 => on(cpu, || tree.start()),
                    _ => on(cpu, || tree.start_expedited()),
                };
                cookies.push((cookie, taken));
            }
            10 if !inside && machine.is_plugged(cpu) => assert!(!machine.unplug(cpu)),
            10..13 if !inside => machine.plug(cpu),
            13 => interrupt_next_lock_holder(move || {
                call(tree);
                tick_in_section(tree);
            }),
            _ if inside => on(cpu, || tick_in_section(tree)),
            _ => on(cpu, || tick(tree)),
        }
        cookies.retain(|(cookie, taken)| {
            let done = tree.poll(*cookie);
            assert!(
                !done || model(|model| model.passed(*taken)),
                "seed {seed}: a cookie of {taken}"
            );
            !done
        });
        assert_eq!(model(|model| model.fault.take()), None, "seed {seed}");
    }
    for (cpu, place) in (0..).zip(&mut places) {
        while !place.tokens.is_empty() {
            on(cpu, || exit(tree, place));
        }
    }
    // Eventually, by ticks alone.
    machine.plug(0);
    for _ in 0..20 {
        (0..CPUS).for_each(|cpu| on(cpu, || tick(tree)));
    }
    assert!(
        cookies.iter().all(|(cookie, _)| tree.poll(*cookie)),
        "seed {seed}"
    );
    model(|model| assert_eq!(model.ran, model.called, "seed {seed}"));
}

#[test]
fn histories_by_a_seed_keep_the_model() {
    for seed in 1..=if cfg!(miri) { 2 } else { 24 } {
        history(seed);
    }
}
