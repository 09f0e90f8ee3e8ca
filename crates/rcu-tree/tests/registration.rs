//! Slots come and go: nothing leaks, nothing is lost, and nobody is held up by a newcomer, or refused for want of a slot.

#![cfg(all(feature = "std", not(loom)))]

#[path = "common/few.rs"]
mod few;

use few::{FEW, Few, Hand, tree_of};
use rcu_core::cpu::{BiasedLock, Cpus, RegisterError, Slot, SpinLock, Threads};
use rcu_core::{Callback, GracePeriod, Head, Rcu};
use rcu_tree::Tree;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex, MutexGuard};

/// A head with a count of how often its callback ran.
#[repr(C)]
struct Counted {
    head: Head,
    ran: AtomicUsize,
}

impl Counted {
    fn some(n: usize) -> Vec<Self> {
        let one = || Self {
            head: Head::new(),
            ran: AtomicUsize::new(0),
        };
        (0..n).map(|_| one()).collect()
    }

    fn queue<C: Cpus>(&self, tree: &Tree<'_, C>) {
        // SAFETY: the tests wait for a barrier before the element goes, and queue it again only when it has run.
        unsafe {
            tree.call(NonNull::from(self).cast(), Callback::Run(Self::run));
        }
    }

    /// # Safety
    /// `head` is the first field of a `Counted`.
    unsafe fn run(head: NonNull<Head>) {
        // SAFETY: derived from all of the element.
        let this = unsafe { head.cast::<Self>().as_ref() };
        this.ran.fetch_add(1, Ordering::Relaxed);
    }

    fn ran(&self) -> usize {
        self.ran.load(Ordering::Relaxed)
    }
}

#[test]
fn g19_a_newcomer_does_not_hold_up_a_grace_period_that_has_started() {
    let cpus: &Hand<8> = Box::leak(Box::new(Hand::new()));
    let tree = tree_of(cpus, SpinLock::new);
    let old = cpus.join();
    let before = tree.enter();
    let cookie = tree.start();
    assert!(
        tree.drive() && !tree.poll(cookie),
        "the old one is in the way"
    );
    // Both in the leaf of the old one and in leaves of their own.
    let newcomers: Vec<_> = (0..5).map(|_| (cpus.join(), tree.enter())).collect();
    let later = tree.start();
    assert!(tree.drive() && !tree.poll(cookie));
    cpus.go(Some(old));
    // SAFETY: entered on this slot, and left once.
    unsafe { tree.exit(before) };
    tree.drive();
    assert!(tree.poll(cookie), "all who were there before have left");
    for (slot, token) in newcomers {
        assert!(
            tree.drive() && !tree.poll(later),
            "newcomers hold up the next one"
        );
        cpus.go(Some(slot));
        // SAFETY: as above.
        unsafe { tree.exit(token) };
    }
    tree.drive();
    assert!(tree.poll(later));
}

#[test]
fn g19_a_slot_that_leaves_ends_what_waits_for_it_and_its_heir_runs_its_callbacks() {
    let cpus: &Hand<8> = Box::leak(Box::new(Hand::new()));
    let tree = tree_of(cpus, SpinLock::new);
    let others: Vec<_> = (0..3).map(|_| (cpus.join(), tree.enter())).collect();
    let elements = Counted::some(6);
    let leaver = cpus.join();
    for element in &elements[..3] {
        element.queue(tree);
    }
    let cookie = tree.start();
    assert!(tree.drive());
    for element in &elements[3..] {
        element.queue(tree);
    }
    cpus.leave();
    assert_eq!(tree.stats().slots_online, 3);
    for (slot, token) in others {
        assert!(!tree.poll(cookie));
        tree.run_callbacks();
        assert!(
            elements.iter().all(|e| e.ran() == 0),
            "before its grace period"
        );
        cpus.go(Some(slot));
        // SAFETY: entered on this slot, and left once.
        unsafe { tree.exit(token) };
        tree.drive();
    }
    assert!(tree.poll(cookie));
    // The next owner of the slot finds nothing there that could hold it up.
    assert_eq!(cpus.join(), leaver);
    while tree.has_work() {
        tree.drive();
        tree.run_callbacks();
    }
    assert!(elements.iter().all(|e| e.ran() == 1));
}

#[test]
fn t45_registering_and_leaving_a_million_times_leaks_nothing() {
    const ROUNDS: usize = if cfg!(miri) { 500 } else { 1_000_000 };
    const AT_ONCE: usize = if cfg!(miri) { 50 } else { 1000 };
    let cpus: &Hand<8> = Box::leak(Box::new(Hand::new()));
    let tree = tree_of(cpus, SpinLock::new);
    let elements = Counted::some(AT_ONCE);
    for round in 0..ROUNDS {
        let slot = cpus.join();
        assert_eq!(slot, Slot::new(0), "the lowest slot is free again");
        // SAFETY: entered on this slot, and left once.
        unsafe { tree.exit(tree.enter()) };
        elements[round % AT_ONCE].queue(tree);
        if round % AT_ONCE == AT_ONCE - 1 {
            tree.barrier();
            assert!(elements.iter().all(|e| e.ran() == round / AT_ONCE + 1));
        }
        cpus.leave();
    }
    tree.barrier();
    assert!(!tree.has_work());
    assert_eq!(tree.stats().slots_online, 0);
    assert!(elements.iter().all(|e| e.ran() == ROUNDS / AT_ONCE));
    assert_eq!((cpus.table.nr_taken(), cpus.table.nr_kept()), (0, 0));
}

#[test]
fn t45_leaving_inside_a_section_keeps_the_slot_until_the_section_ends() {
    const ROUNDS: usize = if cfg!(miri) { 50 } else { 50_000 };
    let cpus: &Hand<4> = Box::leak(Box::new(Hand::new()));
    let tree = tree_of(cpus, SpinLock::new);
    let elements = Counted::some(ROUNDS);
    for element in &elements {
        assert_eq!(cpus.join(), Slot::new(0));
        let token = tree.enter();
        element.queue(tree);
        let cookie = tree.start();
        cpus.leave();
        assert_eq!((cpus.table.nr_taken(), cpus.table.nr_kept()), (1, 1));
        assert_eq!(cpus.join(), Slot::new(1), "not the slot that is kept");
        assert!(tree.drive() && !tree.poll(cookie), "the section goes on");
        cpus.leave();
        // SAFETY: entered once and left once; the slot is this token's until it is.
        unsafe { tree.exit(token) };
        assert_eq!((cpus.table.nr_taken(), cpus.table.nr_kept()), (0, 0));
        assert!(!tree.drive() && tree.poll(cookie));
    }
    tree.barrier();
    assert!(elements.iter().all(|e| e.ran() == 1));
    assert_eq!(tree.stats().slots_online, 0);
}

#[test]
fn t45_threads_that_come_and_go_leave_nothing_behind() {
    const THREADS: usize = if cfg!(miri) { 20 } else { 3_000 };
    let tree = tree_of(Threads, BiasedLock::new);
    let elements = Counted::some(THREADS);
    for some in elements.chunks(3) {
        std::thread::scope(|s| {
            for element in some {
                s.spawn(|| {
                    let slot = Threads.try_register().expect("a few threads at a time");
                    assert!(slot.index() < 100, "slots leak");
                    drop(tree.read_lock());
                    element.queue(tree);
                });
            }
        });
    }
    tree.barrier();
    assert!(elements.iter().all(|e| e.ran() == 1));
}

/// The tests that follow share [`Few`]'s slots.
fn few() -> (&'static Tree<'static, Few>, MutexGuard<'static, ()>) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let lock = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    while few::nr_taken() > 0 {
        // Threads of the last test are still giving theirs back.
        std::thread::yield_now();
    }
    (tree_of(Few, BiasedLock::new), lock)
}

#[test]
fn r1_readers_without_a_slot_are_waited_for_like_others() {
    const READERS: usize = FEW + 5;
    let (tree, _lock) = few();
    let inside = Barrier::new(READERS + 1);
    let leaves: [Barrier; READERS] = std::array::from_fn(|_| Barrier::new(2));
    let with_slot = AtomicUsize::new(0);
    std::thread::scope(|s| {
        for leave in &leaves {
            s.spawn(|| {
                let guard = tree.read_lock();
                match Few.try_register() {
                    Ok(_) => {
                        with_slot.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(why) => assert_eq!(why, RegisterError::AllTaken { nr_slots: FEW }),
                }
                inside.wait();
                leave.wait();
                drop(guard);
                leave.wait();
                // Those with a slot keep it until all are done.
                inside.wait();
            });
        }
        inside.wait();
        assert_eq!(with_slot.load(Ordering::Relaxed), FEW);
        assert!(Few.try_register().is_err(), "this thread has none either");
        let cookie = tree.start();
        for leave in &leaves {
            assert!(tree.drive() && !tree.poll(cookie), "a reader was missed");
            leave.wait();
            leave.wait();
        }
        tree.wait(cookie);
        inside.wait();
    });
}

#[test]
fn r4_callbacks_without_a_slot_run_once_and_a_barrier_waits_for_them() {
    let (tree, _lock) = few();
    let together = Barrier::new(FEW + 6);
    let elements = Counted::some(FEW + 6);
    std::thread::scope(|s| {
        for element in &elements {
            s.spawn(|| {
                let _ = Few.current();
                together.wait();
                let guard = tree.read_lock();
                element.queue(tree);
                assert_eq!(element.ran(), 0, "inside");
                drop(guard);
                tree.barrier();
                assert_eq!(element.ran(), 1);
                together.wait();
            });
        }
    });
    assert!(elements.iter().all(|e| e.ran() == 1) && !tree.has_work());
}

#[test]
fn a_thread_gets_the_slot_that_another_one_leaves() {
    let (tree, _lock) = few();
    // On a thread that ends with the test, so that its slot does not stay taken.
    std::thread::spawn(move || moves_over(tree)).join().unwrap();
}

fn moves_over(tree: &'static Tree<'static, Few>) {
    let elements = Counted::some(2);
    let (full, done) = (Barrier::new(FEW + 1), Barrier::new(FEW + 1));
    std::thread::scope(|s| {
        for _ in 0..FEW {
            s.spawn(|| {
                assert!(Few.current().is_some());
                full.wait();
                done.wait();
            });
        }
        full.wait();
        assert_eq!(Few.current(), None);
        let shared = tree.read_lock();
        elements[0].queue(tree);
        done.wait();
        // Their destructors may still be at it.
        while Few.try_register().is_err() {
            std::thread::yield_now();
        }
        let own = tree.read_lock();
        elements[1].queue(tree);
        let cookie = tree.start();
        assert!(tree.drive() && !tree.poll(cookie));
        drop(own);
        assert!(
            tree.drive() && !tree.poll(cookie),
            "the shared section goes on"
        );
        drop(shared);
        tree.barrier();
        assert!(tree.poll(cookie) && elements.iter().all(|e| e.ran() == 1));
    });
}

/// Runs `f` on a thread that gets no slot while the first barrier's threads live, and may get one after the second.
fn without_a_slot(f: impl FnOnce(&'static Tree<'static, Few>, &Barrier) + Send) {
    let (tree, _lock) = few();
    let (full, done) = (Barrier::new(FEW + 1), Barrier::new(FEW + 1));
    std::thread::scope(|s| {
        for _ in 0..FEW {
            s.spawn(|| {
                assert!(Few.current().is_some());
                full.wait();
                done.wait();
            });
        }
        full.wait();
        s.spawn(|| {
            assert_eq!(Few.current(), None);
            f(tree, &done);
        });
    });
}

/// Guards that overlap are one section, whichever is dropped first; so a grace period that was asked for inside waits for all.
#[test]
fn r1_guards_without_a_slot_that_overlap_are_one_section() {
    without_a_slot(|tree, done| {
        let mut guard = tree.read_lock();
        for _ in 0..8 {
            let cookie = tree.start();
            assert!(tree.drive(), "a section is in the way");
            let next = tree.read_lock();
            drop(guard);
            assert!(
                tree.drive() && !tree.poll(cookie),
                "ended in the middle of a section"
            );
            drop(next);
            assert!(!tree.drive() && tree.poll(cookie));
            guard = tree.read_lock();
        }
        drop(guard);
        done.wait();
    });
}

/// As above, where a slot comes free in the middle.
#[test]
fn r1_a_slot_that_comes_inside_a_section_does_not_cut_it() {
    without_a_slot(|tree, done| {
        let first = tree.read_lock();
        let cookie = tree.start();
        assert!(tree.drive());
        done.wait();
        while Few.try_register().is_err() {
            std::thread::yield_now();
        }
        let second = tree.read_lock();
        drop(first);
        assert!(
            tree.drive() && !tree.poll(cookie),
            "ended in the middle of a section"
        );
        let third = tree.read_lock();
        drop(second);
        assert!(tree.drive() && !tree.poll(cookie));
        drop(third);
        assert!(!tree.drive() && tree.poll(cookie));
        // Outside, the slot is used.
        let own = tree.read_lock();
        assert_eq!(tree.stats().slots_online, 1);
        drop(own);
    });
}

/// As above, for a thread that ends inside a section, and enters others while it does.
#[test]
fn r1_t41_sections_at_a_threads_end_that_overlap_are_one() {
    use rcu_core::Guard;
    use std::cell::RefCell;
    type Kept = Guard<&'static Tree<'static, Threads>>;
    struct Late(Option<Kept>);
    impl Drop for Late {
        fn drop(&mut self) {
            assert_eq!(Threads.current(), None, "the slot's destructor came first");
            let lingering = self.0.take().expect("kept");
            let rcu = *lingering.rcu();
            let cookie = rcu.start();
            assert!(rcu.drive());
            let late = rcu.read_lock();
            drop(lingering);
            assert!(
                rcu.drive() && !rcu.poll(cookie),
                "ended in the middle of a section"
            );
            let later = rcu.read_lock();
            let another = rcu.start();
            drop(late);
            assert!(rcu.drive() && !rcu.poll(cookie) && !rcu.poll(another));
            drop(later);
            rcu.wait(another);
        }
    }
    thread_local! {
        static KEPT: RefCell<Option<Late>> = const { RefCell::new(None) };
    }
    let tree = tree_of(Threads, BiasedLock::new);
    std::thread::spawn(move || {
        // Registered for destruction before the slot is, so it is dropped after it.
        KEPT.with_borrow_mut(|kept| *kept = Some(Late(Some(tree.read_lock()))));
    })
    .join()
    .unwrap();
    assert_eq!(tree.stats().slots_online, 0);
}
