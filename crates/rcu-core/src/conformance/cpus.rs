//! What every [`Cpus`] must do.

use crate::cpu::{Cpus, OfflineHook, Slot};
use std::ptr::NonNull;
use std::sync::Barrier;
use std::sync::Mutex;
use std::vec::Vec;

/// Makes a module of tests for a [`Cpus`](crate::cpu::Cpus): a name and a value, and after `threads:` the same for one
/// whose slots are threads that come and go.
#[macro_export]
macro_rules! cpus_conformance {
    ($name:ident, $make:expr) => {
        $crate::__conformance!($name, $make, [slots_are_in_range_and_stay]);
    };
    ($name:ident, threads: $make:expr) => {
        $crate::__conformance!(
            $name,
            $make,
            [no_two_threads_share_a_slot, hooks_run_once_on_the_owner]
        );
    };
}

/// Guarantee 1 of [`Cpus`].
#[doc(hidden)]
pub fn slots_are_in_range_and_stay(cpus: &impl Cpus) {
    let nr_slots = cpus.nr_slots();
    assert!(nr_slots > 0);
    let first = cpus.current();
    for _ in 0..100 {
        let now = cpus.current();
        assert_eq!(now, first, "a slot changed under its owner");
        assert!(now.is_none_or(|slot| slot.index() < nr_slots));
        let early = cpus.current_if_online();
        assert!(early.is_none() || early == now);
        assert_eq!(
            cpus.try_register().ok(),
            now,
            "registering is having a slot"
        );
        assert_eq!(cpus.nr_slots(), nr_slots);
    }
}

/// Guarantee 2 of [`Cpus`].
#[doc(hidden)]
pub fn no_two_threads_share_a_slot(cpus: &(impl Cpus + Sync)) {
    const THREADS: usize = 8;
    for _ in 0..if cfg!(miri) { 2 } else { 20 } {
        let together = Barrier::new(THREADS);
        let slots = Mutex::new(Vec::new());
        std::thread::scope(|s| {
            for _ in 0..THREADS {
                s.spawn(|| {
                    let slot = cpus.current();
                    slots.lock().unwrap().extend(slot);
                    // Nobody leaves before everybody has a slot.
                    together.wait();
                    assert_eq!(cpus.current(), slot);
                });
            }
        });
        let mut slots = slots.into_inner().unwrap();
        let got = slots.len();
        slots.sort();
        slots.dedup();
        assert_eq!(slots.len(), got, "two threads on one slot");
    }
}

/// What hooks have seen: which slot, on which thread's behalf.
#[derive(Debug, Default)]
struct Seen(Mutex<Vec<(Slot, std::thread::ThreadId)>>);

/// # Safety
/// 1. `seen` leads to a [`Seen`].
unsafe fn note(seen: *const (), slot: Slot) -> bool {
    // SAFETY: 1.
    let seen = unsafe { &*seen.cast::<Seen>() };
    seen.0
        .lock()
        .unwrap()
        .push((slot, std::thread::current().id()));
    true
}

/// Guarantee 3 of [`Cpus`], for threads that come and go.
#[doc(hidden)]
pub fn hooks_run_once_on_the_owner(cpus: &(impl Cpus + Sync)) {
    let seen = Seen::default();
    // SAFETY: `note` may run on any thread while `seen` is there, which is until after the removal below.
    let hook = unsafe { OfflineHook::new(note, (&raw const seen).cast()) };
    // SAFETY: the hook stays in place until it is removed, and is on no list.
    unsafe { cpus.add_offline_hook(NonNull::from(&hook)) };
    let mut went = Vec::new();
    for _ in 0..10 {
        let gone = std::thread::scope(|s| {
            s.spawn(|| {
                cpus.current()
                    .map(|slot| (slot, std::thread::current().id()))
            })
            .join()
        });
        went.extend(gone.unwrap());
    }
    // Scoped threads may be joined before their thread-local destructors have run: wait for the last hook.
    let told = || {
        let seen = seen.0.lock().unwrap();
        went.iter()
            .all(|gone| seen.iter().filter(|s| *s == gone).count() == 1)
    };
    while !told() {
        std::thread::yield_now();
    }
    // SAFETY: this function's hook.
    unsafe { cpus.remove_offline_hook(NonNull::from(&hook)) };
    let before = seen.0.lock().unwrap().len();
    std::thread::scope(|s| {
        s.spawn(|| cpus.current());
    });
    // SAFETY: this function's hook.
    unsafe { cpus.remove_offline_hook(NonNull::from(&hook)) };
    assert_eq!(
        seen.0.lock().unwrap().len(),
        before,
        "a hook ran after its removal"
    );
}
