//! The ways in.
//!
//! # At the limit
//! Who may sleep frees what is ripe, on all slots; if that does not help it waits for a grace period and frees its object
//! itself, so that nothing is added. Who asked by `try_retire` gets the object back. Two arguments can neither wait nor fail:
//! they are taken in, and counted as overdrawn.

use super::{ASK_HEADS, Context, KvSlot, Kvfree};
use crate::block::Kind;
use crate::doubles::WATCHED;
use crate::glue::Glue;
use crate::objects::{DropFn, DropManyFn, Objects};
use crate::waiting::{Entry, Pushed};
use core::ptr::NonNull;
use pagealloc::{Order, PageAlloc, PageReq};
use rcu_core::cpu::{Cpus, Slot};
use rcu_core::sync::Backoff;
use rcu_core::{Callback, Head, Rcu};

/// How often who may sleep looks whether the slot is free again, before it waits for a grace period instead: for some of a scheduler's
/// time slices, since a visitor may have lost its CPU.
const PATIENCE: usize = 200;

/// Why an entry was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The caller has no slot, or interrupted itself, or somebody visits its slot.
    Busy,
    /// No block is to be had in its context.
    NoBlock,
}

impl<C: Cpus, P: PageAlloc, R: Rcu, O: Objects> Kvfree<C, P, R, O> {
    /// Retires an object by its embedded head, with a callback of its own: a function that drops and frees it.
    /// Never fails, never blocks.
    ///
    /// # Safety
    /// 1. `head` is on no list, and valid until the callback gets it; the function may run on any thread.
    /// 2. No new reader can find the object, and it is given up. About `size_bytes` come free with it.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// use core::ptr::NonNull;
    /// use rcu_core::{Callback, Head};
    /// #[repr(C)]
    /// struct Name { head: Head, text: String }
    /// /// # Safety
    /// /// `head` is that of a leaked name, which is given up.
    /// unsafe fn drop_name(head: NonNull<Head>) {
    ///     // SAFETY: the head is the first field.
    ///     drop(unsafe { Box::from_raw(head.cast::<Name>().as_ptr()) });
    /// }
    /// let name = Box::new(Name { head: Head::new(), text: String::from("Ada") });
    /// let name = NonNull::from(Box::leak(name));
    /// // … published, used, and unlinked …
    /// // SAFETY: such a name, which any thread may drop; no new reader can find it.
    /// unsafe { kvfree::front().retire_head(name.cast(), Callback::Run(drop_name), size_of::<Name>()) };
    /// kvfree::barrier();
    /// # }
    /// ```
    pub unsafe fn retire_head(&self, head: NonNull<Head>, callback: Callback, size_bytes: usize) {
        // SAFETY: the head is valid (1).
        if !unsafe { head.as_ref() }.begin_call(callback) {
            return;
        }
        self.inner().note_overdraft();
        // SAFETY: the caller's debts.
        unsafe { self.queue_head(head, size_bytes) };
    }

    /// Retires an object without a head, if that needs no waiting and the limits allow it.
    ///
    /// # Errors
    /// Gives the object back: there is no room now, or as much waits as may. Retry later, or use [`retire_mightsleep`](crate::DeferFree::retire_mightsleep).
    ///
    /// # Safety
    /// 1. The object came from [`Self::objects`]; no new reader can find it; it is given up if `Ok` comes back.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// use core::alloc::Layout;
    /// let object = kvfree::objects().kmalloc(Layout::new::<[u64; 4]>()).unwrap();
    /// // … published, used, and unlinked …
    /// // SAFETY: it came from the front end's objects, and no new reader can find it.
    /// if let Err(object) = unsafe { kvfree::front().try_retire(object) } {
    ///     // Too much waits. Where one may wait, it can be made to:
    ///     // SAFETY: as above, and this is no section.
    ///     unsafe { kvfree::retire_mightsleep(object) };
    /// }
    /// # }
    /// ```
    pub unsafe fn try_retire(&self, object: NonNull<u8>) -> Result<(), NonNull<u8>> {
        let inner = self.inner();
        // SAFETY: the caller's debt 1.
        if !inner.is_over() && unsafe { inner.objects.try_defer_hit(object) } {
            return Ok(());
        }
        inner.count_deferred();
        let taken = !inner.is_over()
            // SAFETY: the caller's debt 1.
            && (unsafe { inner.objects.try_defer(object) }
                || self.push(self.entry_of(object), &mut None, Context::Any).is_ok());
        if taken {
            Ok(())
        } else {
            inner.counters.refused();
            Err(object)
        }
    }

    /// Retires something that is not of the [`Objects`]: after a grace period, `drop(object)` is called on a thread
    /// that may run foreign code: the monitor, a barrier, [`Self::tick`], or a later call of this kind by the same thread, which
    /// takes some of what has become ripe along ([`Config::helps`](crate::Config::helps)).
    ///
    /// May sleep: without memory for a block, or at the limit, it waits for a grace period and calls `drop` itself.
    ///
    /// # Safety
    /// 1. `drop(object)` may be called once, from any thread, `size_bytes` being what it gives back.
    /// 2. No new reader can find the object, and it is given up.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// use core::ptr::NonNull;
    /// /// # Safety
    /// /// `object` was a leaked box of a string, and is given up.
    /// unsafe fn drop_string(object: NonNull<u8>) {
    ///     // SAFETY: the caller's debt.
    ///     drop(unsafe { Box::from_raw(object.cast::<String>().as_ptr()) });
    /// }
    /// let name = NonNull::from(Box::leak(Box::new(String::from("Ada"))));
    /// // … published, used, and unlinked …
    /// // SAFETY: such a string, which any thread may drop; no new reader can find it, and this is no section.
    /// unsafe { kvfree::front().retire_with_mightsleep(name.cast(), drop_string, size_of::<String>()) };
    /// kvfree::barrier();
    /// # }
    /// ```
    #[inline]
    pub unsafe fn retire_with_mightsleep(
        &self,
        object: NonNull<u8>,
        drop: DropFn,
        size_bytes: usize,
    ) {
        // SAFETY: the caller's debts.
        unsafe { self.retire_foreign(object, Glue::Each(drop), size_bytes) };
    }

    /// As [`Self::retire_with_mightsleep`], with a function that takes many objects of one type at a time: these are batched
    /// by it, with one word an object, and it is called once for a batch.
    ///
    /// # Safety
    /// As for [`Self::retire_with_mightsleep`]; `drop` keeps what [`DropManyFn`] says.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// use core::ptr::NonNull;
    /// /// # Safety
    /// /// Each was a leaked box of a string, and is given up.
    /// unsafe fn drop_strings(objects: &mut [NonNull<u8>]) -> usize {
    ///     kvfree::each_contained(objects, |object| {
    ///         // SAFETY: the caller's debt.
    ///         drop(unsafe { Box::from_raw(object.cast::<String>().as_ptr()) });
    ///     })
    /// }
    /// let name = NonNull::from(Box::leak(Box::new(String::from("Ada"))));
    /// // … published, used, and unlinked …
    /// // SAFETY: such a string, which any thread may drop; no new reader can find it, and this is no section.
    /// unsafe { kvfree::front().retire_many_mightsleep(name.cast(), drop_strings, size_of::<String>()) };
    /// kvfree::barrier();
    /// # }
    /// ```
    #[inline]
    pub unsafe fn retire_many_mightsleep(
        &self,
        object: NonNull<u8>,
        drop: DropManyFn,
        size_bytes: usize,
    ) {
        // SAFETY: the caller's debts.
        unsafe { self.retire_foreign(object, Glue::Many(drop), size_bytes) };
    }

    /// As [`Self::retire_many_mightsleep`], with a function that gives memory back to its allocator and does nothing else: no destructor
    /// runs, so that who retires may call it for what has become ripe, as for the [`Objects`]' own.
    ///
    /// # Safety
    /// As for [`Self::retire_many_mightsleep`]; `free` may be called wherever who retires may sleep, and inside of an allocation from
    /// this front end's pages.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// use core::ptr::NonNull;
    /// use std::alloc::{Layout, dealloc};
    /// /// # Safety
    /// /// Each was a leaked box of eight words, and is given up.
    /// unsafe fn free_octets(objects: &mut [NonNull<u8>]) -> usize {
    ///     for object in objects {
    ///         // SAFETY: the caller's debt: memory of a box, with the layout of its type.
    ///         unsafe { dealloc(object.as_ptr(), Layout::new::<[u64; 8]>()) };
    ///     }
    ///     0
    /// }
    /// let octet = NonNull::from(Box::leak(Box::new([0_u64; 8])));
    /// // … published, used, and unlinked …
    /// // SAFETY: such a box, whose type drops nothing; no new reader can find it, and this is no section.
    /// unsafe { kvfree::front().retire_plain_mightsleep(octet.cast(), free_octets, size_of::<[u64; 8]>()) };
    /// kvfree::barrier();
    /// # }
    /// ```
    #[inline]
    pub unsafe fn retire_plain_mightsleep(
        &self,
        object: NonNull<u8>,
        free: DropManyFn,
        size_bytes: usize,
    ) {
        // SAFETY: the caller's debts.
        unsafe { self.retire_foreign(object, Glue::Plain(free), size_bytes) };
    }

    /// # Safety
    /// As for [`Self::retire_with_mightsleep`].
    #[inline]
    unsafe fn retire_foreign(&self, object: NonNull<u8>, glue: Glue, bytes: usize) {
        let entry = Entry {
            object,
            glue: Some(glue),
            kind: glue.kind(),
            bytes,
        };
        match self.push_hit(entry) {
            Some(slot) if slot.is_due() => _ = self.help(entry.kind),
            Some(_) => {}
            // SAFETY: the caller's debts.
            None => unsafe { self.retire_foreign_slow(object, glue, bytes) },
        }
    }

    /// # Safety
    /// As for [`Self::retire_with_mightsleep`].
    #[cold]
    #[inline(never)]
    unsafe fn retire_foreign_slow(&self, object: NonNull<u8>, glue: Glue, bytes: usize) {
        let entry = Entry {
            object,
            glue: Some(glue),
            kind: glue.kind(),
            bytes,
        };
        self.push_mightsleep(entry, || {
            // SAFETY: a grace period has passed since the caller gave the object up.
            let panicked = unsafe { glue.free(&mut [object]) };
            self.inner().counters.panicked(panicked);
        });
    }

    /// Retires an object with a head that a function drops and frees, batched with others of its type: `drop` gets
    /// `object`, or else, for want of a block, `callback` gets the head. Never fails, never blocks, from any context.
    ///
    /// # Safety
    /// 1. As for [`Self::retire_head`].
    /// 2. `drop(object)` does what the callback does with the head; either may be called, once, from any thread.
    ///
    /// The examples of [`Self::retire_head`] and [`Self::retire_many_mightsleep`] are its two halves.
    pub unsafe fn retire_head_typed(
        &self,
        head: NonNull<Head>,
        callback: Callback,
        object: NonNull<u8>,
        drop: DropManyFn,
        size_bytes: usize,
    ) {
        // SAFETY: the head is valid (1).
        if !unsafe { head.as_ref() }.begin_call(callback) {
            return;
        }
        let entry = Entry {
            object,
            glue: Some(Glue::Many(drop)),
            kind: Kind::Typed,
            bytes: size_bytes,
        };
        self.inner().note_overdraft();
        if self.push_hit(entry).is_none() {
            // SAFETY: the caller's debts.
            unsafe { self.retire_head_typed_slow(head, entry) };
        }
    }

    /// # Safety
    /// As for [`Self::retire_head_typed`].
    #[cold]
    #[inline(never)]
    unsafe fn retire_head_typed_slow(&self, head: NonNull<Head>, entry: Entry) {
        if self.push(entry, &mut None, Context::Any).is_err() {
            // SAFETY: the caller's debts.
            unsafe { self.queue_head(head, entry.bytes) };
        }
    }

    /// [`retire`](crate::DeferFree::retire) of an object whose allocator has to do more than a push for it. The object is given up.
    #[cold]
    #[inline(never)]
    pub(crate) fn retire_with_head(&self, object: NonNull<u8>, head: NonNull<Head>) {
        // SAFETY: the debts of `retire`'s caller.
        if unsafe { self.inner().objects.try_defer(object) } {
            return;
        }
        let entry = self.entry_of(object);
        self.inner().note_overdraft();
        if self.push(entry, &mut None, Context::Any).is_err() {
            // SAFETY: the debts of `retire`'s caller; the callback is noted in the head, and is how the object is found again.
            unsafe { self.queue_head(head, entry.bytes) };
        }
    }

    /// The same of [`retire_mightsleep`](crate::DeferFree::retire_mightsleep). What waits is looked at here, once in a sheaf.
    #[cold]
    #[inline(never)]
    pub(crate) fn retire_slow(&self, object: NonNull<u8>) {
        let objects = &self.inner().objects;
        self.inner().count_deferred();
        // SAFETY: the debts of `retire_mightsleep`'s caller. Above the limit the allocator's own batches take no more than ours do.
        if !self.inner().is_over() && unsafe { objects.try_defer_mightsleep(object) } {
            return;
        }
        self.push_mightsleep(self.entry_of(object), || {
            // SAFETY: a grace period has passed since the caller gave the object up.
            unsafe { objects.free_bulk(&mut [object]) };
        });
    }

    pub(super) fn entry_of(&self, object: NonNull<u8>) -> Entry {
        let objects = &self.inner().objects;
        let kind = if objects.is_large(object) {
            Kind::Large
        } else {
            Kind::Small
        };
        Entry {
            object,
            glue: None,
            kind,
            bytes: objects.size_bytes(object),
        }
    }

    /// Puts one of many entries into the caller's slot: what most of them need. No limit is looked at, nothing is counted, asked for or told;
    /// that is done once in [`EXACT`](crate::block::EXACT) objects, where this refuses. The slot it went to.
    #[inline(always)]
    fn push_hit(&self, entry: Entry) -> Option<&KvSlot<C::Lock>> {
        if WATCHED {
            return None;
        }
        let inner = self.inner();
        let slot = inner.slot(inner.cpus.current()?);
        // SAFETY: the caller's own slot.
        let mut waiting = unsafe { slot.waiting.try_enter() }?;
        let is_in = waiting.push_hit(entry, inner.config.ask_bytes);
        drop(waiting);
        is_in.then_some(slot)
    }

    /// Puts an entry into the caller's slot.
    fn push(
        &self,
        entry: Entry,
        spare: &mut Option<NonNull<u8>>,
        context: Context,
    ) -> Result<(), Refusal> {
        let inner = self.inner();
        let number = inner.cpus.current().ok_or(Refusal::Busy)?;
        let slot = inner.slot(number);
        let is_watched = WATCHED && entry.kind != Kind::Glue;
        if is_watched && !inner.doubles.begin(entry.object) {
            // It waits already, for the first time it was retired (K18).
            inner.found_double(entry.object, 1, true);
            return Ok(());
        }
        let pushed = self.push_to(number, slot, entry, spare, context);
        if is_watched && pushed.is_err() {
            inner.doubles.end(entry.object);
        }
        pushed
    }

    #[inline]
    fn push_to(
        &self,
        number: Slot,
        slot: &KvSlot<C::Lock>,
        entry: Entry,
        spare: &mut Option<NonNull<u8>>,
        context: Context,
    ) -> Result<(), Refusal> {
        let inner = self.inner();
        // SAFETY: the caller's own slot.
        let mut waiting = unsafe { slot.waiting.try_enter() }.ok_or(Refusal::Busy)?;
        let seal_bytes = inner.config.ask_bytes;
        let now = || inner.now();
        let pushed = waiting.push(entry, seal_bytes, &inner.rcu, &inner.pages, spare, now);
        // A starved slot has the monitor come by too, which brings blocks (K7).
        inner.note(number, slot, pushed.is_none_or(|p| p.first));
        let Some(pushed) = pushed else {
            inner.note_starved(slot, entry.kind);
            drop(waiting);
            inner.config.watch(false);
            return Err(Refusal::NoBlock);
        };
        inner.budget.charge(pushed.charge);
        let ask = inner.wants_to_ask(&mut waiting, pushed, entry.kind);
        let lags = pushed.sealed && inner.note_ripe(slot, &mut waiting, entry.kind);
        drop(waiting);
        if lags {
            inner.config.watch(true);
        }
        self.after_push(slot, entry.kind, pushed, ask, context);
        Ok(())
    }

    /// Outside the lock: watch, ask, and free what has become ripe meanwhile.
    #[inline]
    fn after_push(
        &self,
        slot: &KvSlot<C::Lock>,
        kind: Kind,
        pushed: Pushed,
        ask: bool,
        context: Context,
    ) {
        let inner = self.inner();
        if pushed.first {
            inner.config.watch(false);
        }
        let frees_here = context == Context::MaySleep && inner.may_free(kind);
        if ask {
            inner.rcu.start();
            // What has destructors is for those who help, and is the monitor's when they do not: see `help`.
            let is_for_helpers = kind.runs_foreign_code() && inner.config.helps;
            if !frees_here && !is_for_helpers {
                inner.config.watch(true);
            }
        }
        if pushed.sealed || ask {
            inner.rcu.drive();
            if frees_here && !kind.is_foreign() {
                inner.free_here(slot);
            }
        }
        if frees_here && kind.is_foreign() && slot.is_due() {
            self.help(kind);
        }
    }

    fn push_mightsleep(&self, entry: Entry, free_now: impl FnOnce()) {
        let inner = self.inner();
        if inner.is_over() && !self.relieve() {
            // Nothing is added to what waits: its owner waits instead.
            inner.counters.synchronized();
            inner.rcu.synchronize();
            return free_now();
        }
        let mut pushed = self.push_patiently(entry, &mut None);
        if pushed == Err(Refusal::NoBlock) {
            // With the lock dropped (K3, T14): this may sleep, and the thread may come back to another state.
            let mut spare = inner.pages.alloc(PageReq::new(Order::ZERO)).ok();
            if spare.is_some() {
                pushed = self.push_patiently(entry, &mut spare);
            }
            if let Some(page) = spare {
                // SAFETY: allocated just now, and not used.
                unsafe { inner.pages.free(page, Order::ZERO) };
            }
        }
        if pushed.is_err() {
            inner.counters.synchronized();
            inner.rcu.synchronize();
            free_now();
        }
    }

    /// As [`Self::push`], for who may sleep: waits for a visitor of the slot, which is there for the time it takes to take a line over, and
    /// as long as it is, every object would cost a grace period of its own.
    fn push_patiently(&self, entry: Entry, spare: &mut Option<NonNull<u8>>) -> Result<(), Refusal> {
        let backoff = Backoff::new();
        let mut pushed = self.push(entry, spare, Context::MaySleep);
        for _ in 0..PATIENCE {
            if pushed != Err(Refusal::Busy) || self.inner().cpus.current().is_none() {
                break;
            }
            self.inner().config.pause(&backoff);
            pushed = self.push(entry, spare, Context::MaySleep);
        }
        pushed
    }

    pub(super) unsafe fn queue_head(&self, head: NonNull<Head>, bytes: usize) {
        let inner = self.inner();
        if let Some(number) = inner.cpus.current() {
            let slot = inner.slot(number);
            // SAFETY: the caller's own slot.
            if let Some(mut waiting) = unsafe { slot.waiting.try_enter() } {
                // SAFETY: valid until freed and on no list, as the caller of `retire` owes.
                let pushed = unsafe { waiting.push_head(head, bytes, &inner.rcu, || inner.now()) };
                let first = pushed.first;
                inner.budget.charge(pushed.charge);
                let ask = inner.wants_to_ask(&mut waiting, pushed, Kind::Small)
                    || waiting.nr_heads().is_multiple_of(ASK_HEADS);
                inner.note(number, slot, first);
                drop(waiting);
                if ask {
                    inner.rcu.start();
                    inner.rcu.drive();
                }
                if first || ask {
                    inner.config.watch(ask);
                }
                return;
            }
        }
        inner.counters.shared();
        // Before anyone can discharge them (I3).
        inner.budget.charge(bytes);
        // SAFETY: valid until freed and on no list, as the caller of `retire` owes; any thread may free it.
        if unsafe { inner.shared.push(head, bytes) } {
            inner.config.watch(false);
        }
    }
}
