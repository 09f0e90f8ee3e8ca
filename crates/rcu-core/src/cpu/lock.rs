//! Locks that live beside the data they guard: biased, spinning, and for one CPU.
//!
//! The *owner* of a slot enters often; a *visitor* (drain, shrink, barrier, the heir of a dead
//! thread) enters rarely. Source: biased locking with an asymmetric fence instead of a safepoint;
//! Linux `local_trylock_t` for the failing re-entrance.
//!
//! # State of [`BiasedLock`]
//! | word | bits | who writes |
//! |---|---|---|
//! | `busy` | 0 out, 1 in | the owner (and the owner's signal handlers) |
//! | `revoked` | 0 none, 1 a visitor wants in, 2 a visitor is in | visitors: 0 → 1 by compare-exchange, the rest by stores |
//!
//! # Life
//! Owner: `busy = 1`, `light`, read `revoked`: zero means in, else back out (`busy = 0`) and take
//! the shared path. Visitor: `revoked: 0 → 1`, `heavy`, wait for `busy == 0`, `revoked = 2`, in; `revoked = 0`.
//!
//! # Invariants
//! - I1. Owner and visitor are never both inside (P8, `light`/`heavy`: at least one of them sees the other's store).
//! - I2. Two visitors are never both inside: `revoked` is taken by compare-exchange.
//! - I3. The owner never waits; a re-entrant owner (signal, interrupt, drop glue) sees `busy == 1` and fails.
//!
//! # Orderings
//! - P8. Owner's `busy` store, `light`, `revoked` load (Acquire) / visitor's `revoked` store, `heavy`, `busy` load
//!   (Acquire): forbids both inside. Owner's `busy = 0` (Release) / visitor's `busy` load: the owner's writes are
//!   seen by the visitor. Visitor's `revoked = 0` (Release) / owner's `revoked` load: the reverse.
//!
//! # Progress
//! Owner: wait-free. Visitor: waits for the owner's few instructions (or for as long as an owner is descheduled in them).
//!
//! # After a fork
//! In the child of a fork, a lock that another thread held is held for ever. [`LocalLock::seize`] and
//! [`SpinMutex::seize`] take it from the thread that is not there, and say whether that thread was inside, so that the
//! value may be half changed. That is all that state 2 of `revoked` is for: a visitor waits in state 1, for a fence
//! that takes longer than most visits.

use crate::fence;
use crate::sync::Backoff;
use crate::sync::atomic::{AtomicU32, Ordering};
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

/// A lock for per-slot data: cheap for the slot's owner, possible for everybody else.
///
/// # Safety
/// An implementer keeps the guarantees below.
///
/// # Guarantees
/// 1. Between a `try_enter` that returned true, or the return of `visit`, or a `try_visit` that
///    returned true, and the matching `leave` or `unvisit`, no other call is inside; what was
///    written inside is seen by whoever is inside next.
/// 2. `try_enter` and `try_visit` never wait; `try_enter` fails, and harms nothing, when the caller
///    interrupted an owner that is inside.
/// 3. All-zero bytes are an unlocked lock.
pub unsafe trait LocalLock: super::ZeroInit + Send + Sync {
    /// Whether `try_enter` is only right from one thread of execution at a time (and its interrupts).
    const NEEDS_OWNER: bool;

    /// Enters as the slot's owner; false if a visitor is in or the caller interrupted itself.
    ///
    /// # Safety
    /// 1. If [`Self::NEEDS_OWNER`], the caller is the slot's only owner.
    unsafe fn try_enter(&self) -> bool;

    /// Leaves after `try_enter`.
    ///
    /// # Safety
    /// 1. The caller entered by `try_enter` and has not left.
    unsafe fn leave(&self);

    /// Enters as a visitor; waits for the owner and for other visitors. Not for signal handlers.
    fn visit(&self);

    /// Begins a visit, for who visits many: waits for other visitors. After a [`fence::heavy`], which one visitor needs once for all
    /// locks it has announced itself at, [`Self::complete_visit`] ends the beginning. The provided two leave all to the latter.
    fn announce_visit(&self) {}

    /// Enters as a visitor where [`Self::announce_visit`] and then [`fence::heavy`] were called; waits for the owner.
    fn complete_visit(&self) {
        self.visit();
    }

    /// Enters as a visitor if that needs no waiting.
    fn try_visit(&self) -> bool;

    /// Leaves after `visit` or `try_visit`.
    ///
    /// # Safety
    /// 1. The caller entered as a visitor and has not left.
    unsafe fn unvisit(&self);

    /// Enters as a visitor in the place of whoever is inside and will never leave: in the child of a fork. False if
    /// somebody may have been inside.
    ///
    /// The provided version suits a lock that does not tell owners from visitors.
    ///
    /// # Safety
    /// 1. No other thread uses the lock, nor ever will while it believes to be inside; the caller is not inside.
    unsafe fn seize(&self) -> bool {
        if self.try_visit() {
            return true;
        }
        // SAFETY: whoever entered is gone (1), and leaves by this call.
        unsafe { self.unvisit() };
        self.visit();
        false
    }
}

/// `revoked` of a [`BiasedLock`]: nobody, a visitor that waits, a visitor that is inside.
const NOBODY: u32 = 0;
const WANTED: u32 = 1;
const INSIDE: u32 = 2;

/// The lock for a slot that one thread owns: no locked instruction and no fence for the owner.
///
/// Owner: two loads, two stores, two predicted branches (and `light`'s mode test). Visitor: one
/// compare-exchange and one heavy fence.
pub struct BiasedLock {
    busy: AtomicU32,
    revoked: AtomicU32,
}

impl BiasedLock {
    crate::const_fn! {
        /// An unlocked lock.
        #[must_use]
        pub const fn new() -> Self {
            Self { busy: AtomicU32::new(0), revoked: AtomicU32::new(0) }
        }
    }

    /// For [`LocalLock::seize`]: from here on the value may be half changed.
    fn note_visitor_inside(&self) {
        // ORDERING: Relaxed: read in the child of a fork only, which finds each thread between two of its instructions.
        self.revoked.store(INSIDE, Ordering::Relaxed);
        // ORDERING: the compiler's order of the store before the visitor's, for the same reader.
        #[cfg(not(loom))]
        crate::sync::atomic::compiler_fence(Ordering::SeqCst);
    }
}

impl Default for BiasedLock {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for BiasedLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BiasedLock")
            // ORDERING: Relaxed: a report for people.
            .field("busy", &self.busy.load(Ordering::Relaxed))
            // ORDERING: Relaxed: a report for people.
            .field("revoked", &self.revoked.load(Ordering::Relaxed))
            .finish()
    }
}

/// P8: what the owner's read of `revoked` and its exit are worth, and their mutants.
const REVOKED_LOAD: Ordering = if cfg!(weaken = "p8_revoked") {
    Ordering::Relaxed
} else {
    Ordering::Acquire
};
const BUSY_CLEAR: Ordering = if cfg!(weaken = "p8_busy") {
    Ordering::Relaxed
} else {
    Ordering::Release
};

// SAFETY: 1 by I1 and I2; 2 by I3 and because `try_visit` backs out; 3: both words zero is unlocked.
unsafe impl LocalLock for BiasedLock {
    const NEEDS_OWNER: bool = true;

    #[inline(always)]
    unsafe fn try_enter(&self) -> bool {
        // ORDERING: Relaxed: same thread (I3).
        if self.busy.load(Ordering::Relaxed) != 0 {
            return false;
        }
        // ORDERING: P8 (owner's store): ordered before the load of `revoked` by `light`.
        self.busy.store(1, Ordering::Relaxed);
        if cfg!(not(weaken = "p8")) {
            fence::light();
        }
        // ORDERING: P8 (owner's load): Acquire meets the visitor's Release of `revoked = 0`.
        if self.revoked.load(REVOKED_LOAD) == NOBODY {
            return true;
        }
        // ORDERING: P8 (owner backs out): nothing was written inside.
        self.busy.store(0, Ordering::Release);
        false
    }

    #[inline(always)]
    unsafe fn leave(&self) {
        // ORDERING: P8 (owner's exit): the visitor's Acquire of `busy == 0` sees what was written.
        self.busy.store(0, BUSY_CLEAR);
    }

    fn visit(&self) {
        self.announce_visit();
        fence::heavy();
        self.complete_visit();
    }

    fn announce_visit(&self) {
        let backoff = Backoff::new();
        // ORDERING: P8 (visitor's store): Acquire meets the previous visitor's Release (I2).
        while self
            .revoked
            .compare_exchange_weak(NOBODY, WANTED, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            backoff.snooze();
        }
    }

    fn complete_visit(&self) {
        let backoff = Backoff::new();
        // ORDERING: P8 (visitor's load): Acquire meets the owner's Release at exit.
        while self.busy.load(Ordering::Acquire) != 0 {
            backoff.snooze();
        }
        self.note_visitor_inside();
    }

    fn try_visit(&self) -> bool {
        // ORDERING: P8 (visitor's store), as in `visit`.
        if self
            .revoked
            .compare_exchange(NOBODY, WANTED, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            return false;
        }
        fence::heavy();
        // ORDERING: P8 (visitor's load), as in `visit`.
        if self.busy.load(Ordering::Acquire) == 0 {
            self.note_visitor_inside();
            return true;
        }
        // ORDERING: P8 (visitor backs out): nothing was written inside.
        self.revoked.store(NOBODY, Ordering::Release);
        false
    }

    unsafe fn unvisit(&self) {
        // ORDERING: P8 (visitor's exit): the owner's Acquire of `revoked == 0` sees what was written.
        self.revoked.store(NOBODY, Ordering::Release);
    }

    unsafe fn seize(&self) -> bool {
        // ORDERING: Relaxed: there is one thread.
        let busy = self.busy.load(Ordering::Relaxed) != 0;
        // ORDERING: Relaxed: there is one thread.
        let visited = self.revoked.load(Ordering::Relaxed) == INSIDE;
        // ORDERING: Relaxed: there is one thread; others come after it by the spawn that makes them.
        self.busy.store(0, Ordering::Relaxed);
        // ORDERING: Relaxed: as above.
        self.revoked.store(INSIDE, Ordering::Relaxed);
        !busy && !visited
    }
}

/// The lock for a slot that is only a hint (the caller may migrate): a spin lock.
///
/// Also the raw lock of [`SpinMutex`]. Under `std` a waiter yields after a few spins.
pub struct SpinLock {
    held: AtomicU32,
}

impl SpinLock {
    crate::const_fn! {
        /// An unlocked lock.
        #[must_use]
        pub const fn new() -> Self {
            Self { held: AtomicU32::new(0) }
        }
    }
}

impl Default for SpinLock {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SpinLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // ORDERING: Relaxed: a report for people.
        f.debug_struct("SpinLock")
            .field("held", &self.held.load(Ordering::Relaxed))
            .finish()
    }
}

// SAFETY: 1: the word goes 0 → 1 by one compare-exchange (Acquire) and back by a Release store, for
// owners and visitors alike; 2: `try_enter` tries once, and a re-entrant caller finds 1; 3: zero is unlocked.
unsafe impl LocalLock for SpinLock {
    const NEEDS_OWNER: bool = false;

    #[inline(always)]
    unsafe fn try_enter(&self) -> bool {
        // ORDERING: P8 (lock word): Acquire meets the last holder's Release.
        self.held
            .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    #[inline(always)]
    unsafe fn leave(&self) {
        // ORDERING: P8 (lock word): Release meets the next holder's Acquire.
        self.held.store(0, Ordering::Release);
    }

    fn visit(&self) {
        let backoff = Backoff::new();
        while !self.try_visit() {
            backoff.snooze();
        }
    }

    fn try_visit(&self) -> bool {
        // SAFETY: debt 1 is void: this lock needs no owner.
        unsafe { self.try_enter() }
    }

    unsafe fn unvisit(&self) {
        // SAFETY: the caller is inside (debt 1); this lock does not tell owners from visitors.
        unsafe { self.leave() }
    }
}

/// The lock of a machine with one CPU: a busy flag that an interrupt finds set (T26).
pub struct UpLock {
    busy: AtomicU32,
}

impl UpLock {
    crate::const_fn! {
        /// An unlocked lock. There is no `Default`: to make one is a promise, since visitors need no `unsafe`.
        ///
        /// # Safety
        /// 1. All that will use the lock runs on one CPU, interleaved by nothing but interrupts, which return.
        ///
        /// ```
        /// use rcu_core::cpu::{LocalCell, UpLock};
        /// // SAFETY: used by this thread only.
        /// let cell = LocalCell::new(unsafe { UpLock::new() }, 5);
        /// assert_eq!(*cell.visit(), 5);
        /// ```
        /// ```compile_fail
        /// rcu_core::cpu::UpLock::new();
        /// ```
        #[must_use]
        pub const unsafe fn new() -> Self {
            Self { busy: AtomicU32::new(0) }
        }
    }
}

impl fmt::Debug for UpLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // ORDERING: Relaxed: a report for people.
        f.debug_struct("UpLock")
            .field("busy", &self.busy.load(Ordering::Relaxed))
            .finish()
    }
}

// SAFETY: 1: on one CPU (debt of `new`) the only other caller
// is an interrupt, which finds `busy == 1` and fails, or runs whole between two instructions; 2: one
// load and one store; 3: zero is unlocked. `visit` comes from the same CPU, outside (a visitor that
// interrupted the owner would spin for ever: it is not for interrupt handlers).
unsafe impl LocalLock for UpLock {
    const NEEDS_OWNER: bool = true;

    #[inline(always)]
    unsafe fn try_enter(&self) -> bool {
        // ORDERING: Acquire/Release cost nothing on one CPU and order the compiler (P8).
        if self.busy.load(Ordering::Acquire) != 0 {
            return false;
        }
        self.busy.store(1, Ordering::Relaxed);
        // ORDERING: P8: keeps the compiler from moving accesses above the store of `busy`.
        #[cfg(not(loom))]
        crate::sync::atomic::compiler_fence(Ordering::SeqCst);
        true
    }

    #[inline(always)]
    unsafe fn leave(&self) {
        // ORDERING: P8 (busy flag): orders the compiler.
        self.busy.store(0, Ordering::Release);
    }

    fn visit(&self) {
        let backoff = Backoff::new();
        while !self.try_visit() {
            backoff.snooze();
        }
    }

    fn try_visit(&self) -> bool {
        // SAFETY: on one CPU the caller, outside any interrupt, is the owner's peer.
        unsafe { self.try_enter() }
    }

    unsafe fn unvisit(&self) {
        // SAFETY: the caller is inside (debt 1).
        unsafe { self.leave() }
    }
}

/// A value behind a [`SpinLock`], for the shared structures below the per-slot ones.
#[derive(Default)]
pub struct SpinMutex<T> {
    lock: SpinLock,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands the value to one holder at a time, so `T: Send` suffices.
unsafe impl<T: Send> Sync for SpinMutex<T> {}
// SAFETY: owning the mutex is owning the value.
unsafe impl<T: Send> Send for SpinMutex<T> {}

impl<T> SpinMutex<T> {
    crate::const_fn! {
        /// A mutex around `value`.
        pub const fn new(value: T) -> Self {
            Self { lock: SpinLock::new(), value: UnsafeCell::new(value) }
        }
    }

    /// Waits for the lock and takes it.
    pub fn lock(&self) -> SpinGuard<'_, T> {
        self.lock.visit();
        SpinGuard::new(self)
    }

    /// Takes the lock if it is free now.
    pub fn try_lock(&self) -> Option<SpinGuard<'_, T>> {
        self.lock.try_visit().then(|| SpinGuard::new(self))
    }

    /// Takes the lock from a thread that will never give it back: in the child of a fork. False beside the guard if that
    /// thread was inside, and the value may be half changed: not fit to be used, nor to be dropped.
    ///
    /// # Safety
    /// 1. No other thread uses the mutex, nor ever will while it believes to hold it; the caller does not hold it.
    pub unsafe fn seize(&self) -> (SpinGuard<'_, T>, bool) {
        // SAFETY: the caller's debt.
        let whole = unsafe { self.lock.seize() };
        (SpinGuard::new(self), whole)
    }

    /// Unlocks where a guard was forgotten: for who holds more locks than it has places for guards.
    ///
    /// # Safety
    /// 1. A guard of this mutex was forgotten, and the mutex not unlocked since; nothing that was seen through the guard is used any more.
    #[cfg(all(feature = "std", unix, not(loom)))]
    pub(crate) unsafe fn unlock_forgotten(&self) {
        // SAFETY: the caller is inside (1).
        unsafe { self.lock.unvisit() };
    }

    /// The value, which an exclusive borrow proves unlocked.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    /// Takes the value out.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: fmt::Debug> fmt::Debug for SpinMutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.try_lock() {
            Some(guard) => f.debug_tuple("SpinMutex").field(&*guard).finish(),
            None => f.write_str("SpinMutex(<locked>)"),
        }
    }
}

/// Evidence that a [`SpinMutex`] is held. Shared, it shows the value to several threads, so that must be `Sync`:
///
/// ```compile_fail
/// fn share<T: Sync>() {}
/// share::<rcu_core::cpu::SpinGuard<'static, core::cell::Cell<u32>>>();
/// ```
#[must_use = "the lock is released at once if the guard is not kept"]
#[derive(Debug)]
pub struct SpinGuard<'a, T> {
    mutex: &'a SpinMutex<T>,
    /// `Send` and `Sync` as the value is, not as the mutex is, which is `Sync` if the value is `Send`.
    _value: PhantomData<&'a mut T>,
}

impl<'a, T> SpinGuard<'a, T> {
    const fn new(mutex: &'a SpinMutex<T>) -> Self {
        Self {
            mutex,
            _value: PhantomData,
        }
    }
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock, so nobody writes the value meanwhile.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock and is borrowed exclusively.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: the guard was made by entering.
        unsafe { self.mutex.lock.unvisit() };
    }
}
