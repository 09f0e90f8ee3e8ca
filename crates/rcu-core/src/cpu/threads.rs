//! Slots for threads of a hosted program: a number at first use, given back at the thread's end.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `TABLE` | which slots are taken, or kept, and by whom | registration, the thread's end, keepers: under its lock |
//! | `SLOT` (thread-local) | this thread's slot, or `NONE`, `ASKING`, or `GONE` | its thread and its signal handlers |
//!
//! # Invariants
//! - I1. A slot has at most one owner; it passes on under the lock of `TABLE`, which orders the old owner's accesses
//!   before the new one's.
//! - I2. Offline hooks run on the owner while `SLOT` still holds the slot.
//! - I3. After the thread-local destructor ran, `SLOT` is `GONE` and stays so: late uses take the shared path.
//! - I4. One of a thread and its signal handlers registers: `NONE` becomes `ASKING` by compare-exchange.
//!
//! # Contexts
//! Registering allocates nothing of its own (`std` notes the destructor, which may allocate at a thread's first), so that
//! an allocator above may register in the middle of an allocation. That is why a name comes from the system and not from
//! `std::thread::current`, which allocates for threads that `std` did not start.

use super::{BiasedLock, Cpus, HookList, OfflineHook, RegisterError, Slot, SlotTable};
use core::cell::Cell;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

/// How many threads can have a slot at the same time; further ones use the shared paths.
pub const MAX_THREAD_SLOTS: usize = 1024;

/// This thread has not asked for a slot yet.
const NONE: u32 = u32::MAX;
/// This thread has given its slot back and is not to ask again.
const GONE: u32 = u32::MAX - 1;
/// This thread is just getting one; a signal handler that comes in between gets none.
const ASKING: u32 = u32::MAX - 2;

static TABLE: SlotTable<MAX_THREAD_SLOTS> = SlotTable::new();
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
        // A keeper cannot have released yet: what it waits for is this thread's own.
        TABLE.give_back(slot, keepers);
    }
}

/// Frees every slot but the caller's, and puts right the layers that have said how.
///
/// # Safety
/// 1. The debts of [`crate::fork::after_fork_child`].
#[cfg(unix)]
pub(crate) unsafe fn after_fork_child() {
    let survivor = Threads.current_if_online();
    // SAFETY: the child's only thread, inside nothing of RCU; `survivor` is its own slot (1).
    unsafe { TABLE.reset_after_fork(survivor) };
    // SAFETY: as above.
    unsafe { HOOKS.run_forked(survivor) };
}

/// Lets no thread end its use of a slot, and no hook run: the first half of holding all threads' registrations still.
#[cfg(unix)]
pub(crate) fn hold_hooks() {
    HOOKS.hold();
}

/// The second half: no thread gets a slot either.
#[cfg(unix)]
pub(crate) fn hold_table() {
    TABLE.hold();
}

/// Ends both.
///
/// # Safety
/// 1. The caller holds both.
#[cfg(unix)]
pub(crate) unsafe fn let_go() {
    // SAFETY: 1.
    unsafe { TABLE.let_go() };
    // SAFETY: 1.
    unsafe { HOOKS.let_go() };
}

/// The same of the first half alone.
///
/// # Safety
/// 1. The caller holds the hooks, and not the table.
#[cfg(unix)]
pub(crate) unsafe fn let_go_hooks() {
    // SAFETY: 1.
    unsafe { HOOKS.let_go() };
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
        Self::register_or_say_why().ok()
    }

    fn register_or_say_why() -> Result<Slot, RegisterError> {
        match claim() {
            Ok(()) => {}
            Err(ASKING) => return Err(RegisterError::Busy),
            Err(GONE) => return Err(RegisterError::Ending),
            Err(number) => return Ok(Slot::new(number)),
        }
        // The destructor must be armed before a slot is taken. A thread that is past its
        // destructors gets no slot (I3).
        if RELEASE.try_with(|_| ()).is_err() {
            SLOT.set(GONE);
            return Err(RegisterError::Ending);
        }
        crate::fence::probe();
        if let Some(slot) = TABLE.take(own_name(&mut [0; 16])) {
            SLOT.set(slot.index() as u32);
            return Ok(slot);
        }
        // All taken: this call goes the shared way, a later one asks again.
        SLOT.set(NONE);
        Err(RegisterError::AllTaken {
            nr_slots: MAX_THREAD_SLOTS,
        })
    }

    /// How many threads hold a slot now, those included that have ended inside a section that still lasts.
    #[must_use]
    pub fn nr_online(&self) -> usize {
        TABLE.nr_taken()
    }
}

/// Makes `SLOT` say `ASKING` if it says `NONE`, and tells what it says if not (I4).
fn claim() -> Result<(), u32> {
    let old = SLOT.with(|slot| {
        // SAFETY: a thread-local of four bytes that only this thread and its signal handlers look at.
        let word = unsafe { AtomicU32::from_ptr(slot.as_ptr()) };
        // ORDERING: Relaxed: same thread; an exchange because a signal handler may come in between.
        word.compare_exchange(NONE, ASKING, Ordering::Relaxed, Ordering::Relaxed)
    });
    old.map(|_| ())
}

/// What the system calls this thread, in `buffer`: the first 15 bytes of what `std` calls it, if it was given a name.
#[cfg(all(target_os = "linux", not(miri)))]
fn own_name(buffer: &mut [u8; 16]) -> &[u8] {
    // SAFETY: the call writes at most 16 bytes, the last of them zero.
    let done = unsafe { libc::prctl(libc::PR_GET_NAME, buffer.as_mut_ptr()) } == 0;
    let len = buffer.iter().position(|byte| *byte == 0).unwrap_or(0);
    &buffer[..if done { len } else { 0 }]
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn own_name(_buffer: &mut [u8; 16]) -> &[u8] {
    &[]
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

    fn nr_seen(&self) -> usize {
        TABLE.nr_seen()
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

    unsafe fn remove_offline_hook(&self, hook: NonNull<OfflineHook>) {
        HOOKS.remove(hook);
    }

    unsafe fn release(&self, slot: Slot) {
        TABLE.release(slot);
    }

    fn try_register(&self) -> Result<Slot, RegisterError> {
        Self::register_or_say_why()
    }

    /// Writes `thread "name" (slot 3)`, by the name that the system had for the thread when it registered (on Linux; the
    /// number alone elsewhere).
    fn describe(&self, slot: Slot, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        TABLE.describe(slot, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

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
        // SAFETY: this test's hook.
        unsafe { Threads.remove_offline_hook(NonNull::from(&hook)) };
        let seen = RUNS.load(Ordering::Relaxed);
        std::thread::spawn(|| Threads.current()).join().unwrap();
        assert_eq!(seen, RUNS.load(Ordering::Relaxed));
    }

    #[test]
    fn each_reason_for_having_no_slot_is_told() {
        std::thread::spawn(|| {
            // As a signal handler on top of a registration finds it.
            SLOT.set(ASKING);
            assert_eq!(Threads.try_register(), Err(RegisterError::Busy));
            assert_eq!(Threads.current(), None);
            SLOT.set(NONE);
            let slot = Threads.try_register();
            assert_eq!(slot.ok(), Threads.current());
            assert_eq!(Threads.try_register(), slot, "registering twice is once");
        })
        .join()
        .unwrap();
    }
}
