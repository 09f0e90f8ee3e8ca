//! What a layer asks to have done when a slot goes offline, and in the child of a fork.
//!
//! # Invariants
//! - I1. The list is whole between any two stores: adding and removing each take effect by one store. So the child of a
//!   fork finds a hook listed or not, whatever the other threads were doing.

use super::{Slot, SpinMutex};
use core::fmt;
use core::ptr::{self, NonNull};

/// What [`OfflineHook::with_fork`] takes: told the hook's data and the slot of the one thread there is.
pub type Forked = unsafe fn(*const (), Option<Slot>);

/// One layer's wish: call `run(data, slot)` when `slot` goes offline.
///
/// `run` hands over what the layer keeps for the slot. It returns false to *keep* the slot: the
/// thread is ending, but something of the layer (an RCU guard inside another thread-local) still
/// uses the slot. The layer then owes one [`Cpus::release`](super::Cpus::release) later.
///
/// A layer that can go on in the child of a fork says how by [`Self::with_fork`].
///
/// Lives inside the layer's own structure; the list links it in place.
pub struct OfflineHook {
    run: unsafe fn(*const (), Slot) -> bool,
    forked: Option<Forked>,
    data: *const (),
    next: core::cell::UnsafeCell<*mut OfflineHook>,
}

// SAFETY: `next` is touched under the list's lock only; `data` is handed to `run`, whose author
// promised at `new` that it may be called from any thread.
unsafe impl Sync for OfflineHook {}
// SAFETY: as above.
unsafe impl Send for OfflineHook {}

impl OfflineHook {
    /// A hook that will call `run(data, slot)`.
    ///
    /// # Safety
    /// 1. While the hook is listed, `run(data, slot)` may be called from the thread that owns `slot`.
    ///
    /// ```
    /// use core::ptr::{self, NonNull};
    /// use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
    /// use rcu_core::cpu::{HookList, OfflineHook, Slot};
    ///
    /// static GONE: AtomicU32 = AtomicU32::new(0);
    /// /// Hands over what is left on the slot; false if it is to be kept from its next owner for now.
    /// unsafe fn hand_over(_layer: *const (), _slot: Slot) -> bool {
    ///     GONE.fetch_add(1, Relaxed);
    ///     true
    /// }
    /// // SAFETY: it may be called at any time.
    /// let hook = unsafe { OfflineHook::new(hand_over, ptr::null()) };
    /// # let _ = (hook, HookList::new(), NonNull::<u8>::dangling());
    /// ```
    #[must_use]
    pub const unsafe fn new(run: unsafe fn(*const (), Slot) -> bool, data: *const ()) -> Self {
        Self {
            run,
            forked: None,
            data,
            next: core::cell::UnsafeCell::new(ptr::null_mut()),
        }
    }

    /// The hook, with what puts the layer right in the child of a fork, where of all threads only the `survivor` of
    /// that call is left: every lock may be held, and every list half changed, by a thread that is not there.
    ///
    /// The function touches its own layer only (others may not be put right yet), and neither allocates nor starts a
    /// thread: `exec` may be next.
    ///
    /// # Safety
    /// 1. While the hook is listed, `forked(data, survivor)` may be called in the child of a fork by its only thread,
    ///    which owns the slot `survivor`, or none, and is inside no function of the layer.
    #[must_use]
    pub const unsafe fn with_fork(mut self, forked: Forked) -> Self {
        self.forked = Some(forked);
        self
    }
}

impl fmt::Debug for OfflineHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfflineHook")
            .field("data", &self.data)
            .finish_non_exhaustive()
    }
}

/// A list of hooks, for implementers of [`Cpus`](super::Cpus). Newest first: layers stand on the
/// ones made before them, so they are taken down in the reverse order.
#[derive(Debug)]
pub struct HookList {
    first: SpinMutex<*mut OfflineHook>,
}

// SAFETY: the pointers are followed under the lock only, and hooks are `Sync`.
unsafe impl Sync for HookList {}
// SAFETY: as above.
unsafe impl Send for HookList {}

impl Default for HookList {
    fn default() -> Self {
        Self::new()
    }
}

impl HookList {
    crate::const_fn! {
        /// An empty list.
        #[must_use]
        pub const fn new() -> Self {
            Self { first: SpinMutex::new(ptr::null_mut()) }
        }
    }

    /// Puts `hook` in front.
    ///
    /// # Safety
    /// 1. `hook` stays valid and in place until [`Self::remove`] returned for it.
    /// 2. It is on no list.
    ///
    /// ```
    /// # use core::ptr::{self, NonNull};
    /// # use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
    /// # use rcu_core::cpu::{HookList, OfflineHook, Slot};
    ///
    /// # static GONE: AtomicU32 = AtomicU32::new(0);
    /// # /// Hands over what is left on the slot; false if it is to be kept from its next owner for now.
    /// # unsafe fn hand_over(_layer: *const (), _slot: Slot) -> bool {
    /// #     GONE.fetch_add(1, Relaxed);
    /// #     true
    /// # }
    /// # // SAFETY: it may be called at any time.
    /// # let hook = unsafe { OfflineHook::new(hand_over, ptr::null()) };
    /// let hooks = HookList::new();
    /// // SAFETY: it stays until it is removed, and is on no list.
    /// unsafe { hooks.add(NonNull::from(&hook)) };
    /// // A CPU goes down; it runs this itself, last of all.
    /// // SAFETY: the caller owns the slot.
    /// assert_eq!(unsafe { hooks.run(Slot::new(3)) }, 0, "nobody keeps it");
    /// assert_eq!(GONE.load(Relaxed), 1);
    /// hooks.remove(NonNull::from(&hook));
    /// ```
    pub unsafe fn add(&self, hook: NonNull<OfflineHook>) {
        let mut first = self.first.lock();
        // SAFETY: `hook` is valid (1) and on no list (2), and the lock is held.
        let next = unsafe { hook.as_ref() }.next.get();
        // SAFETY: as above; nobody else touches `next`.
        unsafe { *next = *first };
        *first = hook.as_ptr();
    }

    /// Takes `hook` off if it is listed. Waits for hooks that are running.
    pub fn remove(&self, hook: NonNull<OfflineHook>) {
        let mut first = self.first.lock();
        let mut at: *mut *mut OfflineHook = &raw mut *first;
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

    /// Runs every hook for `slot`, newest first, and says how many want to keep it.
    ///
    /// # Safety
    /// 1. The caller owns `slot`, and `Cpus::current` still returns it.
    ///
    /// See [`Self::add`] for an example.
    pub unsafe fn run(&self, slot: Slot) -> u32 {
        let first = self.first.lock();
        let mut current = *first;
        let mut keepers = 0;
        while !current.is_null() {
            // SAFETY: listed hooks are valid while the lock is held.
            let hook = unsafe { &*current };
            // SAFETY: the hook's author allows it from the owner of `slot`, which the caller is.
            let done = unsafe { (hook.run)(hook.data, slot) };
            keepers += u32::from(!done);
            // SAFETY: the lock is held.
            current = unsafe { *hook.next.get() };
        }
        keepers
    }

    /// Holds the list still: no hook runs, comes or goes until [`Self::let_go`]. Waits for hooks that are running.
    #[cfg(all(feature = "std", unix, not(loom)))]
    pub(crate) fn hold(&self) {
        core::mem::forget(self.first.lock());
    }

    /// Ends what [`Self::hold`] began.
    ///
    /// # Safety
    /// 1. The caller holds the list.
    #[cfg(all(feature = "std", unix, not(loom)))]
    pub(crate) unsafe fn let_go(&self) {
        // SAFETY: the guard was forgotten by `hold` (1).
        unsafe { self.first.unlock_forgotten() };
    }

    /// Puts every layer right that has said how, in the child of a fork. The list itself is whole (I1).
    ///
    /// # Safety
    /// 1. This is the child of a fork and the caller its only thread, inside no function of a listed layer; it owns the
    ///    slot `survivor`, if any.
    pub unsafe fn run_forked(&self, survivor: Option<Slot>) {
        // SAFETY: there is no other thread, and the caller is inside nothing that runs, adds or removes hooks (1).
        let (first, _) = unsafe { self.first.seize() };
        let mut current = *first;
        while !current.is_null() {
            // SAFETY: listed hooks are valid while the lock is held.
            let hook = unsafe { &*current };
            if let Some(forked) = hook.forked {
                // SAFETY: the hook's author allows it where the caller is (1).
                unsafe { forked(hook.data, survivor) };
            }
            // SAFETY: the lock is held.
            current = unsafe { *hook.next.get() };
        }
    }
}
