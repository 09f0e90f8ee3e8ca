//! The RCU for one CPU, with threads that take turns on it.
//!
//! A thread has the CPU while it is inside a section or a method, and gives it away only outside: what a kernel without
//! preemption does. A callback comes back in on the CPU that it runs on. An idle loop reports quiescent states and so runs
//! callbacks.

use crate::rcu::subject::Subject;
use rcu_core::{Callback, Cookie, FullCookie, GracePeriod, Head, Rcu};
use rcu_tiny::{Tiny, TinyStatic};
use serde_json::{Value, json};
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

// SAFETY: only who has the CPU uses it, which is given away outside of sections only; there are no interrupts.
static TINY: TinyStatic = unsafe { TinyStatic::new(Tiny::new()) };

static TAKEN: Mutex<bool> = Mutex::new(false);
static FREE: Condvar = Condvar::new();

thread_local! {
    /// How often this thread has taken the CPU and not given it away.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

fn take_cpu() {
    if DEPTH.get() == 0 {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken {
            taken = FREE.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken = true;
    }
    DEPTH.set(DEPTH.get() + 1);
}

fn give_cpu() {
    DEPTH.set(DEPTH.get() - 1);
    if DEPTH.get() == 0 {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) = false;
        FREE.notify_one();
    }
}

/// What runs on the CPU, as one thing.
fn on_cpu<T>(f: impl FnOnce(&'static Tiny) -> T) -> T {
    /// Gives the CPU away, also if a callback panics.
    struct Away;
    impl Drop for Away {
        fn drop(&mut self) {
            give_cpu();
        }
    }
    take_cpu();
    let _away = Away;
    f(&TINY)
}

/// The one CPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OneCpu;

pub(crate) fn start() -> OneCpu {
    thread::spawn(|| {
        loop {
            on_cpu(|tiny| {
                if tiny.tick(false) {
                    tiny.quiescent();
                }
            });
            thread::sleep(Duration::from_micros(100));
        }
    });
    OneCpu
}

// SAFETY: `Tiny`'s, whose guarantees hold for what runs on one CPU.
unsafe impl GracePeriod for OneCpu {
    fn snapshot(&self) -> Cookie {
        on_cpu(Tiny::snapshot)
    }
    fn start(&self) -> Cookie {
        on_cpu(Tiny::start)
    }
    fn poll(&self, cookie: Cookie) -> bool {
        on_cpu(|tiny| tiny.poll(cookie))
    }
    fn wait(&self, cookie: Cookie) {
        on_cpu(|tiny| tiny.wait(cookie));
    }
    fn drive(&self) -> bool {
        on_cpu(Tiny::drive)
    }
    fn synchronize(&self) {
        on_cpu(Tiny::synchronize);
    }
    fn synchronize_expedited(&self) {
        on_cpu(Tiny::synchronize_expedited);
    }
    fn start_expedited(&self) -> Cookie {
        on_cpu(Tiny::start_expedited)
    }
    fn wait_expedited(&self, cookie: Cookie) {
        on_cpu(|tiny| tiny.wait_expedited(cookie));
    }
    fn snapshot_full(&self) -> FullCookie {
        on_cpu(Tiny::snapshot_full)
    }
    fn poll_full(&self, cookie: FullCookie) -> bool {
        on_cpu(|tiny| tiny.poll_full(cookie))
    }
    fn start_full(&self) -> FullCookie {
        on_cpu(Tiny::start_full)
    }
    fn start_full_expedited(&self) -> FullCookie {
        on_cpu(Tiny::start_full_expedited)
    }
    fn wait_full(&self, cookie: FullCookie) {
        on_cpu(|tiny| tiny.wait_full(cookie));
    }
    fn wait_full_expedited(&self, cookie: FullCookie) {
        on_cpu(|tiny| tiny.wait_full_expedited(cookie));
    }
    fn grace_periods(&self) -> usize {
        on_cpu(Tiny::grace_periods)
    }
}

// SAFETY: as above; a section keeps the CPU.
unsafe impl Rcu for OneCpu {
    type Token = <Tiny as Rcu>::Token;

    fn enter(&self) -> Self::Token {
        take_cpu();
        TINY.enter()
    }
    unsafe fn exit(&self, token: Self::Token) {
        // SAFETY: the caller's debt; tokens stay on their thread, which has the CPU.
        unsafe { TINY.exit(token) };
        give_cpu();
    }
    unsafe fn call(&self, head: NonNull<Head>, callback: Callback) {
        // SAFETY: the caller's debts.
        on_cpu(|tiny| unsafe { tiny.call(head, callback) });
    }
    unsafe fn call_lazy(&self, head: NonNull<Head>, callback: Callback) {
        // SAFETY: the caller's debts.
        on_cpu(|tiny| unsafe { tiny.call_lazy(head, callback) });
    }
    unsafe fn quiescent_state(&self, token: Self::Token) -> Self::Token {
        // SAFETY: the caller's debt; the thread has the CPU.
        unsafe { TINY.quiescent_state(token) }
    }
    fn barrier(&self) {
        on_cpu(Tiny::barrier);
    }
}

impl Subject for OneCpu {
    fn tell(self) -> Value {
        let stats = on_cpu(Tiny::stats);
        json!({
            "grace periods": stats.grace_periods,
            "callbacks queued": stats.callbacks_queued,
            "callbacks run": stats.callbacks_run,
        })
    }
}
