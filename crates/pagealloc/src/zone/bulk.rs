//! Many blocks between a caller and the slot's list.

use super::Zone;
use crate::api::{Mobility, Order, PageReq};
use crate::lower::Lower;
use crate::pcp::{Batch, CHUNK, Class};
use crate::source::Source;
use rcu_core::cpu::Cpus;

impl<C: Cpus, S: Source, B: Lower> Zone<C, S, B> {
    /// Takes up to a chunk of blocks off the slot's list.
    pub(super) fn bulk_from_list(&self, req: PageReq, want: usize) -> Batch {
        let mut batch = Batch::new();
        if let (Some(class), Some(slot)) = (Class::of(req.order, req.mobility), self.cpus.current())
            // SAFETY: the slot is the caller's, just now.
            && let Some(mut pcp) = (unsafe { self.slots.enter(slot) })
        {
            while batch.len() < want.min(CHUNK)
                && let Some(page) = pcp.pop(class, req.attempt)
            {
                batch.push(page);
            }
        }
        batch
    }

    /// Puts blocks that the caller owns on the slot's list, as far as that goes, and says how many.
    pub(super) fn bulk_to_list(&self, order: Order, mobility: Mobility, pages: &[u32]) -> usize {
        let (Some(class), Some(slot)) = (Class::of(order, mobility), self.cpus.current()) else {
            return 0;
        };
        // SAFETY: the slot is the caller's, just now.
        let Some(mut pcp) = (unsafe { self.slots.enter(slot) }) else {
            return 0;
        };
        let fits = |page: &&u32| pcp.push(class, **page);
        pages.iter().take_while(fits).count()
    }
}
