//! Strings of operations over one cache, and what must be true after each: for the properties and for the fuzzer.

use crate::common::{Canary, Failure, Hand, Pages};
use arbitrary::{Arbitrary, Unstructured};
use pagealloc::Attempt;
use rcu_core::manual::ManualGp;
use rcu_core::{Cookie, GracePeriod};
use slab::{CacheConfig, Checks, RawCache, RawPrefilled, Stability};
use std::alloc::Layout;
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

pub(crate) const SLOTS: u32 = 3;

#[derive(Clone, Debug)]
pub(crate) enum Op {
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

#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) size: usize,
    pub(crate) align: usize,
    pub(crate) sheaf: usize,
    pub(crate) ask: usize,
    pub(crate) min_partial: usize,
    pub(crate) limit: usize,
    pub(crate) auto: bool,
    pub(crate) checks: Checks,
    pub(crate) stability: Stability,
    pub(crate) is_built: bool,
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

/// One string, and the cache that it is run on.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) setup: Setup,
    pub(crate) ops: Vec<Op>,
    pub(crate) failure: Failure,
}

fn attempt(u: &mut Unstructured<'_>) -> arbitrary::Result<Attempt> {
    use Attempt::{MayGrow, NoWait, PcpOnly, TryLock};
    u.choose(&[MayGrow, MayGrow, MayGrow, NoWait, TryLock, PcpOnly])
        .copied()
}

impl<'a> Arbitrary<'a> for Op {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let kind = u.int_in_range(0..=52_u8)?;
        let n = usize::from(u.arbitrary::<u8>()?);
        Ok(match kind {
            0..12 => Self::Alloc(attempt(u)?),
            12..17 => Self::Free(n),
            17..19 => Self::FreeAttempt(n, attempt(u)?),
            19..30 => Self::Retire(n, attempt(u)?),
            30..32 => Self::AllocBulk(n % 40, attempt(u)?),
            32..34 => Self::FreeBulk(n % 40),
            34..36 => Self::Prefill(n % 40, attempt(u)?),
            36..38 => Self::Pop(n % 10),
            38 => Self::Refill(n % 40, attempt(u)?),
            39 => Self::GiveBack(n),
            40 => Self::Memory(n.is_multiple_of(2)),
            41..44 => Self::Advance,
            44..46 => Self::Begin,
            46..48 => Self::Go((!n.is_multiple_of(5)).then_some(n as u32 % SLOTS)),
            48 => Self::Bounce,
            49..51 => Self::Reap,
            51 => Self::Shrink(if n < 200 { n % 5 } else { usize::MAX }),
            _ => Self::Barrier,
        })
    }
}

impl<'a> Arbitrary<'a> for Setup {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        use Stability::{Delayed, None, Type};
        Ok(Self {
            size: *u.choose(&[24, 64, 200, 1000, 4096, 9000])?,
            align: *u.choose(&[8, 64])?,
            sheaf: u.int_in_range(1..=7)?,
            ask: u.int_in_range(1..=39)?,
            min_partial: u.int_in_range(0..=2)?,
            limit: *u.choose(&[usize::MAX, usize::MAX, 0, 1000, 100_000])?,
            auto: u.arbitrary()?,
            checks: match u.arbitrary::<u8>()? {
                n if n < 128 => Checks::empty(),
                n => Checks::from_bits_truncate(n << 1),
            },
            stability: *u.choose(&[None, None, Type, Delayed])?,
            is_built: u.arbitrary()?,
        })
    }
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let setup = u.arbitrary()?;
        let n = usize::from(u.int_in_range(0..=60_u8)?);
        let failure = match u.int_in_range(0..=3_u8)? {
            0 => Failure::From(n),
            1 => Failure::Once(n),
            _ => Failure::Never,
        };
        let mut ops = Vec::new();
        while !u.is_empty() && ops.len() < 400 {
            ops.push(u.arbitrary()?);
        }
        Ok(Self {
            setup,
            ops,
            failure,
        })
    }
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

/// Runs a string, and says how often pages were asked for.
pub(crate) fn play(setup: &Setup, ops: &[Op], failure: Failure) -> usize {
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
