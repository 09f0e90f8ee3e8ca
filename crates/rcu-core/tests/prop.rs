//! `CbList` and `SegList` against models made of vectors.

#![cfg(not(loom))]

use proptest::collection::vec;
use proptest::prelude::*;
use rcu_core::{CbList, Cookie, Head, SegList, Seq};
use std::collections::VecDeque;
use std::ptr::NonNull;

/// Heads with numbers, which outlive the lists of a case.
struct Arena {
    heads: Vec<Head>,
    used: usize,
    /// Popped, to be queued again: their words are what the list left.
    again: Vec<usize>,
}

impl Arena {
    fn new(len: usize) -> Self {
        Self {
            heads: (0..len).map(|_| Head::new()).collect(),
            used: 0,
            again: Vec::new(),
        }
    }

    fn next(&mut self) -> (usize, NonNull<Head>) {
        let id = self.again.pop().unwrap_or(self.used);
        self.used = self.used.max(id + 1);
        (id, NonNull::from(&self.heads[id]))
    }

    fn id(&self, head: NonNull<Head>) -> usize {
        (head.addr().get() - self.heads.as_ptr().addr()) / size_of::<Head>()
    }

    fn drain(&self, mut list: CbList) -> Vec<usize> {
        std::iter::from_fn(|| list.pop_front())
            .map(|head| self.id(head))
            .collect()
    }
}

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

/// Grace periods as a number that never wraps: phases since `Seq::INITIAL`, of which two are used.
#[derive(Clone, Copy)]
struct Time(u64);

impl Time {
    fn step(&mut self, steps: u8) {
        for _ in 0..steps {
            self.0 = if self.0.is_multiple_of(4) {
                self.0 + 1
            } else {
                self.0.next_multiple_of(4)
            };
        }
    }

    fn seq(self) -> Seq {
        Seq::from_raw(Seq::INITIAL.raw().wrapping_add(self.0 as usize))
    }

    /// What must be reached: as a model value.
    fn needs(self) -> u64 {
        if self.0.is_multiple_of(4) {
            self.0 + 4
        } else {
            (self.0 / 4 + 2) * 4
        }
    }
}

fn cookie(at: u64) -> Cookie {
    Cookie::from_raw(Time(at).seq().raw())
}

/// Callbacks in order, each with the number it waits for, if any.
#[derive(Default)]
struct Model {
    running: VecDeque<usize>,
    done: VecDeque<usize>,
    pending: Vec<(usize, Option<u64>)>,
}

impl Model {
    fn numbers(&self) -> Vec<u64> {
        let mut numbers: Vec<u64> = self.pending.iter().filter_map(|&(_, at)| at).collect();
        numbers.dedup();
        numbers
    }

    fn advance(&mut self, now: Time) {
        let ready = self
            .pending
            .iter()
            .take_while(|&&(_, at)| at.is_some_and(|at| at <= now.0));
        let ready = ready.count();
        self.done
            .extend(self.pending.drain(..ready).map(|(id, _)| id));
    }

    fn accelerate(&mut self, to: u64) -> bool {
        if self.numbers().iter().filter(|&&at| at < to).count() >= 2 {
            return false;
        }
        for (_, at) in &mut self.pending {
            *at = Some(at.map_or(to, |at| at.min(to)));
        }
        self.numbers().contains(&to)
    }

    fn seglens(&self) -> [usize; 4] {
        let numbers = self.numbers();
        let of = |at: Option<&u64>| match at {
            Some(_) => self
                .pending
                .iter()
                .filter(|(_, its)| its.as_ref() == at)
                .count(),
            None => 0,
        };
        let unnumbered = self.pending.iter().filter(|(_, at)| at.is_none()).count();
        [
            self.done.len(),
            of(numbers.first()),
            of(numbers.get(1)),
            unnumbered,
        ]
    }
}

/// A list, its model, and the batch in flight.
#[derive(Default)]
struct Pair {
    real: SegList,
    model: Model,
    batch: CbList,
}

impl Pair {
    fn check(&self) -> Result<(), TestCaseError> {
        let m = &self.model;
        prop_assert_eq!(self.real.seglens(), m.seglens());
        let linked = m.done.len() + m.pending.len();
        prop_assert_eq!(self.real.len(), linked + m.running.len());
        prop_assert_eq!(self.real.in_flight(), m.running.len());
        prop_assert_eq!(self.real.is_empty(), linked + m.running.len() == 0, "S8");
        prop_assert_eq!(self.real.has_ready(), !m.done.is_empty());
        prop_assert_eq!(
            self.real.has_unnumbered(),
            m.pending.iter().any(|(_, at)| at.is_none())
        );
        let numbers = m.numbers();
        prop_assert!(numbers.len() <= 2 && numbers.is_sorted(), "S1");
        prop_assert_eq!(
            self.real.pending_cookie(),
            numbers.first().map(|&at| cookie(at))
        );
        prop_assert_eq!(
            self.real.last_cookie(),
            numbers.last().map(|&at| cookie(at))
        );
        Ok(())
    }

    fn extract(&mut self) {
        self.batch.append(self.real.extract_done());
        let done = std::mem::take(&mut self.model.done);
        self.model.running.extend(done);
    }

    /// Runs up to `n` of the batch.
    fn run(&mut self, arena: &Arena, n: usize) -> Result<(), TestCaseError> {
        let mut count = 0;
        while count < n {
            let got = self.batch.pop_front().map(|head| arena.id(head));
            prop_assert_eq!(got, self.model.running.pop_front());
            if got.is_none() {
                break;
            }
            count += 1;
        }
        self.real.finished(count);
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum SegOp {
    Enqueue,
    /// So many starts and ends of grace periods.
    Time(u8),
    Advance,
    /// To the snapshot of now.
    Accelerate,
    /// With so many steps between snapshot and reading.
    All(u8),
    Entrain,
    Extract,
    Run(usize),
    /// Puts what is left of the batch back.
    Back,
    /// Takes the other list over.
    Merge,
    /// Goes on with the other list.
    Swap,
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

fn seg_list(ops: &[SegOp], start: u64) -> Result<(), TestCaseError> {
    let mut arena = Arena::new(ops.len());
    let mut time = Time(start * 4);
    let (mut this, mut other) = (Pair::default(), Pair::default());
    for op in ops {
        match *op {
            SegOp::Enqueue => {
                let (id, head) = arena.next();
                // SAFETY: the arena outlives the lists, the head is fresh, and all stays on this thread.
                unsafe { this.real.enqueue(head) };
                this.model.pending.push((id, None));
            }
            SegOp::Time(steps) => time.step(steps),
            SegOp::Advance => {
                this.real.advance(time.seq());
                this.model.advance(time);
                this.check()?;
                this.real.advance(time.seq());
            }
            SegOp::Accelerate => {
                let waits = this.real.accelerate(time.seq().snapshot());
                prop_assert_eq!(waits, this.model.accelerate(time.needs()));
                this.check()?;
                prop_assert_eq!(
                    this.real.accelerate(time.seq().snapshot()),
                    waits,
                    "idempotent"
                );
            }
            SegOp::All(steps) => {
                let (snapshot, needs) = (time.seq().snapshot(), time.needs());
                time.step(steps);
                let waits = this.real.snap_advance_accelerate(snapshot, time.seq());
                this.model.advance(time);
                prop_assert_eq!(waits, this.model.accelerate(needs));
                prop_assert!(!this.real.has_unnumbered(), "T38");
            }
            SegOp::Entrain => {
                let (id, head) = arena.next();
                let m = &mut this.model;
                // SAFETY: as for `enqueue`.
                let taken = unsafe { this.real.entrain(head) };
                let any = m.done.len() + m.pending.len() + m.running.len() > 0;
                prop_assert_eq!(taken, any);
                match m.pending.last() {
                    Some(&(_, at)) => m.pending.push((id, at)),
                    None if any => m.done.push_back(id),
                    None => {}
                }
            }
            SegOp::Extract => this.extract(),
            SegOp::Run(n) => this.run(&arena, n)?,
            SegOp::Back => {
                this.real.insert_done(this.batch.take());
                let mut batch = std::mem::take(&mut this.model.running);
                batch.append(&mut this.model.done);
                this.model.done = batch;
            }
            SegOp::Merge => {
                this.real.merge(&mut other.real);
                let mut done = std::mem::take(&mut other.model.done);
                done.append(&mut this.model.done);
                this.model.done = done;
                let pending = other.model.pending.drain(..).map(|(id, _)| (id, None));
                this.model.pending.extend(pending);
                other.check()?;
            }
            SegOp::Swap => std::mem::swap(&mut this, &mut other),
        }
        this.check()?;
    }
    for mut pair in [this, other] {
        for _ in 0..3 {
            pair.real
                .snap_advance_accelerate(time.seq().snapshot(), time.seq());
            pair.model.advance(time);
            pair.model.accelerate(time.needs());
            pair.check()?;
            time.step(2);
        }
        pair.extract();
        pair.run(&arena, usize::MAX)?;
        prop_assert!(pair.real.is_empty());
    }
    Ok(())
}

proptest! {
    #[test]
    fn s1_s8_seg_list_does_as_the_model_does(ops in vec(seg_op(), 0..150), start in 270u64..300) {
        seg_list(&ops, start)?;
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
