//! The conformance suite, run by the zone over every source and by a dull twin.

#![cfg(all(feature = "std", not(loom)))]

mod buffer;
mod dull;

use buffer::written;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use dull::Dull;
use pagealloc::{
    Decommit, Failing, Fixed, MemoryMap, Mmap, PAGE_SIZE, Zone, page_alloc_conformance,
    source_conformance,
};
use rcu_core::cpu::{OneCpu, Threads};

fn region(bytes: usize) -> &'static mut [MaybeUninit<u8>] {
    written(bytes).leak()
}

fn over_mmap() -> Zone<Threads, Mmap> {
    Zone::new(Threads, Mmap::reserve(256 << 20).unwrap()).unwrap()
}

/// Lists of full height.
fn over_large_mmap() -> Zone<Threads, Mmap> {
    Zone::new(Threads, Mmap::new().unwrap()).unwrap()
}

fn over_region() -> Zone<Threads, Fixed<'static>> {
    Zone::new(Threads, Fixed::new(region(40 << 20)).unwrap()).unwrap()
}

fn over_steps() -> Zone<Threads, Fixed<'static>> {
    let source = Fixed::new(region(48 << 20)).unwrap().in_steps(1500);
    Zone::new(Threads, source).unwrap()
}

fn over_one_failure() -> Zone<Threads, Failing<Mmap>> {
    // The first growth fails, is reported, and must not matter to the next one.
    let source = Failing::at(Mmap::reserve(256 << 20).unwrap(), 0);
    let zone = Zone::new(Threads, source).unwrap();
    let refused =
        pagealloc::PageAlloc::alloc(&zone, pagealloc::PageReq::new(pagealloc::Order::MAX));
    assert_eq!(refused, Err(pagealloc::AllocError::OutOfMemory));
    zone
}

fn on_one_cpu() -> Zone<OneCpu, Fixed<'static>> {
    // SAFETY: each test below uses its zone from its own thread only.
    let cpu = unsafe { OneCpu::new() };
    Zone::new(cpu, Fixed::new(region(40 << 20)).unwrap()).unwrap()
}

/// Five regions with holes of 3 pages between them.
fn a_map() -> MemoryMap<5> {
    const PAGES: usize = 2500;
    let memory = NonNull::from_mut(region((5 * PAGES + 1) * PAGE_SIZE)).cast::<u8>();
    // SAFETY: less than a page, of which there is one more than needed.
    let base = unsafe { memory.add(memory.align_offset(PAGE_SIZE)) };
    let mut map = MemoryMap::new(base).unwrap();
    for i in 0..5 {
        // SAFETY: inside the memory, which is leaked to the map.
        unsafe { map.add(i * PAGES * PAGE_SIZE, (PAGES - 3) * PAGE_SIZE) }.unwrap();
    }
    map
}

fn giving_back_at_once() -> Mmap {
    let builder = Mmap::builder().reserve(256 << 20).decommit(Decommit::Now);
    builder.huge_pages(true).build().unwrap()
}

fn populated() -> Mmap {
    let builder = Mmap::builder().reserve(64 << 20).populate(true);
    builder.build().unwrap()
}

page_alloc_conformance!(mmap, over_mmap(), threads);
page_alloc_conformance!(large_mmap, over_large_mmap(), threads);
page_alloc_conformance!(static_region, over_region(), threads);
page_alloc_conformance!(region_in_steps, over_steps(), threads);
page_alloc_conformance!(failing_once, over_one_failure(), threads);
page_alloc_conformance!(one_cpu, on_one_cpu());
page_alloc_conformance!(by_reference, &*Box::leak(Box::new(over_mmap())), threads);
page_alloc_conformance!(memory_map, Zone::new(Threads, a_map()).unwrap(), threads);
page_alloc_conformance!(
    giving_back,
    Zone::new(Threads, giving_back_at_once()).unwrap(),
    threads
);
page_alloc_conformance!(dull_twin, Dull::default(), threads);

source_conformance!(mmap_source, Mmap::reserve(64 << 20).unwrap());
source_conformance!(fixed_source, Fixed::new(region(8 << 20)).unwrap());
source_conformance!(
    fixed_in_steps,
    Fixed::new(region(8 << 20)).unwrap().in_steps(100)
);
source_conformance!(
    failing_once_source,
    Failing::at(Mmap::reserve(64 << 20).unwrap(), 0)
);
source_conformance!(memory_map_source, a_map());
source_conformance!(populated_source, populated());
