//! A dull RCU, and what can be wrong with one.
//!
//! The control of the torture: a grace-period detector of a few hundred lines that is right by inspection, and wrong in one
//! way at a time when told so. Without a fault the torture must pass it, with each fault it must flag it: a tester that
//! flags nothing, or everything, tests nothing (rcutorture's `busted`).
//!
//! # Life of a grace period
//! One thread runs them, one after the other: the sequence moves on, a full fence, then every slot is marked as *wanted*.
//! A slot whose reader is outside takes the mark off itself by the driver; else the reader does when it leaves its outermost
//! section, and reports. The grace period ends when all have reported.
//!
//! # Orderings
//! - Enter: store of the nesting, full fence, loads of the section / unlink, full fence (in `snapshot`, and the driver's after it
//!   moved the sequence), load of the nesting.
//! - Exit: store of the nesting (Release), full fence, load of `wanted` / store of `wanted`, full fence, load of the nesting
//!   (Acquire): one of the two sees the other, and the mark is taken off by an exchange, once.

use rcu_core::{Callback, Cookie, GracePeriod, Head, Rcu, Seq};
use std::cell::Cell;
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    Nothing,
    /// A grace period in sixteen waits for nobody.
    ReturnsEarly,
    /// Slots that came after the last grace period are not waited for.
    MissesNewReader,
    /// One slot is never waited for.
    SkipsSlot,
    /// The first exit ends the whole nest.
    ForgetsNested,
    /// A reader's report is lost once in a while.
    LostReport,
    /// Sections that belong to no thread are not waited for.
    IgnoresSend,
    /// A quiescent state counts although another guard exists.
    QuiescentIgnoresNesting,
    /// Cookies count on a grace period that has begun already.
    CountsOnTheCurrent,
    /// A cookie that was done is not, later.
    ForgetsDone,
    /// `barrier` returns at once.
    BarrierReturns,
    /// A callback in a hundred is forgotten.
    LosesCallback,
    /// A callback in eight runs at once.
    RunsAtOnce,
    /// Every second expedited grace period waits for nobody.
    ExpeditedEarly,
}

/// One reader.
struct Slot {
    nesting: AtomicUsize,
    wanted: AtomicBool,
    /// A thread has it.
    taken: AtomicBool,
}

impl Slot {
    const fn new() -> Self {
        Self {
            nesting: AtomicUsize::new(0),
            wanted: AtomicBool::new(false),
            taken: AtomicBool::new(true),
        }
    }
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(NonNull<Head>, Cookie)>,
    queued: usize,
}

// SAFETY: what is queued may be run on any thread (debt 3 of `call`).
unsafe impl Send for Queue {}

pub(crate) struct Plain {
    wrong: Wrong,
    seq: AtomicUsize,
    asked: AtomicUsize,
    slots: Mutex<Vec<&'static Slot>>,
    /// How many of the slots a grace period waits for that misses newcomers.
    known: AtomicUsize,
    /// Slots whose report is missing.
    missing: AtomicUsize,
    queue: Mutex<Queue>,
    ran: AtomicUsize,
    turn: AtomicUsize,
}

thread_local! {
    /// This thread's slot.
    static SLOT: Cell<Option<&'static Slot>> = const { Cell::new(None) };
    static AT_THE_END: GiveBack = const { GiveBack };
}

struct GiveBack;

impl Drop for GiveBack {
    fn drop(&mut self) {
        if let Some(slot) = SLOT.take() {
            if slot.nesting.load(Ordering::Relaxed) == 0 {
                slot.taken.store(false, Ordering::Release);
            } else {
                // A guard lives on: the slot is the thread's to its very end, and lost then.
                SLOT.set(Some(slot));
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Plain {
    /// One that lives for ever, with its threads.
    pub(crate) fn start(wrong: Wrong) -> &'static Self {
        let this: &'static Self = Box::leak(Box::new(Self {
            wrong,
            seq: AtomicUsize::new(Seq::INITIAL.raw()),
            asked: AtomicUsize::new(Cookie::COMPLETED.raw()),
            slots: Mutex::default(),
            known: AtomicUsize::new(0),
            missing: AtomicUsize::new(0),
            queue: Mutex::default(),
            ran: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
        }));
        thread::spawn(move || {
            loop {
                if this.is_wanted() {
                    this.grace_period();
                } else {
                    thread::sleep(Duration::from_micros(50));
                }
            }
        });
        thread::spawn(move || {
            loop {
                if this.run_ripe() == 0 {
                    thread::sleep(Duration::from_micros(50));
                }
            }
        });
        this
    }

    /// Yes once in `n` times, if `wrong` is what is wrong.
    fn errs(&self, wrong: Wrong, n: usize) -> bool {
        self.wrong == wrong && self.turn.fetch_add(1, Ordering::Relaxed) % n == n - 1
    }

    fn seq(&self) -> Seq {
        Seq::from_raw(self.seq.load(Ordering::Acquire))
    }

    fn is_wanted(&self) -> bool {
        !self
            .seq()
            .is_done(Cookie::from_raw(self.asked.load(Ordering::Relaxed)))
    }

    fn ask(&self, cookie: Cookie) {
        let mut asked = self.asked.load(Ordering::Relaxed);
        while !cookie.is_no_later_than(Cookie::from_raw(asked)) {
            let done = self.asked.compare_exchange(
                asked,
                cookie.raw(),
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            match done {
                Ok(_) => return,
                Err(now) => asked = now,
            }
        }
    }

    /// Only on the driver's thread.
    fn grace_period(&self) {
        let started = self.seq().started();
        self.seq.store(started.raw(), Ordering::Release);
        fence(Ordering::SeqCst);
        let mut slots = lock(&self.slots).clone();
        if self.wrong == Wrong::MissesNewReader {
            let now = slots.len();
            slots.truncate(self.known.swap(now, Ordering::Relaxed));
        }
        if self.errs(Wrong::ReturnsEarly, 16) {
            slots.clear();
        }
        if self.wrong == Wrong::SkipsSlot && slots.len() > 1 {
            slots.remove(1);
        }
        for slot in slots {
            self.missing.fetch_add(1, Ordering::Relaxed);
            slot.wanted.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if slot.nesting.load(Ordering::Acquire) == 0
                && slot.wanted.swap(false, Ordering::AcqRel)
            {
                self.missing.fetch_sub(1, Ordering::Relaxed);
            }
        }
        while self.missing.load(Ordering::Acquire) > 0 {
            thread::yield_now();
        }
        self.seq.store(started.ended().raw(), Ordering::Release);
    }

    fn run_ripe(&'static self) -> usize {
        let mut ran = 0;
        loop {
            let ripe = lock(&self.queue)
                .waiting
                .pop_front_if(|(_, cookie)| self.seq().is_done(*cookie));
            let Some((head, _)) = ripe else { return ran };
            if !self.errs(Wrong::LosesCallback, 100) {
                run(head);
            }
            self.ran.fetch_add(1, Ordering::Release);
            ran += 1;
        }
    }

    fn slot(&self) -> &'static Slot {
        SLOT.get().unwrap_or_else(|| self.take_slot())
    }

    #[cold]
    fn take_slot(&self) -> &'static Slot {
        // A thread past its end has none of its own any more; what it takes then is lost.
        let _ = AT_THE_END.try_with(|_| ());
        let slot = self.free_slot();
        SLOT.set(Some(slot));
        slot
    }

    fn free_slot(&self) -> &'static Slot {
        let mut slots = lock(&self.slots);
        // One that misses newcomers would know a slot that was somebody else's before.
        let again = self.wrong != Wrong::MissesNewReader;
        let free = slots
            .iter()
            .find(|slot| again && !slot.taken.swap(true, Ordering::AcqRel));
        if let Some(slot) = free {
            return slot;
        }
        let slot = Box::leak(Box::new(Slot::new()));
        slots.push(slot);
        slot
    }

    fn leave(&self, slot: &Slot) {
        slot.nesting.store(0, Ordering::Release);
        fence(Ordering::SeqCst);
        if slot.wanted.load(Ordering::Relaxed)
            && slot.wanted.swap(false, Ordering::AcqRel)
            && !self.errs(Wrong::LostReport, 64)
        {
            self.missing.fetch_sub(1, Ordering::Release);
        }
    }

    /// Enters a section that belongs to no thread: a slot of its own.
    pub(crate) fn enter_send(&'static self) -> Sent {
        let slot = self.free_slot();
        if self.wrong != Wrong::IgnoresSend {
            slot.nesting.store(1, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        Sent(self, slot)
    }

    fn give(&'static self, expedited: bool) -> Cookie {
        let cookie = self.snapshot();
        if expedited && self.errs(Wrong::ExpeditedEarly, 2) {
            return Cookie::COMPLETED;
        }
        self.ask(cookie);
        cookie
    }
}

/// A section that belongs to no thread.
pub(crate) struct Sent(&'static Plain, &'static Slot);

impl Drop for Sent {
    fn drop(&mut self) {
        self.0.leave(self.1);
        self.1.taken.store(false, Ordering::Release);
    }
}

/// Runs a callback whose time has come, or what follows is the fault that is to be flagged: the torture's heads stay valid.
fn run(head: NonNull<Head>) {
    // SAFETY: queued heads are valid until their callback.
    if let Callback::Run(func) = unsafe { head.as_ref() }.callback() {
        // SAFETY: as above.
        unsafe { func(head) };
    }
}

// SAFETY: without a fault, as the module's header says. With one, only the torture uses it, whose elements are never freed.
unsafe impl GracePeriod for &'static Plain {
    fn snapshot(&self) -> Cookie {
        fence(Ordering::SeqCst);
        let seq = self.seq();
        if self.wrong == Wrong::CountsOnTheCurrent && seq.in_progress() {
            return Cookie::from_raw(seq.ended().raw());
        }
        seq.snapshot()
    }

    fn start(&self) -> Cookie {
        self.give(false)
    }

    fn start_expedited(&self) -> Cookie {
        self.give(true)
    }

    fn poll(&self, cookie: Cookie) -> bool {
        let done = self.seq().is_done(cookie);
        done && !self.errs(Wrong::ForgetsDone, 100)
    }

    fn wait(&self, cookie: Cookie) {
        self.ask(cookie);
        while !self.seq().is_done(cookie) {
            thread::yield_now();
        }
    }

    fn drive(&self) -> bool {
        self.is_wanted()
    }

    fn grace_periods(&self) -> usize {
        self.seq().completed()
    }
}

// SAFETY: as above; 5: a count; 6: one queue, whose runner holds no lock and is inside nothing; 7: what was queued before is run
// first, by one thread.
unsafe impl Rcu for &'static Plain {
    type Token = ();

    fn enter(&self) {
        let slot = self.slot();
        let nesting = slot.nesting.load(Ordering::Relaxed);
        slot.nesting.store(nesting + 1, Ordering::Relaxed);
        if nesting == 0 {
            fence(Ordering::SeqCst);
        }
    }

    unsafe fn exit(&self, (): ()) {
        let slot = self.slot();
        let nesting = slot.nesting.load(Ordering::Relaxed);
        match nesting {
            0 | 1 => self.leave(slot),
            _ if self.wrong == Wrong::ForgetsNested => self.leave(slot),
            _ => slot.nesting.store(nesting - 1, Ordering::Release),
        }
    }

    unsafe fn call(&self, head: NonNull<Head>, callback: Callback) {
        // SAFETY: the head is valid (debt 1).
        unsafe { head.as_ref() }.set_callback(callback);
        if self.errs(Wrong::RunsAtOnce, 8) {
            run(head);
            return;
        }
        let mut queue = lock(&self.queue);
        let cookie = self.start();
        queue.waiting.push_back((head, cookie));
        queue.queued += 1;
    }

    unsafe fn quiescent_state(&self, (): ()) {
        let slot = self.slot();
        let nesting = slot.nesting.load(Ordering::Relaxed);
        if nesting == 1 || self.wrong == Wrong::QuiescentIgnoresNesting {
            self.leave(slot);
            slot.nesting.store(nesting, Ordering::Relaxed);
            fence(Ordering::SeqCst);
        }
    }

    fn barrier(&self) {
        if self.wrong == Wrong::BarrierReturns {
            return;
        }
        let queued = lock(&self.queue).queued;
        while self.ran.load(Ordering::Acquire).wrapping_sub(queued) > usize::MAX / 2 {
            thread::yield_now();
        }
    }
}
