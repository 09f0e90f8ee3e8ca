//! Why a zone could not be made.

use crate::source::SourceError;
use core::fmt;

/// Why a zone could not be made. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ZoneError {
    /// The source has no memory for the zone's own structures, or none at all.
    Source(SourceError),
    /// The span is empty, or has more pages than 32 bits can number.
    Pages(usize),
}

impl From<SourceError> for ZoneError {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

impl fmt::Display for ZoneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(error) => error.fmt(f),
            Self::Pages(pages) => write!(f, "a zone cannot have {pages} pages"),
        }
    }
}

impl core::error::Error for ZoneError {}
