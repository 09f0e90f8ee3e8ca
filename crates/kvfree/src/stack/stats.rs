//! What a stack says about itself.

use super::StackDomain;
use crate::budget::OverLimit;
use crate::stats::KvfreeStats;
use core::fmt;
use core::marker::PhantomData;
use rcu_core::cpu::{Cpus, Slot, Threads};
use rcu_tree::TreeStats;
use slab::{CacheStats, KmallocStats};
use std::io::Write;

/// Readers that are told of at most.
const MOST_READERS: usize = 8;

/// Counts of a stack.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StackStats {
    /// Grace periods and callbacks.
    pub rcu: TreeStats,
    /// Objects by class.
    pub objects: Option<KmallocStats>,
    /// Blocks and heads.
    pub front: Option<KvfreeStats>,
    /// The typed caches, in the order of their making.
    pub caches: Vec<CacheStats>,
    /// Pages that are out.
    pub pages_allocated: usize,
    /// Whether the monitor's thread exists, or is about to: not for long after the last object was freed.
    pub is_monitored: bool,
}

impl fmt::Display for StackStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rcu: {}", self.rcu)?;
        if let Some(front) = &self.front {
            writeln!(f, "kvfree: {front}")?;
        }
        writeln!(f, "pages allocated: {}", self.pages_allocated)?;
        if let Some(objects) = &self.objects {
            write!(f, "{objects}")?;
        }
        for cache in &self.caches {
            writeln!(f, "{cache}")?;
        }
        Ok(())
    }
}

/// Says on standard error that the limit is reached, and who holds grace periods up.
pub(super) fn tell<D: StackDomain>(over: &OverLimit) {
    struct Readers<D>(PhantomData<D>);
    impl<D: StackDomain> fmt::Display for Readers<D> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let tree = D::tree();
            let slots = (0..Threads.nr_slots()).map(|i| Slot::new(i as u32));
            let inside = slots.filter_map(|slot| tree.slot_stats(slot).filter(|s| s.nesting > 0));
            inside
                .take(MOST_READERS)
                .try_for_each(|reader| write!(f, "\nkvfree: {reader}"))
        }
    }
    // Standard error is unbuffered; a process without one has nobody to tell.
    let _ = writeln!(
        std::io::stderr(),
        "kvfree: {over}{}",
        Readers::<D>(PhantomData)
    );
}
