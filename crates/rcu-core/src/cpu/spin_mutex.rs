//! A value behind a spin lock.

use super::lock::{LocalLock, SpinLock};
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

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
    ///
    /// ```
    /// use rcu_core::cpu::SpinMutex;
    /// static COUNT: SpinMutex<u32> = SpinMutex::new(0);
    /// // A thread that is not there in this child of a fork had it.
    /// core::mem::forget(COUNT.lock());
    /// // SAFETY: the child's only thread, which does not hold it.
    /// let (count, is_whole) = unsafe { COUNT.seize() };
    /// assert!(!is_whole && *count == 0);
    /// ```
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
