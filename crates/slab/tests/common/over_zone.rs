//! Memory by size over a zone.

//! Where large blocks are runs, and huge ones mappings.

use super::*;
use pagealloc::{AllocError, Attempt, Mmap, PAGE_SIZE, Zone};
use slab::NR_CLASSES;

type Over<'a> = Kmalloc<Threads, &'a Zone<Threads, Mmap>, NoReaders>;

fn zone() -> Zone<Threads, Mmap> {
    Zone::new(Threads, Mmap::reserve(256 << 20).unwrap()).unwrap()
}

/// Runs `test` over an allocator that must be empty afterwards.
fn over_zone(test: impl FnOnce(&Over)) {
    let zone = zone();
    // SAFETY: destroyed below, before the zone.
    let km = unsafe { Kmalloc::new_scoped(Threads, &zone, NoReaders) }.unwrap();
    test(&km);
    km.destroy().expect("nothing is out");
    assert_eq!(zone.nr_allocated(), 0);
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

#[test]
fn l10_no_request_above_64_bytes_gets_more_than_a_quarter_too_much() {
    over_zone(|km| {
        let steps = (65..12_400).chain((12_400..300_000).step_by(977));
        let more = (300_000..(9 << 20)).step_by(400_009);
        for size in steps.chain(more).chain([4 << 20, (4 << 20) + 1]) {
            let memory = km.kmalloc(layout(size, 1)).unwrap();
            // SAFETY: out.
            let got = unsafe { km.ksize(memory) };
            assert!(got >= size && 4 * (got - size) <= got, "{size}: {got}");
            // SAFETY: not used any more.
            unsafe { km.kfree(memory) };
        }
    });
}

#[test]
fn l10_an_alignment_costs_no_more_than_the_size_rounded_up() {
    over_zone(|km| {
        for align in [1 << 13, 1 << 16, 2 << 20, 4 << 20, 16 << 20] {
            for size in [1, 5000, 70_000, 5 << 20] {
                let memory = km.kmalloc(layout(size, align)).unwrap();
                assert!(memory.addr().get().is_multiple_of(align));
                // SAFETY: out.
                let got = unsafe { km.ksize(memory) };
                assert!(got <= (size + PAGE_SIZE).max(8192), "{size} {align}: {got}");
                // SAFETY: not used any more.
                unsafe { km.kfree(memory) };
            }
        }
    });
}

#[test]
fn l11_what_an_address_belongs_to_is_found_from_the_address() {
    over_zone(|km| {
        let sizes = [
            1,
            MAX_CLASS_BYTES,
            MAX_CLASS_BYTES + 1,
            4 << 20,
            (4 << 20) + 1,
            20 << 20,
        ];
        let mut all = sizes.map(|size| km.kmalloc(layout(size, 1)).unwrap());
        for (memory, size) in all.iter().zip(sizes) {
            assert_eq!(km.is_large(memory.as_ptr()), size > MAX_CLASS_BYTES);
            assert_eq!(
                km.cache_of(memory.as_ptr()).is_some(),
                size <= MAX_CLASS_BYTES
            );
            // SAFETY: out.
            assert!(unsafe { km.ksize(*memory) } >= size);
        }
        let stats = km.stats();
        assert_eq!(stats.huge_bytes, (4 << 20) + PAGE_SIZE + (20 << 20));
        assert_eq!(stats.large_bytes, MAX_CLASS_BYTES + PAGE_SIZE + (4 << 20));
        // SAFETY: not used any more, and different.
        unsafe { km.free_bulk(&mut all) };
        let stats = km.stats();
        assert_eq!((stats.huge_bytes, stats.large_bytes), (0, 0));
    });
}

#[test]
fn l11_huge_blocks_by_the_thousand_are_each_found_again() {
    over_zone(|km| {
        // Over-aligned small blocks are memory apart, too, and cheap.
        let all: Vec<_> = (0..1500)
            .map(|i| {
                let memory = km.kmalloc(layout(8, 8 << 20)).unwrap();
                // SAFETY: large enough.
                unsafe { memory.cast::<usize>().write(i) };
                memory
            })
            .collect();
        let (first, second) = all.split_at(700);
        for (i, memory) in second.iter().chain(first).enumerate() {
            // SAFETY: written above.
            assert_eq!(unsafe { memory.cast::<usize>().read() }, (i + 700) % 1500);
            // SAFETY: out.
            assert_eq!(unsafe { km.ksize(*memory) }, PAGE_SIZE);
            // SAFETY: not used any more.
            unsafe { km.kfree(*memory) };
        }
    });
}

#[test]
fn huge_blocks_need_system_calls_and_a_source_that_has_them() {
    over_zone(|km| {
        let huge = layout(5 << 20, 1);
        assert_eq!(
            km.kmalloc_attempt(huge, Attempt::NoWait),
            Err(AllocError::Exhausted)
        );
        let most = layout(isize::MAX as usize & !0xfff, 1);
        assert_eq!(km.kmalloc(most), Err(AllocError::OutOfMemory));
    });
    let pages = Pages::new();
    // SAFETY: dropped before the pages.
    let km = unsafe { Kmalloc::new_scoped(Threads, &pages, NoReaders) }.unwrap();
    assert_eq!(km.kmalloc(layout(5 << 20, 1)), Err(AllocError::Invalid));
}

#[test]
fn what_the_pages_have_not_in_a_row_comes_from_apart() {
    let zone = Zone::new(Threads, Mmap::reserve(32 << 20).unwrap()).unwrap();
    // SAFETY: destroyed below, before the zone.
    let km = unsafe { Kmalloc::new_scoped(Threads, &zone, NoReaders) }.unwrap();
    let all: Vec<_> = (0..12)
        .map(|_| km.kmalloc(layout(3 << 20, 1)).unwrap())
        .collect();
    let stats = km.stats();
    assert!(stats.large_bytes > 0 && stats.huge_bytes > 0, "{stats}");
    for memory in all {
        // SAFETY: not used any more.
        unsafe { km.kfree(memory) };
    }
    km.destroy().expect("nothing is out");
}

#[test]
fn zeroed_memory_is_zeroed_whatever_was_there() {
    over_zone(|km| {
        for size in [1, 24, 100, 8000, 12_000, 70_000, 4 << 20, 5 << 20] {
            for _ in 0..3 {
                let memory = km.kzalloc(layout(size, 1)).unwrap();
                // SAFETY: so large, and initialised by zeroes.
                let bytes = unsafe { std::slice::from_raw_parts_mut(memory.as_ptr(), size) };
                assert!(bytes.iter().all(|b| *b == 0), "{size}");
                bytes.fill(0xa5);
                // SAFETY: not used any more.
                unsafe { km.kfree(memory) };
            }
        }
    });
}

/// (Where everything is checked, freed objects are kept back, and poisoned.)
#[cfg(not(feature = "checks"))]
#[test]
fn sensitive_memory_is_overwritten() {
    over_zone(|km| {
        for size in [8, 100, 10_000, 20_000, 70_000] {
            let memory = km.kmalloc(layout(size, 8)).unwrap();
            // SAFETY: so large.
            unsafe { memory.write_bytes(0x5e, size) };
            // SAFETY: not used any more.
            unsafe { km.kfree_sensitive(memory) };
            let again = km.kmalloc(layout(size, 8)).unwrap();
            if again == memory {
                // SAFETY: written by the free, and not since.
                let bytes = unsafe { std::slice::from_raw_parts(again.as_ptr(), size) };
                assert!(bytes.iter().all(|b| *b == 0), "{size}");
            } else {
                assert!(
                    size > MAX_CLASS_BYTES,
                    "an object comes back to who freed it last"
                );
            }
            // SAFETY: not used any more.
            unsafe { km.kfree(again) };
        }
    });
}

#[test]
fn krealloc_stays_where_it_fits_and_uses_half() {
    over_zone(|km| {
        let memory = km.kmalloc(layout(1000, 8)).unwrap();
        for size in [1024, 512, 900, 600] {
            // SAFETY: of this alignment; a smaller size is told than what it has.
            let same = unsafe { km.krealloc(memory, layout(512, 8), size) };
            assert_eq!(same, Ok(memory));
        }
        // SAFETY: as above; the old address is not used any more.
        let small = unsafe { km.krealloc(memory, layout(512, 8), 100) }.unwrap();
        assert_ne!(small, memory);
        // SAFETY: as above.
        let huge = unsafe { km.krealloc(small, layout(100, 8), 6 << 20) }.unwrap();
        // SAFETY: as above.
        let larger = unsafe { km.krealloc(huge, layout(6 << 20, 8), 30 << 20) }.unwrap();
        assert_eq!(km.stats().huge_bytes, 30 << 20);
        // SAFETY: as above.
        let same = unsafe { km.krealloc(larger, layout(30 << 20, 8), 5 << 20) }.unwrap();
        assert_eq!(
            (same, km.stats().huge_bytes),
            (larger, 5 << 20),
            "cut in place"
        );
        // SAFETY: not used any more.
        unsafe { km.kfree(same) };
    });
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn krealloc_keeps_the_contents_between_all_kinds(
        sizes in prop::collection::vec(
            prop_oneof![4 => 0..2000_usize, 3 => 2000..40_000_usize, 2 => 40_000..(4_usize << 20), 1 => (4_usize << 20)..(9 << 20)],
            1..24,
        ),
        shift in prop_oneof![4 => 0..7_u32, 1 => 7..24_u32],
    ) {
        let zone = zone();
        // SAFETY: destroyed below, before the zone.
        let km = unsafe { Kmalloc::new_scoped(Threads, &zone, NoReaders) }.unwrap();
        let mark = |at: usize| (at % 251) as u8;
        // What is looked at and written: all of a small block, a byte in a thousand of a large one.
        let places = |size: usize| (0..size).step_by(if size < 4000 { 1 } else { 1009 });
        let mut old = layout(0, 1 << shift);
        let mut memory = km.kmalloc(old).unwrap();
        for size in sizes {
            // SAFETY: allocated for `old`; the old address is not used any more.
            memory = unsafe { km.krealloc(memory, old, size) }.unwrap();
            prop_assert!(memory.addr().get().is_multiple_of(old.align()));
            // SAFETY: out.
            let usable = unsafe { km.ksize(memory) };
            prop_assert!(usable >= size);
            for at in places(old.size().min(size)) {
                // SAFETY: inside of both.
                let place = unsafe { memory.add(at) };
                // SAFETY: written before.
                prop_assert_eq!(unsafe { place.read() }, mark(at));
            }
            old = layout(size, old.align());
            // What a smaller size looks at next must be there, too.
            for at in (0..size.min(4000)).chain(places(size)) {
                // SAFETY: inside.
                let place = unsafe { memory.add(at) };
                // SAFETY: as above, and the test's.
                unsafe { place.write(mark(at)) };
            }
        }
        // SAFETY: not used any more.
        unsafe { km.kfree(memory) };
        km.destroy().expect("nothing is out");
        prop_assert_eq!(zone.nr_allocated(), 0);
    }
}

#[cfg(feature = "allocator-api2")]
#[test]
fn vectors_and_boxes_of_allocator_api2_live_in_it() {
    use allocator_api2::alloc::Allocator;
    use allocator_api2::{boxed::Box, vec::Vec};
    over_zone(|km| {
        let mut numbers: Vec<u64, &Over> = Vec::new_in(km);
        numbers.extend(0..1_000_000);
        numbers.truncate(1000);
        numbers.shrink_to_fit();
        assert!(numbers.iter().enumerate().all(|(i, n)| i as u64 == *n));
        let boxed: Box<[u64; 3], &Over> = Box::new_in([1, 2, 3], km);
        let nothing: Box<(), &Over> = Box::new_in((), km);
        assert_eq!((*boxed, *nothing), ([1, 2, 3], ()));

        let aligned = layout(300, 256);
        let zeroed = km.allocate_zeroed(layout(100, 1)).unwrap();
        assert_eq!(zeroed.len(), 112, "all of the class");
        // SAFETY: that many bytes, zeroed.
        assert!(unsafe { zeroed.as_ref() }.iter().all(|b| *b == 0));
        // SAFETY: allocated for a size that fits; the old address is not used any more.
        let grown = unsafe { km.grow_zeroed(zeroed.cast(), layout(110, 1), aligned) }.unwrap();
        assert!(grown.cast::<u8>().addr().get().is_multiple_of(256));
        // SAFETY: that many bytes, zeroed.
        assert!(unsafe { grown.as_ref() }.iter().all(|b| *b == 0));
        // SAFETY: as above.
        let none = unsafe { Allocator::shrink(km, grown.cast(), aligned, layout(0, 8)) }.unwrap();
        assert_eq!(none.len(), 0);
        // SAFETY: as above.
        let again = unsafe { km.grow(none.cast(), layout(0, 8), layout(8, 8)) }.unwrap();
        // SAFETY: allocated for the layout.
        unsafe { km.deallocate(again.cast(), layout(8, 8)) };
    });
}

#[test]
fn an_idle_allocator_costs_a_page_a_class() {
    let zone = zone();
    // SAFETY: dropped before the zone.
    let km = unsafe { Kmalloc::new_scoped(Threads, &zone, NoReaders) }.unwrap();
    // Addresses for each thread there may be, zeroed by the system when they are touched; and one page that is.
    let slots = 1024 * 256 / PAGE_SIZE;
    // What is checked has one more page, of its quarantine.
    let touched = 1 + usize::from(cfg!(feature = "checks"));
    assert_eq!(zone.nr_allocated(), NR_CLASSES * (slots + touched));
    drop(km);
    assert_eq!(zone.nr_allocated(), 0);
}
