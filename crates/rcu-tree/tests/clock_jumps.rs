//! Clocks that jump, stand still and go round: a suspended machine, a guest that was moved, an embedder's clock that was set. Nothing
//! ends early, nothing is lost, nothing waits for the time to come again.
#![cfg(not(loom))]

mod common;
#[path = "common/odd.rs"]
mod odd;

use odd::{Odd, odd};
use rcu_core::cpu::{OneCpu, PerSlot, UpLock};
use rcu_core::{Callback, GracePeriod, Head, Rcu};
use rcu_tree::{CallbackConfig, Geometry, NoTrace, Node, StallConfig, StallReport, Tree, TreeSlot};
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

thread_local! {
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static TOLD: Cell<usize> = const { Cell::new(0) };
    static RAN: Cell<usize> = const { Cell::new(0) };
}

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

unsafe fn ran(_: NonNull<Head>) {
    RAN.set(RAN.get() + 1);
}

/// A tree of one CPU, whose only clock is that of its ticks.
fn ticked() -> &'static Tree<'static, OneCpu> {
    // SAFETY: each thread that plays has a tree of its own.
    let cpu = unsafe { OneCpu::new() };
    // SAFETY: as above.
    let lock = unsafe { UpLock::new() };
    let slots = PerSlot::from_slice(Box::leak(Box::new([TreeSlot::new(lock)])));
    let geometry = Geometry::new(1);
    let nodes: Vec<_> = (0..geometry.nr_nodes()).map(|_| Node::new()).collect();
    // SAFETY: leaked before its first use; one thread plays the CPU.
    let tree = unsafe { Tree::new(cpu, slots, geometry, nodes.leak()) };
    let config = CallbackConfig::new().lazy_flush(10 * SECOND);
    Box::leak(Box::new(tree.with_callbacks(config)))
}

/// Moments that come one after the other.
const JUMPS: [Duration; 12] = [
    Duration::ZERO,
    DAY,
    Duration::from_secs(1),
    Duration::MAX,
    Duration::ZERO,
    // Where the milliseconds go round in 32 bits, and half of that.
    Duration::from_millis(u32::MAX as u64),
    Duration::from_millis(u32::MAX as u64 / 2),
    Duration::from_millis(u64::MAX / 2),
    Duration::from_millis(u64::MAX / 2 - 1),
    Duration::from_millis(u64::MAX),
    Duration::from_millis(1),
    Duration::ZERO,
];

#[test]
fn callbacks_and_grace_periods_outlive_every_jump_of_the_ticks_clock() {
    for before in JUMPS {
        for after in JUMPS {
            let tree = ticked();
            RAN.set(0);
            let items: &[Head; 4] = Box::leak(Box::default());
            let call = |n: usize, is_lazy: bool| {
                let head = NonNull::from_ref(&items[n]);
                let callback = Callback::Run(ran);
                if is_lazy {
                    // SAFETY: leaked, each queued once.
                    unsafe { tree.call_lazy(head, callback) };
                } else {
                    // SAFETY: as above.
                    unsafe { tree.call(head, callback) };
                }
            };
            let _ = tree.tick(before);
            call(0, true);
            let _ = tree.tick(before);
            let cookie = {
                let _guard = tree.read_lock();
                call(1, false);
                let cookie = tree.start();
                // The clock jumps while somebody reads: no excuse to end anything.
                NOW.set(after);
                tree.drive();
                assert!(!tree.poll(cookie), "{before:?} to {after:?}");
                assert_eq!(RAN.get(), 0);
                cookie
            };
            // From there it goes on as clocks do.
            let mut now = after;
            for _ in 0..64 {
                let _ = tree.tick(now);
                now = now.saturating_add(Duration::from_millis(4));
            }
            assert!(tree.poll(cookie), "{before:?} to {after:?}");
            assert_eq!(
                RAN.get(),
                2,
                "{before:?} to {after:?}: an ordinary one takes the lazy along"
            );
            // A lazy one alone waits for its time at most, whatever the clock did in between.
            call(2, true);
            let _ = tree.tick(before);
            for _ in 0..64 {
                let _ = tree.tick(now);
                now = now.saturating_add(SECOND);
            }
            if now < Duration::MAX {
                assert_eq!(RAN.get(), 3, "{before:?} to {after:?}: lazy");
            }
            // And where the clock has come to its end, somebody asks.
            call(3, true);
            tree.barrier();
            assert_eq!(RAN.get(), 4, "{before:?} to {after:?}");
        }
    }
}

fn tell(_: &StallReport<'_>) {
    TOLD.set(TOLD.get() + 1);
}

/// A stall is told when it has lasted for the timeout by a clock that jumped back, or before, but never not at all.
#[test]
fn g22_stalls_are_told_by_a_clock_that_was_set_back() {
    let config = StallConfig::new().clock(|| NOW.get()).report(tell);
    let tree: &'static Tree<'static, Odd> = odd(NoTrace, config.timeout(10 * SECOND));
    thread::scope(|s| {
        let (entered, inside) = mpsc::channel();
        let (leave, told_to_leave) = mpsc::channel::<()>();
        s.spawn(move || {
            let _guard = tree.read_lock();
            entered.send(()).unwrap();
            // An error is the end, too.
            let _ = told_to_leave.recv();
        });
        inside.recv().unwrap();
        let look_at = |now: Duration| {
            NOW.set(now);
            tree.drive();
            tree.check_stalls();
            TOLD.take()
        };
        NOW.set(DAY);
        tree.start();
        assert_eq!(look_at(DAY), 0);
        assert_eq!(look_at(DAY + 9 * SECOND), 0);
        // Set back by a day: its time begins anew, and does not end a day later.
        assert_eq!(look_at(SECOND), 0);
        assert_eq!(look_at(8 * SECOND), 0);
        assert_eq!(look_at(11 * SECOND), 1);
        // Told; then set back again.
        assert_eq!(look_at(Duration::ZERO), 0);
        assert_eq!(look_at(10 * SECOND), 1);
        // Forward by more than there is: told, and nothing overflows.
        assert_eq!(look_at(Duration::MAX), 1);
        assert_eq!(look_at(Duration::ZERO), 0);
        leave.send(()).unwrap();
    });
    tree.synchronize();
    assert!(!tree.has_work());
}
