//! L12: allocating, freeing and retiring in signal handlers, wherever they interrupt.

#![cfg(all(feature = "std", target_os = "linux", not(miri), not(loom)))]

use pagealloc::{Attempt, Mmap, Zone};
use rcu_core::NoReaders;
use rcu_core::cpu::Threads;
use slab::{Kmalloc, MAX_CLASS_BYTES, RawCache};
use std::alloc::Layout;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

mod cfg {
    //! Sizes, in one place.
    const SMALL: bool = cfg!(thread_sanitizer);
    pub(crate) const SIGNALS: usize = if SMALL { 500 } else { 2_500 };
    /// Objects that a handler exchanges.
    pub(crate) const EACH: usize = 6;
    /// Places where objects are left for whoever comes next.
    pub(crate) const PLACES: usize = 256;
}

type Pages = &'static Zone<Threads, Mmap>;
type Kernel = Kmalloc<Threads, Pages, NoReaders>;

const SIGNALS: [libc::c_int; 2] = [libc::SIGUSR1, libc::SIGUSR2];
/// Small ones, two with few objects to a sheaf, and a large block.
const SIZES: [usize; 5] = [64, 200, 4096, 9000, MAX_CLASS_BYTES + 4];

static KERNEL: AtomicPtr<Kernel> = AtomicPtr::new(ptr::null_mut());
static PLACES: [AtomicPtr<usize>; cfg::PLACES] =
    [const { AtomicPtr::new(ptr::null_mut()) }; cfg::PLACES];
static HANDLED: AtomicUsize = AtomicUsize::new(0);
static TURN: AtomicUsize = AtomicUsize::new(0);
static GOT: AtomicUsize = AtomicUsize::new(0);

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

/// Marks memory as handed out, or ends the program: a panic in a handler helps nobody.
fn mark(memory: NonNull<u8>, size: usize) -> *mut usize {
    let words = memory.cast::<usize>();
    // SAFETY: the memory is the caller's, and has room.
    unsafe { words.write(size) };
    words.as_ptr()
}

/// Takes what lies at the place, puts `new` there, and gives up what lay there.
fn exchange(kernel: &Kernel, place: usize, new: *mut usize, retire: bool) {
    let old = PLACES[place % cfg::PLACES].swap(new, Ordering::AcqRel);
    let Some(old) = NonNull::new(old) else {
        return;
    };
    // SAFETY: marked by whoever put it there, and now this call's.
    let size = unsafe { old.read() };
    if !SIZES.contains(&size) {
        std::process::abort();
    }
    let old = old.cast::<u8>();
    // SAFETY: this call's.
    if retire && unsafe { kernel.retire(old) }.is_ok() {
        return;
    }
    // SAFETY: this call's still.
    unsafe { kernel.kfree_attempt(old, Attempt::TryLock) };
}

/// The cache of objects of 64 bytes.
fn of_64(kernel: &Kernel) -> &RawCache<Threads, Pages, NoReaders> {
    let found = kernel.caches().iter().find(|c| c.layout().size() == 64);
    found.expect("a class of 64 bytes")
}

extern "C" fn handler(_signal: libc::c_int) {
    // SAFETY: set before the handler is installed, and freed after signals are ignored.
    let kernel = unsafe { &*KERNEL.load(Ordering::Acquire) };
    for _ in 0..cfg::EACH {
        let turn = TURN.fetch_add(1, Ordering::Relaxed);
        let size = SIZES[turn % SIZES.len()];
        let new = kernel.kmalloc_attempt(layout(size), Attempt::TryLock);
        GOT.fetch_add(usize::from(new.is_ok()), Ordering::Relaxed);
        let new = new.map_or(ptr::null_mut(), |memory| mark(memory, size));
        exchange(kernel, turn, new, turn.is_multiple_of(3));
    }
    if let Ok(mut aside) = of_64(kernel).prefill(2, Attempt::TryLock) {
        match aside.pop() {
            Some(object) => exchange(kernel, 0, mark(object, 64), false),
            None => std::process::abort(),
        }
    }
    HANDLED.fetch_add(1, Ordering::Release);
}

#[test]
fn l12_a_storm_of_signals() {
    let zone: Pages = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    let kernel = Box::into_raw(Box::new(Kernel::new(Threads, zone, NoReaders).unwrap()));
    // SAFETY: made just now; given back at the end.
    let shared: &'static Kernel = unsafe { &*kernel };
    assert_eq!(of_64(shared).layout().size(), 64);
    KERNEL.store(kernel, Ordering::Release);
    // First uses, which may allocate: this thread's slot.
    let first = shared.kmalloc(layout(64)).unwrap();
    // SAFETY: this thread's.
    unsafe { shared.kfree(first) };

    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all-zero bytes are a valid `sigaction`.
    let action = unsafe { action.assume_init_mut() };
    action.sa_sigaction = handler as extern "C" fn(libc::c_int) as usize;
    // Each signal waits for its own handler, not for the other's: they nest two deep.
    action.sa_flags = libc::SA_RESTART;
    for signal in SIGNALS {
        // SAFETY: a valid action, whose handler does nothing but what is tested.
        let installed = unsafe { libc::sigaction(signal, action, ptr::null_mut()) };
        assert_eq!(installed, 0);
    }
    // SAFETY: no debts.
    let target = unsafe { libc::pthread_self() } as usize;
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        let storm = s.spawn(|| {
            for i in 0..cfg::SIGNALS {
                // A pending signal swallows others: again, until that many were handled.
                while HANDLED.load(Ordering::Acquire) < i {
                    for signal in SIGNALS {
                        // SAFETY: the target is the test's thread, which waits for this one.
                        let sent = unsafe { libc::pthread_kill(target as libc::pthread_t, signal) };
                        assert_eq!(sent, 0);
                    }
                    // Takes the locks too, so that handlers find them taken by others as well.
                    let block = shared.kmalloc(layout(200)).unwrap();
                    exchange(shared, i * 7, mark(block, 200), false);
                    std::thread::yield_now();
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        // What the handler interrupts: every path there is.
        let mut round = 0_usize;
        while !done.load(Ordering::Relaxed) {
            round += 1;
            let mut memory: Vec<_> = (0..40)
                .map(|i| {
                    let size = SIZES[(round + i) % SIZES.len()];
                    let memory = shared.kmalloc(layout(size)).unwrap();
                    mark(memory, size);
                    memory
                })
                .collect();
            for (i, one) in memory.iter().enumerate() {
                // SAFETY: allocated above, and not given up yet.
                let size = unsafe { one.cast::<usize>().read() };
                assert_eq!(size, SIZES[(round + i) % SIZES.len()], "handed out twice");
            }
            let one = memory.pop().unwrap();
            exchange(shared, round, one.cast().as_ptr(), true);
            // SAFETY: this thread's.
            unsafe { shared.free_bulk(&mut memory) };
            match round % 64 {
                0 => shared.barrier(),
                16 => drop(shared.reap()),
                32 => drop(shared.shrink(8)),
                48 => drop(shared.stats()),
                _ => {}
            }
        }
        storm.join().unwrap();
    });
    // No signal is on its way any more: this thread ignores further ones.
    for signal in SIGNALS {
        // SAFETY: no debts.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    for place in 0..cfg::PLACES {
        exchange(shared, place, ptr::null_mut(), false);
    }
    assert!(GOT.load(Ordering::Relaxed) > 0, "handlers got memory");
    // SAFETY: made by `Box::into_raw`; nobody uses it any more.
    let kernel = unsafe { Box::from_raw(kernel) };
    if let Err(busy) = kernel.destroy() {
        panic!("objects are lost: {busy}\n{}", busy.cache.stats());
    }
    assert_eq!(zone.nr_allocated(), 0);
}
