//! A table of connections on type-stable slabs, in chains that end in numbered nulls.
//!
//! ```sh
//! cargo run -p slab --example connections
//! ```
//!
//! Connections come and go all the time, so the memory of one that ends is the next one's at once, warm in the cache: only pages
//! wait for readers, never connections (the kernel's `SLAB_TYPESAFE_BY_RCU`, as its TCP tables use it). The price is paid by a
//! lookup, which takes no lock: what it finds may have become another connection under its eyes, in another chain even. So it
//! pins, *then* looks whom it has, and at the end of a chain it looks whether that is the chain it began with.
//!
//! The module `table` has the `unsafe` that chains through foreign objects need; who uses the table writes none.

use pagealloc::{Mmap, Zone};
use rcu_core::cpu::{SpinMutex, Threads};
use rcu_core::{NullsLink, read_lock};
use slab::{Pinned, StableCache, TypeStable};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use table::Connections;

rcu_tree::static_tree! {
    /// Whoever looks connections up.
    struct Lookups;
}

/// From where to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    from: SocketAddrV4,
    to: SocketAddrV4,
}

fn word(address: SocketAddrV4) -> u64 {
    u64::from(address.ip().to_bits()) << 16 | u64::from(address.port())
}

/// One connection, and every other that its memory will be. Built once, made anew through `&self`.
#[repr(C)]
struct Connection {
    /// The first field, so that both have one address. Made once: a reader may stand on it.
    link: NullsLink,
    from: AtomicU64,
    to: AtomicU64,
    packets: AtomicU64,
    /// A lock that is never made again either: a reader may hold it.
    window: SpinMutex<u32>,
}

impl TypeStable for Connection {
    fn construct() -> Self {
        Self {
            link: NullsLink::new(),
            from: AtomicU64::new(0),
            to: AtomicU64::new(0),
            packets: AtomicU64::new(0),
            window: SpinMutex::new(0),
        }
    }
}

impl Connection {
    /// What it is to be in its next life, before anybody can pin it.
    fn open(&self, flow: Flow) {
        // ORDERING: Relaxed, all: the cache lets nobody pin it before this is done (P6).
        self.from.store(word(flow.from), Ordering::Relaxed);
        self.to.store(word(flow.to), Ordering::Relaxed);
        self.packets.store(0, Ordering::Relaxed);
        *self.window.lock() = 64;
    }

    /// Whether it is that flow's; for one that is not pinned, at the moment.
    fn is(&self, flow: Flow) -> bool {
        // ORDERING: Relaxed: the words of this life if it is pinned (P6), a look otherwise.
        let is = |word: &AtomicU64, other| word.load(Ordering::Relaxed) == other;
        is(&self.from, word(flow.from)) && is(&self.to, word(flow.to))
    }
}

type Pages = &'static Zone<Threads, Mmap>;
type Cache = StableCache<Connection, Threads, Pages, Lookups>;
type Ref<'c> = Pinned<'c, Connection, Threads, Pages, Lookups>;

/// The table, safe to use.
mod table {
    use super::{Cache, Connection, Flow, Lookups, Ref, word};
    use rcu_core::{Guard, NullsHead, NullsLink, Visit, read_lock};
    use std::ptr::NonNull;
    use std::sync::{Mutex, MutexGuard};

    /// A prime, for want of a better hash.
    const CHAINS: usize = 61;

    /// # Invariants
    /// Each link in a chain is that of a connection of the cache, of which a reference is the table's.
    pub(super) struct Connections<'c> {
        cache: &'c Cache,
        /// In a box, since links point to the heads of their chains.
        chains: Box<[NullsHead<Lookups>; CHAINS]>,
        writers: [Mutex<()>; CHAINS],
    }

    impl<'c> Connections<'c> {
        pub(super) fn new(cache: &'c Cache) -> Self {
            Self {
                cache,
                chains: Box::new(std::array::from_fn(NullsHead::new)),
                writers: [const { Mutex::new(()) }; CHAINS],
            }
        }

        fn chain(flow: Flow) -> usize {
            (word(flow.from).wrapping_mul(31) ^ word(flow.to)) as usize % CHAINS
        }

        fn writer(&self, chain: usize) -> MutexGuard<'_, ()> {
            self.writers[chain].lock().expect("no writer panics")
        }

        /// The connection of that flow, pinned: it stays the one it is while the reference is kept.
        pub(super) fn find(&self, flow: Flow, guard: &Guard<Lookups>) -> Option<Ref<'c>> {
            let number = Self::chain(flow);
            self.chains[number].lookup(guard, number, |link| {
                // SAFETY: the link of a connection that was in a chain in this section (invariant), with its provenance.
                let found = unsafe { self.cache.found(link.cast::<Connection>(), guard) };
                if !found.is(flow) {
                    return Visit::Next;
                }
                match found.pin_any() {
                    None => Visit::Next, // it has just ended
                    Some(pinned) if pinned.is(flow) => Visit::Found(pinned),
                    Some(_) => Visit::Restart, // it was that flow's, and is another's
                }
            })
        }

        /// Opens a connection; `None` if there is one already, or no memory.
        pub(super) fn open(&self, flow: Flow) -> Option<Ref<'c>> {
            let chain = Self::chain(flow);
            let _writer = self.writer(chain);
            if self.find(flow, &read_lock()).is_some() {
                return None;
            }
            let pinned = self.cache.alloc(|connection| connection.open(flow)).ok()?;
            let raw = pinned.clone().into_raw();
            // SAFETY: this chain's one writer; the link was made with its slab, is in no chain (`close` took it out before the
            // connection could be another) and is written by chains only; the box stays. INVARIANT: a reference went with it.
            unsafe { self.chains[chain].add_head(raw.cast()) };
            Some(pinned)
        }

        /// Ends a connection; false if there is none. Its memory is free when nobody has it pinned, at once as a rule.
        pub(super) fn close(&self, flow: Flow) -> bool {
            let chain = Self::chain(flow);
            let _writer = self.writer(chain);
            let guard = read_lock::<Lookups>();
            let is_it = |link: &NonNull<NullsLink>| {
                // SAFETY: the writer's own chain: a connection of which the table has a reference (invariant).
                unsafe { link.cast::<Connection>().as_ref() }.is(flow)
            };
            let Some(link) = self.chains[chain].walk(&guard).find(is_it) else {
                return false;
            };
            // SAFETY: in the chain, whose one writer this is.
            drop(unsafe { self.take_out(link) });
            true
        }

        /// Takes a connection out of its chain, and gives the table's reference away.
        ///
        /// # Safety
        /// 1. `link` is in a chain, whose one writer the caller is.
        unsafe fn take_out(&self, link: NonNull<NullsLink>) -> Ref<'c> {
            // SAFETY: a connection's, of which the table has a reference (invariant).
            let in_chain = unsafe { link.as_ref() };
            // SAFETY: the one writer (1); the box stays.
            unsafe { in_chain.del() };
            // SAFETY: made raw by `open`, and out of the chain just now.
            unsafe { self.cache.from_raw(link.cast()) }
        }
    }

    impl Drop for Connections<'_> {
        fn drop(&mut self) {
            for chain in self.chains.iter() {
                let guard = read_lock::<Lookups>();
                while let Some(link) = chain.walk(&guard).next() {
                    // SAFETY: in the chain, and nobody else has the table.
                    drop(unsafe { self.take_out(link) });
                }
            }
        }
    }
}

fn flow(port: u16) -> Flow {
    let client = Ipv4Addr::new(198, 51, 100, (port % 251) as u8);
    Flow {
        from: SocketAddrV4::new(client, port),
        to: SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 443),
    }
}

/// Packets on two threads while connections are opened and closed; returns how many packets found theirs.
///
/// # Panics
/// If a packet is counted for another flow, one that is open all the time is missed, or memory is lost.
pub(crate) fn run() -> u64 {
    const STEADY: u16 = 100;
    const ROUNDS: u16 = 5_000;
    let source = Mmap::reserve(64 << 20).expect("addresses");
    let zone: Pages = Box::leak(Box::new(Zone::new(Threads, source).expect("a zone")));
    let cache = Cache::new("connection", Threads, zone, Lookups).expect("a cache");
    let connections = Connections::new(&cache);
    for port in 0..STEADY {
        drop(connections.open(flow(port)).expect("memory"));
    }
    let stop = AtomicBool::new(false);
    let found = thread::scope(|s| {
        let receive = || {
            let mut found = 0;
            for port in (0..2 * STEADY).cycle() {
                // ORDERING: Relaxed: a flag that nothing is published by.
                if stop.load(Ordering::Relaxed) {
                    return found;
                }
                let guard = read_lock::<Lookups>();
                let connection = connections.find(flow(port), &guard);
                // Pinned, it needs no section any more.
                drop(guard);
                match connection {
                    Some(connection) => {
                        *connection.window.lock() -= 1;
                        thread::yield_now(); // it may be closed now
                        *connection.window.lock() += 1;
                        assert!(connection.is(flow(port)), "another flow's");
                        // ORDERING: Relaxed: a number.
                        connection.packets.fetch_add(1, Ordering::Relaxed);
                        found += 1;
                    }
                    None => assert!(port >= STEADY, "an open connection was missed"),
                }
            }
            found
        };
        let receivers = [s.spawn(receive), s.spawn(receive)];
        for round in 0..ROUNDS {
            let port = STEADY + round % STEADY;
            let opened = connections.open(flow(port)).expect("it was closed");
            assert!(connections.open(flow(port)).is_none(), "opened twice");
            drop(opened);
            if round.is_multiple_of(7) {
                thread::yield_now();
            }
            assert!(connections.close(flow(port)));
        }
        // ORDERING: Relaxed: as above.
        stop.store(true, Ordering::Relaxed);
        receivers.map(|receiver| receiver.join().expect("a packet went astray"))
    });
    // As many as were open at once, not as many as there ever were.
    assert!(cache.raw().stats().live <= usize::from(STEADY));
    drop(connections);
    cache.destroy().expect("every connection is home");
    assert_eq!(zone.nr_allocated(), 0, "pages are back");
    found.iter().sum()
}

#[allow(dead_code, reason = "the tests call `run`")]
fn main() {
    println!("{} packets, each counted by its own connection", run());
}
