//! Caches of objects of one layout.
//!
//! Source: Linux `mm/slub.c` (6.18, sheaves and barn; facts and constants only); Bonwick 1994 and 2001 (slabs,
//! magazines). The recycling of whole arrays of retired objects is this crate's own.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | a slot's `main`, `rcu`, `spare`, `line` | see `slot` | the slot's owner, or a visitor, inside the slot's local lock |
//! | `barn` | sheaves between slots and slabs, and orphaned ones that wait | under its lock |
//! | `slabs` | which objects are out of their slabs | under its lock |
//! | `nr_used` | slots from this number on never held a sheaf | a slot's owner, before it holds one |
//! | `waiting` | see `waiting`: objects in sealed sheaves | whoever seals one, or lets one go |
//! | `deferred` | free objects that found every lock taken | anyone adds, the holder of the slabs' lock takes all |
//!
//! # Life of an object
//! In its slab → (refill) a sheaf → `main` of a slot → its user → (free) a `main` again, or (retire) `rcu` of a slot → with the
//! sheaf, sealed, in the slot's line → (cookie done) with the very same sheaf `main` of that slot, or through the barn another's,
//! or back in its slab. In a cache whose `Stability` is `Delayed`, free is retire, and there is no `main`: both fast paths miss.
//! Slabs of type-stable caches have a life of their own after their objects': see `bury`.
//!
//! # Invariants
//! - I1. An object is in exactly one place: with its user, in one sheaf, deferred, or free in its slab. Sheaves that wait are in a slot or
//!   among the orphans whenever no local lock is held: nobody carries one from place to place in between (T15).
//! - I2. A slot whose number is `nr_used` or more is all zero.
//! - I3. Out of their slabs are: what users have, and what is in sheaves. Only objects in `main`, `spare` and the barn's `full`
//!   are free to hand out.
//!
//! A cache that looks at each object ([`Checks`](crate::Checks)) hands nothing out from sheaves: see `checked`.
//!
//! # Orderings
//! - P8. Local lock: the fast paths and the owner's slow paths / visitors.
//! - P6. Hand-over of an object by free and alloc: local lock (P8) on one slot; barn and slabs locks, and the inbox's Release and
//!   Acquire, between slots.
//! - P5, P4. `snapshot` at the seal, `poll` (Acquire) before a sealed sheaf is handed out.
//!
//! # Progress
//! Fast paths: wait-free. `retire`: never waits. `alloc` and `free` at `TryLock` and below: never wait. `free`, and `alloc` above: spin
//! locks, held for at most one sheaf's objects and what was deferred. `barrier`, `destroy`, drop: wait for grace periods. What waits is
//! bounded: above the limit `retire` gives back (see [`CacheConfig::waiting_limit`](crate::CacheConfig::waiting_limit)).
//!
//! # Contexts
//! Lock order: local lock → barn → quarantine → slabs → pool. Pages are asked for and given back, and grace periods are pushed, with no lock of
//! ours held: so the pressure hook, which runs inside such a request, finds no lock of its own thread's. `retire` may come in signal
//! handlers and interrupts; `alloc` and `free` at `TryLock` too; plain `free` may not (its shared path waits for locks that the
//! interrupted code may hold).

mod alloc;
mod build;
mod bulk;
mod bury;
mod checked;
mod drain;
mod fork;
mod free;
mod prefill;
mod pressure;
mod report;
mod retire;
mod sanitize;
mod slot;
#[cfg(test)]
mod tests;
mod waiting;

pub use build::Busy;
pub use fork::CacheFork;
pub use prefill::RawPrefilled;

use crate::barn::Barn;
use crate::checks::Quarantine;
use crate::config::Shape;
use crate::inbox::Inbox;
use crate::pool::Pool;
use crate::sheaf::Sheaf;
use crate::slabs::{Dying, Slabs};
use crate::stats::{Event, Tally};
use core::fmt;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use pagealloc::{AllocError, Attempt, Order, PageAlloc, PressureHook};
use rcu_core::GracePeriod;
use rcu_core::cpu::{Cpus, OfflineHook, Slot, SpinMutex, in_register};
use rcu_core::sync::atomic::{AtomicUsize, Ordering};
use slot::{SlotCell, cell_of};
use waiting::{Asking, Waiting};

/// Keeps what has its own lock on its own cache lines.
#[derive(Debug)]
#[repr(align(128))]
struct Line<T>(T);

/// What a cache is, pinned in a page block.
struct Inner<C: Cpus, P: PageAlloc, G: GracePeriod> {
    cpus: C,
    pages: P,
    gp: G,
    shape: Shape,
    slots: NonNull<SlotCell<C::Lock>>,
    /// The block that all cells lie in.
    slots_block: NonNull<u8>,
    slots_order: Order,
    inner_order: Order,
    hook: OfflineHook,
    nr_used: AtomicUsize,
    /// Slabs made so far, in caches with colours.
    nr_coloured: AtomicUsize,
    /// Events of callers without a slot.
    tally: Tally,
    waiting: Line<Waiting>,
    /// Whose grace periods this cache asks for with its own; `None` if it asks alone.
    asks_with: Option<NonNull<Asking>>,
    barn: Line<Barn>,
    slabs: Line<SpinMutex<Slabs>>,
    quarantine: Line<SpinMutex<Quarantine>>,
    sheaves: Line<Pool>,
    descriptors: Line<Pool>,
    deferred: Inbox,
    pressure: PressureHook,
}

/// A cache of objects of one layout.
///
/// A movable handle: the cache itself lies in pages of `P`. `C` says who runs where, `G` when retired objects may be reused; all
/// three are held by value and are usually zero-sized handles or references.
///
/// Dropping it waits for the grace periods of what was retired (so not in a read section), then gives every page back, save those of slabs with objects that
/// are still out: they are lost (use [`Self::destroy`] to see that coming). Freeing an object of a dropped cache breaks the contract.
#[doc(alias = "kmem_cache")]
pub struct RawCache<C: Cpus, P: PageAlloc, G: GracePeriod> {
    inner: NonNull<Inner<C, P, G>>,
    /// The cell of slot 0, beside the pointer that leads to it: one load less on the fast paths. For the others see [`cell_of`].
    slots: NonNull<SlotCell<C::Lock>>,
}

// SAFETY: everything behind the handle is behind locks, and `C`, `P`, `G` may be used from anywhere.
unsafe impl<C: Cpus + Send + Sync, P: PageAlloc, G: GracePeriod + Send + Sync> Send
    for RawCache<C, P, G>
{
}
// SAFETY: as above.
unsafe impl<C: Cpus + Send + Sync, P: PageAlloc, G: GracePeriod + Send + Sync> Sync
    for RawCache<C, P, G>
{
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> RawCache<C, P, G> {
    #[inline(always)]
    fn inner(&self) -> &Inner<C, P, G> {
        // SAFETY: the inner structure lives until the handle is dropped, and is only shared.
        unsafe { self.inner.as_ref() }
    }

    /// The caller's slot, if it has one already.
    #[inline(always)]
    fn local(&self) -> Option<&SlotCell<C::Lock>> {
        let slot = self.inner().cpus.current_if_online()?;
        let cell = in_register(cell_of(self.slots, slot));
        // SAFETY: slots are below `nr_slots` (guarantee 1 of `Cpus`), as many as the block has cells; it lives until the handle is dropped, and
        // zeroed cells are valid.
        Some(unsafe { cell.as_ref() })
    }

    /// The cache again, for somebody who looks after it. Dropping this handle would end the cache.
    ///
    /// # Safety
    /// 1. The handle is not used after the cache was dropped or destroyed, nor ever dropped itself.
    ///
    /// ```
    /// # use core::alloc::Layout;
    /// # use pagealloc::{Attempt, Mmap, Zone};
    /// # use rcu_core::{NoReaders, cpu::Threads};
    /// # use slab::{CacheConfig, RawCache};
    /// # let zone: &'static _ = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    /// # let config = CacheConfig::new("example", Layout::new::<[u64; 4]>());
    /// # let cache = RawCache::new(config, Threads, zone, NoReaders).unwrap();
    /// // SAFETY: used before the cache ends, and never dropped.
    /// let again = unsafe { cache.share() };
    /// again.reap();
    /// cache.destroy().expect("nothing is out");
    /// ```
    #[must_use]
    pub const unsafe fn share(&self) -> ManuallyDrop<Self> {
        ManuallyDrop::new(Self {
            inner: self.inner,
            slots: self.slots,
        })
    }

    /// The cache's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.inner().shape.name
    }

    /// The layout of the objects.
    #[must_use]
    #[doc(alias = "kmem_cache_size")]
    pub fn layout(&self) -> core::alloc::Layout {
        self.inner().shape.layout
    }

    /// Bytes from one object to the next: the layout's size, rounded up, and what the checks add.
    #[must_use]
    pub fn object_bytes(&self) -> usize {
        self.inner().shape.size
    }

    /// The slots that this cache runs on.
    pub fn cpus(&self) -> &C {
        &self.inner().cpus
    }

    /// Where this cache's pages come from.
    pub fn pages(&self) -> &P {
        &self.inner().pages
    }

    /// What this cache's retired objects wait for.
    pub fn gp(&self) -> &G {
        &self.inner().gp
    }

    /// Objects in sealed sheaves, waiting for their grace period or for whoever lets them go. At most one sheaf a slot more is
    /// retired and not sealed yet. One load.
    #[must_use]
    pub fn waiting_objects(&self) -> usize {
        self.inner().waiting.0.objects()
    }

    /// Bytes that wait in all caches that ask for grace periods together with this one. One load.
    pub(crate) fn waiting_bytes_together(&self) -> usize {
        self.inner().asking().bytes()
    }

    /// The bytes of [`Self::waiting_objects`].
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_objects() * self.inner().shape.size
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> fmt::Debug for RawCache<C, P, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawCache")
            .field("name", &self.name())
            .field("layout", &self.layout())
            .finish_non_exhaustive()
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Inner<C, P, G> {
    /// What tells this cache from others in its slabs' descriptors.
    fn identity(&self) -> *const () {
        (&raw const *self).cast()
    }

    /// The caller's slot, marked as used.
    fn local(&self) -> Option<&SlotCell<C::Lock>> {
        let slot = self.cpus.current()?;
        self.mark_used(slot);
        Some(self.slot(slot))
    }

    /// The number of the slot that has this cell.
    fn number_of(&self, cell: &SlotCell<C::Lock>) -> usize {
        let offset = core::ptr::from_ref(cell).addr() ^ self.slots.addr().get();
        offset / size_of::<SlotCell<C::Lock>>()
    }

    fn slot(&self, slot: Slot) -> &SlotCell<C::Lock> {
        debug_assert!(slot.index() < self.cpus.nr_slots());
        let cell = cell_of(self.slots, slot);
        // SAFETY: slots are below `nr_slots` (guarantee 1 of `Cpus`), as many as the block has cells; it lives as long as the cache, and zeroed
        // cells are valid.
        unsafe { cell.as_ref() }
    }

    /// Notes that `slot` may hold sheaves (I2).
    fn mark_used(&self, slot: Slot) {
        let least = slot.index() + 1;
        // ORDERING: Relaxed: whoever must find what this slot gets next is ordered after it by
        // whatever orders the retiring before the barrier, and coherence does the rest.
        if self.nr_used.load(Ordering::Relaxed) < least {
            self.nr_used.fetch_max(least, Ordering::Relaxed);
        }
    }

    fn nr_used(&self) -> usize {
        // ORDERING: Relaxed: see `mark_used`.
        self.nr_used.load(Ordering::Relaxed)
    }

    /// Every slot that may hold sheaves: all of them, whether they look empty or not (T15).
    fn used(&self) -> impl Iterator<Item = &SlotCell<C::Lock>> {
        (0..self.nr_used()).map(|i| self.slot(Slot::new(i as u32)))
    }

    /// The number of the next new slab, as far as its colour goes.
    fn next_colour(&self) -> usize {
        if self.shape.colours == 1 {
            return 0;
        }
        // ORDERING: Relaxed: any order of colours will do.
        self.nr_coloured.fetch_add(1, Ordering::Relaxed)
    }

    /// What the cache asks for grace periods by.
    fn asking(&self) -> &Asking {
        match &self.asks_with {
            // SAFETY: of a cache that ends after this one, as whoever made this one owes.
            Some(asking) => unsafe { asking.as_ref() },
            None => &self.waiting.0.asking,
        }
    }

    fn count_waiting(&self, objects: usize) {
        if objects > 0 {
            self.waiting.0.sealed(objects);
            let (weight, bytes) = (self.shape.ask_weight, self.shape.size);
            self.asking().sealed(objects * weight, objects * bytes);
        }
    }

    fn count_let_go(&self, objects: usize) {
        self.waiting.0.let_go(objects);
        let (weight, bytes) = (self.shape.ask_weight, self.shape.size);
        self.asking().let_go(objects * weight, objects * bytes);
    }

    /// Memory for a sheaf, made a sheaf.
    fn new_sheaf(&self, attempt: Attempt) -> Result<Sheaf, AllocError> {
        let block = self.sheaves.0.get(&self.pages, attempt)?;
        self.tally(Event::SheafNew);
        // SAFETY: the block is this call's, and `shape` sized the pool's blocks for the capacity.
        Ok(unsafe { Sheaf::init(block, self.shape.sheaf_cap) })
    }

    /// Gives a sheaf's memory back. Never waits.
    fn drop_sheaf(&self, sheaf: Sheaf) {
        debug_assert!(sheaf.is_empty(), "T16: objects in a dropped sheaf");
        self.tally(Event::SheafGone);
        // SAFETY: every sheaf's block came from this pool, and the handle ends here.
        unsafe { self.sheaves.0.put(sheaf.into_block()) };
    }

    /// Puts a sheaf away, with or without objects that are free to hand out: into the barn, else its
    /// objects into the slabs and its memory into the pool. Never loses one (T16, T17).
    fn stow(&self, sheaf: Sheaf, attempt: Attempt, dying: &mut Dying) {
        let Err(sheaf) = self.put_in_barn(sheaf, attempt) else {
            return;
        };
        if sheaf.is_empty() {
            return self.drop_sheaf(sheaf);
        }
        self.tally(Event::FlushMain);
        match self.flush(sheaf, attempt, dying) {
            Ok(emptied) => {
                if let Err(emptied) = self.put_in_barn(emptied, attempt) {
                    self.drop_sheaf(emptied);
                }
            }
            Err(sheaf) => self.barn.0.leave(sheaf),
        }
    }

    /// Puts a sheaf into the barn, if that wants one and its lock is to be had.
    fn put_in_barn(&self, sheaf: Sheaf, attempt: Attempt) -> Result<(), Sheaf> {
        let is_empty = sheaf.is_empty();
        let put = match self.barn.0.lock(attempt) {
            Some(mut stock) if is_empty => stock.put_empty(sheaf),
            Some(mut stock) => stock.put_full(sheaf, 0),
            None => Err(sheaf),
        };
        if !is_empty {
            self.tally(match put {
                Ok(()) => Event::BarnPut,
                Err(_) => Event::BarnPutFail,
            });
        }
        put
    }

    /// Puts a sheaf's objects back into their slabs: all, or none if the lock is not to be had.
    fn flush(&self, mut sheaf: Sheaf, attempt: Attempt, dying: &mut Dying) -> Result<Sheaf, Sheaf> {
        if self.shape.is_checked() {
            if !self.put_home(sheaf.as_slice(), attempt, dying) {
                return Err(sheaf);
            }
            sheaf.clear();
            return Ok(sheaf);
        }
        let Some(mut slabs) = crate::pool::lock(&self.slabs.0, attempt) else {
            return Err(sheaf);
        };
        let objects = sheaf.as_mut_slice();
        slabs.put(self.identity(), &self.shape, &self.pages, objects, dying);
        drop(slabs);
        sheaf.clear();
        Ok(sheaf)
    }

    /// Takes from the barn what it has too much of (I2 of the barn) and puts it back into the slabs. In a checked cache, all.
    fn trim_barn(&self, attempt: Attempt) {
        let mut dying = Dying::default();
        while let Some(mut stock) = self.barn.0.lock(attempt) {
            let surplus = if self.shape.is_checked() {
                stock.take_any()
            } else {
                stock.take_surplus()
            };
            let Some(sheaf) = surplus else {
                break;
            };
            self.tally(Event::FlushOther);
            // Inside the barn's lock, which a barrier takes: objects are not on their way unseen (T15).
            match self.flush(sheaf, attempt, &mut dying) {
                Ok(emptied) => {
                    drop(stock);
                    self.stow(emptied, attempt, &mut dying);
                }
                Err(sheaf) => {
                    self.barn.0.leave(sheaf);
                    break;
                }
            }
        }
        self.bury(dying, attempt);
    }
}
