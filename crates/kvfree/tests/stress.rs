//! Threads that come and go, publish, read, replace and retire; at the end every page is back.

#![cfg(all(feature = "std", not(loom)))]

mod common;

use common::Random;
use kvfree::{Config, DeferFree, DropFn, Kvfree, RcuBox, RcuCell, read_lock};
use pagealloc::{Mmap, Zone};
use rcu_core::cpu::Threads;
use rcu_core::{Callback, GracePeriod, HasHead, Head, Rcu, has_head};
use slab::Kmalloc;
use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

mod cfg {
    //! Sizes, in one place.
    const SMALL: bool = cfg!(miri) || cfg!(thread_sanitizer);
    /// Threads that live at the same time, and how often each is replaced.
    pub(crate) const WRITERS: usize = 3;
    pub(crate) const READERS: usize = 2;
    pub(crate) const GENERATIONS: usize = if SMALL { 3 } else { 10 };
    /// What a writer does in its life.
    pub(crate) const OPS: usize = if SMALL { 500 } else { 5_000 };
    pub(crate) const CELLS: usize = 32;
    pub(crate) const BARRIERS: usize = if SMALL { 5 } else { 30 };
}

rcu_tree::static_tree! {
    /// The domain of the private stack.
    struct Private, unsafe free = free_private;
}

type Kernel<'z> = Kmalloc<Threads, &'z Zone<Threads, Mmap>, Private>;
type Front<'z, 'k> = Kvfree<Threads, &'z Zone<Threads, Mmap>, Private, &'k Kernel<'z>>;

/// The private stack's allocator, while there is one.
static KMALLOC: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());

unsafe fn free_private(object: NonNull<u8>) {
    // SAFETY: set while objects of the private stack are out; the lifetime is the test's.
    let kmalloc = unsafe { &*KMALLOC.load(Ordering::Acquire).cast::<Kernel<'static>>() };
    // SAFETY: the object came from there, and its time has come.
    unsafe { kmalloc.kfree(object) };
}

const ALIVE: usize = 0x1234_5678_9abc_def0_u64 as usize;
const DEAD: usize = 0xdead_dead_dead_dead_u64 as usize;

/// A canary and a head. Larger objects have one at their front.
#[repr(C)]
struct Node {
    head: Head,
    size: usize,
    id: AtomicUsize,
    mark: AtomicUsize,
}
has_head!(Node, head);

impl Node {
    /// Marks fresh memory: `ALIVE` last, so that memory reused under a reader is seen to be.
    fn write(memory: NonNull<u8>, size: usize, id: usize) -> NonNull<Self> {
        let node = memory.cast::<Self>();
        let value = Self {
            head: Head::new(),
            size,
            id: AtomicUsize::new(id),
            mark: AtomicUsize::new(DEAD),
        };
        // SAFETY: fresh memory, large enough.
        unsafe { node.write(value) };
        // SAFETY: written just now.
        let fresh = unsafe { node.as_ref() };
        fresh
            .mark
            .store(ALIVE ^ node.addr().get() ^ id, Ordering::Relaxed);
        node
    }

    fn check(&self) -> usize {
        let id = self.id.load(Ordering::Relaxed);
        let here = std::ptr::from_ref(self).addr();
        assert_eq!(
            self.mark.load(Ordering::Relaxed),
            ALIVE ^ here ^ id,
            "freed under a reader"
        );
        id
    }

    fn bury(&self) {
        self.check();
        self.mark.store(DEAD, Ordering::Relaxed);
    }
}

unsafe fn drop_node(object: NonNull<u8>) {
    // SAFETY: a node, whose time has come.
    unsafe { object.cast::<Node>().as_ref() }.bury();
    DROPPED.fetch_add(1, Ordering::Relaxed);
    // SAFETY: it came from the private stack.
    unsafe { free_private(object) };
}

unsafe fn drop_node_by_head(head: NonNull<Head>) {
    // SAFETY: the head of a node.
    let object = unsafe { Node::OFFSET.object(head) };
    // SAFETY: as above.
    unsafe { drop_node(object) };
}

static DROPPED: AtomicUsize = AtomicUsize::new(0);
static WITH_DROP: AtomicUsize = AtomicUsize::new(0);

struct Table {
    cells: [AtomicPtr<Node>; cfg::CELLS],
    next_id: AtomicUsize,
}

impl Table {
    fn read(&self, random: &mut Random) {
        let guard = rcu_core::read_lock::<Private>();
        let cell = &self.cells[random.below(cfg::CELLS)];
        // SAFETY: the section keeps what is loaded in it.
        if let Some(node) = unsafe { cell.load(Ordering::Acquire).as_ref() } {
            let id = node.check();
            for _ in 0..random.below(4) {
                std::thread::yield_now();
                assert_eq!(node.check(), id, "became another one under a reader");
            }
        }
        drop(guard);
    }

    fn replace(&self, front: &Front<'_, '_>, random: &mut Random) {
        let kmalloc = *front.objects();
        let size = [64, 64, 64, 100, 512, 3000, 12_000][random.below(7)];
        let new = match kmalloc.kmalloc(Layout::from_size_align(size, 8).unwrap()) {
            Ok(memory) if random.below(8) > 0 => {
                let id = self.next_id.fetch_add(1, Ordering::Relaxed);
                Node::write(memory, size, id).as_ptr()
            }
            Ok(memory) => {
                // SAFETY: allocated just now, and seen by nobody.
                unsafe { kmalloc.kfree(memory) };
                std::ptr::null_mut()
            }
            Err(_) => std::ptr::null_mut(),
        };
        let old = self.cells[random.below(cfg::CELLS)].swap(new, Ordering::AcqRel);
        if let Some(old) = NonNull::new(old) {
            retire(front, old, random.below(6));
        }
    }
}

/// Retires a node that was unlinked, in one way or another.
fn retire(front: &Front<'_, '_>, node: NonNull<Node>, how: usize) {
    let object = node.cast::<u8>();
    // SAFETY: unlinked by the caller, and not retired yet.
    let head = unsafe { Node::head_of(node) };
    match how {
        // SAFETY: the caller unlinked it; from the stack's allocator, with its head.
        0 | 1 => unsafe { front.retire(head, Node::OFFSET) },
        // SAFETY: as above.
        2 => unsafe { front.retire_mightsleep(object) },
        3 => {
            // SAFETY: as above; still the caller's if it comes back.
            if unsafe { front.try_retire(object) }.is_err() {
                // A callback, which migrates when the thread ends.
                // SAFETY: as above.
                unsafe { Private.call(head, Callback::Free(Node::OFFSET)) };
            }
        }
        4 => {
            WITH_DROP.fetch_add(1, Ordering::Relaxed);
            // SAFETY: as above; the function frees it.
            unsafe { front.retire_with_mightsleep(object, drop_node as DropFn, 64) };
        }
        _ => {
            WITH_DROP.fetch_add(1, Ordering::Relaxed);
            // SAFETY: as above; the function frees it.
            unsafe { front.retire_head(head, Callback::Run(drop_node_by_head), 64) };
        }
    }
}

/// Retires a few objects with destructors: a barrier must have dropped them all.
fn barrier_covers_own(front: &Front<'_, '_>, dropped: &AtomicUsize) {
    #[repr(C)]
    struct Counted(AtomicPtr<AtomicUsize>);
    unsafe fn count(object: NonNull<u8>) {
        // SAFETY: made below, and given up.
        let counted = unsafe { Box::from_raw(object.cast::<Counted>().as_ptr()) };
        // SAFETY: the counter outlives the barrier that follows.
        unsafe { &*counted.0.load(Ordering::Relaxed) }.fetch_add(1, Ordering::Relaxed);
    }
    let before = dropped.load(Ordering::Relaxed);
    for _ in 0..5 {
        let counted = Counted(AtomicPtr::new(std::ptr::from_ref(dropped).cast_mut()));
        let object = NonNull::from(Box::leak(Box::new(counted))).cast();
        // SAFETY: nobody else knows the object; the function drops it.
        unsafe { front.retire_with_mightsleep(object, count, 8) };
    }
    front.barrier();
    assert_eq!(
        dropped.load(Ordering::Relaxed),
        before + 5,
        "a barrier returned too early"
    );
}

/// Sets the flag also when a thread panics, so that no other waits for ever.
struct Finish<'a>(&'a AtomicBool);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_private_stack_gives_every_page_back() {
    let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
    // SAFETY: everything is dropped in the reverse order, and nothing forgotten.
    let kmalloc: Kernel<'_> = unsafe { Kmalloc::new_scoped(Threads, &zone, Private) }.unwrap();
    KMALLOC.store(
        std::ptr::from_ref(&kmalloc).cast_mut().cast(),
        Ordering::Release,
    );
    let config = Config::new().ask_after_blocks(2);
    // SAFETY: the allocator waits for `Private`; everything is dropped in the reverse order.
    let front: Front<'_, '_> =
        unsafe { Kvfree::new(Threads, &zone, Private, &kmalloc, config) }.unwrap();
    let table = Table {
        cells: [const { AtomicPtr::new(std::ptr::null_mut()) }; cfg::CELLS],
        next_id: AtomicUsize::new(1),
    };
    let finished = AtomicBool::new(false);

    std::thread::scope(|s| {
        let (front, table, finished) = (&front, &table, &finished);
        let readers = (0..cfg::READERS).map(|r| {
            s.spawn(move || {
                let mut random = Random::new(r as u64);
                while !finished.load(Ordering::Relaxed) {
                    for _ in 0..200 {
                        table.read(&mut random);
                    }
                }
            })
        });
        let monitor = s.spawn(move || {
            while !finished.load(Ordering::Relaxed) {
                front.tick();
                std::thread::yield_now();
            }
        });
        let barriers = (0..2).map(|_| {
            s.spawn(move || {
                let dropped = AtomicUsize::new(0);
                for _ in 0..cfg::BARRIERS {
                    barrier_covers_own(front, &dropped);
                }
            })
        });
        let rest: Vec<_> = readers.chain(barriers).chain([monitor]).collect();
        {
            let _finish = Finish(finished);
            for generation in 0..cfg::GENERATIONS {
                let writers: Vec<_> = (0..cfg::WRITERS)
                    .map(|w| {
                        s.spawn(move || {
                            let mut random = Random::new((100 + generation * 10 + w) as u64);
                            for _ in 0..cfg::OPS {
                                match random.below(8) {
                                    0..6 => table.replace(front, &mut random),
                                    _ => table.read(&mut random),
                                }
                            }
                        })
                    })
                    .collect();
                for writer in writers {
                    writer.join().unwrap();
                }
            }
        }
        for thread in rest {
            thread.join().unwrap();
        }
    });

    for cell in &table.cells {
        if let Some(node) = NonNull::new(cell.swap(std::ptr::null_mut(), Ordering::AcqRel)) {
            retire(&front, node, 0);
        }
    }
    front.barrier();
    assert_eq!(
        DROPPED.load(Ordering::Relaxed),
        WITH_DROP.load(Ordering::Relaxed)
    );
    assert_eq!(front.stats().objects_waiting, 0);
    Private.barrier();
    drop(front);
    assert!(kmalloc.destroy().is_ok(), "objects are lost");
    KMALLOC.store(std::ptr::null_mut(), Ordering::Release);
    assert_eq!(zone.nr_allocated(), 0, "pages are lost");
}

/// Counts itself, and knows whether it was dropped.
struct Tracked {
    value: usize,
    alive: AtomicUsize,
    _text: String,
}

static MADE: AtomicUsize = AtomicUsize::new(0);
static GONE: AtomicUsize = AtomicUsize::new(0);

impl Tracked {
    fn new(value: usize) -> Self {
        MADE.fetch_add(1, Ordering::Relaxed);
        Self {
            value,
            alive: AtomicUsize::new(ALIVE),
            _text: value.to_string(),
        }
    }

    fn check(&self) -> usize {
        assert_eq!(
            self.alive.load(Ordering::Relaxed),
            ALIVE,
            "dropped under a reader"
        );
        self.value
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.check();
        self.alive.store(DEAD, Ordering::Relaxed);
        GONE.fetch_add(1, Ordering::Relaxed);
    }
}

/// No `unsafe` in what a user writes but for the box of the global allocator.
#[test]
fn the_default_stack_drops_every_box_once() {
    let cells: [RcuCell<Tracked>; cfg::CELLS] =
        std::array::from_fn(|i| RcuCell::new(RcuBox::new(Tracked::new(i))));
    let plain: [RcuCell<[usize; 20]>; cfg::CELLS] =
        std::array::from_fn(|i| RcuCell::new(RcuBox::new([i; 20])));
    let finished = AtomicBool::new(false);
    std::thread::scope(|s| {
        let (cells, plain, finished) = (&cells, &plain, &finished);
        let readers: Vec<_> = (0..cfg::READERS)
            .map(|r| {
                s.spawn(move || {
                    let mut random = Random::new(r as u64);
                    while !finished.load(Ordering::Relaxed) {
                        let guard = read_lock();
                        if let Some(seen) = cells[random.below(cfg::CELLS)].load(&guard) {
                            let value = seen.check();
                            std::thread::yield_now();
                            assert_eq!(seen.check(), value);
                        }
                        if let Some(seen) = plain[random.below(cfg::CELLS)].load(&guard) {
                            std::thread::yield_now();
                            assert!(seen.iter().all(|&n| n == seen[0]), "freed under a reader");
                        }
                    }
                })
            })
            .collect();
        {
            let _finish = Finish(finished);
            for generation in 0..cfg::GENERATIONS {
                let writers: Vec<_> = (0..cfg::WRITERS)
                    .map(|w| {
                        s.spawn(move || {
                            let mut random = Random::new((generation * 10 + w) as u64);
                            for i in 0..cfg::OPS / 2 {
                                let at = random.below(cfg::CELLS);
                                match random.below(4) {
                                    0 => cells[at].store(None),
                                    1 => plain[at].store(Some(RcuBox::new([i; 20]))),
                                    _ => cells[at].store(Some(RcuBox::new(Tracked::new(i)))),
                                }
                            }
                            if w == 0 {
                                let boxed = NonNull::from(Box::leak(Box::new(Tracked::new(w))));
                                // SAFETY: made by a box, and seen by nobody else.
                                unsafe { kvfree::stack::retire_box(boxed) };
                            }
                        })
                    })
                    .collect();
                for writer in writers {
                    writer.join().unwrap();
                }
                kvfree::barrier();
                let live = cells
                    .iter()
                    .filter(|cell| cell.load(&read_lock()).is_some())
                    .count();
                assert_eq!(
                    MADE.load(Ordering::Relaxed) - GONE.load(Ordering::Relaxed),
                    live
                );
            }
        }
        for reader in readers {
            reader.join().unwrap();
        }
    });
    drop(cells);
    drop(plain);
    kvfree::barrier();
    assert_eq!(MADE.load(Ordering::Relaxed), GONE.load(Ordering::Relaxed));
    let stats = kvfree::stats();
    assert_eq!(stats.front.unwrap().objects_waiting, 0);
    assert!(kvfree::Global.grace_periods() > 0);
}
