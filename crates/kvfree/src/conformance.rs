//! What every [`Objects`] and [`DeferFree`] must do, as tests for whoever implements one.
//!
//! Each macro makes a module of `#[test]`s from an expression that gives a fresh [`Rig`], evaluated once in every test.
//!
//! ```
//! use core::ptr::NonNull;
//! use kvfree::conformance::Rig;
//!
//! /// The default stack. It is shared, so its rig counts the objects of this test only by what it can see.
//! struct Stack;
//!
//! // SAFETY: `kmalloc`'s memory is the caller's until freed; sections are those that the stack waits for.
//! unsafe impl Rig for Stack {
//!     type Tested = kvfree::stack::Front;
//!     fn tested(&self) -> &Self::Tested {
//!         kvfree::front()
//!     }
//!     fn alloc(&self, size_bytes: usize) -> NonNull<u8> {
//!         let layout = core::alloc::Layout::from_size_align(size_bytes, 8).unwrap();
//!         kvfree::objects().kmalloc(layout).unwrap()
//!     }
//!     fn outstanding(&self) -> Option<usize> {
//!         None
//!     }
//!     fn in_section(&self, f: &mut dyn FnMut()) {
//!         let _guard = kvfree::read_lock();
//!         f();
//!     }
//! }
//!
//! kvfree::defer_free_conformance!(default_stack, Stack);
//! ```

use crate::objects::{DeferFree, Objects};
use core::ptr::NonNull;
use rcu_core::{Head, HeadOffset};
use std::vec::Vec;

/// What the tests need beside the value under test.
///
/// # Safety
/// An implementer keeps the guarantees below.
///
/// # Guarantees
/// 1. `alloc` gives memory of `size_bytes`, aligned to a word, from the allocator under test (or below the front end
///    under test), which is the caller's until it is freed.
/// 2. Sections of `in_section` are those that retired objects wait for.
pub unsafe trait Rig {
    /// The type under test.
    type Tested;

    /// The value under test.
    fn tested(&self) -> &Self::Tested;

    /// Fresh memory.
    fn alloc(&self, size_bytes: usize) -> NonNull<u8>;

    /// Objects of `alloc` that are not free yet, retired ones included; `None` if nobody counts them.
    fn outstanding(&self) -> Option<usize>;

    /// Runs `f` inside a section.
    fn in_section(&self, f: &mut dyn FnMut());
}

/// Makes a module of tests for an [`Objects`](crate::Objects): a name and a fresh [`Rig`](crate::conformance::Rig).
#[macro_export]
macro_rules! objects_conformance {
    ($name:ident, $make:expr) => {
        $crate::__conformance!(
            $name,
            $make,
            [
                bulk_frees_every_object_once,
                objects_are_as_large_as_asked_for,
                deferred_objects_are_free_after_the_barrier,
                deferred_objects_wait_for_readers,
                reaping_ends,
                barrier_of_no_objects_returns,
            ]
        );
    };
}

/// Makes a module of tests for a [`DeferFree`](crate::DeferFree): a name and a fresh [`Rig`](crate::conformance::Rig), and after
/// `threads:` the same for a front end that threads may share.
#[macro_export]
macro_rules! defer_free_conformance {
    ($name:ident, $make:expr) => {
        $crate::__conformance!(
            $name,
            $make,
            [
                barrier_of_nothing_returns,
                retired_objects_are_free_after_the_barrier,
                k1_heads_may_lie_anywhere,
                k3_objects_without_a_head,
                k5_more_than_a_block,
                retired_objects_wait_for_readers,
                k2_retired_inside_a_section,
            ]
        );
    };
    ($name:ident, threads: $make:expr) => {
        $crate::__conformance!(
            $name,
            $make,
            [threads_come_and_go_and_the_barrier_covers_all]
        );
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance {
    ($name:ident, $make:expr, [$($test:ident),* $(,)?]) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            $(
                #[test]
                fn $test() {
                    $crate::conformance::$test(&$make);
                }
            )*
        }
    };
}

/// Sizes of all kinds: classes, between classes, and pages.
const SIZES: [usize; 8] = [32, 40, 64, 100, 500, 4096, 9000, 70_000];

/// Objects that a test fills with a pattern.
#[derive(Clone, Copy)]
struct Object {
    at: NonNull<u8>,
    size: usize,
}

// SAFETY: memory that is the holder's.
unsafe impl Send for Object {}

impl Object {
    fn new(rig: &impl Rig, size: usize) -> Self {
        let at = rig.alloc(size);
        // SAFETY: fresh memory of this size (guarantee 1 of `Rig`).
        unsafe { at.write_bytes(0x5a, size) };
        Self { at, size }
    }

    /// A head at so many bytes.
    fn head(self, offset: HeadOffset) -> NonNull<Head> {
        assert!(offset.bytes() + size_of::<Head>() <= self.size);
        // SAFETY: inside of the object.
        let head = unsafe { self.at.add(offset.bytes()) }.cast::<Head>();
        // SAFETY: aligned to a word, as object and offset are.
        unsafe { head.write(Head::new()) };
        head
    }

    /// Checks the object but for a head at its front.
    fn check(self) {
        for i in (size_of::<Head>()..self.size).step_by(self.size / 16 + 1) {
            // SAFETY: inside of the object.
            let byte = unsafe { self.at.add(i) };
            // SAFETY: not free yet, and filled by `new`.
            let byte = unsafe { byte.read() };
            assert_eq!(byte, 0x5a, "byte {i} of {} was written to", self.size);
        }
    }

    fn retire(self, front: &impl DeferFree) {
        self.retire_at(front, HeadOffset::from_bytes(0));
    }

    fn retire_at(self, front: &impl DeferFree, offset: HeadOffset) {
        // SAFETY: the object and a head in it, which only this test knows.
        unsafe { front.retire(self.head(offset), offset) };
    }

    fn retire_mightsleep(self, front: &impl DeferFree) {
        // SAFETY: only this test knows the object.
        unsafe { front.retire_mightsleep(self.at) };
    }
}

fn expect_outstanding(rig: &impl Rig, expected: usize) {
    if let Some(outstanding) = rig.outstanding() {
        assert_eq!(outstanding, expected, "objects that are not free");
    }
}

fn objects(rig: &impl Rig, count: usize) -> Vec<Object> {
    (0..count)
        .map(|i| Object::new(rig, SIZES[i % SIZES.len()]))
        .collect()
}

/// Offers objects; frees those that come back. Says how many were taken.
fn offer<R: Rig<Tested: Objects>>(rig: &R, objects: &[Object]) -> usize {
    let mut taken = 0;
    for object in objects {
        // SAFETY: only this test knows the object.
        if unsafe { rig.tested().try_defer(object.at) } {
            taken += 1;
        } else {
            // SAFETY: as above; it was not taken.
            unsafe { rig.tested().free_bulk(&mut [object.at]) };
        }
    }
    taken
}

/// Guarantee 2 of `Objects`.
#[doc(hidden)]
pub fn bulk_frees_every_object_once<R: Rig<Tested: Objects>>(rig: &R) {
    for count in [0, 1, 2, 7, 64, 300] {
        let kept = Object::new(rig, 64);
        let mut all: Vec<_> = objects(rig, count).iter().map(|o| o.at).collect();
        // SAFETY: only this test knows the objects.
        unsafe { rig.tested().free_bulk(&mut all) };
        expect_outstanding(rig, 1);
        kept.check();
        // SAFETY: as above.
        unsafe { rig.tested().free_bulk(&mut [kept.at]) };
        expect_outstanding(rig, 0);
    }
}

/// What the front end weighs.
#[doc(hidden)]
pub fn objects_are_as_large_as_asked_for<R: Rig<Tested: Objects>>(rig: &R) {
    let all = objects(rig, 3 * SIZES.len());
    for object in &all {
        assert!(rig.tested().size_bytes(object.at) >= object.size);
    }
    let mut all: Vec<_> = all.iter().map(|o| o.at).collect();
    // SAFETY: only this test knows the objects.
    unsafe { rig.tested().free_bulk(&mut all) };
}

/// Guarantees 1 and 3 of `Objects`.
#[doc(hidden)]
pub fn deferred_objects_are_free_after_the_barrier<R: Rig<Tested: Objects>>(rig: &R) {
    for count in [1, 20, 1200] {
        offer(rig, &objects(rig, count));
        rig.tested().barrier();
        expect_outstanding(rig, 0);
    }
}

/// Guarantee 1 of `Objects`.
#[doc(hidden)]
pub fn deferred_objects_wait_for_readers<R: Rig<Tested: Objects>>(rig: &R) {
    rig.in_section(&mut || {
        let mut seen = Vec::new();
        for object in objects(rig, 40) {
            // SAFETY: only this test knows the object.
            if unsafe { rig.tested().try_defer(object.at) } {
                seen.push(object);
            } else {
                // SAFETY: as above; it was not taken, and is not looked at any more.
                unsafe { rig.tested().free_bulk(&mut [object.at]) };
            }
        }
        for _ in 0..5 {
            rig.tested().reap();
            // Memory that was freed too early is found here, and overwritten.
            let mut fresh = Vec::new();
            for object in objects(rig, 40) {
                // SAFETY: fresh memory of this size.
                unsafe { object.at.write_bytes(0xff, object.size) };
                fresh.push(object.at);
            }
            seen.iter().for_each(|object| object.check());
            // SAFETY: only this test knows the objects.
            unsafe { rig.tested().free_bulk(&mut fresh) };
        }
    });
    rig.tested().barrier();
    expect_outstanding(rig, 0);
}

/// What the monitor relies on: called often enough, `reap` leaves nothing.
#[doc(hidden)]
pub fn reaping_ends<R: Rig<Tested: Objects>>(rig: &R) {
    offer(rig, &objects(rig, 700));
    while rig.tested().reap() > 0 {
        std::thread::yield_now();
    }
    expect_outstanding(rig, 0);
}

/// Before anything, and after everything.
#[doc(hidden)]
pub fn barrier_of_no_objects_returns<R: Rig<Tested: Objects>>(rig: &R) {
    rig.tested().barrier();
    assert_eq!(rig.tested().reap(), 0);
    offer(rig, &objects(rig, 3));
    rig.tested().barrier();
    rig.tested().barrier();
    assert_eq!(rig.tested().reap(), 0);
}

/// Before anything, and after everything.
#[doc(hidden)]
pub fn barrier_of_nothing_returns<R: Rig<Tested: DeferFree>>(rig: &R) {
    rig.tested().barrier();
    Object::new(rig, 64).retire(rig.tested());
    rig.tested().barrier();
    rig.tested().barrier();
    expect_outstanding(rig, 0);
}

/// Guarantees 1 and 3 of `DeferFree`.
#[doc(hidden)]
pub fn retired_objects_are_free_after_the_barrier<R: Rig<Tested: DeferFree>>(rig: &R) {
    for count in [1, 2, 50, 700] {
        let kept = Object::new(rig, 64);
        for object in objects(rig, count) {
            object.retire(rig.tested());
        }
        rig.tested().barrier();
        expect_outstanding(rig, 1);
        kept.check();
        kept.retire(rig.tested());
        rig.tested().barrier();
        expect_outstanding(rig, 0);
    }
}

/// K1.
#[doc(hidden)]
pub fn k1_heads_may_lie_anywhere<R: Rig<Tested: DeferFree>>(rig: &R) {
    for words in [0, 1, 2, 5, 100, rcu_core::MAX_OFFSET_WORDS - 1] {
        let offset = HeadOffset::from_bytes(words * size_of::<usize>());
        for _ in 0..10 {
            Object::new(rig, offset.bytes() + size_of::<Head>()).retire_at(rig.tested(), offset);
        }
    }
    rig.tested().barrier();
    expect_outstanding(rig, 0);
}

/// K3.
#[doc(hidden)]
pub fn k3_objects_without_a_head<R: Rig<Tested: DeferFree>>(rig: &R) {
    for (i, object) in objects(rig, 60).into_iter().enumerate() {
        if i % 3 == 0 {
            object.retire(rig.tested());
        } else {
            object.retire_mightsleep(rig.tested());
        }
    }
    Object::new(rig, 8).retire_mightsleep(rig.tested());
    rig.tested().barrier();
    expect_outstanding(rig, 0);
}

/// K5, K9.
#[doc(hidden)]
pub fn k5_more_than_a_block<R: Rig<Tested: DeferFree>>(rig: &R) {
    const COUNT: usize = if cfg!(miri) { 600 } else { 20_000 };
    for _ in 0..COUNT {
        Object::new(rig, 64).retire(rig.tested());
    }
    rig.tested().barrier();
    expect_outstanding(rig, 0);
}

/// Guarantee 1 of `DeferFree`.
#[doc(hidden)]
pub fn retired_objects_wait_for_readers<R: Rig<Tested: DeferFree>>(rig: &R) {
    let seen = objects(rig, 40);
    rig.in_section(&mut || {
        seen.iter().for_each(|object| object.retire(rig.tested()));
        for _ in 0..5 {
            // Memory that was freed too early is found here, and overwritten.
            for object in objects(rig, 40) {
                // SAFETY: fresh memory of this size.
                unsafe { object.at.write_bytes(0xff, object.size) };
                object.retire(rig.tested());
            }
            seen.iter().for_each(|object| object.check());
        }
    });
    rig.tested().barrier();
    expect_outstanding(rig, 0);
}

/// K2, as far as a thread can tell.
#[doc(hidden)]
pub fn k2_retired_inside_a_section<R: Rig<Tested: DeferFree>>(rig: &R) {
    for _ in 0..20 {
        rig.in_section(&mut || {
            for object in objects(rig, 100) {
                object.retire(rig.tested());
                object.check();
            }
        });
    }
    rig.tested().barrier();
    expect_outstanding(rig, 0);
}

/// Guarantee 3 of `DeferFree`: on slots that are no more.
#[doc(hidden)]
pub fn threads_come_and_go_and_the_barrier_covers_all<R: Rig<Tested: DeferFree> + Sync>(rig: &R) {
    const THREADS: usize = 4;
    for round in 0..3 {
        std::thread::scope(|s| {
            let threads: Vec<_> = (0..THREADS)
                .map(|t| {
                    s.spawn(move || {
                        for (i, object) in objects(rig, 150).into_iter().enumerate() {
                            match (i + t) % 4 {
                                0 => object.retire_mightsleep(rig.tested()),
                                1 => rig.in_section(&mut || object.retire(rig.tested())),
                                _ => object.retire(rig.tested()),
                            }
                        }
                        if t == round {
                            rig.tested().barrier();
                        }
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
        });
        rig.tested().barrier();
        expect_outstanding(rig, 0);
    }
}
