//! The thread that frees what has gone quiet.
//!
//! Retiring threads free ripe batches themselves; the monitor is there for those that stopped retiring, for the dead, and
//! for destructors, which `retire` must not run. It exists only while something waits.
//!
//! # State
//! `duty`: see [`Duty`]. `ABSENT`: no thread. `CALLED`: a head waits for a grace period; its callback makes the thread. `RUNNING`: a thread
//! looks again within the delay, or sooner if hurried; it leaves when nothing has waited for a while. The current head goes with the
//! duty (I2 there).
//!
//! # Deadlines
//! A look comes within the delay of the one before; a hurried one at once. Nothing puts a look off.
//!
//! # Panics
//! A look runs foreign code. Destructors are contained where they are run; a panic of anything else (whom a limit is told to) ends
//! that look, and neither the thread nor the duty: the next look comes within the delay.
//!
//! # After a fork
//! The child has no thread but one, so `state` is `ABSENT` again. A head that was queued in the parent may still be on a list
//! of the RCU's, or lost with the thread that was about to run it, and nobody can tell; so it stays out of use until its
//! callback comes, which then does nothing, and the child takes another one. Only if all of them are out of use does the
//! child wait for the last one's callback.
//!
//! # Contexts
//! `watch` may be called wherever objects are retired, signal handlers among them, where no thread can be made: that is
//! why a callback makes it. An object that has just been retired needs a grace period in any case.

use crate::duty::{Called, Duty};
use crate::glue::contained;
use core::fmt;
use core::mem::offset_of;
use core::ptr::{self, NonNull};
use core::time::Duration;
use rcu_core::cpu::SpinMutex;
use rcu_core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use rcu_core::{Callback, Head, Rcu};
use std::thread::Thread;

/// How often the monitor looks while something waits, unless told otherwise.
#[doc(alias = "KFREE_DRAIN_JIFFIES")]
pub(crate) const DELAY: Duration = Duration::from_millis(10);
/// How long it goes on looking when nothing waits, before the thread ends: making one costs more than a few looks.
const LINGER: Duration = Duration::from_millis(200);
/// How often a new thread tries to say who it is.
const TRIES: usize = 1000;
/// Heads: so many forks, each within the other and in the middle of a call, are survived without waiting.
const HEADS: usize = 4;

/// A head that knows whether its callback is the current one's.
struct Call<R> {
    head: Head,
    /// The monitor while its callback is awaited; null in a child that took another head, or if it is not queued.
    monitor: AtomicPtr<Monitor<R>>,
    /// Queued, as far as is known.
    is_queued: AtomicU32,
}

/// The monitor of one front end over the RCU `R`.
pub(crate) struct Monitor<R> {
    rcu: R,
    /// One round; says how much still waits. May run foreign code.
    tick: fn() -> usize,
    duty: Duty,
    is_hurried: AtomicU32,
    delay_ns: AtomicU64,
    calls: [Call<R>; HEADS],
    /// Which of them is the current one.
    current: AtomicUsize,
    /// The thread that runs, or the last one that did.
    thread: SpinMutex<Option<Thread>>,
}

impl<R: Rcu + Sync + 'static> Monitor<R> {
    pub(crate) const fn new(rcu: R, tick: fn() -> usize) -> Self {
        Self {
            rcu,
            tick,
            duty: Duty::new(),
            is_hurried: AtomicU32::new(0),
            delay_ns: AtomicU64::new(DELAY.as_nanos() as u64),
            calls: [const {
                Call {
                    head: Head::new(),
                    monitor: AtomicPtr::new(ptr::null_mut()),
                    is_queued: AtomicU32::new(0),
                }
            }; HEADS],
            current: AtomicUsize::new(0),
            thread: SpinMutex::new(None),
        }
    }

    /// Sets how often the monitor looks. From the next look on.
    pub(crate) fn set_delay(&self, delay: Duration) {
        let ns = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        // ORDERING: Relaxed: a number.
        self.delay_ns.store(ns, Ordering::Relaxed);
    }

    fn delay(&self) -> Duration {
        // ORDERING: Relaxed: a number.
        Duration::from_nanos(self.delay_ns.load(Ordering::Relaxed))
    }

    /// Whether there is a thread, or is about to be.
    pub(crate) fn is_present(&self) -> bool {
        self.duty.is_taken()
    }

    /// Something waits from now on; `soon` if there is much of it.
    pub(crate) fn watch(&'static self, soon: bool) {
        if soon {
            // ORDERING: Relaxed: a hint; who misses it looks within the delay.
            self.is_hurried.store(1, Ordering::Relaxed);
        }
        match self.duty.call() {
            Called::Here => self.call(),
            // The lock is the thread's own, and another hurrier's: a handler that interrupted one of them gives up, and
            // the look comes within the delay.
            Called::Running if soon => {
                if let Some(thread) = self.thread.try_lock()
                    && let Some(thread) = &*thread
                {
                    thread.unpark();
                }
            }
            Called::Running | Called::Before => {}
        }
    }

    /// Queues the head, whose callback makes the thread.
    fn call(&'static self) {
        // ORDERING: Relaxed: the head is this caller's (I2 of `duty`); the RCU orders what the callback sees.
        let call = &self.calls[self.current.load(Ordering::Relaxed)];
        let this = ptr::from_ref(self).cast_mut();
        // ORDERING: Relaxed: as above.
        call.monitor.store(this, Ordering::Relaxed);
        // ORDERING: Relaxed: as above.
        call.is_queued.store(1, Ordering::Relaxed);
        // From the whole value, so that the callback finds its way back.
        // SAFETY: the offset is that of a field.
        let head = unsafe { NonNull::from(call).byte_add(offset_of!(Call<R>, head)) };
        // SAFETY: the head is static, and on no list (I2 of `duty`); the callback may run anywhere.
        unsafe { self.rcu.call(head.cast(), Callback::Run(Self::begin)) };
    }

    /// Makes the child of a fork start afresh: see the module.
    ///
    /// # Safety
    /// 1. The caller is the only thread of a fork's child, and inside no function of the monitor.
    pub(crate) unsafe fn reset_after_fork(&self) {
        // SAFETY: 1.
        let (mut thread, whole) = unsafe { self.thread.seize() };
        if whole {
            // Its destructor may free, which the child of a fork should not do yet.
            core::mem::forget(thread.take());
        } else {
            // SAFETY: the place is valid for writes; what is half written there is forgotten.
            unsafe { ptr::write(&raw mut *thread, None) };
        }
        drop(thread);
        // ORDERING: Relaxed, here and below: there is one thread.
        let current = self.current.load(Ordering::Relaxed);
        // ORDERING: Relaxed: as above.
        if self.calls[current].is_queued.load(Ordering::Relaxed) != 0 {
            // ORDERING: Relaxed: as above.
            let free = |call: &Call<R>| call.is_queued.load(Ordering::Relaxed) == 0;
            let Some(other) = self.calls.iter().position(free) else {
                return;
            };
            // ORDERING: Relaxed: as above.
            self.calls[current]
                .monitor
                .store(ptr::null_mut(), Ordering::Relaxed);
            // ORDERING: Relaxed: as above.
            self.current.store(other, Ordering::Relaxed);
        }
        self.duty.reset_after_fork();
    }

    /// The callback.
    ///
    /// # Safety
    /// 1. `head` is that of a call of a static monitor.
    unsafe fn begin(head: NonNull<Head>) {
        // SAFETY: the head is a field of a call (1).
        let call = unsafe { head.cast::<u8>().byte_sub(offset_of!(Call<R>, head)) };
        // SAFETY: as above; only shared.
        let call: &'static Call<R> = unsafe { call.cast::<Call<R>>().as_ref() };
        // ORDERING: Relaxed: written before the head was queued, or by a fork's child that had one thread.
        let this = call.monitor.load(Ordering::Relaxed);
        // ORDERING: Release meets the Acquire of who takes the monitor over: the head is on no list.
        call.is_queued.store(0, Ordering::Release);
        // SAFETY: null or a static monitor, which is `CALLED`.
        let Some(this): Option<&'static Self> = (unsafe { this.as_ref() }) else {
            return;
        };
        this.duty.begin();
        let thread = std::thread::Builder::new().name("kvfree-monitor".into());
        if thread.spawn(|| this.run()).is_err() {
            // No thread to be had: this callback looks, and comes again after another grace period if it must.
            if this.look() > 0 || !this.leave() {
                this.call();
            }
        }
    }

    fn run(&'static self) {
        // Held by hurriers for a moment; in the child of a fork perhaps for ever, and then nobody can hurry this thread.
        for _ in 0..TRIES {
            if let Some(mut thread) = self.thread.try_lock() {
                *thread = Some(std::thread::current());
                break;
            }
            std::thread::yield_now();
        }
        let mut idle = Duration::ZERO;
        loop {
            // ORDERING: Relaxed: a hint; what it is about is found by the look that follows, or the next one.
            self.is_hurried.store(0, Ordering::Relaxed);
            let left = self.look();
            let delay = self.delay();
            if left > 0 {
                idle = Duration::ZERO;
            } else if idle >= LINGER {
                if self.leave() {
                    return;
                }
                idle = Duration::ZERO;
            } else {
                // A delay above this puts nothing off: nothing waits.
                let step = delay.clamp(Duration::from_millis(1), LINGER);
                idle += step;
                std::thread::park_timeout(step);
                continue;
            }
            // ORDERING: Relaxed: a hint.
            if self.is_hurried.load(Ordering::Relaxed) == 0 {
                std::thread::park_timeout(delay);
            }
        }
    }

    /// One round. One that panics leaves something.
    fn look(&self) -> usize {
        let mut left = 1;
        contained(|| left = (self.tick)());
        left
    }

    /// Gives the duty to look back to whoever retires next; false if the caller has it again.
    fn leave(&self) -> bool {
        self.duty.leave(|| self.look() == 0)
    }
}

impl<R> fmt::Debug for Monitor<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor")
            .field("state", &self.duty.name())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::Global;
    use core::sync::atomic::AtomicUsize;

    fn wait_until(done: impl Fn() -> bool) {
        while !done() {
            std::thread::yield_now();
        }
    }

    /// I1: work noted at any moment is found, whether there is a thread, one about to come, or none.
    #[test]
    fn k8_work_is_found_with_a_thread_and_without() {
        static MONITOR: Monitor<Global> = Monitor::new(Global, || WORK.swap(0, Ordering::Relaxed));
        static WORK: AtomicUsize = AtomicUsize::new(0);
        fn add_and_wait(soon: bool) {
            WORK.fetch_add(1, Ordering::Relaxed);
            MONITOR.watch(soon);
            wait_until(|| WORK.load(Ordering::Relaxed) == 0);
        }
        assert!(!MONITOR.is_present());
        for _ in 0..3 {
            add_and_wait(false);
            add_and_wait(true);
            // K8: nothing waits, so the thread ends.
            wait_until(|| !MONITOR.is_present());
        }
    }

    /// A look that is hurried does not wait for the delay, and one that is not does not put it off.
    #[test]
    fn k8_an_earlier_deadline_replaces_a_later_one_and_never_the_reverse() {
        static MONITOR: Monitor<Global> = Monitor::new(Global, || {
            LOOKS.fetch_add(1, Ordering::Relaxed);
            1
        });
        static LOOKS: AtomicUsize = AtomicUsize::new(0);
        // As good as for ever: only hurrying makes it look again.
        MONITOR.set_delay(Duration::from_secs(1 << 20));
        MONITOR.watch(false);
        wait_until(|| LOOKS.load(Ordering::Relaxed) > 0);
        for _ in 0..10 {
            let before = LOOKS.load(Ordering::Relaxed);
            wait_until(|| {
                MONITOR.watch(true);
                MONITOR.watch(false);
                LOOKS.load(Ordering::Relaxed) > before
            });
        }
    }

    /// What a look calls may panic: the next look comes all the same.
    #[test]
    fn k8_a_look_that_panics_does_not_end_the_monitor() {
        /// Panics when it is dropped, as what it panics with does.
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                std::panic::resume_unwind(Box::new(Self));
            }
        }
        static MONITOR: Monitor<Global> = Monitor::new(Global, || {
            let left = WORK.load(Ordering::Relaxed);
            if left > 0 {
                WORK.fetch_sub(1, Ordering::Relaxed);
                std::panic::resume_unwind(Box::new(Bomb));
            }
            left
        });
        static WORK: AtomicUsize = AtomicUsize::new(0);
        for _ in 0..2 {
            WORK.store(3, Ordering::Relaxed);
            MONITOR.watch(false);
            wait_until(|| WORK.load(Ordering::Relaxed) == 0);
            // K8: nothing waits, so the thread ends.
            wait_until(|| !MONITOR.is_present());
        }
    }
}
