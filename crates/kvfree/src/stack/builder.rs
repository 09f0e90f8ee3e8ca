//! How a stack is to be, said before its first use.

use crate::config::Config;
use crate::monitor::DELAY;
use core::fmt;
use core::time::Duration;
use pagealloc::Decommit;
use slab::Checks;

/// How a stack is to be. Whoever is first decides: the application at the start of `main`, or else whatever
/// uses the stack first, by the defaults.
///
/// ```
/// use std::time::Duration;
/// kvfree::Builder::new()
///     .delay(Duration::from_millis(5))
///     .config(kvfree::Config::new().ask_after_bytes(256 << 10))
///     .install()
///     .expect("nothing has used the stack yet");
/// assert!(kvfree::Builder::new().install().is_err());
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "settings that are not installed change nothing"]
pub struct Builder {
    pub(crate) delay: Duration,
    pub(crate) config: Config,
    pub(crate) decommit: Decommit,
    pub(crate) waits: bool,
    pub(crate) checks: Checks,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// The defaults: a delay of 10 ms, [`Config::new`], and [`Decommit`]'s default.
    pub const fn new() -> Self {
        Self {
            delay: DELAY,
            config: Config::new(),
            decommit: Decommit::Keep,
            waits: true,
            checks: Checks::empty(),
        }
    }

    /// How long objects stay at most once their grace period is over, though nobody retires any more. By default 10 ms.
    #[doc(alias = "KFREE_DRAIN_JIFFIES")]
    pub const fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// How the front end behaves. Whom it tells that something waits is the stack's own monitor, whatever this says.
    pub const fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Whether pages that are free go back to the system.
    pub const fn decommit(mut self, decommit: Decommit) -> Self {
        self.decommit = decommit;
        self
    }

    /// Whether [`RcuBox::new`](crate::RcuBox) waits for grace periods while as much waits as may: by default it does, outside
    /// of sections and callbacks. If not, the memory that waits grows above the limit.
    pub const fn wait_at_limit(mut self, yes: bool) -> Self {
        self.waits = yes;
        self
    }

    /// What the general allocator checks of each object, by default nothing beyond what costs nothing: with
    /// [`Checks::AT_ONCE`] an object without a head that is retired twice is found at once, and ends the program.
    pub const fn checks(mut self, checks: Checks) -> Self {
        self.checks = checks;
        self
    }

    /// Makes these the settings of the default stack. For another one there is [`Stack::install`](super::Stack::install).
    ///
    /// # Errors
    /// If the stack has been used already, or somebody has installed settings.
    pub fn install(self) -> Result<(), InUse> {
        super::Global::stack().install(self)
    }
}

/// The stack has its settings already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InUse;

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the stack is in use, or its settings were installed before: install them first thing in `main`")
    }
}

impl core::error::Error for InUse {}
