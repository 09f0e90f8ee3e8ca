//! Why a caller has no slot.

use core::error::Error;
use core::fmt;

/// Why [`Cpus::try_register`](super::Cpus::try_register) had no slot to give. Every layer can be used all the same, on
/// its shared path, which is behind a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegisterError {
    /// Every slot is taken. Trying again later helps when a thread that has one has ended.
    AllTaken {
        /// How many slots there are.
        nr_slots: usize,
    },
    /// The thread is ending and its slot is given back already. Nothing helps.
    Ending,
    /// The caller is a signal handler on top of a registration. Trying again after the handler has returned helps.
    Busy,
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllTaken { nr_slots } => write!(
                f,
                "all {nr_slots} slots are taken: run fewer threads at a time, or try again when one has ended"
            ),
            Self::Ending => f.write_str(
                "this thread's slot is given back already: use it before thread-locals are destroyed",
            ),
            Self::Busy => f.write_str(
                "a signal came while this thread was registering: register before signals may come",
            ),
        }
    }
}

impl Error for RegisterError {}
