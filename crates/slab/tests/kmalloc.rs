//! Memory by size against a map of intervals.

#![cfg(not(loom))]

mod common;

use common::Pages;
use common::cases::cases;
use proptest::prelude::*;
use rcu_core::NoReaders;
use rcu_core::cpu::Threads;
use rcu_core::manual::ManualGp;
use slab::{CLASS_BYTES, Cache, Kmalloc, MAX_CLASS_BYTES, RawCache};
use std::alloc::{GlobalAlloc, Layout};
use std::collections::BTreeMap;
use std::ptr::NonNull;

#[derive(Clone, Debug)]
enum Op {
    Alloc { size: usize, align: u32, zero: bool },
    Free(usize),
    FreeBulk(usize),
    Realloc(usize, usize),
}

fn op() -> impl Strategy<Value = Op> {
    let size = prop_oneof![8 => 1..300_usize, 4 => 1..9000_usize, 1 => 8000..100_000_usize];
    let align = prop_oneof![8 => 0..7_u32, 1 => 7..14_u32];
    prop_oneof![
        6 => (size.clone(), align, any::<bool>())
            .prop_map(|(size, align, zero)| Op::Alloc { size, align, zero }),
        3 => any::<usize>().prop_map(Op::Free),
        1 => (0..30_usize).prop_map(Op::FreeBulk),
        1 => (any::<usize>(), size).prop_map(|(which, size)| Op::Realloc(which, size)),
    ]
}

type Km<'a> = Kmalloc<Threads, &'a Pages, NoReaders>;

struct Model<'a> {
    km: Km<'a>,
    /// By address: the layout, and the byte that fills it.
    live: BTreeMap<usize, (NonNull<u8>, Layout, u8)>,
    next: u8,
}

impl Model<'_> {
    fn got(&mut self, memory: NonNull<u8>, layout: Layout) {
        let start = memory.addr().get();
        assert_eq!(start % layout.align(), 0);
        // SAFETY: the memory is out.
        let usable = unsafe { self.km.ksize(memory) };
        assert!(usable >= layout.size());
        assert_eq!(self.km.is_large(memory.as_ptr()), usable > MAX_CLASS_BYTES);
        if let Some((before, (_, other, _))) = self.live.range(..=start).next_back() {
            assert!(before + other.size() <= start, "overlap");
        }
        if let Some((after, _)) = self.live.range(start..).next() {
            assert!(start + usable <= *after, "overlap");
        }
        self.next = self.next.wrapping_add(1);
        // SAFETY: the memory is ours, at least this long.
        unsafe { memory.write_bytes(self.next, layout.size()) };
        self.live.insert(start, (memory, layout, self.next));
    }

    fn take(&mut self, which: usize) -> Option<(NonNull<u8>, Layout, u8)> {
        let start = *self.live.keys().nth(which % self.live.len().max(1))?;
        let (memory, layout, fill) = self.live.remove(&start)?;
        // SAFETY: the memory is ours, this long.
        let bytes = unsafe { std::slice::from_raw_parts(memory.as_ptr(), layout.size()) };
        assert!(
            bytes.iter().all(|&b| b == fill),
            "written to while it was out"
        );
        Some((memory, layout, fill))
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Alloc { size, align, zero } => {
                let layout = Layout::from_size_align(size, 1 << align).unwrap();
                let got = if zero {
                    self.km.kzalloc(layout)
                } else {
                    self.km.kmalloc(layout)
                };
                let memory = got.unwrap();
                if zero {
                    // SAFETY: the memory is ours, this long, and initialised if zeroed.
                    let bytes = unsafe { std::slice::from_raw_parts(memory.as_ptr(), size) };
                    assert!(bytes.iter().all(|&b| b == 0));
                }
                self.got(memory, layout);
            }
            Op::Free(which) => {
                if let Some((memory, ..)) = self.take(which) {
                    // SAFETY: the memory was ours.
                    unsafe { self.km.kfree(memory) };
                }
            }
            Op::FreeBulk(n) => {
                let mut all: Vec<_> = (0..n)
                    .map_while(|i| self.take(i * 7))
                    .map(|t| t.0)
                    .collect();
                // SAFETY: the memory was ours.
                unsafe { self.km.free_bulk(&mut all) };
            }
            Op::Realloc(which, size) => {
                if let Some((memory, layout, fill)) = self.take(which) {
                    // SAFETY: the memory was ours, of this layout.
                    let moved = unsafe { self.km.realloc(memory.as_ptr(), layout, size) };
                    let moved = NonNull::new(moved).unwrap();
                    // SAFETY: the first bytes were copied.
                    assert_eq!(unsafe { moved.read() }, fill);
                    self.got(
                        moved,
                        Layout::from_size_align(size, layout.align()).unwrap(),
                    );
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn memory_never_overlaps(ops in prop::collection::vec(op(), 0..200)) {
        let pages = Pages::new();
        // SAFETY: the allocator is destroyed below, before what it borrows ends.
        let km = unsafe { Kmalloc::new_scoped(Threads, &pages, NoReaders) }.unwrap();
        let mut model = Model { km, live: BTreeMap::new(), next: 0 };
        for op in &ops {
            model.run(op);
        }
        while model.take(0).map(|(memory, ..)| {
            // SAFETY: the memory was ours.
            unsafe { model.km.kfree(memory) }
        }).is_some() {}
        model.km.destroy().expect("nothing is out");
        prop_assert_eq!(pages.outstanding(), 0);
    }
}

#[test]
fn retiring_goes_by_the_address_alone() {
    let (pages, gp) = (Pages::new(), ManualGp::new());
    // SAFETY: the allocator is destroyed below, before what it borrows ends.
    let km = unsafe { Kmalloc::new_scoped(Threads, &pages, &gp) }.unwrap();
    for &bytes in &CLASS_BYTES {
        let memory = km
            .kmalloc(Layout::from_size_align(bytes, 8).unwrap())
            .unwrap();
        assert_eq!(km.cache_of(memory.as_ptr()).unwrap().layout().size(), bytes);
        // SAFETY: the memory was ours.
        assert_eq!(unsafe { km.retire(memory) }, Ok(()));
    }
    let large = km
        .kmalloc(Layout::from_size_align(MAX_CLASS_BYTES + 1, 8).unwrap())
        .unwrap();
    assert!(km.is_large(large.as_ptr()));
    // SAFETY: the memory was ours.
    assert_eq!(unsafe { km.retire(large) }, Err(large));
    let busy = km.destroy().expect_err("a large block is out");
    // The next larger block of pages, from this source.
    assert_eq!(busy.live, 2 * MAX_CLASS_BYTES / pagealloc::PAGE_SIZE);
    let km = busy.cache;
    // SAFETY: nobody reads it.
    unsafe { km.kfree(large) };
    assert!(km.stats().to_string().contains("kmalloc-8k"));
    km.destroy().expect("nothing is out");
    assert_eq!(pages.outstanding(), 0);
}

#[test]
fn values_live_in_a_typed_cache() {
    let pages = Pages::new();
    let config = Cache::<String, Threads, &Pages, NoReaders>::config("names");
    // SAFETY: the cache is destroyed below, before what it borrows ends.
    let names = unsafe { Cache::new_scoped(config, Threads, &pages, NoReaders) }.unwrap();
    let name = names.alloc(String::from("eth0")).unwrap();
    // SAFETY: the value is ours.
    assert_eq!(unsafe { name.as_ref() }, "eth0");
    // SAFETY: the value is ours, and not used any more; its `String` is dropped.
    unsafe { names.free(name) };
    pages.set_failure(common::Failure::From(0));
    let mut live = Vec::new();
    let failed = loop {
        match names.alloc(String::from("lo")) {
            Ok(name) => live.push(name),
            Err(failed) => break failed,
        }
    };
    assert_eq!(failed.value, "lo");
    for name in live {
        // SAFETY: the values are ours.
        unsafe { names.free(name) };
    }
    names.destroy().expect("nothing is out");
    assert_eq!(pages.outstanding(), 0);
}

#[cfg(all(feature = "std", target_os = "linux", not(miri)))]
#[path = "common/over_zone.rs"]
mod over_a_zone;

/// What waits is one count of all classes: at every moment that of the classes added up.
#[test]
fn what_waits_is_what_waits_in_all_classes() {
    let (pages, gp) = (Pages::new(), ManualGp::new());
    // SAFETY: dropped before what it borrows.
    let km = unsafe { Kmalloc::new_scoped(Threads, &pages, &gp) }.unwrap();
    let in_classes = || {
        km.caches()
            .iter()
            .map(RawCache::waiting_bytes)
            .sum::<usize>()
    };
    let mut most = 0;
    for round in 0..6 {
        for n in 0..1500 {
            let layout = Layout::from_size_align(8 + (n * 37) % 9000, 8).unwrap();
            let memory = km.kmalloc(layout).unwrap();
            // SAFETY: allocated just now, and seen by nobody.
            if unsafe { km.retire(memory) }.is_err() {
                // SAFETY: as above, and still ours.
                unsafe { km.kfree(memory) };
            }
            assert_eq!(km.waiting_bytes(), in_classes());
        }
        most = most.max(km.waiting_bytes());
        if round % 2 == 1 {
            gp.advance();
        }
    }
    assert!(most > 64 << 10, "{most}");
    km.barrier();
    assert_eq!((km.waiting_bytes(), in_classes()), (0, 0));
}
