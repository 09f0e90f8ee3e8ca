//! Where slabs come from and where they go: built once, their pages given back whole.
//!
//! Source: the type-stable caches of 2004 (`SLAB_DESTROY_BY_RCU`; facts only). There the head of the callback lies over the slab's own
//! descriptor; here it is a cookie in it. Why a cookie and not a callback: nobody runs foreign code, nothing is queued anywhere, a
//! slab that is wanted again before its time is taken out of the line, and whoever comes by polls.
//!
//! # Life of a slab's pages
//! Got without a lock; each object built by the constructor; tagged; into the lists. Empty and not wanted: at once back to the pages'
//! source, or, of a type-stable cache, in line behind a cookie (`slabs`, I4). What waits never keeps the cache from anything: an
//! allocation that finds nothing else revives the youngest before it asks for pages. So slabs in use and slabs that wait are
//! together never more than were in use at once, and those that the cache keeps empty.
//!
//! A grace period is asked for when 512 KiB were given up since the last time, and by `reap`, `shrink`, `barrier` and the end.
//!
//! # Contexts
//! Nothing here is called under a lock of the cache. `bury` waits for the slabs lock as far as its attempt says; without it,
//! what waits is left to the next who comes by. The constructor is the user's: it may allocate, from this cache too.

use super::{Inner, RawCache};
use crate::fault::NoUnwind;
use crate::slabs::{Descriptor, Dying, Holds, Slab};
use crate::stats::Event;
use core::ptr::NonNull;
use pagealloc::{AllocError, Attempt, PageAlloc, PageReq, PageTag};
use rcu_core::GracePeriod;
use rcu_core::cpu::Cpus;

/// A grace period is asked for when slabs of so many bytes were given up.
const ASK_BYTES: usize = 512 << 10;

impl<C: Cpus, P: PageAlloc, G: GracePeriod> RawCache<C, P, G> {
    /// Who keeps the slab that `object` lies in.
    ///
    /// # Safety
    /// 1. `object` is an object of this cache, and its slab stays while this call lasts.
    pub(crate) unsafe fn holds(&self, object: *const u8) -> Option<Holds> {
        let inner = self.inner();
        // SAFETY: debt 1.
        unsafe { Holds::of_object(&inner.shape, &inner.pages, object) }
    }
}

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Inner<C, P, G> {
    /// Pages and a descriptor, made a slab. Without a lock.
    pub(super) fn new_slab(&self, attempt: Attempt) -> Result<NonNull<Slab>, AllocError> {
        let slab: NonNull<Slab> = self.descriptors.0.get(&self.pages, attempt)?.cast();
        let order = self.shape.order;
        let base = match self.pages.alloc(PageReq::new(order).attempt(attempt)) {
            Ok(base) => base,
            Err(error) => {
                // SAFETY: the descriptor's block came from this pool just now.
                unsafe { self.descriptors.0.put(slab.cast()) };
                return Err(error);
            }
        };
        let colour = self.next_colour();
        let descriptor = Descriptor::new(self.identity(), base, &self.shape, colour);
        // SAFETY: the block is this call's, and as large and aligned as a descriptor.
        unsafe { slab.cast::<Descriptor>().write(descriptor) };
        // SAFETY: written above; nobody else has it.
        let born = unsafe { slab.as_ref() };
        self.birth(born);
        self.construct(born);
        self.hide_slab(base, true);
        let tag = PageTag {
            owner: slab.as_ptr().cast(),
            tag: self.shape.tag,
        };
        // SAFETY: the block came from `pages` just now.
        unsafe { self.pages.set_tag(base, order, tag) };
        self.tally(Event::SlabNew);
        Ok(slab)
    }

    /// Builds each object of a slab that nobody knows yet.
    fn construct(&self, slab: &Slab) {
        let Some(constructor) = self.shape.constructor else {
            return;
        };
        // Half a slab's objects would be built, and nobody would have them.
        let whole = NoUnwind::new("the constructor", self.shape.name);
        for index in 0..self.shape.nr_objects {
            // SAFETY: the slab has so many.
            let object = unsafe { slab.object(&self.shape, index) };
            // SAFETY: memory of the layout that is this call's alone, as the configuration's author was promised.
            unsafe { constructor(object) };
        }
        core::mem::forget(whole);
    }

    /// Tells whoever wants to know that something waits from now on. Ends the program if that unwinds: whoever comes by here may be
    /// on the way to retire an object, which has been taken, to give pages back, which nobody else has, or to allocate for somebody
    /// who must not unwind (the pages are asked by an allocator, and tell the caches that they are short).
    pub(super) fn tell_watch(&self) {
        if let Some(watch) = self.shape.watch {
            let whole = NoUnwind::new("the watch", self.shape.name);
            watch();
            core::mem::forget(whole);
        }
    }

    /// Gives back a slab that never came into the lists: no reader has seen it.
    pub(super) fn unborn(&self, slab: Option<NonNull<Slab>>, attempt: Attempt) {
        if let Some(slab) = slab {
            let mut dying = Dying::default();
            dying.push(slab);
            self.give_pages_back(dying, attempt);
        }
    }

    /// Gives the pages of dead slabs back, those of a type-stable cache whose readers are gone, and says how many slabs
    /// there were. Outside of all locks.
    pub(super) fn bury(&self, mut dying: Dying, attempt: Attempt) -> usize {
        if self.shape.is_stable() {
            self.ripen(&mut dying, attempt, false);
        }
        self.give_pages_back(dying, attempt)
    }

    /// As [`Self::bury`], for those who go round: looks at slabs that are held too, and asks for a grace period if any waits.
    /// Says how many slabs were given back, and how many wait.
    pub(super) fn bury_all(&self, mut dying: Dying, attempt: Attempt) -> (usize, usize) {
        let mut waiting = 0;
        if self.shape.is_stable() {
            waiting = self.ripen(&mut dying, attempt, true);
        }
        (self.give_pages_back(dying, attempt), waiting)
    }

    /// Gives cookies to the slabs that have none, takes those whose readers are gone, and says how many are left waiting.
    fn ripen(&self, dying: &mut Dying, attempt: Attempt, is_round: bool) -> usize {
        let Some(mut slabs) = crate::pool::lock(&self.slabs.0, attempt) else {
            return usize::from(is_round);
        };
        let sealed = slabs.seal(&self.gp);
        let waiting = slabs.take_ripe(&self.shape, &self.gp, dying);
        let threshold = if is_round {
            0
        } else {
            ASK_BYTES / self.shape.order.bytes()
        };
        let ask = slabs.should_ask(threshold);
        if is_round {
            slabs.take_released(dying);
        }
        drop(slabs);
        if sealed && waiting > 0 {
            self.tell_watch();
        }
        if ask {
            self.gp.start();
        }
        if waiting > 0 {
            self.gp.drive();
        }
        waiting
    }

    /// The cookie that every slab given up so far waits for.
    pub(super) fn seal_slabs(&self) -> Option<rcu_core::Cookie> {
        if !self.shape.is_stable() {
            return None;
        }
        let mut slabs = self.slabs.0.lock();
        slabs.seal(&self.gp);
        slabs.last_cookie()
    }

    /// Gives up all empty slabs, waits for their readers and gives their pages back (T19). The cache ends: nobody holds
    /// one any more who could look.
    pub(super) fn bury_for_good(&self) {
        let mut dying = Dying::default();
        self.slabs.0.lock().take_empty(&self.shape, &mut dying);
        if let Some(cookie) = self.seal_slabs() {
            self.gp.wait(cookie);
        }
        self.slabs.0.lock().take_kept(&mut dying);
        self.give_pages_back(dying, Attempt::NoWait);
    }

    fn give_pages_back(&self, mut dying: Dying, attempt: Attempt) -> usize {
        let mut buried = 0;
        while let Some(slab) = dying.pop() {
            // SAFETY: a slab among the dying is on no list, so this call has its descriptor alone.
            let base = unsafe { slab.as_ref() }.base;
            self.hide_slab(base, false);
            // SAFETY: the block came from `pages` with this order; no object of it is out, and nobody looks at one.
            unsafe { self.pages.free_at(base, self.shape.order, attempt) };
            // SAFETY: the descriptor came from this pool, and nothing leads to it any more.
            unsafe { self.descriptors.0.put(slab.cast()) };
            self.tally(Event::SlabGone);
            buried += 1;
        }
        buried
    }
}
