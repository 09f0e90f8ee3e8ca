//! Threads that wait for a grace period: one of them drives, the others sleep until it is done.
//!
//! Source: Linux `rcu_sr_normal_*` (G18) and the leader of `tree_exp.h`'s funnel (G17). Why not let everyone drive: n
//! waiters would take turns at one lock and burn n CPUs; why not leave it to the worker: it would have to be woken first.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `leading` | 1 while a waiter drives for the others | the leader: compare-exchange to 1, store of 0 |
//! | `listed` | how many waiters are on the list | under the list's lock |
//! | `list` | the waiters that sleep, or are about to, first come first; nodes on their stacks | its spin lock |
//!
//! # Life of a waiter
//! It drives a few times for itself, spinning in between: with no reader in the way that is all there is to do, and most
//! sections are over by then. Then it becomes the leader if there is none, and drives on, yielding first, then sleeping
//! for short times, until its own cookie is done. Otherwise it enlists, and sleeps until somebody wakes it because its
//! cookie is done, or because the leader has left. Whoever leaves, leader or not, sees to it that somebody leads and that
//! those who are done are woken.
//!
//! # Invariants
//! - I1. A node is on the list only while its waiter is in [`Waiters::wait`]: the waiter takes the lock and unlinks it, if it
//!   is linked, before it returns. A waker touches a node under the lock only; it unlinks it and takes a handle of the
//!   thread, which outlives the node, and wakes after it has let go of the lock.
//! - I2. *No lost end.* The driver stores the end of a grace period, runs a full fence, reads `listed`; a waiter raises
//!   `listed`, runs a full fence, polls. One of them sees the other's.
//! - I3. *No lost leadership.* A leader stores 0, runs a full fence, reads `listed`; a waiter raises `listed`, runs a full
//!   fence, tries to lead. Either it leads, or the one who left wakes the first on the list, who tries anew, or finds
//!   itself done and wakes the next as it leaves.
//! - I4. A driver wakes [`WAKE_AT_ONCE`] waiters at the most; each of them wakes as many when it leaves.
//!
//! # Progress
//! Blocking, of course. A leader that does not get to run holds nobody up for longer than [`SAFETY_NET`]: after that a
//! sleeper drives once for itself. The lock is held while the list is walked, by threads that wait or drive.

use crate::trace::Lane;
use rcu_core::{Cookie, FullCookie};

#[cfg(all(feature = "std", not(loom)))]
pub(crate) use with_std::Waiters;
#[cfg(not(all(feature = "std", not(loom))))]
pub(crate) use without_std::Waiters;

/// What a waiter waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    Small(Cookie),
    Full(FullCookie),
}

#[cfg(not(all(feature = "std", not(loom))))]
mod without_std {
    use super::{Lane, Until};
    use rcu_core::sync::Backoff;

    /// Nobody sleeps, so nobody is woken: each waiter drives for itself.
    #[derive(Debug)]
    pub(crate) struct Waiters;

    impl Waiters {
        pub(crate) const fn new() -> Self {
            Self
        }

        pub(crate) fn wait(
            &self,
            _lane: Lane,
            until: Until,
            is_done: &impl Fn(Until) -> bool,
            drive: &impl Fn() -> bool,
            _woke: &impl Fn(),
        ) {
            let backoff = Backoff::new();
            loop {
                let in_the_way = drive();
                if is_done(until) {
                    return;
                }
                if in_the_way {
                    backoff.snooze();
                }
            }
        }

        pub(crate) fn wake_done(&self, _is_done: &impl Fn(Until) -> bool, _woke: &impl Fn()) {}

        /// # Safety
        /// None.
        pub(crate) unsafe fn reset_after_fork(&self) {}
    }
}

#[cfg(all(feature = "std", not(loom)))]
mod with_std {
    use super::{Lane, Until};
    use core::cell::Cell;
    use core::fmt;
    use core::hint;
    use core::ptr::NonNull;
    use core::time::Duration;
    use crossbeam_utils::CachePadded;
    use rcu_core::cpu::SpinMutex;
    use rcu_core::fence;
    use rcu_core::sync::atomic::{AtomicUsize, Ordering};
    use std::thread::{self, Thread};
    use std::time::Instant;

    /// How many waiters one thread wakes (I4).
    #[doc(alias = "SR_MAX_USERS_WAKE_FROM_GP")]
    const WAKE_AT_ONCE: usize = 5;
    /// How long a sleeper relies on others.
    const SAFETY_NET: Duration = Duration::from_millis(20);
    /// How many times a waiter drives for itself before it leads or sleeps, spinning twice as long each time: microseconds
    /// in all, longer than most sections.
    const SPINS: u32 = 9;
    /// A leader's yields before it sleeps. Few, and none after one that lasted: on a busy CPU a yield may take a time slice
    /// of everybody else, after which the reader is inside again; who slept is let in at once.
    const YIELDS_NORMAL: u32 = 8;
    /// The same for who is in a hurry, where the CPU is its own.
    const YIELDS_EXPEDITED: u32 = 256;
    /// A leader's first sleep; the later ones are longer, up to [`LONGEST_NAP`].
    const SHORTEST_NAP: Duration = Duration::from_micros(50);
    /// A leader's longest sleep: a tick.
    const LONGEST_NAP: Duration = Duration::from_millis(1);

    /// The leader's pace: yields, then sleeps.
    struct Pace {
        steps: u32,
        yields: u32,
    }

    impl Pace {
        const fn new(lane: Lane) -> Self {
            Self {
                steps: 0,
                yields: match lane {
                    Lane::Normal => YIELDS_NORMAL,
                    Lane::Expedited => YIELDS_EXPEDITED,
                },
            }
        }

        fn step(&mut self) {
            match self.steps.checked_sub(self.yields) {
                None => {
                    let before = Instant::now();
                    thread::yield_now();
                    if before.elapsed() > SHORTEST_NAP {
                        // Somebody else's time slice: a nap is shorter, and who slept is let in before readers go on.
                        self.steps = self.yields;
                    }
                }
                Some(naps) => {
                    thread::sleep(LONGEST_NAP.min(SHORTEST_NAP * 2_u32.pow((naps / 4).min(8))));
                }
            }
            self.steps = self.steps.saturating_add(1);
        }
    }

    /// One waiter, on its stack. All but `thread` and `until` is under the list's lock.
    struct Node {
        until: Until,
        thread: Thread,
        is_linked: Cell<bool>,
        previous: Cell<Option<NonNull<Node>>>,
        next: Cell<Option<NonNull<Node>>>,
    }

    #[derive(Default)]
    struct List {
        first: Option<NonNull<Node>>,
        last: Option<NonNull<Node>>,
    }

    // SAFETY: nodes are reached under the list's lock only, which hands them from thread to thread.
    unsafe impl Send for List {}

    impl List {
        /// # Safety
        /// 1. `node` is valid, and on no list, and stays valid until it has been unlinked.
        unsafe fn push(&mut self, node: NonNull<Node>) {
            // SAFETY: the caller's debt.
            let new = unsafe { node.as_ref() };
            new.previous.set(self.last);
            new.is_linked.set(true);
            match self.last {
                // SAFETY: a linked node is valid (I1).
                Some(last) => unsafe { last.as_ref() }.next.set(Some(node)),
                None => self.first = Some(node),
            }
            self.last = Some(node);
        }

        fn unlink(&mut self, node: &Node) {
            let (previous, next) = (node.previous.take(), node.next.take());
            node.is_linked.set(false);
            match previous {
                // SAFETY: a linked node is valid (I1).
                Some(previous) => unsafe { previous.as_ref() }.next.set(next),
                None => self.first = next,
            }
            match next {
                // SAFETY: a linked node is valid (I1).
                Some(next) => unsafe { next.as_ref() }.previous.set(previous),
                None => self.last = previous,
            }
        }
    }

    /// Drives and spins for a while; true if that made `until` done.
    fn spin(until: Until, is_done: &impl Fn(Until) -> bool, drive: &impl Fn() -> bool) -> bool {
        let mut spins = 0;
        while spins < SPINS {
            let in_the_way = drive();
            if is_done(until) {
                return true;
            }
            if in_the_way {
                (0..1 << spins).for_each(|_| hint::spin_loop());
                spins += 1;
            }
        }
        false
    }

    /// The waiters of one lane.
    pub(crate) struct Waiters {
        leading: CachePadded<AtomicUsize>,
        listed: AtomicUsize,
        list: SpinMutex<List>,
    }

    impl Waiters {
        pub(crate) const fn new() -> Self {
            Self {
                leading: CachePadded::new(AtomicUsize::new(0)),
                listed: AtomicUsize::new(0),
                list: SpinMutex::new(List {
                    first: None,
                    last: None,
                }),
            }
        }

        /// Blocks until `is_done(until)`. `drive` pushes the lane on, and says whether readers are in the way; `woke` is
        /// told of each thread that is woken.
        pub(crate) fn wait(
            &self,
            lane: Lane,
            until: Until,
            is_done: &impl Fn(Until) -> bool,
            drive: &impl Fn() -> bool,
            woke: &impl Fn(),
        ) {
            if !spin(until, is_done, drive) && !self.lead(lane, until, is_done, drive) {
                self.sleep(lane, until, is_done, drive);
            }
            self.leave(is_done, woke);
        }

        /// Wakes waiters whose cookie is done. To be called by whoever ended a grace period.
        pub(crate) fn wake_done(&self, is_done: &impl Fn(Until) -> bool, woke: &impl Fn()) {
            fence::full();
            // ORDERING: Relaxed: I2, by the full fence above.
            if self.listed.load(Ordering::Relaxed) == 0 {
                return;
            }
            let mut threads = [const { None }; WAKE_AT_ONCE];
            let mut places = threads.iter_mut();
            let mut list = self.list.lock();
            let mut at = list.first;
            while let Some(node) = at {
                // SAFETY: a linked node is valid (I1).
                let node = unsafe { node.as_ref() };
                at = node.next.get();
                if is_done(node.until) {
                    let Some(place) = places.next() else { break };
                    *place = Some(node.thread.clone());
                    list.unlink(node);
                    self.count_out();
                }
            }
            drop(list);
            for thread in threads.into_iter().flatten() {
                thread.unpark();
                woke();
            }
        }

        /// Drives until `until` is done, if nobody else is at it; false otherwise.
        fn lead(
            &self,
            lane: Lane,
            until: Until,
            is_done: &impl Fn(Until) -> bool,
            drive: &impl Fn() -> bool,
        ) -> bool {
            // ORDERING: Relaxed: who leads is no more than a hint, settled by the compare-exchange; I3's fences order it.
            if self.leading.load(Ordering::Relaxed) != 0
                || self
                    .leading
                    // ORDERING: Relaxed: as above.
                    .compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed)
                    .is_err()
            {
                return false;
            }
            /// Gives the lead up, also when a listener panics.
            struct Lead<'w>(&'w AtomicUsize);
            impl Drop for Lead<'_> {
                fn drop(&mut self) {
                    // ORDERING: Relaxed: I3, by the full fence in `leave`.
                    self.0.store(0, Ordering::Relaxed);
                }
            }
            let _lead = Lead(&self.leading);
            let mut pace = Pace::new(lane);
            loop {
                let in_the_way = drive();
                if is_done(until) {
                    return true;
                }
                if in_the_way {
                    pace.step();
                }
            }
        }

        /// Sleeps until `until` is done, leading when it falls to this waiter.
        #[cold]
        fn sleep(
            &self,
            lane: Lane,
            until: Until,
            is_done: &impl Fn(Until) -> bool,
            drive: &impl Fn() -> bool,
        ) {
            /// Takes the node off the list before it goes (I1).
            struct Listed<'w>(&'w Waiters, &'w Node);
            impl Drop for Listed<'_> {
                fn drop(&mut self) {
                    let mut list = self.0.list.lock();
                    if self.1.is_linked.get() {
                        list.unlink(self.1);
                        self.0.count_out();
                    }
                }
            }
            let node = Node {
                until,
                thread: thread::current(),
                is_linked: Cell::new(false),
                previous: Cell::new(None),
                next: Cell::new(None),
            };
            let _listed = Listed(self, &node);
            let mut list = self.list.lock();
            // SAFETY: the node is on no list, and `_listed` unlinks it before it goes.
            unsafe { list.push(NonNull::from(&node)) };
            // ORDERING: Relaxed: I2 and I3, by the full fence below.
            self.listed.fetch_add(1, Ordering::Relaxed);
            drop(list);
            fence::full();
            while !is_done(until) {
                if self.lead(lane, until, is_done, drive) {
                    return;
                }
                let slept = Instant::now();
                thread::park_timeout(SAFETY_NET);
                if slept.elapsed() >= SAFETY_NET {
                    // The leader does not get to run, or readers are slow.
                    drive();
                }
            }
        }

        /// Passes on what a waiter that leaves may owe: the lead (I3), and the news (I4).
        fn leave(&self, is_done: &impl Fn(Until) -> bool, woke: &impl Fn()) {
            self.wake_done(is_done, woke);
            // ORDERING: Relaxed: I3, by the full fence in `wake_done`.
            if self.listed.load(Ordering::Relaxed) == 0
                // ORDERING: Relaxed: as above; who leads now passes the lead on in its turn.
                || self.leading.load(Ordering::Relaxed) != 0
            {
                return;
            }
            let list = self.list.lock();
            // SAFETY: a linked node is valid (I1).
            let next = list
                .first
                .map(|node| unsafe { node.as_ref() }.thread.clone());
            drop(list);
            if let Some(thread) = next {
                thread.unpark();
                woke();
            }
        }

        /// Forgets every waiter, in the child of a fork: whose stacks the nodes are on will not go on.
        ///
        /// # Safety
        /// 1. This is the child of a fork and the caller its only thread, inside none of these functions.
        pub(crate) unsafe fn reset_after_fork(&self) {
            // SAFETY: there is no other thread, and the caller does not hold the lock (1).
            let (mut list, _) = unsafe { self.list.seize() };
            (list.first, list.last) = (None, None);
            for word in [&self.listed, &*self.leading] {
                // ORDERING: Relaxed: there is one thread.
                word.store(0, Ordering::Relaxed);
            }
        }

        /// Under the list's lock.
        fn count_out(&self) {
            // ORDERING: Relaxed: who still counts a waiter that has gone looks at the list in vain.
            self.listed.fetch_sub(1, Ordering::Relaxed);
        }
    }

    impl fmt::Debug for Waiters {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Waiters")
                // ORDERING: Relaxed: a report for people.
                .field("leading", &self.leading.load(Ordering::Relaxed))
                // ORDERING: Relaxed: a report for people.
                .field("listed", &self.listed.load(Ordering::Relaxed))
                .finish()
        }
    }
}
