//! What was done, and what went wrong.
//!
//! Threads count for themselves and hand their counts in now and then: a shared counter in a reader's loop would be a
//! locked instruction there, and so a full fence where the RCU under test has to do without.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

macro_rules! named {
    ($(#[$m:meta])* $name:ident { $($(#[$v:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $($(#[$v])* $variant,)* }

        impl $name {
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),*];

            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

named! {
    /// What is counted.
    Count {
        Reads = "reads",
        Published = "readers at stage 0",
        Removed = "readers at stage 1",
        Sends = "send sections",
        Online = "online sections",
        /// Sections of threads past their slot's end.
        Late = "late sections",
        /// Sections in which a whole grace period could be seen to begin and end elsewhere.
        Batches = "close calls",
        Updates = "updates",
        Starved = "updates without an element",
        Calls = "calls",
        LazyCalls = "lazy calls",
        Syncs = "synchronize",
        Polls = "polled",
        CookieChecks = "cookie checks",
        OrderChecks = "order checks",
        Barriers = "barriers",
        Posted = "barrier callbacks",
        Threads = "threads come and gone",
        Floods = "floods",
        Launders = "callbacks round in floods",
        Stalls = "stalls injected",
        StallsTold = "stalls told",
        Pauses = "pauses",
        Knobs = "knobs turned",
        Allocs = "allocations",
        Refused = "allocations refused",
        Frees = "frees",
        Retires = "retires",
        Rejected = "retires refused",
        Bulks = "bulk calls",
        Caches = "caches born and destroyed",
        Shrinks = "shrinks",
        Injected = "faults injected",
        ResidentKib = "KiB that stayed resident",
    }
}

named! {
    /// What can go wrong.
    Fault {
        TooShort = "grace period too short",
        Recycled = "element recycled under a reader",
        Order = "reader saw less than another before a grace period",
        Cookie1 = "cookie check 1: a cookie taken in a section was done in it",
        Cookie2 = "cookie check 2: a full cookie taken in a section was done in it",
        Cookie3 = "cookie check 3: an older cookie than one that is done is not",
        Cookie4 = "cookie check 4: a cookie was not done after its grace period",
        Cookie5 = "cookie check 5: a full cookie was not done after a grace period",
        Cookie6 = "cookie check 6: a cookie that was done is not any more",
        Barrier = "barrier returned before its callbacks",
        Lost = "callback lost",
        Twice = "callback run twice",
        Progress = "no forward progress",
        Stuck = "elements stuck after a pause",
        NotTold = "stall not told",
        Early = "memory freed early",
        Overlap = "memory handed out twice",
        Content = "memory changed by somebody else",
        Owner = "memory of another cache or owner",
        Leak = "memory never freed",
        Budget = "more memory waits than may",
        Resident = "resident memory does not come back",
        Panic = "panic",
    }
}

/// Counts of one thread, not handed in yet.
pub(crate) struct Tally([u64; Count::ALL.len()]);

impl Tally {
    pub(crate) const fn new() -> Self {
        Self([0; Count::ALL.len()])
    }

    pub(crate) fn one(&mut self, count: Count) {
        self.add(count, 1);
    }

    pub(crate) fn add(&mut self, count: Count, n: u64) {
        self.0[count as usize] += n;
    }
}

/// How many messages are kept.
const MESSAGES: usize = 8;
/// How many stages a reader's pipe count is told apart into.
pub(crate) const PIPE: usize = 11;

pub(crate) struct Books {
    started: Instant,
    counts: [AtomicU64; Count::ALL.len()],
    faults: [AtomicU64; Fault::ALL.len()],
    /// Readers whose element was at stage 2 or more when they were done with it; the first two are counted by themselves.
    too_long: [AtomicU64; PIPE],
    /// How often an element has come to each stage.
    circulation: [AtomicU64; PIPE],
    notes: Mutex<Notes>,
}

struct Notes {
    first_after: Option<Duration>,
    messages: Vec<String>,
}

impl Books {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            counts: [const { AtomicU64::new(0) }; Count::ALL.len()],
            faults: [const { AtomicU64::new(0) }; Fault::ALL.len()],
            too_long: [const { AtomicU64::new(0) }; PIPE],
            circulation: [const { AtomicU64::new(0) }; PIPE],
            notes: Mutex::new(Notes {
                first_after: None,
                messages: Vec::new(),
            }),
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes a thread's counts in.
    pub(crate) fn hand_in(&self, tally: &mut Tally) {
        for (all, own) in self.counts.iter().zip(&mut tally.0) {
            if *own > 0 {
                all.fetch_add(*own, Ordering::Relaxed);
                *own = 0;
            }
        }
    }

    /// Counts at once, where it does not matter what that costs.
    pub(crate) fn one(&self, count: Count) {
        self.counts[count as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count(&self, count: Count) -> u64 {
        self.counts[count as usize].load(Ordering::Relaxed)
    }

    /// Something went wrong.
    pub(crate) fn fault(&self, fault: Fault, detail: impl FnOnce() -> String) {
        self.faults[fault as usize].fetch_add(1, Ordering::Relaxed);
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let after = self.started.elapsed();
        notes.first_after.get_or_insert(after);
        if notes.messages.len() < MESSAGES {
            let message = format!(
                "{:.3} s: {}: {}",
                after.as_secs_f64(),
                fault.name(),
                detail()
            );
            notes.messages.push(message);
        }
    }

    /// As [`Self::fault`], unless `right`.
    pub(crate) fn check(&self, right: bool, fault: Fault, detail: impl FnOnce() -> String) {
        if !right {
            self.fault(fault, detail);
        }
    }

    /// A reader was done with an element at this stage.
    pub(crate) fn held_too_long(&self, stage: usize) {
        self.too_long[stage.min(PIPE - 1)].fetch_add(1, Ordering::Relaxed);
    }

    /// An element has come to this stage.
    pub(crate) fn came_to(&self, stage: usize) {
        self.circulation[stage.min(PIPE - 1)].fetch_add(1, Ordering::Relaxed);
    }

    /// How often an element has come to each stage but the first: never more often than to the one before.
    pub(crate) fn circulation(&self) -> Vec<u64> {
        let stages = self.circulation[1..].iter();
        stages.map(|n| n.load(Ordering::Relaxed)).collect()
    }

    /// Readers by the stage at which their element was when they were done with it.
    pub(crate) fn pipe(&self) -> Vec<u64> {
        let rest = self.too_long[2..].iter();
        [Count::Published, Count::Removed]
            .map(|count| self.count(count))
            .into_iter()
            .chain(rest.map(|n| n.load(Ordering::Relaxed)))
            .collect()
    }

    pub(crate) fn nr_faults(&self) -> u64 {
        self.faults.iter().map(|n| n.load(Ordering::Relaxed)).sum()
    }

    /// What was counted, by name; what was not, is left out.
    pub(crate) fn counts(&self) -> Vec<(&'static str, u64)> {
        let all = Count::ALL.iter().zip(&self.counts);
        nonzero(all.map(|(count, n)| (count.name(), n)))
    }

    pub(crate) fn faults(&self) -> Vec<(&'static str, u64)> {
        let all = Fault::ALL.iter().zip(&self.faults);
        nonzero(all.map(|(fault, n)| (fault.name(), n)))
    }

    /// How long after the start the first fault was found, and the first few messages.
    pub(crate) fn notes(&self) -> (Option<Duration>, Vec<String>) {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        (notes.first_after, notes.messages.clone())
    }
}

fn nonzero<'a>(
    all: impl Iterator<Item = (&'static str, &'a AtomicU64)>,
) -> Vec<(&'static str, u64)> {
    all.map(|(name, n)| (name, n.load(Ordering::Relaxed)))
        .filter(|(_, n)| *n > 0)
        .collect()
}
