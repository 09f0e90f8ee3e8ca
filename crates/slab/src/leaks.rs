//! Who has objects of a cache.

use crate::config::Shape;
use arrayvec::ArrayVec;
use core::fmt;
use core::panic::Location;
use core::ptr::NonNull;

/// As many places in the program are told apart; a report needs no memory but its own.
const MAX_SITES: usize = 32;

/// Live objects that were allocated by one line of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeakSite {
    /// The line; `None` where owners are not noted, or the note was overwritten.
    pub allocated_by: Option<&'static Location<'static>>,
    /// How many objects there are.
    pub objects: usize,
    /// One of them.
    pub sample: NonNull<u8>,
}

// SAFETY: the sample is an address to be shown; nothing here follows it.
unsafe impl Send for LeakSite {}
// SAFETY: as above.
unsafe impl Sync for LeakSite {}

/// Which objects of a cache users have: [`RawCache::leak_report`](crate::RawCache::leak_report). Displayed as a line a site,
/// the most objects first.
#[derive(Clone, Debug)]
#[must_use]
pub struct LeakReport {
    name: &'static str,
    bytes: usize,
    live: usize,
    sites: ArrayVec<LeakSite, MAX_SITES>,
}

impl LeakReport {
    pub(crate) fn new(shape: &Shape) -> Self {
        Self {
            name: shape.name,
            bytes: shape.layout.size(),
            live: 0,
            sites: ArrayVec::new(),
        }
    }

    /// Takes in objects of which nothing is known.
    pub(crate) fn count(&mut self, objects: usize) {
        self.live += objects;
    }

    pub(crate) fn add(&mut self, object: NonNull<u8>, by: Option<&'static Location<'static>>) {
        self.live += 1;
        if let Some(site) = self.sites.iter_mut().find(|s| s.allocated_by == by) {
            site.objects += 1;
            return;
        }
        // What finds no place is in `live` still.
        let _ = self.sites.try_push(LeakSite {
            allocated_by: by,
            objects: 1,
            sample: object,
        });
    }

    /// The cache's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// How many objects users have.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live
    }

    /// Where they were allocated, at most 32 places, in no order.
    #[must_use]
    pub fn sites(&self) -> &[LeakSite] {
        &self.sites
    }
}

impl fmt::Display for LeakReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name, bytes, live, ..
        } = self;
        write!(f, "cache {name}: {live} objects of {bytes} bytes live")?;
        let mut sites = self.sites.clone();
        sites.sort_unstable_by_key(|site| core::cmp::Reverse(site.objects));
        let mut shown = 0;
        for site in &sites {
            shown += site.objects;
            write!(f, "\n  {:>8} allocated ", site.objects)?;
            match site.allocated_by {
                Some(by) => write!(f, "at {by}")?,
                None => f.write_str("somewhere")?,
            }
            write!(f, ", such as {:p}", site.sample)?;
        }
        if shown > 0 && shown < *live {
            write!(f, "\n  {:>8} allocated at other places", live - shown)?;
        }
        Ok(())
    }
}
