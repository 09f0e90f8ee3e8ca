//! Slabs: blocks of pages cut into objects, their state kept outside of them.
//!
//! Why a bitmap in a descriptor and not a list through the free objects (as SLUB): a double free is
//! seen, a free object's memory is not written (its pages need not even exist; the link of a free that met every lock, on its way
//! here, is the exception), readers that still look at it are not disturbed, and a refill takes a word of objects at a time.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `Slab.cache`, `base` | whose it is, where its objects are | at birth only |
//! | `Slab.free`, `inuse`, `list`, links, `cookie` | which objects are out; which list it is on; when its readers are gone | under the cache's slabs lock |
//! | `Descriptor.holds` | how many references keep the pages of a type-stable cache's slab | whoever has one, or a pinned object |
//!
//! # Life
//! Page block and descriptor are got without a lock; the slab is born `EMPTY`, moves between the lists as its
//! objects go out and come back, and when more than `min_partial` are empty it is put among the `Dying`, to be
//! buried after the lock is left.
//!
//! A slab of a type-stable cache waits instead: on the list `WAITING`, at first without a cookie, then *sealed* with one, until that
//! is done; then, should somebody hold it, on the list `HELD`; then it is put among the dying. From either list it is
//! *revived* when objects are wanted and no other slab has any: its objects are still what they were.
//!
//! # Invariants
//! - I1. `inuse` is the number of zero bits among the first `nr_objects` of `free`; the other bits are zero.
//! - I2. A slab is on the list that `list_of(inuse)` names, or among the dying.
//! - I3. The tag of a slab's pages holds its descriptor and the cache's number.
//! - I4. On `WAITING` the youngest is first; the first `nr_unsealed` have no cookie, the cookies of the others do not go back in
//!   time from the last to the first. Each cookie was taken after the slab's last object had come home. On `HELD` all
//!   cookies are done.
//! - I5. `holds` of a slab with nothing out goes up only by someone who has a hold of it already, or in a section in which an
//!   object of it was found: so, once the cookie is done, never again from zero.
//!
//! # Contexts
//! Everything here runs under the slabs lock (`&mut Slabs`) and calls nothing but [`PageAlloc::tag`], and
//! `snapshot` and `poll`, which never block.

mod holds;
mod waiting;

pub(crate) use holds::{Descriptor, Holds};

use crate::checks::Checks;
use crate::config::{MAX_OBJECTS, Shape};
use crate::fault::{Fault, broken};
use arrayvec::ArrayVec;
use core::ptr::NonNull;
use pagealloc::{PageAlloc, PageTag};
use rcu_core::Cookie;
use static_assertions::const_assert;

/// A few addresses of objects.
pub(crate) type Samples = ArrayVec<usize, 8>;

const WORDS: usize = MAX_OBJECTS / 64;
/// The list of slabs with nothing out.
const EMPTY: u8 = 0;
/// Lists 1 to 4 are of slabs by quarters of objects out.
const FULLEST: u8 = 4;
/// The list of slabs with everything out.
const FULL: u8 = 5;
/// The list of empty slabs whose readers may not be gone, the youngest first.
const WAITING: u8 = 6;
/// The list of empty slabs whose readers are gone, and whose pages somebody holds.
const HELD: u8 = 7;
const LISTS: usize = 8;

/// What the holder of the slabs lock touches of a descriptor.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Slab {
    /// The address of the cache's inner structure, to tell caches apart; never followed.
    cache: *const (),
    pub(crate) base: NonNull<u8>,
    next: Option<NonNull<Slab>>,
    prev: Option<NonNull<Slab>>,
    /// Bit set: the object is free.
    free: [u64; WORDS],
    inuse: u16,
    list: u8,
    /// When its readers are gone, on the list `WAITING` and sealed.
    cookie: Cookie,
}
const_assert!(size_of::<Slab>() <= 120);

impl Slab {
    /// Makes the descriptor of a slab with all objects free, on no list.
    pub(crate) fn new(cache: *const (), base: NonNull<u8>, shape: &Shape) -> Self {
        let mut free = [0; WORDS];
        for (i, word) in free.iter_mut().enumerate() {
            let bits = shape.nr_objects.saturating_sub(i * 64).min(64) as u32;
            *word = u64::MAX.checked_shr(64 - bits).unwrap_or(0);
        }
        Self {
            cache,
            base,
            next: None,
            prev: None,
            free,
            inuse: 0,
            list: EMPTY,
            cookie: Cookie::COMPLETED,
        }
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
    /// The last of `WAITING`.
    eldest: Option<NonNull<Slab>>,
    nr_waiting: usize,
    nr_held: usize,
    /// Of those that wait, how many have no cookie.
    nr_unsealed: usize,
    /// How many were sealed since a grace period was last asked for.
    nr_unasked: usize,
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
            eldest: None,
            nr_waiting: 0,
            nr_held: 0,
            nr_unsealed: 0,
            nr_unasked: 0,
            inuse: 0,
            random: 0,
        }
    }

    pub(crate) fn nr_slabs(&self) -> usize {
        self.nr_slabs
    }

    /// Empty slabs that wait for their readers.
    pub(crate) fn nr_waiting(&self) -> usize {
        self.nr_waiting
    }

    /// Empty slabs that wait for their readers or are held.
    pub(crate) fn nr_kept(&self) -> usize {
        self.nr_waiting + self.nr_held
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

    fn link(&mut self, slab: NonNull<Slab>, list: u8) {
        let first = self.lists[usize::from(list)].replace(slab);
        let this = self.slab(slab);
        this.list = list;
        this.prev = None;
        this.next = first;
        if let Some(first) = first {
            self.slab(first).prev = Some(slab);
        }
        match list {
            EMPTY => self.nr_empty += 1,
            WAITING => {
                self.nr_waiting += 1;
                self.eldest = self.eldest.or(Some(slab));
            }
            HELD => self.nr_held += 1,
            _ => {}
        }
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
        match list {
            EMPTY => self.nr_empty -= 1,
            WAITING => {
                self.nr_waiting -= 1;
                if self.eldest == Some(slab) {
                    self.eldest = prev;
                }
            }
            HELD => self.nr_held -= 1,
            _ => {}
        }
    }

    /// Puts the slab on the list that its `inuse` asks for (I2), or among the dying.
    fn settle(&mut self, slab: NonNull<Slab>, shape: &Shape, dying: &mut Dying) {
        let this = self.slab(slab);
        let (from, inuse) = (this.list, usize::from(this.inuse));
        let to = list_of(inuse, shape);
        if from == to {
            return;
        }
        self.unlink(slab);
        if to == EMPTY && self.nr_empty >= shape.min_partial {
            self.give_up(slab, shape, dying);
        } else {
            self.link(slab, to);
        }
    }

    /// Takes in a new slab.
    ///
    /// # Safety
    /// 1. `slab` is an initialised descriptor ([`Slab::new`]) of a block tagged with it, and is the list's from now on.
    pub(crate) unsafe fn add(&mut self, slab: NonNull<Slab>) {
        self.nr_slabs += 1;
        self.random ^= slab.addr().get() as u64;
        self.link(slab, EMPTY);
    }

    /// The next of a row of numbers that looks random (splitmix64, Steele et al. 2014).
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Hands at most `want` free objects to `take`, from the fullest slabs first, from those that were given up last.
    pub(crate) fn refill(
        &mut self,
        shape: &Shape,
        mut want: usize,
        mut take: impl FnMut(NonNull<u8>),
    ) {
        // Partial slabs from the fullest down, then empty ones.
        for list in (EMPTY..=FULLEST).rev() {
            while want > 0
                && let Some(slab) = self.lists[usize::from(list)]
            {
                let got = self.take_from(slab, shape, want, &mut take);
                want -= got;
                self.inuse += got;
                // No slab dies of giving objects out.
                self.settle(slab, shape, &mut Dying::default());
            }
        }
        // No new pages for a type-stable cache while it has others to give back.
        while want > 0
            && let Some(slab) = self.revive()
        {
            let got = self.take_from(slab, shape, want, &mut take);
            want -= got;
            self.inuse += got;
            self.settle(slab, shape, &mut Dying::default());
        }
    }

    fn take_from(
        &mut self,
        slab: NonNull<Slab>,
        shape: &Shape,
        want: usize,
        take: &mut impl FnMut(NonNull<u8>),
    ) -> usize {
        if shape.checks.contains(Checks::RANDOM) {
            return self.take_random(slab, shape, want, take);
        }
        let this = self.slab(slab);
        let mut got = 0;
        for (i, word) in this.free.iter_mut().enumerate() {
            while *word != 0 && got < want {
                let index = i * 64 + word.trailing_zeros() as usize;
                *word &= *word - 1;
                // SAFETY: bits are set for the slab's objects only (I1), which are inside the block.
                take(unsafe { this.base.add(shape.offset_of(index)) });
                got += 1;
            }
        }
        this.inuse += got as u16;
        got
    }

    /// As [`Self::take_from`], any free object as likely as any other.
    fn take_random(
        &mut self,
        slab: NonNull<Slab>,
        shape: &Shape,
        want: usize,
        take: &mut impl FnMut(NonNull<u8>),
    ) -> usize {
        let free = shape.nr_objects - usize::from(self.slab(slab).inuse);
        let got = want.min(free);
        for left in (free - got + 1..=free).rev() {
            let nth = (self.next_random() % left as u64) as usize;
            let this = self.slab(slab);
            let index = nth_free(&this.free, nth);
            this.free[index / 64] &= !(1 << (index % 64));
            // SAFETY: bits are set for the slab's objects only (I1), which are inside the block.
            take(unsafe { this.base.add(shape.offset_of(index)) });
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
        let base = self.slab(find(cache, shape, pages, object)).base;
        let offset = object.addr().get() - base.addr().get();
        if shape.index_of(offset).is_none() {
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
                        // SAFETY: the offset is that of an object of the slab, so inside the block.
                        look(unsafe { this.base.add(shape.offset_of(index)) });
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
        let mut current: Option<NonNull<Slab>> = None;
        let mut base = 0;
        for &object in objects {
            let mut offset = object.addr().get().wrapping_sub(base);
            // Neighbours in a sheaf are often neighbours in a slab: one look at the tag for all.
            let slab = match current {
                Some(slab) if offset < shape.order.bytes() => slab,
                _ => {
                    if let Some(done) = current {
                        self.settle(done, shape, dying);
                    }
                    let slab = find(cache, shape, pages, object);
                    base = self.slab(slab).base.addr().get();
                    offset = object.addr().get().wrapping_sub(base);
                    current = Some(slab);
                    slab
                }
            };
            let this = self.slab(slab);
            let Some(index) = shape.index_of(offset) else {
                broken(
                    Fault::Misaligned,
                    shape.name,
                    object.as_ptr(),
                    this.base.as_ptr(),
                );
            };
            let (word, bit) = (&mut this.free[index / 64], 1 << (index % 64));
            if *word & bit != 0 {
                broken(
                    Fault::DoubleFree,
                    shape.name,
                    object.as_ptr(),
                    this.base.as_ptr(),
                );
            }
            *word |= bit;
            this.inuse -= 1;
            self.inuse -= 1;
        }
        if let Some(done) = current {
            self.settle(done, shape, dying);
        }
    }

    /// Gives all empty slabs up.
    pub(crate) fn take_empty(&mut self, shape: &Shape, dying: &mut Dying) {
        self.take_some_empty(shape, usize::MAX, dying);
    }

    /// Gives at most `most` empty slabs up.
    pub(crate) fn take_some_empty(&mut self, shape: &Shape, most: usize, dying: &mut Dying) {
        for _ in 0..most {
            let Some(slab) = self.lists[usize::from(EMPTY)] else {
                break;
            };
            self.unlink(slab);
            self.give_up(slab, shape, dying);
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
                        samples.push(this.base.addr().get() + shape.offset_of(index));
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
    find(cache, shape, pages, object);
    // Page blocks are aligned to their size.
    let offset = object.addr().get() & (shape.order.bytes() - 1);
    if shape.index_of(offset).is_none() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CacheConfig;
    use core::alloc::Layout;

    #[test]
    fn a_new_slab_has_its_objects_free_and_no_more() {
        for size in [8, 16, 24, 64, 1000, 4096, 32768] {
            let layout = Layout::from_size_align(size, 8).unwrap();
            let shape = CacheConfig::new("test", layout)
                .checks(Checks::empty())
                .shape()
                .unwrap();
            let slab = Slab::new(core::ptr::null(), NonNull::dangling(), &shape);
            let free: u32 = slab.free.iter().map(|w| w.count_ones()).sum();
            assert_eq!(free as usize, shape.nr_objects);
            let last = slab.free.iter().rposition(|&w| w != 0).unwrap();
            let top = 64 * last + 64 - slab.free[last].leading_zeros() as usize;
            assert_eq!(top, shape.nr_objects);
        }
    }

    #[test]
    fn l15_the_nth_free_object_is_found() {
        let free = [0b1011, 0, 1 << 63, 0, 0, 0, 1, 0];
        let indices = [0, 1, 2, 3, 4].map(|n| nth_free(&free, n));
        assert_eq!(indices, [0, 1, 3, 191, 384]);
    }

    #[test]
    fn lists_go_by_quarters() {
        let shape = CacheConfig::new("test", Layout::new::<[u64; 8]>())
            .checks(Checks::empty())
            .shape()
            .unwrap();
        assert_eq!(shape.nr_objects, 64);
        let lists = [0, 1, 15, 16, 31, 32, 47, 48, 63, 64].map(|n| list_of(n, &shape));
        assert_eq!(lists, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]);
    }
}
