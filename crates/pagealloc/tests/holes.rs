//! What safe code can do to a zone, by accident or on purpose, and what must not come of it: values that are forgotten, foreign code that
//! panics or calls back, numbers of any size. What the compiler refuses is in the documentation (`compile_fail`).

#![cfg(all(feature = "std", target_os = "linux", not(loom)))]

mod buffer;
#[macro_use]
mod each;

use buffer::unwritten;
use pagealloc::{
    AllocError, Attempt, Fallback, Fixed, Lower as _, Mmap, Mobility, Order, PAGE_SIZE, PageAlloc,
    PageBlock, PageReq, PressureHook, Range, RegionError, Runs, Source, SourceError, Span, Wanted,
    Watermarks, Zone,
};
use rcu_core::cpu::{Slot, Threads};
use std::alloc::Layout;
use std::cell::RefCell;
use std::fmt::{self, Write};
use std::mem::{self, MaybeUninit};
use std::panic::{self, AssertUnwindSafe};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

over_each_lower! {

const PAGE: PageReq = PageReq::new(Order::ZERO);
const CHUNK_PAGES: usize = Order::MAX.pages();

fn mapped(chunks: usize) -> Zone<Threads, Mmap> {
    Zone::new(
        Threads,
        Mmap::reserve(chunks * CHUNK_PAGES * PAGE_SIZE).unwrap(),
    )
    .unwrap()
}

fn blocks<P: PageAlloc>(pages: &P) -> Vec<PageBlock<'_, P, pagealloc::Unfilled>> {
    core::iter::from_fn(|| PageBlock::new(pages, PAGE).ok()).collect()
}

/// Its structures stay on the list of what is called when a thread ends, so they, and the memory that they lie in, must stay.
#[test]
fn a_forgotten_zone_does_no_harm_when_threads_end() {
    let (free, used) = mpsc::channel();
    let (go, end) = mpsc::channel::<()>();
    let memory = unwritten(8 << 20).leak();
    let zone = Zone::new(Threads, Fixed::new(memory).unwrap()).unwrap();
    thread::scope(|scope| {
        let zone = &zone;
        let _waits = scope.spawn(move || {
            // Something on this thread's list, for its end to drain.
            drop(PageBlock::new(zone, PAGE).unwrap());
            free.send(()).unwrap();
            end.recv().unwrap();
        });
        used.recv().unwrap();
        go.send(()).unwrap();
    });
    thread::spawn(|| ()).join().unwrap();
    mem::forget(zone);
    thread::spawn(|| drop(PageBlock::new(&mapped(1), PAGE).unwrap()))
        .join()
        .unwrap();
}

#[test]
fn forgotten_blocks_and_guards_cost_what_they_hold_and_no_more() {
    let zone = mapped(1);
    mem::forget(PageBlock::zeroed(&zone, PAGE).unwrap());
    mem::forget(zone.disable_lists());
    let block = PageBlock::new(&zone, PAGE).unwrap();
    assert_eq!(
        zone.alloc(PAGE.attempt(Attempt::PcpOnly)),
        Err(AllocError::Empty),
        "the lists stay closed"
    );
    drop(block);
    assert_eq!(zone.nr_allocated(), 1);
    assert_eq!(zone.stats().list_pages, 0);
    let all = zone.regions().next().unwrap();
    assert!(matches!(zone.remove_region(all), Err(RegionError::Busy(busy)) if busy.pages_out == 1));
}

/// What a hook does when it is called.
type Deed = Box<dyn Fn(usize) -> usize + Send + Sync>;

/// A hook that does what it is told to.
struct Layer {
    hook: PressureHook,
    calls: &'static AtomicUsize,
}

impl Layer {
    unsafe fn run(data: *const (), pages: usize) -> usize {
        // SAFETY: the deed of a layer, whose hook is listed.
        let (deed, calls) = unsafe { &*data.cast::<(Deed, &'static AtomicUsize)>() };
        calls.fetch_add(1, Ordering::Relaxed);
        deed(pages)
    }

    /// On `zone` for good, as is all that it uses.
    fn on(zone: &'static Zone<Threads, Mmap>, deed: Deed) -> &'static Self {
        let calls: &'static AtomicUsize = Box::leak(Box::default());
        let data: &'static (Deed, &'static AtomicUsize) = Box::leak(Box::new((deed, calls)));
        let layer: &'static Self = Box::leak(Box::new(Self {
            // SAFETY: the deeds below may be done in any thread.
            hook: unsafe { PressureHook::new(Self::run, (&raw const *data).cast()) },
            calls,
        }));
        // SAFETY: never freed, and listed once.
        unsafe { zone.add_pressure_hook(NonNull::from_ref(&layer.hook)) };
        layer
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

fn leaked(chunks: usize) -> &'static Zone<Threads, Mmap> {
    Box::leak(Box::new(mapped(chunks)))
}

fn panics(f: impl FnOnce()) {
    assert!(panic::catch_unwind(AssertUnwindSafe(f)).is_err());
}

#[test]
fn a_hook_that_panics_leaves_no_page_out() {
    let zone = leaked(2);
    let moody = &*Box::leak(Box::new(AtomicBool::new(false)));
    let layer = Layer::on(
        zone,
        Box::new(|_| {
            assert!(!moody.load(Ordering::Relaxed), "in a mood");
            0
        }),
    );
    let mut out = [const { MaybeUninit::uninit() }; 300];
    // The fall below the low mark is noted by the allocation that sees it, and the hooks run in it.
    let marks = || {
        zone.set_watermarks(Watermarks::NONE);
        zone.drain_all();
        zone.set_watermarks(Watermarks {
            min: 0,
            low: usize::MAX,
            high: usize::MAX,
        });
        moody.store(true, Ordering::Relaxed);
    };
    drop(PageBlock::new(zone, PAGE).unwrap());
    marks();
    panics(|| drop(PageBlock::new(zone, PAGE)));
    assert_eq!(zone.nr_allocated(), 0, "one block");
    marks();
    panics(|| assert!(zone.alloc_exact(5, PAGE).is_err()));
    assert_eq!(zone.nr_allocated(), 0, "a run");
    marks();
    panics(|| {
        zone.alloc_bulk(PAGE, &mut out);
    });
    assert_eq!(zone.nr_allocated(), 0, "many");
    // More than there is, so that the last one asks the hooks, the first ones at hand.
    zone.set_watermarks(Watermarks::NONE);
    let mut all = vec![MaybeUninit::uninit(); 3 * CHUNK_PAGES];
    panics(|| {
        zone.alloc_bulk(PAGE, &mut all);
    });
    assert_eq!(zone.nr_allocated(), 0, "all");
    assert_eq!(layer.calls(), 4);
    // And hooks run again.
    moody.store(false, Ordering::Relaxed);
    let whole = blocks(zone);
    assert_eq!((whole.len(), layer.calls()), (2 * CHUNK_PAGES, 5));
}

#[test]
fn a_hook_may_allocate_free_look_and_change_the_list_of_hooks() {
    let zone = leaked(1);
    let other = Layer::on(zone, Box::new(|_| 0));
    let spare = &*Box::leak(Box::new(std::sync::Mutex::new(vec![
        PageBlock::new(zone, PAGE).unwrap(),
    ])));
    let layer = Layer::on(
        zone,
        Box::new(move |pages| {
            assert_eq!(pages, 1);
            for attempt in [Attempt::PcpOnly, Attempt::TryLock, Attempt::NoWait] {
                assert!(zone.alloc(PAGE.attempt(attempt)).is_err());
            }
            // Grows, drains, and runs no hook inside a hook.
            assert_eq!(zone.alloc(PAGE), Err(AllocError::OutOfMemory));
            zone.tick();
            zone.trim();
            zone.drain_all();
            let _ = zone.stats();
            drop(zone.disable_lists());
            zone.set_fallback(Fallback::linux);
            zone.remove_pressure_hook(NonNull::from_ref(&other.hook));
            Layer::on(zone, Box::new(|_| 0));
            // Says that it gave nothing, as one whose pages come late.
            spare.lock().unwrap().clear();
            0
        }),
    );
    let out = blocks(zone);
    // The first call gave a page without saying so: it was found all the same. The second gave none.
    assert_eq!(out.len(), CHUNK_PAGES);
    assert_eq!((layer.calls(), other.calls()), (2, 0));
}

#[test]
fn a_policy_may_call_the_zone_and_one_that_panics_changes_nothing() {
    let zone = mapped(1);
    let mut calls = 0;
    zone.set_fallback(|mobility| {
        calls += 1;
        zone.set_fallback(|_| Fallback::never());
        // There may be none of that type by now.
        drop(PageBlock::new(&zone, PAGE.mobility(mobility)));
        Fallback::linux(mobility)
    });
    assert_eq!(calls, Mobility::ALL.len());
    panics(|| zone.set_fallback(|_| panic!("no policy")));
    // All of the one pageblock is another type's by now: Linux's policy finds it, `never` would not.
    let whole = blocks(&zone);
    assert_eq!(whole.len(), CHUNK_PAGES);
}

/// A writer that uses the zone, and fails or panics in the midst.
struct Busybody<'z>(&'z Zone<Threads, Mmap>, usize, bool);

impl Write for Busybody<'_> {
    fn write_str(&mut self, _: &str) -> fmt::Result {
        let block = PageBlock::new(self.0, PAGE).map_err(|_| fmt::Error)?;
        self.0.drain_all();
        drop(block);
        self.1 = self.1.checked_sub(1).ok_or(fmt::Error)?;
        assert!(self.1 > 0 || !self.2, "enough");
        Ok(())
    }
}

#[test]
fn a_picture_may_be_written_by_somebody_who_uses_the_zone() {
    let zone = mapped(1);
    assert!(
        zone.heatmap(&mut Busybody(&zone, usize::MAX, false))
            .is_ok()
    );
    assert!(zone.heatmap(&mut Busybody(&zone, 3, false)).is_err());
    panics(|| assert!(zone.heatmap(&mut Busybody(&zone, 3, true)).is_ok()));
    assert_eq!(zone.nr_allocated(), 0);
}

#[test]
fn numbers_of_any_size_are_answered() {
    let zone = mapped(1);
    const MOST: usize = usize::MAX;
    for pages in [
        0,
        CHUNK_PAGES + 1,
        MOST / PAGE_SIZE,
        MOST / PAGE_SIZE + 1,
        MOST,
    ] {
        assert_eq!(zone.alloc_exact(pages, PAGE), Err(AllocError::Invalid));
    }
    for align in [3, MOST, MOST / 2 + 1, 2 * Order::MAX.bytes()] {
        assert_eq!(zone.alloc(PAGE.align(align)), Err(AllocError::Invalid));
        assert_eq!(
            zone.alloc_exact(3, PAGE.align(align)),
            Err(AllocError::Invalid)
        );
    }
    assert_eq!(zone.alloc_bulk(PAGE, &mut []), 0);
    let far = Slot::new(u32::MAX);
    assert_eq!(zone.drain_slot(far), 0);
    assert_eq!(zone.slot_stats(far), None);
    assert_eq!(zone.trim_to(MOST), 0);
    for (first, pages, error) in [
        (0, 0, RegionError::Empty),
        (MOST, 1, RegionError::Overflow),
        (1, MOST, RegionError::Overflow),
        (0, MOST, RegionError::Outside),
        (CHUNK_PAGES, 1, RegionError::Outside),
        (u32::MAX as usize + 1, 1, RegionError::Outside),
        (0, 1, RegionError::Missing),
    ] {
        let range = Range {
            first,
            pages,
            zeroed: true,
        };
        assert_eq!(zone.remove_region(range), Err(error), "{range:?}");
    }
    for address in [0, 1, MOST, MOST - PAGE_SIZE] {
        let address = std::ptr::without_provenance(address);
        assert_eq!(zone.tag(address), None);
        assert_eq!(zone.order_of(address), None);
        assert_eq!(zone.exact_pages(address), None);
        assert_eq!(zone.mobility_of(address), None);
    }
    // Marks above all there can be: everything is reserve, and pressed.
    let most = Watermarks {
        min: MOST,
        low: MOST,
        high: MOST,
    };
    zone.set_watermarks(most);
    assert_eq!(zone.watermarks(), most);
    assert_eq!(zone.alloc(PAGE), Err(AllocError::OutOfMemory));
    let _ = zone.tick();
    zone.set_watermarks(Watermarks::NONE);
    assert!(PageBlock::new(&zone, PAGE).is_ok());
    assert_eq!(zone.nr_allocated(), 0);
}

/// Pages that safe code takes from below the zone are lost; nobody else has them, and they cannot be given twice.
#[test]
fn what_is_taken_below_the_zone_is_lost() {
    let zone = mapped(1);
    drop(PageBlock::new(&zone, PAGE).unwrap());
    zone.drain_all();
    let mut runs = Runs::new();
    let wanted = Wanted::new(Order::new(9).unwrap(), 1, Attempt::NoWait);
    zone.lower().take(wanted, &mut runs).unwrap();
    let taken = runs[0].first as usize..runs[0].end as usize;
    let base = zone.span().base.addr().get();
    let rest = blocks(&zone);
    assert_eq!(rest.len(), CHUNK_PAGES - 512);
    let mut pages = rest
        .iter()
        .map(|block| (block.as_ptr().addr() - base) / PAGE_SIZE);
    assert!(pages.all(|page| !taken.contains(&page)));
    for page in [CHUNK_PAGES as u32, u32::MAX] {
        assert_eq!(zone.lower().mobility_of(page), None);
        assert_eq!(zone.lower().free_at(page), None);
    }
}

/// A source that panics when it is told to, or does something else first.
struct Moody {
    inner: Mmap,
    panics: AtomicBool,
    first: RefCell<Box<dyn FnMut() + Send>>,
}

// SAFETY: `first` is borrowed by what the zone calls one at a time.
unsafe impl Sync for Moody {}

impl Moody {
    fn new(first: impl FnMut() + Send + 'static) -> Self {
        Self {
            inner: Mmap::reserve(4 * CHUNK_PAGES * PAGE_SIZE).unwrap(),
            panics: AtomicBool::new(false),
            first: RefCell::new(Box::new(first)),
        }
    }

    fn mood(&self) {
        (self.first.borrow_mut())();
        assert!(!self.panics.load(Ordering::Relaxed), "in a mood");
    }
}

// SAFETY: the inner source's guarantees, or a panic before anything is done.
unsafe impl Source for Moody {
    fn span(&self) -> Span {
        self.inner.span()
    }

    fn metadata(&self, layout: Layout) -> Result<NonNull<u8>, SourceError> {
        self.inner.metadata(layout)
    }

    fn grow(&self, min_pages: usize) -> Result<Range, SourceError> {
        self.mood();
        self.inner.grow(min_pages)
    }

    unsafe fn decommit(&self, range: Range) -> bool {
        self.mood();
        // SAFETY: the caller's debt.
        unsafe { self.inner.decommit(range) }
    }

    unsafe fn add_range(&self, range: Range) -> Result<Range, SourceError> {
        self.mood();
        // SAFETY: the caller's debt.
        unsafe { self.inner.add_range(range) }
    }

    unsafe fn remove_range(&self, range: Range) {
        self.mood();
        // SAFETY: the caller's debt.
        unsafe { self.inner.remove_range(range) };
    }
}

#[test]
fn a_source_that_panics_leaves_a_zone_that_works() {
    let zone = Zone::new(Threads, Moody::new(|| ())).unwrap();
    let mood = |panics: bool| zone.source().panics.store(panics, Ordering::Relaxed);
    mood(true);
    panics(|| drop(PageBlock::new(&zone, PAGE)));
    mood(false);
    let huge = PageReq::new(Order::MAX);
    let mut out: Vec<_> = (0..2)
        .map(|_| PageBlock::zeroed(&zone, huge).unwrap())
        .collect();
    out.iter_mut().for_each(|block| block[0] = 1);
    drop(out);
    mood(true);
    panics(|| {
        zone.trim();
    });
    assert_eq!(zone.nr_allocated(), CHUNK_PAGES, "one block is lost");
    let range = |chunk: usize| Range {
        first: chunk * CHUNK_PAGES,
        pages: CHUNK_PAGES,
        zeroed: false,
    };
    // SAFETY: never given, so nobody's.
    panics(|| assert!(unsafe { zone.add_region(range(3)) }.is_err()));
    mood(false);
    assert_eq!(zone.trim(), CHUNK_PAGES);
    let out = blocks(&zone);
    assert_eq!(out.len(), 3 * CHUNK_PAGES);
    drop(out);
    assert_eq!(zone.nr_allocated(), CHUNK_PAGES);
}

/// While memory goes back to the system its pages are nobody's that a removal could see.
#[test]
fn a_region_that_is_just_given_back_to_the_system_can_be_removed() {
    let (entered, inside) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let once = AtomicBool::new(false);
    let source = Moody::new(move || {
        // The first call grows the zone, the second is the one to be met.
        if once.swap(true, Ordering::Relaxed) && entered.send(()).is_ok() {
            let _ = may_go.recv();
        }
    });
    let zone = &Zone::new(Threads, source).unwrap();
    let mut block = PageBlock::zeroed(zone, PageReq::new(Order::MAX)).unwrap();
    block[0] = 1;
    drop(block);
    let all = zone.regions().next().unwrap();
    thread::scope(|scope| {
        let trims = scope.spawn(move || zone.trim());
        inside.recv().unwrap();
        // `inside` goes, so later calls go through.
        drop(inside);
        let removes = scope.spawn(move || zone.remove_region(all));
        // For the removal to get to where it waits; it is right wherever it is.
        thread::sleep(std::time::Duration::from_millis(20));
        go.send(()).unwrap();
        assert_eq!(trims.join().unwrap(), CHUNK_PAGES);
        assert_eq!(removes.join().unwrap(), Ok(()));
    });
    assert_eq!(zone.total_pages(), 0);
}

/// Lists of slots whose owners do nothing, and of the remover's own.
#[test]
fn pages_on_other_slots_lists_do_not_keep_a_region() {
    let zone = &mapped(64);
    let (used, uses) = mpsc::channel();
    let (_ends, end) = mpsc::channel::<()>();
    let end = &std::sync::Mutex::new(end);
    thread::scope(|scope| {
        let ends = _ends;
        for _ in 0..3 {
            let used = used.clone();
            scope.spawn(move || {
                drop(
                    (0..20)
                        .map(|_| PageBlock::new(zone, PAGE))
                        .collect::<Vec<_>>(),
                );
                used.send(()).unwrap();
                let _ = end.lock().unwrap().recv();
            });
        }
        (0..3).for_each(|_| uses.recv().unwrap());
        drop(PageBlock::new(zone, PAGE).unwrap());
        assert!(zone.stats().list_pages > 30);
        let all = zone.regions().next().unwrap();
        assert_eq!(zone.remove_region(all), Ok(()));
        // SAFETY: removed, and nobody uses it.
        unsafe { zone.add_region(all) }.unwrap();
        // The lists are in use again.
        drop(PageBlock::new(zone, PAGE).unwrap());
        assert!(zone.stats().list_pages > 0);
        drop(ends);
    });
}

}
