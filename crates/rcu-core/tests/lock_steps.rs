//! A signal handler comes between every two instructions of a biased lock's owner: the processor's trap flag sees to it.

#![cfg(all(
    feature = "std",
    target_os = "linux",
    target_arch = "x86_64",
    not(loom),
    not(miri)
))]

use rcu_core::cpu::{BiasedLock, LocalLock};
use rcu_core::fence;
use std::arch::asm;
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

struct World {
    lock: BiasedLock,
    value: UnsafeCell<[usize; 2]>,
    /// What the handler does.
    visits: bool,
    traps: AtomicUsize,
    refused: AtomicUsize,
    inside: AtomicUsize,
}

static WORLD: AtomicPtr<World> = AtomicPtr::new(std::ptr::null_mut());

impl World {
    fn new(visits: bool) -> Self {
        Self {
            lock: BiasedLock::new(),
            value: UnsafeCell::new([0; 2]),
            visits,
            traps: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
        }
    }

    /// # Safety
    /// 1. The caller is inside.
    unsafe fn bump(&self) {
        let both = self.value.get().cast::<usize>();
        // SAFETY: the first word, read inside (1).
        let first = unsafe { both.read_volatile() };
        // SAFETY: the second of two words.
        let other = unsafe { both.add(1) };
        // SAFETY: read inside.
        let second = unsafe { other.read_volatile() };
        assert_eq!(first, second, "somebody else is in");
        // SAFETY: written inside.
        unsafe { both.write_volatile(first + 1) };
        // SAFETY: written inside.
        unsafe { other.write_volatile(first + 1) };
        self.inside.fetch_add(1, Ordering::Relaxed);
    }

    #[inline(always)]
    fn own(&self) -> bool {
        // SAFETY: one thread, and its handler on top of it.
        let inside = unsafe { self.lock.try_enter() };
        if inside {
            // SAFETY: entered.
            unsafe { self.bump() };
            // SAFETY: entered above, once.
            unsafe { self.lock.leave() };
        }
        inside
    }

    fn try_visit(&self) -> bool {
        let inside = self.lock.try_visit();
        if inside {
            // SAFETY: entered.
            unsafe { self.bump() };
            // SAFETY: entered above, as a visitor, once.
            unsafe { self.lock.unvisit() };
        }
        inside
    }
}

extern "C" fn on_trap(_: libc::c_int) {
    let world = WORLD.load(Ordering::Relaxed);
    // SAFETY: set before the first trap, and it lives longer than the last.
    let world = unsafe { &*world };
    world.traps.fetch_add(1, Ordering::Relaxed);
    let inside = if world.visits {
        world.try_visit()
    } else {
        world.own()
    };
    if !inside {
        world.refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// Makes the processor trap after each instruction, or not any more.
#[inline(always)]
fn step(on: bool) {
    if on {
        // SAFETY: sets a flag for which there is a handler.
        unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
    } else {
        // SAFETY: takes it back.
        unsafe { asm!("pushfq", "and qword ptr [rsp], -0x101", "popfq") };
    }
}

/// Enters three times, from a lock that is new, without bias, or biased, as the handler leaves it.
fn entries(visits: bool) {
    let world = World::new(visits);
    WORLD.store((&raw const world).cast_mut(), Ordering::Relaxed);
    // SAFETY: an all-zero action is one without flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_trap as *const () as usize;
    // SAFETY: a handler that returns, touches what is `Sync` or its thread's own, and allocates nothing.
    let set = unsafe { libc::sigaction(libc::SIGTRAP, &raw const action, std::ptr::null_mut()) };
    assert_eq!(set, 0);
    let mut entered = 0;
    for _ in 0..3 {
        step(true);
        let inside = world.own();
        step(false);
        entered += usize::from(inside);
    }
    let [traps, refused, inside] =
        [&world.traps, &world.refused, &world.inside].map(|n| n.load(Ordering::Relaxed));
    assert!(traps > 30, "stepped {traps} times");
    assert!(
        refused > 0 && refused < traps,
        "the handler met both states"
    );
    assert_eq!(inside, entered + traps - refused);
    assert_eq!(world.value.into_inner(), [inside; 2]);
    assert_eq!(entered, 3, "what the handler does is over when it returns");
}

#[test]
fn p8_a_handler_between_any_two_instructions_of_the_owner() {
    // Lest the first entries all go without bias.
    fence::probe();
    entries(false);
    entries(true);
}
