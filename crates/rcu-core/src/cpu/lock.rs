//! Locks that live beside the data they guard: biased, spinning, and for one CPU.
//!
//! The *owner* of a slot enters often; a *visitor* (drain, shrink, barrier, the heir of a dead
//! thread) enters rarely. Source: biased locking with an asymmetric fence instead of a safepoint;
//! Linux `local_trylock_t` for the failing re-entrance.
//!
//! # State of [`BiasedLock`]
//! | word | value | meaning | who writes |
//! |---|---|---|---|
//! | `busy` | 0 | out, and never entered yet | nobody: zeroed memory |
//! | | `OUT` 1 | out | the owner |
//! | | `IN` 2 | in | the owner, and its signal handlers, which write what is there |
//! | `bias` | `UNBIASED` 0 | no visitor; the owner enters with a full fence | visitors, by a store when they leave |
//! | | `BIASED` 1 | no visitor; the owner enters without a fence | the owner, from inside, `UNBIASED` → `BIASED` by compare-exchange |
//! | | `WANTED` 4 | a visitor wants in | the visitor, by compare-exchange from `UNBIASED` or `BIASED` |
//! | | `INSIDE` 8 | a visitor is in | the visitor, by a store |
//!
//! `busy & bias` is not zero in one state only, out and biased, so that the owner asks everything that it has to ask (am I
//! on top of myself? is a visitor here? may I leave the fence out?) by one test.
//!
//! # Life
//! Owner: read `busy`, `busy = IN`, read `bias`; both have bit 0: in. Else, slowly: `busy` was `IN`: on top of itself,
//! back. A full fence, read `bias` again; a visitor: back out (`busy = OUT`) and take the shared path. If the kernel
//! fences for us, `bias: UNBIASED → BIASED`; in. Leaving: `busy = OUT`.
//!
//! Visitor: `bias → WANTED`; it was `BIASED`: `heavy_unasked`, was `UNBIASED`: `full`; wait while `busy == IN`, `bias =
//! INSIDE`, in; `bias = UNBIASED`. So who visits an owner that has not entered since the last visit asks no kernel.
//!
//! # Invariants
//! - I1. Owner and visitor are never both inside (P8: at least one of them sees the other's store).
//! - I2. Two visitors are never both inside: `WANTED` is taken by compare-exchange, from states without a visitor.
//! - I3. The owner never waits; a re-entrant owner (signal, interrupt, drop glue) reads `IN` and fails, having changed
//!   nothing. One that comes before the store of `IN`, or after that of `OUT`, runs whole, and leaves `OUT` behind: what
//!   the owner below has read of `busy` (0 or `OUT`) still says "not inside".
//! - I4. Nobody but the owner, inside, makes `bias` `BIASED`, and a visitor that takes it from there fences every thread
//!   by itself, whatever the mode of fences is by then. So the mode is a hint for the owner: it may be lost at any time.
//!
//! # Orderings
//! - P8. Owner's `busy` store, fence, `bias` load / visitor's `bias` exchange, fence, `busy` load (Acquire): forbids both
//!   inside. The fences are nothing but the compiler's / `heavy_unasked` from `BIASED`, `full` / `full` from `UNBIASED`.
//!   Owner's `busy = OUT` (Release) / visitor's `busy` load: the owner's writes are seen by the visitor. Visitor's `bias =
//!   UNBIASED` (Release) / owner's `bias` load in the slow entry (Acquire), visitor's exchange: the reverse; and the
//!   owner's fast entries come after the slow one that wrote the `BIASED` that they read.
//!
//! # Progress
//! Owner: wait-free. Visitor: waits for the owner's few instructions (or for as long as an owner is descheduled in them).
//!
//! # After a fork
//! In the child of a fork, a lock that another thread held is held for ever. [`LocalLock::seize`] and
//! [`SpinMutex::seize`] take it from the thread that is not there, and say whether that thread was inside, so that the
//! value may be half changed. That is all that `INSIDE` is for: a visitor waits in `WANTED`, for a fence that takes longer
//! than most visits.

use crate::fence;
use crate::sync::Backoff;
use crate::sync::atomic::{AtomicU32, Ordering};
use core::fmt;
use static_assertions::const_assert;

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
#[doc(alias = "local_trylock_t")]
pub unsafe trait LocalLock: super::ZeroInit + Send + Sync {
    /// Whether `try_enter` is only right from one thread of execution at a time (and its interrupts).
    const NEEDS_OWNER: bool;

    /// An unlocked lock for a model, whose words cannot be made of zeroed memory.
    #[cfg(loom)]
    #[doc(hidden)]
    fn for_model() -> Self
    where
        Self: Sized;

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

/// `busy` of a [`BiasedLock`]; zero is out, too.
const OUT: u32 = 1;
const IN: u32 = 2;

/// `bias` of a [`BiasedLock`].
const UNBIASED: u32 = 0;
const BIASED: u32 = 1;
const WANTED: u32 = 4;
const INSIDE: u32 = 8;

const_assert!(OUT & BIASED != 0);
const_assert!((OUT | IN) & (UNBIASED | WANTED | INSIDE) == 0 && IN & BIASED == 0);

/// The lock for a slot that one thread owns: no locked instruction and no fence for the owner.
///
/// Owner: two loads, two stores, one predicted branch; once after each visit, a full fence and a compare-exchange more.
/// Visitor: one compare-exchange, and one heavy fence if the owner was inside since the last visit.
pub struct BiasedLock {
    busy: AtomicU32,
    bias: AtomicU32,
}

impl BiasedLock {
    crate::const_fn! {
        /// An unlocked lock.
        #[must_use]
        pub const fn new() -> Self {
            Self { busy: AtomicU32::new(0), bias: AtomicU32::new(UNBIASED) }
        }
    }

    /// Where the one test of [`LocalLock::try_enter`] fails.
    #[cold]
    #[inline(never)]
    fn enter_slow(&self, before: u32) -> bool {
        self.enter_fenced(before)
    }

    /// The rest of the entry of an owner that found `before` in `busy` and has stored `IN`.
    #[inline(always)]
    fn enter_fenced(&self, before: u32) -> bool {
        if before == IN {
            return false;
        }
        if !crate::weakened!("p8") {
            fence::full();
        }
        // ORDERING: P8 (owner's load): Acquire meets the visitor's Release of `UNBIASED`.
        let bias = self.bias.load(revoked_load_order());
        if (bias == UNBIASED && self.take_bias()) || bias == BIASED {
            return true;
        }
        // ORDERING: P8 (owner backs out): nothing was written inside.
        self.busy.store(OUT, Ordering::Release);
        false
    }

    /// Spares the owner's next entries the fence, if that can be. False if a visitor came, which backs off or waits.
    #[inline(always)]
    fn take_bias(&self) -> bool {
        if !fence::owners_may_omit() {
            return true;
        }
        if crate::weakened!("p8_bias") {
            // ORDERING: none: a mutant.
            self.bias.store(BIASED, Ordering::Relaxed);
            return true;
        }
        // ORDERING: P8: Relaxed, since whoever wrote `UNBIASED` anew has been inside no more than the one that was read
        // (this owner is, I1); an exchange, so that no `WANTED` is overwritten, and P8's Release is passed on.
        self.bias
            .compare_exchange(UNBIASED, BIASED, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    /// Makes the visitor known, and fences: whether the lock had no visitor before.
    fn revoke(&self) -> bool {
        // ORDERING: Relaxed: the exchange below says whether it is still so.
        let bias = self.bias.load(Ordering::Relaxed);
        if bias & !BIASED != 0 {
            return false;
        }
        // ORDERING: P8 (visitor's store): Acquire meets the previous visitor's Release (I2).
        if self
            .bias
            .compare_exchange(bias, WANTED, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            return false;
        }
        if bias == UNBIASED {
            fence::full();
        } else if !crate::weakened!("p8_heavy") {
            fence::heavy_unasked();
        }
        true
    }

    /// For [`LocalLock::seize`]: from here on the value may be half changed.
    fn note_visitor_inside(&self) {
        // ORDERING: Relaxed: read in the child of a fork only, which finds each thread between two of its instructions.
        self.bias.store(INSIDE, Ordering::Relaxed);
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
            .field("bias", &self.bias.load(Ordering::Relaxed))
            .finish()
    }
}

/// P8: what the owner's read of `bias` and its exit are worth, and their mutants.
#[inline(always)]
fn revoked_load_order() -> Ordering {
    if crate::weakened!("p8_revoked") {
        Ordering::Relaxed
    } else {
        Ordering::Acquire
    }
}
#[inline(always)]
fn busy_clear_order() -> Ordering {
    if crate::weakened!("p8_busy") {
        Ordering::Relaxed
    } else {
        Ordering::Release
    }
}

// SAFETY: 1 by I1 and I2; 2 by I3 and because `try_visit` backs out; 3: both words zero is unlocked.
unsafe impl LocalLock for BiasedLock {
    const NEEDS_OWNER: bool = true;

    #[cfg(loom)]
    fn for_model() -> Self {
        Self::new()
    }

    #[inline(always)]
    unsafe fn try_enter(&self) -> bool {
        // ORDERING: Relaxed: same thread (I3).
        let before = self.busy.load(Ordering::Relaxed);
        // ORDERING: P8 (owner's store): ordered before the loads of `bias` by the fences.
        self.busy.store(IN, Ordering::Relaxed);
        if !fence::CAN_OMIT {
            return self.enter_fenced(before);
        }
        // What `heavy_unasked` does for a biased owner elsewhere, the model's owner does itself, biased only.
        #[cfg(loom)]
        if !crate::weakened!("p8_biased") && self.bias.load(Ordering::Relaxed) == BIASED {
            fence::full();
        }
        // ORDERING: P8, the compiler's half: the store above stays above the load below.
        #[cfg(not(loom))]
        crate::sync::atomic::compiler_fence(Ordering::SeqCst);
        // ORDERING: P8 (owner's load): Relaxed, since `BIASED` is the owner's own store, after its Acquire in the slow entry.
        let inside = before & self.bias.load(Ordering::Relaxed) != 0;
        // ORDERING: P8, the compiler's half: what is done inside stays below.
        #[cfg(not(loom))]
        crate::sync::atomic::compiler_fence(Ordering::SeqCst);
        inside || self.enter_slow(before)
    }

    #[inline(always)]
    unsafe fn leave(&self) {
        // ORDERING: P8 (owner's exit): the visitor's Acquire of `OUT` sees what was written.
        self.busy.store(OUT, busy_clear_order());
    }

    fn visit(&self) {
        self.announce_visit();
        self.complete_visit();
    }

    // With the fence that this lock needs; the caller's own is not enough for a biased owner.
    fn announce_visit(&self) {
        let backoff = Backoff::new();
        while !self.revoke() {
            backoff.snooze();
        }
    }

    fn complete_visit(&self) {
        let backoff = Backoff::new();
        // ORDERING: P8 (visitor's load): Acquire meets the owner's Release at exit.
        while self.busy.load(Ordering::Acquire) == IN {
            backoff.snooze();
        }
        self.note_visitor_inside();
    }

    fn try_visit(&self) -> bool {
        if !self.revoke() {
            return false;
        }
        // ORDERING: P8 (visitor's load), as in `visit`.
        if self.busy.load(Ordering::Acquire) != IN {
            self.note_visitor_inside();
            return true;
        }
        // ORDERING: P8 (visitor backs out): Release passes on what it acquired of the visitor before.
        self.bias.store(UNBIASED, Ordering::Release);
        false
    }

    unsafe fn unvisit(&self) {
        // ORDERING: P8 (visitor's exit): the owner's Acquire of `UNBIASED` sees what was written.
        self.bias.store(UNBIASED, Ordering::Release);
    }

    unsafe fn seize(&self) -> bool {
        // ORDERING: Relaxed: there is one thread.
        let busy = self.busy.load(Ordering::Relaxed) == IN;
        // ORDERING: Relaxed: there is one thread.
        let visited = self.bias.load(Ordering::Relaxed) == INSIDE;
        // ORDERING: Relaxed: there is one thread; others come after it by the spawn that makes them.
        self.busy.store(OUT, Ordering::Relaxed);
        // ORDERING: Relaxed: as above.
        self.bias.store(INSIDE, Ordering::Relaxed);
        !busy && !visited
    }
}

#[inline(always)]
fn unlock_order() -> Ordering {
    if crate::weakened!("p8_spin") {
        Ordering::Relaxed
    } else {
        Ordering::Release
    }
}

/// The lock for a slot that is only a hint (the caller may migrate): a spin lock.
///
/// Also the raw lock of [`SpinMutex`](super::SpinMutex). Under `std` a waiter yields after a few spins.
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

    #[cfg(loom)]
    fn for_model() -> Self {
        Self::new()
    }

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
        self.held.store(0, unlock_order());
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

    #[cfg(loom)]
    fn for_model() -> Self {
        // SAFETY: a model that has this lock has one thread.
        unsafe { Self::new() }
    }

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
