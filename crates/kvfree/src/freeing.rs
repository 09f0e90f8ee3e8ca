//! Whose objects the calling thread is freeing at this moment, with their destructors: so that these do not wait for themselves.
//!
//! A few words of the thread's own, touched once a batch. Without `std` there are none: nothing is found, and such a wait hangs.
//!
//! # Invariants
//! - I1. What is found, the thread is in the middle of: there are no false alarms. Nothing may be found of it when more than [`MARKS`] nest.

/// Front ends that a thread frees objects of at the same time, one inside of another's destructors.
#[cfg(feature = "std")]
const MARKS: usize = 8;

#[cfg(feature = "std")]
std::thread_local! {
    // Without a destructor, so that it is there while other thread-locals are being destroyed.
    static MARKED: [core::cell::Cell<*const ()>; MARKS] =
        const { [const { core::cell::Cell::new(core::ptr::null()) }; MARKS] };
}

/// Until it is dropped, the thread is noted to free objects of a front end.
pub(crate) struct Freeing {
    #[cfg(feature = "std")]
    place: Option<usize>,
}

impl Freeing {
    /// Of the front end at this address.
    #[inline]
    #[cfg_attr(not(feature = "std"), expect(unused_variables, reason = "no words"))]
    pub(crate) fn begin(front: *const ()) -> Self {
        Self {
            #[cfg(feature = "std")]
            place: MARKED.with(|marked| {
                let place = marked.iter().position(|mark| mark.get().is_null());
                place.inspect(|place| marked[*place].set(front))
            }),
        }
    }

    /// Whether the thread frees objects of this one.
    #[inline]
    #[cfg_attr(not(feature = "std"), expect(unused_variables, reason = "no words"))]
    pub(crate) fn is_on(front: *const ()) -> bool {
        #[cfg(feature = "std")]
        return MARKED.with(|marked| marked.iter().any(|mark| mark.get() == front));
        #[cfg(not(feature = "std"))]
        false
    }
}

impl Drop for Freeing {
    #[inline]
    fn drop(&mut self) {
        #[cfg(feature = "std")]
        if let Some(place) = self.place {
            MARKED.with(|marked| marked[place].set(core::ptr::null()));
        }
    }
}
