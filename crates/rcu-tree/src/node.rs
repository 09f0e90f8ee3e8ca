//! The tree of nodes that combines what slots report, and its geometry.
//!
//! Source: Linux `rcu_init_geometry` and `rcu_report_qs_rnp` (G1, G5); why atomics instead of a lock a node: a
//! report is one read-modify-write, and whoever empties a word goes up, so no word is written more often than its
//! fanout in a grace period, and nobody waits. The scan reports what it finds under one leaf at once.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `online`, leaf | bit i: slot first+i takes part | its owner |
//! | `online`, inner | bit i: child i ever had a slot; sticky | owners, at first registration |
//! | `waiting[l]` | bits the grace period in progress of lane l still waits for | lane l's driver at start; reporters clear |
//!
//! # Invariants
//! - I1. An inner bit of `waiting` is set before the child's word is; so the root is not empty before every child reported.
//! - I2. A report only comes from, or about, a slot seen outside since the lane's grace period started; clearing a bit that
//!   a *later* grace period set is right too, because the slot is outside now (T37).
//! - I3. In a grace period of a lane, its word of a node is written once when armed and once for each bit at the most: a
//!   bit that is clear is not cleared again. Whoever finds it clear while the driver is about to set it has nothing to
//!   report: the driver finds the slot outside.
//! - I4. `online` is written only to change it: a newcomer leaves sticky bits alone that are set. So coming and going
//!   write a leaf once each, and an inner node no more often than it has children, ever.
//!
//! # Orderings
//! - P3 goes up the tree by AcqRel: whoever empties a word has acquired all reports to it and releases them to the parent.
//! - P2 where a newcomer finds a sticky bit set: it reads the bit before its full fence, so a driver whose fence comes
//!   later reads that bit too. It looks at every level, since whoever set one bit may not have set the next yet.

use crate::trace::{Event, Lane, Trace};
use core::fmt;
use rcu_core::cpu::Slot;
use rcu_core::fence;
use rcu_core::sync::atomic::{AtomicU64, Ordering};

/// Slots under one leaf by default.
pub const FANOUT_LEAF: usize = 16;
/// Children of an inner node by default, and the most there can be.
pub const FANOUT: usize = 64;
/// Levels at the most: 16 · 64³ slots by default.
const MAX_LEVELS: usize = 4;

/// The shape of a tree: how many nodes on which level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    nr_slots: usize,
    fanout_leaf: usize,
    fanout: usize,
    levels: usize,
    /// Index of each level's first node; the root's level first.
    first: [usize; MAX_LEVELS],
    nr_nodes: usize,
}

impl Geometry {
    /// The default shape for `nr_slots`.
    ///
    /// # Panics
    /// If `nr_slots` is zero or above 4,194,304.
    #[must_use]
    pub const fn new(nr_slots: usize) -> Self {
        Self::with_fanout(nr_slots, FANOUT_LEAF, FANOUT)
    }

    /// A shape with other fanouts, for tests and unusual machines.
    ///
    /// # Panics
    /// If a fanout is not within 2 to 64, or `nr_slots` is zero or more than four levels hold.
    #[must_use]
    #[doc(alias = "rcu_init_geometry")]
    pub const fn with_fanout(nr_slots: usize, fanout_leaf: usize, fanout: usize) -> Self {
        assert!(nr_slots > 0, "a tree needs a slot");
        assert!(
            fanout_leaf >= 2 && fanout_leaf <= 64,
            "leaf fanout not within 2 to 64"
        );
        assert!(fanout >= 2 && fanout <= 64, "fanout not within 2 to 64");
        let mut counts = [0; MAX_LEVELS];
        counts[0] = nr_slots.div_ceil(fanout_leaf);
        let mut levels = 1;
        while counts[levels - 1] > 1 {
            assert!(levels < MAX_LEVELS, "more slots than four levels hold");
            counts[levels] = counts[levels - 1].div_ceil(fanout);
            levels += 1;
        }
        let mut first = [0; MAX_LEVELS];
        let mut nr_nodes = 0;
        let mut level = 0;
        while level < levels {
            first[level] = nr_nodes;
            nr_nodes += counts[levels - 1 - level];
            level += 1;
        }
        Self {
            nr_slots,
            fanout_leaf,
            fanout,
            levels,
            first,
            nr_nodes,
        }
    }

    /// How many nodes the tree has: the length of the slice to hand to the tree.
    #[must_use]
    pub const fn nr_nodes(&self) -> usize {
        self.nr_nodes
    }

    /// How many slots the tree has.
    #[must_use]
    pub const fn nr_slots(&self) -> usize {
        self.nr_slots
    }

    /// How many levels the tree has.
    #[must_use]
    pub const fn levels(&self) -> usize {
        self.levels
    }

    const fn is_leaf_level(&self, level: usize) -> bool {
        level + 1 == self.levels
    }
}

/// One node: its words on a line of their own.
#[repr(align(128))]
#[doc(alias = "rcu_node")]
pub struct Node {
    online: AtomicU64,
    waiting: [AtomicU64; Lane::ALL.len()],
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    rcu_core::const_fn! {
        /// A node with nobody below it.
        #[must_use]
        pub const fn new() -> Self {
            Self { online: AtomicU64::new(0), waiting: [AtomicU64::new(0), AtomicU64::new(0)] }
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            // ORDERING: Relaxed: a report for people.
            .field(
                "online",
                &format_args!("{:#x}", self.online.load(Ordering::Relaxed)),
            )
            .field(
                "waiting",
                // ORDERING: Relaxed: a report for people.
                &Lane::ALL.map(|l| self.waiting[l.index()].load(Ordering::Relaxed)),
            )
            .finish()
    }
}

/// The nodes of one tree, breadth first, root at 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nodes<'a> {
    geometry: Geometry,
    nodes: &'a [Node],
}

/// P3 (up the tree): what a report is worth, and its mutants.
#[inline(always)]
fn report_order() -> Ordering {
    match (
        rcu_core::weakened!("p3_report"),
        rcu_core::weakened!("p3_up"),
    ) {
        (true, _) => Ordering::Acquire,
        (_, true) => Ordering::Release,
        _ => Ordering::AcqRel,
    }
}

/// Tells `trace` that a word of a node was written.
#[inline]
fn written(trace: &impl Trace, level: usize, index: usize) {
    trace.event(Event::NodeWrite {
        level: level as u8,
        index: index as u32,
    });
}

impl<'a> Nodes<'a> {
    /// The tree of this shape over `nodes`.
    ///
    /// # Panics
    /// If `nodes` has not [`Geometry::nr_nodes`] elements.
    pub(crate) const fn new(geometry: Geometry, nodes: &'a [Node]) -> Self {
        assert!(
            nodes.len() == geometry.nr_nodes,
            "not as many nodes as the geometry needs"
        );
        Self { geometry, nodes }
    }

    pub(crate) const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn node(&self, level: usize, index: usize) -> &Node {
        &self.nodes[self.geometry.first[level] + index]
    }

    /// Publishes that `slot` takes part; its owner may enter when this has returned.
    pub(crate) fn set_online(&self, slot: Slot, trace: &impl Trace) {
        let g = &self.geometry;
        let mut level = g.levels - 1;
        let mut index = slot.index() / g.fanout_leaf;
        let mut bit = 1u64 << (slot.index() % g.fanout_leaf);
        loop {
            let online = &self.node(level, index).online;
            // ORDERING: P2 (newcomer's read of a sticky bit): ordered before its first section by the full fence below;
            // whoever set the bit comes before that fence too.
            if online.load(Ordering::Acquire) & bit == 0 {
                // ORDERING: P2 (newcomer's store): ordered before its first section by the full fence below;
                // the driver reads after `heavy`.
                online.fetch_or(bit, Ordering::Release);
                written(trace, level, index);
            }
            if level == 0 {
                break;
            }
            level -= 1;
            bit = 1u64 << (index % g.fanout);
            index /= g.fanout;
        }
        fence::full();
        trace.event(Event::Online(slot));
    }

    /// Ends the part of `slot`, which is outside, and reports it.
    pub(crate) fn set_offline(&self, slot: Slot, trace: &impl Trace) {
        let g = &self.geometry;
        let leaf = self.node(g.levels - 1, slot.index() / g.fanout_leaf);
        let bit = 1u64 << (slot.index() % g.fanout_leaf);
        // G19: report before the bit is cleared. ORDERING: P3 (exit side) is in `report`.
        for lane in Lane::ALL {
            self.report(lane, slot, trace);
        }
        // ORDERING: P3 (exit side): a driver that no longer finds the slot comes after its last section.
        leaf.online.fetch_and(!bit, Ordering::Release);
        written(trace, g.levels - 1, slot.index() / g.fanout_leaf);
        trace.event(Event::Offline(slot));
    }

    /// Arms the tree for a grace period of `lane` that has started (`heavy` included): every slot that takes part is
    /// waited for.
    pub(crate) fn arm(&self, lane: Lane, trace: &impl Trace) {
        self.arm_below(lane, 0, 0, trace);
    }

    fn arm_below(&self, lane: Lane, level: usize, index: usize, trace: &impl Trace) {
        let node = self.node(level, index);
        // ORDERING: P2 (driver's read of the registry, after `heavy`); P3: a slot that is gone has released its sections.
        let online = node.online.load(Ordering::Acquire);
        // ORDERING: P3 (up the tree): armed before the children are (I1), by the driver alone.
        node.waiting[lane.index()].store(online, Ordering::Release);
        written(trace, level, index);
        if self.geometry.is_leaf_level(level) {
            if online == 0 {
                self.go_up(lane, level, index, trace);
            }
            return;
        }
        for child in bits(online) {
            self.arm_below(lane, level + 1, index * self.geometry.fanout + child, trace);
        }
    }

    /// Whether the grace period of `lane` waits for no slot any more.
    pub(crate) fn is_clear(&self, lane: Lane) -> bool {
        // ORDERING: P3 (root): the driver comes after every report.
        self.nodes[0].waiting[lane.index()].load(Ordering::Acquire) == 0
    }

    /// Whether the grace period of `lane` still waits for `slot`. Means something while the lane's machine is locked, and to people.
    pub(crate) fn is_waiting_for(&self, lane: Lane, slot: Slot) -> bool {
        let g = &self.geometry;
        let leaf = self.node(g.levels - 1, slot.index() / g.fanout_leaf);
        // ORDERING: Relaxed: set under the machine's lock, which the caller holds; cleared by, or about, the slot of the
        // caller, who has been inside for longer than it looks.
        let waiting = leaf.waiting[lane.index()].load(Ordering::Relaxed);
        waiting & (1u64 << (slot.index() % g.fanout_leaf)) != 0
    }

    /// Calls `passed` for each slot that `lane` still waits for, and reports those for which it says yes.
    pub(crate) fn scan(
        &self,
        lane: Lane,
        trace: &impl Trace,
        mut passed: impl FnMut(Slot) -> bool,
    ) {
        self.scan_below(lane, 0, 0, trace, &mut passed);
    }

    fn scan_below(
        &self,
        lane: Lane,
        level: usize,
        index: usize,
        trace: &impl Trace,
        passed: &mut impl FnMut(Slot) -> bool,
    ) {
        // ORDERING: Relaxed: a hint; reports are made by read-modify-writes.
        let waiting = self.node(level, index).waiting[lane.index()].load(Ordering::Relaxed);
        trace.event(Event::NodeRead {
            level: level as u8,
            index: index as u32,
        });
        if !self.geometry.is_leaf_level(level) {
            for child in bits(waiting) {
                let child = index * self.geometry.fanout + child;
                self.scan_below(lane, level + 1, child, trace, passed);
            }
            return;
        }
        let slot = |bit| Slot::new((index * self.geometry.fanout_leaf + bit) as u32);
        let mut through = 0;
        for bit in bits(waiting) {
            trace.event(Event::SlotRead(slot(bit)));
            if passed(slot(bit)) {
                through |= 1u64 << bit;
            }
        }
        self.clear(lane, level, index, through, trace);
        bits(through).for_each(|bit| trace.event(Event::Reported(slot(bit))));
    }

    /// Reports that `slot` was outside since the grace period in progress of `lane`, if any, started.
    #[doc(alias = "rcu_report_qs_rnp")]
    pub(crate) fn report(&self, lane: Lane, slot: Slot, trace: &impl Trace) {
        let g = &self.geometry;
        let index = slot.index() / g.fanout_leaf;
        let bit = 1u64 << (slot.index() % g.fanout_leaf);
        if self.clear(lane, g.levels - 1, index, bit, trace) {
            trace.event(Event::Reported(slot));
        }
    }

    /// Clears bits, and what that empties above them. False if all were clear (I3).
    fn clear(&self, lane: Lane, level: usize, index: usize, gone: u64, trace: &impl Trace) -> bool {
        let word = &self.node(level, index).waiting[lane.index()];
        // ORDERING: Relaxed: I3; a bit that is not there is not waited for.
        if word.load(Ordering::Relaxed) & gone == 0 {
            return false;
        }
        // ORDERING: P3 (up the tree): AcqRel, so that whoever empties the word carries all reports on.
        let old = word.fetch_and(!gone, report_order());
        written(trace, level, index);
        if old != 0 && (old & !gone == 0 || rcu_core::weakened!("g5")) {
            self.go_up(lane, level, index, trace);
        }
        old & gone != 0
    }

    fn go_up(&self, lane: Lane, level: usize, index: usize, trace: &impl Trace) {
        if level > 0 {
            let fanout = self.geometry.fanout;
            let bit = 1u64 << (index % fanout);
            self.clear(lane, level - 1, index / fanout, bit, trace);
        }
    }

    /// Whether a slot other than `own` takes part. Call after a full fence that follows the start: a slot that is not
    /// seen here registers after that fence (P2, newcomer).
    pub(crate) fn any_online_but(&self, own: Option<Slot>) -> bool {
        self.any_below(0, 0, own)
    }

    fn any_below(&self, level: usize, index: usize, own: Option<Slot>) -> bool {
        // ORDERING: P2 (driver's read of the registry, after its full fence).
        let online = self.node(level, index).online.load(Ordering::Acquire);
        bits(online).any(|bit| {
            if self.geometry.is_leaf_level(level) {
                let slot = Slot::new((index * self.geometry.fanout_leaf + bit) as u32);
                Some(slot) != own
            } else {
                self.any_below(level + 1, index * self.geometry.fanout + bit, own)
            }
        })
    }

    /// Forgets every slot and every report, in the child of a fork.
    pub(crate) fn reset_after_fork(&self) {
        for node in self.nodes {
            // ORDERING: Relaxed: there is one thread.
            node.online.store(0, Ordering::Relaxed);
            for waiting in &node.waiting {
                // ORDERING: Relaxed: as above.
                waiting.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Every slot that takes part now.
    pub(crate) fn for_each_online(&self, mut f: impl FnMut(Slot)) {
        self.online_below(0, 0, &mut f);
    }

    fn online_below(&self, level: usize, index: usize, f: &mut impl FnMut(Slot)) {
        // ORDERING: P8 (Acquire meets the owner's registration): what it queued before is found in its lists.
        let online = self.node(level, index).online.load(Ordering::Acquire);
        for bit in bits(online) {
            if self.geometry.is_leaf_level(level) {
                f(Slot::new((index * self.geometry.fanout_leaf + bit) as u32));
            } else {
                self.online_below(level + 1, index * self.geometry.fanout + bit, f);
            }
        }
    }
}

/// The set bits of `word`, lowest first.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros() as usize);
        word &= word.wrapping_sub(1);
        bit
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::trace::NoTrace;

    /// For who puts nodes into a state (`machine::explorer`).
    impl Node {
        fn all(&self) -> [&AtomicU64; 3] {
            [&self.online, &self.waiting[0], &self.waiting[1]]
        }

        pub(crate) fn words(&self) -> [u64; 3] {
            self.all().map(|word| word.load(Ordering::Relaxed))
        }

        pub(crate) fn set_words(&self, words: [u64; 3]) {
            for (word, raw) in self.all().into_iter().zip(words) {
                word.store(raw, Ordering::Relaxed);
            }
        }
    }

    fn nodes(geometry: Geometry) -> Nodes<'static> {
        let nodes: Vec<Node> = (0..geometry.nr_nodes()).map(|_| Node::new()).collect();
        Nodes::new(geometry, Box::leak(nodes.into_boxed_slice()))
    }

    #[test]
    fn g1_geometry_counts_by_ceiling() {
        assert_eq!(Geometry::new(1).nr_nodes(), 1);
        assert_eq!(Geometry::new(16).nr_nodes(), 1);
        assert_eq!(Geometry::new(17).nr_nodes(), 1 + 2);
        assert_eq!(Geometry::new(1024).nr_nodes(), 1 + 64);
        assert_eq!(Geometry::new(65536).nr_nodes(), 1 + 64 + 4096);
        let small = Geometry::with_fanout(16, 2, 2);
        assert_eq!((small.levels(), small.nr_nodes()), (4, 1 + 2 + 4 + 8));
    }

    #[test]
    fn g5_the_root_is_clear_when_and_only_when_all_have_reported() {
        for (n, leaf, inner) in [(1, 2, 2), (7, 2, 3), (16, 2, 2), (27, 3, 3), (200, 16, 64)] {
            let tree = nodes(Geometry::with_fanout(n, leaf, inner));
            let slots: Vec<Slot> = (0..n as u32).step_by(3).map(Slot::new).collect();
            for &slot in &slots {
                tree.set_online(slot, &NoTrace);
            }
            for _ in 0..2 {
                tree.arm(Lane::Normal, &NoTrace);
                for (i, &slot) in slots.iter().enumerate() {
                    assert!(!tree.is_clear(Lane::Normal), "{n} slots, before report {i}");
                    tree.report(Lane::Normal, slot, &NoTrace);
                    tree.report(Lane::Normal, slot, &NoTrace);
                }
                assert!(tree.is_clear(Lane::Normal));
            }
        }
    }

    #[test]
    fn g17_the_lanes_wait_each_for_itself() {
        let tree = nodes(Geometry::with_fanout(16, 2, 2));
        let (slot, other) = (Slot::new(5), Slot::new(11));
        tree.set_online(slot, &NoTrace);
        tree.set_online(other, &NoTrace);
        tree.arm(Lane::Normal, &NoTrace);
        assert!(tree.is_clear(Lane::Expedited));
        tree.report(Lane::Normal, slot, &NoTrace);
        tree.arm(Lane::Expedited, &NoTrace);
        assert!(!tree.is_waiting_for(Lane::Normal, slot));
        assert!(tree.is_waiting_for(Lane::Expedited, slot));
        tree.set_offline(other, &NoTrace);
        assert!(tree.is_clear(Lane::Normal) && !tree.is_clear(Lane::Expedited));
        tree.report(Lane::Expedited, slot, &NoTrace);
        assert!(tree.is_clear(Lane::Expedited));
    }

    #[test]
    fn only_other_slots_count_as_others() {
        let tree = nodes(Geometry::with_fanout(16, 2, 2));
        assert!(!tree.any_online_but(None));
        tree.set_online(Slot::new(5), &NoTrace);
        assert!(tree.any_online_but(None) && tree.any_online_but(Some(Slot::new(4))));
        assert!(!tree.any_online_but(Some(Slot::new(5))));
        tree.set_online(Slot::new(12), &NoTrace);
        assert!(tree.any_online_but(Some(Slot::new(5))));
        tree.set_offline(Slot::new(12), &NoTrace);
        assert!(!tree.any_online_but(Some(Slot::new(5))));
    }

    /// Which words were written, in order.
    #[derive(Default)]
    struct Writes(core::cell::RefCell<Vec<(u8, u32)>>);

    impl Trace for Writes {
        fn event(&self, event: Event) {
            if let Event::NodeWrite { level, index, .. } = event {
                self.0.borrow_mut().push((level, index));
            }
        }
    }

    #[test]
    fn i3_i4_words_are_written_only_to_change_them() {
        let tree = nodes(Geometry::with_fanout(16, 4, 2));
        let writes = Writes::default();
        let wrote = |what: &dyn Fn(&Writes), expected: &[(u8, u32)]| {
            what(&writes);
            assert_eq!(writes.0.take(), expected);
        };
        let slot = Slot::new;
        wrote(&|w| tree.set_online(slot(9), w), &[(2, 2), (1, 1), (0, 0)]);
        wrote(&|w| tree.set_online(slot(10), w), &[(2, 2)]);
        wrote(&|w| tree.set_online(slot(14), w), &[(2, 3), (1, 1)]);
        wrote(
            &|w| tree.arm(Lane::Normal, w),
            &[(0, 0), (1, 1), (2, 2), (2, 3)],
        );
        wrote(
            &|w| tree.scan(Lane::Normal, w, |s| s != slot(14)),
            &[(2, 2), (1, 1)],
        );
        wrote(&|w| tree.report(Lane::Normal, slot(9), w), &[]);
        wrote(&|w| tree.set_offline(slot(10), w), &[(2, 2)]);
        assert!(!tree.is_clear(Lane::Normal));
        wrote(
            &|w| tree.set_offline(slot(14), w),
            &[(2, 3), (1, 1), (0, 0), (2, 3)],
        );
        assert!(tree.is_clear(Lane::Normal));
    }

    #[test]
    fn an_empty_tree_and_an_emptied_leaf_wait_for_nobody() {
        let tree = nodes(Geometry::with_fanout(16, 2, 2));
        tree.arm(Lane::Normal, &NoTrace);
        assert!(tree.is_clear(Lane::Normal));
        tree.set_online(Slot::new(5), &NoTrace);
        tree.set_online(Slot::new(11), &NoTrace);
        tree.set_offline(Slot::new(5), &NoTrace);
        tree.arm(Lane::Normal, &NoTrace);
        assert!(!tree.is_clear(Lane::Normal));
        tree.set_offline(Slot::new(11), &NoTrace);
        assert!(tree.is_clear(Lane::Normal), "G19: going offline reports");
        tree.arm(Lane::Normal, &NoTrace);
        assert!(tree.is_clear(Lane::Normal));
    }
}
