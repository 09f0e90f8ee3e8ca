//! The thread that guarantees progress under `std`, and how a waiter pauses.
//!
//! Started at first need. While there is work it looks every so often; some time after the last work it sleeps
//! until kicked. Why it lingers before it sleeps: a flood drives its own grace periods, and would otherwise pay a
//! wake-up for each.
//!
//! # State
//! | `state` | meaning | left by |
//! |---|---|---|
//! | `ABSENT` | no thread | a kick, which starts it |
//! | `AWAKE` | it will look again within [`LINGER_STEP`] | itself |
//! | `ASLEEP` | it sleeps until kicked | a kick |
//!
//! Beside it `thread` is the worker's handle, null before it runs: written by the worker once in its life, and never
//! freed, of which there is one in a process. In the child of a fork there is no worker: `ABSENT`, and null.
//!
//! # Invariants
//! - I1. A kicker stores its work, runs a full fence, then reads `state`; the worker stores `ASLEEP`, runs a full fence,
//!   then looks for work: one of them sees the other's store.

use rcu_core::sync::Backoff;

#[cfg(feature = "std")]
pub(crate) use with_std::{Worker, pause};
#[cfg(not(feature = "std"))]
pub(crate) use without_std::{Worker, pause};

#[cfg(not(feature = "std"))]
mod without_std {
    use super::Backoff;

    /// No thread: the embedder drives.
    #[derive(Debug)]
    pub(crate) struct Worker;

    impl Worker {
        pub(crate) const fn new() -> Self {
            Self
        }

        pub(crate) const fn kick(&self) {}

        pub(crate) const fn reset_after_fork(&self) {}
    }

    /// Waits one step.
    pub(crate) fn pause(backoff: &Backoff) {
        backoff.snooze();
    }
}

#[cfg(feature = "std")]
mod with_std {
    use super::Backoff;
    use core::fmt;
    use core::ptr;
    use core::time::Duration;
    use rcu_core::fence;
    use rcu_core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
    use std::thread::Thread;

    const ABSENT: u32 = 0;
    const AWAKE: u32 = 1;
    const ASLEEP: u32 = 2;

    /// How often the worker looks before it goes to sleep, and the longest it waits for a reader in the way: a tick.
    const LINGER_STEP: Duration = Duration::from_millis(1);
    /// How many times it yields to a reader in the way before it sleeps, twice as long each time, up to a tick.
    const YIELDS: u32 = 8;
    /// How many steps without work before it sleeps for good.
    const LINGER_STEPS: u32 = 100;
    /// How long a waiter sleeps once spinning and yielding have not helped.
    const PAUSE: Duration = Duration::from_micros(50);

    /// The worker of one tree.
    pub(crate) struct Worker {
        main: Option<fn()>,
        state: AtomicU32,
        thread: AtomicPtr<Thread>,
    }

    impl Worker {
        rcu_core::const_fn! {
            pub(crate) const fn new() -> Self {
                Self {
                    main: None,
                    state: AtomicU32::new(ABSENT),
                    thread: AtomicPtr::new(ptr::null_mut()),
                }
            }
        }

        pub(crate) const fn set_main(&mut self, main: fn()) {
            self.main = Some(main);
        }

        /// Sees to it that the worker looks for work soon.
        pub(crate) fn kick(&self) {
            let Some(main) = self.main else { return };
            fence::full();
            // ORDERING: Relaxed: I1, by the full fence above.
            match self.state.load(Ordering::Relaxed) {
                AWAKE => {}
                ASLEEP => self.wake(),
                _ => self.begin(main),
            }
        }

        #[cold]
        fn wake(&self) {
            // ORDERING: Acquire meets the Release of `ASLEEP`: the handle is there. Only one kicker needs to wake it;
            // the work is ordered by I1.
            if self.state.swap(AWAKE, Ordering::Acquire) == ASLEEP {
                // ORDERING: Relaxed: ordered by the exchange.
                let thread = self.thread.load(Ordering::Relaxed);
                // SAFETY: null, or a handle that is never freed.
                if let Some(thread) = unsafe { thread.as_ref() } {
                    thread.unpark();
                }
            }
        }

        /// Forgets the worker, in the child of a fork.
        pub(crate) fn reset_after_fork(&self) {
            // ORDERING: Relaxed: there is one thread.
            self.thread.store(ptr::null_mut(), Ordering::Relaxed);
            // ORDERING: Relaxed: as above.
            self.state.store(ABSENT, Ordering::Relaxed);
        }

        #[cold]
        fn begin(&self, main: fn()) {
            // ORDERING: Relaxed: decides who starts the thread.
            if self
                .state
                .compare_exchange(ABSENT, AWAKE, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
            {
                let started = std::thread::Builder::new()
                    .name("rcu-worker".into())
                    .spawn(main);
                if started.is_err() {
                    // No thread to be had now; waiters drive for themselves, and a later kick tries again.
                    // ORDERING: Relaxed: as above.
                    self.state.store(ABSENT, Ordering::Relaxed);
                }
            }
        }

        /// The worker's loop. `step` says whether it got something done and whether readers are in the way.
        pub(crate) fn run(
            &self,
            mut step: impl FnMut() -> (bool, bool),
            mut has_work: impl FnMut() -> bool,
        ) -> ! {
            let handle = Box::into_raw(Box::new(std::thread::current()));
            // ORDERING: Relaxed: published by the Release of `ASLEEP`.
            self.thread.store(handle, Ordering::Relaxed);
            let (mut idle, mut in_the_way_for) = (0, 0);
            loop {
                let (progress, in_the_way) = step();
                if progress {
                    (idle, in_the_way_for) = (0, 0);
                    continue;
                }
                if in_the_way {
                    idle = 0;
                    wait_for_reader(in_the_way_for);
                    in_the_way_for += 1;
                    continue;
                }
                idle = if has_work() { 0 } else { idle + 1 };
                if idle <= LINGER_STEPS {
                    std::thread::sleep(LINGER_STEP);
                    continue;
                }
                // ORDERING: Release publishes the handle; I1 by the full fence below.
                self.state.store(ASLEEP, Ordering::Release);
                fence::full();
                if !has_work() {
                    // ORDERING: Relaxed: a spurious or early wake-up only looks again.
                    while self.state.load(Ordering::Relaxed) == ASLEEP {
                        std::thread::park();
                    }
                }
                // ORDERING: Relaxed: kickers that see `AWAKE` rely on the look that comes now.
                self.state.store(AWAKE, Ordering::Relaxed);
                idle = 0;
            }
        }
    }

    /// Waits for a reader that has been in the way `times` times: most are through at once.
    fn wait_for_reader(times: u32) {
        match times.checked_sub(YIELDS) {
            None => std::thread::yield_now(),
            Some(n) => std::thread::sleep(LINGER_STEP.min(PAUSE * 2_u32.saturating_pow(n.min(8)))),
        }
    }

    impl fmt::Debug for Worker {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            // ORDERING: Relaxed: a report for people.
            let state = match self.state.load(Ordering::Relaxed) {
                ABSENT => "absent",
                AWAKE => "awake",
                _ => "asleep",
            };
            f.debug_struct("Worker")
                .field("state", &state)
                .finish_non_exhaustive()
        }
    }

    /// Waits one step: spins, then yields, then sleeps a little.
    pub(crate) fn pause(backoff: &Backoff) {
        if backoff.is_completed() && !cfg!(loom) {
            std::thread::sleep(PAUSE);
        } else {
            backoff.snooze();
        }
    }
}
