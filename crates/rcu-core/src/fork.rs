//! What to do in the child of a `fork`, which has one thread of all that its parent had.
//!
//! # Who needs this
//! A child that calls `exec` (all that [`std::process::Command`] makes) needs nothing. One that goes on, and uses what
//! was built in the parent, calls [`after_fork_child`] first, or has [`install`] called for it once in the parent.
//!
//! # What the child finds
//! `fork` shows the child each of the other threads as it stood between two of its instructions, and none of them will
//! go on. So a lock may be held for ever, a list may be half changed, a reader may be inside for ever, a grace period
//! may have nobody who ends it.
//!
//! # What is done about it
//! Every slot but the caller's is free again. Then each layer that is listed with a fork hook
//! ([`OfflineHook::with_fork`](crate::cpu::OfflineHook::with_fork)) puts itself right: it takes its locks from the
//! threads that are gone, keeps what is whole and forgets (leaks) what may be half changed. `rcu-tree` does: it knows no
//! readers but the caller, a grace period that was in progress is made to wait for the caller alone, and callbacks go on
//! but for those that another thread was about to run, or whose list it was just changing; it counts these. A layer that
//! cannot forget what may be half changed, a page allocator or a cache, holds still while the process forks instead
//! ([`hold_still`], or by hand: `before_fork` of zones and caches): then there is nothing to put right, in *any* child.
//! `kvfree` puts its own lists right; the pages and caches below it hold still only when they are asked to, which its default stack
//! does not do yet.
//!
//! # What nothing can be done about here
//! A thread of the standard library's holds a lock of *its* as it begins and as it ends (where it notes the guard page of its
//! stack). A child that is forked in that moment finds it held: threads that it starts stop before their first line, the worker of
//! a tree among them. Grace periods that somebody waits for or drives go on without it; one that is only polled does not.
//! A program whose children go on keeps its threads, or starts and ends them by the C library, or not while it forks.
//!
//! # What becomes of what was there
//! | from before the fork | in the child |
//! |---|---|
//! | a guard of the caller's, on its slot | stays valid, and holds grace periods up until it is dropped |
//! | a guard without a slot, or one that can be sent | must not be used again; forget it |
//! | cookies | stay valid; their grace periods are started by the first call that starts, waits for, or drives one |
//! | callbacks that wait | run in the child (as they do in the parent), from its first call or barrier on |
//! | the worker thread | is gone; the first call that needs one starts another |
//! | objects of the user's that another thread was changing | may be half changed: RCU protects readers, not writers |

#[cfg(all(feature = "std", unix, not(loom)))]
mod still;

#[cfg(all(feature = "std", unix, not(loom)))]
pub use still::{HoldStill, Still, hold_still};
#[cfg(all(feature = "std", unix, not(loom)))]
pub use with_std::{after_fork_child, generation, install};

/// How many forks lie between the first process and this one. Always 0 where `after_fork_child` does not exist.
///
/// A layer that notes it beside a mark ("somebody is at it") can tell that whoever made the mark is not there any more.
#[cfg(not(all(feature = "std", unix, not(loom))))]
#[must_use]
pub const fn generation() -> usize {
    0
}

#[cfg(all(feature = "std", unix, not(loom)))]
mod with_std {
    use crate::cpu::threads;
    use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::io;

    static GENERATION: AtomicUsize = AtomicUsize::new(0);
    static INSTALLED: AtomicBool = AtomicBool::new(false);

    /// How many forks lie between the first process and this one: goes up in [`after_fork_child`].
    ///
    /// A layer that notes it beside a mark ("somebody is at it") can tell that whoever made the mark is not there any
    /// more.
    #[must_use]
    pub fn generation() -> usize {
        // ORDERING: Relaxed: written by the only thread of a process, before it makes others.
        GENERATION.load(Ordering::Relaxed)
    }

    /// Makes RCU usable in the child of a `fork`: see the [module](crate::fork) for what becomes of what was there.
    ///
    /// Allocates nothing, starts no thread, and costs a look at every slot of every tree, and every waiting callback if
    /// a barrier was in progress. Calling it twice in a row does no harm, so a program may call it without knowing whether
    /// a library did. It is `unsafe` because it takes locks away from threads that are supposed not to exist, and because
    /// it forgets readers that nothing tells from the caller's own.
    ///
    /// # Safety
    /// 1. This process is the child of a `fork`, the caller is its only thread, and nothing of RCU was called in the
    ///    child before, save this function and leaving sections. (`fork` in the sense of POSIX: not `vfork`, nothing that shares memory.)
    /// 2. The thread that called `fork` did so outside every function of RCU, that is, not from a callback, from a
    ///    listener, or from a signal handler that may have interrupted such a function; nor while its thread-locals were
    ///    being destroyed.
    /// 3. No guard from before the fork is used or dropped that is a [`SendGuard`](crate::SendGuard), or that was made by
    ///    a thread without a slot.
    ///
    /// ```
    /// // SAFETY: forks outside of every function of RCU.
    /// match unsafe { libc::fork() } {
    ///     0 => {
    ///         // SAFETY: the first thing that the child does; it has no guards.
    ///         unsafe { rcu_core::fork::after_fork_child() };
    ///         // … goes on to use RCU …
    ///         // SAFETY: ends the child.
    ///         unsafe { libc::_exit(0) }
    ///     }
    ///     child => {
    ///         let mut status = 1;
    ///         // SAFETY: waits for the child, `status` being writable.
    ///         unsafe { libc::waitpid(child, &raw mut status, 0) };
    ///         assert_eq!(status, 0);
    ///     }
    /// }
    /// ```
    #[doc(alias = "urcu_after_fork_child")]
    #[doc(alias = "call_rcu_after_fork_child")]
    pub unsafe fn after_fork_child() {
        // ORDERING: Relaxed: there is one thread.
        GENERATION.fetch_add(1, Ordering::Relaxed);
        crate::fence::after_fork();
        // SAFETY: the caller's debts.
        unsafe { threads::after_fork_child() };
    }

    /// Has [`after_fork_child`] called in every child that this process forks from now on (`pthread_atfork`), and in their
    /// children. Once is enough; further calls do nothing.
    ///
    /// For programs with libraries that fork on their own. `posix_spawn` and `vfork` do not come by.
    ///
    /// # Errors
    /// If the system has no memory for the note.
    ///
    /// # Safety
    /// 1. Debts 2 and 3 of [`after_fork_child`] hold for every later `fork` whose child goes on instead of calling
    ///    `exec` or `_exit` soon.
    /// 2. The code of this library stays loaded until the process ends.
    ///
    /// ```
    /// // SAFETY: this program forks outside of RCU only, keeps no guards meanwhile, and unloads nothing.
    /// unsafe { rcu_core::fork::install() }?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub unsafe fn install() -> io::Result<()> {
        extern "C" fn child() {
            // SAFETY: the system runs this first in the child of a fork, on its only thread (1); the rest is what the
            // caller of `install` promised (2, 3).
            unsafe { after_fork_child() };
        }
        // ORDERING: Relaxed: decides who notes it; two at a time would do no harm.
        if INSTALLED.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        // SAFETY: the handler stays loaded (2).
        match unsafe { libc::pthread_atfork(None, None, Some(child)) } {
            0 => Ok(()),
            code => {
                // ORDERING: Relaxed: as above.
                INSTALLED.store(false, Ordering::Relaxed);
                Err(io::Error::from_raw_os_error(code))
            }
        }
    }
}
