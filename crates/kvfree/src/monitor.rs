//! The thread that frees what has gone quiet.
//!
//! Retiring threads free ripe batches themselves; the monitor is there for those that stopped retiring, for the dead, and
//! for destructors, which a retiring thread must not run.
//!
//! # State
//! | `state` | meaning | left by |
//! |---|---|---|
//! | `ABSENT` | no thread could be started yet | [`Monitor::start`] |
//! | `AWAKE` | it looks again within [`STEP`] | itself |
//! | `ASLEEP` | nothing waits; it sleeps until told | [`Monitor::watch`] |
//!
//! # Invariants
//! - I1. Who retires notes its object, runs a full fence, then reads `state`; the monitor stores `ASLEEP`, runs a full
//!   fence, then looks: one of them sees the other's store.

use core::fmt;
use core::time::Duration;
use rcu_core::fence;
use rcu_core::sync::atomic::{AtomicU32, Ordering};
use std::sync::OnceLock;
use std::thread::Thread;

const ABSENT: u32 = 0;
const AWAKE: u32 = 1;
const ASLEEP: u32 = 2;

/// How often the monitor looks while something waits: how long an object stays after its grace period, at most twice.
#[doc(alias = "KFREE_DRAIN_JIFFIES")]
const STEP: Duration = Duration::from_millis(10);
/// Looks without anything waiting before it sleeps for good.
const LINGER_STEPS: u32 = 20;

/// The monitor of one front end.
pub(crate) struct Monitor {
    state: AtomicU32,
    thread: OnceLock<Thread>,
}

impl Monitor {
    pub(crate) const fn new() -> Self {
        Self {
            state: AtomicU32::new(ABSENT),
            thread: OnceLock::new(),
        }
    }

    /// Starts the thread. Without one, retiring threads and barriers still free everything that does not run foreign code.
    pub(crate) fn start(&'static self, tick: impl Fn() -> usize + Send + 'static) {
        // ORDERING: Relaxed: decides who starts the thread.
        if self.state.swap(AWAKE, Ordering::Relaxed) != ABSENT {
            return;
        }
        let started = std::thread::Builder::new()
            .name("kvfree-monitor".into())
            .spawn(|| self.run(tick));
        if started.is_err() {
            // ORDERING: Relaxed: as above.
            self.state.store(ABSENT, Ordering::Relaxed);
        }
    }

    /// Something waits from now on; `soon` if there is much of it.
    pub(crate) fn watch(&self, soon: bool) {
        fence::full();
        // ORDERING: Relaxed: I1, by the full fence above.
        let state = self.state.load(Ordering::Relaxed);
        if state == ASLEEP || (soon && state == AWAKE) {
            // ORDERING: Relaxed: a wake-up too many only looks again.
            self.state.store(AWAKE, Ordering::Relaxed);
            if let Some(thread) = self.thread.get() {
                thread.unpark();
            }
        }
    }

    fn run(&self, tick: impl Fn() -> usize) {
        let _ = self.thread.set(std::thread::current());
        let mut idle = 0;
        loop {
            idle = if tick() > 0 { 0 } else { idle + 1 };
            if idle <= LINGER_STEPS {
                std::thread::park_timeout(STEP);
                continue;
            }
            // ORDERING: Relaxed: I1, by the full fence below.
            self.state.store(ASLEEP, Ordering::Relaxed);
            fence::full();
            if tick() == 0 {
                // ORDERING: Relaxed: an early wake-up only looks again.
                while self.state.load(Ordering::Relaxed) == ASLEEP {
                    std::thread::park();
                }
            }
            // ORDERING: Relaxed: who sees `AWAKE` relies on the look that comes now.
            self.state.store(AWAKE, Ordering::Relaxed);
            idle = 0;
        }
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // ORDERING: Relaxed: a report for people.
        let state = match self.state.load(Ordering::Relaxed) {
            ABSENT => "absent",
            AWAKE => "awake",
            _ => "asleep",
        };
        f.debug_struct("Monitor")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicUsize;

    /// I1: work noted at any moment is found, whether the monitor is awake, falling asleep or asleep.
    #[test]
    fn work_is_found_asleep_or_awake() {
        static MONITOR: Monitor = Monitor::new();
        static WORK: AtomicUsize = AtomicUsize::new(0);
        fn add_and_wait(soon: bool) {
            WORK.fetch_add(1, Ordering::Relaxed);
            MONITOR.watch(soon);
            while WORK.load(Ordering::Relaxed) > 0 {
                std::thread::yield_now();
            }
        }
        MONITOR.start(|| WORK.swap(0, Ordering::Relaxed));
        add_and_wait(false);
        add_and_wait(true);
        for _ in 0..2 {
            while MONITOR.state.load(Ordering::Relaxed) != ASLEEP {
                std::thread::yield_now();
            }
            add_and_wait(false);
        }
    }
}
