//! Tiny against a model of a few lines.

use proptest::collection::vec;
use proptest::prelude::*;
use rcu_core::{Callback, Cookie, FullCookie, GracePeriod, Head, Rcu};
use rcu_tiny::Tiny;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

#[derive(Clone, Debug)]
enum Op {
    Enter,
    /// Gives one of the tokens back, whichever.
    Exit(usize),
    /// Queues a callback that queues so many more, each from the one before.
    Call(u8),
    Quiescent,
    Tick(bool),
    Snapshot,
    Start,
    /// Full, and asking if so.
    Full(bool),
    /// Waits for one of the cookies.
    Wait(usize),
    WaitFull(usize),
    /// A quiescent state of the youngest section.
    QuiescentState,
    Drive,
    Synchronize,
    Barrier,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => Just(Op::Enter),
        4 => any::<usize>().prop_map(Op::Exit),
        6 => (0u8..3).prop_map(Op::Call),
        3 => Just(Op::Quiescent),
        2 => any::<bool>().prop_map(Op::Tick),
        2 => Just(Op::Snapshot),
        2 => Just(Op::Start),
        2 => any::<bool>().prop_map(Op::Full),
        2 => any::<usize>().prop_map(Op::Wait),
        1 => any::<usize>().prop_map(Op::WaitFull),
        2 => Just(Op::QuiescentState),
        2 => Just(Op::Drive),
        1 => Just(Op::Synchronize),
        1 => Just(Op::Barrier),
    ]
}

/// Numbers only: how many grace periods ended, who is inside, who waits for what.
#[derive(Default)]
struct Model {
    ended: u128,
    nesting: usize,
    wanted: u128,
    waiting: Vec<(usize, u8)>,
    done: Vec<(usize, u8)>,
    ran: Vec<usize>,
}

impl Model {
    fn pass(&mut self) {
        self.ended += 1;
        self.done.append(&mut self.waiting);
    }

    fn is_wanted(&self) -> bool {
        self.ended < self.wanted || !self.waiting.is_empty()
    }

    fn run(&mut self) {
        for (id, again) in std::mem::take(&mut self.done) {
            self.ran.push(id);
            if again > 0 {
                self.waiting.push((id, again - 1));
            }
        }
    }
}

#[repr(C)]
struct Object {
    head: Head,
    id: usize,
    again: std::cell::Cell<u8>,
    rcu: *const Tiny,
}

thread_local! {
    static RAN: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

unsafe fn run(head: NonNull<Head>) {
    // SAFETY: the head is the first field of an object that lives until the end of its case.
    let object = unsafe { head.cast::<Object>().as_ref() };
    RAN.with_borrow_mut(|ran| ran.push(object.id));
    if let Some(again) = object.again.get().checked_sub(1) {
        object.again.set(again);
        // SAFETY: the RCU runs its callbacks, so it lives.
        let rcu = unsafe { &*object.rcu };
        // SAFETY: the object lives on, its head is on no list, and nobody reads it.
        unsafe { rcu.call(head, Callback::Run(run)) };
    }
}

/// Keeps the refusals that are part of the test off the terminal.
fn quiet() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let refusal = info
                .payload_as_str()
                .is_some_and(|text| text.starts_with("rcu-tiny: "));
            if !refusal {
                loud(info);
            }
        }));
    });
}

/// Whether `f` was refused.
fn refused(f: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(f)).is_err()
}

fn check(ops: &[Op]) -> Result<(), TestCaseError> {
    quiet();
    RAN.take();
    let rcu = Box::new(Tiny::new());
    let mut model = Model::default();
    let mut tokens: Vec<rcu_tiny::Section> = Vec::new();
    let mut cookies: Vec<(Cookie, u128)> = Vec::new();
    let mut full: Vec<(FullCookie, u128)> = Vec::new();
    let mut objects: Vec<*mut Object> = Vec::new();
    for op in ops {
        let inside = model.nesting > 0;
        match *op {
            Op::Enter => {
                tokens.push(rcu.enter());
                model.nesting += 1;
            }
            Op::Exit(which) => {
                if inside {
                    let token = tokens.swap_remove(which % tokens.len());
                    // SAFETY: the token was not given back yet.
                    unsafe { rcu.exit(token) };
                    model.nesting -= 1;
                }
            }
            Op::Call(again) => {
                let id = objects.len();
                let object = Box::into_raw(Box::new(Object {
                    head: Head::new(),
                    id,
                    again: again.into(),
                    rcu: &raw const *rcu,
                }));
                objects.push(object);
                // SAFETY: the object lives until the end of the case, is on no list, and nobody reads it.
                unsafe { rcu.call(NonNull::new(object.cast()).unwrap(), Callback::Run(run)) };
                model.waiting.push((id, again));
            }
            Op::Quiescent => {
                prop_assert_eq!(refused(|| rcu.quiescent()), inside);
                if !inside {
                    model.pass();
                    model.run();
                }
            }
            Op::Tick(user) => {
                let wants = catch_unwind(AssertUnwindSafe(|| rcu.tick(user)));
                prop_assert_eq!(wants.is_err(), user && inside);
                if let Ok(wants) = wants {
                    if user {
                        model.pass();
                    }
                    prop_assert_eq!(wants, model.is_wanted() || !model.done.is_empty());
                }
            }
            Op::Snapshot => cookies.push((rcu.snapshot(), model.ended + 1)),
            Op::Start => {
                cookies.push((rcu.start(), model.ended + 1));
                model.wanted = model.ended + 1;
            }
            Op::Wait(which) => {
                if !cookies.is_empty() {
                    let (cookie, at) = cookies[which % cookies.len()];
                    let waits = model.ended < at;
                    prop_assert_eq!(refused(|| rcu.wait(cookie)), waits && inside);
                    if waits && !inside {
                        model.pass();
                    }
                }
            }
            Op::Full(asks) => {
                let cookie = if asks {
                    model.wanted = model.ended + 1;
                    rcu.start_full()
                } else {
                    rcu.snapshot_full()
                };
                full.push((cookie, model.ended + 1));
            }
            Op::WaitFull(which) => {
                if !full.is_empty() {
                    let (cookie, at) = full[which % full.len()];
                    let waits = model.ended < at;
                    prop_assert_eq!(refused(|| rcu.wait_full(cookie)), waits && inside);
                    if waits && !inside {
                        model.pass();
                    }
                }
            }
            Op::QuiescentState => {
                if let Some(token) = tokens.pop() {
                    // SAFETY: the token was not given back yet; the new one stands in its place.
                    tokens.push(unsafe { rcu.quiescent_state(token) });
                    if model.nesting == 1 && model.is_wanted() {
                        model.pass();
                    }
                }
            }
            Op::Drive => {
                let wanted = model.is_wanted();
                prop_assert_eq!(rcu.drive(), wanted && inside);
                if wanted && !inside {
                    model.pass();
                }
            }
            Op::Synchronize => {
                prop_assert_eq!(refused(|| rcu.synchronize()), inside);
                if inside {
                    model.wanted = model.ended + 1;
                } else {
                    model.pass();
                }
            }
            Op::Barrier => {
                prop_assert_eq!(refused(|| rcu.barrier()), inside);
                if !inside {
                    model.pass();
                    model.run();
                }
            }
        }
        prop_assert_eq!(rcu.in_section(), model.nesting > 0);
        prop_assert_eq!(rcu.grace_periods() as u128, model.ended);
        prop_assert_eq!(rcu.pending(), model.done.len() + model.waiting.len());
        for &(cookie, at) in &cookies {
            prop_assert_eq!(rcu.poll(cookie), model.ended >= at);
        }
        for &(cookie, at) in &full {
            prop_assert_eq!(rcu.poll_full(cookie), model.ended >= at);
        }
        prop_assert_eq!(&RAN.with_borrow(Vec::clone), &model.ran);
    }
    for token in tokens {
        // SAFETY: the token was not given back yet.
        unsafe { rcu.exit(token) };
    }
    while rcu.pending() > 0 {
        rcu.barrier();
        model.pass();
        model.run();
    }
    drop(rcu);
    prop_assert_eq!(RAN.take(), model.ran);
    for object in objects {
        // SAFETY: made by `Box::into_raw`; no callback is left.
        drop(unsafe { Box::from_raw(object) });
    }
    Ok(())
}

proptest! {
    #[test]
    fn does_as_the_model_does(ops in vec(op(), 0..120)) {
        check(&ops)?;
    }
}
