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
//! | `Slab.free`, `inuse`, `list`, `stay`, links, `cookie` | which objects are out; which list it is on, and how long for; when its readers are gone | under the cache's slabs lock |
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
//! - I2. A slab is on the list that `list_of(inuse)` names, or among the dying; it stays on its list for as long as `inuse` is in
//!   `stay`.
//! - I3. The tag of a slab's pages holds its descriptor and the cache's number.
//! - I4. On `WAITING` the youngest is first; the first `nr_unsealed` have no cookie, the cookies of the others do not go back in
//!   time from the last to the first. Each cookie was taken after the slab's last object had come home. On `HELD` all
//!   cookies are done.
//! - I5. `holds` of a slab with nothing out goes up only by someone who has a hold of it already, or in a section in which an
//!   object of it was found: so, once the cookie is done, never again from zero.
//! - I6. Object `i` is `colour + Shape::offset_of(i)` bytes into the block, which [`Slab::object`] alone adds up; `colour` is at most what the objects leave of it, and a multiple of
//!   their alignment.
//!
//! # Contexts
//! Everything here runs under the slabs lock (`&mut Slabs`) and calls nothing but [`PageAlloc::tag`], and
//! `snapshot` and `poll`, which never block.

mod holds;
mod look;
mod random;
mod waiting;

pub(crate) use holds::{Descriptor, Holds};
pub(crate) use look::expect_object;

#[cfg(test)]
mod tests;

use crate::checks::Checks;
use crate::config::{MAX_OBJECTS, Shape};
use crate::fault::{Fault, broken};
use arrayvec::ArrayVec;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use pagealloc::{PageAlloc, PageTag};
use rcu_core::Cookie;
use static_assertions::const_assert;

/// A few addresses of objects.
pub(crate) type Samples = ArrayVec<usize, 8>;

const WORDS: usize = MAX_OBJECTS / 64;
/// Objects of other slabs that are passed by in the search for more of one.
pub(crate) const LOOK_AHEAD: usize = 3;
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

/// What the holder of the slabs lock touches of a descriptor. What giving out and taking back need comes first: one cache line for
/// slabs of up to 256 objects.
#[repr(C)]
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
    /// When its readers are gone, on the list `WAITING` and sealed.
    cookie: Cookie,
}
const_assert!(size_of::<Slab>() <= 120);

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
            cookie: Cookie::COMPLETED,
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
        // SAFETY: inside the block (1, I6).
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
        // No object goes out of such a slab or comes home to it before it is revived.
        WAITING | HELD => (0, 0),
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
            self.give_up(slab, shape, dying);
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

    /// Fills `out` from the front with free objects, from the fullest slabs first, then from those that were given up last, and says how many.
    pub(crate) fn refill(&mut self, shape: &Shape, out: &mut [MaybeUninit<NonNull<u8>>]) -> usize {
        let mut got = 0;
        // Partial slabs from the fullest down, then empty ones.
        for list in (EMPTY..=FULLEST).rev() {
            while got < out.len()
                && let Some(slab) = self.lists[usize::from(list)]
            {
                got += self.take_any(slab, shape, &mut out[got..]);
                // No slab dies of giving objects out.
                self.settle(slab, shape, &mut Dying::default());
            }
        }
        // No new pages for a type-stable cache while it has others to give back.
        while got < out.len()
            && let Some(slab) = self.revive(shape)
        {
            got += self.take_any(slab, shape, &mut out[got..]);
            self.settle(slab, shape, &mut Dying::default());
        }
        self.inuse += got;
        got
    }

    #[inline(always)]
    fn take_any(
        &mut self,
        slab: NonNull<Slab>,
        shape: &Shape,
        out: &mut [MaybeUninit<NonNull<u8>>],
    ) -> usize {
        if shape.checks.contains(Checks::RANDOM) {
            self.take_random(slab, shape, out)
        } else {
            self.slab(slab).take(shape, out)
        }
    }

    /// Takes objects back into their slabs; reorders them. Aborts on one that is not out.
    ///
    /// Neighbours in a sheaf are often neighbours in a slab: one look at the tag, and one at the slab's list, for all that come within
    /// [`LOOK_AHEAD`] others of each other. Those others change places with what went home, and are next (L8).
    pub(crate) fn put<P: PageAlloc>(
        &mut self,
        cache: *const (),
        shape: &Shape,
        pages: &P,
        objects: &mut [NonNull<u8>],
        dying: &mut Dying,
    ) {
        let slab_bytes = shape.order.bytes();
        let mut rest = objects;
        while let Some(&first) = rest.first() {
            let slab = find(cache, shape, pages, first);
            let this = self.slab(slab);
            let base = this.base.addr().get();
            let (mut taken, mut next) = (0, 0);
            while let Some(&object) = rest.get(next) {
                let offset = object.addr().get().wrapping_sub(base);
                if offset < slab_bytes {
                    this.take_back(object, offset, shape);
                    // What lies between goes behind what is home.
                    rest.swap(taken, next);
                    taken += 1;
                } else if next - taken == LOOK_AHEAD {
                    break;
                }
                next += 1;
            }
            this.inuse -= taken as u16;
            self.inuse -= taken;
            self.settle(slab, shape, dying);
            rest = &mut rest[taken..];
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
