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
#[repr(u16)]
pub(crate) enum Kind {
    /// Objects of the [`Objects`], freed in bulk.
    Small,
    /// Objects of the [`Objects`] with pages of their own.
    Large,
    /// Pairs of an object and the function that drops and frees it.
    Glue,
}

impl Kind {
    /// Words of an object's entry.
    const fn words(self) -> usize {
        match self {
            Self::Small | Self::Large => 1,
            Self::Glue => 2,
        }
    }
}

pub(crate) const NR_KINDS: usize = 3;

/// One page: a header and pointers.
#[repr(C)]
pub(crate) struct Block {
    pub(crate) next: *mut Block,
    pub(crate) cookie: Cookie,
    bytes: usize,
    len: u16,
    kind: Kind,
    /// The monitor's round in which this block was begun.
    pub(crate) born: u32,
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
            born: 0,
            _reserved: 0,
            entries: [MaybeUninit::uninit(); ENTRIES],
        };
        // SAFETY: the page is owned, large enough and aligned (1).
        unsafe { block.write(header) };
        block
    }

    /// Whether one more object of the block's kind fits.
    pub(crate) const fn has_room(&self) -> bool {
        ENTRIES - self.len as usize >= self.kind.words()
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
        debug_assert!(self.has_room() && drop.is_some() == (self.kind == Kind::Glue));
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

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::RefCell;
    use std::vec::Vec;

    #[derive(Default)]
    struct Freed(RefCell<Vec<usize>>);

    // SAFETY: objects are numbers here.
    unsafe impl Objects for Freed {
        unsafe fn try_defer(&self, _object: NonNull<u8>) -> bool {
            false
        }
        fn is_large(&self, _object: NonNull<u8>) -> bool {
            false
        }
        fn size_bytes(&self, _object: NonNull<u8>) -> usize {
            0
        }
        unsafe fn free_bulk(&self, objects: &mut [NonNull<u8>]) {
            let numbers = objects.iter().map(|o| o.addr().get());
            self.0.borrow_mut().extend(numbers);
        }
        fn barrier(&self) {}
        fn reap(&self) -> usize {
            0
        }

        fn waiting_bytes(&self) -> usize {
            0
        }
    }

    fn number(n: usize) -> NonNull<u8> {
        NonNull::new(ptr::without_provenance_mut(n)).unwrap()
    }

    fn page() -> NonNull<u8> {
        NonNull::from(Box::leak(Box::new(MaybeUninit::<Block>::uninit()))).cast()
    }

    fn give_back(block: NonNull<Block>) {
        // SAFETY: made by `page`, and used by nobody.
        drop(unsafe { Box::from_raw(block.cast::<MaybeUninit<Block>>().as_ptr()) });
    }

    #[test]
    fn k5_a_block_holds_what_a_page_can() {
        let freed = Freed::default();
        // SAFETY: a page's worth of memory.
        let mut at = unsafe { Block::init(page(), Kind::Small) };
        // SAFETY: this test's own.
        let block = unsafe { at.as_mut() };
        let mut n = 0;
        while block.has_room() {
            n += 1;
            block.push(number(n), None, 3, Cookie::COMPLETED);
            assert_eq!((block.nr_objects(), block.bytes()), (n, 3 * n));
        }
        assert_eq!(n, ENTRIES);
        // SAFETY: numbers may be freed at any time.
        assert_eq!(unsafe { block.free_all(&freed) }, 0);
        assert_eq!(freed.0.take(), (1..=n).collect::<Vec<_>>());
        assert_eq!((block.nr_objects(), block.bytes()), (0, 0));
        give_back(at);
    }

    #[test]
    fn pairs_are_called_once_each() {
        std::thread_local! {
            static CALLED: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
        }
        unsafe fn call(object: NonNull<u8>) {
            CALLED.with_borrow_mut(|c| c.push(object.addr().get()));
        }
        // SAFETY: a page's worth of memory.
        let mut at = unsafe { Block::init(page(), Kind::Glue) };
        // SAFETY: this test's own.
        let block = unsafe { at.as_mut() };
        let mut n = 0;
        while block.has_room() {
            n += 1;
            block.push(number(n), Some(call), 8, Cookie::COMPLETED);
        }
        assert_eq!((n, block.nr_objects()), (ENTRIES / 2, ENTRIES / 2));
        // SAFETY: the function may be called at any time.
        assert_eq!(unsafe { block.free_all(&Freed::default()) }, 0);
        assert_eq!(CALLED.take(), (1..=n).collect::<Vec<_>>());
        give_back(at);
    }

    #[test]
    fn lines_keep_their_order() {
        let (mut first, mut second) = (Line::new(), Line::new());
        let blocks: Vec<_> = (0..5)
            // SAFETY: a page's worth of memory.
            .map(|_| unsafe { Block::init(page(), Kind::Large) })
            .collect();
        blocks[..2].iter().for_each(|&b| first.push(b));
        blocks[2..].iter().for_each(|&b| second.push(b));
        first.append(second.take());
        first.append(second);
        assert_eq!((first.len(), first.iter().count()), (5, 5));
        let popped: Vec<_> = core::iter::from_fn(|| first.pop()).collect();
        assert_eq!(popped, blocks);
        assert!(first.is_empty() && first.first().is_none());
        first.push(blocks[3]);
        assert_eq!(first.take().pop(), Some(blocks[3]));
        blocks.into_iter().for_each(give_back);
    }
}
