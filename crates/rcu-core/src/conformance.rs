//! What every [`GracePeriod`], [`Rcu`] and [`LocalLock`](crate::cpu::LocalLock) must do, as tests for whoever implements one.
//!
//! Each macro makes a module of `#[test]`s from an expression that gives a *fresh* value; it is
//! evaluated once in every test. The tests need `std` (and nothing of the kind in what they test).
//!
//! ```
//! rcu_core::grace_period_conformance!(no_readers, rcu_core::NoReaders);
//! ```

mod cpus;
mod locks;
mod reclaimers;

#[doc(hidden)]
#[doc(hidden)]
pub use cpus::{
    hooks_run_once_on_the_owner, no_two_threads_share_a_slot, slots_are_in_range_and_stay,
};
pub use locks::{
    owner_and_visitors_never_meet, reentrance_fails_and_harms_nothing, zeroed_is_unlocked,
};
#[doc(hidden)]
pub use reclaimers::{
    objects_of_all_sizes_are_whole, owned_objects_are_freed_at_once,
    retired_objects_outlive_their_readers,
};

use crate::contract::{GracePeriod, Rcu};
use crate::head::{Callback, HasHead, Head, HeadFn, HeadOffset};
use crate::seq::Cookie;
use std::boxed::Box;
use std::ptr::NonNull;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::vec::Vec;

/// More than lie between [`Seq::INITIAL`](crate::Seq::INITIAL) and the wrap (T44).
const WRAPS: usize = 320;

/// Makes a module of tests for a [`GracePeriod`](crate::GracePeriod): a name and a fresh value.
#[macro_export]
macro_rules! grace_period_conformance {
    ($name:ident, $make:expr) => {
        $crate::__conformance!(
            $name,
            $make,
            [
                completed_is_always_done,
                done_after_synchronize,
                snapshot_asks_for_nothing,
                start_and_drive_make_progress,
                done_is_stable,
                wait_ends_for_any_cookie,
                t44_the_sequence_wraps,
            ]
        );
    };
}

/// Makes a module of tests for an [`Rcu`](crate::Rcu): a name and a fresh value, and after
/// `threads:` the same for a value that threads may share, after `free:` for one that was given
/// [`note_free`](crate::conformance::note_free) to free objects with.
///
/// Those of [`grace_period_conformance!`](crate::grace_period_conformance) are not repeated.
#[macro_export]
macro_rules! rcu_conformance {
    ($name:ident, $make:expr) => {
        $crate::__conformance!(
            $name,
            $make,
            [
                never_done_inside_a_section,
                guards_end_in_any_order,
                callbacks_run_once_after_a_grace_period_in_order,
                barrier_of_nothing_returns,
                t45_callbacks_call_again,
                calls_inside_a_section_wait_for_its_end,
            ]
        );
    };
    ($name:ident, threads: $make:expr) => {
        $crate::__conformance!(
            $name,
            $make,
            [
                never_done_while_another_thread_reads,
                synchronize_waits_for_another_thread,
                threads_come_and_go_and_barrier_counts_all,
            ]
        );
    };
    ($name:ident, free: $make:expr) => {
        $crate::__conformance!($name, $make, [offsets_free_their_objects]);
    };
}

/// Makes a module of tests for a [`LocalLock`](crate::cpu::LocalLock): a name and a fresh lock,
/// and after `threads:` the same for a lock that is right on more than one CPU.
#[macro_export]
macro_rules! local_lock_conformance {
    ($name:ident, $make:expr) => {
        $crate::__conformance!(
            $name,
            $make,
            [reentrance_fails_and_harms_nothing, zeroed_is_unlocked,]
        );
    };
    ($name:ident, threads: $make:expr) => {
        $crate::__conformance!($name, $make, [owner_and_visitors_never_meet]);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance {
    ($name:ident, $make:expr, [$($test:ident),* $(,)?]) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            $(
                #[test]
                fn $test() {
                    $crate::conformance::$test(&$make);
                }
            )*
        }
    };
}

fn drive_until_done(gp: &impl GracePeriod, cookie: Cookie) {
    while !gp.poll(cookie) {
        gp.drive();
        std::thread::yield_now();
    }
}

/// R9: across the wrap.
#[doc(hidden)]
pub fn completed_is_always_done(gp: &impl GracePeriod) {
    for _ in 0..WRAPS {
        assert!(gp.poll(Cookie::COMPLETED));
        gp.wait(Cookie::COMPLETED);
        gp.synchronize();
    }
    assert!(gp.poll(Cookie::COMPLETED));
}

/// R3, R8: whatever kind of grace period it was.
#[doc(hidden)]
pub fn done_after_synchronize(gp: &impl GracePeriod) {
    let cookie = gp.snapshot();
    gp.synchronize();
    assert!(gp.poll(cookie));
    let cookie = gp.snapshot();
    gp.synchronize_expedited();
    assert!(gp.poll(cookie));
    let cookie = gp.start();
    gp.wait(cookie);
    assert!(gp.poll(cookie));
}

/// R7.
#[doc(hidden)]
pub fn snapshot_asks_for_nothing(gp: &impl GracePeriod) {
    let before = gp.grace_periods();
    for _ in 0..100 {
        let _ = gp.snapshot();
        gp.drive();
    }
    assert_eq!(gp.grace_periods(), before);
}

/// Guarantee 3.
#[doc(hidden)]
pub fn start_and_drive_make_progress(gp: &impl GracePeriod) {
    for _ in 0..20 {
        let early = gp.start();
        gp.drive();
        let late = gp.start();
        drive_until_done(gp, late);
        assert!(gp.poll(early), "the earlier cookie is done no later");
    }
}

/// Guarantee 2.
#[doc(hidden)]
pub fn done_is_stable(gp: &impl GracePeriod) {
    let mut cookies = Vec::new();
    for _ in 0..20 {
        cookies.push(gp.start());
        gp.synchronize();
        assert!(cookies.iter().all(|&c| gp.poll(c)));
    }
}

/// R7: a snapshot that nobody asked for.
#[doc(hidden)]
pub fn wait_ends_for_any_cookie(gp: &impl GracePeriod) {
    let asked = gp.start();
    let not_asked = gp.snapshot();
    gp.wait(not_asked);
    assert!(gp.poll(not_asked) && gp.poll(asked));
    gp.wait(asked);
}

/// T44.
#[doc(hidden)]
pub fn t44_the_sequence_wraps(gp: &impl GracePeriod) {
    let first = gp.snapshot();
    for i in 0..WRAPS {
        let cookie = gp.start();
        gp.wait(cookie);
        assert!(gp.poll(cookie), "grace period {i}");
        assert!(gp.poll(first), "grace period {i}");
    }
}

/// R5, and the self-checks of rcutorture.
#[doc(hidden)]
pub fn never_done_inside_a_section<R: Rcu>(rcu: &R) {
    for _ in 0..10 {
        let before = rcu.start();
        let guard = rcu.read_lock();
        let seen_before = rcu.poll(before);
        let inside = rcu.start();
        for _ in 0..100 {
            rcu.drive();
            assert!(!rcu.poll(inside), "done inside the section it was taken in");
            assert!(seen_before || !rcu.poll(before), "done inside a section");
        }
        drop(guard);
        drive_until_done(rcu, inside);
        assert!(rcu.poll(before));
    }
}

/// Guarantee 5.
#[doc(hidden)]
pub fn guards_end_in_any_order<R: Rcu>(rcu: &R) {
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let mut guards = [(); 3].map(|()| Some(rcu.read_lock()));
        let cookie = rcu.start();
        for i in order {
            for _ in 0..20 {
                rcu.drive();
                assert!(!rcu.poll(cookie), "a guard still lives");
            }
            guards[i] = None;
        }
        drive_until_done(rcu, cookie);
    }
}

/// An object that is retired, and what its callback found.
#[repr(C)]
struct Probe<R> {
    before: usize,
    head: Head,
    rcu: *const R,
    /// From right before the call.
    cookie: Cookie,
    /// Where among its kind it is to run, and how many have.
    place: usize,
    ran: *const AtomicUsize,
    runs: AtomicUsize,
    /// How many times the callback is to queue itself again.
    again: AtomicUsize,
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
    // ORDERING: Relaxed: the callback's own.
    let again = probe.again.load(Ordering::Relaxed);
    if again > 0 {
        probe.again.store(again - 1, Ordering::Relaxed);
        // SAFETY: this callback holds the head, which lives on and is on no list; nobody reads it.
        unsafe { rcu.call(head, Callback::Run(run::<R> as HeadFn)) };
    }
}

/// Probes in memory that a failing test leaks rather than frees under a callback.
struct Probes<R> {
    all: Vec<NonNull<Probe<R>>>,
    ran: &'static AtomicUsize,
}

impl<R: Rcu> Probes<R> {
    fn new(rcu: &R, count: usize) -> Self {
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
                    again: AtomicUsize::new(0),
                    early: AtomicBool::new(false),
                    out_of_order: AtomicBool::new(false),
                });
                NonNull::from(Box::leak(probe))
            })
            .collect();
        Self { all, ran }
    }

    fn get(&self, i: usize) -> &Probe<R> {
        // SAFETY: probes live until `finish`.
        unsafe { self.all[i].as_ref() }
    }

    fn call(&mut self, rcu: &R, i: usize) {
        // SAFETY: probes live until `finish`, and this one is not queued yet.
        unsafe { self.all[i].as_mut() }.cookie = rcu.snapshot();
        // SAFETY: probes live until `finish`.
        let head = unsafe { Probe::head_of(self.all[i]) };
        // SAFETY: the head lives until after a barrier, is on no list, and was never published; the
        // callback may run anywhere, as `Probe` is atomics and numbers.
        unsafe { rcu.call(head, Callback::Run(run::<R> as HeadFn)) };
    }

    /// Every probe ran `times`, none early, in order if `ordered`; gives the memory back.
    fn finish(self, times: usize, ordered: bool) {
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

/// R4, R13.
#[doc(hidden)]
pub fn callbacks_run_once_after_a_grace_period_in_order<R: Rcu>(rcu: &R) {
    for count in [1, 2, 100] {
        let mut probes = Probes::new(rcu, count);
        for i in 0..count {
            probes.call(rcu, i);
            if i % 7 == 3 {
                rcu.drive();
            }
            if i % 31 == 30 {
                rcu.synchronize();
            }
        }
        rcu.barrier();
        for i in 0..count {
            // ORDERING: Relaxed: `barrier` orders it.
            assert_eq!(
                probes.get(i).runs.load(Ordering::Relaxed),
                1,
                "before `barrier` returned"
            );
        }
        rcu.barrier();
        probes.finish(1, true);
    }
}

/// R13: and again after something was queued.
#[doc(hidden)]
pub fn barrier_of_nothing_returns<R: Rcu>(rcu: &R) {
    rcu.barrier();
    rcu.synchronize();
    rcu.barrier();
    let mut probes = Probes::new(rcu, 1);
    probes.call(rcu, 0);
    rcu.barrier();
    rcu.barrier();
    probes.finish(1, true);
}

/// T45.
#[doc(hidden)]
pub fn t45_callbacks_call_again<R: Rcu>(rcu: &R) {
    const AGAIN: usize = 5;
    let mut probes = Probes::new(rcu, 3);
    for i in 0..3 {
        // ORDERING: Relaxed: not queued yet.
        probes.get(i).again.store(AGAIN, Ordering::Relaxed);
        probes.call(rcu, i);
    }
    for round in 1..=AGAIN + 1 {
        rcu.barrier();
        // ORDERING: Relaxed: `barrier` orders it.
        assert!(
            probes.get(0).runs.load(Ordering::Relaxed) >= round,
            "barrier {round}"
        );
    }
    rcu.barrier();
    probes.finish(AGAIN + 1, false);
}

/// R4.
#[doc(hidden)]
pub fn calls_inside_a_section_wait_for_its_end<R: Rcu>(rcu: &R) {
    let mut probes = Probes::new(rcu, 2);
    let outer = rcu.read_lock();
    probes.call(rcu, 0);
    let inner = rcu.read_lock();
    probes.call(rcu, 1);
    drop(inner);
    for _ in 0..100 {
        rcu.drive();
        // ORDERING: Relaxed: nothing is read through it.
        assert_eq!(
            probes.ran.load(Ordering::Relaxed),
            0,
            "ran inside a section"
        );
    }
    drop(outer);
    rcu.barrier();
    probes.finish(1, true);
}

/// R1.
#[doc(hidden)]
pub fn never_done_while_another_thread_reads<R: Rcu + Sync>(rcu: &R) {
    let (inside, seen, outside) = (Barrier::new(2), Barrier::new(2), Barrier::new(2));
    std::thread::scope(|s| {
        s.spawn(|| {
            for _ in 0..20 {
                let guard = rcu.read_lock();
                inside.wait();
                seen.wait();
                drop(guard);
                // The grace period may start as late as now, and would have to wait for the next section.
                outside.wait();
            }
        });
        for _ in 0..20 {
            inside.wait();
            let cookie = rcu.start();
            let early = (0..100).any(|_| {
                rcu.drive();
                rcu.poll(cookie)
            });
            seen.wait();
            assert!(!early, "done while a section of another thread lasts");
            drive_until_done(rcu, cookie);
            outside.wait();
        }
    });
}

/// R3: what a section wrote last is seen.
#[doc(hidden)]
pub fn synchronize_waits_for_another_thread<R: Rcu + Sync>(rcu: &R) {
    for _ in 0..20 {
        let inside = Barrier::new(2);
        let left = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                let guard = rcu.read_lock();
                inside.wait();
                for _ in 0..100 {
                    std::thread::yield_now();
                }
                // ORDERING: Relaxed: the grace period orders it, which is what is tested.
                left.store(true, Ordering::Relaxed);
                drop(guard);
            });
            inside.wait();
            rcu.synchronize();
            // ORDERING: Relaxed: as above.
            assert!(left.load(Ordering::Relaxed), "returned inside a section");
        });
    }
}

/// R13, T39: from slots that are no more.
#[doc(hidden)]
pub fn threads_come_and_go_and_barrier_counts_all<R: Rcu + Sync>(rcu: &R) {
    const THREADS: usize = 8;
    const EACH: usize = 25;
    struct Shared<R>(Probes<R>);
    // SAFETY: probes are handed from thread to thread by spawning and joining, with their RCU shared.
    unsafe impl<R: Sync> Send for Shared<R> {}
    let all: Vec<Shared<R>> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..THREADS)
            .map(|t| {
                s.spawn(move || {
                    let mut probes = Probes::new(rcu, EACH);
                    for i in 0..EACH {
                        let guard = (i % 3 == t % 3).then(|| rcu.read_lock());
                        probes.call(rcu, i);
                        drop(guard);
                    }
                    if t % 4 == 0 {
                        rcu.barrier();
                    }
                    Shared(probes)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    rcu.barrier();
    for Shared(probes) in all {
        probes.finish(1, false);
    }
}

/// An object whose callback is "free it".
#[repr(C)]
struct Freed {
    before: [usize; 5],
    head: Head,
    freed: AtomicUsize,
}
crate::has_head!(Freed, head);

/// What an implementation that is tested with `free:` is to free objects with. It notes the call
/// in the object.
///
/// # Safety
/// 1. `object` is the start of an object that the test retired.
pub unsafe fn note_free(object: NonNull<u8>) {
    // SAFETY: the test retires objects of this type only, which live until it ends.
    let object = unsafe { object.cast::<Freed>().as_ref() };
    // ORDERING: Relaxed: read after `barrier`.
    object.freed.fetch_add(1, Ordering::Relaxed);
}

/// K1.
#[doc(hidden)]
pub fn offsets_free_their_objects<R: Rcu>(rcu: &R) {
    let objects: Vec<NonNull<Freed>> = (0..50)
        .map(|i| {
            let object = Freed {
                before: [i; 5],
                head: Head::new(),
                freed: AtomicUsize::new(0),
            };
            NonNull::from(Box::leak(Box::new(object)))
        })
        .collect();
    for &object in &objects {
        // SAFETY: the object lives until the end of this test.
        let head = unsafe { Freed::head_of(object) };
        // SAFETY: the head lives until after the barrier, is on no list and was never published;
        // the implementation was made with `note_free`, for which objects are made here.
        unsafe { rcu.call(head, Callback::Free(Freed::OFFSET)) };
    }
    rcu.barrier();
    for (i, &object) in objects.iter().enumerate() {
        // SAFETY: made by `Box::leak`; no callback is left.
        let object = unsafe { Box::from_raw(object.as_ptr()) };
        assert_eq!(object.before, [i; 5]);
        assert_eq!(object.freed.into_inner(), 1, "object {i}");
    }
}
