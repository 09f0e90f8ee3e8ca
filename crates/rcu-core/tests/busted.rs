//! The conformance tests flag implementations that are wrong in one way each: a test that cannot
//! fail tests nothing.

#![cfg(all(feature = "std", not(loom)))]

use rcu_core::conformance as suite;
use rcu_core::manual::ManualGp;
use rcu_core::{Callback, Cookie, FullCookie, GracePeriod, Head, Rcu};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// Grace periods end while somebody reads.
    IgnoresReaders,
    /// The first guard that is dropped ends the whole nest.
    FirstExitEnds,
    /// A snapshot asks for a grace period.
    SnapshotAsks,
    /// Nobody ends what was begun.
    NeverEnds,
    /// Callbacks run when they are queued.
    RunsAtOnce,
    /// The youngest callback runs first.
    Lifo,
    /// A callback runs again at the next barrier.
    Twice,
    /// `barrier` returns at once.
    NoBarrier,
    /// Cookies of nothing are not done.
    ForgetsCompleted,
    /// Full cookies are done at once.
    FullEarly,
    /// Full cookies see normal grace periods only.
    FullMissesExpedited,
    /// Waiting for a full cookie returns at once.
    FullNeverEnds,
    /// Expedited grace periods wait for nobody.
    ExpeditedEarly,
    /// Every full cookie is another one.
    CookiesDiffer,
    /// Lazy callbacks are put off for ever.
    LazyNever,
    /// Lazy callbacks run when they are queued.
    LazyAtOnce,
    /// A quiescent state lets grace periods pass beside another guard.
    QuiescentIgnoresNesting,
}

/// An RCU on one thread with one fault.
struct Busted {
    fault: Fault,
    /// What small cookies are of: both kinds of grace periods move it.
    gp: ManualGp,
    /// The halves of full cookies.
    normal: ManualGp,
    expedited: ManualGp,
    taken: Cell<usize>,
    nesting: Cell<usize>,
    queue: RefCell<Vec<NonNull<Head>>>,
}

impl Busted {
    fn new(fault: Fault) -> Self {
        Self {
            fault,
            gp: ManualGp::auto(),
            normal: ManualGp::auto(),
            expedited: ManualGp::auto(),
            taken: Cell::new(0),
            nesting: Cell::new(0),
            queue: RefCell::default(),
        }
    }

    fn run(&self, head: NonNull<Head>) {
        // SAFETY: queued heads are valid; the tests leak what a faulty run could still refer to.
        let callback = unsafe { head.as_ref() }.callback();
        if let Callback::Run(func) = callback {
            // SAFETY: the callback's turn has come, or what follows is the fault that is tested.
            unsafe { func(head) };
        }
    }
}

// SAFETY: faults apart, one thread reads, and nothing passes while it does. With a fault, the
// tests below use it on objects that are never freed before they are flagged.
unsafe impl GracePeriod for Busted {
    fn snapshot(&self) -> Cookie {
        if self.fault == Fault::SnapshotAsks {
            return self.gp.start();
        }
        self.gp.snapshot()
    }

    fn start(&self) -> Cookie {
        self.normal.start();
        self.gp.start()
    }

    fn start_expedited(&self) -> Cookie {
        if self.fault == Fault::ExpeditedEarly {
            return Cookie::COMPLETED;
        }
        self.expedited.start();
        self.gp.start()
    }

    fn poll(&self, cookie: Cookie) -> bool {
        let forgets = self.fault == Fault::ForgetsCompleted && cookie == Cookie::COMPLETED;
        !forgets && self.gp.poll(cookie)
    }

    fn wait(&self, cookie: Cookie) {
        if self.fault != Fault::NeverEnds && !self.poll(cookie) {
            self.gp.wait(cookie);
            self.normal.advance();
        }
    }

    fn wait_expedited(&self, cookie: Cookie) {
        if self.fault != Fault::NeverEnds && !self.poll(cookie) {
            self.gp.wait(cookie);
            self.expedited.advance();
        }
    }

    fn snapshot_full(&self) -> FullCookie {
        if self.fault == Fault::CookiesDiffer {
            self.taken.update(|n| n + 1);
            let later = Cookie::from_raw(self.normal.snapshot().raw() + self.taken.get() % 8 * 4);
            return FullCookie::new(later, self.expedited.snapshot());
        }
        FullCookie::new(self.normal.snapshot(), self.expedited.snapshot())
    }

    fn poll_full(&self, cookie: FullCookie) -> bool {
        let by_expedited = self.expedited.poll(cookie.expedited());
        self.fault == Fault::FullEarly
            || self.normal.poll(cookie.normal())
            || (by_expedited && self.fault != Fault::FullMissesExpedited)
    }

    fn wait_full(&self, cookie: FullCookie) {
        if self.fault != Fault::FullNeverEnds && !self.poll_full(cookie) {
            self.synchronize();
        }
    }

    fn drive(&self) -> bool {
        let reading = self.nesting.get() > 0 && self.fault != Fault::IgnoresReaders;
        reading || self.gp.drive() | self.normal.drive() | self.expedited.drive()
    }

    fn grace_periods(&self) -> usize {
        self.gp.grace_periods()
    }
}

// SAFETY: as above.
unsafe impl Rcu for Busted {
    type Token = ();

    fn enter(&self) {
        self.nesting.update(|n| n + 1);
    }

    unsafe fn exit(&self, (): ()) {
        let all = self.fault == Fault::FirstExitEnds;
        self.nesting.update(|n| if all { 0 } else { n - 1 });
    }

    unsafe fn call(&self, head: NonNull<Head>, callback: Callback) {
        // SAFETY: the head is valid (debt 1).
        unsafe { head.as_ref() }.set_callback(callback);
        if self.fault == Fault::RunsAtOnce {
            self.run(head);
        } else {
            self.queue.borrow_mut().push(head);
        }
    }

    unsafe fn call_lazy(&self, head: NonNull<Head>, callback: Callback) {
        match self.fault {
            Fault::LazyNever => {}
            Fault::LazyAtOnce => {
                // SAFETY: the head is valid (debt 1).
                unsafe { head.as_ref() }.set_callback(callback);
                self.run(head);
            }
            // SAFETY: the caller's debts.
            _ => unsafe { self.call(head, callback) },
        }
    }

    unsafe fn quiescent_state(&self, (): ()) {
        let nesting = self.nesting.get();
        if nesting == 1 || self.fault == Fault::QuiescentIgnoresNesting {
            self.nesting.set(0);
            while self.drive() {}
            self.nesting.set(nesting);
        }
    }

    fn barrier(&self) {
        self.synchronize();
        if self.fault == Fault::NoBarrier {
            return;
        }
        let mut batch = self.queue.take();
        match self.fault {
            Fault::Lifo => batch.reverse(),
            Fault::Twice => self.queue.borrow_mut().extend(&batch),
            _ => {}
        }
        batch.into_iter().for_each(|head| self.run(head));
    }
}

type Test = (&'static str, fn(&Busted));

const TESTS: [Test; 20] = [
    ("completed", suite::r9_completed_is_always_done),
    ("synchronize", suite::r3_done_after_synchronize),
    ("snapshot", suite::r7_snapshot_asks_for_nothing),
    ("section", suite::r1_never_done_inside_a_section),
    ("guards", suite::r1_guards_end_in_any_order),
    ("read", suite::r1_read_runs_inside),
    (
        "callbacks",
        suite::r4_callbacks_run_once_after_a_grace_period_in_order,
    ),
    ("others", suite::r4_callbacks_queue_others),
    ("barrier", suite::r13_barrier_of_nothing_returns),
    ("inside", suite::r4_calls_inside_a_section_wait_for_its_end),
    ("full", suite::r8_t35_full_cookie_never_misses),
    ("full wait", suite::r8_wait_full_ends_for_any_cookie),
    ("full early", suite::r8_full_cookie_is_never_early),
    ("live", suite::r10_few_cookies_are_live),
    ("expedited", suite::r12_expedited_cookie_is_never_early),
    ("lazy", suite::r17_lazy_and_ordinary_callbacks_run_once),
    ("lazy alone", suite::r17_t40_lazy_alone_is_found_by_barrier),
    ("lazy inside", suite::r17_lazy_callbacks_wait_for_sections),
    ("online", suite::r20_g10_online_is_a_section),
    ("nested", suite::r20_quiescent_respects_other_guards),
];

/// Which tests flag `fault`.
fn flagged(fault: Fault) -> Vec<&'static str> {
    let fails = |test: fn(&Busted)| {
        let rcu = Busted::new(fault);
        catch_unwind(AssertUnwindSafe(|| test(&rcu))).is_err()
    };
    let failing = TESTS.iter().filter(|(_, test)| fails(*test));
    failing.map(|&(name, _)| name).collect()
}

#[test]
fn every_fault_is_flagged_and_no_other() {
    for (fault, expected) in [
        (Fault::None, &[][..]),
        (
            Fault::IgnoresReaders,
            &[
                "section",
                "guards",
                "read",
                "full early",
                "expedited",
                "online",
                "nested",
            ],
        ),
        (Fault::FirstExitEnds, &["guards"]),
        (Fault::SnapshotAsks, &["snapshot"]),
        (
            Fault::NeverEnds,
            &[
                "synchronize",
                "callbacks",
                "others",
                "barrier",
                "inside",
                "full",
                "full wait",
                "lazy",
                "lazy alone",
                "lazy inside",
            ],
        ),
        (
            Fault::RunsAtOnce,
            &[
                "callbacks",
                "others",
                "barrier",
                "inside",
                "lazy",
                "lazy alone",
                "lazy inside",
            ],
        ),
        (Fault::Lifo, &["callbacks", "inside"]),
        (
            Fault::NoBarrier,
            &[
                "callbacks",
                "others",
                "barrier",
                "inside",
                "lazy",
                "lazy alone",
                "lazy inside",
            ],
        ),
        (Fault::ForgetsCompleted, &["completed"]),
        (
            Fault::Twice,
            &["callbacks", "others", "barrier", "lazy", "lazy alone"],
        ),
        (Fault::FullEarly, &["full early"]),
        (Fault::FullMissesExpedited, &["full", "full wait"]),
        (Fault::FullNeverEnds, &["full", "full wait"]),
        (
            Fault::ExpeditedEarly,
            &["synchronize", "full", "full wait", "expedited"],
        ),
        (Fault::CookiesDiffer, &["full", "full wait", "live"]),
        (Fault::LazyNever, &["lazy", "lazy alone", "lazy inside"]),
        (Fault::LazyAtOnce, &["lazy", "lazy alone", "lazy inside"]),
        (Fault::QuiescentIgnoresNesting, &["nested"]),
    ] {
        assert_eq!(flagged(fault), expected, "{fault:?}");
    }
}
