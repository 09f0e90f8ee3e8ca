//! What one read section costs: ours beside the peers, one load of one pointer to one word in each.
//!
//! Run by `cargo xtask bench --layer rcu`, which builds this as the peers want it, repeats it, and judges the ratios.
//! One workload, generic over the reader; the loop's own instructions are the same for all.
//!
//! # The reader's path on x86-64
//! `pass::<OursGuard>`, one iteration as rustc 1.95 makes it: no locked instruction, no fence. An empty cell reads as zero; the
//! peers' loads are `unsafe` and have no such test. (Who unwraps the reference under a guard pays two stores more: the
//! landing pad drops the guard, which therefore has to be in memory.)
//! ```text
//!         mov   rax, fs:[REMEMBERED]       ; the word's address
//!         mov   rdx, [rax]
//!         test  dx, dx                     ; outermost, and known?
//!         je    1f
//!         …                                ; nested: rdx + 1; not known: the slow path
//!     1:  add   rdx, 0x40001               ; one section more, one level deep
//!         mov   [rax], rdx                 ; enter
//!         mov   ecx, [r12]                 ; the fence mode
//!         test  ecx, ecx
//!         jne   <full fence>
//!         mov   rcx, [r14]                 ; RcuCell::load
//!         test  rcx, rcx
//!         je    <empty cell>
//!         mov   r13, [rcx]                 ; the object
//!         mov   rsi, [rax]
//!         cmp   rsi, rdx                   ; as entered?
//!         jne   <the general exit>
//!         dec   rdx
//!         mov   [rax], rdx                 ; exit
//! ```
//! `pass::<OursClosure>` is the same instructions. `pass::<OursQsbr>`, whose guard is no instruction, is
//! `pass::<Plain>` with the test for an empty cell, which is unwrapped there: it has nothing to drop. `cargo xtask icount` watches over both.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode};
use crossbeam_epoch as epoch;
use rcu_core::{GracePeriod, Guard, Online, RcuBox, RcuCell, Reclaimer, read, read_lock};
use seize::Guard as _;
use std::hint::black_box;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Barrier, LazyLock, RwLock};
use std::thread;
use std::time::{Duration, Instant};

#[cfg(feature = "liburcu")]
mod liburcu;

rcu_tree::static_tree! {
    struct Readers;
}

/// The heap; nothing is retired while readers are measured.
#[derive(Clone, Copy, Default)]
struct Heap;

// SAFETY: 1: a `Box`; 2: frees after a whole grace period; 3: no state.
unsafe impl Reclaimer for Heap {
    type Domain = Readers;

    fn allocate<T: Send + Sync + 'static>(&self, value: T) -> Result<NonNull<T>, T> {
        Ok(NonNull::from(Box::leak(Box::new(value))))
    }

    unsafe fn retire<T: 'static>(&self, object: NonNull<T>) {
        Readers.synchronize();
        // SAFETY: given up, and a grace period has passed.
        unsafe { self.free(object) };
    }

    unsafe fn free<T: 'static>(&self, object: NonNull<T>) {
        // SAFETY: from `allocate`, given up, and without readers.
        drop(unsafe { Box::from_raw(object.as_ptr()) });
    }
}

static OURS: LazyLock<RcuCell<RcuBox<u64, Heap>>> = LazyLock::new(|| RcuCell::new(RcuBox::new(7)));
static PLAIN: LazyLock<AtomicPtr<u64>> =
    LazyLock::new(|| AtomicPtr::new(Box::into_raw(Box::new(7))));
static LOCKED: LazyLock<RwLock<Box<u64>>> = LazyLock::new(|| RwLock::new(Box::new(7)));
static SWAPPED: LazyLock<arc_swap::ArcSwap<u64>> =
    LazyLock::new(|| arc_swap::ArcSwap::from_pointee(7));
static EPOCH: LazyLock<epoch::Atomic<u64>> = LazyLock::new(|| epoch::Atomic::new(7));
static KOVAN: LazyLock<kovan::Atomic<u64>> =
    LazyLock::new(|| kovan::Atomic::new(Box::into_raw(Box::new(7))));
static SEIZE: LazyLock<seize::Collector> = LazyLock::new(seize::Collector::new);

/// One way to read the word. A value is one thread's.
trait Reader {
    /// The cell that the pointer lies in, looked up once a thread.
    fn new() -> Self;
    /// One section with one load.
    fn read(&mut self) -> u64;
}

/// An acquire load with no section: what the machine allows.
struct Plain(&'static AtomicPtr<u64>);
impl Reader for Plain {
    fn new() -> Self {
        Self(&PLAIN)
    }
    #[inline(always)]
    fn read(&mut self) -> u64 {
        // SAFETY: the word is never freed.
        unsafe { *self.0.load(Ordering::Acquire) }
    }
}

struct Locked(&'static RwLock<Box<u64>>);
impl Reader for Locked {
    fn new() -> Self {
        Self(&LOCKED)
    }
    #[inline(always)]
    fn read(&mut self) -> u64 {
        **self.0.read().expect("no writer panics")
    }
}

struct Swapped(&'static arc_swap::ArcSwap<u64>);
impl Reader for Swapped {
    fn new() -> Self {
        Self(&SWAPPED)
    }
    #[inline(always)]
    fn read(&mut self) -> u64 {
        **self.0.load()
    }
}

struct Epoch(&'static epoch::Atomic<u64>);
impl Reader for Epoch {
    fn new() -> Self {
        Self(&EPOCH)
    }
    #[inline(always)]
    fn read(&mut self) -> u64 {
        let guard = epoch::pin();
        // SAFETY: the word is never freed.
        unsafe { *self.0.load(Ordering::Acquire, &guard).deref() }
    }
}

struct Kovan(&'static kovan::Atomic<u64>);
impl Reader for Kovan {
    fn new() -> Self {
        Self(&KOVAN)
    }
    #[inline(always)]
    fn read(&mut self) -> u64 {
        let guard = kovan::pin();
        // SAFETY: the word is never freed.
        unsafe { *self.0.load(Ordering::Acquire, &guard).deref() }
    }
}

struct Seize(&'static seize::Collector, &'static AtomicPtr<u64>);
impl Reader for Seize {
    fn new() -> Self {
        Self(&SEIZE, &PLAIN)
    }
    #[inline(always)]
    fn read(&mut self) -> u64 {
        let guard = self.0.enter();
        // SAFETY: the word is never freed.
        unsafe { *guard.protect(self.1, Ordering::Acquire) }
    }
}

type Cell = &'static RcuCell<RcuBox<u64, Heap>>;

struct OursGuard(Cell);
impl Reader for OursGuard {
    fn new() -> Self {
        Self(&OURS)
    }
    #[inline(always)]
    fn read(&mut self) -> u64 {
        let guard = read_lock::<Readers>();
        self.0.load(&guard).map_or(0, |word| *word)
    }
}

struct OursClosure(Cell);
impl Reader for OursClosure {
    fn new() -> Self {
        Self(&OURS)
    }
    #[inline(always)]
    fn read(&mut self) -> u64 {
        read(|guard: &Guard<Readers>| self.0.load(guard).map_or(0, |word| *word))
    }
}

/// A section inside another one.
struct OursNested(Cell, #[allow(dead_code, reason = "held")] Guard<Readers>);
impl Reader for OursNested {
    fn new() -> Self {
        Self(&OURS, read_lock())
    }
    #[inline(always)]
    fn read(&mut self) -> u64 {
        let guard = read_lock::<Readers>();
        self.0.load(&guard).map_or(0, |word| *word)
    }
}

/// A thread that is always inside.
struct OursQsbr(Cell, Online<Readers>);
impl Reader for OursQsbr {
    fn new() -> Self {
        Self(&OURS, Online::new(Readers))
    }
    #[inline(always)]
    fn read(&mut self) -> u64 {
        let guard = self.1.guard();
        *self.0.load(&guard).expect("never empty")
    }
}

/// The same, with a quiescent state after every load.
struct OursQuiescent(OursQsbr);
impl Reader for OursQuiescent {
    fn new() -> Self {
        Self(OursQsbr::new())
    }
    #[inline(always)]
    fn read(&mut self) -> u64 {
        let word = self.0.read();
        self.0.1.quiescent();
        word
    }
}

#[cfg(feature = "liburcu")]
mod peers_in_c {
    use super::{AtomicPtr, Ordering, PLAIN, Reader};
    use crate::liburcu::{memb, qsbr};

    pub(super) struct Memb(
        &'static AtomicPtr<u64>,
        #[allow(dead_code, reason = "held")] memb::Registered,
    );
    impl Reader for Memb {
        fn new() -> Self {
            Self(&PLAIN, memb::Registered::new())
        }
        #[inline(always)]
        fn read(&mut self) -> u64 {
            memb::read_lock();
            // SAFETY: the word is never freed.
            let word = unsafe { *self.0.load(Ordering::Acquire) };
            memb::read_unlock();
            word
        }
    }

    pub(super) struct Quiescent(
        &'static AtomicPtr<u64>,
        #[allow(dead_code, reason = "held")] qsbr::Registered,
    );
    impl Reader for Quiescent {
        fn new() -> Self {
            Self(&PLAIN, qsbr::Registered::new())
        }
        #[inline(always)]
        fn read(&mut self) -> u64 {
            // Its `read_lock` and `read_unlock` are empty when inlined, so they are left out here.
            // SAFETY: the word is never freed.
            let word = unsafe { *self.0.load(Ordering::Acquire) };
            qsbr::quiescent_state();
            word
        }
    }
}

/// `iterations` sections on the calling thread. What is read is added up, in a register: a store a section, as
/// `black_box` would make, is more than some of the readers do. The code whose disassembly is in the head of this file.
#[inline(never)]
fn pass<R: Reader>(reader: &mut R, iterations: u64) {
    let mut sum = 0;
    for _ in 0..iterations {
        sum += reader.read();
    }
    black_box(sum);
}

/// `iterations` sections on each of `threads` threads, from the first one's start to the last one's end.
/// Keeps the calling thread on one of the CPUs it may use: two threads that start on one CPU share it for longer than a
/// sample lasts. Where that is not to be had the figures are noisier.
fn pin(thread: usize) {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: an all-zero set is the empty set.
        let mut allowed: libc::cpu_set_t = unsafe { core::mem::zeroed() };
        let size = size_of::<libc::cpu_set_t>();
        // SAFETY: `allowed` is a set of `size` bytes to write to.
        if unsafe { libc::sched_getaffinity(0, size, &raw mut allowed) } != 0 {
            return;
        }
        // SAFETY: the number is below the set's size.
        let is_allowed = |&cpu: &usize| unsafe { libc::CPU_ISSET(cpu, &allowed) };
        let cpus: Vec<usize> = (0..libc::CPU_SETSIZE as usize).filter(is_allowed).collect();
        // SAFETY: as above.
        let mut one: libc::cpu_set_t = unsafe { core::mem::zeroed() };
        // SAFETY: the number is below the set's size.
        unsafe { libc::CPU_SET(cpus[thread % cpus.len()], &mut one) };
        // SAFETY: `one` is a set of `size` bytes to read.
        let _ = unsafe { libc::sched_setaffinity(0, size, &raw const one) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = thread;
}

fn on_threads<R: Reader>(threads: usize, iterations: u64) -> Duration {
    let barrier = Barrier::new(threads);
    let run = |thread| {
        pin(thread);
        let mut reader = R::new();
        pass(&mut reader, 1000);
        barrier.wait();
        let start = Instant::now();
        pass(&mut reader, iterations);
        (start, Instant::now())
    };
    let run = &run;
    let spans: Vec<(Instant, Instant)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || run(thread)))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().expect("no panic");
        threads.into_iter().map(join).collect()
    });
    let first = spans.iter().map(|span| span.0).min().expect("a thread");
    let last = spans.iter().map(|span| span.1).max().expect("a thread");
    last - first
}

struct Bench<'g, 'c> {
    group: &'g mut BenchmarkGroup<'c, WallTime>,
    threads: &'g [usize],
}

impl Bench<'_, '_> {
    fn add<R: Reader>(&mut self, name: &str, _reader: PhantomData<R>) {
        for &threads in self.threads {
            self.group
                .bench_function(BenchmarkId::new(name, threads), |bencher| {
                    bencher.iter_custom(|iterations| on_threads::<R>(threads, iterations));
                });
        }
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200))
        .sample_size(20)
        .nresamples(1000)
        .configure_from_args();
    let mut group = criterion.benchmark_group("read");
    group.sampling_mode(SamplingMode::Flat);
    let mut bench = Bench {
        group: &mut group,
        threads: &[1, 2],
    };
    // Each of ours beside the peers that it is compared with.
    bench.add("plain", PhantomData::<Plain>);
    bench.add("qsbr", PhantomData::<OursQsbr>);
    bench.add("kovan", PhantomData::<Kovan>);
    bench.add("guard", PhantomData::<OursGuard>);
    bench.add("closure", PhantomData::<OursClosure>);
    bench.add("nested", PhantomData::<OursNested>);
    #[cfg(feature = "liburcu")]
    bench.add("liburcu-memb", PhantomData::<peers_in_c::Memb>);
    bench.add("crossbeam-epoch", PhantomData::<Epoch>);
    bench.add("seize", PhantomData::<Seize>);
    bench.add("qsbr-quiescent", PhantomData::<OursQuiescent>);
    #[cfg(feature = "liburcu")]
    bench.add("liburcu-qsbr", PhantomData::<peers_in_c::Quiescent>);
    bench.add("arc-swap", PhantomData::<Swapped>);
    bench.add("rwlock", PhantomData::<Locked>);
    group.finish();
    criterion.final_summary();
}
