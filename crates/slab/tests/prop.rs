//! Caches against a multiset, over sources that fail too.

#![cfg(not(loom))]

mod common;

use common::{Canary, Failure, Hand, Pages};
use pagealloc::Attempt;
use proptest::prelude::*;
use rcu_core::manual::ManualGp;
use rcu_core::{Cookie, GracePeriod};
use slab::{CacheConfig, Checks, RawCache, RawPrefilled, Stability};
use std::alloc::Layout;
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

const SLOTS: u32 = 3;

#[derive(Clone, Debug)]
enum Op {
    Alloc(Attempt),
    Free(usize),
    FreeAttempt(usize, Attempt),
    Retire(usize, Attempt),
    AllocBulk(usize, Attempt),
    FreeBulk(usize),
    Prefill(usize, Attempt),
    Pop(usize),
    Refill(usize, Attempt),
    GiveBack(usize),
    Memory(bool),
    Advance,
    Begin,
    Go(Option<u32>),
    Bounce,
    Reap,
    Shrink(usize),
    Barrier,
}

fn attempt() -> impl Strategy<Value = Attempt> {
    prop_oneof![
        4 => Just(Attempt::MayGrow),
        1 => Just(Attempt::NoWait),
        1 => Just(Attempt::TryLock),
        1 => Just(Attempt::PcpOnly),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => attempt().prop_map(Op::Alloc),
        6 => any::<usize>().prop_map(Op::Free),
        2 => (any::<usize>(), attempt()).prop_map(|(n, a)| Op::FreeAttempt(n, a)),
        12 => (any::<usize>(), attempt()).prop_map(|(n, a)| Op::Retire(n, a)),
        2 => (0..40_usize, attempt()).prop_map(|(n, a)| Op::AllocBulk(n, a)),
        2 => (0..40_usize, attempt()).prop_map(|(n, a)| Op::Prefill(n, a)),
        3 => (0..10_usize).prop_map(Op::Pop),
        1 => (0..40_usize, attempt()).prop_map(|(n, a)| Op::Refill(n, a)),
        2 => any::<usize>().prop_map(Op::GiveBack),
        1 => any::<bool>().prop_map(Op::Memory),
        2 => (0..40_usize).prop_map(Op::FreeBulk),
        4 => Just(Op::Advance),
        2 => Just(Op::Begin),
        3 => prop_oneof![4 => (0..SLOTS).prop_map(Some), 1 => Just(None)].prop_map(Op::Go),
        1 => Just(Op::Bounce),
        2 => Just(Op::Reap),
        1 => prop_oneof![0..5_usize, Just(usize::MAX)].prop_map(Op::Shrink),
        1 => Just(Op::Barrier),
    ]
}

#[derive(Clone, Debug)]
struct Setup {
    size: usize,
    align: usize,
    sheaf: usize,
    ask: usize,
    min_partial: usize,
    limit: usize,
    auto: bool,
    checks: Checks,
    stability: Stability,
    is_built: bool,
}

impl Setup {
    fn config(&self) -> CacheConfig {
        let layout = Layout::from_size_align(self.size, self.align).unwrap();
        let config = CacheConfig::new("prop", layout)
            .sheaf_capacity(self.sheaf)
            .ask_after(self.ask)
            .min_partial(self.min_partial)
            .waiting_limit(self.limit)
            .stability(self.stability)
            .checks(match self.stability {
                Stability::None => self.checks,
                _ => self.checks - Checks::POISON - Checks::QUARANTINE,
            });
        if self.is_built {
            // SAFETY: objects have room for a canary; writing one does not unwind.
            unsafe { config.constructor(Canary::build) }
        } else {
            config
        }
    }
}

fn stability() -> impl Strategy<Value = Stability> {
    prop_oneof![
        3 => Just(Stability::None),
        2 => Just(Stability::Type),
        1 => Just(Stability::Delayed),
    ]
}

/// None, all, or any.
fn checks() -> impl Strategy<Value = Checks> {
    prop_oneof![
        2 => Just(Checks::empty()),
        1 => Just(Checks::all()),
        1 => any::<u8>().prop_map(Checks::from_bits_truncate),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let size = prop_oneof![
        Just(24),
        Just(64),
        Just(200),
        Just(1000),
        Just(4096),
        Just(9000)
    ];
    let align = prop_oneof![Just(8), Just(64)];
    (
        size,
        align,
        1..8_usize,
        1..40_usize,
        0..3_usize,
        prop_oneof![2 => Just(usize::MAX), 1 => 0..100_000_usize],
        any::<bool>(),
        checks(),
        (stability(), any::<bool>()),
    )
        .prop_map(
            |(size, align, sheaf, ask, min_partial, limit, auto, checks, (stability, is_built))| {
                Setup {
                    size,
                    align,
                    sheaf,
                    ask,
                    min_partial,
                    limit,
                    auto,
                    checks,
                    stability,
                    is_built,
                }
            },
        )
}

type Raw<'a> = RawCache<&'a Hand, &'a Pages, &'a ManualGp>;

type Aside<'w, 'a> = RawPrefilled<'w, &'a Hand, &'a Pages, &'a ManualGp>;

/// The cache and what must be true of it.
struct Model<'w, 'a> {
    cache: &'w Raw<'a>,
    cpus: &'w Hand,
    pages: &'w Pages,
    gp: &'w ManualGp,
    /// Objects that were set aside.
    aside: Vec<Aside<'w, 'a>>,
    may_starve: bool,
    setup: &'w Setup,
    /// Objects that the test has.
    live: Vec<NonNull<u8>>,
    /// Objects that were retired, with a cookie taken just before.
    retired: BTreeMap<usize, Cookie>,
}

impl Model<'_, '_> {
    fn got(&mut self, object: NonNull<u8>) {
        let gp = self.gp;
        assert_eq!(object.addr().get() % self.cache.layout().align(), 0);
        if self.setup.is_built {
            Canary::check_kept(object);
        }
        Canary::hand_out(object, |cookie| gp.poll(cookie));
        if let Some(cookie) = self.retired.remove(&object.addr().get()) {
            assert!(gp.poll(cookie), "reused before its grace period ended");
        }
        assert!(!self.live.contains(&object));
        self.live.push(object);
    }

    fn pick(&mut self, which: usize) -> Option<NonNull<u8>> {
        if self.live.is_empty() {
            return None;
        }
        let index = which % self.live.len();
        Some(self.live.swap_remove(index))
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Alloc(attempt) => {
                if let Ok(object) = self.cache.alloc_attempt(attempt) {
                    self.got(object);
                }
            }
            Op::Free(which) => {
                if let Some(object) = self.pick(which) {
                    Canary::free(object);
                    // SAFETY: the test had the object.
                    unsafe { self.cache.free(object) };
                }
            }
            Op::FreeAttempt(which, attempt) => {
                if let Some(object) = self.pick(which) {
                    Canary::free(object);
                    // SAFETY: the test had the object.
                    unsafe { self.cache.free_attempt(object, attempt) };
                }
            }
            Op::Prefill(n, attempt) => {
                let before = self.cache.stats().live;
                match self.cache.prefill(n, attempt) {
                    Ok(aside) => {
                        assert!(aside.len() >= n);
                        self.aside.push(aside);
                    }
                    Err(_) => assert_eq!(self.cache.stats().live, before),
                }
            }
            Op::Pop(n) => {
                for _ in 0..n {
                    let Some(last) = self.aside.last_mut() else {
                        break;
                    };
                    let before = last.len();
                    let popped = last.pop();
                    assert_eq!(popped.is_some(), before > 0, "H12");
                    assert_eq!(last.len(), before.saturating_sub(1));
                    if let Some(object) = popped {
                        self.got(object);
                    }
                }
            }
            Op::Refill(n, attempt) => {
                if let Some(last) = self.aside.last_mut() {
                    let before = last.len();
                    match last.refill(n, attempt) {
                        Ok(()) => assert!(last.len() >= n.max(before)),
                        Err(_) => assert!(last.len() >= before),
                    }
                }
            }
            Op::GiveBack(which) => {
                if !self.aside.is_empty() {
                    drop(self.aside.swap_remove(which % self.aside.len()));
                }
            }
            Op::Memory(there) => {
                // Only where the source does not fail by itself.
                if self.may_starve {
                    let failure = if there {
                        Failure::Never
                    } else {
                        Failure::From(0)
                    };
                    self.pages.set_failure(failure);
                }
            }
            Op::Retire(which, attempt) => {
                if let Some(object) = self.pick(which) {
                    let cookie = self.gp.snapshot();
                    Canary::retire(object, cookie);
                    // SAFETY: the test had the object.
                    match unsafe { self.cache.retire_attempt(object, attempt) } {
                        Ok(()) => {
                            self.retired.insert(object.addr().get(), cookie);
                        }
                        Err(back) => {
                            assert_eq!(back, object);
                            Canary::refuse(object);
                            self.live.push(object);
                        }
                    }
                }
            }
            Op::AllocBulk(n, attempt) => {
                let mut out = vec![MaybeUninit::uninit(); n];
                if self.cache.alloc_bulk(&mut out, attempt).is_ok() {
                    for object in out {
                        // SAFETY: all or nothing, and it was all.
                        self.got(unsafe { object.assume_init() });
                    }
                }
            }
            Op::FreeBulk(n) => {
                let rest = self.live.len().saturating_sub(n);
                let mut objects = self.live.split_off(rest);
                objects.iter().copied().for_each(Canary::free);
                // SAFETY: the test had the objects.
                unsafe { self.cache.free_bulk(&mut objects) };
            }
            Op::Advance => self.gp.advance(),
            Op::Begin => self.gp.begin(),
            Op::Go(slot) => self.cpus.go(slot),
            Op::Bounce => self.cpus.bounce(),
            Op::Reap => {
                self.cache.reap();
            }
            Op::Shrink(budget) => {
                self.cache.shrink(budget);
            }
            Op::Barrier => {
                self.cache.barrier();
                assert_eq!(self.cache.stats().waiting, 0);
            }
        }
        let stats = self.cache.stats();
        let aside: usize = self.aside.iter().map(RawPrefilled::len).sum();
        assert_eq!(
            stats.live,
            self.live.len() + aside,
            "H5: objects are lost or torn: {stats}"
        );
        assert_eq!(stats.memory.total(), self.cache.pages().outstanding_bytes());
        // H5: what is out of the slabs is somewhere, and the slabs have at least as much.
        let out = stats.live + stats.in_sheaves + stats.waiting + stats.kept_back;
        assert!(out <= stats.slabs * stats.objects_per_slab);
        assert!(self.cache.waiting_objects() <= stats.waiting);
        // Where frees are delayed, freed objects wait too.
        if self.setup.stability != Stability::Delayed {
            assert!(stats.waiting <= self.retired.len());
        }
        if self.setup.stability == Stability::None {
            assert_eq!(stats.slabs_waiting, 0);
        }
    }
}

fn play(setup: &Setup, ops: &[Op], failure: Failure) -> usize {
    let pages = Pages::new();
    let cpus = Hand::new(SLOTS as usize);
    let gp = if setup.auto {
        ManualGp::auto()
    } else {
        ManualGp::new()
    };
    let config = setup.config();
    // The cache itself may find no memory either.
    pages.set_failure(failure);
    // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
    let cache = match unsafe { RawCache::new_scoped(config, &cpus, &pages, &gp) } {
        Ok(cache) => cache,
        Err(_) => {
            assert_eq!(pages.outstanding(), 0);
            return pages.calls();
        }
    };
    let live = {
        let mut model = Model {
            cache: &cache,
            cpus: &cpus,
            pages: &pages,
            gp: &gp,
            aside: Vec::new(),
            may_starve: failure == Failure::Never,
            setup,
            live: Vec::new(),
            retired: BTreeMap::new(),
        };
        for op in ops {
            model.run(op);
        }
        model.live
    };
    pages.set_failure(Failure::Never);
    let cache = if live.is_empty() {
        cache
    } else {
        let busy = cache.destroy().expect_err("objects are out");
        assert_eq!((busy.live, busy.pending), (live.len(), 0));
        busy.cache
    };
    for object in live {
        Canary::free(object);
        // SAFETY: the test had the object.
        unsafe { cache.free(object) };
    }
    cache.destroy().expect("nothing is out");
    assert_eq!(pages.outstanding(), 0, "pages are lost");
    pages.calls()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn h5_objects_are_conserved(setup in setup(), ops in prop::collection::vec(op(), 0..200)) {
        play(&setup, &ops, Failure::Never);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, ..ProptestConfig::default() })]

    #[test]
    fn l15_no_check_finds_fault_with_what_is_allowed(
        setup in setup(),
        ops in prop::collection::vec(op(), 0..200),
    ) {
        let setup = Setup { checks: Checks::all(), ..setup };
        play(&setup, &ops, Failure::Never);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn every_failure_point_leaves_the_cache_whole(
        setup in setup(),
        ops in prop::collection::vec(op(), 0..60),
    ) {
        let calls = play(&setup, &ops, Failure::Never);
        for n in 0..=calls {
            play(&setup, &ops, Failure::Once(n));
            play(&setup, &ops, Failure::From(n));
        }
    }
}
