//! What a cache is to be like, and the arithmetic that follows from it.

use crate::barn::Limits;
use crate::checks::{Checks, Frame};
use crate::error::CreateError;
use crate::leaks::LeakReport;
use crate::sheaf::HEADER_BYTES;
use core::alloc::Layout;
use core::ptr::NonNull;
use pagealloc::{Order, PAGE_SIZE};

/// The largest object a cache can have: half a slab of the largest order.
pub const MAX_OBJECT_BYTES: usize = PAGE_SIZE << (MAX_SLAB_ORDER - 1);

/// Slabs have at most this order, which a page allocator's per-slot lists still serve.
#[doc(alias = "PAGE_ALLOC_COSTLY_ORDER")]
const COMMON_SLAB_ORDER: u8 = 3;
/// Slabs of objects that are too large for those.
const MAX_SLAB_ORDER: u8 = 6;
/// Objects up to this size lie in slabs of a common order.
const COMMON_OBJECT_BYTES: usize = 10 << 10;
/// As many of the others a slab has at least, if it can: each takes a lock of the page allocator's.
const FEW_OBJECTS: usize = 4;
/// As many objects as a slab's bitmap has bits.
pub(crate) const MAX_OBJECTS: usize = 512;
/// A slab is made larger until it holds this many objects, so that one page request serves many misses.
const GOOD_OBJECTS: usize = 32;
/// Bits behind the point of a size's reciprocal.
const RECIPROCAL_BITS: u32 = 40;
/// A slab may leave this part of its pages unused.
const WASTE_PART: usize = 8;
/// A cache line.
const LINE_BYTES: usize = 64;
/// Objects in one sheaf together, unless the smallest sheaf holds more.
const SHEAF_BUDGET_BYTES: usize = 32 << 10;
const MIN_SHEAF_BYTES: usize = 64;
/// Objects that the barn keeps at first, as far as that is between 2 and 10 sheaves, and at most, as far as that is between 10 and 64.
const BARN_FIRST_BYTES: usize = 320 << 10;
const BARN_MOST_BYTES: usize = 2 << 20;
/// A grace period is asked for when this many objects, or bytes, wait. As much of one type is in flight at the least, so this is what 2 MiB
/// allow: each doubling halves the system calls, and the interrupts of the other CPUs, that an object costs.
const ASK_OBJECTS: usize = 20_480;
const ASK_BYTES: usize = ASK_OBJECTS * 64;
/// What an object counts for at least: [`ASK_BYTES`] of these are [`ASK_OBJECTS`].
const ASK_LEAST_WEIGHT: usize = ASK_BYTES / ASK_OBJECTS;
/// Of that, a slot keeps this part in its own line, or this many sheaves.
const OWN_PART: usize = 32;
const OWN_SHEAVES: usize = 4;
/// Empty slabs that a cache keeps.
const MIN_PARTIAL: usize = 5;
/// What may wait in sealed sheaves: a quarter of a second's grace period at a retired gigabyte a second.
const WAITING_LIMIT_BYTES: usize = 256 << 20;
/// A page's tag number is this, and the cache's own number below it.
pub(crate) const TAG_MARK: u32 = 0x51ab_0000;
const TAG_NUMBER: u32 = 0xffff;

/// The number of caches that were given none.
const ANONYMOUS: u16 = u16::MAX;

/// What a cache is to be like.
///
/// ```
/// use core::alloc::Layout;
/// let config = slab::CacheConfig::new("inode", Layout::new::<[u64; 12]>()).min_partial(2);
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
#[doc(alias = "kmem_cache_args")]
pub struct CacheConfig {
    name: &'static str,
    layout: Layout,
    sheaf_capacity: Option<usize>,
    ask_objects: Option<usize>,
    min_partial: usize,
    waiting_limit: usize,
    number: u16,
    watch: Option<fn()>,
    /// `None`: nothing, or with the `checks` feature whatever the cache can have.
    checks: Option<Checks>,
    leaks: Option<fn(&LeakReport)>,
    constructor: Option<Constructor>,
    stability: Stability,
    colour: bool,
}

/// Makes an object's first value in a new slab's memory.
///
/// Called once for each object of each slab, with no lock of ours held, before the object is given out for the first time.
/// Must not unwind.
pub type Constructor = unsafe fn(NonNull<u8>);

/// What of a freed object stays valid for whoever still looks at it in a read section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Stability {
    /// Nothing: who has readers retires instead.
    #[default]
    None,
    /// Its type: it may be another object at once, but its memory stays an object of this cache for a grace period after
    /// its slab was given up.
    #[doc(alias = "SLAB_TYPESAFE_BY_RCU")]
    #[doc(alias = "SLAB_DESTROY_BY_RCU")]
    Type,
    /// As `Type`, and the object itself waits for a grace period before it is another one. For finding uses after the
    /// free: it hides readers that fail to check again whom they found.
    #[doc(alias = "CONFIG_SLUB_RCU_DEBUG")]
    Delayed,
}

impl CacheConfig {
    /// A cache of objects of `layout`, called `name` in statistics and messages.
    pub const fn new(name: &'static str, layout: Layout) -> Self {
        Self {
            name,
            layout,
            sheaf_capacity: None,
            ask_objects: None,
            min_partial: MIN_PARTIAL,
            waiting_limit: WAITING_LIMIT_BYTES,
            number: ANONYMOUS,
            watch: None,
            checks: None,
            leaks: None,
            constructor: None,
            stability: Stability::None,
            colour: false,
        }
    }

    /// How many objects a sheaf holds: from 1 to 509. By default, 509 or fewer so that they are at most 32 KiB.
    pub const fn sheaf_capacity(mut self, objects: usize) -> Self {
        self.sheaf_capacity = Some(objects);
        self
    }

    /// How many objects may wait, on all slots together, before a grace period is asked for. By default 20480, or fewer so that
    /// they are at most 1280 KiB.
    pub const fn ask_after(mut self, objects: usize) -> Self {
        self.ask_objects = Some(objects);
        self
    }

    /// How many empty slabs are kept rather than given back. By default 5.
    pub const fn min_partial(mut self, slabs: usize) -> Self {
        self.min_partial = slabs;
        self
    }

    /// How many bytes of retired objects may wait in sealed sheaves. Above that [`RawCache::retire`](crate::RawCache::retire) gives objects back,
    /// so that its caller decides what to do with them. At most one sheaf a slot more can wait, not sealed. By default 256 MiB.
    pub const fn waiting_limit(mut self, bytes: usize) -> Self {
        self.waiting_limit = bytes;
        self
    }

    /// The cache's number, noted in its pages' tags (a size class, say). By default 65535.
    pub const fn number(mut self, number: u16) -> Self {
        self.number = number;
        self
    }

    /// Whom to tell that retired objects wait from now on, so that [`RawCache::reap`](crate::RawCache::reap) has to be
    /// called now and then until it returns zero. Called outside of locks, at most once a sheaf, from any context that
    /// retires; must not block.
    pub const fn watched_by(mut self, watch: fn()) -> Self {
        self.watch = Some(watch);
        self
    }

    /// What the cache checks. By default nothing; with the `checks` feature everything that a cache of this layout,
    /// stability and constructor can have, with no change to the creation's outcome.
    ///
    /// With a constructor, [`Checks::POISON`] fills nothing: free objects are as constructed. To ask for that or for
    /// [`Checks::QUARANTINE`] of a type-stable cache is an error at its creation.
    pub const fn checks(mut self, checks: Checks) -> Self {
        self.checks = Some(checks);
        self
    }

    /// Whom to tell, when the cache is dropped, that users still have objects of it, which are lost. Called outside of
    /// locks, once, and only if there are any; `|leaks| eprintln!("{leaks}")` will do.
    pub const fn leaks_to(mut self, tell: fn(&LeakReport)) -> Self {
        self.leaks = Some(tell);
        self
    }

    /// Calls `constructor` for each object of each new slab. Objects then come back from users as constructed.
    ///
    /// # Safety
    /// 1. `constructor` may be called with any memory of the configuration's layout, from any thread, and does not unwind.
    ///
    /// ```
    /// use core::alloc::Layout;
    /// use core::ptr::NonNull;
    /// use slab::CacheConfig;
    ///
    /// /// # Safety
    /// /// `at` is memory for a word.
    /// unsafe fn seven(at: NonNull<u8>) {
    ///     // SAFETY: the caller's debt.
    ///     unsafe { at.cast::<u64>().write(7) };
    /// }
    /// let config = CacheConfig::new("sevens", Layout::new::<u64>());
    /// // SAFETY: it writes a word where there is room for one, from any thread, and cannot panic.
    /// let config = unsafe { config.constructor(seven) };
    /// # let _ = config;
    /// ```
    pub const unsafe fn constructor(mut self, constructor: Constructor) -> Self {
        self.constructor = Some(constructor);
        self
    }

    /// What of a freed object stays valid for readers. By default nothing.
    pub const fn stability(mut self, stability: Stability) -> Self {
        self.stability = stability;
        self
    }

    pub(crate) const fn is_stable(&self) -> bool {
        !matches!(self.stability, Stability::None)
    }

    /// Whether slabs begin their objects at different cache lines, as far as what a slab cannot use allows. By default not.
    ///
    /// Worth it where objects are looked at in their first lines mostly and their size is a multiple of 128 bytes: those lines would
    /// else share a half, a quarter or less of a cache's sets. Powers of two leave nothing of a slab unused, and so get no colour.
    #[doc(alias = "SLAB_HWCACHE_ALIGN")]
    pub const fn colour(mut self, colour: bool) -> Self {
        self.colour = colour;
        self
    }

    /// What is checked, and how an object lies in its frame for that.
    fn checked(&self) -> Result<(Checks, Frame), CreateError> {
        // Stale readers look at free objects of such caches.
        let forbidden = if self.is_stable() {
            Checks::POISON | Checks::QUARANTINE
        } else {
            Checks::empty()
        };
        let asked = match self.checks {
            Some(checks) if checks.intersects(forbidden) => {
                return Err(CreateError::NotTypeStable(checks & forbidden));
            }
            Some(checks) => checks,
            None if cfg!(feature = "checks") => Checks::all() - forbidden,
            None => Checks::empty(),
        };
        let filled = match self.constructor {
            Some(_) => asked - Checks::POISON,
            None => asked,
        };
        // Users, or readers, may look at a free object: what a free has to note is noted behind it.
        let is_kept = self.constructor.is_some() || self.is_stable();
        match Frame::new(self.layout, filled, is_kept) {
            Ok(frame) => Ok((filled, frame)),
            // Nobody asked for the checks by name, so they must not be what makes the creation fail.
            Err(_) if self.checks.is_none() => {
                let small = filled & Checks::RANDOM;
                Ok((small, Frame::new(self.layout, small, is_kept)?))
            }
            Err(error) => Err(error),
        }
    }

    /// The arithmetic.
    pub(crate) fn shape(&self) -> Result<Shape, CreateError> {
        let (checks, frame) = self.checked()?;
        let size = frame.bytes;
        let order = slab_order(size).ok_or(CreateError::TooLarge { bytes: size })?;
        let nr_objects = (order.bytes() / size).min(MAX_OBJECTS);
        let sheaf_cap = match self.sheaf_capacity {
            Some(n) => n.clamp(1, (PAGE_SIZE - HEADER_BYTES) / size_of::<usize>()),
            None => sheaf_cap(size),
        };
        let sheaf_bytes = (HEADER_BYTES + sheaf_cap * size_of::<usize>()).next_power_of_two();
        // From one colour to the next: a line, and what keeps objects aligned.
        let colour_bytes = self.layout.align().max(LINE_BYTES);
        let unused = order.bytes() - nr_objects * size;
        let colours = if self.colour {
            1 + unused.min(u16::MAX.into()) / colour_bytes
        } else {
            1
        };
        let sheaves = |bytes: usize| bytes / (sheaf_cap * size);
        let barn = Limits {
            first: sheaves(BARN_FIRST_BYTES).clamp(2, 10) as u32,
            most: sheaves(BARN_MOST_BYTES).clamp(10, 64) as u32,
        };
        let ask = ask_objects(size, ASK_OBJECTS, ASK_BYTES).max(sheaf_cap);
        let ask = self.ask_objects.unwrap_or(ask);
        let ask_weight = size.max(ASK_LEAST_WEIGHT);
        let ask_bytes = ask.saturating_mul(ask_weight);
        Ok(Shape {
            name: self.name,
            layout: self.layout,
            size,
            lead: frame.lead,
            checks,
            reciprocal: (1_u64 << RECIPROCAL_BITS).div_ceil(size as u64),
            nr_objects,
            order,
            colour_bytes,
            colours,
            sheaf_cap: sheaf_cap as u32,
            sheaf_bytes,
            barn,
            ask_weight,
            ask_bytes,
            crowd_bytes: ask_bytes.saturating_add(ask_bytes / 16),
            own_objects: (ask / OWN_PART).max(OWN_SHEAVES * sheaf_cap),
            min_partial: self.min_partial,
            link_at: frame.link_at,
            waiting_limit: self.waiting_limit / size,
            tag: TAG_MARK | self.number as u32,
            watch: self.watch,
            leaks: self.leaks,
            constructor: self.constructor,
            stability: self.stability,
        })
    }
}

/// At most so many objects of `size` bytes, and so many bytes of them; at least one.
const fn ask_objects(size: usize, objects: usize, bytes: usize) -> usize {
    let by_bytes = bytes / size;
    if by_bytes == 0 {
        1
    } else if by_bytes < objects {
        by_bytes
    } else {
        objects
    }
}

/// The number in the tag of a slab's pages; `None` in the tag of other pages.
pub(crate) const fn number_of(tag: u32) -> Option<u32> {
    if tag & !TAG_NUMBER == TAG_MARK {
        Some(tag & TAG_NUMBER)
    } else {
        None
    }
}

/// The arithmetic of one cache. Constant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) layout: Layout,
    /// Bytes from one object to the next.
    pub(crate) size: usize,
    /// Bytes of a frame before its object: the checks' (`checks::Frame`). Zero without them.
    pub(crate) lead: usize,
    pub(crate) checks: Checks,
    reciprocal: u64,
    pub(crate) nr_objects: usize,
    pub(crate) order: Order,
    /// Bytes from one colour to the next, and how many there are.
    pub(crate) colour_bytes: usize,
    pub(crate) colours: usize,
    pub(crate) sheaf_cap: u32,
    pub(crate) sheaf_bytes: usize,
    pub(crate) barn: Limits,
    /// What an object counts for where a grace period is to be asked for, and how much that takes.
    pub(crate) ask_weight: usize,
    pub(crate) ask_bytes: usize,
    /// How many wait in a slot's own line.
    pub(crate) own_objects: usize,
    /// How much may wait before those who may sleep wait a little for the grace period that was asked for.
    pub(crate) crowd_bytes: usize,
    pub(crate) min_partial: usize,
    /// Where a free object has a word for a link (L12): bytes from its start.
    pub(crate) link_at: isize,
    /// Objects that may wait in sealed sheaves.
    pub(crate) waiting_limit: usize,
    /// The number in the tag of this cache's pages.
    pub(crate) tag: u32,
    /// Whom to tell that something waits.
    pub(crate) watch: Option<fn()>,
    /// Whom to tell of objects that are out when the cache ends.
    pub(crate) leaks: Option<fn(&LeakReport)>,
    pub(crate) constructor: Option<Constructor>,
    pub(crate) stability: Stability,
}

impl Shape {
    /// Whether stale readers may look at free objects, so that slabs wait for them.
    pub(crate) const fn is_stable(&self) -> bool {
        !matches!(self.stability, Stability::None)
    }

    /// Whether a freed object waits as a retired one does.
    pub(crate) const fn is_delayed(&self) -> bool {
        matches!(self.stability, Stability::Delayed)
    }

    /// Whether each object is looked at when it comes and goes. Such a cache hands nothing out from sheaves.
    pub(crate) const fn is_checked(&self) -> bool {
        self.checks.intersects(Checks::EACH)
    }

    /// Bytes from a slab's base to an object of it.
    pub(crate) const fn offset_of(&self, index: usize) -> usize {
        self.lead + index * self.size
    }

    /// Which object of its slab begins `offset` bytes into it, if one does.
    ///
    /// The product with the rounded-up reciprocal is exact: its error is below `offset * size`, and
    /// offset < 2¹⁸, size ≤ 2¹⁷, so below 2⁴⁰. (Tested for many offsets and sizes.) An offset that wrapped below zero
    /// equals no product of an index below 2²⁴.
    pub(crate) fn index_of(&self, offset: usize) -> Option<usize> {
        let offset = offset.wrapping_sub(self.lead);
        let index = ((offset as u64).wrapping_mul(self.reciprocal) >> RECIPROCAL_BITS) as usize;
        (index * self.size == offset && index < self.nr_objects).then_some(index)
    }
}

/// The smallest order with enough objects and little waste; failing that, the one with least waste.
fn slab_order(size: usize) -> Option<Order> {
    let (orders, enough) = if size <= COMMON_OBJECT_BYTES {
        (0..=COMMON_SLAB_ORDER, GOOD_OBJECTS)
    } else {
        (COMMON_SLAB_ORDER..=MAX_SLAB_ORDER, FEW_OBJECTS)
    };
    if size > MAX_OBJECT_BYTES {
        return None;
    }
    let mut best: Option<(usize, Order)> = None;
    for order in orders.filter_map(Order::new) {
        let bytes = order.bytes();
        let fit = bytes / size;
        let objects = fit.min(MAX_OBJECTS);
        if objects == 0 {
            continue;
        }
        let waste = bytes - objects * size;
        let is_thrifty = waste * WASTE_PART <= bytes;
        if is_thrifty && objects >= enough {
            return Some(order);
        }
        // Per byte of slab, in units that compare across orders.
        let part = waste * ((PAGE_SIZE << MAX_SLAB_ORDER) / bytes);
        if is_thrifty || best.is_none_or(|(least, _)| part < least) {
            best = Some((part, order));
        }
    }
    best.map(|(_, order)| order)
}

/// The largest sheaf whose objects stay within the budget.
fn sheaf_cap(size: usize) -> usize {
    let mut bytes = PAGE_SIZE;
    loop {
        let cap = (bytes - HEADER_BYTES) / size_of::<usize>();
        if cap * size <= SHEAF_BUDGET_BYTES || bytes <= MIN_SHEAF_BYTES {
            return cap;
        }
        bytes /= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(size: usize, align: usize) -> Result<Shape, CreateError> {
        shape_with(size, align, Checks::empty())
    }

    fn shape_with(size: usize, align: usize, checks: Checks) -> Result<Shape, CreateError> {
        CacheConfig::new("test", Layout::from_size_align(size, align).unwrap())
            .checks(checks)
            .shape()
    }

    #[test]
    #[cfg_attr(miri, ignore = "arithmetic, and much of it")]
    fn l15_every_checked_object_is_found_by_its_offset() {
        for bits in 0..=Checks::all().bits() {
            let checks = Checks::from_bits_truncate(bits);
            for (size, align) in [
                (1, 1),
                (13, 4),
                (24, 8),
                (64, 64),
                (1000, 128),
                (8192, 8192),
            ] {
                let shape = shape_with(size, align, checks).unwrap();
                let found = (0..shape.order.bytes()).filter_map(|o| Some((o, shape.index_of(o)?)));
                let expected = (0..shape.nr_objects).map(|i| (shape.offset_of(i), i));
                assert!(found.eq(expected), "{checks:?} {size} {align}");
                assert_eq!(shape.lead % align, 0);
                assert_eq!(shape.size % align, 0);
                assert!(shape.nr_objects * shape.size <= shape.order.bytes());
            }
        }
    }

    #[test]
    fn l15_what_the_checks_add_counts_as_size() {
        let largest = MAX_OBJECT_BYTES;
        assert!(shape_with(largest, 8, Checks::empty()).is_ok());
        for checks in [Checks::AT_ONCE, Checks::RED_ZONE, Checks::all()] {
            let error = shape_with(largest, 8, checks).unwrap_err();
            assert!(matches!(error, CreateError::TooLarge { bytes } if bytes > largest));
        }
        // Only who asks by name is refused.
        let layout = Layout::from_size_align(largest, 8).unwrap();
        assert!(CacheConfig::new("test", layout).shape().is_ok());
        assert!(shape_with(usize::MAX / 2, 1, Checks::all()).is_err());
    }

    #[test]
    fn l15_type_stable_caches_cannot_be_poisoned() {
        let config = CacheConfig::new("test", Layout::new::<u64>()).stability(Stability::Type);
        let refused = config.checks(Checks::all()).shape().unwrap_err();
        let forbidden = Checks::POISON | Checks::QUARANTINE;
        assert_eq!(refused, CreateError::NotTypeStable(forbidden));
        let rest = config.checks(Checks::all() - forbidden).shape().unwrap();
        assert_eq!(rest.checks, Checks::all() - forbidden);
        assert!(!config.shape().unwrap().checks.intersects(forbidden));
    }

    #[test]
    #[cfg_attr(miri, ignore = "arithmetic, and much of it")]
    fn every_object_is_found_by_its_offset_and_nothing_else_is() {
        let sizes = (8..=COMMON_OBJECT_BYTES).step_by(8);
        for size in sizes.chain((COMMON_OBJECT_BYTES..=MAX_OBJECT_BYTES).step_by(328)) {
            let shape = shape(size, 8).unwrap();
            for offset in (0..shape.order.bytes()).step_by(if size < 512 { 1 } else { 97 }) {
                let expected = offset / size;
                let is_object = offset % size == 0 && expected < shape.nr_objects;
                assert_eq!(shape.index_of(offset), is_object.then_some(expected));
            }
            for index in 0..shape.nr_objects {
                assert_eq!(shape.index_of(index * size), Some(index));
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "arithmetic, and much of it")]
    fn slabs_waste_little_and_fit_the_bitmap() {
        for size in
            (1..=COMMON_OBJECT_BYTES).chain((COMMON_OBJECT_BYTES..=MAX_OBJECT_BYTES).step_by(61))
        {
            let shape = shape(size, 1).unwrap();
            assert!((1..=MAX_OBJECTS).contains(&shape.nr_objects));
            assert!(shape.nr_objects * shape.size <= shape.order.bytes());
            if shape.size <= 3 << 10 {
                let waste = shape.order.bytes() - shape.nr_objects * shape.size;
                assert!(waste * WASTE_PART <= shape.order.bytes(), "{size}: {waste}");
            }
        }
        assert!(shape(MAX_OBJECT_BYTES + 1, 1).is_err());
        let orders = [
            8,
            64,
            128,
            192,
            256,
            1024,
            8192,
            16 << 10,
            32 << 10,
            64 << 10,
        ];
        let orders = orders.map(|s| shape(s, 8).unwrap().order.get());
        assert_eq!(orders, [0, 0, 0, 1, 1, 3, 3, 4, 5, 6]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "arithmetic, and much of it")]
    fn sheaves_are_whole_blocks_within_the_budget() {
        let caps =
            [8, 64, 128, 256, 512, 1024, 2048, 4096, 8192].map(|s| shape(s, 8).unwrap().sheaf_cap);
        assert_eq!(caps, [509, 509, 253, 125, 61, 29, 13, 5, 5]);
        for size in (8..=MAX_OBJECT_BYTES).step_by(8) {
            let shape = shape(size, 8).unwrap();
            assert!(shape.sheaf_bytes.is_power_of_two() && shape.sheaf_bytes <= PAGE_SIZE);
            assert!(HEADER_BYTES + shape.sheaf_cap as usize * 8 <= shape.sheaf_bytes);
        }
    }

    #[test]
    fn alignment_holds_for_every_object() {
        for align in [1, 2, 8, 64, 512, 4096, 8192, 32768] {
            for size in [0, 1, 24, 100, align] {
                let shape = shape(size, align).unwrap();
                assert_eq!(shape.size % align, 0);
                assert!(shape.order.bytes() >= align);
            }
        }
    }
}
