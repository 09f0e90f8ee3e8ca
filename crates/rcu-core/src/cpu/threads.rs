//! Slots for threads of a hosted program: a number at first use, given back at the thread's end.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `TAKEN[i]` bit b | slot 64·i+b belongs to a live thread | registration (0→1), the thread's end (1→0), under `REGISTRY` |
//! | `SLOT` (thread-local) | this thread's slot, or `NONE`, `ASKING`, or `GONE` | its thread and its signal handlers |
//!
//! # Invariants
//! - I1. A slot has at most one owner; it passes on under the `REGISTRY` lock, which orders the old owner's accesses
//!   before the new one's.
//! - I2. Offline hooks run on the owner while `SLOT` still holds the slot.
//! - I3. After the thread-local destructor ran, `SLOT` is `GONE` and stays so: late uses take the shared path.
//!
//! Why the lowest free number: scans and per-slot arrays stay dense.

use super::{BiasedLock, Cpus, HookList, OfflineHook, Slot, SpinMutex};
use core::cell::Cell;
use core::ptr::NonNull;

/// How many threads can have a slot at the same time; further ones use the shared paths.
pub const MAX_THREAD_SLOTS: usize = 1024;

const WORDS: usize = MAX_THREAD_SLOTS / 64;
/// This thread has not asked for a slot yet.
const NONE: u32 = u32::MAX;
/// This thread has given its slot back, or found none free, and is not to ask again.
const GONE: u32 = u32::MAX - 1;
/// This thread is just getting one; a signal handler that comes in between gets none.
const ASKING: u32 = u32::MAX - 2;

/// Who holds which slot.
struct Registry {
    taken: [u64; WORDS],
    /// How many layers still use the slot of a thread that has ended.
    keepers: [u32; MAX_THREAD_SLOTS],
}

impl Registry {
    fn give_back(&mut self, slot: Slot) {
        if self.keepers[slot.index()] == 0 {
            self.taken[slot.index() / 64] &= !(1 << (slot.index() % 64));
        }
    }
}

static REGISTRY: SpinMutex<Registry> = SpinMutex::new(Registry {
    taken: [0; WORDS],
    keepers: [0; MAX_THREAD_SLOTS],
});
static HOOKS: HookList = HookList::new();

thread_local! {
    static SLOT: Cell<u32> = const { Cell::new(NONE) };
    static RELEASE: Release = const { Release };
}

/// Runs at the thread's end.
struct Release;

impl Drop for Release {
    fn drop(&mut self) {
        let number = SLOT.get();
        if number >= MAX_THREAD_SLOTS as u32 {
            return;
        }
        let slot = Slot::new(number);
        // SAFETY: this thread owns the slot, and `SLOT` still says so (I2).
        let keepers = unsafe { HOOKS.run(slot) };
        SLOT.set(GONE);
        let mut registry = REGISTRY.lock();
        // A keeper cannot have released yet: what it waits for is this thread's own.
        registry.keepers[slot.index()] = keepers;
        registry.give_back(slot);
    }
}

/// The threads of this process as slots: the [`Cpus`] of hosted programs.
///
/// A thread takes a slot at its first use of any layer, the same slot for all of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Threads;

impl Threads {
    #[cold]
    #[inline(never)]
    fn register() -> Option<Slot> {
        if SLOT.get() != NONE {
            return None;
        }
        SLOT.set(ASKING);
        // The destructor must be armed before a slot is taken. A thread that is past its
        // destructors gets no slot (I3).
        if RELEASE.try_with(|_| ()).is_err() {
            SLOT.set(GONE);
            return None;
        }
        crate::fence::probe();
        let mut registry = REGISTRY.lock();
        for (i, word) in registry.taken.iter_mut().enumerate() {
            let bit = word.trailing_ones();
            if bit < 64 {
                *word |= 1 << bit;
                let number = i as u32 * 64 + bit;
                SLOT.set(number);
                return Some(Slot::new(number));
            }
        }
        // All taken: this call goes the shared way, a later one asks again.
        SLOT.set(NONE);
        None
    }

    /// How many threads hold a slot now.
    #[must_use]
    pub fn nr_online(&self) -> usize {
        REGISTRY
            .lock()
            .taken
            .iter()
            .map(|w| w.count_ones() as usize)
            .sum()
    }
}

// SAFETY: 1: numbers come from a table of `MAX_THREAD_SLOTS` bits; 2: I1, and the thread-local word
// is this thread's own; 3: `HookList` runs and removes under one lock, I2.
unsafe impl Cpus for Threads {
    type Lock = BiasedLock;

    #[inline(always)]
    fn nr_slots(&self) -> usize {
        MAX_THREAD_SLOTS
    }

    #[inline(always)]
    fn current_if_online(&self) -> Option<Slot> {
        let number = SLOT.get();
        (number < MAX_THREAD_SLOTS as u32).then_some(Slot::new(number))
    }

    #[inline(always)]
    fn current(&self) -> Option<Slot> {
        let number = SLOT.get();
        if number < MAX_THREAD_SLOTS as u32 {
            return Some(Slot::new(number));
        }
        Self::register()
    }

    unsafe fn add_offline_hook(&self, hook: NonNull<OfflineHook>) {
        // SAFETY: the caller's debts 1 and 2 are `HookList`'s.
        unsafe { HOOKS.add(hook) };
    }

    fn remove_offline_hook(&self, hook: NonNull<OfflineHook>) {
        HOOKS.remove(hook);
    }

    unsafe fn release(&self, slot: Slot) {
        let mut registry = REGISTRY.lock();
        let keepers = &mut registry.keepers[slot.index()];
        debug_assert!(*keepers > 0, "I1: released a slot that was not kept");
        *keepers -= 1;
        registry.give_back(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_thread_keeps_its_slot_and_gives_it_back() {
        let mine = Threads.current();
        assert!(mine.is_some());
        assert_eq!(mine, Threads.current());
        for _ in 0..200 {
            let other = std::thread::spawn(|| Threads.current()).join().unwrap();
            assert!(other.is_some());
            assert_ne!(mine, other);
            assert!(other.unwrap().index() < 128, "slots leak");
        }
    }

    #[test]
    fn hooks_run_on_the_owner_until_removed() {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        unsafe fn hook(_: *const (), slot: Slot) -> bool {
            assert_eq!(Threads.current(), Some(slot));
            RUNS.fetch_add(1, Ordering::Relaxed);
            true
        }
        // SAFETY: the function may run on any thread.
        let hook = unsafe { OfflineHook::new(hook, core::ptr::null()) };
        // SAFETY: the hook is removed below, before it goes out of scope, and is on no list.
        unsafe { Threads.add_offline_hook(NonNull::from(&hook)) };
        std::thread::spawn(|| Threads.current()).join().unwrap();
        let seen = RUNS.load(Ordering::Relaxed);
        assert!(seen >= 1);
        Threads.remove_offline_hook(NonNull::from(&hook));
        let seen = RUNS.load(Ordering::Relaxed);
        std::thread::spawn(|| Threads.current()).join().unwrap();
        assert_eq!(seen, RUNS.load(Ordering::Relaxed));
    }
}
