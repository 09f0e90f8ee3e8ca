//! `RcuCell`, `RcuBox`, `Retired` and `Owned` over a real tree.
#![cfg(all(feature = "std", not(loom)))]

#[path = "common/reclaimer.rs"]
mod reclaimer;

use rcu_core::{Rcu, RcuBox, RcuCell, read_lock};
use reclaimer::{Boxes, Readers};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

type Bx<T> = RcuBox<T, Boxes>;

/// Counts its drops, and turns invalid when dropped.
#[derive(Debug)]
struct Counted {
    drops: Arc<AtomicUsize>,
    valid: AtomicBool,
    value: usize,
}

impl Counted {
    fn new(drops: &Arc<AtomicUsize>, value: usize) -> Self {
        Self {
            drops: drops.clone(),
            valid: AtomicBool::new(true),
            value,
        }
    }

    fn get(&self) -> usize {
        assert!(self.valid.load(Ordering::Relaxed), "dropped under a reader");
        self.value
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.valid.store(false, Ordering::Relaxed);
        self.drops.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn r2_a_reader_keeps_what_it_loaded() {
    let drops = Arc::new(AtomicUsize::new(0));
    let cell = RcuCell::new(Bx::new(Counted::new(&drops, 1)));
    let guard = read_lock::<Readers>();
    let first = cell.load(&guard).unwrap();
    cell.store(Some(Bx::new(Counted::new(&drops, 2))));
    assert_eq!((first.get(), cell.load(&guard).unwrap().get()), (1, 2));
    drop(guard);
    Readers.barrier();
    assert_eq!(drops.load(Ordering::Relaxed), 1);
    drop(cell);
    Readers.barrier();
    assert_eq!(drops.load(Ordering::Relaxed), 2);
}

#[test]
fn retired_gives_the_object_back_after_its_grace_period_and_not_before() {
    let drops = Arc::new(AtomicUsize::new(0));
    let cell = RcuCell::new(Bx::new(Counted::new(&drops, 1)));
    let guard = read_lock::<Readers>();
    let retired = cell.take().unwrap();
    let retired = retired.try_take().unwrap_err();
    assert!(cell.is_none() && !retired.is_ripe());
    drop(guard);
    let mut owned = retired.wait();
    owned.value = 7;
    cell.store(Some(owned.into_pointer()));
    assert_eq!(cell.load(&read_lock::<Readers>()).unwrap().get(), 7);
    let owned = cell.take().unwrap().wait();
    drop(owned);
    assert_eq!(
        drops.load(Ordering::Relaxed),
        1,
        "an owned object is dropped at once"
    );
}

#[test]
fn compare_exchange_gives_the_new_pointer_back() {
    let drops = Arc::new(AtomicUsize::new(0));
    let cell = RcuCell::new(Bx::new(Counted::new(&drops, 1)));
    let guard = read_lock::<Readers>();
    let stale = cell.load(&guard);
    cell.store(Some(Bx::new(Counted::new(&drops, 2))));
    let failed = cell.compare_exchange(stale, Some(Bx::new(Counted::new(&drops, 3))), &guard);
    let failed = failed.unwrap_err();
    assert_eq!(
        (
            failed.current.unwrap().get(),
            failed.new.as_ref().unwrap().get()
        ),
        (2, 3)
    );
    let done = cell.compare_exchange(failed.current, failed.new, &guard);
    assert!(!done.unwrap().unwrap().is_ripe());
    assert_eq!(cell.load(&guard).unwrap().get(), 3);
    let empty = RcuCell::<Bx<Counted>>::empty();
    assert!(
        empty
            .compare_exchange(None, None, &guard)
            .unwrap()
            .is_none()
    );
}

#[test]
fn updates_of_many_threads_are_all_counted() {
    let cell = RcuCell::new(Bx::new(0usize));
    let n = if cfg!(miri) { 20 } else { 5_000 };
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                for _ in 0..n {
                    let guard = read_lock::<Readers>();
                    drop(cell.update(&guard, |v| Bx::new(v + 1)));
                }
            });
        }
    });
    assert_eq!(*cell.load(&read_lock::<Readers>()).unwrap(), 3 * n);
}

#[test]
fn a_box_may_be_dropped_under_a_reader() {
    let drops = Arc::new(AtomicUsize::new(0));
    let boxed = Bx::new(Counted::new(&drops, 5));
    let guard = read_lock::<Readers>();
    let seen = boxed.rcu_ref(&guard);
    drop(boxed);
    assert_eq!(seen.get(), 5);
    drop(guard);
    Readers.barrier();
    assert_eq!(drops.load(Ordering::Relaxed), 1);
}

#[test]
fn formatting_looks_at_no_object_without_a_guard() {
    let cell = RcuCell::new(Bx::new(1u8));
    assert_eq!(format!("{cell:?}"), "RcuCell { is_none: false }");
    assert_eq!(format!("{:?} {}", Bx::new(3u8), Bx::new(4u8)), "3 4");
}

rcu_core::reclaimer_conformance!(boxes, Boxes, || ());
