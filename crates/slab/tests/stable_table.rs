//! A hash table of chains in type-stable memory (T23): safe to use, made of `rcu_core::NullsHead` and a `StableCache`.
//!
//! Writers take one lock; readers take none, and are carried from chain to chain by objects that are freed and used again.

#![cfg(not(loom))]

mod common;

use common::Pages;
use rcu_core::cpu::Threads;
use rcu_core::{NullsHead, NullsLink, Section, Visit, read_lock};
use slab::{Checks, Found, Pinned, Stability, StableCache, TypeStable};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

mod cfg {
    //! Sizes, in one place.
    pub(crate) const READERS: usize = 2;

    pub(crate) fn lookups() -> usize {
        if cfg!(any(miri, thread_sanitizer)) {
            1_000
        } else if std::env::var_os("STRESS_LONG").is_some() {
            2_000_000
        } else {
            40_000
        }
    }
}

rcu_tree::static_tree! {
    /// Readers of the table.
    struct Readers;
}

const BUCKETS: usize = 4;

/// An entry: its link comes first, so that both have one address.
#[repr(C)]
struct Entry {
    link: NullsLink,
    key: AtomicU64,
    square: AtomicU64,
}

impl TypeStable for Entry {
    fn construct() -> Self {
        Self {
            link: NullsLink::new(),
            key: AtomicU64::new(0),
            square: AtomicU64::new(0),
        }
    }
}

impl Entry {
    fn key(&self) -> u64 {
        self.key.load(Ordering::Relaxed)
    }
}

type Entries = StableCache<Entry, Threads, &'static Pages, Readers>;
type Ref<'c> = Pinned<'c, Entry, Threads, &'static Pages, Readers>;
type Stale<'c, 'g> = Found<'c, 'g, Entry, Threads, &'static Pages, Readers>;

fn bucket(key: u64) -> usize {
    key as usize % BUCKETS
}

/// The table. Of each entry in a chain, a reference is the table's.
struct Table<'c> {
    cache: &'c Entries,
    chains: [NullsHead<Readers>; BUCKETS],
    /// The entries in the chains, raw: who has the lock is the one writer of all of them.
    writer: Mutex<Vec<Raw>>,
}

#[derive(Clone, Copy)]
struct Raw(NonNull<Entry>);

// SAFETY: a reference that belongs to the table, whoever has its lock.
unsafe impl Send for Raw {}

impl<'c> Table<'c> {
    /// In a box: chains stay where they are.
    fn new(cache: &'c Entries) -> Box<Self> {
        Box::new(Self {
            cache,
            chains: std::array::from_fn(NullsHead::new),
            writer: Mutex::new(Vec::new()),
        })
    }

    fn insert(&self, key: u64) {
        let entry = self.cache.alloc(|entry| {
            entry.key.store(key, Ordering::Relaxed);
            entry.square.store(key * key, Ordering::Relaxed);
        });
        let raw = entry.unwrap().into_raw();
        let mut entries = self.writer.lock().unwrap();
        // SAFETY: the one writer; the link was built with the entry's slab and is in no chain; its memory is an entry's until a
        // grace period after the last of them was freed, and nothing writes to links but their chains; the box stays.
        unsafe { self.chains[bucket(key)].add_head(raw.cast()) };
        entries.push(Raw(raw));
    }

    /// Takes one of the entries with `key` out, which is free at once unless a reader has it pinned.
    fn remove(&self, key: u64) -> bool {
        let mut entries = self.writer.lock().unwrap();
        let has_key = |raw: &Raw| {
            // SAFETY: the table has a reference.
            unsafe { raw.0.as_ref() }.key() == key
        };
        let Some(index) = entries.iter().position(has_key) else {
            return false;
        };
        let Raw(raw) = entries.swap_remove(index);
        // SAFETY: the table has a reference.
        let link = unsafe { &raw.as_ref().link };
        // SAFETY: the one writer; the box stays.
        unsafe { link.del() };
        // SAFETY: made raw by `insert`, and out of the list.
        drop(unsafe { self.cache.from_raw(raw) });
        true
    }

    /// Finds and pins the entry with `key`; `at` is called with what the reader stands on.
    fn find<'g>(
        &self,
        key: u64,
        section: &'g impl Section<Readers>,
        mut at: impl FnMut(Stale<'c, 'g>),
    ) -> Option<Ref<'c>> {
        let number = bucket(key);
        self.chains[number].lookup(section, number, |link| {
            // SAFETY: links of the chains are entries' first fields, by way of their raw references, alive when the reader
            // came to them.
            let found = unsafe { self.cache.found(link.cast::<Entry>(), section) };
            at(found);
            if found.key() != key {
                return Visit::Next;
            }
            match found.pin_any() {
                None => Visit::Next,
                Some(pinned) if pinned.key() == key => Visit::Found(pinned),
                Some(_) => Visit::Restart,
            }
        })
    }
}

impl Drop for Table<'_> {
    fn drop(&mut self) {
        loop {
            let first = self.writer.get_mut().unwrap().first().copied();
            let Some(Raw(raw)) = first else {
                break;
            };
            // SAFETY: the table has a reference.
            let key = unsafe { raw.as_ref() }.key();
            assert!(self.remove(key));
        }
    }
}

fn entries(stability: Stability) -> Entries {
    let pages: &'static Pages = Box::leak(Box::new(Pages::new()));
    let config = Entries::config("entry")
        .checks(Checks::empty())
        .stability(stability);
    Entries::with_config(config, Threads, pages, Readers).unwrap()
}

fn end(cache: Entries) {
    let pages = *cache.raw().pages();
    cache.destroy().expect("nothing is out");
    assert_eq!(pages.outstanding(), 0);
}

/// A reader stood on an entry that was freed and came to be in another chain, and took what it sought as missing at that chain's end.
#[test]
fn t23_a_reader_carried_into_another_chain_starts_again() {
    let cache = entries(Stability::Type);
    {
        let table = Table::new(&cache);
        // In chain 0: first 8, then 4.
        table.insert(4);
        table.insert(8);
        let (mut visits, mut moved) = (0, None);
        let guard = read_lock::<Readers>();
        let found = table.find(4, &guard, |entry| {
            visits += 1;
            if moved.is_none() {
                moved = Some(entry);
                assert!(table.remove(8));
                table.insert(5);
                assert_eq!(entry.key(), 5, "the same memory, in chain 1 by now");
            }
        });
        assert_eq!(found.expect("it was there all the time").key(), 4);
        assert_eq!(visits, 2, "carried off, then from the start again");
        assert!(table.find(8, &guard, |_| ()).is_none());
        assert_eq!(table.find(5, &guard, |_| ()).unwrap().key(), 5);
    }
    end(cache);
}

/// What is found is freed and becomes another entry of the same chain before it is pinned.
#[test]
fn t20_an_entry_that_becomes_another_is_not_taken() {
    let cache = entries(Stability::Type);
    {
        let table = Table::new(&cache);
        table.insert(8);
        let guard = read_lock::<Readers>();
        let mut first = true;
        let found = table.find(8, &guard, |entry| {
            if std::mem::take(&mut first) {
                assert_eq!(entry.key(), 8);
                assert!(table.remove(8));
                table.insert(4);
            }
        });
        assert!(found.is_none());
        assert_eq!(table.find(4, &guard, |_| ()).unwrap().key(), 4);
    }
    end(cache);
}

/// Keys that stay are found whatever else is moved about; what is found is what was sought.
#[test]
fn t23_what_stays_is_always_found() {
    for stability in [Stability::Type, Stability::Delayed] {
        let cache = entries(stability);
        let pinned = AtomicUsize::new(0);
        {
            let table = Table::new(&cache);
            // Each chain has one that stays, behind those that come and go.
            for key in 0..BUCKETS as u64 {
                table.insert(key);
            }
            let stop = AtomicBool::new(false);
            std::thread::scope(|s| {
                let readers: Vec<_> = (0..cfg::READERS)
                    .map(|n| {
                        let (table, pinned) = (&table, &pinned);
                        s.spawn(move || {
                            for i in 0..cfg::lookups() / cfg::READERS {
                                let key = ((i + n) % (4 * BUCKETS)) as u64;
                                if i.is_multiple_of(256) {
                                    std::thread::yield_now();
                                }
                                let guard = read_lock::<Readers>();
                                match table.find(key, &guard, |_| ()) {
                                    Some(entry) => {
                                        let square = entry.square.load(Ordering::Relaxed);
                                        assert_eq!((entry.key(), square), (key, key * key));
                                        pinned.fetch_add(1, Ordering::Relaxed);
                                    }
                                    None => assert!(key >= BUCKETS as u64, "{key} stayed"),
                                }
                            }
                        })
                    })
                    .collect();
                for n in 0..2 {
                    let (table, stop) = (&table, &stop);
                    s.spawn(move || {
                        let mut i = n;
                        while !stop.load(Ordering::Relaxed) {
                            let key = (BUCKETS + i % (3 * BUCKETS)) as u64;
                            if !table.remove(key) {
                                table.insert(key);
                            }
                            i += 7;
                        }
                    });
                }
                let ended: Vec<_> = readers.into_iter().map(|r| r.join()).collect();
                stop.store(true, Ordering::Relaxed);
                assert!(ended.iter().all(Result::is_ok));
            });
        }
        assert!(pinned.load(Ordering::Relaxed) > 0);
        end(cache);
    }
}
