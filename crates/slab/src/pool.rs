//! Blocks of one small size, carved from pages: sheaves and slab descriptors.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `free` | blocks that are not in use, linked through their first word | under its lock |
//! | `returned` | blocks given back while the lock was taken | anyone, see [`Inbox`] |
//! | `pages` | how many pages were carved | whoever carved one |
//!
//! # Invariants
//! - I1. Block sizes are powers of two that divide a page: a block at a page's start has the page's address.
//! - I2. Every block is in use, or in `free`, or in `returned`, or just in the hands of a caller in between.
//!
//! # Progress and contexts
//! `put` never waits. `get` waits for the lock, and asks for pages, as far as its [`Attempt`] says. No lock is held
//! while pages are asked for or given back.

use crate::inbox::{Inbox, Link};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use pagealloc::{AllocError, Attempt, Order, PAGE_SIZE, PageAlloc, PageReq};
use rcu_core::cpu::{SpinGuard, SpinMutex};

/// Takes `mutex` as `attempt` allows: waiting for it, or only if it is free now.
pub(crate) fn lock<T>(mutex: &SpinMutex<T>, attempt: Attempt) -> Option<SpinGuard<'_, T>> {
    if attempt >= Attempt::NoWait {
        Some(mutex.lock())
    } else {
        mutex.try_lock()
    }
}

/// The blocks that are free.
#[derive(Debug)]
struct Free {
    head: Option<NonNull<Link>>,
}

// SAFETY: free blocks belong to the pool, and are reached under its lock only.
unsafe impl Send for Free {}

impl Free {
    fn push(&mut self, block: NonNull<Link>) {
        // SAFETY: the block is the pool's and large enough for a link (I1, `Pool::new`).
        unsafe { block.write(Link { next: self.head }) };
        self.head = Some(block);
    }

    fn pop(&mut self) -> Option<NonNull<Link>> {
        let block = self.head?;
        // SAFETY: blocks in the list begin with an initialised link.
        self.head = unsafe { block.as_ref() }.next;
        Some(block)
    }
}

/// A source of blocks.
#[derive(Debug)]
pub(crate) struct Pool {
    block_bytes: usize,
    free: SpinMutex<Free>,
    returned: Inbox,
    pages: AtomicUsize,
}

impl Pool {
    /// A pool without pages.
    pub(crate) const fn new(block_bytes: usize) -> Self {
        assert!(block_bytes.is_power_of_two() && block_bytes <= PAGE_SIZE);
        assert!(block_bytes >= size_of::<Link>());
        Self {
            block_bytes,
            free: SpinMutex::new(Free { head: None }),
            returned: Inbox::new(),
            pages: AtomicUsize::new(0),
        }
    }

    /// Bytes of the pages in use.
    pub(crate) fn bytes(&self) -> usize {
        // ORDERING: Relaxed: a number for statistics.
        self.pages.load(Ordering::Relaxed) * PAGE_SIZE
    }

    fn lock(&self, attempt: Attempt) -> Option<SpinGuard<'_, Free>> {
        Some(self.take_in(lock(&self.free, attempt)?))
    }

    /// Takes in what was given back while the lock was taken.
    fn take_in<'a>(&self, mut free: SpinGuard<'a, Free>) -> SpinGuard<'a, Free> {
        let mut next = self.returned.take_all();
        while let Some(block) = next {
            // SAFETY: taken blocks are the pool's again and begin with a link.
            next = unsafe { block.as_ref() }.next;
            free.push(block);
        }
        free
    }

    /// Gives out a block, aligned to its size.
    pub(crate) fn get<P: PageAlloc>(
        &self,
        pages: &P,
        attempt: Attempt,
    ) -> Result<NonNull<u8>, AllocError> {
        let free = self.lock(attempt).ok_or(AllocError::Contended)?.pop();
        if let Some(block) = free {
            return Ok(block.cast());
        }
        let page = pages.alloc(PageReq::new(Order::ZERO).attempt(attempt))?;
        // ORDERING: Relaxed: a number for statistics.
        self.pages.fetch_add(1, Ordering::Relaxed);
        if self.block_bytes < PAGE_SIZE {
            let mut free = self.lock(attempt);
            for offset in (self.block_bytes..PAGE_SIZE).step_by(self.block_bytes) {
                // SAFETY: the offset is inside the page.
                let block = unsafe { page.add(offset) }.cast();
                match &mut free {
                    Some(free) => free.push(block),
                    // SAFETY: the block is nobody else's, and as large as a link (I1).
                    None => unsafe { self.returned.push(block) },
                }
            }
        }
        Ok(page)
    }

    /// Takes a block back.
    ///
    /// # Safety
    /// 1. `block` came from [`Self::get`] of this pool and is not used any more.
    pub(crate) unsafe fn put(&self, block: NonNull<u8>) {
        match self.free.try_lock() {
            Some(mut free) => free.push(block.cast()),
            // SAFETY: the block is the pool's now (debt 1).
            None => unsafe { self.returned.push(block.cast()) },
        }
    }

    /// Locks the free blocks until [`Self::let_go`].
    #[cfg(all(feature = "std", unix, not(loom)))]
    pub(crate) fn hold(&self) {
        core::mem::forget(self.free.lock());
    }

    /// # Safety
    /// 1. The caller called [`Self::hold`], or is the child of who did.
    #[cfg(all(feature = "std", unix, not(loom)))]
    pub(crate) unsafe fn let_go(&self) {
        // SAFETY: 1.
        unsafe { self.free.unlock_forgotten() };
    }

    /// Gives pages back if each is one block, and says how many.
    pub(crate) fn trim<P: PageAlloc>(&self, pages: &P) -> usize {
        if self.block_bytes < PAGE_SIZE {
            return 0;
        }
        let mut next = self.take_in(self.free.lock()).head.take();
        let mut freed = 0;
        while let Some(block) = next {
            // SAFETY: the block was free and is this call's now; it begins with a link.
            next = unsafe { block.as_ref() }.next;
            // SAFETY: a block as large as a page is a page of `pages`, and out of the list.
            unsafe { pages.free(block.cast(), Order::ZERO) };
            freed += 1;
        }
        // ORDERING: Relaxed: a number for statistics.
        self.pages.fetch_sub(freed, Ordering::Relaxed);
        freed
    }

    /// Gives all pages back. Every block must have been put back (I2), else its page's stay.
    pub(crate) fn release<P: PageAlloc>(&mut self, pages: &P) {
        let mut next = self.take_in(self.free.lock()).head.take();
        let mut starts = Free { head: None };
        while let Some(block) = next {
            // SAFETY: the block was free; it begins with a link.
            next = unsafe { block.as_ref() }.next;
            // I1: a page's first block stands for the page; the others go with it.
            if block.addr().get() % PAGE_SIZE == 0 {
                starts.push(block);
            }
        }
        while let Some(page) = starts.pop() {
            // ORDERING: Relaxed: the caller has the pool alone.
            self.pages.fetch_sub(1, Ordering::Relaxed);
            // SAFETY: the page came from `pages`, and none of its blocks is in use (I2).
            unsafe { pages.free(page.cast(), Order::ZERO) };
        }
        debug_assert_eq!(self.bytes(), 0, "I2: blocks are missing");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::Pages;

    #[test]
    fn blocks_are_disjoint_and_every_page_comes_back() {
        for bytes in [64, 128, 1024, PAGE_SIZE] {
            let (pages, mut pool) = (Pages::new(), Pool::new(bytes));
            let get = || pool.get(&pages, Attempt::MayGrow).unwrap();
            let blocks: Vec<_> = (0..3 * PAGE_SIZE / bytes).map(|_| get()).collect();
            assert_eq!(pages.outstanding(), 3);
            assert_eq!(pool.bytes(), 3 * PAGE_SIZE);
            let mut starts: Vec<_> = blocks.iter().map(|b| b.addr().get()).collect();
            starts.sort_unstable();
            assert!(starts.windows(2).all(|w| w[1] - w[0] >= bytes));
            assert!(starts.iter().all(|s| s % bytes == 0));
            for block in blocks {
                // SAFETY: the block came from the pool.
                unsafe { pool.put(block) };
            }
            pool.release(&pages);
            assert_eq!(pages.outstanding(), 0);
        }
    }

    #[test]
    fn what_comes_back_while_the_lock_is_taken_is_not_lost() {
        let (pages, mut pool) = (Pages::new(), Pool::new(PAGE_SIZE));
        let block = pool.get(&pages, Attempt::MayGrow).unwrap();
        let held = pool.free.lock();
        // SAFETY: the block came from the pool.
        unsafe { pool.put(block) };
        assert_eq!(
            pool.get(&pages, Attempt::TryLock),
            Err(AllocError::Contended)
        );
        drop(held);
        assert_eq!(pool.get(&pages, Attempt::TryLock), Ok(block));
        // SAFETY: the block came from the pool.
        unsafe { pool.put(block) };
        assert_eq!(pool.trim(&pages), 1);
        pool.release(&pages);
        assert_eq!(pages.outstanding(), 0);
    }
}
