//! RCU-protected boxes in the default stack: no `unsafe` for who publishes, reads, replaces and retires.

use crate::objects::DeferFree;
use crate::stack::{Global, front, make_room, objects};
use core::alloc::Layout;
use core::mem::offset_of;
use core::ptr::NonNull;
use rcu_core::{Callback, Head, HeadOffset, Reclaimer};

/// Where the default stack's boxes live: its general allocator, each with a head in front, so that retiring one can
/// never fail.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heap;

/// A box in the default stack. See [`rcu_core::RcuBox`].
pub type RcuBox<T> = rcu_core::RcuBox<T, Heap>;

/// A place for a box in the default stack. See [`rcu_core::RcuCell`].
///
/// ```
/// use kvfree::{RcuBox, RcuCell, read_lock};
/// let config = RcuCell::new(RcuBox::new(String::from("old")));
/// let guard = read_lock();
/// let seen = config.load(&guard).unwrap();
/// config.store(Some(RcuBox::new(String::from("new"))));
/// assert_eq!(seen, "old"); // until the guard goes
/// drop(guard);
/// assert_eq!(config.load(&read_lock()).unwrap(), "new");
/// ```
pub type RcuCell<T> = rcu_core::RcuCell<RcuBox<T>>;

#[repr(C)]
struct Headed<T> {
    head: Head,
    value: T,
}

impl<T> Headed<T> {
    const HEAD: HeadOffset = HeadOffset::from_bytes(offset_of!(Self, head));

    /// # Safety
    /// 1. `value` came from [`Heap::allocate`].
    unsafe fn around(value: NonNull<T>) -> NonNull<Self> {
        // SAFETY: the value lies at this offset in its `Headed` (1).
        unsafe { value.cast::<u8>().sub(offset_of!(Self, value)) }.cast()
    }

    /// Drops the value and frees the memory.
    ///
    /// # Safety
    /// 1. `head` is that of a `Headed<T>` of the heap, given up, and nobody sees it.
    unsafe fn drop_and_free(head: NonNull<Head>) {
        /// Frees even if the destructor panics.
        struct Free(NonNull<u8>);
        impl Drop for Free {
            fn drop(&mut self) {
                // SAFETY: the memory came from `objects()`, and its value is dropped.
                unsafe { objects().kfree(self.0) };
            }
        }
        let _free = Free(head.cast());
        // SAFETY: the value lies inside the object around the head, its first field (1).
        let value = unsafe { head.cast::<u8>().add(offset_of!(Self, value)) }.cast::<T>();
        // SAFETY: dropped once (1).
        unsafe { value.drop_in_place() };
    }
}

// SAFETY: 1: kmalloc'd memory stays in place; 2: two-argument `retire`, or a head with a callback, neither of which
// can fail; 3: there is one heap.
unsafe impl Reclaimer for Heap {
    type Domain = Global;

    /// At the limit of bytes that wait, frees what is ripe and then waits for grace periods until there is room, unless
    /// [`Builder`](crate::Builder) said not to, or the caller is in a section or a callback.
    fn allocate<T: Send + Sync + 'static>(&self, value: T) -> Result<NonNull<T>, T> {
        if front().is_over_limit() {
            make_room();
        }
        let Ok(memory) = objects().kmalloc(Layout::new::<Headed<T>>()) else {
            return Err(value);
        };
        let headed = memory.cast::<Headed<T>>();
        // SAFETY: fresh memory of this layout.
        unsafe {
            headed.write(Headed {
                head: Head::new(),
                value,
            })
        };
        // SAFETY: the value lies inside.
        Ok(unsafe { memory.add(offset_of!(Headed<T>, value)) }.cast())
    }

    #[inline]
    unsafe fn retire<T: Send + Sync + 'static>(&self, object: NonNull<T>) {
        // SAFETY: the object came from `allocate` (the caller's debt 1).
        let head = unsafe { Headed::around(object) }.cast::<Head>();
        if core::mem::needs_drop::<T>() {
            let callback = Callback::Run(Headed::<T>::drop_and_free);
            // SAFETY: the caller's debts; `T: Send`, so any thread may drop it.
            unsafe { front().retire_head(head, callback, size_of::<Headed<T>>()) };
        } else {
            // SAFETY: the caller's debts; nothing to drop.
            unsafe { front().retire(head, Headed::<T>::HEAD) };
        }
    }

    unsafe fn free<T: Send + Sync + 'static>(&self, object: NonNull<T>) {
        // SAFETY: the object came from `allocate` (the caller's debt 1).
        let headed = unsafe { Headed::around(object) };
        // SAFETY: the caller's debts: given up and unseen.
        unsafe { Headed::<T>::drop_and_free(headed.cast()) };
    }
}
