//! Who allocated and who freed a page last, for messages about broken contracts: by the feature `history`.
//!
//! Source: Linux `mm/page_owner.c` (row P19). Why not in [`PageMeta`](crate::meta::PageMeta): its bytes are what every zone pays.
//! The records lie in an array of their own beside the metadata, committed as far as the zone is used. Without the feature,
//! `history/off.rs` stands in for this file: the same names, of size zero, and nothing done.
//!
//! # State
//! | word of an [`Event`] | meaning | who writes |
//! |---|---|---|
//! | `place` | where the call is in the source text; null: never | who allocates or frees the block that starts at the page |
//! | `number` | which event it was, program-wide, modulo 2^32 | as above |
//! | `what` | slot, attempt and order, packed | as above |
//!
//! # Invariants
//! - I1. `place` is null or came from a `&'static Location`.
//!
//! # Orderings
//! Every access is Relaxed: a record travels with its block. A reader that is about to abort may see two events mixed, if somebody
//! else uses the page at this moment.

use crate::api::{Attempt, Order};
use core::alloc::{Layout, LayoutError};
use core::fmt;
use core::panic::Location;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use rcu_core::cpu::{Cpus, Slot};

/// Who allocates or frees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who {
    place: &'static Location<'static>,
    slot: Option<Slot>,
    attempt: Attempt,
}

impl Who {
    /// The caller of the function that calls this, at this moment.
    #[track_caller]
    pub(crate) fn now(cpus: &impl Cpus, attempt: Attempt) -> Self {
        Self {
            place: Location::caller(),
            slot: cpus.current(),
            attempt,
        }
    }
}

/// "slot 3, NoWait, at file:line:column".
impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.slot {
            Some(slot) => write!(f, "slot {}", slot.index())?,
            None => f.write_str("no slot")?,
        }
        write!(f, ", {:?}, at {}", self.attempt, self.place)
    }
}

/// One allocation or free. All-zero bytes are none.
#[derive(Debug, Default)]
struct Event {
    place: AtomicPtr<Location<'static>>,
    number: AtomicU32,
    what: AtomicU32,
}

/// Bits of `what`: order, attempt, and the slot plus one above them.
const ORDER_BITS: u32 = 4;
const ATTEMPT_BITS: u32 = 2;

const ATTEMPTS: [Attempt; 1 << ATTEMPT_BITS] = [
    Attempt::PcpOnly,
    Attempt::TryLock,
    Attempt::NoWait,
    Attempt::MayGrow,
];

/// Events so far. One count for all zones, so that their records can be put in order.
static EVENTS: AtomicU32 = AtomicU32::new(0);

impl Event {
    /// Notes an event of a block that the caller owns.
    fn note(&self, order: Order, who: Who) {
        // ORDERING: Relaxed: only numbers events.
        let number = EVENTS.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let slot = who.slot.map_or(0, |slot| slot.index() as u32 + 1);
        let what =
            (((slot << ATTEMPT_BITS) | who.attempt as u32) << ORDER_BITS) | order.get() as u32;
        let place = ptr::from_ref(who.place).cast_mut();
        // ORDERING: Relaxed: travels with the block, as do the others.
        self.place.store(place, Ordering::Relaxed);
        // ORDERING: Relaxed: as above.
        self.number.store(number, Ordering::Relaxed);
        // ORDERING: Relaxed: as above.
        self.what.store(what, Ordering::Relaxed);
    }
}

/// "slot 3, NoWait, at file:line:column (order 0, event 17)".
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // ORDERING: Relaxed: a report for people.
        let place = self.place.load(Ordering::Relaxed);
        // SAFETY: null or a `&'static Location` (I1).
        let Some(place) = (unsafe { place.as_ref() }) else {
            return f.write_str("never as the start of a block");
        };
        // ORDERING: Relaxed: a report for people.
        let what = self.what.load(Ordering::Relaxed);
        // ORDERING: Relaxed: a report for people.
        let number = self.number.load(Ordering::Relaxed);
        let attempt = (what >> ORDER_BITS) & ((1 << ATTEMPT_BITS) - 1);
        let slot = (what >> (ORDER_BITS + ATTEMPT_BITS)).checked_sub(1);
        let who = Who {
            place,
            slot: slot.map(Slot::new),
            attempt: ATTEMPTS[attempt as usize],
        };
        let order = what & ((1 << ORDER_BITS) - 1);
        write!(f, "{who} (order {order}, event {number})")
    }
}

/// What happened last to the block that starts at a page.
#[derive(Debug, Default)]
struct History {
    allocated: Event,
    freed: Event,
}

/// The records of a span's pages, by page number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Histories {
    first: NonNull<History>,
}

impl Histories {
    /// What the records of `pages` pages need.
    pub(crate) fn layout(pages: usize) -> Result<Layout, LayoutError> {
        Layout::array::<History>(pages)
    }

    /// The records at `first`.
    ///
    /// # Safety
    /// 1. `first` is the start of all-zero memory of [`Self::layout`], referred to by nothing but copies of this value, and
    ///    valid for as long as one of them is used.
    pub(crate) const unsafe fn from_zeroed(first: NonNull<u8>) -> Self {
        Self {
            first: first.cast(),
        }
    }

    /// # Safety
    /// 1. `page` is one of the pages of the layout.
    unsafe fn get(&self, page: u32) -> &History {
        // SAFETY: inside the array (debt 1).
        let history = unsafe { self.first.add(page as usize) };
        // SAFETY: all-zero is valid, every field is atomic, and the memory stays (debt of `from_zeroed`).
        unsafe { history.as_ref() }
    }

    /// Notes who allocated the caller's block.
    ///
    /// # Safety
    /// 1. `page` is one of the pages of the layout.
    pub(crate) unsafe fn allocated(&self, page: u32, order: Order, who: Who) {
        // SAFETY: debt 1.
        let history = unsafe { self.get(page) };
        history.allocated.note(order, who);
    }

    /// Notes who freed what was the caller's block.
    ///
    /// # Safety
    /// 1. `page` is one of the pages of the layout.
    pub(crate) unsafe fn freed(&self, page: u32, order: Order, who: Who) {
        // SAFETY: debt 1.
        let history = unsafe { self.get(page) };
        history.freed.note(order, who);
    }

    /// The last lines of a message about the block at `page`.
    ///
    /// # Safety
    /// 1. `page` is one of the pages of the layout.
    pub(crate) unsafe fn tell(&self, page: u32) -> impl fmt::Display {
        // SAFETY: debt 1.
        let History { allocated, freed } = unsafe { self.get(page) };
        fmt::from_fn(move |f| {
            write!(
                f,
                "\n  page {page} allocated last: {allocated}\n  page {page} freed last: {freed}"
            )
        })
    }
}

/// The line of a message that says who broke the contract.
pub(crate) fn tell_culprit(who: Who) -> impl fmt::Display {
    fmt::from_fn(move |f| write!(f, "\n  now: {who}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p19_an_event_reads_as_it_was_noted() {
        let event = Event::default();
        assert!(event.to_string().starts_with("never"));
        for slot in [None, Some(0), Some((1 << 26) - 2)] {
            for attempt in ATTEMPTS {
                for order in [0, 10].map(Order::at) {
                    let who = Who {
                        place: Location::caller(),
                        slot: slot.map(Slot::new),
                        attempt,
                    };
                    event.note(order, who);
                    let said = event.to_string();
                    let slot = slot.map_or("no slot".into(), |slot| format!("slot {slot}"));
                    let start = format!("{slot}, {attempt:?}, at ");
                    let end = format!("(order {}, event ", order.get());
                    assert!(said.starts_with(&start) && said.contains(&end), "{said}");
                    assert!(said.contains("history.rs:"), "{said}");
                }
            }
        }
    }
}
