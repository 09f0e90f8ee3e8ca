//! A hash table whose readers take no lock and are not stopped when it grows.
//!
//! ```sh
//! cargo run -p kvfree --example hash_table
//! ```
//!
//! Each bucket is a small array that is replaced as a whole by compare-exchange, so writers of different buckets do not meet,
//! and a reader makes three dependent loads: table, bucket, entry. Growing builds a table of twice the size beside the old one
//! and publishes it; entries are shared by both (`Arc`), so none is copied and none is missing at any moment. Only growing
//! keeps writers out. The old table, its buckets, and removed entries are freed after their readers.

use kvfree::{Global, Guard, RcuBox, RcuCell, read_lock};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::thread;

struct Entry<K, V> {
    key: K,
    value: V,
}

/// What has one hash, or nearly: two on average when the table grows.
type Bucket<K, V> = Vec<Arc<Entry<K, V>>>;

struct Table<K: Send + Sync + 'static, V: Send + Sync + 'static> {
    /// A power of two of them.
    buckets: Box<[RcuCell<Bucket<K, V>>]>,
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Table<K, V> {
    fn of(buckets: Vec<Bucket<K, V>>) -> RcuBox<Self> {
        let cell = |bucket: Bucket<K, V>| {
            (!bucket.is_empty())
                .then(|| RcuBox::new(bucket))
                .map_or_else(RcuCell::empty, RcuCell::new)
        };
        RcuBox::new(Self {
            buckets: buckets.into_iter().map(cell).collect(),
        })
    }

    fn bucket(&self, hash: u64) -> &RcuCell<Bucket<K, V>> {
        &self.buckets[hash as usize & (self.buckets.len() - 1)]
    }
}

/// A concurrent map.
pub(crate) struct Map<K: Send + Sync + 'static, V: Send + Sync + 'static> {
    table: RcuCell<Table<K, V>>,
    /// Shared by who changes a bucket, exclusive for who replaces the table.
    growing: RwLock<()>,
    nr_entries: AtomicUsize,
    hasher: RandomState,
}

impl<K, V> Map<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    pub(crate) fn new() -> Self {
        Self {
            table: RcuCell::new(Table::of(vec![Vec::new(), Vec::new()])),
            growing: RwLock::new(()),
            nr_entries: AtomicUsize::new(0),
            hasher: RandomState::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        // ORDERING: Relaxed, here and below: a number; exact while nobody changes the map.
        self.nr_entries.load(Ordering::Relaxed)
    }

    /// The value of `key`, for as long as the guard is kept, whatever becomes of the entry. Waits for nobody.
    pub(crate) fn get<'g>(&'g self, key: &K, guard: &'g Guard<Global>) -> Option<&'g V> {
        let table = self.table.load(guard)?;
        let bucket = table.bucket(self.hasher.hash_one(key)).load(guard)?;
        bucket
            .iter()
            .find(|entry| entry.key == *key)
            .map(|entry| &entry.value)
    }

    /// Puts `value` in for `key`; true if there was none before.
    pub(crate) fn insert(&self, key: K, value: V) -> bool {
        let hash = self.hasher.hash_one(&key);
        let entry = Arc::new(Entry { key, value });
        let (is_new, nr_buckets) = self.change(hash, |bucket| {
            let old = bucket.iter().position(|other| other.key == entry.key);
            match old {
                Some(at) => bucket[at] = entry.clone(),
                None => bucket.push(entry.clone()),
            }
            old.is_none()
        });
        // ORDERING: Relaxed: as above; who counts wrong grows too early or too late.
        if is_new && self.nr_entries.fetch_add(1, Ordering::Relaxed) >= 2 * nr_buckets {
            self.grow(nr_buckets);
        }
        is_new
    }

    /// Takes `key` out; true if it was there. Who reads it at the moment goes on reading it.
    pub(crate) fn remove(&self, key: &K) -> bool {
        let (was_there, _) = self.change(self.hasher.hash_one(key), |bucket| {
            let old = bucket.iter().position(|entry| entry.key == *key);
            old.map(|at| bucket.swap_remove(at)).is_some()
        });
        if was_there {
            // ORDERING: Relaxed: as above.
            self.nr_entries.fetch_sub(1, Ordering::Relaxed);
        }
        was_there
    }

    /// Replaces a bucket by what `change` makes of it, again until no other writer came in between. Returns what the last
    /// call returned, and how many buckets there are.
    fn change<T>(&self, hash: u64, mut change: impl FnMut(&mut Bucket<K, V>) -> T) -> (T, usize) {
        let _shared = self.growing.read().expect("no writer panics");
        let guard = read_lock();
        let table = self.table.load(&guard).expect("there is always a table");
        let cell = table.bucket(hash);
        loop {
            let current = cell.load(&guard);
            let mut bucket = current.cloned().unwrap_or_default();
            let result = change(&mut bucket);
            let new = (!bucket.is_empty()).then(|| RcuBox::new(bucket));
            if let Ok(_retired) = cell.compare_exchange(current, new, &guard) {
                return (result, table.buckets.len());
            }
        }
    }

    /// Doubles the table, unless somebody has since `nr_buckets` was counted.
    #[cold]
    fn grow(&self, nr_buckets: usize) {
        let _exclusive = self.growing.write().expect("no writer panics");
        let guard = read_lock();
        let table = self.table.load(&guard).expect("there is always a table");
        if table.buckets.len() != nr_buckets {
            return;
        }
        let mut buckets = vec![Vec::new(); 2 * nr_buckets];
        for entry in table
            .buckets
            .iter()
            .filter_map(|cell| cell.load(&guard))
            .flatten()
        {
            let hash = self.hasher.hash_one(&entry.key) as usize;
            buckets[hash & (2 * nr_buckets - 1)].push(entry.clone());
        }
        // The old table is freed, with its buckets, when the last reader has left it.
        self.table.store(Some(Table::of(buckets)));
    }

    #[cfg_attr(not(test), expect(dead_code, reason = "for the test"))]
    pub(crate) fn nr_buckets(&self) -> usize {
        let guard = read_lock();
        self.table
            .load(&guard)
            .map_or(0, |table| table.buckets.len())
    }
}

/// Readers look for what is always there while two writers make the table grow from 2 buckets to thousands.
///
/// # Panics
/// If a key is missed, or has another's value.
pub(crate) fn run() -> usize {
    const RESIDENT: u64 = 100;
    const EACH: u64 = 4_000;
    let map = Map::<u64, String>::new();
    for key in 0..RESIDENT {
        assert!(map.insert(key, key.to_string()));
    }
    let stop = AtomicBool::new(false);
    let lookups = thread::scope(|s| {
        let reader = || {
            let mut lookups = 0;
            // ORDERING: Relaxed: a flag that nothing is published by.
            while lookups == 0 || !stop.load(Ordering::Relaxed) {
                for key in 0..RESIDENT {
                    let guard = read_lock();
                    let value = map.get(&key, &guard);
                    assert_eq!(value.and_then(|v| v.parse().ok()), Some(key));
                    lookups += 1;
                }
            }
            lookups
        };
        let readers = [s.spawn(reader), s.spawn(reader)];
        let writer = |first: u64| {
            let map = &map;
            move || {
                for key in first..first + EACH {
                    assert!(map.insert(key, key.to_string()));
                    // Also what readers look for is replaced, and every other new one is removed.
                    let resident = key % RESIDENT;
                    assert!(!map.insert(resident, resident.to_string()));
                    assert!(key.is_multiple_of(2) || map.remove(&key));
                }
            }
        };
        let writers = [s.spawn(writer(1_000)), s.spawn(writer(1_000_000))];
        for writer in writers {
            writer.join().expect("a writer found something amiss");
        }
        // ORDERING: Relaxed: as above.
        stop.store(true, Ordering::Relaxed);
        readers.map(|reader| reader.join().expect("a reader missed a key"))
    });
    assert_eq!(map.len() as u64, RESIDENT + EACH);
    let guard = read_lock();
    for first in [1_000, 1_000_000] {
        for key in first..first + EACH {
            assert_eq!(map.get(&key, &guard).is_some(), key.is_multiple_of(2));
        }
    }
    drop(guard);
    lookups.iter().sum()
}

#[allow(dead_code, reason = "the tests call `run`")]
fn main() {
    println!("{} lookups beside a growing table, none missed", run());
}
