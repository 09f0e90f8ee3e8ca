//! A writer's place in its list.

use super::node::{ListNode, Node};
use super::{Reclaimer, Retired, Writer};
use core::fmt;
use core::iter::FusedIterator;
use core::ptr::{self, NonNull};

/// A place in an [`RcuList`](crate::RcuList): on an object, or between the last and the first ("nowhere").
pub struct Cursor<'w, 'l, T: Send + Sync + 'static, R: Reclaimer> {
    writer: &'w mut Writer<'l, T, R>,
    /// A node of the list; null: nowhere.
    at: *mut Node<T>,
}

impl<'w, 'l, T: Send + Sync + 'static, R: Reclaimer> Cursor<'w, 'l, T, R> {
    pub(super) const fn new(writer: &'w mut Writer<'l, T, R>, at: *mut Node<T>) -> Self {
        Self { writer, at }
    }

    fn node(&self) -> Option<&Node<T>> {
        // SAFETY: null or a node of the list, which the writer keeps.
        unsafe { self.at.as_ref() }
    }

    /// The object; `None` nowhere.
    #[must_use]
    pub fn current(&self) -> Option<&T> {
        self.node().map(|node| &node.value)
    }

    /// Goes one on: from the last to nowhere, and from there to the first.
    pub fn move_next(&mut self) {
        self.at = self.node().map_or_else(|| self.writer.first(), Node::next);
    }

    /// Goes one back: from the first to nowhere, and from there to the last.
    pub fn move_prev(&mut self) {
        self.at = self.node().map_or(self.writer.ends.last, Node::prev);
    }

    /// Goes on until `found` says true, or nowhere; says whether it did. Looks at the current object first.
    pub fn seek(&mut self, mut found: impl FnMut(&T) -> bool) -> bool {
        while let Some(value) = self.current() {
            if found(value) {
                return true;
            }
            self.move_next();
        }
        false
    }

    /// Puts an object before the current one; nowhere: at the end.
    #[doc(alias = "list_add_tail_rcu")]
    pub fn insert_before(&mut self, node: ListNode<T, R>) {
        let before = self.node().map_or(self.writer.ends.last, Node::prev);
        self.writer.insert(before, node);
    }

    /// Puts an object behind the current one; nowhere: in front.
    #[doc(alias = "list_add_rcu")]
    pub fn insert_after(&mut self, node: ListNode<T, R>) {
        self.writer.insert(self.at, node);
    }

    /// Removes the current object and goes one on; false nowhere.
    #[doc(alias = "list_del_rcu")]
    pub fn remove(&mut self) -> bool {
        self.out().map(|node| self.writer.remove(node)).is_some()
    }

    /// Takes the current object out, to be had back after a grace period, and goes one on. See [`Writer::pop_front`].
    pub fn take(&mut self) -> Option<Retired<ListNode<T, R>>> {
        self.out().map(|node| self.writer.take(node))
    }

    /// Goes one on and returns what was left.
    fn out(&mut self) -> Option<NonNull<Node<T>>> {
        let node = NonNull::new(self.at)?;
        self.move_next();
        Some(node)
    }

    /// Puts `new` in the place of the current object, which is removed: a reader sees the one or the other.
    ///
    /// # Errors
    /// Nowhere there is nothing to replace; `new` comes back.
    #[doc(alias = "list_replace_rcu")]
    pub fn replace(&mut self, new: ListNode<T, R>) -> Result<(), ListNode<T, R>> {
        let Some(old) = NonNull::new(self.at) else {
            return Err(new);
        };
        self.at = self.writer.replace(old, new).as_ptr();
        Ok(())
    }
}

impl<T: Send + Sync + 'static, R: Reclaimer> fmt::Debug for Cursor<'_, '_, T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor")
            .field("is_nowhere", &ptr::eq(self.at, ptr::null()))
            .finish_non_exhaustive()
    }
}

/// Takes everything out of a list. See [`Writer::drain`].
pub struct Drain<'w, 'l, T: Send + Sync + 'static, R: Reclaimer> {
    writer: &'w mut Writer<'l, T, R>,
}

impl<'w, 'l, T: Send + Sync + 'static, R: Reclaimer> Drain<'w, 'l, T, R> {
    pub(super) const fn new(writer: &'w mut Writer<'l, T, R>) -> Self {
        Self { writer }
    }
}

impl<T: Send + Sync + 'static, R: Reclaimer> Iterator for Drain<'_, '_, T, R> {
    type Item = Retired<ListNode<T, R>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.writer.pop_front()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.writer.len(), Some(self.writer.len()))
    }
}

impl<T: Send + Sync + 'static, R: Reclaimer> ExactSizeIterator for Drain<'_, '_, T, R> {}
impl<T: Send + Sync + 'static, R: Reclaimer> FusedIterator for Drain<'_, '_, T, R> {}

impl<T: Send + Sync + 'static, R: Reclaimer> Drop for Drain<'_, '_, T, R> {
    fn drop(&mut self) {
        self.writer.clear();
    }
}

impl<T: Send + Sync + 'static, R: Reclaimer> fmt::Debug for Drain<'_, '_, T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain")
            .field("len", &self.writer.len())
            .finish()
    }
}
