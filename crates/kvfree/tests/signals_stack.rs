//! K2 on the default stack: signal handlers retire while the monitor comes and goes, at the limit, with blocks and without.
//!
//! As in `signals`, the scheduler bounds how long that takes, and so do the monitor's comings and goings, each of which it lingers for.

#![cfg(all(feature = "std", target_os = "linux", not(miri), not(loom)))]

use kvfree::{Builder, Config, RcuBox};
use rcu_core::{Head, has_head};
use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::time::Duration;

mod cfg {
    //! Sizes, in one place.
    /// Signals, each of which retires [`EACH`] objects: many more with `STRESS_LONG` set, as `cargo xtask test-all --long` has it.
    pub(crate) fn signals() -> usize {
        if cfg!(thread_sanitizer) || std::env::var_os("STRESS_LONG").is_none() {
            120
        } else {
            2_000
        }
    }
    pub(crate) const EACH: usize = 3;
    /// So often, the storm waits until the monitor is gone.
    pub(crate) const CALMS: usize = 2;
}

#[repr(C)]
struct Node {
    mark: usize,
    head: Head,
}
has_head!(Node, head);

/// Small ones for the sheaves; large ones for blocks and heads.
const SIZES: [usize; 3] = [64, 72_000, 512];
const _: () = assert!(SIZES[1] > slab::MAX_CLASS_BYTES);

static STOCK: OnceLock<Vec<AtomicPtr<Node>>> = OnceLock::new();
static TAKEN: AtomicUsize = AtomicUsize::new(0);
static HANDLED: AtomicUsize = AtomicUsize::new(0);
static TOLD: AtomicUsize = AtomicUsize::new(0);
static DROPPED: AtomicUsize = AtomicUsize::new(0);

struct Counted([u8; 200]);

impl Drop for Counted {
    fn drop(&mut self) {
        assert_eq!(self.0[9], 9);
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

extern "C" fn handler(_signal: libc::c_int) {
    let guard = kvfree::read_lock();
    for _ in 0..cfg::EACH {
        let next = TAKEN.fetch_add(1, Ordering::Relaxed);
        let place = STOCK.get().and_then(|stock| stock.get(next));
        let node = place.map(|n| n.swap(std::ptr::null_mut(), Ordering::Acquire));
        if let Some(node) = node.and_then(NonNull::new) {
            // SAFETY: from the stack's allocator, taken by this call alone.
            unsafe { kvfree::retire(node) };
        }
    }
    drop(guard);
    HANDLED.fetch_add(1, Ordering::Release);
}

fn alloc(size: usize) -> NonNull<Node> {
    let layout = Layout::from_size_align(size, 8).unwrap();
    let node = kvfree::objects().kmalloc(layout).unwrap().cast::<Node>();
    let value = Node {
        mark: size,
        head: Head::new(),
    };
    // SAFETY: fresh memory, large enough.
    unsafe { node.write(value) };
    node
}

#[test]
fn k2_k8_a_storm_of_signals_while_the_monitor_comes_and_goes() {
    // Reached again and again: what handlers retire is then overdrawn, and boxes wait.
    let config = (Config::new().hard_limit(1_000_000).soft_limit(250_000)).slot_limit(250_000);
    let config = config.ask_after_blocks(1).tells(|_| {
        TOLD.fetch_add(1, Ordering::Relaxed);
    });
    Builder::new()
        .delay(Duration::from_millis(1))
        .config(config)
        .install()
        .unwrap();
    let signals = cfg::signals();
    // One large one in fifteen: they are not small.
    let size = |i: usize| SIZES[if i.is_multiple_of(15) { 1 } else { i % 2 * 2 }];
    let stock = (0..signals * cfg::EACH).map(|i| AtomicPtr::new(alloc(size(i)).as_ptr()));
    let stock = STOCK.get_or_init(|| stock.collect());
    // First uses, which may allocate: this thread's slot, the front end, and the tree's worker.
    kvfree::front();
    drop(kvfree::read_lock());
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all-zero bytes are a valid `sigaction`.
    let action = unsafe { action.assume_init_mut() };
    action.sa_sigaction = handler as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: a valid action, whose handler does nothing but what is tested.
    let installed = unsafe { libc::sigaction(libc::SIGUSR1, action, std::ptr::null_mut()) };
    assert_eq!(installed, 0);
    // SAFETY: no debts.
    let target = unsafe { libc::pthread_self() } as usize;
    let (done, calm) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut boxes = 0;
    std::thread::scope(|s| {
        let storm = s.spawn(|| {
            for i in 0..signals {
                let part = signals / cfg::CALMS;
                if i % part == part - 1 {
                    // The next signal finds no monitor, and calls it.
                    calm.store(true, Ordering::Relaxed);
                    while kvfree::stats().is_monitored {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    calm.store(false, Ordering::Relaxed);
                }
                while HANDLED.load(Ordering::Acquire) < i {
                    // SAFETY: the target is the test's thread, which waits for this one.
                    let sent =
                        unsafe { libc::pthread_kill(target as libc::pthread_t, libc::SIGUSR1) };
                    assert_eq!(sent, 0);
                    std::thread::yield_now();
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        // What the handler interrupts.
        let mut round = 0_usize;
        while !done.load(Ordering::Relaxed) {
            if calm.load(Ordering::Relaxed) {
                std::thread::yield_now();
                continue;
            }
            round += 1;
            boxes += 1;
            drop(RcuBox::new(Counted([9; 200])));
            let node = alloc(SIZES[round % 3]);
            // SAFETY: allocated above, and not given up yet.
            let mark = unsafe { node.as_ref() }.mark;
            assert_eq!(mark, SIZES[round % 3], "handed out twice");
            match round % 4 {
                // SAFETY: this thread's, given up.
                0 => unsafe { kvfree::retire_mightsleep(node.cast()) },
                // SAFETY: this thread's, given up.
                1 => unsafe { kvfree::retire(node) },
                2 => {
                    // SAFETY: this thread's, given up if it is taken.
                    let back = unsafe { kvfree::front().try_retire(node.cast()) };
                    if let Err(node) = back {
                        // SAFETY: still this thread's, and seen by nobody.
                        unsafe { kvfree::objects().kfree(node) };
                    }
                }
                // SAFETY: this thread's, and nobody has seen it.
                _ => unsafe { kvfree::objects().kfree(node.cast()) },
            }
            if round.is_multiple_of(512) {
                kvfree::front().relieve();
                kvfree::front().shrink_count();
                kvfree::front().shrink_scan(2);
                kvfree::barrier();
            }
        }
        storm.join().unwrap();
    });
    // SAFETY: no debts.
    unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
    for place in stock {
        if let Some(node) = NonNull::new(place.swap(std::ptr::null_mut(), Ordering::Acquire)) {
            // SAFETY: taken just now.
            unsafe { kvfree::objects().kfree(node.cast()) };
        }
    }
    kvfree::barrier();
    assert_eq!(DROPPED.load(Ordering::Relaxed), boxes);
    let stats = kvfree::stats();
    let front = stats.front.unwrap();
    assert_eq!((front.objects_waiting, front.panicked), (0, 0), "{front}");
    let objects = stats.objects.unwrap();
    let out: usize = objects
        .classes
        .iter()
        .map(|class| class.live + class.waiting)
        .sum();
    assert_eq!((out, objects.large_bytes), (0, 0), "objects are lost");
}
