//! Models of this crate's ordering pairs. Each runs the real code, on loom's words.
//!
//! Mutants: `--cfg weaken="p8"`, `"p8_busy"`, `"p8_revoked"` must each make `p8_owner_vs_visitor` fail, and `"p8_push"`
//! `p8_head_stack_hand_over`; `"refcount"` `r22_get_vs_last_put`; `"nulls"`
//! `t23_a_reader_carried_off_starts_again`; `"p1_nulls"` `p1_a_reader_sees_what_a_link_leads_to`;
//! `"p8_work"` `p8_work_queue_vs_run`.
//! Not shown: the asymmetry of `light` and `heavy`, which are full fences on both sides here.

#![cfg(loom)]

use core::ptr::NonNull;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use rcu_core::cpu::{BiasedLock, LocalLock, SpinLock};
use rcu_core::manual::ManualGp;
use rcu_core::{Callback, Cookie, GracePeriod, Head, HeadStack, Rcu};
use rcu_core::{NullsHead, NullsLink, RcuWork, RefCount, Section, Visit};

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

/// A counted object, which loom watches.
struct Counted {
    count: RefCount,
    value: UnsafeCell<usize>,
}

// SAFETY: the value is read by whoever has a reference and written by the last, which is what is tested.
unsafe impl Sync for Counted {}
// SAFETY: as above.
unsafe impl Send for Counted {}

impl Counted {
    /// Drops a reference; the last writes to the object, as its destructor would. Returns how many were the last.
    fn put(&self) -> usize {
        let last = self.count.put();
        if last {
            // SAFETY: alone with the object; loom fails if it is not so.
            self.value.with_mut(|value| unsafe { *value += 1 });
        }
        usize::from(last)
    }

    /// Takes a reference if there is one to be had, looks, and drops it.
    fn use_once(&self) -> usize {
        if !self.count.get() {
            return 0;
        }
        // SAFETY: a reference is held; loom fails if somebody writes.
        assert_eq!(
            self.value.with(|value| unsafe { *value }),
            0,
            "got after the last put"
        );
        self.put()
    }
}

/// R22: a `get` in the middle of the last `put` revives the object or fails; one `put` is the last.
#[test]
fn r22_get_vs_last_put() {
    model(|| {
        let object = Arc::new(Counted {
            count: RefCount::new(1),
            value: UnsafeCell::new(0),
        });
        let users: Vec<_> = (0..2)
            .map(|_| {
                let object = object.clone();
                thread::spawn(move || object.use_once())
            })
            .collect();
        let mut lasts = object.put();
        for user in users {
            lasts += user.join().unwrap();
        }
        assert_eq!(lasts, 1);
        assert!(!object.count.get());
    });
}

/// R22, T23: whoever gets a reference to an object that was made anew sees what it was made into, and a `get` that fails
/// harms no count that is reset meanwhile.
#[test]
fn r22_reset_vs_get() {
    model(|| {
        let object = Arc::new((RefCount::dead(), AtomicUsize::new(1)));
        let reader = {
            let object = object.clone();
            thread::spawn(move || {
                let got = object.0.get();
                if got {
                    assert_eq!(object.1.load(Ordering::Relaxed), 2, "the old identity");
                }
                got
            })
        };
        object.1.store(2, Ordering::Relaxed);
        object.0.reset(1);
        let got = reader.join().unwrap();
        assert_eq!(object.0.read(), 1 + u32::from(got));
    });
}

/// Nothing in these models is freed before their end.
struct Inside;

// SAFETY: as it says.
unsafe impl Section<()> for Inside {}

/// An object in type-stable memory, with something that loom watches.
#[repr(C)]
struct Keyed {
    link: NullsLink,
    key: AtomicUsize,
    made: UnsafeCell<usize>,
}

impl Keyed {
    fn new(key: usize) -> Self {
        Self {
            link: NullsLink::new(),
            key: AtomicUsize::new(key),
            made: UnsafeCell::new(0),
        }
    }
}

/// Two chains, numbered 0 and 1, and two objects, keyed 0 and 1.
struct Chains {
    heads: [NullsHead<()>; 2],
    objects: [Keyed; 2],
}

// SAFETY: links and keys are atomic; `made` is what is tested.
unsafe impl Sync for Chains {}
// SAFETY: as above.
unsafe impl Send for Chains {}

impl Chains {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            heads: core::array::from_fn(NullsHead::new),
            objects: core::array::from_fn(Keyed::new),
        })
    }

    fn add(&self, chain: usize, object: usize) {
        // SAFETY: one thread of each model writes; everything stays where it is until the model's end.
        unsafe { self.heads[chain].add_head(NonNull::from(&self.objects[object]).cast()) };
    }

    fn del(&self, object: usize) {
        // SAFETY: as above.
        unsafe { self.objects[object].link.del() };
    }
}

fn keyed<'a>(link: NonNull<NullsLink>) -> &'a Keyed {
    // SAFETY: the link is the first field of an object that lives to the model's end.
    unsafe { link.cast().as_ref() }
}

/// T23: while another object moves to the other chain, under the reader maybe, what stays is found.
#[test]
fn t23_a_reader_carried_off_starts_again() {
    model(|| {
        let chains = Chains::new();
        chains.add(0, 1);
        chains.add(0, 0);
        let reader = {
            let chains = chains.clone();
            thread::spawn(move || {
                let found = chains.heads[0].lookup(&Inside, 0, |link| {
                    if keyed(link).key.load(Ordering::Relaxed) == 1 {
                        Visit::Found(())
                    } else {
                        Visit::Next
                    }
                });
                assert!(found.is_some(), "missed");
            })
        };
        chains.del(0);
        chains.objects[0].key.store(7, Ordering::Relaxed);
        chains.add(1, 0);
        reader.join().unwrap();
    });
}

/// P1: a reader who stands on an object that is put into another chain sees what that chain's objects were made into,
/// though it never read that chain's head.
#[test]
fn p1_a_reader_sees_what_a_link_leads_to() {
    model(|| {
        let chains = Chains::new();
        chains.add(0, 0);
        let reader = {
            let chains = chains.clone();
            thread::spawn(move || {
                for link in chains.heads[0].walk(&Inside) {
                    let object = keyed(link);
                    if object.key.load(Ordering::Relaxed) == 1 {
                        // SAFETY: written before it was published; loom fails if it is not so.
                        assert_eq!(object.made.with(|made| unsafe { *made }), 9);
                    }
                }
            })
        };
        // SAFETY: not published yet; loom fails if it is not so.
        chains.objects[1].made.with_mut(|made| unsafe { *made = 9 });
        chains.add(1, 1);
        chains.del(0);
        chains.add(1, 0);
        reader.join().unwrap();
    });
}

/// An RCU without readers, whose callbacks run when somebody calls `run`.
#[derive(Default)]
struct Deferred {
    gp: ManualGp,
    callbacks: HeadStack,
}

impl Deferred {
    fn run(&self) {
        let mut ready = self.callbacks.take();
        while let Some(head) = ready.pop_front() {
            // SAFETY: queued heads live to the model's end.
            if let Callback::Run(func) = unsafe { head.as_ref() }.callback() {
                // SAFETY: there are no readers.
                unsafe { func(head) };
            }
        }
    }
}

// SAFETY: that of `ManualGp`.
unsafe impl GracePeriod for Deferred {
    fn snapshot(&self) -> Cookie {
        self.gp.snapshot()
    }

    fn start(&self) -> Cookie {
        self.gp.start()
    }

    fn poll(&self, cookie: Cookie) -> bool {
        self.gp.poll(cookie)
    }

    fn wait(&self, cookie: Cookie) {
        self.gp.wait(cookie);
    }

    fn drive(&self) -> bool {
        self.gp.drive()
    }

    fn grace_periods(&self) -> usize {
        self.gp.grace_periods()
    }
}

// SAFETY: there are no readers, so a callback may run at any time.
unsafe impl Rcu for Deferred {
    type Token = ();

    fn enter(&self) {}

    unsafe fn exit(&self, (): ()) {}

    unsafe fn call(&self, head: NonNull<Head>, callback: Callback) {
        // SAFETY: the head is valid (debt 1).
        if unsafe { head.as_ref() }.begin_call(callback) {
            // SAFETY: the caller's debts.
            unsafe { self.callbacks.push(head) };
        }
    }

    fn barrier(&self) {
        self.run();
    }
}

/// R19: a work that is queued while it runs, or is about to, runs again, or the run sees what was done before; it never
/// runs twice at once, and its head is never queued twice.
#[test]
fn p8_work_queue_vs_run() {
    /// Set by who queues; what a run saw; watched: one run at a time.
    struct Data {
        set: [AtomicUsize; 2],
        seen: UnsafeCell<[usize; 2]>,
    }
    // SAFETY: `seen` is touched by the runner only, which is what is tested.
    unsafe impl Sync for Data {}
    fn run(work: &'static RcuWork<Data>) {
        let data = work.data();
        let now = [0, 1].map(|i| data.set[i].load(Ordering::Relaxed));
        // SAFETY: one run at a time; loom fails if it is not so.
        data.seen.with_mut(|seen| unsafe { *seen = now });
    }
    model(|| {
        let data = Data {
            set: Default::default(),
            seen: UnsafeCell::new([0, 0]),
        };
        let work: *mut RcuWork<Data> = Box::into_raw(Box::new(RcuWork::new(data, run)));
        // SAFETY: lives to the model's end, which is when nobody uses it.
        let work: &'static RcuWork<Data> = unsafe { &*work };
        let rcu = Arc::new(Deferred::default());
        let queuer = {
            let rcu = rcu.clone();
            thread::spawn(move || {
                work.data().set[1].store(1, Ordering::Relaxed);
                let _ = work.queue(&*rcu);
                rcu.run();
            })
        };
        work.data().set[0].store(1, Ordering::Relaxed);
        let _ = work.queue(&*rcu);
        rcu.run();
        queuer.join().unwrap();
        rcu.run();
        assert!(!work.is_pending());
        // SAFETY: nothing runs any more.
        let seen = work.data().seen.with(|seen| unsafe { *seen });
        assert_eq!(seen, [1, 1], "a queueing that no run has seen");
        // SAFETY: made above; nobody uses it any more.
        drop(unsafe { Box::from_raw(core::ptr::from_ref(work).cast_mut()) });
    });
}
