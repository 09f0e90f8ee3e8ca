//! What sections that belong to no thread must do.

use super::{drive_until_done, drive_until_done_full};
use crate::contract::RcuSend;
use crate::section::SendGuard;

/// Neither kind of grace period ends while `cookie` is held up by a section.
fn holds_up<R: RcuSend>(rcu: &R, cookie: crate::seq::Cookie) {
    for _ in 0..50 {
        rcu.drive();
        assert!(!rcu.poll(cookie), "a section that belongs to no thread");
    }
}

/// G11: entered here, left anywhere; counts for both kinds of grace periods.
#[doc(hidden)]
pub fn g11_a_section_belongs_to_no_thread<R: RcuSend + Sync>(rcu: &R) {
    for _ in 0..10 {
        let guard = SendGuard::new(rcu);
        assert!(core::ptr::eq(*guard.rcu(), rcu));
        let (cookie, expedited) = (rcu.start(), rcu.start_expedited());
        let full = rcu.start_full();
        holds_up(rcu, cookie);
        holds_up(rcu, expedited);
        assert!(!rcu.poll_full(full));
        std::thread::scope(|s| {
            s.spawn(move || {
                holds_up(rcu, cookie);
                drop(guard);
            });
        });
        drive_until_done(rcu, cookie);
        drive_until_done(rcu, expedited);
        drive_until_done_full(rcu, full);
        rcu.synchronize();
    }
}

/// G11: what was read before the move stays valid after it, and whoever moved a section off may wait.
#[doc(hidden)]
pub fn g11_moved_off_a_thread_without_a_gap<R: RcuSend + Sync>(rcu: &R) {
    for nested in [false, true] {
        let outer = rcu.read_lock();
        let inner = nested.then(|| rcu.read_lock());
        let cookie = rcu.start();
        rcu.drive();
        let moved = outer.into_send();
        holds_up(rcu, cookie);
        drop(inner);
        holds_up(rcu, cookie);
        // The thread itself is outside now.
        std::thread::scope(|s| {
            s.spawn(move || drop(moved));
            rcu.wait(cookie);
        });
        rcu.synchronize();
    }
}

/// G11: many at once, each of which holds up what was asked for under it.
#[doc(hidden)]
pub fn g11_sections_end_in_any_order<R: RcuSend + Sync>(rcu: &R) {
    for order in [[0, 1, 2], [1, 2, 0], [2, 1, 0]] {
        let mut guards = [None, None, None];
        for guard in &mut guards {
            *guard = Some(SendGuard::new(rcu));
            // A later one enters while a grace period is held up by those before it.
            rcu.start();
            rcu.drive();
        }
        let cookie = rcu.start();
        for i in order {
            holds_up(rcu, cookie);
            guards[i] = None;
        }
        drive_until_done(rcu, cookie);
    }
}

/// T41: a section whose thread is gone still counts.
#[doc(hidden)]
pub fn t41_a_section_outlives_its_thread<R: RcuSend + Sync>(rcu: &R) {
    for _ in 0..5 {
        let guards = std::thread::scope(|s| {
            s.spawn(|| [SendGuard::new(rcu), rcu.read_lock().into_send()])
                .join()
        });
        let Ok([first, second]) = guards else {
            panic!("entering panicked");
        };
        let cookie = rcu.start();
        holds_up(rcu, cookie);
        drop(second);
        holds_up(rcu, cookie);
        drop(first);
        drive_until_done(rcu, cookie);
    }
}
