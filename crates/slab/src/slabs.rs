//! Slabs: blocks of pages cut into objects, their state kept outside of them.
//!
//! Why a bitmap in a descriptor and not a list through the free objects (as SLUB): a double free is
//! seen, a free object's memory is never written (its pages need not even exist), readers that still
//! look at it are not disturbed, and a refill takes a word of objects at a time.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `Slab.cache`, `base` | whose it is, where its objects are | at birth only |
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
//! - I4. Object `i` is `colour + i * size` bytes into the block; `colour` is at most what the objects leave of it, and a multiple of
//!   their alignment.
//!
//! # Contexts
//! Everything here runs under the slabs lock (`&mut Slabs`) and calls nothing but [`PageAlloc::tag`].

use crate::config::{MAX_OBJECTS, Shape};
use crate::fault::{Fault, broken};
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use pagealloc::{PageAlloc, PageTag};
use static_assertions::const_assert_eq;

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
    /// Its first object is at `base`; [`Slabs::add`] may move it on.
    pub(crate) fn new(cache: *const (), base: NonNull<u8>, shape: &Shape) -> Self {
        let mut free = [0; WORDS];
        for (i, word) in free.iter_mut().enumerate() {
            let bits = shape.nr_objects.saturating_sub(i * 64).min(64) as u32;
            *word = u64::MAX.checked_shr(64 - bits).unwrap_or(0);
        }
        Self {
            cache,
            base,
            inuse: 0,
            colour: 0,
            stay: (0, 1),
            list: EMPTY,
            free,
            next: None,
            prev: None,
        }
    }
}

impl Slab {
    /// Fills `out` from the front with free objects, and says how many. The highest addresses come first: what is popped off a
    /// sheaf then goes up.
    fn take(&mut self, size: usize, out: &mut [MaybeUninit<NonNull<u8>>]) -> usize {
        let mut places = out.iter_mut();
        let room = places.len();
        // SAFETY: what the objects leave of the block is before the first (I4).
        let first = unsafe { self.base.add(self.colour.into()) };
        'full: for (i, word) in self.free.iter_mut().enumerate().rev() {
            while *word != 0 {
                let Some(place) = places.next() else {
                    break 'full;
                };
                let bit = 63 - word.leading_zeros() as usize;
                *word ^= 1 << bit;
                // SAFETY: bits are set for the slab's objects only (I1), which are inside the block.
                place.write(unsafe { first.add((i * 64 + bit) * size) });
            }
        }
        let got = room - places.len();
        self.inuse += got as u16;
        got
    }

    /// Notes that `object`, which lies `offset` bytes into the slab, is free. `inuse` is left to the caller.
    #[inline(always)]
    fn take_back(&mut self, object: NonNull<u8>, offset: usize, shape: &Shape) {
        // Below the first object the difference wraps, and is the place of none.
        let Some(index) = shape.index_of(offset.wrapping_sub(self.colour.into())) else {
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
    /// The colour of the next new slab.
    colour: usize,
    nr_empty: usize,
    /// Objects out of their slabs.
    inuse: usize,
}

// SAFETY: descriptors belong to the cache and are reached under its slabs lock only.
unsafe impl Send for Slabs {}

impl Slabs {
    pub(crate) const fn new() -> Self {
        Self {
            lists: [None; LISTS],
            nr_slabs: 0,
            colour: 0,
            nr_empty: 0,
            inuse: 0,
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
        let colour = self.colour * shape.colour_bytes;
        self.slab(slab).colour = colour as u16;
        self.colour = if self.colour + 1 < shape.colours {
            self.colour + 1
        } else {
            0
        };
        self.link(slab, EMPTY, shape);
    }

    /// Fills `out` from the front with free objects, from the fullest slabs first, and says how many.
    pub(crate) fn refill(&mut self, shape: &Shape, out: &mut [MaybeUninit<NonNull<u8>>]) -> usize {
        let mut got = 0;
        // Partial slabs from the fullest down, then empty ones.
        for list in (EMPTY..=FULLEST).rev() {
            while got < out.len()
                && let Some(slab) = self.lists[usize::from(list)]
            {
                got += self.slab(slab).take(shape.size, &mut out[got..]);
                // No slab dies of giving objects out.
                self.settle(slab, shape, &mut Dying::default());
            }
        }
        self.inuse += got;
        got
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
        while let Some(slab) = self.lists[usize::from(EMPTY)] {
            self.unlink(slab);
            self.nr_slabs -= 1;
            dying.push(slab);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CacheConfig;
    use core::alloc::Layout;

    #[test]
    fn a_new_slab_has_its_objects_free_and_no_more() {
        for size in [8, 16, 24, 64, 1000, 4096, 32768] {
            let layout = Layout::from_size_align(size, 8).unwrap();
            let shape = CacheConfig::new("test", layout).shape().unwrap();
            let slab = Slab::new(core::ptr::null(), NonNull::dangling(), &shape);
            let free: u32 = slab.free.iter().map(|w| w.count_ones()).sum();
            assert_eq!(free as usize, shape.nr_objects);
            let last = slab.free.iter().rposition(|&w| w != 0).unwrap();
            let top = 64 * last + 64 - slab.free[last].leading_zeros() as usize;
            assert_eq!(top, shape.nr_objects);
        }
    }

    #[test]
    fn colours_stay_inside_the_block_and_aligned() {
        for (size, align) in [
            (1280, 128),
            (2560, 8),
            (320, 64),
            (24, 8),
            (64, 64),
            (9000, 8),
        ] {
            let layout = Layout::from_size_align(size, align).unwrap();
            let config = CacheConfig::new("test", layout);
            assert_eq!(config.shape().unwrap().colours, 1);
            let shape = config.colour(true).shape().unwrap();
            let last = (shape.colours - 1) * shape.colour_bytes;
            assert!(last + shape.nr_objects * shape.size <= shape.order.bytes());
            assert_eq!(shape.colour_bytes % align, 0);
            // An address before the first object is the place of none.
            for offset in 0..last {
                assert_eq!(shape.index_of(offset.wrapping_sub(last)), None);
            }
        }
    }

    #[test]
    fn lists_go_by_quarters() {
        let shape = CacheConfig::new("test", Layout::new::<[u64; 8]>())
            .shape()
            .unwrap();
        assert_eq!(shape.nr_objects, 64);
        let lists = [0, 1, 15, 16, 31, 32, 47, 48, 63, 64].map(|n| list_of(n, &shape));
        assert_eq!(lists, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]);
    }

    #[test]
    fn a_slab_stays_exactly_where_its_list_is() {
        for size in [8, 24, 64, 1000, 4096, 8192, 32768] {
            let layout = Layout::from_size_align(size, 8).unwrap();
            let shape = CacheConfig::new("test", layout).shape().unwrap();
            for inuse in 0..=shape.nr_objects {
                for list in EMPTY..=FULL {
                    let (from, span) = stay_of(list, &shape);
                    let stays = (inuse as u16).wrapping_sub(from) < span;
                    assert_eq!(
                        stays,
                        list == list_of(inuse, &shape),
                        "{size}: {inuse}, {list}"
                    );
                }
            }
        }
    }
}
