//! Models of this crate's ordering pairs. Each runs the real code, on loom's words.
//!
//! Mutants: `--cfg weaken="p8"`, `"p8_busy"`, `"p8_revoked"` must each make `p8_owner_vs_visitor` fail, and `"p8_push"`
//! `p8_head_stack_hand_over`.
//! Not shown: the asymmetry of `light` and `heavy`, which are full fences on both sides here.

#![cfg(loom)]

use core::ptr::NonNull;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use rcu_core::cpu::{BiasedLock, LocalLock, SpinLock};
use rcu_core::{Head, HeadStack};

/// A lock and what it guards, which loom watches.
struct Cell<L> {
    lock: L,
    value: UnsafeCell<usize>,
}

// SAFETY: the value is touched inside the lock only, which is what is tested.
unsafe impl<L: LocalLock> Sync for Cell<L> {}
// SAFETY: as above.
unsafe impl<L: LocalLock> Send for Cell<L> {}

impl<L: LocalLock> Cell<L> {
    fn bump(&self) {
        // SAFETY: inside the lock; loom fails if it is not so.
        self.value.with_mut(|value| unsafe { *value += 1 });
    }

    /// # Safety
    /// 1. The caller is the only owner.
    unsafe fn own(&self) -> usize {
        // SAFETY: the caller's debt 1.
        let inside = unsafe { self.lock.try_enter() };
        if inside {
            self.bump();
            // SAFETY: entered just now.
            unsafe { self.lock.leave() };
        }
        usize::from(inside)
    }

    fn visit(&self) -> usize {
        self.lock.visit();
        self.bump();
        // SAFETY: entered just now as a visitor.
        unsafe { self.lock.unvisit() };
        1
    }

    fn try_visit(&self) -> usize {
        let inside = self.lock.try_visit();
        if inside {
            self.bump();
            // SAFETY: entered just now as a visitor.
            unsafe { self.lock.unvisit() };
        }
        usize::from(inside)
    }
}

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(f);
}

fn cell<L>(lock: L) -> Arc<Cell<L>> {
    Arc::new(Cell {
        lock,
        value: UnsafeCell::new(0),
    })
}

fn total<L: LocalLock>(cell: &Cell<L>) -> usize {
    cell.lock.visit();
    // SAFETY: inside the lock.
    let value = cell.value.with(|value| unsafe { *value });
    // SAFETY: entered just now as a visitor.
    unsafe { cell.lock.unvisit() };
    value
}

#[test]
fn p8_owner_vs_visitor() {
    model(|| {
        let cell = cell(BiasedLock::new());
        let visitor = {
            let cell = cell.clone();
            thread::spawn(move || cell.visit())
        };
        // SAFETY: this thread is the only owner.
        let first = unsafe { cell.own() };
        // SAFETY: as above.
        let second = unsafe { cell.own() };
        let inside = first + second + visitor.join().unwrap();
        assert_eq!(total(&cell), inside);
    });
}

#[test]
fn p8_owner_vs_two_visitors() {
    model(|| {
        let cell = cell(BiasedLock::new());
        let visitors = [true, false].map(|waits| {
            let cell = cell.clone();
            thread::spawn(move || {
                if waits {
                    cell.visit()
                } else {
                    cell.try_visit()
                }
            })
        });
        // SAFETY: this thread is the only owner.
        let first = unsafe { cell.own() };
        let inside = first
            + visitors
                .into_iter()
                .map(|v| v.join().unwrap())
                .sum::<usize>();
        assert_eq!(total(&cell), inside);
    });
}

#[test]
fn p8_spin_lock_hand_over() {
    model(|| {
        let cell = cell(SpinLock::new());
        let visitor = {
            let cell = cell.clone();
            thread::spawn(move || cell.visit())
        };
        // SAFETY: this lock needs no owner.
        let first = unsafe { cell.own() };
        let inside = first + cell.try_visit() + visitor.join().unwrap();
        assert_eq!(total(&cell), inside);
    });
}

/// An object with its head in front, which loom watches.
#[repr(C)]
struct Object {
    head: Head,
    value: UnsafeCell<usize>,
}

// SAFETY: the value is touched by whoever has the object, which is what is tested.
unsafe impl Sync for Object {}
// SAFETY: as above.
unsafe impl Send for Object {}

/// P8 (hand-over): what two pushers did to their objects is seen by the taker, and each is taken once.
#[test]
fn p8_head_stack_hand_over() {
    model(|| {
        let objects: Arc<[Object; 2]> = Arc::new(core::array::from_fn(|_| Object {
            head: Head::new(),
            value: UnsafeCell::new(0),
        }));
        let stack = Arc::new(HeadStack::new());
        let pushers: Vec<_> = (0..2)
            .map(|i| {
                let (objects, stack) = (objects.clone(), stack.clone());
                thread::spawn(move || {
                    let object = &objects[i];
                    // SAFETY: this thread's own until it is pushed; loom fails if it is not so.
                    object.value.with_mut(|value| unsafe { *value = i + 1 });
                    // SAFETY: valid until the model's end, pushed once.
                    unsafe { stack.push(NonNull::from(object).cast()) };
                })
            })
            .collect();
        let (mut taken, mut sum) = (0, 0);
        // Taken before the pushers are joined, so that nothing but the stack orders the hand-over.
        while taken < 2 {
            let mut list = stack.take();
            while let Some(head) = list.pop_front() {
                // SAFETY: the head is the first field of an object that lives until the model's end.
                let object = unsafe { head.cast::<Object>().as_ref() };
                // SAFETY: handed over; loom fails if it is not so.
                sum += object.value.with(|value| unsafe { *value });
                taken += 1;
            }
            thread::yield_now();
        }
        for pusher in pushers {
            pusher.join().unwrap();
        }
        assert!(stack.take().is_empty());
        assert_eq!(sum, 3);
    });
}
