//! How many free pages a zone keeps, for whom, and when it asks for more.
//!
//! Source: Linux `mm/page_alloc.c` (`__zone_watermark_ok`, `__setup_per_zone_wmarks`, 6.12), rows P5 and P14.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `min`, `low`, `high` | the watermarks, in pages | [`Marks::set`] |
//! | `below_high` | fewer than `high` pages were free at the last look | as `pressed` |
//! | `pressed` | free pages fell below `low` and have not risen above `high` since | whoever changed the zone's pages, by the number it saw |
//! | `pending` | and nobody has run the hooks for it yet | set with `pressed`; cleared by whoever will run them |
//!
//! # Invariants
//! - I1. `pending` is set at most once between two rises above `high`.
//! - I2. With all three at 0, as they are until set, every request passes and nothing is ever pressed.
//!
//! # Contexts
//! Words that are looked at where the zone's pages change, never on a hit: pages on lists are not free pages here, and a list hands them out
//! whatever the watermarks say. No hook runs from here.

#![deny(unsafe_code)]

use crate::api::{AllocError, Attempt, Order, PageReq, Reserve};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Numbers of free pages at which a zone behaves differently.
///
/// ```
/// use pagealloc::Watermarks;
/// // 1 GiB, of which 4 MiB are for those who must not fail; 0.1 % between the marks, or a quarter of that.
/// let marks = Watermarks::for_pages(1 << 18, 1 << 10, 10);
/// assert_eq!((marks.min, marks.low, marks.high), (1024, 1286, 1548));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Watermarks {
    /// What is free up to here is the reserve: only requests with a [`Reserve`] get it.
    #[doc(alias = "WMARK_MIN")]
    pub min: usize,
    /// Below this, pressure hooks are called.
    #[doc(alias = "WMARK_LOW")]
    pub low: usize,
    /// Above this, pressure is over. Below it, lists do not grow.
    #[doc(alias = "WMARK_HIGH")]
    pub high: usize,
}

impl Watermarks {
    /// No reserve and no pressure.
    pub const NONE: Self = Self {
        min: 0,
        low: 0,
        high: 0,
    };

    /// Watermarks of a zone of `managed` pages with a reserve of `min` pages. The distance between the marks is `min / 4`, or
    /// `scale` ten-thousandths of `managed` if that is more (Linux: 10).
    #[must_use]
    #[doc(alias = "watermark_scale_factor")]
    pub const fn for_pages(managed: usize, min: usize, scale: usize) -> Self {
        let part = managed as u128 * scale as u128 / 10_000;
        let part = if part < usize::MAX as u128 {
            part as usize
        } else {
            usize::MAX
        };
        let step = if part > min / 4 { part } else { min / 4 };
        let low = min.saturating_add(step);
        Self {
            min,
            low,
            high: low.saturating_add(step),
        }
    }

    /// The number of free pages that a request leaves at least.
    const fn floor(&self, attempt: Attempt, reserve: Reserve) -> usize {
        match reserve {
            Reserve::None => self.min,
            Reserve::High => {
                let half = self.min - self.min / 2;
                if matches!(attempt, Attempt::MayGrow) {
                    half
                } else {
                    half - half / 4
                }
            }
            Reserve::All => 0,
        }
    }

    /// Whether one block of `order` may be taken of `free` pages, if there is such a block.
    #[must_use]
    #[doc(alias = "zone_watermark_ok")]
    pub const fn allows(
        &self,
        free: usize,
        order: Order,
        attempt: Attempt,
        reserve: Reserve,
    ) -> bool {
        self.room(free, order, attempt, reserve) > 0
    }

    /// How many blocks of `order` may be taken of `free` pages.
    const fn room(&self, free: usize, order: Order, attempt: Attempt, reserve: Reserve) -> usize {
        let floor = self.floor(attempt, reserve);
        // The row's condition: what is free without all but one of the block's pages is above the floor.
        free.saturating_sub(floor) >> order.get()
    }
}

/// The watermarks in force, and what they say about the zone.
#[derive(Debug)]
pub(crate) struct Marks {
    min: AtomicUsize,
    low: AtomicUsize,
    high: AtomicUsize,
    below_high: AtomicBool,
    pressed: AtomicBool,
    pending: AtomicBool,
}

impl Marks {
    pub(crate) const fn new() -> Self {
        Self {
            min: AtomicUsize::new(0),
            low: AtomicUsize::new(0),
            high: AtomicUsize::new(0),
            below_high: AtomicBool::new(false),
            pressed: AtomicBool::new(false),
            pending: AtomicBool::new(false),
        }
    }

    pub(crate) fn get(&self) -> Watermarks {
        // ORDERING: Relaxed: three numbers that steer; a mix of old and new ones harms nothing.
        let read = |mark: &AtomicUsize| mark.load(Ordering::Relaxed);
        Watermarks {
            min: read(&self.min),
            low: read(&self.low),
            high: read(&self.high),
        }
    }

    /// From here on `marks` holds, a mark that is below a lower one counting as that.
    pub(crate) fn set(&self, marks: Watermarks) {
        let low = marks.low.max(marks.min);
        // ORDERING: Relaxed: as in `get`.
        self.min.store(marks.min, Ordering::Relaxed);
        // ORDERING: Relaxed: as in `get`.
        self.low.store(low, Ordering::Relaxed);
        // ORDERING: Relaxed: as in `get`.
        self.high.store(marks.high.max(low), Ordering::Relaxed);
        if marks.high.max(low) == 0 {
            // ORDERING: Relaxed: hints, which nobody brings up to date any more (I2).
            self.below_high.store(false, Ordering::Relaxed);
            // ORDERING: Relaxed: as above.
            self.pending.store(false, Ordering::Relaxed);
            // ORDERING: Relaxed: as above.
            self.pressed.store(false, Ordering::Relaxed);
        }
    }

    /// How many of the blocks wanted the request may take of the `free` pages, at least one. A batch stops where the request would.
    /// `free` is asked only where there is a reserve.
    ///
    /// # Errors
    /// [`AllocError::Reserved`], or [`AllocError::Exhausted`] where there are not that many pages anyway: none are kept back.
    pub(crate) fn admit(
        &self,
        req: PageReq,
        want: usize,
        free: impl FnOnce() -> usize,
    ) -> Result<usize, AllocError> {
        let marks = self.get();
        if marks.min == 0 {
            return Ok(want);
        }
        let free = free();
        match marks
            .room(free, req.order, req.attempt, req.reserve)
            .min(want)
        {
            0 if free < req.order.pages() => Err(AllocError::Exhausted),
            0 => Err(AllocError::Reserved),
            nr => Ok(nr),
        }
    }

    /// Notes that the zone has `free` pages now; not asked where there are no marks.
    pub(crate) fn saw(&self, free: impl FnOnce() -> usize) {
        let marks = self.get();
        if marks.high == 0 {
            return;
        }
        let free = free();
        let below = free < marks.high;
        // ORDERING: Relaxed: a hint for heights.
        if self.below_high.load(Ordering::Relaxed) != below {
            // ORDERING: Relaxed: as above.
            self.below_high.store(below, Ordering::Relaxed);
        }
        // ORDERING: Relaxed: a hint; the swap below decides.
        let pressed = self.pressed.load(Ordering::Relaxed);
        if free < marks.low && !pressed {
            // ORDERING: Relaxed: one of those who see the fall notes it; nothing is published by it.
            if !self.pressed.swap(true, Ordering::Relaxed) {
                // ORDERING: Relaxed: as above.
                self.pending.store(true, Ordering::Relaxed);
            }
        } else if free > marks.high && pressed {
            // ORDERING: Relaxed: as above.
            self.pending.store(false, Ordering::Relaxed);
            // ORDERING: Relaxed: as above.
            self.pressed.store(false, Ordering::Relaxed);
        }
    }

    /// Whether fewer than `high` pages were free when that was last looked at.
    pub(crate) fn is_below_high(&self) -> bool {
        // ORDERING: Relaxed: a hint for heights.
        self.below_high.load(Ordering::Relaxed)
    }

    /// Whether hooks wait to be run; then the caller has to, for it is told once.
    pub(crate) fn take_pending(&self) -> bool {
        // ORDERING: Relaxed: a hint; then one caller wins, and reads what it needs again.
        self.pending.load(Ordering::Relaxed) && self.pending.swap(false, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVELS: [Attempt; 4] = [
        Attempt::PcpOnly,
        Attempt::TryLock,
        Attempt::NoWait,
        Attempt::MayGrow,
    ];

    #[test]
    fn p5_the_marks_are_a_quarter_of_min_apart_or_a_part_of_the_zone() {
        for managed in [0, 100, 4096, 262_144, 1 << 28] {
            for min in [0, 3, 16, 1024, 70_000] {
                for scale in [0, 1, 10, 1000] {
                    let marks = Watermarks::for_pages(managed, min, scale);
                    let step = (min / 4).max(managed * scale / 10_000);
                    assert_eq!(marks.min, min);
                    assert_eq!((marks.low, marks.high), (min + step, min + 2 * step));
                }
            }
        }
        let most = Watermarks::for_pages(usize::MAX, usize::MAX, usize::MAX);
        assert_eq!(most.high, usize::MAX);
    }

    /// The row, word by word.
    fn ok(min: usize, free: usize, order: Order, attempt: Attempt, reserve: Reserve) -> bool {
        let mut floor = min as isize;
        match reserve {
            Reserve::None => {}
            Reserve::High => {
                floor -= floor / 2;
                if attempt != Attempt::MayGrow {
                    floor -= floor / 4;
                }
            }
            Reserve::All => floor = 0,
        }
        free as isize - (order.pages() as isize - 1) > floor
    }

    #[test]
    fn p5_a_request_passes_where_the_row_says_so() {
        for min in 0..40 {
            let marks = Watermarks::for_pages(1000, min, 10);
            for free in 0..80 {
                for order in (0..6).map(Order::at) {
                    for attempt in LEVELS {
                        for reserve in [Reserve::None, Reserve::High, Reserve::All] {
                            assert_eq!(
                                marks.allows(free, order, attempt, reserve),
                                ok(min, free, order, attempt, reserve),
                                "{min} {free} {order:?} {attempt:?} {reserve:?}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn p14_no_level_gets_any_of_the_reserve_without_asking() {
        let marks = Watermarks::for_pages(10_000, 64, 10);
        for attempt in LEVELS {
            assert!(!marks.allows(64, Order::ZERO, attempt, Reserve::None));
            assert!(marks.allows(65, Order::ZERO, attempt, Reserve::None));
        }
        let least = |attempt, reserve| {
            (0..).find(|&free| marks.allows(free, Order::ZERO, attempt, reserve))
        };
        assert_eq!(least(Attempt::MayGrow, Reserve::High), Some(33));
        assert_eq!(least(Attempt::NoWait, Reserve::High), Some(25));
        assert_eq!(least(Attempt::NoWait, Reserve::All), Some(1));
    }

    #[test]
    fn p5_pressure_is_noted_once_until_the_zone_has_recovered() {
        let marks = Marks::new();
        marks.saw(|| 0);
        assert!(!marks.take_pending(), "I2");
        marks.set(Watermarks::for_pages(0, 40, 10));
        for free in [60, 50] {
            marks.saw(|| free);
            assert!(!marks.take_pending());
        }
        marks.saw(|| 49);
        assert!(marks.take_pending());
        for free in [40, 49, 55, 60, 10] {
            marks.saw(|| free);
            assert!(!marks.take_pending(), "told already");
        }
        marks.saw(|| 61);
        marks.saw(|| 48);
        assert!(marks.take_pending());
    }
}
