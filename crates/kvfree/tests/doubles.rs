//! K18: an object that is retired while it waits is found, said so, and freed once.

#![cfg(feature = "std")]

use kvfree::{Config, DeferFree, DoubleRetire, Kvfree};
use pagealloc::{Mmap, Zone};
use rcu_core::cpu::Threads;
use slab::Kmalloc;
use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

rcu_tree::static_tree! { struct Twice; }

type Zoned = Zone<Threads, Mmap>;
type Objs<'a> = Kmalloc<Threads, &'a Zoned, Twice>;
type Front<'a> = Kvfree<Threads, &'a Zoned, Twice, &'a Objs<'a>>;

static TOLD: Mutex<Vec<(usize, bool)>> = Mutex::new(Vec::new());
static TURN: Mutex<()> = Mutex::new(());

/// Whether this build finds them as they are retired.
const AT_ONCE: bool = cfg!(any(debug_assertions, feature = "debug-retire"));

fn tell(double: &DoubleRetire) {
    TOLD.lock()
        .unwrap()
        .push((double.object.addr().get(), double.is_at_once));
}

fn with_front(test: impl FnOnce(&Front<'_>)) {
    let _turn = TURN.lock();
    let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
    // SAFETY: the layers outlive it, in the order of their making.
    let objects = unsafe { Kmalloc::new_scoped(Threads, &zone, Twice) }.unwrap();
    let config = Config::new().tells_double(tell);
    // SAFETY: `objects` waits for `Twice`; the front end is dropped first.
    let front = unsafe { Kvfree::new(Threads, &zone, Twice, &objects, config) }.unwrap();
    test(&front);
    drop(front);
    objects.destroy().unwrap();
    assert_eq!(zone.nr_allocated(), 0, "leaked, or freed twice");
}

static FREED: AtomicUsize = AtomicUsize::new(0);

unsafe fn free_boxes(objects: &mut [NonNull<u8>]) -> usize {
    for object in objects {
        // SAFETY: a box's, once.
        drop(unsafe { Box::from_raw(object.cast::<[usize; 9]>().as_ptr()) });
        FREED.fetch_add(1, Ordering::Relaxed);
    }
    0
}

#[test]
fn k18_a_foreign_object_retired_twice_is_freed_once() {
    with_front(|front| {
        let (freed, told) = (FREED.load(Ordering::Relaxed), TOLD.lock().unwrap().len());
        let boxes: Vec<_> = (0..50)
            .map(|n| NonNull::from(Box::leak(Box::new([n; 9]))).cast::<u8>())
            .collect();
        let guard = rcu_core::read_lock::<Twice>();
        for &object in boxes.iter().chain(&boxes[10..20]) {
            // SAFETY: a box's; some are given up twice, which is what is tested.
            unsafe { front.retire_many_mightsleep(object, free_boxes, 72) };
        }
        assert_eq!(front.stats().doubles, if AT_ONCE { 10 } else { 0 });
        drop(guard);
        front.barrier();
        assert_eq!(front.stats().doubles, 10);
        assert_eq!(FREED.load(Ordering::Relaxed) - freed, 50);
        let all = TOLD.lock().unwrap();
        let told = &all[told..];
        assert_eq!(
            told.len(),
            if AT_ONCE { 3 } else { 1 },
            "three of them at most"
        );
        assert!(
            told.iter()
                .all(|t| t.1 == AT_ONCE && boxes[10..20].iter().any(|b| b.addr().get() == t.0))
        );
        drop(all);
        // In its next life it is another object.
        let again = NonNull::from(Box::leak(Box::new([1_usize; 9]))).cast::<u8>();
        // SAFETY: a box's, given up once.
        unsafe { front.retire_many_mightsleep(again, free_boxes, 72) };
        front.barrier();
        assert_eq!(
            (front.stats().doubles, FREED.load(Ordering::Relaxed) - freed),
            (10, 51)
        );
    });
}

#[test]
fn k18_a_large_object_retired_twice_is_freed_once() {
    with_front(|front| {
        let layout = Layout::from_size_align(80_000, 8).unwrap();
        let object = front.objects().kmalloc(layout).unwrap();
        for _ in 0..3 {
            // SAFETY: an object of the allocator; given up more than once, which is what is tested.
            unsafe { front.retire_mightsleep(object) };
        }
        front.barrier();
        assert_eq!(front.stats().doubles, 2);
    });
}

/// With a head, in debug builds, wherever the object went: in a sheaf, in a block, or on the list of heads.
#[test]
#[cfg(debug_assertions)]
fn k18_an_object_with_a_head_is_found_at_once() {
    use rcu_core::{HasHead, Head, has_head};
    #[repr(C)]
    struct Node {
        head: Head,
        rest: [u64; 2],
    }
    has_head!(Node, head);
    rcu_core::on_double_call(|_| ());
    with_front(|front| {
        for bytes in [size_of::<Node>(), 70_000] {
            let layout = Layout::from_size_align(bytes, 8).unwrap();
            let node = front.objects().kmalloc(layout).unwrap().cast::<Node>();
            // SAFETY: fresh memory of at least this size.
            unsafe {
                node.write(Node {
                    head: Head::new(),
                    rest: [7; 2],
                });
            };
            // SAFETY: a whole node.
            let head = unsafe { Node::head_of(node) };
            let before = rcu_core::double_calls();
            let guard = rcu_core::read_lock::<Twice>();
            for n in 0..3 {
                // SAFETY: an object of the allocator; given up more than once, which is what is tested.
                unsafe { front.retire(head, Node::OFFSET) };
                assert_eq!(rcu_core::double_calls(), before + n);
            }
            // SAFETY: it waits for this section.
            assert_eq!(unsafe { node.as_ref() }.rest, [7; 2]);
            drop(guard);
            front.barrier();
        }
    });
}
