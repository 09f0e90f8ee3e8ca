//! Free objects are hidden from AddressSanitizer's point of view: see [`rcu_core::sanitize`]. No code in other builds.
//!
//! An object is hidden when it is freed, and when the sheaf that it waits in is let go; it is shown when it is handed out. Everything in between,
//! sheaves, barn and slabs, deals in addresses. Caches that check their objects look into free ones and do without, and so do type-stable ones,
//! whose readers may.

use super::Inner;
use crate::sheaf::Sheaf;
use core::ptr::NonNull;
use pagealloc::PageAlloc;
use rcu_core::cpu::Cpus;
use rcu_core::{GracePeriod, sanitize};

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Inner<C, P, G> {
    #[inline(always)]
    fn hides(&self) -> bool {
        cfg!(address_sanitizer) && !self.shape.is_checked() && !self.shape.is_stable()
    }

    /// The object is its user's from here on.
    #[inline(always)]
    pub(super) fn reveal(&self, object: NonNull<u8>) {
        if self.hides() {
            sanitize::reveal(object, self.shape.size);
        }
    }

    /// Nobody uses the object from here on. Before it is put where others find it.
    #[inline(always)]
    pub(super) fn hide(&self, object: NonNull<u8>) {
        if self.hides() {
            sanitize::hide(object, self.shape.size);
        }
    }

    /// The same of each.
    #[inline(always)]
    pub(super) fn hide_all(&self, objects: &[NonNull<u8>]) {
        if self.hides() {
            objects.iter().for_each(|&object| self.hide(object));
        }
    }

    /// The sheaf's objects have waited long enough.
    #[inline(always)]
    pub(super) fn hide_ripe(&self, sheaf: Sheaf) -> Sheaf {
        self.hide_all(sheaf.as_slice());
        sheaf
    }

    /// The word that links a free object into the list of those that met every lock is written and read for as long as it is there.
    #[inline(always)]
    pub(super) fn reveal_link(&self, link: NonNull<u8>) {
        if self.hides() {
            sanitize::reveal(link, size_of::<usize>());
        }
    }

    /// A slab's memory, all of it free objects, or on its way back to whoever gave it.
    #[inline(always)]
    pub(super) fn hide_slab(&self, base: NonNull<u8>, is_ours: bool) {
        if self.hides() {
            let hide_or_reveal = if is_ours {
                sanitize::hide
            } else {
                sanitize::reveal
            };
            hide_or_reveal(base, self.shape.order.bytes());
        }
    }
}
