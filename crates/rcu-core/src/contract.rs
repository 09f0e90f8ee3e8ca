//! What it means to wait for readers: the traits that the layers above build on.
//!
//! Production: `rcu-tree` and `rcu-tiny`. Minimal: [`NoReaders`]. For tests:
//! [`ManualGp`](crate::manual::ManualGp), whose grace periods end when the test says so.
//!
//! # What a grace period is
//! A *read-side critical section* is what lies between [`Rcu::enter`] and the matching
//! [`Rcu::exit`] of the outermost nesting level on one thread (or slot). A *grace period* is any
//! interval such that every section that began before the interval started has ended before the
//! interval ends (R1). A cookie is *done* when a whole grace period lies between the call that
//! took it and now.

use crate::guard::Guard;
use crate::head::{Callback, Head};
use crate::seq::{Cookie, FullCookie};
use core::ptr::NonNull;

/// Something whose grace periods can be asked for, polled and waited for.
///
/// # Safety
/// An implementer keeps the guarantees below.
///
/// # Guarantees
/// An implementer promises:
/// 1. *Never early.* If `poll(c)` returns true, or `wait(c)` returns, then every read-side critical
///    section that began before the call that made `c` has ended; everything those sections did is
///    ordered before whatever the caller does next, and everything the caller of `snapshot` or
///    `start` did before that call is visible to every section that ends after `c` was done (R3, R7).
/// 2. *Stable.* Once `poll(c)` was true it stays so (for half the number space).
/// 3. *Progress.* If no section lasts for ever, `wait` returns, and `drive` called again and again
///    makes every cookie of `start` done.
/// 4. `snapshot`, `start`, `poll` and `drive` never block, never allocate and run no callback; they
///    may be called inside a section, and so may their full and expedited forms. `wait` and `synchronize`, in any form,
///    may block and may not. (What an implementation does once, at its first use, such as starting a thread, it
///    documents.)
/// 5. *A full cookie never misses.* `poll_full(c)` is never early (1), and true once any whole grace period, normal or
///    expedited, has run since `c` was taken: after `let c = snapshot_full(); synchronize();` it is true (R8). A small
///    cookie may need a second one where two kinds overlap (R7).
pub unsafe trait GracePeriod {
    /// A cookie for now. Asks for nothing: somebody else's grace period may make it done.
    #[doc(alias = "get_state_synchronize_rcu")]
    fn snapshot(&self) -> Cookie;

    /// A cookie for now, and the request that grace periods run until it is done.
    #[doc(alias = "start_poll_synchronize_rcu")]
    fn start(&self) -> Cookie;

    /// Whether `cookie` is done. One load; true orders what follows after the grace period.
    #[doc(alias = "poll_state_synchronize_rcu")]
    fn poll(&self, cookie: Cookie) -> bool;

    /// Blocks until `cookie` is done, making it so.
    #[doc(alias = "cond_synchronize_rcu")]
    #[track_caller]
    fn wait(&self, cookie: Cookie);

    /// Pushes requested grace periods on as far as that goes without waiting; true while one is
    /// still wanted or in progress.
    #[doc(alias = "rcu_force_quiescent_state")]
    fn drive(&self) -> bool;

    /// Blocks for a whole grace period.
    #[doc(alias = "synchronize_rcu")]
    #[track_caller]
    fn synchronize(&self) {
        self.wait(self.start());
    }

    /// Blocks for a whole grace period, for as short a time as the implementation can make it.
    #[doc(alias = "synchronize_rcu_expedited")]
    #[track_caller]
    fn synchronize_expedited(&self) {
        self.wait_expedited(self.start_expedited());
    }

    /// As [`Self::start`], asking for a grace period of the quick kind.
    #[doc(alias = "start_poll_synchronize_rcu_expedited")]
    fn start_expedited(&self) -> Cookie {
        self.start()
    }

    /// As [`Self::wait`], by grace periods of the quick kind.
    #[doc(alias = "cond_synchronize_rcu_expedited")]
    #[track_caller]
    fn wait_expedited(&self, cookie: Cookie) {
        self.wait(cookie);
    }

    /// A cookie that no grace period escapes, twice the size of a small one. Asks for nothing.
    #[doc(alias = "get_state_synchronize_rcu_full")]
    fn snapshot_full(&self) -> FullCookie {
        FullCookie::of_one_sequence(self.snapshot())
    }

    /// Whether `cookie` is done.
    #[doc(alias = "poll_state_synchronize_rcu_full")]
    fn poll_full(&self, cookie: FullCookie) -> bool {
        self.poll(cookie.normal())
    }

    /// A full cookie for now, and the request that grace periods run until it is done.
    #[doc(alias = "start_poll_synchronize_rcu_full")]
    fn start_full(&self) -> FullCookie {
        let cookie = self.snapshot_full();
        self.start();
        cookie
    }

    /// As [`Self::start_full`], asking for a grace period of the quick kind.
    #[doc(alias = "start_poll_synchronize_rcu_expedited_full")]
    fn start_full_expedited(&self) -> FullCookie {
        let cookie = self.snapshot_full();
        self.start_expedited();
        cookie
    }

    /// Blocks until `cookie` is done, making it so.
    #[doc(alias = "cond_synchronize_rcu_full")]
    #[track_caller]
    fn wait_full(&self, cookie: FullCookie) {
        if !self.poll_full(cookie) {
            self.synchronize();
        }
    }

    /// As [`Self::wait_full`], by a grace period of the quick kind.
    #[doc(alias = "cond_synchronize_rcu_expedited_full")]
    #[track_caller]
    fn wait_full_expedited(&self, cookie: FullCookie) {
        if !self.poll_full(cookie) {
            self.synchronize_expedited();
        }
    }

    /// How many grace periods have ended so far, for statistics.
    #[doc(alias = "rcu_get_gp_seq")]
    fn grace_periods(&self) -> usize;
}

/// Read-copy update: sections for readers, callbacks for writers.
///
/// # Safety
/// An implementer keeps the guarantees below.
///
/// # Guarantees
/// Beside those of [`GracePeriod`]:
/// 5. `enter` and `exit` are wait-free, nest, and may come in signal handlers and interrupts. Tokens may be
///    given back in any order; the section ends with the last. They do not unwind, nor does `quiescent_state`
///    (a guard could not tell then whether its token was given back).
/// 6. `call` runs its callback exactly once, after a grace period that began after the call, with no lock of
///    the implementation held and outside any section of it. It never blocks and never allocates, and may be
///    called from sections and from callbacks (R4). What its caller did before is visible to the callback.
/// 7. `barrier` returns after every callback queued before it was called has returned (R13).
pub unsafe trait Rcu: GracePeriod {
    /// What `enter` gives and `exit` takes back. Stays on its thread.
    type Token: Copy + core::fmt::Debug;

    /// Enters a read-side critical section. See [`Rcu::read_lock`] for the guarded form.
    ///
    /// # Aborts
    /// If sections nest too deep to be counted, which only forgotten guards can bring about.
    #[track_caller]
    fn enter(&self) -> Self::Token;

    /// Leaves the section that gave `token`.
    ///
    /// # Safety
    /// 1. `token` came from `enter` of this same value on this thread, and was not given back yet.
    unsafe fn exit(&self, token: Self::Token);

    /// Queues `callback` for `head`, to happen after a grace period.
    ///
    /// # Safety
    /// 1. `head` stays valid until the callback gets it, and is on no list.
    /// 2. No new reader can find the object that `head` belongs to.
    /// 3. A function callback may be run from any thread.
    /// 4. For [`Callback::Free`], the implementation was given a way to free objects, and the object
    ///    came from there; `head`'s provenance covers the whole object.
    /// 5. Until the callback gets it, nobody calls a method of `head` that writes to it: so readers, who may hold a
    ///    reference to the object, cannot reach it from safe code (a private field).
    #[doc(alias = "call_rcu")]
    #[doc(alias = "call_rcu_hurry")]
    unsafe fn call(&self, head: NonNull<Head>, callback: Callback);

    /// As [`Self::call`], for a callback that may wait for seconds: it asks for no grace period of its own until a
    /// timer, a barrier, pressure, a full list or an ordinary `call` behind it does (R17).
    ///
    /// # Safety
    /// As for [`Self::call`].
    #[doc(alias = "call_rcu_lazy")]
    unsafe fn call_lazy(&self, head: NonNull<Head>, callback: Callback) {
        // SAFETY: the caller's debts are those of `call`.
        unsafe { self.call(head, callback) };
    }

    /// Leaves the section and enters it anew, which lets grace periods pass if it was the outermost: a quiescent state
    /// of a thread that is otherwise always inside.
    ///
    /// # Safety
    /// 1. As for [`Self::exit`]. References read under this section alone are not used afterwards.
    #[doc(alias = "rcu_quiescent_state")]
    #[track_caller]
    #[must_use = "the section goes on under this token"]
    unsafe fn quiescent_state(&self, token: Self::Token) -> Self::Token {
        // SAFETY: the caller's debt.
        unsafe { self.exit(token) };
        self.enter()
    }

    /// Blocks until every callback queued before this call has returned. Does not imply a grace
    /// period, nor does `synchronize` imply this. Not from a callback, nor inside a section.
    #[doc(alias = "rcu_barrier")]
    #[track_caller]
    fn barrier(&self);

    /// Enters a section that ends with the guard.
    #[doc(alias = "rcu_read_lock")]
    #[inline(always)]
    #[track_caller]
    fn read_lock(&self) -> Guard<&Self>
    where
        Self: Sized,
    {
        Guard::new(self)
    }

    /// Runs `f` inside a section.
    #[inline(always)]
    #[track_caller]
    fn read<T>(&self, f: impl FnOnce(&Guard<&Self>) -> T) -> T
    where
        Self: Sized,
    {
        f(&self.read_lock())
    }
}

/// An [`Rcu`] whose sections may leave their thread: for readers that are held across a blocking call or an `.await`
/// (what the kernel calls preemptible readers, G11).
///
/// # Safety
/// An implementer keeps the guarantees below.
///
/// # Guarantees
/// Beside those of [`Rcu`]:
/// 8. A section entered by `enter_send`, or moved by `move_off`, counts for every grace period as any other does, and
///    may be left on any thread. Entering may take a lock for a moment; it is not for signal handlers.
pub unsafe trait RcuSend: Rcu {
    /// What `enter_send` gives and `exit_send` takes back, on any thread.
    type SendToken: Copy + Send + Sync + core::fmt::Debug;

    /// Enters a section that belongs to no thread.
    #[track_caller]
    fn enter_send(&self) -> Self::SendToken;

    /// Leaves such a section, from any thread.
    ///
    /// # Safety
    /// 1. `token` came from this same value and was not given back yet.
    unsafe fn exit_send(&self, token: Self::SendToken);

    /// Moves the section of `token` off its thread, without a gap: what was read under it stays valid.
    ///
    /// # Safety
    /// 1. As for [`Rcu::exit`], on the thread of `token`.
    #[track_caller]
    unsafe fn move_off(&self, token: Self::Token) -> Self::SendToken;
}

/// An [`Rcu`] that is named by a type: what protected pointers are tied to.
///
/// A guard of another domain is another type, so it cannot be passed by mistake (hole 1 of the
/// peers: flurry#46).
///
/// # Safety
/// An implementer keeps the guarantees below.
///
/// # Guarantees
/// 1. All values of the type act on one and the same RCU, which lives for ever.
pub unsafe trait Domain:
    Rcu + Copy + Default + Send + Sync + core::fmt::Debug + 'static
{
}

macro_rules! delegate {
    () => {
        #[inline(always)]
        fn snapshot(&self) -> Cookie {
            (**self).snapshot()
        }

        #[inline(always)]
        fn start(&self) -> Cookie {
            (**self).start()
        }

        #[inline(always)]
        fn poll(&self, cookie: Cookie) -> bool {
            (**self).poll(cookie)
        }

        fn wait(&self, cookie: Cookie) {
            (**self).wait(cookie);
        }

        fn drive(&self) -> bool {
            (**self).drive()
        }

        fn synchronize(&self) {
            (**self).synchronize();
        }

        fn synchronize_expedited(&self) {
            (**self).synchronize_expedited();
        }

        fn start_expedited(&self) -> Cookie {
            (**self).start_expedited()
        }

        fn wait_expedited(&self, cookie: Cookie) {
            (**self).wait_expedited(cookie);
        }

        fn snapshot_full(&self) -> FullCookie {
            (**self).snapshot_full()
        }

        fn poll_full(&self, cookie: FullCookie) -> bool {
            (**self).poll_full(cookie)
        }

        fn start_full(&self) -> FullCookie {
            (**self).start_full()
        }

        fn start_full_expedited(&self) -> FullCookie {
            (**self).start_full_expedited()
        }

        fn wait_full(&self, cookie: FullCookie) {
            (**self).wait_full(cookie);
        }

        fn wait_full_expedited(&self, cookie: FullCookie) {
            (**self).wait_full_expedited(cookie);
        }

        fn grace_periods(&self) -> usize {
            (**self).grace_periods()
        }
    };
}

// SAFETY: a reference answers as its referent does.
unsafe impl<G: GracePeriod + ?Sized> GracePeriod for &G {
    delegate!();
}

// SAFETY: a reference answers as its referent does.
unsafe impl<R: Rcu> Rcu for &R {
    type Token = R::Token;

    #[inline(always)]
    fn enter(&self) -> Self::Token {
        (**self).enter()
    }

    #[inline(always)]
    unsafe fn exit(&self, token: Self::Token) {
        // SAFETY: the caller's debt 1, for the same referent.
        unsafe { (**self).exit(token) };
    }

    unsafe fn call(&self, head: NonNull<Head>, callback: Callback) {
        // SAFETY: the caller's debts 1 to 4.
        unsafe { (**self).call(head, callback) };
    }

    unsafe fn call_lazy(&self, head: NonNull<Head>, callback: Callback) {
        // SAFETY: the caller's debts 1 to 4.
        unsafe { (**self).call_lazy(head, callback) };
    }

    #[inline(always)]
    unsafe fn quiescent_state(&self, token: Self::Token) -> Self::Token {
        // SAFETY: the caller's debt, for the same referent.
        unsafe { (**self).quiescent_state(token) }
    }

    fn barrier(&self) {
        (**self).barrier();
    }
}

// SAFETY: a reference answers as its referent does.
unsafe impl<R: RcuSend> RcuSend for &R {
    type SendToken = R::SendToken;

    fn enter_send(&self) -> Self::SendToken {
        (**self).enter_send()
    }

    unsafe fn exit_send(&self, token: Self::SendToken) {
        // SAFETY: the caller's debt, for the same referent.
        unsafe { (**self).exit_send(token) };
    }

    unsafe fn move_off(&self, token: Self::Token) -> Self::SendToken {
        // SAFETY: the caller's debt, for the same referent.
        unsafe { (**self).move_off(token) }
    }
}

/// A grace period where nobody reads: every cookie is done at once. The minimal [`GracePeriod`],
/// for caches and allocators used without RCU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoReaders;

// SAFETY: there are no sections (this type has no way to enter one), so 1 holds for every cookie.
unsafe impl GracePeriod for NoReaders {
    fn snapshot(&self) -> Cookie {
        Cookie::COMPLETED
    }

    fn start(&self) -> Cookie {
        Cookie::COMPLETED
    }

    fn poll(&self, _cookie: Cookie) -> bool {
        true
    }

    fn wait(&self, _cookie: Cookie) {}

    fn drive(&self) -> bool {
        false
    }

    fn grace_periods(&self) -> usize {
        0
    }
}
