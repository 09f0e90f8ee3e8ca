//! Memory that is freed by its layout, through the allocator traits.
#![cfg(all(feature = "std", unix, not(loom), not(miri)))]

mod common;

use common::{Failure, Pages};
use pagealloc::{Mmap, Zone};
use rcu_core::NoReaders;
use rcu_core::cpu::Threads;
use slab::{CLASS_BYTES, Kmalloc};
use std::alloc::{GlobalAlloc, Layout};

/// Runs `test` over an allocator that must be empty afterwards.
fn over_zone(test: impl FnOnce(&Kmalloc<Threads, &Zone<Threads, Mmap>, NoReaders>)) {
    let zone = Zone::new(Threads, Mmap::reserve(256 << 20).unwrap()).unwrap();
    // SAFETY: destroyed below, before the zone.
    let km = unsafe { Kmalloc::new_scoped(Threads, &zone, NoReaders) }.unwrap();
    test(&km);
    km.destroy().expect("nothing is out");
    assert_eq!(zone.nr_allocated(), 0);
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

/// What a free by layout relies on: memory is where its layout of the moment says, also after it became smaller.
#[test]
fn realloc_is_always_where_its_layout_says() {
    over_zone(|km| {
        let sizes = [1, 8, 9, 60, 64, 65, 100, 1000, 1024, 5000, 10_240, 10_241];
        let more = [20_000, 24_000, 70_000, 4 << 20, 5 << 20, 9 << 20];
        let sizes: Vec<usize> = sizes.into_iter().chain(more).collect();
        for align in [1_usize, 64, 4096] {
            let expected = |size: usize| {
                let served = |c: &&usize| **c >= size && (**c).trailing_zeros() >= align.ilog2();
                CLASS_BYTES.iter().find(served).copied()
            };
            for from in &sizes {
                for to in &sizes {
                    let (from, to) = (*from, *to);
                    // SAFETY: the layout is not empty.
                    let memory = unsafe { km.alloc(layout(from, align)) };
                    let kept = from.min(to);
                    // SAFETY: so large.
                    unsafe { memory.write_bytes(0x3c, kept) };
                    // SAFETY: allocated for that layout.
                    let moved = unsafe { km.realloc(memory, layout(from, align), to) };
                    assert!(!moved.is_null());
                    let class = km.cache_of(moved).map(|c| c.layout().size());
                    assert_eq!(class, expected(to), "{from} to {to}, aligned to {align}");
                    // SAFETY: so large, and it came along.
                    let bytes = unsafe { std::slice::from_raw_parts(moved, kept) };
                    assert!(bytes.iter().all(|b| *b == 0x3c), "{from} to {to}");
                    // SAFETY: of that layout now.
                    unsafe { km.dealloc(moved, layout(to, align)) };
                }
            }
        }
    });
}

#[test]
fn without_memory_realloc_leaves_everything_as_it_is() {
    let pages = Pages::new();
    // SAFETY: destroyed below, before the pages.
    let km = unsafe { Kmalloc::new_scoped(Threads, &pages, NoReaders) }.unwrap();
    for (from, to) in [(1000, 10), (10, 1000), (50_000, 10), (10, 50_000)] {
        // SAFETY: the layout is not empty.
        let memory = unsafe { km.alloc(layout(from, 8)) };
        // SAFETY: one byte at least.
        unsafe { memory.write(7) };
        km.shrink(usize::MAX);
        pages.set_failure(Failure::From(0));
        // SAFETY: allocated for that layout.
        assert!(unsafe { km.realloc(memory, layout(from, 8), to) }.is_null());
        pages.set_failure(Failure::Never);
        // SAFETY: still there.
        assert_eq!(unsafe { memory.read() }, 7);
        // SAFETY: of its old layout still.
        unsafe { km.dealloc(memory, layout(from, 8)) };
    }
    km.destroy().expect("nothing is out");
}

#[cfg(feature = "allocator-api2")]
#[test]
fn whatever_size_fits_may_be_given_back() {
    use allocator_api2::alloc::Allocator;
    over_zone(|km| {
        for size in [1, 9, 60, 100, 1000, 5000, 20_000, 5 << 20] {
            for align in [1, 16, 4096] {
                let asked = layout(size, align);
                for zeroed in [false, true] {
                    let memory = match zeroed {
                        false => km.allocate(asked).unwrap(),
                        true => km.allocate_zeroed(asked).unwrap(),
                    };
                    let whole = layout(memory.len(), align);
                    // SAFETY: the layout fits: as large as what was given.
                    let memory = unsafe { km.grow(memory.cast(), whole, layout(6 << 20, 1)) };
                    let memory = memory.unwrap();
                    // SAFETY: any size from the one asked for to the one given fits.
                    let memory =
                        unsafe { Allocator::shrink(km, memory.cast(), layout(6 << 20, 1), asked) }
                            .unwrap();
                    assert!(memory.cast::<u8>().addr().get().is_multiple_of(align));
                    // SAFETY: as above.
                    unsafe { km.deallocate(memory.cast(), layout(memory.len(), align)) };
                }
            }
        }
    });
}
