//! Strings of operations over the front end, and what must be true after each: for the properties and for the fuzzer.

use crate::common::{Books, Defer, Failure, Front, Hand, Item, Ledger, ManualRcu, Pages, front};
use arbitrary::{Arbitrary, Unstructured};
use kvfree::{Config, DeferFree};
use pagealloc::Attempt;
use rcu_core::Rcu;
use std::mem::ManuallyDrop;

pub(crate) const SLOTS: usize = 3;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Alloc {
        large: bool,
    },
    /// Two arguments.
    Retire(usize),
    RetireMightsleep(usize),
    TryRetire(usize),
    /// With a function that drops it.
    RetireWith(usize),
    /// By its head, with a function of its own.
    RetireHead(usize),
    /// Allocates so many and retires them with two arguments.
    Burst {
        objects: usize,
        large: bool,
    },
    Tick,
    /// Half a grace period.
    Step,
    Advance,
    Enter,
    Exit,
    Barrier,
    /// The thread of this slot ends.
    Offline,
    /// Goes on on another slot, or without one.
    Go(Option<u32>),
}

/// Objects of a burst: more than a block holds.
pub(crate) const BURST: usize = if cfg!(miri) { 20 } else { 560 };

impl<'a> Arbitrary<'a> for Op {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let kind = u.int_in_range(0..=27_u8)?;
        let n = usize::from(u.arbitrary::<u8>()?);
        Ok(match kind {
            0..6 => Self::Alloc {
                large: n.is_multiple_of(3),
            },
            6..10 => Self::Retire(n),
            10..12 => Self::RetireMightsleep(n),
            12..14 => Self::TryRetire(n),
            14 => Self::RetireWith(n),
            15 => Self::RetireHead(n),
            16 => Self::Burst {
                objects: 1 + n * 3 % BURST,
                large: n.is_multiple_of(4),
            },
            17..19 => Self::Tick,
            19..21 => Self::Step,
            21 => Self::Advance,
            22 => Self::Enter,
            23 => Self::Exit,
            24 => Self::Barrier,
            25 => Self::Offline,
            _ => Self::Go((!n.is_multiple_of(5)).then_some((n % SLOTS) as u32)),
        })
    }
}

/// One string, and the world that it is run in.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) ops: Vec<Op>,
    pub(crate) failure: Failure,
    pub(crate) defer: Defer,
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let n = usize::from(u.int_in_range(0..=60_u8)?);
        let failure = match u.int_in_range(0..=4_u8)? {
            0 => Failure::From(n),
            1 => Failure::Once(n),
            2 => Failure::Below(Attempt::MayGrow),
            _ => Failure::Never,
        };
        let defer = *u.choose(&[Defer::Never, Defer::Always, Defer::Sometimes])?;
        let mut ops = Vec::new();
        while !u.is_empty() && ops.len() < 400 {
            ops.push(u.arbitrary()?);
        }
        Ok(Self {
            ops,
            failure,
            defer,
        })
    }
}

pub(crate) struct World<'w, 'a> {
    hand: &'a Hand,
    rcu: &'a ManualRcu,
    ledger: &'a Books<'a>,
    front: &'w Front<'a>,
    items: Vec<Item>,
    /// Retired inside the section that is on: nobody may touch them.
    seen: Vec<Item>,
    /// Whether the allocator defers some by itself.
    defers: bool,
}

impl<'w, 'a> World<'w, 'a> {
    /// As a string leaves it, with its sections ended.
    pub(crate) fn after(
        ops: &[Op],
        defer: Defer,
        (hand, rcu, ledger): (&'a Hand, &'a ManualRcu, &'a Books<'a>),
        front: &'w Front<'a>,
    ) -> Self {
        let mut world = Self {
            hand,
            rcu,
            ledger,
            front,
            items: Vec::new(),
            seen: Vec::new(),
            defers: defer != Defer::Never,
        };
        for &op in ops {
            world.run(op);
        }
        while rcu.is_in_section() {
            world.run(Op::Exit);
        }
        world
    }

    fn pick(&mut self, n: usize) -> Option<Item> {
        if self.items.is_empty() {
            return None;
        }
        let item = self.items.swap_remove(n % self.items.len());
        self.ledger.retiring(item);
        if self.rcu.is_in_section() {
            self.seen.push(item);
        }
        Some(item)
    }

    fn retire(&self, item: Item) {
        self.ledger.without_freeing(|| {
            // SAFETY: the ledger's object, with its head, which the test gives up; readers only look.
            unsafe { self.front.retire(item.head(), Item::OFFSET) };
        });
    }

    pub(crate) fn run(&mut self, op: Op) {
        let outside = !self.rcu.is_in_section();
        match op {
            Op::Alloc { large } => self.items.push(self.ledger.alloc(large)),
            Op::Retire(n) => {
                if let Some(item) = self.pick(n) {
                    self.retire(item);
                }
            }
            Op::Burst { objects, large } => {
                for _ in 0..objects {
                    let item = self.ledger.alloc(large);
                    self.ledger.retiring(item);
                    self.retire(item);
                }
            }
            Op::TryRetire(n) => {
                if let Some(item) = self.pick(n) {
                    let result = self.ledger.without_freeing(|| {
                        // SAFETY: as in `retire`.
                        unsafe { self.front.try_retire(item.at) }
                    });
                    if let Err(object) = result {
                        assert_eq!(object, item.at);
                        self.ledger.refused(item);
                        self.items.push(item);
                        self.seen.retain(|&seen| seen != item);
                    }
                }
            }
            Op::RetireHead(n) => {
                if let Some(item) = self.pick(n) {
                    self.ledger.without_freeing(|| {
                        // SAFETY: as in `retire`; the function is for objects of this ledger.
                        unsafe {
                            self.front
                                .retire_head(item.head(), Ledger::<&ManualRcu>::CALLBACK, 64)
                        };
                    });
                }
            }
            Op::RetireMightsleep(n) if outside => {
                if let Some(item) = self.pick(n) {
                    self.ledger.without_calling(|| {
                        // SAFETY: as in `retire`.
                        unsafe { self.front.retire_mightsleep(item.at) };
                    });
                }
            }
            Op::RetireWith(n) if outside => {
                if let Some(item) = self.pick(n) {
                    let drop = Ledger::<&ManualRcu>::DROP;
                    // SAFETY: as in `retire`; the function is for objects of this ledger.
                    unsafe { self.front.retire_with_mightsleep(item.at, drop, 100) };
                }
            }
            Op::Barrier if outside => {
                self.front.barrier();
                assert_eq!(self.ledger.waiting(), 0, "lost, or late");
                assert_eq!(self.front.stats().objects_waiting, 0);
                assert_eq!(self.front.stats().bytes_waiting, 0);
            }
            Op::Tick if outside => {
                let left = self.front.tick();
                assert!(
                    left > 0 || self.ledger.waiting() == 0,
                    "the monitor would sleep"
                );
            }
            Op::Step => self.rcu.step(),
            Op::Advance => self.rcu.advance(),
            Op::Enter => self.rcu.enter(),
            Op::Exit if !outside => {
                self.seen.iter().for_each(|&item| self.ledger.check(item));
                // SAFETY: entered.
                unsafe { self.rcu.exit(()) };
                if !self.rcu.is_in_section() {
                    self.seen.clear();
                }
            }
            Op::Offline => self.hand.bounce(),
            Op::Go(slot) => self.hand.go(slot),
            _ => {}
        }
        self.ledger.assert_no_faults();
        // T6: counts match what waits (the allocator counts its own).
        if !self.defers && matches!(op, Op::Offline | Op::Advance | Op::Go(_)) {
            assert_eq!(self.front.stats().objects_waiting, self.ledger.waiting());
        }
    }
}

/// Runs a string and says how often pages were asked for.
pub(crate) fn run(ops: &[Op], failure: Failure, defer: Defer) -> usize {
    let (hand, pages, rcu) = (Hand::new(SLOTS), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, defer);
    let config = Config::new().ask_after_blocks(2).ask_after_bytes(1 << 20);
    // Not dropped by a panic, for a section may be on.
    let front = ManuallyDrop::new(front(&hand, &pages, &rcu, &ledger, config));
    pages.set_failure(failure);
    let mut world = World::after(ops, defer, (&hand, &rcu, &ledger), &front);
    let live = std::mem::take(&mut world.items);
    world.run(Op::Barrier);
    assert_eq!(ledger.outstanding(), live.len());
    for item in live {
        ledger.check(item);
        ledger.retiring(item);
        // SAFETY: the ledger's object, given up.
        unsafe { front.retire(item.head(), Item::OFFSET) };
    }
    let calls = pages.calls();
    drop(ManuallyDrop::into_inner(front));
    ledger.assert_no_faults();
    assert_eq!(ledger.outstanding(), 0, "dropping waits for everything");
    assert_eq!(pages.outstanding(), 0, "pages are lost");
    calls
}
