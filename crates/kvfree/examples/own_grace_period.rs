//! A layer swapped: a grace-period detector of one's own, under the slab allocator as it is.
//!
//! ```sh
//! cargo run -p kvfree --example own_grace_period
//! cargo test -p kvfree --test examples own_grace_period     # the conformance suite on it
//! ```
//!
//! The detector counts readers in two banks, as sleepable RCU does: a section counts itself in the bank that is current, a
//! grace period waits for the other bank, makes it current, and waits for the first. What is dear in it is the reader's two
//! locked instructions on a word that all readers share; nothing above it knows. A researcher replaces one `impl`, runs
//! `grace_period_conformance!`, and then everything that is written against [`GracePeriod`].
//!
//! # Orderings
//! - P1. An object is published, Release / loaded, Acquire.
//! - P2. A reader counts itself, full fence, loads / a grace period begins (after what was unlinked), full fence, looks at the
//!   banks: forbids that the reader finds the old object and the look misses the reader.
//! - P3. The count down, Release / the look that finds zero, Acquire. P4. The end, Release / `poll`, Acquire. P5. A full fence
//!   before `snapshot` reads the sequence.

use pagealloc::{Mmap, Zone};
use rcu_core::cpu::{SpinMutex, Threads};
use rcu_core::{Cookie, GracePeriod, Seq, fence};
use slab::Cache;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::thread;

/// How far a grace period has come. Whoever holds the lock around it drives.
#[derive(Clone, Copy, Debug)]
enum Step {
    Idle,
    /// Waits for the bank that is not current.
    Other,
    /// The banks have changed places; waits for the one that was current.
    Former,
}

/// Grace periods by two banks of readers.
#[derive(Debug)]
pub(crate) struct TwoBanks {
    seq: AtomicUsize,
    wanted: AtomicUsize,
    current: AtomicUsize,
    readers: [AtomicUsize; 2],
    step: SpinMutex<Step>,
}

/// A section of [`TwoBanks`].
#[derive(Debug)]
pub(crate) struct Reading<'b> {
    bank: &'b AtomicUsize,
}

impl TwoBanks {
    pub(crate) const fn new() -> Self {
        Self {
            // Near the wrap, so that every run wraps.
            seq: AtomicUsize::new(Seq::INITIAL.raw()),
            wanted: AtomicUsize::new(Cookie::COMPLETED.raw()),
            current: AtomicUsize::new(0),
            readers: [AtomicUsize::new(0), AtomicUsize::new(0)],
            step: SpinMutex::new(Step::Idle),
        }
    }

    pub(crate) fn read_lock(&self) -> Reading<'_> {
        // ORDERING: Relaxed: a section may count itself in either bank; both are waited for.
        let bank = &self.readers[self.current.load(Ordering::Relaxed)];
        // ORDERING: Relaxed: P2, by the fence.
        bank.fetch_add(1, Ordering::Relaxed);
        fence::full();
        Reading { bank }
    }

    fn seq(&self) -> Seq {
        // ORDERING: P4 (poll side).
        Seq::from_raw(self.seq.load(Ordering::Acquire))
    }

    fn is_wanted(&self) -> bool {
        // ORDERING: Relaxed: a number; who asks later drives later.
        let wanted = Cookie::from_raw(self.wanted.load(Ordering::Relaxed));
        !self.seq().is_done(wanted)
    }

    fn is_empty(&self, bank: usize) -> bool {
        // ORDERING: P3 (look side).
        self.readers[bank].load(Ordering::Acquire) == 0
    }

    /// Takes the step that is due after `step`, if it need not wait for readers. The caller has the lock.
    fn next(&self, step: Step) -> Option<Step> {
        // ORDERING: Relaxed: changed under the lock only.
        let current = self.current.load(Ordering::Relaxed);
        match step {
            Step::Idle if self.is_wanted() => {
                self.set_seq(self.seq().started());
                fence::full();
                Some(Step::Other)
            }
            Step::Other if self.is_empty(1 - current) => {
                // ORDERING: Relaxed: newcomers may be late; they were waited for above, or are not old.
                self.current.store(1 - current, Ordering::Relaxed);
                fence::full();
                Some(Step::Former)
            }
            Step::Former if self.is_empty(1 - current) => {
                self.set_seq(self.seq().ended());
                Some(Step::Idle)
            }
            _ => None,
        }
    }

    fn set_seq(&self, seq: Seq) {
        // ORDERING: P4 (end side).
        self.seq.store(seq.raw(), Ordering::Release);
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        // ORDERING: P3 (exit side).
        self.bank.fetch_sub(1, Ordering::Release);
    }
}

// SAFETY: 1: a section that began before `snapshot` is in one of the banks, and a grace period that begins after it sees both
// empty, in this order: the one that was not current, where only sections can be that read `current` before it last changed;
// then, with newcomers sent elsewhere, the other (P2, P3); 2: the sequence only grows; 3: `wait` drives, and `drive` takes each
// step that is due; 4: one try-lock, no allocation, no callback.
unsafe impl GracePeriod for TwoBanks {
    fn snapshot(&self) -> Cookie {
        fence::full();
        // ORDERING: Relaxed: P5, after the fence.
        Seq::from_raw(self.seq.load(Ordering::Relaxed)).snapshot()
    }

    fn start(&self) -> Cookie {
        let cookie = self.snapshot();
        let later = |wanted| {
            let is_new = !cookie.is_no_later_than(Cookie::from_raw(wanted));
            is_new.then_some(cookie.raw())
        };
        // ORDERING: Relaxed, both: a number. An error says that a later one is wanted already.
        let _ = (self.wanted).fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
        cookie
    }

    fn poll(&self, cookie: Cookie) -> bool {
        self.seq().is_done(cookie)
    }

    fn wait(&self, cookie: Cookie) {
        if self.poll(cookie) {
            return;
        }
        self.start();
        self.drive();
        while !self.poll(cookie) {
            thread::yield_now();
            self.drive();
        }
    }

    fn drive(&self) -> bool {
        if let Some(mut step) = self.step.try_lock() {
            while let Some(next) = self.next(*step) {
                *step = next;
            }
        }
        self.is_wanted() || self.seq().in_progress()
    }

    fn grace_periods(&self) -> usize {
        self.seq().completed()
    }
}

/// What is read while it is replaced: two words that belong together.
struct Pair(u64, u64);

/// Readers under the detector, a writer over the slab allocator, which knows it by its trait only.
///
/// # Panics
/// If a reader sees an object that was used again under it, or an object is lost.
pub(crate) fn run() -> usize {
    static BANKS: TwoBanks = TwoBanks::new();
    static CURRENT: AtomicPtr<Pair> = AtomicPtr::new(ptr::null_mut());
    let source = Mmap::reserve(64 << 20).expect("addresses");
    let zone: &'static _ = Box::leak(Box::new(Zone::new(Threads, source).expect("a zone")));
    let cache = Cache::new("pair", Threads, zone, &BANKS).expect("a cache");
    let publish = |value| {
        let new = cache.alloc(Pair(value, !value)).expect("memory");
        // ORDERING: P1 (publish side); Acquire, so that what is freed was whole before.
        let old = CURRENT.swap(new.as_ptr(), Ordering::AcqRel);
        if let Some(old) = NonNull::new(old) {
            // SAFETY: from the cache, unlinked just now, retired once.
            if let Err(old) = unsafe { cache.retire(old) } {
                BANKS.synchronize();
                // SAFETY: the cache gave it back; a grace period has passed.
                unsafe { cache.free(old) };
            }
        }
    };
    publish(0);
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                // ORDERING: Relaxed: a flag that nothing is published by.
                while !stop.load(Ordering::Relaxed) {
                    let reading = BANKS.read_lock();
                    // ORDERING: P1 (load side).
                    // SAFETY: not used again before a grace period after it was unlinked, which this section holds up.
                    let pair = unsafe { &*CURRENT.load(Ordering::Acquire) };
                    let first = pair.0;
                    thread::yield_now();
                    assert_eq!(first, !pair.1, "used again under a reader");
                    drop(reading);
                }
            });
        }
        for value in 1..=20_000 {
            publish(value);
            if value.is_multiple_of(64) {
                // The slab asks for grace periods; here nobody but the writer and a barrier drives them.
                BANKS.drive();
            }
        }
        // ORDERING: Relaxed: as above.
        stop.store(true, Ordering::Relaxed);
    });
    // ORDERING: as in `publish`; null publishes nothing.
    let last = NonNull::new(CURRENT.swap(ptr::null_mut(), Ordering::AcqRel)).expect("published");
    // SAFETY: unlinked, and no reader is left.
    unsafe { cache.free(last) };
    cache.raw().barrier();
    cache.destroy().expect("every object is back");
    BANKS.grace_periods()
}

#[cfg(test)]
rcu_core::grace_period_conformance!(conformance, TwoBanks::new());

#[cfg(test)]
#[test]
fn a_section_in_either_bank_holds_a_grace_period_up() {
    let banks = TwoBanks::new();
    for _ in 0..10 {
        let reading = banks.read_lock();
        let cookie = banks.start();
        for _ in 0..5 {
            banks.drive();
            // A newcomer does not.
            drop(banks.read_lock());
        }
        assert!(!banks.poll(cookie));
        drop(reading);
        banks.wait(cookie);
    }
}

#[allow(dead_code, reason = "the tests call `run`")]
fn main() {
    println!("20,000 objects retired, {} grace periods", run());
}
