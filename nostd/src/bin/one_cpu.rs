//! A kernel with one CPU: pages from a static region, objects in them, grace periods of rcu-tiny, and kvfree over all three.
//!
//! Called with an argument, it reads an object that was retired, and freed, too early, and has to end with a failed check: so
//! that whoever runs it knows that it can fail.

#![no_std]
#![no_main]

use core::alloc::Layout;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use kvfree::{Config, DeferFree, Kvfree, Unbatched};
use nostd::report::{check, check_eq, say};
use pagealloc::{AllocError, Attempt, Fixed, Order, PageAlloc, PageReq, Zone};
use rcu_core::cpu::OneCpu;
use rcu_core::{Callback, GracePeriod, Head, HeadOffset, Rcu};
use rcu_tiny::{Tiny, TinyStatic};
use slab::{Cache, Kmalloc};

nostd::program!(main);

/// No interrupts, so nothing to hold off. A kernel disables them here, and enables them again if they were before.
struct NoInterrupts;
critical_section::set_impl!(NoInterrupts);

// SAFETY: one thread of execution and no interrupt handlers: every section is alone.
unsafe impl critical_section::Impl for NoInterrupts {
    unsafe fn acquire() -> critical_section::RawRestoreState {}

    unsafe fn release(_: critical_section::RawRestoreState) {}
}

/// What the boot loader left.
#[repr(align(4096))]
struct Region([MaybeUninit<u8>; 4 << 20]);
static mut REGION: Region = Region([MaybeUninit::uninit(); 4 << 20]);

// SAFETY: this program has one thread and no interrupts.
static TINY: TinyStatic = unsafe { TinyStatic::new(Tiny::new().with_kfree(free_by_offset)) };

rcu_core::domain! {
    /// Everything that this program protects.
    struct Kernel = TINY: Tiny;
}

type Pages = Zone<OneCpu, Fixed<'static>>;
type Objects<'z> = Kmalloc<OneCpu, &'z Pages, Kernel>;

/// The allocator that objects queued by offset go back to.
static OBJECTS: AtomicPtr<Objects<'static>> = AtomicPtr::new(core::ptr::null_mut());

/// # Safety
/// 1. `object` came from the allocator that [`OBJECTS`] points at, which lives.
unsafe fn free_by_offset(object: NonNull<u8>) {
    // SAFETY: set, and alive, while anything is queued with an offset (1).
    let objects = unsafe { &*OBJECTS.load(Ordering::Relaxed) };
    // SAFETY: the object came from there (1), and its time has come.
    unsafe { objects.kfree(object) };
}

fn main(fail: bool) {
    // SAFETY: called once, on the one CPU there is, with no interrupts.
    let cpu = unsafe { OneCpu::new() };
    // SAFETY: `main` is called once, and nobody else names the region.
    let region = unsafe { &mut *(&raw mut REGION.0) };
    let Ok(source) = Fixed::new(region) else {
        panic!("a region of four MiB has no page");
    };
    let Ok(zone) = Zone::new(cpu, source) else {
        panic!("no zone in four MiB");
    };
    pages(&zone);
    grace_periods();
    typed_cache(&zone, cpu);
    deferred_freeing(&zone, cpu, fail);
    zone.drain_all();
    check_eq(zone.nr_allocated(), 0, "pages that are out at the end");
}

fn pages(zone: &Pages) {
    say(format_args!("pagealloc: {} pages\n", zone.total_pages()));
    let nothing = zone.alloc(PageReq::new(Order::ZERO).attempt(Attempt::PcpOnly));
    check_eq(nothing, Err(AllocError::Empty), "an empty list");
    for log2 in 0..=8 {
        let Some(order) = Order::new(log2) else {
            panic!("order {log2}");
        };
        let block = zone.alloc(PageReq::new(order).zeroed());
        let Ok(block) = block else {
            panic!("no block of order {log2}: {block:?}");
        };
        check(
            block.addr().get().is_multiple_of(order.bytes()),
            "alignment",
        );
        // SAFETY: the block is this program's, and zeroed.
        let bytes = unsafe { core::slice::from_raw_parts_mut(block.as_ptr(), order.bytes()) };
        check(bytes.iter().all(|&byte| byte == 0), "a zeroed block");
        bytes.fill(0x5a);
        // SAFETY: allocated just now with this order.
        unsafe { zone.free(block, order) };
    }
    // The interrupt handler's way: what was freed last is on the list.
    let page = zone.alloc(PageReq::new(Order::ZERO).attempt(Attempt::PcpOnly));
    let Ok(page) = page else {
        panic!("the page that was freed just now: {page:?}");
    };
    // SAFETY: allocated just now.
    unsafe { zone.free(page, Order::ZERO) };

    // Every page there is, chained through themselves, and back.
    let (mut last, mut count) = (None::<NonNull<u8>>, 0);
    let error = loop {
        match zone.alloc(PageReq::new(Order::ZERO)) {
            Ok(page) => {
                // SAFETY: a page is large enough and aligned, and this program's.
                unsafe { page.cast().write(last) };
                (last, count) = (Some(page), count + 1);
            }
            Err(error) => break error,
        }
    };
    check(!error.is_retryable(), "nobody else could give memory back");
    check(count > zone.total_pages() * 9 / 10, "nearly every page");
    while let Some(page) = last {
        // SAFETY: written above.
        last = unsafe { page.cast().read() };
        // SAFETY: allocated above, and nobody uses it.
        unsafe { zone.free(page, Order::ZERO) };
    }
    check_eq(zone.nr_allocated(), 0, "pages that are out");
}

/// Something with a head first, for callbacks.
#[repr(C)]
struct Item {
    head: Head,
    ran: AtomicUsize,
}

/// # Safety
/// 1. `head` is that of a living [`Item`].
unsafe fn ran(head: NonNull<Head>) {
    // SAFETY: the head is an item's first field (1).
    unsafe { head.cast::<Item>().as_ref() }
        .ran
        .fetch_add(1, Ordering::Relaxed);
}

fn grace_periods() {
    say(format_args!("rcu-tiny\n"));
    static ITEM: Item = Item {
        head: Head::new(),
        ran: AtomicUsize::new(0),
    };
    for round in 1..=3 {
        let guard = rcu_core::read_lock::<Kernel>();
        let nested = rcu_core::read_lock::<Kernel>();
        let cookie = Kernel.start();
        // SAFETY: a static, on no list now, with a head first.
        unsafe { Kernel.call(NonNull::from_ref(&ITEM).cast(), Callback::Run(ran)) };
        // The timer's interrupt, in the middle.
        check(TINY.tick(false), "a tick sees that somebody waits");
        drop(guard);
        check(TINY.tick(false), "and so does the next");
        check(!Kernel.poll(cookie), "a section is on");
        check_eq(
            ITEM.ran.load(Ordering::Relaxed),
            round - 1,
            "callbacks in a section",
        );
        drop(nested);
        check(
            TINY.tick(true),
            "a tick outside sees that there is something to do",
        );
        TINY.quiescent();
        check(Kernel.poll(cookie), "the section has ended");
        check_eq(
            ITEM.ran.load(Ordering::Relaxed),
            round,
            "callbacks after a section",
        );
    }
    let before = Kernel.snapshot();
    Kernel.synchronize();
    check(Kernel.poll(before), "a cookie after synchronize");
    Kernel.barrier();
    check_eq(TINY.pending(), 0, "callbacks that are left");
}

fn typed_cache(zone: &Pages, cpu: OneCpu) {
    say(format_args!("slab\n"));
    const OBJECTS: usize = 1000;
    let config = Cache::<[usize; 6], OneCpu, &Pages, Kernel>::config("six words");
    // SAFETY: the cache is destroyed below, before the zone goes.
    let cache = unsafe { Cache::<[usize; 6], _, _, _>::new_scoped(config, cpu, zone, Kernel) };
    let Ok(cache) = cache else {
        panic!("no memory for a cache");
    };
    let mut objects = [None; OBJECTS];
    for (n, object) in objects.iter_mut().enumerate() {
        *object = cache.alloc([n; 6]).ok();
    }
    for (n, object) in objects.iter().enumerate() {
        let Some(object) = object else {
            panic!("no memory for object {n}");
        };
        // SAFETY: allocated above.
        check_eq(*unsafe { object.as_ref() }, [n; 6], "an object");
    }
    check_eq(cache.raw().stats().live, OBJECTS, "live objects");
    let guard = rcu_core::read_lock::<Kernel>();
    for (n, object) in objects.into_iter().flatten().enumerate() {
        if n.is_multiple_of(2) {
            // SAFETY: allocated above, given up.
            unsafe { cache.free(object) };
            continue;
        }
        // SAFETY: allocated above, and no new reader can find it.
        if unsafe { cache.retire(object) }.is_err() {
            panic!("no memory for an array of pointers");
        }
        // SAFETY: the section keeps it.
        check_eq(
            *unsafe { object.as_ref() },
            [n; 6],
            "an object that a section keeps",
        );
    }
    check_eq(cache.raw().stats().waiting, OBJECTS / 2, "retired objects");
    drop(guard);
    cache.raw().barrier();
    let stats = cache.raw().stats();
    check_eq(
        (stats.live, stats.waiting),
        (0, 0),
        "objects after a barrier",
    );
    check(cache.destroy().is_ok(), "nothing of the cache is out");
    check_eq(zone.nr_allocated(), 0, "pages after the cache");
}

fn deferred_freeing(zone: &Pages, cpu: OneCpu, fail: bool) {
    say(format_args!("kvfree\n"));
    // SAFETY: destroyed below, before the zone goes.
    let Ok(objects) = (unsafe { Objects::new_scoped(cpu, zone, Kernel) }) else {
        panic!("no memory for the general allocator");
    };
    OBJECTS.store((&raw const objects).cast_mut().cast(), Ordering::Relaxed);
    // SAFETY: the objects wait for the same domain; dropped below, before what it borrows.
    let Ok(front) = (unsafe { Kvfree::new(cpu, zone, Kernel, &objects, Config::new()) }) else {
        panic!("no memory for the front end");
    };
    retire_in_every_way(&front, &objects, fail);
    for _ in 0..10 {
        TINY.quiescent();
        front.tick();
    }
    front.barrier();
    let stats = front.stats();
    check_eq(
        stats.objects_waiting,
        0,
        "objects that wait after a barrier",
    );
    check_eq(
        objects.waiting_objects(),
        0,
        "objects in sheaves after a barrier",
    );
    drop(front);

    // One callback an object: the same face.
    // SAFETY: what waits for the domain is freed below, before the allocator goes.
    let plain = unsafe { Unbatched::new(Kernel, &objects) };
    retire_in_every_way(&plain, &objects, false);
    plain.barrier();
    let live: usize = objects
        .caches()
        .iter()
        .map(|cache| cache.stats().live)
        .sum();
    check_eq(live, 0, "objects that are out");
    check(objects.destroy().is_ok(), "nothing of the allocator is out");
    check_eq(zone.nr_allocated(), 0, "pages after the front end");
}

const SIZES: [usize; 6] = [24, 64, 100, 512, 2000, 20_000];

fn retire_in_every_way(front: &dyn DeferFree, objects: &Objects<'_>, fail: bool) {
    for n in 0..1200 {
        let size = SIZES[n % SIZES.len()];
        let Ok(layout) = Layout::from_size_align(size, 8) else {
            panic!("a layout of {size} bytes");
        };
        let Ok(object) = objects.kmalloc(layout) else {
            panic!("no memory for {size} bytes");
        };
        // SAFETY: the object is larger, and this program's.
        unsafe { object.cast::<Head>().write(Head::new()) };
        // SAFETY: its last word.
        let mark = unsafe { object.add(size - 8) }.cast::<usize>();
        // SAFETY: inside of it.
        unsafe { mark.write(n) };
        if n.is_multiple_of(5) {
            // SAFETY: allocated just now, given up.
            unsafe { front.retire_mightsleep(object) };
            continue;
        }
        let guard = rcu_core::read_lock::<Kernel>();
        // SAFETY: as above; the head lies in front.
        unsafe { front.retire(object.cast(), HeadOffset::from_bytes(0)) };
        let _ = TINY.tick(false);
        if fail {
            // What must not happen, done by hand.
            // SAFETY: none: the object waits. This program ends in the next line.
            unsafe { mark.write(!n) };
        }
        // SAFETY: the section keeps it.
        check_eq(unsafe { mark.read() }, n, "an object that a section keeps");
        drop(guard);
        if n.is_multiple_of(7) {
            // The idle loop.
            TINY.quiescent();
        }
    }
}
