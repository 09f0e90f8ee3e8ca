//! What measured rows are judged to be.

use std::fmt;

/// One target or bound, and whether these runs keep it.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) holds: bool,
    pub(crate) text: String,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.holds {
            "holds      "
        } else {
            "FALLS SHORT"
        };
        write!(f, "{word}  {}", self.text)
    }
}
