//! Caches against a multiset, over sources that fail too.

#![cfg(not(loom))]

mod common;
#[path = "common/ops.rs"]
mod ops;

use arbitrary::{Arbitrary, Unstructured};
use common::Failure;
use common::cases::{cases, dear};
use ops::{Case, Op, SLOTS, Setup, play};
use pagealloc::Attempt;
use proptest::prelude::*;
use slab::{Checks, Stability};

fn attempt() -> impl Strategy<Value = Attempt> {
    prop_oneof![
        4 => Just(Attempt::MayGrow),
        1 => Just(Attempt::NoWait),
        1 => Just(Attempt::TryLock),
        1 => Just(Attempt::PcpOnly),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => attempt().prop_map(Op::Alloc),
        6 => any::<usize>().prop_map(Op::Free),
        2 => (any::<usize>(), attempt()).prop_map(|(n, a)| Op::FreeAttempt(n, a)),
        12 => (any::<usize>(), attempt()).prop_map(|(n, a)| Op::Retire(n, a)),
        2 => (0..40_usize, attempt()).prop_map(|(n, a)| Op::AllocBulk(n, a)),
        2 => (0..40_usize, attempt()).prop_map(|(n, a)| Op::Prefill(n, a)),
        3 => (0..10_usize).prop_map(Op::Pop),
        1 => (0..40_usize, attempt()).prop_map(|(n, a)| Op::Refill(n, a)),
        2 => any::<usize>().prop_map(Op::GiveBack),
        1 => any::<bool>().prop_map(Op::Memory),
        2 => (0..40_usize).prop_map(Op::FreeBulk),
        4 => Just(Op::Advance),
        2 => Just(Op::Begin),
        3 => prop_oneof![4 => (0..SLOTS).prop_map(Some), 1 => Just(None)].prop_map(Op::Go),
        1 => Just(Op::Bounce),
        2 => Just(Op::Reap),
        1 => prop_oneof![0..5_usize, Just(usize::MAX)].prop_map(Op::Shrink),
        1 => Just(Op::Barrier),
    ]
}

fn stability() -> impl Strategy<Value = Stability> {
    prop_oneof![
        3 => Just(Stability::None),
        2 => Just(Stability::Type),
        1 => Just(Stability::Delayed),
    ]
}

/// None, all, or any.
fn checks() -> impl Strategy<Value = Checks> {
    prop_oneof![
        2 => Just(Checks::empty()),
        1 => Just(Checks::all()),
        1 => any::<u8>().prop_map(Checks::from_bits_truncate),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let size = prop_oneof![
        Just(24),
        Just(64),
        Just(200),
        Just(1000),
        Just(4096),
        Just(9000)
    ];
    let align = prop_oneof![Just(8), Just(64)];
    (
        size,
        align,
        1..8_usize,
        1..40_usize,
        0..3_usize,
        prop_oneof![2 => Just(usize::MAX), 1 => 0..100_000_usize],
        any::<bool>(),
        checks(),
        (stability(), any::<bool>()),
    )
        .prop_map(
            |(size, align, sheaf, ask, min_partial, limit, auto, checks, (stability, is_built))| {
                Setup {
                    size,
                    align,
                    sheaf,
                    ask,
                    min_partial,
                    limit,
                    auto,
                    checks,
                    stability,
                    is_built,
                }
            },
        )
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn h5_objects_are_conserved(setup in setup(), ops in prop::collection::vec(op(), 0..200)) {
        play(&setup, &ops, Failure::Never);
    }
}

proptest! {
    #![proptest_config(cases(80))]

    #[test]
    fn l15_no_check_finds_fault_with_what_is_allowed(
        setup in setup(),
        ops in prop::collection::vec(op(), 0..200),
    ) {
        let setup = Setup { checks: Checks::all(), ..setup };
        play(&setup, &ops, Failure::Never);
    }
}

#[test]
fn every_failure_point_leaves_the_cache_whole() {
    dear(
        8,
        (setup(), prop::collection::vec(op(), 0..60)),
        |(setup, ops)| {
            let calls = play(&setup, &ops, Failure::Never);
            for n in 0..=calls {
                play(&setup, &ops, Failure::Once(n));
                play(&setup, &ops, Failure::From(n));
            }
            Ok(())
        },
    );
}

proptest! {
    #![proptest_config(cases(150))]

    /// What the fuzzer does, from bytes.
    #[test]
    fn bytes_are_operations_too(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(case) = Case::arbitrary(&mut Unstructured::new(&bytes)) {
            play(&case.setup, &case.ops, case.failure);
        }
    }
}

/// What the fuzzer found worth keeping. Nothing is looked for where the crate is alone.
#[test]
fn the_fuzzers_corpus_passes() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/objects");
    let Ok(files) = std::fs::read_dir(corpus) else {
        return;
    };
    let mut played = 0;
    for file in files {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let case = Case::arbitrary(&mut Unstructured::new(&bytes)).unwrap();
        play(&case.setup, &case.ops, case.failure);
        played += 1;
    }
    assert!(played > 0);
}
