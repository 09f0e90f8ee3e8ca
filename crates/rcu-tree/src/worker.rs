//! The threads that guarantee progress under `std`, and how a waiter pauses.
//!
//! Two a tree, each started at first need: the *driver* pushes grace periods on, the *runner* runs callbacks and keeps the
//! time for lazy ones (G21). A callback that blocks therefore holds up callbacks, never a grace period. While there is work a
//! thread looks every so often; some time after the last work it sleeps until kicked, or until the next lazy callback is
//! due. Why it lingers before it sleeps: a flood drives its own grace periods, and would otherwise pay a wake-up for each.
//!
//! # State, of each thread
//! | `state` | meaning | left by |
//! |---|---|---|
//! | `ABSENT` | no thread | a kick, which starts it |
//! | `AWAKE` | it will look again within [`LINGER_STEP`], or sooner if nudged | itself |
//! | `ASLEEP` | it sleeps until kicked, or until a time it knows | a kick, or itself |
//!
//! Beside it `thread` is the thread's handle, null before it runs: written by the thread once in its life, and never
//! freed, of which there is one of each kind in a process. In the child of a fork there is neither: `ABSENT`, and null.
//!
//! # Invariants
//! - I1. A kicker stores its work, runs a full fence, then reads `state`; the thread stores `ASLEEP`, runs a full fence,
//!   then looks for work and for times: one of them sees the other's store.
//! - I2. Where the runner cannot be started its kick goes to the driver, which then runs callbacks; where neither can,
//!   waiters do all.

use rcu_core::sync::Backoff;

#[cfg(feature = "std")]
pub(crate) use with_std::{Rest, Step, Worker, pause};
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

        pub(crate) const fn kick_driver(&self) -> bool {
            false
        }

        pub(crate) const fn kick_runner(&self) -> bool {
            false
        }

        pub(crate) const fn nudge(&self) {}

        pub(crate) const fn has_threads(&self) -> bool {
            false
        }

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
    use core::cell::Cell;
    use core::fmt;
    use core::ptr;
    use core::time::Duration;
    use rcu_core::cpu::SpinMutex;
    use rcu_core::fence;
    use rcu_core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
    use std::thread::Thread;
    use std::time::Instant;

    const ABSENT: u32 = 0;
    const AWAKE: u32 = 1;
    const ASLEEP: u32 = 2;

    /// How often a thread looks before it goes to sleep, and the longest it waits for a reader in the way: a tick.
    const LINGER_STEP: Duration = Duration::from_millis(1);
    /// The same while a slot is overloaded (G16).
    const HURRIED_STEP: Duration = Duration::from_micros(333);
    /// How many times it yields to a reader in the way before it sleeps, twice as long each time, up to a tick.
    const YIELDS: u32 = 8;
    /// How many steps without work before it sleeps for good.
    const LINGER_STEPS: u32 = 100;
    /// How long a waiter sleeps once spinning and yielding have not helped.
    const PAUSE: Duration = Duration::from_micros(50);

    /// What a thread of ours is for.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Role {
        Driver,
        Runner,
    }

    thread_local! {
        static ROLE: Cell<Role> = const { Cell::new(Role::Driver) };
    }

    /// What came of one look for work.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Step {
        /// Something was done: look again at once.
        Again,
        /// Readers are in the way.
        Held,
        /// Nothing could be done.
        Idle,
    }

    /// When there will be something to do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Rest {
        /// There is work that cannot be done yet.
        Soon,
        /// After so long.
        In(Duration),
        /// Once somebody kicks.
        Never,
    }

    /// One thread.
    struct Helper {
        role: Role,
        state: AtomicU32,
        /// One while it waits for less than a kick, so that a nudge is worth a system call.
        dozing: AtomicU32,
        thread: AtomicPtr<Thread>,
    }

    /// The threads of one tree.
    pub(crate) struct Worker {
        main: Option<fn()>,
        driver: Helper,
        runner: Helper,
        /// When the first thread started: the zero of their time.
        epoch: SpinMutex<Option<Instant>>,
    }

    impl Worker {
        rcu_core::const_fn! {
            pub(crate) const fn new() -> Self {
                Self {
                    main: None,
                    driver: Helper::new(Role::Driver),
                    runner: Helper::new(Role::Runner),
                    epoch: SpinMutex::new(None),
                }
            }
        }

        pub(crate) const fn set_main(&mut self, main: fn()) {
            self.main = Some(main);
        }

        /// Whether threads of ours are to be had: then they keep the time and run callbacks.
        pub(crate) fn has_threads(&self) -> bool {
            self.main.is_some()
        }

        /// Sees to it that grace periods are pushed on soon. True if that took a wake-up.
        pub(crate) fn kick_driver(&self) -> bool {
            self.driver.kick(self.main) == Kicked::Woken
        }

        /// Sees to it that callbacks are looked at soon. True if that took a wake-up. Starts both threads, so that a later
        /// call need not start the driver, which allocates.
        pub(crate) fn kick_runner(&self) -> bool {
            match self.runner.kick(self.main) {
                Kicked::Absent | Kicked::Started => self.kick_driver(),
                kicked => kicked == Kicked::Woken,
            }
        }

        /// Makes threads that wait for a moment look at once. Cheap if they do not wait.
        pub(crate) fn nudge(&self) {
            self.runner.nudge();
            self.driver.nudge();
        }

        /// Whether no thread of its own runs callbacks, so that the driver does (I2).
        pub(crate) fn is_runner_absent(&self) -> bool {
            // ORDERING: Relaxed: a kick that finds the runner absent goes to the driver; both together run no list twice.
            self.runner.state.load(Ordering::Relaxed) == ABSENT
        }

        /// Whether the calling thread was started to run callbacks.
        pub(crate) fn is_runner() -> bool {
            ROLE.get() == Role::Runner
        }

        /// How long ago the first thread started.
        pub(crate) fn now(&self) -> Duration {
            let mut epoch = self.epoch.lock();
            epoch.get_or_insert_with(Instant::now).elapsed()
        }

        /// Forgets the threads, and their time, in the child of a fork.
        pub(crate) fn reset_after_fork(&self) {
            self.driver.reset_after_fork();
            self.runner.reset_after_fork();
            // SAFETY: there is no other thread, and the threads of the tree alone take this lock.
            let (mut epoch, _) = unsafe { self.epoch.seize() };
            *epoch = None;
        }

        /// The loop of the calling thread. `step` looks for work, `rest` says when there will be some, `is_urgent` that
        /// waits should be short.
        pub(crate) fn run(
            &self,
            step: impl FnMut() -> Step,
            rest: impl FnMut() -> Rest,
            is_urgent: impl Fn() -> bool,
        ) -> ! {
            let helper = match ROLE.get() {
                Role::Driver => &self.driver,
                Role::Runner => &self.runner,
            };
            helper.run(step, rest, is_urgent)
        }
    }

    /// What came of a kick.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Kicked {
        Awake,
        Woken,
        Started,
        Absent,
    }

    impl Helper {
        rcu_core::const_fn! {
            const fn new(role: Role) -> Self {
                Self {
                    role,
                    state: AtomicU32::new(ABSENT),
                    dozing: AtomicU32::new(0),
                    thread: AtomicPtr::new(ptr::null_mut()),
                }
            }
        }

        fn kick(&self, main: Option<fn()>) -> Kicked {
            fence::full();
            // ORDERING: Relaxed: I1, by the full fence above.
            match self.state.load(Ordering::Relaxed) {
                AWAKE => Kicked::Awake,
                ASLEEP => self.wake(),
                _ => main.map_or(Kicked::Absent, |main| self.begin(main)),
            }
        }

        fn nudge(&self) {
            // ORDERING: Relaxed: a nudge that comes too early is made up for by the next look.
            if self.dozing.load(Ordering::Relaxed) != 0
                && let Some(thread) = self.thread()
            {
                thread.unpark();
            }
        }

        fn thread(&self) -> Option<&Thread> {
            // ORDERING: Acquire meets the Release in `run`: the handle is there.
            let thread = self.thread.load(Ordering::Acquire);
            // SAFETY: null, or a handle that is never freed.
            unsafe { thread.as_ref() }
        }

        /// Forgets the thread, in the child of a fork.
        fn reset_after_fork(&self) {
            // ORDERING: Relaxed: there is one thread.
            self.thread.store(ptr::null_mut(), Ordering::Relaxed);
            // ORDERING: Relaxed: as above.
            self.dozing.store(0, Ordering::Relaxed);
            // ORDERING: Relaxed: as above.
            self.state.store(ABSENT, Ordering::Relaxed);
        }

        #[cold]
        fn wake(&self) -> Kicked {
            // ORDERING: Relaxed: only one kicker needs to wake it; the work is ordered by I1.
            if self.state.swap(AWAKE, Ordering::Relaxed) == ASLEEP
                && let Some(thread) = self.thread()
            {
                thread.unpark();
                return Kicked::Woken;
            }
            Kicked::Awake
        }

        #[cold]
        fn begin(&self, main: fn()) -> Kicked {
            // ORDERING: Relaxed: decides who starts the thread.
            if self
                .state
                .compare_exchange(ABSENT, AWAKE, Ordering::Relaxed, Ordering::Relaxed)
                .is_err()
            {
                return Kicked::Awake;
            }
            let role = self.role;
            let name = match role {
                Role::Driver => "rcu-worker",
                Role::Runner => "rcu-callbacks",
            };
            let started = std::thread::Builder::new()
                .name(name.into())
                .spawn(move || {
                    ROLE.set(role);
                    main();
                });
            if started.is_err() {
                // No thread to be had now (I2); a later kick tries again.
                // ORDERING: Relaxed: as above.
                self.state.store(ABSENT, Ordering::Relaxed);
                return Kicked::Absent;
            }
            Kicked::Started
        }

        fn run(
            &self,
            mut step: impl FnMut() -> Step,
            mut rest: impl FnMut() -> Rest,
            is_urgent: impl Fn() -> bool,
        ) -> ! {
            let handle = Box::into_raw(Box::new(std::thread::current()));
            // ORDERING: Release publishes the handle.
            self.thread.store(handle, Ordering::Release);
            // ORDERING: Relaxed: a thread that somebody else started is awake from here on; it looks next.
            self.state.store(AWAKE, Ordering::Relaxed);
            fence::full();
            let (mut idle, mut held_for) = (0, 0);
            loop {
                match step() {
                    Step::Again => {
                        (idle, held_for) = (0, 0);
                        continue;
                    }
                    Step::Held => {
                        idle = 0;
                        self.wait_for_reader(held_for, is_urgent());
                        held_for += 1;
                        continue;
                    }
                    Step::Idle => {}
                }
                idle = if rest() == Rest::Soon { 0 } else { idle + 1 };
                if idle <= LINGER_STEPS {
                    self.doze(if is_urgent() {
                        HURRIED_STEP
                    } else {
                        LINGER_STEP
                    });
                    continue;
                }
                // ORDERING: Relaxed: I1, by the full fence below.
                self.state.store(ASLEEP, Ordering::Relaxed);
                fence::full();
                self.sleep(rest());
                // ORDERING: Relaxed: kickers that see `AWAKE` rely on the look that comes now.
                self.state.store(AWAKE, Ordering::Relaxed);
                fence::full();
                idle = 0;
            }
        }

        /// Sleeps until kicked, or for as long as `rest` says.
        fn sleep(&self, rest: Rest) {
            let until = match rest {
                Rest::Soon => return,
                Rest::In(time) => Instant::now().checked_add(time),
                Rest::Never => None,
            };
            // ORDERING: Relaxed: a spurious or early wake-up only looks again.
            while self.state.load(Ordering::Relaxed) == ASLEEP {
                let Some(until) = until else {
                    std::thread::park();
                    continue;
                };
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return;
                }
                std::thread::park_timeout(left);
            }
        }

        /// Waits for `time`, or less if nudged.
        fn doze(&self, time: Duration) {
            // ORDERING: Relaxed: a hint for who nudges.
            self.dozing.store(1, Ordering::Relaxed);
            std::thread::park_timeout(time);
            // ORDERING: Relaxed: as above.
            self.dozing.store(0, Ordering::Relaxed);
        }

        /// Waits for a reader that has been in the way `times` times: most are through at once.
        fn wait_for_reader(&self, times: u32, is_urgent: bool) {
            let most = if is_urgent { HURRIED_STEP } else { LINGER_STEP };
            match times.checked_sub(YIELDS) {
                None => std::thread::yield_now(),
                Some(n) => self.doze(most.min(PAUSE * 2_u32.saturating_pow(n.min(8)))),
            }
        }
    }

    impl fmt::Debug for Worker {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Worker")
                .field("driver", &self.driver)
                .field("runner", &self.runner)
                .finish_non_exhaustive()
        }
    }

    impl fmt::Debug for Helper {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            // ORDERING: Relaxed: a report for people.
            let state = match self.state.load(Ordering::Relaxed) {
                ABSENT => "absent",
                AWAKE => "awake",
                _ => "asleep",
            };
            f.write_str(state)
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
