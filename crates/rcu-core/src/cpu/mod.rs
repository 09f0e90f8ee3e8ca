//! Slots, the locks that guard what a slot owns, and who is on which slot.
//!
//! A *slot* is what the kernel calls a CPU: in a kernel, a CPU; in user space, a thread's own
//! number, taken at its first use and given back when the thread ends. Every layer keeps an array
//! of per-slot structures ([`PerSlot`]) and protects its own with a [`LocalLock`] that lives in the
//! same cache line as the data ([`LocalCell`]).
//!
//! Why not plain thread-local storage: a drain, a barrier and a dying thread's heirs must reach
//! another thread's lists, and a `no_std` kernel has no thread-local storage.

mod hooks;
mod local;
mod lock;
mod per_slot;
mod register;
mod slot_table;
mod spin_mutex;
#[cfg(all(feature = "std", not(loom)))]
pub(crate) mod threads;

pub use hooks::{Forked, HookList, OfflineHook};
pub use local::{LocalCell, OwnerGuard, VisitorGuard};
pub use lock::{BiasedLock, LocalLock, SpinLock, UpLock};
pub use per_slot::{PerSlot, ZeroInit, in_register};
pub use register::RegisterError;
pub use slot_table::SlotTable;
pub use spin_mutex::{SpinGuard, SpinMutex};
#[cfg(all(feature = "std", not(loom)))]
pub use threads::{MAX_THREAD_SLOTS, Threads};

use core::fmt;
use core::ptr::NonNull;

/// A CPU's number, or in user space a thread's, below [`Cpus::nr_slots`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Slot(u32);

impl Slot {
    /// The slot numbered `number`.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The slot's number as an array index.
    #[inline]
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Who runs where: the seam between every layer and the machine (or the thread library).
///
/// Production: [`Threads`](https://docs.rs/rcu-core) under `std`. Minimal: [`OneCpu`]. An embedder
/// with its own CPUs implements this trait over its CPU number.
///
/// # Safety
/// An implementer keeps the guarantees below.
///
/// # Guarantees
/// An implementer promises, and callers' soundness rests on it:
/// 1. `nr_slots` never changes, and every slot that `current` returns is below it; what holds for `current` holds
///    for `current_if_online`.
/// 2. If `Self::Lock` says that it needs an exclusive owner ([`LocalLock::NEEDS_OWNER`]), then two
///    threads of execution never have the same `current()` slot at the same time, interrupts and
///    signal handlers on top of one thread excepted; a slot that passes from one to the next does
///    so with a release by the old and an acquire by the new owner.
/// 3. A hook added by `add_offline_hook` runs once for each slot that goes offline while it is
///    listed, on the slot's last owner, while `current()` still returns the slot; a slot that a hook
///    keeps gets no new owner before `release`; after
///    `remove_offline_hook` returned, it does not run and is not running.
pub unsafe trait Cpus {
    /// The lock that guards per-slot data on this machine.
    type Lock: LocalLock + 'static;

    /// How many slots there can be. Constant.
    #[doc(alias = "nr_cpu_ids")]
    fn nr_slots(&self) -> usize;

    /// Slots from this number on were never anybody's. At most [`Self::nr_slots`], which is the provided answer.
    fn nr_seen(&self) -> usize {
        self.nr_slots()
    }

    /// The caller's slot, brought online at first use; `None` if there is none to be had, or none
    /// any more because the thread is ending. Callers then take their shared, locked path.
    #[doc(alias = "smp_processor_id")]
    fn current(&self) -> Option<Slot>;

    /// The caller's slot if it has one already: for fast paths, which leave the rest to a slow path that asks
    /// [`Self::current`]. May say `None` at any time.
    #[inline(always)]
    fn current_if_online(&self) -> Option<Slot> {
        self.current()
    }

    /// As [`Self::current`], and says why if there is none. For whoever would rather know than go the shared way; a
    /// thread that registers before it needs to does not pay for it later.
    ///
    /// # Errors
    /// [`RegisterError`]. The caller may use every layer all the same, on its shared path.
    fn try_register(&self) -> Result<Slot, RegisterError> {
        self.current().ok_or(RegisterError::AllTaken {
            nr_slots: self.nr_slots(),
        })
    }

    /// Lists `hook`, to be run for each slot that goes offline.
    ///
    /// # Safety
    /// 1. `hook` stays where it is, and valid, until `remove_offline_hook` returned for it.
    /// 2. It is not listed already.
    unsafe fn add_offline_hook(&self, hook: NonNull<OfflineHook>);

    /// Takes `hook` off the list and waits until it is not running. Does nothing if it is not listed.
    ///
    /// # Safety
    /// 1. `hook` is the caller's: nobody relies any more on its being run. (The hook is only compared, so that any address
    ///    would do.)
    unsafe fn remove_offline_hook(&self, hook: NonNull<OfflineHook>);

    /// Gives a slot back that an offline hook kept. It is free when every keeper has called this.
    ///
    /// # Safety
    /// 1. The caller's hook returned false for `slot`, and this is its one call for that.
    /// 2. The caller no longer uses `slot`.
    unsafe fn release(&self, slot: Slot) {
        let _ = slot;
    }

    /// Writes who is on `slot`, for reports to people: a thread's name, a CPU's number. Takes no lock that a caller could
    /// hold, and may be out of date.
    ///
    /// # Errors
    /// Those of the formatter.
    fn describe(&self, slot: Slot, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}", slot.index())
    }
}

// SAFETY: a shared reference answers as its referent does, so 1 to 3 carry over.
unsafe impl<C: Cpus + ?Sized> Cpus for &C {
    type Lock = C::Lock;

    #[inline(always)]
    fn nr_slots(&self) -> usize {
        (**self).nr_slots()
    }

    fn nr_seen(&self) -> usize {
        (**self).nr_seen()
    }

    #[inline(always)]
    fn current(&self) -> Option<Slot> {
        (**self).current()
    }

    #[inline(always)]
    fn current_if_online(&self) -> Option<Slot> {
        (**self).current_if_online()
    }

    fn try_register(&self) -> Result<Slot, RegisterError> {
        (**self).try_register()
    }

    unsafe fn add_offline_hook(&self, hook: NonNull<OfflineHook>) {
        // SAFETY: the caller's debts 1 and 2 are passed on.
        unsafe { (**self).add_offline_hook(hook) }
    }

    unsafe fn remove_offline_hook(&self, hook: NonNull<OfflineHook>) {
        // SAFETY: the caller's debt is passed on.
        unsafe { (**self).remove_offline_hook(hook) };
    }

    unsafe fn release(&self, slot: Slot) {
        // SAFETY: the caller's debts are passed on.
        unsafe { (**self).release(slot) };
    }

    fn describe(&self, slot: Slot, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).describe(slot, f)
    }
}

/// A machine with one CPU that never goes offline: the minimal [`Cpus`].
///
/// Interrupt handlers may use the layers above: [`UpLock`] has a real busy flag (a try-lock that
/// "always succeeds" on one CPU corrupts lists: T26).
///
/// # Safety of use
/// Constructing one claims that this program runs on one CPU; see [`OneCpu::new`].
#[derive(Clone, Copy, Debug)]
pub struct OneCpu(());

impl OneCpu {
    /// Claims that everything that will use this value runs on one CPU, threads being interleaved
    /// by nothing but interrupts.
    ///
    /// # Safety
    /// 1. No two threads of execution run the layers above with this value in parallel or
    ///    preempt each other in the middle of a call, interrupt handlers that return excepted.
    ///
    /// ```
    /// use rcu_core::cpu::{Cpus, OneCpu, Slot};
    /// // SAFETY: this program has one thread.
    /// let cpu = unsafe { OneCpu::new() };
    /// assert_eq!(cpu.current(), Some(Slot::new(0)));
    /// ```
    #[must_use]
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

// SAFETY: one slot, always the same (1); one CPU by the constructor's debt (2); it never goes
// offline, so hooks need not run (3).
unsafe impl Cpus for OneCpu {
    type Lock = UpLock;

    fn nr_slots(&self) -> usize {
        1
    }

    fn current(&self) -> Option<Slot> {
        Some(Slot::new(0))
    }

    unsafe fn add_offline_hook(&self, _hook: NonNull<OfflineHook>) {}

    unsafe fn remove_offline_hook(&self, _hook: NonNull<OfflineHook>) {}
}
