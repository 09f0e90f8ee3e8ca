//! How a zone is steered while it is in use: lists disabled and lowered, watermarks, pressure hooks, the policy of types.

use super::Zone;
use crate::api::{Attempt, Mobility, Order, PageAlloc, PageReq};
use crate::gate::ListsDisabled;
use crate::history::Who;
use crate::lower::Lower;
use crate::meta::State;
use crate::mobility::{Fallback, TYPES};
use crate::pcp::Class;
use crate::pressure::PressureHook;
use crate::source::Source;
use crate::watermark::Watermarks;
use core::mem::{ManuallyDrop, MaybeUninit};
use core::ptr::NonNull;
use rcu_core::cpu::Cpus;

/// What is called unless it is disarmed.
struct OnUnwind<F: FnMut()>(F);

impl<F: FnMut()> OnUnwind<F> {
    const fn new(f: F) -> Self {
        Self(f)
    }

    fn disarm(self) {
        let _ = ManuallyDrop::new(self);
    }
}

impl<F: FnMut()> Drop for OnUnwind<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl<C: Cpus, S: Source, B: Lower> Zone<C, S, B> {
    /// Moves the pages on all slots' lists, and in the stash, into the zone, and keeps the lists empty until the value, and any other
    /// such value, is dropped. From any thread, while others allocate and free: they reach the zone each time, and no page
    /// is on a list. Waits for each slot's owner in turn.
    ///
    /// # Panics
    /// If two thousand million such values were forgotten.
    #[doc(alias = "zone_pcp_disable")]
    pub fn disable_lists(&self) -> ListsDisabled<'_> {
        self.shared().disable_lists()
    }

    /// Keeps free pages in reserve, and calls pressure hooks, as `marks` say from now on. Without it there is no
    /// reserve and no pressure.
    #[doc(alias = "setup_per_zone_wmarks")]
    pub fn set_watermarks(&self, marks: Watermarks) {
        let shared = self.shared();
        shared.marks.set(marks);
        shared.look();
    }

    /// The watermarks in force.
    pub fn watermarks(&self) -> Watermarks {
        self.shared().marks.get()
    }

    /// Has `hook` called when the zone runs low: once each time that fewer than `low` pages are free, until more than `high` are;
    /// and when an allocation at [`Attempt::MayGrow`] is about to fail. Newest first. It runs inside such an allocation or
    /// [`Self::tick`], with no lock of the zone's held, in one thread at a time. See [`PressureHook`] for what it may do, and an example.
    ///
    /// Nothing is allocated. May be called from a hook, which then does not see the new one run in this round.
    ///
    /// # Safety
    /// 1. `hook` stays valid and in place until [`Self::remove_pressure_hook`] returned for it, or the zone was dropped.
    /// 2. It is on no list.
    #[doc(alias = "register_shrinker")]
    pub unsafe fn add_pressure_hook(&self, hook: NonNull<PressureHook>) {
        // SAFETY: the caller's debts.
        unsafe { self.shared().pressure.add(hook) };
    }

    /// Takes `hook` off, if it is listed. Waits while it runs in another thread, so neither call this from the hook itself, nor under a lock that the
    /// hook waits for: either would wait for ever. A hook may take others off.
    #[doc(alias = "unregister_shrinker")]
    pub fn remove_pressure_hook(&self, hook: NonNull<PressureHook>) {
        self.shared().pressure.remove(hook);
    }

    /// From now on requests whose own type has no block go where `policy` says. It is called once for each type, here.
    /// Without effect over a lower level that keeps no types, as [`BitTree`](crate::BitTree).
    ///
    /// ```
    /// # use core::mem::MaybeUninit;
    /// # use pagealloc::{Fallback, Fixed, Zone};
    /// # let memory = vec![MaybeUninit::<u8>::uninit(); 1 << 20].leak();
    /// # // SAFETY: this program has one thread.
    /// # let cpu = unsafe { rcu_core::cpu::OneCpu::new() };
    /// let zone = Zone::new(cpu, Fixed::new(memory).unwrap()).unwrap();
    /// zone.set_fallback(|_| Fallback::never());
    /// zone.set_fallback(Fallback::linux);
    /// ```
    pub fn set_fallback(&self, policy: impl FnMut(Mobility) -> Fallback) {
        let table: [Fallback; TYPES] = Mobility::ALL.map(policy);
        self.lower().set_fallback(table);
    }

    /// Free blocks in pageblocks of `mobility`, by order; over a lower level that keeps no types, all.
    #[doc(alias = "pagetypeinfo")]
    pub fn free_blocks_of(&self, mobility: Mobility) -> [usize; Order::MAX.get() + 1] {
        self.lower().free_blocks_of(mobility)
    }

    /// The type of the pageblock around `address`, at this moment; `None` outside of the span, or over a lower level that keeps no types.
    #[doc(alias = "get_pageblock_migratetype")]
    pub fn mobility_of(&self, address: *const u8) -> Option<Mobility> {
        let page = self.frames.number_of(address)?;
        self.lower().mobility_of(page)
    }

    /// Runs the pressure hooks if the zone fell below its low watermark and nobody has yet.
    pub(super) fn relieve_if_noted(&self) {
        if self.shared().marks.take_pending() {
            self.relieve(1);
        }
    }

    /// The same for a caller who has a block already, marked as if on a list: it goes back if a hook panics.
    pub(super) fn relieve_with(&self, block: Option<u32>, req: PageReq) {
        let undo = OnUnwind::new(|| {
            if let Some(page) = block {
                let state = State::listed(req.order, false).with(req.mobility);
                self.free_slow(page, state, Attempt::NoWait);
            }
        });
        self.relieve_if_noted();
        undo.disarm();
    }

    /// Calls `f`, in which hooks may run; `blocks`, all written, which the caller has so far, are freed if one panics.
    pub(super) fn undone_by_panics<T>(
        &self,
        blocks: &[MaybeUninit<NonNull<u8>>],
        order: Order,
        f: impl FnOnce() -> T,
    ) -> T
    where
        Self: PageAlloc,
    {
        let undo = OnUnwind::new(|| {
            for block in blocks {
                // SAFETY: the callers wrote them.
                let block = unsafe { block.assume_init() };
                // SAFETY: handed out with this order, and nobody was told of them.
                unsafe { self.free(block, order) };
            }
        });
        let value = f();
        undo.disarm();
        value
    }

    /// Runs the pressure hooks for what is missing to the high watermark, and at least `pages`.
    pub(super) fn relieve(&self, pages: usize) -> usize {
        let shared = self.shared();
        let high = shared.marks.get().high;
        let missing = high.saturating_add(1).saturating_sub(shared.free_pages());
        shared.pressure.run(missing.max(pages))
    }

    /// Takes back a block that its owner tagged, or that was not asked for as unmovable, and says whose list it goes to: there,
    /// off the hit path, the pageblock's type can be looked up, so that what was stolen from another type goes back to it.
    pub(super) fn take_back_other(
        &self,
        block: NonNull<u8>,
        order: Order,
        who: Who,
    ) -> (u32, Mobility) {
        let (page, mobility) = self.frames.take_back_any(block, order, who);
        let list = match mobility {
            Mobility::Unmovable => mobility,
            // A hint (T32).
            _ => self.lower().mobility_of(page).unwrap_or(mobility),
        };
        (page, list)
    }

    /// Frees such a block.
    #[cold]
    #[inline(never)]
    pub(super) fn free_other(&self, block: NonNull<u8>, order: Order, attempt: Attempt, who: Who) {
        let (page, mobility) = self.take_back_other(block, order, who);
        let state = State::listed(order, false).with(mobility);
        #[cfg(feature = "guard")]
        if let Some(guarded) = self.guarded_at(page, order) {
            return self.free_guarded(page, state, guarded, attempt);
        }
        let slot = self.cpus.current();
        if let (Some(class), Some(slot)) = (Class::of(order, mobility), slot)
            // SAFETY: the slot is the caller's, just now.
            && let Some(mut pcp) = (unsafe { self.slots.enter(slot) })
            && pcp.push(class, page)
        {
            return;
        }
        self.free_slow(page, state, attempt);
    }
}
