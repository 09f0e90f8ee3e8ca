//! One operation string through {tiny, tree} × {batched, unbatched} × {sheaves, none}, and with pages that are refused: the same must be seen.

#![cfg(all(feature = "std", not(loom)))]

mod common;

use common::{Failure, Pages};
use kvfree::{Config, DeferFree, Kvfree, NoSheaves, Unbatched};
use pagealloc::{Mmap, PAGE_SIZE, Zone};
use proptest::collection::vec;
use proptest::prelude::*;
use rcu_core::cpu::Threads;
use rcu_core::{Domain, Head, HeadOffset};
use rcu_tiny::{Tiny, TinyStatic};
use slab::Kmalloc;
use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

mod cfg {
    //! Sizes, in one place.
    pub(crate) const CASES: u32 = 120;
    pub(crate) const OPS: usize = 150;
}

rcu_tree::static_tree! {
    /// Grace periods on many CPUs, with a worker.
    struct OnTree, unsafe free = free::<OnTree>;
}

// SAFETY: there is one test in this file, and it uses this value, from its own thread.
static TINY: TinyStatic = unsafe { TinyStatic::new(Tiny::new().with_kfree(free::<OnTiny>)) };

rcu_core::domain! {
    /// Grace periods on one CPU: the oracle.
    struct OnTiny = TINY: Tiny;
}

type Kernel<D> = Kmalloc<Threads, &'static Zone<Threads, Mmap>, D>;

/// Domains that free objects by offset.
trait Home: Domain {
    fn current() -> &'static AtomicPtr<Kernel<Self>>;
}

macro_rules! home {
    ($domain:ty) => {
        impl Home for $domain {
            fn current() -> &'static AtomicPtr<Kernel<Self>> {
                static CURRENT: AtomicPtr<Kernel<$domain>> = AtomicPtr::new(std::ptr::null_mut());
                &CURRENT
            }
        }
    };
}
home!(OnTree);
home!(OnTiny);

unsafe fn free<D: Home>(object: NonNull<u8>) {
    // SAFETY: set, and alive, while anything is queued with an offset.
    let kmalloc = unsafe { &*D::current().load(Ordering::Acquire) };
    // SAFETY: the object came from there, and its time has come.
    unsafe { kmalloc.kfree(object) };
}

fn zone() -> &'static Zone<Threads, Mmap> {
    static ZONE: OnceLock<Zone<Threads, Mmap>> = OnceLock::new();
    ZONE.get_or_init(|| Zone::new(Threads, Mmap::new().unwrap()).unwrap())
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Alloc(usize),
    Retire(usize),
    RetireMightsleep(usize),
    /// Retires, allocating in between, so that memory that is free too early is used again.
    Churn {
        objects: usize,
        size: usize,
    },
    Look(usize),
    Enter,
    Exit,
    Tick,
    Barrier,
}

const SIZES: [usize; 7] = [24, 64, 100, 512, 2000, 8192, 70_000];

fn op() -> impl Strategy<Value = Op> {
    let n = any::<usize>;
    prop_oneof![
        8 => (0..SIZES.len()).prop_map(Op::Alloc),
        4 => n().prop_map(Op::Retire),
        2 => n().prop_map(Op::RetireMightsleep),
        1 => (1..600_usize, 0..3_usize).prop_map(|(objects, size)| Op::Churn { objects, size }),
        3 => n().prop_map(Op::Look),
        2 => Just(Op::Enter),
        2 => Just(Op::Exit),
        2 => Just(Op::Tick),
        1 => Just(Op::Barrier),
    ]
}

/// What the string lets one see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Object(u8),
    /// Objects that are not free when a barrier has returned, and pages of large ones.
    Out {
        small: usize,
        large_pages: usize,
    },
}

#[derive(Clone, Copy, Debug)]
struct Object {
    at: NonNull<u8>,
    size: usize,
    pattern: u8,
}

impl Object {
    /// Checks everything but the head.
    fn check(self) -> Seen {
        for i in (size_of::<Head>()..self.size).step_by(8) {
            // SAFETY: inside of the object.
            let byte = unsafe { self.at.add(i) };
            // SAFETY: the object is not free, or a section keeps it.
            assert_eq!(unsafe { byte.read() }, self.pattern, "free too early");
        }
        Seen::Object(self.pattern)
    }
}

struct Run<'a, D: Home> {
    kmalloc: &'static Kernel<D>,
    front: &'a dyn DeferFree,
    live: Vec<Object>,
    /// Retired while a section was on.
    kept: Vec<Object>,
    guards: Vec<rcu_core::Guard<D>>,
    count: usize,
    seen: Vec<Seen>,
}

impl<D: Home> Run<'_, D> {
    fn alloc(&mut self, size: usize) -> Object {
        let at = self
            .kmalloc
            .kmalloc(Layout::from_size_align(size, 8).unwrap())
            .unwrap();
        self.count += 1;
        let pattern = (self.count % 251) as u8;
        // SAFETY: fresh memory of this size.
        unsafe { at.write_bytes(pattern, size) };
        Object { at, size, pattern }
    }

    fn retire(&mut self, object: Object) {
        if !self.guards.is_empty() {
            self.kept.push(object);
        }
        let head = object.at.cast::<Head>();
        // SAFETY: at the object's front, which has room for it.
        unsafe { head.write(Head::new()) };
        // SAFETY: the allocator's object and a head in it, given up; readers only look behind the head.
        unsafe { self.front.retire(head, HeadOffset::from_bytes(0)) };
    }

    fn pick(&mut self, n: usize) -> Option<Object> {
        (!self.live.is_empty()).then(|| self.live.swap_remove(n % self.live.len()))
    }

    fn step(&mut self, op: Op, tick: &dyn Fn()) {
        let outside = self.guards.is_empty();
        match op {
            Op::Alloc(size) => {
                let object = self.alloc(SIZES[size]);
                self.live.push(object);
            }
            Op::Retire(n) => {
                if let Some(object) = self.pick(n) {
                    self.retire(object);
                }
            }
            Op::RetireMightsleep(n) if outside => {
                if let Some(object) = self.pick(n) {
                    // SAFETY: the allocator's object, given up.
                    unsafe { self.front.retire_mightsleep(object.at) };
                }
            }
            Op::Churn { objects, size } => {
                for _ in 0..objects {
                    let object = self.alloc(SIZES[size]);
                    self.retire(object);
                }
            }
            Op::Look(n) if !self.live.is_empty() => {
                let seen = self.live[n % self.live.len()].check();
                self.seen.push(seen);
            }
            Op::Enter => self.guards.push(rcu_core::read_lock::<D>()),
            Op::Exit => {
                for object in &self.kept {
                    object.check();
                }
                // Any of them: sections end in any order.
                if !outside {
                    drop(self.guards.swap_remove(0));
                }
                if self.guards.is_empty() {
                    self.kept.clear();
                }
            }
            Op::Tick if outside => tick(),
            Op::Barrier if outside => {
                self.front.barrier();
                self.look_outside();
            }
            _ => {}
        }
    }

    fn look_outside(&mut self) {
        let stats = self.kmalloc.stats();
        let small = stats.classes.iter().map(|c| c.live + c.waiting).sum();
        self.seen.push(Seen::Out {
            small,
            large_pages: stats.large_bytes / PAGE_SIZE,
        });
    }
}

fn run<D: Home>(
    ops: &[Op],
    kmalloc: &'static Kernel<D>,
    front: &dyn DeferFree,
    tick: &dyn Fn(),
) -> Vec<Seen> {
    let mut run = Run {
        kmalloc,
        front,
        live: Vec::new(),
        kept: Vec::new(),
        guards: Vec::new(),
        count: 0,
        seen: Vec::new(),
    };
    for &op in ops {
        run.step(op, tick);
    }
    while !run.guards.is_empty() {
        run.step(Op::Exit, tick);
    }
    run.step(Op::Barrier, tick);
    while let Some(object) = run.pick(0) {
        object.check();
        run.retire(object);
    }
    run.step(Op::Barrier, tick);
    assert_eq!(
        run.seen.last(),
        Some(&Seen::Out {
            small: 0,
            large_pages: 0
        })
    );
    run.seen
}

/// Runs a string on a front end above this allocator.
type OnFront<D> = fn(&[Op], &'static Kernel<D>) -> Vec<Seen>;

/// Runs the string on a fresh allocator below each front end.
fn all_fronts<D: Home>(ops: &[Op]) -> [Vec<Seen>; 5] {
    let fronts: [OnFront<D>; 5] = [
        |ops, kmalloc| {
            // SAFETY: the allocator waits for `D`; everything is static.
            let made =
                unsafe { Kvfree::new(Threads, zone(), D::default(), kmalloc, Config::new()) };
            let front = made.unwrap();
            run::<D>(ops, kmalloc, &front, &|| {
                front.tick();
            })
        },
        |ops, kmalloc| {
            let objects = NoSheaves(kmalloc);
            // SAFETY: nothing is deferred; everything is static.
            let made =
                unsafe { Kvfree::new(Threads, zone(), D::default(), objects, Config::new()) };
            let front = made.unwrap();
            run::<D>(ops, kmalloc, &front, &|| {
                front.tick();
            })
        },
        |ops, kmalloc| {
            // Heads, and `synchronize`.
            let (pages, objects) = (Pages::failing(Failure::From(1)), NoSheaves(kmalloc));
            // SAFETY: nothing is deferred; the pages outlive the front end.
            let made =
                unsafe { Kvfree::new(Threads, &pages, D::default(), objects, Config::new()) };
            let front = made.unwrap();
            run::<D>(ops, kmalloc, &front, &|| {
                front.tick();
            })
        },
        |ops, kmalloc| {
            // SAFETY: `D` frees objects of this allocator, for now.
            let front = unsafe { Unbatched::new(D::default(), kmalloc) };
            run::<D>(ops, kmalloc, &front, &|| {
                D::default().drive();
            })
        },
        |ops, kmalloc| {
            // SAFETY: `D` frees objects of this allocator, for now.
            let front = unsafe { Unbatched::new(D::default(), NoSheaves(kmalloc)) };
            run::<D>(ops, kmalloc, &front, &|| {
                D::default().drive();
            })
        },
    ];
    fronts.map(|front| {
        let kmalloc: *mut Kernel<D> = Box::into_raw(Box::new(
            Kmalloc::new(Threads, zone(), D::default()).unwrap(),
        ));
        D::current().store(kmalloc, Ordering::Release);
        // SAFETY: made just now, and given back below, when the front end is gone.
        let seen = front(ops, unsafe { &*kmalloc });
        // SAFETY: made by `Box::into_raw`; nobody uses it any more.
        let kmalloc = unsafe { Box::from_raw(kmalloc) };
        assert!(kmalloc.destroy().is_ok(), "objects are lost");
        seen
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cfg::CASES,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn k20_post_2020_headless_all_combinations_agree(ops in vec(op(), 0..cfg::OPS)) {
        let tiny = all_fronts::<OnTiny>(&ops);
        let tree = all_fronts::<OnTree>(&ops);
        for other in &tiny[1..] {
            prop_assert_eq!(&tiny[0], other);
        }
        prop_assert_eq!(&tiny, &tree);
        prop_assert_eq!(zone().nr_allocated(), 0);
    }
}
