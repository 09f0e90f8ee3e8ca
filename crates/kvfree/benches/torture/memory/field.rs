//! Objects, the cells they are published in, and the ways they come and go.

use super::Injury;
use super::body::{Body, LEAST};
use super::ground::{Ground, Pages};
use crate::books::{Count, Fault};
use crate::random::Random;
use crate::stage::Role;
use pagealloc::Attempt;
use rcu_core::cpu::Threads;
use rcu_core::{GracePeriod, Rcu};
use slab::{CacheConfig, Kmalloc, RawCache};
use std::alloc::Layout;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

rcu_tree::static_tree! {
    /// Whose readers look at the objects.
    pub(crate) struct Ward, unsafe free = free_by_offset;
}

pub(crate) type Kernel = Kmalloc<Threads, Pages, Ward>;
pub(crate) type Cache = RawCache<Threads, Pages, Ward>;

/// The field, for functions that get nothing but an object.
static FIELD: AtomicPtr<Field> = AtomicPtr::new(ptr::null_mut());

const CELLS: usize = 32;
/// Sizes from the general allocator, the last of them in pages of their own.
const SIZES: [usize; 10] = [LEAST, 64, 64, 64, 104, 256, 512, 3_000, 12_000, 40_000];
/// Sizes of the two caches.
const TYPED: [usize; 2] = [64, 200];
/// The owner that stands for the general allocator; caches come after it.
const GENERAL: usize = 0;

/// How objects of the general allocator are retired.
pub(crate) trait Retire: Send + Sync + 'static {
    /// Retires an object that the shadow knows to be retired.
    fn retire(&self, field: &Field, object: NonNull<u8>, random: &mut Random, role: &mut Role);

    /// The same by a way without a head, for what is retired twice on purpose.
    fn retire_again(&self, field: &Field, object: NonNull<u8>);

    /// What the monitor does.
    fn tick(&self, field: &Field, role: &Role);

    /// Everything retired before is free.
    fn barrier(&self, field: &Field);
}

pub(crate) struct Field {
    pub(crate) ground: Ground,
    pub(crate) kmalloc: &'static Kernel,
    pub(crate) caches: Vec<Cache>,
    pub(crate) retire: Box<dyn Retire>,
    cells: [AtomicPtr<u8>; CELLS],
    mail: Mutex<Vec<Object>>,
}

/// An object that is out.
#[derive(Clone, Copy)]
pub(crate) struct Object(pub(crate) NonNull<u8>);

// SAFETY: whoever has it owns the object.
unsafe impl Send for Object {}

/// Starts the tree's threads, so that they are there before memory is counted.
pub(crate) fn wake_ward() {
    Ward.synchronize();
    Ward.start();
    Ward.barrier();
}

impl Field {
    pub(crate) fn new(
        ground: Ground,
        retire: impl FnOnce(&Ground, &'static Kernel) -> Result<Box<dyn Retire>, String>,
    ) -> Result<&'static Self, String> {
        let zone = ground.zone;
        let kernel = retried(|| Kmalloc::new(Threads, zone, Ward).map_err(|e| e.to_string()))?;
        let kmalloc: &'static Kernel = Box::leak(Box::new(kernel));
        let retire = retire(&ground, kmalloc)?;
        let mut caches = Vec::new();
        for (size, name) in TYPED.into_iter().zip(["left", "right"]) {
            let layout = Layout::from_size_align(size, 8).map_err(|e| e.to_string())?;
            let config = CacheConfig::new(name, layout)
                .sheaf_capacity(29)
                .ask_after(200);
            let new = || RawCache::new(config, Threads, zone, Ward).map_err(|e| e.to_string());
            caches.push(retried(new)?);
        }
        let field: &'static Self = Box::leak(Box::new(Self {
            ground,
            kmalloc,
            caches,
            retire,
            cells: [const { AtomicPtr::new(ptr::null_mut()) }; CELLS],
            mail: Mutex::default(),
        }));
        FIELD.store(ptr::from_ref(field).cast_mut(), Ordering::Release);
        Ok(field)
    }

    pub(crate) fn mail(&self) -> MutexGuard<'_, Vec<Object>> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object of a random kind, if there is memory for one.
    pub(crate) fn alloc(&self, random: &mut Random, role: &mut Role) -> Option<Object> {
        let owner = random.below(TYPED.len() + 3).saturating_sub(2);
        let (size, memory) = if owner == GENERAL {
            let size = random.pick(&SIZES);
            let layout = Layout::from_size_align(size, 8).ok()?;
            (size, self.kmalloc.kmalloc(layout))
        } else {
            let attempt = random.pick(&[Attempt::TryLock, Attempt::NoWait, Attempt::MayGrow]);
            let cache = &self.caches[owner - 1];
            (TYPED[owner - 1], cache.alloc_attempt(attempt))
        };
        let Ok(memory) = memory else {
            role.tally.one(Count::Refused);
            return None;
        };
        role.tally.one(Count::Allocs);
        Some(self.take_in(memory, size, owner, role))
    }

    fn take_in(&self, memory: NonNull<u8>, size: usize, owner: usize, role: &Role) -> Object {
        let shadow = &self.ground.shadow;
        shadow.hand_out(memory, role.books(), |cookie| Ward.poll(cookie));
        let life = self.ground.next_life();
        // SAFETY: fresh memory of this size.
        unsafe { Body::write(memory, size, owner, life) };
        Object(memory)
    }

    /// Frees an object that nobody else knows.
    pub(crate) fn free(&self, object: Object, random: &mut Random, role: &mut Role) {
        role.tally.one(Count::Frees);
        if self.ground.injures(Injury::Missing, role, random) {
            return;
        }
        // SAFETY: the caller's.
        let body = unsafe { Body::of(object.0) };
        let owner = body.owner();
        body.bury(role.books());
        self.ground.shadow.free(object.0);
        if self.ground.injures(Injury::Wrong, role, random) {
            let other = if owner == 1 { 2 } else { 1 };
            // SAFETY: none: it is another allocator's, on purpose.
            unsafe { self.caches[other - 1].free(object.0) };
            return;
        }
        // SAFETY: the caller's, and given up.
        unsafe { self.free_to(owner, object.0) };
        if self.ground.injures(Injury::Double, role, random) {
            // SAFETY: none: once too often, on purpose.
            unsafe { self.free_to(owner, object.0) };
        }
    }

    /// # Safety
    /// 1. The object came from `owner`, and is given up.
    unsafe fn free_to(&self, owner: usize, object: NonNull<u8>) {
        match owner
            .checked_sub(1)
            .and_then(|index| self.caches.get(index))
        {
            // SAFETY: 1.
            Some(cache) => unsafe { cache.free(object) },
            // SAFETY: 1.
            None => unsafe { self.kmalloc.kfree(object) },
        }
    }

    /// Frees an object that was retired and refused, once nobody can see it.
    pub(crate) fn free_after_grace_period(&self, object: NonNull<u8>, role: &Role) {
        Ward.synchronize();
        self.ground
            .shadow
            .ripe(object, role.books(), |cookie| Ward.poll(cookie));
        // SAFETY: the caller's, and no reader has it any more.
        let body = unsafe { Body::of(object) };
        let owner = body.owner();
        body.bury(role.books());
        // SAFETY: as above.
        unsafe { self.free_to(owner, object) };
    }

    /// Retires an object that was unlinked.
    pub(crate) fn retire(&self, object: Object, random: &mut Random, role: &mut Role) {
        let Object(object) = object;
        role.tally.one(Count::Retires);
        // SAFETY: the caller's; readers that have it look at it only.
        let body = unsafe { Body::of(object) };
        body.check(role.books(), "when retired");
        let owner = body.owner();
        let cookie = Ward.snapshot();
        self.ground.shadow.retire(object, cookie);
        if self.ground.injures(Injury::Missing, role, random) {
            return;
        }
        if self.ground.injures(Injury::Early, role, random) {
            // SAFETY: none: readers may have it, on purpose.
            unsafe { self.free_to(owner, object) };
            return;
        }
        if owner == GENERAL || self.ground.injures(Injury::Wrong, role, random) {
            if self.ground.injures(Injury::Double, role, random) {
                self.retire.retire_again(self, object);
                self.retire.retire_again(self, object);
                return;
            }
            self.retire.retire(self, object, random, role);
            return;
        }
        let cache = &self.caches[owner - 1];
        // SAFETY: the object came from there, and was unlinked.
        if unsafe { cache.retire(object) }.is_err() {
            role.tally.one(Count::Rejected);
            self.free_after_grace_period(object, role);
        } else if self.ground.injures(Injury::Double, role, random) {
            // SAFETY: none: once too often, on purpose.
            let _ = unsafe { cache.retire(object) };
        }
    }

    /// Publishes `new`, if there is one, and retires what was there.
    pub(crate) fn publish(&self, new: Option<Object>, random: &mut Random, role: &mut Role) {
        let new = new.map_or(ptr::null_mut(), |object| object.0.as_ptr());
        role.tally.one(Count::Updates);
        let old = self.cells[random.below(CELLS)].swap(new, Ordering::AcqRel);
        if let Some(old) = NonNull::new(old) {
            self.retire(Object(old), random, role);
        }
    }

    /// Looks at an object for a while.
    pub(crate) fn read(&self, random: &mut Random, role: &mut Role) {
        let _guard = Ward.read_lock();
        let object = self.cells[random.below(CELLS)].load(Ordering::Acquire);
        let Some(object) = NonNull::new(object) else {
            return;
        };
        // SAFETY: the section keeps what is loaded in it.
        let body = unsafe { Body::of(object) };
        let books = role.books();
        let life = body.check(books, "under a reader");
        for _ in 0..random.below(6) {
            if random.one_in(8) {
                std::thread::yield_now();
            }
            let now = body.check(books, "under a reader");
            books.check(now == life, Fault::Early, || {
                format!("{object:p}, life {life}, became life {now} under a reader")
            });
        }
        role.tally.one(Count::Reads);
    }

    /// Many objects of one cache at a time, set aside or not, freed at once.
    pub(crate) fn bulk(&self, random: &mut Random, role: &mut Role) {
        let index = random.below(TYPED.len());
        let (cache, size) = (&self.caches[index], TYPED[index]);
        let wanted = 1 + random.below(100);
        role.tally.one(Count::Bulks);
        let mut got: Vec<NonNull<u8>> = Vec::with_capacity(wanted);
        if random.one_in(2) {
            let Ok(mut aside) = cache.prefill(wanted, Attempt::MayGrow) else {
                role.tally.one(Count::Refused);
                return;
            };
            let some = random.below(wanted + 1);
            got.extend((0..some).map_while(|_| aside.pop()));
            let (asked, popped) = (some, got.len());
            role.books().check(asked == popped, Fault::Owner, || {
                format!("{popped} of {asked} objects that were set aside")
            });
        } else {
            let mut places = vec![std::mem::MaybeUninit::uninit(); wanted];
            if cache.alloc_bulk(&mut places, Attempt::MayGrow).is_err() {
                role.tally.one(Count::Refused);
                return;
            }
            // SAFETY: all or nothing was filled.
            got.extend(places.iter().map(|place| unsafe { place.assume_init() }));
        }
        role.tally.add(Count::Allocs, got.len() as u64);
        role.tally.add(Count::Frees, got.len() as u64);
        for object in &got {
            self.take_in(*object, size, index + 1, role);
        }
        for object in &got {
            // SAFETY: written just now.
            unsafe { Body::of(*object) }.bury(role.books());
            self.ground.shadow.free(*object);
        }
        // SAFETY: they came from there, differ, and nobody else knows them.
        unsafe { cache.free_bulk(&mut got) };
    }

    /// All threads have ended: everything comes home, and is looked for.
    ///
    /// # Safety
    /// 1. Nobody else uses the field, now or later.
    pub(crate) unsafe fn leave(&'static self) {
        let mut role = Role::guest(self.ground.stage, 0);
        let mut random = Random::of(0, "leave", 0, 0);
        for cell in &self.cells {
            if let Some(object) = NonNull::new(cell.swap(ptr::null_mut(), Ordering::AcqRel)) {
                self.retire(Object(object), &mut random, &mut role);
            }
        }
        let mail: Vec<Object> = self.mail().drain(..).collect();
        for object in mail {
            self.free(object, &mut random, &mut role);
        }
        role.leave();
        self.retire.barrier(self);
        Ward.barrier();
        FIELD.store(ptr::null_mut(), Ordering::Release);
        // SAFETY: leaked in `new`, and the caller is the last one.
        let this = unsafe { Box::from_raw(ptr::from_ref(self).cast_mut()) };
        let Self {
            ground,
            kmalloc,
            caches,
            retire,
            ..
        } = *this;
        let books = &ground.stage.books;
        drop(retire);
        for cache in caches {
            if let Err(busy) = cache.destroy() {
                books.fault(Fault::Leak, || busy.to_string());
            }
        }
        // SAFETY: leaked in `new`; what borrowed it has been dropped.
        let kernel = unsafe { Box::from_raw(ptr::from_ref(kmalloc).cast_mut()) };
        if let Err(busy) = kernel.destroy() {
            books.fault(Fault::Leak, || busy.to_string());
        }
        ground.leave();
    }
}

/// What a moody source may refuse, it does not refuse for ever.
pub(super) fn retried<T>(mut make: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let mut last = String::new();
    for _ in 0..100 {
        match make() {
            Ok(made) => return Ok(made),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn field() -> &'static Field {
    // SAFETY: set from before the first object is retired until the last is free.
    unsafe { &*FIELD.load(Ordering::Acquire) }
}

/// How the tree frees an object by its offset.
unsafe fn free_by_offset(object: NonNull<u8>) {
    // SAFETY: the tree's: it came from the general allocator, and its time has come.
    unsafe { drop_object(object) };
}

/// How an object frees itself.
///
/// # Safety
/// 1. The object is of the general allocator's, and its time has come.
pub(crate) unsafe fn drop_object(object: NonNull<u8>) {
    let field = field();
    let books = &field.ground.stage.books;
    let shadow = &field.ground.shadow;
    shadow.ripe(object, books, |cookie| Ward.poll(cookie));
    // SAFETY: 1.
    unsafe { Body::of(object) }.bury(books);
    // SAFETY: 1.
    unsafe { field.kmalloc.kfree(object) };
}
