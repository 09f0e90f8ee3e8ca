//! Destructors on the threads that make them necessary: where they may run, and where they never do.

#![cfg(all(feature = "std", not(miri)))]

use kvfree::{Builder, Config, RcuBoxIn, StackDomain};
use std::cell::Cell;
use std::ptr::NonNull;
use std::time::Duration;

kvfree::stack! { struct Flooded; }
kvfree::stack! { struct Boxed; }
kvfree::stack! { struct Reading; }
kvfree::stack! { struct Nesting; }
kvfree::stack! { struct Panicking; }
kvfree::stack! { struct Asleep; }
kvfree::stack! { struct Mixed; }
kvfree::stack! { struct Endless; }

/// Enough for many grace periods.
const N: usize = 60_000;

std::thread_local! {
    /// Destructors that this thread has run.
    static RUN: Cell<usize> = const { Cell::new(0) };
}

struct Counts(#[expect(dead_code, reason = "some memory of its own")] Box<usize>);

impl Counts {
    fn new(n: usize) -> Self {
        Self(Box::new(n))
    }
}

impl Drop for Counts {
    fn drop(&mut self) {
        let _ = RUN.try_with(|run| run.set(run.get() + 1));
    }
}

fn run_here() -> usize {
    RUN.with(Cell::get)
}

/// A stack whose monitor does not come by by itself.
fn install<D: StackDomain>(config: Config) {
    let settings = Builder::new().delay(Duration::from_secs(3600));
    D::stack().install(settings.config(config)).unwrap();
}

fn waiting<D: StackDomain>() -> usize {
    D::stack().stats().front.map_or(0, |f| f.objects_waiting)
}

/// Does `flood` until no more waits than twice the blocks of one grace period, and what is open: who holds the lock to end a grace period
/// may have lost its CPU.
fn until_little_waits<D: StackDomain>(mut flood: impl FnMut()) {
    for _ in 0..20 {
        flood();
        if waiting::<D>() < 40 * 507 {
            return;
        }
    }
    panic!("{} objects wait", waiting::<D>());
}

/// Makes boxes until the next one has to help.
fn fall_behind<D: StackDomain>() {
    for n in 0..20 * N {
        let before = run_here();
        let made = RcuBoxIn::<_, D>::new(Counts::new(n));
        if run_here() > before {
            // Some of what one grace period made ripe; there is more.
            return drop(made);
        }
        drop(made);
    }
    panic!("no destructor ran on the thread that makes them necessary");
}

/// Who makes boxes drops old ones, so that no more waits than a few grace periods' worth; who only drops boxes runs nothing.
#[test]
fn a_flood_of_destructors_takes_its_own_along() {
    install::<Flooded>(Config::new());
    until_little_waits::<Flooded>(|| {
        let boxes = (0..N).map(|n| {
            let made = RcuBoxIn::<_, Flooded>::new(Counts::new(n));
            let before = run_here();
            (drop(made), run_here() - before).1
        });
        assert_eq!(boxes.sum::<usize>(), 0, "retiring ran a destructor");
    });
    // The monitor may have taken some while the thread had no CPU.
    assert!(run_here() > N / 10, "{}", run_here());
    Flooded::stack().barrier();
    assert_eq!(waiting::<Flooded>(), 0);
}

/// A box that is there already: the call may sleep, so it takes some along, too.
#[test]
fn a_flood_of_boxes_that_are_dropped_takes_its_own_along() {
    install::<Boxed>(Config::new());
    until_little_waits::<Boxed>(|| {
        for n in 0..N {
            let object = NonNull::from(Box::leak(Box::new(Counts::new(n))));
            // SAFETY: a leaked box, which nobody sees.
            unsafe { Boxed::stack().retire_box(object) };
        }
    });
    // The monitor may have taken some while the thread had no CPU.
    assert!(run_here() > N / 10, "{}", run_here());
    Boxed::stack().barrier();
}

/// Not where a destructor must not run: inside of a section, though there is something to do.
#[test]
fn nobody_helps_in_a_section() {
    install::<Reading>(Config::new());
    fall_behind::<Reading>();
    let guard = Reading::read_lock();
    let before = run_here();
    (0..2000).for_each(|n| drop(RcuBoxIn::<_, Reading>::new(Counts::new(n))));
    assert_eq!(run_here(), before);
    drop(guard);
    fall_behind::<Reading>();
}

/// Nor inside of another destructor: one that makes boxes itself is not interrupted by others.
#[test]
fn nobody_helps_in_a_destructor() {
    std::thread_local! { static DEPTH: Cell<(usize, usize)> = const { Cell::new((0, 0)) }; }
    struct Nests(usize);
    impl Drop for Nests {
        fn drop(&mut self) {
            let (depth, most) = DEPTH.get();
            DEPTH.set((depth + 1, most.max(depth + 1)));
            if self.0 > 0 {
                drop(RcuBoxIn::<_, Nesting>::new(Nests(self.0 - 1)));
            }
            let (depth, most) = DEPTH.get();
            DEPTH.set((depth - 1, most));
        }
    }
    install::<Nesting>(Config::new());
    (0..N).for_each(|_| drop(RcuBoxIn::<_, Nesting>::new(Nests(2))));
    Nesting::stack().barrier();
    assert_eq!(DEPTH.get(), (0, 1));
}

/// A panic of a stranger's destructor is contained where it runs.
#[test]
fn a_destructor_that_panics_does_not_reach_who_helps() {
    struct Panics(usize);
    impl Drop for Panics {
        fn drop(&mut self) {
            assert!(!self.0.is_multiple_of(1000), "a destructor's panic");
        }
    }
    install::<Panicking>(Config::new());
    (1..=N).for_each(|n| drop(RcuBoxIn::<_, Panicking>::new(Panics(n))));
    Panicking::stack().barrier();
    let panicked = Panicking::stack().stats().front.map(|f| f.panicked);
    assert_eq!(panicked, Some(N / 1000));
}

/// Who has said so runs none of them.
#[test]
fn who_does_not_want_to_help_does_not() {
    install::<Asleep>(Config::new().helps(false));
    (0..N).for_each(|n| drop(RcuBoxIn::<_, Asleep>::new(Counts::new(n))));
    assert_eq!(run_here(), 0);
    Asleep::stack().barrier();
}

/// Who retires boxes without a destructor runs nobody's.
#[test]
fn what_has_none_takes_none_along() {
    install::<Mixed>(Config::new());
    for n in 0..N {
        if n.is_multiple_of(2) {
            let made = RcuBoxIn::<_, Mixed>::new(Counts::new(n));
            drop(made);
        }
        let before = run_here();
        let object = NonNull::from(Box::leak(Box::new(n)));
        // SAFETY: a leaked box, which nobody sees.
        unsafe { Mixed::stack().retire_box(object) };
        assert_eq!(run_here(), before);
    }
    Mixed::stack().barrier();
}

/// No number of blocks asks for a grace period, or calls the monitor: bytes do, and a barrier frees all.
#[test]
fn a_number_of_blocks_that_never_comes_asks_for_nothing() {
    install::<Endless>(Config::new().ask_after_blocks(usize::MAX));
    let before = run_here();
    (0..N).for_each(|n| drop(RcuBoxIn::<_, Endless>::new(Counts::new(n))));
    assert!(run_here() > before);
    Endless::stack().barrier();
    assert_eq!(waiting::<Endless>(), 0);
}
