//! The span's pages and their metadata: from a page's number to its address and back, the checks
//! that a freed block must pass, and what is said about one that does not.
//!
//! # Invariants
//! - I1. `base` and `metas` describe `len` pages and as many pages' `PageMetas`, valid for as long as the zone (its source) lives.
//! - I2. Page numbers on lists, in links and in the stash are below `len`.

mod exact;

use crate::api::{Mobility, Order, PAGE_SHIFT, PAGE_SIZE, PageTag};
use crate::broken::broken;
use crate::history::{Histories, Who, tell_culprit};
use crate::index;
use crate::meta::{GROUP, PageMeta, PageMetas, State};
use crate::poison::{Poison, Written};
use core::alloc::{Layout, LayoutError};
use core::fmt::{self, Display};
use core::ptr::NonNull;
use rcu_core::sanitize;

/// The metadata of a span's pages, by page number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metas {
    first: NonNull<PageMetas>,
    len: u32,
}

// SAFETY: `PageMetas` is atomic words; the memory stays valid (I1).
unsafe impl Send for Metas {}
// SAFETY: as above.
unsafe impl Sync for Metas {}

impl Metas {
    /// What the metadata of `pages` pages needs.
    pub(crate) fn layout(pages: usize) -> Result<Layout, LayoutError> {
        Layout::array::<PageMetas>(pages.div_ceil(GROUP))
    }

    /// The metadata at `first`.
    ///
    /// # Safety
    /// 1. `first` is the start of initialised (all-zero will do) memory of [`Self::layout`] for `len` pages, referred to by
    ///    nothing but copies of this value, and valid for as long as one of them is used.
    pub(crate) const unsafe fn new(first: NonNull<PageMetas>, len: u32) -> Self {
        Self { first, len }
    }

    #[inline(always)]
    pub(crate) const fn len(self) -> u32 {
        self.len
    }

    /// The page's metadata, or `None` past the span's end.
    #[inline(always)]
    pub(crate) fn get(&self, page: u32) -> Option<PageMeta<'_>> {
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
    unsafe fn get_unchecked(&self, page: u32) -> PageMeta<'_> {
        debug_assert!(page < self.len);
        // SAFETY: inside the array (debt 1).
        let metas = unsafe { self.first.add(page as usize / GROUP) };
        // SAFETY: initialised, atomic words, valid for as long as `self` is used (debt of `new`).
        let metas = unsafe { metas.as_ref() };
        metas.get(page)
    }

    /// The metadata of a page from a list or a link. Out of range means that metadata was damaged.
    #[inline(always)]
    pub(crate) fn at(&self, page: u32) -> PageMeta<'_> {
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
    pub(crate) extras: Extras,
}

/// What is known about pages beyond their metadata, in arrays beside it. Of size zero without the features.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extras {
    histories: Histories,
    poison: Poison,
}

impl Extras {
    /// What the records of `pages` pages need, and where the second array starts.
    fn place(pages: usize) -> Result<(Layout, usize), LayoutError> {
        Histories::layout(pages)?.extend(Poison::layout(pages)?)
    }

    /// What the records of `pages` pages need.
    pub(crate) fn layout(pages: usize) -> Result<Layout, LayoutError> {
        Ok(Self::place(pages)?.0)
    }

    /// The records at `first`.
    ///
    /// # Errors
    /// As for [`Self::layout`].
    ///
    /// # Safety
    /// 1. `first` is the start of all-zero memory of [`Self::layout`], referred to by nothing but copies of this value, and
    ///    valid for as long as one of them is used.
    pub(crate) unsafe fn from_zeroed(
        first: NonNull<u8>,
        pages: usize,
    ) -> Result<Self, LayoutError> {
        let (_, poison) = Self::place(pages)?;
        // SAFETY: inside the memory (debt 1).
        let poison = unsafe { first.add(poison) };
        Ok(Self {
            // SAFETY: debt 1.
            histories: unsafe { Histories::from_zeroed(first) },
            // SAFETY: debt 1.
            poison: unsafe { Poison::from_zeroed(poison) },
        })
    }
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
    /// 2. `extras` are of `metas.len()` pages.
    pub(crate) const unsafe fn new(base: NonNull<u8>, metas: Metas, extras: Extras) -> Self {
        Self {
            base,
            metas,
            extras,
        }
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
    fn page_at(&self, address: *const u8) -> Option<(u32, PageMeta<'_>)> {
        let offset = address.addr().wrapping_sub(self.base.as_ptr().addr());
        // A stray low bit becomes a high one: one comparison tells foreign and misaligned alike.
        self.page_numbered(offset.rotate_right(PAGE_SHIFT))
    }

    /// The page that `address` lies in, if it is in the span.
    #[inline(always)]
    fn page_of(&self, address: *const u8) -> Option<(u32, PageMeta<'_>)> {
        let offset = address.addr().wrapping_sub(self.base.as_ptr().addr());
        self.page_numbered(offset >> PAGE_SHIFT)
    }

    #[inline(always)]
    fn page_numbered(&self, page: usize) -> Option<(u32, PageMeta<'_>)> {
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
        who: Who,
    ) -> NonNull<u8> {
        let meta = self.metas.at(page);
        let block = self.address(page);
        sanitize::reveal(block, order.bytes());
        // SAFETY: the block is the caller's, off every list.
        if let Err(written) = unsafe { self.extras.poison.check(page, block, order) } {
            self.written_after_free(page, written);
        }
        if zero && !meta.state().is_zero() {
            // SAFETY: the block is free memory of the span (I1) that nobody else has, being off every list.
            unsafe { block.write_bytes(0, order.bytes()) };
        }
        meta.set_state(State::allocated(order).with(mobility));
        // SAFETY: the page exists, or `at` had not returned.
        unsafe { self.extras.histories.allocated(page, order, who) };
        block
    }

    /// The number of a page of the span.
    #[cfg(feature = "guard")]
    pub(crate) fn page(&self, block: NonNull<u8>) -> u32 {
        match self.page_of(block.as_ptr()) {
            Some((page, _)) => page,
            None => no_such_page(crate::index::NONE, self.metas.len()),
        }
    }

    /// Marks a part of the caller's block as a block of its own that is out.
    #[cfg(feature = "guard")]
    pub(crate) fn mark_out(&self, page: u32, order: Order, mobility: Mobility, who: Who) {
        let state = State::allocated(order).with(mobility);
        self.metas.at(page).set_state(state);
        // SAFETY: the page exists, or `at` had not returned.
        unsafe { self.extras.histories.allocated(page, order, who) };
    }

    /// Takes a block back from its owner: the page's number, with no note on it any more, and marked for a slot's
    /// list, so that freeing it again is noticed.
    ///
    /// The usual case only: an unmovable block without a note. In any other nothing has happened, and
    /// [`Self::take_back_any`] is to be called.
    #[inline(always)]
    pub(crate) fn take_back(&self, block: NonNull<u8>, order: Order, who: Who) -> Option<u32> {
        match self.page_at(block.as_ptr()) {
            Some((page, meta))
                if meta.claim(State::allocated(order), State::listed(order, false)) =>
            {
                self.taken_back(page, block, order, who);
                Some(page)
            }
            _ => None,
        }
    }

    /// Any block, and what it was asked for as.
    ///
    /// Aborts if no block of `order` that is out starts at `block`. Two threads that free the same block at the same moment may
    /// both pass where [`PageMeta::claim`] is no compare-exchange: then the block is listed twice, which is noticed when one of
    /// the two copies goes back to the zone, or is freed by the second of its two new owners.
    pub(crate) fn take_back_any(
        &self,
        block: NonNull<u8>,
        order: Order,
        who: Who,
    ) -> (u32, Mobility) {
        let page = self.block(block, order, "freed", Some(who));
        let meta = self.metas.at(page);
        let mobility = meta.state().mobility();
        let listed = State::listed(order, false).with(mobility);
        if meta.claim(State::tagged(order).with(mobility), listed) {
            self.note_all(page, order, PageTag::NONE);
        } else if !meta.claim(State::allocated(order).with(mobility), listed) {
            self.not_such_a_block(block, page, order, "freed", Some(who));
        }
        self.taken_back(page, block, order, who);
        (page, mobility)
    }

    /// What follows once the block is the zone's.
    #[inline(always)]
    fn taken_back(&self, page: u32, block: NonNull<u8>, order: Order, who: Who) {
        // SAFETY: the page was just found.
        unsafe { self.extras.histories.freed(page, order, who) };
        // SAFETY: as above, and the block was the freer's, who gave it up.
        unsafe { self.extras.poison.fill(page, block, order) };
        sanitize::hide(block, order.bytes());
    }

    /// For AddressSanitizer: these pages are free from now on, or not the zone's any more.
    pub(crate) fn note_free(&self, first: usize, pages: usize, is_ours: bool) {
        let (start, bytes) = (self.address(first as u32), pages << PAGE_SHIFT);
        if is_ours {
            sanitize::hide(start, bytes);
        } else {
            sanitize::reveal(start, bytes);
        }
    }

    /// The number of the first page of an owner's block; aborts if it is none.
    fn block(&self, block: NonNull<u8>, order: Order, verb: &str, who: Option<Who>) -> u32 {
        let Some((page, meta)) = self.page_at(block.as_ptr()) else {
            self.no_block(block, order, verb, who);
        };
        let state = meta.state().plain();
        if state != State::allocated(order) && state != State::tagged(order) {
            self.not_such_a_block(block, page, order, verb, who);
        }
        page
    }

    /// Aborts: there is no page at `block`.
    #[cold]
    fn no_block(&self, block: NonNull<u8>, order: Order, verb: &str, who: Option<Who>) -> ! {
        let around = fmt::from_fn(|f| match self.page_of(block.as_ptr()) {
            Some((page, _)) => {
                let offset = block.as_ptr().addr() % PAGE_SIZE;
                write!(f, "\n  it is {offset} bytes into page {page}")?;
                self.tell(page).fmt(f)
            }
            None => f.write_str("\n  it is foreign memory"),
        });
        broken(format_args!(
            "{verb} {block:p} as order {}, not the start of a page of this zone ({} pages at {:p}){around}{}",
            order.get(),
            self.metas.len(),
            self.base,
            Culprit(who),
        ))
    }

    /// Aborts: the page at `block` is not the start of an owner's block of `order`.
    #[cold]
    fn not_such_a_block(
        &self,
        block: NonNull<u8>,
        page: u32,
        order: Order,
        verb: &str,
        who: Option<Who>,
    ) -> ! {
        let state = self.metas.at(page).state();
        broken(format_args!(
            "{verb} block {block:p} (page {page}) as order {}, but it is {} (order {}){}{}",
            order.get(),
            state.name(),
            state.order().get(),
            self.tell(page),
            Culprit(who),
        ))
    }

    /// Aborts: a free page's poison is damaged.
    #[cold]
    #[inline(never)]
    fn written_after_free(&self, block: u32, written: Written) -> ! {
        let Written {
            page,
            offset,
            byte,
            len,
        } = written;
        let page = block + page;
        broken(format_args!(
            "page {page} ({:p}) was written to after it was freed: {len} bytes, the first at offset {offset} ({byte:#04x}){}",
            self.address(page),
            self.tell(page),
        ))
    }

    /// What is known about a page, for a message: the block around it, its owner's note, and histories.
    fn tell(&self, page: u32) -> impl fmt::Display {
        fmt::from_fn(move |f| {
            let head = self.head_of(page);
            if let Some(head) = head.filter(|&head| head != page) {
                let state = self.metas.at(head).state();
                let (name, order) = (state.name(), state.order().get());
                write!(
                    f,
                    "\n  inside the block at page {head}, {name} (order {order})"
                )?;
            }
            if head.is_none() {
                f.write_str("\n  in no block: free in the zone, or none of its pages now")?;
            }
            let note = self.metas.at(page).note();
            if note != PageTag::NONE {
                write!(f, "\n  its owner noted {} and {:p}", note.tag, note.owner)?;
            }
            // SAFETY: the page exists, or `at` had not returned.
            unsafe { self.extras.histories.tell(page) }.fmt(f)?;
            if let Some(head) = head.filter(|&head| head != page) {
                // SAFETY: as above.
                unsafe { self.extras.histories.tell(head) }.fmt(f)?;
            }
            Ok(())
        })
    }

    /// The first page of the block around `page`. A guess if somebody changes that block at this moment.
    pub(crate) fn head_of(&self, page: u32) -> Option<u32> {
        let bias = index::bias(self.base.as_ptr().addr());
        (0..=Order::MAX.get()).find_map(|order| {
            let head = (((page + bias) >> order) << order).checked_sub(bias)?;
            let state = self.metas.get(head)?.state();
            let covers = page - head < state.order().pages() as u32;
            (state != State::INSIDE && covers).then_some(head)
        })
    }

    /// Notes that free pages may have lost their contents: the source was asked to give their memory back.
    ///
    /// The pages must be the caller's, off every list, and inside the span.
    pub(crate) fn forget(&self, first: usize, pages: usize) {
        debug_assert!(first + pages <= self.metas.len() as usize, "I2");
        // SAFETY: pages of the span, the caller's.
        unsafe { self.extras.poison.forget(first, pages) };
    }

    fn note_all(&self, page: u32, order: Order, note: PageTag) {
        for page in page..page + order.pages() as u32 {
            self.metas.at(page).set_note(note);
        }
    }

    /// Notes `tag` on every page of an owner's block.
    pub(crate) fn set_tag(&self, block: NonNull<u8>, order: Order, tag: PageTag) {
        let page = self.block(block, order, "tagged", None);
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

/// Who broke the contract, where that is known.
struct Culprit(Option<Who>);

impl Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |who| tell_culprit(who).fmt(f))
    }
}
