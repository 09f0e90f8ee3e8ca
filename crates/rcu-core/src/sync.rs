//! The atomics this crate is built on, and their stand-ins under a model checker.
//!
//! Under `cfg(loom)` every word below is loom's, so that the same source runs in production and in
//! the models. Loom's constructors are not `const`; [`const_fn!`](crate::const_fn) hides that.
//!
//! What the stand-in cannot show: loom treats [`fence::light`](crate::fence::light) and
//! [`fence::heavy`](crate::fence::heavy) as full fences on both sides, so the asymmetry itself
//! (membarrier) rests on the kernel's promise, not on the model.

/// Atomic words.
pub mod atomic {
    /// Absent on machines of 32 bits without it.
    #[cfg(all(not(loom), target_has_atomic = "64"))]
    pub use core::sync::atomic::AtomicU64;
    #[cfg(not(loom))]
    pub use core::sync::atomic::{
        AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicUsize, Ordering, compiler_fence, fence,
    };
    #[cfg(loom)]
    pub use loom::sync::atomic::{
        AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
}

/// One step of waiting for another thread: spins a little, then yields where there is a scheduler.
#[derive(Debug, Default)]
pub struct Backoff {
    #[cfg(not(loom))]
    inner: crossbeam_utils::Backoff,
}

impl Backoff {
    /// A fresh back-off that spins first.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits one step. Never blocks for longer than a scheduler's yield.
    pub fn snooze(&self) {
        #[cfg(not(loom))]
        self.inner.snooze();
        #[cfg(loom)]
        loom::thread::yield_now();
    }

    /// Whether the cheap steps are used up, so that a caller that can sleep should.
    #[must_use]
    pub fn is_completed(&self) -> bool {
        #[cfg(not(loom))]
        return self.inner.is_completed();
        #[cfg(loom)]
        return true;
    }
}

/// Declares a function that is `const` except under loom, whose words have no `const` constructor.
#[macro_export]
#[doc(hidden)]
macro_rules! const_fn {
    ($(#[$m:meta])* $vis:vis const fn $($rest:tt)*) => {
        #[cfg(not(loom))]
        $(#[$m])* $vis const fn $($rest)*
        #[cfg(loom)]
        $(#[$m])* $vis fn $($rest)*
    };
    ($(#[$m:meta])* $vis:vis const unsafe fn $($rest:tt)*) => {
        #[cfg(not(loom))]
        $(#[$m])* $vis const unsafe fn $($rest)*
        #[cfg(loom)]
        $(#[$m])* $vis unsafe fn $($rest)*
    };
}
