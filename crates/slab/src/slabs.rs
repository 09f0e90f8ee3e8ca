//! Slabs: blocks of pages cut into objects, their state kept outside of them.
//!
//! Why a bitmap in a descriptor and not a list through the free objects (as SLUB): a double free is
//! seen, a free object's memory is not written (its pages need not even exist; the link of a free that met every lock, on its way
//! here, is the exception), readers that still look at it are not disturbed, and a refill takes a word of objects at a time.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `Slab.cache`, `base`, `colour` | whose it is, where its objects are | at birth only |
//! | `Slab.free`, `inuse`, `list`, `stay`, links | which objects are out; which list it is on, and how long for | under the cache's slabs lock |
//!
//! # Life
//! Page block and descriptor are got without a lock; the slab is born `EMPTY`, moves between the lists as its
//! objects go out and come back, and when more than `min_partial` are empty it is put among the `Dying`, to be
//! buried after the lock is left.
//!
//! # Invariants
//! - I1. `inuse` is the number of zero bits among the first `nr_objects` of `free`; the other bits are zero.
//! - I2. A slab is on the list that `list_of(inuse)` names, or among the dying; it stays on its list for as long as `inuse` is in
//!   `stay`.
//! - I3. The tag of a slab's pages holds its descriptor and the cache's number.
//! - I4. Object `i` is `colour + Shape::offset_of(i)` bytes into the block, which [`Slab::object`] alone adds up; `colour` is at most what the objects leave of it, and a multiple of
//!   their alignment.
//!
//! # Contexts
//! Everything here runs under the slabs lock (`&mut Slabs`) and calls nothing but [`PageAlloc::tag`].

#[cfg(test)]
mod tests;

use crate::checks::Checks;
use crate::config::{MAX_OBJECTS, Shape};
use crate::fault::{Fault, broken};
use arrayvec::ArrayVec;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use pagealloc::{PageAlloc, PageTag};
use static_assertions::const_assert_eq;

/// A few addresses of objects.
pub(crate) type Samples = ArrayVec<usize, 8>;

const WORDS: usize = MAX_OBJECTS / 64;
/// The list of slabs with nothing out.
const EMPTY: u8 = 0;
/// Lists 1 to 4 are of slabs by quarters of objects out.
const FULLEST: u8 = 4;
/// The list of slabs with everything out.
const FULL: u8 = 5;
const LISTS: usize = 6;

/// A slab's descriptor. What giving out and taking back need comes first: one cache line for slabs of up to 320 objects.
#[repr(C, align(128))]
#[derive(Debug)]
pub(crate) struct Slab {
    /// The address of the cache's inner structure, to tell caches apart; never followed.
    cache: *const (),
    pub(crate) base: NonNull<u8>,
    inuse: u16,
    /// Bytes before the first object.
    colour: u16,
    /// The least `inuse` of the list, and how many follow it there.
    stay: (u16, u16),
    list: u8,
    /// Bit set: the object is free.
    free: [u64; WORDS],
    next: Option<NonNull<Slab>>,
    prev: Option<NonNull<Slab>>,
}
const_assert_eq!(size_of::<Slab>(), 128);

impl Slab {
    /// Makes the descriptor of a slab with all objects free, on no list.
    ///
    /// `nth` of the cache's, it has the colour that is next then.
    pub(crate) fn new(cache: *const (), base: NonNull<u8>, shape: &Shape, nth: usize) -> Self {
        let mut free = [0; WORDS];
        for (i, word) in free.iter_mut().enumerate() {
            let bits = shape.nr_objects.saturating_sub(i * 64).min(64) as u32;
            *word = u64::MAX.checked_shr(64 - bits).unwrap_or(0);
        }
        Self {
            cache,
            base,
            inuse: 0,
            colour: (nth % shape.colours * shape.colour_bytes) as u16,
            stay: (0, 1),
            list: EMPTY,
            free,
            next: None,
            prev: None,
        }
    }
}

impl Slab {
    /// Where an object lies.
    ///
    /// # Safety
    /// 1. `index` is below the slab's number of objects.
    pub(crate) unsafe fn object(&self, shape: &Shape, index: usize) -> NonNull<u8> {
        let offset = usize::from(self.colour) + shape.offset_of(index);
        // SAFETY: inside the block (1, I4).
        unsafe { self.base.add(offset) }
    }

    /// Which object lies `offset` bytes into the block, if one does.
    #[inline(always)]
    fn index_at(&self, shape: &Shape, offset: usize) -> Option<usize> {
        // Below the first object the difference wraps, and is the place of none.
        shape.index_of(offset.wrapping_sub(self.colour.into()))
    }

    /// Fills `out` from the front with free objects, and says how many. The highest addresses come first: what is popped off a
    /// sheaf then goes up.
    fn take(&mut self, shape: &Shape, out: &mut [MaybeUninit<NonNull<u8>>]) -> usize {
        let mut places = out.iter_mut();
        let room = places.len();
        // SAFETY: a slab has one object at least.
        let first = unsafe { self.object(shape, 0) };
        'full: for (i, word) in self.free.iter_mut().enumerate().rev() {
            while *word != 0 {
                let Some(place) = places.next() else {
                    break 'full;
                };
                let bit = 63 - word.leading_zeros() as usize;
                *word ^= 1 << bit;
                // SAFETY: bits are set for the slab's objects only (I1), which are inside the block.
                place.write(unsafe { first.add((i * 64 + bit) * shape.size) });
            }
        }
        let got = room - places.len();
        self.inuse += got as u16;
        got
    }

    /// Notes that `object`, which lies `offset` bytes into the slab, is free. `inuse` is left to the caller.
    #[inline(always)]
    fn take_back(&mut self, object: NonNull<u8>, offset: usize, shape: &Shape) {
        let Some(index) = self.index_at(shape, offset) else {
            self.refuse(Fault::Misaligned, object, shape);
        };
        let (word, bit) = (&mut self.free[index / 64], 1 << (index % 64));
        if *word & bit != 0 {
            self.refuse(Fault::DoubleFree, object, shape);
        }
        *word |= bit;
    }

    #[cold]
    #[inline(never)]
    fn refuse(&self, fault: Fault, object: NonNull<u8>, shape: &Shape) -> ! {
        broken(fault, shape.name, object.as_ptr(), self.base.as_ptr())
    }
}

/// The list for a slab with `inuse` objects out.
fn list_of(inuse: usize, shape: &Shape) -> u8 {
    match inuse {
        0 => EMPTY,
        n if n == shape.nr_objects => FULL,
        n => 1 + (n * 4 / shape.nr_objects) as u8,
    }
}

/// For which `inuse` a slab is on `list`: the least, and how many.
fn stay_of(list: u8, shape: &Shape) -> (u16, u16) {
    let quarter = |n: usize| (n * shape.nr_objects).div_ceil(4).max(1);
    let (from, to) = match list {
        EMPTY => (0, 1),
        FULL => (shape.nr_objects, shape.nr_objects + 1),
        n => (quarter(usize::from(n) - 1), quarter(usize::from(n))),
    };
    (from as u16, (to - from) as u16)
}

/// Slabs to be buried, linked by `next`.
#[derive(Debug, Default)]
pub(crate) struct Dying {
    first: Option<NonNull<Slab>>,
}

impl Dying {
    pub(crate) fn push(&mut self, slab: NonNull<Slab>) {
        // SAFETY: the slab is on no list, so this call has it alone.
        unsafe { &mut *slab.as_ptr() }.next = self.first;
        self.first = Some(slab);
    }

    pub(crate) fn pop(&mut self) -> Option<NonNull<Slab>> {
        let slab = self.first?;
        // SAFETY: as in `push`.
        self.first = unsafe { slab.as_ref() }.next;
        Some(slab)
    }
}

/// All slabs of a cache.
#[derive(Debug)]
pub(crate) struct Slabs {
    lists: [Option<NonNull<Slab>>; LISTS],
    nr_slabs: usize,
    nr_empty: usize,
    /// Objects out of their slabs.
    inuse: usize,
    /// Where the random numbers are ([`Checks::RANDOM`]).
    random: u64,
}

// SAFETY: descriptors belong to the cache and are reached under its slabs lock only.
unsafe impl Send for Slabs {}

impl Slabs {
    pub(crate) const fn new() -> Self {
        Self {
            lists: [None; LISTS],
            nr_slabs: 0,
            nr_empty: 0,
            inuse: 0,
            random: 0,
        }
    }

    pub(crate) fn nr_slabs(&self) -> usize {
        self.nr_slabs
    }

    /// Objects out of their slabs: with users, in sheaves, or waiting.
    pub(crate) fn inuse(&self) -> usize {
        self.inuse
    }

    fn slab(&mut self, slab: NonNull<Slab>) -> &mut Slab {
        // SAFETY: descriptors come from `add` and leave with `unlink`; in between they are
        // initialised and belong to `self`, which is borrowed exclusively.
        unsafe { &mut *slab.as_ptr() }
    }

    fn link(&mut self, slab: NonNull<Slab>, list: u8, shape: &Shape) {
        let first = self.lists[usize::from(list)].replace(slab);
        let this = self.slab(slab);
        this.list = list;
        this.stay = stay_of(list, shape);
        this.prev = None;
        this.next = first;
        if let Some(first) = first {
            self.slab(first).prev = Some(slab);
        }
        self.nr_empty += usize::from(list == EMPTY);
    }

    fn unlink(&mut self, slab: NonNull<Slab>) {
        let this = self.slab(slab);
        let (list, prev, next) = (this.list, this.prev, this.next);
        match prev {
            Some(prev) => self.slab(prev).next = next,
            None => self.lists[usize::from(list)] = next,
        }
        if let Some(next) = next {
            self.slab(next).prev = prev;
        }
        self.nr_empty -= usize::from(list == EMPTY);
    }

    /// Puts the slab on the list that its `inuse` asks for (I2), or among the dying.
    #[inline(always)]
    fn settle(&mut self, slab: NonNull<Slab>, shape: &Shape, dying: &mut Dying) {
        let this = self.slab(slab);
        let (from, span) = this.stay;
        if this.inuse.wrapping_sub(from) >= span {
            self.resettle(slab, shape, dying);
        }
    }

    #[inline(never)]
    fn resettle(&mut self, slab: NonNull<Slab>, shape: &Shape, dying: &mut Dying) {
        let to = list_of(usize::from(self.slab(slab).inuse), shape);
        self.unlink(slab);
        if to == EMPTY && self.nr_empty >= shape.min_partial {
            self.nr_slabs -= 1;
            dying.push(slab);
        } else {
            self.link(slab, to, shape);
        }
    }

    /// Takes in a new slab.
    ///
    /// # Safety
    /// 1. `slab` is an initialised descriptor ([`Slab::new`]) of a block tagged with it, and is the list's from now on.
    pub(crate) unsafe fn add(&mut self, slab: NonNull<Slab>, shape: &Shape) {
        self.nr_slabs += 1;
        self.random ^= slab.addr().get() as u64;
        self.link(slab, EMPTY, shape);
    }

    /// The next of a row of numbers that looks random (splitmix64, Steele et al. 2014).
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Fills `out` from the front with free objects, from the fullest slabs first, and says how many.
    pub(crate) fn refill(&mut self, shape: &Shape, out: &mut [MaybeUninit<NonNull<u8>>]) -> usize {
        let mut got = 0;
        // Partial slabs from the fullest down, then empty ones.
        for list in (EMPTY..=FULLEST).rev() {
            while got < out.len()
                && let Some(slab) = self.lists[usize::from(list)]
            {
                got += if shape.checks.contains(Checks::RANDOM) {
                    self.take_random(slab, shape, &mut out[got..])
                } else {
                    self.slab(slab).take(shape, &mut out[got..])
                };
                // No slab dies of giving objects out.
                self.settle(slab, shape, &mut Dying::default());
            }
        }
        self.inuse += got;
        got
    }

    /// As [`Slab::take`], any free object as likely as any other.
    fn take_random(
        &mut self,
        slab: NonNull<Slab>,
        shape: &Shape,
        out: &mut [MaybeUninit<NonNull<u8>>],
    ) -> usize {
        let free = shape.nr_objects - usize::from(self.slab(slab).inuse);
        let got = out.len().min(free);
        for (place, left) in out.iter_mut().zip((free - got + 1..=free).rev()) {
            let nth = (self.next_random() % left as u64) as usize;
            let this = self.slab(slab);
            let index = nth_free(&this.free, nth);
            this.free[index / 64] &= !(1 << (index % 64));
            // SAFETY: bits are set for the slab's objects only (I1).
            place.write(unsafe { this.object(shape, index) });
        }
        self.slab(slab).inuse += got as u16;
        got
    }

    /// The object at `object`, by a pointer that is good for its whole slab. Aborts if there is none of this cache's.
    pub(crate) fn locate<P: PageAlloc>(
        &mut self,
        cache: *const (),
        shape: &Shape,
        pages: &P,
        object: NonNull<u8>,
    ) -> NonNull<u8> {
        let slab = find(cache, shape, pages, object);
        let this = self.slab(slab);
        let base = this.base;
        let offset = object.addr().get() - base.addr().get();
        if this.index_at(shape, offset).is_none() {
            broken(
                Fault::Misaligned,
                shape.name,
                object.as_ptr(),
                base.as_ptr(),
            );
        }
        // SAFETY: the offset is that of an object of the slab, so inside the block.
        unsafe { base.add(offset) }
    }

    /// Shows every object that is out of its slab to `look`.
    pub(crate) fn each_out(&mut self, shape: &Shape, mut look: impl FnMut(NonNull<u8>)) {
        for list in EMPTY + 1..=FULL {
            let mut next = self.lists[usize::from(list)];
            while let Some(slab) = next {
                let this = self.slab(slab);
                for index in 0..shape.nr_objects {
                    if this.free[index / 64] & (1 << (index % 64)) == 0 {
                        // SAFETY: the slab has so many.
                        look(unsafe { this.object(shape, index) });
                    }
                }
                next = this.next;
            }
        }
    }

    /// Takes objects back into their slabs. Aborts on one that is not out.
    pub(crate) fn put<P: PageAlloc>(
        &mut self,
        cache: *const (),
        shape: &Shape,
        pages: &P,
        objects: &[NonNull<u8>],
        dying: &mut Dying,
    ) {
        let slab_bytes = shape.order.bytes();
        let mut rest = objects;
        while let Some(&first) = rest.first() {
            let slab = find(cache, shape, pages, first);
            let this = self.slab(slab);
            let base = this.base.addr().get();
            // Neighbours in a sheaf are often neighbours in a slab: one look at the tag for all.
            let mut taken = 0;
            for &object in rest {
                let offset = object.addr().get().wrapping_sub(base);
                if offset >= slab_bytes {
                    break;
                }
                this.take_back(object, offset, shape);
                taken += 1;
            }
            this.inuse -= taken as u16;
            self.inuse -= taken;
            self.settle(slab, shape, dying);
            rest = &rest[taken..];
        }
    }

    /// Takes all empty slabs out.
    pub(crate) fn take_empty(&mut self, dying: &mut Dying) {
        self.take_some_empty(usize::MAX, dying);
    }

    /// Takes at most `most` empty slabs out.
    pub(crate) fn take_some_empty(&mut self, most: usize, dying: &mut Dying) {
        for _ in 0..most {
            let Some(slab) = self.lists[usize::from(EMPTY)] else {
                break;
            };
            self.unlink(slab);
            self.nr_slabs -= 1;
            dying.push(slab);
        }
    }

    /// Adds addresses of objects that are out, as far as there is room.
    pub(crate) fn sample(&mut self, shape: &Shape, samples: &mut Samples) {
        for list in EMPTY + 1..=FULL {
            let mut at = self.lists[usize::from(list)];
            while let Some(slab) = at {
                let this = self.slab(slab);
                at = this.next;
                for index in 0..shape.nr_objects {
                    if samples.is_full() {
                        return;
                    }
                    if this.free[index / 64] & (1 << (index % 64)) == 0 {
                        // SAFETY: the slab has so many.
                        samples.push(unsafe { this.object(shape, index) }.addr().get());
                    }
                }
            }
        }
    }

    /// Takes all slabs with objects out of the lists: they are lost.
    pub(crate) fn take_used(&mut self, lost: &mut Dying) {
        for list in EMPTY + 1..=FULL {
            while let Some(slab) = self.lists[usize::from(list)] {
                self.unlink(slab);
                self.nr_slabs -= 1;
                lost.push(slab);
            }
        }
    }
}

/// The index of the set bit that has `nth` set ones below it.
fn nth_free(free: &[u64; WORDS], mut nth: usize) -> usize {
    for (i, &word) in free.iter().enumerate() {
        let ones = word.count_ones() as usize;
        if nth < ones {
            let rest = (0..nth).fold(word, |rest, _| rest & (rest - 1));
            return i * 64 + rest.trailing_zeros() as usize;
        }
        nth -= ones;
    }
    unreachable!("fewer free objects than `inuse` says (I1)")
}

/// Aborts if there is no object of this cache's at `object`. Without the lock: of the slab, only what is written at birth is read.
pub(crate) fn expect_object<P: PageAlloc>(
    cache: *const (),
    shape: &Shape,
    pages: &P,
    object: NonNull<u8>,
) {
    let slab = find(cache, shape, pages, object).as_ptr();
    // SAFETY: I3: a descriptor lives for as long as its pages are tagged with it.
    let colour = unsafe { &raw const (*slab).colour };
    // SAFETY: as above; `colour` is written at birth only.
    let colour = usize::from(unsafe { colour.read() });
    // Page blocks are aligned to their size.
    let offset = object.addr().get() & (shape.order.bytes() - 1);
    if shape.index_of(offset.wrapping_sub(colour)).is_none() {
        let base = object.as_ptr().wrapping_sub(offset);
        broken(Fault::Misaligned, shape.name, object.as_ptr(), base);
    }
}

/// The slab that `object` lies in. Aborts if that is none of this cache's.
fn find<P: PageAlloc>(
    cache: *const (),
    shape: &Shape,
    pages: &P,
    object: NonNull<u8>,
) -> NonNull<Slab> {
    let tag = pages.tag(object.as_ptr()).unwrap_or(PageTag::NONE);
    let slab = tag.owner.cast::<Slab>();
    match NonNull::new(slab) {
        // The mark in the tag says that the owner is a slab's descriptor, though perhaps another cache's.
        Some(found) if tag.tag == shape.tag => {
            // SAFETY: I3: a descriptor lives for as long as its pages are tagged with it.
            let owner = unsafe { &raw const (*slab).cache };
            // SAFETY: as above; `cache` is written at birth only.
            if unsafe { owner.read() } == cache {
                return found;
            }
        }
        _ => {}
    }
    broken(Fault::Foreign, shape.name, object.as_ptr(), slab.cast())
}
