//! A cache's birth and end.

use super::waiting::{Asking, Waiting};
use super::{Inner, Line, RawCache};
use crate::barn::Barn;
use crate::checks::{Checks, Quarantine};
use crate::config::{CacheConfig, Shape};
use crate::error::CreateError;
use crate::inbox::Inbox;
use crate::pool::Pool;
use crate::slabs::{Descriptor, Slabs};
use crate::stats::Tally;
use arrayvec::ArrayVec;
use core::alloc::Layout;
use core::fmt;
use core::mem::offset_of;
use core::ptr::NonNull;
use pagealloc::{AllocError, Order, PAGE_SIZE, PageAlloc, PageReq, PressureHook};
use rcu_core::GracePeriod;
use rcu_core::cpu::{Cpus, OfflineHook, SpinMutex};
use rcu_core::sync::atomic::{AtomicUsize, Ordering};

use super::slot::SlotCell;
#[cfg(loom)]
use super::slot::cell_of;
#[cfg(loom)]
use rcu_core::cpu::Slot;

/// Where the cells of a cache's slots lie.
///
/// A slot's cells in several caches, which a thread uses by turns (the size classes above all), would have the same place in their blocks, and
/// with as many slots as there may be threads in the same 256 KiB: all of them in the same few sets of the processor's first and second cache.
/// So each cache begins at another cell, its number `colour`, and the cell of a slot is the one whose number is the slot's, exclusive-or `colour`. As a
/// block is aligned to its size, and a cell is a power of two, that is the first one's address exclusive-or the slot's offset: as cheap as a sum.
struct SlotsPlan {
    order: Order,
    /// Bytes from the block's start to the cell of slot 0.
    offset: usize,
}

impl SlotsPlan {
    fn new<C: Cpus>(cpus: &C) -> Result<Self, CreateError> {
        /// Caches made so far. Not loom's, whose words are not for statics.
        static CACHES: core::sync::atomic::AtomicUsize = core::sync::atomic::AtomicUsize::new(0);
        let slots = cpus.nr_slots();
        let cell = size_of::<SlotCell<C::Lock>>();
        let cells = Layout::array::<SlotCell<C::Lock>>(slots).map(|layout| layout.size());
        let order =
            (cells.ok().and_then(Order::for_size)).ok_or(CreateError::TooManySlots { slots })?;
        // ORDERING: Relaxed: any order of colours will do.
        let number = CACHES.fetch_add(1, Ordering::Relaxed);
        let colours = if cell.is_power_of_two() {
            order.bytes() / cell
        } else {
            1
        };
        Ok(Self {
            order,
            offset: number % colours * cell,
        })
    }
}

/// A cache that cannot end because objects of it are out.
#[derive(Debug)]
pub struct Busy<T> {
    /// Objects that users have.
    pub live: usize,
    /// Objects that were retired while the cache was to be destroyed, and wait still.
    pub pending: usize,
    /// Addresses of a few of the live objects.
    pub samples: ArrayVec<usize, 8>,
    /// The cache, as good as before.
    pub cache: T,
}

impl<T> fmt::Display for Busy<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { live, pending, .. } = self;
        write!(
            f,
            "cache is busy: {live} objects live, {pending} waiting for a grace period; live are"
        )?;
        self.samples.iter().try_for_each(|at| write!(f, " {at:#x}"))
    }
}

impl<T: fmt::Debug> core::error::Error for Busy<T> {}

impl<C, P, G> RawCache<C, P, G>
where
    C: Cpus + Send + Sync,
    P: PageAlloc,
    G: GracePeriod + Send + Sync,
{
    /// Makes a cache.
    ///
    /// # Errors
    /// See [`CreateError`].
    #[doc(alias = "kmem_cache_create")]
    pub fn new(config: CacheConfig, cpus: C, pages: P, gp: G) -> Result<Self, CreateError>
    where
        C: 'static,
        P: 'static,
        G: 'static,
    {
        // SAFETY: what is borrowed for ever outlives a forgotten handle (debt 1).
        unsafe { Self::new_scoped(config, cpus, pages, gp) }
    }

    /// Makes a cache of borrowed parts.
    ///
    /// # Errors
    /// As for [`Self::new`].
    ///
    /// # Safety
    /// 1. The handle is dropped or destroyed before anything that `cpus`, `pages` and `gp` borrow ends: it is not forgotten. (The
    ///    cache's offline hook would go on using them.)
    ///
    /// ```
    /// use core::alloc::Layout;
    /// use pagealloc::{Mmap, Zone};
    /// use rcu_core::{NoReaders, cpu::Threads};
    /// use slab::{CacheConfig, RawCache};
    ///
    /// let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
    /// let config = CacheConfig::new("local", Layout::new::<u64>());
    /// // SAFETY: destroyed below, before the zone ends.
    /// let cache = unsafe { RawCache::new_scoped(config, Threads, &zone, NoReaders) }.unwrap();
    /// cache.destroy().expect("nothing is out");
    /// ```
    pub unsafe fn new_scoped(
        config: CacheConfig,
        cpus: C,
        pages: P,
        gp: G,
    ) -> Result<Self, CreateError> {
        // SAFETY: the caller's debt.
        unsafe { Self::new_asking(config, cpus, pages, gp, None) }
    }

    /// Makes a cache of borrowed parts that asks for grace periods when it and others together have enough that waits.
    ///
    /// # Errors
    /// As for [`Self::new`].
    ///
    /// # Safety
    /// 1. As for [`Self::new_scoped`].
    /// 2. `asks_with` is [`Self::asking`] of a cache that ends after this one.
    pub(crate) unsafe fn new_asking(
        config: CacheConfig,
        cpus: C,
        pages: P,
        gp: G,
        asks_with: Option<NonNull<Asking>>,
    ) -> Result<Self, CreateError> {
        let shape = config.shape()?;
        let plan = SlotsPlan::new::<C>(&cpus)?;
        let inner_bytes = size_of::<Inner<C, P, G>>();
        let inner_order = Order::for_size(inner_bytes).ok_or(AllocError::Invalid)?;
        let cells = pages.alloc(PageReq::new(plan.order).zeroed())?;
        let block = match pages.alloc(PageReq::new(inner_order)) {
            Ok(block) => block,
            Err(error) => {
                // SAFETY: the block came from `pages` just now.
                unsafe { pages.free(cells, plan.order) };
                return Err(error.into());
            }
        };
        let quarantine = match Self::quarantine(&shape, &pages) {
            Ok(quarantine) => quarantine,
            Err(error) => {
                // SAFETY: the block came from `pages` just now.
                unsafe { pages.free(cells, plan.order) };
                // SAFETY: as above.
                unsafe { pages.free(block, inner_order) };
                return Err(error.into());
            }
        };
        let inner: NonNull<Inner<C, P, G>> = block.cast();
        // SAFETY: the cell of slot 0 is inside the block (`SlotsPlan`).
        let slots = unsafe { cells.add(plan.offset) };
        // SAFETY: the function takes the pointer for what it is; the hook is removed, and waited for, before the cache ends, and
        // everything it touches may be touched from any thread (the bounds of this impl).
        let hook = unsafe { OfflineHook::new(Inner::<C, P, G>::offline, inner.as_ptr().cast()) };
        // SAFETY: as above: it is taken off, and waited for, before the cache ends; it touches what any thread may touch.
        let pressure =
            unsafe { PressureHook::new(Inner::<C, P, G>::relieve, inner.as_ptr().cast()) };
        let value = Inner {
            cpus,
            pages,
            gp,
            shape,
            slots: slots.cast(),
            slots_block: cells,
            slots_order: plan.order,
            inner_order,
            hook,
            nr_used: AtomicUsize::new(0),
            nr_coloured: AtomicUsize::new(0),
            tally: Tally::default(),
            waiting: Line(Waiting::new()),
            asks_with,
            barn: Line(Barn::new(shape.barn)),
            slabs: Line(SpinMutex::new(Slabs::new())),
            quarantine: Line(SpinMutex::new(quarantine)),
            sheaves: Line(Pool::new(shape.sheaf_bytes)),
            descriptors: Line(Pool::new(size_of::<Descriptor>().next_power_of_two())),
            deferred: Inbox::new(),
            pressure,
        };
        const {
            assert!(align_of::<Inner<C, P, G>>() <= PAGE_SIZE);
        }
        // SAFETY: the block is this call's, large enough (`inner_bytes`) and aligned to a page.
        unsafe { inner.write(value) };
        let this = Self {
            inner,
            slots: slots.cast(),
        };
        #[cfg(loom)]
        for number in 0..this.inner().cpus.nr_slots() {
            let cell = cell_of(this.slots, Slot::new(number as u32));
            // SAFETY: the cell is inside the block, and nobody else has it yet.
            unsafe { cell.write(SlotCell::new()) };
        }
        // SAFETY: the hook is pinned in the block until `drop` has removed it, and is on no list.
        unsafe { this.inner().cpus.add_offline_hook(this.hook()) };
        // SAFETY: as above.
        unsafe { this.inner().pages.add_pressure_hook(this.pressure_hook()) };
        Ok(this)
    }

    /// Destroys the cache and gives every page back. Waits for grace periods; not in a read section.
    ///
    /// # Errors
    /// Gives the cache back if users still have objects of it.
    #[doc(alias = "kmem_cache_destroy")]
    pub fn destroy(self) -> Result<(), Busy<Self>> {
        let live = self.inner().quiesce();
        if live == 0 {
            return Ok(());
        }
        Err(Busy {
            live,
            pending: self.waiting_objects(),
            samples: self.samples(),
            cache: self,
        })
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> RawCache<C, P, G> {
    /// The quarantine of a new cache.
    fn quarantine(shape: &Shape, pages: &P) -> Result<Quarantine, AllocError> {
        if !shape.checks.contains(Checks::QUARANTINE) {
            return Ok(Quarantine::none());
        }
        let page = pages.alloc(PageReq::new(Quarantine::ORDER))?;
        // SAFETY: the page came from `pages` just now, and goes back when the cache ends.
        Ok(unsafe { Quarantine::new(page, shape) })
    }

    /// The hook, by way of the block's own pointer.
    fn hook(&self) -> NonNull<OfflineHook> {
        // SAFETY: the offset is that of a field.
        unsafe { self.inner.byte_add(offset_of!(Inner<C, P, G>, hook)) }.cast()
    }

    /// The pressure hook, by way of the block's own pointer.
    fn pressure_hook(&self) -> NonNull<PressureHook> {
        // SAFETY: the offset is that of a field.
        unsafe { self.inner.byte_add(offset_of!(Inner<C, P, G>, pressure)) }.cast()
    }

    /// What this cache asks for grace periods by, for others to ask with it.
    pub(crate) fn asking(&self) -> NonNull<Asking> {
        NonNull::from(self.inner().asking())
    }

    /// Addresses of a few objects that are out: with users, after [`Self::quiesce`].
    pub(crate) fn samples(&self) -> ArrayVec<usize, 8> {
        let mut samples = ArrayVec::new();
        let inner = self.inner();
        inner.slabs.0.lock().sample(&inner.shape, &mut samples);
        samples
    }

    /// Brings everything home that is not with a user, and says how many objects are.
    pub(crate) fn quiesce(&self) -> usize {
        self.inner().quiesce()
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Drop for RawCache<C, P, G> {
    fn drop(&mut self) {
        self.inner()
            .pages
            .remove_pressure_hook(self.pressure_hook());
        self.inner().quiesce();
        // SAFETY: the cache's hook, which is about to go.
        unsafe { self.inner().cpus.remove_offline_hook(self.hook()) };
        // A thread may have handed its slot over between the two; now none does any more.
        let live = self.inner().quiesce();
        let mut told = None;
        if live > 0 {
            told = (self.inner().shape.leaks).map(|tell| (tell, self.inner().leak_report()));
            self.inner().forget_used();
        }
        // SAFETY: the handle is the only one and ends here; no hook runs (removed above).
        let inner = unsafe { self.inner.as_mut() };
        inner.bury_for_good();
        if let Some(ring) = inner.quarantine.0.get_mut().page() {
            // SAFETY: the page came from `pages` at birth; `quiesce` emptied the ring.
            unsafe { inner.pages.free(ring, Quarantine::ORDER) };
        }
        inner.sheaves.0.release(&inner.pages);
        inner.descriptors.0.release(&inner.pages);
        let (cells, cells_order) = (inner.slots_block, inner.slots_order);
        let inner_order = inner.inner_order;
        // SAFETY: the value is initialised, and is not used in place again: its memory goes below.
        let inner = unsafe { self.inner.read() };
        // SAFETY: the block came from `pages` with this order, and nothing refers to it any more.
        unsafe { inner.pages.free(cells, cells_order) };
        // SAFETY: the block came from `pages` with this order; the value was moved out.
        unsafe { inner.pages.free(self.inner.cast(), inner_order) };
        // When all is done: should it panic, only what it tells of is lost.
        if let Some((tell, report)) = told {
            tell(&report);
        }
    }
}
