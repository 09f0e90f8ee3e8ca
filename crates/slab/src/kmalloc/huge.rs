//! The register of huge blocks: memory apart from the pages, found again by its address.
//!
//! Why not a header in front of each block: whoever frees an address that is nobody's would make us read there; and the
//! block would begin a page behind what the system aligned.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `Table` | block starts and sizes by open addressing, in a block of pages | under its lock |
//! | `bytes` | bytes of all blocks | whoever enters or removes one |
//!
//! # Invariants
//! - I1. A block is in the table from before its address is given out until after it is given back, save while its owner has it resized.
//! - I2. `live + promised` is at most three quarters of the places: a search ends, and who was promised a place gets one.
//!
//! # Progress and contexts
//! A spin lock, held for a few probes, or for a table's length where it doubles. Pages are asked for and given back, and memory is
//! mapped, without it. Beside a system call and the page faults of 4 MiB it costs nothing.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicUsize, Ordering};
use pagealloc::{AllocError, Attempt, Order, PAGE_SHIFT, PageAlloc, PageReq};
use rcu_core::cpu::{SpinGuard, SpinMutex};

/// A block, or no block: zeroed memory is free places.
#[derive(Clone, Copy)]
#[repr(C)]
struct Entry {
    start: *mut u8,
    bytes: usize,
}

const FREE: Entry = Entry {
    start: ptr::null_mut(),
    bytes: 0,
};

/// Places in a block of pages and what is in them.
struct Table {
    /// As many as the block of `order` has room for; none at first.
    places: Option<(NonNull<Entry>, Order)>,
    live: usize,
    /// Places kept for blocks that are just resized.
    promised: usize,
}

// SAFETY: the places belong to the table and are reached under its lock only; starts are only handed back.
unsafe impl Send for Table {}

impl Table {
    fn places(&mut self) -> &mut [Entry] {
        let Some((first, order)) = self.places else {
            return &mut [];
        };
        // SAFETY: the block is the table's, so large, and initialised (zeroed, then entries); the borrow is the table's own.
        unsafe { core::slice::from_raw_parts_mut(first.as_ptr(), nr_places(order)) }
    }

    /// Whether one more block leaves a quarter free (I2).
    fn has_room(&self) -> bool {
        let nr = self.places.map_or(0, |(_, order)| nr_places(order));
        (self.live + self.promised + 1) * 4 <= nr * 3
    }

    fn next_order(&self) -> Option<Order> {
        let Some((_, order)) = self.places else {
            return Some(Order::ZERO);
        };
        Order::new(order.get() as u8 + 1)
    }

    fn put(&mut self, entry: Entry) {
        let places = self.places();
        let mut at = home(entry.start, places.len());
        while !places[at].start.is_null() {
            at = (at + 1) & (places.len() - 1);
        }
        places[at] = entry;
        self.live += 1;
    }

    fn find(&mut self, start: *const u8) -> Option<usize> {
        let places = self.places();
        if places.is_empty() || start.is_null() {
            return None;
        }
        let mut at = home(start, places.len());
        while !places[at].start.is_null() {
            if places[at].start.cast_const() == start {
                return Some(at);
            }
            at = (at + 1) & (places.len() - 1);
        }
        None
    }

    /// Takes out what is at `hole`, and moves those behind it up that would not be found any more.
    fn remove(&mut self, mut hole: usize) -> Entry {
        let places = self.places();
        let mask = places.len() - 1;
        let removed = places[hole];
        let mut at = (hole + 1) & mask;
        while !places[at].start.is_null() {
            let from_home = at.wrapping_sub(home(places[at].start, places.len())) & mask;
            if from_home >= (at.wrapping_sub(hole) & mask) {
                places[hole] = places[at];
                hole = at;
            }
            at = (at + 1) & mask;
        }
        places[hole] = FREE;
        self.live -= 1;
        removed
    }

    /// Moves into a larger, zeroed block, and gives the old one out.
    fn move_to(&mut self, places: NonNull<Entry>, order: Order) -> Option<(NonNull<Entry>, Order)> {
        let mut old = Table {
            places: self.places.replace((places, order)),
            live: 0,
            promised: 0,
        };
        self.live = 0;
        for entry in old.places().iter().filter(|e| !e.start.is_null()) {
            self.put(*entry);
        }
        old.places
    }
}

const fn nr_places(order: Order) -> usize {
    order.bytes() / size_of::<Entry>()
}

/// Where the search for a block begins. `places` is a power of two.
fn home(start: *const u8, places: usize) -> usize {
    let page = (start.addr() >> PAGE_SHIFT) as u64;
    let hash = page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    hash as usize & (places - 1)
}

/// The huge blocks of one allocator.
pub(super) struct Register {
    table: SpinMutex<Table>,
    bytes: AtomicUsize,
}

impl Register {
    pub(super) fn new() -> Self {
        Self {
            table: SpinMutex::new(Table {
                places: None,
                live: 0,
                promised: 0,
            }),
            bytes: AtomicUsize::new(0),
        }
    }

    /// Bytes of all blocks.
    pub(super) fn bytes(&self) -> usize {
        // ORDERING: Relaxed: a number for statistics.
        self.bytes.load(Ordering::Relaxed)
    }

    /// Maps a block and enters it.
    pub(super) fn alloc<P: PageAlloc>(
        &self,
        pages: &P,
        bytes: usize,
        align: usize,
    ) -> Result<NonNull<u8>, AllocError> {
        let bytes = bytes.checked_next_multiple_of(pagealloc::PAGE_SIZE);
        let bytes = bytes.ok_or(AllocError::Invalid)?;
        let start = pages.map_apart(bytes, align)?;
        let mut table = match self.lock_with_room(pages) {
            Ok(table) => table,
            Err(error) => {
                // SAFETY: mapped just now.
                unsafe { pages.unmap_apart(start, bytes) };
                return Err(error);
            }
        };
        table.put(Entry {
            start: start.as_ptr(),
            bytes,
        });
        drop(table);
        // ORDERING: Relaxed: a number for statistics.
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(start)
    }

    /// The table, locked, with room for one more.
    fn lock_with_room<P: PageAlloc>(&self, pages: &P) -> Result<SpinGuard<'_, Table>, AllocError> {
        loop {
            let table = self.table.lock();
            if table.has_room() {
                return Ok(table);
            }
            let order = table.next_order().ok_or(AllocError::OutOfMemory)?;
            drop(table);
            let block = pages.alloc(PageReq::new(order).zeroed())?.cast();
            let mut table = self.table.lock();
            // Somebody else may have made it larger meanwhile.
            let surplus = if table.next_order() == Some(order) {
                table.move_to(block, order)
            } else {
                Some((block, order))
            };
            drop(table);
            if let Some((block, order)) = surplus {
                // SAFETY: got with this order, and the table's no more.
                unsafe { pages.free_at(block.cast(), order, Attempt::NoWait) };
            }
        }
    }

    /// The size of the block that starts at `start`, if one does.
    pub(super) fn bytes_of(&self, start: *const u8) -> Option<usize> {
        let mut table = self.table.lock();
        let at = table.find(start)?;
        Some(table.places()[at].bytes)
    }

    /// Removes a block and unmaps it; false if none starts there.
    ///
    /// # Safety
    /// 1. If there is one, the caller owns it, and it is not used any more.
    pub(super) unsafe fn free<P: PageAlloc>(&self, pages: &P, start: NonNull<u8>) -> bool {
        let entry = {
            let mut table = self.table.lock();
            let Some(at) = table.find(start.as_ptr()) else {
                return false;
            };
            table.remove(at)
        };
        // ORDERING: Relaxed: a number for statistics.
        self.bytes.fetch_sub(entry.bytes, Ordering::Relaxed);
        if let Some(start) = NonNull::new(entry.start) {
            // SAFETY: entered as it was mapped; the caller's debt 1.
            unsafe { pages.unmap_apart(start, entry.bytes) };
        }
        true
    }

    /// Makes a block larger or smaller, elsewhere if `may_move`. `None`, and nothing has changed, if that cannot be done.
    ///
    /// # Safety
    /// 1. The block is the caller's; if another address is returned, the old one is not used any more, and what is past the new size in no case.
    pub(super) unsafe fn resize<P: PageAlloc>(
        &self,
        pages: &P,
        start: NonNull<u8>,
        bytes: usize,
        may_move: bool,
    ) -> Option<NonNull<u8>> {
        let bytes = bytes.checked_next_multiple_of(pagealloc::PAGE_SIZE)?;
        // Out of the table meanwhile: the address it leaves may be somebody else's before this call knows.
        let old = {
            let mut table = self.table.lock();
            let at = table.find(start.as_ptr())?;
            table.promised += 1;
            table.remove(at)
        };
        let block = NonNull::new(old.start)?;
        // SAFETY: entered as it was mapped; the caller's debt 1.
        let moved = unsafe { pages.remap_apart(block, old.bytes, bytes, may_move) };
        let entry = match moved {
            Some(moved) => Entry {
                start: moved.as_ptr(),
                bytes,
            },
            None => old,
        };
        {
            let mut table = self.table.lock();
            table.promised -= 1;
            table.put(entry);
        }
        // ORDERING: Relaxed: a number for statistics.
        self.bytes.fetch_add(entry.bytes, Ordering::Relaxed);
        // ORDERING: Relaxed: as above.
        self.bytes.fetch_sub(old.bytes, Ordering::Relaxed);
        moved
    }

    /// Gives the table's own block back, if there are no blocks.
    pub(super) fn release<P: PageAlloc>(&self, pages: &P) {
        let places = {
            let mut table = self.table.lock();
            if table.live + table.promised > 0 {
                return;
            }
            table.places.take()
        };
        if let Some((block, order)) = places {
            // SAFETY: got with this order, and the table's no more.
            unsafe { pages.free_at(block.cast(), order, Attempt::NoWait) };
        }
    }

    /// Keeps everybody out until the value is dropped.
    pub(super) fn hold(&self) -> HugeHeld<'_> {
        HugeHeld {
            _table: self.table.lock(),
        }
    }
}

/// Evidence that nobody is in a register.
pub(crate) struct HugeHeld<'a> {
    _table: SpinGuard<'a, Table>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::Pages;
    use crate::common::cases::cases;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #![proptest_config(cases(64))]

        /// Close addresses collide, so that removals have to move others up.
        #[test]
        fn the_table_agrees_with_a_map(ops in prop::collection::vec((0..400_usize, any::<bool>()), 0..600)) {
            let pages = Pages::new();
            let register = Register::new();
            let mut model = BTreeMap::new();
            for (page, insert) in ops {
                let start = ptr::without_provenance_mut::<u8>((page + 1) << PAGE_SHIFT);
                let mut table = register.table.lock();
                let found = table.find(start);
                prop_assert_eq!(found.is_some(), model.contains_key(&page));
                match found {
                    Some(at) if !insert => {
                        let removed = table.remove(at);
                        prop_assert_eq!(Some(removed.bytes), model.remove(&page));
                    }
                    None if insert => {
                        drop(table);
                        let mut table = register.lock_with_room(&pages).unwrap();
                        table.put(Entry { start, bytes: page });
                        model.insert(page, page);
                    }
                    _ => {}
                }
            }
            for &page in model.keys() {
                let start = ptr::without_provenance::<u8>((page + 1) << PAGE_SHIFT);
                prop_assert_eq!(register.bytes_of(start), Some(page));
                let mut table = register.table.lock();
                let at = table.find(start).unwrap();
                table.remove(at);
            }
            register.release(&pages);
            prop_assert_eq!(pages.outstanding(), 0);
        }
    }
}
