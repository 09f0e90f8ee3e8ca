//! Objects that are retired, and that note when and how often their callback ran.

use crate::contract::Rcu;
use crate::head::{Callback, HasHead, Head, HeadFn, HeadOffset};
use crate::seq::Cookie;
use std::boxed::Box;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::vec::Vec;

/// An object that is retired, and what its callback found.
#[repr(C)]
pub(super) struct Probe<R> {
    before: usize,
    head: Head,
    rcu: *const R,
    /// From right before the call.
    cookie: Cookie,
    /// Where among its kind it is to run, and how many have.
    place: usize,
    ran: *const AtomicUsize,
    pub(super) runs: AtomicUsize,
    /// Whom the callback is to queue, after it has looked around in a section of its own.
    pub(super) then: Option<NonNull<Self>>,
    /// How many times the callback is to queue itself again.
    pub(super) again: AtomicUsize,
    early: AtomicBool,
    out_of_order: AtomicBool,
}

// SAFETY: `offset_of!` of a field of type `Head`.
unsafe impl<R> HasHead for Probe<R> {
    const OFFSET: HeadOffset = HeadOffset::from_bytes(core::mem::offset_of!(Self, head));
}

/// The callback of a [`Probe`].
unsafe fn run<R: Rcu>(head: NonNull<Head>) {
    // SAFETY: only heads of probes get this callback.
    let object = unsafe { Probe::<R>::OFFSET.object(head) };
    // SAFETY: probes live until their test's barrier has returned.
    let probe = unsafe { object.cast::<Probe<R>>().as_ref() };
    // SAFETY: the RCU outlives its callbacks.
    let rcu = unsafe { &*probe.rcu };
    // SAFETY: the counter lives as long as the probes.
    let ran = unsafe { &*probe.ran };
    // ORDERING: Relaxed: read after `barrier`, which orders it, as everything below.
    let first = probe.runs.fetch_add(1, Ordering::Relaxed) == 0;
    if first && !rcu.poll(probe.cookie) {
        probe.early.store(true, Ordering::Relaxed);
    }
    // ORDERING: Relaxed: as above.
    if ran.fetch_add(1, Ordering::Relaxed) != probe.place && first {
        probe.out_of_order.store(true, Ordering::Relaxed);
    }
    if let Some(then) = probe.then.filter(|_| first) {
        rcu.read(|_| {
            let inside = rcu.start();
            rcu.drive();
            if rcu.poll(inside) {
                // ORDERING: Relaxed: as above.
                probe.early.store(true, Ordering::Relaxed);
            }
        });
        // SAFETY: the other probe lives as long as this one, and is queued here only.
        unsafe { queue(rcu, then, false) };
    }
    // ORDERING: Relaxed: the callback's own.
    let again = probe.again.load(Ordering::Relaxed);
    if again > 0 {
        probe.again.store(again - 1, Ordering::Relaxed);
        // SAFETY: this callback holds the head, which lives on and is on no list; nobody reads it.
        unsafe { rcu.call(head, Callback::Run(run::<R> as HeadFn)) };
    }
}

/// Probes in memory that a failing test leaks rather than frees under a callback.
pub(super) struct Probes<R> {
    all: Vec<NonNull<Probe<R>>>,
    pub(super) ran: &'static AtomicUsize,
}

impl<R: Rcu> Probes<R> {
    pub(super) fn new(rcu: &R, count: usize) -> Self {
        let ran: &'static AtomicUsize = Box::leak(Box::new(AtomicUsize::new(0)));
        let all = (0..count)
            .map(|place| {
                let probe = Box::new(Probe {
                    before: 0x5eed,
                    head: Head::new(),
                    rcu,
                    cookie: Cookie::COMPLETED,
                    place,
                    ran,
                    runs: AtomicUsize::new(0),
                    then: None,
                    again: AtomicUsize::new(0),
                    early: AtomicBool::new(false),
                    out_of_order: AtomicBool::new(false),
                });
                NonNull::from(Box::leak(probe))
            })
            .collect();
        Self { all, ran }
    }

    pub(super) fn get(&self, i: usize) -> &Probe<R> {
        // SAFETY: probes live until `finish`.
        unsafe { self.all[i].as_ref() }
    }

    /// One of the probes, for [`Probe::then`].
    pub(super) fn chain(&mut self, from: usize, to: usize) {
        let to = self.all[to];
        // SAFETY: probes live until `finish`, and this one is not queued yet.
        unsafe { self.all[from].as_mut() }.then = Some(to);
    }

    pub(super) fn call(&mut self, rcu: &R, i: usize) {
        // SAFETY: probes live until `finish`, and this one is not queued yet.
        unsafe { queue(rcu, self.all[i], false) };
    }

    pub(super) fn call_lazy(&mut self, rcu: &R, i: usize) {
        // SAFETY: as above.
        unsafe { queue(rcu, self.all[i], true) };
    }

    /// Every probe ran `times`, none early, in order if `ordered`; gives the memory back.
    pub(super) fn finish(self, times: usize, ordered: bool) {
        for (i, &at) in self.all.iter().enumerate() {
            // SAFETY: made by `Box::leak`; no callback is left, by the barrier before.
            let probe = unsafe { Box::from_raw(at.as_ptr()) };
            assert_eq!(probe.before, 0x5eed);
            assert_eq!(probe.runs.into_inner(), times, "runs of callback {i}");
            assert!(!probe.early.into_inner(), "callback {i} ran early");
            assert!(
                !ordered || !probe.out_of_order.into_inner(),
                "callback {i} out of order"
            );
        }
        // SAFETY: made by `Box::leak` in `new`; no callback is left.
        drop(unsafe { Box::from_raw(core::ptr::from_ref(self.ran).cast_mut()) });
    }
}

/// Queues a probe, with a cookie from right before.
///
/// # Safety
/// 1. The probe lives until its callback has run, is not queued, and nobody else looks at it.
unsafe fn queue<R: Rcu>(rcu: &R, mut probe: NonNull<Probe<R>>, lazy: bool) {
    // SAFETY: the caller's debt.
    unsafe { probe.as_mut() }.cookie = rcu.snapshot();
    // SAFETY: the caller's debt.
    let head = unsafe { Probe::head_of(probe) };
    let callback = Callback::Run(run::<R> as HeadFn);
    if lazy {
        // SAFETY: the head lives until its callback, is on no list, and was never published; the callback may run
        // anywhere, as `Probe` is atomics and numbers.
        unsafe { rcu.call_lazy(head, callback) };
    } else {
        // SAFETY: as above.
        unsafe { rcu.call(head, callback) };
    }
}
