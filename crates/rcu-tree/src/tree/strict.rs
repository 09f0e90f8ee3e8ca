//! Strict mode, the feature `strict` (G24): the end of every section pushes the grace period that is asked for.
//!
//! Grace periods become as short as readers allow, so a pointer that is kept past its section is freed under its holder
//! sooner, and a checker sees it. For tests: an exit then runs fences and reads other slots' words.
//!
//! # Progress and contexts
//! An exit is then what `drive` is: it never waits, allocates nothing and runs no callback, and is as fit for signal
//! handlers. It does not come back into itself (T42): `drive` enters no section, and what a listener enters while the
//! machine's lock is held finds that lock taken.

use super::Tree;
use crate::trace::{Lane, Trace};
use rcu_core::GracePeriod;
use rcu_core::cpu::Cpus;

impl<C: Cpus, T: Trace> Tree<'_, C, T> {
    /// The caller has left a level of a section; whether it was the outermost, `is_outside` knows. No code unless strict.
    #[inline(always)]
    pub(super) fn left(&self, is_outside: impl FnOnce() -> bool) {
        if cfg!(feature = "strict")
            && is_outside()
            && Lane::ALL.iter().any(|&lane| self.gp.is_needed(lane))
        {
            self.drive();
        }
    }
}
