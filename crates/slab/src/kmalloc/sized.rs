//! Freeing and resizing by who knows the layout: the class follows from it, and no page's tag is looked at.
//!
//! # Invariants
//! - I1. Memory that goes this way is always of the class that its layout of the moment names, or large where that names none. So what
//!   gets a layout of another class moves, when it becomes smaller too. For every size from the one asked for to the one
//!   that the class has, `class_of` gives that class. ([`Kmalloc::krealloc`] does not keep to this: what it gave is freed by address.)

#[cfg(any(test, feature = "allocator-api2"))]
use super::CLASS_BYTES;
use super::classes::NAMES;
use super::{Kind, Kmalloc, class_of};
use crate::fault::{Fault, broken_with};
use core::alloc::Layout;
use core::ptr::{self, NonNull};
use pagealloc::{AllocError, Attempt, PageAlloc};
use rcu_core::GracePeriod;
use rcu_core::cpu::Cpus;

/// Whether what the layout says is compared with what the page's tag says.
const VERIFIES: bool = cfg!(any(debug_assertions, feature = "checks"));

fn name_of(class: Option<usize>) -> &'static str {
    class.map_or("large memory", |class| NAMES[class])
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Kmalloc<C, P, G> {
    /// Frees memory whose layout is known, without a look at its page's tag: faster than [`Self::kfree`] where that is not in the CPU's
    /// caches, and faster still where the layout is constant. Not from signal handlers and interrupts.
    ///
    /// With debug assertions, and with the feature `checks`, the tag is looked at all the same, and a layout of another class ends the program.
    ///
    /// # Safety
    /// 1. As for [`Self::kfree`].
    /// 2. `memory` was allocated for `layout`, or for one of the same alignment and of the same class, and came from no
    ///    [`Self::krealloc`]. (Of [`GlobalAlloc::realloc`](core::alloc::GlobalAlloc::realloc) it may have come.)
    ///
    /// ```
    /// # use core::alloc::Layout;
    /// # use pagealloc::{Attempt, Mmap, Zone};
    /// # use rcu_core::{NoReaders, cpu::Threads};
    /// # use slab::Kmalloc;
    /// # let zone: &'static _ = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    /// # let kmalloc = Kmalloc::new(Threads, zone, NoReaders).unwrap();
    /// let layout = Layout::new::<[u64; 5]>();
    /// let memory = kmalloc.kmalloc(layout).unwrap();
    /// // SAFETY: from this allocator, for this layout, and nobody else has it.
    /// unsafe { kmalloc.kfree_sized(memory, layout) };
    /// ```
    #[inline]
    #[track_caller]
    #[doc(alias = "free_sized")]
    pub unsafe fn kfree_sized(&self, memory: NonNull<u8>, layout: Layout) {
        let class = class_of(layout);
        if VERIFIES {
            self.expect_class(memory, class, layout);
        }
        match class {
            // SAFETY: debts 1 and 2.
            Some(class) => unsafe { self.cache(class).free(memory) },
            // SAFETY: debts 1 and 2: what no class serves is large.
            None => unsafe { self.free_large(memory, Attempt::NoWait) },
        }
    }

    /// As [`Self::retire`] where the layout is known and all it takes is a push: see [`RawCache::retire_hit`](crate::RawCache::retire_hit).
    /// No page's tag is looked at, and what the CPU does next does not wait for one.
    ///
    /// With debug assertions, and with the feature `checks`, the tag is looked at all the same, and a layout of another class ends the program.
    ///
    /// # Safety
    /// 1. As for [`Self::retire`]; the memory is given up if true comes back.
    /// 2. As for [`Self::kfree_sized`].
    ///
    /// See [`Self::retire`] for an example.
    #[inline(always)]
    #[must_use]
    pub unsafe fn retire_sized_hit(&self, memory: NonNull<u8>, layout: Layout) -> bool {
        let class = class_of(layout);
        if VERIFIES {
            self.expect_class(memory, class, layout);
        }
        match class {
            // SAFETY: the class's object (2); debt 1.
            Some(class) => unsafe { self.cache(class).retire_hit(memory) },
            None => false,
        }
    }

    /// Aborts if the page's tag does not name that class, or none where that is none.
    fn expect_class(&self, memory: NonNull<u8>, class: Option<usize>, layout: Layout) {
        let found = match self.kind_of(memory.as_ptr()) {
            Kind::Class(found) => Some(found),
            Kind::Large => None,
            Kind::Foreign => super::foreign(memory),
        };
        if found != class {
            broken_with(
                Fault::Layout,
                name_of(found),
                memory.as_ptr(),
                ptr::null(),
                format_args!(
                    ", layout of {} bytes aligned to {}, which {} serves",
                    layout.size(),
                    layout.align(),
                    name_of(class)
                ),
            );
        }
    }

    /// All that memory of a layout has.
    ///
    /// # Safety
    /// 1. As for [`Self::kfree_sized`]; it stays allocated.
    #[cfg(feature = "allocator-api2")]
    pub(super) unsafe fn sized_bytes(&self, memory: NonNull<u8>, layout: Layout) -> usize {
        match class_of(layout) {
            Some(class) => CLASS_BYTES[class],
            None => self.large_size(memory),
        }
    }

    /// Makes memory of `old` memory of `new`, elsewhere unless both are of one class (I1), or large.
    ///
    /// # Errors
    /// As for [`Self::kmalloc`], also for less than there was; nothing has changed then.
    ///
    /// # Safety
    /// 1. As for [`Self::kfree_sized`], with `old`.
    /// 2. If another address is returned, the old one is not used any more; what is past the new size in no case.
    #[track_caller]
    pub(super) unsafe fn resize_sized(
        &self,
        memory: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<u8>, AllocError> {
        let class = class_of(old);
        if VERIFIES {
            self.expect_class(memory, class, old);
        }
        match (class, class_of(new)) {
            // All objects of a class are aligned as any layout of it asks.
            (Some(from), Some(to)) if from == to => return Ok(memory),
            (None, None) if memory.addr().get().is_multiple_of(new.align()) => {
                // SAFETY: large (1); debt 2.
                match unsafe { self.resize_large(memory, new) } {
                    Ok(resized) => return Ok(resized),
                    Err(usable) if new.size() <= usable && new.size() >= usable / 2 => {
                        return Ok(memory);
                    }
                    Err(_) => {}
                }
            }
            _ => {}
        }
        let moved = self.kmalloc(new)?;
        let kept = old.size().min(new.size());
        // SAFETY: both are so large, and the new one is nobody else's.
        unsafe { moved.copy_from_nonoverlapping(memory, kept) };
        // SAFETY: the caller's debts.
        unsafe { self.kfree_sized(memory, old) };
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// I1: whatever size the owner says it has, of those it may.
    #[test]
    fn l10_every_size_that_fits_a_block_names_its_class() {
        for align in (0..14).map(|a| 1 << a) {
            for size in (1..8200).chain((8200..=super::super::MAX_CLASS_BYTES).step_by(67)) {
                let layout = Layout::from_size_align(size, align).unwrap();
                let Some(class) = class_of(layout) else {
                    continue;
                };
                let whole = Layout::from_size_align(CLASS_BYTES[class], align).unwrap();
                assert_eq!(class_of(whole), Some(class), "{layout:?}");
            }
        }
    }
}
