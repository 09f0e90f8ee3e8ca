//! R22, T23: chains whose objects move under readers.

#![cfg(not(loom))]

use proptest::prelude::*;
use rcu_core::{NullsHead, NullsLink, RefCount, Section, Visit, Walk};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::panic::catch_unwind;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Nothing here is freed before the test's end.
struct Inside;

// SAFETY: objects of these tests live to their end.
unsafe impl Section<()> for Inside {}

const BUCKETS: usize = 3;
const OBJECTS: usize = 6;

/// Objects in chains, each link known by its address.
struct Table {
    heads: [NullsHead<()>; BUCKETS],
    links: Box<[NullsLink]>,
    bucket: [Cell<Option<usize>>; OBJECTS],
}

impl Table {
    fn new() -> Box<Self> {
        Box::new(Self {
            heads: std::array::from_fn(NullsHead::new),
            links: (0..OBJECTS).map(|_| NullsLink::new()).collect(),
            bucket: Default::default(),
        })
    }

    fn put(&self, object: usize, bucket: Option<usize>) {
        let link = &self.links[object];
        // SAFETY: one thread writes, and the table stays where it is.
        unsafe { link.del() };
        assert!(!link.is_linked());
        self.bucket[object].set(bucket);
        if let Some(bucket) = bucket {
            // SAFETY: as above; the link is in no chain.
            unsafe { self.heads[bucket].add_head(NonNull::from(link)) };
        }
    }

    fn id(&self, link: NonNull<NullsLink>) -> usize {
        let at = link.as_ptr().cast_const();
        self.links.iter().position(|l| std::ptr::eq(l, at)).unwrap()
    }

    fn inside(&self, bucket: usize) -> BTreeSet<usize> {
        (0..OBJECTS)
            .filter(|&o| self.bucket[o].get() == Some(bucket))
            .collect()
    }
}

/// A walk, and what it must not miss.
struct Walker<'t> {
    walk: Walk<'t>,
    bucket: usize,
    seen: BTreeSet<usize>,
    stayed: BTreeSet<usize>,
}

impl<'t> Walker<'t> {
    fn new(table: &'t Table, bucket: usize) -> Self {
        Self {
            walk: table.heads[bucket].walk(&Inside),
            bucket,
            seen: BTreeSet::new(),
            stayed: table.inside(bucket),
        }
    }

    /// Goes one step on; false at the end, where the walk must have seen what stayed, or be on another chain.
    fn step(&mut self, table: &Table) -> bool {
        if let Some(link) = self.walk.next() {
            self.seen.insert(table.id(link));
            return true;
        }
        let right = self.walk.end_marker() == Some(self.bucket);
        assert!(
            !right || self.misses().is_empty(),
            "missed {:?}",
            self.misses()
        );
        false
    }

    fn misses(&self) -> Vec<usize> {
        self.stayed.difference(&self.seen).copied().collect()
    }
}

#[derive(Clone, Debug)]
enum Op {
    Start(usize),
    Step(usize),
    Move(usize, Option<usize>),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => (0..BUCKETS).prop_map(Op::Start),
        4 => any::<usize>().prop_map(Op::Step),
        3 => (0..OBJECTS, prop::option::weighted(0.9, 0..BUCKETS)).prop_map(|(o, b)| Op::Move(o, b)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 10 } else { 512 }))]

    /// A walk that ends on its own marker has seen every object that stayed, whatever else moved.
    #[test]
    fn t23_the_right_marker_means_that_nothing_was_missed(
        first in prop::collection::vec(0..BUCKETS, OBJECTS),
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let table = Table::new();
        for (object, &bucket) in first.iter().enumerate() {
            table.put(object, Some(bucket));
        }
        let mut walkers = Vec::new();
        for op in ops {
            match op {
                Op::Start(bucket) => walkers.push(Walker::new(&table, bucket)),
                Op::Step(which) => {
                    if !walkers.is_empty() {
                        let which = which % walkers.len();
                        if !walkers[which].step(&table) {
                            walkers.swap_remove(which);
                        }
                    }
                }
                Op::Move(object, bucket) => {
                    table.put(object, bucket);
                    for walker in &mut walkers {
                        walker.stayed.remove(&object);
                    }
                }
            }
        }
        for walker in &mut walkers {
            while walker.step(&table) {}
        }
        for bucket in 0..BUCKETS {
            let mut walker = Walker::new(&table, bucket);
            while walker.step(&table) {}
            prop_assert_eq!(walker.walk.end_marker(), Some(bucket));
            prop_assert_eq!(&walker.seen, &walker.stayed);
        }
    }
}

/// What goes wrong if nobody looks at the marker: the test above has something to find.
#[test]
fn t23_a_reader_carried_off_ends_on_another_marker_and_has_missed() {
    let table = Table::new();
    for object in 0..3 {
        table.put(object, Some(0));
    }
    let mut walker = Walker::new(&table, 0);
    assert!(walker.step(&table));
    assert_eq!(walker.seen, BTreeSet::from([2]));
    table.put(2, Some(1));
    assert!(!walker.step(&table));
    assert_eq!(walker.walk.end_marker(), Some(1));
    assert_eq!(walker.misses(), [0, 1]);
}

#[test]
fn t23_lookup_starts_again_by_itself_and_when_asked() {
    let table = Table::new();
    for object in 0..3 {
        table.put(object, Some(0));
    }
    let mut visits = Vec::new();
    let found = table.heads[0].lookup(&Inside, 0, |link| {
        let id = table.id(link);
        visits.push(id);
        match visits.len() {
            1 => table.put(2, Some(1)), // carries the reader off
            3 => return Visit::Restart,
            _ => {}
        }
        if id == 0 {
            Visit::Found(id)
        } else {
            Visit::Next
        }
    });
    assert_eq!((found, visits), (Some(0), vec![2, 1, 0, 1, 0]));
    let none = table.heads[0].lookup(&Inside, 0, |_| Visit::<()>::Next);
    assert_eq!(none, None);
}

#[test]
fn a_removed_link_still_leads_on() {
    let table = Table::new();
    for object in 0..3 {
        table.put(object, Some(2));
    }
    let mut walker = Walker::new(&table, 2);
    assert!(walker.step(&table));
    table.put(2, None);
    table.put(1, None);
    while walker.step(&table) {}
    assert_eq!(walker.seen, BTreeSet::from([0, 1, 2]));
    assert_eq!(walker.walk.end_marker(), Some(2));
    assert_eq!(walker.walk.next(), None);
}

#[test]
fn numbers_use_all_bits_but_one() {
    let max = NullsHead::<()>::MAX_NUMBER;
    let head = NullsHead::<()>::new(max);
    let mut walk = head.walk(&Inside);
    assert_eq!((walk.end_marker(), walk.next()), (None, None));
    assert_eq!(walk.end_marker(), Some(max));
    assert!(catch_unwind(|| NullsHead::<()>::new(max + 1)).is_err());
}

/// An object of type-stable memory: used again at once.
#[repr(C)]
struct Connection {
    link: NullsLink,
    key: AtomicUsize,
    refs: RefCount,
}

/// Keys move between the objects and so the objects between the chains; a key that is always there is always found.
#[test]
fn t23_lookups_never_miss_what_is_always_there() {
    const KEYS: usize = 8;
    const MOVES: usize = if cfg!(miri) { 100 } else { 20_000 };
    let heads: [NullsHead<()>; 2] = std::array::from_fn(NullsHead::new);
    let objects: Vec<Connection> = (0..KEYS)
        .map(|key| Connection {
            link: NullsLink::new(),
            key: AtomicUsize::new(key),
            refs: RefCount::new(1),
        })
        .collect();
    let add = |object: &Connection| {
        let bucket = object.key.load(Ordering::Relaxed) % 2;
        // SAFETY: one thread writes; everything stays where it is until the end.
        unsafe { heads[bucket].add_head(NonNull::from(object).cast()) };
    };
    objects.iter().for_each(add);
    let find = |key: usize| {
        heads[key % 2].lookup(&Inside, key % 2, |link| {
            // SAFETY: the link is the first field of an object that lives to the end.
            let object = unsafe { link.cast::<Connection>().as_ref() };
            if object.key.load(Ordering::Relaxed) != key || !object.refs.get() {
                return Visit::Next;
            }
            if object.key.load(Ordering::Relaxed) != key {
                return if object.refs.put() {
                    Visit::Next
                } else {
                    Visit::Restart
                };
            }
            Visit::Found(object)
        })
    };
    let (done, lookups) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failed = Mutex::new(None);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // The keys 0 and 1 stay; the others come and go.
                for key in 0..2 {
                    // Their own reference stays, so this is never the last.
                    if find(key).is_none_or(|object| object.refs.put()) {
                        *failed.lock().unwrap() = Some(key);
                    }
                }
                lookups.fetch_add(1, Ordering::Relaxed);
            }
        });
        for turn in 0..MOVES {
            let object = &objects[2 + turn % (KEYS - 2)];
            // SAFETY: one thread writes; everything stays where it is until the end.
            unsafe { object.link.del() };
            // Until it is dead: by this reference, or by that of a reader who was about to let go of it.
            while !object.refs.put() && object.refs.get() {
                std::thread::yield_now();
            }
            object.key.store(KEYS + turn, Ordering::Relaxed);
            object.refs.reset(1);
            add(object);
        }
        while lookups.load(Ordering::Relaxed) < 3 {
            std::thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(*failed.lock().unwrap(), None);
}
