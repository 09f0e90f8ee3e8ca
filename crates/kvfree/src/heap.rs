//! RCU-protected boxes in a stack: no `unsafe` for who publishes, reads, replaces and retires.
//!
//! Each box has a head in front of its value, so that retiring one can never fail. Values without drop glue go to the sheaves
//! of the general allocator, or in blocks; values with drop glue, and those in memory of another allocator, wait in blocks by
//! their type, one word each; the head is for when no block is to be had.

use crate::boxes::dealloc_many;
use crate::glue::each_contained;
use crate::stack::{Global, StackDomain};
use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::mem::{needs_drop, offset_of};
use core::ptr::NonNull;
use rcu_core::{Callback, Head, HeadOffset, Reclaimer};

/// Where boxes live: by default in the default stack's general allocator; with `M` = [`System`] in the program's global one.
/// They wait in the stack of `D` either way.
pub struct Heap<D = Global, M = Slab>(PhantomData<fn() -> (D, M)>);

impl<D, M> Clone for Heap<D, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D, M> Copy for Heap<D, M> {}

impl<D, M> Default for Heap<D, M> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<D, M> fmt::Debug for Heap<D, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Heap")
    }
}

/// A box in the default stack. See [`rcu_core::RcuBox`].
///
/// Its value is dropped by any thread, the monitor's, one in a barrier, or one that makes such a box ([`Config::helps`](crate::Config::helps)):
/// so it must be `Send`. And it must be whole, so that a head fits in front of it:
///
/// ```compile_fail,E0277
/// kvfree::RcuBox::new(std::rc::Rc::new(1));
/// ```
///
/// ```compile_fail,E0277
/// kvfree::RcuBox::new(std::cell::Cell::new(1));
/// ```
///
/// ```compile_fail,E0277
/// fn of_unsized(_: kvfree::RcuBox<[u8]>) {}
/// ```
///
/// ```compile_fail,E0277
/// kvfree::RcuBox::new(kvfree::read_lock());
/// ```
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

/// A box in the stack of `D`: see [`stack!`](crate::stack!).
pub type RcuBoxIn<T, D> = rcu_core::RcuBox<T, Heap<D>>;

/// A place for a box in the stack of `D`.
pub type RcuCellIn<T, D> = rcu_core::RcuCell<RcuBoxIn<T, D>>;

/// Memory of the global allocator for boxes that wait in the stack of `D`.
pub type GlobalHeap<D = Global> = Heap<D, System>;

/// A box in memory of the global allocator, which waits in the default stack.
///
/// ```
/// use kvfree::{GlobalBox, read_lock};
/// use rcu_core::RcuCell;
///
/// static NAMES: RcuCell<GlobalBox<Vec<&str>>> = RcuCell::empty();
/// NAMES.store(Some(GlobalBox::new(vec!["first"])));
/// let guard = read_lock();
/// assert_eq!(NAMES.load(&guard).unwrap()[0], "first");
/// NAMES.store(None);
/// ```
pub type GlobalBox<T> = rcu_core::RcuBox<T, GlobalHeap>;

/// Where a [`Heap`]'s memory comes from. Sealed.
///
/// # Safety
/// An implementer keeps the guarantees below.
///
/// # Guarantees
/// 1. `alloc` gives memory of the layout, which stays until `free_many` gets it; `free_many` does not unwind.
pub unsafe trait Memory<D>: sealed::Sealed + 'static {
    /// Whether objects without drop glue are the stack's own, to go wherever these go.
    #[doc(hidden)]
    const IS_OWN: bool;

    #[doc(hidden)]
    fn alloc(layout: Layout) -> Option<NonNull<u8>>;

    /// # Safety
    /// 1. Each object came from `alloc` with this layout, once, and nobody sees it.
    #[doc(hidden)]
    unsafe fn free_many(objects: &mut [NonNull<u8>], layout: Layout);
}

mod sealed {
    pub trait Sealed {}
}

/// Memory of the stack's own general allocator.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slab;

/// Memory of the program's global allocator.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl sealed::Sealed for Slab {}
impl sealed::Sealed for System {}

// SAFETY: 1: kmalloc'd memory stays in place until it is freed.
unsafe impl<D: StackDomain> Memory<D> for Slab {
    const IS_OWN: bool = true;

    #[inline]
    fn alloc(layout: Layout) -> Option<NonNull<u8>> {
        D::stack().objects().kmalloc(layout).ok()
    }

    unsafe fn free_many(objects: &mut [NonNull<u8>], _layout: Layout) {
        // SAFETY: the caller's debt 1.
        unsafe { D::stack().objects().free_bulk(objects) };
    }
}

// SAFETY: 1: as `GlobalAlloc` promises.
unsafe impl<D: StackDomain> Memory<D> for System {
    const IS_OWN: bool = false;

    #[inline]
    fn alloc(layout: Layout) -> Option<NonNull<u8>> {
        // SAFETY: with a head in it, the layout has a size.
        NonNull::new(unsafe { std::alloc::alloc(layout) })
    }

    unsafe fn free_many(objects: &mut [NonNull<u8>], layout: Layout) {
        // SAFETY: the caller's debt 1.
        unsafe { dealloc_many(objects, layout) };
    }
}

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

    /// Drops the values and frees the memory; says how many destructors panicked.
    ///
    /// # Safety
    /// 1. Each is a `Headed<T>` in memory of `M`, given up, and nobody sees it.
    unsafe fn drop_and_free_many<D: StackDomain, M: Memory<D>>(
        objects: &mut [NonNull<u8>],
    ) -> usize {
        let panicked = if needs_drop::<T>() {
            each_contained(objects, |object| {
                // SAFETY: the value lies inside the object (1).
                let value = unsafe { object.add(offset_of!(Self, value)) }.cast::<T>();
                // SAFETY: dropped once (1).
                unsafe { value.drop_in_place() };
            })
        } else {
            0
        };
        // SAFETY: of this layout, and the values are dropped (1).
        unsafe { M::free_many(objects, Layout::new::<Self>()) };
        panicked
    }

    /// Drops the value and frees the memory, also if the destructor panics.
    ///
    /// # Safety
    /// 1. `head` is that of a `Headed<T>` in memory of `M`, given up, and nobody sees it.
    unsafe fn drop_and_free<D: StackDomain, M: Memory<D>>(head: NonNull<Head>) {
        struct Free<D: StackDomain, M: Memory<D>>(NonNull<u8>, Layout, PhantomData<(D, M)>);
        impl<D: StackDomain, M: Memory<D>> Drop for Free<D, M> {
            fn drop(&mut self) {
                // SAFETY: the memory came from `M` with this layout, and its value is dropped.
                unsafe { M::free_many(&mut [self.0], self.1) };
            }
        }
        let object = head.cast::<u8>();
        let _free = Free::<D, M>(object, Layout::new::<Self>(), PhantomData);
        // SAFETY: the value lies inside the object, whose first field the head is (1).
        let value = unsafe { object.add(offset_of!(Self, value)) }.cast::<T>();
        // SAFETY: dropped once (1).
        unsafe { value.drop_in_place() };
    }
}

// SAFETY: 1: memory of `M` stays in place; 2: two-argument `retire`, or a head with a callback, neither of which can
// fail, in the stack of `D`; 3: there is one stack and one global allocator.
unsafe impl<D: StackDomain, M: Memory<D>> Reclaimer for Heap<D, M> {
    type Domain = D;

    /// At the limit of bytes that wait, frees what is ripe and then waits for grace periods until there is room, unless
    /// [`Builder`](crate::Builder) said not to, or the caller is in a section, a callback, or a destructor of what was retired.
    /// A section that has left its thread ([`SendGuard`](rcu_core::SendGuard)) is not noticed: who waits here while it alone can end one, waits
    /// for itself.
    ///
    /// With a type that has a destructor, or in memory of another allocator, drops some of what the thread has retired before of such types
    /// and is ripe, unless [`Config::helps`](crate::Config::helps) says not to, or the caller is in one of those places.
    fn allocate<T: Send + Sync + 'static>(&self, value: T) -> Result<NonNull<T>, T> {
        let stack = D::stack();
        stack.before_box(needs_drop::<T>() || !M::IS_OWN);
        let Some(memory) = M::alloc(Layout::new::<Headed<T>>()) else {
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
    unsafe fn retire<T: 'static>(&self, object: NonNull<T>) {
        // SAFETY: the object came from `allocate` (the caller's debt 1).
        let headed = unsafe { Headed::around(object) };
        let head = headed.cast::<Head>();
        if M::IS_OWN && !needs_drop::<T>() {
            let layout = Layout::new::<Headed<T>>();
            // SAFETY: the caller's debts; allocated for this layout, and there is nothing to drop.
            unsafe { D::stack().retire_sized(head, Headed::<T>::HEAD, layout) };
        } else {
            let front = D::stack().front();
            let one = Callback::Run(Headed::<T>::drop_and_free::<D, M>);
            let many = Headed::<T>::drop_and_free_many::<D, M>;
            let bytes = size_of::<Headed<T>>();
            // SAFETY: the caller's debts; `T: Send`, as `allocate` asked, so any thread may drop it.
            unsafe { front.retire_head_typed(head, one, headed.cast(), many, bytes) };
        }
    }

    unsafe fn free<T: 'static>(&self, object: NonNull<T>) {
        // SAFETY: the object came from `allocate` (the caller's debt 1).
        let headed = unsafe { Headed::around(object) };
        // SAFETY: the caller's debts: given up and unseen.
        unsafe { Headed::<T>::drop_and_free::<D, M>(headed.cast()) };
    }
}
