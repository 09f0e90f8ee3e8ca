//! The engines: ours, the peers, and no deferral at all.

use crate::count::{FREED, freed};
use crossbeam_epoch as epoch;
use kvfree::stack::{Objs, Pages};
use kvfree::{DeferFree, Global, Unbatched};
use pagealloc::Attempt;
use rcu_core::cpu::Threads;
use rcu_core::{GracePeriod, Head, HeadOffset};
use slab::{CacheConfig, RawCache};
use std::alloc::Layout;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::{Duration, Instant};

/// One way to allocate, retire and read.
///
/// # Safety
/// `alloc` gives memory of at least `size` bytes, aligned to a word, until `retire` or `free_now`.
pub(crate) unsafe trait Engine: Sync {
    fn alloc(&self, size: usize) -> NonNull<u8>;

    /// Touches an object as a user would: writes its last word.
    #[inline]
    fn touch(&self, object: NonNull<u8>, size: usize, value: usize) {
        touch(object, size, value);
    }

    /// # Safety
    /// From `alloc` with this size, given up.
    unsafe fn retire(&self, object: NonNull<u8>, size: usize);

    /// Blocks until everything retired is free: `retired` objects by now.
    fn finish(&self, retired: usize);

    /// Objects that were retired and are not free, given how many were retired and what is still in use.
    fn outstanding(&self, retired: usize, in_use: &[NonNull<u8>]) -> Option<usize>;

    /// Bytes retired and not free at this moment, roughly.
    fn waiting_bytes(&self, retired: usize, size: usize) -> usize;

    fn grace_periods(&self) -> Option<usize> {
        None
    }

    /// One section with one load of `cell`.
    fn read(&self, cell: &AtomicPtr<usize>);
}

#[inline]
fn touch(object: NonNull<u8>, size: usize, value: usize) {
    // SAFETY: the last whole word of the object.
    let word = unsafe { object.add(size.saturating_sub(8) & !7) }.cast::<usize>();
    // SAFETY: aligned, inside the object, ours.
    unsafe { word.write_volatile(value) };
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("sizes are checked before")
}

fn load(cell: &AtomicPtr<usize>) -> usize {
    // SAFETY: the cell holds a leaked word.
    unsafe { *cell.load(Ordering::Acquire) }
}

pub(crate) fn read_ours(cell: &AtomicPtr<usize>) {
    let guard = kvfree::read_lock();
    black_box(load(cell));
    drop(guard);
}

/// `kvfree` with a cache for the objects' one layout.
pub(crate) struct Typed(RawCache<Threads, Pages, Global>);

impl Typed {
    pub(crate) fn new(size: usize) -> Self {
        let config = CacheConfig::new("scale", layout(size));
        kvfree::front();
        Self(RawCache::new(config, Threads, kvfree::pages(), Global).expect("memory for a cache"))
    }
}

// SAFETY: objects of a cache.
unsafe impl Engine for Typed {
    #[inline]
    fn alloc(&self, _size: usize) -> NonNull<u8> {
        self.0.alloc().expect("memory")
    }

    #[inline]
    unsafe fn retire(&self, object: NonNull<u8>, _size: usize) {
        // SAFETY: as the caller owes.
        if let Err(object) = unsafe { self.0.retire_attempt(object, Attempt::MayGrow) } {
            Global.synchronize();
            // SAFETY: given up, and a grace period has passed.
            unsafe { self.0.free(object) };
        }
    }

    fn finish(&self, _retired: usize) {
        self.0.barrier();
    }

    fn outstanding(&self, _retired: usize, in_use: &[NonNull<u8>]) -> Option<usize> {
        Some(self.0.stats().live.saturating_sub(in_use.len()))
    }

    fn waiting_bytes(&self, _retired: usize, _size: usize) -> usize {
        self.0.waiting_bytes()
    }

    fn grace_periods(&self) -> Option<usize> {
        Some(Global.grace_periods())
    }

    #[inline]
    fn read(&self, cell: &AtomicPtr<usize>) {
        read_ours(cell);
    }
}

/// What `Kmalloc` has given out beyond `in_use`: objects in slabs one by one, large blocks by pages.
fn not_in_use(in_use: &[NonNull<u8>]) -> usize {
    let objects = kvfree::objects();
    let stats = objects.stats();
    let large = in_use.iter().filter(|o| objects.is_large(o.as_ptr()));
    // SAFETY: in use, so allocated and not given up.
    let large_bytes: usize = large.clone().map(|&o| unsafe { objects.ksize(o) }).sum();
    let small = in_use.len() - large.count();
    let lost_pages = (stats.large_bytes - large_bytes) / pagealloc::PAGE_SIZE;
    stats.classes.iter().map(|c| c.live).sum::<usize>() - small + lost_pages
}

/// `kvfree` without heads, over `Kmalloc`.
pub(crate) struct Headless;

impl Headless {
    pub(crate) fn new() -> Self {
        kvfree::front();
        Self
    }
}

// SAFETY: objects of `Kmalloc`.
unsafe impl Engine for Headless {
    #[inline]
    fn alloc(&self, size: usize) -> NonNull<u8> {
        kvfree::objects().kmalloc(layout(size)).expect("memory")
    }

    #[inline]
    unsafe fn retire(&self, object: NonNull<u8>, _size: usize) {
        // SAFETY: as the caller owes.
        unsafe { kvfree::retire_mightsleep(object) };
    }

    fn finish(&self, _retired: usize) {
        kvfree::barrier();
    }

    fn outstanding(&self, _retired: usize, in_use: &[NonNull<u8>]) -> Option<usize> {
        Some(not_in_use(in_use))
    }

    fn waiting_bytes(&self, _retired: usize, _size: usize) -> usize {
        kvfree::objects().waiting_bytes()
    }

    fn grace_periods(&self) -> Option<usize> {
        Some(Global.grace_periods())
    }

    #[inline]
    fn read(&self, cell: &AtomicPtr<usize>) {
        read_ours(cell);
    }
}

/// The same, where who retires knows the size.
pub(crate) struct BySize(Headless);

impl BySize {
    pub(crate) fn new() -> Self {
        Self(Headless::new())
    }
}

// SAFETY: objects of `Kmalloc`.
unsafe impl Engine for BySize {
    #[inline]
    fn alloc(&self, size: usize) -> NonNull<u8> {
        self.0.alloc(size)
    }

    #[inline]
    unsafe fn retire(&self, object: NonNull<u8>, size: usize) {
        // SAFETY: as the caller owes; allocated for this layout.
        unsafe { kvfree::retire_sized_mightsleep(object, layout(size)) };
    }

    fn finish(&self, retired: usize) {
        self.0.finish(retired);
    }

    fn outstanding(&self, retired: usize, in_use: &[NonNull<u8>]) -> Option<usize> {
        self.0.outstanding(retired, in_use)
    }

    fn waiting_bytes(&self, retired: usize, size: usize) -> usize {
        self.0.waiting_bytes(retired, size)
    }

    fn grace_periods(&self) -> Option<usize> {
        self.0.grace_periods()
    }

    #[inline]
    fn read(&self, cell: &AtomicPtr<usize>) {
        self.0.read(cell);
    }
}

/// One callback an object.
pub(crate) struct NotBatched(Unbatched<Global, &'static Objs>);

impl NotBatched {
    pub(crate) fn new() -> Self {
        Self(kvfree::unbatched())
    }
}

// SAFETY: objects of `Kmalloc`, of two words at least.
unsafe impl Engine for NotBatched {
    #[inline]
    fn alloc(&self, size: usize) -> NonNull<u8> {
        let object = kvfree::objects()
            .kmalloc(layout(size.max(size_of::<Head>())))
            .expect("memory");
        // SAFETY: fresh memory, large enough for a head in front.
        unsafe { object.cast::<Head>().write(Head::new()) };
        object
    }

    #[inline]
    unsafe fn retire(&self, object: NonNull<u8>, _size: usize) {
        // SAFETY: as the caller owes; the head lies in front.
        unsafe { self.0.retire(object.cast(), HeadOffset::from_bytes(0)) };
    }

    fn finish(&self, _retired: usize) {
        self.0.barrier();
    }

    fn outstanding(&self, _retired: usize, in_use: &[NonNull<u8>]) -> Option<usize> {
        Some(not_in_use(in_use))
    }

    fn waiting_bytes(&self, retired: usize, size: usize) -> usize {
        retired.saturating_sub(Global::tree().stats().callbacks_run) * size
    }

    fn grace_periods(&self) -> Option<usize> {
        Some(Global.grace_periods())
    }

    #[inline]
    fn read(&self, cell: &AtomicPtr<usize>) {
        read_ours(cell);
    }
}

/// `malloc` and `free` at once: what not deferring costs.
pub(crate) struct Malloc;

fn malloc(size: usize) -> NonNull<u8> {
    // SAFETY: any size may be asked for.
    NonNull::new(unsafe { libc::malloc(size) }.cast()).expect("memory")
}

// SAFETY: `malloc`ed memory.
unsafe impl Engine for Malloc {
    #[inline]
    fn alloc(&self, size: usize) -> NonNull<u8> {
        malloc(size)
    }

    #[inline]
    unsafe fn retire(&self, object: NonNull<u8>, _size: usize) {
        // SAFETY: as the caller owes.
        unsafe { libc::free(object.as_ptr().cast()) };
    }

    fn finish(&self, _retired: usize) {}

    fn outstanding(&self, _retired: usize, _in_use: &[NonNull<u8>]) -> Option<usize> {
        Some(0)
    }

    fn waiting_bytes(&self, _retired: usize, _size: usize) -> usize {
        0
    }

    #[inline]
    fn read(&self, cell: &AtomicPtr<usize>) {
        black_box(load(cell));
    }
}

/// What peers have not freed yet.
fn not_freed(retired: usize) -> usize {
    retired.saturating_sub(FREED.sum())
}

/// Pushes a peer, which has no barrier, until it has freed everything; gives up when nothing is freed for long, and
/// what is left then shows as outstanding.
fn drain(retired: usize, push: impl Fn()) {
    const PATIENCE: Duration = Duration::from_secs(20);
    let (mut left, mut since) = (not_freed(retired), Instant::now());
    while left > 0 && since.elapsed() < PATIENCE {
        push();
        let now = not_freed(retired);
        if now < left {
            (left, since) = (now, Instant::now());
        }
    }
}

/// `crossbeam-epoch` over `malloc`.
pub(crate) struct Crossbeam;

// SAFETY: `malloc`ed memory.
unsafe impl Engine for Crossbeam {
    #[inline]
    fn alloc(&self, size: usize) -> NonNull<u8> {
        malloc(size)
    }

    #[inline]
    unsafe fn retire(&self, object: NonNull<u8>, _size: usize) {
        let guard = epoch::pin();
        let free = move || {
            // SAFETY: as the caller owes, after the last reader.
            unsafe { libc::free(object.as_ptr().cast()) };
            freed();
        };
        // SAFETY: the closure only frees, which any thread may do.
        unsafe { guard.defer_unchecked(free) };
    }

    fn finish(&self, retired: usize) {
        drain(retired, || epoch::pin().flush());
    }

    fn outstanding(&self, retired: usize, _in_use: &[NonNull<u8>]) -> Option<usize> {
        Some(not_freed(retired))
    }

    fn waiting_bytes(&self, retired: usize, size: usize) -> usize {
        not_freed(retired) * size
    }

    #[inline]
    fn read(&self, cell: &AtomicPtr<usize>) {
        let guard = epoch::pin();
        black_box(load(cell));
        drop(guard);
    }
}

/// `kovan` with its `recycle` feature: nodes of fixed sizes, larger ones around `malloc`ed memory.
pub(crate) struct Kovan;

#[repr(C)]
struct Node<const PAYLOAD: usize> {
    retired: kovan::RetiredNode,
    payload: MaybeUninit<[u8; PAYLOAD]>,
}

impl<const PAYLOAD: usize> Drop for Node<PAYLOAD> {
    #[inline]
    fn drop(&mut self) {
        freed();
    }
}

/// A node that owns memory larger than kovan's classes.
#[repr(C)]
struct Around {
    retired: kovan::RetiredNode,
    memory: *mut libc::c_void,
}

impl Drop for Around {
    fn drop(&mut self) {
        // SAFETY: the node owns the memory.
        unsafe { libc::free(self.memory) };
        freed();
    }
}

const NODE: usize = size_of::<kovan::RetiredNode>();
const LARGEST_NODE: usize = 1024;

/// Calls `$f::<PAYLOAD>` for the smallest node of at least `$size` bytes, or `$large`.
macro_rules! by_size {
    ($size:expr, $f:ident $args:tt, $large:expr) => {
        by_size!(@ $size, $f $args, $large,
            [48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024])
    };
    (@ $size:expr, $f:ident $args:tt, $large:expr, [$($bytes:literal),*]) => {
        match $size {
            $(n if n <= $bytes => $f::<{ $bytes - NODE }> $args,)*
            _ => $large,
        }
    };
}

fn alloc_node<const PAYLOAD: usize>() -> NonNull<u8> {
    let node = kovan::alloc_node_uninit::<Node<PAYLOAD>>().cast::<kovan::RetiredNode>();
    // SAFETY: fresh memory, of which this is the first field; the payload needs no writing.
    unsafe { node.write(kovan::RetiredNode::new()) };
    NonNull::new(node.cast()).expect("memory")
}

/// # Safety
/// A node of this payload, given up.
unsafe fn retire_node<const PAYLOAD: usize>(node: NonNull<u8>) {
    // SAFETY: as the caller owes.
    unsafe { kovan::retire_node(node.as_ptr().cast::<Node<PAYLOAD>>()) };
}

fn alloc_around(size: usize) -> NonNull<u8> {
    let memory = malloc(size).as_ptr().cast();
    let node = kovan::alloc_node(Around {
        retired: kovan::RetiredNode::new(),
        memory,
    });
    NonNull::new(node.cast()).expect("memory")
}

/// # Safety
/// From `alloc_around`, given up.
unsafe fn retire_around(node: NonNull<u8>) {
    // SAFETY: as the caller owes.
    unsafe { kovan::retire_node(node.as_ptr().cast::<Around>()) };
}

// SAFETY: nodes of at least the size; larger ones are only touched through `touch`.
unsafe impl Engine for Kovan {
    #[inline]
    fn touch(&self, object: NonNull<u8>, size: usize, value: usize) {
        if size <= LARGEST_NODE {
            return touch(object, size.max(NODE + 8), value);
        }
        // SAFETY: larger objects are `Around` nodes.
        let memory = unsafe { object.cast::<Around>().as_ref() }.memory;
        touch(NonNull::new(memory.cast()).expect("memory"), size, value);
    }

    #[inline]
    fn alloc(&self, size: usize) -> NonNull<u8> {
        by_size!(size, alloc_node(), alloc_around(size))
    }

    #[inline]
    #[expect(
        clippy::multiple_unsafe_ops_per_block,
        reason = "one arm of the match runs"
    )]
    unsafe fn retire(&self, object: NonNull<u8>, size: usize) {
        // SAFETY: as the caller owes; the same node type as in `alloc`.
        unsafe { by_size!(size, retire_node(object), retire_around(object)) };
    }

    fn finish(&self, retired: usize) {
        drain(retired, || {
            drop(kovan::pin());
            kovan::flush();
        });
    }

    fn outstanding(&self, retired: usize, _in_use: &[NonNull<u8>]) -> Option<usize> {
        Some(not_freed(retired))
    }

    fn waiting_bytes(&self, retired: usize, size: usize) -> usize {
        not_freed(retired) * size
    }

    #[inline]
    fn read(&self, cell: &AtomicPtr<usize>) {
        let guard = kovan::pin();
        black_box(load(cell));
        drop(guard);
    }
}
