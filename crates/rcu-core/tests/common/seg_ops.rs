//! Strings of operations over a `SegList`, against a model made of vectors: for the properties and for the fuzzer.

use arbitrary::{Arbitrary, Unstructured};
use rcu_core::{CbList, Cookie, Head, SegList, Seq};
use std::collections::VecDeque;
use std::ptr::NonNull;

/// Heads with numbers, which outlive the lists of a case.
pub(crate) struct Arena {
    pub(crate) heads: Vec<Head>,
    pub(crate) used: usize,
    /// Popped, to be queued again: their words are what the list left.
    pub(crate) again: Vec<usize>,
}

impl Arena {
    pub(crate) fn new(len: usize) -> Self {
        Self {
            heads: (0..len).map(|_| Head::new()).collect(),
            used: 0,
            again: Vec::new(),
        }
    }

    pub(crate) fn next(&mut self) -> (usize, NonNull<Head>) {
        let id = self.again.pop().unwrap_or(self.used);
        self.used = self.used.max(id + 1);
        (id, NonNull::from(&self.heads[id]))
    }

    pub(crate) fn id(&self, head: NonNull<Head>) -> usize {
        (head.addr().get() - self.heads.as_ptr().addr()) / size_of::<Head>()
    }

    pub(crate) fn drain(&self, mut list: CbList) -> Vec<usize> {
        std::iter::from_fn(|| list.pop_front())
            .map(|head| self.id(head))
            .collect()
    }
}

/// Grace periods as a number that never wraps: phases since `Seq::INITIAL`, of which two are used.
#[derive(Clone, Copy)]
pub(crate) struct Time(pub(crate) u64);

impl Time {
    pub(crate) fn step(&mut self, steps: u8) {
        for _ in 0..steps {
            self.0 = if self.0.is_multiple_of(4) {
                self.0 + 1
            } else {
                self.0.next_multiple_of(4)
            };
        }
    }

    pub(crate) fn seq(self) -> Seq {
        Seq::from_raw(Seq::INITIAL.raw().wrapping_add(self.0 as usize))
    }

    /// What must be reached: as a model value.
    pub(crate) fn needs(self) -> u64 {
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
pub(crate) struct Model {
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
pub(crate) struct Pair {
    real: SegList,
    model: Model,
    batch: CbList,
}

impl Pair {
    fn check(&self) {
        let m = &self.model;
        assert_eq!(self.real.seglens(), m.seglens());
        let linked = m.done.len() + m.pending.len();
        assert_eq!(self.real.len(), linked + m.running.len());
        assert_eq!(self.real.in_flight(), m.running.len());
        assert_eq!(self.real.is_empty(), linked + m.running.len() == 0, "S8");
        assert_eq!(self.real.has_ready(), !m.done.is_empty());
        assert_eq!(
            self.real.has_unnumbered(),
            m.pending.iter().any(|(_, at)| at.is_none())
        );
        let numbers = m.numbers();
        assert!(numbers.len() <= 2 && numbers.is_sorted(), "S1");
        assert_eq!(
            self.real.pending_cookie(),
            numbers.first().map(|&at| cookie(at))
        );
        assert_eq!(
            self.real.last_cookie(),
            numbers.last().map(|&at| cookie(at))
        );
    }

    fn extract(&mut self) {
        self.batch.append(self.real.extract_done());
        let done = std::mem::take(&mut self.model.done);
        self.model.running.extend(done);
    }

    /// Runs up to `n` of the batch.
    fn run(&mut self, arena: &Arena, n: usize) {
        let mut count = 0;
        while count < n {
            let got = self.batch.pop_front().map(|head| arena.id(head));
            assert_eq!(got, self.model.running.pop_front());
            if got.is_none() {
                break;
            }
            count += 1;
        }
        self.real.finished(count);
    }
}

#[derive(Clone, Debug)]
pub(crate) enum SegOp {
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

impl<'a> Arbitrary<'a> for SegOp {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match u.int_in_range(0..=29_u8)? {
            0..6 => Self::Enqueue,
            6..11 => Self::Time(u.int_in_range(1..=4)?),
            11..14 => Self::Advance,
            14..18 => Self::Accelerate,
            18..20 => Self::All(u.int_in_range(0..=4)?),
            20..22 => Self::Entrain,
            22..24 => Self::Extract,
            24..27 => Self::Run(u.int_in_range(1..=5)?),
            27 => Self::Back,
            28 => Self::Merge,
            _ => Self::Swap,
        })
    }
}

/// One string, and how far from wrap-around it begins.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) ops: Vec<SegOp>,
    pub(crate) start: u64,
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let start = u.int_in_range(270..=299)?;
        let mut ops = Vec::new();
        while !u.is_empty() && ops.len() < 1000 {
            ops.push(u.arbitrary()?);
        }
        Ok(Self { ops, start })
    }
}

/// Runs a string.
pub(crate) fn seg_list(ops: &[SegOp], start: u64) {
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
                this.check();
                this.real.advance(time.seq());
            }
            SegOp::Accelerate => {
                let waits = this.real.accelerate(time.seq().snapshot());
                assert_eq!(waits, this.model.accelerate(time.needs()));
                this.check();
                assert_eq!(
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
                assert_eq!(waits, this.model.accelerate(needs));
                assert!(!this.real.has_unnumbered(), "T38");
            }
            SegOp::Entrain => {
                let (id, head) = arena.next();
                let m = &mut this.model;
                // SAFETY: as for `enqueue`.
                let taken = unsafe { this.real.entrain(head) };
                let any = m.done.len() + m.pending.len() + m.running.len() > 0;
                assert_eq!(taken, any);
                match m.pending.last() {
                    Some(&(_, at)) => m.pending.push((id, at)),
                    None if any => m.done.push_back(id),
                    None => {}
                }
            }
            SegOp::Extract => this.extract(),
            SegOp::Run(n) => this.run(&arena, n),
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
                other.check();
            }
            SegOp::Swap => std::mem::swap(&mut this, &mut other),
        }
        this.check();
    }
    for mut pair in [this, other] {
        for _ in 0..3 {
            pair.real
                .snap_advance_accelerate(time.seq().snapshot(), time.seq());
            pair.model.advance(time);
            pair.model.accelerate(time.needs());
            pair.check();
            time.step(2);
        }
        pair.extract();
        pair.run(&arena, usize::MAX);
        assert!(pair.real.is_empty());
    }
}
