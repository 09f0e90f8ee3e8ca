//! Arrays with one element a slot, over memory of the caller's.

use super::Slot;
use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
#[cfg(not(loom))]
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicUsize};

/// Types for which all-zero bytes are a valid, empty value.
///
/// Lets a per-slot array lie in memory that the system hands out zeroed and lazily: a slot nobody
/// uses costs address space only.
///
/// # Safety
/// 1. All-zero bytes are a valid value of the type, which owns nothing.
pub unsafe trait ZeroInit {}

macro_rules! zero_init {
    ($($t:ty),*) => { $(
        // SAFETY: an integer or atomic integer of value zero.
        unsafe impl ZeroInit for $t {}
    )* };
}
zero_init!(u8, u16, u32, u64, usize, bool);
#[cfg(not(loom))]
zero_init!(AtomicU8, AtomicU32, AtomicUsize);
#[cfg(all(not(loom), target_has_atomic = "64"))]
zero_init!(core::sync::atomic::AtomicU64);

// SAFETY: a null raw pointer is valid.
unsafe impl<T> ZeroInit for *mut T {}
// SAFETY: a null raw pointer is valid.
unsafe impl<T> ZeroInit for *const T {}
// SAFETY: a null pointer in an atomic is valid.
#[cfg(not(loom))]
unsafe impl<T> ZeroInit for AtomicPtr<T> {}
// SAFETY: an array of zeroed elements.
unsafe impl<T: ZeroInit, const N: usize> ZeroInit for [T; N] {}
// SAFETY: transparent around its value.
unsafe impl<T: ZeroInit> ZeroInit for UnsafeCell<T> {}
// SAFETY: all bytes, zero ones too, are a valid uninitialised value.
unsafe impl<T> ZeroInit for core::mem::MaybeUninit<T> {}
// SAFETY: both words zero is an unlocked lock.
unsafe impl ZeroInit for super::BiasedLock {}
// SAFETY: zero is an unlocked lock.
unsafe impl ZeroInit for super::SpinLock {}
// SAFETY: zero is an unlocked lock.
unsafe impl ZeroInit for super::UpLock {}
// SAFETY: padding around its value.
unsafe impl<T: ZeroInit> ZeroInit for crossbeam_utils::CachePadded<T> {}

#[cfg(loom)]
// SAFETY: under the model checker no array is made from zeroed memory (`from_zeroed` is absent).
unsafe impl ZeroInit for loom::sync::atomic::AtomicU32 {}

/// The same pointer, computed once and kept in a register.
///
/// Every access through it then has the same addressing form, so that processors that forward a store to a load by
/// form (memory renaming: Intel since Ice Lake, AMD since Zen 2) forward the owner's own words at no cost. A section's
/// enter and exit around a load took 1.9 ns with an index in one access and not in the other, and 1.1 ns without.
#[inline(always)]
#[must_use]
#[cfg_attr(
    all(
        any(target_arch = "x86_64", target_arch = "aarch64"),
        not(miri),
        not(loom)
    ),
    expect(clippy::pointers_in_nomem_asm_block, reason = "the template is empty")
)]
pub fn in_register<T>(pointer: NonNull<T>) -> NonNull<T> {
    #[cfg(all(
        any(target_arch = "x86_64", target_arch = "aarch64"),
        not(miri),
        not(loom)
    ))]
    {
        let mut raw = pointer.as_ptr();
        // SAFETY: an empty template changes nothing and touches no memory.
        unsafe {
            core::arch::asm!("/* {0} */", inout(reg) raw,
                options(pure, nomem, nostack, preserves_flags));
        }
        // SAFETY: the pointer that went in.
        return unsafe { NonNull::new_unchecked(raw) };
    }
    #[allow(unreachable_code, reason = "where there is no such assembly")]
    pointer
}

/// One `T` a slot, in memory that outlives `'a`.
pub struct PerSlot<'a, T> {
    base: NonNull<T>,
    len: usize,
    _memory: PhantomData<&'a [T]>,
}

// SAFETY: only shared access to the elements is given out.
unsafe impl<T: Sync> Sync for PerSlot<'_, T> {}
// SAFETY: as for `&[T]`.
unsafe impl<T: Sync> Send for PerSlot<'_, T> {}

impl<'a, T> PerSlot<'a, T> {
    /// The array over a slice.
    #[must_use]
    pub const fn from_slice(slots: &'a [T]) -> Self {
        let base = NonNull::from_ref(slots).cast::<T>();
        Self {
            base,
            len: slots.len(),
            _memory: PhantomData,
        }
    }

    /// The memory that [`Self::from_zeroed`] needs for `len` slots.
    ///
    /// # Panics
    /// If the size overflows `isize`.
    #[must_use]
    pub const fn layout(len: usize) -> Layout {
        match Layout::array::<T>(len) {
            Ok(layout) => layout,
            Err(_) => panic!("per-slot array larger than the address space"),
        }
    }

    /// The array over zeroed memory.
    ///
    /// # Safety
    /// 1. `memory` is valid for reads and writes for `'a`, laid out as [`Self::layout`]`(len)` says,
    ///    and nothing else refers to it.
    /// 2. It is all zero.
    ///
    /// ```
    /// use core::ptr::NonNull;
    /// use rcu_core::cpu::{LocalCell, PerSlot, Slot, SpinLock};
    /// type Count = LocalCell<SpinLock, u32>;
    ///
    /// let layout = PerSlot::<Count>::layout(4);
    /// // SAFETY: the layout has a size.
    /// let memory = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).unwrap();
    /// // SAFETY: zeroed memory of this layout, which nobody else has, for as long as this program runs.
    /// let counts = unsafe { PerSlot::<Count>::from_zeroed(memory, 4) };
    /// *counts.get(Slot::new(3)).unwrap().visit() += 1;
    /// ```
    #[cfg(not(loom))]
    #[must_use]
    pub const unsafe fn from_zeroed(memory: NonNull<u8>, len: usize) -> Self
    where
        T: ZeroInit,
    {
        Self {
            base: memory.cast::<T>(),
            len,
            _memory: PhantomData,
        }
    }

    /// How many slots the array has.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no slots.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first element's address, to give the memory back by.
    #[must_use]
    pub const fn as_ptr(&self) -> NonNull<T> {
        self.base
    }

    /// The element of `slot`, or `None` past the end.
    #[inline]
    #[must_use]
    pub fn get(&self, slot: Slot) -> Option<&T> {
        if slot.index() < self.len {
            // SAFETY: the index was just checked.
            Some(unsafe { self.get_unchecked(slot) })
        } else {
            None
        }
    }

    /// The element of `slot`.
    ///
    /// # Safety
    /// 1. `slot` is below [`Self::len`]: for a slot from [`Cpus::current`](super::Cpus::current),
    ///    its guarantee 1 and an array of `nr_slots` elements.
    ///
    /// ```
    /// use rcu_core::cpu::{PerSlot, Slot};
    /// let counts = [10, 20];
    /// let counts = PerSlot::from_slice(&counts);
    /// // SAFETY: one of two.
    /// assert_eq!(unsafe { counts.get_unchecked(Slot::new(1)) }, &20);
    /// ```
    #[inline(always)]
    #[must_use]
    pub unsafe fn get_unchecked(&self, slot: Slot) -> &T {
        debug_assert!(slot.index() < self.len);
        // SAFETY: below the length (debt 1), so inside the allocation.
        let element = in_register(unsafe { self.base.add(slot.index()) });
        // SAFETY: elements are initialised for `'a` (slice, or zeroed `ZeroInit`), and shared.
        unsafe { element.as_ref() }
    }

    /// All elements, in slot order.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &T)> {
        // SAFETY: `base` and `len` describe initialised elements shared for `'a`.
        let all = unsafe { core::slice::from_raw_parts(self.base.as_ptr(), self.len) };
        all.iter()
            .enumerate()
            .map(|(i, t)| (Slot::new(i as u32), t))
    }
}

impl<T> Clone for PerSlot<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for PerSlot<'_, T> {}

impl<T> fmt::Debug for PerSlot<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerSlot")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
