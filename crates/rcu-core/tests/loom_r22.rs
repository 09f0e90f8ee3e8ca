//! Models of reference counts, chains with nulls markers and deferred work. Each runs the real code, on loom's words.
//!
//! Mutants: `--cfg weaken="refcount"` must make `r22_get_vs_last_put` fail, `"nulls"`
//! `t23_a_reader_carried_off_starts_again`, `"p1_nulls"` `p1_a_reader_sees_what_a_link_leads_to`, `"p8_work"`
//! `p8_work_queue_vs_run`. What loom overlooks: see `loom.rs`.

#![cfg(loom)]

use core::ptr::NonNull;
use loom::cell::UnsafeCell;
use loom::model;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use rcu_core::manual::ManualGp;
use rcu_core::{Callback, Cookie, GracePeriod, Head, HeadStack, Rcu};
use rcu_core::{NullsHead, NullsLink, RcuWork, RefCount, Section, Visit};

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
