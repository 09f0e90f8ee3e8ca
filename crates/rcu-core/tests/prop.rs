//! `CbList` and `SegList` against models made of vectors.

#![cfg(not(loom))]

#[path = "common/seg_ops.rs"]
mod seg_ops;

use arbitrary::{Arbitrary, Unstructured};
use proptest::collection::vec;
use proptest::prelude::*;
use rcu_core::{CbList, Head, SegList};
use seg_ops::{Arena, Case, SegOp, Time, seg_list};
use std::collections::VecDeque;
use std::ptr::NonNull;

#[derive(Clone, Debug)]
enum CbOp {
    /// Into the first or the second list.
    Push(bool),
    Pop(bool),
    /// One behind the other.
    Append(bool),
    /// One in front of the other.
    Front(bool),
    Swap,
}

fn cb_op() -> impl Strategy<Value = CbOp> {
    prop_oneof![
        4 => any::<bool>().prop_map(CbOp::Push),
        3 => any::<bool>().prop_map(CbOp::Pop),
        1 => any::<bool>().prop_map(CbOp::Append),
        1 => any::<bool>().prop_map(CbOp::Front),
        1 => Just(CbOp::Swap),
    ]
}

proptest! {
    #[test]
    fn cb_list_is_a_queue(ops in vec(cb_op(), 0..100)) {
        let mut arena = Arena::new(ops.len());
        let mut lists = [CbList::new(), CbList::new()];
        let mut models = [VecDeque::new(), VecDeque::new()];
        for op in ops {
            match op {
                CbOp::Push(i) => {
                    let (id, head) = arena.next();
                    // SAFETY: the arena outlives the lists, the head is on neither, and all stays on this thread.
                    unsafe { lists[usize::from(i)].push_back(head) };
                    models[usize::from(i)].push_back(id);
                }
                CbOp::Pop(i) => {
                    let got = lists[usize::from(i)].pop_front().map(|head| arena.id(head));
                    prop_assert_eq!(got, models[usize::from(i)].pop_front());
                    arena.again.extend(got);
                }
                CbOp::Append(i) => {
                    let other = lists[usize::from(!i)].take();
                    lists[usize::from(i)].append(other);
                    let other = std::mem::take(&mut models[usize::from(!i)]);
                    models[usize::from(i)].extend(other);
                }
                CbOp::Front(i) => {
                    let other = lists[usize::from(!i)].take();
                    lists[usize::from(i)].push_front_list(other);
                    let mut other = std::mem::take(&mut models[usize::from(!i)]);
                    other.append(&mut models[usize::from(i)]);
                    models[usize::from(i)] = other;
                }
                CbOp::Swap => {
                    lists.swap(0, 1);
                    models.swap(0, 1);
                }
            }
            for (list, model) in lists.iter().zip(&models) {
                prop_assert_eq!(list.len(), model.len());
                prop_assert_eq!(list.is_empty(), model.is_empty());
            }
        }
        for (list, model) in lists.into_iter().zip(models) {
            prop_assert_eq!(arena.drain(list), Vec::from(model));
        }
    }
}

fn seg_op() -> impl Strategy<Value = SegOp> {
    prop_oneof![
        6 => Just(SegOp::Enqueue),
        5 => (1u8..5).prop_map(SegOp::Time),
        3 => Just(SegOp::Advance),
        4 => Just(SegOp::Accelerate),
        2 => (0u8..5).prop_map(SegOp::All),
        2 => Just(SegOp::Entrain),
        2 => Just(SegOp::Extract),
        3 => (1usize..6).prop_map(SegOp::Run),
        1 => Just(SegOp::Back),
        1 => Just(SegOp::Merge),
        1 => Just(SegOp::Swap),
    ]
}

proptest! {
    #[test]
    fn s1_s8_seg_list_does_as_the_model_does(ops in vec(seg_op(), 0..150), start in 270u64..300) {
        seg_list(&ops, start);
    }

    /// What the fuzzer does, from bytes.
    #[test]
    fn bytes_are_operations_too(bytes in vec(any::<u8>(), 0..300)) {
        if let Ok(case) = Case::arbitrary(&mut Unstructured::new(&bytes)) {
            seg_list(&case.ops, case.start);
        }
    }
}

/// One visit of a slot: time passes, a callback comes, time passes between the steps: before the snapshot, between it
/// and the reading of the sequence, and (which nobody reads) between advancing and accelerating.
fn visit(list: &mut SegList, time: &mut Time, head: &Head, gaps: [u8; 2], snap_first: bool) {
    time.step(gaps[0]);
    // SAFETY: the heads outlive the lists, each is queued once a list, and all stays on this thread.
    unsafe { list.enqueue(NonNull::from(head)) };
    let now = std::cell::Cell::new(*time);
    if snap_first {
        let snapshot = || {
            let snapshot = now.get().seq().snapshot();
            time.step(gaps[1]);
            now.set(*time);
            snapshot
        };
        list.number(snapshot, || now.get().seq());
    } else {
        list.advance(time.seq());
        time.step(gaps[1]);
        list.accelerate(time.seq().snapshot());
    }
}

/// All interleavings of three visits with up to five starts and ends in each gap: how many leave
/// a callback without a number.
fn stranded(snap_first: bool) -> usize {
    const GAPS: u8 = 6;
    let gaps = || (0..GAPS).flat_map(|a| (0..GAPS).map(move |b| [a, b]));
    let heads: [Head; 3] = std::array::from_fn(|_| Head::new());
    let mut stranded = 0;
    for first in gaps() {
        for second in gaps() {
            for third in gaps() {
                let (mut list, mut time) = (SegList::new(), Time(4 * 299));
                for (head, gaps) in heads.iter().zip([first, second, third]) {
                    visit(&mut list, &mut time, head, gaps, snap_first);
                    stranded += usize::from(list.has_unnumbered());
                }
            }
        }
    }
    stranded
}

#[test]
fn t38_snap_before_advance() {
    assert_eq!(stranded(true), 0);
    assert_ne!(
        stranded(false),
        0,
        "the other order goes wrong, so this test can fail"
    );
}

proptest! {
    /// S9, T38: callbacks of one slot while grace periods of two kinds start and end at random: none is ready before
    /// one of its own kinds has passed whole, none is left without a number, all come in order.
    #[test]
    fn s9_two_kinds_of_grace_periods(visits in vec((0u8..4, 0u8..4, 0u8..3, 0u8..3), 1..80)) {
        use rcu_core::FullCookie;
        let mut arena = Arena::new(visits.len());
        let (normal, expedited) = (std::cell::Cell::new(Time(4 * 290)), std::cell::Cell::new(Time(4 * 280)));
        let step = |time: &std::cell::Cell<Time>, steps: u8| {
            let mut now = time.get();
            now.step(steps);
            time.set(now);
        };
        let is_done = |cookie: FullCookie| {
            normal.get().seq().is_done(cookie.normal())
                || expedited.get().seq().is_done(cookie.expedited())
        };
        let mut list = SegList::new();
        // What each needs: the model's numbers, from when it was queued.
        let mut needs: VecDeque<(usize, u64, u64)> = VecDeque::new();
        for (before, hurry, between, hurry_between) in visits {
            step(&normal, before);
            step(&expedited, hurry);
            let (id, head) = arena.next();
            // SAFETY: the arena outlives the list, the head is fresh, and all stays on this thread.
            unsafe { list.enqueue(head) };
            needs.push_back((id, normal.get().needs(), expedited.get().needs()));
            let snapshot = || {
                let taken = [&normal, &expedited].map(|time| time.get().seq().snapshot());
                step(&normal, between);
                step(&expedited, hurry_between);
                FullCookie::new(taken[0], taken[1])
            };
            list.number_full(snapshot, is_done);
            prop_assert!(!list.has_unnumbered(), "T38");
            let ready = arena.drain(list.extract_done());
            list.finished(ready.len());
            for got in ready {
                let (id, by_normal, by_expedited) = needs.pop_front().unwrap();
                prop_assert_eq!(got, id);
                let passed = normal.get().0 >= by_normal || expedited.get().0 >= by_expedited;
                prop_assert!(passed, "ready before a grace period of either kind");
            }
        }
        step(&normal, 4);
        list.advance_full(is_done);
        prop_assert_eq!(arena.drain(list.extract_done()).len(), needs.len(), "all by normal ones");
    }
}

/// What the fuzzer found worth keeping. Nothing is looked for where the crate is alone.
#[test]
fn the_fuzzers_corpus_passes() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/seg_list");
    let Ok(files) = std::fs::read_dir(corpus) else {
        return;
    };
    let mut played = 0;
    for file in files {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let case = Case::arbitrary(&mut Unstructured::new(&bytes)).unwrap();
        seg_list(&case.ops, case.start);
        played += 1;
    }
    assert!(played > 0);
}
