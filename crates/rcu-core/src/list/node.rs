//! What an [`RcuList`](crate::RcuList) is made of.

use crate::boxed::Reclaimer;
use crate::cell::RcuPointer;
use crate::sync::atomic::{AtomicPtr, Ordering};
use core::fmt;
use core::marker::PhantomData;
use core::mem::{ManuallyDrop, offset_of};
use core::ops::Deref;
use core::ptr::{self, NonNull};

/// A value with its links. Moved by its owner only, while it is in no list.
pub(super) struct Node<T> {
    pub(super) next: AtomicPtr<Node<T>>,
    prev: AtomicPtr<Node<T>>,
    pub(super) value: T,
}

impl<T> Node<T> {
    pub(super) fn next(&self) -> *mut Self {
        // ORDERING: Relaxed: written by the writer, who asks.
        self.next.load(Ordering::Relaxed)
    }

    pub(super) fn prev(&self) -> *mut Self {
        // ORDERING: Relaxed: the writer's own.
        self.prev.load(Ordering::Relaxed)
    }

    pub(super) fn set_prev(&self, prev: *mut Self) {
        // ORDERING: Relaxed: the writer's own.
        self.prev.store(prev, Ordering::Relaxed);
    }

    /// Gives a node that no reader can be at its place.
    pub(super) fn set(&self, next: *mut Self, prev: *mut Self) {
        // ORDERING: Relaxed: published with the node.
        self.next.store(next, Ordering::Relaxed);
        self.set_prev(prev);
    }
}

/// An object for an [`RcuList`](crate::RcuList), outside of it: not in one yet, or out of one and in a
/// [`Retired`](crate::Retired). Dropping it retires the object.
pub struct ListNode<T: Send + Sync + 'static, R: Reclaimer> {
    node: NonNull<Node<T>>,
    _reclaimer: PhantomData<(T, R)>,
}

// SAFETY: `T: Send + Sync`, and the reclaimer takes objects from any thread.
unsafe impl<T: Send + Sync + 'static, R: Reclaimer> Send for ListNode<T, R> {}
// SAFETY: only `&T` is given out.
unsafe impl<T: Send + Sync + 'static, R: Reclaimer> Sync for ListNode<T, R> {}

impl<T: Send + Sync + 'static, R: Reclaimer> ListNode<T, R> {
    /// Moves `value` into a node.
    ///
    /// # Panics
    /// If there is no memory; see [`Self::try_new`].
    #[must_use]
    pub fn new(value: T) -> Self {
        match Self::try_new(value) {
            Ok(this) => this,
            Err(_) => panic!(
                "out of memory for a list node of {} bytes",
                size_of::<Node<T>>()
            ),
        }
    }

    /// Moves `value` into a node.
    ///
    /// # Errors
    /// Gives the value back if there is no memory.
    pub fn try_new(value: T) -> Result<Self, T> {
        let node = Node {
            next: AtomicPtr::new(ptr::null_mut()),
            prev: AtomicPtr::new(ptr::null_mut()),
            value,
        };
        match R::default().allocate(node) {
            // SAFETY: allocated just now.
            Ok(node) => Ok(unsafe { Self::from_node(node) }),
            Err(node) => Err(node.value),
        }
    }

    pub(super) fn into_node(self) -> NonNull<Node<T>> {
        ManuallyDrop::new(self).node
    }

    /// # Safety
    /// 1. `node` came from the reclaimer and belongs to the caller, in no list.
    pub(super) unsafe fn from_node(node: NonNull<Node<T>>) -> Self {
        Self {
            node,
            _reclaimer: PhantomData,
        }
    }

    /// The node around a value.
    ///
    /// # Safety
    /// 1. `raw` came from `into_raw`.
    unsafe fn around(raw: NonNull<T>) -> NonNull<Node<T>> {
        // SAFETY: the value lies so far into its node (1), whose provenance the pointer has kept.
        unsafe { raw.cast::<u8>().sub(offset_of!(Node<T>, value)) }.cast()
    }
}

// SAFETY: 1: from the node to its value and back; 2: `Reclaimer::retire`; 3: only `&T` is given out.
unsafe impl<T: Send + Sync + 'static, R: Reclaimer> RcuPointer for ListNode<T, R> {
    type Target = T;
    type Domain = R::Domain;

    fn into_raw(self) -> NonNull<T> {
        let node = self.into_node().cast::<u8>();
        // SAFETY: the value lies inside the node.
        unsafe { node.add(offset_of!(Node<T>, value)) }.cast()
    }

    unsafe fn from_raw(raw: NonNull<T>) -> Self {
        // SAFETY: the caller's debt.
        let node = unsafe { Self::around(raw) };
        // SAFETY: taken back once.
        unsafe { Self::from_node(node) }
    }

    unsafe fn drop_now(raw: NonNull<T>) {
        // SAFETY: the caller's debt.
        let node = unsafe { Self::around(raw) };
        // SAFETY: the node came from `allocate`, is given up, and nobody looks at it.
        unsafe { R::default().free(node) };
    }
}

impl<T: Send + Sync + 'static, R: Reclaimer> Deref for ListNode<T, R> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: valid while this owns it.
        &unsafe { self.node.as_ref() }.value
    }
}

impl<T: Send + Sync + 'static, R: Reclaimer> Drop for ListNode<T, R> {
    fn drop(&mut self) {
        // SAFETY: from `allocate`, given up here, and in no list, so that no new reader finds it.
        unsafe { R::default().retire(self.node) };
    }
}

impl<T: Send + Sync + fmt::Debug + 'static, R: Reclaimer> fmt::Debug for ListNode<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ListNode").field(&**self).finish()
    }
}

/// Retires `first` and what is behind it.
///
/// # Safety
/// 1. The nodes came from the reclaimer, belong to the caller, and no new reader can find them.
pub(super) unsafe fn retire_chain<T: Send + Sync + 'static, R: Reclaimer>(first: *mut Node<T>) {
    let mut at = first;
    while let Some(node) = NonNull::new(at) {
        // SAFETY: not retired yet (1).
        at = unsafe { node.as_ref() }.next();
        // SAFETY: the caller's (1).
        drop(unsafe { ListNode::<T, R>::from_node(node) });
    }
}

/// What a writer removed, linked by `prev`, which readers do not follow.
pub(super) struct Removed<T: Send + Sync + 'static, R: Reclaimer> {
    youngest: *mut Node<T>,
    _reclaimer: PhantomData<(T, R)>,
}

impl<T: Send + Sync + 'static, R: Reclaimer> Removed<T, R> {
    pub(super) const fn new() -> Self {
        Self {
            youngest: ptr::null_mut(),
            _reclaimer: PhantomData,
        }
    }

    /// Takes over a node that was unlinked.
    pub(super) fn push(&mut self, node: NonNull<Node<T>>) {
        // SAFETY: unlinked, and not retired before this drops.
        unsafe { node.as_ref() }.set_prev(self.youngest);
        self.youngest = node.as_ptr();
    }
}

impl<T: Send + Sync + 'static, R: Reclaimer> Drop for Removed<T, R> {
    fn drop(&mut self) {
        while let Some(node) = NonNull::new(self.youngest) {
            // SAFETY: not retired yet.
            self.youngest = unsafe { node.as_ref() }.prev();
            // SAFETY: unlinked by the writer, for whom this keeps it.
            drop(unsafe { ListNode::<T, R>::from_node(node) });
        }
    }
}
