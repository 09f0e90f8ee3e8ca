//! What safe code could try: the list of `reclamation-peers` and more, each against a stack of its own.

#![cfg(all(feature = "std", not(loom), not(miri)))]

use kvfree::{Builder, Config, RcuBoxIn, RcuCellIn, TypedCache};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

fn wait_until(done: impl Fn() -> bool) {
    while !done() {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Runs `f` when dropped.
struct OnDrop<F: Fn() + Send + Sync>(F);

impl<F: Fn() + Send + Sync> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// A payload whose destructor panics, with another one of its kind.
struct Bomb(u32);

impl Drop for Bomb {
    fn drop(&mut self) {
        if let Some(left) = self.0.checked_sub(1) {
            std::panic::resume_unwind(Box::new(Bomb(left)));
        }
    }
}

/// What a destructor panics with may panic when it is dropped: the others of its batch are dropped all the same, and the monitor lives.
#[test]
fn h5_a_payload_that_panics_is_contained() {
    kvfree::stack! { struct Bombs; }
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    for _ in 0..2 {
        DROPPED.store(0, Ordering::Relaxed);
        for i in 0..20 {
            drop(RcuBoxIn::<_, Bombs>::new(OnDrop(move || {
                DROPPED.fetch_add(1, Ordering::Relaxed);
                if i % 4 == 0 {
                    std::panic::resume_unwind(Box::new(Bomb(3)));
                }
            })));
        }
        wait_until(|| DROPPED.load(Ordering::Relaxed) == 20);
        wait_until(|| !Bombs::stack().stats().is_monitored);
    }
}

/// At the limit, a destructor that makes boxes does not wait for the destructors after it.
#[test]
fn a_destructor_at_the_limit_makes_boxes() {
    kvfree::stack! { struct Limited; }
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    struct Makes([u8; 4000]);
    impl Drop for Makes {
        fn drop(&mut self) {
            drop(RcuBoxIn::<_, Limited>::new(u64::from(self.0[0])));
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
    let config = Config::new().hard_limit(256 << 10).tells(|_| ());
    Limited::stack()
        .install(Builder::new().config(config))
        .unwrap();
    for by_barrier in [false, true] {
        DROPPED.store(0, Ordering::Relaxed);
        let guard = Limited::read_lock();
        (0..200).for_each(|_| drop(RcuBoxIn::<_, Limited>::new(Makes([1; 4000]))));
        drop(guard);
        if by_barrier {
            Limited::stack().barrier();
        }
        wait_until(|| DROPPED.load(Ordering::Relaxed) == 200);
    }
}

/// A barrier inside a section panics, as it says, also while another thread's barrier waits for that section.
#[test]
fn a_barrier_inside_a_section_panics_beside_another_one() {
    kvfree::stack! { struct Two; }
    static DROPPED: AtomicBool = AtomicBool::new(false);
    let guard = Two::read_lock();
    drop(RcuBoxIn::<_, Two>::new(OnDrop(|| {
        DROPPED.store(true, Ordering::Relaxed)
    })));
    let other = thread::spawn(|| Two::stack().barrier());
    thread::sleep(Duration::from_millis(100));
    assert!(catch_unwind(|| Two::stack().barrier()).is_err());
    assert!(catch_unwind(|| Two::stack().barrier()).is_err());
    drop(guard);
    other.join().unwrap();
    assert!(DROPPED.load(Ordering::Relaxed));
}

/// A barrier in a destructor would wait for that destructor: it panics, and that is contained.
#[test]
fn a_barrier_in_a_destructor_panics() {
    kvfree::stack! { struct Inner; }
    kvfree::stack! { struct Outer; }
    static PANICKED: AtomicUsize = AtomicUsize::new(0);
    static FINE: AtomicUsize = AtomicUsize::new(0);
    let retire = || {
        drop(RcuBoxIn::<_, Outer>::new(OnDrop(|| {
            if catch_unwind(|| Outer::stack().barrier()).is_err() {
                PANICKED.fetch_add(1, Ordering::Relaxed);
            }
            // Waiting for readers, or for another stack, is all right.
            Outer::stack().synchronize();
            Inner::stack().barrier();
            FINE.fetch_add(1, Ordering::Relaxed);
        })));
    };
    retire();
    wait_until(|| FINE.load(Ordering::Relaxed) == 1);
    retire();
    Outer::stack().barrier();
    assert_eq!(
        (
            PANICKED.load(Ordering::Relaxed),
            FINE.load(Ordering::Relaxed)
        ),
        (2, 2)
    );
}

/// Caches that come and go while barriers, the monitor and reports look at them; some in destructors.
#[test]
fn caches_end_beside_barriers_and_the_monitor() {
    kvfree::stack! { struct Busy; }
    static STOP: AtomicBool = AtomicBool::new(false);
    static ENDED: AtomicUsize = AtomicUsize::new(0);
    let looks = thread::spawn(|| {
        while !STOP.load(Ordering::Relaxed) {
            Busy::stack().barrier();
            let _ = Busy::stack().stats();
        }
    });
    let makers: Vec<_> = (0..2)
        .map(|_| {
            thread::spawn(|| {
                for i in 0..40_u64 {
                    let cache: TypedCache<u64, Busy> = Busy::stack().cache("mine").unwrap();
                    let (one, other) = (cache.alloc(i).unwrap(), cache.alloc(i).unwrap());
                    // SAFETY: from this cache, and nobody knows it.
                    unsafe { Busy::stack().retire_in_mightsleep(&cache, one) };
                    let cache = cache.destroy().unwrap_err().cache;
                    // SAFETY: as above.
                    unsafe { Busy::stack().retire_in_mightsleep(&cache, other) };
                    match i % 3 {
                        0 => drop(cache),
                        1 => cache.destroy().unwrap(),
                        _ => {
                            let cache = std::sync::Mutex::new(Some(cache));
                            drop(RcuBoxIn::<_, Busy>::new(OnDrop(move || {
                                drop(cache.lock().unwrap().take());
                                ENDED.fetch_add(1, Ordering::Relaxed);
                            })));
                        }
                    }
                }
            })
        })
        .collect();
    makers.into_iter().for_each(|maker| maker.join().unwrap());
    wait_until(|| ENDED.load(Ordering::Relaxed) == 2 * 13);
    STOP.store(true, Ordering::Relaxed);
    looks.join().unwrap();
    assert!(Busy::stack().stats().caches.is_empty());
}

/// A destructor that retires, again and again: a chain ends, and so does the monitor.
#[test]
fn k8_chains_of_destructors_end() {
    kvfree::stack! { struct Chain; }
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    struct Link(#[expect(dead_code, reason = "dropped")] Option<RcuBoxIn<Link, Chain>>);
    impl Drop for Link {
        fn drop(&mut self) {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
    let mut link = Link(None);
    for _ in 0..9 {
        link = Link(Some(RcuBoxIn::new(link)));
    }
    drop(RcuBoxIn::<_, Chain>::new(link));
    wait_until(|| DROPPED.load(Ordering::Relaxed) == 10);
    wait_until(|| !Chain::stack().stats().is_monitored);
}

/// Hole 2: a guard in a thread-local that outlives the thread's slot still protects.
#[test]
fn h2_a_guard_in_a_thread_local_protects_to_its_end() {
    kvfree::stack! { struct Local; }
    static CELL: RcuCellIn<String, Local> = RcuCellIn::empty();
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    struct Late(std::cell::Cell<Option<rcu_core::Guard<Local>>>);
    impl Drop for Late {
        fn drop(&mut self) {
            let guard = self.0.take().unwrap_or_else(Local::read_lock);
            drop(RcuBoxIn::<_, Local>::new(OnDrop(|| {
                DROPPED.fetch_add(1, Ordering::Relaxed);
            })));
            let seen = CELL.load(&guard).unwrap();
            CELL.store(Some(RcuBoxIn::new(String::from("new"))));
            thread::sleep(Duration::from_millis(30));
            assert!(seen == "old" || seen == "new");
        }
    }
    thread_local! { static LATE: Late = const { Late(std::cell::Cell::new(None)) }; }
    CELL.store(Some(RcuBoxIn::new(String::from("old"))));
    for way in 0..3 {
        thread::spawn(move || {
            if way == 1 {
                drop(Local::read_lock());
            }
            LATE.with(|late| {
                if way > 0 {
                    late.0.set(Some(Local::read_lock()));
                }
            });
        })
        .join()
        .unwrap();
    }
    wait_until(|| DROPPED.load(Ordering::Relaxed) == 3);
}

/// Values without a size, and with more alignment than a page has, stay apart and go back.
#[test]
fn values_of_odd_shapes() {
    kvfree::stack! { struct Odd; }
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    macro_rules! check {
        ($($name:ident, $align:literal, $t:ty, $v:expr;)*) => {$({
            #[repr(align($align))]
            struct $name($t);
            impl Drop for $name {
                fn drop(&mut self) {
                    assert!(core::ptr::from_ref(self).addr().is_multiple_of($align));
                    DROPPED.fetch_add(1, Ordering::Relaxed);
                }
            }
            #[repr(align($align))]
            struct Plain(#[allow(dead_code, reason = "room")] $t);
            let one = RcuBoxIn::<_, Odd>::new($name($v));
            let other = RcuBoxIn::<_, Odd>::new($name($v));
            assert!(!core::ptr::eq(&raw const one.0, &raw const other.0));
            let cell: RcuCellIn<$name, Odd> = one.into();
            cell.store(Some(other));
            drop(RcuBoxIn::<_, Odd>::new(Plain($v)));
            drop(rcu_core::RcuBox::<_, kvfree::GlobalHeap<Odd>>::new($name($v)));
            drop(rcu_core::RcuBox::<_, kvfree::GlobalHeap<Odd>>::new(Plain($v)));
        })*};
    }
    check! {
        A, 1, (), ();
        B, 64, (), ();
        C, 4096, u8, 1;
        E, 16384, (), ();
        F, 16384, [u8; 20000], [1; 20000];
        G, 1, [u8; 70_000], [1; 70_000];
    }
    Odd::stack().barrier();
    assert_eq!(DROPPED.load(Ordering::Relaxed), 6 * 3);
    let front = Odd::stack().stats().front.unwrap();
    assert_eq!(front.objects_waiting, 0);
}

/// Boxes made on one thread, replaced on a second and read on a third, with a reader stalled in the wrong stack.
#[test]
fn a_section_of_another_stack_holds_nothing_up() {
    kvfree::stack! { struct Mine; }
    kvfree::stack! { struct Other; }
    static CELL: RcuCellIn<Vec<u8>, Mine> = RcuCellIn::empty();
    let (send, receive) = mpsc::channel::<RcuBoxIn<Vec<u8>, Mine>>();
    let guard = Other::read_lock();
    let reads = thread::spawn(|| {
        for _ in 0..1000 {
            let guard = Mine::read_lock();
            if let Some(seen) = CELL.load(&guard) {
                assert!(seen.iter().all(|b| *b == seen[0]));
            }
        }
    });
    let stores = thread::spawn(move || receive.into_iter().for_each(|b| CELL.store(Some(b))));
    (0..1000_usize).for_each(|i| send.send(RcuBoxIn::new(vec![i as u8; 100])).unwrap());
    drop(send);
    stores.join().unwrap();
    reads.join().unwrap();
    CELL.store(None);
    Mine::stack().barrier();
    assert_eq!(Mine::stack().stats().front.unwrap().objects_waiting, 0);
    drop(guard);
}

/// A cache that is dropped, or destroyed, where nobody may wait: whatever comes of it, the stack goes on.
#[test]
fn a_cache_dropped_inside_a_section_leaves_the_stack_whole() {
    kvfree::stack! { struct Held; }
    let cache: TypedCache<u64, Held> = Held::stack().cache("held").unwrap();
    let object = cache.alloc(1).unwrap();
    // SAFETY: from this cache, and nobody knows it.
    unsafe { Held::stack().retire_in_mightsleep(&cache, object) };
    let guard = Held::read_lock();
    let _ = catch_unwind(AssertUnwindSafe(|| drop(cache)));
    drop(guard);
    Held::stack().barrier();
    assert!(Held::stack().stats().caches.is_empty());
    let cache: TypedCache<u64, Held> = Held::stack().cache("next").unwrap();
    drop(cache);
}

/// Values of odd shapes whose destructors panic, in memory of an allocator that goes with them: each dropped once, all memory back, and the
/// allocators with it.
#[cfg(feature = "allocator-api2")]
#[test]
fn values_of_odd_shapes_with_an_allocator() {
    use allocator_api2::alloc::{AllocError, Allocator, Global, Layout};
    use std::ptr::NonNull;
    use std::sync::Arc;

    kvfree::stack! { struct Lent; }
    #[derive(Clone, Default)]
    struct Counts(Arc<AtomicUsize>);
    // SAFETY: the global allocator, counted.
    unsafe impl Allocator for Counts {
        fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Global.allocate(layout)
        }
        unsafe fn deallocate(&self, memory: NonNull<u8>, layout: Layout) {
            self.0.fetch_sub(1, Ordering::Relaxed);
            // SAFETY: as the caller owes.
            unsafe { Global.deallocate(memory, layout) };
        }
    }
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    #[repr(align(8192))]
    struct Aligned;
    struct Small;
    macro_rules! panics {
        ($($t:ident)*) => {$(impl Drop for $t {
            fn drop(&mut self) {
                assert!(core::ptr::from_ref(self).is_aligned());
                DROPPED.fetch_add(1, Ordering::Relaxed);
                std::panic::resume_unwind(Box::new(Bomb(1)));
            }
        })*};
    }
    panics! { Aligned Small }
    let counts = Counts::default();
    for _ in 0..10 {
        drop(kvfree::AllocBox::<_, _, Lent>::new_in(
            Aligned,
            counts.clone(),
        ));
        drop(kvfree::AllocBox::<_, _, Lent>::new_in(
            Small,
            counts.clone(),
        ));
    }
    Lent::stack().barrier();
    assert_eq!(DROPPED.load(Ordering::Relaxed), 20);
    assert_eq!(counts.0.load(Ordering::Relaxed), 0);
    assert_eq!(Arc::strong_count(&counts.0), 1);
}
