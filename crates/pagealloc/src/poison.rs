//! Freed pages are filled with a pattern, and looked at when they are allocated again: by the feature `poison`.
//!
//! Source: Linux `mm/page_poison.c` (row P19). Finds writes through pointers to freed pages; reads show up as the pattern. Without the
//! feature, `poison/off.rs` stands in for this file: the same names, of size zero, and nothing done.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | a page's `poisoned` | the page is free and filled with [`POISON`] | the page's owner |
//!
//! Why a flag for each page and not a bit in the state of a block: pages with and without the pattern merge, and part again.
//!
//! # Invariants
//! - I1. `poisoned` is set only in pages that are free, were filled since they were freed, and whose memory was not given
//!   back to the system since ([`Poison::forget`]). Only then are contents checked.
//! - I2. Pages that were never handed out, or were given back, are left alone: they are known to read as zeroes, and stay uncommitted.
//!   A write to such a page is not found.
//!
//! Accesses are Relaxed: a flag travels with its page.

use crate::api::{Order, PAGE_SHIFT, PAGE_SIZE};
use core::alloc::{Layout, LayoutError};
use core::ptr::NonNull;
use core::slice;
use core::sync::atomic::{AtomicBool, Ordering};

/// What freed pages are filled with: no valid pointer, no small number, no text.
#[doc(alias = "PAGE_POISON")]
const POISON: u8 = 0xaa;

/// To be compared with as a whole, which is much faster than byte by byte where nothing is optimised.
static FILLED: [u8; PAGE_SIZE] = [POISON; PAGE_SIZE];

/// Where a freed page was written to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Written {
    /// Pages after the block's first.
    pub(crate) page: u32,
    /// The first byte that is different, counted from that page's start.
    pub(crate) offset: usize,
    /// What it is.
    pub(crate) byte: u8,
    /// Bytes that are different in that page.
    pub(crate) len: usize,
}

/// Which pages of a span are poisoned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Poison {
    first: NonNull<AtomicBool>,
}

impl Poison {
    /// What the flags of `pages` pages need.
    pub(crate) fn layout(pages: usize) -> Result<Layout, LayoutError> {
        Layout::array::<AtomicBool>(pages)
    }

    /// The flags at `first`.
    ///
    /// # Safety
    /// 1. `first` is the start of all-zero memory of [`Self::layout`], referred to by nothing but copies of this value, and
    ///    valid for as long as one of them is used.
    pub(crate) const unsafe fn from_zeroed(first: NonNull<u8>) -> Self {
        Self {
            first: first.cast(),
        }
    }

    /// # Safety
    /// 1. `page` is one of the pages of the layout.
    unsafe fn flag(&self, page: u32) -> &AtomicBool {
        // SAFETY: inside the array (debt 1).
        let flag = unsafe { self.first.add(page as usize) };
        // SAFETY: all-zero is valid, flags are atomic, and the memory stays (debt of `from_zeroed`).
        unsafe { flag.as_ref() }
    }

    /// Fills a block that was just freed.
    ///
    /// # Safety
    /// 1. `page` is the number of the block's first page, `block` its address; nobody but the caller uses it.
    pub(crate) unsafe fn fill(&self, page: u32, block: NonNull<u8>, order: Order) {
        // SAFETY: the block is the caller's (debt 1).
        unsafe { block.write_bytes(POISON, order.bytes()) };
        for page in page..page + order.pages() as u32 {
            // SAFETY: a page of the block (debt 1).
            let flag = unsafe { self.flag(page) };
            // ORDERING: Relaxed: travels with the page.
            flag.store(true, Ordering::Relaxed);
        }
    }

    /// Looks at what should be the pattern in a block that is about to be handed out, which is not poisoned any more then.
    ///
    /// # Safety
    /// 1. As for [`Self::fill`].
    pub(crate) unsafe fn check(
        &self,
        page: u32,
        block: NonNull<u8>,
        order: Order,
    ) -> Result<(), Written> {
        for i in 0..order.pages() as u32 {
            // SAFETY: a page of the block (debt 1).
            let flag = unsafe { self.flag(page + i) };
            // ORDERING: Relaxed: travels with the page.
            if !flag.load(Ordering::Relaxed) {
                continue;
            }
            // ORDERING: Relaxed: as above.
            flag.store(false, Ordering::Relaxed);
            // SAFETY: inside the block.
            let start = unsafe { block.add((i as usize) << PAGE_SHIFT) };
            // SAFETY: a page of the caller's block, filled and so initialised (I1).
            let bytes = unsafe { slice::from_raw_parts(start.as_ptr(), PAGE_SIZE) };
            if *bytes == FILLED {
                continue;
            }
            let mut odd = bytes
                .iter()
                .enumerate()
                .filter(|(_, byte)| **byte != POISON);
            if let Some((offset, &byte)) = odd.next() {
                return Err(Written {
                    page: i,
                    offset,
                    byte,
                    len: 1 + odd.count(),
                });
            }
        }
        Ok(())
    }

    /// Notes that free pages may have lost their contents.
    ///
    /// # Safety
    /// 1. The pages are among those of the layout, and the caller's.
    pub(crate) unsafe fn forget(&self, first: usize, pages: usize) {
        for page in first..first + pages {
            // SAFETY: debt 1.
            let flag = unsafe { self.flag(page as u32) };
            // ORDERING: Relaxed: travels with the page.
            if flag.load(Ordering::Relaxed) {
                // ORDERING: Relaxed: as above.
                flag.store(false, Ordering::Relaxed);
            }
        }
    }
}
