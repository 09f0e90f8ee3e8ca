//! What stands in for `history.rs` without the feature: the same names, of size zero, and nothing done.

use crate::api::{Attempt, Order};
use core::alloc::{Layout, LayoutError};
use core::ptr::NonNull;
use rcu_core::cpu::Cpus;

/// Nobody knows who.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who;

impl Who {
    #[inline(always)]
    pub(crate) const fn now(_: &impl Cpus, _: Attempt) -> Self {
        Self
    }
}

/// No records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Histories;

impl Histories {
    pub(crate) const fn layout(_pages: usize) -> Result<Layout, LayoutError> {
        Ok(Layout::new::<()>())
    }

    /// # Safety
    /// No debts.
    pub(crate) const unsafe fn from_zeroed(_: NonNull<u8>) -> Self {
        Self
    }

    /// # Safety
    /// No debts.
    #[inline(always)]
    pub(crate) const unsafe fn allocated(&self, _: u32, _: Order, _: Who) {}

    /// # Safety
    /// No debts.
    #[inline(always)]
    pub(crate) const unsafe fn freed(&self, _: u32, _: Order, _: Who) {}

    /// # Safety
    /// No debts.
    pub(crate) const unsafe fn tell(&self, _: u32) -> &'static str {
        ""
    }
}

pub(crate) const fn tell_culprit(_: Who) -> &'static str {
    ""
}
