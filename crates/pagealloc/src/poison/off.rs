//! What stands in for `poison.rs` without the feature: the same names, of size zero, and nothing done.

use crate::api::Order;
use core::alloc::{Layout, LayoutError};
use core::ptr::NonNull;

/// Nobody looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Written {
    pub(crate) page: u32,
    pub(crate) offset: usize,
    pub(crate) byte: u8,
    pub(crate) len: usize,
}

/// No flags.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Poison;

impl Poison {
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
    pub(crate) const unsafe fn fill(&self, _: u32, _: NonNull<u8>, _: Order) {}

    /// # Safety
    /// No debts.
    #[inline(always)]
    pub(crate) const unsafe fn check(
        &self,
        _: u32,
        _: NonNull<u8>,
        _: Order,
    ) -> Result<(), Written> {
        Ok(())
    }

    /// # Safety
    /// No debts.
    pub(crate) const unsafe fn forget(&self, _: usize, _: usize) {}
}
