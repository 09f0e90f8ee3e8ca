//! Who is asked to give pages back when a zone runs low.
//!
//! Source: Linux shrinkers (`struct shrinker`) and the wake-up of `kswapd` at the low watermark; hooks are linked in place, as
//! [`OfflineHook`](rcu_core::cpu::OfflineHook)s are. Why the list's lock is not held while a hook runs: a hook takes locks of its own layer, under
//! which that layer asks for pages.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `list`: `first`, a hook's `next` | the hooks | the holder of `list` |
//! | `list`: `running` | the hook that runs now, or null | the one who runs hooks, holding `list` |
//! | `busy` | somebody runs hooks | whoever sets it from false, until it is done |
//!
//! # Invariants
//! - I1. At most one thread runs hooks, and a hook that allocates runs none: both find `busy` set.
//! - I2. A hook that is running is not taken off until it is done: `remove` waits while `running` is it. So following its `next` after it
//!   ran is right, and a removed hook never runs again.
//!
//! # Progress and contexts
//! Hooks run with no lock of the zone's, nor of a slot's, held: from an allocation at `MayGrow`, or from `Zone::tick`. Whoever allocates at
//! a lower level, or frees, only leaves a note. Nobody waits for a hook but `remove`.

use core::cell::UnsafeCell;
use core::fmt;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, Ordering};
use rcu_core::cpu::{SpinGuard, SpinMutex};
use rcu_core::sync::Backoff;

/// One layer's offer: `run(data, pages)` gives pages back to the zone, about `pages` of them, and says how many.
///
/// Lives inside the layer's own structure, or in a `static`; the list links it in place, and nothing is ever allocated for it. [`Zone::add_pressure_hook`]
/// lists it, [`Zone::remove_pressure_hook`] takes it off and, once it returned, the hook does not run and will not.
///
/// **When.** Once for each time that fewer pages are free than the low watermark says ([`Zone::set_watermarks`]; without watermarks, not), inside the next
/// allocation at [`Attempt::MayGrow`] that its list did not serve, or the next [`Zone::tick`]; `pages` is then what is missing to the high watermark. And, watermarks or not,
/// inside an allocation at `MayGrow` for which the source has nothing and lists and stash have been drained; `pages` is at least its size. Allocations at lower
/// levels, and frees at any, never run hooks.
///
/// **What it may do.** Free to the zone, at any level. Allocate from it: what it then gets is what is there, for hooks do not nest; with
/// [`Reserve::All`](crate::Reserve::All) it gets the last pages too. Read statistics, drain lists, take other hooks off.
/// It should be quick: the allocation waits.
///
/// **What it must not do.** Take itself off. Wait for a lock that anybody holds while allocating at `MayGrow`, or while taking this hook off: a layer that allocates under a lock of its own
/// does so at [`Attempt::NoWait`](crate::Attempt::NoWait), or its hook only tries that lock and says 0 where it is taken. Wait for a grace period: the allocation may be in a read section.
///
/// **How many pages** it says decides only whether the next hook is asked. Pages that come back later (those of deferred frees, say) are not to be counted; an allocation that was about to
/// fail then drains the lists and tries once more, whatever they said.
///
/// **Panics** pass through the allocation, which takes nothing then; the other hooks run the next time.
///
/// ```
/// # #[cfg(all(feature = "std", target_os = "linux"))] {
/// use core::ptr::NonNull;
/// use core::sync::atomic::{AtomicPtr, Ordering};
/// use pagealloc::{Mmap, Order, PageAlloc, PageBlock, PageReq, PressureHook, Watermarks, Zone};
/// use rcu_core::cpu::Threads;
///
/// type Pages = Zone<Threads, Mmap>;
///
/// /// A layer that keeps a page for later.
/// struct Layer<'z> {
///     zone: &'z Pages,
///     spare: AtomicPtr<u8>,
/// }
///
/// impl Layer<'_> {
///     /// Gives back what it has, without a lock.
///     unsafe fn shrink(data: *const (), _pages: usize) -> usize {
///         // SAFETY: the hook's data, a layer that is there while the hook is listed.
///         let layer = unsafe { &*data.cast::<Self>() };
///         let spare = layer.spare.swap(core::ptr::null_mut(), Ordering::AcqRel);
///         let Some(spare) = NonNull::new(spare) else { return 0 };
///         // SAFETY: the layer's own page, which the swap took.
///         unsafe { layer.zone.free(spare, Order::ZERO) };
///         1
///     }
/// }
///
/// let zone = Zone::new(Threads, Mmap::reserve(4 << 20).unwrap()).unwrap();
/// let page = PageBlock::new(&zone, PageReq::new(Order::ZERO)).unwrap();
/// let layer = Layer { zone: &zone, spare: AtomicPtr::new(page.into_raw().as_ptr()) };
/// // SAFETY: `shrink` may run in any thread, and holds up nobody.
/// let hook = unsafe { PressureHook::new(Layer::shrink, (&raw const layer).cast()) };
/// // SAFETY: hook and layer stay where they are until the hook is taken off, below.
/// unsafe { zone.add_pressure_hook(NonNull::from_ref(&hook)) };
///
/// // All there is, and a page more: the layer's.
/// let mut out = Vec::new();
/// while let Ok(page) = PageBlock::new(&zone, PageReq::new(Order::ZERO)) {
///     out.push(page);
/// }
/// assert_eq!(out.len(), 1024);
/// zone.remove_pressure_hook(NonNull::from_ref(&hook));
/// # }
/// ```
///
/// [`Zone::add_pressure_hook`]: crate::Zone::add_pressure_hook
/// [`Zone::remove_pressure_hook`]: crate::Zone::remove_pressure_hook
/// [`Zone::set_watermarks`]: crate::Zone::set_watermarks
/// [`Zone::tick`]: crate::Zone::tick
/// [`Attempt::MayGrow`]: crate::Attempt::MayGrow
#[doc(alias = "shrinker")]
pub struct PressureHook {
    run: unsafe fn(*const (), usize) -> usize,
    data: *const (),
    next: UnsafeCell<*mut PressureHook>,
}

// SAFETY: `next` is touched under the list's lock only; `data` is handed to `run`, whose author
// promised at `new` that it may be called from any thread.
unsafe impl Sync for PressureHook {}
// SAFETY: as above.
unsafe impl Send for PressureHook {}

impl PressureHook {
    /// A hook that will call `run(data, pages)`. `run` may allocate and free in the zone; it should not count on getting anything.
    ///
    /// # Safety
    /// 1. While the hook is listed, `run(data, _)` may be called from any thread, in the midst of an allocation of that thread at
    ///    [`Attempt::MayGrow`](crate::Attempt::MayGrow).
    ///
    /// See [the type](Self) for an example.
    #[must_use]
    pub const unsafe fn new(run: unsafe fn(*const (), usize) -> usize, data: *const ()) -> Self {
        Self {
            run,
            data,
            next: UnsafeCell::new(ptr::null_mut()),
        }
    }
}

impl fmt::Debug for PressureHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PressureHook")
            .field("data", &self.data)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct List {
    first: *mut PressureHook,
    running: *mut PressureHook,
}

// SAFETY: pointers that are followed under the lock, or while `running` keeps the hook listed (I2).
unsafe impl Send for List {}

/// The hooks of a zone.
#[derive(Debug)]
pub(crate) struct PressureHooks {
    list: SpinMutex<List>,
    busy: AtomicBool,
}

impl PressureHooks {
    rcu_core::const_fn! {
        pub(crate) const fn new() -> Self {
            Self {
                list: SpinMutex::new(List {
                    first: ptr::null_mut(),
                    running: ptr::null_mut(),
                }),
                busy: AtomicBool::new(false),
            }
        }
    }

    /// Lists `hook`, in front.
    ///
    /// # Safety
    /// 1. `hook` stays valid and in place until [`Self::remove`] returned for it, or the list is gone.
    /// 2. It is on no list.
    pub(crate) unsafe fn add(&self, hook: NonNull<PressureHook>) {
        let mut list = self.list.lock();
        // SAFETY: `hook` is valid (1).
        let next = unsafe { hook.as_ref() }.next.get();
        // SAFETY: it is on no list (2), so nobody else touches `next`.
        unsafe { *next = list.first };
        list.first = hook.as_ptr();
    }

    /// Takes `hook` off if it is listed. Waits while it runs; not from the hook itself.
    pub(crate) fn remove(&self, hook: NonNull<PressureHook>) {
        let backoff = Backoff::new();
        let mut list = self.list.lock();
        while list.running == hook.as_ptr() {
            drop(list);
            backoff.snooze();
            list = self.list.lock();
        }
        let mut at: *mut *mut PressureHook = &raw mut list.first;
        loop {
            // SAFETY: `at` is the list's head or the `next` of a listed hook, and the lock is held.
            let current = unsafe { *at };
            if current.is_null() {
                return;
            }
            // SAFETY: listed hooks are valid.
            let next = unsafe { &*current }.next.get();
            if current == hook.as_ptr() {
                // SAFETY: the hook is listed, and the lock is held.
                let after = unsafe { *next };
                // SAFETY: `at` belongs to the list, whose lock is held.
                unsafe { *at = after };
                return;
            }
            at = next;
        }
    }

    /// Holds the list: nobody adds, removes or goes on to the next hook.
    pub(crate) fn hold(&self) -> Held<'_> {
        Held {
            list: self.list.lock(),
            busy: &self.busy,
        }
    }

    /// Whether hooks are running.
    pub(crate) fn are_running(&self) -> bool {
        // ORDERING: Relaxed: a hint for heights.
        self.busy.load(Ordering::Relaxed)
    }

    /// Runs hooks until they say that they freed `pages`, and returns how many up to that; 0 if somebody runs them already.
    pub(crate) fn run(&self, pages: usize) -> usize {
        // ORDERING: Acquire / the Release below: one after the other (I1).
        if self.busy.swap(true, Ordering::Acquire) {
            return 0;
        }
        let _running = Running(self);
        let mut freed: usize = 0;
        let mut current = self.advance(|list| list.first);
        while let Some(hook) = current {
            // SAFETY: listed, and kept so while it is the one that runs (I2).
            let hook = unsafe { hook.as_ref() };
            // SAFETY: the hook's author allows it from any thread, inside an allocation (debt of `new`).
            let got = unsafe { (hook.run)(hook.data, pages - freed) };
            freed += got.min(pages - freed);
            if freed == pages {
                break;
            }
            // SAFETY: `advance` calls it with the list locked.
            current = self.advance(|_| unsafe { *hook.next.get() });
        }
        freed
    }

    /// The hook that is `next` becomes the one that runs.
    fn advance(
        &self,
        next: impl FnOnce(&List) -> *mut PressureHook,
    ) -> Option<NonNull<PressureHook>> {
        let mut list = self.list.lock();
        list.running = next(&list);
        NonNull::new(list.running)
    }
}

/// Evidence that the list is held.
pub(crate) struct Held<'a> {
    list: SpinGuard<'a, List>,
    busy: &'a AtomicBool,
}

impl Held<'_> {
    /// Forgets who was running hooks: in the child of a fork, where that thread is not.
    pub(crate) fn forget_runner(&mut self) {
        self.list.running = ptr::null_mut();
        // ORDERING: Relaxed: there is one thread.
        self.busy.store(false, Ordering::Relaxed);
    }
}

/// Ends a run, also by a panic of a hook's.
struct Running<'a>(&'a PressureHooks);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.list.lock().running = ptr::null_mut();
        // ORDERING: Release / Acquire in `run`: one run after the other (I1).
        self.0.busy.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicUsize;

    struct Cache {
        hook: PressureHook,
        gives: usize,
        asked: AtomicUsize,
        hooks: *const PressureHooks,
    }

    // SAFETY: `data` is a `Cache` that outlives its listing.
    unsafe fn shrink(data: *const (), pages: usize) -> usize {
        // SAFETY: as above.
        let cache = unsafe { &*data.cast::<Cache>() };
        // ORDERING: Relaxed: one thread.
        cache.asked.fetch_add(pages, Ordering::Relaxed);
        // SAFETY: the list outlives the test's caches.
        let hooks = unsafe { &*cache.hooks };
        assert!(hooks.are_running());
        assert_eq!(hooks.run(1), 0, "I1: not inside a hook");
        assert!(hooks.list.try_lock().is_some(), "no lock is held");
        cache.gives
    }

    /// A cache on `hooks`, boxed: the hook must not move.
    fn cache(hooks: &PressureHooks, gives: usize) -> &'static Cache {
        let cache: *mut Cache = Box::into_raw(Box::new(Cache {
            // SAFETY: replaced below, before it is listed.
            hook: unsafe { PressureHook::new(shrink, ptr::null()) },
            gives,
            asked: AtomicUsize::new(0),
            hooks,
        }));
        // SAFETY: just boxed.
        unsafe { (*cache).hook.data = cache.cast_const().cast() };
        // SAFETY: never freed.
        let cache: &'static Cache = unsafe { &*cache };
        // SAFETY: leaked, and listed once.
        unsafe { hooks.add(NonNull::from_ref(&cache.hook)) };
        cache
    }

    #[test]
    fn p5_hooks_run_in_turn_until_there_is_enough_and_without_the_lists_lock() {
        let hooks = PressureHooks::new();
        assert_eq!(hooks.run(10), 0);
        let caches = [5, 0, 4, 3].map(|gives| cache(&hooks, gives));
        // ORDERING: Relaxed: one thread.
        let asked = || caches.map(|c| c.asked.swap(0, Ordering::Relaxed));
        // The newest first.
        assert_eq!(hooks.run(6), 6);
        assert_eq!(asked(), [0, 0, 3, 6]);
        assert_eq!(hooks.run(100), 12);
        assert_eq!(asked(), [93, 93, 97, 100]);
        hooks.remove(NonNull::from_ref(&caches[2].hook));
        hooks.remove(NonNull::from_ref(&caches[2].hook));
        assert_eq!(hooks.run(6), 6);
        assert_eq!(asked(), [3, 3, 0, 6]);
        assert!(!hooks.are_running());
    }
}
