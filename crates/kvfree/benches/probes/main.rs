//! One function for each fast path of the stack, to be counted by `cargo xtask icount`: in the compiler's assembly, and by
//! callgrind.
//!
//! Each is `#[inline(never)]` under a name of its own that begins with `probe_`, so that a listing and a profile show it.
//! `probes NAME` runs that one [`CALLS`] times, all hits: the path was warmed up before through [the same body](probe), of
//! which callgrind sees no call. `probes` alone runs all of them, which is what `cargo bench` gets.

use core::hint::black_box;
use core::ptr::{self, NonNull};
use std::alloc::Layout;
use std::sync::LazyLock;

use kvfree::{Global, GlobalBox, RcuBox, RcuCell, TypedCache, read_lock};
use pagealloc::{Order, PageAlloc, PageReq};
use rcu_core::{Guard, Head, Online, OnlineGuard, Retired, has_head, read};

/// Calls of one probe. Few, so that no array runs full or dry in between.
const CALLS: usize = 8;
/// Calls of its body before. Enough for arrays to exist, lists to be filled and the kernel to have been asked.
const WARM_UP: usize = 100;

/// An object of a line, with a head.
#[repr(C)]
struct Object {
    words: [u64; 6],
    head: Head,
}
has_head!(Object, head);

const LAYOUT: Layout = Layout::new::<Object>();

static CELL: LazyLock<RcuCell<u64>> = LazyLock::new(|| RcuCell::new(RcuBox::new(7)));
static CACHE: LazyLock<TypedCache<u64>> =
    LazyLock::new(|| kvfree::cache("probes").expect("memory for a cache"));

// Those that are the same code end in a number of their own for an empty cell: the compiler would make them one function.

/// A function to count: `probe!(fn NAME(arguments) -> result { body })` makes `probe_NAME`, which is the body, and `NAME`,
/// which is inlined into whoever warms it up.
macro_rules! probe {
    ($(#[$meta:meta])* fn $name:ident / $symbol:ident ($($argument:ident: $kind:ty),*) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        #[inline(always)]
        fn $name($($argument: $kind),*) $(-> $result)? $body

        // SAFETY: the name is this program's alone.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "Rust" fn $symbol($($argument: $kind),*) $(-> $result)? {
            $name($($argument),*)
        }
    };
}

probe! {
    /// A section around one load of one pointer, and of the word behind it.
    fn read_guard / probe_read_guard(cell: &RcuCell<u64>) -> u64 {
        let guard = read_lock();
        cell.load(&guard).map_or(0, |word| *word)
    }
}

probe! {
    /// The same; the caller is inside a section.
    fn read_nested / probe_read_nested(cell: &RcuCell<u64>) -> u64 {
        let guard = read_lock();
        cell.load(&guard).map_or(1, |word| *word)
    }
}

probe! {
    /// The same as a closure.
    fn read_closure / probe_read_closure(cell: &RcuCell<u64>) -> u64 {
        read(|guard: &Guard<Global>| cell.load(guard).map_or(2, |word| *word))
    }
}

probe! {
    /// The same by a thread that is always inside.
    fn read_qsbr / probe_read_qsbr(cell: &RcuCell<u64>, guard: OnlineGuard<'_, Global>) -> u64 {
        cell.load(&guard).map_or(3, |word| *word)
    }
}

probe! {
    /// A quiescent state of such a thread.
    fn qsbr_quiescent / probe_qsbr_quiescent(online: &mut Online<Global>) {
        online.quiescent();
    }
}

probe! {
    /// A load under a guard that exists.
    fn cell_load / probe_cell_load(cell: &RcuCell<u64>, guard: &Guard<Global>) -> *const u64 {
        cell.load(guard).map_or(ptr::null(), ptr::from_ref)
    }
}

probe! {
    /// Publishing, and a cookie for what was there. Its two locked instructions are what orders them.
    fn cell_swap / probe_cell_swap(cell: &RcuCell<u64>, new: RcuBox<u64>) -> Option<Retired<RcuBox<u64>>> {
        cell.swap(Some(new))
    }
}

probe! {
    /// A grace period with nobody to wait for: no system call, but what orders it.
    fn synchronize / probe_synchronize() {
        kvfree::synchronize();
    }
}

probe! {
    fn page_alloc / probe_page_alloc(pages: kvfree::stack::Pages) -> Option<NonNull<u8>> {
        pages.alloc(PageReq::new(Order::ZERO)).ok()
    }
}

probe! {
    fn page_free / probe_page_free(pages: kvfree::stack::Pages, page: NonNull<u8>) {
        // SAFETY: whoever probes gives a page of the zone's, once.
        unsafe { pages.free(page, Order::ZERO) };
    }
}

probe! {
    fn typed_alloc / probe_typed_alloc(cache: &TypedCache<u64>) -> Option<NonNull<u64>> {
        // `cache` is the stack's; what it derefs to is slab's.
        cache.alloc(7).ok()
    }
}

probe! {
    fn typed_free / probe_typed_free(cache: &TypedCache<u64>, object: NonNull<u64>) {
        // SAFETY: whoever probes gives an object of the cache's, once.
        unsafe { cache.free(object) };
    }
}

probe! {
    fn typed_retire / probe_typed_retire(cache: &TypedCache<u64>, object: NonNull<u64>) -> bool {
        // SAFETY: as above.
        unsafe { cache.retire(object) }.is_ok()
    }
}

probe! {
    /// By a layout that is a constant, as almost all are.
    fn kmalloc / probe_kmalloc(objects: &'static kvfree::stack::Objs) -> Option<NonNull<u8>> {
        objects.kmalloc(LAYOUT).ok()
    }
}

probe! {
    /// By a layout that the compiler does not know.
    fn kmalloc_any / probe_kmalloc_any(objects: &'static kvfree::stack::Objs, layout: Layout) -> Option<NonNull<u8>> {
        objects.kmalloc(layout).ok()
    }
}

probe! {
    fn kfree / probe_kfree(objects: &'static kvfree::stack::Objs, object: NonNull<u8>) {
        // SAFETY: whoever probes gives an object of the allocator's, once.
        unsafe { objects.kfree(object) };
    }
}

probe! {
    fn kfree_sized / probe_kfree_sized(objects: &'static kvfree::stack::Objs, object: NonNull<u8>) {
        // SAFETY: as above, with the layout that it was asked for with.
        unsafe { objects.kfree_sized(object, LAYOUT) };
    }
}

probe! {
    fn retire_head / probe_retire_head(object: NonNull<Object>) {
        // SAFETY: whoever probes gives an object of the default stack's, unseen by anybody, once.
        unsafe { kvfree::retire(object) };
    }
}

probe! {
    fn retire_headless / probe_retire_headless(object: NonNull<u8>) {
        // SAFETY: as above.
        unsafe { kvfree::retire_mightsleep(object) };
    }
}

probe! {
    /// A box of the stack's whose value needs no dropping.
    fn retire_rcu_box / probe_retire_rcu_box(object: RcuBox<u64>) {
        drop(object);
    }
}

probe! {
    /// A box of the stack's whose value does.
    fn retire_dropping / probe_retire_dropping(object: RcuBox<Vec<u8>>) {
        drop(object);
    }
}

probe! {
    /// The same where boxes of another type, which another function drops, are retired in turns.
    fn retire_mixed / probe_retire_mixed(object: RcuBox<Box<u64>>) {
        drop(object);
    }
}

probe! {
    /// A box in the global allocator's memory.
    fn retire_global_box / probe_retire_global_box(object: GlobalBox<u64>) {
        drop(object);
    }
}

probe! {
    /// `Box::into_raw` of the global allocator's.
    fn retire_box / probe_retire_box(object: NonNull<u64>) {
        // SAFETY: whoever probes gives a box's pointer, unseen by anybody, once.
        unsafe { kvfree::retire_box(object) };
    }
}

/// Calls `warm` with what `make` makes, then `probe` with as much as that.
fn run<T, R>(mut make: impl FnMut() -> T, warm: impl Fn(T) -> R, probe: impl Fn(T) -> R) -> Vec<R> {
    let mut kept = Vec::with_capacity(WARM_UP + CALLS);
    kept.extend((0..WARM_UP).map(|_| warm(make())));
    let made: Vec<T> = (0..CALLS).map(|_| make()).collect();
    kept.extend(made.into_iter().map(|t| black_box(probe(t))));
    kept
}

/// What is allocated by `warm` and by `probe`, and goes back through `free`.
fn allocate<T>(warm: impl Fn() -> Option<T>, probe: impl Fn() -> Option<T>, free: impl Fn(T)) {
    (0..WARM_UP).for_each(|_| free(warm().expect("memory")));
    // Hits lie in the array only after as many frees.
    let some: Vec<T> = (0..CALLS).map(|_| warm().expect("memory")).collect();
    some.into_iter().for_each(&free);
    let probed: Vec<T> = (0..CALLS).map(|_| probe().expect("memory")).collect();
    probed.into_iter().for_each(&free);
}

fn object() -> NonNull<Object> {
    let object = kvfree::objects().kmalloc(LAYOUT).expect("memory");
    let object = object.cast::<Object>();
    let (words, head) = ([7; 6], Head::new());
    // SAFETY: fresh memory of this layout.
    unsafe { object.write(Object { words, head }) };
    // SAFETY: written just now.
    assert_eq!(unsafe { object.as_ref() }.words[5], 7);
    object
}

/// Every probe: its name, and what runs it.
const PROBES: [(&str, fn()); 24] = [
    ("read_guard", || {
        run(|| &*CELL, read_guard, probe_read_guard);
    }),
    ("read_nested", || {
        let _outer = read_lock();
        run(|| &*CELL, read_nested, probe_read_nested);
    }),
    ("read_closure", || {
        run(|| &*CELL, read_closure, probe_read_closure);
    }),
    ("read_qsbr", || {
        let online = Online::new(Global);
        let guard = || online.guard();
        run(
            guard,
            |g| read_qsbr(&CELL, g),
            |g| probe_read_qsbr(&CELL, g),
        );
    }),
    ("qsbr_quiescent", || {
        let mut online = Online::new(Global);
        (0..WARM_UP).for_each(|_| qsbr_quiescent(&mut online));
        (0..CALLS).for_each(|_| probe_qsbr_quiescent(&mut online));
    }),
    ("cell_load", || {
        let guard = read_lock();
        run(
            || &*CELL,
            |c| cell_load(c, &guard),
            |c| probe_cell_load(c, &guard),
        );
    }),
    ("cell_swap", || {
        run(
            || RcuBox::new(8),
            |b| cell_swap(&CELL, b),
            |b| probe_cell_swap(&CELL, b),
        );
    }),
    ("synchronize", || {
        (0..WARM_UP).for_each(|_| synchronize());
        (0..CALLS).for_each(|_| probe_synchronize());
    }),
    ("page_alloc", || {
        let pages = kvfree::pages();
        allocate(
            || page_alloc(pages),
            || probe_page_alloc(pages),
            |p| page_free(pages, p),
        );
    }),
    ("page_free", || {
        let pages = kvfree::pages();
        let page = || page_alloc(pages).expect("memory");
        run(page, |p| page_free(pages, p), |p| probe_page_free(pages, p));
    }),
    ("typed_alloc", || {
        allocate(
            || typed_alloc(&CACHE),
            || probe_typed_alloc(&CACHE),
            |o| typed_free(&CACHE, o),
        );
    }),
    ("typed_free", || {
        let object = || typed_alloc(&CACHE).expect("memory");
        run(
            object,
            |o| typed_free(&CACHE, o),
            |o| probe_typed_free(&CACHE, o),
        );
    }),
    ("typed_retire", || {
        let object = || typed_alloc(&CACHE).expect("memory");
        run(
            object,
            |o| typed_retire(&CACHE, o),
            |o| probe_typed_retire(&CACHE, o),
        );
    }),
    ("kmalloc", || {
        let objects = kvfree::objects();
        allocate(
            || kmalloc(objects),
            || probe_kmalloc(objects),
            |o| kfree(objects, o),
        );
    }),
    ("kmalloc_any", || {
        let (objects, layout) = (kvfree::objects(), black_box(LAYOUT));
        let probe = || probe_kmalloc_any(objects, layout);
        allocate(
            || kmalloc_any(objects, layout),
            probe,
            |o| kfree(objects, o),
        );
    }),
    ("kfree", || {
        let objects = kvfree::objects();
        let object = || kmalloc(objects).expect("memory");
        run(object, |o| kfree(objects, o), |o| probe_kfree(objects, o));
    }),
    ("kfree_sized", || {
        let objects = kvfree::objects();
        let object = || kmalloc(objects).expect("memory");
        run(
            object,
            |o| kfree_sized(objects, o),
            |o| probe_kfree_sized(objects, o),
        );
    }),
    ("retire_head", || {
        run(object, retire_head, probe_retire_head);
    }),
    ("retire_headless", || {
        run(|| object().cast(), retire_headless, probe_retire_headless);
    }),
    ("retire_rcu_box", || {
        run(|| RcuBox::new(7), retire_rcu_box, probe_retire_rcu_box);
    }),
    ("retire_dropping", || {
        run(
            || RcuBox::new(Vec::new()),
            retire_dropping,
            probe_retire_dropping,
        );
    }),
    ("retire_global_box", || {
        run(
            || GlobalBox::new(7),
            retire_global_box,
            probe_retire_global_box,
        );
    }),
    ("retire_mixed", || {
        let make = || {
            drop(RcuBox::new(Vec::<u8>::new()));
            RcuBox::new(Box::new(7))
        };
        run(make, retire_mixed, probe_retire_mixed);
    }),
    ("retire_box", || {
        run(
            || NonNull::from(Box::leak(Box::new(7))),
            retire_box,
            probe_retire_box,
        );
    }),
];

fn main() {
    // The stack, its threads and this thread's slots are made outside of what is counted.
    kvfree::front();
    drop(read_lock());
    let wanted = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    for (name, probe) in PROBES {
        if wanted.as_deref().is_none_or(|wanted| wanted == name) {
            // Nothing of the probe before waits on: what does decides about the way of the next object.
            kvfree::barrier();
            probe();
            println!("{name} {CALLS}");
        }
    }
    kvfree::barrier();
}
