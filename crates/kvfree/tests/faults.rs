//! What may happen to a process, over the whole default stack: threads that panic while they hold guards, and retire while they
//! unwind and in the destructors of thread-locals; threads by the thousand; no more addresses, no more threads, no `membarrier`.
//!
//! Elsewhere: signal storms (`signals.rs`, `signals_stack.rs`), forks (`fork.rs`), memory refused at each call there is (`layers.rs`,
//! `prop.rs`), exit handlers (`exit.rs`).

#![cfg(all(feature = "std", target_os = "linux", not(miri), not(loom)))]

#[path = "../../rcu-tree/tests/common/seccomp.rs"]
mod seccomp;

use kvfree::{RcuBox, RcuCell, read_lock};
#[cfg(not(address_sanitizer))]
use std::alloc::Layout;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

mod cfg {
    //! Sizes, in one place.
    pub(crate) const PANICS: usize = 400;
    pub(crate) const THREADS: usize = 10_000;
    /// Of them, side by side.
    pub(crate) const AT_ONCE: usize = 8;
    /// Publications before and after the filter.
    pub(crate) const ROUNDS: usize = 3_000;
}

/// Tests that look at the whole stack's numbers take turns.
static TURN: Mutex<()> = Mutex::new(());

static MADE: AtomicUsize = AtomicUsize::new(0);
static DROPPED: AtomicUsize = AtomicUsize::new(0);

const ALIVE: u64 = 0xa11e;

/// Something that knows whether it was dropped, and is counted.
struct Counted {
    state: u64,
    /// So that its memory is that of its destructor's, too.
    text: String,
}

impl Counted {
    fn new() -> Self {
        MADE.fetch_add(1, Ordering::Relaxed);
        Self {
            state: ALIVE,
            text: "alive".to_owned(),
        }
    }

    fn check(&self) {
        assert_eq!(
            (self.state, &*self.text),
            (ALIVE, "alive"),
            "freed under a reader"
        );
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        assert_eq!(self.state, ALIVE, "dropped twice");
        self.state = 0;
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

type Cell = RcuCell<Counted>;

/// Reads `cell` and replaces what is in it, in one section and after it.
fn read_and_replace(cell: &Cell) {
    let guard = read_lock();
    let seen = cell.load(&guard);
    seen.inspect(|seen| seen.check());
    cell.store(Some(RcuBox::new(Counted::new())));
    seen.inspect(|seen| seen.check());
    drop(guard);
}

/// Everything that was retired is free, each once.
fn assert_all_gone(cell: &Cell) {
    cell.store(None);
    kvfree::synchronize();
    kvfree::barrier();
    assert_eq!(
        DROPPED.load(Ordering::Acquire),
        MADE.load(Ordering::Acquire)
    );
    let front = kvfree::stats().front.unwrap();
    assert_eq!(front.objects_waiting, 0);
}

/// Retires when it is dropped, wherever that is.
struct RetiresLate(&'static Cell);

impl Drop for RetiresLate {
    fn drop(&mut self) {
        read_and_replace(self.0);
        drop(RcuBox::new(Counted::new()));
    }
}

thread_local! {
    static LAST: RefCell<Option<RetiresLate>> = const { RefCell::new(None) };
}

/// Threads end by a panic, with guards nested three deep that are dropped in the wrong order, and retire while they unwind and in
/// their thread-locals' destructors. A grace period after each, beside the others.
#[test]
fn threads_that_panic_with_guards_hold_nothing_up() {
    static CELL: Cell = RcuCell::empty();
    let _turn = TURN.lock();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                read_and_replace(&CELL);
                kvfree::synchronize();
            }
        });
        for n in 0..cfg::PANICS {
            let dies = move || {
                LAST.set(Some(RetiresLate(&CELL)));
                let (first, second) = (read_lock(), read_lock());
                let _unwinds = RetiresLate(&CELL);
                let third = read_lock();
                let seen = CELL.load(&third);
                seen.inspect(|seen| seen.check());
                if n % 2 == 0 {
                    // Out of order, and the last by unwinding.
                    drop(first);
                    let _second = second;
                    resume_unwind(Box::new(n));
                }
                // Caught inside of a section, which goes on.
                let caught = catch_unwind(AssertUnwindSafe(|| {
                    let _inner = read_lock();
                    read_and_replace(&CELL);
                    resume_unwind(Box::new(n));
                }));
                assert!(caught.is_err());
                seen.inspect(|seen| seen.check());
                drop((second, third));
                let _first = first;
                resume_unwind(Box::new(n));
            };
            let ended = thread::spawn(dies).join().unwrap_err();
            assert_eq!(ended.downcast_ref(), Some(&n));
            if n.is_multiple_of(50) {
                // No section was left behind.
                kvfree::synchronize();
                kvfree::barrier();
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_all_gone(&CELL);
}

/// More threads than there ever are slots, a few at a time: each registers, reads, replaces, retires and ends.
#[test]
fn ten_thousand_threads_over_a_run() {
    static CELL: Cell = RcuCell::empty();
    let _turn = TURN.lock();
    CELL.store(Some(RcuBox::new(Counted::new())));
    let live = |n: usize| {
        read_and_replace(&CELL);
        if n.is_multiple_of(3) {
            LAST.set(Some(RetiresLate(&CELL)));
        }
        if n.is_multiple_of(5) {
            drop(RcuBox::new([n; 100]));
        }
        if n.is_multiple_of(500) {
            kvfree::synchronize();
        }
    };
    let pages_after = |threads: usize| {
        for first in (0..threads).step_by(cfg::AT_ONCE) {
            let batch = [(); cfg::AT_ONCE].map(|()| {
                let n = first;
                thread::spawn(move || live(n))
            });
            batch.into_iter().for_each(|thread| thread.join().unwrap());
        }
        kvfree::synchronize();
        kvfree::barrier();
        kvfree::stats().pages_allocated
    };
    let after_some = pages_after(cfg::THREADS / 10);
    let after_all = pages_after(cfg::THREADS - cfg::THREADS / 10);
    // What a thread holds comes back, so that nine times as many need no more; other tests' leavings come and go.
    assert!(
        after_all <= after_some + after_some / 2 + 64,
        "{after_some} pages, and then {after_all}"
    );
    assert_all_gone(&CELL);
}

/// Runs `body` in a process of its own, which must live to its end.
fn in_child(test: &str, body: impl FnOnce()) {
    const CHILD: &str = "KVFREE_FAULT_CHILD";
    if std::env::var_os(CHILD).is_some() {
        body();
        println!("[lived to the end]");
        return;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && said.contains("[lived to the end]"),
        "{}: {said} {}",
        child.status,
        String::from_utf8_lossy(&child.stderr)
    );
}

#[cfg(not(address_sanitizer))]
fn limit(which: libc::__rlimit_resource_t, most: u64) {
    let limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: a whole structure; the limit is this process's own.
    let done = unsafe { libc::setrlimit(which, &raw const limit) };
    assert_eq!(done, 0);
}

/// Bytes of addresses that the process has. Not where AddressSanitizer has taken most of all that there are.
#[cfg(not(address_sanitizer))]
fn addresses() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    pages << 12
}

/// No more addresses: large memory is refused, boxes go on as far as the pages reserved do, no thread can be made; and when there
/// are addresses again, everything is freed and works.
#[cfg(not(address_sanitizer))]
#[test]
fn out_of_addresses_is_a_refusal_and_nothing_is_lost() {
    in_child("out_of_addresses_is_a_refusal_and_nothing_is_lost", || {
        static CELL: Cell = RcuCell::empty();
        read_and_replace(&CELL);
        kvfree::barrier();
        limit(libc::RLIMIT_AS, addresses() + (1 << 20));
        let large = Layout::new::<[u8; 32 << 20]>();
        // A stack that no thread before had.
        let refused = thread::Builder::new().stack_size(1 << 30).spawn(|| ());
        assert!(refused.is_err());
        let mut kept = Vec::new();
        for _ in 0..2000 {
            read_and_replace(&CELL);
            kept.push(RcuBox::try_new(Counted::new()).ok());
            assert!(kvfree::objects().kmalloc(large).is_err());
        }
        assert!(kept.iter().flatten().count() > 0);
        drop(kept);
        kvfree::synchronize();
        kvfree::barrier();
        limit(libc::RLIMIT_AS, libc::RLIM_INFINITY);
        thread::spawn(|| read_and_replace(&CELL)).join().unwrap();
        let memory = kvfree::objects().kmalloc(large).unwrap();
        // SAFETY: allocated just now, and seen by nobody.
        unsafe { kvfree::retire_mightsleep(memory) };
        assert_all_gone(&CELL);
    });
}

/// A zone with no page left: a box gives its value back, retiring goes on by the heads, and with memory everything is as before.
#[cfg(not(address_sanitizer))]
#[test]
fn out_of_pages_gives_the_value_back() {
    in_child("out_of_pages_gives_the_value_back", || {
        static CELL: Cell = RcuCell::empty();
        // What the stack's zone gets is a share of the addresses that there are.
        limit(libc::RLIMIT_AS, addresses() + (300 << 20));
        read_and_replace(&CELL);
        let mut kept = Vec::new();
        let refused = loop {
            match RcuBox::try_new(([0_u8; 4000], Counted::new())) {
                Ok(one) => kept.push(one),
                Err((_, counted)) => break counted,
            }
            assert!(kept.len() < 1 << 20, "more than there is");
        };
        refused.check();
        drop(refused);
        let half = kept.split_off(kept.len() / 2);
        drop(half);
        drop(kept);
        kvfree::barrier();
        for _ in 0..1000 {
            read_and_replace(&CELL);
        }
        assert_all_gone(&CELL);
    });
}

/// No thread can be made from the start: whoever waits does what the stack's threads would.
#[test]
fn without_threads_barriers_free_everything() {
    in_child("without_threads_barriers_free_everything", || {
        static CELL: Cell = RcuCell::empty();
        if !seccomp::deny_threads() {
            return;
        }
        assert!(thread::Builder::new().spawn(|| ()).is_err());
        for round in 0..20 {
            for _ in 0..500 {
                read_and_replace(&CELL);
                drop(RcuBox::new([round; 50]));
            }
            kvfree::synchronize();
            kvfree::barrier();
        }
        assert_all_gone(&CELL);
    });
}

/// Little room from the start: the stack reserves what it gets.
#[cfg(not(address_sanitizer))]
#[test]
fn a_process_with_few_addresses_has_a_stack() {
    in_child("a_process_with_few_addresses_has_a_stack", || {
        static CELL: Cell = RcuCell::empty();
        limit(libc::RLIMIT_AS, addresses() + (1 << 30));
        let threads = [(); 3].map(|()| {
            thread::spawn(|| {
                for _ in 0..500 {
                    read_and_replace(&CELL);
                }
            })
        });
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert_all_gone(&CELL);
    });
}

/// `membarrier` refused from the start, and from some moment on while threads read, replace and retire.
#[test]
fn membarrier_denied_before_and_in_the_middle() {
    let storm = || {
        static CELL: Cell = RcuCell::empty();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..cfg::ROUNDS {
                        read_and_replace(&CELL);
                    }
                });
            }
            kvfree::synchronize();
        });
        CELL.store(None);
        kvfree::barrier();
        assert_eq!(
            DROPPED.load(Ordering::Acquire),
            MADE.load(Ordering::Acquire)
        );
    };
    // One name for both: the child tells by what else it finds in its environment.
    let test = "membarrier_denied_before_and_in_the_middle";
    const EARLY: &str = "KVFREE_FAULT_EARLY";
    let is_early = std::env::var_os(EARLY).is_some();
    in_child(test, || {
        if !is_early {
            storm();
        }
        let denied = thread::scope(|scope| {
            if !is_early {
                scope.spawn(storm);
            }
            seccomp::deny_membarrier()
        });
        storm();
        seccomp::assert_fenced(denied);
    });
    if std::env::var_os("KVFREE_FAULT_CHILD").is_none() {
        let early = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env("KVFREE_FAULT_CHILD", "1")
            .env(EARLY, "1")
            .output()
            .unwrap();
        assert!(early.status.success(), "{early:?}");
    }
}
