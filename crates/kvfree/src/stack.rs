//! A whole stack for user space: threads as slots, pages from `mmap`, one tree RCU, one general allocator, one front end with
//! its monitor, and typed caches. Made at first use, never torn down.
//!
//! The default one, behind the functions of the crate's root, is [`Global`]'s. A library and its application share it; that is
//! the point: one grace period serves all. Others are made by [`stack!`](crate::stack!), where readers of one thing shall
//! not hold up another: their guards, boxes and cells are other types.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `settings`, `zone`, `objects`, `front` | the layers, each made once, from the bottom up | the first user of each |
//! | `rounds` | rounds of the monitor | the monitor |
//! | `hook` | has the stack put right in the child of a fork | listed by who makes `front` |
//!
//! The monitor's and the caches' words are in their modules.
//!
//! # Contexts
//! The first use makes threads and allocates: not in a signal handler. From then on each function says where it may be called.
//! Before `main`, in destructors of thread-locals, and at exit all of them work; a thread past the destructor of its slot
//! retires on shared lists.

mod builder;
mod caches;
mod fork;
mod front_door;
mod room;
mod stats;

pub use builder::{Builder, InUse};
pub use caches::TypedCache;
#[cfg(feature = "allocator-api2")]
pub use front_door::retire_box_in;
pub use front_door::{
    Global, barrier, cache, front, objects, pages, read_lock, retire, retire_box,
    retire_in_mightsleep, retire_mightsleep, retire_sized_mightsleep, stats, synchronize,
    unbatched,
};
pub use stats::StackStats;

use crate::batched::Kvfree;
use crate::boxes;
use crate::monitor::Monitor;
use crate::objects::DeferFree;
use crate::unbatched::Unbatched;
use caches::Caches;
use core::alloc::Layout;
use core::fmt;
use core::mem::needs_drop;
use core::ptr::{self, NonNull};
use core::time::Duration;
use pagealloc::{Attempt, Mmap, Zone};
use rcu_core::cpu::{Cpus, OfflineHook, Threads};
use rcu_core::sync::atomic::{AtomicU32, Ordering};
use rcu_core::{Callback, Domain, HasHead, Head, HeadOffset};
use rcu_tree::Tree;
use slab::{CreateError, Kmalloc};
use std::sync::OnceLock;

/// A stack's pages.
pub type Pages = &'static Zone<Threads, Mmap>;
/// A stack's general allocator.
pub type Objs<D = Global> = Kmalloc<Threads, Pages, D>;
/// A stack's front end.
pub type Front<D = Global> = Kvfree<Threads, Pages, D, &'static Objs<D>>;

/// How often the zone is looked after while the monitor runs.
const ZONE_TICK: Duration = Duration::from_secs(1);

/// A domain with a stack of its own: what [`stack!`](crate::stack!) makes.
///
/// # Safety
/// An implementer keeps the guarantees below.
///
/// # Guarantees
/// 1. `tree` is the RCU that the domain stands for; it frees objects by offset with [`free_object`] of this domain.
/// 2. `stack` is one static, always the same.
pub unsafe trait StackDomain: Domain {
    /// The RCU of the stack.
    fn tree() -> &'static Tree<'static, Threads>;

    /// The stack.
    fn stack() -> &'static Stack<Self>;
}

/// Makes an independent stack: a [domain](rcu_core::Domain) with pages, objects, a front end, a monitor and typed caches of its own.
///
/// ```
/// kvfree::stack! {
///     /// What the plugins see.
///     pub struct Plugins;
/// }
///
/// use kvfree::{RcuBoxIn, RcuCellIn};
/// static CURRENT: RcuCellIn<String, Plugins> = RcuCellIn::empty();
///
/// CURRENT.store(Some(RcuBoxIn::new(String::from("first"))));
/// let guard = Plugins::read_lock();
/// assert_eq!(CURRENT.load(&guard).unwrap(), "first");
/// drop(guard);
/// CURRENT.store(None);
/// Plugins::stack().barrier();
/// assert_eq!(Plugins::stack().stats().front.unwrap().objects_waiting, 0);
/// ```
///
/// A guard of another stack does not fit:
///
/// ```compile_fail,E0277
/// kvfree::stack! { struct Plugins; }
/// let cell: kvfree::RcuCellIn<u64, Plugins> = kvfree::RcuBoxIn::new(1).into();
/// let guard = kvfree::read_lock();
/// cell.load(&guard);
/// ```
///
/// nor does a box:
///
/// ```compile_fail,E0308
/// kvfree::stack! { struct Plugins; }
/// let cell: kvfree::RcuCellIn<u64, Plugins> = kvfree::RcuCellIn::empty();
/// let other: kvfree::RcuBox<u64> = kvfree::RcuBox::new(1);
/// cell.store(Some(other));
/// ```
///
/// nor an object of a typed cache:
///
/// ```compile_fail,E0308
/// kvfree::stack! { struct Plugins; }
/// let cache: kvfree::TypedCache<u64> = Plugins::stack().cache::<u64>("mine").unwrap();
/// ```
///
/// Nor is there another stack of the domain:
///
/// ```compile_fail,E0133
/// static SECOND: kvfree::Stack<kvfree::Global> = kvfree::Stack::new(kvfree::Global);
/// ```
///
/// After the name there may be `callbacks = …` and `stall = …`, in this order: see [`rcu_tree::static_tree!`].
#[macro_export]
macro_rules! stack {
    ($(#[$m:meta])* $vis:vis struct $name:ident $(, callbacks = $callbacks:expr)? $(, stall = $stall:expr)?;) => {
        $crate::__rcu_tree::static_tree! {
            $(#[$m])*
            $vis struct $name
                $(, callbacks = $callbacks)?
                , unsafe free = $crate::stack::free_object::<$name>
                $(, stall = $stall)?;
        }

        const _: () = {
            // SAFETY: it is what `stack` returns just below.
            static STACK: $crate::stack::Stack<$name> = unsafe { $crate::stack::Stack::new($name) };

            // SAFETY: 1: the tree is the domain's, and was given this function just above; 2: a static.
            unsafe impl $crate::stack::StackDomain for $name {
                #[inline(always)]
                fn tree() -> &'static $crate::__rcu_tree::Tree<'static, $crate::__rcu_tree::rcu_core::cpu::Threads> {
                    $name::tree()
                }

                #[inline(always)]
                fn stack() -> &'static $crate::stack::Stack<$name> {
                    &STACK
                }
            }

            #[allow(dead_code)]
            impl $name {
                /// The stack of the domain.
                #[inline(always)]
                #[must_use]
                $vis fn stack() -> &'static $crate::stack::Stack<$name> {
                    &STACK
                }

                /// Enters a read-side critical section of the stack.
                #[inline(always)]
                #[track_caller]
                $vis fn read_lock() -> $crate::__rcu_tree::rcu_core::Guard<$name> {
                    $crate::__rcu_tree::rcu_core::read_lock::<$name>()
                }
            }
        };
    };
}

/// How a stack's tree frees objects by offset (the 2008 encoding). For [`stack!`](crate::stack!).
///
/// # Safety
/// 1. `object` came from the stack's [`Stack::objects`], is given up, and nobody sees it.
#[doc(hidden)]
pub unsafe fn free_object<D: StackDomain>(object: NonNull<u8>) {
    // SAFETY: 1.
    unsafe { D::stack().objects().kfree(object) };
}

/// The stack of one domain. See the [module](self) and [`stack!`](crate::stack!).
pub struct Stack<D: StackDomain> {
    domain: D,
    settings: OnceLock<Builder>,
    zone: OnceLock<Zone<Threads, Mmap>>,
    objects: OnceLock<Objs<D>>,
    front: OnceLock<Front<D>>,
    monitor: Monitor<D>,
    caches: Caches<D>,
    rounds: AtomicU32,
    hook: OfflineHook,
}

impl<D: StackDomain> Stack<D> {
    /// A stack that is not used yet. For [`stack!`](crate::stack!): it is reached through its domain only.
    ///
    /// # Safety
    /// 1. It is the static that [`StackDomain::stack`] of `D` returns: another one would free its objects there, and have no monitor.
    #[doc(hidden)]
    #[must_use]
    pub const unsafe fn new(domain: D) -> Self {
        // SAFETY: the function does nothing, from wherever it is called.
        let hook = unsafe { OfflineHook::new(fork::offline, ptr::null()) };
        // SAFETY: the function may be called by the only thread of a child.
        let hook = unsafe { hook.with_fork(fork::forked::<D>) };
        Self {
            domain,
            settings: OnceLock::new(),
            zone: OnceLock::new(),
            objects: OnceLock::new(),
            front: OnceLock::new(),
            monitor: Monitor::new(domain, Self::tick),
            caches: Caches::new(),
            rounds: AtomicU32::new(0),
            hook,
        }
    }

    /// Makes these the settings of the stack.
    ///
    /// # Errors
    /// If the stack has been used already, or somebody has installed settings.
    pub fn install(&self, settings: Builder) -> Result<(), InUse> {
        self.settings.set(settings).map_err(|_| InUse)
    }

    /// The settings; from now on they stay.
    fn settings(&self) -> &Builder {
        self.settings.get_or_init(Builder::new)
    }

    /// The stack's page allocator.
    ///
    /// # Panics
    /// If the process may not reserve any address space.
    pub fn pages(&'static self) -> Pages {
        self.zone.get_or_init(|| {
            let source = (Mmap::builder().decommit(self.settings().decommit).build())
                .unwrap_or_else(|e| panic!("no address space for the stack: {e}"));
            Zone::new(Threads, source).unwrap_or_else(|e| panic!("no zone for the stack: {e}"))
        })
    }

    /// The stack's general allocator: `kmalloc` and `kfree`, by size.
    ///
    /// # Panics
    /// As for [`Self::pages`].
    #[inline]
    pub fn objects(&'static self) -> &'static Objs<D> {
        if let Some(objects) = self.objects.get() {
            objects
        } else {
            self.make_objects()
        }
    }

    #[cold]
    fn make_objects(&'static self) -> &'static Objs<D> {
        self.objects.get_or_init(|| {
            let (pages, checks) = (self.pages(), self.settings().checks);
            let watch = || {
                let stack = D::stack();
                if let Some(front) = stack.front.get() {
                    front.note_deferred();
                }
                stack.monitor.watch(false);
            };
            Kmalloc::new_watched_checked(Threads, pages, self.domain, watch, checks)
                .unwrap_or_else(|e| panic!("no memory for the stack: {e}"))
        })
    }

    /// The stack's front end.
    ///
    /// # Panics
    /// As for [`Self::pages`].
    #[inline]
    pub fn front(&'static self) -> &'static Front<D> {
        if let Some(front) = self.front.get() {
            front
        } else {
            self.make_front()
        }
    }

    #[cold]
    fn make_front(&'static self) -> &'static Front<D> {
        let front = self.front.get_or_init(|| {
            self.monitor.set_delay(self.settings().delay);
            let config = self.settings().config;
            let config = config.watched_by(|soon| D::stack().monitor.watch(soon));
            let config = if config.is_told() {
                config
            } else {
                config.tells(stats::tell::<D>)
            };
            let (pages, objects) = (self.pages(), self.objects());
            // SAFETY: `objects()` waits for the grace periods of `D` (1); everything borrowed is static (2).
            let front = unsafe { Kvfree::new(Threads, pages, self.domain, objects, config) }
                .unwrap_or_else(|e| panic!("no memory for the stack: {e}"));
            // SAFETY: a stack is a static, and this is done once.
            unsafe { Threads.add_offline_hook(NonNull::from(&self.hook)) };
            // SAFETY: the front end is never dropped, and the hook is on no list.
            unsafe { pages.add_pressure_hook(front.shrinker()) };
            front
        });
        // A tree that never had a reader is not put right in the child of a fork.
        drop(rcu_core::read_lock::<D>());
        // Starts the tree's worker here, and not in the first `retire` that asks for a grace period: that one may run in a
        // signal handler, where no thread can be made.
        self.domain.start();
        front
    }

    /// One round of the monitor.
    fn tick() -> usize {
        let this = D::stack();
        let rounds = ZONE_TICK.as_nanos() / this.settings().delay.as_nanos().max(1);
        // ORDERING: Relaxed: the monitor's own.
        let round = this.rounds.fetch_add(1, Ordering::Relaxed);
        if u128::from(round).is_multiple_of(rounds.max(1)) {
            this.pages().tick();
        }
        let left = match (this.front.get(), this.objects.get()) {
            // The front end reaps the objects, too.
            (Some(front), _) => front.tick(),
            (None, Some(objects)) => objects.reap(),
            (None, None) => 0,
        };
        left + this.caches.reap()
    }

    /// Blocks until every section of the stack that has begun before has ended.
    ///
    /// # Panics
    /// Inside a section, where it would wait for itself.
    #[doc(alias = "synchronize_rcu")]
    pub fn synchronize(&self) {
        self.domain.synchronize();
    }

    /// Blocks until everything retired to the stack before, by any thread, is free, and every callback queued before has run.
    /// What was retired to a typed cache, too.
    ///
    /// # Panics
    /// Inside a section, a callback, or a destructor of what was retired, where it would wait for itself.
    #[doc(alias = "kvfree_rcu_barrier")]
    pub fn barrier(&self) {
        if !D::tree().may_wait() {
            // Says why. Below, another's barrier may wait for the caller's section, and the caller for that barrier.
            self.domain.barrier();
        }
        if let Some(front) = self.front.get() {
            front.barrier();
        } else if let Some(objects) = self.objects.get() {
            objects.barrier();
        }
        self.caches.barrier();
        self.domain.barrier();
    }

    /// Retires an object with a head inside. Never blocks, never waits for memory. See [`retire`].
    ///
    /// # Safety
    /// 1. `object` came from [`Self::objects`], with the provenance of the whole object, and is given up.
    /// 2. No new reader can find it. Its destructor is not run.
    ///
    /// The crate's function of this name has an example.
    #[inline]
    #[doc(alias = "kfree_rcu")]
    pub unsafe fn retire<T: HasHead>(&'static self, object: NonNull<T>) {
        // SAFETY: the caller's debt 1.
        let head = unsafe { T::head_of(object) };
        // SAFETY: the caller's debts 1 and 2.
        unsafe { self.front().retire(head, T::OFFSET) };
    }

    /// Retires an object without a head. May sleep; not inside a section.
    ///
    /// # Safety
    /// As for [`Self::retire`].
    ///
    /// The crate's function of this name has an example.
    #[inline]
    #[doc(alias = "kvfree_rcu_mightsleep")]
    pub unsafe fn retire_mightsleep(&'static self, object: NonNull<u8>) {
        // Not by way of the front end, which is two loads away. Who has a sheaf to push to has made that.
        if let Some(objects) = self.objects.get()
            // SAFETY: the caller's debts.
            && unsafe { objects.retire_hit(object) }
        {
            return;
        }
        self.retire_missed(object);
    }

    /// As [`Self::retire_mightsleep`], for who knows the layout: see [`retire_sized_mightsleep`].
    ///
    /// # Safety
    /// As for [`retire_sized_mightsleep`], with an object of [`Self::objects`] and this stack's readers.
    ///
    /// The example of [`Self::retire_mightsleep`] holds for it.
    #[inline]
    #[doc(alias = "kvfree_rcu_mightsleep")]
    pub unsafe fn retire_sized_mightsleep(&'static self, object: NonNull<u8>, layout: Layout) {
        if let Some(objects) = self.objects.get()
            // SAFETY: the caller's debts.
            && unsafe { objects.retire_sized_hit(object, layout) }
        {
            return;
        }
        self.retire_missed(object);
    }

    /// Retires an object of this stack's allocator whose layout is known, by its head, which lies `offset` into it.
    ///
    /// # Safety
    /// As for [`DeferFree::retire`]; `layout` is as for [`retire_sized_mightsleep`].
    #[inline]
    pub(crate) unsafe fn retire_sized(
        &'static self,
        head: NonNull<Head>,
        offset: HeadOffset,
        layout: Layout,
    ) {
        // SAFETY: the caller's debts.
        let object = unsafe { offset.object(head) };
        // SAFETY: the head is valid, as the caller owes.
        if !unsafe { head.as_ref() }.begin_call(Callback::Free(offset)) {
            return;
        }
        if let Some(objects) = self.objects.get()
            // SAFETY: the caller's debts.
            && unsafe { objects.retire_sized_hit(object, layout) }
        {
            return;
        }
        self.front().retire_with_head(object, head);
    }

    /// The rest of [`Self::retire_mightsleep`].
    #[cold]
    #[inline(never)]
    fn retire_missed(&'static self, object: NonNull<u8>) {
        self.front().retire_slow(object);
    }

    /// Retires a `Box` of the global allocator, given as the pointer that [`Box::into_raw`] made. **May sleep**; not inside a section. See
    /// [`retire_box`].
    ///
    /// # Safety
    /// 1. `object` came from [`Box::into_raw`], and is given up.
    /// 2. No new reader can find it.
    ///
    /// The crate's function of this name has an example.
    pub unsafe fn retire_box<T: Send + 'static>(&'static self, object: NonNull<T>) {
        if size_of::<T>() == 0 {
            // Values without a size share their address: they cannot wait by it.
            self.domain.synchronize();
        }
        let free = boxes::free_boxes::<T>;
        if size_of::<T>() == 0 {
            // SAFETY: the caller's debts, and a grace period has passed.
            unsafe { free(&mut [object.cast()]) };
        } else if !needs_drop::<T>() {
            // SAFETY: nothing is dropped, and the global allocator may be called wherever one may sleep; the caller's debts 1 and 2.
            unsafe { (self.front()).retire_plain_mightsleep(object.cast(), free, size_of::<T>()) };
        } else {
            // SAFETY: `T: Send`, so any thread may drop it; the caller's debts 1 and 2.
            unsafe { (self.front()).retire_many_mightsleep(object.cast(), free, size_of::<T>()) };
        }
    }

    /// Retires a `Box` of `allocator-api2`, given as the pointer that its `into_raw_with_allocator` made. **May sleep**; not inside a
    /// section.
    ///
    /// The allocator has no size: nothing can be stored beside an object that is already there, so a value of it is made when the
    /// object is freed. For other allocators there is [`AllocBox`](crate::AllocBox), which keeps them in the object.
    ///
    /// # Safety
    /// 1. `object` came from a box of this `A`, any value of which frees what any other allocated; it is given up.
    /// 2. No new reader can find it.
    ///
    /// The example of [`retire_box`](crate::retire_box) holds for it.
    #[cfg(feature = "allocator-api2")]
    pub unsafe fn retire_box_in<T: Send + 'static, A>(&'static self, object: NonNull<T>)
    where
        A: allocator_api2::alloc::Allocator + Default + 'static,
    {
        const { assert!(size_of::<A>() == 0, "the allocator has a size") };
        let free = boxes::free_boxes_in::<T, A>;
        if size_of::<T>() == 0 {
            self.domain.synchronize();
            // SAFETY: the caller's debts, and a grace period has passed.
            unsafe { free(&mut [object.cast()]) };
        } else {
            // SAFETY: `T: Send`, and `A` is made where it is used; the caller's debts 1 and 2.
            unsafe { (self.front()).retire_many_mightsleep(object.cast(), free, size_of::<T>()) };
        }
    }

    /// Retires an object of a typed cache of this stack. May sleep: without memory for a sheaf it waits for a grace period and
    /// frees the object itself. Not inside a section.
    ///
    /// # Safety
    /// 1. `object` came from `cache`, and is given up. `T` needs no dropping (checked when compiled).
    /// 2. No new reader can find it.
    ///
    /// The crate's function of this name has an example.
    #[inline]
    #[doc(alias = "kfree_rcu")]
    pub unsafe fn retire_in_mightsleep<T>(&self, cache: &TypedCache<T, D>, object: NonNull<T>) {
        // SAFETY: the caller's debts.
        if let Err(object) = unsafe { cache.retire_attempt(object, Attempt::MayGrow) } {
            self.retire_in_slow(cache, object);
        }
    }

    #[cold]
    fn retire_in_slow<T>(&self, cache: &TypedCache<T, D>, object: NonNull<T>) {
        self.domain.synchronize();
        // SAFETY: given up by the caller of `retire_in_mightsleep`, and a grace period has passed since.
        unsafe { cache.free(object) };
    }

    /// The unbatched twin over the same layers: one callback an object.
    #[must_use]
    pub fn unbatched(&'static self) -> Unbatched<D, &'static Objs<D>> {
        // SAFETY: `D` was given `free_object`, which frees objects of `objects()` (guarantee 1 of `StackDomain`).
        unsafe { Unbatched::new(self.domain, self.objects()) }
    }

    /// A cache for objects of one type, called `name` in statistics and messages.
    ///
    /// # Errors
    /// If there is no memory for the cache's own structures.
    #[doc(alias = "kmem_cache_create")]
    pub fn cache<T>(&'static self, name: &'static str) -> Result<TypedCache<T, D>, CreateError> {
        TypedCache::with_config_in(TypedCache::<T>::config(name))
    }

    /// Counts of the stack. Visits every slot in use.
    #[must_use]
    pub fn stats(&'static self) -> StackStats {
        StackStats {
            rcu: D::tree().stats(),
            objects: self.objects.get().map(Kmalloc::stats),
            front: self.front.get().map(Kvfree::stats),
            caches: self.caches.stats(),
            pages_allocated: self.pages().nr_allocated(),
            is_monitored: self.monitor.is_present(),
        }
    }
}

impl<D: StackDomain> fmt::Debug for Stack<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack")
            .field("domain", &self.domain)
            .field("front", &self.front.get())
            .field("monitor", &self.monitor)
            .finish_non_exhaustive()
    }
}
