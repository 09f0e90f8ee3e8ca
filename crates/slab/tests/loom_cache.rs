//! Models of an object's ways from user to user through a whole cache: sheaves, barn, slabs, deferred frees and the line of retired
//! sheaves, all of them the real code, over a few pages that are never used twice.
//!
//! Each object has contents that loom watches. An object that two users have at once, or that reaches its next user without its last
//! user's accesses, is a race on them; one that is lost is missing when the cache is destroyed.
//!
//! Mutants, each to be caught by the model of the same subject: `p6_inbox`, `p6_deferred` (the two sides of a deferred free), `p4_ripe` (a
//! retired sheaf handed out without a look at its cookie), `t15` (a barrier that looks at the orphans first), and rcu-core's `p8_spin` (a
//! spin lock's exit).
//!
//! Not shown:
//! - the asymmetry of the local lock's fences, and the words of a sheaf as such, which loom does not watch: two that are inside at once show
//!   by what becomes of the objects;
//! - pages on their way from one cache to another (P7, of pagealloc's models), and real readers: a grace period here ends when the model says so.

#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicPtr, Ordering};
use loom::thread;
use pagealloc::{AllocError, Attempt, Order, PageAlloc, PageReq, PageTag};
use rcu_core::cpu::{BiasedLock, Cpus, HookList, LocalLock, OfflineHook, Slot, SpinLock};
use rcu_core::manual::ManualGp;
use rcu_core::{Cookie, GracePeriod};
use slab::{CacheConfig, RawCache};
use std::alloc::Layout;
use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

/// Two objects a slab: the fewest that are more than one.
const OBJECT_BYTES: usize = 128 << 10;
const SLAB: usize = 2 * OBJECT_BYTES;
const NR_SLABS: usize = 8;
const NR_OBJECTS: usize = NR_SLABS * 2;
const SLABS: Layout = match Layout::from_size_align(NR_SLABS * SLAB, SLAB) {
    Ok(layout) => layout,
    Err(_) => panic!("a layout"),
};

/// What the threads of a model share.
struct World {
    slabs: NonNull<u8>,
    contents: Vec<UnsafeCell<usize>>,
    /// Slabs given out, tags, and other blocks. Between two steps of a model one thread runs, so that a plain lock never waits; and it
    /// orders nothing that loom would see.
    pages: std::sync::Mutex<PagesOut>,
    gp: ManualGp,
    hooks: HookList,
}

#[derive(Default)]
struct PagesOut {
    slabs: usize,
    tags: Vec<PageTag>,
    others: Vec<(NonNull<u8>, Layout)>,
}

// SAFETY: addresses; contents belong to the objects' users, which is what is tested.
unsafe impl Send for World {}
// SAFETY: as above.
unsafe impl Sync for World {}

impl World {
    fn new() -> std::sync::Arc<Self> {
        // SAFETY: the layout is not empty.
        let slabs = unsafe { std::alloc::alloc(SLABS) };
        std::sync::Arc::new(Self {
            slabs: NonNull::new(slabs).expect("memory"),
            contents: (0..NR_OBJECTS).map(|_| UnsafeCell::new(0)).collect(),
            pages: std::sync::Mutex::default(),
            gp: ManualGp::new(),
            hooks: HookList::new(),
        })
    }

    fn offset_of(&self, address: *const u8) -> Option<usize> {
        let offset = address.addr().wrapping_sub(self.slabs.addr().get());
        (offset < SLABS.size()).then_some(offset)
    }

    fn contents(&self, object: NonNull<u8>) -> &UnsafeCell<usize> {
        let offset = self.offset_of(object.as_ptr()).expect("an object");
        &self.contents[offset / OBJECT_BYTES]
    }

    fn write(&self, object: NonNull<u8>) {
        // SAFETY: the caller has the object; loom fails if somebody else has it too.
        self.contents(object).with_mut(|word| unsafe { *word += 1 });
    }

    fn read(&self, object: NonNull<u8>) -> usize {
        // SAFETY: the caller found the object in a section; loom fails if somebody else writes meanwhile.
        self.contents(object).with(|word| unsafe { *word })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { std::alloc::dealloc(self.slabs.as_ptr(), SLABS) };
        for (block, layout) in self.pages.get_mut().unwrap().others.drain(..) {
            // SAFETY: allocated below with this layout.
            unsafe { std::alloc::dealloc(block.as_ptr(), layout) };
        }
    }
}

/// The world as a source of pages that are never used twice.
#[derive(Clone)]
struct Pages(std::sync::Arc<World>);

// SAFETY: memory of the world, disjoint, which lives as long as this handle; tags are kept by slab.
unsafe impl PageAlloc for Pages {
    fn alloc(&self, req: PageReq) -> Result<NonNull<u8>, AllocError> {
        let mut out = self.0.pages.lock().unwrap();
        if req.order.bytes() == SLAB && !req.zero {
            if out.slabs == NR_SLABS {
                return Err(AllocError::Exhausted);
            }
            out.slabs += 1;
            out.tags.push(PageTag::NONE);
            // SAFETY: inside the memory.
            return Ok(unsafe { self.0.slabs.add((out.slabs - 1) * SLAB) });
        }
        let bytes = req.order.bytes();
        let layout = Layout::from_size_align(bytes, bytes).unwrap();
        // SAFETY: the layout is not empty.
        let block = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).expect("memory");
        out.others.push((block, layout));
        Ok(block)
    }

    unsafe fn free_at(&self, _: NonNull<u8>, _: Order, _: Attempt) {}

    unsafe fn set_tag(&self, block: NonNull<u8>, _: Order, tag: PageTag) {
        let offset = self.0.offset_of(block.as_ptr()).expect("a slab");
        self.0.pages.lock().unwrap().tags[offset / SLAB] = tag;
    }

    fn tag(&self, address: *const u8) -> Option<PageTag> {
        let offset = self.0.offset_of(address)?;
        let out = self.0.pages.lock().unwrap();
        out.tags.get(offset / SLAB).copied()
    }

    fn order_of(&self, _: *const u8) -> Option<Order> {
        None
    }
}

/// The world's grace periods.
#[derive(Clone)]
struct Gp(std::sync::Arc<World>);

// SAFETY: those of `ManualGp`.
unsafe impl GracePeriod for Gp {
    fn snapshot(&self) -> Cookie {
        self.0.gp.snapshot()
    }

    fn start(&self) -> Cookie {
        self.0.gp.start()
    }

    fn poll(&self, cookie: Cookie) -> bool {
        self.0.gp.poll(cookie)
    }

    fn wait(&self, cookie: Cookie) {
        self.0.gp.wait(cookie);
    }

    fn drive(&self) -> bool {
        self.0.gp.drive()
    }

    fn grace_periods(&self) -> usize {
        self.0.gp.grace_periods()
    }
}

loom::thread_local! {
    static SLOT: Cell<Option<u32>> = Cell::new(None);
}

/// Two slots; each thread says which is its own.
struct TwoSlots<L> {
    world: std::sync::Arc<World>,
    _lock: PhantomData<fn() -> L>,
}

// SAFETY: 1: `on_slot` is given 0 and 1; 2: models with a lock that needs an owner give each slot to one thread; 3: `HookList`.
unsafe impl<L: LocalLock + 'static> Cpus for TwoSlots<L> {
    type Lock = L;

    fn nr_slots(&self) -> usize {
        2
    }

    fn current(&self) -> Option<Slot> {
        SLOT.with(|slot| slot.get().map(Slot::new))
    }

    unsafe fn add_offline_hook(&self, hook: NonNull<OfflineHook>) {
        // SAFETY: the caller's debts.
        unsafe { self.world.hooks.add(hook) };
    }

    unsafe fn remove_offline_hook(&self, hook: NonNull<OfflineHook>) {
        self.world.hooks.remove(hook);
    }
}

fn on_slot(slot: u32) {
    SLOT.with(|current| current.set(Some(slot)));
}

/// A cache, and the world that it is in.
struct Model<L: LocalLock + 'static> {
    world: std::sync::Arc<World>,
    /// Until it is destroyed.
    cache: Option<RawCache<TwoSlots<L>, Pages, Gp>>,
}

impl<L: LocalLock + 'static> Drop for Model<L> {
    fn drop(&mut self) {
        // What a mutant leaves behind is not fit to be walked through.
        if std::thread::panicking() {
            std::mem::forget(self.cache.take());
        }
    }
}

impl<L: LocalLock + 'static> Model<L> {
    fn new(sheaf_capacity: usize) -> Arc<Self> {
        let world = World::new();
        let layout = Layout::from_size_align(OBJECT_BYTES, OBJECT_BYTES).unwrap();
        let config = CacheConfig::new("model", layout).sheaf_capacity(sheaf_capacity);
        let cpus = TwoSlots {
            world: world.clone(),
            _lock: PhantomData,
        };
        let (pages, gp) = (Pages(world.clone()), Gp(world.clone()));
        let cache = RawCache::new(config, cpus, pages, gp).expect("memory");
        Arc::new(Self {
            world,
            cache: Some(cache),
        })
    }

    fn cache(&self) -> &RawCache<TwoSlots<L>, Pages, Gp> {
        self.cache.as_ref().expect("not destroyed yet")
    }

    fn alloc(&self) -> NonNull<u8> {
        let object = self.cache().alloc().expect("memory");
        self.world.write(object);
        object
    }

    fn free(&self, object: NonNull<u8>) {
        self.free_at(object, Attempt::NoWait);
    }

    fn free_at(&self, object: NonNull<u8>, attempt: Attempt) {
        self.world.write(object);
        // SAFETY: from `alloc`; the model frees each object once.
        unsafe { self.cache().free_attempt(object, attempt) };
    }

    fn retire(&self, object: NonNull<u8>) {
        // SAFETY: from `alloc`; the model retires each object once, unlinked.
        if let Err(object) = unsafe { self.cache().retire(object) } {
            self.world.gp.advance();
            self.free(object);
        }
    }

    /// Every object is where it can be found: none is lost, none is in two places.
    fn all_home(this: Arc<Self>) {
        let Ok(mut model) = Arc::try_unwrap(this) else {
            panic!("threads are done");
        };
        let cache = model.cache.take().expect("destroyed once");
        if let Err(busy) = cache.destroy() {
            let live = busy.live;
            std::mem::forget(busy);
            panic!("objects lost: {live}");
        }
    }
}

/// Sends an object's address.
#[derive(Clone, Copy)]
struct Sent(NonNull<u8>);

// SAFETY: the object belongs to whoever has the address.
unsafe impl Send for Sent {}

fn model(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    let bound = builder.preemption_bound.unwrap_or(preemptions);
    builder.preemption_bound = Some(bound.min(preemptions));
    builder.max_branches = 20_000;
    builder.check(f);
}

/// The owner allocates and frees, by the fast paths, while somebody takes its sheaves away and uses what was in them.
#[test]
fn p8_sheaf_of_an_owner_vs_drain() {
    model(2, || {
        let model = Model::<BiasedLock>::new(2);
        on_slot(0);
        let first = model.alloc();
        model.free(first);
        let visitor = {
            let model = model.clone();
            thread::spawn(move || {
                on_slot(1);
                model.cache().shrink(usize::MAX);
                let object = model.alloc();
                model.free(object);
            })
        };
        let object = model.alloc();
        model.free(object);
        visitor.join().unwrap();
        Model::all_home(model);
    });
}

/// A full sheaf goes from one slot to the other by way of the barn. (Spin locks as local locks: the fences of the biased one would order it too.)
#[test]
fn p6_barn_hand_over() {
    model(2, || {
        let model = Model::<SpinLock>::new(1);
        on_slot(0);
        let objects = [(); 4].map(|()| model.alloc());
        let taker = {
            let model = model.clone();
            thread::spawn(move || {
                on_slot(1);
                let objects = [(); 2].map(|()| model.alloc());
                objects.into_iter().for_each(|object| model.free(object));
            })
        };
        objects.into_iter().for_each(|object| model.free(object));
        taker.join().unwrap();
        Model::all_home(model);
    });
}

/// An object goes home to its slab, freed by a thread without a slot, and out again to another's sheaf.
#[test]
fn p6_slab_hand_over() {
    model(2, || {
        let model = Model::<BiasedLock>::new(2);
        let objects = [(); 2].map(|()| Sent(model.alloc()));
        let taker = {
            let model = model.clone();
            thread::spawn(move || {
                on_slot(1);
                let object = model.alloc();
                model.free(object);
            })
        };
        objects.into_iter().for_each(|object| model.free(object.0));
        taker.join().unwrap();
        Model::all_home(model);
    });
}

/// A free that waits for nobody meets every lock taken: the object is deferred, and who comes next finds it.
#[test]
fn p6_deferred_free_vs_alloc() {
    model(2, || {
        let model = Model::<BiasedLock>::new(2);
        let objects = [(); 2].map(|()| Sent(model.alloc()));
        let taker = {
            let model = model.clone();
            thread::spawn(move || {
                let objects = [(); 2].map(|()| model.alloc());
                objects.into_iter().for_each(|object| model.free(object));
            })
        };
        objects
            .into_iter()
            .for_each(|object| model.free_at(object.0, Attempt::TryLock));
        taker.join().unwrap();
        Model::all_home(model);
    });
}

/// Two threads on one slot, which is a hint only: what one brings while the other was refilling is kept (H3, T16).
#[test]
fn h3_two_refills_of_one_slot() {
    model(2, || {
        let model = Model::<SpinLock>::new(1);
        let other = {
            let model = model.clone();
            thread::spawn(move || {
                on_slot(0);
                let objects = [(); 2].map(|()| model.alloc());
                objects.into_iter().for_each(|object| model.free(object));
            })
        };
        on_slot(0);
        let objects = [(); 2].map(|()| model.alloc());
        objects.into_iter().for_each(|object| model.free(object));
        other.join().unwrap();
        Model::all_home(model);
    });
}

/// A reader looks at an object that is unlinked and retired; its array is handed out again, but not before the reader is done.
#[test]
fn h7_recycled_sheaf_vs_reader() {
    model(3, || {
        let model = Model::<BiasedLock>::new(1);
        on_slot(0);
        let object = model.alloc();
        let published = Arc::new(AtomicPtr::new(object.as_ptr()));
        let reader = {
            let (model, published) = (model.clone(), published.clone());
            thread::spawn(move || {
                if let Some(found) = NonNull::new(published.load(Ordering::Acquire)) {
                    model.world.read(found);
                }
                model.world.gp.advance();
            })
        };
        published.store(ptr::null_mut(), Ordering::Release);
        let second = model.alloc();
        model.retire(object);
        // Full with one: this one seals it.
        model.retire(second);
        let objects = [(); 2].map(|()| model.alloc());
        reader.join().unwrap();
        objects.into_iter().for_each(|object| model.free(object));
        Model::all_home(model);
    });
}

/// A barrier beside a slot that hands over what it retired, and ends: what was retired before the barrier is free after it.
#[test]
fn t15_barrier_vs_a_slot_that_ends() {
    model(2, || {
        let model = Model::<BiasedLock>::new(1);
        on_slot(0);
        let object = model.alloc();
        model.retire(object);
        let cookie = model.world.gp.snapshot();
        let waiter = {
            let model = model.clone();
            thread::spawn(move || {
                model.cache().barrier();
                assert!(model.world.gp.poll(cookie), "the barrier missed the object");
            })
        };
        // SAFETY: this thread's slot.
        unsafe { model.world.hooks.run(Slot::new(0)) };
        waiter.join().unwrap();
        Model::all_home(model);
    });
}

/// A barrier beside an owner that seals, recycles and retires more.
#[test]
fn h10_barrier_vs_recycling() {
    model(1, || {
        let model = Model::<BiasedLock>::new(1);
        on_slot(0);
        let objects = [(); 2].map(|()| model.alloc());
        model.retire(objects[0]);
        let cookie = model.world.gp.snapshot();
        let waiter = {
            let model = model.clone();
            thread::spawn(move || {
                model.cache().barrier();
                assert!(model.world.gp.poll(cookie), "the barrier missed the object");
            })
        };
        model.retire(objects[1]);
        let object = model.alloc();
        model.free(object);
        waiter.join().unwrap();
        Model::all_home(model);
    });
}
