//! The suites for threads and for sections that belong to no thread, on an RCU that counts its readers behind a lock,
//! and on the same with a fault.

#![cfg(all(feature = "std", not(loom)))]

use rcu_core::conformance as suite;
use rcu_core::{Callback, Cookie, GracePeriod, Head, Rcu, RcuSend, Seq};
use rcu_core::{grace_period_conformance, rcu_conformance, rcu_send_conformance};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// Sections that belong to no thread are not counted.
    SendForgotten,
    /// Moving a section off leaves it for a moment, and lets a grace period pass.
    MoveWithGap,
    /// Expedited grace periods look at nobody.
    ExpeditedEarly,
    /// A grace period that is asked for while one is in progress ends with that one.
    CountsOnTheOneInProgress,
}

#[derive(Default)]
struct State {
    seq: usize,
    wanted: usize,
    /// Readers inside that entered before the grace period in progress, and after its start.
    before: usize,
    after: usize,
    /// How many grace periods have begun: names the count that a reader is in.
    begun: usize,
    queue: Vec<NonNull<Head>>,
    running: usize,
}

// SAFETY: heads may be queued from any thread and run on any.
unsafe impl Send for State {}

/// RCU with one lock around all of it: sections carry the number of the grace period they came after.
struct Counting {
    fault: Fault,
    state: Mutex<State>,
}

thread_local! {
    /// Sections of this thread, so that a test that would wait for itself fails.
    static INSIDE: Cell<usize> = const { Cell::new(0) };
}

impl Counting {
    fn new(fault: Fault) -> Self {
        let state = State {
            seq: Seq::INITIAL.raw(),
            wanted: Seq::INITIAL.raw(),
            ..State::default()
        };
        Self {
            fault,
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_in(&self) -> usize {
        let mut state = self.state();
        state.after += 1;
        state.begun
    }

    fn count_out(&self, begun: usize) {
        let mut state = self.state();
        if begun == state.begun {
            state.after -= 1;
        } else {
            state.before -= 1;
        }
    }
}

impl State {
    fn seq(&self) -> Seq {
        Seq::from_raw(self.seq)
    }

    fn is_needed(&self) -> bool {
        !self.seq().is_done(Cookie::from_raw(self.wanted))
    }

    /// One step; false if there is none to make.
    fn step(&mut self) -> bool {
        if self.seq().in_progress() {
            let clear = self.before == 0;
            if clear {
                self.seq = self.seq().ended().raw();
            }
            clear
        } else if self.is_needed() && self.before == 0 {
            self.seq = self.seq().started().raw();
            self.before = std::mem::take(&mut self.after);
            self.begun += 1;
            true
        } else {
            false
        }
    }
}

// SAFETY: faults apart: a grace period ends when the readers counted at its start are out (1), the sequence grows (2),
// `drive` steps as far as that goes (3), nothing blocks but for the lock (4).
unsafe impl GracePeriod for Counting {
    fn snapshot(&self) -> Cookie {
        let seq = self.state().seq();
        if self.fault == Fault::CountsOnTheOneInProgress && seq.in_progress() {
            return Cookie::from_raw(seq.ended().raw());
        }
        seq.snapshot()
    }

    fn start(&self) -> Cookie {
        let cookie = self.snapshot();
        let mut state = self.state();
        if !cookie.is_no_later_than(Cookie::from_raw(state.wanted)) {
            state.wanted = cookie.raw();
        }
        cookie
    }

    fn poll(&self, cookie: Cookie) -> bool {
        self.state().seq().is_done(cookie)
    }

    fn wait(&self, cookie: Cookie) {
        while !self.poll(cookie) {
            assert_eq!(INSIDE.get(), 0, "waits for itself");
            self.start();
            self.drive();
            std::thread::yield_now();
        }
    }

    fn synchronize_expedited(&self) {
        if self.fault != Fault::ExpeditedEarly {
            self.synchronize();
        }
    }

    fn drive(&self) -> bool {
        let mut state = self.state();
        while state.step() {}
        state.is_needed()
    }

    fn grace_periods(&self) -> usize {
        self.state().seq().completed()
    }
}

// SAFETY: as above; callbacks are taken out under the lock and run outside of it, after a grace period.
unsafe impl Rcu for Counting {
    type Token = usize;

    fn enter(&self) -> usize {
        INSIDE.set(INSIDE.get() + 1);
        self.count_in()
    }

    unsafe fn exit(&self, token: usize) {
        INSIDE.set(INSIDE.get() - 1);
        self.count_out(token);
    }

    unsafe fn call(&self, head: NonNull<Head>, callback: Callback) {
        // SAFETY: the head is valid (debt 1).
        unsafe { head.as_ref() }.set_callback(callback);
        self.state().queue.push(head);
    }

    fn barrier(&self) {
        let mut state = self.state();
        let batch = std::mem::take(&mut state.queue);
        state.running += batch.len();
        drop(state);
        self.synchronize();
        let count = batch.len();
        for head in batch {
            // SAFETY: queued heads are valid until their callback.
            if let Callback::Run(func) = unsafe { head.as_ref() }.callback() {
                // SAFETY: its turn has come, once.
                unsafe { func(head) };
            }
        }
        self.state().running -= count;
        // What another barrier has taken out was queued before this one as well.
        while self.state().running > 0 {
            std::thread::yield_now();
        }
    }
}

// SAFETY: faults apart, counted as any other section, without a thread.
unsafe impl RcuSend for Counting {
    type SendToken = usize;

    fn enter_send(&self) -> usize {
        if self.fault == Fault::SendForgotten {
            return usize::MAX;
        }
        self.count_in()
    }

    unsafe fn exit_send(&self, token: usize) {
        if token != usize::MAX {
            self.count_out(token);
        }
    }

    unsafe fn move_off(&self, token: usize) -> usize {
        if self.fault == Fault::MoveWithGap {
            // SAFETY: the caller's debt.
            unsafe { self.exit(token) };
            self.drive();
            return self.enter_send();
        }
        INSIDE.set(INSIDE.get() - 1);
        token
    }
}

grace_period_conformance!(gp, Counting::new(Fault::None));
rcu_conformance!(rcu, Counting::new(Fault::None));
rcu_conformance!(threads, threads: Counting::new(Fault::None));
rcu_send_conformance!(send, Counting::new(Fault::None));
rcu_send_conformance!(send_by_reference, &Counting::new(Fault::None));

type Test = (&'static str, fn(&Counting));

const TESTS: [Test; 6] = [
    ("send", suite::g11_a_section_belongs_to_no_thread),
    ("move", suite::g11_moved_off_a_thread_without_a_gap),
    ("order", suite::g11_sections_end_in_any_order),
    ("outlives", suite::t41_a_section_outlives_its_thread),
    (
        "running",
        suite::r5_a_cookie_of_a_running_grace_period_waits_for_the_next,
    ),
    ("expedited", suite::r15_expedited_waits_for_another_thread),
];

#[test]
fn every_fault_is_flagged_and_no_other() {
    for (fault, expected) in [
        (Fault::None, &[][..]),
        (Fault::SendForgotten, &["send", "order", "outlives"]),
        (Fault::MoveWithGap, &["move"]),
        (Fault::ExpeditedEarly, &["expedited"]),
        (Fault::CountsOnTheOneInProgress, &["order", "running"]),
    ] {
        let fails = |test: fn(&Counting)| {
            let rcu = Counting::new(fault);
            catch_unwind(AssertUnwindSafe(|| test(&rcu))).is_err()
        };
        // A thread that does not get to run may spare a fault once, not every time.
        let tries = |name| if expected.contains(name) { 50 } else { 1 };
        let failing = TESTS
            .iter()
            .filter(|(name, test)| (0..tries(name)).any(|_| fails(*test)));
        let flagged: Vec<&str> = failing.map(|&(name, _)| name).collect();
        assert_eq!(flagged, expected, "{fault:?}");
    }
}
