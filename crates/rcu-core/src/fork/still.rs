//! Layers that hold still while the process forks, so that the child finds them whole.
//!
//! Source: `pthread_atfork(3)` as C allocators use it. Why not to put right in the child what is found (as
//! [`after_fork_child`](super::after_fork_child)): an allocator below everything must work in every child, also in one whose program
//! knows nothing of RCU, and what it forgets there is memory.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `FIRST`, links | the layers, newest first; none ever leaves | `hold_still`, holding the offline hooks |
//! | `HELD` | a fork is on its way | the forking thread |
//! | `held` of each | what keeps everybody out of the layer, while a fork is on its way | the forking thread |
//!
//! # Life
//! `fork` → offline hooks held (no thread ends its slot, no layer is added) → the slot table held (no thread gets a slot) → every layer held,
//! the newest first → the fork → in the parent and in the child: every layer let go, then the table and the hooks.
//!
//! # Invariants
//! - I1. Layers are added only while the hooks are held, so those that are let go are those that were held.
//! - I2. One thread forks at a time between the first and the last step: the hooks' lock.
//!
//! # Contexts
//! Lock order: offline hooks → slot table → a layer's locks. So a layer does not register threads, nor change its offline hooks, under its locks. Layers are
//! independent of each other, or the newer asks the older, and holds none of the locks that are taken here meanwhile: then their order does not matter.

use crate::cpu::threads;
use core::cell::UnsafeCell;
use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::io;

static FIRST: AtomicPtr<Hook> = AtomicPtr::new(ptr::null_mut());
static HELD: AtomicBool = AtomicBool::new(false);
static INSTALLED: AtomicBool = AtomicBool::new(false);

/// A layer that can be held still, by whoever forks: see [`hold_still`].
///
/// Neither function unwinds, or allocates from what is held.
pub trait HoldStill {
    /// Evidence that nobody is inside. Dropped in the parent.
    type Held<'a>
    where
        Self: 'a;

    /// Waits until nobody is inside, and keeps everybody out until the value is gone.
    fn hold(&self) -> Self::Held<'_>;

    /// Makes the layer usable in the child.
    ///
    /// # Safety
    /// 1. This is the child of a fork that the caller did while it had this value, and its only thread.
    unsafe fn let_go_in_child<'a>(held: Self::Held<'a>)
    where
        Self: 'a;
}

/// The part of a [`Still`] that knows nothing of its layer.
struct Hook {
    hold: unsafe fn(*const Hook),
    let_go: unsafe fn(*const Hook, bool),
    next: UnsafeCell<*const Hook>,
}

/// A layer's place in the list of those that hold still, see [`hold_still`].
#[repr(C)]
pub struct Still<L: HoldStill + 'static> {
    hook: Hook,
    layer: &'static L,
    held: UnsafeCell<Option<L::Held<'static>>>,
}

// SAFETY: `next` is written before the hook is published, under the hooks' lock; `held` by the thread that forks, and by the thread that this is
// in the child (I2).
unsafe impl<L: HoldStill + Sync> Sync for Still<L> {}
// SAFETY: as above; nothing is held before the value is listed, and then it is borrowed for ever.
unsafe impl<L: HoldStill + Sync> Send for Still<L> {}

impl<L: HoldStill> Still<L> {
    /// A place for `layer`.
    #[must_use]
    pub const fn new(layer: &'static L) -> Self {
        Self {
            hook: Hook {
                hold: Self::hold,
                let_go: Self::let_go,
                next: UnsafeCell::new(ptr::null()),
            },
            layer,
            held: UnsafeCell::new(None),
        }
    }

    /// # Safety
    /// 1. `hook` leads to a listed `Still<L>`, and the caller is about to fork.
    unsafe fn hold(hook: *const Hook) {
        // SAFETY: the hook is the first field of its `Still`, which is static (1).
        let this: &'static Self = unsafe { &*hook.cast() };
        let held = this.layer.hold();
        // SAFETY: nobody else looks at it (I2).
        unsafe { *this.held.get() = Some(held) };
    }

    /// # Safety
    /// 1. `hook` leads to a listed `Still<L>`, and the caller called [`Self::hold`] and forked. If `is_child`, it is the only thread of the child.
    unsafe fn let_go(hook: *const Hook, is_child: bool) {
        // SAFETY: as in `hold`.
        let this: &'static Self = unsafe { &*hook.cast() };
        // SAFETY: nobody else looks at it (I2).
        let held = unsafe { &mut *this.held.get() }.take();
        match held {
            // SAFETY: 1.
            Some(held) if is_child => unsafe { L::let_go_in_child(held) },
            held => drop(held),
        }
    }
}

impl<L: HoldStill> fmt::Debug for Still<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Still").finish_non_exhaustive()
    }
}

/// Has the layer held around every `fork` from now on, for ever, so that every child may use it. Waits for a fork that is on its way.
///
/// # Errors
/// If the system has no memory for the note; the layer is not listed then.
///
/// # Safety
/// 1. `still` was not listed before. The code of this library, and of the layer, stays loaded until the process ends.
/// 2. Nobody forks while holding a guard of the layer, or from one of its functions.
///
/// ```
/// use rcu_core::cpu::{SpinGuard, SpinMutex};
/// use rcu_core::fork::{HoldStill, Still, hold_still};
///
/// /// An allocator's books.
/// struct Books(SpinMutex<Vec<u32>>);
/// impl HoldStill for Books {
///     type Held<'a> = SpinGuard<'a, Vec<u32>>;
///     fn hold(&self) -> Self::Held<'_> {
///         self.0.lock()
///     }
///     unsafe fn let_go_in_child<'a>(held: Self::Held<'a>)
///     where
///         Self: 'a,
///     {
///         drop(held); // nobody was inside, so they are whole
///     }
/// }
/// static BOOKS: Books = Books(SpinMutex::new(Vec::new()));
/// static STILL: Still<Books> = Still::new(&BOOKS);
/// // SAFETY: listed once; nobody forks while holding the books.
/// unsafe { hold_still(&STILL) }.unwrap();
/// ```
#[doc(alias = "pthread_atfork")]
pub unsafe fn hold_still<L: HoldStill + Sync>(still: &'static Still<L>) -> io::Result<()> {
    // ORDERING: Relaxed: decides who notes it; that comes before any layer's first fork, for each layer waits here.
    if !INSTALLED.swap(true, Ordering::Relaxed) {
        // SAFETY: the handlers stay loaded (1).
        let code = unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
        if code != 0 {
            // ORDERING: Relaxed: as above.
            INSTALLED.store(false, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(code));
        }
    }
    threads::hold_hooks();
    // SAFETY: on no list (1), so nobody else looks at it.
    // ORDERING: Relaxed: written under the hooks' lock, which is held.
    unsafe { *still.hook.next.get() = FIRST.load(Ordering::Relaxed) };
    // Made of the whole, which the hook's functions go back to.
    let hook: *const Hook = ptr::from_ref(still).cast();
    // ORDERING: Relaxed: read under the hooks' lock.
    FIRST.store(hook.cast_mut(), Ordering::Relaxed);
    // SAFETY: held above.
    unsafe { threads::let_go_hooks() };
    Ok(())
}

/// Calls `visit` for each layer. The hooks are held.
fn for_each(mut visit: impl FnMut(&Hook, *const Hook)) {
    // ORDERING: Relaxed: under the hooks' lock.
    let mut next = FIRST.load(Ordering::Relaxed).cast_const();
    // SAFETY: listed hooks are static.
    while let Some(hook) = unsafe { next.as_ref() } {
        visit(hook, next);
        // SAFETY: written before the hook was listed.
        next = unsafe { *hook.next.get() };
    }
}

extern "C" fn prepare() {
    threads::hold_hooks();
    threads::hold_table();
    // SAFETY: listed, and this thread forks.
    for_each(|hook, whole| unsafe { (hook.hold)(whole) });
    // ORDERING: Relaxed: read by this thread, or the one it is in the child.
    HELD.store(true, Ordering::Relaxed);
}

fn after(is_child: bool) {
    // ORDERING: Relaxed: as in `prepare`.
    if !HELD.swap(false, Ordering::Relaxed) {
        // The handlers were noted in the middle of a fork.
        return;
    }
    // SAFETY: held in `prepare`, by this thread or the one it is in the child.
    for_each(|hook, whole| unsafe { (hook.let_go)(whole, is_child) });
    // SAFETY: held since `prepare`. In the child another handler may have taken them over, and let go already: then this changes nothing.
    unsafe { threads::let_go() };
}

extern "C" fn parent() {
    after(false);
}

extern "C" fn child() {
    after(true);
}
