//! Grace periods on one CPU.
//!
//! Source: Linux `kernel/rcu/tiny.c` (facts only). Readers there are whatever cannot be preempted;
//! here they count themselves, in one word, so that a grace period asked for inside a section is
//! refused and not merely wrong.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `nesting` | sections entered and not left; 0: nobody reads | `enter`, `exit` |
//! | `seq` | the [`Seq`], always idle: a grace period takes no time here | `pass`, in a critical section |
//! | `callbacks` | two lists, a flag, the latest request, two counts | anyone, in a critical section |
//! | `place` | where the outermost section was entered, if that is kept | `enter` |
//!
//! # Kinds of grace periods
//! There is one kind: expedited ones are the normal ones, a full cookie is the small one twice (R8), a lazy callback is
//! a callback (T-5). All of them take no time, so there is nothing to hurry and nothing to put off.
//!
//! # Life of a callback
//! `call` puts it on `waiting`. A quiescent state (a moment at which `nesting` is 0) moves all of
//! `waiting` behind `done` and the sequence on by one grace period. `quiescent` and `barrier` take `done` out
//! and run it, outside of the critical section (T-3).
//!
//! # Invariants
//! - I1. `seq` moves only while `nesting` is 0: no section spans a grace period.
//! - I2. The batch being run, then `done`, then `waiting`: the order of queueing. One batch is run at a time.
//! - I3. Interrupts nest: one that comes between the load and the store of `nesting` leaves the word
//!   as it found it.
//! - I4. No foreign code runs inside a critical section of this module.
//!
//! # Orderings
//! One CPU sees its own accesses in order; what is left is the compiler, and a value that is sent
//! to another thread, which orders everything.
//! - P2. `enter`: store of `nesting`, compiler fence, the section's loads.
//! - P3. `exit`: the section's loads, store of `nesting` (Release).
//! - P4. `pass`: store of `seq` (Release) / `poll` (Acquire).
//! - P5. `snapshot`: what the caller unlinked, compiler fence, load of `seq`.
//!
//! # Progress
//! `enter`, `exit`, `poll`, `snapshot`: a few instructions. The rest disables interrupts for
//! constant time. Nothing waits. Memory is unbounded if nobody calls `quiescent`, `barrier` or acts on `tick`.
//!
//! # Contexts
//! | function | in a section | from a callback | from an interrupt |
//! |---|---|---|---|
//! | `enter`, `exit`, `call`, `snapshot`, `start`, `poll`, `drive`, `tick(false)`, `stats` | yes | yes | yes |
//! | `quiescent_state` | passes nothing on, unless it is the only one | yes | yes |
//! | `wait`, `synchronize`, `quiescent`, `tick(true)` | panics | yes | if it interrupted no section |
//! | `barrier` | panics | panics | if it interrupted neither section nor callback |

use crate::place::Place;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering, compiler_fence};
use critical_section::Mutex;
use rcu_core::{Callback, CbList, Cookie, FullCookie, GracePeriod, Head, Rcu, Seq};

/// How objects are freed whose callback is an offset.
type Kfree = unsafe fn(NonNull<u8>);

/// RCU on one CPU.
///
/// A value belongs to one thread at a time, which is checked: it is not `Sync`. To share one with
/// interrupt handlers in a static, promise by [`TinyStatic`](crate::TinyStatic) that there is one CPU.
///
/// ```compile_fail
/// fn share<T: Sync>() {}
/// share::<rcu_tiny::Tiny>();
/// ```
///
/// Dropping it runs the callbacks that are queued, and those that they queue; a section that was
/// entered and never left (a guard given to `mem::forget`) leaks them instead. A callback that queues
/// itself every time keeps it from ending.
pub struct Tiny {
    nesting: AtomicUsize,
    seq: AtomicUsize,
    callbacks: Mutex<RefCell<Callbacks>>,
    place: Place,
    kfree: Option<Kfree>,
    /// Not `Sync`.
    _one_thread: PhantomData<Cell<()>>,
}

/// What is changed in critical sections only.
struct Callbacks {
    /// Their grace period is over.
    done: CbList,
    /// For the next quiescent state.
    waiting: CbList,
    /// A batch is being run.
    running: bool,
    /// The latest cookie of `start`.
    wanted: Cookie,
    /// How many were queued, and how many have run or panicked, ever.
    queued: usize,
    run: usize,
}

/// Counts of one [`Tiny`]. They wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TinyStats {
    /// Grace periods that have passed.
    pub grace_periods: usize,
    /// Callbacks that were ever queued.
    pub callbacks_queued: usize,
    /// Callbacks that have run, panicking ones included. The batch being run is counted when it ends.
    pub callbacks_run: usize,
}

impl fmt::Display for TinyStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "grace periods {}, callbacks queued {}, run {}",
            self.grace_periods, self.callbacks_queued, self.callbacks_run
        )
    }
}

impl Callbacks {
    fn is_wanted(&self, now: Seq) -> bool {
        !self.waiting.is_empty() || !now.is_done(self.wanted)
    }
}

/// Evidence of one `enter` on a [`Tiny`].
#[derive(Clone, Copy, Debug)]
pub struct Section(());

impl Tiny {
    /// An RCU with nobody reading and nothing queued. Usable at once, before anything is set up.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            nesting: AtomicUsize::new(0),
            seq: AtomicUsize::new(Seq::INITIAL.raw()),
            callbacks: Mutex::new(RefCell::new(Callbacks {
                done: CbList::new(),
                waiting: CbList::new(),
                running: false,
                wanted: Cookie::COMPLETED,
                queued: 0,
                run: 0,
            })),
            place: Place::new(),
            kfree: None,
            _one_thread: PhantomData,
        }
    }

    /// With a way to free objects, for [`Callback::Free`]: `kfree` gets each object's start.
    ///
    /// That what is retired with an offset came from there is a debt of [`Rcu::call`].
    #[must_use]
    #[doc(alias = "kfree_rcu")]
    pub const fn with_kfree(mut self, kfree: Kfree) -> Self {
        self.kfree = Some(kfree);
        self
    }

    /// Reports a quiescent state, and runs the callbacks that are done with waiting, all of them.
    ///
    /// What the scheduler calls when it switches and the idle loop when it finds nothing to do.
    /// Called from a callback, or from an interrupt that came while callbacks ran, it leaves
    /// running to the call that does so already.
    ///
    /// # Panics
    /// Inside a section. If a callback panics so does this; the callbacks behind it stay queued, and
    /// run the next time.
    #[doc(alias = "rcu_note_context_switch")]
    #[track_caller]
    pub fn quiescent(&self) {
        self.refuse_in_section("quiescent");
        self.pass();
        self.run_done();
    }

    /// The timer interrupt's call: says whether the interrupted code, once it can, is to call
    /// [`quiescent`](Self::quiescent) (T-6). If the interrupt came `from_user` mode, that was a
    /// quiescent state by itself. Runs no callback.
    ///
    /// # Panics
    /// If it came from user mode inside a section.
    #[doc(alias = "rcu_sched_clock_irq")]
    #[must_use = "somebody has to call `quiescent`"]
    #[track_caller]
    pub fn tick(&self, from_user: bool) -> bool {
        if from_user {
            self.refuse_in_section("tick(true)");
            self.pass();
        }
        self.needs_quiescent()
    }

    /// Whether a call of [`quiescent`](Self::quiescent) would bring something about.
    #[must_use]
    pub fn needs_quiescent(&self) -> bool {
        let now = self.seq();
        self.with(|c| c.is_wanted(now) || (!c.done.is_empty() && !c.running))
    }

    /// How many callbacks are queued, the batch being run not counted.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.with(|c| c.done.len() + c.waiting.len())
    }

    /// What has happened so far.
    #[must_use]
    pub fn stats(&self) -> TinyStats {
        let grace_periods = self.grace_periods();
        self.with(|c| TinyStats {
            grace_periods,
            callbacks_queued: c.queued,
            callbacks_run: c.run,
        })
    }

    /// Whether a section is entered.
    #[must_use]
    #[doc(alias = "rcu_read_lock_held")]
    pub fn in_section(&self) -> bool {
        // ORDERING: Relaxed: same CPU (I3).
        self.nesting.load(Ordering::Relaxed) != 0
    }

    fn seq(&self) -> Seq {
        // ORDERING: P4 (poll side).
        Seq::from_raw(self.seq.load(Ordering::Acquire))
    }

    /// Works on the lists with interrupts off. `f` must not call foreign code (I4).
    fn with<T>(&self, f: impl FnOnce(&mut Callbacks) -> T) -> T {
        critical_section::with(|cs| f(&mut self.callbacks.borrow_ref_mut(cs)))
    }

    /// A quiescent state, which on one CPU is a whole grace period: everybody is outside (I1).
    fn pass(&self) {
        debug_assert!(!self.in_section(), "I1");
        self.with(|c| {
            // ORDERING: Relaxed: written in critical sections only.
            let now = Seq::from_raw(self.seq.load(Ordering::Relaxed));
            // ORDERING: P4 (end side).
            self.seq
                .store(now.started().ended().raw(), Ordering::Release);
            let ready = c.waiting.take();
            c.done.append(ready);
        });
    }

    /// Runs what is done, unless that is going on already (I2).
    fn run_done(&self) {
        let batch = self.with(|c| {
            let idle = !c.running && !c.done.is_empty();
            c.running |= idle;
            idle.then(|| c.done.take())
        });
        let Some(batch) = batch else { return };
        let mut batch = Batch {
            tiny: self,
            batch,
            run: 0,
        };
        while let Some(head) = batch.batch.pop_front() {
            batch.run += 1;
            // SAFETY: what queued this head allowed its callback once a grace period has passed,
            // which it has (it was on `done`), and it is on no list now.
            unsafe { self.run(head) };
        }
    }

    /// Runs one callback.
    ///
    /// # Safety
    /// 1. `head` was queued by `call`, its grace period is over, and it is on no list.
    unsafe fn run(&self, head: NonNull<Head>) {
        // SAFETY: a queued head is valid until its callback gets it (debt 1 of `call`).
        let callback = unsafe { head.as_ref() }.callback();
        match (callback, self.kfree) {
            // SAFETY: the callback's turn has come, once.
            (Callback::Run(func), _) => unsafe { func(head) },
            (Callback::Free(at), Some(kfree)) => {
                // SAFETY: the head lies so far into its object (debt 4 of `call`).
                let object = unsafe { at.object(head) };
                // SAFETY: the object came from there (debt 4 of `call`), and nobody reads it.
                unsafe { kfree(object) };
            }
            _ => unreachable!("`call` takes only what can be run"),
        }
    }

    #[track_caller]
    fn refuse_in_section(&self, what: &str) {
        assert!(
            !self.in_section(),
            "rcu-tiny: {what} inside a read-side critical section{} would wait for ever",
            self.place
        );
    }
}

/// A batch being run. If a callback panics, the rest goes back.
struct Batch<'a> {
    tiny: &'a Tiny,
    batch: CbList,
    run: usize,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let rest = self.batch.take();
        self.tiny.with(|c| {
            c.done.push_front_list(rest);
            c.run = c.run.wrapping_add(self.run);
            c.running = false;
        });
    }
}

/// Ends the program: to go on would end a grace period early. (A panic must not leave a function
/// of this kind, so it aborts.)
#[cold]
#[inline(never)]
extern "C" fn broken(overflow: bool) -> ! {
    if overflow {
        panic!("rcu-tiny: more read-side critical sections entered than a word can count")
    }
    panic!("rcu-tiny: a read-side critical section was left more often than entered")
}

// SAFETY: 1: a cookie is one grace period ahead of an always idle sequence, which moves only while
// nobody is inside a section (I1), so every section that began before the cookie has ended; one
// CPU (not `Sync`, or the promise of `TinyStatic`) and P2 to P4 give the ordering. 2: the sequence
// only grows. 3: `wait` and, outside sections, `drive` let the grace period pass. 4: as the table
// of contexts says.
unsafe impl GracePeriod for Tiny {
    fn snapshot(&self) -> Cookie {
        // ORDERING: P5: program order on one CPU; the compiler may not sink the caller's unlinking below.
        compiler_fence(Ordering::SeqCst);
        self.seq().snapshot()
    }

    fn start(&self) -> Cookie {
        let cookie = self.snapshot();
        self.with(|c| {
            if !cookie.is_no_later_than(c.wanted) {
                c.wanted = cookie;
            }
        });
        cookie
    }

    fn poll(&self, cookie: Cookie) -> bool {
        self.seq().is_done(cookie)
    }

    /// Never blocks: outside of sections, a call is a quiescent state (T-1).
    ///
    /// # Panics
    /// Inside a section, if `cookie` is not done.
    #[track_caller]
    fn wait(&self, cookie: Cookie) {
        while !self.poll(cookie) {
            self.refuse_in_section("waiting for a grace period");
            self.pass();
        }
    }

    fn drive(&self) -> bool {
        let now = self.seq();
        let wanted = self.with(|c| c.is_wanted(now));
        if wanted && !self.in_section() {
            self.pass();
            return false;
        }
        wanted
    }

    /// # Panics
    /// Inside a section.
    #[track_caller]
    fn synchronize(&self) {
        self.wait(self.start());
    }

    /// The same as [`synchronize`](GracePeriod::synchronize) (T-5).
    ///
    /// # Panics
    /// Inside a section.
    #[track_caller]
    fn synchronize_expedited(&self) {
        self.wait(self.start());
    }

    /// # Panics
    /// As [`wait`](GracePeriod::wait).
    #[track_caller]
    fn wait_expedited(&self, cookie: Cookie) {
        self.wait(cookie);
    }

    /// # Panics
    /// As [`wait`](GracePeriod::wait).
    #[track_caller]
    fn wait_full(&self, cookie: FullCookie) {
        self.wait(cookie.normal());
    }

    /// # Panics
    /// As [`wait`](GracePeriod::wait).
    #[track_caller]
    fn wait_full_expedited(&self, cookie: FullCookie) {
        self.wait(cookie.normal());
    }

    fn grace_periods(&self) -> usize {
        self.seq().completed()
    }
}

// SAFETY: 5: a load, a check and a store, which interrupts leave as they were (I3); the count does
// not care for the order. 6: `call` puts a head on one list, from which it is taken once, after a
// quiescent state (I1), and run outside of critical and read-side sections (`quiescent` and
// `barrier` refuse to be called inside). 7: `barrier` runs all that is queued, itself.
unsafe impl Rcu for Tiny {
    type Token = Section;

    #[inline]
    #[track_caller]
    fn enter(&self) -> Section {
        // ORDERING: Relaxed: same CPU (I3).
        let nesting = self.nesting.load(Ordering::Relaxed);
        let Some(nesting) = nesting.checked_add(1) else {
            broken(true)
        };
        // ORDERING: P2 (enter side): the compiler fence below keeps the section behind it.
        self.nesting.store(nesting, Ordering::Relaxed);
        if nesting == 1 {
            self.place.note();
        }
        // ORDERING: P2 (enter side): an interrupt that reads the count sees the section covered.
        compiler_fence(Ordering::SeqCst);
        Section(())
    }

    #[inline]
    unsafe fn exit(&self, _token: Section) {
        // ORDERING: P3 (exit side): keeps the section above.
        compiler_fence(Ordering::SeqCst);
        // ORDERING: Relaxed: same CPU (I3).
        let nesting = self.nesting.load(Ordering::Relaxed);
        let Some(nesting) = nesting.checked_sub(1) else {
            broken(false)
        };
        // ORDERING: P3 (exit side).
        self.nesting.store(nesting, Ordering::Release);
    }

    /// # Panics
    /// If the callback is to free the object and there is no way to
    /// ([`with_kfree`](Self::with_kfree)); nothing is queued then.
    unsafe fn call(&self, head: NonNull<Head>, callback: Callback) {
        match callback {
            Callback::Run(_) => {}
            Callback::Free(_) => assert!(
                self.kfree.is_some(),
                "rcu-tiny: an object to free, but no `with_kfree`"
            ),
            _ => panic!("rcu-tiny: a callback of an unknown kind"),
        }
        // SAFETY: the head is valid (debt 1).
        if !unsafe { head.as_ref() }.begin_call(callback) {
            return;
        }
        self.with(|c| {
            // SAFETY: valid until its callback gets it, on no list (debt 1), from any thread (debt 3).
            unsafe { c.waiting.push_back(head) };
            c.queued = c.queued.wrapping_add(1);
        });
    }

    /// If the section is the only one and somebody wants a grace period, it passes here: on this CPU nobody else would
    /// let it. Runs no callback ([`quiescent`](Self::quiescent) and [`barrier`](Rcu::barrier) do, outside).
    #[track_caller]
    unsafe fn quiescent_state(&self, token: Section) -> Section {
        // SAFETY: the caller's debt.
        unsafe { self.exit(token) };
        self.drive();
        self.enter()
    }

    /// Runs every callback that is queued; never blocks (T-5).
    ///
    /// # Panics
    /// Inside a section, from a callback, and as [`quiescent`](Self::quiescent).
    #[track_caller]
    fn barrier(&self) {
        self.refuse_in_section("barrier");
        assert!(
            !self.with(|c| c.running),
            "rcu-tiny: barrier inside a callback would wait for ever"
        );
        self.pass();
        self.run_done();
    }
}

impl Default for Tiny {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        while !self.in_section() && self.pending() != 0 {
            self.quiescent();
        }
    }
}

impl fmt::Debug for Tiny {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (done, waiting) = self.with(|c| (c.done.len(), c.waiting.len()));
        f.debug_struct("Tiny")
            .field("seq", &self.seq())
            // ORDERING: Relaxed: a report for people.
            .field("nesting", &self.nesting.load(Ordering::Relaxed))
            .field("done", &done)
            .field("waiting", &waiting)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
