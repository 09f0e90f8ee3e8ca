//! A first-in first-out list of [`Head`]s.
//!
//! Source: Linux `rcu_cblist`. Why no tail pointer that points at the empty list's own first word,
//! as there: such a list cannot be moved, and is not empty when it is all zero.
//!
//! # State
//! | word | meaning |
//! |---|---|
//! | `first` | the oldest head; null: empty |
//! | `last` | the youngest head; null: empty |
//! | `len` | how many heads are linked |
//!
//! # Invariants
//! - I1. `first` and `last` are both null or both not, and `len` counts the heads between them.
//! - I2. Every linked head is valid, is on this list only, and its `next` is written by the list's holder alone.
//! - I3. The last head's `next` is null, as [`Head::next`] reads it.

use crate::head::Head;
use core::fmt;
use core::ptr::{self, NonNull};

/// A singly linked list of heads, oldest first, that knows its length.
///
/// Owns no memory: a list that is dropped forgets its heads. All-zero bytes are the empty list.
#[doc(alias = "rcu_cblist")]
#[must_use = "the heads of a list that is dropped are never called"]
pub struct CbList {
    first: *mut Head,
    last: *mut Head,
    len: usize,
}

// SAFETY: two null pointers and a zero length: the empty list (I1).
unsafe impl crate::cpu::ZeroInit for CbList {}
// SAFETY: the list's holder is the only one to touch the heads' words (I2), and whoever pushed a
// head allowed that holder to be another thread (debt 3 of `push_back`).
unsafe impl Send for CbList {}

impl CbList {
    /// An empty list.
    pub const fn new() -> Self {
        Self {
            first: ptr::null_mut(),
            last: ptr::null_mut(),
            len: 0,
        }
    }

    /// How many heads are linked.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether no head is linked.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Links `head` at the end.
    ///
    /// # Safety
    /// 1. `head` stays valid until it was popped from this list, or from the list that this one was moved to.
    /// 2. It is on no list, and nobody else writes to it until then.
    /// 3. The list, and the head with it, may be moved to another thread.
    ///
    /// ```
    /// use core::ptr::NonNull;
    /// use rcu_core::{CbList, Head};
    ///
    /// let head = Head::new();
    /// let mut list = CbList::new();
    /// // SAFETY: the head outlives the list, is on no other, and stays on this thread.
    /// unsafe { list.push_back(NonNull::from(&head)) };
    /// assert_eq!(list.pop_front(), Some(NonNull::from(&head)));
    /// assert!(list.is_empty());
    /// ```
    #[inline]
    pub unsafe fn push_back(&mut self, head: NonNull<Head>) {
        // SAFETY: `head` is valid (debt 1).
        unsafe { head.as_ref() }.set_next(ptr::null_mut());
        self.link(head.as_ptr(), head.as_ptr(), 1);
    }

    /// Moves the heads of `other` behind those of this list.
    #[inline]
    #[doc(alias = "rcu_cblist_flush_enqueue")]
    pub fn append(&mut self, other: Self) {
        if !other.is_empty() {
            self.link(other.first, other.last, other.len);
        }
    }

    /// Moves the heads of `other` in front of those of this list.
    #[inline]
    pub fn push_front_list(&mut self, mut other: Self) {
        other.append(self.take());
        *self = other;
    }

    /// Unlinks the oldest head. The list does not touch it again.
    #[inline]
    #[doc(alias = "rcu_cblist_dequeue")]
    pub fn pop_front(&mut self) -> Option<NonNull<Head>> {
        let head = NonNull::new(self.first)?;
        // SAFETY: linked heads are valid (I2).
        let popped = unsafe { head.as_ref() };
        self.first = popped.next();
        popped.set_unlinked();
        self.len -= 1;
        if self.first.is_null() {
            self.last = ptr::null_mut();
        }
        debug_assert_eq!(self.first.is_null(), self.len == 0, "I1");
        Some(head)
    }

    /// Takes all heads out.
    #[inline]
    pub fn take(&mut self) -> Self {
        core::mem::take(self)
    }

    /// Links the chain from `first` to `last`, `len` heads whose last has no next (I3), at the end.
    #[inline]
    fn link(&mut self, first: *mut Head, last: *mut Head, len: usize) {
        match NonNull::new(self.last) {
            None => self.first = first,
            // SAFETY: linked heads are valid (I2).
            Some(tail) => unsafe { tail.as_ref() }.set_next(first),
        }
        self.last = last;
        self.len += len;
    }
}

impl Default for CbList {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for CbList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CbList").field("len", &self.len).finish()
    }
}
