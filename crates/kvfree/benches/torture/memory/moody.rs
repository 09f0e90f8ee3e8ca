//! A source of pages that refuses at random.

use crate::random::Random;
use pagealloc::{Decommit, Range, Source, SourceError, Span};
use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Another source, whose [`grow`](Source::grow) is refused so often in four calls.
#[derive(Debug)]
pub(crate) struct Moody<S> {
    inner: S,
    seed: u64,
    refuses: AtomicUsize,
    calls: AtomicU64,
}

impl<S> Moody<S> {
    pub(crate) const fn new(inner: S, seed: u64, refuses: usize) -> Self {
        Self {
            inner,
            seed,
            refuses: AtomicUsize::new(refuses),
            calls: AtomicU64::new(0),
        }
    }
}

// SAFETY: every range and the metadata are the inner source's; refusing changes nothing.
unsafe impl<S: Source> Source for Moody<S> {
    fn span(&self) -> Span {
        self.inner.span()
    }

    fn metadata(&self, layout: Layout) -> Result<NonNull<u8>, SourceError> {
        self.inner.metadata(layout)
    }

    fn grow(&self, min_pages: usize) -> Result<Range, SourceError> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let mut random = Random::of(self.seed, "source", 0, call);
        if random.below(4) < self.refuses.load(Ordering::Relaxed) {
            return Err(SourceError::Exhausted);
        }
        self.inner.grow(min_pages)
    }

    unsafe fn decommit(&self, range: Range) -> bool {
        // SAFETY: the caller's debt.
        unsafe { self.inner.decommit(range) }
    }

    fn decommit_policy(&self) -> Decommit {
        self.inner.decommit_policy()
    }
}
