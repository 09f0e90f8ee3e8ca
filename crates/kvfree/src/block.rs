//! A page of pointers that wait for one grace period.
//!
//! # Life
//! Fresh (from the stock or a page) → open (pushed to; the cookie is refreshed at each push, K5) → in line (full, or
//! sealed by the monitor) → ripe (its cookie is done) → emptied → stock or page.

use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use pagealloc::PAGE_SIZE;
use rcu_core::Cookie;

use crate::objects::{DropFn, Objects};

/// Bytes of a block before its entries.
const HEADER: usize = 5 * size_of::<usize>();

/// Pointers in a block: what one page holds (K5).
#[doc(alias = "KVFREE_BULK_MAX_ENTR")]
pub(crate) const ENTRIES: usize = (PAGE_SIZE - HEADER) / size_of::<usize>();

/// What a block's entries are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// Objects of the [`Objects`], freed in bulk.
    Small,
    /// Objects of the [`Objects`] with pages of their own.
    Large,
    /// Pairs of an object and the function that drops and frees it.
    Glue,
}

pub(crate) const NR_KINDS: usize = 3;

/// One page: a header and pointers.
#[repr(C)]
pub(crate) struct Block {
    pub(crate) next: *mut Block,
    pub(crate) cookie: Cookie,
    bytes: usize,
    len: u32,
    kind: Kind,
    _reserved: usize,
    entries: [MaybeUninit<*mut ()>; ENTRIES],
}

static_assertions::const_assert_eq!(size_of::<Block>(), PAGE_SIZE);

impl Block {
    /// Makes an empty block of a page.
    ///
    /// # Safety
    /// 1. `page` is a page of memory, owned by the caller.
    pub(crate) unsafe fn init(page: NonNull<u8>, kind: Kind) -> NonNull<Block> {
        let block = page.cast::<Block>();
        let header = Block {
            next: ptr::null_mut(),
            cookie: Cookie::COMPLETED,
            bytes: 0,
            len: 0,
            kind,
            _reserved: 0,
            entries: [MaybeUninit::uninit(); ENTRIES],
        };
        // SAFETY: the page is owned, large enough and aligned (1).
        unsafe { block.write(header) };
        block
    }

    /// How many words of a push still fit.
    pub(crate) const fn room(&self) -> usize {
        ENTRIES - self.len as usize
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) const fn kind(&self) -> Kind {
        self.kind
    }

    /// How many objects wait in here.
    pub(crate) const fn nr_objects(&self) -> usize {
        match self.kind {
            Kind::Glue => self.len as usize / 2,
            _ => self.len as usize,
        }
    }

    /// Adds one object. There is room for it.
    pub(crate) fn push(
        &mut self,
        object: NonNull<u8>,
        drop: Option<DropFn>,
        bytes: usize,
        cookie: Cookie,
    ) {
        debug_assert!(self.room() >= 2 && drop.is_some() == (self.kind == Kind::Glue));
        let at = self.len as usize;
        self.entries[at].write(object.as_ptr().cast());
        self.len += 1;
        if let Some(drop) = drop {
            self.entries[at + 1].write(drop as *mut ());
            self.len += 1;
        }
        self.bytes += bytes;
        self.cookie = cookie;
    }

    /// Frees everything in the block. Returns how many destructors panicked (contained under `std`).
    ///
    /// # Safety
    /// 1. The block's cookie is done; its objects came from `objects`, or their functions free them.
    pub(crate) unsafe fn free_all(&mut self, objects: &impl Objects) -> usize {
        let len = self.len as usize;
        self.len = 0;
        self.bytes = 0;
        // SAFETY: the first `len` entries were written by `push`.
        let words = unsafe { self.entries[..len].assume_init_mut() };
        if self.kind == Kind::Glue {
            let (pairs, _) = words.as_chunks::<2>();
            // SAFETY: 1, and pairs are as `push` wrote them.
            return pairs.iter().map(|&pair| unsafe { drop_one(pair) }).sum();
        }
        let all: *mut [*mut ()] = words;
        // SAFETY: non-null pointers to objects, as `push` wrote them; `NonNull<u8>` has a pointer's layout.
        let all = unsafe { &mut *(all as *mut [NonNull<u8>]) };
        // SAFETY: 1.
        unsafe { objects.free_bulk(all) };
        0
    }
}

/// Drops one object; 1 if its destructor panicked.
///
/// # Safety
/// 1. `pair` is an object that nobody sees any more, and the function that frees it.
unsafe fn drop_one(pair: [*mut (); 2]) -> usize {
    // SAFETY: the second word was made from a `DropFn` by `push`.
    let drop = unsafe { core::mem::transmute::<*mut (), DropFn>(pair[1]) };
    // SAFETY: the first word was made from a `NonNull` by `push`.
    let object = unsafe { NonNull::new_unchecked(pair[0].cast::<u8>()) };
    // SAFETY: 1.
    contained(|| unsafe { drop(object) })
}

/// Runs `f`; 1 if it panicked and that was contained.
pub(crate) fn contained(f: impl FnOnce()) -> usize {
    #[cfg(feature = "std")]
    return usize::from(std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err());
    #[cfg(not(feature = "std"))]
    {
        f();
        0
    }
}

/// Blocks in the order in which they were sealed, linked through their headers.
#[derive(Debug)]
pub(crate) struct Line {
    first: *mut Block,
    last: *mut Block,
    len: usize,
}

// SAFETY: null pointers and a zero length: empty.
unsafe impl rcu_core::cpu::ZeroInit for Line {}
// SAFETY: a line owns its blocks, whose objects may be freed by any thread.
unsafe impl Send for Line {}

impl Line {
    pub(crate) const fn new() -> Self {
        Self {
            first: ptr::null_mut(),
            last: ptr::null_mut(),
            len: 0,
        }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The oldest block.
    pub(crate) fn first(&self) -> Option<&Block> {
        // SAFETY: blocks in line are valid and owned by it.
        unsafe { self.first.as_ref() }
    }

    /// The blocks, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Block> {
        // SAFETY: blocks in line are valid and owned by it.
        core::iter::successors(self.first(), |block| unsafe { block.next.as_ref() })
    }

    /// Puts a block that is on no line behind.
    pub(crate) fn push(&mut self, mut block: NonNull<Block>) {
        // SAFETY: the line takes the block over.
        unsafe { block.as_mut() }.next = ptr::null_mut();
        match NonNull::new(self.last) {
            // SAFETY: the last block is valid and owned by the line.
            Some(mut last) => unsafe { last.as_mut() }.next = block.as_ptr(),
            None => self.first = block.as_ptr(),
        }
        self.last = block.as_ptr();
        self.len += 1;
    }

    pub(crate) fn pop(&mut self) -> Option<NonNull<Block>> {
        let block = NonNull::new(self.first)?;
        // SAFETY: the first block is valid and owned by the line.
        self.first = unsafe { block.as_ref() }.next;
        if self.first.is_null() {
            self.last = ptr::null_mut();
        }
        self.len -= 1;
        Some(block)
    }

    pub(crate) const fn take(&mut self) -> Self {
        core::mem::replace(self, Self::new())
    }

    /// Puts all of `other` behind.
    pub(crate) fn append(&mut self, mut other: Self) {
        while let Some(block) = other.pop() {
            self.push(block);
        }
    }
}
