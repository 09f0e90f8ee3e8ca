//! A program whose global allocator this is: the test harness, `std` and all tests below live on it.
#![cfg(all(feature = "std", target_os = "linux", not(loom), not(miri)))]

#[path = "../../rcu-core/tests/common/child.rs"]
mod child;

use child::on_a_thread;
use slab::{GlobalKmalloc, MAX_CLASS_BYTES};
use std::alloc::{GlobalAlloc, Layout};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::process::Command;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;

#[global_allocator]
static HEAP: GlobalKmalloc = GlobalKmalloc::new();

/// What is run in a process of its own: `body` under the variable, `look` at how it ended.
fn in_child(test: &str, body: fn(), look: impl FnOnce(std::process::Output)) {
    const CHILD: &str = "SLAB_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        // SAFETY: no handler is set, so it ends a child that hangs.
        unsafe { libc::alarm(100) };
        return body();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, "1")
        // A backtrace needs memory, and in the middle of one `std` waits for itself if there is none.
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    look(output);
}

/// Forks, runs `body` in the child, and says whether that came to its end. A child that hangs is ended by its alarm.
fn fork_and(body: impl FnOnce()) -> bool {
    // SAFETY: the child calls nothing that a lock of the parent's could hold up but the allocator, which is what is tested.
    match unsafe { libc::fork() } {
        -1 => panic!("{}", std::io::Error::last_os_error()),
        0 => {
            // SAFETY: no handler is set, so it ends the process.
            unsafe { libc::alarm(60) };
            body();
            // SAFETY: ends the child without the parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
        child => {
            let mut status = -1;
            // SAFETY: waits for the child, `status` being writable.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            status == 0
        }
    }
}

/// Memory that knows what must be in it.
struct Canary {
    memory: NonNull<u8>,
    layout: Layout,
    byte: u8,
}

// SAFETY: the memory is the value's own.
unsafe impl Send for Canary {}

impl Canary {
    fn new(layout: Layout, byte: u8) -> Self {
        // SAFETY: the layouts of these tests are not empty.
        let memory = NonNull::new(unsafe { HEAP.alloc(layout) }).expect("memory");
        assert!(memory.addr().get().is_multiple_of(layout.align()));
        let this = Self {
            memory,
            layout,
            byte,
        };
        for at in this.places() {
            // SAFETY: inside of the block.
            let place = unsafe { memory.add(at) };
            // SAFETY: as above, and it is this value's.
            unsafe { place.write(byte) };
        }
        this
    }

    /// Every byte of a small block; of a larger one the first and the last, and some in each page.
    fn places(&self) -> impl Iterator<Item = usize> + use<> {
        let size = self.layout.size();
        let step = if size <= 1024 { 1 } else { 1021 };
        (0..size).step_by(step).chain([size - 1])
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        for at in self.places() {
            // SAFETY: inside of the block.
            let place = unsafe { self.memory.add(at) };
            // SAFETY: written by `new`.
            assert_eq!(unsafe { place.read() }, self.byte, "somebody else's");
        }
        // SAFETY: allocated with this layout, not used any more.
        unsafe { HEAP.dealloc(self.memory.as_ptr(), self.layout) };
    }
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

/// A step of a sequence that looks random.
fn next(seed: &mut u64) -> usize {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    (*seed >> 33) as usize
}

/// Sizes of every kind, small ones most often.
fn some_size(seed: &mut u64) -> usize {
    match next(seed) % 64 {
        0 => 1 + next(seed) % (6 << 20),
        1..4 => 1 + next(seed) % (200 << 10),
        4..16 => 1 + next(seed) % MAX_CLASS_BYTES,
        _ => 1 + next(seed) % 300,
    }
}

#[test]
fn collections_keep_their_contents_across_threads() {
    let (to_checker, from_workers) = mpsc::channel::<(u64, HashMap<String, Vec<u64>>)>();
    let workers: Vec<_> = (0..4_u64)
        .map(|worker| {
            let to_checker = to_checker.clone();
            thread::spawn(move || {
                for round in 0..12 {
                    let mut map = HashMap::new();
                    let mut tree = BTreeMap::new();
                    for i in 0..200 {
                        let key = format!("{worker}/{round}/{i}");
                        tree.insert(key.clone(), i);
                        map.insert(key, vec![worker ^ i; (i as usize % 40) + 1]);
                    }
                    for (key, i) in &tree {
                        assert_eq!(map[key], vec![worker ^ i; (*i as usize % 40) + 1]);
                    }
                    to_checker.send((worker, map)).unwrap();
                }
            })
        })
        .collect();
    drop(to_checker);
    let mut seen = 0;
    for (worker, map) in from_workers {
        for (key, values) in map {
            let mut parts = key.split('/');
            assert_eq!(parts.next(), Some(worker.to_string().as_str()));
            let i: u64 = parts.nth(1).unwrap().parse().unwrap();
            assert!(values.iter().all(|v| *v == worker ^ i));
            seen += 1;
        }
    }
    workers.into_iter().for_each(|w| w.join().unwrap());
    assert_eq!(seen, 4 * 12 * 200);
}

#[test]
fn threads_that_end_may_allocate_and_free_in_their_last_destructors() {
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    struct Late(Vec<String>);
    impl Drop for Late {
        fn drop(&mut self) {
            // Whether the thread has its slot still or not.
            let more: Vec<_> = self.0.iter().map(|s| s.repeat(3)).collect();
            assert_eq!(more.concat().len(), 3 * self.0.concat().len());
            drop(Canary::new(layout(100_000, 8), 7));
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
    thread_local! {
        // Three of them: destructors run in some order around the one that gives the slot back.
        static FIRST: RefCell<Option<Late>> = const { RefCell::new(None) };
        static SECOND: RefCell<Option<Late>> = const { RefCell::new(None) };
        static THIRD: RefCell<Late> = const { RefCell::new(Late(Vec::new())) };
    }
    const ROUNDS: usize = 12;
    const THREADS: usize = 16;
    for _ in 0..ROUNDS {
        let threads: Vec<_> = (0..THREADS)
            .map(|i| {
                thread::spawn(move || {
                    let strings = || (0..50).map(|j| format!("{i} {j}")).collect();
                    FIRST.set(Some(Late(strings())));
                    THIRD.with_borrow_mut(|third| third.0 = strings());
                    SECOND.set(Some(Late(strings())));
                    strings().len()
                })
            })
            .collect();
        assert!(threads.into_iter().all(|t| t.join().unwrap() == 50));
    }
    assert_eq!(DROPPED.load(Ordering::Relaxed), 3 * ROUNDS * THREADS);
}

#[test]
fn vectors_grow_to_64_mib_and_shrink_again() {
    let mut grown: Vec<u32> = Vec::new();
    for i in 0..16 << 20 {
        grown.push(i);
    }
    assert_eq!(grown.len() * 4, 64 << 20);
    assert!(
        grown
            .iter()
            .step_by(1021)
            .enumerate()
            .all(|(n, v)| *v as usize == n * 1021)
    );
    for len in [3 << 20, 1 << 20, 100_000, 2000, 10, 1] {
        grown.truncate(len);
        grown.shrink_to_fit();
        assert!(grown.iter().enumerate().all(|(i, v)| *v as usize == i));
    }
    let zeroed = vec![0_u8; 9 << 20];
    assert!(zeroed.iter().step_by(997).all(|b| *b == 0));
}

#[test]
fn alignments_beyond_the_size_are_kept_and_nothing_is_something() {
    for shift in 0..=24 {
        for size in [1, 8, 100, 5000, 70_000] {
            let some: Vec<_> = (0..3)
                .map(|i| Canary::new(layout(size, 1 << shift), i))
                .collect();
            drop(some);
        }
    }
    let km = HEAP.kmalloc().unwrap();
    let nothing = [8, 64, 4096, 1 << 21].map(|align| km.kmalloc(layout(0, align)).unwrap());
    for (memory, align) in nothing.iter().zip([8, 64, 4096, 1 << 21]) {
        assert!(memory.addr().get().is_multiple_of(align));
    }
    let mut starts = nothing.map(|memory| memory.addr());
    starts.sort_unstable();
    assert!(starts.is_sorted_by(|a, b| a < b), "each is one of its own");
    for memory in nothing {
        // SAFETY: allocated above.
        unsafe { km.kfree(memory) };
    }
}

#[test]
fn threads_storm_with_every_size_and_free_each_others_memory() {
    let (to_next, from_last): (Vec<_>, Vec<_>) = (0..4).map(|_| mpsc::channel::<Canary>()).unzip();
    thread::scope(|s| {
        for (me, inbox) in from_last.into_iter().enumerate() {
            let outbox = to_next[(me + 1) % 4].clone();
            s.spawn(move || {
                let mut seed = me as u64 + 1;
                let mut mine = Vec::new();
                for _ in 0..1500 {
                    let size = some_size(&mut seed);
                    let align = 1 << (next(&mut seed) % 8);
                    let canary = Canary::new(layout(size, align), seed as u8);
                    match next(&mut seed) % 3 {
                        0 => mine.push(canary),
                        1 => drop(outbox.send(canary)),
                        _ => drop(canary),
                    }
                    if mine.len() > 100 {
                        mine.swap_remove(next(&mut seed) % 100);
                    }
                    inbox.try_iter().for_each(drop);
                }
            });
        }
        drop(to_next);
    });
}

#[test]
fn children_of_fork_find_the_allocator_whole() {
    static STOP: AtomicBool = AtomicBool::new(false);
    let begun = Barrier::new(4);
    thread::scope(|s| {
        for me in 0..3_u64 {
            let begun = &begun;
            s.spawn(move || {
                begun.wait();
                let mut seed = me + 100;
                let mut mine = Vec::new();
                while !STOP.load(Ordering::Relaxed) {
                    mine.push(Canary::new(layout(some_size(&mut seed), 8), seed as u8));
                    if mine.len() > 60 {
                        mine.clear();
                    }
                    // Threads that begin and end in the middle of a fork.
                    if seed % 16 == 0 {
                        on_a_thread(|| drop(vec![String::from("x"); 20]));
                    }
                }
            });
        }
        begun.wait();
        let before: Vec<_> = (0..500)
            .map(|i| Canary::new(layout(1 + i * 37, 8), i as u8))
            .collect();
        let mut before = Some(before);
        for round in 0..12 {
            let all_well = fork_and(|| {
                // Freed in the child, whose copy it is.
                drop(before.take());
                let mut seed = round;
                for _ in 0..150 {
                    drop(Canary::new(layout(some_size(&mut seed), 16), 3));
                }
                let threads: Vec<_> = (0..4)
                    .map(|i| thread::spawn(move || vec![i; 10_000].len()))
                    .collect();
                let sum: usize = threads.into_iter().map(|t| t.join().unwrap()).sum();
                assert_eq!(sum, 40_000);
                // And a child of the child.
                if round % 5 == 0 {
                    assert!(fork_and(|| drop(Canary::new(layout(8 << 20, 8), 9))));
                }
                HEAP.shrink();
            });
            assert!(all_well, "round {round}");
        }
        STOP.store(true, Ordering::Relaxed);
    });
}

#[test]
fn several_threads_fork_at_once() {
    thread::scope(|s| {
        for me in 0..4_u8 {
            s.spawn(move || {
                for _ in 0..10 {
                    let mine = Canary::new(layout(3000, 8), me);
                    assert!(fork_and(|| drop(vec![me; 50_000])));
                    drop(mine);
                    let done = Command::new("true").status().unwrap();
                    assert!(done.success());
                }
            });
        }
    });
}

fn limit(which: libc::__rlimit_resource_t, bytes: u64) {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: a whole structure; the limit is this process's own.
    let done = unsafe { libc::setrlimit(which, &raw const limit) };
    assert_eq!(done, 0);
}

#[test]
fn out_of_memory_is_an_error_and_then_works_again() {
    fn body() {
        // Of what is writable now, most is addresses for the zone's account of its pages.
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let data_pages: u64 = statm.split(' ').nth(5).unwrap().parse().unwrap();
        limit(libc::RLIMIT_DATA, (data_pages << 12) + (24 << 20));
        for size in [5 << 20, 100_000, 9000, 1000, 24] {
            // Linked through its first word: what notes it must not need memory.
            let mut last: *mut u8 = std::ptr::null_mut();
            let mut bytes = 0;
            // SAFETY: the layout is not empty.
            while let Some(memory) = NonNull::new(unsafe { HEAP.alloc(layout(size, 8)) }) {
                // SAFETY: large enough for a pointer, and this loop's.
                unsafe { memory.cast::<*mut u8>().write(last) };
                last = memory.as_ptr();
                bytes += size;
                assert!(bytes < 32 << 20, "{size}: more than there is");
            }
            assert!(bytes > 5 << 20, "{size}: {bytes}");
            while let Some(memory) = NonNull::new(last) {
                // SAFETY: written above.
                last = unsafe { memory.cast::<*mut u8>().read() };
                // SAFETY: allocated above with this layout.
                unsafe { HEAP.dealloc(memory.as_ptr(), layout(size, 8)) };
            }
            HEAP.shrink();
            drop(Canary::new(layout(size, 8), 1));
        }
        let mut large: Vec<u8> = Vec::new();
        assert!(large.try_reserve(1 << 40).is_err());
        assert!(large.try_reserve(10_000).is_ok());
    }
    let test = "out_of_memory_is_an_error_and_then_works_again";
    in_child(test, body, |output| {
        assert!(output.status.success(), "{output:?}")
    });
}

#[test]
fn out_of_memory_reaches_the_error_handler() {
    fn body() {
        limit(libc::RLIMIT_AS, 80 << 30);
        let mut all: Vec<Vec<u8>> = Vec::new();
        loop {
            all.push(Vec::with_capacity(1 << 30));
        }
    }
    in_child("out_of_memory_reaches_the_error_handler", body, |output| {
        use std::os::unix::process::ExitStatusExt;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{said}");
        assert!(
            said.contains("memory allocation of 1073741824 bytes failed"),
            "{said}"
        );
    });
}

// AddressSanitizer's own addresses are more than the limit.
#[cfg(not(address_sanitizer))]
#[test]
fn a_program_without_room_for_the_reservation_makes_do_with_less() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["collections_keep_their_contents_across_threads", "--exact"]);
    // SAFETY: sets a limit of the child's own, and allocates nothing.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            limit(libc::RLIMIT_AS, 2 << 30);
            Ok(())
        })
    };
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn exit_handlers_allocate_and_free() {
    static KEPT: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());
    extern "C" fn at_exit() {
        let mut kept = KEPT.lock().unwrap();
        assert_eq!(kept.len(), 100);
        kept.clear();
        kept.push("z".repeat(100_000));
        let text = std::mem::take(&mut *kept).concat();
        // SAFETY: a whole buffer.
        unsafe { libc::write(1, text.as_ptr().cast(), 9) };
    }
    fn body() {
        *KEPT.lock().unwrap() = (0..100).map(|i| i.to_string()).collect();
        // SAFETY: the function stays.
        assert_eq!(unsafe { libc::atexit(at_exit) }, 0);
        std::process::exit(0);
    }
    in_child("exit_handlers_allocate_and_free", body, |output| {
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).ends_with("zzzzzzzzz"));
    });
}
