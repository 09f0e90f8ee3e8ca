//! The buddy system as a lower level: arenas, each with a lock, a buddy system, and a stash for those who may not wait.
//!
//! Source: [`crate::buddy`] for the blocks. Why arenas: under one lock, two slots that flood pass the lock's line, the lists' heads and
//! the metadata of the same few blocks to and fro, two dozen lines a batch, and that is most of what a page costs then. An area (4 MiB,
//! the largest block) lies in one arena as a whole, so merging and splitting are what they would be with one. Why not one lock and
//! larger batches: a slot would hoard more.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | an arena's `free` | its buddy system, and the part of its stash that is being worked off | the holder of its lock |
//! | an arena's `stash` | freed blocks that wait, all of areas of this arena | see [`crate::stash`] |
//! | an arena's `free_pages` | pages free in it, as of the last hold | the holder of its lock, before it leaves |
//! | an arena's `areas` | how many areas lie in it; a hint for [`Attempt::MayGrow`] | those who change an area's arena |
//! | the groups' words | what is free in blocks of less than 64 pages; see [`crate::groups`] | the holder of the group's area's arena's lock |
//! | `blocks` | the type of each pageblock | the holder of its area's arena's lock; see [`crate::mobility`] |
//! | `homes[a]` | 0: area `a` never had pages; else its arena, plus one | the first to add pages of it (0 → arena); the owner of the whole area |
//!
//! # Life
//! An area: added by a slot, to that slot's home arena → cut up there → whole again → moved by a slot whose own arena has nothing left.
//!
//! # Invariants
//! - I1. A free page is in the buddy system, the stash or the pending chain of the arena that its area's home names.
//! - I2. A home changes only under the lock of the arena that it names, by a caller who just took the whole area as one block; or from 0, before
//!   the first page is there. So whoever owns a page, or holds that lock, may rely on it.
//! - I3. Nobody waits for an arena's lock while holding another, but for `hold`, which takes them in ascending order.
//! - I4. At most [`CHUNK`] blocks move, another [`CHUNK`] leave the stash, and as many groups are ranked, under one hold (T27).
//!
//! # Orderings
//! - P7. Give: under the arena's lock or by the stash's push / take: under the lock, which took the stash.
//! - Homes are Relaxed: by I2 the reader's page was handed out after the change, by P7, or the lock orders both.
//!
//! # Progress and contexts
//! `TryLock` and `PcpOnly` wait for nobody. `NoWait` tries its own arena for a while, then the others, and only then waits, its own
//! first. Holds are bounded (I4); not for interrupt handlers that may have interrupted a holder.

mod arena;
mod counts;
mod give;

use super::{Changes, Extent, Ground, Lower, ORDERS, SPREAD, Waiting, Wanted};
use crate::api::{AllocError, Attempt, Mobility, Order, PageTag};
use crate::buddy::{Buddy, HUGE};
use crate::frames::Metas;
use crate::groups::{Group, Groups, SMALL};
use crate::index::{self, NONE};
use crate::mobility::{Fallback, PageBlocks, TYPES};
use crate::pcp::CHUNK;
use crate::runs::{self, Run, Runs};
use arena::{Arena, Free};
use arrayvec::ArrayVec;
use core::alloc::{Layout, LayoutError};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, Ordering};
use rcu_core::cpu::{Slot, SpinGuard};

/// How often the own arena's lock is tried before the others', and the pauses between two tries: together about as long as
/// two holds take. Each try takes the lock's line from its holder, so there are pauses.
const TRIES: usize = if cfg!(loom) { 1 } else { 24 };
const PAUSES: usize = if cfg!(loom) { 0 } else { 16 };

/// Buddy systems, one an arena, each under a spin lock (together the zone lock, in Linux's words). See [`Lower`].
///
/// Slots start in arenas of their own (by number, up to 8, never more than the zone has areas) and go to others' when their
/// own has nothing left. Best where memory is short of nothing but a few threads ask for it at once, and where order matters:
/// blocks go out smallest first, and merge at once.
#[doc(alias = "free_area")]
pub struct Buddies {
    extent: Extent,
    metas: Metas,
    arenas: NonNull<Arena>,
    nr_arenas: usize,
    homes: NonNull<AtomicU8>,
    blocks: PageBlocks,
    groups: Groups,
}

// SAFETY: arenas and homes are `Sync`, in memory that is valid for as long as the value is used.
unsafe impl Send for Buddies {}
// SAFETY: as above.
unsafe impl Sync for Buddies {}

/// Where the parts lie in the memory.
fn place(extent: Extent) -> Result<(Layout, usize, [usize; 3]), LayoutError> {
    let most = SPREAD.min(extent.slots() as usize).min(extent.areas());
    // A power of two: a division would be a fifth of what taking a block costs.
    let nr = 1 << most.max(1).ilog2();
    let arenas = Layout::array::<Arena>(nr)?;
    let (layout, homes) = arenas.extend(Layout::array::<AtomicU8>(extent.areas())?)?;
    let bytes = PageBlocks::nr_bytes(extent.pages() as usize);
    let (layout, blocks) = layout.extend(Layout::array::<u8>(bytes)?)?;
    let nr_groups = Groups::nr(extent.areas());
    let (layout, groups) = layout.extend(Layout::array::<Group>(nr_groups)?)?;
    Ok((layout, nr, [homes, blocks, groups]))
}

impl Buddies {
    fn arenas(&self) -> &[Arena] {
        // SAFETY: written in `new`, valid for as long as the value is used.
        unsafe { core::slice::from_raw_parts(self.arenas.as_ptr(), self.nr_arenas) }
    }

    /// Where a slot looks first.
    const fn home(&self, slot: Option<Slot>) -> usize {
        match slot {
            Some(slot) => slot.index() & (self.nr_arenas - 1),
            None => 0,
        }
    }

    fn home_word(&self, area: usize) -> &AtomicU8 {
        debug_assert!(area < self.extent.areas());
        // SAFETY: inside the array: the area is one of the span's.
        let word = unsafe { self.homes.add(area) };
        // SAFETY: zeroed memory is a word; valid as above.
        unsafe { word.as_ref() }
    }

    /// The arena that an area's pages belong to. The caller owns one of them.
    fn home_of(&self, area: usize) -> usize {
        // ORDERING: Relaxed: I2.
        (self.home_word(area).load(Ordering::Relaxed) as usize).saturating_sub(1)
    }

    /// The lock of an arena as far as `attempt` goes, with a chunk of its stash merged.
    fn lock_at<'a>(&self, arena: &'a Arena, attempt: Attempt) -> Option<SpinGuard<'a, Free>> {
        let mut free = match attempt {
            Attempt::PcpOnly => None,
            Attempt::TryLock => arena.try_lock(),
            Attempt::NoWait | Attempt::MayGrow => Some(arena.lock()),
        }?;
        self.work_off(arena, &mut free);
        Some(free)
    }

    /// Merges up to a chunk of the stash (T31).
    #[inline]
    fn work_off(&self, arena: &Arena, free: &mut Free) {
        if Self::more_is_stashed(arena, free) {
            self.work_off_slow(arena, free);
        }
    }

    #[cold]
    fn work_off_slow(&self, arena: &Arena, free: &mut Free) {
        let metas = self.metas;
        let mut pages = 0;
        for _ in 0..CHUNK {
            if free.pending == NONE {
                free.pending = arena.stash.take_all();
            }
            let block = free.pending;
            if block == NONE {
                break;
            }
            let meta = metas.at(block);
            let state = meta.state();
            if !state.is_stashed() {
                runs::listed_twice(block, state);
            }
            let order = state.order();
            free.pending = meta.next();
            meta.set_note(PageTag::NONE);
            free.buddy.put(metas, block, order, false);
            pages += order.pages();
        }
        arena.stash.worked_off(pages);
    }

    /// Whether another hold could find more in the stash.
    fn more_is_stashed(arena: &Arena, free: &Free) -> bool {
        free.pending != NONE || !arena.stash.is_empty()
    }

    /// Takes blocks out of one arena, its stash merged as far as it helps; parts of another type's pageblocks only to `steal`.
    fn take_from(
        &self,
        arena: &Arena,
        wanted: Wanted,
        steal: bool,
        runs: &mut Runs,
    ) -> Result<(), AllocError> {
        loop {
            let free = self.lock_at(arena, wanted.attempt);
            let mut free = free.ok_or(AllocError::Contended)?;
            let more = Self::more_is_stashed(arena, &free);
            let (order, nr) = (wanted.order, wanted.nr.min(CHUNK));
            let (metas, mobility) = (self.metas, wanted.mobility);
            // ORDERING: Relaxed: a hint.
            let areas = arena.areas.load(Ordering::Relaxed);
            free.buddy.draw_line(areas << Order::MAX.get());
            if steal {
                free.buddy.take(metas, order, mobility, nr, runs);
            } else {
                free.buddy.take_or_claim(metas, order, mobility, nr, runs);
            }
            let more = more || free.buddy.has_unranked();
            arena.leave(free);
            if !runs.is_empty() {
                return Ok(());
            }
            if !more {
                return Err(AllocError::Exhausted);
            }
        }
    }

    /// The same without waiting for longer than a hold usually takes.
    fn take_soon(
        &self,
        arena: &Arena,
        wanted: Wanted,
        steal: bool,
        runs: &mut Runs,
    ) -> Result<(), AllocError> {
        let tries = if wanted.attempt == Attempt::TryLock {
            1
        } else {
            TRIES
        };
        let wanted = Wanted {
            attempt: Attempt::TryLock,
            ..wanted
        };
        let mut last = Err(AllocError::Contended);
        for _ in 0..tries {
            last = self.take_from(arena, wanted, steal, runs);
            if last != Err(AllocError::Contended) {
                break;
            }
            (0..PAUSES).for_each(|_| core::hint::spin_loop());
        }
        last
    }

    /// Moves a whole area from another arena to `home`, if one can be had without waiting.
    fn move_in(&self, home: usize, mobility: Mobility) -> bool {
        for (i, arena) in self.arenas().iter().enumerate() {
            if i == home {
                continue;
            }
            let Some(mut free) = self.lock_at(arena, Attempt::TryLock) else {
                continue;
            };
            let mut runs = Runs::new();
            let metas = self.metas;
            free.buddy.take(metas, Order::MAX, mobility, 1, &mut runs);
            for &run in &runs {
                // ORDERING: Relaxed: I2: the whole area is ours, and its old arena locked.
                self.home_word(self.extent.area_of(run.first))
                    .store(home as u8 + 1, Ordering::Relaxed);
            }
            arena.leave(free);
            if runs.is_empty() {
                continue;
            }
            // ORDERING: Relaxed: a hint.
            arena.areas.fetch_sub(1, Ordering::Relaxed);
            // ORDERING: Relaxed: a hint.
            self.arenas()[home].areas.fetch_add(1, Ordering::Relaxed);
            // A list operation long, and seldom contended: nobody else calls this arena home but by chance.
            // SAFETY: just taken.
            unsafe { self.give(None, &runs, Attempt::TryLock) };
            return true;
        }
        false
    }

    /// Takes blocks from the slot's own arena, or else from the others, parts of another type's pageblocks only to `steal`.
    fn take_anywhere(
        &self,
        wanted: Wanted,
        steal: bool,
        runs: &mut Runs,
    ) -> Result<(), AllocError> {
        let (home, nr) = (self.home(wanted.slot), self.nr_arenas);
        let all = self.arenas();
        let own = self.take_soon(&all[home], wanted, steal, runs);
        if own.is_ok() || nr == 1 && wanted.attempt == Attempt::TryLock {
            return own;
        }
        let is_small = wanted.order < Order::at(9);
        if is_small && own == Err(AllocError::Exhausted) && nr > 1 {
            if self.move_in(home, wanted.mobility)
                && self.take_soon(&all[home], wanted, steal, runs).is_ok()
            {
                return Ok(());
            }
            // ORDERING: Relaxed: a hint.
            let homeless = all[home].areas.load(Ordering::Relaxed) == 0;
            if homeless && wanted.attempt == Attempt::MayGrow {
                return Err(AllocError::Exhausted);
            }
        }
        let mut contended = own == Err(AllocError::Contended);
        let others = (1..nr).map(|i| &all[(home + i) & (nr - 1)]);
        for arena in others.clone() {
            let hurried = Wanted {
                attempt: Attempt::TryLock,
                ..wanted
            };
            match self.take_soon(arena, hurried, steal, runs) {
                Ok(()) => return Ok(()),
                Err(error) => contended |= error == AllocError::Contended,
            }
        }
        if !contended {
            return Err(AllocError::Exhausted);
        }
        if wanted.attempt <= Attempt::TryLock {
            return Err(AllocError::Contended);
        }
        for arena in core::iter::once(&all[home]).chain(others) {
            if self.take_from(arena, wanted, steal, runs).is_ok() {
                return Ok(());
            }
        }
        Err(AllocError::Exhausted)
    }

    /// Locks the arena that an area lies in, whoever owns its pages.
    fn lock_home_of(&self, area: usize) -> (&Arena, SpinGuard<'_, Free>) {
        loop {
            let home = self.home_of(area);
            let arena = &self.arenas()[home];
            let free = arena.lock();
            // Under the lock of the arena that it names, a home does not change (I2).
            if self.home_of(area) == home {
                return (arena, free);
            }
        }
    }

    /// Puts pages of one arena on its stash.
    #[cold]
    fn stash(&self, arena: &Arena, run: Run) {
        for (block, order) in index::blocks(run.first, run.end, self.extent.bias()) {
            arena.stash.push(self.metas, block, order);
        }
    }

    /// The arenas' sums, one after the other.
    fn fold<T>(&self, start: T, add: impl FnMut(T, &Arena) -> T) -> T {
        self.arenas().iter().fold(start, add)
    }
}

/// All arenas' locks.
#[doc(hidden)]
#[derive(Debug)]
pub struct Held<'a> {
    _guards: ArrayVec<SpinGuard<'a, Free>, SPREAD>,
}

// SAFETY: 1: what a buddy system hands out it had, aligned by address; a block is put into the one its home names, where it came from
// (I1, I2); 2: P7; 3: what cannot have the lock is stashed; 4: `lock_at`, I3 and I4; 5: blocks merge at once, `settle`
// merges what waits, and an area is in one arena (I1).
unsafe impl Lower for Buddies {
    type Held<'a> = Held<'a>;

    fn layout(extent: Extent) -> Result<Layout, LayoutError> {
        place(extent).map(|(layout, ..)| layout)
    }

    unsafe fn new(ground: Ground) -> Self {
        let extent = ground.extent();
        let (_, nr_arenas, offsets) = place(extent).expect("as in `layout`");
        // SAFETY: inside the memory, as `place` says.
        let [homes, blocks, groups] = offsets.map(|offset| unsafe { ground.memory().add(offset) });
        let bytes = PageBlocks::nr_bytes(extent.pages() as usize);
        // SAFETY: zeroed, nobody else's, and valid for as long as the value is used (debt 1).
        let blocks = unsafe { PageBlocks::from_zeroed(blocks, bytes, extent.bias()) };
        let nr = Groups::nr(extent.areas());
        // SAFETY: as above.
        let groups = unsafe { Groups::from_zeroed(groups.cast(), nr) };
        let arenas = ground.memory().cast::<Arena>();
        for i in 0..nr_arenas {
            let arena = Arena::new(Buddy::new(extent.bias(), blocks, groups));
            // SAFETY: inside the array.
            let place = unsafe { arenas.add(i) };
            // SAFETY: nobody else's memory (debt 1), laid out for it.
            unsafe { place.write(arena) };
        }
        Self {
            extent,
            metas: ground.metas(),
            arenas,
            nr_arenas,
            homes: homes.cast(),
            blocks,
            groups,
        }
    }

    unsafe fn add(&self, slot: Option<Slot>, run: Run) {
        let home = self.home(slot);
        for (area, part) in self.extent.by_area(run) {
            // ORDERING: Relaxed: nobody has a page of the area before it is given below (I2).
            let first = self.home_word(area).compare_exchange(
                0,
                home as u8 + 1,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            if first.is_ok() {
                // ORDERING: Relaxed: a hint.
                self.arenas()[home].areas.fetch_add(1, Ordering::Relaxed);
            }
            let mut runs = Runs::new();
            runs.push(part);
            // SAFETY: debt 1, for this part.
            unsafe { self.give(slot, &runs, Attempt::NoWait) };
        }
    }

    fn take(&self, wanted: Wanted, runs: &mut Runs) -> Result<(), AllocError> {
        // What spoils no pageblock may also be had in another arena.
        match self.take_anywhere(wanted, false, runs) {
            Err(AllocError::Exhausted) => self.take_anywhere(wanted, true, runs),
            other => other,
        }
    }

    unsafe fn take_range(&self, run: Run) -> bool {
        let mut at = run.first;
        while at < run.end {
            // I4, in the smallest blocks.
            let end = run.end.min(at + CHUNK as u32);
            for (area, part) in self.extent.by_area(Run {
                first: at,
                end,
                zero: false,
            }) {
                let (arena, mut free) = self.lock_home_of(area);
                let taken = free.buddy.take_range(self.metas, part.first, part.end);
                arena.leave(free);
                if !taken {
                    if run.first < part.first {
                        let mut back = Runs::new();
                        back.push(Run {
                            first: run.first,
                            end: part.first,
                            zero: false,
                        });
                        // SAFETY: just taken.
                        unsafe { self.give(None, &back, Attempt::NoWait) };
                    }
                    return false;
                }
            }
            at = end;
        }
        true
    }

    unsafe fn give(&self, _slot: Option<Slot>, runs: &Runs, attempt: Attempt) {
        self.give_runs(runs, attempt);
    }

    unsafe fn take_within(&self, range: Run, from: u32, runs: &mut Runs) -> u32 {
        let area = self.extent.area_of(from);
        let next = ((area as u32 + 1) << Order::MAX.get()) - self.extent.bias();
        let end = range.end.min(next);
        let (arena, mut free) = self.lock_home_of(area);
        let at = free
            .buddy
            .take_within(self.metas, (range.first, end), from, runs);
        arena.leave(free);
        at
    }

    fn take_dirty(&self) -> Option<Run> {
        let orders = [Order::MAX, HUGE].into_iter();
        orders
            .flat_map(|order| self.arenas().iter().map(move |arena| (arena, order)))
            .find_map(|(arena, order)| {
                let mut free = arena.lock();
                let first = free.buddy.take_dirty(self.metas, order);
                arena.leave(free);
                let first = first?;
                let end = first + order.pages() as u32;
                let zero = false;
                Some(Run { first, end, zero })
            })
    }

    fn dirty_pages(&self) -> usize {
        self.fold(0, |sum, arena| sum + arena.lock().buddy.dirty_pages())
    }

    fn idle_pages(&self) -> usize {
        self.fold(0, |sum, arena| sum + arena.lock().buddy.idle_pages())
    }

    fn changes(&self) -> Changes {
        self.sum_of_changes()
    }

    fn free_pages(&self) -> usize {
        // ORDERING: Relaxed: a report.
        let free = |arena: &Arena| arena.free_pages.load(Ordering::Relaxed);
        self.fold(0, |sum, arena| sum + free(arena))
    }

    fn free_blocks(&self) -> [usize; ORDERS] {
        self.count(None)
    }

    fn free_at(&self, page: u32) -> Option<Order> {
        let at = page + self.extent.bias();
        let groups = (page < self.extent.pages()).then_some(self.groups)?;
        groups.get(at >> SMALL).block_at(at & 63)
    }

    fn mobility_of(&self, page: u32) -> Option<Mobility> {
        (page < self.extent.pages()).then(|| self.blocks.of(page))
    }

    fn free_blocks_of(&self, mobility: Mobility) -> [usize; ORDERS] {
        self.count(Some(mobility))
    }

    fn set_fallback(&self, fallback: [Fallback; TYPES]) {
        for arena in self.arenas() {
            arena.lock().buddy.set_fallback(fallback);
        }
    }

    fn waiting(&self) -> Waiting {
        self.fold(Waiting::default(), |sum, arena| Waiting {
            pages: sum.pages + arena.stash.pages(),
            blocks_ever: sum.blocks_ever + arena.stash.pushes(),
            peak_pages: sum.peak_pages + arena.stash.peak(),
        })
    }

    fn settle(&self) {
        for arena in self.arenas() {
            // As many chunks as were there at the start, or others could keep this going.
            for _ in 0..=arena.stash.pages() / CHUNK {
                let mut free = arena.lock();
                if !Self::more_is_stashed(arena, &free) {
                    break;
                }
                self.work_off(arena, &mut free);
                arena.leave(free);
            }
        }
    }

    fn hold(&self) -> Held<'_> {
        Held {
            _guards: self.arenas().iter().map(Arena::lock).collect(),
        }
    }

    #[cfg(debug_assertions)]
    fn forbid(&self, forbid: bool) {
        for arena in self.arenas() {
            // ORDERING: Relaxed, as in `Arena::touched`.
            arena.forbidden.store(forbid, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Buddies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buddies")
            .field("arenas", &self.arenas())
            .finish_non_exhaustive()
    }
}
