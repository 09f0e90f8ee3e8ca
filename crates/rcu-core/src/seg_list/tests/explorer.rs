//! Every order of operations on one list of up to four callbacks and the sequence that it is numbered by.
//!
//! States are compared with their numbers taken relative to the sequence, so that there are finitely many, and each is
//! visited once. The code is the production code, on a list that is put into each state anew.

use super::super::*;
use std::collections::{HashSet, VecDeque};
use std::vec::Vec;

const MOST: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A grace period starts, or ends.
    Pass,
    Enqueue,
    /// A barrier's head.
    Entrain,
    Advance,
    /// So many starts and ends come between the two looks at the sequence.
    Number(usize),
    Extract,
    /// Runs the first of the batch.
    Finish,
    PutBack,
    /// The slot goes offline: everything moves to another list.
    Merge,
}

/// A list, the batch that was taken out of it, and what the callbacks wait for, the oldest first.
#[derive(Clone, Debug)]
struct State {
    seq: Seq,
    lengths: [usize; NR],
    cookies: [Cookie; 2],
    batch: usize,
    /// The cookie from right before a callback was queued; of a barrier's head, that of the one before it.
    calls: Vec<Cookie>,
}

impl State {
    fn first() -> Self {
        Self {
            seq: Seq::INITIAL,
            lengths: [0; NR],
            cookies: [Cookie::from_raw(0); 2],
            batch: 0,
            calls: Vec::new(),
        }
    }

    /// Everything relative to the sequence.
    fn key(&self) -> Vec<u8> {
        let idle = self.seq.raw() & !3;
        let ahead = |cookie: Cookie| match cookie.raw().wrapping_sub(idle) {
            distance if distance > usize::MAX / 2 => 0,
            distance => (distance >> 2) as u8,
        };
        let mut key = std::vec![(self.seq.raw() & 3) as u8, self.batch as u8];
        key.extend(self.lengths.map(|n| n as u8));
        for (i, &cookie) in self.cookies.iter().enumerate() {
            key.push(if self.lengths[i + 1] > 0 {
                ahead(cookie)
            } else {
                0
            });
        }
        key.extend(self.calls.iter().map(|&cookie| ahead(cookie)));
        key
    }
}

fn pass(seq: Seq) -> Seq {
    if seq.in_progress() {
        seq.ended()
    } else {
        seq.started()
    }
}

struct World<'h> {
    heads: &'h [Head],
    seq: core::cell::Cell<Seq>,
    list: SegList,
    batch: CbList,
    calls: Vec<Cookie>,
    /// How many have run since the world was put into its state.
    ran: usize,
}

impl<'h> World<'h> {
    fn at(heads: &'h [Head], state: &State) -> Self {
        let mut next = heads.iter();
        let mut some = |n: usize| {
            let mut list = CbList::new();
            for head in next.by_ref().take(n) {
                // SAFETY: the head outlives the list; the one that it was on is forgotten; this is one thread.
                unsafe { list.push_back(NonNull::from(head)) };
            }
            list
        };
        let batch = some(state.batch);
        let segments = state.lengths.map(&mut some);
        let list = SegList {
            len: batch.len() + segments.iter().map(CbList::len).sum::<usize>(),
            segments,
            cookies: state.cookies.map(FullCookie::of_one_sequence),
        };
        Self {
            heads,
            seq: core::cell::Cell::new(state.seq),
            list,
            batch,
            calls: state.calls.clone(),
            ran: 0,
        }
    }

    fn state(&self) -> State {
        State {
            seq: self.seq.get(),
            lengths: self.list.seglens(),
            cookies: self.list.cookies.map(FullCookie::normal),
            batch: self.batch.len(),
            calls: self.calls.clone(),
        }
    }

    /// The head that comes behind all.
    fn free(&self) -> NonNull<Head> {
        NonNull::from(&self.heads[self.ran + self.calls.len()])
    }

    fn pass(&self) {
        self.seq.set(pass(self.seq.get()));
    }

    /// False if the step is not possible.
    fn step(&mut self, step: Step) -> bool {
        match step {
            Step::Pass => self.pass(),
            Step::Enqueue | Step::Entrain if self.calls.len() == MOST => return false,
            Step::Enqueue => {
                let head = self.free();
                self.calls.push(self.seq.get().snapshot());
                // SAFETY: as in `at`.
                unsafe { self.list.enqueue(head) };
            }
            Step::Entrain => {
                let Some(&last) = self.calls.last() else {
                    let head = self.free();
                    // SAFETY: as in `at`.
                    assert!(!unsafe { self.list.entrain(head) }, "S5: of an empty list");
                    return false;
                };
                let head = self.free();
                self.calls.push(last);
                // SAFETY: as in `at`.
                assert!(unsafe { self.list.entrain(head) }, "S5");
            }
            Step::Advance => self.list.advance(self.seq.get()),
            Step::Number(between) => {
                let looks = core::cell::Cell::new(0);
                let seq = &self.seq;
                let look = || {
                    looks.set(looks.get() + 1);
                    if looks.get() == 2 {
                        (0..between).for_each(|_| seq.set(pass(seq.get())));
                    }
                    seq.get()
                };
                let asked = self.list.number(|| look().snapshot(), look);
                assert!(!self.list.has_unnumbered(), "T38: left without a number");
                let waits = self.list.last_cookie();
                assert!(
                    asked.is_none() || asked == waits,
                    "S4: what was asked for is what is waited for"
                );
            }
            Step::Extract if self.batch.is_empty() && self.list.in_flight() == 0 => {
                self.batch = self.list.extract_done();
            }
            Step::Finish if !self.batch.is_empty() => {
                let first = self.batch.pop_front();
                assert_eq!(
                    first,
                    Some(NonNull::from(&self.heads[self.ran])),
                    "I1: out of order"
                );
                self.ran += 1;
                self.list.finished(1);
                let cookie = self.calls.remove(0);
                assert!(self.seq.get().is_done(cookie), "R5: ran early");
            }
            Step::PutBack if !self.batch.is_empty() => {
                self.list.insert_done(self.batch.take());
            }
            Step::Merge if self.batch.is_empty() => {
                let mut other = SegList::new();
                other.merge(&mut self.list);
                assert!(self.list.is_empty(), "S7");
                self.list = other;
            }
            Step::Extract | Step::Finish | Step::PutBack | Step::Merge => return false,
        }
        true
    }

    /// In every state.
    fn check(&self) {
        let lengths = self.list.seglens();
        let linked: usize = lengths.iter().sum();
        assert_eq!(self.list.len(), linked + self.batch.len(), "S8");
        assert_eq!(self.list.len(), self.calls.len(), "S8");
        assert!(lengths[WAIT] > 0 || lengths[NEXT_READY] == 0, "S1: a gap");
        let ready = self.batch.len() + lengths[DONE];
        for &cookie in &self.calls[..ready] {
            assert!(self.seq.get().is_done(cookie), "R5: ready early");
        }
        let of = |segment: usize, cookie: Cookie| {
            let from: usize = self.batch.len() + lengths[..segment].iter().sum::<usize>();
            let its = &self.calls[from..from + lengths[segment]];
            assert!(
                its.iter().all(|c| c.is_no_later_than(cookie)),
                "S4: numbered too early"
            );
        };
        of(WAIT, self.list.cookies[0].normal());
        of(NEXT_READY, self.list.cookies[1].normal());
    }

    /// From any state, everything runs after two grace periods at the most.
    fn check_end(&mut self) {
        self.step(Step::PutBack);
        for _ in 0..3 {
            self.step(Step::Number(0));
            self.pass();
            self.pass();
        }
        self.step(Step::Advance);
        self.step(Step::Extract);
        while self.step(Step::Finish) {}
        assert!(self.list.is_empty(), "T38: something never runs");
    }
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of thousands of steps")]
fn s1_s8_t38_every_order_of_operations() {
    let heads: [Head; MOST + 1] = core::array::from_fn(|_| Head::new());
    let steps = [
        Step::Pass,
        Step::Enqueue,
        Step::Entrain,
        Step::Advance,
        Step::Extract,
        Step::Finish,
        Step::PutBack,
        Step::Merge,
    ];
    let steps = steps.into_iter().chain((0..=4).map(Step::Number));
    let mut known = HashSet::from([State::first().key()]);
    let mut queue = VecDeque::from([State::first()]);
    let (mut states, mut taken) = (0, 0);
    while let Some(state) = queue.pop_front() {
        states += 1;
        World::at(&heads, &state).check_end();
        for step in steps.clone() {
            let mut world = World::at(&heads, &state);
            if !world.step(step) {
                continue;
            }
            taken += 1;
            world.check();
            let next = world.state();
            if known.insert(next.key()) {
                queue.push_back(next);
            }
        }
    }
    std::println!("{states} states, {taken} steps");
    assert!(states > 1_000, "the steps lead nowhere");
}
