//! The allocators: each called as directly as it can be, with layouts that are constants wherever the workload's sizes are.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::NonNull;
use std::sync::LazyLock;

use mimalloc::MiMalloc;
use pagealloc::{Mmap, Zone};
use rcu_core::cpu::Threads;
use rcu_core::manual::ManualGp;
use slab::{CacheConfig, Kmalloc, RawCache};

/// One way to allocate.
pub(crate) trait Heap: Copy + Send + Sync {
    fn alloc(&self, size: usize) -> NonNull<u8>;

    /// # Safety
    /// From `alloc` of the same heap, with this size, freed once.
    unsafe fn free(&self, object: NonNull<u8>, size: usize);
}

/// Writes the first word of an object.
#[inline(always)]
pub(crate) fn touch(object: NonNull<u8>, value: usize) {
    // SAFETY: every object here has 8 bytes at least, aligned to them.
    unsafe { object.cast::<usize>().write_volatile(value) };
}

#[inline(always)]
fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("a size")
}

type OurZone = Zone<Threads, Mmap>;
pub(crate) type Raw = RawCache<Threads, &'static OurZone, &'static ManualGp>;
pub(crate) type Ours = Kmalloc<Threads, &'static OurZone, &'static ManualGp>;

static ZONE: LazyLock<OurZone> = LazyLock::new(|| {
    let source = Mmap::new().expect("address space");
    Zone::new(Threads, source).expect("memory for the metadata")
});
static GP: ManualGp = ManualGp::new();

pub(crate) fn cache(size: usize) -> Raw {
    let config = CacheConfig::new("bench", layout(size));
    RawCache::new(config, Threads, &*ZONE, &GP).expect("memory for a cache")
}

pub(crate) fn kmalloc() -> Ours {
    Kmalloc::new(Threads, &*ZONE, &GP).expect("memory for the caches")
}

/// A cache of one layout.
#[derive(Clone, Copy)]
pub(crate) struct Typed<'c>(pub(crate) &'c Raw);

impl Heap for Typed<'_> {
    #[inline(always)]
    fn alloc(&self, _size: usize) -> NonNull<u8> {
        self.0.alloc().expect("memory")
    }

    #[inline(always)]
    unsafe fn free(&self, object: NonNull<u8>, _size: usize) {
        // SAFETY: the caller's debts.
        unsafe { self.0.free(object) };
    }
}

/// Size classes.
#[derive(Clone, Copy)]
pub(crate) struct Classes<'k>(pub(crate) &'k Ours);

impl Heap for Classes<'_> {
    #[inline(always)]
    fn alloc(&self, size: usize) -> NonNull<u8> {
        global_alloc(self.0, size)
    }

    #[inline(always)]
    unsafe fn free(&self, object: NonNull<u8>, size: usize) {
        // SAFETY: the caller's debts.
        unsafe { self.0.dealloc(object.as_ptr(), layout(size)) };
    }
}

#[inline(always)]
fn global_alloc(heap: &impl GlobalAlloc, size: usize) -> NonNull<u8> {
    // SAFETY: no size here is zero.
    NonNull::new(unsafe { heap.alloc(layout(size)) }).expect("memory")
}

#[derive(Clone, Copy)]
pub(crate) struct Mi;

impl Heap for Mi {
    #[inline(always)]
    fn alloc(&self, size: usize) -> NonNull<u8> {
        global_alloc(&MiMalloc, size)
    }

    #[inline(always)]
    unsafe fn free(&self, object: NonNull<u8>, size: usize) {
        // SAFETY: the caller's debts.
        unsafe { MiMalloc.dealloc(object.as_ptr(), layout(size)) };
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Rusty;

impl Heap for Rusty {
    #[inline(always)]
    fn alloc(&self, size: usize) -> NonNull<u8> {
        NonNull::new(rusty_alloc::alloc::malloc(size)).expect("memory")
    }

    #[inline(always)]
    unsafe fn free(&self, object: NonNull<u8>, _size: usize) {
        // SAFETY: the caller's debts.
        unsafe { rusty_alloc::alloc::free_inline(object.as_ptr()) };
    }
}

#[cfg(bench_jemalloc)]
#[derive(Clone, Copy)]
pub(crate) struct Je;

#[cfg(bench_jemalloc)]
impl Heap for Je {
    #[inline(always)]
    fn alloc(&self, size: usize) -> NonNull<u8> {
        global_alloc(&tikv_jemallocator::Jemalloc, size)
    }

    #[inline(always)]
    unsafe fn free(&self, object: NonNull<u8>, size: usize) {
        // SAFETY: the caller's debts.
        unsafe { tikv_jemallocator::Jemalloc.dealloc(object.as_ptr(), layout(size)) };
    }
}
