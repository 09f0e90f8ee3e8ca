//! The callback thread: what it keeps apart from grace periods, the clock it keeps, and switching it at run time.
#![cfg(all(feature = "std", not(loom)))]

#[path = "common/calls.rs"]
mod calls;

use calls::{Log, call, call_fn, call_lazy};
use rcu_core::{GracePeriod, Rcu};
use rcu_tree::CallbackConfig;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Sizes, smaller where a checker runs.
mod cfg {
    pub(crate) const EACH: usize = if cfg!(miri) { 40 } else { 2_000 };
    pub(crate) const SWITCHES: usize = if cfg!(miri) { 3 } else { 200 };
}

const A_MOMENT: Duration = Duration::from_millis(1);

#[test]
fn g21_a_callback_that_blocks_delays_no_grace_period() {
    rcu_tree::static_tree! { struct Blocked; }
    let (begun, wait) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    call_fn(&Blocked, move || {
        let name = std::thread::current().name().map(str::to_owned);
        begun.send(name).unwrap();
        may_go_on.recv().unwrap_err();
    });
    assert_eq!(wait.recv().unwrap().as_deref(), Some("rcu-callbacks"));
    for _ in 0..3 {
        let (inside, is_inside) = mpsc::channel();
        let (leave, left) = mpsc::channel::<()>();
        let reader = std::thread::spawn(move || {
            let _guard = Blocked.read_lock();
            inside.send(()).unwrap();
            left.recv().unwrap_err();
        });
        is_inside.recv().unwrap();
        let cookie = Blocked.start();
        assert!(!Blocked.poll(cookie));
        drop(leave);
        reader.join().unwrap();
        // Nobody drives here: the driver does, though the callback thread is stuck.
        while !Blocked.poll(cookie) {
            std::thread::sleep(A_MOMENT);
        }
    }
    drop(go_on);
    Blocked.barrier();
}

#[test]
fn r17_t40_lazy_callbacks_alone_are_run_when_their_time_has_come() {
    const CONFIG: CallbackConfig = CallbackConfig::new().lazy_flush(Duration::from_millis(30));
    rcu_tree::static_tree! { struct Lazy, callbacks = CONFIG; }
    let log = Arc::new(Log::default());
    for round in 0..3 {
        call_lazy(&Lazy, &log, round);
        // Nobody else asks for anything. In the last round the threads have gone to sleep before.
        while log.ran() <= round {
            std::thread::sleep(A_MOMENT);
        }
        if round == 1 {
            std::thread::sleep(Duration::from_millis(400));
        }
    }
    assert_eq!(log.order(), [0, 1, 2]);
}

#[test]
fn r17_a_barrier_wakes_nobody_for_lazy_callbacks_but_runs_them() {
    rcu_tree::static_tree! { struct Late; }
    let log = Arc::new(Log::default());
    // Ten seconds by default: were the barrier to wait for them, so would this test.
    (0..10).for_each(|n| call_lazy(&Late, &log, n));
    Late.barrier();
    assert_eq!(log.ran(), 10);
}

#[test]
fn g21_by_owners_each_slot_runs_its_own() {
    rcu_tree::static_tree! { struct Own; }
    Own::tree().deoffload();
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                let me = std::thread::current().id();
                let ran: &'static AtomicUsize = Box::leak(Box::new(AtomicUsize::new(0)));
                for _ in 0..5 {
                    call_fn(&Own, move || {
                        assert_eq!(std::thread::current().id(), me);
                        ran.fetch_add(1, Ordering::Relaxed);
                    });
                }
                while ran.load(Ordering::Relaxed) < 5 {
                    Own.synchronize();
                }
            });
        }
    });
    assert_eq!(
        Own::tree().callback_stats().panicked,
        0,
        "some ran elsewhere"
    );
}

#[test]
fn g21_by_owners_the_callback_thread_runs_those_of_ended_threads() {
    rcu_tree::static_tree! { struct Heirs; }
    Heirs::tree().deoffload();
    let log = Arc::new(Log::default());
    let theirs = log.clone();
    std::thread::spawn(move || (0..5).for_each(|n| call(&Heirs, &theirs, n)))
        .join()
        .unwrap();
    while log.ran() < 5 {
        std::thread::sleep(A_MOMENT);
    }
    assert_eq!(log.order(), [0, 1, 2, 3, 4]);
}

#[test]
fn g21_offloading_again_finds_what_was_left() {
    rcu_tree::static_tree! { struct Again; }
    let tree = Again::tree();
    let log = Arc::new(Log::default());
    for round in 1..=20 {
        tree.deoffload();
        (0..3).for_each(|n| call(tree, &log, n));
        tree.offload();
        while log.ran() < 3 * round {
            std::thread::sleep(A_MOMENT / 4);
        }
    }
}

#[test]
fn g21_switching_in_a_loop_loses_nothing_and_barriers_stay_right() {
    const CONFIG: CallbackConfig = CallbackConfig::new().batch_limit(16);
    rcu_tree::static_tree! { struct Switched, callbacks = CONFIG; }
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        let callers: Vec<_> = (0..2)
            .map(|_| {
                s.spawn(|| {
                    let log = Arc::new(Log::default());
                    for n in 0..cfg::EACH {
                        if n % 7 == 0 {
                            call_lazy(&Switched, &log, n);
                        } else {
                            call(&Switched, &log, n);
                        }
                        if n % 500 == 0 {
                            Switched.barrier();
                            assert_eq!(log.ran(), n + 1);
                        }
                    }
                    Switched.barrier();
                    let mut ran = log.order();
                    ran.sort_unstable();
                    assert_eq!(ran, (0..cfg::EACH).collect::<Vec<_>>(), "each once");
                })
            })
            .collect();
        s.spawn(|| {
            for _ in 0..cfg::SWITCHES {
                Switched::tree().deoffload();
                std::thread::yield_now();
                Switched::tree().offload();
                std::thread::yield_now();
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        callers.into_iter().for_each(|t| t.join().unwrap());
        stop.store(true, Ordering::Relaxed);
    });
}
