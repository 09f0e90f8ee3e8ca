//! A page of pointers that wait for one grace period.
//!
//! # Life
//! Fresh (from the stock or a page) → open (pushed to) → in line (full, or sealed by the monitor) → ripe (its cookie is done) → emptied →
//! stock or page.
//!
//! # Cookie
//! Refreshed at each push (K5), as long as they trickle: up to [`EXACT`] objects, a grace period after the last one makes the block ripe,
//! whoever has asked for it. A block with more is about to fill; there a cookie for each object, which is a full fence, would cost as much as
//! the rest of the push, so it has one for each [`EXACT`], one for its last, and another one if it goes in line before (`Late`).
//!
//! # Entries
//! | block | `func` | an object's words |
//! |---|---|---|
//! | of the allocator's objects | null | the object |
//! | of foreign objects, as long as all share one function: a *run* | the function | the object |
//! | of foreign objects, from the first one with another function on | null | the object, its function |
//!
//! A run of more than half a block is not spread into pairs but put in line, so that no block holds fewer objects than one
//! of pairs would.

pub(crate) mod portion;

use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use pagealloc::PAGE_SIZE;
use rcu_core::{Cookie, GracePeriod};

use crate::glue::{Glue, free_pairs, keep_first};
use crate::objects::Objects;

/// Bytes of a block before its entries.
const HEADER: usize = 5 * size_of::<usize>();

/// Pointers in a block: what one page holds (K5).
#[doc(alias = "KVFREE_BULK_MAX_ENTR")]
pub(crate) const ENTRIES: usize = (PAGE_SIZE - HEADER) / size_of::<usize>();

/// How many objects of a block have a cookie each, and how many share one after these.
pub(crate) const EXACT: usize = 32;

/// What a block's entries are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Objects of the [`Objects`], freed in bulk.
    Small,
    /// Objects of the [`Objects`] with pages of their own.
    Large,
    /// Objects each of which its [`DropFn`](crate::DropFn) drops and frees.
    Glue,
    /// Objects that their [`DropManyFn`](crate::DropManyFn) drops and frees, many at a time.
    Typed,
    /// Objects whose [`DropManyFn`](crate::DropManyFn) gives memory back and drops nothing.
    Plain,
}

impl Kind {
    /// Whether such objects are not of the [`Objects`], and a function frees them.
    pub(crate) const fn is_foreign(self) -> bool {
        matches!(self, Self::Glue | Self::Typed | Self::Plain)
    }

    /// Whether freeing such objects runs destructors, or whatever else a user's function does.
    pub(crate) const fn runs_foreign_code(self) -> bool {
        matches!(self, Self::Glue | Self::Typed)
    }
}

pub(crate) const NR_KINDS: usize = 5;

/// How far a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum State {
    /// The cookie covers all objects.
    Exact,
    /// The cookie is older than the last object.
    Late,
    /// Ripe, and [`portion`] by portion taken from: nothing is in it twice, and objects of one function lie together.
    Drained,
}

/// One page: a header and pointers.
#[repr(C)]
pub(crate) struct Block {
    pub(crate) next: *mut Block,
    pub(crate) cookie: Cookie,
    bytes: usize,
    len: u16,
    kind: Kind,
    state: State,
    /// The monitor's round in which this block was begun.
    pub(crate) born: u32,
    /// The function that all objects share, or null.
    func: *mut (),
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
            state: State::Exact,
            born: 0,
            func: ptr::null_mut(),
            entries: [MaybeUninit::uninit(); ENTRIES],
        };
        // SAFETY: the page is owned, large enough and aligned (1).
        unsafe { block.write(header) };
        block
    }

    /// Whether one more object of the block's kind fits, with this glue if it is a foreign one.
    pub(crate) fn has_room(&self, glue: Option<Glue>) -> bool {
        let len = self.len as usize;
        match glue {
            None => len < ENTRIES,
            Some(glue) if len == 0 || self.func == glue.word() => len < ENTRIES,
            Some(_) if self.func.is_null() => len + 2 <= ENTRIES,
            Some(_) => 2 * (len + 1) <= ENTRIES,
        }
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) const fn kind(&self) -> Kind {
        self.kind
    }

    /// How many objects wait in here that are not counted as freed yet.
    pub(crate) const fn nr_uncounted(&self) -> usize {
        match self.state {
            State::Drained => 0,
            State::Exact | State::Late => self.nr_objects(),
        }
    }

    /// How many objects wait in here.
    pub(crate) const fn nr_objects(&self) -> usize {
        if self.kind.is_foreign() && self.func.is_null() {
            self.len as usize / 2
        } else {
            self.len as usize
        }
    }

    /// Adds one object. There is room for it.
    pub(crate) fn push(
        &mut self,
        object: NonNull<u8>,
        glue: Option<Glue>,
        bytes: usize,
        cookie: Cookie,
    ) {
        debug_assert!(self.has_room(glue) && glue.is_some() == self.kind.is_foreign());
        let word = glue.map_or(ptr::null_mut(), Glue::word);
        if self.len == 0 {
            self.func = word;
        } else if self.func != word && !self.func.is_null() {
            self.spread();
        }
        self.push_word(object.as_ptr().cast());
        if self.func != word {
            self.push_word(word);
        }
        self.bytes += bytes;
        self.cookie = cookie;
        self.state = State::Exact;
    }

    /// Adds one object without a cookie of its own, if it is one of many: no first one, no last one, and none that makes the block weigh
    /// `most_bytes`.
    #[inline(always)]
    pub(crate) fn push_hit(
        &mut self,
        object: NonNull<u8>,
        word: *mut (),
        bytes: usize,
        most_bytes: usize,
    ) -> bool {
        if self.func != word {
            return self.push_pair_hit(object, word, bytes, most_bytes);
        }
        let len = self.len as usize;
        if (self.kind.is_foreign() && word.is_null())
            || len < EXACT
            || len.is_multiple_of(EXACT)
            || len + 1 >= ENTRIES
            || self.bytes + bytes >= most_bytes
        {
            return false;
        }
        self.push_word(object.as_ptr().cast());
        self.bytes += bytes;
        self.state = State::Late;
        true
    }

    /// The same in a block of pairs: types take turns where a structure is made of several.
    #[inline(never)]
    fn push_pair_hit(
        &mut self,
        object: NonNull<u8>,
        word: *mut (),
        bytes: usize,
        most_bytes: usize,
    ) -> bool {
        let (len, nr) = (self.len as usize, self.len as usize / 2);
        if !self.kind.is_foreign()
            || !self.func.is_null()
            || nr < EXACT
            || nr.is_multiple_of(EXACT)
            || len + 4 > ENTRIES
            || self.bytes + bytes >= most_bytes
        {
            return false;
        }
        self.push_word(object.as_ptr().cast());
        self.push_word(word);
        self.bytes += bytes;
        self.state = State::Late;
        true
    }

    /// Gives the block a cookie for all that is in it.
    pub(crate) fn stamp(&mut self, gp: &impl GracePeriod) {
        if self.state == State::Late {
            self.state = State::Exact;
            self.cookie = gp.snapshot();
        }
    }

    fn push_word(&mut self, word: *mut ()) {
        self.entries[self.len as usize].write(word);
        self.len += 1;
    }

    /// Makes pairs of a run.
    #[cold]
    fn spread(&mut self) {
        let func = core::mem::replace(&mut self.func, ptr::null_mut());
        for i in (0..self.len as usize).rev() {
            self.entries[2 * i] = self.entries[i];
            self.entries[2 * i + 1].write(func);
        }
        self.len *= 2;
    }

    /// Frees everything in the block but what is in it twice. Returns how much that was, and how many destructors panicked
    /// (contained under `std`).
    ///
    /// # Safety
    /// 1. The block's cookie is done; its objects came from `objects`, or their functions free them.
    pub(crate) unsafe fn free_all(&mut self, objects: &impl Objects) -> Freed {
        let len = self.len as usize;
        let func = core::mem::replace(&mut self.func, ptr::null_mut());
        self.len = 0;
        self.bytes = 0;
        // SAFETY: the first `len` entries were written by `push`.
        let words = unsafe { self.entries[..len].assume_init_mut() };
        if self.kind.is_foreign() && func.is_null() {
            let (pairs, _) = words.as_chunks_mut::<2>();
            // SAFETY: 1, and pairs are as `push` wrote them, with functions of the block's kind.
            return unsafe { free_pairs(pairs, self.kind) };
        }
        let all: *mut [*mut ()] = words;
        // SAFETY: non-null pointers to objects, as `push` wrote them; `NonNull<u8>` has a pointer's layout.
        let all = unsafe { &mut *(all as *mut [NonNull<u8>]) };
        let mut freed = Freed::default();
        let n = match self.kind {
            Kind::Large | Kind::Typed | Kind::Plain => keep_first(all, NonNull::as_ptr, &mut freed),
            // A slab keeps book of its objects itself; and what a `DropFn` gets may be the same twice, a count's owners say.
            Kind::Small | Kind::Glue => all.len(),
        };
        if func.is_null() {
            // SAFETY: 1.
            unsafe { objects.free_bulk(&mut all[..n]) };
        } else {
            // SAFETY: the function of a run is one of the block's kind (1).
            freed.panicked = unsafe { Glue::free_by(self.kind, func, &mut all[..n]) };
        }
        freed
    }

    /// Calls `f` with each object in here.
    pub(crate) fn for_each(&self, mut f: impl FnMut(NonNull<u8>)) {
        let words = if self.kind.is_foreign() && self.func.is_null() {
            2
        } else {
            1
        };
        for entry in self.entries[..self.len as usize].iter().step_by(words) {
            // SAFETY: the first `len` entries were written by `push`.
            let object = unsafe { entry.assume_init() };
            NonNull::new(object.cast()).into_iter().for_each(&mut f);
        }
    }
}

/// What became of a block's objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Freed {
    /// Destructors that panicked.
    pub(crate) panicked: usize,
    /// Objects that had been retired twice; freed once.
    pub(crate) doubles: usize,
    /// The last of these.
    pub(crate) double: Option<NonNull<u8>>,
}

impl Freed {
    pub(crate) const fn note_double(&mut self, object: NonNull<u8>) {
        self.doubles += 1;
        self.double = Some(object);
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

    /// The same, to take from.
    pub(crate) fn first_mut(&mut self) -> Option<&mut Block> {
        // SAFETY: as above, and the line is the caller's alone.
        unsafe { self.first.as_mut() }
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
    struct Seen(RefCell<Vec<usize>>);

    // SAFETY: objects are numbers here.
    unsafe impl Objects for Seen {
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

    pub(super) fn number(n: usize) -> NonNull<u8> {
        NonNull::new(ptr::without_provenance_mut(n)).unwrap()
    }

    pub(super) fn page() -> NonNull<u8> {
        NonNull::from(Box::leak(Box::new(MaybeUninit::<Block>::uninit()))).cast()
    }

    pub(super) fn give_back(block: NonNull<Block>) {
        // SAFETY: made by `page`, and used by nobody.
        drop(unsafe { Box::from_raw(block.cast::<MaybeUninit<Block>>().as_ptr()) });
    }

    #[test]
    fn k5_post_2020_headless_a_block_holds_what_a_page_can() {
        let freed = Seen::default();
        // SAFETY: a page's worth of memory.
        let mut at = unsafe { Block::init(page(), Kind::Small) };
        // SAFETY: this test's own.
        let block = unsafe { at.as_mut() };
        let mut n = 0;
        while block.has_room(None) {
            n += 1;
            block.push(number(n), None, 3, Cookie::COMPLETED);
            assert_eq!((block.nr_objects(), block.bytes()), (n, 3 * n));
        }
        assert_eq!(n, ENTRIES);
        // SAFETY: numbers may be freed at any time.
        assert_eq!(unsafe { block.free_all(&freed) }, Freed::default());
        assert_eq!(freed.0.take(), (1..=n).collect::<Vec<_>>());
        assert_eq!((block.nr_objects(), block.bytes()), (0, 0));
        give_back(at);
    }

    /// The cookies of one kind of block: which pushes need one.
    fn exact(kind: Kind, glue: impl Fn(usize) -> Option<Glue>) -> Vec<usize> {
        // SAFETY: a page's worth of memory.
        let mut at = unsafe { Block::init(page(), kind) };
        // SAFETY: this test's own.
        let block = unsafe { at.as_mut() };
        let mut exact = Vec::new();
        let mut n = 0;
        while block.has_room(glue(n + 1)) {
            n += 1;
            let word = glue(n).map_or(ptr::null_mut(), Glue::word);
            if !block.push_hit(number(n), word, 3, usize::MAX) {
                exact.push(n);
                block.push(number(n), glue(n), 3, Cookie::COMPLETED);
            }
            assert_eq!(block.state == State::Late, exact.last() != Some(&n), "{n}");
            assert_eq!((block.nr_objects(), block.bytes()), (n, 3 * n));
        }
        let mut inside = Vec::new();
        block.for_each(|object| inside.push(object.addr().get()));
        assert_eq!(inside, (1..=n).collect::<Vec<_>>());
        assert_eq!(block.state, State::Exact, "the last one has a cookie");
        // One that would make the block heavy is for the slow way to line up.
        let word = glue(n).map_or(ptr::null_mut(), Glue::word);
        assert!(!block.push_hit(number(n), word, 3, 3 * n));
        give_back(at);
        exact
    }

    #[test]
    fn k5_pairs_have_as_few_cookies_as_runs() {
        unsafe fn one(_: &mut [NonNull<u8>]) -> usize {
            1
        }
        unsafe fn two(_: &mut [NonNull<u8>]) -> usize {
            2
        }
        let nth = |last: usize| {
            let sparse = (EXACT..last).step_by(EXACT).map(|n| n + 1);
            let mut all: Vec<_> = (1..=EXACT).chain(sparse).chain([last]).collect();
            all.dedup();
            all
        };
        assert_eq!(exact(Kind::Small, |_| None), nth(ENTRIES));
        assert_eq!(exact(Kind::Typed, |_| Some(Glue::Many(one))), nth(ENTRIES));
        let turns = |n| Some(Glue::Many(if n % 2 == 0 { one } else { two }));
        assert_eq!(exact(Kind::Typed, turns), nth(ENTRIES / 2));
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
