//! The span's pages and their metadata: from a page's number to its address and back, and the
//! checks that a freed block must pass.
//!
//! # Invariants
//! - I1. `base` and `metas` describe `len` pages and as many `PageMeta`s, valid for as long as the zone (its source) lives.
//! - I2. Page numbers on lists, in links and in the stash are below `len`.

use crate::api::{Mobility, Order, PAGE_SHIFT, PageTag};
use crate::broken::broken;
use crate::meta::{PageMeta, State};
use core::ptr::NonNull;

/// The metadata of a span's pages, by page number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metas {
    first: NonNull<PageMeta>,
    len: u32,
}

// SAFETY: `PageMeta` is atomic words; the memory stays valid (I1).
unsafe impl Send for Metas {}
// SAFETY: as above.
unsafe impl Sync for Metas {}

impl Metas {
    /// The metadata at `first`.
    ///
    /// # Safety
    /// 1. `first` is the start of `len` initialised (all-zero will do) `PageMeta`s, referred to by
    ///    nothing but copies of this value, and valid for as long as one of them is used.
    pub(crate) const unsafe fn new(first: NonNull<PageMeta>, len: u32) -> Self {
        Self { first, len }
    }

    #[inline(always)]
    pub(crate) const fn len(self) -> u32 {
        self.len
    }

    /// The page's metadata, or `None` past the span's end.
    #[inline(always)]
    pub(crate) fn get(&self, page: u32) -> Option<&PageMeta> {
        if page >= self.len {
            return None;
        }
        // SAFETY: below the length.
        Some(unsafe { self.get_unchecked(page) })
    }

    /// The page's metadata.
    ///
    /// # Safety
    /// 1. `page` is below the length.
    #[inline(always)]
    unsafe fn get_unchecked(&self, page: u32) -> &PageMeta {
        debug_assert!(page < self.len);
        // SAFETY: inside the array (debt 1).
        let meta = unsafe { self.first.add(page as usize) };
        // SAFETY: initialised, atomic words, valid for as long as `self` is used (debt of `new`).
        unsafe { meta.as_ref() }
    }

    /// The metadata of a page from a list or a link. Out of range means that metadata was damaged.
    #[inline(always)]
    pub(crate) fn at(&self, page: u32) -> &PageMeta {
        match self.get(page) {
            Some(meta) => meta,
            None => no_such_page(page, self.len),
        }
    }
}

/// Out of line and by value, so that a hit need not have its variables in memory for the message.
#[cold]
#[inline(never)]
fn no_such_page(page: u32, len: u32) -> ! {
    broken(format_args!(
        "page {page} on a free list, of a zone of {len} pages"
    ))
}

/// A span of pages with its metadata.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frames {
    base: NonNull<u8>,
    pub(crate) metas: Metas,
}

// SAFETY: an address and metadata that is `Send`; what lies at the address belongs to block owners.
unsafe impl Send for Frames {}
// SAFETY: as above.
unsafe impl Sync for Frames {}

impl Frames {
    /// The span that starts at `base`.
    ///
    /// # Safety
    /// 1. `base` is page-aligned and points to `metas.len()` pages of one allocation, valid for as
    ///    long as a copy of this value is used.
    pub(crate) const unsafe fn new(base: NonNull<u8>, metas: Metas) -> Self {
        Self { base, metas }
    }

    /// The address of a page of the span.
    #[inline(always)]
    pub(crate) fn address(&self, page: u32) -> NonNull<u8> {
        debug_assert!(page < self.metas.len(), "I2");
        // SAFETY: below the length (I2), so inside the span (I1).
        unsafe { self.base.add((page as usize) << PAGE_SHIFT) }
    }

    /// The page that starts at `address`, if it is one.
    #[inline(always)]
    fn page_at(&self, address: *const u8) -> Option<(u32, &PageMeta)> {
        let offset = address.addr().wrapping_sub(self.base.as_ptr().addr());
        // A stray low bit becomes a high one: one comparison tells foreign and misaligned alike.
        self.page_numbered(offset.rotate_right(PAGE_SHIFT))
    }

    /// The page that `address` lies in, if it is in the span.
    #[inline(always)]
    fn page_of(&self, address: *const u8) -> Option<(u32, &PageMeta)> {
        let offset = address.addr().wrapping_sub(self.base.as_ptr().addr());
        self.page_numbered(offset >> PAGE_SHIFT)
    }

    #[inline(always)]
    fn page_numbered(&self, page: usize) -> Option<(u32, &PageMeta)> {
        if page >= self.metas.len() as usize {
            return None;
        }
        // SAFETY: below the length.
        let meta = unsafe { self.metas.get_unchecked(page as u32) };
        Some((page as u32, meta))
    }

    /// Marks a block as out and says where it is, zeroed if `zero` and not known to be.
    ///
    /// The block must have just come off a list, so that it is the caller's.
    #[inline(always)]
    pub(crate) fn hand_out(
        &self,
        page: u32,
        order: Order,
        mobility: Mobility,
        zero: bool,
    ) -> NonNull<u8> {
        let meta = self.metas.at(page);
        let block = self.address(page);
        if zero && !meta.state().is_zero() {
            // SAFETY: the block is free memory of the span (I1) that nobody else has, being off every list.
            unsafe { block.write_bytes(0, order.bytes()) };
        }
        meta.set_state(State::allocated(order).with(mobility));
        block
    }

    /// Takes a block back from its owner: the page's number, with no note on it any more, and marked for a slot's
    /// list, so that freeing it again is noticed.
    ///
    /// The usual case only: an unmovable block without a note. In any other nothing has happened, and
    /// [`Self::take_back_any`] is to be called.
    #[inline(always)]
    pub(crate) fn take_back(&self, block: NonNull<u8>, order: Order) -> Option<u32> {
        match self.page_at(block.as_ptr()) {
            Some((page, meta)) if meta.state() == State::allocated(order) => {
                meta.set_state(State::listed(order, false));
                Some(page)
            }
            _ => None,
        }
    }

    /// Any block, and what it was asked for as.
    ///
    /// Aborts if no block of `order` that is out starts at `block`. Two threads that free the same
    /// block at the same moment may both pass.
    pub(crate) fn take_back_any(&self, block: NonNull<u8>, order: Order) -> (u32, Mobility) {
        let page = self.block(block, order, "freed");
        let meta = self.metas.at(page);
        let mobility = meta.state().mobility();
        if meta.state().plain() == State::tagged(order) {
            self.note_all(page, order, PageTag::NONE);
        }
        meta.set_state(State::listed(order, false).with(mobility));
        (page, mobility)
    }

    /// The number of the first page of an owner's block; aborts if it is none.
    fn block(&self, block: NonNull<u8>, order: Order, verb: &str) -> u32 {
        let Some((page, meta)) = self.page_at(block.as_ptr()) else {
            broken(format_args!(
                "{verb} {block:p}, not the start of a page of this zone ({} pages at {:p})",
                self.metas.len(),
                self.base,
            ));
        };
        let state = meta.state().plain();
        if state != State::allocated(order) && state != State::tagged(order) {
            broken(format_args!(
                "{verb} block {block:p} (page {page}) as order {}, but it is {} (order {})",
                order.get(),
                state.name(),
                state.order().get(),
            ));
        }
        page
    }

    fn note_all(&self, page: u32, order: Order, note: PageTag) {
        for page in page..page + order.pages() as u32 {
            self.metas.at(page).set_note(note);
        }
    }

    /// Notes `tag` on every page of an owner's block.
    pub(crate) fn set_tag(&self, block: NonNull<u8>, order: Order, tag: PageTag) {
        let page = self.block(block, order, "tagged");
        self.note_all(page, order, tag);
        // Even for the empty tag: the free path then clears what is clear already.
        let meta = self.metas.at(page);
        meta.set_state(State::tagged(order).with(meta.state().mobility()));
    }

    /// The number of the page that `address` lies in, if it is in the span.
    pub(crate) fn number_of(&self, address: *const u8) -> Option<u32> {
        Some(self.page_of(address)?.0)
    }

    /// What the owner of the block around `address` noted.
    #[inline(always)]
    pub(crate) fn tag(&self, address: *const u8) -> Option<PageTag> {
        Some(self.page_of(address)?.1.note())
    }

    /// The order of the block that starts at `address` and is out.
    pub(crate) fn order_of(&self, address: *const u8) -> Option<Order> {
        let state = self.page_at(address)?.1.state();
        state.is_allocated().then(|| state.order())
    }
}
