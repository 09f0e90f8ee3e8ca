//! What every [`GracePeriod`], [`Rcu`](crate::Rcu), [`RcuSend`](crate::RcuSend) and
//! [`LocalLock`](crate::cpu::LocalLock) must do, as tests for whoever implements one.
//!
//! Each macro makes a module of `#[test]`s from an expression that gives a *fresh* value; it is
//! evaluated once in every test. The tests need `std` (and nothing of the kind in what they test).
//!
//! ```
//! rcu_core::grace_period_conformance!(no_readers, rcu_core::NoReaders);
//! ```

mod callbacks;
mod cookies;
mod cpus;
mod locks;
mod probes;
mod reclaimers;
mod sections;
mod send;

pub use callbacks::note_free;
#[doc(hidden)]
pub use callbacks::{
    offsets_free_their_objects, r4_callbacks_queue_others,
    r4_callbacks_run_once_after_a_grace_period_in_order,
    r4_calls_inside_a_section_wait_for_its_end, r13_barrier_of_nothing_returns,
    r13_barriers_of_many_threads_cover_their_own,
    r13_t39_threads_come_and_go_and_barrier_counts_all, r17_lazy_and_ordinary_callbacks_run_once,
    r17_lazy_callbacks_wait_for_sections, r17_t40_lazy_alone_is_found_by_barrier,
    t45_callbacks_call_again,
};
#[doc(hidden)]
pub use cookies::{
    r3_done_after_synchronize, r3_synchronize_waits_for_another_thread,
    r5_a_cookie_of_a_running_grace_period_waits_for_the_next, r7_done_is_stable,
    r7_snapshot_asks_for_nothing, r7_start_and_drive_make_progress, r7_wait_ends_for_any_cookie,
    r8_full_cookie_is_never_early, r8_full_starts_make_progress, r8_t35_full_cookie_never_misses,
    r8_wait_full_ends_for_any_cookie, r9_completed_is_always_done, r10_few_cookies_are_live,
    r12_expedited_cookie_is_never_early, r15_expedited_waits_for_another_thread,
    t44_the_sequence_wraps,
};
#[doc(hidden)]
pub use cpus::{
    hooks_run_once_on_the_owner, no_two_threads_share_a_slot, slots_are_in_range_and_stay,
};
#[doc(hidden)]
pub use locks::{
    owner_and_visitors_never_meet, reentrance_fails_and_harms_nothing, zeroed_is_unlocked,
};
#[doc(hidden)]
pub use reclaimers::{
    objects_of_all_sizes_are_whole, owned_objects_are_freed_at_once,
    retired_objects_outlive_their_readers,
};
#[doc(hidden)]
pub use sections::{
    r1_guards_end_in_any_order, r1_never_done_inside_a_section,
    r1_never_done_while_another_thread_reads, r1_read_runs_inside, r20_g10_online_is_a_section,
    r20_offline_lets_the_thread_wait, r20_online_threads_let_grace_periods_pass,
    r20_quiescent_respects_other_guards,
};
#[doc(hidden)]
pub use send::{
    g11_a_section_belongs_to_no_thread, g11_moved_off_a_thread_without_a_gap,
    g11_sections_end_in_any_order, t41_a_section_outlives_its_thread,
};

use crate::contract::GracePeriod;
use crate::seq::{Cookie, FullCookie};

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
                r3_done_after_synchronize,
                r7_done_is_stable,
                r7_snapshot_asks_for_nothing,
                r7_start_and_drive_make_progress,
                r7_wait_ends_for_any_cookie,
                r8_full_starts_make_progress,
                r8_t35_full_cookie_never_misses,
                r8_wait_full_ends_for_any_cookie,
                r9_completed_is_always_done,
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
                r1_guards_end_in_any_order,
                r1_never_done_inside_a_section,
                r1_read_runs_inside,
                r4_callbacks_queue_others,
                r4_callbacks_run_once_after_a_grace_period_in_order,
                r4_calls_inside_a_section_wait_for_its_end,
                r8_full_cookie_is_never_early,
                r10_few_cookies_are_live,
                r12_expedited_cookie_is_never_early,
                r13_barrier_of_nothing_returns,
                r17_lazy_and_ordinary_callbacks_run_once,
                r17_lazy_callbacks_wait_for_sections,
                r17_t40_lazy_alone_is_found_by_barrier,
                r20_offline_lets_the_thread_wait,
                r20_g10_online_is_a_section,
                r20_quiescent_respects_other_guards,
                t45_callbacks_call_again,
            ]
        );
    };
    ($name:ident, threads: $make:expr) => {
        $crate::__conformance!(
            $name,
            $make,
            [
                r1_never_done_while_another_thread_reads,
                r3_synchronize_waits_for_another_thread,
                r5_a_cookie_of_a_running_grace_period_waits_for_the_next,
                r13_barriers_of_many_threads_cover_their_own,
                r13_t39_threads_come_and_go_and_barrier_counts_all,
                r15_expedited_waits_for_another_thread,
                r20_online_threads_let_grace_periods_pass,
            ]
        );
    };
    ($name:ident, free: $make:expr) => {
        $crate::__conformance!($name, $make, [offsets_free_their_objects]);
    };
}

/// Makes a module of tests for an [`RcuSend`](crate::RcuSend): a name and a fresh value that threads may share.
#[macro_export]
macro_rules! rcu_send_conformance {
    ($name:ident, $make:expr) => {
        $crate::__conformance!(
            $name,
            $make,
            [
                g11_a_section_belongs_to_no_thread,
                g11_moved_off_a_thread_without_a_gap,
                g11_sections_end_in_any_order,
                t41_a_section_outlives_its_thread,
            ]
        );
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

fn drive_until_done_full(gp: &impl GracePeriod, cookie: FullCookie) {
    while !gp.poll_full(cookie) {
        gp.drive();
        std::thread::yield_now();
    }
}
