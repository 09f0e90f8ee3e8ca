//! How callbacks are batched, and when there are too many of them.
//!
//! Source: the module parameters of Linux `kernel/rcu/tree.c` (G14, G15, G16) and `LAZY_FLUSH_JIFFIES` (R17).

use core::time::Duration;

/// How many callbacks a slot's turn runs at the most once it is flooded (the kernel's `DEFAULT_MAX_RCU_BLIMIT`).
pub(super) const MAX_BATCH: usize = 10_000;

/// How many callbacks a turn runs, when a list counts as flooded, and how long lazy callbacks wait.
///
/// ```
/// use core::time::Duration;
/// use rcu_tree::CallbackConfig;
///
/// const QUICK: CallbackConfig = CallbackConfig::new()
///     .batch_limit(100)
///     .lazy_flush(Duration::from_secs(2));
/// assert_ne!(QUICK, CallbackConfig::default());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a configuration does nothing until a tree is made with it"]
pub struct CallbackConfig {
    pub(super) batch_limit: usize,
    pub(super) divisor: u32,
    pub(super) qhimark: usize,
    pub(super) qlowmark: usize,
    pub(super) qovld: usize,
    /// In milliseconds.
    pub(super) lazy_flush: usize,
}

impl CallbackConfig {
    /// The kernel's constants, but for [`Self::batch_limit`].
    pub const fn new() -> Self {
        Self {
            batch_limit: 1024,
            divisor: 7,
            qhimark: 10_000,
            qlowmark: 100,
            qovld: 20_000,
            lazy_flush: 10_000,
        }
    }

    /// How many callbacks of one slot are run before the other slots have their turn. Default 1024; the kernel's is 10,
    /// which suits a soft interrupt that must be over soon. Here a turn costs the runner two visits to the list, each
    /// with a heavy fence. Half a million callbacks that free, run by the callback thread and a barrier on two CPUs, took
    /// per callback 51 ns by tens, 11 by 64, 9 by 256, 5.5 by 1024, 6 by 4096, 5.2 by 65,536 (best of eight); a turn of 1024
    /// delays the others by less than a tenth of a millisecond if its callbacks only free.
    ///
    /// # Panics
    /// If `callbacks` is zero: nothing would ever run.
    #[doc(alias = "blimit")]
    pub const fn batch_limit(mut self, callbacks: usize) -> Self {
        assert!(callbacks > 0, "a batch limit of zero runs nothing");
        self.batch_limit = callbacks;
        self
    }

    /// A turn runs at least one in 2^`bits` of what is ready, so that a long list shrinks. Default 7, as in the kernel.
    ///
    /// # Panics
    /// If `bits` is not below the width of a word.
    #[doc(alias = "rcu_divisor")]
    pub const fn divisor(mut self, bits: u32) -> Self {
        assert!(bits < usize::BITS, "a shift by more than a word's width");
        self.divisor = bits;
        self
    }

    /// A slot whose list has grown by more than this many callbacks since the last look is flooded: a grace period is
    /// started, or the one in progress is hurried and the batch limit raised. Also how many callbacks may be parked lazily.
    /// Default 10,000. Sets [`Self::qovld`] to twice as much, as the kernel does; set that one afterwards.
    ///
    /// # Panics
    /// If it is zero, or not above the low mark.
    pub const fn qhimark(mut self, callbacks: usize) -> Self {
        assert!(callbacks > 0, "a high mark of zero floods every slot");
        assert!(self.qlowmark < callbacks, "a high mark below the low mark");
        self.qhimark = callbacks;
        self.qovld = callbacks.saturating_mul(2);
        self
    }

    /// A flooded slot whose list is no longer than this has its batch limit back. Default 100.
    ///
    /// # Panics
    /// If it is not below the high mark.
    pub const fn qlowmark(mut self, callbacks: usize) -> Self {
        assert!(callbacks < self.qhimark, "a low mark above the high mark");
        self.qlowmark = callbacks;
        self
    }

    /// While a slot's list is at least this long, whoever drives grace periods pauses for a third of the usual time. Default
    /// 20,000, twice the high mark.
    ///
    /// # Panics
    /// If it is zero.
    pub const fn qovld(mut self, callbacks: usize) -> Self {
        assert!(callbacks > 0, "an overload mark of zero is always reached");
        self.qovld = callbacks;
        self
    }

    /// How long a lazy callback may stay parked before a grace period is asked for. Default 10 s; counted in whole
    /// milliseconds.
    ///
    /// # Panics
    /// If it is below a millisecond (then there is nothing lazy about it), or twelve days and more: the clock is a word.
    #[doc(alias = "LAZY_FLUSH_JIFFIES")]
    pub const fn lazy_flush(mut self, time: Duration) -> Self {
        let ms = time.as_millis();
        assert!(ms > 0, "lazy callbacks that do not wait");
        assert!(ms < 1 << 30, "lazy for more than twelve days");
        self.lazy_flush = ms as usize;
        self
    }
}

impl Default for CallbackConfig {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn g15_the_marks_follow_the_kernels() {
        let default = CallbackConfig::default();
        assert_eq!((default.qhimark, default.qlowmark), (10_000, 100));
        assert_eq!(default.qovld, 2 * default.qhimark);
        assert_eq!(default.lazy_flush, 10_000);
        assert_eq!(default.qhimark(500).qovld, 1000);
        assert_eq!(default.qhimark(500).qovld(7).qovld, 7);
    }

    #[test]
    #[should_panic(expected = "runs nothing")]
    fn a_batch_of_none_is_refused() {
        let _ = CallbackConfig::new().batch_limit(0);
    }

    #[test]
    #[should_panic(expected = "below the low mark")]
    fn a_high_mark_below_the_low_one_is_refused() {
        let _ = CallbackConfig::new().qhimark(100);
    }

    #[test]
    #[should_panic(expected = "do not wait")]
    fn lazy_for_no_time_is_refused() {
        let _ = CallbackConfig::new().lazy_flush(Duration::from_micros(999));
    }
}
