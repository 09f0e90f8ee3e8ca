//! The conformance tests flag implementations that are wrong in one way each: a test that cannot
//! fail tests nothing.

#![cfg(all(feature = "std", not(loom)))]

use rcu_core::conformance as suite;
use rcu_core::manual::ManualGp;
use rcu_core::{Callback, Cookie, GracePeriod, Head, Rcu};
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
}

/// An RCU on one thread with one fault.
struct Busted {
    fault: Fault,
    gp: ManualGp,
    nesting: Cell<usize>,
    queue: RefCell<Vec<NonNull<Head>>>,
}

impl Busted {
    fn new(fault: Fault) -> Self {
        Self {
            fault,
            gp: ManualGp::auto(),
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
        self.gp.start()
    }

    fn poll(&self, cookie: Cookie) -> bool {
        let forgets = self.fault == Fault::ForgetsCompleted && cookie == Cookie::COMPLETED;
        !forgets && self.gp.poll(cookie)
    }

    fn wait(&self, cookie: Cookie) {
        if self.fault != Fault::NeverEnds {
            self.gp.wait(cookie);
        }
    }

    fn drive(&self) -> bool {
        let reading = self.nesting.get() > 0 && self.fault != Fault::IgnoresReaders;
        if reading { true } else { self.gp.drive() }
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

const TESTS: [Test; 8] = [
    ("completed", suite::completed_is_always_done),
    ("synchronize", suite::done_after_synchronize),
    ("snapshot", suite::snapshot_asks_for_nothing),
    ("section", suite::never_done_inside_a_section),
    ("guards", suite::guards_end_in_any_order),
    (
        "callbacks",
        suite::callbacks_run_once_after_a_grace_period_in_order,
    ),
    ("barrier", suite::barrier_of_nothing_returns),
    ("inside", suite::calls_inside_a_section_wait_for_its_end),
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
        (Fault::IgnoresReaders, &["section", "guards"]),
        (Fault::FirstExitEnds, &["guards"]),
        (Fault::SnapshotAsks, &["snapshot"]),
        (
            Fault::NeverEnds,
            &["synchronize", "callbacks", "barrier", "inside"],
        ),
        (Fault::RunsAtOnce, &["callbacks", "barrier", "inside"]),
        (Fault::Lifo, &["callbacks", "inside"]),
        (Fault::NoBarrier, &["callbacks", "barrier", "inside"]),
        (Fault::ForgetsCompleted, &["completed"]),
        (Fault::Twice, &["callbacks", "barrier"]),
    ] {
        assert_eq!(flagged(fault), expected, "{fault:?}");
    }
}
