//! RCU-protected boxes in memory of any allocator of `allocator-api2`.
//!
//! Retiring can neither fail nor allocate, so what is needed to free the object lies in it: a head, and the allocator. An
//! allocator without a size costs nothing there; a reference costs a word. A box that already exists, made by
//! `allocator-api2` itself, has no such place: see [`retire_box_in`](crate::retire_box_in) for what can be done with these.

use crate::glue::each_contained;
use crate::stack::{Global, StackDomain};
use allocator_api2::alloc::Allocator;
use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::mem::{ManuallyDrop, offset_of};
use core::ops::Deref;
use core::ptr::NonNull;
use rcu_core::{Callback, Head, RcuPointer, Section};

/// A box in memory of `A`, which readers of `D` may look into, and whose object therefore outlives it by a grace period.
///
/// Like [`RcuBox`](crate::RcuBox), it gives `&T` only, and dropping it retires the object to the stack of `D`.
///
/// ```
/// use allocator_api2::alloc::Global;
/// use kvfree::{AllocBox, read_lock};
/// use rcu_core::RcuCell;
///
/// let cell: RcuCell<AllocBox<String, Global>> = AllocBox::new_in(String::from("old"), Global).into();
/// let guard = read_lock();
/// let seen = cell.load(&guard).unwrap();
/// cell.store(Some(AllocBox::new_in(String::from("new"), Global)));
/// assert_eq!(seen, "old");
/// ```
///
/// The allocator goes with the value to whatever thread frees them:
///
/// ```compile_fail,E0277
/// use allocator_api2::alloc::{AllocError, Allocator, Layout};
/// use core::ptr::NonNull;
/// struct Mine(std::rc::Rc<()>);
/// // SAFETY: it gives nothing.
/// unsafe impl Allocator for Mine {
///     fn allocate(&self, _: Layout) -> Result<NonNull<[u8]>, AllocError> { Err(AllocError) }
///     unsafe fn deallocate(&self, _: NonNull<u8>, _: Layout) {}
/// }
/// type Boxed = kvfree::AllocBox<u8, Mine>;
/// let boxed: Boxed = Boxed::new_in(1, Mine(std::rc::Rc::new(())));
/// ```
pub struct AllocBox<T, A, D = Global>
where
    T: 'static,
    A: Allocator + Send + Sync + 'static,
    D: StackDomain,
{
    value: NonNull<T>,
    _owns: PhantomData<(T, A, D)>,
}

// SAFETY: what is in it is `Send + Sync`, and the stack takes objects from any thread. (Made of such `T`s only; see `RcuBox`.)
unsafe impl<T, A, D> Send for AllocBox<T, A, D>
where
    T: Send + Sync + 'static,
    A: Allocator + Send + Sync + 'static,
    D: StackDomain,
{
}
// SAFETY: only `&T` is given out.
unsafe impl<T, A, D> Sync for AllocBox<T, A, D>
where
    T: Send + Sync + 'static,
    A: Allocator + Send + Sync + 'static,
    D: StackDomain,
{
}

#[repr(C)]
struct Stored<T, A> {
    head: Head,
    allocator: A,
    value: T,
}

impl<T, A: Allocator> Stored<T, A> {
    const LAYOUT: Layout = Layout::new::<Self>();

    /// # Safety
    /// 1. `value` is that of a `Stored`, with the provenance of all of it.
    unsafe fn around(value: NonNull<T>) -> NonNull<Self> {
        // SAFETY: the value lies at this offset (1).
        unsafe { value.cast::<u8>().sub(offset_of!(Self, value)) }.cast()
    }

    /// Drops the value and frees the memory, also if the destructor panics.
    ///
    /// # Safety
    /// 1. `object` is a `Stored<T, A>` in memory of its own allocator, given up, and nobody sees it.
    unsafe fn free(object: NonNull<u8>) {
        struct Free<T, A: Allocator>(NonNull<u8>, A, PhantomData<T>);
        impl<T, A: Allocator> Drop for Free<T, A> {
            fn drop(&mut self) {
                // SAFETY: allocated by this allocator with this layout; what is in it is dropped or moved out.
                unsafe { self.1.deallocate(self.0, Stored::<T, A>::LAYOUT) };
            }
        }
        // SAFETY: the allocator lies inside (1).
        let allocator = unsafe { object.byte_add(offset_of!(Self, allocator)) };
        // SAFETY: moved out once (1).
        let allocator = unsafe { allocator.cast::<A>().read() };
        let _free = Free::<T, A>(object, allocator, PhantomData);
        // SAFETY: the value lies inside (1).
        let value = unsafe { object.byte_add(offset_of!(Self, value)) };
        // SAFETY: dropped once (1).
        unsafe { value.cast::<T>().drop_in_place() };
    }

    /// # Safety
    /// 1. As for [`Self::free`], of each.
    unsafe fn free_many(objects: &mut [NonNull<u8>]) -> usize {
        // SAFETY: 1.
        each_contained(objects, |object| unsafe { Self::free(object) })
    }

    /// # Safety
    /// 1. As for [`Self::free`], whose head this is.
    unsafe fn free_by_head(head: NonNull<Head>) {
        // SAFETY: the head is the first field (1).
        unsafe { Self::free(head.cast()) };
    }
}

impl<T, A, D> AllocBox<T, A, D>
where
    T: Send + Sync + 'static,
    A: Allocator + Send + Sync + 'static,
    D: StackDomain,
{
    /// Moves `value` into memory of `allocator`, and that with it. Waits at the stack's limit, as [`RcuBox`](crate::RcuBox) does.
    ///
    /// # Panics
    /// If there is no memory; see [`Self::try_new_in`].
    #[must_use]
    pub fn new_in(value: T, allocator: A) -> Self {
        match Self::try_new_in(value, allocator) {
            Ok(this) => this,
            Err(_) => panic!("out of memory for a box of {} bytes", size_of::<T>()),
        }
    }

    /// Moves `value` into memory of `allocator`, and that with it.
    ///
    /// # Errors
    /// Gives both back if there is no memory.
    pub fn try_new_in(value: T, allocator: A) -> Result<Self, (T, A)> {
        let stack = D::stack();
        stack.before_box(true);
        let Ok(memory) = allocator.allocate(Stored::<T, A>::LAYOUT) else {
            return Err((value, allocator));
        };
        let stored = memory.cast::<Stored<T, A>>();
        // SAFETY: fresh memory of this layout.
        unsafe {
            stored.write(Stored {
                head: Head::new(),
                allocator,
                value,
            });
        };
        // SAFETY: the value lies inside.
        let value = unsafe { stored.byte_add(offset_of!(Stored<T, A>, value)) };
        Ok(Self {
            value: value.cast(),
            _owns: PhantomData,
        })
    }
}

impl<T, A, D> AllocBox<T, A, D>
where
    T: 'static,
    A: Allocator + Send + Sync + 'static,
    D: StackDomain,
{
    /// The value, for as long as the guard's section lasts, even if the box is dropped meanwhile.
    #[must_use]
    pub fn rcu_ref<'g>(&self, guard: &'g impl Section<D>) -> &'g T {
        let _ = guard;
        // SAFETY: valid while the box is, and for a grace period afterwards, which cannot end before the section does.
        unsafe { self.value.as_ref() }
    }
}

// SAFETY: 1: the pointer is the box's one field; 2: it is dropped by retiring, which cannot fail; 3: only `&T` is given out.
unsafe impl<T, A, D> RcuPointer for AllocBox<T, A, D>
where
    T: 'static,
    A: Allocator + Send + Sync + 'static,
    D: StackDomain,
{
    type Target = T;
    type Domain = D;

    fn into_raw(self) -> NonNull<T> {
        ManuallyDrop::new(self).value
    }

    unsafe fn from_raw(raw: NonNull<T>) -> Self {
        Self {
            value: raw,
            _owns: PhantomData,
        }
    }

    unsafe fn drop_now(raw: NonNull<T>) {
        // SAFETY: a box's value, given up (1).
        let stored = unsafe { Stored::<T, A>::around(raw) };
        // SAFETY: as above, and nobody looks at it.
        unsafe { Stored::<T, A>::free(stored.cast()) };
    }
}

impl<T, A, D> Deref for AllocBox<T, A, D>
where
    T: 'static,
    A: Allocator + Send + Sync + 'static,
    D: StackDomain,
{
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: valid while the box is.
        unsafe { self.value.as_ref() }
    }
}

impl<T, A, D> Drop for AllocBox<T, A, D>
where
    T: 'static,
    A: Allocator + Send + Sync + 'static,
    D: StackDomain,
{
    fn drop(&mut self) {
        // SAFETY: this box's value.
        let stored = unsafe { Stored::<T, A>::around(self.value) }.cast::<u8>();
        let (head, front) = (stored.cast::<Head>(), D::stack().front());
        let one = Callback::Run(Stored::<T, A>::free_by_head);
        let (many, bytes) = (Stored::<T, A>::free_many, size_of::<Stored<T, A>>());
        // SAFETY: the head is the first field, fresh; the box is given up, and whoever published it has unlinked it;
        // value and allocator are `Send`, as `try_new_in` asked, so any thread may drop them.
        unsafe { front.retire_head_typed(head, one, stored, many, bytes) };
    }
}

impl<T, A, D> fmt::Debug for AllocBox<T, A, D>
where
    T: fmt::Debug + 'static,
    A: Allocator + Send + Sync + 'static,
    D: StackDomain,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
