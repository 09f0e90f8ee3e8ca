//! How a front end behaves.

use crate::budget::OverLimit;
use crate::doubles::DoubleRetire;
use core::fmt;
use rcu_core::sync::Backoff;

/// Blocks in line before a grace period is asked for: about eight thousand objects.
const ASK_BLOCKS: usize = 16;
/// Bytes in line before a grace period is asked for.
const ASK_BYTES: usize = 512 << 10;
/// Bytes that wait, all slots together, from which on every block that fills asks for a grace period.
const SOFT_BYTES: usize = 8 << 20;
/// Bytes that may wait, all slots together.
const HARD_BYTES: usize = 256 << 20;

/// Bytes that wait in one slot from which on every chunk asks for a grace period.
const SLOT_BYTES: usize = 2 << 20;
/// The monitor's rounds for which no pages are kept after a shrinker came by: a second, at the default delay.
const BACK_OFF: u32 = 100;

/// What a front end is to do when, and whom it tells.
///
/// ```
/// let config = kvfree::Config::new().ask_after_blocks(4).ask_after_bytes(64 << 10);
/// ```
#[derive(Clone, Copy)]
#[must_use]
pub struct Config {
    pub(crate) ask_blocks: usize,
    pub(crate) ask_bytes: usize,
    pub(crate) soft_bytes: usize,
    pub(crate) hard_bytes: usize,
    pub(crate) slot_bytes: usize,
    pub(crate) back_off: u32,
    pub(crate) helps: bool,
    watch: Option<fn(bool)>,
    told: Option<fn(&OverLimit)>,
    double: Option<fn(&DoubleRetire)>,
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

impl Config {
    /// The defaults: a grace period is asked for after 16 blocks or 512 KiB in one slot; nobody watches.
    pub const fn new() -> Self {
        Self {
            ask_blocks: ASK_BLOCKS,
            ask_bytes: ASK_BYTES,
            soft_bytes: SOFT_BYTES,
            hard_bytes: HARD_BYTES,
            slot_bytes: SLOT_BYTES,
            back_off: BACK_OFF,
            helps: true,
            watch: None,
            told: None,
            double: None,
        }
    }

    /// How many blocks may fill in one slot before a grace period is asked for. For objects of other allocators than the front end's own, a
    /// quarter of that.
    pub const fn ask_after_blocks(mut self, blocks: usize) -> Self {
        self.ask_blocks = blocks;
        self
    }

    /// How many bytes may come to one slot before a grace period is asked for. For objects of other allocators a quarter of that.
    pub const fn ask_after_bytes(mut self, bytes: usize) -> Self {
        self.ask_bytes = bytes;
        self
    }

    /// How many bytes may wait, all slots together, before every block that fills asks for a grace period. By default 8 MiB.
    pub const fn soft_limit(mut self, bytes: usize) -> Self {
        self.soft_bytes = bytes;
        self
    }

    /// How many bytes may wait in one slot before every further 64 KiB, and every block that fills, ask for a grace period and hurry the
    /// monitor. By default 2 MiB. What an object weighs is what freeing it gives back.
    pub const fn slot_limit(mut self, bytes: usize) -> Self {
        self.slot_bytes = bytes;
        self
    }

    /// For how many rounds of the monitor ([`Kvfree::tick`](crate::Kvfree::tick)) a slot keeps no pages for blocks to come after a shrinker
    /// came by. By default 100.
    #[doc(alias = "rcu_delay_page_cache_fill_msec")]
    pub const fn back_off(mut self, rounds: u32) -> Self {
        self.back_off = rounds;
        self
    }

    /// How many bytes may wait, all slots together: 256 MiB by default, without a limit at [`usize::MAX`]. Counted to about
    /// 64 KiB a slot.
    ///
    /// At the limit, who may sleep first frees what is ripe, then waits for a grace period and frees the object itself;
    /// [`Kvfree::try_retire`](crate::Kvfree::try_retire) gives it back; and
    /// [`DeferFree::retire`](crate::DeferFree::retire), which can neither wait nor fail, takes it in: see
    /// [`KvfreeStats::overdrawn`](crate::KvfreeStats::overdrawn).
    pub const fn hard_limit(mut self, bytes: usize) -> Self {
        self.hard_bytes = bytes;
        self
    }

    /// Whether who retires something with a destructor where it may sleep, or makes an [`RcuBox`](crate::RcuBox) of a type that has one,
    /// runs the destructors of some of what its own thread retired before, once they may run. By default it does: else one
    /// monitor runs them for all threads, and what waits grows to the limit while it cannot keep up.
    ///
    /// If not, destructors run in [`Kvfree::tick`](crate::Kvfree::tick), so on the monitor's thread, in barriers, and at the
    /// limit: for programs that retire, or make boxes, with locks held that these destructors take.
    pub const fn helps(mut self, yes: bool) -> Self {
        self.helps = yes;
        self
    }

    /// Whom to tell that the hard limit is reached: once, until half of it is free again. Called outside of locks by the
    /// monitor, or a thread that may sleep.
    pub const fn tells(mut self, told: fn(&OverLimit)) -> Self {
        self.told = Some(told);
        self
    }

    /// Whom to tell of the first three objects that were retired while they waited; by default, under `std`, standard error.
    /// Called in the context that found it: any that retires.
    pub const fn tells_double(mut self, told: fn(&DoubleRetire)) -> Self {
        self.double = Some(told);
        self
    }

    pub(crate) fn tell_double(&self, double: &DoubleRetire) {
        match self.double {
            Some(told) => told(double),
            #[cfg(feature = "std")]
            None => {
                use std::io::Write;
                // Not `eprintln`, which panics where there is no standard error.
                let _ = writeln!(std::io::stderr(), "kvfree: {double}");
            }
            #[cfg(not(feature = "std"))]
            None => {}
        }
    }

    #[cfg(feature = "std")]
    pub(crate) const fn is_told(&self) -> bool {
        self.told.is_some()
    }

    pub(crate) fn tell(&self, over: &OverLimit) {
        if let Some(told) = self.told {
            told(over);
        }
    }

    /// Whom to tell that something waits from now on, so that [`Kvfree::tick`](crate::Kvfree::tick) has to be called:
    /// soon if the argument is true, else within the delay of one's choice. Called outside of locks, from any context that
    /// retires; must not block.
    pub const fn watched_by(mut self, watch: fn(bool)) -> Self {
        self.watch = Some(watch);
        self
    }

    pub(crate) fn watch(&self, soon: bool) {
        if let Some(watch) = self.watch {
            watch(soon);
        }
    }

    /// One step of a barrier's waiting.
    #[expect(
        clippy::unused_self,
        reason = "the embedder's own way to wait will come from here"
    )]
    pub(crate) fn pause(&self, backoff: &Backoff) {
        backoff.snooze();
        #[cfg(feature = "std")]
        if backoff.is_completed() {
            std::thread::sleep(core::time::Duration::from_micros(50));
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("ask_blocks", &self.ask_blocks)
            .field("ask_bytes", &self.ask_bytes)
            .field("soft_bytes", &self.soft_bytes)
            .field("hard_bytes", &self.hard_bytes)
            .field("slot_bytes", &self.slot_bytes)
            .field("back_off", &self.back_off)
            .field("helps", &self.helps)
            .field("is_watched", &self.watch.is_some())
            .finish()
    }
}
