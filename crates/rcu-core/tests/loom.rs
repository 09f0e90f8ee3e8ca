//! Models of this crate's ordering pairs. Each runs the real code, on loom's words.
//!
//! Mutants: `--cfg weaken="p8"`, `"p8_bias"`, `"p8_biased"`, `"p8_busy"`, `"p8_heavy"`, `"p8_revoked"` must each make
//! `p8_owner_vs_visitor` fail, `"p8_push"` `p8_head_stack_hand_over`, `"p1"` `p1_publish_vs_load`, `"p1_exchange"` `p1_exchange_vs_load`, `"t38"`
//! `t38_numbering_vs_grace_periods`.
//!
//! Not shown:
//! - the asymmetry of `light` and `heavy`, which are full fences on both sides here, that of a biased owner included (an
//!   owner without bias runs the one of its slow entry only);
//! - P1: a load that orders by address dependency only (the load is an Acquire), and freeing (the model's objects live
//!   to its end; P2 to P5 are rcu-tree's);
//! - T38: more than three starts and ends at once (the enumeration in `prop.rs` has more);
//! - what loom overlooks: it compares an access with the *last* one of its word only, so a thread that loads a word and
//!   then exchanges it hides the loads of others before its own. So the exchanging side comes first in the models of P1
//!   and T38, in the main thread, and the loading side is what is spawned.

#![cfg(loom)]

use core::ptr::NonNull;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use rcu_core::cpu::{BiasedLock, LocalLock, SpinLock};
use rcu_core::{
    Callback, Cookie, Domain, GracePeriod, Head, HeadStack, Rcu, RcuCell, RcuPointer, SegList, Seq,
    fence, read_lock,
};

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

/// A domain in which nothing is ever freed, so that guards have nothing to do.
#[derive(Clone, Copy, Debug, Default)]
struct Immortal;

// SAFETY: nothing that is protected by this domain is freed before its model ends.
unsafe impl GracePeriod for Immortal {
    fn snapshot(&self) -> Cookie {
        Cookie::COMPLETED
    }
    fn start(&self) -> Cookie {
        Cookie::COMPLETED
    }
    fn poll(&self, _: Cookie) -> bool {
        true
    }
    fn wait(&self, _: Cookie) {}
    fn drive(&self) -> bool {
        false
    }
    fn grace_periods(&self) -> usize {
        0
    }
}

// SAFETY: as above; no callback is queued.
unsafe impl Rcu for Immortal {
    type Token = ();
    fn enter(&self) {}
    unsafe fn exit(&self, (): ()) {}
    unsafe fn call(&self, _: NonNull<Head>, _: Callback) {
        unreachable!("nothing is retired by head");
    }
    fn barrier(&self) {}
}

// SAFETY: it has no state.
unsafe impl Domain for Immortal {}

/// A pointer to an object that its model owns.
struct Borrowed(NonNull<Object>);

// SAFETY: what is shared is the object, which is `Sync`.
unsafe impl Send for Borrowed {}
// SAFETY: as above.
unsafe impl Sync for Borrowed {}

// SAFETY: the pointer is a number that owns nothing; the object outlives the model's threads.
unsafe impl RcuPointer for Borrowed {
    type Target = Object;
    type Domain = Immortal;

    fn into_raw(self) -> NonNull<Object> {
        self.0
    }

    unsafe fn from_raw(raw: NonNull<Object>) -> Self {
        Self(raw)
    }

    unsafe fn drop_now(_: NonNull<Object>) {}
}

/// A writer builds an object and publishes it by `publish`; whoever loads it reads what was built.
fn publish_vs_load(publish: impl Fn(&RcuCell<Borrowed>, Borrowed) + Copy + Send + Sync + 'static) {
    model(move || {
        let objects: Arc<[Object; 2]> = Arc::new(core::array::from_fn(|_| Object {
            head: Head::new(),
            value: UnsafeCell::new(0),
        }));
        let cell = Arc::new(RcuCell::<Borrowed>::empty());
        let reader = thread::spawn({
            let (objects, cell) = (objects.clone(), cell.clone());
            move || {
                let mut seen = 0;
                for _ in 0..2 {
                    let guard = read_lock::<Immortal>();
                    if let Some(object) = cell.load(&guard) {
                        // SAFETY: published, and written by nobody since; loom fails if it is not so.
                        let value = object.value.with(|value| unsafe { *value });
                        assert!(value > 0 && value >= seen, "an older object than before");
                        seen = value;
                    }
                }
                drop(objects);
            }
        });
        for (i, object) in objects.iter().enumerate() {
            // SAFETY: this thread's own until it is published; loom fails if it is not so.
            object.value.with_mut(|value| unsafe { *value = i + 1 });
            publish(&cell, Borrowed(NonNull::from(object)));
        }
        reader.join().unwrap();
        drop(cell.take());
    });
}

/// P1: the pointer is not seen before the object.
#[test]
fn p1_publish_vs_load() {
    publish_vs_load(|cell, new| cell.store(Some(new)));
}

/// P1, by compare-exchange, whose failure is a load as well.
#[test]
fn p1_exchange_vs_load() {
    publish_vs_load(|cell, new| {
        let guard = read_lock::<Immortal>();
        let current = cell.load(&guard);
        assert!(cell.compare_exchange(current, Some(new), &guard).is_ok());
    });
}

/// T38: three callbacks are queued and numbered while grace periods start and end elsewhere; whatever comes between the
/// steps, none is left without a number.
#[test]
fn t38_numbering_vs_grace_periods() {
    model(|| {
        let seq = Arc::new(AtomicUsize::new(Seq::INITIAL.raw()));
        let slot = thread::spawn({
            let seq = seq.clone();
            move || {
                let now = || Seq::from_raw(seq.load(Ordering::Acquire));
                let snapshot = || {
                    fence::full();
                    now().snapshot()
                };
                let heads: [Head; 3] = core::array::from_fn(|_| Head::new());
                let mut list = SegList::new();
                for head in &heads {
                    // SAFETY: the head outlives the list, is on no other, and stays on this thread.
                    unsafe { list.enqueue(NonNull::from(head)) };
                    let waits = list.number(snapshot, now);
                    assert!(!list.has_unnumbered(), "left behind");
                    assert!(waits.is_none_or(|cookie| list.last_cookie() == Some(cookie)));
                }
            }
        });
        // The driver stores only, as the machine does under its lock.
        let mut now = Seq::INITIAL;
        for _ in 0..3 {
            now = if now.in_progress() {
                now.ended()
            } else {
                now.started()
            };
            seq.store(now.raw(), Ordering::Release);
        }
        slot.join().unwrap();
    });
}
