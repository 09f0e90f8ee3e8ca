//! Which object lies where, for those who check and report.

use super::{EMPTY, FULL, Samples, Shape, Slabs, find};
use crate::fault::{Fault, broken};
use core::ptr::NonNull;
use pagealloc::PageAlloc;

impl Slabs {
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
