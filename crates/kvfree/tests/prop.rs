//! Operation strings against books that know when each object may be freed, over pages that work, that are refused, and that fail
//! at every call there is.

#![cfg(not(loom))]

mod common;
#[path = "common/ops.rs"]
mod ops;

use arbitrary::{Arbitrary, Unstructured};
use common::{Defer, Failure, Hand, Ledger, ManualRcu, Pages, Random, front};
use kvfree::Config;
use ops::{BURST, Case, Op, SLOTS, World, run};
use pagealloc::Attempt;
use proptest::collection::vec;
use proptest::prelude::*;
use rcu_core::GracePeriod;
use std::mem::ManuallyDrop;

mod cfg {
    //! Sizes, in one place.
    pub(crate) const CASES: u32 = if cfg!(miri) { 4 } else { 300 };
    pub(crate) const OPS: usize = if cfg!(miri) { 30 } else { 120 };
    /// Strings that are run once for each call to the pages.
    pub(crate) const SWEEPS: u64 = if cfg!(miri) { 1 } else { 12 };
    pub(crate) const SWEEP_OPS: usize = if cfg!(miri) { 20 } else { 70 };
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => any::<bool>().prop_map(|large| Op::Alloc { large }),
        6 => any::<usize>().prop_map(Op::Retire),
        3 => any::<usize>().prop_map(Op::RetireMightsleep),
        3 => any::<usize>().prop_map(Op::TryRetire),
        2 => any::<usize>().prop_map(Op::RetireWith),
        2 => any::<usize>().prop_map(Op::RetireHead),
        1 => (1..=BURST, any::<bool>()).prop_map(|(objects, large)| Op::Burst { objects, large }),
        4 => Just(Op::Tick),
        4 => Just(Op::Step),
        2 => Just(Op::Advance),
        2 => Just(Op::Enter),
        2 => Just(Op::Exit),
        1 => Just(Op::Barrier),
        1 => Just(Op::Offline),
        2 => prop::option::weighted(0.8, 0..SLOTS as u32).prop_map(Op::Go),
    ]
}

/// The same by a plain generator, so that a sweep runs one string again and again.
fn string(seed: u64, len: usize) -> Vec<Op> {
    let mut random = Random::new(seed);
    let mut next = || {
        let n = random.below(1000);
        match random.below(24) {
            0..6 => Op::Alloc {
                large: n.is_multiple_of(3),
            },
            6..9 => Op::Retire(n),
            9..11 => Op::RetireMightsleep(n),
            11 => Op::TryRetire(n),
            12 => Op::RetireWith(n),
            13 => Op::RetireHead(n),
            14 => Op::Burst {
                objects: 1 + n % BURST,
                large: n.is_multiple_of(4),
            },
            15..17 => Op::Tick,
            17 => Op::Step,
            18 => Op::Advance,
            19 => Op::Enter,
            20 => Op::Exit,
            21 => Op::Barrier,
            22 => Op::Offline,
            _ => Op::Go((!n.is_multiple_of(5)).then_some((n % SLOTS) as u32)),
        }
    };
    (0..len).map(|_| next()).collect()
}

fn defer() -> impl Strategy<Value = Defer> {
    prop_oneof![
        3 => Just(Defer::Never),
        1 => Just(Defer::Always),
        2 => Just(Defer::Sometimes),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cfg::CASES,
        failure_persistence: None,
        max_shrink_iters: 1000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_object_is_freed_once_after_its_grace_period(ops in vec(op(), 0..cfg::OPS), defer in defer()) {
        run(&ops, Failure::Never, defer);
    }

    /// K3, K4: two arguments go by the head, one waits.
    #[test]
    fn without_a_single_page(ops in vec(op(), 0..cfg::OPS), defer in defer()) {
        run(&ops, Failure::From(0), defer);
    }

    /// K6: only callers that may sleep get pages.
    #[test]
    fn with_pages_for_those_who_wait_only(ops in vec(op(), 0..cfg::OPS), defer in defer()) {
        run(&ops, Failure::Below(Attempt::MayGrow), defer);
    }

    #[test]
    fn with_pages_that_run_out(ops in vec(op(), 0..cfg::OPS), defer in defer(), n in 0..40_usize) {
        run(&ops, Failure::From(n), defer);
    }
}

/// Runs a string without barriers and ticks of its own, then lets the grace periods of all that was retired pass, and looks how many rounds
/// of the monitor it takes until everything is free.
fn rounds_until_free(ops: &[Op], failure: Failure, defer: Defer) -> usize {
    let (hand, pages, rcu) = (Hand::new(SLOTS), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, defer);
    // Not dropped by a panic, for a section may be on.
    let front = ManuallyDrop::new(front(&hand, &pages, &rcu, &ledger, Config::new()));
    pages.set_failure(failure);
    World::after(ops, defer, (&hand, &rcu, &ledger), &front);
    let without_slot = front.stats().shared > 0;
    let mut rounds = 0;
    // Where an object came without a slot, its grace period is one that begins when it was first looked at.
    if without_slot {
        front.tick();
        rounds += 1;
    }
    rcu.synchronize();
    rcu.synchronize();
    while ledger.waiting() > 0 {
        assert!(rounds < 10, "left lying: {}", front.report());
        let before = rcu.grace_periods();
        front.tick();
        rounds += 1;
        assert_eq!(rcu.grace_periods(), before, "a grace period too many");
    }
    assert_eq!(front.tick(), 0);
    drop(ManuallyDrop::into_inner(front));
    ledger.assert_no_faults();
    rounds
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cfg::CASES / 3 + 1,
        failure_persistence: None,
        max_shrink_iters: 1000,
        ..ProptestConfig::default()
    })]

    /// K8: once its grace period is over, an object is free after the next round, though its slot went idle or its thread ended; after the
    /// second one if it came without a slot.
    #[test]
    fn k8_nothing_stays_longer_than_a_round(
        ops in vec(op(), 0..cfg::OPS),
        defer in defer(),
        fails in any::<bool>(),
    ) {
        let failure = if fails { Failure::From(0) } else { Failure::Never };
        let rounds = rounds_until_free(&ops, failure, defer);
        prop_assert!(rounds <= 2, "{rounds} rounds");
        let on_slots: Vec<_> = ops.iter().copied().filter(|op| !matches!(op, Op::Go(None))).collect();
        let rounds = rounds_until_free(&on_slots, failure, defer);
        prop_assert!(rounds <= 1, "{rounds} rounds");
    }
}

#[test]
fn pages_that_fail_at_each_call_there_is() {
    for seed in 0..cfg::SWEEPS {
        let ops = string(seed, cfg::SWEEP_OPS);
        let defer = [Defer::Never, Defer::Never, Defer::Sometimes][seed as usize % 3];
        let calls = run(&ops, Failure::Never, defer);
        for n in 0..=calls {
            run(&ops, Failure::Once(n), defer);
            run(&ops, Failure::From(n), defer);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cfg::CASES / 4 + 1,
        failure_persistence: None,
        max_shrink_iters: 1000,
        ..ProptestConfig::default()
    })]

    /// What the fuzzer does, from bytes.
    #[test]
    fn bytes_are_operations_too(bytes in vec(any::<u8>(), 0..3 * cfg::OPS)) {
        if let Ok(case) = Case::arbitrary(&mut Unstructured::new(&bytes)) {
            run(&case.ops, case.failure, case.defer);
        }
    }
}

/// What the fuzzer found worth keeping. Nothing is looked for where the crate is alone.
#[test]
fn the_fuzzers_corpus_passes() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/retire");
    let Ok(files) = std::fs::read_dir(corpus) else {
        return;
    };
    let mut played = 0;
    for file in files {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let case = Case::arbitrary(&mut Unstructured::new(&bytes)).unwrap();
        run(&case.ops, case.failure, case.defer);
        played += 1;
    }
    assert!(played > 0);
}
