//! `static_tree!` with every choice of its arguments.
#![cfg(all(feature = "std", not(loom)))]

use core::mem::offset_of;
use rcu_core::cpu::Threads;
use rcu_core::{Callback, GracePeriod, HasHead, Head, HeadOffset, Rcu, read_lock};
use rcu_tree::{CallbackConfig, StallConfig, StallReport, Tree};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const FEW: CallbackConfig = CallbackConfig::new().qhimark(200);

static FREED: AtomicUsize = AtomicUsize::new(0);
static STALLS: AtomicUsize = AtomicUsize::new(0);

/// An object without a callback of its own.
#[repr(C)]
struct Object {
    number: usize,
    head: Head,
}

// SAFETY: `offset_of!` of a field of type `Head`.
unsafe impl HasHead for Object {
    const OFFSET: HeadOffset = HeadOffset::from_bytes(offset_of!(Object, head));
}

/// # Safety
/// 1. `object` is a leaked box of an `Object`.
unsafe fn free(object: NonNull<u8>) {
    // SAFETY: the caller's debt.
    let object = unsafe { Box::from_raw(object.cast::<Object>().as_ptr()) };
    assert_eq!(object.number, 7);
    FREED.fetch_add(1, Ordering::Relaxed);
}

mod trees {
    use super::{FEW, free};
    use rcu_tree::StallConfig;

    rcu_tree::static_tree! { pub(crate) struct Plain; }
    rcu_tree::static_tree! { pub(crate) struct Callbacks, callbacks = FEW; }
    rcu_tree::static_tree! { pub(crate) struct Free, unsafe free = free; }
    rcu_tree::static_tree! { pub(crate) struct Stall, stall = StallConfig::never(); }
    rcu_tree::static_tree! { pub(crate) struct CallbacksFree, callbacks = FEW, unsafe free = super::free; }
    rcu_tree::static_tree! { pub(crate) struct CallbacksStall, callbacks = FEW, stall = StallConfig::never(); }
    rcu_tree::static_tree! { pub(crate) struct FreeStall, unsafe free = free, stall = StallConfig::never(); }
    rcu_tree::static_tree! {
        /// All of them.
        #[allow(dead_code)]
        pub(crate) struct All, callbacks = FEW, unsafe free = crate::free, stall = crate::TELLS;
    }
}

const TELLS: StallConfig = StallConfig::new().timeout(Duration::ZERO).report(tell);

fn tell(_: &StallReport<'_>) {
    STALLS.fetch_add(1, Ordering::Relaxed);
}

/// Queues objects to be freed, and waits until they are.
fn frees(rcu: &impl Rcu) {
    let before = FREED.load(Ordering::Relaxed);
    for _ in 0..10 {
        let object = NonNull::from(Box::leak(Box::new(Object {
            number: 7,
            head: Head::new(),
        })));
        // SAFETY: leaked just now.
        let head = unsafe { Object::head_of(object) };
        // SAFETY: an object that nobody else knows, and that `free` frees.
        unsafe { rcu.call(head, Callback::Free(Object::OFFSET)) };
    }
    rcu.barrier();
    assert_eq!(FREED.load(Ordering::Relaxed), before + 10);
}

/// # Safety
/// 1. `head` is a leaked box.
unsafe fn drop_head(head: NonNull<Head>) {
    // SAFETY: the caller's debt.
    drop(unsafe { Box::from_raw(head.as_ptr()) });
}

/// How many of 250 lazy callbacks are parked in the end.
fn parked(tree: &Tree<'_, Threads>) -> usize {
    for _ in 0..250 {
        let head = NonNull::from(Box::leak(Box::new(Head::new())));
        // SAFETY: leaked just now, freed by its callback only.
        unsafe { tree.call_lazy(head, Callback::Run(drop_head)) };
    }
    let parked = tree.lazy_count();
    tree.barrier();
    parked
}

#[test]
fn every_choice_of_arguments_makes_a_tree_that_does_as_they_say() {
    use trees::*;
    for tree in [
        Plain::tree(),
        Free::tree(),
        Stall::tree(),
        FreeStall::tree(),
    ] {
        assert_eq!(parked(tree), 250, "the default high mark is far");
    }
    for tree in [
        Callbacks::tree(),
        CallbacksFree::tree(),
        CallbacksStall::tree(),
        All::tree(),
    ] {
        assert!(parked(tree) <= 200, "the high mark flushes");
    }
    frees(&Free);
    frees(&CallbacksFree);
    frees(&FreeStall);
    frees(&All);

    let guard = read_lock::<All>();
    let cookie = All.start();
    while STALLS.load(Ordering::Relaxed) == 0 {
        All::tree().drive();
        All::tree().check_stalls();
    }
    assert!(!All.poll(cookie));
    drop(guard);
    All.wait(cookie);
    assert_eq!(format!("{All:?} {Plain:?}"), "All Plain");
}
