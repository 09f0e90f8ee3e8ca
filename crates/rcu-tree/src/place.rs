//! Where sections were entered: for people who look for the one that does not end.
//!
//! Kept in debug builds and under the feature `places`; otherwise a [`Place`] has no size and noting one is no code.

use core::fmt;
use core::panic::Location;
#[cfg(any(debug_assertions, feature = "places"))]
use core::ptr;
#[cfg(any(debug_assertions, feature = "places"))]
use rcu_core::sync::atomic::{AtomicPtr, Ordering};

/// Whether places are kept.
pub(crate) const KEPT: bool = cfg!(any(debug_assertions, feature = "places"));

/// A line of the user's source.
pub(crate) type Caller = &'static Location<'static>;

/// The latest line noted, if places are kept. Written by one thread or under a lock; read by anyone, as a hint.
#[derive(Default)]
pub(crate) struct Place {
    #[cfg(any(debug_assertions, feature = "places"))]
    latest: AtomicPtr<Location<'static>>,
}

impl Place {
    rcu_core::const_fn! {
        pub(crate) const fn new() -> Self {
            Self {
                #[cfg(any(debug_assertions, feature = "places"))]
                latest: AtomicPtr::new(ptr::null_mut()),
            }
        }
    }

    /// Notes `caller`.
    #[inline(always)]
    pub(crate) fn note(&self, caller: Caller) {
        // ORDERING: Relaxed: a hint; what it points to is constant.
        #[cfg(any(debug_assertions, feature = "places"))]
        self.latest
            .store(ptr::from_ref(caller).cast_mut(), Ordering::Relaxed);
        let _ = caller;
    }

    /// What was noted last.
    pub(crate) fn get(&self) -> Option<Caller> {
        #[cfg(any(debug_assertions, feature = "places"))]
        {
            // ORDERING: Relaxed: a hint; what it points to is constant.
            let latest = self.latest.load(Ordering::Relaxed);
            // SAFETY: null, or from a reference to a constant of the program.
            unsafe { latest.as_ref() }
        }
        #[cfg(not(any(debug_assertions, feature = "places")))]
        None
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.get() {
            Some(place) => write!(f, "Place({place})"),
            None => f.write_str("Place(unknown)"),
        }
    }
}

/// Writes ` entered at FILE:LINE:COLUMN`, or nothing if that is not known.
pub(crate) struct EnteredAt(pub(crate) Option<Caller>);

impl fmt::Display for EnteredAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .map_or(Ok(()), |place| write!(f, " entered at {place}"))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_the_latest_line_or_takes_no_room() {
        let place = Place::new();
        assert_eq!(place.get(), None);
        place.note(Location::caller());
        let here = Location::caller();
        place.note(here);
        assert_eq!(place.get(), KEPT.then_some(here));
        assert_eq!(size_of::<Place>() == 0, !KEPT);
    }
}
