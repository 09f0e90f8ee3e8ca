//! The default stack, as functions.

use super::{Front, Objs, Pages, Stack, StackStats, TypedCache};
use crate::unbatched::Unbatched;
use core::alloc::Layout;
use core::ptr::NonNull;
use rcu_core::{Guard, HasHead};
use slab::CreateError;

crate::stack! {
    /// The domain of the default stack: its readers are all readers of this process's [`read_lock`].
    pub struct Global;
}

#[inline(always)]
fn stack() -> &'static Stack<Global> {
    Global::stack()
}

/// The default stack's page allocator.
///
/// # Panics
/// If the process may not reserve any address space.
pub fn pages() -> Pages {
    stack().pages()
}

/// The default stack's general allocator: `kmalloc` and `kfree`, by size.
///
/// # Panics
/// As for [`pages`].
#[inline]
pub fn objects() -> &'static Objs {
    stack().objects()
}

/// The default stack's front end.
///
/// # Panics
/// As for [`pages`].
#[inline]
pub fn front() -> &'static Front {
    stack().front()
}

/// The unbatched twin over the same layers: one callback an object.
#[must_use]
pub fn unbatched() -> Unbatched<Global, &'static Objs> {
    stack().unbatched()
}

/// A cache for objects of one type in the default stack, called `name` in statistics and messages.
///
/// # Errors
/// If there is no memory for the cache's own structures.
#[doc(alias = "kmem_cache_create")]
pub fn cache<T>(name: &'static str) -> Result<TypedCache<T>, CreateError> {
    stack().cache(name)
}

/// Retires an object of a typed cache. May sleep: without memory for a sheaf it waits for a grace period and frees the
/// object itself. Not inside a section.
///
/// # Safety
/// 1. `object` came from `cache`, and is given up. `T` needs no dropping (checked when compiled).
/// 2. No new reader can find it.
///
/// ```
/// let routes = kvfree::cache::<[u64; 4]>("route").unwrap();
/// let route = routes.alloc([10, 0, 0, 1]).unwrap();
/// // … published, used, and unlinked …
/// // SAFETY: it came from this cache, no new reader can find it, and this is no section.
/// unsafe { kvfree::retire_in_mightsleep(&routes, route) };
/// kvfree::barrier();
/// assert_eq!(routes.raw().stats().live, 0);
/// ```
#[inline]
#[doc(alias = "kfree_rcu")]
pub unsafe fn retire_in_mightsleep<T>(cache: &TypedCache<T>, object: NonNull<T>) {
    // SAFETY: the caller's debts.
    unsafe { stack().retire_in_mightsleep(cache, object) };
}

/// Enters a read-side critical section of the default stack.
///
/// ```
/// let guard = kvfree::read_lock();
/// drop(guard);
/// ```
#[inline(always)]
#[doc(alias = "rcu_read_lock")]
pub fn read_lock() -> Guard<Global> {
    rcu_core::read_lock::<Global>()
}

/// Blocks until every section that has begun before has ended.
///
/// # Panics
/// Inside a section, where it would wait for itself.
#[doc(alias = "synchronize_rcu")]
pub fn synchronize() {
    stack().synchronize();
}

/// Blocks until everything retired before, by any thread, is free, and every callback queued before has run.
/// What was retired to a typed [`cache`], too.
///
/// # Panics
/// Inside a section, a callback, or a destructor of what was retired, where it would wait for itself.
#[doc(alias = "kvfree_rcu_barrier")]
pub fn barrier() {
    stack().barrier();
}

/// Retires an object with a head inside (two arguments: the object and, by its type, where the head lies).
/// Never blocks, never waits for memory; from any context but before the stack's first use in a signal handler.
///
/// ```
/// use core::{alloc::Layout, ptr::NonNull};
/// use rcu_core::{Head, has_head};
/// struct Route { prefix: u64, head: Head }
/// has_head!(Route, head);
///
/// let route = kvfree::objects().kmalloc(Layout::new::<Route>()).unwrap().cast::<Route>();
/// // SAFETY: fresh memory of the right layout.
/// unsafe { route.write(Route { prefix: 10, head: Head::new() }) };
/// // … published, used, and unlinked …
/// // SAFETY: it came from `objects()`, and no new reader can find it.
/// unsafe { kvfree::retire(route) };
/// kvfree::barrier();
/// ```
///
/// # Safety
/// 1. `object` came from [`objects`], with the provenance of the whole object, and is given up.
/// 2. No new reader can find it. Its destructor is not run.
#[inline]
#[doc(alias = "kfree_rcu")]
pub unsafe fn retire<T: HasHead>(object: NonNull<T>) {
    // SAFETY: the caller's debts.
    unsafe { stack().retire(object) };
}

/// Retires an object without a head. May sleep; not inside a section.
///
/// # Safety
/// As for [`retire`].
///
/// ```
/// use core::alloc::Layout;
/// let object = kvfree::objects().kmalloc(Layout::new::<[u64; 4]>()).unwrap();
/// // … published, used, and unlinked …
/// // SAFETY: it came from `objects()`, no new reader can find it, and this is no section.
/// unsafe { kvfree::retire_mightsleep(object) };
/// kvfree::barrier();
/// ```
#[inline]
#[doc(alias = "kvfree_rcu_mightsleep")]
pub unsafe fn retire_mightsleep(object: NonNull<u8>) {
    // SAFETY: the caller's debts.
    unsafe { stack().retire_mightsleep(object) };
}

/// As [`retire_mightsleep`], for who knows the layout, as Rust code does: no page is looked at to find out where the object belongs, which
/// takes longer than all the rest.
///
/// ```
/// use core::alloc::Layout;
/// let layout = Layout::new::<[u64; 8]>();
/// let object = kvfree::objects().kmalloc(layout).unwrap();
/// // … published, used, and unlinked …
/// // SAFETY: it came from `objects()` for this layout, is given up, and no new reader can find it.
/// unsafe { kvfree::retire_sized_mightsleep(object, layout) };
/// kvfree::barrier();
/// ```
///
/// # Aborts
/// With debug assertions, and with slab's feature `checks`, if the object is not of the layout's size class.
///
/// # Safety
/// 1. As for [`retire`].
/// 2. `object` was allocated for `layout`, or for one of the same alignment and of the same size class, and came from no
///    [`krealloc`](slab::Kmalloc::krealloc).
#[inline]
#[doc(alias = "kvfree_rcu_mightsleep")]
pub unsafe fn retire_sized_mightsleep(object: NonNull<u8>, layout: Layout) {
    // SAFETY: the caller's debts.
    unsafe { stack().retire_sized_mightsleep(object, layout) };
}

/// Retires a `Box` of the global allocator, given as the pointer that [`Box::into_raw`] made. **May sleep**; not inside a section.
///
/// After a grace period the box is dropped and freed, batched with others of its type, on the monitor's thread, in a barrier, or in a
/// later call by the same thread. A box has no head to wait by, as [`GlobalBox`](crate::GlobalBox) has, which never
/// waits: without memory for a block, while another thread visits this one's slot, and at the limit of what may wait, this call waits.
///
/// Takes a pointer and not a box, because a box promises that nobody else looks (hole 10 of the peers). For an owner that
/// needs no `unsafe` there is [`GlobalBox`](crate::GlobalBox).
///
/// ```
/// use std::ptr::NonNull;
/// let object = NonNull::from(Box::leak(Box::new(vec![1, 2, 3])));
/// // … published, used, and unlinked …
/// // SAFETY: a box's, given up, and no new reader can find it.
/// unsafe { kvfree::retire_box(object) };
/// kvfree::barrier();
/// ```
///
/// # Safety
/// 1. `object` came from [`Box::into_raw`], and is given up.
/// 2. No new reader can find it.
#[inline]
pub unsafe fn retire_box<T: Send + 'static>(object: NonNull<T>) {
    // SAFETY: the caller's debts.
    unsafe { stack().retire_box(object) };
}

/// Retires a `Box` of `allocator-api2` whose allocator has no size. **May sleep**, as [`retire_box`] does; not inside a section. See
/// [`Stack::retire_box_in`].
///
/// # Safety
/// As for [`Stack::retire_box_in`].
///
/// The example of [`retire_box`] holds for it.
#[cfg(feature = "allocator-api2")]
pub unsafe fn retire_box_in<T: Send + 'static, A>(object: NonNull<T>)
where
    A: allocator_api2::alloc::Allocator + Default + 'static,
{
    // SAFETY: the caller's debts.
    unsafe { stack().retire_box_in::<T, A>(object) };
}

/// Counts of the default stack. Visits every slot in use.
#[must_use]
pub fn stats() -> StackStats {
    stack().stats()
}
