//! Other evidence of a section than a [`Guard`](crate::Guard): for threads that are always inside, and for sections that
//! leave their thread.
//!
//! # Quiescent states by borrow
//! [`Online`] is a section that lasts as long as the thread takes part. Its guards are borrows of it: they cost nothing
//! to make, copy and drop. [`Online::quiescent`] borrows it mutably, so the compiler proves that no reference read under
//! it is alive when grace periods may pass. No other guard that may exist beside it spoils this: while one does, the
//! nesting depth is above one and the quiescent state passes nothing on.
//!
//! An [`Online`] holds a token that it was given and has not given back, whenever foreign code can see it: also if what
//! runs offline panics, or going online does. If a quiescent state unwinds, nobody knows, and the program ends.

use crate::contract::{Rcu, RcuSend};
use core::fmt;
use core::marker::PhantomData;
use core::mem;

/// Evidence that a read-side critical section of `R` lasts while the value exists.
///
/// # Safety
/// An implementer keeps the guarantees below.
///
/// # Guarantees
/// 1. From the value's birth to its end (for a borrowed kind: to the end of the borrow), no grace period of the RCU
///    that a value of `R` stands for is *started after that birth's section began and ended before this end*: objects
///    that could be found at some moment in between are not freed in between.
pub unsafe trait Section<R> {}

/// A thread that is always inside a section of `R`, but for the moments at which it says otherwise.
///
/// Guards cost no instruction; what holds grace periods up is a thread that never calls [`Self::quiescent`] or
/// [`Self::offline`].
///
/// ```
/// # fn run<R: rcu_core::Rcu>(rcu: &R) {
/// use rcu_core::Online;
/// let mut online = Online::new(rcu);
/// for _event in 0..3 {
///     let guard = online.guard();
///     let again = guard;
///     // … load through `guard` …
///     # let _ = again;
///     online.quiescent();
/// }
/// online.synchronize();
/// # }
/// ```
///
/// A guard does not live through a quiescent state:
///
/// ```compile_fail
/// fn keep<R: rcu_core::Rcu>(online: &mut rcu_core::Online<R>) {
///     let guard = online.guard();
///     online.quiescent();
///     let _ = guard;
/// }
/// ```
#[doc(alias = "qsbr")]
#[doc(alias = "rcu_thread_online")]
pub struct Online<R: Rcu> {
    rcu: R,
    token: R::Token,
    /// Neither `Send` nor `Sync`: the token belongs to one thread's words.
    _stays: PhantomData<*mut ()>,
}

impl<R: Rcu> Online<R> {
    /// Puts the calling thread online: from now on it is inside a section.
    #[track_caller]
    pub fn new(rcu: R) -> Self {
        let token = rcu.enter();
        Self {
            rcu,
            token,
            _stays: PhantomData,
        }
    }

    /// Evidence of the section, for as long as nothing is said to the contrary. Costs nothing.
    #[inline(always)]
    #[must_use]
    pub const fn guard(&self) -> OnlineGuard<'_, R> {
        OnlineGuard(PhantomData)
    }

    /// Says that the thread holds no reference at this moment, so that grace periods may pass.
    #[inline(always)]
    #[doc(alias = "rcu_quiescent_state")]
    #[track_caller]
    pub fn quiescent(&mut self) {
        /// Panicking while panicking aborts, with or without `std`.
        struct NoUnwind;
        impl Drop for NoUnwind {
            fn drop(&mut self) {
                panic!("a quiescent state unwound: nobody knows whether the thread is online");
            }
        }
        let whole = NoUnwind;
        // SAFETY: the token came from this RCU on this thread and is replaced by the new one; references read under
        // this section borrow `self`, which is borrowed mutably now.
        self.token = unsafe { self.rcu.quiescent_state(self.token) };
        mem::forget(whole);
    }

    /// Takes the thread offline while `f` runs, so that a blocking call holds up no grace period.
    #[doc(alias = "rcu_thread_offline")]
    #[track_caller]
    pub fn offline<T>(&mut self, f: impl FnOnce() -> T) -> T {
        /// Goes online again when `f` panics.
        struct Again<'o, R: Rcu>(&'o mut Online<R>);
        impl<R: Rcu> Drop for Again<'_, R> {
            fn drop(&mut self) {
                self.0.token = self.0.rcu.enter();
            }
        }
        let again = Again(self);
        // SAFETY: the token came from this RCU on this thread; `Again` replaces it before anyone uses it.
        unsafe { again.0.rcu.exit(again.0.token) };
        let result = f();
        // Not by `Again`, so that the section is known by the caller's place.
        let token = again.0.rcu.enter();
        again.0.token = token;
        // Only now: had that `enter` panicked, the old token would be given back twice.
        mem::forget(again);
        result
    }

    /// Blocks for a whole grace period, offline meanwhile.
    #[doc(alias = "synchronize_rcu")]
    #[track_caller]
    pub fn synchronize(&mut self)
    where
        R: Clone,
    {
        let rcu = self.rcu.clone();
        self.offline(|| rcu.synchronize());
    }

    /// The RCU whose section this is.
    pub const fn rcu(&self) -> &R {
        &self.rcu
    }
}

impl<R: Rcu> Drop for Online<R> {
    fn drop(&mut self) {
        // SAFETY: the token came from this RCU on this thread, and is given back once, here.
        unsafe { self.rcu.exit(self.token) };
    }
}

impl<R: Rcu> fmt::Debug for Online<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Online")
            .field("token", &self.token)
            .finish()
    }
}

/// Evidence from an [`Online`] thread. Has no size; copies are free.
pub struct OnlineGuard<'o, R: Rcu>(PhantomData<&'o Online<R>>);

impl<R: Rcu> Clone for OnlineGuard<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R: Rcu> Copy for OnlineGuard<'_, R> {}

impl<R: Rcu> fmt::Debug for OnlineGuard<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnlineGuard")
    }
}

// SAFETY: it borrows an `Online`, which is inside a section while it is borrowed by anyone.
unsafe impl<R: Rcu> Section<R> for OnlineGuard<'_, R> {}

/// A section that belongs to no thread: it may be held across an `.await` or sent elsewhere, and ends with this value.
///
/// Dearer than a [`Guard`](crate::Guard) by a lock, and nobody knows whom to blame but the place where it was made.
#[must_use = "the section ends at once if the guard is not kept"]
pub struct SendGuard<R: RcuSend> {
    rcu: R,
    token: R::SendToken,
}

impl<R: RcuSend> SendGuard<R> {
    /// Enters a section of `rcu` that belongs to no thread.
    #[track_caller]
    pub fn new(rcu: R) -> Self {
        let token = rcu.enter_send();
        Self { rcu, token }
    }

    /// # Safety
    /// 1. `token` came from `rcu`, and is given back by this value only.
    pub(crate) const unsafe fn from_token(rcu: R, token: R::SendToken) -> Self {
        Self { rcu, token }
    }

    /// The RCU whose section this is.
    pub const fn rcu(&self) -> &R {
        &self.rcu
    }
}

impl<R: RcuSend> Drop for SendGuard<R> {
    fn drop(&mut self) {
        // SAFETY: the token came from this RCU, and is given back once, here.
        unsafe { self.rcu.exit_send(self.token) };
    }
}

impl<R: RcuSend> fmt::Debug for SendGuard<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendGuard")
            .field("token", &self.token)
            .finish()
    }
}

// SAFETY: the section is entered while the guard exists, on whatever thread.
unsafe impl<R: RcuSend> Section<R> for SendGuard<R> {}
