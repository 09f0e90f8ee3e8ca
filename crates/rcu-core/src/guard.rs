//! Evidence of a read-side critical section.

use crate::contract::{Domain, Rcu, RcuSend};
use crate::section::{Section, SendGuard};
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr;

/// Evidence that the current thread is inside a read-side critical section of `R`.
///
/// The section ends when the last guard of the nest is dropped, in whatever order. A guard stays
/// on its thread:
///
/// ```compile_fail
/// fn send<T: Send>(_: T) {}
/// fn move_it<R: rcu_core::Rcu + Sync>(rcu: &R) {
///     send(rcu_core::Rcu::read_lock(rcu));
/// }
/// ```
///
/// # Invariants
/// The section is entered while the guard exists.
#[must_use = "the section ends at once if the guard is not kept"]
#[doc(alias = "rcu_read_unlock")]
pub struct Guard<R: Rcu> {
    rcu: R,
    token: R::Token,
    /// Neither `Send` nor `Sync`: the token belongs to one thread's words.
    _stays: PhantomData<*mut ()>,
}

impl<R: Rcu> Guard<R> {
    /// Enters a section of `rcu`.
    #[inline(always)]
    #[track_caller]
    pub fn new(rcu: R) -> Self {
        let token = rcu.enter();
        // INVARIANT: entered just now, left in `drop` only.
        Self {
            rcu,
            token,
            _stays: PhantomData,
        }
    }
}

impl<R: Rcu> Guard<R> {
    /// The RCU whose section this is.
    pub const fn rcu(&self) -> &R {
        &self.rcu
    }

    /// Moves the section off this thread, without a gap: what was read under it stays valid, but its references have
    /// to be loaded anew (they are tied to this guard).
    #[track_caller]
    pub fn into_send(self) -> SendGuard<R>
    where
        R: RcuSend,
    {
        let this = ManuallyDrop::new(self);
        // SAFETY: `this` is not dropped, so the value is read once.
        let rcu = unsafe { ptr::read(&raw const this.rcu) };
        // SAFETY: the token came from this RCU on this thread, and is given back here, once.
        let token = unsafe { rcu.move_off(this.token) };
        // SAFETY: the token was made just now.
        unsafe { SendGuard::from_token(rcu, token) }
    }
}

// SAFETY: the section is entered while the guard exists.
unsafe impl<R: Rcu> Section<R> for Guard<R> {}

impl<R: Rcu> Drop for Guard<R> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the token came from this RCU on this thread (the guard cannot leave it), and is
        // given back once, here.
        unsafe { self.rcu.exit(self.token) };
    }
}

impl<R: Rcu> fmt::Debug for Guard<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("token", &self.token).finish()
    }
}

/// Enters a section of the domain `D`.
///
/// ```text
/// let guard = rcu_core::read_lock::<Routes>();
/// ```
#[inline(always)]
#[track_caller]
#[doc(alias = "rcu_read_lock")]
pub fn read_lock<D: Domain>() -> Guard<D> {
    Guard::new(D::default())
}

/// Runs `f` inside a section of the domain `D`.
#[inline(always)]
#[track_caller]
pub fn read<D: Domain, T>(f: impl FnOnce(&Guard<D>) -> T) -> T {
    f(&read_lock::<D>())
}
