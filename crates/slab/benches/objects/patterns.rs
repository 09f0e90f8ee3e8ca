//! Patterns of mimalloc-bench, written anew from their published descriptions.
//!
//! | pattern | what it does | what it finds out |
//! |---|---|---|
//! | [`larson`] | a server: objects of 8 to 1000 bytes replaced at random, each thread's table handed to a successor thread now and then | blocks that outlive their thread |
//! | [`xmalloc`] | half of the threads allocate, the other half free (one alone does both) | frees by another thread, all in one direction |
//! | [`cache_scratch`] | neighbouring small objects handed to one thread each, which frees its own and then allocates, writes and frees | lines shared through reuse |
//! | [`mstress`] | small and now and then larger objects, some handed between threads by exchange, half of them kept to the end | mixed lives |

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::heaps::{Heap, touch};
use super::{Counter, Dice, Parcel, take};

/// An object and its size.
type Sized = (NonNull<u8>, usize);

/// A server's table of a thread, as it goes from one thread to the next.
struct Table(Vec<Sized>);

// SAFETY: the objects belong to whoever has the table.
unsafe impl Send for Table {}

/// `steps` replacements in tables of 5000, a new thread every 50,000.
pub(crate) fn larson(heap: impl Heap, thread: usize, steps: u64) {
    const CHUNKS: usize = 5000;
    const GENERATION: u64 = 50_000;
    let mut dice = Dice::new(thread);
    let draw = |dice: &mut Dice| 8 + dice.below(993);
    let table = (0..CHUNKS).map(|_| {
        let size = draw(&mut dice);
        (heap.alloc(size), size)
    });
    let mut table = Table(table.collect());
    let mut left = steps;
    while left > 0 {
        let now = left.min(GENERATION);
        left -= now;
        let live = move || {
            let table = &mut table;
            let mut dice = Dice::new(thread + left as usize);
            for i in 0..now {
                let place = &mut table.0[dice.below(CHUNKS)];
                // SAFETY: the table's own, replaced at once.
                unsafe { heap.free(place.0, place.1) };
                let size = draw(&mut dice);
                *place = (heap.alloc(size), size);
                touch(place.0, i as usize);
            }
            std::mem::replace(table, Table(Vec::new()))
        };
        table = thread::scope(|scope| scope.spawn(live).join().expect("no panic"));
    }
    for (object, size) in table.0 {
        // SAFETY: the table's own, for the last time.
        unsafe { heap.free(object, size) };
    }
}

/// Objects of 64 bytes, by parcels of 120.
pub(crate) fn xmalloc(heap: impl Heap, threads: usize, steps: u64) -> Duration {
    const SIZE: usize = 64;
    const PARCEL: usize = 120;
    const PARCELS: usize = 32;
    let counter = Counter::default();
    for _ in 0..PARCELS {
        let parcel = Parcel(Vec::with_capacity(PARCEL));
        counter.empty.lock().expect("no panic").push(parcel);
    }
    let rounds = steps.div_ceil(PARCEL as u64);
    let allocate = || {
        let mut parcel = take(&counter.empty);
        for i in 0..PARCEL {
            let object = heap.alloc(SIZE);
            touch(object, i);
            parcel.0.push(object);
        }
        counter.full.lock().expect("no panic").push(parcel);
    };
    let free = || {
        let mut parcel = take(&counter.full);
        for object in parcel.0.drain(..) {
            // SAFETY: allocated above, freed once.
            unsafe { heap.free(object, SIZE) };
        }
        counter.empty.lock().expect("no panic").push(parcel);
    };
    let start = Instant::now();
    if threads == 1 {
        for _ in 0..rounds {
            allocate();
            free();
        }
    } else {
        thread::scope(|scope| {
            for _ in 0..threads / 2 {
                scope.spawn(|| (0..rounds).for_each(|_| allocate()));
                scope.spawn(|| (0..rounds).for_each(|_| free()));
            }
        });
    }
    (start.elapsed()).mul_f64(steps as f64 / (rounds * PARCEL as u64) as f64)
}

/// One address, sent as it is.
struct One(NonNull<u8>);

// SAFETY: the object belongs to whoever has the address.
unsafe impl Send for One {}

/// Objects of 8 bytes, each written 100 times.
pub(crate) fn cache_scratch(heap: impl Heap, threads: usize, steps: u64) -> Duration {
    const SIZE: usize = 8;
    const WRITES: usize = 100;
    let first: Vec<One> = (0..threads).map(|_| One(heap.alloc(SIZE))).collect();
    let barrier = Barrier::new(threads);
    let spans: Mutex<Vec<(Instant, Instant)>> = Mutex::default();
    thread::scope(|scope| {
        for one in first {
            let (barrier, spans) = (&barrier, &spans);
            scope.spawn(move || {
                let One(object) = { one };
                // SAFETY: handed over, freed once.
                unsafe { heap.free(object, SIZE) };
                barrier.wait();
                let start = Instant::now();
                for _ in 0..steps {
                    let object = heap.alloc(SIZE);
                    for value in 0..WRITES {
                        touch(object, value);
                    }
                    // SAFETY: allocated just now.
                    unsafe { heap.free(object, SIZE) };
                }
                let span = (start, Instant::now());
                spans.lock().expect("no panic").push(span);
            });
        }
    });
    let spans = spans.into_inner().expect("no panic");
    let first = spans.iter().map(|span| span.0).min().expect("a thread");
    let last = spans.iter().map(|span| span.1).max().expect("a thread");
    last - first
}

/// The places through which threads exchange objects. The first word of an object is its size.
pub(crate) struct Transfer {
    places: Vec<AtomicPtr<u8>>,
    turn: AtomicUsize,
}

impl Transfer {
    pub(crate) fn new() -> Self {
        Self {
            places: (0..1000).map(|_| AtomicPtr::default()).collect(),
            turn: AtomicUsize::new(0),
        }
    }

    pub(crate) fn empty(&self, heap: impl Heap) {
        for place in &self.places {
            free_told(heap, place.swap(ptr::null_mut(), Ordering::AcqRel));
        }
    }
}

/// Allocates an object that tells its size: 8 to 128 bytes; one in a hundred up to 16 times, one in a thousand up to 64 times as many.
fn alloc_told(heap: impl Heap, dice: &mut Dice) -> *mut u8 {
    let scale = match dice.below(1000) {
        0 => 64,
        1..=10 => 16,
        _ => 1,
    };
    let size = 8 * (1 + dice.below(16)) * (1 + dice.below(scale));
    let object = heap.alloc(size);
    touch(object, size);
    object.as_ptr()
}

fn free_told(heap: impl Heap, object: *mut u8) {
    if let Some(object) = NonNull::new(object) {
        // SAFETY: from `alloc_told`, so its size stands in front. Read for every allocator, also for those that do not ask for it: the
        // pattern looks at what it frees.
        let size = unsafe { object.cast::<usize>().read_volatile() };
        // SAFETY: as above; whoever took the address frees it once.
        unsafe { heap.free(object, size) };
    }
}

/// Of `steps`: half allocate, and keep or drop at random; one in ten exchanges with another thread.
pub(crate) fn mstress(heap: impl Heap, transfer: &Transfer, thread: usize, steps: u64) {
    let turn = transfer.turn.fetch_add(1, Ordering::Relaxed);
    let mut dice = Dice::new(thread + 64 * turn);
    let mut data: Vec<*mut u8> = vec![ptr::null_mut(); 2000];
    let mut kept: Vec<*mut u8> = Vec::with_capacity(1000);
    for _ in 0..steps {
        match dice.below(10) {
            0 => {
                let (mine, theirs) = (dice.below(data.len()), dice.below(transfer.places.len()));
                data[mine] = transfer.places[theirs].swap(data[mine], Ordering::AcqRel);
            }
            1 if kept.len() < kept.capacity() => kept.push(alloc_told(heap, &mut dice)),
            _ => {
                let place = dice.below(data.len());
                free_told(heap, data[place]);
                data[place] = alloc_told(heap, &mut dice);
            }
        }
    }
    for object in data.into_iter().chain(kept) {
        free_told(heap, object);
    }
}
