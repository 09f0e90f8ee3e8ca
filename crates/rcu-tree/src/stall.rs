//! When a grace period has waited for too long, and how that is told.
//!
//! Source: Linux `tree_stall.h` (G22). Why not look in `drive`: that may be called where nothing may block and no foreign
//! code may run (inside a section, in a signal handler that retires). So those look who may wait or run callbacks:
//! `wait` and its kin, `barrier`, `run_callbacks` (hence the worker), and whoever calls `Tree::check_stalls`.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `timed`, a lane | sequence of the grace period whose wait is timed; 0: none | who holds `timing` |
//! | `timing`, a lane | since when, when to tell next, when the last scan was seen | who looks, by a try-lock |
//! | `suppressed` | how many want no reports | anyone |
//! | `reporting` | a report is being made | who makes it |
//!
//! # Life
//! The first look at a grace period in progress starts its clock: one that meets no reader is never timed, and costs no
//! look at a clock. A later look finds the time up, moves the next time on, and reports. Its end takes the length of the
//! wait.
//!
//! # Invariants
//! - I1. A report is made with no lock of the tree held and outside of any section of the tree's own.
//! - I2. Reports of one tree do not nest, nor overlap (T42): who looks while one is being made finds nothing due.
//!
//! # Progress
//! Nobody waits here: a look that finds `timing` taken is another's.

use crate::trace::Lane;
use crate::tree::StallReport;
use core::fmt;
use core::time::Duration;
use crossbeam_utils::CachePadded;
use rcu_core::Seq;
use rcu_core::cpu::SpinMutex;
use rcu_core::sync::atomic::{AtomicUsize, Ordering};

/// The kernel's default.
#[doc(alias = "CONFIG_RCU_CPU_STALL_TIMEOUT")]
const TIMEOUT: Duration = Duration::from_secs(21);
/// A report comes again after so many timeouts.
const AGAIN: u32 = 3;
/// The part of the timeout after which a grace period might be stalled.
#[doc(alias = "RCU_STALL_MIGHT_DIV")]
const MIGHT_DIV: u32 = 8;

/// When and how stalls are told: see [`Tree::with_stall`](crate::Tree::with_stall).
///
/// By default, after 21 seconds and every 63 seconds from then; under `std` as one message on standard error, since a
/// program that hangs in silence is worse than a library that speaks unasked once in 21 seconds of trouble. Without
/// `std` nothing is told before both a clock and a report are given.
///
/// ```
/// use core::time::Duration;
/// use rcu_tree::{StallConfig, StallReport};
///
/// fn log(report: &StallReport<'_>) {
///     // … a log line for each of `report.blockers()` …
/// #   let _ = report;
/// }
///
/// const CONFIG: StallConfig = StallConfig::new()
///     .timeout(Duration::from_secs(5))
///     .report(log);
/// const SILENT: StallConfig = StallConfig::never();
/// ```
#[derive(Clone, Copy)]
pub struct StallConfig {
    /// `None`: never.
    timeout: Option<Duration>,
    expedited_timeout: Option<Duration>,
    again_after: Option<Duration>,
    report: Option<fn(&StallReport<'_>)>,
    clock: Option<fn() -> Duration>,
}

impl Default for StallConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl StallConfig {
    /// The default.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            timeout: Some(TIMEOUT),
            expedited_timeout: None,
            again_after: None,
            #[cfg(feature = "std")]
            report: Some(tell),
            #[cfg(not(feature = "std"))]
            report: None,
            clock: None,
        }
    }

    /// Nothing is timed, nothing told.
    #[must_use]
    #[doc(alias = "rcu_cpu_stall_suppress")]
    pub const fn never() -> Self {
        let mut this = Self::new();
        this.timeout = None;
        this
    }

    /// Tells of grace periods that have waited for this long. Zero: at the first look.
    #[must_use]
    #[doc(alias = "rcu_cpu_stall_timeout")]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Another timeout for expedited grace periods. Without, the same.
    #[must_use]
    #[doc(alias = "rcu_exp_cpu_stall_timeout")]
    pub const fn expedited_timeout(mut self, timeout: Duration) -> Self {
        self.expedited_timeout = Some(timeout);
        self
    }

    /// Tells again of the same grace period after this long. Without, after three timeouts.
    #[must_use]
    pub const fn again_after(mut self, again_after: Duration) -> Self {
        self.again_after = Some(again_after);
        self
    }

    /// Hands reports to `report`, on the thread that noticed: one that waits for a grace period or a barrier, runs
    /// callbacks, or calls [`Tree::check_stalls`](crate::Tree::check_stalls).
    ///
    /// No lock of the tree is held. The function may use sections, `snapshot`, `start`, `poll`, `drive`, statistics and
    /// `Debug` of this tree; it should not wait for a grace period, which is stalled. While it runs, no other
    /// report is made. If it panics, so does the call that noticed.
    #[must_use]
    pub const fn report(mut self, report: fn(&StallReport<'_>)) -> Self {
        self.report = Some(report);
        self
    }

    /// Takes the time from `clock`: anything that does not go backwards. Called by whoever looks, and at the end of a
    /// grace period that had to wait, with the driver's lock held: it must not block.
    #[must_use]
    pub const fn clock(mut self, clock: fn() -> Duration) -> Self {
        self.clock = Some(clock);
        self
    }

    pub(crate) const fn reporter(&self) -> Option<fn(&StallReport<'_>)> {
        self.report
    }

    fn timeout_of(&self, lane: Lane) -> Option<Duration> {
        match lane {
            Lane::Normal => self.timeout,
            Lane::Expedited => self.expedited_timeout.or(self.timeout),
        }
        .filter(|_| self.timeout.is_some())
    }

    fn now(&self) -> Option<Duration> {
        match self.clock {
            Some(clock) => Some(clock()),
            None => monotonic(),
        }
    }
}

impl fmt::Debug for StallConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StallConfig")
            .field("timeout", &self.timeout)
            .field("expedited_timeout", &self.expedited_timeout)
            .field("again_after", &self.again_after)
            .finish_non_exhaustive()
    }
}

/// The default report. Not `eprintln!`, which panics where there is no standard error.
#[cfg(feature = "std")]
fn tell(report: &StallReport<'_>) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "{report}");
}

/// The time since somebody first asked; `None` for a moment while that is being found out.
#[cfg(all(feature = "std", not(loom)))]
fn monotonic() -> Option<Duration> {
    use std::sync::OnceLock;
    use std::time::Instant;
    static BASE: OnceLock<Instant> = OnceLock::new();
    // So that a signal handler that asks meanwhile goes away instead of waiting for the thread below it.
    static ASKING: SpinMutex<()> = SpinMutex::new(());
    if let Some(base) = BASE.get() {
        return Some(base.elapsed());
    }
    let _asking = ASKING.try_lock()?;
    Some(BASE.get_or_init(Instant::now).elapsed())
}

#[cfg(not(all(feature = "std", not(loom))))]
fn monotonic() -> Option<Duration> {
    None
}

/// The stall side of one tree.
#[derive(Debug)]
pub(crate) struct Stalls {
    config: StallConfig,
    suppressed: AtomicUsize,
    reporting: AtomicUsize,
    lanes: [LaneStall; Lane::ALL.len()],
}

/// The clock of one lane.
#[derive(Debug)]
pub(crate) struct LaneStall {
    timed: CachePadded<AtomicUsize>,
    timing: SpinMutex<Timing>,
}

#[derive(Debug)]
struct Timing {
    since: Duration,
    next: Duration,
    scans: usize,
    scanned_at: Duration,
    told: usize,
    longest: Duration,
}

/// A report that is to be made.
#[derive(Debug)]
pub(crate) struct Due<'s> {
    /// How long the grace period has been waiting.
    pub(crate) age: Duration,
    /// How long ago a scan was seen last.
    pub(crate) since_scan: Duration,
    /// Nobody else reports until this is dropped (I2).
    _reporting: Reporting<'s>,
}

#[derive(Debug)]
struct Reporting<'s>(&'s AtomicUsize);

impl<'s> Reporting<'s> {
    fn begin(flag: &'s AtomicUsize) -> Option<Self> {
        // ORDERING: Relaxed: what a report reads needs no order; the swap decides who makes it.
        (flag.swap(1, Ordering::Relaxed) == 0).then(|| Self(flag))
    }
}

impl Drop for Reporting<'_> {
    fn drop(&mut self) {
        // ORDERING: Relaxed: as above.
        self.0.store(0, Ordering::Relaxed);
    }
}

impl Stalls {
    rcu_core::const_fn! {
        pub(crate) const fn new() -> Self {
            Self {
                config: StallConfig::new(),
                suppressed: AtomicUsize::new(0),
                reporting: AtomicUsize::new(0),
                lanes: [LaneStall::new(), LaneStall::new()],
            }
        }
    }

    pub(crate) const fn set_config(&mut self, config: StallConfig) {
        self.config = config;
    }

    pub(crate) const fn config(&self) -> &StallConfig {
        &self.config
    }

    fn lane(&self, lane: Lane) -> &LaneStall {
        &self.lanes[lane.index()]
    }

    /// Looks at the grace period in progress at `seq`; `scans` have been made in its lane.
    pub(crate) fn check(&self, lane: Lane, seq: Seq, scans: usize) -> Option<Due<'_>> {
        if !seq.in_progress() {
            return None;
        }
        let timeout = self.config.timeout_of(lane)?;
        let now = self.config.now()?;
        let lane = self.lane(lane);
        let mut timing = lane.timing.try_lock()?;
        // ORDERING: Relaxed: written under `timing`.
        let is_new = lane.timed.load(Ordering::Relaxed) != seq.raw();
        // A clock that was set back starts the time anew: what it had to reach may never come. Not so an older time than another look's: of
        // two who look at once, who read the clock first may come second (it is foreign code, and not called under the lock).
        if is_new || now < timing.since {
            timing.since = now;
            timing.next = now.saturating_add(timeout);
            (timing.scans, timing.scanned_at) = (scans, now);
            // ORDERING: Relaxed: read under `timing`, or as a hint that is checked there.
            lane.timed.store(seq.raw(), Ordering::Relaxed);
        }
        let again = self
            .config
            .again_after
            .unwrap_or(timeout.saturating_mul(AGAIN));
        // Nor does it take longer than that, wherever between the clock was set back to.
        timing.next = timing.next.min(now.saturating_add(timeout.max(again)));
        if timing.scans != scans {
            (timing.scans, timing.scanned_at) = (scans, now);
        }
        // ORDERING: Relaxed: a wish, not an order.
        if now < timing.next || self.suppressed.load(Ordering::Relaxed) != 0 {
            return None;
        }
        let reporting = Reporting::begin(&self.reporting)?;
        timing.next = now.saturating_add(again);
        timing.told += 1;
        Some(Due {
            age: now.saturating_sub(timing.since),
            since_scan: now.saturating_sub(timing.scanned_at),
            _reporting: reporting,
        })
    }

    /// The driver is about to end the grace period in progress at `seq`.
    pub(crate) fn ended(&self, lane: Lane, seq: Seq) {
        let lane = self.lane(lane);
        // ORDERING: Relaxed: a hint; checked under `timing`.
        if lane.timed.load(Ordering::Relaxed) != seq.raw() {
            return;
        }
        let Some(now) = self.config.now() else { return };
        let Some(mut timing) = lane.timing.try_lock() else {
            return;
        };
        timing.longest = timing.longest.max(now.saturating_sub(timing.since));
        // ORDERING: Relaxed: under `timing`.
        lane.timed.store(0, Ordering::Relaxed);
    }

    /// Starts the clocks anew.
    pub(crate) fn reset(&self) {
        for lane in &self.lanes {
            let _timing = lane.timing.lock();
            // ORDERING: Relaxed: under `timing`.
            lane.timed.store(0, Ordering::Relaxed);
        }
    }

    /// Starts the clocks anew in the child of a fork, and forgets a report that was being made.
    ///
    /// # Safety
    /// 1. This is the child of a fork and the caller its only thread, inside none of these functions.
    pub(crate) unsafe fn reset_after_fork(&self) {
        for lane in &self.lanes {
            // SAFETY: there is no other thread, and the caller does not hold the lock (1). Whatever `timing` holds is times
            // and counts for people.
            drop(unsafe { lane.timing.seize() });
        }
        self.reset();
        // ORDERING: Relaxed: there is one thread.
        self.reporting.store(0, Ordering::Relaxed);
    }

    pub(crate) fn suppress(&self) {
        // ORDERING: Relaxed: a wish, not an order.
        self.suppressed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn unsuppress(&self) {
        self.reset();
        // ORDERING: Relaxed: a wish, not an order.
        self.suppressed.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether the grace period in progress at `seq` has been waiting for an eighth of the timeout.
    pub(crate) fn might_be_stalled(&self, lane: Lane, seq: Seq) -> bool {
        let Some(timeout) = self.config.timeout_of(lane) else {
            return false;
        };
        let lane = self.lane(lane);
        // ORDERING: Relaxed: a hint.
        if !seq.in_progress() || lane.timed.load(Ordering::Relaxed) != seq.raw() {
            return false;
        }
        let Some(now) = self.config.now() else {
            return false;
        };
        lane.timing
            .try_lock()
            .is_some_and(|timing| now.saturating_sub(timing.since) >= timeout / MIGHT_DIV)
    }

    /// The longest wait, and how many reports were made.
    pub(crate) fn totals(&self, lane: Lane) -> (Duration, usize) {
        let timing = self.lane(lane).timing.lock();
        (timing.longest, timing.told)
    }
}

impl LaneStall {
    rcu_core::const_fn! {
        const fn new() -> Self {
            Self {
                timed: CachePadded::new(AtomicUsize::new(0)),
                timing: SpinMutex::new(Timing {
                    since: Duration::ZERO,
                    next: Duration::ZERO,
                    scans: 0,
                    scanned_at: Duration::ZERO,
                    told: 0,
                    longest: Duration::ZERO,
                }),
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        static NOW: Cell<u64> = const { Cell::new(0) };
    }

    fn clock() -> Duration {
        Duration::from_secs(NOW.get())
    }

    fn stalls(config: StallConfig) -> Stalls {
        let mut stalls = Stalls::new();
        stalls.set_config(config.clock(clock));
        stalls
    }

    fn first_report(stalls: &Stalls, lane: Lane) -> Option<u64> {
        let seq = Seq::INITIAL.started();
        (0..1000).find(|&now| {
            NOW.set(now);
            stalls.check(lane, seq, 0).is_some()
        })
    }

    #[test]
    fn g22_expedited_grace_periods_have_a_timeout_of_their_own_or_the_same() {
        let config = StallConfig::new();
        assert_eq!(first_report(&stalls(config), Lane::Normal), Some(21));
        assert_eq!(first_report(&stalls(config), Lane::Expedited), Some(21));
        let config = config.expedited_timeout(Duration::from_secs(2));
        assert_eq!(first_report(&stalls(config), Lane::Normal), Some(21));
        assert_eq!(first_report(&stalls(config), Lane::Expedited), Some(2));
        let never = StallConfig::never().expedited_timeout(Duration::ZERO);
        assert_eq!(first_report(&stalls(never), Lane::Expedited), None);
    }

    #[test]
    fn g22_lanes_are_timed_apart_and_told_one_at_a_time() {
        let stalls = stalls(StallConfig::new().timeout(Duration::ZERO));
        let seq = Seq::INITIAL.started();
        NOW.set(5);
        let normal = stalls.check(Lane::Normal, seq, 0);
        assert!(normal.is_some());
        assert!(stalls.check(Lane::Expedited, seq, 0).is_none(), "I2");
        drop(normal);
        assert!(stalls.check(Lane::Expedited, seq, 0).is_some());
        NOW.set(9);
        stalls.ended(Lane::Expedited, seq);
        assert_eq!(stalls.totals(Lane::Expedited), (Duration::from_secs(4), 1));
        assert_eq!(stalls.totals(Lane::Normal), (Duration::ZERO, 1));
        assert!(stalls.check(Lane::Normal, Seq::INITIAL, 0).is_none());
    }

    #[cfg(feature = "std")]
    #[test]
    fn the_clock_of_std_does_not_go_backwards() {
        let mut last = Duration::ZERO;
        for _ in 0..100 {
            // `None` while another test is first.
            let now = monotonic().unwrap_or(last);
            assert!(now >= last);
            last = now;
        }
    }
}
