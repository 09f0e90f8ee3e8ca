//! The default stack for user space: threads as slots, pages from `mmap`, one tree RCU, one general allocator, one
//! front end with its monitor. Process-wide, made at first use, never torn down.
//!
//! A library and its application share it; that is the point: one grace period serves all.

mod builder;
mod caches;

pub use builder::{Builder, InUse};
pub use caches::TypedCache;

use crate::batched::Kvfree;
use crate::budget::OverLimit;
use crate::monitor::Monitor;
use crate::objects::DeferFree;
use crate::stats::KvfreeStats;
use crate::unbatched::Unbatched;
use builder::settings;
use core::fmt;
use core::ptr::NonNull;
use core::time::Duration;
use pagealloc::{Attempt, Mmap, Zone};
use rcu_core::cpu::{Cpus, Slot, Threads};
use rcu_core::sync::atomic::{AtomicU32, Ordering};
use rcu_core::{GracePeriod, Guard, HasHead, Rcu};
use rcu_tree::TreeStats;
use slab::{CacheStats, CreateError, Kmalloc, KmallocStats};
use std::io::Write;
use std::sync::OnceLock;

rcu_tree::static_tree! {
    /// The domain of the default stack: its readers are all readers of this process's [`read_lock`].
    pub struct Global, unsafe free = free_object;
}

/// The default stack's pages.
pub type Pages = &'static Zone<Threads, Mmap>;
/// The default stack's general allocator.
pub type Objs = Kmalloc<Threads, Pages, Global>;
/// The default stack's front end.
pub type Front = Kvfree<Threads, Pages, Global, &'static Objs>;

static MONITOR: Monitor<Global> = Monitor::new(Global, tick);

/// Readers that are told of at most.
const MOST_READERS: usize = 8;

/// How often the zone is looked after while the monitor runs.
const ZONE_TICK: Duration = Duration::from_secs(1);

/// One round of the monitor.
fn tick() -> usize {
    static ROUND: AtomicU32 = AtomicU32::new(0);
    let rounds = ZONE_TICK.as_nanos() / settings().delay.as_nanos().max(1);
    // ORDERING: Relaxed: the monitor's own.
    let round = ROUND.fetch_add(1, Ordering::Relaxed);
    if u128::from(round).is_multiple_of(rounds.max(1)) {
        pages().tick();
    }
    let left = match (FRONT.get(), OBJECTS.get()) {
        // The front end reaps the objects, too.
        (Some(front), _) => front.tick(),
        (None, Some(objects)) => objects.reap(),
        (None, None) => 0,
    };
    left + caches::reap()
}

/// The default stack's page allocator.
///
/// # Panics
/// If the process may not reserve any address space.
pub fn pages() -> Pages {
    static ZONE: OnceLock<Zone<Threads, Mmap>> = OnceLock::new();
    ZONE.get_or_init(|| {
        let source = (Mmap::builder().decommit(settings().decommit).build())
            .unwrap_or_else(|e| panic!("no address space for the stack: {e}"));
        Zone::new(Threads, source).unwrap_or_else(|e| panic!("no zone for the stack: {e}"))
    })
}

static OBJECTS: OnceLock<Objs> = OnceLock::new();

/// The default stack's general allocator: `kmalloc` and `kfree`, by size.
///
/// # Panics
/// As for [`pages`].
#[inline]
pub fn objects() -> &'static Objs {
    if let Some(objects) = OBJECTS.get() {
        objects
    } else {
        make_objects()
    }
}

#[cold]
fn make_objects() -> &'static Objs {
    OBJECTS.get_or_init(|| {
        Kmalloc::new_watched(Threads, pages(), Global, || MONITOR.watch(false))
            .unwrap_or_else(|e| panic!("no memory for the stack: {e}"))
    })
}

static FRONT: OnceLock<Front> = OnceLock::new();

/// The default stack's front end.
///
/// # Panics
/// As for [`pages`].
#[inline]
pub fn front() -> &'static Front {
    if let Some(front) = FRONT.get() {
        front
    } else {
        make_front()
    }
}

#[cold]
fn make_front() -> &'static Front {
    let front = FRONT.get_or_init(|| {
        MONITOR.set_delay(settings().delay);
        let config = settings().config.watched_by(|soon| MONITOR.watch(soon));
        let config = if config.is_told() {
            config
        } else {
            config.tells(tell)
        };
        // SAFETY: `objects()` waits for the grace periods of `Global` (1); everything borrowed is static (2).
        unsafe { Kvfree::new(Threads, pages(), Global, objects(), config) }
            .unwrap_or_else(|e| panic!("no memory for the stack: {e}"))
    });
    // Starts the tree's worker here, and not in the first `retire` that asks for a grace period: that one may run in a
    // signal handler, where no thread can be made.
    Global.start();
    front
}

/// Waits until less waits than may, if the caller may wait.
#[cold]
pub(crate) fn make_room() {
    while !front().relieve() {
        if !settings().waits || !Global::tree().may_wait() {
            return;
        }
        Global.synchronize();
        if front().relieve() {
            return;
        }
        // What is left runs destructors, which are the monitor's.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Says on standard error that the limit is reached, and who holds grace periods up.
fn tell(over: &OverLimit) {
    struct Readers;
    impl fmt::Display for Readers {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let tree = Global::tree();
            let slots = (0..Threads.nr_slots()).map(|i| Slot::new(i as u32));
            let inside = slots.filter_map(|slot| tree.slot_stats(slot).filter(|s| s.nesting > 0));
            inside
                .take(MOST_READERS)
                .try_for_each(|reader| write!(f, "\nkvfree: {reader}"))
        }
    }
    // Standard error is unbuffered; a process without one has nobody to tell.
    let _ = writeln!(std::io::stderr(), "kvfree: {over}{Readers}");
}

/// The unbatched twin over the same layers: one callback an object.
#[must_use]
pub fn unbatched() -> Unbatched<Global, &'static Objs> {
    // SAFETY: `Global` was given `free_object`, which frees objects of `objects()`.
    unsafe { Unbatched::new(Global, objects()) }
}

/// How `Global` frees objects by offset (the 2008 encoding).
///
/// # Safety
/// 1. `object` came from `objects()`, is given up, and nobody sees it.
unsafe fn free_object(object: NonNull<u8>) {
    // SAFETY: 1.
    unsafe { objects().kfree(object) };
}

/// A cache for objects of one type in the default stack, called `name` in statistics and messages.
///
/// # Errors
/// If there is no memory for the cache's own structures.
#[doc(alias = "kmem_cache_create")]
pub fn cache<T>(name: &'static str) -> Result<TypedCache<T>, CreateError> {
    TypedCache::with_config(TypedCache::<T>::config(name))
}

/// Retires an object of a typed cache. May sleep: without memory for a sheaf it waits for a grace period and frees the
/// object itself. Not inside a section.
///
/// # Safety
/// 1. `object` came from `cache`, and is given up. `T` needs no dropping (checked when compiled).
/// 2. No new reader can find it.
#[inline]
#[doc(alias = "kfree_rcu")]
pub unsafe fn retire_in_mightsleep<T>(cache: &TypedCache<T>, object: NonNull<T>) {
    // SAFETY: the caller's debts.
    if let Err(object) = unsafe { cache.retire_attempt(object, Attempt::MayGrow) } {
        retire_in_slow(cache, object);
    }
}

#[cold]
fn retire_in_slow<T>(cache: &TypedCache<T>, object: NonNull<T>) {
    Global.synchronize();
    // SAFETY: given up by the caller of `retire_in_mightsleep`, and a grace period has passed since.
    unsafe { cache.free(object) };
}

/// Enters a read-side critical section of the default stack.
///
/// ```
/// let guard = kvfree::read_lock();
/// drop(guard);
/// ```
#[inline(always)]
#[doc(alias = "rcu_read_lock")]
pub fn read_lock() -> Guard<Global> {
    rcu_core::read_lock::<Global>()
}

/// Blocks until every section that has begun before has ended.
///
/// # Panics
/// Inside a section, where it would wait for itself.
#[doc(alias = "synchronize_rcu")]
pub fn synchronize() {
    Global.synchronize();
}

/// Blocks until everything retired before, by any thread, is free, and every callback queued before has run.
/// What was retired to a typed [`cache`], too.
///
/// # Panics
/// Inside a section, where it would wait for itself.
#[doc(alias = "kvfree_rcu_barrier")]
pub fn barrier() {
    if let Some(front) = FRONT.get() {
        front.barrier();
    } else if let Some(objects) = OBJECTS.get() {
        objects.barrier();
    }
    caches::barrier();
    Global.barrier();
}

/// Retires an object with a head inside (two arguments: the object and, by its type, where the head lies).
/// Never blocks, never waits for memory; from any context but before the stack's first use in a signal handler.
///
/// ```
/// use core::{alloc::Layout, ptr::NonNull};
/// use rcu_core::{Head, has_head};
/// struct Route { prefix: u64, head: Head }
/// has_head!(Route, head);
///
/// let route = kvfree::objects().kmalloc(Layout::new::<Route>()).unwrap().cast::<Route>();
/// // SAFETY: fresh memory of the right layout.
/// unsafe { route.write(Route { prefix: 10, head: Head::new() }) };
/// // … published, used, and unlinked …
/// // SAFETY: it came from `objects()`, and no new reader can find it.
/// unsafe { kvfree::retire(route) };
/// kvfree::barrier();
/// ```
///
/// # Safety
/// 1. `object` came from [`objects`], with the provenance of the whole object, and is given up.
/// 2. No new reader can find it. Its destructor is not run.
#[inline]
#[doc(alias = "kfree_rcu")]
pub unsafe fn retire<T: HasHead>(object: NonNull<T>) {
    // SAFETY: the caller's debt 1.
    let head = unsafe { T::head_of(object) };
    // SAFETY: the caller's debts 1 and 2.
    unsafe { front().retire(head, T::OFFSET) };
}

/// Retires an object without a head. May sleep; not inside a section.
///
/// # Safety
/// As for [`retire`].
#[inline]
#[doc(alias = "kvfree_rcu_mightsleep")]
pub unsafe fn retire_mightsleep(object: NonNull<u8>) {
    // SAFETY: the caller's debts.
    unsafe { front().retire_mightsleep(object) };
}

/// Retires a `Box` of the global allocator, given as the pointer that [`Box::into_raw`] made: after a grace period
/// it is dropped, on the monitor's thread or in a barrier. May sleep; not inside a section.
///
/// Takes a pointer and not a box, because a box promises that nobody else looks (hole 10 of the peers).
///
/// # Safety
/// 1. `object` came from [`Box::into_raw`], and is given up.
/// 2. No new reader can find it.
pub unsafe fn retire_box<T: Send + 'static>(object: NonNull<T>) {
    /// # Safety
    /// 1. `object` came from `Box::<T>::into_raw`, once.
    unsafe fn drop_box<T>(object: NonNull<u8>) {
        // SAFETY: 1.
        drop(unsafe { Box::from_raw(object.cast::<T>().as_ptr()) });
    }
    // SAFETY: `T: Send`, so any thread may drop it; the caller's debts 1 and 2.
    unsafe { front().retire_with_mightsleep(object.cast(), drop_box::<T>, size_of::<T>()) };
}

/// Counts of the default stack.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StackStats {
    /// Grace periods and callbacks.
    pub rcu: TreeStats,
    /// Objects by class.
    pub objects: Option<KmallocStats>,
    /// Blocks and heads.
    pub front: Option<KvfreeStats>,
    /// The typed caches, in the order of their making.
    pub caches: Vec<CacheStats>,
    /// Pages that are out.
    pub pages_allocated: usize,
    /// Whether the monitor's thread exists, or is about to: not for long after the last object was freed.
    pub is_monitored: bool,
}

impl fmt::Display for StackStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rcu: {}", self.rcu)?;
        if let Some(front) = &self.front {
            writeln!(f, "kvfree: {front}")?;
        }
        writeln!(f, "pages allocated: {}", self.pages_allocated)?;
        if let Some(objects) = &self.objects {
            write!(f, "{objects}")?;
        }
        for cache in &self.caches {
            writeln!(f, "{cache}")?;
        }
        Ok(())
    }
}

/// Counts of the default stack. Visits every slot in use.
#[must_use]
pub fn stats() -> StackStats {
    StackStats {
        rcu: Global::tree().stats(),
        objects: OBJECTS.get().map(Kmalloc::stats),
        front: FRONT.get().map(Kvfree::stats),
        caches: caches::stats(),
        pages_allocated: pages().nr_allocated(),
        is_monitored: MONITOR.is_present(),
    }
}
