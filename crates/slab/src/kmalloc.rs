//! Memory by size: a cache for each size class, pages above, and freeing by address alone.
//!
//! Source: Linux `mm/slab_common.c` (facts and constants only).
//!
//! # What a request gets
//! | size | memory | found again by | waste |
//! |---|---|---|---|
//! | up to 64 bytes | a class of [`classes`] | the page's tag | less than a class's step, 8 or 16 bytes |
//! | up to [`MAX_CLASS_BYTES`] | as above | as above | at most a quarter of the request, a fifth of the object |
//! | up to the largest block, 4 MiB | whole pages in a row | the pages' own account | less than a page, a quarter |
//! | more, or what the pages have not in a row | memory apart from them, where there is such | [`huge`] | less than a page |
//!
//! Nothing counts as one byte. Alignments are powers of two: up to 4 MiB they cost at most the rounding of the size, of pages what lies in front goes
//! back at once.

mod alloc;
#[cfg(feature = "allocator-api2")]
mod api2;
mod classes;
mod huge;
mod large;
mod sized;

pub(crate) use huge::HugeHeld;

pub use classes::{CLASS_BYTES, MAX_CLASS_BYTES, NR_CLASSES};

use crate::cache::{Busy, RawCache};
use crate::checks::Checks;
use crate::config::{CacheConfig, number_of};
use crate::error::CreateError;
use crate::fault::{Fault, broken};
use crate::slabs::LOOK_AHEAD;
use crate::stats::CacheStats;
use arrayvec::ArrayVec;
use classes::{NAMES, class_align, class_of};
use core::alloc::Layout;
use core::fmt;
use core::ptr::{self, NonNull};
use core::sync::atomic::AtomicUsize;
use huge::Register;
use pagealloc::{AllocError, Attempt, PageAlloc, PageTag};
use rcu_core::GracePeriod;
use rcu_core::cpu::Cpus;

/// Above this size a class keeps one empty slab and not several: they are large.
const FEW_EMPTY_FROM: usize = 8 << 10;

/// What an address belongs to.
enum Kind {
    /// A slab of this class.
    Class(usize),
    /// Pages of their own, or memory apart.
    Large,
    /// A slab of a cache that is none of ours.
    Foreign,
}

#[cold]
#[inline(never)]
fn foreign(memory: NonNull<u8>) -> ! {
    broken(Fault::Foreign, "kmalloc", memory.as_ptr(), ptr::null())
}

/// A general allocator: [`RawCache`]s for [`CLASS_BYTES`], pages above, `kfree` by address.
///
/// # Invariants
/// `caches[i]` has objects of `CLASS_BYTES[i]` bytes, and the number `i` in its pages' tags. All ask for grace periods with the last one, and
/// an array's elements are dropped in order.
#[doc(alias = "kmalloc_caches")]
pub struct Kmalloc<C: Cpus, P: PageAlloc, G: GracePeriod> {
    caches: [RawCache<C, P, G>; NR_CLASSES],
    pages: P,
    large_bytes: AtomicUsize,
    huge: Register,
}

impl<C, P, G> Kmalloc<C, P, G>
where
    C: Cpus + Clone + Send + Sync,
    P: PageAlloc + Clone,
    G: GracePeriod + Clone + Send + Sync,
{
    /// Makes the caches.
    ///
    /// # Errors
    /// See [`RawCache::new`].
    #[doc(alias = "create_kmalloc_caches")]
    pub fn new(cpus: C, pages: P, gp: G) -> Result<Self, CreateError>
    where
        C: 'static,
        P: 'static,
        G: 'static,
    {
        // SAFETY: what is borrowed for ever outlives a forgotten handle (debt 1).
        unsafe { Self::build(cpus, pages, gp, None, None) }
    }

    /// Makes the caches, which check their objects: see [`Checks`]. All of each class's bytes stay usable. Large blocks are
    /// not checked.
    ///
    /// # Errors
    /// See [`RawCache::new`].
    pub fn new_checked(cpus: C, pages: P, gp: G, checks: Checks) -> Result<Self, CreateError>
    where
        C: 'static,
        P: 'static,
        G: 'static,
    {
        // SAFETY: what is borrowed for ever outlives a forgotten handle (debt 1).
        unsafe { Self::build(cpus, pages, gp, None, Some(checks)) }
    }

    /// Makes the caches, and tells `watch` when retired objects wait from now on: see
    /// [`CacheConfig::watched_by`](crate::CacheConfig::watched_by).
    ///
    /// # Errors
    /// See [`RawCache::new`].
    pub fn new_watched(cpus: C, pages: P, gp: G, watch: fn()) -> Result<Self, CreateError>
    where
        C: 'static,
        P: 'static,
        G: 'static,
    {
        // SAFETY: what is borrowed for ever outlives a forgotten handle (debt 1).
        unsafe { Self::build(cpus, pages, gp, Some(watch), None) }
    }

    /// Makes the caches, which tell `watch` as by [`Self::new_watched`] and check their objects as by [`Self::new_checked`],
    /// if there are any checks.
    ///
    /// # Errors
    /// See [`RawCache::new`].
    pub fn new_watched_checked(
        cpus: C,
        pages: P,
        gp: G,
        watch: fn(),
        checks: Checks,
    ) -> Result<Self, CreateError>
    where
        C: 'static,
        P: 'static,
        G: 'static,
    {
        let checks = (!checks.is_empty()).then_some(checks);
        // SAFETY: what is borrowed for ever outlives a forgotten handle (debt 1).
        unsafe { Self::build(cpus, pages, gp, Some(watch), checks) }
    }

    /// Makes the caches of borrowed parts.
    ///
    /// # Errors
    /// See [`RawCache::new`].
    ///
    /// # Safety
    /// As for [`RawCache::new_scoped`].
    ///
    /// The example of [`RawCache::new_scoped`] holds for it.
    pub unsafe fn new_scoped(cpus: C, pages: P, gp: G) -> Result<Self, CreateError> {
        // SAFETY: the caller's debt.
        unsafe { Self::build(cpus, pages, gp, None, None) }
    }

    /// # Safety
    /// As for [`RawCache::new_scoped`].
    unsafe fn build(
        cpus: C,
        pages: P,
        gp: G,
        watch: Option<fn()>,
        checks: Option<Checks>,
    ) -> Result<Self, CreateError> {
        let make = |class: usize, asks_with| {
            let bytes = CLASS_BYTES[class];
            let layout = Layout::from_size_align(bytes, class_align(class))
                .map_err(|_| CreateError::WrongLayout)?;
            let mut config = CacheConfig::new(NAMES[class], layout).number(class as u16);
            if bytes > FEW_EMPTY_FROM {
                config = config.min_partial(1);
            }
            if let Some(watch) = watch {
                config = config.watched_by(watch);
            }
            if let Some(checks) = checks {
                config = config.checks(checks);
            }
            let (cpus, pages, gp) = (cpus.clone(), pages.clone(), gp.clone());
            // SAFETY: the caller's debt; `asks_with` is that of the last class, which is dropped last, here and in `Self`.
            unsafe { RawCache::new_asking(config, cpus, pages, gp, asks_with) }
        };
        let last = make(NR_CLASSES - 1, None)?;
        let mut caches = ArrayVec::<_, NR_CLASSES>::new();
        for class in 0..NR_CLASSES - 1 {
            caches.push(make(class, Some(last.asking()))?);
        }
        caches.push(last);
        let Ok(caches) = caches.into_inner() else {
            unreachable!("one cache a class was pushed");
        };
        Ok(Self {
            caches,
            pages,
            large_bytes: AtomicUsize::new(0),
            huge: Register::new(),
        })
    }

    /// Gives every page back. Waits for grace periods; not in a read section.
    ///
    /// # Errors
    /// Gives the allocator back if users still have memory of it; large blocks count as one each 4 KiB.
    #[expect(
        clippy::result_large_err,
        reason = "the allocator itself is given back, and is as large where it came from"
    )]
    pub fn destroy(self) -> Result<(), Busy<Self>> {
        let small: usize = self.caches.iter().map(RawCache::quiesce).sum();
        let large = self.large_bytes() + self.huge.bytes();
        let live = small + large.div_ceil(pagealloc::PAGE_SIZE);
        if live == 0 {
            return Ok(());
        }
        let pending = self.waiting_objects();
        let samples = self.caches.iter().flat_map(RawCache::samples).take(8);
        Err(Busy {
            live,
            pending,
            samples: samples.collect(),
            cache: self,
        })
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Kmalloc<C, P, G> {
    /// Allocates memory for `layout`; its contents are unspecified. May make system calls for more pages.
    ///
    /// # Errors
    /// If no memory can be had; [`AllocError::Invalid`] for a size or an alignment above the largest block, if the pages have no memory apart
    /// ([`PageAlloc::map_apart`]; at [`Attempt::MayGrow`] only).
    #[inline]
    #[track_caller]
    pub fn kmalloc(&self, layout: Layout) -> Result<NonNull<u8>, AllocError> {
        self.kmalloc_attempt(layout, Attempt::MayGrow)
    }

    /// Allocates memory for `layout`, going as far as `attempt`.
    ///
    /// # Errors
    /// As for [`Self::kmalloc`], within `attempt`.
    #[inline]
    #[track_caller]
    pub fn kmalloc_attempt(
        &self,
        layout: Layout,
        attempt: Attempt,
    ) -> Result<NonNull<u8>, AllocError> {
        match class_of(layout) {
            Some(class) => self.cache(class).alloc_attempt(attempt),
            None => self.large(layout, attempt, false),
        }
    }

    /// The cache of a class that `class_of` found.
    #[inline(always)]
    fn cache(&self, class: usize) -> &RawCache<C, P, G> {
        debug_assert!(class < NR_CLASSES);
        // SAFETY: the tables of `class_of` hold numbers below `NR_CLASSES`, as it is an index of `CLASS_BYTES` that they note.
        unsafe { self.caches.get_unchecked(class) }
    }

    /// Allocates zeroed memory for `layout`. May make system calls for more pages. Pages that read as zeroes already are not written to.
    ///
    /// # Errors
    /// As for [`Self::kmalloc`].
    #[track_caller]
    pub fn kzalloc(&self, layout: Layout) -> Result<NonNull<u8>, AllocError> {
        let Some(class) = class_of(layout) else {
            return self.large(layout, Attempt::MayGrow, true);
        };
        let memory = self.cache(class).alloc()?;
        // SAFETY: the class is at least as large as the layout.
        unsafe { memory.write_bytes(0, layout.size()) };
        Ok(memory)
    }

    /// What `memory` belongs to: one look at its page's tag.
    #[inline]
    fn kind_of(&self, memory: *const u8) -> Kind {
        let tag = self.pages.tag(memory).unwrap_or(PageTag::NONE);
        match number_of(tag.tag) {
            Some(class) if (class as usize) < NR_CLASSES => Kind::Class(class as usize),
            Some(_) => Kind::Foreign,
            None => Kind::Large,
        }
    }

    /// Frees memory, whatever its size. Not from signal handlers and interrupts.
    ///
    /// # Safety
    /// 1. `memory` came from this allocator, is not used any more, and was neither freed nor retired since.
    /// 2. No reader can still find it (else retire it).
    ///
    /// ```
    /// # use core::alloc::Layout;
    /// # use pagealloc::{Attempt, Mmap, Zone};
    /// # use rcu_core::{NoReaders, cpu::Threads};
    /// # use slab::Kmalloc;
    /// # let zone: &'static _ = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    /// # let kmalloc = Kmalloc::new(Threads, zone, NoReaders).unwrap();
    /// let layout = Layout::new::<[u64; 5]>();
    /// let memory = kmalloc.kmalloc(layout).unwrap();
    /// // SAFETY: from this allocator, and nobody else has it.
    /// unsafe { kmalloc.kfree(memory) };
    /// ```
    #[inline]
    #[track_caller]
    pub unsafe fn kfree(&self, memory: NonNull<u8>) {
        match self.kind_of(memory.as_ptr()) {
            // SAFETY: the tag says which cache it came from; debts 1 and 2.
            Kind::Class(class) => unsafe { self.caches[class].free(memory) },
            // SAFETY: memory outside of slabs is large; debts 1 and 2.
            Kind::Large => unsafe { self.free_large(memory, Attempt::NoWait) },
            Kind::Foreign => foreign(memory),
        }
    }

    /// Frees memory, whatever its size, going as far as `attempt`: see [`RawCache::free_attempt`].
    ///
    /// # Safety
    /// As for [`Self::kfree`]. Above [`Attempt::TryLock`], not from signal handlers and interrupts.
    ///
    /// See [`Self::kfree`] for an example.
    #[doc(alias = "kfree_nolock")]
    pub unsafe fn kfree_attempt(&self, memory: NonNull<u8>, attempt: Attempt) {
        match self.kind_of(memory.as_ptr()) {
            // SAFETY: the tag says which cache it came from; the caller's debts.
            Kind::Class(class) => unsafe { self.caches[class].free_attempt(memory, attempt) },
            // SAFETY: memory outside of slabs is large; the caller's debts.
            Kind::Large => unsafe { self.free_large(memory, attempt) },
            Kind::Foreign => foreign(memory),
        }
    }

    /// Frees memory after a grace period, if it is in a slab. Never waits; see [`RawCache::retire`].
    ///
    /// # Errors
    /// Gives the memory back if it [is large](Self::is_large), or cannot be taken without waiting; it is then still the caller's.
    ///
    /// # Safety
    /// 1. `memory` came from this allocator, and was neither freed nor retired since.
    /// 2. No *new* reader can find it; readers that have found it stay within their sections.
    ///
    /// See [`RawCache::retire`] for an example.
    #[inline]
    #[track_caller]
    #[doc(alias = "kfree_rcu")]
    pub unsafe fn retire(&self, memory: NonNull<u8>) -> Result<(), NonNull<u8>> {
        match self.kind_of(memory.as_ptr()) {
            // SAFETY: the tag says which cache it came from; debts 1 and 2.
            Kind::Class(class) => unsafe { self.caches[class].retire(memory) },
            Kind::Large => Err(memory),
            Kind::Foreign => foreign(memory),
        }
    }

    /// As [`Self::retire`], if all it takes is a push: see [`RawCache::retire_hit`].
    ///
    /// # Safety
    /// As for [`Self::retire`]; the memory is given up if true comes back.
    ///
    /// See [`RawCache::retire`] for an example.
    #[inline(always)]
    #[must_use]
    pub unsafe fn retire_hit(&self, memory: NonNull<u8>) -> bool {
        match self.kind_of(memory.as_ptr()) {
            // SAFETY: the tag says which cache it came from; the caller's debts.
            Kind::Class(class) => unsafe { self.cache(class).retire_hit(memory) },
            Kind::Large | Kind::Foreign => false,
        }
    }

    /// As [`Self::retire`], going as far as `attempt`: see [`RawCache::retire_attempt`].
    ///
    /// # Errors
    /// As for [`Self::retire`], within `attempt`.
    ///
    /// # Safety
    /// As for [`Self::retire`]. Above [`Attempt::TryLock`], not from signal handlers and interrupts.
    ///
    /// See [`RawCache::retire`] for an example.
    #[track_caller]
    pub unsafe fn retire_attempt(
        &self,
        memory: NonNull<u8>,
        attempt: Attempt,
    ) -> Result<(), NonNull<u8>> {
        match self.kind_of(memory.as_ptr()) {
            // SAFETY: the tag says which cache it came from; debts 1 and 2.
            Kind::Class(class) => unsafe { self.cache(class).retire_attempt(memory, attempt) },
            Kind::Large => Err(memory),
            Kind::Foreign => foreign(memory),
        }
    }

    /// Whether memory of this allocator is pages of its own, or apart from them, and not in a slab.
    #[inline]
    #[must_use]
    #[doc(alias = "is_vmalloc_addr")]
    pub fn is_large(&self, memory: *const u8) -> bool {
        matches!(self.kind_of(memory), Kind::Large)
    }

    /// The cache whose slab `address` lies in, if it lies in one.
    #[inline]
    #[must_use]
    #[doc(alias = "virt_to_cache")]
    pub fn cache_of(&self, address: *const u8) -> Option<&RawCache<C, P, G>> {
        match self.kind_of(address) {
            Kind::Class(class) => Some(&self.caches[class]),
            Kind::Large | Kind::Foreign => None,
        }
    }

    /// How many bytes of an allocation may be used.
    ///
    /// # Safety
    /// 1. `memory` came from this allocator and was neither freed nor retired since.
    ///
    /// See [`Self::kfree`] for an example.
    #[must_use]
    pub unsafe fn ksize(&self, memory: NonNull<u8>) -> usize {
        match self.kind_of(memory.as_ptr()) {
            Kind::Class(class) => CLASS_BYTES[class],
            Kind::Large => self.large_size(memory),
            Kind::Foreign => foreign(memory),
        }
    }

    /// Frees memory of mixed sizes, large blocks too, by class as far as those of a class are close to each other; the array is reordered.
    ///
    /// # Safety
    /// As for [`Self::kfree`], for each of them; they differ from each other.
    ///
    /// See [`Self::kfree`] for an example.
    #[track_caller]
    #[doc(alias = "kfree_bulk")]
    pub unsafe fn free_bulk(&self, memory: &mut [NonNull<u8>]) {
        let mut rest = memory;
        while let Some(&mut first) = rest.first_mut() {
            let Kind::Class(class) = self.kind_of(first.as_ptr()) else {
                // SAFETY: the caller's debts. One at a time: large, or foreign and so the end.
                unsafe { self.kfree(first) };
                rest = &mut rest[1..];
                continue;
            };
            let is_same =
                |m: NonNull<u8>| matches!(self.kind_of(m.as_ptr()), Kind::Class(c) if c == class);
            // What lies between goes behind the class's (L8); all of it is looked at once more for each class that is passed by.
            let (mut run, mut next) = (1, 1);
            while let Some(&memory) = rest.get(next) {
                if is_same(memory) {
                    rest.swap(run, next);
                    run += 1;
                } else if next - run == LOOK_AHEAD {
                    break;
                }
                next += 1;
            }
            let (now, later) = rest.split_at_mut(run);
            // SAFETY: the tags say that they all came from this cache; the caller's debts.
            unsafe { self.caches[class].free_bulk(now) };
            rest = later;
        }
    }

    /// Waits until everything that was retired before this call, on any slot, is free. Not in a read section.
    pub fn barrier(&self) {
        for cache in &self.caches {
            cache.barrier();
        }
    }

    /// Frees what needs no waiting for; see [`RawCache::reap`]. Says how many retired objects still wait.
    pub fn reap(&self) -> usize {
        self.caches.iter().map(RawCache::reap).sum()
    }

    /// Gives about `budget` pages of unused memory back, as far as there are so many; see [`RawCache::shrink`]. Says how many that were.
    pub fn shrink(&self, budget: usize) -> usize {
        self.huge.release(&self.pages);
        let mut freed = 0;
        for cache in &self.caches {
            if freed >= budget {
                break;
            }
            freed += cache.shrink(budget - freed);
        }
        freed
    }

    /// Objects in sealed sheaves; see [`RawCache::waiting_objects`].
    #[must_use]
    pub fn waiting_objects(&self) -> usize {
        self.caches.iter().map(RawCache::waiting_objects).sum()
    }

    /// The bytes of [`Self::waiting_objects`]. One load: all classes count them together.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.caches[0].waiting_bytes_together()
    }

    /// The caches, in the order of [`CLASS_BYTES`].
    pub fn caches(&self) -> &[RawCache<C, P, G>; NR_CLASSES] {
        &self.caches
    }

    /// Keeps everybody out of the register of huge blocks.
    pub(crate) fn hold_huge(&self) -> HugeHeld<'_> {
        self.huge.hold()
    }

    /// Where large blocks come from.
    pub fn pages(&self) -> &P {
        &self.pages
    }

    /// Which memory of the classes is out, a report a class that has any; see [`RawCache::leak_report`]. The caches are looked at
    /// as the value is displayed. Large blocks are in [`KmallocStats::large_bytes`].
    pub fn leak_report(&self) -> impl fmt::Display + '_ {
        Leaks(&self.caches)
    }

    /// The numbers of all classes.
    #[must_use]
    pub fn stats(&self) -> KmallocStats {
        KmallocStats {
            classes: core::array::from_fn(|class| self.caches[class].stats()),
            large_bytes: self.large_bytes(),
            huge_bytes: self.huge.bytes(),
        }
    }
}

/// The reports of all classes.
struct Leaks<'a, C: Cpus, P: PageAlloc, G: GracePeriod>(&'a [RawCache<C, P, G>; NR_CLASSES]);

impl<C: Cpus, P: PageAlloc, G: GracePeriod> fmt::Display for Leaks<'_, C, P, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for report in self.0.iter().map(RawCache::leak_report) {
            if report.live() > 0 {
                writeln!(f, "{report}")?;
            }
        }
        Ok(())
    }
}

/// The numbers of a [`Kmalloc`]. Displayed as a line a class.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct KmallocStats {
    /// The classes, in the order of [`CLASS_BYTES`].
    pub classes: [CacheStats; NR_CLASSES],
    /// Bytes of large blocks: pages in a row.
    pub large_bytes: usize,
    /// Bytes of huge blocks: memory apart from the pages.
    pub huge_bytes: usize,
}

impl fmt::Display for KmallocStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for class in &self.classes {
            writeln!(f, "{class}")?;
        }
        let (large, huge) = (self.large_bytes >> 10, self.huge_bytes >> 10);
        write!(f, "large blocks: {large} KiB, huge blocks: {huge} KiB")
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Drop for Kmalloc<C, P, G> {
    fn drop(&mut self) {
        self.huge.release(&self.pages);
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> fmt::Debug for Kmalloc<C, P, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kmalloc").finish_non_exhaustive()
    }
}
