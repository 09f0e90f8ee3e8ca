//! Grace periods that wait for too long, and what is told of them. Time is what a test says it is.
#![cfg(not(loom))]

mod common;
#[path = "common/odd.rs"]
mod odd;

use odd::{Odd, call_me, odd, without_slot};
use rcu_core::cpu::Slot;
use rcu_core::{GracePeriod, Rcu};
use rcu_tree::{Event, Lane, NoTrace, StallConfig, StallReport, Trace, Tree};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Where places are kept.
const PLACES: bool = cfg!(any(debug_assertions, feature = "places"));

thread_local! {
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static TOLD: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn clock() -> Duration {
    NOW.get()
}

fn at(seconds: u64) {
    NOW.set(Duration::from_secs(seconds));
}

fn tell(report: &StallReport<'_>) {
    assert!(
        format!("{report:?}").contains("StallReport"),
        "Debug in a report"
    );
    TOLD.with_borrow_mut(|told| told.push(report.to_string()));
}

/// What was told on this thread since the last call.
fn told() -> Vec<String> {
    TOLD.take()
}

/// 21 seconds by the test's clock.
const BY_HAND: StallConfig = StallConfig::new().clock(clock).report(tell);
/// At every look.
const AT_ONCE: StallConfig = BY_HAND.timeout(Duration::ZERO);

/// Runs `f` while a thread called `name` is inside a section, nested twice. Hands out its slot and the line of the section.
fn with_reader<T: Trace + Sync>(
    tree: &'static Tree<'static, Odd, T>,
    name: &str,
    f: impl FnOnce(Slot, u32),
) {
    thread::scope(|s| {
        let (entered, inside) = mpsc::channel();
        let (leave, told_to_leave) = mpsc::channel();
        s.spawn(move || {
            let slot = call_me(name);
            let line = line!() + 1;
            let _guard = tree.read_lock();
            let _nested = tree.read_lock();
            entered.send((slot, line)).unwrap();
            // In strict mode the exit ends the grace period, at the time that it is here.
            NOW.set(told_to_leave.recv().unwrap_or_default());
        });
        let (slot, line) = inside.recv().unwrap();
        f(slot, line);
        leave.send(NOW.get()).unwrap();
    });
}

/// Asks for a grace period and pushes it as far as it goes.
fn ask<T: Trace>(tree: &Tree<'_, Odd, T>) {
    tree.start();
    tree.drive();
}

#[test]
fn g22_the_reader_in_the_way_is_told_by_name_place_and_depth() {
    let tree = odd(NoTrace, AT_ONCE);
    with_reader(tree, "sleepy", |slot, line| {
        ask(tree);
        tree.check_stalls();
        let told = told();
        let [text] = &told[..] else {
            panic!("one report, not {told:?}")
        };
        assert!(text.starts_with("rcu: normal grace period 1 has been waiting"));
        assert_eq!(text.lines().count(), 2, "one blocker: {text}");
        let who = format!(
            "slot {} (thread \"sleepy\"): inside, nested 2 deep,",
            slot.index()
        );
        assert!(text.contains(&who), "{text}");
        let place = format!(" entered at {}:{line}:", file!());
        assert_eq!(text.contains(&place), PLACES, "{text}");
        let stats = tree.slot_stats(slot).unwrap();
        assert_eq!((stats.nesting, stats.is_online), (2, true));
        assert_eq!(
            stats.place.map(|place| place.line()),
            PLACES.then_some(line)
        );
    });
    tree.synchronize();
    told();
    tree.check_stalls();
    assert_eq!(told(), [""; 0], "nothing is in progress");
}

#[test]
fn g22_once_after_the_timeout_and_again_after_three() {
    let tree = odd(NoTrace, BY_HAND);
    with_reader(tree, "slow", |_, _| {
        at(1000);
        ask(tree);
        for (now, reports) in [
            (1000, 0),
            (1020, 0),
            (1021, 1),
            (1022, 0),
            (1083, 0),
            (1084, 1),
            (1146, 0),
            (1200, 1),
            (1262, 0),
            (1263, 1),
        ] {
            at(now);
            tree.drive();
            tree.check_stalls();
            let told = told();
            assert_eq!(told.len(), reports, "at {now}: {told:?}");
            for text in told {
                assert!(
                    text.contains(&format!("waiting for {}.000s", now - 1000)),
                    "{text}"
                );
            }
        }
        at(1300);
    });
    tree.synchronize();
    let stats = tree.gp_stats().normal;
    assert_eq!(
        (stats.stalls, stats.longest_wait),
        (4, Duration::from_secs(300))
    );
    // The next one has a clock of its own.
    with_reader(tree, "slow", |_, _| {
        at(2000);
        ask(tree);
        tree.check_stalls();
        at(2020);
        tree.check_stalls();
        assert_eq!(told(), [""; 0]);
    });
    tree.synchronize();
}

#[test]
fn g22_a_suppressed_stall_is_not_told_and_its_clock_starts_anew() {
    let tree = odd(NoTrace, BY_HAND);
    with_reader(tree, "slow", |_, _| {
        at(0);
        ask(tree);
        tree.check_stalls();
        let outer = tree.suppress_stalls();
        let inner = tree.suppress_stalls();
        at(100);
        tree.check_stalls();
        drop(inner);
        at(200);
        tree.check_stalls();
        drop(outer);
        for now in [300, 320] {
            at(now);
            tree.check_stalls();
        }
        assert_eq!(told(), [""; 0]);
        at(321);
        tree.check_stalls();
        assert_eq!(told().len(), 1);
        tree.reset_stalls();
        at(400);
        tree.check_stalls();
        assert_eq!(told(), [""; 0], "the clock was set back");
    });
    tree.synchronize();
}

/// Of many who look at a stall at once, who read the clock first may come second: that is no clock that was set back.
#[test]
fn g22_a_look_with_an_older_time_begins_nothing_anew() {
    let tree = odd(NoTrace, BY_HAND);
    with_reader(tree, "slow", |_, _| {
        at(50);
        ask(tree);
        tree.check_stalls();
        for now in [55, 60, 65, 70] {
            for seen in [now, now - 1] {
                at(seen);
                tree.drive();
                tree.check_stalls();
            }
        }
        assert_eq!(told(), [""; 0]);
        at(71);
        tree.check_stalls();
        assert_eq!(told().len(), 1);
    });
    tree.synchronize();
}

#[test]
fn g22_an_eighth_of_the_timeout_might_be_a_stall() {
    let tree = odd(NoTrace, BY_HAND.timeout(Duration::from_secs(16)));
    assert!(!tree.might_be_stalled());
    with_reader(tree, "slow", |_, _| {
        at(50);
        ask(tree);
        tree.check_stalls();
        at(51);
        assert!(!tree.might_be_stalled());
        at(52);
        assert!(tree.might_be_stalled());
    });
    tree.synchronize();
    assert!(!tree.might_be_stalled());
    assert_eq!(told(), [""; 0]);
}

#[test]
fn g22_never_is_never() {
    let never = StallConfig::never().clock(clock).report(tell);
    let tree = odd(NoTrace, never);
    with_reader(tree, "slow", |_, _| {
        ask(tree);
        for now in [0, 100, 1_000_000] {
            at(now);
            tree.check_stalls();
        }
        assert!(!tree.might_be_stalled());
    });
    assert_eq!(told(), [""; 0]);
}

#[test]
fn g22_a_driver_that_does_not_get_to_run_is_told() {
    let tree = odd(NoTrace, BY_HAND);
    with_reader(tree, "slow", |_, _| {
        at(0);
        ask(tree);
        tree.check_stalls();
        at(30);
        tree.check_stalls();
        let text = told().pop().unwrap();
        assert!(
            text.contains("nobody has scanned for 30.000s"),
            "no scan was made in between: {text}"
        );
        at(100);
        tree.drive();
        tree.check_stalls();
        let text = told().pop().unwrap();
        assert!(!text.contains("nobody has scanned"), "{text}");
    });
    tree.synchronize();
}

#[test]
fn g22_a_reader_that_has_left_is_told_from_one_that_has_not() {
    let tree = odd(NoTrace, AT_ONCE);
    let guard = tree.read_lock();
    ask(tree);
    tree.check_stalls();
    let inside = told().concat();
    assert!(inside.contains("inside, nested 1 deep"), "{inside}");
    drop(guard);
    tree.check_stalls();
    let left = told().concat();
    let seen = left.contains("has left, which no scan has seen");
    assert_eq!(seen, !cfg!(feature = "strict"), "{left}");
    tree.synchronize();
}

#[test]
fn g22_sections_of_no_slot_are_counted() {
    let tree = odd(NoTrace, AT_ONCE);
    let line = line!() + 1;
    let guards = without_slot(|| [0; 3].map(|_| tree.read_lock()));
    ask(tree);
    tree.check_stalls();
    let text = told().pop().unwrap();
    assert!(text.contains("3 sections of no slot"), "{text}");
    let place = format!(", the last one entered at {}:{line}:", file!());
    assert_eq!(text.contains(&place), PLACES, "{text}");
    without_slot(|| drop(guards));
    tree.synchronize();
}

#[test]
fn g22_sections_of_no_thread_are_counted_and_not_taken_for_the_callers() {
    use rcu_core::SendGuard;
    let tree = odd(NoTrace, AT_ONCE);
    let moved = tree.read_lock().into_send();
    let made = SendGuard::new(tree);
    let theirs = without_slot(|| tree.read_lock().into_send());
    ask(tree);
    tree.check_stalls();
    let text = told().concat();
    assert!(text.contains("3 sections of no slot"), "{text}");
    drop(theirs);
    thread::scope(|s| {
        s.spawn(|| tree.synchronize());
        drop((moved, made));
    });
    // None of them is this thread's any more, whoever asks.
    without_slot(|| tree.synchronize());
    tree.synchronize();
    let line = line!() + 1;
    let _made = SendGuard::new(tree);
    ask(tree);
    told();
    tree.check_stalls();
    let text = told().concat();
    let place = format!("the last one entered at {}:{line}:", file!());
    assert_eq!(text.contains(&place), PLACES, "{text}");
}

#[test]
fn g22_the_lane_that_waits_is_told() {
    let tree = odd(NoTrace, BY_HAND.expedited_timeout(Duration::from_secs(2)));
    with_reader(tree, "slow", |_, _| {
        at(0);
        tree.start_expedited();
        tree.drive();
        tree.check_stalls();
        at(3);
        tree.check_stalls();
        let text = told().concat();
        assert!(text.starts_with("rcu: expedited grace period 1 has been waiting for 3.000s"));
        assert!(text.contains("slow"), "{text}");
    });
    tree.synchronize_expedited();
    let stats = tree.gp_stats();
    assert_eq!((stats.normal.stalls, stats.expedited.stalls), (0, 1));
    assert!(stats.expedited.grace_periods > 0);
}

/// A report may use the tree; while it does, nobody reports (I2, T42).
#[test]
fn t42_a_report_may_use_the_tree_and_does_not_come_back_into_itself() {
    thread_local! {
        static TREE: Cell<Option<&'static Tree<'static, Odd>>> = const { Cell::new(None) };
        static DEPTH: Cell<usize> = const { Cell::new(0) };
        static RUNS: Cell<usize> = const { Cell::new(0) };
    }
    fn use_it(report: &StallReport<'_>) {
        assert_eq!(DEPTH.replace(1), 0, "a report in a report");
        RUNS.set(RUNS.get() + 1);
        let tree = TREE.get().unwrap();
        assert!(!tree.poll(tree.snapshot()) && !tree.poll(tree.start()));
        drop((tree.read_lock(), tree.read_lock()));
        tree.drive();
        tree.check_stalls();
        tree.run_callbacks();
        let _ = (
            format!("{tree:?} {report:?}"),
            tree.gp_stats(),
            tree.might_be_stalled(),
        );
        drop(tree.suppress_stalls());
        DEPTH.set(0);
    }
    let tree = odd(NoTrace, AT_ONCE.again_after(Duration::ZERO).report(use_it));
    TREE.set(Some(tree));
    with_reader(tree, "slow", |_, _| {
        ask(tree);
        tree.check_stalls();
        tree.check_stalls();
        assert_eq!(tree.run_callbacks(), 0);
    });
    assert_eq!(RUNS.get(), 3);
    assert_eq!(tree.gp_stats().normal.stalls, 3);
    tree.synchronize();
}

#[test]
fn g22_a_report_that_panics_is_the_last_of_nothing() {
    fn bad(_: &StallReport<'_>) {
        tell_count();
        panic!("on purpose");
    }
    fn tell_count() {
        TOLD.with_borrow_mut(|told| told.push(String::new()));
    }
    let tree = odd(NoTrace, AT_ONCE.again_after(Duration::ZERO).report(bad));
    with_reader(tree, "slow", |_, _| {
        ask(tree);
        for _ in 0..2 {
            let result = catch_unwind(AssertUnwindSafe(|| tree.check_stalls()));
            assert!(result.is_err());
        }
        assert_eq!(told().len(), 2);
    });
}

#[test]
fn g22_whoever_waits_tells() {
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    fn count(_: &StallReport<'_>) {
        TOLD.fetch_add(1, Ordering::Relaxed);
    }
    let every_look = AT_ONCE.again_after(Duration::ZERO).report(count);
    let until_told = || {
        let before = TOLD.load(Ordering::Relaxed);
        while TOLD.load(Ordering::Relaxed) == before {
            thread::yield_now();
        }
    };
    let waits: [fn(&Tree<'static, Odd>); 3] = [
        |tree| tree.synchronize(),
        |tree| tree.synchronize_expedited(),
        |tree| tree.barrier(),
    ];
    for wait in waits {
        static HEAD: rcu_core::Head = rcu_core::Head::new();
        /// # Safety
        /// None.
        unsafe fn nothing(_: std::ptr::NonNull<rcu_core::Head>) {}
        let tree = odd(NoTrace, every_look);
        thread::scope(|s| {
            let guard = tree.read_lock();
            // SAFETY: static, queued once at a time: the barrier below waits for it.
            unsafe {
                tree.call(
                    std::ptr::NonNull::from(&HEAD),
                    rcu_core::Callback::Run(nothing),
                );
            }
            s.spawn(|| wait(tree));
            until_told();
            drop(guard);
        });
        tree.barrier();
    }
}

/// What stalls and what does not, told to a listener.
#[derive(Default)]
struct Count(AtomicUsize);

impl Trace for Count {
    fn event(&self, event: Event) {
        if event == Event::Stalled(Lane::Normal) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn g22_listeners_are_told_too() {
    static EVENTS: Count = Count(AtomicUsize::new(0));
    let tree = odd(&EVENTS, AT_ONCE);
    with_reader(tree, "slow", |_, _| {
        ask(tree);
        assert_eq!(EVENTS.0.load(Ordering::Relaxed), 0);
        tree.check_stalls();
        tree.check_stalls();
        assert_eq!(
            EVENTS.0.load(Ordering::Relaxed),
            2,
            "again after three times nothing"
        );
    });
}

#[test]
fn gp_stats_count_what_the_driver_did() {
    let tree = odd(NoTrace, StallConfig::never());
    assert_eq!(tree.gp_stats(), rcu_tree::GpStats::default());
    drop(tree.read_lock());
    tree.synchronize();
    let alone = tree.gp_stats().normal;
    assert_eq!((alone.grace_periods, alone.heavy_fences), (1, 0));
    assert_eq!((alone.scans, alone.forced_scans), (1, 0));
    assert_eq!((alone.slots_scanned, alone.credited_at_once), (1, 1));
    with_reader(tree, "slow", |slot, _| {
        ask(tree);
        tree.drive();
        let stats = tree.gp_stats();
        let normal = stats.normal;
        assert_eq!(stats.slots_online, 2);
        assert_eq!((normal.grace_periods, normal.heavy_fences), (1, 1));
        assert_eq!((normal.scans, normal.forced_scans), (3, 1));
        assert_eq!((normal.slots_scanned, normal.holdouts), (4, 1));
        assert_eq!(normal.credited_at_once, 2);
        let seen = tree.slot_stats(slot).unwrap();
        assert_eq!(
            (seen.nesting, seen.sections, seen.has_callbacks),
            (2, 1, false)
        );
        assert!(seen.to_string().contains("nested 2 deep"));
        assert!(stats.to_string().contains("1 holdouts"));
    });
    tree.synchronize();
    assert!(tree.gp_stats().normal.grace_periods >= 2);
    assert_eq!(tree.slot_stats(Slot::new(1 << 20)), None);
}

/// A guard that is dropped with its thread's other thread-locals, after the slot.
#[cfg(feature = "std")]
struct Kept(
    &'static Tree<'static, Odd>,
    Slot,
    Option<rcu_core::Guard<&'static Tree<'static, Odd>>>,
);

#[cfg(feature = "std")]
impl Drop for Kept {
    fn drop(&mut self) {
        let (tree, slot) = (self.0, self.1);
        ask(tree);
        tree.check_stalls();
        let seen = tree.slot_stats(slot).unwrap();
        assert!(seen.is_lingering, "the slot went first: {seen}");
        self.2 = None;
        tree.synchronize();
    }
}

#[cfg(feature = "std")]
#[test]
fn g22_a_reader_whose_thread_has_ended_is_told_as_such() {
    static SAID: std::sync::Mutex<String> = std::sync::Mutex::new(String::new());
    fn say(report: &StallReport<'_>) {
        assert!(report.blockers().all(|blocker| blocker.is_lingering()));
        SAID.lock().unwrap().push_str(&report.to_string());
    }
    thread_local! {
        static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) };
    }
    let config = StallConfig::new().timeout(Duration::ZERO).report(say);
    let tree = odd(NoTrace, config);
    thread::spawn(move || {
        // Registered before the slot, so dropped after it.
        KEPT.with_borrow_mut(|_| ());
        let slot = call_me("gone");
        KEPT.with_borrow_mut(|kept| *kept = Some(Kept(tree, slot, Some(tree.read_lock()))));
    })
    .join()
    .unwrap();
    let said = SAID.lock().unwrap();
    assert!(
        said.contains("(thread \"gone\")") && said.contains("its thread has ended"),
        "{said}"
    );
}

/// A tree with a worker tells without anybody's asking.
#[cfg(feature = "std")]
#[test]
fn g22_the_worker_tells() {
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    fn count(report: &StallReport<'_>) {
        TOLD.fetch_add(report.blockers().count(), Ordering::Relaxed);
    }
    rcu_tree::static_tree! {
        struct Told, stall = StallConfig::new().timeout(Duration::ZERO).report(count);
    }
    let guard = Told.read_lock();
    Told.start();
    while TOLD.load(Ordering::Relaxed) == 0 {
        thread::yield_now();
    }
    drop(guard);
    Told.synchronize();
}
