//! The tree against rcu-tiny: the same operations on one thread, on both, and the same answers where there is one
//! answer only.
//!
//! # What must be equal, and what may differ
//! The two end their grace periods at different moments: tiny at any moment outside of sections at which it is asked,
//! the tree when it is driven, and one that is in progress counts for nobody who comes later. So a cookie has a moment
//! from which it *may* be done, and one from which it *must* be; both implementations must lie in between, and hence
//! agree outside of the gap:
//!
//! - *May*: from the first moment outside of every section since it was taken (at once, if it was taken outside): every
//!   section that began before it has ended then, as there is one thread.
//! - *Must*, a full cookie: once any wait for a whole grace period returned that began after it was taken. A small one:
//!   once two such waits did (R7). Both: once `drive` returned false outside, if it was asked for; and when `wait`
//!   returned for it.
//! - Done stays done.
//! - Callbacks: each once; none before its cookie of that implementation is done, nor inside a section; those of one
//!   kind (ordinary, lazy) in the order of queueing. After `barrier` the two logs have the same callbacks, and each
//!   kind in the same order.
//! - Refusals: inside a section, waits and barriers panic on both and leave no trace.
#![cfg(not(loom))]

mod common;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rcu_core::cpu::{OneCpu, PerSlot, UpLock};
use rcu_core::{Callback, Cookie, FullCookie, GracePeriod, Head, Rcu};
use rcu_tiny::Tiny;
use rcu_tree::{Geometry, Node, Tree, TreeSlot};
use std::cell::{Cell, RefCell};
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

#[derive(Clone, Copy, Debug)]
enum Op {
    Enter,
    /// Gives one of the tokens back, whichever.
    Exit(usize),
    QuiescentState(usize),
    /// Lazy, if so.
    Call(bool),
    /// Asking by a grace period of either kind, if so.
    Small(Option<Kind>),
    Full(Option<Kind>),
    /// For one of the cookies.
    WaitSmall(usize, Kind),
    WaitFull(usize, Kind),
    Synchronize(Kind),
    /// Once, or until there is nothing to do.
    Drive(bool),
    RunCallbacks,
    Barrier,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Normal,
    Expedited,
}

fn op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![2 => Just(Kind::Normal), 1 => Just(Kind::Expedited)];
    let asks = proptest::option::of(kind.clone());
    prop_oneof![
        4 => Just(Op::Enter),
        6 => any::<usize>().prop_map(Op::Exit),
        2 => any::<usize>().prop_map(Op::QuiescentState),
        6 => any::<bool>().prop_map(Op::Call),
        3 => asks.clone().prop_map(Op::Small),
        3 => asks.prop_map(Op::Full),
        1 => (any::<usize>(), kind.clone()).prop_map(|(i, kind)| Op::WaitSmall(i, kind)),
        1 => (any::<usize>(), kind.clone()).prop_map(|(i, kind)| Op::WaitFull(i, kind)),
        2 => kind.prop_map(Op::Synchronize),
        5 => any::<bool>().prop_map(Op::Drive),
        3 => Just(Op::RunCallbacks),
        1 => Just(Op::Barrier),
    ]
}

/// What both sides share: time, as one thread sees it.
#[derive(Default)]
struct Time {
    nesting: Cell<usize>,
    /// Moments outside so far.
    outside: Cell<usize>,
    /// Waits for a whole grace period so far.
    waits: Cell<usize>,
}

impl Time {
    /// The count of moments outside from which what begins now may be done.
    fn may(&self) -> usize {
        self.outside.get() + usize::from(self.nesting.get() > 0)
    }

    fn leave(&self, nesting: usize) {
        self.nesting.set(nesting);
        if nesting == 0 {
            self.outside.set(self.outside.get() + 1);
        }
    }
}

#[repr(C)]
struct Object<R> {
    head: Head,
    id: usize,
    cookie: Cookie,
    may: usize,
    side: *const Side<R>,
}

#[derive(Clone, Copy, Debug)]
struct Taken<C> {
    cookie: C,
    asked: bool,
    may: usize,
    waits: usize,
    done: bool,
}

/// One of the two, with all that is alive on it.
struct Side<R> {
    name: &'static str,
    rcu: *const R,
    time: *const Time,
    log: RefCell<Vec<usize>>,
    wrong: RefCell<Vec<String>>,
}

impl<R: Rcu> Side<R> {
    fn rcu(&self) -> &R {
        // SAFETY: the RCU outlives its side.
        unsafe { &*self.rcu }
    }

    fn time(&self) -> &Time {
        // SAFETY: the time outlives both sides.
        unsafe { &*self.time }
    }

    /// # Safety
    /// `head` is that of an `Object<R>` that lives to the end of its case.
    unsafe fn run(head: NonNull<Head>) {
        // SAFETY: the head is the first field.
        let object = unsafe { head.cast::<Object<R>>().as_ref() };
        // SAFETY: the side outlives its callbacks.
        let side = unsafe { &*object.side };
        let wrong = |what: &str| {
            let text = format!("{}: callback {} {what}", side.name, object.id);
            side.wrong.borrow_mut().push(text);
        };
        if side.time().nesting.get() > 0 {
            wrong("inside a section");
        }
        if side.time().outside.get() < object.may || !side.rcu().poll(object.cookie) {
            wrong("before its grace period");
        }
        side.log.borrow_mut().push(object.id);
    }
}

/// The state of one side that an operation changes.
struct Alive<R: Rcu> {
    side: Box<Side<R>>,
    tokens: Vec<R::Token>,
    small: Vec<Taken<Cookie>>,
    full: Vec<Taken<FullCookie>>,
    objects: Vec<*mut Object<R>>,
}

/// Whether `f` was refused.
fn refused(f: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(f)).is_err()
}

impl<R: Rcu> Alive<R> {
    fn new(name: &'static str, rcu: &R, time: &Time) -> Self {
        let side = Box::new(Side {
            name,
            rcu,
            time,
            log: RefCell::default(),
            wrong: RefCell::default(),
        });
        Self {
            side,
            tokens: Vec::new(),
            small: Vec::new(),
            full: Vec::new(),
            objects: Vec::new(),
        }
    }

    fn taken<C>(&self, cookie: C, asked: bool) -> Taken<C> {
        let time = self.side.time();
        Taken {
            cookie,
            asked,
            may: time.may(),
            waits: time.waits.get(),
            done: false,
        }
    }

    /// Does it, and says whether it was refused. `run` runs what is ready.
    fn perform(&mut self, op: Op, run: impl Fn(&R)) -> bool {
        let side = NonNull::from(&*self.side);
        // SAFETY: the side is boxed, and lives as long as `self`.
        let rcu = unsafe { side.as_ref() }.rcu();
        match op {
            Op::Enter => self.tokens.push(rcu.enter()),
            Op::Exit(which) => {
                if !self.tokens.is_empty() {
                    let token = self.tokens.swap_remove(which % self.tokens.len());
                    // SAFETY: from this RCU on this thread, not given back yet.
                    unsafe { rcu.exit(token) };
                }
            }
            Op::QuiescentState(which) => {
                if !self.tokens.is_empty() {
                    let which = which % self.tokens.len();
                    // SAFETY: as above; the new token stands in its place.
                    self.tokens[which] = unsafe { rcu.quiescent_state(self.tokens[which]) };
                }
            }
            Op::Call(lazy) => self.call(rcu, lazy),
            Op::Small(asks) => {
                let cookie = match asks {
                    None => rcu.snapshot(),
                    Some(Kind::Normal) => rcu.start(),
                    Some(Kind::Expedited) => rcu.start_expedited(),
                };
                self.small.push(self.taken(cookie, asks.is_some()));
            }
            Op::Full(asks) => {
                let cookie = match asks {
                    None => rcu.snapshot_full(),
                    Some(Kind::Normal) => rcu.start_full(),
                    Some(Kind::Expedited) => rcu.start_full_expedited(),
                };
                self.full.push(self.taken(cookie, asks.is_some()));
            }
            Op::WaitSmall(which, kind) => {
                let Some(taken) = self.small.get(which % self.small.len().max(1)) else {
                    return false;
                };
                let cookie = taken.cookie;
                if self.side.time().nesting.get() > 0 && !rcu.poll(cookie) {
                    // Whether it is done by now may differ.
                    return false;
                }
                match kind {
                    Kind::Normal => rcu.wait(cookie),
                    Kind::Expedited => rcu.wait_expedited(cookie),
                }
                assert!(rcu.poll(cookie), "{}: waited in vain", self.side.name);
            }
            Op::WaitFull(which, kind) => {
                let Some(taken) = self.full.get(which % self.full.len().max(1)) else {
                    return false;
                };
                let cookie = taken.cookie;
                if self.side.time().nesting.get() > 0 && !rcu.poll_full(cookie) {
                    return false;
                }
                match kind {
                    Kind::Normal => rcu.wait_full(cookie),
                    Kind::Expedited => rcu.wait_full_expedited(cookie),
                }
                assert!(rcu.poll_full(cookie), "{}: waited in vain", self.side.name);
            }
            Op::Synchronize(Kind::Normal) => return refused(|| rcu.synchronize()),
            Op::Synchronize(Kind::Expedited) => return refused(|| rcu.synchronize_expedited()),
            Op::Drive(false) => _ = rcu.drive(),
            Op::Drive(true) => {
                while rcu.drive() && self.side.time().nesting.get() == 0 {
                    std::thread::yield_now();
                }
            }
            Op::RunCallbacks => {
                if self.side.time().nesting.get() == 0 {
                    run(rcu);
                }
            }
            Op::Barrier => return refused(|| rcu.barrier()),
        }
        false
    }

    fn call(&mut self, rcu: &R, lazy: bool) {
        // The kind is the number's parity.
        let id = self.objects.len() * 2 + usize::from(lazy);
        let object = Box::into_raw(Box::new(Object {
            head: Head::new(),
            id,
            cookie: rcu.snapshot(),
            may: self.side.time().may(),
            side: &raw const *self.side,
        }));
        self.objects.push(object);
        let Some(head) = NonNull::new(object.cast::<Head>()) else {
            unreachable!("a box")
        };
        let callback = Callback::Run(Side::<R>::run);
        if lazy {
            // SAFETY: the object lives to the end of its case, is on no list, and nobody reads it.
            unsafe { rcu.call_lazy(head, callback) };
        } else {
            // SAFETY: as above.
            unsafe { rcu.call(head, callback) };
        }
    }

    /// What holds after every operation.
    fn check(&mut self, driven: bool) -> Result<(), TestCaseError> {
        let (name, time) = (self.side.name, self.side.time());
        let (outside, waits) = (time.outside.get(), time.waits.get());
        let verdict = |done: bool, was: bool, may: usize, must: bool| {
            prop_assert!(!done || outside >= may, "{name}: done early");
            prop_assert!(done || !must, "{name}: not done though it must be");
            prop_assert!(done || !was, "{name}: done no more");
            Ok(done)
        };
        for taken in &mut self.small {
            // SAFETY: the RCU outlives its side.
            let done = unsafe { &*self.side.rcu }.poll(taken.cookie);
            let must = waits >= taken.waits + 2 || (driven && taken.asked);
            taken.done = verdict(done, taken.done, taken.may, must)?;
        }
        for taken in &mut self.full {
            // SAFETY: as above.
            let done = unsafe { &*self.side.rcu }.poll_full(taken.cookie);
            let must = waits > taken.waits || (driven && taken.asked);
            taken.done = verdict(done, taken.done, taken.may, must)?;
        }
        let wrong = self.side.wrong.borrow();
        prop_assert!(wrong.is_empty(), "{:?}", wrong);
        for kind in 0..2 {
            let ids = self.of_kind(kind);
            let in_order = ids.windows(2).all(|pair| pair[0] < pair[1]);
            prop_assert!(in_order, "{name}: out of order, or twice: {ids:?}");
        }
        Ok(())
    }

    /// What has run of one kind.
    fn of_kind(&self, kind: usize) -> Vec<usize> {
        let log = self.side.log.borrow();
        log.iter().copied().filter(|id| id % 2 == kind).collect()
    }

    /// Ends all sections and runs all callbacks. (On a failure everything is leaked instead.)
    fn finish(self) {
        for token in self.tokens {
            // SAFETY: from this RCU on this thread, not given back yet.
            unsafe { self.side.rcu().exit(token) };
        }
        self.side.time().leave(0);
        self.side.rcu().barrier();
        assert_eq!(self.side.log.borrow().len(), self.objects.len());
        for object in self.objects {
            // SAFETY: made by `Box::into_raw`; its callback has run, by the barrier.
            drop(unsafe { Box::from_raw(object) });
        }
    }
}

/// Keeps the refusals that are part of the test off the terminal.
fn quiet() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let text = info.payload_as_str().unwrap_or_default();
            if !text.contains("inside a read-side critical section") {
                loud(info);
            }
        }));
    });
}

fn differ<R: Rcu>(ops: &[Op], tree: &R, run_callbacks: impl Fn(&R)) -> Result<(), TestCaseError> {
    quiet();
    // Leaked, as is what is alive when a case fails: queued callbacks refer to it.
    let time: &'static Time = Box::leak(Box::default());
    let tiny: &'static Tiny = Box::leak(Box::new(Tiny::new()));
    let mut tiny = ManuallyDrop::new(Alive::new("tiny", tiny, time));
    let mut tree = ManuallyDrop::new(Alive::new("tree", tree, time));
    for &op in ops {
        let nesting = time.nesting.get();
        // A moment outside begins with the exit itself.
        match op {
            Op::Enter => time.nesting.set(nesting + 1),
            Op::Exit(_) if nesting > 0 => time.leave(nesting - 1),
            Op::QuiescentState(_) if nesting == 1 => time.outside.set(time.outside.get() + 1),
            _ => {}
        }
        let by_tiny = tiny.perform(op, Tiny::quiescent);
        let by_tree = tree.perform(op, &run_callbacks);
        prop_assert_eq!(by_tiny, by_tree, "refused by one");
        let whole = matches!(op, Op::Synchronize(_));
        prop_assert_eq!(by_tiny, nesting > 0 && (whole || matches!(op, Op::Barrier)));
        if whole && !by_tiny {
            time.waits.set(time.waits.get() + 1);
        }
        let driven = nesting == 0 && matches!(op, Op::Drive(true));
        tiny.check(driven)?;
        tree.check(driven)?;
        if matches!(op, Op::Barrier) && nesting == 0 {
            for kind in 0..2 {
                prop_assert_eq!(tiny.of_kind(kind), tree.of_kind(kind));
            }
            prop_assert_eq!(tree.side.log.borrow().len(), tree.objects.len());
        }
    }
    ManuallyDrop::into_inner(tiny).finish();
    ManuallyDrop::into_inner(tree).finish();
    Ok(())
}

/// A machine with one CPU. Leaked, like whatever a failed case leaves behind.
fn one_cpu() -> &'static Tree<'static, OneCpu> {
    // SAFETY: used by this thread only.
    let lock = unsafe { UpLock::new() };
    let slots = Box::leak(Box::new([TreeSlot::new(lock)]));
    let nodes = Box::leak(Box::new([Node::new()]));
    // SAFETY: each case uses its tree from one thread only.
    let cpu = unsafe { OneCpu::new() };
    // SAFETY: leaked before its first use.
    Box::leak(Box::new(unsafe {
        Tree::new(cpu, PerSlot::from_slice(slots), Geometry::new(1), nodes)
    }))
}

proptest! {
    #[test]
    fn r8_tree_of_one_cpu_does_as_tiny_does(ops in vec(op(), 0..150)) {
        differ(&ops, one_cpu(), |tree| _ = tree.run_callbacks())?;
    }

    #[test]
    fn r8_tree_of_threads_does_as_tiny_does(ops in vec(op(), 0..60)) {
        differ(&ops, common::tree(8, 8), |tree| _ = tree.run_callbacks())?;
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// Full cookies are done by any time that passes, inside or not.
    FullEarly,
    /// What was done is not, two grace periods later.
    Forgets,
    /// A wait in a hurry returns at once.
    ExpeditedReturns,
    /// Callbacks run when they are queued.
    RunsAtOnce,
    /// Every third lazy callback is lost.
    LosesLazy,
    /// A barrier inside a section returns.
    BarrierInside,
    /// `drive` says that there is nothing to do.
    DriveGivesUp,
}

/// Tiny once more, with a fault: what the comparison must see.
struct Faulty {
    tiny: Tiny,
    fault: Fault,
    lazy: Cell<usize>,
}

// SAFETY: faults apart, it is tiny. With a fault, objects and sides of a failed case are leaked.
unsafe impl GracePeriod for Faulty {
    fn snapshot(&self) -> Cookie {
        self.tiny.snapshot()
    }
    fn start(&self) -> Cookie {
        self.tiny.start()
    }
    fn poll(&self, cookie: Cookie) -> bool {
        self.tiny.poll(cookie)
    }
    fn wait(&self, cookie: Cookie) {
        self.tiny.wait(cookie);
    }
    fn synchronize_expedited(&self) {
        // Refused inside, so that this is not what gives it away.
        if self.fault != Fault::ExpeditedReturns || self.tiny.in_section() {
            self.tiny.synchronize();
        }
    }
    fn poll_full(&self, cookie: FullCookie) -> bool {
        let forgets = || self.tiny.grace_periods() % 3 == 2;
        match self.fault {
            Fault::FullEarly => self.tiny.in_section() || self.tiny.poll(cookie.normal()),
            Fault::Forgets => self.tiny.poll(cookie.normal()) && !forgets(),
            _ => self.tiny.poll(cookie.normal()),
        }
    }
    fn drive(&self) -> bool {
        self.fault != Fault::DriveGivesUp && self.tiny.drive()
    }
    fn grace_periods(&self) -> usize {
        self.tiny.grace_periods()
    }
}

// SAFETY: as above.
unsafe impl Rcu for Faulty {
    type Token = rcu_tiny::Section;

    fn enter(&self) -> Self::Token {
        self.tiny.enter()
    }
    unsafe fn exit(&self, token: Self::Token) {
        // SAFETY: the caller's debt.
        unsafe { self.tiny.exit(token) };
    }
    unsafe fn call(&self, head: NonNull<Head>, callback: Callback) {
        match callback {
            // SAFETY: the fault that is tested, on an object that stays.
            Callback::Run(func) if self.fault == Fault::RunsAtOnce => unsafe { func(head) },
            // SAFETY: the caller's debts.
            _ => unsafe { self.tiny.call(head, callback) },
        }
    }
    unsafe fn call_lazy(&self, head: NonNull<Head>, callback: Callback) {
        self.lazy.set(self.lazy.get() + 1);
        if self.fault != Fault::LosesLazy || !self.lazy.get().is_multiple_of(3) {
            // SAFETY: the caller's debts.
            unsafe { self.tiny.call(head, callback) };
        }
    }
    fn barrier(&self) {
        if self.fault != Fault::BarrierInside || !self.tiny.in_section() {
            self.tiny.barrier();
        }
    }
}

/// The comparison finds every fault, and none where there is none.
#[test]
fn faults_are_found() {
    for fault in [
        Fault::None,
        Fault::FullEarly,
        Fault::Forgets,
        Fault::ExpeditedReturns,
        Fault::RunsAtOnce,
        Fault::LosesLazy,
        Fault::BarrierInside,
        Fault::DriveGivesUp,
    ] {
        let config = Config {
            cases: 100,
            max_shrink_iters: 0,
            failure_persistence: None,
            ..Config::default()
        };
        let mut runner =
            TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let outcome = runner.run(&vec(op(), 0..100), |ops| {
            let faulty: &'static Faulty = Box::leak(Box::new(Faulty {
                tiny: Tiny::new(),
                fault,
                lazy: Cell::new(0),
            }));
            differ(&ops, faulty, |faulty| faulty.tiny.quiescent())
        });
        assert_eq!(
            outcome.is_ok(),
            fault == Fault::None,
            "{fault:?} {outcome:?}"
        );
    }
}
