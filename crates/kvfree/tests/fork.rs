//! A front end and a stack in the child of a fork.

#![cfg(all(feature = "std", target_os = "linux", not(miri)))]

#[path = "../../rcu-core/tests/common/child.rs"]
mod child;

use child::{check, fork, on_a_thread};
use kvfree::{Config, DeferFree, Kvfree, Objects, RcuBox, RcuCell, read_lock};
use pagealloc::{AllocError, Order, PAGE_SIZE, PageAlloc, PageReq, PageTag};
use rcu_core::cpu::{Cpus, Threads};
use rcu_core::fork::after_fork_child;
use rcu_core::{Callback, Cookie, GracePeriod, HasHead, Head, Rcu, has_head};
use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

/// Forks; the child puts itself right, runs `child`, and ends. What it ended with: zero, the line of the check that failed, or
/// the signal, negative.
fn in_child(child: impl FnOnce()) -> i32 {
    let ended = fork(|| {
        // SAFETY: outside of every function of the stack, and the first thing that the child does; it uses guards of its own
        // slot only.
        unsafe { after_fork_child() };
        child();
    });
    ended.err().unwrap_or(0)
}

/// One at a time: who forks copies what the others are at.
static TURN: Mutex<()> = Mutex::new(());

struct Counts(&'static AtomicUsize);

impl Drop for Counts {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

fn wait_until(done: impl Fn() -> bool) {
    while !done() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What waited is freed by the child's barrier, and by the parent's; the child has a monitor of its own; and so has its child.
/// The monitor had been asked for, but its callback waits for the reader that is gone.
#[test]
fn what_waits_is_freed_in_the_child() {
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    static CELL: RcuCell<Counts> = RcuCell::empty();
    const N: usize = 700;
    let _turn = TURN.lock();
    let (inside, is_inside) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel::<()>();
    let cache = kvfree::cache::<[u64; 6]>("forked").unwrap();
    let reader = std::thread::spawn(move || {
        let guard = read_lock();
        inside.send(()).unwrap();
        may_leave.recv().unwrap();
        drop(guard);
    });
    is_inside.recv().unwrap();
    CELL.store(Some(RcuBox::new(Counts(&DROPPED))));
    (1..N).for_each(|_| CELL.store(Some(RcuBox::new(Counts(&DROPPED)))));
    let grandchild = || {
        drop(RcuBox::new(Counts(&DROPPED)));
        in_child(|| {
            kvfree::barrier();
            check(DROPPED.load(Ordering::Acquire) == N + 2);
            drop(RcuBox::new(Counts(&DROPPED)));
            wait_until(|| DROPPED.load(Ordering::Acquire) == N + 3);
        })
    };
    let child = in_child(|| {
        check(DROPPED.load(Ordering::Acquire) == 0);
        let guard = read_lock();
        check(CELL.load(&guard).is_some());
        drop(guard);
        CELL.store(None);
        kvfree::barrier();
        check(DROPPED.load(Ordering::Acquire) == N);
        let stats = kvfree::stats().front.unwrap();
        check((stats.objects_waiting, stats.bytes_charged, stats.forgotten) == (0, 0, 0));
        // Nobody waits for this one.
        drop(RcuBox::new(Counts(&DROPPED)));
        wait_until(|| DROPPED.load(Ordering::Acquire) == N + 1);
        let object = cache.alloc([1; 6]).unwrap();
        // SAFETY: allocated just now, and seen by nobody.
        unsafe { kvfree::retire_in_mightsleep(&cache, object) };
        kvfree::barrier();
        check(cache.raw().stats().waiting == 0);
        // So that no monitor is in the middle of something.
        wait_until(|| !kvfree::stats().is_monitored);
        check(grandchild() == 0);
    });
    assert_eq!(child, 0);
    assert_eq!(DROPPED.load(Ordering::Acquire), 0);
    leave.send(()).unwrap();
    reader.join().unwrap();
    CELL.store(None);
    kvfree::barrier();
    assert_eq!(DROPPED.load(Ordering::Acquire), N);
}

/// Grace periods of nobody: each is over at once. The tree's own tests fork in the middle of its grace periods.
#[derive(Clone, Copy)]
struct Nobody;

// SAFETY: there are no readers.
unsafe impl GracePeriod for Nobody {
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

// SAFETY: nobody enters.
unsafe impl Rcu for Nobody {
    type Token = ();
    fn enter(&self) {
        unreachable!("nobody reads");
    }
    unsafe fn exit(&self, (): ()) {}
    unsafe fn call(&self, _: NonNull<Head>, _: Callback) {
        unreachable!("nobody calls");
    }
    fn barrier(&self) {}
}

/// Where the pages' next caller can be stopped.
struct Gate(AtomicUsize);

static GATE: Gate = Gate(AtomicUsize::new(Gate::OPEN));

impl Gate {
    const OPEN: usize = 0;
    const CLOSED: usize = 1;
    /// Somebody stands before it.
    const REACHED: usize = 2;

    fn set(&self, state: usize) {
        self.0.store(state, Ordering::Release);
    }

    fn is(&self, state: usize) -> bool {
        self.0.load(Ordering::Acquire) == state
    }

    fn pass(&self) {
        let reached = |state| (state == Self::CLOSED).then_some(Self::REACHED);
        if self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, reached)
            .is_ok()
        {
            wait_until(|| self.is(Self::OPEN));
        }
    }
}

/// Pages and objects of the global allocator, which looks after itself at a fork.
#[derive(Clone, Copy)]
struct Global;

fn pages_layout(order: Order) -> Layout {
    Layout::from_size_align(order.bytes(), PAGE_SIZE).unwrap()
}

// SAFETY: memory of the global allocator; no tags are asked for.
unsafe impl PageAlloc for Global {
    fn alloc(&self, req: PageReq) -> Result<NonNull<u8>, AllocError> {
        GATE.pass();
        // SAFETY: the layout is not empty.
        let memory = unsafe { std::alloc::alloc_zeroed(pages_layout(req.order)) };
        NonNull::new(memory).ok_or(AllocError::OutOfMemory)
    }
    unsafe fn free_at(&self, block: NonNull<u8>, order: Order, _: pagealloc::Attempt) {
        // SAFETY: allocated above with this layout.
        unsafe { std::alloc::dealloc(block.as_ptr(), pages_layout(order)) };
    }
    unsafe fn set_tag(&self, _: NonNull<u8>, _: Order, _: PageTag) {}
    fn tag(&self, _: *const u8) -> Option<PageTag> {
        None
    }
    fn order_of(&self, _: *const u8) -> Option<Order> {
        None
    }
}

#[repr(C)]
struct Node {
    mark: AtomicUsize,
    head: Head,
}
has_head!(Node, head);

static FREED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: objects are boxes of nodes; nothing is deferred.
unsafe impl Objects for Global {
    unsafe fn try_defer(&self, _: NonNull<u8>) -> bool {
        false
    }
    fn is_large(&self, _: NonNull<u8>) -> bool {
        false
    }
    fn size_bytes(&self, _: NonNull<u8>) -> usize {
        size_of::<Node>()
    }
    unsafe fn free_bulk(&self, objects: &mut [NonNull<u8>]) {
        for object in objects {
            // SAFETY: a node's box, retired once.
            let node = unsafe { Box::from_raw(object.cast::<Node>().as_ptr()) };
            check(node.mark.swap(0xdead, Ordering::Relaxed) == 0xa11e);
            FREED.fetch_add(1, Ordering::Relaxed);
        }
    }
    fn barrier(&self) {}
    fn reap(&self) -> usize {
        0
    }
    fn waiting_bytes(&self) -> usize {
        0
    }
}

type Front = Kvfree<Threads, Global, Nobody, Global>;

fn retire(front: &Front, headless: bool) {
    let node = Node {
        mark: AtomicUsize::new(0xa11e),
        head: Head::new(),
    };
    let node = NonNull::from(Box::leak(Box::new(node)));
    if headless {
        // SAFETY: a box's, seen by nobody.
        unsafe { front.retire_mightsleep(node.cast()) };
    } else {
        // SAFETY: a whole node.
        let head = unsafe { Node::head_of(node) };
        // SAFETY: a box's, seen by nobody.
        unsafe { front.retire(head, Node::OFFSET) };
    }
}

/// Retires an object on so many threads, each on a slot of its own.
fn on_threads(front: &'static Front, n: usize) {
    on_a_thread(move || {
        retire(front, true);
        if n > 1 {
            on_threads(front, n - 1);
        }
    });
}

/// A thread in its first push has its slot's lock, and nothing says yet that there may be something in that slot.
#[test]
fn a_fork_in_the_middle_of_a_first_push() {
    let _turn = TURN.lock();
    // SAFETY: nothing is deferred; nothing is borrowed.
    let front = unsafe { Kvfree::new(Threads, Global, Nobody, Global, Config::new()) }.unwrap();
    let front: &'static Front = Box::leak(Box::new(front));
    // The hook is there.
    front.barrier();
    GATE.set(Gate::CLOSED);
    let child = std::thread::scope(|s| {
        s.spawn(|| retire(front, true));
        wait_until(|| GATE.is(Gate::REACHED));
        let child = in_child(|| {
            GATE.set(Gate::OPEN);
            // One of them has the slot of the thread that is not here.
            let (n, before) = (2 + Threads.nr_seen(), FREED.load(Ordering::Relaxed));
            on_threads(front, n);
            check(front.stats().synchronized == 0);
            front.barrier();
            check(FREED.load(Ordering::Relaxed) == before + n);
        });
        GATE.set(Gate::OPEN);
        child
    });
    assert_eq!(child, 0);
    front.barrier();
}

/// Whatever the other threads are doing, the child has a front end that frees what is retired there, and forgets no more than
/// they were just at.
#[test]
fn a_fork_in_the_middle_of_everything() {
    const ROUNDS: usize = 20;
    let _turn = TURN.lock();
    // SAFETY: nothing is deferred; nothing is borrowed.
    let front = unsafe { Kvfree::new(Threads, Global, Nobody, Global, Config::new()) }.unwrap();
    let front: &'static Front = Box::leak(Box::new(front));
    let stop = AtomicBool::new(false);
    let works: [fn(&Front); 4] = [
        |front| (0..100).for_each(|_| retire(front, true)),
        |front| (0..100).for_each(|_| retire(front, false)),
        |front| {
            front.tick();
            front.relieve();
        },
        Kvfree::barrier,
    ];
    let children: Vec<i32> = std::thread::scope(|s| {
        for work in works {
            let stop = &stop;
            s.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    work(front);
                }
            });
        }
        let children = (0..ROUNDS).map(|_| {
            std::thread::yield_now();
            in_child(|| {
                front.barrier();
                let stats = front.stats();
                check(stats.objects_waiting == 0 && stats.bytes_charged == 0);
                check(stats.forgotten <= 3 * works.len());
                let before = FREED.load(Ordering::Relaxed);
                (0..1200).for_each(|n| retire(front, n % 2 == 0));
                front.barrier();
                check(FREED.load(Ordering::Relaxed) == before + 1200);
                // The monitor's thread may have begun or ended in the parent just then.
                on_a_thread(move || retire(front, false));
                while front.tick() > 0 {
                    std::thread::yield_now();
                }
                check(FREED.load(Ordering::Relaxed) == before + 1201);
            })
        });
        let children = children.collect();
        stop.store(true, Ordering::Relaxed);
        children
    });
    assert_eq!(children, [0; ROUNDS]);
    front.barrier();
}
