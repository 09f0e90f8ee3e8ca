//! K2: two-argument `retire` from a signal handler, wherever it interrupts.
//!
//! What bounds the time of the storm is not work but the scheduler: every signal waits for the thread that it is for to get a CPU. So there
//! are few by default; where exactly they come, `signal_steps` does not leave to chance.

#![cfg(all(feature = "std", target_os = "linux", not(miri), not(loom)))]

use kvfree::{Config, DeferFree, Kvfree};
use pagealloc::{Mmap, Zone};
use rcu_core::cpu::Threads;
use rcu_core::{GracePeriod, HasHead, Head, Rcu, has_head};
use slab::Kmalloc;
use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

mod cfg {
    //! Sizes, in one place.
    /// Signals, each of which retires [`EACH`] objects: many more with `STRESS_LONG` set, as `cargo xtask test-all --long` has it.
    pub(crate) fn signals() -> usize {
        if cfg!(thread_sanitizer) || std::env::var_os("STRESS_LONG").is_none() {
            400
        } else {
            8_000
        }
    }
    pub(crate) const EACH: usize = 4;
}

rcu_tree::static_tree! {
    /// The domain of this test.
    struct Stormy;
}

type Pages = &'static Zone<Threads, Mmap>;
type Kernel = Kmalloc<Threads, Pages, Stormy>;
type Front = Kvfree<Threads, Pages, Stormy, &'static Kernel>;

#[repr(C)]
struct Node {
    mark: usize,
    head: Head,
}
has_head!(Node, head);

const SIGNALS: [libc::c_int; 2] = [libc::SIGUSR1, libc::SIGUSR2];

static FRONT: AtomicPtr<Front> = AtomicPtr::new(std::ptr::null_mut());
static STOCK: OnceLock<Vec<AtomicPtr<Node>>> = OnceLock::new();
static TAKEN: AtomicUsize = AtomicUsize::new(0);
static HANDLED: AtomicUsize = AtomicUsize::new(0);

/// Retires the next objects of the stock, some of them inside a section.
extern "C" fn handler(_signal: libc::c_int) {
    // SAFETY: set before the handler is installed, and never freed.
    let front = unsafe { &*FRONT.load(Ordering::Acquire) };
    let guard = rcu_core::read_lock::<Stormy>();
    for _ in 0..cfg::EACH {
        let next = TAKEN.fetch_add(1, Ordering::Relaxed);
        let node = (STOCK.get().and_then(|stock| stock.get(next)))
            .map(|n| n.swap(std::ptr::null_mut(), Ordering::Acquire));
        if let Some(node) = node.and_then(NonNull::new) {
            // SAFETY: a node of the stock.
            let head = unsafe { Node::head_of(node) };
            // SAFETY: from the front end's allocator, taken by this call alone.
            unsafe { front.retire(head, Node::OFFSET) };
        }
    }
    drop(guard);
    HANDLED.fetch_add(1, Ordering::Release);
}

fn alloc(kmalloc: &Kernel, size: usize) -> NonNull<Node> {
    let node = kmalloc
        .kmalloc(Layout::from_size_align(size, 8).unwrap())
        .unwrap()
        .cast::<Node>();
    // SAFETY: fresh memory, large enough.
    unsafe {
        node.write(Node {
            mark: size,
            head: Head::new(),
        })
    };
    node
}

/// Small ones for the sheaves, and for the blocks and their heads large ones, which the sheaves do not take.
const SIZES: [usize; 3] = [64, 512, 72_000];
const _: () = assert!(SIZES[2] > slab::MAX_CLASS_BYTES);

#[test]
fn k2_k19_a_storm_of_signals() {
    let zone: Pages = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    let kmalloc = Box::into_raw(Box::new(Kernel::new(Threads, zone, Stormy).unwrap()));
    // SAFETY: made just now; given back at the end.
    let objects: &'static Kernel = unsafe { &*kmalloc };
    let config = Config::new().ask_after_blocks(1).ask_after_bytes(200_000);
    // SAFETY: the allocator waits for `Stormy`, and goes after the front end.
    let front = unsafe { Kvfree::new(Threads, zone, Stormy, objects, config) }.unwrap();
    let front = Box::into_raw(Box::new(front));
    FRONT.store(front, Ordering::Release);
    let signals = cfg::signals();
    // One large one in fifteen: they are not small.
    let size = |i: usize| SIZES[if i.is_multiple_of(15) { 2 } else { i % 2 }];
    let stock = (0..signals * cfg::EACH).map(|i| AtomicPtr::new(alloc(objects, size(i)).as_ptr()));
    let stock = STOCK.get_or_init(|| stock.collect());
    // First uses, which may allocate: this thread's slot, and the tree's worker.
    Stormy.start();
    Stormy.barrier();
    drop(rcu_core::read_lock::<Stormy>());

    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all-zero bytes are a valid `sigaction`.
    let action = unsafe { action.assume_init_mut() };
    action.sa_sigaction = handler as extern "C" fn(libc::c_int) as usize;
    // Each signal waits for its own handler, not for the other's: they nest two deep.
    action.sa_flags = libc::SA_RESTART;
    for signal in SIGNALS {
        // SAFETY: a valid action, whose handler does nothing but what is tested.
        let installed = unsafe { libc::sigaction(signal, action, std::ptr::null_mut()) };
        assert_eq!(installed, 0);
    }

    // SAFETY: no debts.
    let target = unsafe { libc::pthread_self() } as usize;
    let done = AtomicBool::new(false);
    // SAFETY: the front end is dropped below, when nobody uses it any more.
    let shared = unsafe { &*front };
    std::thread::scope(|s| {
        let storm = s.spawn(|| {
            for i in 0..signals {
                // A pending signal swallows others: again, until that many were handled.
                while HANDLED.load(Ordering::Acquire) < i {
                    for signal in SIGNALS {
                        // SAFETY: the target is the test's thread, which waits for this one.
                        let sent = unsafe { libc::pthread_kill(target as libc::pthread_t, signal) };
                        assert_eq!(sent, 0);
                    }
                    std::thread::yield_now();
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        // What the handler interrupts: every path there is.
        let mut round = 0_usize;
        while !done.load(Ordering::Relaxed) {
            round += 1;
            let mut nodes = SIZES.map(|size| alloc(objects, size));
            for (i, node) in nodes.iter_mut().enumerate() {
                // SAFETY: allocated above, and not given up yet.
                assert_eq!(unsafe { node.as_ref() }.mark, SIZES[i], "handed out twice");
            }
            // SAFETY: a node of this thread.
            let head = unsafe { Node::head_of(nodes[0]) };
            // SAFETY: this thread's, given up.
            unsafe { shared.retire(head, Node::OFFSET) };
            // SAFETY: this thread's, given up.
            unsafe { shared.retire_mightsleep(nodes[1].cast()) };
            // SAFETY: this thread's, given up.
            unsafe { shared.retire_mightsleep(nodes[2].cast()) };
            let more = alloc(objects, SIZES[round % 3]);
            // SAFETY: this thread's, and nobody has seen it.
            unsafe { objects.kfree(more.cast()) };
            if round.is_multiple_of(16) {
                shared.tick();
            }
            if round.is_multiple_of(256) {
                shared.barrier();
            }
        }
        storm.join().unwrap();
    });
    // What no signal has taken.
    for place in stock {
        if let Some(node) = NonNull::new(place.swap(std::ptr::null_mut(), Ordering::Acquire)) {
            // SAFETY: taken just now.
            unsafe { objects.kfree(node.cast()) };
        }
    }
    // No signal is on its way any more: this thread ignores further ones.
    for signal in SIGNALS {
        // SAFETY: no debts.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: made by `Box::into_raw`; nobody uses it any more.
    drop(unsafe { Box::from_raw(front) });
    // SAFETY: as above.
    let kmalloc = unsafe { Box::from_raw(kmalloc) };
    assert!(kmalloc.destroy().is_ok(), "objects are lost");
    assert_eq!(zone.nr_allocated(), 0);
}
