//! R19: deferred work over an RCU that runs callbacks when the test says so.

#![cfg(all(feature = "std", not(loom)))]

mod exact;

use exact::Exact;
use rcu_core::{Inline, Rcu, RcuWork, ReadyWork, WorkList, WorkQueue, read_lock};
use std::panic::catch_unwind;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

fn count(work: &RcuWork<AtomicUsize, impl WorkQueue>) {
    work.data().fetch_add(1, Ordering::Relaxed);
}

fn runs<Q>(work: &RcuWork<AtomicUsize, Q>) -> usize {
    work.data().load(Ordering::Relaxed)
}

#[test]
fn r19_runs_once_after_a_grace_period() {
    let work = leak(RcuWork::new(AtomicUsize::new(0), count));
    let guard = read_lock::<Exact>();
    assert!(!work.is_pending());
    assert!(work.queue(&Exact));
    Exact::reclaim();
    assert_eq!(
        (runs(work), work.is_pending()),
        (0, true),
        "a reader is inside"
    );
    drop(guard);
    Exact::reclaim();
    Exact::reclaim();
    assert_eq!((runs(work), work.is_pending()), (1, false));
    assert!(work.queue(&Exact), "again");
    assert!(work.flush(&Exact));
    assert_eq!(runs(work), 2);
    assert!(!work.flush(&Exact), "nothing to wait for");
}

/// What made `kfree_rcu` free objects under their readers for four years: the second queueing's reader is younger than the
/// first queueing, and the run does not wait for it. So `queue` has to say no.
#[test]
fn t1_a_pending_work_says_that_it_asks_for_no_grace_period() {
    let work = leak(RcuWork::new(AtomicUsize::new(0), count));
    let before = read_lock::<Exact>();
    assert!(work.queue(&Exact));
    let between = read_lock::<Exact>();
    assert!(!work.queue(&Exact), "pending: no new grace period");
    drop(before);
    Exact::reclaim();
    assert_eq!(
        runs(work),
        1,
        "the first queueing's grace period is over, the second's would not be"
    );
    drop(between);
    Exact::reclaim();
    assert_eq!(runs(work), 1);
}

#[test]
fn r19_may_queue_itself() {
    let work = leak(RcuWork::new(AtomicUsize::new(0), |work| {
        count(work);
        if runs(work) < 3 {
            assert!(!work.is_pending());
            assert!(work.queue(&Exact), "not pending while it runs");
        }
    }));
    assert!(work.queue(&Exact));
    Exact::reclaim();
    assert_eq!((runs(work), work.is_pending()), (3, false));
}

#[test]
fn r19_a_list_of_works_runs_them_in_order_when_told() {
    static LIST: WorkList = WorkList::new();
    static ORDER: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    type Numbered = RcuWork<usize, &'static WorkList>;
    fn note(work: &'static Numbered) {
        ORDER.lock().unwrap().push(*work.data());
        assert!(*work.data() != 1, "on purpose");
    }
    let works: [&'static Numbered; 4] =
        std::array::from_fn(|n| leak(RcuWork::with_queue(n, note, &LIST)));
    for work in works {
        assert!(work.queue(&Exact));
    }
    Exact::reclaim();
    assert!(!LIST.is_empty() && works[3].is_pending() && !works[3].queue(&Exact));
    assert!(
        catch_unwind(|| LIST.run_all()).is_err(),
        "the second panics"
    );
    assert!(!works[1].is_pending() && works[2].is_pending());
    assert_eq!(LIST.run_all(), 2);
    assert_eq!(*ORDER.lock().unwrap(), [0, 1, 2, 3]);
    assert!(!works[1].flush(&Exact), "it has ended, if not well");
    assert!(works[1].queue(&Exact));
    Exact::reclaim();
    assert!(catch_unwind(|| LIST.run_all()).is_err());
}

/// An executor that keeps its works where the test finds them.
#[derive(Clone, Copy)]
struct Shelf;

static SHELF: Mutex<Vec<ReadyWork>> = Mutex::new(Vec::new());

impl WorkQueue for Shelf {
    fn submit(self, work: ReadyWork) {
        SHELF.lock().unwrap().push(work);
    }
}

/// Queued and handed over again while it runs: the first runner does it once more, never two at once.
#[test]
fn r19_never_runs_twice_at_once_and_a_dropped_work_is_cancelled() {
    static DEPTH: AtomicUsize = AtomicUsize::new(0);
    let work = leak(RcuWork::with_queue(
        AtomicUsize::new(0),
        |work: &'static RcuWork<AtomicUsize, Shelf>| {
            assert_eq!(DEPTH.fetch_add(1, Ordering::Relaxed), 0, "twice at once");
            count(work);
            if runs(work) == 1 {
                assert!(work.queue(&Exact));
                Exact::reclaim();
                let again = SHELF.lock().unwrap().pop().unwrap();
                again.run();
                assert_eq!(runs(work), 1, "later, by who runs it now");
                assert!(work.is_pending() && !work.queue(&Exact));
            }
            DEPTH.fetch_sub(1, Ordering::Relaxed);
        },
        Shelf,
    ));
    assert!(work.queue(&Exact));
    Exact::reclaim();
    let ready = SHELF.lock().unwrap().pop().unwrap();
    ready.run();
    assert_eq!((runs(work), work.is_pending()), (2, false));
    assert!(work.queue(&Exact));
    Exact::reclaim();
    drop(SHELF.lock().unwrap().pop().unwrap());
    assert_eq!((runs(work), work.is_pending()), (2, false));
    assert!(!work.flush(&Exact), "cancelled is finished");
}

#[test]
fn r19_an_embedded_work_may_free_its_object() {
    static FREED: AtomicUsize = AtomicUsize::new(0);
    #[repr(C)]
    struct Object {
        work: RcuWork<usize>,
        text: String,
    }
    /// # Safety
    /// The work is the first field of a leaked object, given up.
    unsafe fn free(work: NonNull<RcuWork<usize>>) {
        // SAFETY: the caller's debt.
        let object = unsafe { Box::from_raw(work.cast::<Object>().as_ptr()) };
        assert_eq!((object.text.as_str(), *object.work.data()), ("seven", 7));
        FREED.fetch_add(1, Ordering::Relaxed);
    }
    let object = Box::new(Object {
        // SAFETY: embedded in a leaked object, queued once.
        work: unsafe { RcuWork::new_raw(7, free, Inline) },
        text: "seven".to_owned(),
    });
    let work = NonNull::from(Box::leak(object)).cast::<RcuWork<usize>>();
    // SAFETY: leaked until `free` gets it; the pointer is that of the whole object.
    assert!(unsafe { RcuWork::queue_raw(work, &Exact) });
    Exact.barrier();
    assert_eq!(FREED.load(Ordering::Relaxed), 1);
}
