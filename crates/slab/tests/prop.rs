//! Caches against a multiset, over sources that fail too.

#![cfg(not(loom))]

mod common;

use common::{Canary, Failure, Hand, Pages};
use proptest::prelude::*;
use rcu_core::manual::ManualGp;
use rcu_core::{Cookie, GracePeriod};
use slab::{CacheConfig, RawCache};
use std::alloc::Layout;
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

const SLOTS: u32 = 3;

#[derive(Clone, Debug)]
enum Op {
    Alloc,
    Free(usize),
    Retire(usize),
    AllocBulk(usize),
    FreeBulk(usize),
    Advance,
    Begin,
    Go(Option<u32>),
    Bounce,
    Reap,
    Shrink,
    Barrier,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => Just(Op::Alloc),
        6 => any::<usize>().prop_map(Op::Free),
        12 => any::<usize>().prop_map(Op::Retire),
        2 => (0..40_usize).prop_map(Op::AllocBulk),
        2 => (0..40_usize).prop_map(Op::FreeBulk),
        4 => Just(Op::Advance),
        2 => Just(Op::Begin),
        3 => prop_oneof![4 => (0..SLOTS).prop_map(Some), 1 => Just(None)].prop_map(Op::Go),
        1 => Just(Op::Bounce),
        2 => Just(Op::Reap),
        1 => Just(Op::Shrink),
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
    auto: bool,
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
        any::<bool>(),
    )
        .prop_map(|(size, align, sheaf, ask, min_partial, auto)| Setup {
            size,
            align,
            sheaf,
            ask,
            min_partial,
            auto,
        })
}

type Raw<'a> = RawCache<&'a Hand, &'a Pages, &'a ManualGp>;

/// The cache and what must be true of it.
struct Model<'a> {
    cache: Raw<'a>,
    cpus: &'a Hand,
    gp: &'a ManualGp,
    /// Objects that the test has.
    live: Vec<NonNull<u8>>,
    /// Objects that were retired, with a cookie taken just before.
    retired: BTreeMap<usize, Cookie>,
}

impl Model<'_> {
    fn got(&mut self, object: NonNull<u8>) {
        let gp = self.gp;
        assert_eq!(object.addr().get() % self.cache.layout().align(), 0);
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
            Op::Alloc => {
                if let Ok(object) = self.cache.alloc() {
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
            Op::Retire(which) => {
                if let Some(object) = self.pick(which) {
                    let cookie = self.gp.snapshot();
                    Canary::retire(object, cookie);
                    // SAFETY: the test had the object.
                    match unsafe { self.cache.retire(object) } {
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
            Op::AllocBulk(n) => {
                let mut out = vec![MaybeUninit::uninit(); n];
                if self
                    .cache
                    .alloc_bulk(&mut out, pagealloc::Attempt::MayGrow)
                    .is_ok()
                {
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
            Op::Shrink => {
                self.cache.shrink();
            }
            Op::Barrier => {
                self.cache.barrier();
                assert_eq!(self.cache.stats().waiting, 0);
            }
        }
        let stats = self.cache.stats();
        assert_eq!(
            stats.live,
            self.live.len(),
            "objects are lost or torn: {stats}"
        );
        assert!(self.cache.waiting_objects() <= stats.waiting);
        assert!(stats.waiting <= self.retired.len());
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
    let layout = Layout::from_size_align(setup.size, setup.align).unwrap();
    let config = CacheConfig::new("prop", layout)
        .sheaf_capacity(setup.sheaf)
        .ask_after(setup.ask)
        .min_partial(setup.min_partial);
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
    let mut model = Model {
        cache,
        cpus: &cpus,
        gp: &gp,
        live: Vec::new(),
        retired: BTreeMap::new(),
    };
    for op in ops {
        model.run(op);
    }
    let Model { cache, live, .. } = model;
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
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn objects_are_conserved(setup in setup(), ops in prop::collection::vec(op(), 0..200)) {
        play(&setup, &ops, Failure::Never);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn every_failure_point_leaves_the_cache_whole(
        setup in setup(),
        ops in prop::collection::vec(op(), 0..80),
    ) {
        let calls = play(&setup, &ops, Failure::Never);
        for n in 0..=calls {
            play(&setup, &ops, Failure::Once(n));
            play(&setup, &ops, Failure::From(n));
        }
    }
}
