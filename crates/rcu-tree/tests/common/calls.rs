//! Callbacks for tests that count, record their order, or do something.

#![allow(dead_code)]

use rcu_core::{Callback, Head, Rcu};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What the callbacks of one test have done.
#[derive(Debug, Default)]
pub(crate) struct Log {
    ran: AtomicUsize,
    order: Mutex<Vec<usize>>,
}

impl Log {
    /// How many have run.
    pub(crate) fn ran(&self) -> usize {
        self.ran.load(Ordering::Acquire)
    }

    /// Their numbers, in the order in which they ran.
    pub(crate) fn order(&self) -> Vec<usize> {
        self.order.lock().unwrap().clone()
    }
}

#[repr(C)]
struct Noting {
    head: Head,
    number: usize,
    log: Arc<Log>,
}

/// # Safety
/// `head` came from `noting`, and is run once.
unsafe fn note(head: NonNull<Head>) {
    // SAFETY: the head is the first field of a box.
    let noting = unsafe { Box::from_raw(head.cast::<Noting>().as_ptr()) };
    noting.log.order.lock().unwrap().push(noting.number);
    noting.log.ran.fetch_add(1, Ordering::Release);
}

fn noting(log: &Arc<Log>, number: usize) -> NonNull<Head> {
    let noting = Noting {
        head: Head::new(),
        number,
        log: log.clone(),
    };
    NonNull::from(Box::leak(Box::new(noting))).cast()
}

/// Queues a callback that notes `number`.
pub(crate) fn call(rcu: &impl Rcu, log: &Arc<Log>, number: usize) {
    // SAFETY: a box of its own, freed by its callback, on any thread.
    unsafe { rcu.call(noting(log, number), Callback::Run(note)) };
}

/// The same, lazily.
pub(crate) fn call_lazy(rcu: &impl Rcu, log: &Arc<Log>, number: usize) {
    // SAFETY: a box of its own, freed by its callback, on any thread.
    unsafe { rcu.call_lazy(noting(log, number), Callback::Run(note)) };
}

/// A callback that runs a closure once.
#[repr(C)]
struct Doing {
    head: Head,
    deed: Option<Box<dyn FnOnce() + Send>>,
}

/// # Safety
/// `head` came from `call_fn`, and is run once.
unsafe fn run_deed(head: NonNull<Head>) {
    // SAFETY: the head is the first field of a box.
    let mut doing = unsafe { Box::from_raw(head.cast::<Doing>().as_ptr()) };
    let deed = doing.deed.take().unwrap();
    drop(doing);
    deed();
}

/// Queues `deed`.
pub(crate) fn call_fn(rcu: &impl Rcu, deed: impl FnOnce() + Send + 'static) {
    let doing = Doing {
        head: Head::new(),
        deed: Some(Box::new(deed)),
    };
    let head = NonNull::from(Box::leak(Box::new(doing))).cast();
    // SAFETY: a box of its own, freed by its callback, on any thread.
    unsafe { rcu.call(head, Callback::Run(run_deed)) };
}
