//! Freed objects that are kept back: a ring of their addresses, eldest first.
//!
//! Outside of the objects, so that those stay poisoned as they are. Its size is fixed at the cache's birth: keeping an object
//! back never asks for memory.

use crate::config::Shape;
use core::ptr::NonNull;
use pagealloc::{Order, PAGE_SIZE};

/// As many addresses as a page has room for.
const MAX_KEPT: usize = PAGE_SIZE / size_of::<NonNull<u8>>();
/// And no more than these bytes of objects, with what the checks add.
const MAX_KEPT_BYTES: usize = 256 << 10;

/// The ring.
///
/// # Invariants
/// `len <= cap`; the `len` places from `first` on, modulo `cap`, are initialised and hold free objects that are not in their slabs.
#[derive(Debug)]
pub(crate) struct Quarantine {
    ring: NonNull<NonNull<u8>>,
    first: usize,
    len: usize,
    cap: usize,
}

// SAFETY: the ring's page and the objects belong to the cache, and are reached under its quarantine lock only.
unsafe impl Send for Quarantine {}

impl Quarantine {
    /// What the ring takes.
    pub(crate) const ORDER: Order = Order::ZERO;

    /// One that keeps nothing.
    pub(crate) const fn none() -> Self {
        Self {
            ring: NonNull::dangling(),
            first: 0,
            len: 0,
            cap: 0,
        }
    }

    /// One that keeps objects of `shape`, its ring in `page`.
    ///
    /// # Safety
    /// 1. `page` is the caller's, a page of [`Self::ORDER`], for as long as the value is used.
    pub(crate) unsafe fn new(page: NonNull<u8>, shape: &Shape) -> Self {
        Self {
            ring: page.cast(),
            first: 0,
            len: 0,
            cap: (MAX_KEPT_BYTES / shape.size).clamp(1, MAX_KEPT),
        }
    }

    /// The ring's page, if it has one.
    pub(crate) fn page(&self) -> Option<NonNull<u8>> {
        (self.cap > 0).then_some(self.ring.cast())
    }

    /// How many objects are kept.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn place(&self, index: usize) -> NonNull<NonNull<u8>> {
        // SAFETY: the index is below `cap`, so inside the page.
        unsafe { self.ring.add((self.first + index) % self.cap) }
    }

    /// Keeps `object` back, and says which one has to go for it.
    pub(crate) fn swap(&mut self, object: NonNull<u8>) -> Option<NonNull<u8>> {
        if self.cap == 0 {
            return Some(object);
        }
        let eldest = if self.len == self.cap {
            self.pop()
        } else {
            None
        };
        let place = self.place(self.len);
        // SAFETY: inside the ring (`place`), which is this value's.
        unsafe { place.write(object) };
        self.len += 1;
        eldest
    }

    /// Lets the eldest go.
    pub(crate) fn pop(&mut self) -> Option<NonNull<u8>> {
        if self.len == 0 {
            return None;
        }
        // SAFETY: the first place is initialised, as `len` is not zero.
        let eldest = unsafe { self.place(0).read() };
        self.first = (self.first + 1) % self.cap;
        self.len -= 1;
        Some(eldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CacheConfig, Checks};
    use core::alloc::Layout;

    #[test]
    fn l15_the_eldest_goes_first() {
        let mut page = [const { core::mem::MaybeUninit::<usize>::uninit() }; MAX_KEPT];
        let shape = CacheConfig::new("test", Layout::new::<[u8; 100_000 / 4]>())
            .checks(Checks::QUARANTINE)
            .shape()
            .unwrap();
        // SAFETY: a page of this test's.
        let mut kept = unsafe { Quarantine::new(NonNull::from(&mut page).cast(), &shape) };
        let memory = [0_u8; 100];
        let objects: Vec<_> = memory.iter().map(NonNull::from).collect();
        let cap = MAX_KEPT_BYTES / shape.size;
        assert!(cap > 1 && cap < 20);
        for (n, &object) in objects.iter().enumerate() {
            assert_eq!(kept.swap(object), n.checked_sub(cap).map(|n| objects[n]));
        }
        let rest: Vec<_> = core::iter::from_fn(|| kept.pop()).collect();
        assert_eq!(rest, objects[100 - cap..]);
        assert_eq!(kept.swap(objects[0]), None);
        assert_eq!(Quarantine::none().swap(objects[0]), Some(objects[0]));
    }
}
