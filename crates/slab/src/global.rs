//! A program's global allocator: [`Kmalloc`] over `mmap`, made at its first use, never torn down.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `whole` | null, then the allocator, for ever | whoever made it |
//! | `maker` | 0, or the process id of who is just making it | whoever makes it |
//! | `MAKING` (thread-local) | this very thread is making it, or another such allocator | its thread |
//!
//! # Invariants
//! - I1. Making allocates nothing through itself: the zone's structures are mapped, everything else lies in the zone, `whole` too. (A request from the
//!   middle of the making is refused rather than waited for.)
//! - I2. `maker` is another process's only in a child that was forked while somebody was at it, who is not there: the child takes over.
//! - I3. Both parts are listed as one layer of [`hold_still`] before anybody sees them.
//!
//! # Threads
//! A thread takes a slot at its first allocation (`Threads` allocates nothing for that but what the system's thread-local destructors cost), and its
//! last thread-local destructor gives it back. What is allocated and freed after that, while a slot is just got, or by the 1025th thread at a time,
//! goes the shared way: under the class's lock.
//!
//! # Fork
//! Every fork finds the allocator whole ([`rcu_core::fork::hold_still`]), so a child may allocate and free, whatever its parent's other threads did. Their
//! slots stay taken in the child (or are freed by [`rcu_core::fork::after_fork_child`]); what lies in their sheaves is found by
//! [`GlobalKmalloc::shrink`], and what they had in their hands is lost.
//!
//! # Progress and contexts
//! As [`Kmalloc`]; waits while another thread makes it or forks. Not for signal handlers, as no `malloc` is.

use crate::fault::NoUnwind;
use crate::fork::KmallocFork;
use crate::kmalloc::{Kmalloc, KmallocStats};
use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::fmt;
use core::mem::{forget, offset_of};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use pagealloc::{Buddies, Mmap, Order, PageAlloc, PageReq, Zone, ZoneFork};
use rcu_core::cpu::Threads;
use rcu_core::fork::{HoldStill, Still, hold_still};
use rcu_core::sync::Backoff;
use rcu_core::{GracePeriod, NoReaders};

thread_local! {
    static MAKING: Cell<bool> = const { Cell::new(false) };
}

/// All of it, in a block of its own zone.
struct Whole<G: GracePeriod + 'static> {
    parts: Parts<G>,
    still: Still<Parts<G>>,
}

struct Parts<G: GracePeriod + 'static> {
    kmalloc: Kmalloc<Threads, GlobalPages, G>,
    zone: Zone<Threads, Mmap>,
}

/// The pages of a [`GlobalKmalloc`].
pub type GlobalPages = &'static Zone<Threads, Mmap>;

impl<G: GracePeriod + 'static> HoldStill for Parts<G> {
    /// In the order in which they are let go.
    type Held<'a> = (
        ZoneFork<'a, Threads, Buddies>,
        KmallocFork<'a, Threads, GlobalPages, G>,
    );

    fn hold(&self) -> Self::Held<'_> {
        let caches = self.kmalloc.before_fork();
        (self.zone.before_fork(), caches)
    }

    unsafe fn let_go_in_child<'a>((pages, caches): Self::Held<'a>)
    where
        Self: 'a,
    {
        // SAFETY: the caller's debt.
        unsafe { pages.after_fork_child() };
        // SAFETY: as above.
        unsafe { caches.after_fork_child() };
    }
}

/// A general allocator that can be a program's `#[global_allocator]`, and costs nothing before its first use.
///
/// `G` says when objects that are [retired](Kmalloc::retire) may be reused; by default nothing is. Without an operating system, a static of a [`Kmalloc`]
/// over the kernel's own pages does the same.
///
/// ```
/// use slab::GlobalKmalloc;
///
/// #[global_allocator]
/// static HEAP: GlobalKmalloc = GlobalKmalloc::new();
///
/// let many: Vec<String> = (0..1000).map(|i| i.to_string()).collect();
/// assert_eq!(many[999], "999");
/// assert!(HEAP.stats().unwrap().classes.iter().any(|class| class.live > 0));
/// ```
pub struct GlobalKmalloc<G: GracePeriod + 'static = NoReaders> {
    whole: AtomicPtr<Whole<G>>,
    maker: AtomicU32,
    gp: G,
}

impl GlobalKmalloc {
    /// An allocator that has nothing yet, and retires nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self::with(NoReaders)
    }
}

impl Default for GlobalKmalloc {
    fn default() -> Self {
        Self::new()
    }
}

impl<G: GracePeriod + 'static> GlobalKmalloc<G> {
    /// An allocator that has nothing yet, whose retired objects wait for `gp`.
    pub const fn with(gp: G) -> Self {
        Self {
            whole: AtomicPtr::new(ptr::null_mut()),
            maker: AtomicU32::new(0),
            gp,
        }
    }
}

impl<G: GracePeriod + Clone + Send + Sync + 'static> GlobalKmalloc<G> {
    /// The allocator, if it was made.
    #[inline(always)]
    fn made(&self) -> Option<&'static Whole<G>> {
        // ORDERING: P6 (who uses it): Acquire meets the maker's Release.
        let whole = self.whole.load(Ordering::Acquire);
        // SAFETY: published whole, in memory that is never given back.
        unsafe { whole.as_ref() }
    }

    /// The allocator, made if need be; `None` if there is no memory for it.
    #[inline(always)]
    fn whole(&self) -> Option<&'static Whole<G>> {
        if let Some(whole) = self.made() {
            Some(whole)
        } else {
            self.make()
        }
    }

    #[cold]
    #[inline(never)]
    fn make(&self) -> Option<&'static Whole<G>> {
        let me = std::process::id();
        let backoff = Backoff::new();
        loop {
            if let Some(whole) = self.made() {
                return Some(whole);
            }
            // ORDERING: Relaxed: looked at by the exchange.
            let maker = self.maker.load(Ordering::Relaxed);
            if maker == me {
                // I1, or another thread.
                if MAKING.get() {
                    return None;
                }
                backoff.snooze();
                continue;
            }
            // I2, or nobody.
            // ORDERING: Acquire meets the Release of a maker before, who failed, or finished after the look above.
            let taken =
                self.maker
                    .compare_exchange(maker, me, Ordering::Acquire, Ordering::Relaxed);
            if taken.is_ok() {
                break;
            }
        }
        let made = self.made();
        if made.is_none() {
            // Another allocator's making, perhaps, in the midst of which this thread is.
            let was_making = MAKING.replace(true);
            // A `G` may be cloned by the user's own code, and no allocation may unwind.
            let guarded = NoUnwind::new("the making", "kmalloc");
            if let Some(whole) = Whole::build(self.gp.clone()) {
                // ORDERING: P6 (the maker): what was made is seen by who uses it.
                self.whole.store(whole.as_ptr(), Ordering::Release);
            }
            forget(guarded);
            MAKING.set(was_making);
        }
        // ORDERING: Release: the next to come finds what was made.
        self.maker.store(0, Ordering::Release);
        self.made()
    }

    /// The allocator itself, made if need be: for what a [`GlobalAlloc`] has no name for. `None` if there is no memory for it.
    pub fn kmalloc(&self) -> Option<&'static Kmalloc<Threads, GlobalPages, G>> {
        self.whole().map(|whole| &whole.parts.kmalloc)
    }

    /// The pages below it; `None` if it has not been made.
    pub fn zone(&self) -> Option<&'static Zone<Threads, Mmap>> {
        self.made().map(|whole| &whole.parts.zone)
    }

    /// Gives what is not used to the pages and on to the system. Says how many pages the system got. Waits for each thread in turn, a few
    /// instructions, and makes system calls.
    #[doc(alias = "malloc_trim")]
    pub fn shrink(&self) -> usize {
        let Some(whole) = self.made() else {
            return 0;
        };
        whole.parts.kmalloc.shrink(usize::MAX);
        whole.parts.zone.drain_all();
        whole.parts.zone.trim()
    }

    /// The numbers of all classes; `None` if it has not been made.
    pub fn stats(&self) -> Option<KmallocStats> {
        self.made().map(|whole| whole.parts.kmalloc.stats())
    }
}

impl<G: GracePeriod + 'static> fmt::Debug for GlobalKmalloc<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GlobalKmalloc").finish_non_exhaustive()
    }
}

impl<G: GracePeriod + Clone + Send + Sync + 'static> Whole<G> {
    /// Makes the zone, and the rest in it. Allocates nothing else (I1).
    fn build(gp: G) -> Option<NonNull<Self>> {
        let order = Order::for_size(size_of::<Self>())?;
        let zone = Zone::new(Threads, Mmap::new().ok()?).ok()?;
        let place: NonNull<Self> = zone.alloc(PageReq::new(order)).ok()?.cast();
        // SAFETY: the offset of a field, in a block that is large enough.
        let field = |offset| unsafe { place.byte_add(offset) };
        let zone_at: NonNull<Zone<Threads, Mmap>> =
            field(offset_of!(Self, parts) + offset_of!(Parts<G>, zone)).cast();
        let kmalloc_at: NonNull<Kmalloc<_, _, G>> =
            field(offset_of!(Self, parts) + offset_of!(Parts<G>, kmalloc)).cast();
        let still_at: NonNull<Still<Parts<G>>> = field(offset_of!(Self, still)).cast();
        // SAFETY: the block is this call's, and aligned to a page.
        unsafe { zone_at.write(zone) };
        // SAFETY: written above; it stays where it is for ever, unless this call fails and takes it away below.
        let zone: GlobalPages = unsafe { zone_at.as_ref() };
        if let Ok(kmalloc) = Kmalloc::new(Threads, zone, gp) {
            // SAFETY: as for the zone.
            unsafe { kmalloc_at.write(kmalloc) };
            // SAFETY: both of the parts are written.
            let parts: &'static Parts<G> =
                unsafe { field(offset_of!(Self, parts)).cast().as_ref() };
            // SAFETY: as for the zone.
            unsafe { still_at.write(Still::new(parts)) };
            // SAFETY: written above.
            let still: &'static Still<_> = unsafe { still_at.as_ref() };
            // SAFETY: on no list. The code stays: it holds the program's memory. No function of an allocator forks.
            if unsafe { hold_still(still) }.is_ok() {
                return Some(place);
            }
            // SAFETY: written above, and shown to nobody.
            unsafe { kmalloc_at.drop_in_place() };
        }
        // Moved out first: the block it lies in goes with it.
        // SAFETY: written above; nothing refers to it any more.
        drop(unsafe { zone_at.read() });
        None
    }
}

// SAFETY: what `Kmalloc` guarantees, for it is the one behind every address that was given out; null if there is none. Nothing here unwinds.
unsafe impl<G: GracePeriod + Clone + Send + Sync + 'static> GlobalAlloc for GlobalKmalloc<G> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.whole() {
            // SAFETY: the caller's debt.
            Some(whole) => unsafe { whole.parts.kmalloc.alloc(layout) },
            None => ptr::null_mut(),
        }
    }

    #[inline]
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if let Some(whole) = self.made() {
            // SAFETY: the caller's debt.
            unsafe { whole.parts.kmalloc.dealloc(memory, layout) };
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match self.whole() {
            // SAFETY: the caller's debt.
            Some(whole) => unsafe { whole.parts.kmalloc.alloc_zeroed(layout) },
            None => ptr::null_mut(),
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        match self.made() {
            // SAFETY: the caller's debts.
            Some(whole) => unsafe { whole.parts.kmalloc.realloc(memory, layout, new_size) },
            None => ptr::null_mut(),
        }
    }
}
