//! The child of a fork: slots, hooks and fences, whatever the other threads were doing.

#![cfg(all(feature = "std", unix, not(loom), not(miri)))]

#[path = "common/child.rs"]
mod child;
#[path = "common/slots.rs"]
mod slots;

use child::{check, fork as in_child};
use rcu_core::cpu::{Cpus, OfflineHook, Slot, Threads};
use rcu_core::{fence, fork};
use slots::with_threads;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};

/// Hooks are the process's: one that blocks would run where another test's threads end.
fn alone() -> impl Drop {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn the_child_has_one_slot_taken_and_all_others_free() {
    let _alone = alone();
    let mine = Threads.current();
    with_threads(5, || {
        let (mode, before) = (fence::probe(), fork::generation());
        let child = in_child(|| {
            // SAFETY: the first thing that the child does.
            unsafe { fork::after_fork_child() };
            check(fork::generation() > before);
            check(Threads.nr_online() == 1);
            check(Threads.current() == mine);
            check(fence::probe() == mode);
            fence::heavy();
            let next = std::thread::spawn(|| Threads.current()).join().unwrap();
            let lowest = (0..).map(Slot::new).find(|slot| Some(*slot) != mine);
            check(next == lowest);
            let grandchild = in_child(|| {
                // SAFETY: as above, in the child's child.
                unsafe { fork::after_fork_child() };
                check(fork::generation() > before + 1);
                check(Threads.current() == mine && Threads.nr_online() == 1);
                check(fence::probe() == mode);
            });
            check(grandchild == Ok(()));
        });
        assert_eq!(child, Ok(()));
        assert!(Threads.nr_online() >= 6, "the parent is as it was");
        assert_eq!(fork::generation(), before);
    });
}

#[test]
fn a_thread_without_a_slot_forks_too() {
    let _alone = alone();
    std::thread::spawn(|| {
        with_threads(2, || {
            let child = in_child(|| {
                // SAFETY: the first thing that the child does.
                unsafe { fork::after_fork_child() };
                check(Threads.nr_online() == 0);
                check(Threads.current() == Some(Slot::new(0)));
            });
            assert_eq!(child, Ok(()));
        });
    })
    .join()
    .unwrap();
}

static SURVIVORS: AtomicUsize = AtomicUsize::new(0);

unsafe fn forked(_: *const (), survivor: Option<Slot>) {
    SURVIVORS.fetch_add(
        1 + usize::from(survivor == Threads.current_if_online()),
        Ordering::Relaxed,
    );
}

/// Where `blocks` waits, on behalf of the thread that is to be stuck.
struct Stuck {
    on: AtomicUsize,
    there: Barrier,
    go: Barrier,
}

unsafe fn blocks(stuck: *const (), slot: Slot) -> bool {
    // SAFETY: the hook below is removed before its `Stuck` goes.
    let stuck = unsafe { &*stuck.cast::<Stuck>() };
    if stuck.on.load(Ordering::Acquire) == slot.index() {
        stuck.there.wait();
        stuck.go.wait();
    }
    true
}

#[test]
fn hooks_run_in_the_child_though_a_thread_was_in_the_middle_of_running_them() {
    let _alone = alone();
    let mine = Threads.current().unwrap();
    let stuck = Stuck {
        on: AtomicUsize::new(usize::MAX),
        there: Barrier::new(2),
        go: Barrier::new(2),
    };
    // SAFETY: may run on any thread while `stuck` is there.
    let hook = unsafe { OfflineHook::new(blocks, (&raw const stuck).cast()) };
    // SAFETY: may run anywhere.
    let hook = unsafe { hook.with_fork(forked) };
    // SAFETY: removed below, and on no list.
    unsafe { Threads.add_offline_hook(NonNull::from(&hook)) };
    let (child, ending) = std::thread::scope(|s| {
        let ending = s.spawn(|| {
            let slot = Threads.current().unwrap();
            stuck.on.store(slot.index(), Ordering::Release);
            slot
        });
        // The thread holds the list's lock from here on: it is giving its slot back.
        stuck.there.wait();
        let child = in_child(|| {
            // SAFETY: the first thing that the child does.
            unsafe { fork::after_fork_child() };
            check(SURVIVORS.load(Ordering::Relaxed) == 2);
            check(Threads.current() == Some(mine) && Threads.nr_online() == 1);
            stuck.on.store(usize::MAX, Ordering::Relaxed);
            check(std::thread::spawn(|| Threads.current()).join().is_ok());
            // SAFETY: this test\'s hook.
            unsafe { Threads.remove_offline_hook(NonNull::from(&hook)) };
            // SAFETY: again, with nothing used since that matters; this hook is gone.
            unsafe { fork::after_fork_child() };
            check(SURVIVORS.load(Ordering::Relaxed) == 2);
        });
        stuck.go.wait();
        (child, ending.join().unwrap())
    });
    // SAFETY: this test\'s hook.
    unsafe { Threads.remove_offline_hook(NonNull::from(&hook)) };
    assert_eq!(child, Ok(()));
    assert_ne!(ending, mine);
    assert_eq!(SURVIVORS.load(Ordering::Relaxed), 0, "not in the parent");
}
