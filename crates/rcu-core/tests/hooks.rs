//! Offline hooks on real threads, in a process of their own: no other test takes a slot meanwhile.

#![cfg(all(feature = "std", not(loom)))]

use rcu_core::cpu::{Cpus, OfflineHook, Slot, Threads};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

static KEEP: AtomicBool = AtomicBool::new(false);
static SEEN: Mutex<Vec<(u8, Slot)>> = Mutex::new(Vec::new());

fn note(who: u8, slot: Slot) {
    assert_eq!(Threads.current(), Some(slot), "on the owner, still online");
    SEEN.lock().unwrap().push((who, slot));
}

unsafe fn keeps(_: *const (), slot: Slot) -> bool {
    note(1, slot);
    !KEEP.load(Ordering::SeqCst)
}

unsafe fn plain(_: *const (), slot: Slot) -> bool {
    note(2, slot);
    true
}

fn slot_of_a_thread() -> Slot {
    std::thread::spawn(|| Threads.current().unwrap())
        .join()
        .unwrap()
}

#[test]
fn a_kept_slot_gets_no_new_owner_before_release() {
    let mine = Threads.current().unwrap();
    // SAFETY: the functions may run on any thread.
    let keeper = unsafe { OfflineHook::new(keeps, std::ptr::null()) };
    // SAFETY: as above.
    let other = unsafe { OfflineHook::new(plain, std::ptr::null()) };
    // SAFETY: the hook is removed below, before it goes out of scope, and is on no list.
    unsafe { Threads.add_offline_hook(NonNull::from(&keeper)) };
    // SAFETY: as above.
    unsafe { Threads.add_offline_hook(NonNull::from(&other)) };

    let free = slot_of_a_thread();
    assert_eq!(
        slot_of_a_thread(),
        free,
        "the lowest free slot is used again"
    );
    assert_eq!(
        SEEN.lock().unwrap().split_off(0),
        [(2, free), (1, free), (2, free), (1, free)]
    );

    KEEP.store(true, Ordering::SeqCst);
    let kept = slot_of_a_thread();
    assert_eq!(kept, free);
    let online = Threads.nr_online();
    KEEP.store(false, Ordering::SeqCst);
    for _ in 0..3 {
        let next = slot_of_a_thread();
        assert!(next != kept && next != mine);
    }
    // SAFETY: the hook kept this slot once, and it is given back once.
    unsafe { Threads.release(kept) };
    assert_eq!(Threads.nr_online(), online - 1);
    assert_eq!(slot_of_a_thread(), kept);

    // SAFETY: this test\'s hook.
    unsafe { Threads.remove_offline_hook(NonNull::from(&keeper)) };
    // SAFETY: this test\'s hook.
    unsafe { Threads.remove_offline_hook(NonNull::from(&keeper)) };
    SEEN.lock().unwrap().clear();
    let last = slot_of_a_thread();
    assert_eq!(*SEEN.lock().unwrap(), [(2, last)]);
    // SAFETY: this test\'s hook.
    unsafe { Threads.remove_offline_hook(NonNull::from(&other)) };
    slot_of_a_thread();
    assert_eq!(SEEN.lock().unwrap().len(), 1);
}
