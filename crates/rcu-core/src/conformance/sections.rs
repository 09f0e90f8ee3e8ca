//! What sections must do: guards, closures, threads that are always inside.

use super::drive_until_done;
use crate::contract::Rcu;
use crate::section::Online;
use std::boxed::Box;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

/// R5, and the self-checks of rcutorture.
#[doc(hidden)]
pub fn r1_never_done_inside_a_section<R: Rcu>(rcu: &R) {
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
pub fn r1_guards_end_in_any_order<R: Rcu>(rcu: &R) {
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

/// R1.
#[doc(hidden)]
pub fn r1_never_done_while_another_thread_reads<R: Rcu + Sync>(rcu: &R) {
    let (inside, seen, outside) = (Barrier::new(2), Barrier::new(2), Barrier::new(2));
    let mut early = 0;
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
            let is_early = (0..100).any(|_| {
                rcu.drive();
                rcu.poll(cookie)
            });
            early += usize::from(is_early);
            seen.wait();
            drive_until_done(rcu, cookie);
            outside.wait();
        }
    });
    assert_eq!(early, 0, "done while a section of another thread lasts");
}

/// R1: a closure is inside, and outside again though it panicked.
#[doc(hidden)]
pub fn r1_read_runs_inside<R: Rcu>(rcu: &R) {
    let cookie = rcu.read(|guard| {
        assert!(core::ptr::eq(*guard.rcu(), rcu));
        let cookie = rcu.start();
        for _ in 0..100 {
            rcu.drive();
            assert!(!rcu.poll(cookie), "not inside");
        }
        cookie
    });
    drive_until_done(rcu, cookie);
    let panics = AssertUnwindSafe(|| rcu.read(|_| resume_unwind(Box::new(()))));
    let outcome: std::thread::Result<()> = catch_unwind(panics);
    assert!(outcome.is_err());
    rcu.synchronize();
}

/// R20, G10: a thread that is always inside; quiescent states let grace periods pass, nothing else does.
#[doc(hidden)]
pub fn r20_g10_online_is_a_section<R: Rcu>(rcu: &R) {
    let mut online = Online::new(rcu);
    for _ in 0..10 {
        let guard = online.guard();
        let _again = guard;
        let cookie = rcu.start();
        for _ in 0..100 {
            rcu.drive();
            assert!(!rcu.poll(cookie), "done though nobody was quiescent");
        }
        while !rcu.poll(cookie) {
            online.quiescent();
            rcu.drive();
        }
    }
    drop(online);
    rcu.synchronize();
}

/// R20: a quiescent state beside another guard passes nothing on.
#[doc(hidden)]
pub fn r20_quiescent_respects_other_guards<R: Rcu>(rcu: &R) {
    for online_first in [true, false] {
        let mut guard = (!online_first).then(|| rcu.read_lock());
        let mut online = Online::new(rcu);
        guard.get_or_insert_with(|| rcu.read_lock());
        let cookie = rcu.start();
        for _ in 0..100 {
            online.quiescent();
            rcu.drive();
            assert!(!rcu.poll(cookie), "done though another guard lives");
        }
        drop(guard);
        while !rcu.poll(cookie) {
            online.quiescent();
            rcu.drive();
        }
    }
}

/// R20: offline a thread is outside, and online again afterwards, though what it did panicked.
#[doc(hidden)]
pub fn r20_offline_lets_the_thread_wait<R: Rcu>(rcu: &R) {
    let mut online = Online::new(rcu);
    for _ in 0..10 {
        let cookie = rcu.start();
        online.offline(|| {
            rcu.synchronize();
            rcu.barrier();
        });
        assert!(rcu.poll(cookie));
        online.synchronize();
        let panics = AssertUnwindSafe(|| online.offline(|| resume_unwind(Box::new(()))));
        let outcome: std::thread::Result<()> = catch_unwind(panics);
        assert!(outcome.is_err());
        let cookie = rcu.start();
        for _ in 0..20 {
            rcu.drive();
            assert!(!rcu.poll(cookie), "still offline");
        }
    }
}

/// R20: threads that are always inside hold nobody up as long as they say so now and then.
#[doc(hidden)]
pub fn r20_online_threads_let_grace_periods_pass<R: Rcu + Sync>(rcu: &R) {
    let stop = AtomicBool::new(false);
    let together = Barrier::new(3);
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                let mut online = Online::new(rcu);
                together.wait();
                // ORDERING: Relaxed: a flag that is looked at again.
                while !stop.load(Ordering::Relaxed) {
                    online.quiescent();
                    std::thread::yield_now();
                }
            });
        }
        together.wait();
        for _ in 0..10 {
            let cookie = rcu.snapshot();
            rcu.synchronize();
            assert!(rcu.poll(cookie));
        }
        // ORDERING: Relaxed: as above.
        stop.store(true, Ordering::Relaxed);
    });
}
