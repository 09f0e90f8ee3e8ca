//! A [`Tiny`] that a program with one CPU shares with its interrupt handlers.

use crate::Tiny;
use core::ops::Deref;

/// A [`Tiny`] in a static, with the promise that there is one CPU.
///
/// ```
/// use rcu_core::{GracePeriod, Rcu};
/// use rcu_tiny::{Tiny, TinyStatic};
///
/// // SAFETY: this program has one thread of execution.
/// static RCU: TinyStatic = unsafe { TinyStatic::new(Tiny::new()) };
///
/// rcu_core::domain! {
///     /// Everything that this program protects.
///     pub struct Kernel = RCU: Tiny;
/// }
///
/// let guard = rcu_core::read_lock::<Kernel>();
/// let cookie = RCU.start();
/// assert!(!RCU.poll(cookie));
/// drop(guard);
/// RCU.quiescent();
/// assert!(Kernel.poll(cookie));
/// ```
#[derive(Debug)]
pub struct TinyStatic(Tiny);

// SAFETY: whoever made the value promised that no two threads of execution use it in parallel or
// preempt each other in it; interrupts are excluded by critical sections, or leave what they change as it was.
unsafe impl Sync for TinyStatic {}

impl TinyStatic {
    /// Claims that everything that will use this value runs on one CPU.
    ///
    /// # Safety
    /// 1. No two threads of execution use the value in parallel.
    /// 2. None preempts another that is inside a method of the value or inside a read-side critical
    ///    section of it, interrupt handlers excepted, which leave every section they enter before they return.
    /// 3. The program's `critical-section` keeps those interrupt handlers out.
    ///
    /// ```
    /// use rcu_core::{GracePeriod, Rcu};
    /// use rcu_tiny::{Tiny, TinyStatic};
    /// // SAFETY: this program has one thread, and no interrupt handler.
    /// static RCU: TinyStatic = unsafe { TinyStatic::new(Tiny::new()) };
    /// drop(RCU.read_lock());
    /// RCU.synchronize();
    /// ```
    #[must_use]
    pub const unsafe fn new(tiny: Tiny) -> Self {
        Self(tiny)
    }
}

// SAFETY: always the same one.
unsafe impl rcu_core::__Named for TinyStatic {
    type Rcu = Tiny;

    #[inline(always)]
    fn named(&'static self) -> &'static Tiny {
        &self.0
    }
}

impl Deref for TinyStatic {
    type Target = Tiny;

    fn deref(&self) -> &Tiny {
        &self.0
    }
}
