//! The pages that a scenario stands on, and what must be so when it is over.

use super::Injury;
use super::moody::Moody;
use super::resident;
use super::shadow::Shadow;
use crate::books::{Count, Fault};
use crate::random::Random;
use crate::stage::{Role, Stage};
use pagealloc::{Mmap, Source, Zone};
use rcu_core::cpu::Threads;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub(crate) type Pages = &'static Zone<Threads, Moody<Mmap>>;

/// KiB that may stay resident.
const STAYS: usize = 1024;
/// So many things are done before the first is done wrong, and after so many mistakes it is enough.
const FIRST: u64 = 2_000;
const ENOUGH: usize = 3;

pub(crate) struct Ground {
    pub(crate) stage: &'static Stage,
    pub(crate) zone: Pages,
    pub(crate) shadow: Shadow,
    pub(crate) injury: Injury,
    injured: AtomicUsize,
    lives: AtomicUsize,
    resident: Option<usize>,
}

impl Ground {
    /// Over `bytes` of addresses, from a source that refuses to grow so often in four times.
    pub(crate) fn new(
        stage: &'static Stage,
        bytes: usize,
        refuses: usize,
        injury: Injury,
    ) -> Result<Self, String> {
        let resident = resident::mark();
        let source = Mmap::reserve(bytes).map_err(|error| error.to_string())?;
        let span = source.span();
        let zone = Zone::new(Threads, Moody::new(source, stage.seed, refuses))
            .map_err(|error| error.to_string())?;
        Ok(Self {
            stage,
            zone: Box::leak(Box::new(zone)),
            shadow: Shadow::new(span),
            injury,
            injured: AtomicUsize::new(0),
            lives: AtomicUsize::new(1),
            resident,
        })
    }

    /// The number of another life.
    pub(crate) fn next_life(&self) -> usize {
        self.lives.fetch_add(1, Ordering::Relaxed) & 0xffff_ffff_ffff
    }

    /// Whether what is about to be done is to be done wrong in this way.
    pub(crate) fn injures(&self, injury: Injury, role: &mut Role, random: &mut Random) -> bool {
        if self.injury != injury || !random.one_in(16) {
            return false;
        }
        let books = role.books();
        books.hand_in(&mut role.tally);
        let begun = books.count(Count::Allocs) >= FIRST;
        // What is missing is missed in the end; everything else may take a few times until somebody looks.
        let enough = injury == Injury::Missing && self.injured.load(Ordering::Relaxed) >= ENOUGH;
        if !begun || enough {
            return false;
        }
        self.injured.fetch_add(1, Ordering::Relaxed);
        books.one(Count::Injected);
        if injury == Injury::Missing {
            // It will be missed when all is over, which need not be long.
            let stage = self.stage;
            std::thread::spawn(move || {
                stage.sleep(Duration::from_millis(500));
                stage.end();
            });
        }
        true
    }

    /// All is over: every page must be back, and the memory the system's again.
    pub(crate) fn leave(self) {
        let books = &self.stage.books;
        let zone = self.zone;
        zone.drain_all();
        let (allocated, stats) = (zone.nr_allocated(), zone.stats());
        books.check(allocated == 0, Fault::Leak, || {
            format!("{allocated} pages are out: {stats}")
        });
        let back = stats.free_pages == stats.total_pages;
        books.check(back || allocated > 0, Fault::Leak, || {
            format!("pages are neither out nor free: {stats}")
        });
        drop(self.shadow);
        zone.trim();
        if let (Some(before), Some(after)) = (self.resident, resident::kib())
            && self.injury == Injury::Nothing
        {
            let stayed = after.saturating_sub(before);
            books.check(stayed <= STAYS, Fault::Resident, || {
                format!("{before} KiB before, {after} KiB after")
            });
            let mut tally = crate::books::Tally::new();
            tally.add(Count::ResidentKib, stayed as u64);
            books.hand_in(&mut tally);
        }
    }
}
