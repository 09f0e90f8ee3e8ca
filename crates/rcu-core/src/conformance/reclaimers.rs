//! What every [`Reclaimer`] must do.

use crate::boxed::{RcuBox, Reclaimer};
use crate::cell::RcuCell;
use crate::contract::{GracePeriod, Rcu};
use crate::guard::read_lock;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::vec::Vec;

/// Makes a module of tests for a [`Reclaimer`](crate::Reclaimer): a name, the type, and a function that brings back all
/// that was retired and is ripe (a barrier of the reclaimer's own, or nothing).
#[macro_export]
macro_rules! reclaimer_conformance {
    ($name:ident, $reclaimer:ty, $settle:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            #[test]
            fn retired_objects_outlive_their_readers() {
                $crate::conformance::retired_objects_outlive_their_readers::<$reclaimer>($settle);
            }

            #[test]
            fn objects_of_all_sizes_are_whole() {
                $crate::conformance::objects_of_all_sizes_are_whole::<$reclaimer>($settle);
            }

            #[test]
            fn owned_objects_are_freed_at_once() {
                $crate::conformance::owned_objects_are_freed_at_once::<$reclaimer>($settle);
            }
        }
    };
}

/// Counts its drops, and says whether its bytes are its own.
struct Counted {
    drops: Arc<AtomicUsize>,
    pattern: [usize; 5],
}

impl Counted {
    fn new(drops: &Arc<AtomicUsize>, n: usize) -> Self {
        Self {
            drops: drops.clone(),
            pattern: [n; 5],
        }
    }

    fn number(&self) -> usize {
        assert!(
            self.pattern.iter().all(|p| *p == self.pattern[0]),
            "somebody else's bytes"
        );
        self.pattern[0]
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.number();
        // ORDERING: Relaxed: a test's count; the waits around it order more.
        self.drops.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits until `drops` objects were dropped; a reclaimer frees them on its own, or in its domain's barrier.
fn await_drops<R: Reclaimer>(settle: &impl Fn(), drops: &AtomicUsize, expected: usize) {
    // ORDERING: Relaxed: a test's count; the waits around it order more.
    while drops.load(Ordering::Relaxed) < expected {
        settle();
        R::Domain::default().barrier();
        std::thread::yield_now();
    }
    // ORDERING: Relaxed: a test's count; the waits around it order more.
    assert_eq!(drops.load(Ordering::Relaxed), expected, "dropped twice");
}

/// Guarantees 1 and 2: values stay whole until a grace period after they were retired, and are dropped once.
#[doc(hidden)]
pub fn retired_objects_outlive_their_readers<R: Reclaimer>(settle: impl Fn()) {
    let drops = Arc::new(AtomicUsize::new(0));
    let n = if cfg!(miri) { 20 } else { 2_000 };
    let cells: Vec<RcuCell<RcuBox<Counted, R>>> = (0..n)
        .map(|i| RcuCell::new(RcuBox::new(Counted::new(&drops, i))))
        .collect();
    let guard = read_lock::<R::Domain>();
    let seen: Vec<&Counted> = cells.iter().filter_map(|c| c.load(&guard)).collect();
    for cell in &cells {
        cell.store(None);
    }
    for _ in 0..10 {
        R::Domain::default().drive();
    }
    for (i, counted) in seen.iter().enumerate() {
        assert_eq!(counted.number(), i);
    }
    // ORDERING: Relaxed: a test's count; the waits around it order more.
    assert_eq!(drops.load(Ordering::Relaxed), 0, "dropped under a reader");
    drop(guard);
    await_drops::<R>(&settle, &drops, n);
}

/// Values without a destructor, of many sizes and alignments.
#[doc(hidden)]
pub fn objects_of_all_sizes_are_whole<R: Reclaimer>(settle: impl Fn()) {
    #[repr(align(64))]
    #[derive(Clone, Copy)]
    struct Aligned([u8; 70]);

    fn round<R: Reclaimer, const N: usize>(byte: u8) -> RcuBox<[u8; N], R> {
        RcuBox::new([byte; N])
    }
    for byte in 0..if cfg!(miri) { 1 } else { 50 } {
        let (a, b, c) = (
            round::<R, 1>(byte),
            round::<R, 100>(byte),
            round::<R, 20_000>(byte),
        );
        let d: RcuBox<Aligned, R> = RcuBox::new(Aligned([byte; 70]));
        assert!((&raw const *d).addr().is_multiple_of(64));
        assert!(
            a.iter()
                .chain(b.iter())
                .chain(c.iter())
                .chain(d.0.iter())
                .all(|x| *x == byte)
        );
    }
    settle();
}

/// An object that is taken back is dropped at once, and once.
#[doc(hidden)]
pub fn owned_objects_are_freed_at_once<R: Reclaimer>(settle: impl Fn()) {
    let drops = Arc::new(AtomicUsize::new(0));
    for i in 0..100 {
        let cell = RcuCell::new(RcuBox::<_, R>::new(Counted::new(&drops, i)));
        let owned = cell.take().expect("it was just put there").wait();
        assert_eq!(owned.number(), i);
        drop(owned);
        // ORDERING: Relaxed: a test's count; the waits around it order more.
        assert_eq!(drops.load(Ordering::Relaxed), i + 1);
    }
    settle();
    // ORDERING: Relaxed: a test's count; the waits around it order more.
    assert_eq!(drops.load(Ordering::Relaxed), 100);
}
