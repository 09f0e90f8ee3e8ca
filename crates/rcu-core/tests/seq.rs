//! The arithmetic of sequences: the reference's vectors, all small values and all around the wrap
//! against a model in `u128` that never wraps, and distant values at random.

#![cfg(not(loom))]

use proptest::prelude::*;
use rcu_core::{Cookie, Seq};

/// Model values count phases from `Seq::INITIAL`; the word wraps at this one (T44).
const WRAP: u128 = 4 * 300;

fn seq(model: u128) -> Seq {
    Seq::from_raw(Seq::INITIAL.raw().wrapping_add(model as usize))
}

fn cookie(model: u128) -> Cookie {
    assert_eq!(model % 4, 0);
    Cookie::from_raw(seq(model).raw())
}

fn model_snapshot(now: u128) -> u128 {
    if now.is_multiple_of(4) {
        now + 4
    } else {
        (now / 4 + 2) * 4
    }
}

fn check_one(now: u128) {
    let s = seq(now);
    assert_eq!(s.in_progress(), !now.is_multiple_of(4));
    assert_eq!(s.snapshot(), cookie(model_snapshot(now)));
    assert_eq!(s.started(), seq(now + 1));
    if !now.is_multiple_of(4) {
        assert_eq!(s.ended(), seq(now.next_multiple_of(4)));
    }
    assert_eq!(s.completed() as u128, now / 4);
    assert!(
        s.is_done(Cookie::COMPLETED) && s.is_done_exact(Cookie::COMPLETED),
        "R9"
    );
    assert!(!s.snapshot().is_completed_mark(), "R9");
}

fn check_cookie(now: u128, at: u128) {
    let (s, c) = (seq(now), cookie(at));
    assert_eq!(s.is_done(c), now >= at, "{now} {at}");
    assert_eq!(s.is_done_exact(c), now >= at || at - now > 13, "{now} {at}");
    assert_eq!(s.has_started(c), now > at - 4, "{now} {at}");
}

fn check_interval(old: u128, new: u128) {
    let ends = new / 4 - old / 4;
    let starts = new.div_ceil(4) - old.div_ceil(4);
    let whole = (new / 4).saturating_sub(old.div_ceil(4));
    let (o, n) = (seq(old), seq(new));
    assert_eq!(n.ended_since(o), ends > 0, "{old} {new}");
    assert_eq!(n.started_since(o), starts > 0, "{old} {new}");
    let since = if old == new { 0 } else { whole + 1 };
    assert_eq!(n.grace_periods_since(o) as u128, since, "{old} {new}");
}

#[test]
fn r5_r6_vectors() {
    let seq = Seq::from_raw;
    let snapshots = [0, 1, 2, 3, 4].map(|raw| seq(raw).snapshot().raw());
    assert_eq!(snapshots, [4, 8, 8, 8, 8]);
    assert_eq!(seq(1).ended().raw(), 4);
    let diff = |old, new| seq(new).grace_periods_since(seq(old));
    assert_eq!(
        [diff(0, 4), diff(1, 4), diff(0, 1), diff(1, 2)],
        [2, 1, 1, 1]
    );
    assert_eq!((0..10).map(|raw| diff(raw, raw)).sum::<usize>(), 0);
    assert!(seq(usize::MAX - 3).ended_since(seq(usize::MAX - 7)));
    assert!(seq(0).is_done(Cookie::from_raw(usize::MAX - 3)));
    assert!(!seq(usize::MAX - 3).is_done(Cookie::from_raw(0)));
    assert_eq!(Seq::INITIAL.raw().wrapping_add(WRAP as usize), 0);
}

#[test]
fn small_values_and_the_wrap_against_the_model() {
    let near = |middle: u128| middle.saturating_sub(40)..middle + 40;
    for middle in [0, WRAP] {
        for now in near(middle) {
            check_one(now);
            for other in near(middle) {
                if other.is_multiple_of(4) && other >= 4 {
                    check_cookie(now, other);
                }
                if other <= now {
                    check_interval(other, now);
                }
            }
        }
    }
}

#[test]
fn r11_t34_a_cookie_from_before_the_numbers_went_round_is_done() {
    let half = usize::MAX as u128 / 2;
    for now in 0..2 * WRAP {
        let at = (now + half + 20).next_multiple_of(4);
        assert!(seq(now).is_done_exact(cookie(at)));
        let fresh = seq(now).snapshot();
        assert!(!seq(now).is_done_exact(fresh) && !seq(now).is_done(fresh));
        for lag in 0..=4 {
            if now >= lag {
                assert!(
                    !seq(now - lag).is_done_exact(fresh),
                    "seen {lag} phases late"
                );
            }
        }
    }
}

#[test]
fn cookies_in_order() {
    for middle in [8, WRAP] {
        for (a, b) in (0..8).flat_map(|a| (0..8).map(move |b| (middle + 4 * a, middle + 4 * b))) {
            assert_eq!(cookie(a).is_no_later_than(cookie(b)), a <= b);
        }
        assert!(Cookie::COMPLETED.is_no_later_than(cookie(middle)));
        assert!(!cookie(middle).is_no_later_than(Cookie::COMPLETED));
    }
    assert!(Cookie::COMPLETED.is_no_later_than(Cookie::COMPLETED));
}

#[test]
fn r10_so_many_cookies_are_active_at_once() {
    for now in 0..2 * WRAP {
        // Those handed out before or now, and not done.
        let mut active: Vec<_> = (0..=now.min(20))
            .map(|back| seq(now - back).snapshot())
            .filter(|&c| !seq(now).is_done(c))
            .collect();
        active.dedup();
        assert!(active.len() <= Cookie::MAX_ACTIVE);
    }
}

proptest! {
    #[test]
    fn distant_values_against_the_model(now in 0..u128::from(u64::MAX / 8), d in 0..u128::from(u64::MAX / 8)) {
        if usize::BITS == 64 {
            check_one(now);
            check_interval(now, now + d);
            let at = (now + 4).next_multiple_of(4);
            check_cookie(now + d, at);
            let far = (now + d + 4) / 4 * 4;
            prop_assert_eq!(seq(now).is_done(cookie(far)), now >= far);
        }
    }
}
