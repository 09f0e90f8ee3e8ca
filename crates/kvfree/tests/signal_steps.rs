//! K2: a signal handler allocates and retires between two instructions of what it interrupts, any two of them: the processor's trap flag sees
//! to it. Each call is stepped through again and again, and the handler acts one instruction later each time.

#![cfg(all(
    feature = "std",
    target_os = "linux",
    target_arch = "x86_64",
    not(miri),
    not(loom)
))]

use kvfree::{Config, DeferFree, Kvfree};
use pagealloc::{Attempt, Mmap, Zone};
use rcu_core::cpu::Threads;
use rcu_core::{GracePeriod, HasHead, Head, Rcu, has_head};
use slab::Kmalloc;
use std::alloc::Layout;
use std::arch::asm;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

rcu_tree::static_tree! {
    /// The domain of this test.
    struct Stepped;
}

type Pages = &'static Zone<Threads, Mmap>;
type Kernel = Kmalloc<Threads, Pages, Stepped>;
type Front = Kvfree<Threads, Pages, Stepped, &'static Kernel>;

/// Small ones for the sheaves, and for the blocks and their heads large ones, which the sheaves do not take.
const SIZES: [usize; 3] = [64, 512, 72_000];
const _: () = assert!(SIZES[2] > slab::MAX_CLASS_BYTES);

/// Instructions that one call is stepped through in all its runs, roughly. Each is a signal, so by default the handler acts at few of them,
/// all over the call; with `STRESS_LONG` set, as `cargo xtask test-all --long` has it, at hundreds of each.
fn steps_of_all() -> usize {
    if std::env::var_os("STRESS_LONG").is_some() {
        1_000_000
    } else {
        2_500
    }
}

static FRONT: AtomicPtr<Front> = AtomicPtr::new(std::ptr::null_mut());
/// Instructions of this run, and after how many of them the handler acts.
static STEPS: AtomicUsize = AtomicUsize::new(0);
static AT: AtomicUsize = AtomicUsize::new(0);
static RETIRED: AtomicUsize = AtomicUsize::new(0);
static WITHOUT: AtomicUsize = AtomicUsize::new(0);

#[repr(C)]
struct Node {
    mark: usize,
    head: Head,
}
has_head!(Node, head);

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

fn alloc(kmalloc: &Kernel, size: usize, attempt: Attempt) -> Option<NonNull<Node>> {
    let node = kmalloc.kmalloc_attempt(layout(size), attempt).ok()?.cast();
    let value = Node {
        mark: size,
        head: Head::new(),
    };
    // SAFETY: fresh memory, large enough.
    unsafe { node.write(value) };
    Some(node)
}

/// Retires one object by its head, inside a section.
fn retire_one(front: &Front, attempt: Attempt, size: usize) {
    let guard = rcu_core::read_lock::<Stepped>();
    if let Some(node) = alloc(front.objects(), size, attempt) {
        // SAFETY: allocated above.
        let head = unsafe { Node::head_of(node) };
        // SAFETY: from the front end's allocator, seen by nobody.
        unsafe { front.retire(head, Node::OFFSET) };
        RETIRED.fetch_add(1, Ordering::Relaxed);
    } else {
        WITHOUT.fetch_add(1, Ordering::Relaxed);
    }
    drop(guard);
}

extern "C" fn on_trap(_: libc::c_int) {
    let step = STEPS.fetch_add(1, Ordering::Relaxed);
    if step == AT.load(Ordering::Relaxed) {
        // SAFETY: set before the first trap, and it lives longer than the last.
        let front = unsafe { &*FRONT.load(Ordering::Relaxed) };
        // One for the sheaves, one for blocks and heads.
        retire_one(front, Attempt::TryLock, SIZES[step % 2]);
        retire_one(front, Attempt::TryLock, SIZES[2]);
    }
}

/// Makes the processor trap after each instruction, or not any more.
#[inline(always)]
fn step(on: bool) {
    if on {
        // SAFETY: sets a flag for which there is a handler.
        unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
    } else {
        // SAFETY: takes it back.
        unsafe { asm!("pushfq", "and qword ptr [rsp], -0x101", "popfq") };
    }
}

#[test]
fn k2_k19_a_handler_at_any_instruction() {
    let zone: Pages = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    let kmalloc = Box::into_raw(Box::new(Kernel::new(Threads, zone, Stepped).unwrap()));
    // SAFETY: made just now; given back at the end.
    let objects: &'static Kernel = unsafe { &*kmalloc };
    let config = Config::new().ask_after_blocks(1).ask_after_bytes(200_000);
    // SAFETY: the allocator waits for `Stepped`, and goes after the front end.
    let front = unsafe { Kvfree::new(Threads, zone, Stepped, objects, config) }.unwrap();
    let front = Box::into_raw(Box::new(front));
    FRONT.store(front, Ordering::Release);
    // SAFETY: made just now; dropped below, when nobody uses it any more.
    let shared = unsafe { &*front };
    // First uses, which may allocate and make threads: the slot, the tree's worker, an array of each size.
    Stepped.start();
    Stepped.barrier();
    for size in SIZES {
        retire_one(shared, Attempt::MayGrow, size);
    }
    shared.barrier();

    // SAFETY: an all-zero action is one without flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_trap as *const () as usize;
    // SAFETY: a handler that returns, and calls what may be called from one.
    let set = unsafe { libc::sigaction(libc::SIGTRAP, &raw const action, std::ptr::null_mut()) };
    assert_eq!(set, 0);

    let retire = |node: NonNull<Node>| {
        // SAFETY: this call's object.
        let head = unsafe { Node::head_of(node) };
        // SAFETY: given up, seen by nobody.
        unsafe { shared.retire(head, Node::OFFSET) };
    };
    let retire_headless = |node: NonNull<Node>| {
        // SAFETY: this call's object, given up.
        unsafe { shared.retire_mightsleep(node.cast()) };
    };
    let free = |node: NonNull<Node>| {
        // SAFETY: this call's object, seen by nobody.
        unsafe { objects.kfree(node.cast()) };
    };
    let try_retire = |node: NonNull<Node>| {
        // SAFETY: this call's object, given up if it is taken.
        if let Err(node) = unsafe { shared.try_retire(node.cast()) } {
            free(node.cast());
        }
    };
    let tick = |node: NonNull<Node>| {
        free(node);
        shared.tick();
    };
    let paths: [&dyn Fn(NonNull<Node>); 5] = [&retire, &retire_headless, &try_retire, &free, &tick];
    let (mut acted, steps_of_all) = (0, steps_of_all());
    for path in paths {
        for size in SIZES {
            let (mut at, mut all) = (0, 0);
            while all < steps_of_all {
                STEPS.store(0, Ordering::Relaxed);
                AT.store(at, Ordering::Relaxed);
                step(true);
                let node = alloc(objects, size, Attempt::MayGrow);
                step(false);
                let node = node.expect("memory");
                // SAFETY: allocated above, and not given up yet.
                assert_eq!(unsafe { node.as_ref() }.mark, size, "handed out twice");
                step(true);
                path(node);
                step(false);
                let steps = STEPS.load(Ordering::Relaxed);
                if at >= steps {
                    break;
                }
                acted += 1;
                all += steps;
                // As many runs as it may have, all over it.
                at += (steps * steps / steps_of_all).max(1);
            }
            shared.barrier();
        }
    }
    let [retired, without] = [&RETIRED, &WITHOUT].map(|n| n.load(Ordering::Relaxed));
    assert!(acted >= 15, "the handler acted {acted} times");
    assert_eq!(retired + without, 2 * acted + SIZES.len());
    assert!(retired > acted, "handlers, too, get memory");

    // SAFETY: made by `Box::into_raw`; nobody uses it any more.
    drop(unsafe { Box::from_raw(front) });
    // SAFETY: as above.
    let kmalloc = unsafe { Box::from_raw(kmalloc) };
    assert!(kmalloc.destroy().is_ok(), "objects are lost");
    assert_eq!(zone.nr_allocated(), 0);
}
