//! Resident memory of this process.

use std::fs;

fn status(field: &str) -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// A mark to measure the peak from.
pub(crate) struct Mark(Option<usize>);

impl Mark {
    /// Forgets earlier peaks and notes what is resident now.
    pub(crate) fn now() -> Self {
        let _ = fs::write("/proc/self/clear_refs", "5");
        Self(status("VmRSS:"))
    }

    /// KiB that were resident at the peak beyond the mark.
    pub(crate) fn peak_extra_kib(&self) -> usize {
        match (self.0, status("VmHWM:")) {
            (Some(base), Some(peak)) => peak.saturating_sub(base),
            _ => 0,
        }
    }
}
