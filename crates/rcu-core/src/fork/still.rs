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
//! | `HELD` | one more than the number of slots in use, while a fork is on its way; else 0 | the forking thread |
//!
//! # Life
//! `fork` → offline hooks held (no thread ends its slot, no layer is added) → every layer closes its doors and waits for who is
//! inside → the slot table held (no thread gets a slot) → every layer holds its locks → the fork → in the parent and in the child:
//! every layer lets go, then the table and the hooks.
//!
//! # Invariants
//! - I1. Layers are added only while the hooks are held, so those that let go are those that were told to hold.
//! - I2. One thread forks at a time between the first and the last step: the hooks' lock.
//!
//! # Contexts
//! Lock order: offline hooks → a layer's doors → slot table → a layer's locks. So a layer may register threads behind its doors, and
//! not under its locks.

use crate::cpu::threads;
use core::cell::UnsafeCell;
use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::io;

static FIRST: AtomicPtr<StillHook> = AtomicPtr::new(ptr::null_mut());
static HELD: AtomicUsize = AtomicUsize::new(0);
static INSTALLED: AtomicBool = AtomicBool::new(false);

/// How one layer holds still. See [`hold_still`].
pub struct StillHook {
    close: unsafe fn(*const ()),
    hold: unsafe fn(*const (), usize),
    let_go: unsafe fn(*const (), usize, bool),
    data: *const (),
    next: UnsafeCell<*const StillHook>,
}

// SAFETY: `next` is written before the hook is published, under the hooks' lock; `data` is for functions that may be called from
// any thread (debt of `new`).
unsafe impl Sync for StillHook {}
// SAFETY: as above.
unsafe impl Send for StillHook {}

impl StillHook {
    /// A hook that calls, with `data` in front: `close()`: lets nobody in, and waits for who is in; `hold(nr_slots)`: takes every lock, nobody having a
    /// slot of that number or more; and after the fork `let_go(nr_slots, is_child)`: undoes both. In the child, whoever was about to take
    /// one of the locks is not there any more.
    ///
    /// # Safety
    /// 1. While the hook is listed, the three may be called in this order by any thread that forks. They neither allocate nor unwind.
    #[must_use]
    pub const unsafe fn new(
        close: unsafe fn(*const ()),
        hold: unsafe fn(*const (), usize),
        let_go: unsafe fn(*const (), usize, bool),
        data: *const (),
    ) -> Self {
        Self {
            close,
            hold,
            let_go,
            data,
            next: UnsafeCell::new(ptr::null()),
        }
    }
}

impl fmt::Debug for StillHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StillHook")
            .field("data", &self.data)
            .finish_non_exhaustive()
    }
}

/// Has `hook` called around every `fork` from now on, for ever. Waits for a fork that is on its way.
///
/// # Errors
/// If the system has no memory for the note.
///
/// # Safety
/// 1. `hook` is on no list. The code of this library stays loaded until the process ends.
pub unsafe fn hold_still(hook: &'static StillHook) -> io::Result<()> {
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
    unsafe { *hook.next.get() = FIRST.load(Ordering::Relaxed) };
    // ORDERING: Relaxed: read under the hooks' lock.
    FIRST.store(ptr::from_ref(hook).cast_mut(), Ordering::Relaxed);
    // SAFETY: held above.
    unsafe { threads::let_go_hooks() };
    Ok(())
}

/// Calls `visit` for each layer. The hooks are held.
fn for_each(mut visit: impl FnMut(&StillHook)) {
    // ORDERING: Relaxed: under the hooks' lock.
    let mut next = FIRST.load(Ordering::Relaxed).cast_const();
    // SAFETY: listed hooks are static.
    while let Some(hook) = unsafe { next.as_ref() } {
        visit(hook);
        // SAFETY: written before the hook was listed.
        next = unsafe { *hook.next.get() };
    }
}

extern "C" fn prepare() {
    threads::hold_hooks();
    // SAFETY: this thread forks, and the hooks say how (debt of `new`).
    for_each(|hook| unsafe { (hook.close)(hook.data) });
    let nr_slots = threads::hold_table();
    // SAFETY: as above, after `close`.
    for_each(|hook| unsafe { (hook.hold)(hook.data, nr_slots) });
    // ORDERING: Relaxed: read by this thread, or the one it is in the child.
    HELD.store(nr_slots + 1, Ordering::Relaxed);
}

fn after(is_child: bool) {
    // ORDERING: Relaxed: as in `prepare`.
    let held = HELD.swap(0, Ordering::Relaxed);
    // Zero: the handlers were noted in the middle of a fork.
    let Some(nr_slots) = held.checked_sub(1) else {
        return;
    };
    // SAFETY: as in `prepare`, after `hold`.
    for_each(|hook| unsafe { (hook.let_go)(hook.data, nr_slots, is_child) });
    // SAFETY: held since `prepare`. In the child another handler may have taken them over, and let go already: then this changes nothing.
    unsafe { threads::let_go() };
}

extern "C" fn parent() {
    after(false);
}

extern "C" fn child() {
    after(true);
}
