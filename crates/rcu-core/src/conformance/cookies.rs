//! What cookies, small and full, and every way to wait for them must do.

use super::{WRAPS, drive_until_done, drive_until_done_full};
use crate::contract::{GracePeriod, Rcu};
use crate::seq::{Cookie, FullCookie};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::vec::Vec;

/// R9: across the wrap.
#[doc(hidden)]
pub fn r9_completed_is_always_done(gp: &impl GracePeriod) {
    for _ in 0..WRAPS {
        assert!(gp.poll(Cookie::COMPLETED));
        gp.wait(Cookie::COMPLETED);
        gp.synchronize();
    }
    assert!(gp.poll(Cookie::COMPLETED));
}

/// R3, R8: whatever kind of grace period it was.
#[doc(hidden)]
pub fn r3_done_after_synchronize(gp: &impl GracePeriod) {
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
pub fn r7_snapshot_asks_for_nothing(gp: &impl GracePeriod) {
    let before = gp.grace_periods();
    for _ in 0..100 {
        let _ = gp.snapshot();
        gp.drive();
    }
    assert_eq!(gp.grace_periods(), before);
}

/// Guarantee 3.
#[doc(hidden)]
pub fn r7_start_and_drive_make_progress(gp: &impl GracePeriod) {
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
pub fn r7_done_is_stable(gp: &impl GracePeriod) {
    let mut cookies = Vec::new();
    for _ in 0..20 {
        cookies.push(gp.start());
        gp.synchronize();
        assert!(cookies.iter().all(|&c| gp.poll(c)));
    }
}

/// R7: a snapshot that nobody asked for.
#[doc(hidden)]
pub fn r7_wait_ends_for_any_cookie(gp: &impl GracePeriod) {
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

/// Every way to wait for a whole grace period.
fn ways_to_wait<G: GracePeriod>() -> [fn(&G); 8] {
    [
        G::synchronize,
        G::synchronize_expedited,
        |gp| gp.wait(gp.start()),
        |gp| gp.wait(gp.start_expedited()),
        |gp| gp.wait_expedited(gp.start()),
        |gp| gp.wait_expedited(gp.start_expedited()),
        |gp| gp.wait_full(gp.start_full()),
        |gp| gp.wait_full_expedited(gp.start_full_expedited()),
    ]
}

/// R8, T35: whatever the kind of grace period that was waited for, and though another one was in progress.
#[doc(hidden)]
pub fn r8_t35_full_cookie_never_misses<G: GracePeriod>(gp: &G) {
    for round in 0..6 {
        for (kind, wait) in ways_to_wait::<G>().into_iter().enumerate() {
            if round % 3 == 1 {
                gp.start();
                gp.drive();
            }
            if round % 3 == 2 {
                gp.start_expedited();
                gp.drive();
            }
            let cookie = gp.snapshot_full();
            wait(gp);
            assert!(gp.poll_full(cookie), "missed one of kind {kind}");
            assert!(gp.poll_full(FullCookie::COMPLETED), "R9");
        }
    }
}

/// Guarantee 3, for the full and the expedited forms.
#[doc(hidden)]
pub fn r8_full_starts_make_progress(gp: &impl GracePeriod) {
    for _ in 0..20 {
        let before = gp.snapshot_full();
        let normal = gp.start_full();
        gp.drive();
        let expedited = gp.start_full_expedited();
        let small = gp.start_expedited();
        for cookie in [normal, expedited, before] {
            drive_until_done_full(gp, cookie);
        }
        drive_until_done(gp, small);
        assert!(gp.poll_full(normal) && gp.poll_full(expedited), "stable");
    }
}

/// R8: a snapshot that nobody asked for; and nothing is waited for that is done.
#[doc(hidden)]
pub fn r8_wait_full_ends_for_any_cookie(gp: &impl GracePeriod) {
    for wait_expedited in [false, true] {
        let wait = |cookie| {
            if wait_expedited {
                gp.wait_full_expedited(cookie);
            } else {
                gp.wait_full(cookie);
            }
        };
        let not_asked = gp.snapshot_full();
        wait(not_asked);
        assert!(gp.poll_full(not_asked));
        // What is still under way is not what is counted below.
        while gp.drive() {
            std::thread::yield_now();
        }
        let before = gp.grace_periods();
        wait(not_asked);
        wait(FullCookie::COMPLETED);
        gp.wait_expedited(Cookie::COMPLETED);
        assert_eq!(gp.grace_periods(), before, "waited for what is done");
    }
}

/// R8: not done inside the section it was taken in, nor in one that began before it was done.
#[doc(hidden)]
pub fn r8_full_cookie_is_never_early<R: Rcu>(rcu: &R) {
    for _ in 0..10 {
        let before = rcu.start_full();
        let guard = rcu.read_lock();
        let seen_before = rcu.poll_full(before);
        let inside = [
            rcu.snapshot_full(),
            rcu.start_full(),
            rcu.start_full_expedited(),
        ];
        assert!(!inside.contains(&FullCookie::COMPLETED), "R9");
        for _ in 0..100 {
            rcu.drive();
            assert!(
                !inside.iter().any(|&cookie| rcu.poll_full(cookie)),
                "done inside the section it was taken in"
            );
            assert!(
                seen_before || !rcu.poll_full(before),
                "done inside a section"
            );
        }
        drop(guard);
        for cookie in inside {
            drive_until_done_full(rcu, cookie);
        }
    }
}

/// R12, R15.
#[doc(hidden)]
pub fn r12_expedited_cookie_is_never_early<R: Rcu>(rcu: &R) {
    for _ in 0..10 {
        let before = rcu.start_expedited();
        let guard = rcu.read_lock();
        let seen_before = rcu.poll(before);
        let inside = rcu.start_expedited();
        for _ in 0..100 {
            rcu.drive();
            assert!(!rcu.poll(inside), "done inside the section it was taken in");
            assert!(seen_before || !rcu.poll(before), "done inside a section");
        }
        drop(guard);
        drive_until_done(rcu, inside);
        rcu.wait_expedited(rcu.snapshot());
    }
}

/// R10: a user that keeps a list for each cookie needs so many lists, no more; and equal moments give equal cookies.
#[doc(hidden)]
pub fn r10_few_cookies_are_live<R: Rcu>(rcu: &R) {
    assert_eq!(rcu.snapshot(), rcu.snapshot());
    assert_eq!(rcu.snapshot_full(), rcu.snapshot_full());
    let (mut small, mut full): (Vec<Cookie>, Vec<FullCookie>) = (Vec::new(), Vec::new());
    for round in 0..300 {
        let guard = (round % 3 != 0).then(|| rcu.read_lock());
        match round % 5 {
            0 => small.push(rcu.start()),
            1 => small.push(rcu.start_expedited()),
            2 => full.push(rcu.start_full()),
            3 => full.push(rcu.start_full_expedited()),
            _ => {}
        }
        small.push(rcu.snapshot());
        full.push(rcu.snapshot_full());
        rcu.drive();
        small.push(rcu.snapshot());
        full.push(rcu.snapshot_full());
        // What is found alive here was alive at the first look, as what is done stays so.
        small.retain(|&cookie| !rcu.poll(cookie));
        small.dedup();
        full.retain(|&cookie| !rcu.poll_full(cookie));
        full.dedup();
        let distinct = |i: usize| !full[..i].contains(&full[i]);
        let live = (0..full.len()).filter(|&i| distinct(i)).count();
        assert!(live <= FullCookie::MAX_ACTIVE, "{live} full cookies");
        let distinct = |i: usize| !small[..i].contains(&small[i]);
        let live = (0..small.len()).filter(|&i| distinct(i)).count();
        assert!(live <= Cookie::MAX_ACTIVE, "{live} small cookies");
        drop(guard);
        if round % 7 == 0 {
            rcu.synchronize();
        }
    }
}

/// R5: a section that began while a grace period was in progress is waited for by who asks then.
#[doc(hidden)]
pub fn r5_a_cookie_of_a_running_grace_period_waits_for_the_next<R: Rcu + Sync>(rcu: &R) {
    let (begun, inside, seen) = (Barrier::new(2), Barrier::new(2), Barrier::new(2));
    let mut early = 0;
    std::thread::scope(|s| {
        s.spawn(|| {
            for _ in 0..10 {
                begun.wait();
                let guard = rcu.read_lock();
                inside.wait();
                seen.wait();
                drop(guard);
            }
        });
        for _ in 0..10 {
            let holds_the_first = rcu.read_lock();
            rcu.start();
            rcu.drive();
            begun.wait();
            inside.wait();
            let cookies = [rcu.start(), rcu.start_expedited()];
            let full = rcu.start_full();
            drop(holds_the_first);
            let is_early = (0..100).any(|_| {
                rcu.drive();
                cookies.iter().any(|&cookie| rcu.poll(cookie)) || rcu.poll_full(full)
            });
            early += usize::from(is_early);
            seen.wait();
            for cookie in cookies {
                drive_until_done(rcu, cookie);
            }
            drive_until_done_full(rcu, full);
        }
    });
    assert_eq!(early, 0, "done by a grace period that had begun before");
}

/// R3: what a section wrote last is seen.
#[doc(hidden)]
pub fn r3_synchronize_waits_for_another_thread<R: Rcu + Sync>(rcu: &R) {
    waits_for_another_thread(rcu, &[R::synchronize]);
}

/// R15: the same, in a hurry.
#[doc(hidden)]
pub fn r15_expedited_waits_for_another_thread<R: Rcu + Sync>(rcu: &R) {
    waits_for_another_thread(rcu, &ways_to_wait());
}

fn waits_for_another_thread<R: Rcu + Sync>(rcu: &R, ways: &[fn(&R)]) {
    for way in ways.iter().cycle().take(20) {
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
            way(rcu);
            // ORDERING: Relaxed: as above.
            assert!(left.load(Ordering::Relaxed), "returned inside a section");
        });
    }
}
