//! A value with its local lock in front of it, in the same cache line.

use super::{LocalLock, ZeroInit};
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

/// Per-slot data behind a [`LocalLock`].
///
/// No callback, drop glue or foreign code may run while a guard of it lives.
#[derive(Default)]
#[repr(C)]
pub struct LocalCell<L, T> {
    lock: L,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands the value to one thread at a time, so `T: Send` suffices.
unsafe impl<L: LocalLock, T: Send> Sync for LocalCell<L, T> {}
// SAFETY: owning the cell is owning the value.
unsafe impl<L: LocalLock, T: Send> Send for LocalCell<L, T> {}
// SAFETY: a lock is zeroable by its trait, and the value by its bound.
unsafe impl<L: LocalLock, T: ZeroInit> ZeroInit for LocalCell<L, T> {}

impl<L: LocalLock, T> LocalCell<L, T> {
    /// A cell around `value`.
    pub const fn new(lock: L, value: T) -> Self {
        Self {
            lock,
            value: UnsafeCell::new(value),
        }
    }

    /// Enters as the slot's owner; `None` if a visitor is in or the caller interrupted itself.
    ///
    /// # Safety
    /// 1. If `L::NEEDS_OWNER`, the caller is the owner of the slot this cell belongs to.
    ///
    /// ```
    /// use rcu_core::cpu::{LocalCell, SpinLock};
    /// let list = LocalCell::new(SpinLock::new(), Vec::new());
    /// // SAFETY: a spin lock needs no owner.
    /// let mut entered = unsafe { list.try_enter() }.expect("nobody is in");
    /// entered.push(1);
    /// // SAFETY: as above.
    /// assert!(unsafe { list.try_enter() }.is_none(), "an interrupt on top of it does not get in");
    /// ```
    #[inline(always)]
    pub unsafe fn try_enter(&self) -> Option<OwnerGuard<'_, L, T>> {
        // SAFETY: debt 1 is passed on.
        if unsafe { self.lock.try_enter() } {
            Some(OwnerGuard::new(self))
        } else {
            None
        }
    }

    /// Enters as a visitor, waiting for the owner. Not for signal handlers.
    pub fn visit(&self) -> VisitorGuard<'_, L, T> {
        self.lock.visit();
        VisitorGuard::new(self)
    }

    /// Enters as a visitor if that needs no waiting.
    pub fn try_visit(&self) -> Option<VisitorGuard<'_, L, T>> {
        self.lock.try_visit().then(|| VisitorGuard::new(self))
    }

    /// Leaves in the place of a visitor whose guard was forgotten: for whoever holds more cells than it has room for guards.
    ///
    /// # Safety
    /// 1. A [`VisitorGuard`] of this cell was forgotten, and not left before.
    ///
    /// ```
    /// use rcu_core::cpu::{LocalCell, SpinLock};
    /// let cells = [(); 100].map(|()| LocalCell::new(SpinLock::new(), 0));
    /// cells.iter().for_each(|cell| core::mem::forget(cell.visit()));
    /// // … nobody is in any of them …
    /// for cell in &cells {
    ///     // SAFETY: its guard was forgotten above.
    ///     unsafe { cell.unvisit() };
    /// }
    /// ```
    pub unsafe fn unvisit(&self) {
        // SAFETY: the guard was made by entering (1).
        unsafe { self.lock.unvisit() };
    }

    /// Enters as a visitor in the place of a thread that will never leave: in the child of a fork. False beside the guard
    /// if that thread may have been inside, and the value half changed: not fit to be used, nor to be dropped.
    ///
    /// # Safety
    /// 1. Those of [`LocalLock::seize`].
    ///
    /// ```
    /// use rcu_core::cpu::{LocalCell, SpinLock};
    /// let list = LocalCell::new(SpinLock::new(), 0);
    /// // A thread that is not there in this child of a fork was inside.
    /// core::mem::forget(list.visit());
    /// // SAFETY: the child's only thread, which is not inside.
    /// let (list, is_whole) = unsafe { list.seize() };
    /// assert!(!is_whole && *list == 0);
    /// ```
    pub unsafe fn seize(&self) -> (VisitorGuard<'_, L, T>, bool) {
        // SAFETY: the caller's debt.
        let whole = unsafe { self.lock.seize() };
        (VisitorGuard::new(self), whole)
    }

    /// Begins a visit: see [`LocalLock::announce_visit`]. Not for signal handlers.
    pub fn announce_visit(&self) {
        self.lock.announce_visit();
    }

    /// Enters as a visitor where a visit was announced, and a heavy fence came after that.
    pub fn complete_visit(&self) -> VisitorGuard<'_, L, T> {
        self.lock.complete_visit();
        VisitorGuard::new(self)
    }

    /// The value, which an exclusive borrow proves to be unshared.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

impl<L: LocalLock, T: fmt::Debug> fmt::Debug for LocalCell<L, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.try_visit() {
            Some(guard) => f.debug_tuple("LocalCell").field(&*guard).finish(),
            None => f.write_str("LocalCell(<busy>)"),
        }
    }
}

macro_rules! guard {
    ($name:ident, $leave:ident, $threads:ty, $doc:literal) => {
        #[doc = $doc]
        #[must_use = "the cell is left at once if the guard is not kept"]
        pub struct $name<'a, L: LocalLock, T> {
            cell: &'a LocalCell<L, T>,
            /// Not `Send` and `Sync` as the cell is, which is `Sync` if the value is `Send`.
            _threads: PhantomData<$threads>,
        }

        impl<'a, L: LocalLock, T> $name<'a, L, T> {
            #[inline(always)]
            const fn new(cell: &'a LocalCell<L, T>) -> Self {
                Self {
                    cell,
                    _threads: PhantomData,
                }
            }
        }

        impl<L: LocalLock, T> Deref for $name<'_, L, T> {
            type Target = T;

            #[inline(always)]
            fn deref(&self) -> &T {
                // SAFETY: the guard is inside the lock, so nobody writes the value meanwhile.
                unsafe { &*self.cell.value.get() }
            }
        }

        impl<L: LocalLock, T> DerefMut for $name<'_, L, T> {
            #[inline(always)]
            fn deref_mut(&mut self) -> &mut T {
                // SAFETY: the guard is inside the lock and is borrowed exclusively.
                unsafe { &mut *self.cell.value.get() }
            }
        }

        impl<L: LocalLock, T> Drop for $name<'_, L, T> {
            #[inline(always)]
            fn drop(&mut self) {
                // SAFETY: the guard was made by entering on this side.
                unsafe { self.cell.lock.$leave() };
            }
        }

        impl<L: LocalLock, T: fmt::Debug> fmt::Debug for $name<'_, L, T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&**self, f)
            }
        }
    };
}

guard!(
    OwnerGuard,
    leave,
    *mut T,
    "Evidence that the slot's owner is inside its [`LocalCell`]. Neither `Send` nor `Sync`: the owner leaves where it entered.
```compile_fail
use rcu_core::cpu::{BiasedLock, OwnerGuard};
fn send<T: Send>() {}
send::<OwnerGuard<'static, BiasedLock, u32>>();
```"
);
guard!(
    VisitorGuard,
    unvisit,
    &'a mut T,
    "Evidence that a visitor is inside a [`LocalCell`]. Shared, it shows the value to several threads, so that must be `Sync`:
```compile_fail
use rcu_core::cpu::{BiasedLock, VisitorGuard};
fn share<T: Sync>() {}
share::<VisitorGuard<'static, BiasedLock, core::cell::Cell<u32>>>();
```"
);
