//! A doubly linked list that readers walk while a writer changes it.
//!
//! Source: Linux `include/linux/rculist.h` (facts only; R22), made safe by types: nodes belong to the list, a section shows
//! that one may look, a lock that one may write. Why not circular around the head, as there: such a list cannot be moved,
//! and a reader that is carried over to another list never meets its own head again. Why null at the end and no marker:
//! here nothing is used again before its readers are gone (see [`NullsHead`](crate::NullsHead) for the other kind).
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `first`, a node's `next` | the next node; null: none | the writer (who holds `ends`) |
//! | a node's `prev` | the one before; null: none. Of a removed node: the node removed before it | the writer |
//! | `ends` | the last node, and how many | the writer |
//!
//! # Life of a node
//! Made by [`ListNode::new`], outside of the lock. Linked: its own words first, then the one word that readers come by.
//! Removed: that word leads past it. Then it is on the writer's list of removed nodes, and retired to its domain when the
//! writer has let go of the lock; or in a [`Retired`], from which it can be taken back after a grace period.
//!
//! # Invariants
//! - I1. `first` and the `next` words make one chain of `len` nodes that ends in null with `ends.last`; `prev` is its mirror.
//! - I2. A node's `next` is not changed while it is out of its chain and a reader may stand on it. So who stands on a
//!   removed node goes on into the chain as it was then, and from removed node to removed node to the chain as it is now:
//!   what is in the list all the while it is walked is seen, once.
//! - I3. A node is freed, linked again, or spliced into another list only a grace period after it left its chain. A removed
//!   node leads to nodes that left the chain later than itself, if at all: who may stand on the one may stand on the other.
//! - I4. Nothing foreign is called, allocated or dropped by this module with the lock held, but for the closure of `retain`
//!   and what the caller itself does with a writer in hand.
//!
//! # Orderings
//! - P1. Release at every store to `first` or `next` of a linked node / Acquire at every reader's load of them: forbids
//!   seeing the pointer before the node. A store that leads past a removed node publishes what comes behind it, too.
//!
//! # Progress and contexts
//! Readers are wait-free per step. Writers exclude each other by a spin lock, which is not for interrupts. What waits for
//! readers is bounded by what was removed.

mod cursor;
mod detached;
mod node;

pub use cursor::{Cursor, Drain};
pub use detached::Detached;
pub use node::ListNode;

use crate::boxed::Reclaimer;
use crate::cpu::{SpinGuard, SpinMutex};
use crate::retired::Retired;
use crate::section::Section;
use crate::sync::atomic::{AtomicPtr, Ordering};
use core::fmt;
use core::iter::FusedIterator;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use node::{Node, Removed};

/// A list whose readers take no lock: the objects are those of the reclaimer `R`, in its domain.
///
/// ```
/// use rcu_core::{ListNode, RcuList, Reclaimer, read_lock};
/// fn run<R: Reclaimer>() {
///     let list = RcuList::<u32, R>::new();
///     list.push_back(1);
///     list.push_back(3);
///     let mut writer = list.write();
///     let mut cursor = writer.cursor_front();
///     cursor.insert_after(ListNode::new(2));
///     drop(writer);
///
///     let guard = read_lock::<R::Domain>();
///     let mut seen = list.iter(&guard);
///     assert_eq!(seen.next(), Some(&1));
///     list.write().retain(|n| *n != 1); // the reader stands on it
///     assert!(seen.eq(&[2, 3]));
/// }
/// ```
///
/// A reference does not outlive the section it was found in:
/// ```compile_fail
/// use rcu_core::{RcuList, Reclaimer, read_lock};
/// fn leak<R: Reclaimer>(list: &RcuList<u32, R>) -> Option<&u32> {
///     let guard = read_lock::<R::Domain>();
///     list.iter(&guard).next()
/// }
/// ```
/// nor is a section of another domain one:
/// ```compile_fail
/// use rcu_core::{Domain, Guard, RcuList, Reclaimer};
/// fn mix<R: Reclaimer, Other: Domain>(list: &RcuList<u32, R>, guard: &Guard<Other>) {
///     list.iter(guard);
/// }
/// ```
/// Dropping the list retires its nodes.
#[doc(alias = "list_head")]
#[doc(alias = "rculist")]
pub struct RcuList<T: Send + Sync + 'static, R: Reclaimer> {
    first: AtomicPtr<Node<T>>,
    ends: SpinMutex<Ends<T>>,
    _owns: PhantomData<(T, R)>,
}

struct Ends<T> {
    last: *mut Node<T>,
    len: usize,
}

// SAFETY: a pointer to a node of the list, which any thread may follow (`T: Send + Sync`).
unsafe impl<T: Send + Sync> Send for Ends<T> {}

impl<T: Send + Sync + 'static, R: Reclaimer> RcuList<T, R> {
    crate::const_fn! {
        /// An empty list.
        #[doc(alias = "INIT_LIST_HEAD_RCU")]
        #[must_use]
        pub const fn new() -> Self {
            Self {
                first: AtomicPtr::new(ptr::null_mut()),
                ends: SpinMutex::new(Ends { last: ptr::null_mut(), len: 0 }),
                _owns: PhantomData,
            }
        }
    }

    /// The objects, in order, as they are at each step, for as long as the section lasts: an object that is in the list
    /// during the whole iteration is seen once; one that comes or goes meanwhile is seen or not.
    #[doc(alias = "list_for_each_entry_rcu")]
    #[inline]
    pub fn iter<'g>(&'g self, section: &'g impl Section<R::Domain>) -> Iter<'g, T> {
        let _ = section;
        Iter {
            at: &raw const self.first,
            _section: PhantomData,
        }
    }

    /// The first object.
    #[doc(alias = "list_first_or_null_rcu")]
    #[must_use]
    pub fn front<'g>(&'g self, section: &'g impl Section<R::Domain>) -> Option<&'g T> {
        self.iter(section).next()
    }

    /// Whether the list is empty at this moment. Needs no section, since nothing is looked at.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        // ORDERING: Relaxed: the value only.
        self.first.load(Ordering::Relaxed).is_null()
    }

    /// Becomes the list's writer: spins until there is no other. Not from an interrupt, and not twice by one thread.
    pub fn write(&self) -> Writer<'_, T, R> {
        Writer::new(self, self.ends.lock())
    }

    /// Becomes the list's writer if there is none now.
    pub fn try_write(&self) -> Option<Writer<'_, T, R>> {
        Some(Writer::new(self, self.ends.try_lock()?))
    }

    /// Puts a new object in front. See [`Writer::push_front`] for one that is made beforehand.
    ///
    /// # Panics
    /// If there is no memory.
    #[doc(alias = "list_add_rcu")]
    pub fn push_front(&self, value: T) {
        let node = ListNode::new(value);
        self.write().push_front(node);
    }

    /// Puts a new object at the end.
    ///
    /// # Panics
    /// If there is no memory.
    #[doc(alias = "list_add_tail_rcu")]
    pub fn push_back(&self, value: T) {
        let node = ListNode::new(value);
        self.write().push_back(node);
    }

    /// Moves everything from `other` in front of what is here, after a grace period, in which it is in neither list; returns
    /// how many there were. Blocks; not inside a section, nor with a writer of either list in hand.
    ///
    /// # Panics
    /// As the domain's `wait` inside a section, where it checks that; everything is in `other` again then.
    #[doc(alias = "list_splice_init_rcu")]
    pub fn prepend(&self, other: &Self) -> usize {
        let moved = detached::wait_or_restore(other);
        let count = moved.len();
        let rest = self.write().splice_front(moved);
        debug_assert!(rest.is_ok(), "a cookie that was done stays so");
        count
    }

    /// As [`Self::prepend`], behind what is here.
    ///
    /// # Panics
    /// As [`Self::prepend`].
    #[doc(alias = "list_splice_tail_init_rcu")]
    pub fn append(&self, other: &Self) -> usize {
        let moved = detached::wait_or_restore(other);
        let count = moved.len();
        let rest = self.write().splice_back(moved);
        debug_assert!(rest.is_ok(), "a cookie that was done stays so");
        count
    }
}

impl<T: Send + Sync + 'static, R: Reclaimer> Drop for RcuList<T, R> {
    fn drop(&mut self) {
        // ORDERING: Relaxed: nobody shares the list any more.
        let first = self.first.load(Ordering::Relaxed);
        // SAFETY: the nodes are the list's (I1), which is gone. Their `next` stays for who was carried here (I2).
        unsafe { node::retire_chain::<T, R>(first) };
    }
}

impl<T: Send + Sync + 'static, R: Reclaimer> Default for RcuList<T, R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Send + Sync + 'static, R: Reclaimer> FromIterator<T> for RcuList<T, R> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let list = Self::new();
        values.into_iter().for_each(|value| list.push_back(value));
        list
    }
}

/// Shows whether the list is empty, never an object (a formatter has no section: RUSTSEC-2026-0204).
impl<T: Send + Sync + 'static, R: Reclaimer> fmt::Debug for RcuList<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RcuList")
            .field("is_empty", &self.is_empty())
            .finish()
    }
}

/// A reader's way through an [`RcuList`]. Ends at the list's end, for good.
#[must_use = "iterators are lazy"]
pub struct Iter<'g, T> {
    /// The word that points to the next node; null: came to the end.
    at: *const AtomicPtr<Node<T>>,
    _section: PhantomData<&'g T>,
}

impl<'g, T> Iterator for Iter<'g, T> {
    type Item = &'g T;

    #[inline]
    fn next(&mut self) -> Option<&'g T> {
        // SAFETY: the list's word, borrowed for `'g`, or that of a node that was found in the section that lasts for `'g`,
        // before whose end it is not freed (I3).
        let word = unsafe { self.at.as_ref() }?;
        // ORDERING: P1 (load side).
        let node = word.load(Ordering::Acquire);
        // SAFETY: found in the section, as above.
        let Some(node) = (unsafe { node.as_ref() }) else {
            self.at = ptr::null();
            return None;
        };
        self.at = &raw const node.next;
        Some(&node.value)
    }
}

impl<T> FusedIterator for Iter<'_, T> {}

impl<T> Clone for Iter<'_, T> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl<T> fmt::Debug for Iter<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Iter")
    }
}

/// The one who may change an [`RcuList`], which readers walk meanwhile. Others that want to spin, so be short.
///
/// What is removed is retired when the writer is dropped, after the lock is free. Objects are only ever shown as `&T`:
/// readers may look at them. To change one, [replace](Cursor::replace) it.
pub struct Writer<'l, T: Send + Sync + 'static, R: Reclaimer> {
    list: &'l RcuList<T, R>,
    /// Dropped before `removed`: nothing is retired under the lock (I4).
    ends: SpinGuard<'l, Ends<T>>,
    removed: Removed<T, R>,
}

impl<'l, T: Send + Sync + 'static, R: Reclaimer> Writer<'l, T, R> {
    fn new(list: &'l RcuList<T, R>, ends: SpinGuard<'l, Ends<T>>) -> Self {
        Self {
            list,
            ends,
            removed: Removed::new(),
        }
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.len == 0
    }

    /// The objects, in order.
    pub fn iter(&self) -> Iter<'_, T> {
        // The nodes live until they are retired, which is after this borrow: what a section is to a reader.
        Iter {
            at: &raw const self.list.first,
            _section: PhantomData,
        }
    }

    /// Puts an object in front.
    #[doc(alias = "list_add_rcu")]
    pub fn push_front(&mut self, node: ListNode<T, R>) {
        self.insert(ptr::null_mut(), node);
    }

    /// Puts an object at the end.
    #[doc(alias = "list_add_tail_rcu")]
    pub fn push_back(&mut self, node: ListNode<T, R>) {
        self.insert(self.ends.last, node);
    }

    /// Takes the first object out; readers may still look at it. Kept, it can be had back for reuse after a grace period;
    /// dropped, it is retired at once, which is better done when the writer is gone.
    pub fn pop_front(&mut self) -> Option<Retired<ListNode<T, R>>> {
        let first = NonNull::new(self.first())?;
        Some(self.take(first))
    }

    /// As [`Self::pop_front`], from the end.
    pub fn pop_back(&mut self) -> Option<Retired<ListNode<T, R>>> {
        let last = NonNull::new(self.ends.last)?;
        Some(self.take(last))
    }

    /// A cursor on the first object.
    pub fn cursor_front(&mut self) -> Cursor<'_, 'l, T, R> {
        let at = self.first();
        Cursor::new(self, at)
    }

    /// A cursor on the last object.
    pub fn cursor_back(&mut self) -> Cursor<'_, 'l, T, R> {
        let at = self.ends.last;
        Cursor::new(self, at)
    }

    /// Removes every object for which `keep` says false. If it panics, what was removed stays so.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        let mut cursor = self.cursor_front();
        while let Some(value) = cursor.current() {
            if keep(value) {
                cursor.move_next();
            } else {
                cursor.remove();
            }
        }
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        while let Some(first) = NonNull::new(self.first()) {
            self.remove(first);
        }
    }

    /// Takes everything out, one after the other, as [`Self::pop_front`] does; removes the rest when dropped.
    pub fn drain(&mut self) -> Drain<'_, 'l, T, R> {
        Drain::new(self)
    }

    /// Takes everything out as a whole, to be [spliced](Self::splice_back) into a list after a grace period, which is asked
    /// for. Readers that are inside go on to the end.
    pub fn detach(&mut self) -> Detached<T, R> {
        let first = self.first();
        // ORDERING: Relaxed: null leads to nothing.
        self.list.first.store(ptr::null_mut(), Ordering::Relaxed);
        let ends = Ends {
            last: ptr::null_mut(),
            len: 0,
        };
        let ends = core::mem::replace(&mut *self.ends, ends);
        // SAFETY: the chain was this list's and is out of sight now.
        unsafe { Detached::new(first, ends) }
    }

    /// Puts what was [detached](Self::detach) in front of the rest, if no reader is on it any more.
    ///
    /// # Errors
    /// Its grace period is not over; it comes back.
    #[doc(alias = "list_splice_init_rcu")]
    pub fn splice_front(&mut self, chain: Detached<T, R>) -> Result<(), Detached<T, R>> {
        if !chain.is_ripe() {
            return Err(chain);
        }
        self.link_front(chain);
        Ok(())
    }

    /// As [`Self::splice_front`], at the end.
    ///
    /// # Errors
    /// As there.
    #[doc(alias = "list_splice_tail_init_rcu")]
    pub fn splice_back(&mut self, chain: Detached<T, R>) -> Result<(), Detached<T, R>> {
        if !chain.is_ripe() {
            return Err(chain);
        }
        if let Some((first, ends)) = chain.into_parts() {
            let before = self.ends.last;
            // SAFETY: a node of the chain, which is this writer's now.
            unsafe { first.as_ref() }.set_prev(before);
            self.publish(before, first.as_ptr());
            self.ends.last = ends.last;
            self.ends.len += ends.len;
        }
        Ok(())
    }

    /// Links a chain in front. Readers may stand on it only if it came from this same list, to which it leads them back.
    fn link_front(&mut self, chain: Detached<T, R>) {
        let Some((first, ends)) = chain.into_parts() else {
            return;
        };
        let behind = self.first();
        self.set_prev_of(behind, ends.last);
        self.publish(ends.last, behind);
        self.publish(ptr::null_mut(), first.as_ptr());
        if behind.is_null() {
            self.ends.last = ends.last;
        }
        self.ends.len += ends.len;
    }

    fn first(&self) -> *mut Node<T> {
        // ORDERING: Relaxed: written by the writer only, which this is.
        self.list.first.load(Ordering::Relaxed)
    }

    /// Has the word behind `before` (null: the list's own) lead to `node`.
    fn publish(&self, before: *mut Node<T>, node: *mut Node<T>) {
        // SAFETY: null or a node of this list or of a chain that becomes part of it, valid while it is.
        let word = unsafe { before.as_ref() }.map_or(&self.list.first, |before| &before.next);
        // ORDERING: P1 (publish side).
        word.store(node, Ordering::Release);
    }

    /// Notes that `before` comes before `node`; if that is null, that it is the last.
    fn set_prev_of(&mut self, node: *mut Node<T>, before: *mut Node<T>) {
        // SAFETY: null or a node of this list (I1).
        match unsafe { node.as_ref() } {
            Some(node) => node.set_prev(before),
            None => self.ends.last = before,
        }
    }

    fn insert(&mut self, before: *mut Node<T>, node: ListNode<T, R>) {
        let node = node.into_node();
        // SAFETY: null or a node of this list (I1).
        let behind = unsafe { before.as_ref() }.map_or_else(|| self.first(), Node::next);
        // SAFETY: it was in no list, and is this one's now.
        unsafe { node.as_ref() }.set(behind, before);
        self.publish(before, node.as_ptr());
        self.set_prev_of(behind, node.as_ptr());
        self.ends.len += 1;
    }

    /// Leads past `node`, which keeps its `next` (I2).
    fn unlink(&mut self, node: NonNull<Node<T>>) {
        // SAFETY: a node of this list (I1).
        let out = unsafe { node.as_ref() };
        let (before, behind) = (out.prev(), out.next());
        self.publish(before, behind);
        self.set_prev_of(behind, before);
        self.ends.len -= 1;
    }

    fn remove(&mut self, node: NonNull<Node<T>>) {
        self.unlink(node);
        self.removed.push(node);
    }

    fn take(&mut self, node: NonNull<Node<T>>) -> Retired<ListNode<T, R>> {
        self.unlink(node);
        // SAFETY: made by `into_node` when it was inserted; unlinked just now, so nobody else's.
        Retired::new(unsafe { ListNode::from_node(node) })
    }

    fn replace(&mut self, old: NonNull<Node<T>>, new: ListNode<T, R>) -> NonNull<Node<T>> {
        let new = new.into_node();
        // SAFETY: a node of this list (I1).
        let out = unsafe { old.as_ref() };
        let (before, behind) = (out.prev(), out.next());
        // SAFETY: it was in no list, and is this one's now.
        unsafe { new.as_ref() }.set(behind, before);
        self.publish(before, new.as_ptr());
        self.set_prev_of(behind, new.as_ptr());
        self.removed.push(old);
        new
    }
}

impl<T: Send + Sync + 'static, R: Reclaimer> fmt::Debug for Writer<'_, T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
