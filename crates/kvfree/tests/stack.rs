//! The default stack: what frees when nobody waits, and what works at a thread's end.

#![cfg(all(feature = "std", not(loom)))]

use kvfree::{RcuBox, RcuCell, read_lock};
use std::alloc::Layout;
use std::cell::RefCell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Tests that look at the whole stack's numbers take turns.
static TURN: Mutex<()> = Mutex::new(());

struct Counts(&'static AtomicUsize);

impl Drop for Counts {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

fn wait_until(done: impl Fn() -> bool) {
    while !done() {
        std::thread::yield_now();
    }
}

/// K8: destructors, and objects in a sheaf that nobody fills.
#[test]
fn the_monitor_frees_what_nobody_waits_for() {
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    let _turn = TURN.lock();
    for round in 1..=3 {
        drop(RcuBox::new(Counts(&DROPPED)));
        wait_until(|| DROPPED.load(Ordering::Acquire) == round);
        for bytes in [64, 70_000] {
            let object = kvfree::objects().kmalloc(Layout::from_size_align(bytes, 8).unwrap());
            // SAFETY: allocated just now, and seen by nobody.
            unsafe { kvfree::retire_mightsleep(object.unwrap()) };
        }
        wait_until(|| {
            let stats = kvfree::stats();
            let in_sheaves: usize = stats
                .objects
                .unwrap()
                .classes
                .iter()
                .map(|c| c.waiting)
                .sum();
            in_sheaves + stats.front.unwrap().objects_waiting == 0
        });
    }
}

/// What a thread retired before it ended, too.
#[test]
fn the_monitor_frees_what_the_dead_left() {
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    let _turn = TURN.lock();
    std::thread::spawn(|| {
        for _ in 0..100 {
            drop(RcuBox::new(Counts(&DROPPED)));
        }
    })
    .join()
    .unwrap();
    wait_until(|| DROPPED.load(Ordering::Acquire) == 100);
}

/// Before the thread's slot is gone, and after.
#[test]
fn destructors_of_thread_locals_may_retire() {
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    struct Late(RcuCell<Counts>);
    impl Drop for Late {
        fn drop(&mut self) {
            let guard = read_lock();
            assert!(self.0.load(&guard).is_some());
            self.0.store(Some(RcuBox::new(Counts(&DROPPED))));
            drop(guard);
            // And what is in the cell now is retired when it goes.
        }
    }
    thread_local! {
        static EARLY: RefCell<Option<Late>> = const { RefCell::new(None) };
        static LATE: RefCell<Option<Late>> = const { RefCell::new(None) };
    }
    const THREADS: usize = 20;
    for _ in 0..THREADS {
        std::thread::spawn(|| {
            // Destructors run in the reverse order of first uses, or in this one: both are here.
            EARLY.with(|place| assert!(place.borrow().is_none()));
            let make = || Some(Late(RcuCell::new(RcuBox::new(Counts(&DROPPED)))));
            drop(read_lock());
            LATE.with(|place| *place.borrow_mut() = make());
            EARLY.with(|place| *place.borrow_mut() = make());
        })
        .join()
        .unwrap();
    }
    kvfree::barrier();
    assert_eq!(DROPPED.load(Ordering::Acquire), 4 * THREADS);
}

/// A panic says what is wrong, and nothing is lost by it.
#[test]
fn a_barrier_inside_a_section_panics() {
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    drop(RcuBox::new(Counts(&DROPPED)));
    let guard = read_lock();
    assert!(std::panic::catch_unwind(kvfree::barrier).is_err());
    drop(guard);
    kvfree::barrier();
    assert_eq!(DROPPED.load(Ordering::Acquire), 1);
}

#[test]
fn numbers_are_readable() {
    drop(RcuBox::new([0_u8; 100]));
    let shown = kvfree::stats().to_string();
    for word in [
        "grace periods",
        "kvfree: waiting",
        "pages allocated",
        "kmalloc-128",
    ] {
        assert!(shown.contains(word), "{word} in {shown}");
    }
    assert!(format!("{:?}", kvfree::front()).starts_with("Kvfree"));
}

/// K15: what was retired to a typed cache is the monitor's and the barrier's, too.
#[test]
fn k15_typed_caches_are_looked_after() {
    let _turn = TURN.lock();
    let cache = kvfree::cache::<[u64; 5]>("looked-after").unwrap();
    let retire = || {
        let object = cache.alloc([1; 5]).unwrap();
        // SAFETY: allocated just now, and seen by nobody.
        unsafe { kvfree::retire_in_mightsleep(&cache, object) };
    };
    retire();
    wait_until(|| cache.raw().stats().waiting == 0);
    for _ in 0..600 {
        retire();
    }
    kvfree::barrier();
    let stats = cache.raw().stats();
    assert_eq!((stats.live, stats.waiting), (0, 0));
    assert!(kvfree::stats().to_string().contains("looked-after"));
    let kept = cache.alloc([2; 5]).unwrap();
    let busy = cache.destroy().unwrap_err();
    assert_eq!((busy.live, busy.pending), (1, 0));
    // SAFETY: allocated from this cache, and seen by nobody.
    unsafe { kvfree::retire_in_mightsleep(&busy.cache, kept) };
    wait_until(|| busy.cache.raw().stats().waiting == 0);
    busy.cache.destroy().unwrap();
    assert!(!kvfree::stats().to_string().contains("looked-after"));
}
