//! Whom a grace period waits for, told to people.

use super::Tree;
use crate::place::{Caller, EnteredAt};
use crate::stall::{Due, StallConfig};
use crate::trace::{Event, Lane, Trace};
use core::fmt;
use core::time::Duration;
use rcu_core::Seq;
use rcu_core::cpu::{Cpus, Slot};

/// What a report can be asked; the tree behind it, whatever its parameters.
trait Scene {
    /// The first slot from `from` on that is waited for.
    fn next(&self, from: u32) -> Option<Slot>;
    fn blocker(&self, slot: Slot) -> Option<Seen>;
    fn describe(&self, slot: Slot, f: &mut fmt::Formatter<'_>) -> fmt::Result;
    fn nobodys(&self) -> usize;
    fn nobodys_place(&self) -> Option<Caller>;
}

/// What was seen of a slot in the way.
#[derive(Clone, Copy)]
struct Seen {
    nesting: usize,
    lingering: bool,
    has_left: bool,
    place: Option<Caller>,
}

/// A grace period that has waited for too long, and whom it waits for.
///
/// Looks at the tree while it is asked: readers come and go meanwhile. [`Display`](fmt::Display) writes all of it, a line
/// for each blocker.
#[derive(Clone, Copy)]
pub struct StallReport<'r> {
    lane: Lane,
    number: usize,
    age: Duration,
    since_scan: Duration,
    scene: &'r dyn Scene,
}

impl<'r> StallReport<'r> {
    /// Which kind of grace period.
    #[must_use]
    pub const fn lane(&self) -> Lane {
        self.lane
    }

    /// The grace period's number: one more than had ended before it.
    #[must_use]
    pub const fn number(&self) -> usize {
        self.number
    }

    /// How long it has been waiting, since somebody looked first. Whoever is in the way still in the section it was
    /// found in has been inside for at least this long.
    #[must_use]
    pub const fn age(&self) -> Duration {
        self.age
    }

    /// How long ago a scan was seen last. Much of the [age](Self::age) means that readers are not the only trouble: whoever
    /// drives does not get to run.
    #[must_use]
    pub const fn since_scan(&self) -> Duration {
        self.since_scan
    }

    /// The slots that are waited for.
    #[must_use]
    pub const fn blockers(&self) -> Blockers<'r> {
        Blockers {
            scene: self.scene,
            next: Some(0),
        }
    }

    /// How many sections are waited for that belong to no slot: [`SendGuard`](rcu_core::SendGuard)s and readers without a
    /// slot.
    #[must_use]
    pub fn sections_of_no_slot(&self) -> usize {
        self.scene.nobodys()
    }

    /// Where a section of no slot was entered last, if places are kept. Not certainly one that is waited for.
    #[must_use]
    pub fn last_section_of_no_slot(&self) -> Option<Caller> {
        self.scene.nobodys_place()
    }
}

impl fmt::Display for StallReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lane = match self.lane {
            Lane::Normal => "normal",
            Lane::Expedited => "expedited",
        };
        let (number, age) = (self.number, self.age);
        write!(
            f,
            "rcu: {lane} grace period {number} has been waiting for {age:.3?}"
        )?;
        let mut anybody = false;
        for blocker in self.blockers() {
            anybody = true;
            write!(f, "\n  {blocker}")?;
        }
        let nobodys = self.sections_of_no_slot();
        if nobodys > 0 {
            anybody = true;
            write!(f, "\n  {nobodys} sections of no slot")?;
            if let Some(place) = self.last_section_of_no_slot() {
                write!(f, ", the last one entered at {place}")?;
            }
        }
        if !anybody {
            f.write_str("\n  nobody is in the way any more")?;
        }
        if self.since_scan >= self.age / 2 && !self.since_scan.is_zero() {
            let since = self.since_scan;
            write!(
                f,
                "\n  nobody has scanned for {since:.3?}: whoever drives does not get to run"
            )?;
        }
        Ok(())
    }
}

impl fmt::Debug for StallReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StallReport")
            .field("lane", &self.lane)
            .field("number", &self.number)
            .field("age", &self.age)
            .field("since_scan", &self.since_scan)
            .field("blockers", &self.blockers())
            .field("sections_of_no_slot", &self.sections_of_no_slot())
            .finish()
    }
}

/// The slots that a stalled grace period waits for: from [`StallReport::blockers`].
#[derive(Clone)]
pub struct Blockers<'r> {
    scene: &'r dyn Scene,
    next: Option<u32>,
}

impl<'r> Iterator for Blockers<'r> {
    type Item = Blocker<'r>;

    fn next(&mut self) -> Option<Blocker<'r>> {
        loop {
            let slot = self.scene.next(self.next?);
            self.next = slot.map(|slot| slot.index() as u32 + 1);
            let (slot, scene) = (slot?, self.scene);
            if let Some(seen) = scene.blocker(slot) {
                return Some(Blocker { slot, seen, scene });
            }
        }
    }
}

impl fmt::Debug for Blockers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.clone()).finish()
    }
}

/// A slot that a grace period waits for.
#[derive(Clone, Copy)]
pub struct Blocker<'r> {
    slot: Slot,
    seen: Seen,
    scene: &'r dyn Scene,
}

impl<'r> Blocker<'r> {
    /// Its number.
    #[must_use]
    pub const fn slot(&self) -> Slot {
        self.slot
    }

    /// Who is on it, as [`Cpus::describe`] says: a thread's name.
    pub fn description(&self) -> impl fmt::Display + use<'r> {
        Description(self.slot, self.scene)
    }

    /// How deep its sections nest now.
    #[must_use]
    pub const fn nesting(&self) -> usize {
        self.seen.nesting
    }

    /// Whether it is no longer in the section it was found in: the next scan will credit it.
    #[must_use]
    pub const fn has_left(&self) -> bool {
        self.seen.has_left
    }

    /// Whether its thread has ended inside a section.
    #[must_use]
    pub const fn is_lingering(&self) -> bool {
        self.seen.lingering
    }

    /// Where its section was entered: in debug builds, and under the feature `places`.
    #[must_use]
    pub const fn place(&self) -> Option<Caller> {
        self.seen.place
    }
}

impl fmt::Display for Blocker<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {} ({})", self.slot.index(), self.description())?;
        if self.seen.has_left {
            return f.write_str(": has left, which no scan has seen yet");
        }
        let nesting = self.seen.nesting;
        write!(f, ": inside, nested {nesting} deep,")?;
        if self.seen.place.is_some() {
            write!(f, "{}", EnteredAt(self.seen.place))?;
        } else {
            f.write_str(" entered nobody knows where")?;
        }
        if self.seen.lingering {
            f.write_str("; its thread has ended")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Blocker<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocker")
            .field("slot", &self.slot)
            .field("description", &format_args!("{}", self.description()))
            .field("nesting", &self.seen.nesting)
            .field("has_left", &self.seen.has_left)
            .field("is_lingering", &self.seen.lingering)
            .field("place", &self.seen.place)
            .finish()
    }
}

struct Description<'r>(Slot, &'r dyn Scene);

impl fmt::Display for Description<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.1.describe(self.0, f)
    }
}

/// One lane of a tree, as a report sees it.
struct InLane<'t, 'a, C: Cpus, T: Trace> {
    tree: &'t Tree<'a, C, T>,
    lane: Lane,
}

impl<C: Cpus, T: Trace> Scene for InLane<'_, '_, C, T> {
    fn next(&self, from: u32) -> Option<Slot> {
        (from..self.tree.slots.len() as u32)
            .map(Slot::new)
            .find(|&slot| self.tree.nodes.is_waiting_for(self.lane, slot))
    }

    fn blocker(&self, slot: Slot) -> Option<Seen> {
        let own = self.tree.slots.get(slot)?;
        let now = own.reader.look();
        let place = own.place.get();
        let same_section = !own.reader.look().passed_since(now);
        Some(Seen {
            nesting: now.nesting(),
            lingering: now.is_lingering(),
            has_left: now.passed_since(own.first_seen(self.lane)),
            place: place.filter(|_| same_section),
        })
    }

    fn describe(&self, slot: Slot, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tree.cpus.describe(slot, f)
    }

    fn nobodys(&self) -> usize {
        self.tree.shared.waited_for(&self.tree.gp, self.lane)
    }

    fn nobodys_place(&self) -> Option<Caller> {
        self.tree.shared_place.get()
    }
}

/// No stall of the tree is told while one of these exists: from [`Tree::suppress_stalls`].
#[must_use = "stalls are told again at once if this is not kept"]
pub struct StallsSuppressed<'t> {
    stalls: &'t crate::stall::Stalls,
}

impl Drop for StallsSuppressed<'_> {
    fn drop(&mut self) {
        self.stalls.unsuppress();
    }
}

impl fmt::Debug for StallsSuppressed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StallsSuppressed")
    }
}

impl<C: Cpus, T: Trace> Tree<'_, C, T> {
    /// Sets when and how stalls are told.
    #[must_use]
    pub const fn with_stall(mut self, config: StallConfig) -> Self {
        self.stalls.set_config(config);
        self
    }

    /// Looks whether a grace period has waited for too long, and reports it if so. Waits, barriers, the worker and
    /// [`Self::run_callbacks`] do so by themselves; for an embedder that only ever calls
    /// [`drive`](rcu_core::GracePeriod::drive), which does not.
    ///
    /// Runs foreign code: the report. Not for signal handlers, unless the report is.
    #[doc(alias = "check_cpu_stall")]
    pub fn check_stalls(&self) {
        for lane in Lane::ALL {
            self.check_lane(lane, self.gp.lane(lane).load());
        }
    }

    fn check_lane(&self, lane: Lane, seq: Seq) {
        if !seq.in_progress() {
            return;
        }
        let scans = self.counts(lane).scans();
        if let Some(due) = self.stalls.check(lane, seq, scans) {
            self.report_stall(lane, seq, &due);
        }
    }

    #[cold]
    fn report_stall(&self, lane: Lane, seq: Seq, due: &Due<'_>) {
        self.trace.event(Event::Stalled(lane));
        let Some(report) = self.stalls.config().reporter() else {
            return;
        };
        let tree = self;
        report(&StallReport {
            lane,
            number: seq.completed() + 1,
            age: due.age,
            since_scan: due.since_scan,
            scene: &InLane { tree, lane },
        });
    }

    /// Whether a grace period in progress has been waiting for an eighth of the stall timeout: a hint for who asks
    /// whether more memory will come of waiting. False if nobody looked at a clock meanwhile.
    #[must_use]
    #[doc(alias = "rcu_gp_might_be_stalled")]
    pub fn might_be_stalled(&self) -> bool {
        Lane::ALL.iter().any(|&lane| {
            self.stalls
                .might_be_stalled(lane, self.gp.lane(lane).load())
        })
    }

    /// Keeps stalls from being told while the returned value exists, as around a debugger's stop or a long dump. These
    /// nest. Afterwards the clock of the grace period in progress starts anew.
    #[doc(alias = "rcu_cpu_stall_suppress")]
    pub fn suppress_stalls(&self) -> StallsSuppressed<'_> {
        self.stalls.suppress();
        StallsSuppressed {
            stalls: &self.stalls,
        }
    }

    /// Starts the clock of the grace period in progress anew, for who knows why it takes long.
    #[doc(alias = "rcu_cpu_stall_reset")]
    pub fn reset_stalls(&self) {
        self.stalls.reset();
    }
}
