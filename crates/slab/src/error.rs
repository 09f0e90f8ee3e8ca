//! Why a cache could not be made.

use crate::checks::Checks;
use core::fmt;
use pagealloc::AllocError;

/// Why a cache could not be made. Nothing was allocated, or what was has been given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CreateError {
    /// The objects are larger, with what the checks add, than [`MAX_OBJECT_BYTES`](crate::MAX_OBJECT_BYTES).
    TooLarge {
        /// Bytes from one object to the next.
        bytes: usize,
    },
    /// There are more slots than a page block has room for.
    TooManySlots {
        /// How many.
        slots: usize,
    },
    /// The configuration's layout is not that of the cache's type.
    WrongLayout,
    /// A type-stable cache cannot have these checks: stale readers look at objects that are free, so nothing may be
    /// written into those, and they may not be kept back.
    #[doc(alias = "SLAB_POISON")]
    NotTypeStable(Checks),
    /// A [`Cache`](crate::Cache) writes a value into each object that it gives out, under the eyes of stale readers:
    /// type-stable objects are a [`StableCache`](crate::StableCache)'s.
    WritesValues,
    /// No memory for the cache's own structures.
    Memory(AllocError),
}

impl From<AllocError> for CreateError {
    fn from(error: AllocError) -> Self {
        Self::Memory(error)
    }
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { bytes } => write!(
                f,
                "objects of {bytes} bytes do not fit a slab: take pages for them, or `Kmalloc`, or fewer checks"
            ),
            Self::TooManySlots { slots } => write!(
                f,
                "{slots} slots are too many for a cache: `Cpus::nr_slots` is to say how many CPUs or threads there can be"
            ),
            Self::WrongLayout => f.write_str(
                "the configuration has another type's layout: make it by the cache's own `config`",
            ),
            Self::NotTypeStable(checks) => {
                write!(
                    f,
                    "a type-stable cache cannot have {checks:?}: leave these checks out, or test with `Stability::Delayed`"
                )
            }
            Self::WritesValues => f.write_str(
                "a cache of values cannot be type-stable: objects that readers may find after they were freed are a `StableCache`'s",
            ),
            Self::Memory(_) => f.write_str("no memory for a cache's own structures"),
        }
    }
}

impl core::error::Error for CreateError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Memory(error) => Some(error),
            _ => None,
        }
    }
}
