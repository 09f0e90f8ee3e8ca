//! Torture of the allocators: pages, objects, deferred frees, each object knowing whose it is and in what state.

mod body;
mod field;
mod fronts;
mod ground;
mod moody;
mod pages;
mod resident;
mod shadow;
mod slabs;
mod worker;

pub(crate) use fronts::{Front, start as start_front};
pub(crate) use pages::start as start_pages;
pub(crate) use slabs::start as start_slab;

/// What is done wrong on purpose, again and again from a while after the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Injury {
    Nothing,
    /// Freed although somebody may still look at it.
    Early,
    /// Freed, or retired, twice.
    Double,
    /// Not freed at all.
    Missing,
    /// Given to another allocator than it came from, or as something else.
    Wrong,
}
