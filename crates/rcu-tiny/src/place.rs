//! Where the outermost section was entered, for the message that refuses to wait inside it.
//!
//! Kept where debug assertions are on, or with the feature `places`; of no size otherwise.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `at` | the caller of the outermost `enter`, or null | `enter`, after the store of the nesting |
//!
//! An interrupt between the two stores of the code below it finds an older place: a report only.

use core::fmt;
#[cfg(any(debug_assertions, feature = "places"))]
use core::{
    panic::Location,
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

/// The place of the outermost section.
pub(crate) struct Place {
    #[cfg(any(debug_assertions, feature = "places"))]
    at: AtomicPtr<Location<'static>>,
}

impl Place {
    pub(crate) const fn new() -> Self {
        Self {
            #[cfg(any(debug_assertions, feature = "places"))]
            at: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Notes the caller's place.
    #[inline(always)]
    #[track_caller]
    pub(crate) fn note(&self) {
        #[cfg(any(debug_assertions, feature = "places"))]
        // ORDERING: Relaxed: same CPU, a report for people.
        self.at.store(
            ptr::from_ref(Location::caller()).cast_mut(),
            Ordering::Relaxed,
        );
    }
}

/// What follows the words "a read-side critical section".
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[cfg(any(debug_assertions, feature = "places"))]
        {
            // ORDERING: Relaxed: same CPU, a report for people.
            let at = self.at.load(Ordering::Relaxed);
            // SAFETY: null, or from a `&'static Location` in `note`.
            if let Some(at) = unsafe { at.as_ref() } {
                return write!(f, " (entered at {at})");
            }
        }
        f.write_str("")
    }
}
