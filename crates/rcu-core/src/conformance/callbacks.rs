//! What `call`, `call_lazy` and `barrier` must do.

use super::probes::Probes;
use crate::contract::Rcu;
use crate::head::{Callback, HasHead, Head};
use std::boxed::Box;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::vec::Vec;

/// R4, R13.
#[doc(hidden)]
pub fn r4_callbacks_run_once_after_a_grace_period_in_order<R: Rcu>(rcu: &R) {
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
pub fn r13_barrier_of_nothing_returns<R: Rcu>(rcu: &R) {
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
pub fn r4_calls_inside_a_section_wait_for_its_end<R: Rcu>(rcu: &R) {
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

/// R13, T39: from slots that are no more.
#[doc(hidden)]
pub fn r13_t39_threads_come_and_go_and_barrier_counts_all<R: Rcu + Sync>(rcu: &R) {
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

/// R4: from a callback, sections may be entered, cookies taken and callbacks queued.
#[doc(hidden)]
pub fn r4_callbacks_queue_others<R: Rcu>(rcu: &R) {
    const LONG: usize = 6;
    let mut probes = Probes::new(rcu, LONG);
    for i in 1..LONG {
        probes.chain(i - 1, i);
    }
    probes.call(rcu, 0);
    for round in 1..=LONG {
        rcu.barrier();
        // ORDERING: Relaxed: `barrier` orders it.
        let ran = probes.ran.load(Ordering::Relaxed);
        assert!(ran >= round, "barrier {round} returned after {ran}");
    }
    probes.finish(1, true);
}

/// R17: lazy or not, a barrier covers it; the order of queueing binds each kind for itself only.
#[doc(hidden)]
pub fn r17_lazy_and_ordinary_callbacks_run_once<R: Rcu>(rcu: &R) {
    for share in [2, 7] {
        let mut probes = Probes::new(rcu, 100);
        for i in 0..100 {
            if i % share == 0 {
                probes.call(rcu, i);
            } else {
                probes.call_lazy(rcu, i);
            }
            if i % 31 == 30 {
                rcu.synchronize();
            }
        }
        rcu.barrier();
        // ORDERING: Relaxed: `barrier` orders it.
        assert_eq!(probes.ran.load(Ordering::Relaxed), 100);
        rcu.barrier();
        probes.finish(1, false);
    }
}

/// R17, T39, T40: nothing but lazy callbacks, which nobody would come for by chance.
#[doc(hidden)]
pub fn r17_t40_lazy_alone_is_found_by_barrier<R: Rcu>(rcu: &R) {
    for _ in 0..10 {
        let mut probes = Probes::new(rcu, 1);
        probes.call_lazy(rcu, 0);
        rcu.barrier();
        // ORDERING: Relaxed: `barrier` orders it.
        assert_eq!(probes.ran.load(Ordering::Relaxed), 1, "not found");
        // One that it would run again must not be found freed by the next.
        rcu.barrier();
        probes.finish(1, true);
    }
}

/// R17: late, but never early.
#[doc(hidden)]
pub fn r17_lazy_callbacks_wait_for_sections<R: Rcu>(rcu: &R) {
    let mut probes = Probes::new(rcu, 2);
    let guard = rcu.read_lock();
    probes.call_lazy(rcu, 0);
    probes.call(rcu, 1);
    for _ in 0..100 {
        rcu.drive();
        // ORDERING: Relaxed: nothing is read through it.
        let ran = probes.ran.load(Ordering::Relaxed);
        assert_eq!(ran, 0, "ran inside a section");
    }
    drop(guard);
    rcu.barrier();
    probes.finish(1, false);
}

/// R13: each barrier covers what its own thread queued, though others are at it (rcutorture's barrier callbacks).
#[doc(hidden)]
pub fn r13_barriers_of_many_threads_cover_their_own<R: Rcu + Sync>(rcu: &R) {
    std::thread::scope(|s| {
        for t in 0..4 {
            s.spawn(move || {
                for round in 0..10 {
                    let mut probes = Probes::new(rcu, 2);
                    probes.call(rcu, 0);
                    if (t + round) % 2 == 0 {
                        probes.call_lazy(rcu, 1);
                    } else {
                        probes.call(rcu, 1);
                    }
                    rcu.barrier();
                    // ORDERING: Relaxed: `barrier` orders it.
                    assert_eq!(probes.ran.load(Ordering::Relaxed), 2);
                    probes.finish(1, false);
                }
            });
        }
    });
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
///
/// For an example: `rcu_conformance!(name, free: Tiny::new().with_kfree(note_free))`.
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
