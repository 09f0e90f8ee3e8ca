//! Waits that would wait for themselves, found before they begin (R3, R21).

use super::Tree;
use crate::marks::{self, Doing};
use crate::place::EnteredAt;
use crate::trace::Trace;
use core::ptr;
use rcu_core::cpu::Cpus;

impl<C: Cpus, T: Trace> Tree<'_, C, T> {
    /// What the marks of this tree are known by.
    pub(super) fn mark(&self) -> *const () {
        ptr::from_ref(self).cast()
    }

    /// Panics if the caller is inside a section, where waiting would never end. A section that belongs to no thread is
    /// not found; nor, without `std`, is one of a caller without a slot.
    #[track_caller]
    pub(super) fn check_outside(&self, what: &str) {
        let own = self.cpus.current().and_then(|slot| self.slots.get(slot));
        let place = match own {
            Some(own) if own.reader.nesting() > 0 => own.place.get(),
            _ => match marks::find(self.mark(), Doing::Section) {
                Some(found) => found.place,
                None => return,
            },
        };
        let comma = if place.is_some() { "," } else { "" };
        let place = EnteredAt(place);
        panic!(
            "{what} inside a read-side critical section{comma}{place}{comma} would wait for itself: drop the guard first"
        );
    }

    /// Whether the caller may wait for a grace period: as far as is known it is in no section of this tree, and not one of
    /// its callbacks. What is not known: see `synchronize`.
    #[must_use]
    #[doc(alias = "rcu_read_lock_held")]
    pub fn may_wait(&self) -> bool {
        let own = self.cpus.current().and_then(|slot| self.slots.get(slot));
        own.is_none_or(|own| own.reader.nesting() == 0)
            && marks::find(self.mark(), Doing::Section).is_none()
            && marks::find(self.mark(), Doing::Callbacks).is_none()
    }

    /// Panics if the caller is a callback of this tree: a barrier would wait for its return (R13). Without `std`, does
    /// not notice.
    #[track_caller]
    pub(super) fn check_no_callback(&self, what: &str) {
        assert!(
            marks::find(self.mark(), Doing::Callbacks).is_none(),
            "{what} inside a callback would wait for that callback"
        );
    }
}
