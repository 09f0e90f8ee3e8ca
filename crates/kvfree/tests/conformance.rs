//! The conformance tests of this crate's traits, run by every implementation.

#![cfg(all(feature = "std", not(loom)))]

mod common;

use common::{Hand, Pages};
use kvfree::conformance::Rig;
use kvfree::{Config, Kvfree, NoSheaves, Objects, Unbatched};
use pagealloc::{Mmap, Zone};
use rcu_core::cpu::Threads;
use rcu_core::{Cookie, Domain, GracePeriod};
use slab::Kmalloc;
use std::alloc::Layout;
use std::collections::{BTreeMap, VecDeque};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

rcu_tree::static_tree! {
    /// Waited for by everything here.
    struct Tested, unsafe free = free_current;
}

type Kernel = Kmalloc<Threads, &'static Zone<Threads, Mmap>, Tested>;

/// Where `Tested` frees objects by offset; one test at a time uses that.
static CURRENT: AtomicPtr<Kernel> = AtomicPtr::new(std::ptr::null_mut());
static TURN: Mutex<()> = Mutex::new(());

unsafe fn free_current(object: NonNull<u8>) {
    // SAFETY: set while anything is queued with an offset, and never freed.
    let kmalloc = unsafe { &*CURRENT.load(Ordering::Acquire) };
    // SAFETY: the object came from there, and its time has come.
    unsafe { kmalloc.kfree(object) };
}

fn zone() -> &'static Zone<Threads, Mmap> {
    static ZONE: OnceLock<Zone<Threads, Mmap>> = OnceLock::new();
    ZONE.get_or_init(|| Zone::new(Threads, Mmap::new().unwrap()).unwrap())
}

fn in_section_of<D: Domain>(f: &mut dyn FnMut()) {
    let _guard = rcu_core::read_lock::<D>();
    f();
}

/// An allocator and, if that is what is tested, a front end above it.
struct On<T> {
    tested: T,
    kmalloc: &'static Kernel,
    _turn: Option<MutexGuard<'static, ()>>,
}

// SAFETY: 1: `kmalloc`; 2: everything here waits for `Tested`.
unsafe impl<T> Rig for On<T> {
    type Tested = T;

    fn tested(&self) -> &T {
        &self.tested
    }

    fn alloc(&self, size_bytes: usize) -> NonNull<u8> {
        self.kmalloc
            .kmalloc(Layout::from_size_align(size_bytes, 8).unwrap())
            .unwrap()
    }

    fn outstanding(&self) -> Option<usize> {
        let stats = self.kmalloc.stats();
        let small: usize = stats.classes.iter().map(|c| c.live + c.waiting).sum();
        Some(small + stats.large_bytes / pagealloc::PAGE_SIZE)
    }

    fn in_section(&self, f: &mut dyn FnMut()) {
        in_section_of::<Tested>(f);
    }
}

/// A fresh allocator below whatever `make` puts on it.
fn on<T>(make: impl FnOnce(&'static Kernel) -> T) -> On<T> {
    let kmalloc: &'static Kernel =
        Box::leak(Box::new(Kmalloc::new(Threads, zone(), Tested).unwrap()));
    On {
        tested: make(kmalloc),
        kmalloc,
        _turn: None,
    }
}

fn batched(
    kmalloc: &'static Kernel,
) -> Kvfree<Threads, &'static Zone<Threads, Mmap>, Tested, &'static Kernel> {
    // SAFETY: the allocator waits for `Tested`; everything is static.
    unsafe { Kvfree::new(Threads, zone(), Tested, kmalloc, Config::new()) }.unwrap()
}

fn without_sheaves(kmalloc: &'static Kernel) -> impl kvfree::DeferFree + Sync {
    let objects = NoSheaves(kmalloc);
    // SAFETY: nothing is deferred; everything is static.
    unsafe { Kvfree::new(Threads, zone(), Tested, objects, Config::new()) }.unwrap()
}

/// Blocks are refused for ever once the slots are there.
fn without_pages(kmalloc: &'static Kernel) -> impl kvfree::DeferFree + Sync {
    let pages: &'static Pages = Box::leak(Box::new(Pages::failing(common::Failure::From(1))));
    let objects = NoSheaves(kmalloc);
    // SAFETY: nothing is deferred; everything is static.
    unsafe { Kvfree::new(Threads, pages, Tested, objects, Config::new()) }.unwrap()
}

fn unbatched() -> On<Unbatched<Tested, &'static Kernel>> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut rig = on(|kmalloc| {
        CURRENT.store(std::ptr::from_ref(kmalloc).cast_mut(), Ordering::Release);
        // SAFETY: `Tested` frees objects of this allocator while the turn lasts.
        unsafe { Unbatched::new(Tested, kmalloc) }
    });
    rig._turn = Some(turn);
    rig
}

/// The dull twin: a list of objects and cookies. Memory is never reused.
struct Dull {
    books: Mutex<DullBooks>,
}

#[derive(Default)]
struct DullBooks {
    out: BTreeMap<usize, Layout>,
    freed: Vec<(NonNull<u8>, Layout)>,
    deferred: VecDeque<(NonNull<u8>, Cookie)>,
    offered: usize,
}

// SAFETY: memory that belongs to the books.
unsafe impl Send for DullBooks {}

impl Dull {
    fn new() -> Self {
        Self {
            books: Mutex::default(),
        }
    }

    fn free_ripe(&self) -> usize {
        let mut books = self.books.lock().unwrap();
        while let Some((object, _)) = books.deferred.pop_front_if(|d| Tested.poll(d.1)) {
            books.free(object);
        }
        books.deferred.len()
    }
}

impl DullBooks {
    fn free(&mut self, object: NonNull<u8>) {
        let layout = self
            .out
            .remove(&object.addr().get())
            .expect("freed twice, or never allocated");
        // SAFETY: memory of this layout, which stays until the books are dropped.
        unsafe { object.write_bytes(0xdd, layout.size()) };
        self.freed.push((object, layout));
    }
}

impl Drop for DullBooks {
    fn drop(&mut self) {
        for &(object, layout) in &self.freed {
            // SAFETY: allocated with this layout, and used by nobody.
            unsafe { std::alloc::dealloc(object.as_ptr(), layout) };
        }
    }
}

// SAFETY: 1: a cookie for each object; 2: `DullBooks::free`; 3: waits for the last cookie.
unsafe impl Objects for Dull {
    unsafe fn try_defer(&self, object: NonNull<u8>) -> bool {
        let cookie = Tested.snapshot();
        let mut books = self.books.lock().unwrap();
        books.offered += 1;
        let takes = !books.offered.is_multiple_of(3);
        if takes {
            books.deferred.push_back((object, cookie));
        }
        takes
    }

    fn is_large(&self, object: NonNull<u8>) -> bool {
        self.size_bytes(object) > 8192
    }

    fn size_bytes(&self, object: NonNull<u8>) -> usize {
        self.books.lock().unwrap().out[&object.addr().get()].size()
    }

    unsafe fn free_bulk(&self, objects: &mut [NonNull<u8>]) {
        let mut books = self.books.lock().unwrap();
        objects.iter().for_each(|&object| books.free(object));
    }

    fn barrier(&self) {
        let last = self.books.lock().unwrap().deferred.back().map(|d| d.1);
        if let Some(cookie) = last {
            Tested.wait(cookie);
            self.free_ripe();
        }
    }

    fn reap(&self) -> usize {
        let left = self.free_ripe();
        if left > 0 {
            Tested.start();
            Tested.drive();
        }
        left
    }

    fn waiting_bytes(&self) -> usize {
        let books = self.books.lock().unwrap();
        let size = |d: &(NonNull<u8>, Cookie)| books.out[&d.0.addr().get()].size();
        books.deferred.iter().map(size).sum()
    }
}

struct DullRig(Dull);

impl DullRig {
    fn allocate(&self, size_bytes: usize) -> NonNull<u8> {
        let layout = Layout::from_size_align(size_bytes, 16).unwrap();
        // SAFETY: the layout is not empty.
        let object = NonNull::new(unsafe { std::alloc::alloc(layout) }).unwrap();
        self.0
            .books
            .lock()
            .unwrap()
            .out
            .insert(object.addr().get(), layout);
        object
    }
}

// SAFETY: 1: the global allocator; 2: `Dull` waits for `Tested`.
unsafe impl Rig for DullRig {
    type Tested = Dull;

    fn tested(&self) -> &Dull {
        &self.0
    }

    fn alloc(&self, size_bytes: usize) -> NonNull<u8> {
        self.allocate(size_bytes)
    }

    fn outstanding(&self) -> Option<usize> {
        Some(self.0.books.lock().unwrap().out.len())
    }

    fn in_section(&self, f: &mut dyn FnMut()) {
        in_section_of::<Tested>(f);
    }
}

/// The default stack. It is shared, so nobody knows how many objects are this test's.
struct Stack;

// SAFETY: 1: `kmalloc`; 2: the stack's own sections.
unsafe impl Rig for Stack {
    type Tested = kvfree::stack::Front;

    fn tested(&self) -> &Self::Tested {
        kvfree::front()
    }

    fn alloc(&self, size_bytes: usize) -> NonNull<u8> {
        kvfree::objects()
            .kmalloc(Layout::from_size_align(size_bytes, 8).unwrap())
            .unwrap()
    }

    fn outstanding(&self) -> Option<usize> {
        None
    }

    fn in_section(&self, f: &mut dyn FnMut()) {
        in_section_of::<kvfree::Global>(f);
    }
}

mod objects {
    use super::*;

    /// The allocator itself is what is tested.
    struct Own(On<&'static Kernel>);

    // SAFETY: as for `On`.
    unsafe impl Rig for Own {
        type Tested = Kernel;

        fn tested(&self) -> &Kernel {
            self.0.kmalloc
        }

        fn alloc(&self, size_bytes: usize) -> NonNull<u8> {
            self.0.alloc(size_bytes)
        }

        fn outstanding(&self) -> Option<usize> {
            self.0.outstanding()
        }

        fn in_section(&self, f: &mut dyn FnMut()) {
            self.0.in_section(f);
        }
    }

    kvfree::objects_conformance!(kmalloc, Own(on(|kmalloc| kmalloc)));
    kvfree::objects_conformance!(by_reference, on(|kmalloc| kmalloc));
    kvfree::objects_conformance!(dull, DullRig(Dull::new()));
    kvfree::objects_conformance!(without_sheaves, on(NoSheaves));
}

mod defer_free {
    use super::*;

    kvfree::defer_free_conformance!(kvfree_with_sheaves, on(batched));
    kvfree::defer_free_conformance!(kvfree_without_sheaves, on(super::without_sheaves));
    kvfree::defer_free_conformance!(kvfree_without_pages, on(super::without_pages));
    kvfree::defer_free_conformance!(unbatched, super::unbatched());
    kvfree::defer_free_conformance!(default_stack, Stack);

    kvfree::defer_free_conformance!(kvfree_with_sheaves_threads, threads: on(batched));
    kvfree::defer_free_conformance!(kvfree_without_sheaves_threads, threads: on(super::without_sheaves));
    kvfree::defer_free_conformance!(kvfree_without_pages_threads, threads: on(super::without_pages));
    kvfree::defer_free_conformance!(unbatched_threads, threads: super::unbatched());
    kvfree::defer_free_conformance!(default_stack_threads, threads: Stack);
}

/// A front end over slots that nobody owns for long: their number is only a hint.
#[test]
fn a_front_end_may_have_fewer_layers() {
    let (hand, pages, dull) = (Hand::new(2), Pages::new(), DullRig(Dull::new()));
    // SAFETY: `Dull` waits for `Tested`; what is borrowed lives longer.
    let front =
        unsafe { Kvfree::new(&hand, &pages, Tested, dull.tested(), Config::new()) }.unwrap();
    for _ in 0..100 {
        let object = dull.alloc(50);
        // SAFETY: the twin's object, given up.
        unsafe { kvfree::DeferFree::retire_mightsleep(&front, object) };
    }
    drop(front);
    assert_eq!(dull.outstanding(), Some(0));
}
