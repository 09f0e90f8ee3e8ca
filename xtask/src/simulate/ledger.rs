//! What the tree told: counts by node and grace period, and the model of what must be true.
//!
//! # What is counted as what
//! A write of a node's word is told before what it was for, so writes wait in `pending` until an event says: `Armed`,
//! `Reported` and `Ended` make them the grace period's, `Online` and `Offline` make them the registry's.
//!
//! # The model
//! Sections carry the clock's time of their beginning, and the set of the open ones is ordered. One look at the oldest
//! says whether a grace period, a cookie or a callback comes too early.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use rcu_core::cpu::Slot;
use rcu_tree::{Event, Lane, Trace};

use super::options::Case;

/// Levels of the tallest tree.
pub(super) const LEVELS: usize = 4;
/// A node's writes in a grace period beyond one for each child: room for its start and its end.
const BEYOND_FANOUT: u32 = 2;

/// What one grace period cost, with the pause before it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Period {
    /// Slots that took part when the tree was armed.
    pub(crate) online: u32,
    /// Writes of nodes for the grace period, by level, the root's first.
    pub(crate) writes: [u64; LEVELS],
    /// Writes of nodes because a slot came or went, by level.
    pub(crate) registry: [u64; LEVELS],
    /// The most writes of one node for the grace period: among leaves, among the others.
    pub(crate) most_leaf: u32,
    pub(crate) most_inner: u32,
    /// The most writes of one leaf, those for coming and going included.
    pub(crate) most_with_moves: u32,
    /// Words of slots that the scan read.
    pub(crate) slot_reads: u64,
    /// Nodes that the scan looked at.
    pub(crate) node_reads: u64,
    /// Slots credited.
    pub(crate) reports: u64,
    pub(crate) wakeups: u64,
    pub(crate) came: u32,
    pub(crate) went: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct NodeCount {
    /// Writes for the grace period.
    writes: u32,
    /// Writes because slots came and went.
    registry: u32,
    /// The same since the beginning of all.
    registry_ever: u32,
    /// How many slots below came and went: leaves only.
    moves: u32,
}

/// The listener.
#[derive(Debug)]
pub(super) struct Ledger {
    levels: usize,
    /// Children of a node, by level.
    fanouts: [u32; LEVELS],
    fanout_leaf: u32,
    /// Index in `nodes` of each level's first.
    first: [usize; LEVELS],
    nodes: RefCell<Vec<NodeCount>>,
    pending: RefCell<Vec<(usize, usize)>>,
    period: RefCell<Period>,
    periods: RefCell<Vec<Period>>,
    online: Cell<u32>,
    clock: Cell<u64>,
    /// When the sections that are open began.
    open: RefCell<BTreeSet<u64>>,
    /// When the grace period in progress, if any, was started and armed.
    started: Cell<Option<u64>>,
    armed: Cell<Option<u64>>,
    callbacks_run: Cell<u64>,
    fault: RefCell<Option<String>>,
    broken: RefCell<Option<String>>,
}

impl Ledger {
    pub(super) fn new(case: &Case) -> Self {
        let mut counts = vec![case.slots.div_ceil(case.fanout_leaf)];
        while counts[counts.len() - 1] > 1 {
            counts.push(counts[counts.len() - 1].div_ceil(case.fanout));
        }
        counts.reverse();
        let levels = counts.len();
        let mut first = [0; LEVELS];
        let mut nr_nodes = 0;
        for (level, count) in counts.iter().enumerate() {
            first[level] = nr_nodes;
            nr_nodes += *count as usize;
        }
        let mut fanouts = [case.fanout; LEVELS];
        fanouts[levels - 1] = case.fanout_leaf;
        Self {
            levels,
            fanouts,
            fanout_leaf: case.fanout_leaf,
            first,
            nodes: RefCell::new(vec![NodeCount::default(); nr_nodes]),
            pending: RefCell::default(),
            period: RefCell::default(),
            periods: RefCell::default(),
            online: Cell::new(0),
            clock: Cell::new(0),
            open: RefCell::default(),
            started: Cell::new(None),
            armed: Cell::new(None),
            callbacks_run: Cell::new(0),
            fault: RefCell::default(),
            broken: RefCell::default(),
        }
    }

    /// Forgets what was counted: the machine is up, the grace periods that count begin.
    pub(super) fn begin(&self) -> Period {
        self.settle(|count| &mut count.writes, |period| &mut period.writes);
        for node in self.nodes.borrow_mut().iter_mut() {
            *node = NodeCount {
                registry_ever: node.registry_ever + node.registry,
                ..NodeCount::default()
            };
        }
        self.periods.take();
        self.period.take()
    }

    /// One action further: its time.
    pub(super) fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    pub(super) fn enter(&self, now: u64) {
        self.open.borrow_mut().insert(now);
    }

    pub(super) fn leave(&self, began: u64) {
        self.open.borrow_mut().remove(&began);
    }

    /// Whether no section is open that began before `time`.
    pub(super) fn passed(&self, time: u64) -> bool {
        self.open
            .borrow()
            .first()
            .is_none_or(|oldest| *oldest >= time)
    }

    pub(super) fn nr_ended(&self) -> usize {
        self.periods.borrow().len()
    }

    pub(super) fn callbacks_run(&self) -> u64 {
        self.callbacks_run.get()
    }

    /// A callback ran that was queued at `called`; zero if it was not queued.
    pub(super) fn ran(&self, called: u64) {
        if called == 0 {
            self.accuse("a callback ran that was not queued");
        } else if !self.passed(called) {
            self.accuse("a callback ran while a section was open that began before it was queued");
        }
        self.callbacks_run.set(self.callbacks_run.get() + 1);
    }

    /// Judges what `drive` answered: a grace period may be left in progress only for a section that it waits for.
    pub(super) fn driven(&self, in_the_way: bool) {
        match (in_the_way, self.armed.get()) {
            (true, Some(armed)) if self.passed(armed) => {
                self.accuse("a grace period waits for sections that began after it was armed");
            }
            (true, None) => self.accuse("somebody is said to be in the way of no grace period"),
            (false, Some(_)) => {
                self.accuse("a grace period is left alone, and nobody is in the way")
            }
            _ => {}
        }
    }

    /// Notes the first thing that is wrong. It cannot be a panic: a tree contains those of callbacks.
    pub(super) fn accuse(&self, what: &str) {
        let mut fault = self.fault.borrow_mut();
        if fault.is_none() {
            *fault = Some(format!(
                "{what} (grace period {}, action {})",
                self.nr_ended() + 1,
                self.clock.get()
            ));
        }
    }

    pub(super) fn take_fault(&self) -> Option<String> {
        self.fault.take()
    }

    /// What was counted so far.
    pub(super) fn periods(&self) -> Vec<Period> {
        self.periods.borrow().clone()
    }

    /// The first bound that was broken.
    pub(super) fn broken(&self) -> Option<String> {
        self.broken.take()
    }

    /// Says what the writes that wait were for.
    fn settle(
        &self,
        of_node: impl Fn(&mut NodeCount) -> &mut u32,
        of_period: impl Fn(&mut Period) -> &mut [u64; LEVELS],
    ) {
        let mut nodes = self.nodes.borrow_mut();
        let mut period = self.period.borrow_mut();
        for (level, index) in self.pending.borrow_mut().drain(..) {
            *of_node(&mut nodes[self.first[level] + index]) += 1;
            of_period(&mut period)[level] += 1;
        }
    }

    fn settle_period(&self) {
        self.settle(|node| &mut node.writes, |period| &mut period.writes);
    }

    fn settle_registry(&self, slot: Slot) {
        self.settle(|node| &mut node.registry, |period| &mut period.registry);
        let leaf = self.first[self.levels - 1] + slot.index() / self.fanout_leaf as usize;
        self.nodes.borrow_mut()[leaf].moves += 1;
    }

    /// A grace period has ended: judges it and opens the next page.
    fn turn(&self) {
        self.settle_period();
        let mut period = self.period.take();
        let mut nodes = self.nodes.borrow_mut();
        for level in 0..self.levels {
            let is_leaf = level + 1 == self.levels;
            let end = if is_leaf {
                nodes.len()
            } else {
                self.first[level + 1]
            };
            for (index, node) in nodes[self.first[level]..end].iter_mut().enumerate() {
                if is_leaf {
                    period.most_leaf = period.most_leaf.max(node.writes);
                    let all = node.writes + node.registry;
                    period.most_with_moves = period.most_with_moves.max(all);
                } else {
                    period.most_inner = period.most_inner.max(node.writes);
                }
                node.registry_ever += node.registry;
                self.judge(level, index, node);
                *node = NodeCount {
                    registry_ever: node.registry_ever,
                    ..NodeCount::default()
                };
            }
        }
        self.periods.borrow_mut().push(period);
    }

    fn judge(&self, level: usize, index: usize, node: &NodeCount) {
        let fanout = self.fanouts[level];
        let is_leaf = level + 1 == self.levels;
        let complaint = if node.writes > fanout + BEYOND_FANOUT {
            format!("{} times for it", node.writes)
        } else if is_leaf && node.registry > node.moves {
            format!(
                "{} times for {} slots that came or went",
                node.registry, node.moves
            )
        } else if !is_leaf && node.registry_ever > fanout {
            format!(
                "so that {} writes were for slots that came",
                node.registry_ever
            )
        } else {
            return;
        };
        let mut broken = self.broken.borrow_mut();
        if broken.is_none() {
            *broken = Some(format!(
                "in grace period {}, node {index} of level {level} (fanout {fanout}) was written {complaint}",
                self.nr_ended() + 1
            ));
        }
    }
}

/// How often a node of this fanout may be written in a grace period.
pub(super) const fn bound(fanout: u32) -> u32 {
    fanout + BEYOND_FANOUT
}

impl Trace for Ledger {
    fn event(&self, event: Event) {
        match event {
            Event::NodeWrite { level, index, .. } => {
                let at = (usize::from(level), index as usize);
                self.pending.borrow_mut().push(at);
            }
            Event::NodeRead { .. } => self.period.borrow_mut().node_reads += 1,
            Event::SlotRead(_) => self.period.borrow_mut().slot_reads += 1,
            Event::Reported(_) => {
                self.settle_period();
                self.period.borrow_mut().reports += 1;
            }
            Event::Online(slot) => {
                self.settle_registry(slot);
                self.period.borrow_mut().came += 1;
                self.online.set(self.online.get() + 1);
            }
            Event::Offline(slot) => {
                self.settle_registry(slot);
                self.period.borrow_mut().went += 1;
                self.online.set(self.online.get() - 1);
            }
            Event::Wakeup => self.period.borrow_mut().wakeups += 1,
            Event::Started(Lane::Normal, _) => self.started.set(Some(self.clock.get())),
            Event::Armed(Lane::Normal) => {
                self.settle_period();
                self.armed.set(Some(self.clock.get()));
                self.period.borrow_mut().online = self.online.get();
            }
            Event::Ended(Lane::Normal, _) => {
                match self.started.take() {
                    Some(started) if self.passed(started) => {}
                    Some(_) => {
                        self.accuse("it ended while a section was open that began before it")
                    }
                    None => self.accuse("it ended without having started"),
                }
                self.armed.set(None);
                self.turn();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcu_core::Seq;

    fn ledger() -> Ledger {
        Ledger::new(&Case {
            slots: 16,
            fanout_leaf: 4,
            fanout: 2,
            seed: 0,
            grace_periods: 1,
            readers: 0,
            churn: 0,
            drivers: 1,
        })
    }

    fn start(ledger: &Ledger) {
        ledger.tick();
        ledger.event(Event::Started(Lane::Normal, Seq::INITIAL));
        ledger.event(Event::Armed(Lane::Normal));
    }

    fn end(ledger: &Ledger) {
        ledger.tick();
        ledger.event(Event::Ended(Lane::Normal, Seq::INITIAL));
    }

    fn write(ledger: &Ledger, level: u8, times: u32) {
        (0..times).for_each(|_| ledger.event(Event::NodeWrite { level, index: 0 }));
    }

    #[test]
    fn what_comes_too_early_is_noticed() {
        let early = |act: fn(&Ledger)| {
            let ledger = ledger();
            ledger.enter(ledger.tick());
            start(&ledger);
            act(&ledger);
            ledger.take_fault().is_some()
        };
        assert!(early(end));
        assert!(early(|ledger| ledger.ran(2)));
        assert!(early(|ledger| ledger.ran(0)));
        assert!(!early(|ledger| ledger.ran(1)));
        assert!(!early(|ledger| {
            ledger.leave(1);
            end(ledger);
        }));
    }

    #[test]
    fn waiting_for_a_newcomer_is_noticed() {
        let ledger = ledger();
        let old = ledger.tick();
        ledger.enter(old);
        start(&ledger);
        ledger.driven(true);
        assert_eq!(ledger.take_fault(), None);
        ledger.leave(old);
        ledger.enter(ledger.tick());
        ledger.driven(true);
        assert!(ledger.take_fault().is_some());
        ledger.driven(false);
        assert!(ledger.take_fault().is_some(), "left in progress");
    }

    #[test]
    fn writes_count_for_what_they_were_for() {
        let ledger = ledger();
        write(&ledger, 2, 1);
        write(&ledger, 1, 1);
        ledger.event(Event::Online(Slot::new(3)));
        start(&ledger);
        write(&ledger, 2, 1);
        ledger.event(Event::Reported(Slot::new(3)));
        write(&ledger, 2, 1);
        ledger.event(Event::Offline(Slot::new(3)));
        end(&ledger);
        let periods = ledger.periods();
        assert_eq!(periods[0].writes, [0, 0, 1, 0]);
        assert_eq!(periods[0].registry, [0, 1, 2, 0]);
        assert_eq!((periods[0].most_leaf, periods[0].most_with_moves), (1, 3));
        assert_eq!(ledger.broken(), None);
    }

    #[test]
    fn one_write_too_many_breaks_a_bound_and_none_is_carried_over() {
        let broken = |writes: [u32; 2], level| {
            let ledger = ledger();
            for writes in writes {
                start(&ledger);
                write(&ledger, level, writes);
                end(&ledger);
            }
            ledger.broken()
        };
        assert_eq!(broken([6, 6], 2), None);
        assert_eq!(broken([4, 4], 0), None);
        let text = broken([6, 7], 2).expect("7 of 6");
        assert!(
            text.contains("grace period 2") && text.contains("level 2"),
            "{text}"
        );
        assert!(broken([5, 0], 1).is_some());
    }

    #[test]
    fn the_registry_has_bounds_of_its_own() {
        let ledger = ledger();
        write(&ledger, 2, 2);
        ledger.event(Event::Online(Slot::new(0)));
        end(&ledger);
        assert!(
            ledger.broken().is_some(),
            "two writes of a leaf for one slot"
        );
        for _ in 0..3 {
            start(&ledger);
            write(&ledger, 1, 1);
            ledger.event(Event::Online(Slot::new(0)));
            assert_eq!(ledger.broken(), None);
            end(&ledger);
        }
        assert!(
            ledger.broken().is_some(),
            "two children, three writes, ever"
        );
    }
}
