//! Inaccessible pages beside blocks that are out: by the feature `guard`.
//!
//! Source: Linux `CONFIG_DEBUG_PAGEALLOC`, `debug_guardpage_minorder` (row P19). As there, a guarded block is cut from a larger one whose
//! other parts stay with it and are made inaccessible; so a block keeps its alignment, and costs two or four times its memory.
//!
//! # Life
//! A block of the larger order is allocated; its parts get heads of their own, the caller's `ALLOCATED`, the others `GUARD`; the
//! others are protected. At the free the parts are accessible again, become one block, and that block is freed.
//!
//! Whether a block has guards is seen from the states beside it, at the free: blocks that are aligned further than their order, runs, and pieces
//! of a split block have none.
//!
//! # Progress and contexts
//! Every guarded allocation and free makes system calls, at every [`Attempt`], and none ends on a list as it is: a feature to
//! find bugs with, not for interrupt handlers.

use super::Zone;
use crate::api::{AllocError, Attempt, Order, PageReq, SmallReq};
use crate::history::Who;
use crate::lower::Lower;
use crate::meta::State;
use crate::source::{Range, Source, SourceError};
use crate::zone::ZoneError;
use core::ptr::NonNull;
use rcu_core::cpu::Cpus;

/// Which blocks of a zone have inaccessible pages beside them.
///
/// Blocks with an alignment of more than their size, exact runs that are no block, and the pieces of a split block have none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
#[doc(alias = "debug_guardpage_minorder")]
pub struct Guards {
    from: Order,
    /// How much larger the block around is.
    extra: u8,
}

impl Guards {
    /// After each block of `from` or more, as many inaccessible pages as the block has. Costs twice the memory.
    ///
    /// The largest blocks have none: nothing is large enough to cut them from.
    pub const fn after(from: Order) -> Self {
        Self { from, extra: 1 }
    }

    /// Before each block of `from` or more as many inaccessible pages as the block has, and after it twice as many. Costs
    /// four times the memory.
    ///
    /// Blocks of the largest two orders have none.
    pub const fn around(from: Order) -> Self {
        Self { from, extra: 2 }
    }

    /// The order of the block that a block of `order` is cut from, if that has guards.
    fn outer(self, order: Order) -> Option<Order> {
        let outer = Order::new(order.get() as u8 + self.extra)?;
        (order >= self.from).then_some(outer)
    }

    /// The first page of the caller's part.
    const fn inner_page(self, outer_page: u32, order: Order) -> u32 {
        if self.extra == 1 {
            outer_page
        } else {
            outer_page + order.pages() as u32
        }
    }

    /// The reverse of [`Self::inner_page`].
    const fn outer_page(self, inner_page: u32, order: Order) -> u32 {
        if self.extra == 1 {
            inner_page
        } else {
            inner_page - order.pages() as u32
        }
    }

    /// The guards of the caller's part at `page`.
    fn parts(self, page: u32, order: Order) -> impl Iterator<Item = (u32, Order)> {
        let pages = order.pages() as u32;
        // Wraps before the first page, where nothing has guards.
        let before = (self.extra > 1).then(|| (page.wrapping_sub(pages), order));
        let after = (
            page + pages,
            Order::at(order.get() + self.extra as usize - 1),
        );
        before.into_iter().chain([after])
    }
}

impl<C: Cpus, S: Source> Zone<C, S> {
    /// A zone whose larger blocks have inaccessible pages beside them.
    ///
    /// Guard pages count as out. A guard that cannot be made accessible again, because the system is out of memory for its own
    /// tables, stays out for ever.
    ///
    /// ```
    /// # #[cfg(target_os = "linux")] {
    /// use pagealloc::{Guards, Mmap, Order, PageAlloc, PageReq, Zone};
    /// use rcu_core::cpu::Threads;
    ///
    /// let zone = Zone::with_guards(Threads, Mmap::new().unwrap(), Guards::after(Order::ZERO)).unwrap();
    /// let page = zone.alloc(PageReq::new(Order::ZERO)).unwrap();
    /// // A write to `page + 4096` would end the program here, and not hurt somebody else's page.
    /// assert_eq!(zone.nr_allocated(), 2);
    /// # // SAFETY: the page is out.
    /// # unsafe { zone.free(page, Order::ZERO) };
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ZoneError`]: [`SourceError::Unsupported`] if the source cannot make pages inaccessible.
    pub fn with_guards(cpus: C, source: S, guards: Guards) -> Result<Self, ZoneError> {
        Self::with_lower_and_guards(cpus, source, guards)
    }
}

impl<C: Cpus, S: Source, B: Lower> Zone<C, S, B> {
    /// As [`Zone::with_guards`], over the lower level that the type names.
    ///
    /// # Errors
    /// As there.
    pub fn with_lower_and_guards(cpus: C, source: S, guards: Guards) -> Result<Self, ZoneError> {
        if !source.can_protect() {
            return Err(ZoneError::Source(SourceError::Unsupported));
        }
        let mut zone = Self::with_lower(cpus, source)?;
        zone.guards = Some(guards);
        Ok(zone)
    }

    /// The order of the block that one of `order` is cut from, and how; `None` if it has no guards.
    #[inline]
    pub(super) fn guarded(&self, order: Order) -> Option<(Guards, Order)> {
        let guards = self.guards?;
        Some((guards, guards.outer(order)?))
    }

    /// As [`Self::guarded`], for the block that is out, or was, at `page`.
    #[inline]
    pub(super) fn guarded_at(&self, page: u32, order: Order) -> Option<(Guards, Order)> {
        let (guards, outer) = self.guarded(order)?;
        let metas = self.frames.metas;
        guards
            .parts(page, order)
            .all(|(part, order)| {
                let state = metas.get(part).map(|meta| meta.state());
                state == Some(State::guard(order))
            })
            .then_some((guards, outer))
    }

    /// Frees the guards of the caller's block, which keeps what is its own.
    pub(super) fn unguard(&self, page: u32, inner: Order) {
        let Some((guards, outer)) = self.guarded_at(page, inner) else {
            return;
        };
        let mobility = self.frames.metas.at(page).state().mobility();
        self.count(|count| {
            count.freed(outer, 1);
            count.allocated(inner, 1);
        });
        for (part, order) in guards.parts(page, inner) {
            self.count(|count| count.allocated(order, 1));
            if self.protect((part, order), true).is_ok() {
                let listed = State::listed(order, false).with(mobility);
                self.frames.metas.at(part).set_state(listed);
                // Whoever splits need not be ready to wait.
                self.put(part, listed, Attempt::TryLock);
            }
        }
    }

    /// Allocates a block with its guards.
    #[cold]
    pub(super) fn alloc_guarded(
        &self,
        req: PageReq,
        (guards, order): (Guards, Order),
        who: Who,
    ) -> Result<NonNull<u8>, AllocError> {
        let outer = self.alloc_slow(SmallReq::of(PageReq { order, ..req }), who)?;
        let listed = State::listed(order, false).with(req.mobility);
        let outer = self.frames.page(outer);
        let page = guards.inner_page(outer, req.order);
        for (i, part) in guards.parts(page, req.order).enumerate() {
            if self.protect(part, false).is_err() {
                // The one that failed may have been changed in part.
                let undone = guards.parts(page, req.order).take(i + 1);
                if undone
                    .map(|part| self.protect(part, true))
                    .all(|r| r.is_ok())
                {
                    self.frames.metas.at(outer).set_state(listed);
                    self.put(outer, listed, req.attempt);
                }
                return Err(AllocError::OutOfMemory);
            }
        }
        for (part, order) in guards.parts(page, req.order) {
            self.frames.metas.at(part).set_state(State::guard(order));
        }
        // The whole was zeroed if that was asked for.
        self.frames.mark_out(page, req.order, req.mobility, who);
        Ok(self.frames.address(page))
    }

    /// Frees a block with its guards. It was taken back already, which left it in that state.
    #[cold]
    pub(super) fn free_guarded(
        &self,
        page: u32,
        listed: State,
        (guards, outer): (Guards, Order),
        attempt: Attempt,
    ) {
        let inner = listed.order();
        let metas = self.frames.metas;
        let all = guards
            .parts(page, inner)
            .map(|part| self.protect(part, true))
            .fold(true, |all, result| all & result.is_ok());
        if !all {
            // Only the caller's part comes back.
            return self.put(page, listed, attempt);
        }
        for (part, _) in guards.parts(page, inner) {
            metas.at(part).set_state(State::INSIDE);
        }
        metas.at(page).set_state(State::INSIDE);
        let page = guards.outer_page(page, inner);
        let listed = State::listed(outer, false).with(listed.mobility());
        metas.at(page).set_state(listed);
        self.put(page, listed, attempt);
    }

    fn put(&self, page: u32, state: State, attempt: Attempt) {
        // SAFETY: the slot is the caller's, just now.
        unsafe {
            self.shared().put(self.cpus.current(), page, state, attempt);
        }
        self.after_free(attempt);
    }

    fn protect(&self, (first, order): (u32, Order), accessible: bool) -> Result<(), SourceError> {
        let range = Range {
            first: first as usize,
            pages: order.pages(),
            zeroed: false,
        };
        // SAFETY: part of a block that the caller has and nobody uses: it is on its way out, or a guard.
        unsafe { self.source.protect(range, accessible) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p19_a_guarded_block_and_its_guards_are_the_block_around() {
        for extra in [1, 2] {
            for (from, order) in (0..=10).flat_map(|f| (0..=10).map(move |o| (f, o))) {
                let guards = Guards {
                    from: Order::at(from),
                    extra,
                };
                let order = Order::at(order);
                let Some(outer) = guards.outer(order) else {
                    assert!(order.get() < from || order.get() + extra as usize > 10);
                    continue;
                };
                let start = 3 << 10;
                let page = guards.inner_page(start, order);
                assert_eq!(guards.outer_page(page, order), start);
                assert_eq!(page as usize % order.pages(), 0, "aligned as ever");
                let mut parts: Vec<_> = guards.parts(page, order).chain([(page, order)]).collect();
                parts.sort_unstable();
                let mut at = start;
                for (part, order) in parts {
                    assert_eq!(part, at);
                    at += order.pages() as u32;
                }
                assert_eq!((at - start) as usize, outer.pages());
            }
        }
    }
}
