//! An IPv4 route table: longest-prefix match for readers, a stream of updates beside them.
//!
//! ```sh
//! cargo run -p kvfree --example route_table
//! ```
//!
//! A trie of four levels, one byte of the address each. A prefix is written into all places of its level that it covers, so a
//! lookup is at most four steps and keeps the last route that it saw. What may change in a step is one word (a route) or one
//! pointer (a child), and each is replaced at once: a lookup sees each route as it was at some moment while it ran. Nodes
//! in which nothing is left are unlinked and freed after the lookups that are in them.

use kvfree::{Global, Guard, RcuBox, RcuCell, read_lock};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;

/// Where packets go next.
type NextHop = u32;

/// An address and how many of its bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Prefix {
    bits: u32,
    len: u8,
}

impl Prefix {
    /// # Panics
    /// If there are more than 32 bits.
    pub(crate) fn new(address: Ipv4Addr, len: u8) -> Self {
        assert!(len <= 32, "an address has 32 bits");
        let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
        Self {
            bits: address.to_bits() & mask,
            len,
        }
    }

    fn covers(self, address: u32) -> bool {
        Self::new(address.into(), self.len) == self
    }

    /// The byte of the address in which the prefix ends.
    fn level(self) -> usize {
        usize::from(self.len.saturating_sub(1) / 8)
    }

    /// The places of its node that it covers.
    fn places(self) -> std::ops::Range<usize> {
        let first = usize::from(self.bits.to_be_bytes()[self.level()]);
        let fixed = usize::from(self.len) - 8 * self.level();
        first..first + (1 << (8 - fixed))
    }
}

/// A route in one place: the length of its prefix plus one, and where it leads. Zero is none.
fn pack(len: u8, hop: NextHop) -> u64 {
    u64::from(len + 1) << 32 | u64::from(hop)
}

#[derive(Default)]
struct Place {
    route: AtomicU64,
    child: RcuCell<Node>,
}

struct Node([Place; 256]);

impl Node {
    fn new() -> Self {
        Self(std::array::from_fn(|_| Place::default()))
    }

    fn is_empty(&self) -> bool {
        // ORDERING: Relaxed: the writer's own stores, under its lock.
        let used =
            |place: &Place| place.route.load(Ordering::Relaxed) != 0 || !place.child.is_none();
        !self.0.iter().any(used)
    }
}

/// The table. Readers share it with one writer at a time.
pub(crate) struct Routes {
    root: Node,
    /// Every route: what a prefix covered is to be found again when it goes.
    all: Mutex<BTreeMap<Prefix, NextHop>>,
}

impl Routes {
    pub(crate) fn new() -> Self {
        Self {
            root: Node::new(),
            all: Mutex::default(),
        }
    }

    /// Where the longest prefix that covers `address` leads. Waits for nobody.
    pub(crate) fn lookup(&self, address: Ipv4Addr, guard: &Guard<Global>) -> Option<NextHop> {
        let (mut node, mut best) = (&self.root, 0);
        for byte in address.octets() {
            let place = &node.0[usize::from(byte)];
            // ORDERING: Relaxed: the word is all there is to a route; nothing else has to be seen with it.
            let route = place.route.load(Ordering::Relaxed);
            best = if route == 0 { best } else { route };
            match place.child.load(guard) {
                Some(child) => node = child,
                None => break,
            }
        }
        (best != 0).then_some(best as NextHop)
    }

    fn writer(&self) -> MutexGuard<'_, BTreeMap<Prefix, NextHop>> {
        self.all.lock().expect("no writer panics")
    }

    /// Adds a route, or replaces it.
    pub(crate) fn insert(&self, prefix: Prefix, hop: NextHop) {
        let mut all = self.writer();
        let guard = read_lock();
        let mut node = &self.root;
        for byte in &prefix.bits.to_be_bytes()[..prefix.level()] {
            let child = &node.0[usize::from(*byte)].child;
            if child.is_none() {
                child.store(Some(RcuBox::new(Node::new())));
            }
            node = child.load(&guard).expect("one writer, who put it there");
        }
        for place in &node.0[prefix.places()] {
            // ORDERING: Relaxed, both: written under the lock; readers take the word alone.
            if place.route.load(Ordering::Relaxed) >> 32 <= u64::from(prefix.len) + 1 {
                place.route.store(pack(prefix.len, hop), Ordering::Relaxed);
            }
        }
        all.insert(prefix, hop);
    }

    /// Takes a route out; true if there was one.
    pub(crate) fn remove(&self, prefix: Prefix) -> bool {
        let mut all = self.writer();
        if all.remove(&prefix).is_none() {
            return false;
        }
        let guard = read_lock();
        let bytes = prefix.bits.to_be_bytes();
        let mut path = Vec::with_capacity(3);
        let mut node = &self.root;
        for byte in &bytes[..prefix.level()] {
            let child = &node.0[usize::from(*byte)].child;
            path.push(child);
            node = child.load(&guard).expect("the route was in it");
        }
        // What is below it in the same node: shorter, and of the same level.
        let below = (0..prefix.len)
            .rev()
            .map(|len| Prefix::new(prefix.bits.into(), len))
            .take_while(|shorter| shorter.level() == prefix.level())
            .find_map(|shorter| all.get(&shorter).map(|hop| pack(shorter.len, *hop)));
        for place in &node.0[prefix.places()] {
            // ORDERING: Relaxed, both: as in `insert`.
            if place.route.load(Ordering::Relaxed) >> 32 == u64::from(prefix.len) + 1 {
                place.route.store(below.unwrap_or(0), Ordering::Relaxed);
            }
        }
        // Nodes in which nothing is left go; who is in one of them finds nothing there, which is right.
        while let Some(child) = path.pop() {
            if !child.load(&guard).is_some_and(Node::is_empty) {
                break;
            }
            child.store(None);
        }
        true
    }
}

/// Numbers that look random and are the same in each run.
fn random(state: &mut u32) -> u32 {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    state.rotate_left(16)
}

/// By looking at every route.
fn dull_lookup(all: &BTreeMap<Prefix, NextHop>, address: Ipv4Addr) -> Option<NextHop> {
    let covering = all
        .iter()
        .filter(|(prefix, _)| prefix.covers(address.to_bits()));
    covering
        .max_by_key(|(prefix, _)| prefix.len)
        .map(|(_, hop)| *hop)
}

/// A stream of updates against the dull way, then lookups beside one.
///
/// # Panics
/// If a lookup gives what no longest prefix gave.
pub(crate) fn run() -> usize {
    let routes = Routes::new();
    let seed = &mut 1;
    // Prefixes of all lengths, crowded so that they cover each other.
    let crowded = |seed: &mut u32| Ipv4Addr::from_bits(0x0a00_0000 | random(seed) & 0x0303_0303);
    for _ in 0..600 {
        let prefix = Prefix::new(crowded(seed), (random(seed) % 33) as u8);
        if random(seed).is_multiple_of(3) {
            let was_there = routes.writer().contains_key(&prefix);
            assert_eq!(routes.remove(prefix), was_there);
        } else {
            routes.insert(prefix, random(seed));
        }
        let guard = read_lock();
        for _ in 0..20 {
            let address = crowded(seed);
            let expected = dull_lookup(&routes.writer(), address);
            assert_eq!(routes.lookup(address, &guard), expected, "{address}");
        }
    }
    let rest: Vec<Prefix> = routes.writer().keys().copied().collect();
    for prefix in rest {
        assert!(routes.remove(prefix));
    }
    assert!(routes.root.is_empty(), "a node stayed behind");

    // 10/8 is always there, what is below it comes and goes.
    let at = |a, b, c, len| Prefix::new(Ipv4Addr::new(10, a, b, c), len);
    routes.insert(at(0, 0, 0, 8), 1);
    let stop = AtomicBool::new(false);
    let lookups = thread::scope(|s| {
        let reader = || {
            let mut lookups = 0;
            // ORDERING: Relaxed: a flag that nothing is published by.
            while lookups == 0 || !stop.load(Ordering::Relaxed) {
                for last in 0..=255 {
                    let guard = read_lock();
                    let hop = routes.lookup(Ipv4Addr::new(10, 1, 2, last), &guard);
                    let hop = hop.expect("10/8 covers it");
                    assert!(matches!(hop, 1..=3) || hop == 1000 + u32::from(last));
                    assert_eq!(routes.lookup(Ipv4Addr::new(11, 1, 2, last), &guard), None);
                    lookups += 2;
                }
            }
            lookups
        };
        let readers = [s.spawn(reader), s.spawn(reader)];
        for _ in 0..20 {
            routes.insert(at(1, 0, 0, 16), 2);
            routes.insert(at(1, 2, 0, 24), 3);
            for last in 0..=255 {
                routes.insert(at(1, 2, last, 32), 1000 + u32::from(last));
            }
            assert!(routes.remove(at(1, 2, 0, 24)));
            for last in 0..=255 {
                assert!(routes.remove(at(1, 2, last, 32)));
            }
            assert!(routes.remove(at(1, 0, 0, 16)));
        }
        // ORDERING: Relaxed: as above.
        stop.store(true, Ordering::Relaxed);
        readers.map(|reader| reader.join().expect("a lookup went astray"))
    });
    assert!(
        routes.root.0[10].child.is_none(),
        "all nodes below are gone"
    );
    lookups.iter().sum()
}

#[allow(dead_code, reason = "the tests call `run`")]
fn main() {
    println!("{} lookups beside a stream of updates, none astray", run());
}
