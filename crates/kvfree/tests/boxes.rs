//! Boxes of other allocators than the stack's own.

#![cfg(feature = "std")]

use kvfree::{DropManyFn, GlobalBox, RcuBox, each_contained, read_lock};
use rcu_core::RcuCell;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts what one size of objects is allocated and freed.
struct Counting;

/// A size that nothing else has.
const BYTES: usize = 12_344;
/// With a head in front.
const HEADED: usize = BYTES + 16;

static OUT: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static GLOBAL: Counting = Counting;

// SAFETY: the system's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() == BYTES || layout.size() == HEADED {
            OUT.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's debts.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if layout.size() == BYTES || layout.size() == HEADED {
            OUT.fetch_sub(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's debts.
        unsafe { System.dealloc(memory, layout) }
    }
}

static TURN: Mutex<()> = Mutex::new(());

struct Plain([u8; BYTES]);

struct Glued(
    #[expect(dead_code, reason = "for its size")] [u8; BYTES],
    &'static AtomicUsize,
);

const _: () = assert!(size_of::<Plain>() == BYTES && size_of::<Glued>() > BYTES);

impl Drop for Glued {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

fn leak<T>(value: T) -> NonNull<T> {
    NonNull::from(Box::leak(Box::new(value)))
}

/// The memory is the global allocator's, and goes back to it once the reader is gone, not before.
#[test]
fn boxes_of_the_global_allocator_wait_and_go_back() {
    let _turn = TURN.lock();
    const N: usize = 600;
    let guard = read_lock();
    let cell = RcuCell::new(GlobalBox::new(Plain([7; BYTES])));
    let seen = cell.load(&guard).unwrap();
    for _ in 0..N {
        cell.store(Some(GlobalBox::new(Plain([8; BYTES]))));
    }
    assert_eq!(OUT.load(Ordering::Relaxed), N + 1);
    assert_eq!(seen.0[100], 7);
    drop(guard);
    drop(cell);
    kvfree::barrier();
    assert_eq!(OUT.load(Ordering::Relaxed), 0);
    for _ in 0..N {
        // SAFETY: a box's, seen by nobody.
        unsafe { kvfree::retire_box(leak(Plain([9; BYTES]))) };
    }
    kvfree::barrier();
    assert_eq!(OUT.load(Ordering::Relaxed), 0);
}

/// Each is dropped, by whichever of the two ways.
#[test]
fn glue_of_many_types_runs_once_each() {
    static GLUED: AtomicUsize = AtomicUsize::new(0);
    static STRINGS: AtomicUsize = AtomicUsize::new(0);
    struct Named(String);
    impl Drop for Named {
        fn drop(&mut self) {
            assert_eq!(self.0, "named");
            STRINGS.fetch_add(1, Ordering::Relaxed);
        }
    }
    let _turn = TURN.lock();
    let named = || Named(String::from("named"));
    for n in 0..500 {
        // SAFETY: boxes', seen by nobody.
        unsafe { kvfree::retire_box(leak(Glued([0; BYTES], &GLUED))) };
        if n % 3 == 0 {
            // SAFETY: as above.
            unsafe { kvfree::retire_box(leak(named())) };
        }
        drop(GlobalBox::new(named()));
        drop(RcuBox::new(named()));
    }
    kvfree::barrier();
    assert_eq!(GLUED.load(Ordering::Relaxed), 500);
    assert_eq!(STRINGS.load(Ordering::Relaxed), 1000 + 167);
}

/// Values without a size have one address for all: none of them may be taken for another.
#[test]
fn boxes_without_a_size() {
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    struct Nothing;
    impl Drop for Nothing {
        fn drop(&mut self) {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
    for _ in 0..5 {
        // SAFETY: a box's, seen by nobody.
        unsafe { kvfree::retire_box(leak(Nothing)) };
        drop(RcuBox::new(Nothing));
        drop(GlobalBox::new(Nothing));
    }
    kvfree::barrier();
    assert_eq!(DROPPED.load(Ordering::Relaxed), 15);
}

/// The post of 2020 asks for a function for many objects at once (K5, K10): it is called so, and a panic ends nothing.
#[test]
fn many_are_freed_in_one_call_and_panics_are_counted() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    static FREED: AtomicUsize = AtomicUsize::new(0);
    const N: usize = 400;
    std::thread_local! { static NTH: Cell<usize> = const { Cell::new(0) }; }
    unsafe fn many(objects: &mut [NonNull<u8>]) -> usize {
        CALLS.fetch_add(1, Ordering::Relaxed);
        each_contained(objects, |object| {
            // SAFETY: a box's, retired once.
            let value = *unsafe { Box::from_raw(object.cast::<usize>().as_ptr()) };
            FREED.fetch_add(1, Ordering::Relaxed);
            assert!(value % 100 != 0, "expected");
        })
    }
    let _turn = TURN.lock();
    kvfree::barrier();
    let before = kvfree::front().stats().panicked;
    for n in 0..N {
        let object = leak(n).cast();
        let many: DropManyFn = many;
        // SAFETY: freed by `many`, on any thread; seen by nobody. (Not inside a section: it waits where the monitor is just looking.)
        unsafe { kvfree::front().retire_many_mightsleep(object, many, 8) };
    }
    kvfree::barrier();
    // The monitor may have come by in between, a few times.
    let calls = CALLS.load(Ordering::Relaxed);
    assert_eq!(FREED.load(Ordering::Relaxed), N);
    assert!(calls < N / 8, "{calls} calls");
    assert_eq!(kvfree::front().stats().panicked, before + N / 100);
}

/// A destructor that panics is contained, its memory goes back, and those beside it are dropped.
#[test]
fn a_panic_in_glue_is_contained() {
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    struct Touchy(
        usize,
        #[expect(dead_code, reason = "for its size")] [u8; BYTES - 8],
    );
    impl Drop for Touchy {
        fn drop(&mut self) {
            DROPPED.fetch_add(1, Ordering::Relaxed);
            assert!(self.0 % 10 != 3, "expected");
        }
    }
    let _turn = TURN.lock();
    kvfree::barrier();
    let before = kvfree::front().stats().panicked;
    for n in 0..100 {
        drop(GlobalBox::new(Touchy(n, [0; BYTES - 8])));
        // SAFETY: a box's, seen by nobody.
        unsafe { kvfree::retire_box(leak(Touchy(n, [0; BYTES - 8]))) };
    }
    kvfree::barrier();
    assert_eq!(DROPPED.load(Ordering::Relaxed), 200);
    assert_eq!(OUT.load(Ordering::Relaxed), 0);
    assert_eq!(kvfree::front().stats().panicked, before + 20);
}

#[cfg(feature = "allocator-api2")]
mod other_allocators {
    use super::*;
    use allocator_api2::alloc::{AllocError, Allocator, Global};
    use allocator_api2::boxed::Box as BoxIn;
    use kvfree::AllocBox;

    /// Memory of the global allocator, so much of it at a time.
    struct Arena {
        left: AtomicUsize,
        ends: &'static AtomicUsize,
    }

    impl Arena {
        const fn new(left: usize, ends: &'static AtomicUsize) -> Self {
            let left = AtomicUsize::new(left);
            Self { left, ends }
        }
    }

    impl Drop for Arena {
        fn drop(&mut self) {
            self.ends.fetch_add(1, Ordering::Relaxed);
        }
    }

    // SAFETY: the global allocator's blocks.
    unsafe impl Allocator for Arena {
        fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
            let less = |left: usize| left.checked_sub(1);
            let taken = self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
            taken.map_err(|_| AllocError)?;
            Global.allocate(layout)
        }

        unsafe fn deallocate(&self, memory: NonNull<u8>, layout: Layout) {
            self.left.fetch_add(1, Ordering::Relaxed);
            // SAFETY: the caller's debts.
            unsafe { Global.deallocate(memory, layout) };
        }
    }

    static ENDS: AtomicUsize = AtomicUsize::new(0);

    /// An allocator by reference: the reference lies in the object.
    #[test]
    fn objects_of_a_borrowed_allocator_go_back_to_it() {
        const N: usize = 50;
        static ARENA: Arena = Arena::new(N, &ENDS);
        let guard = read_lock();
        let boxes: Vec<_> = (0..N)
            .map(|n| AllocBox::<_, _>::new_in(n.to_string(), &ARENA))
            .collect();
        let seen = boxes[17].rcu_ref(&guard);
        let (value, _) =
            AllocBox::<_, _>::try_new_in(String::from("one more"), &ARENA).unwrap_err();
        assert_eq!(value, "one more");
        drop(boxes);
        assert_eq!(
            (ARENA.left.load(Ordering::Relaxed), seen.as_str()),
            (0, "17")
        );
        drop(guard);
        kvfree::barrier();
        assert_eq!(ARENA.left.load(Ordering::Relaxed), N);
    }

    /// An allocator by value: it goes with its object.
    #[test]
    fn an_allocator_lives_as_long_as_its_object() {
        static ENDED: AtomicUsize = AtomicUsize::new(0);
        let cell: RcuCell<AllocBox<[u64; 4], Arena>> =
            AllocBox::new_in([1; 4], Arena::new(1, &ENDED)).into();
        let guard = read_lock();
        let seen = cell.load(&guard).unwrap();
        let old = cell
            .swap(Some(AllocBox::new_in([2; 4], Arena::new(1, &ENDED))))
            .unwrap();
        assert!(old.try_take().is_err());
        assert_eq!((seen, ENDED.load(Ordering::Relaxed)), (&[1; 4], 0));
        drop(guard);
        kvfree::barrier();
        assert_eq!(ENDED.load(Ordering::Relaxed), 1);
        let owned = cell.take().unwrap().wait();
        assert_eq!(*owned, [2; 4]);
        drop(owned);
        assert_eq!(ENDED.load(Ordering::Relaxed), 2);
    }

    /// A box that exists already, of an allocator without a size.
    #[test]
    fn boxes_of_an_allocator_without_a_size() {
        static FREED: AtomicUsize = AtomicUsize::new(0);
        #[derive(Clone, Copy, Default)]
        struct Named;
        // SAFETY: the global allocator.
        unsafe impl Allocator for Named {
            fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
                Global.allocate(layout)
            }
            unsafe fn deallocate(&self, memory: NonNull<u8>, layout: Layout) {
                FREED.fetch_add(1, Ordering::Relaxed);
                // SAFETY: the caller's debts.
                unsafe { Global.deallocate(memory, layout) };
            }
        }
        for n in 0..100 {
            let object = BoxIn::into_raw(BoxIn::new_in(n.to_string(), Named));
            // SAFETY: a box's of `Named`, seen by nobody.
            unsafe { kvfree::retire_box_in::<_, Named>(NonNull::new(object).unwrap()) };
        }
        kvfree::barrier();
        assert_eq!(FREED.load(Ordering::Relaxed), 100);
    }
}
