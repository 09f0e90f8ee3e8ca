//! The front end's hand-overs, as models on the files that production uses.
//!
//! Mutants: `passes_enter`, `passes_end`, `rounds_end`, `duty_call`, `duty_leave` (each breaks the model named after it). Not shown: slots,
//! blocks and grace periods, which are numbers here; the local lock and the shared stack have models of their own in `rcu-core`.

#![cfg(loom)]
#![expect(
    dead_code,
    unreachable_pub,
    reason = "the files are those of another crate"
)]

#[path = "../src/budget.rs"]
mod budget;
#[path = "../src/duty.rs"]
mod duty;
#[path = "../src/passes.rs"]
mod passes;
#[path = "../src/rounds.rs"]
mod rounds;
#[path = "../src/shared.rs"]
mod shared;

use budget::{Account, Budget, CHUNK};
use duty::{Called, Duty};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use passes::Passes;
use rcu_core::cpu::SpinMutex;
use rcu_core::{Callback, Head, HeadOffset};
use rounds::Rounds;
use shared::Shared;
use std::ptr::NonNull;

/// A slot with one object at most, whose memory loom watches.
struct Slots {
    passes: Passes,
    barrier_lock: SpinMutex<()>,
    rounds: Rounds,
    /// Whether the object waits here.
    waiting: SpinMutex<bool>,
    object: UnsafeCell<u32>,
}

impl Slots {
    fn new(waits: bool) -> Arc<Self> {
        Arc::new(Self {
            passes: Passes::new(),
            barrier_lock: SpinMutex::new(()),
            rounds: Rounds::new(),
            waiting: SpinMutex::new(waits),
            object: UnsafeCell::new(0),
        })
    }

    fn free(&self) {
        // SAFETY: whoever took the object out frees it, alone.
        self.object.with_mut(|object| unsafe { *object = 1 });
    }

    /// After a barrier: the object's memory is somebody else's, who writes to it.
    fn use_again(&self) {
        self.object.with(|object| {
            // SAFETY: freed before the barrier returned.
            assert_eq!(unsafe { *object }, 1, "the barrier returned too early");
        });
    }

    /// As the monitor does.
    fn tick(&self) {
        if let Some(round) = self.rounds.begin() {
            let mut waiting = self.waiting.lock();
            let taken = std::mem::take(&mut *waiting);
            drop(waiting);
            if taken {
                self.free();
            }
            drop(round);
        }
    }

    /// As a barrier's pass does.
    fn pass(&self) {
        let pass = self.passes.begin();
        let mut waiting = self.waiting.lock();
        let taken = std::mem::take(&mut *waiting);
        drop(waiting);
        self.rounds.wait(thread::yield_now);
        if taken {
            self.free();
        }
        pass.end();
    }

    fn barrier(&self) {
        let ticket = self.passes.enter();
        while !self.passes.is_over(ticket) {
            match self.barrier_lock.try_lock() {
                Some(_lock) if !self.passes.is_over(ticket) => self.pass(),
                Some(_) => {}
                None => thread::yield_now(),
            }
        }
    }
}

/// I1 of the front end: a barrier finds what the monitor has in its hands.
#[test]
fn p8_rounds_vs_barrier() {
    loom::model(|| {
        let slots = Slots::new(true);
        let monitor = thread::spawn({
            let slots = slots.clone();
            move || slots.tick()
        });
        slots.barrier();
        slots.use_again();
        monitor.join().unwrap();
    });
}

/// A word written without a lock before the barrier entered, as the shared heads are, is seen by the pass that the barrier shares; and what
/// that freed is free for it.
#[test]
fn p8_barriers_share_a_pass() {
    loom::model(|| {
        let slots = Slots::new(true);
        let noted = Arc::new(AtomicUsize::new(0));
        let other = thread::spawn({
            let (slots, noted) = (slots.clone(), noted.clone());
            move || {
                let ticket = slots.passes.enter();
                while !slots.passes.is_over(ticket) {
                    match slots.barrier_lock.try_lock() {
                        Some(_lock) if !slots.passes.is_over(ticket) => {
                            let pass = slots.passes.begin();
                            let mut waiting = slots.waiting.lock();
                            let taken = std::mem::take(&mut *waiting);
                            drop(waiting);
                            if taken {
                                slots.free();
                            }
                            // Taken with no ordering of its own.
                            if noted.load(Ordering::Relaxed) == 1 {
                                noted.store(2, Ordering::Relaxed);
                            }
                            pass.end();
                        }
                        Some(_) => {}
                        None => thread::yield_now(),
                    }
                }
            }
        });
        noted.store(1, Ordering::Relaxed);
        let ticket = slots.passes.enter();
        // Only ever shares: what the other's pass did not cover is for a pass of its own, after the join.
        let shared = slots.passes.is_over(ticket);
        if shared {
            slots.use_again();
        }
        other.join().unwrap();
        if slots.passes.is_over(ticket) {
            assert_eq!(noted.load(Ordering::Relaxed), 2, "not covered by its pass");
        }
    });
}

/// As above, for who waits: what the pass has freed is free.
#[test]
fn p8_end_of_a_pass_vs_barrier() {
    loom::model(|| {
        let slots = Slots::new(true);
        let ticket = slots.passes.enter();
        let other = thread::spawn({
            let slots = slots.clone();
            move || {
                let pass = slots.passes.begin();
                slots.free();
                pass.end();
            }
        });
        if slots.passes.is_over(ticket) {
            slots.use_again();
        }
        other.join().unwrap();
    });
}

/// I1 of `duty`: an object that is noted while the monitor leaves is somebody's to look after.
#[test]
fn p8_duty_leaving_vs_noting() {
    loom::model(|| {
        let duty = Arc::new(Duty::new());
        let noted = Arc::new(AtomicUsize::new(0));
        assert_eq!(duty.call(), Called::Here);
        duty.begin();
        let monitor = thread::spawn({
            let (duty, noted) = (duty.clone(), noted.clone());
            move || duty.leave(|| noted.load(Ordering::Relaxed) == 0)
        });
        noted.store(1, Ordering::Relaxed);
        let called = duty.call();
        let left = monitor.join().unwrap();
        // Nobody but these two has it: it is noted, so one of them must.
        let is_mine = called == Called::Here;
        assert!(is_mine || !left, "nobody looks");
        assert!(!is_mine || left, "I2: both look");
    });
}

/// I2 of `duty`: what goes with the duty (the monitor's head) is whole for who takes over.
#[test]
fn p8_duty_hands_the_head_on() {
    loom::model(|| {
        let duty = Arc::new(Duty::new());
        let head = Arc::new(UnsafeCell::new(0));
        assert_eq!(duty.call(), Called::Here);
        duty.begin();
        let monitor = thread::spawn({
            let (duty, head) = (duty.clone(), head.clone());
            move || {
                // SAFETY: goes with the duty.
                head.with_mut(|head| unsafe { *head = 1 });
                assert!(duty.leave(|| true));
            }
        });
        if duty.call() == Called::Here {
            // SAFETY: as above.
            head.with_mut(|head| unsafe { *head = 2 });
        }
        monitor.join().unwrap();
    });
}

/// I1 of `shared`: whoever takes, no byte is lost, and none is left.
#[test]
fn p8_shared_bytes_go_with_their_heads() {
    loom::model(|| {
        let shared = Arc::new(Shared::new());
        let pusher = thread::spawn({
            let shared = shared.clone();
            move || {
                let head = Box::new(Head::new());
                let head = NonNull::from(Box::leak(head));
                // SAFETY: the head is valid.
                unsafe { head.as_ref() }.set_callback(Callback::Free(HeadOffset::from_bytes(0)));
                // SAFETY: leaked, until it is taken.
                unsafe { shared.push(head, 100) };
            }
        });
        let mut bytes = 0;
        let mut heads = 0;
        let mut take = |must: bool| {
            let (mut list, b) = shared.take();
            bytes += b;
            while let Some(head) = list.pop_front() {
                heads += 1;
                // SAFETY: leaked above, and taken once.
                drop(unsafe { Box::from_raw(head.as_ptr()) });
            }
            assert!(!must || heads == 1);
        };
        take(false);
        pusher.join().unwrap();
        take(true);
        assert_eq!((bytes, shared.bytes(), shared.objects()), (100, 0, 0));
    });
}

/// I1 of `budget`: no sum is below zero in between, so nobody takes a moment for the limit.
#[test]
fn p8_charged_before_it_is_taken_out() {
    loom::model(|| {
        let budget = Arc::new(Budget::new(CHUNK, 10 * CHUNK));
        let place = Arc::new(SpinMutex::new(Account::new()));
        let retiring = thread::spawn({
            let (budget, place) = (budget.clone(), place.clone());
            move || {
                let mut place = place.lock();
                budget.charge(place.add(CHUNK));
                drop(place);
            }
        });
        let mut guard = place.lock();
        let held = guard.held;
        let goes = guard.take(held);
        drop(guard);
        budget.discharge(goes);
        assert!(!budget.is_over());
        retiring.join().unwrap();
        assert!(!budget.is_over());
    });
}
