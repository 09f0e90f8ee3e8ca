//! What is said about a head that is queued while it is queued (R18).
//!
//! Source: Linux `debug_rcu_head_queue`, which reports three of them and leaks. Why not a panic: the bug is an object that
//! two owners gave up, which a program can survive as long as nobody frees it, and the second owner may be a signal
//! handler or a destructor in the middle of unwinding.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `SEEN` | how many there were | whoever finds one |
//! | `HOOK` | the function that is told; null: standard error under `std`, else nobody | `on_double_call` |
//!
//! # Contexts
//! The hook runs where the second `call` was made: any context, and maybe under its caller's locks.

use crate::head::{Callback, Head};
use core::fmt;
use core::panic::Location;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// How many are reported; the kernel's number. One bug makes many of them.
const MAX_REPORTS: usize = 3;

static SEEN: AtomicUsize = AtomicUsize::new(0);
static HOOK: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// A head that was queued while it was queued. Its object is leaked.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct DoubleCall {
    /// The head. Only its address means anything.
    pub head: NonNull<Head>,
    /// What it was queued with.
    pub queued: Callback,
    /// What it was to be queued with again.
    pub refused: Callback,
    /// Where it was to be queued again, as far as that is known.
    pub by: &'static Location<'static>,
}

impl fmt::Display for DoubleCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rcu: the head at {:p} was queued twice and is leaked: first with {:?}, then with {:?} at {}",
            self.head, self.queued, self.refused, self.by
        )
    }
}

/// Has `hook` told of the first three heads that are queued twice, from now on, in place of whoever was told before (at
/// first, under `std`: standard error). It runs where the second call was made, in any context.
///
/// Heads are watched in debug builds and with the feature `debug-heads`; see [`Head::begin_call`].
///
/// ```
/// rcu_core::on_double_call(|report| {
///     let _ = report.head;
///     // … to the log …
/// });
/// ```
pub fn on_double_call(hook: fn(&DoubleCall)) {
    // ORDERING: Relaxed: a function's address, which publishes nothing.
    HOOK.store(hook as *mut (), Ordering::Relaxed);
}

/// How many heads were queued twice so far, reported or not; always 0 where heads are not watched.
#[must_use]
pub fn double_calls() -> usize {
    // ORDERING: Relaxed: a statistic.
    SEEN.load(Ordering::Relaxed)
}

#[cold]
#[inline(never)]
pub(crate) fn report(seen: &DoubleCall) {
    // ORDERING: Relaxed: a count.
    if SEEN.fetch_add(1, Ordering::Relaxed) >= MAX_REPORTS {
        return;
    }
    // ORDERING: Relaxed: as in `on_double_call`.
    let hook = HOOK.load(Ordering::Relaxed);
    if hook.is_null() {
        #[cfg(feature = "std")]
        std::eprintln!("{seen}");
        return;
    }
    // SAFETY: what is not null was made from such a function by `on_double_call`.
    let hook = unsafe { core::mem::transmute::<*mut (), fn(&DoubleCall)>(hook) };
    hook(seen);
}
