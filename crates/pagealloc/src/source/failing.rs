//! A source that refuses, for tests of what happens then.

use super::{Decommit, Range, Source, SourceError, Span};
use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Another source, some of whose [`grow`](Source::grow) calls fail. Never eager.
#[derive(Debug)]
pub struct Failing<S> {
    inner: S,
    /// The first call that fails, and the first one after it that does not.
    fail: core::ops::Range<usize>,
    calls: AtomicUsize,
    failures: AtomicUsize,
}

impl<S> Failing<S> {
    /// Fails at the `n`-th call, counted from 0, and at no other.
    pub const fn at(inner: S, n: usize) -> Self {
        Self::within(inner, n, n + 1)
    }

    /// Fails at the `n`-th call, counted from 0, and at all later ones.
    pub const fn after(inner: S, n: usize) -> Self {
        Self::within(inner, n, usize::MAX)
    }

    const fn within(inner: S, start: usize, end: usize) -> Self {
        Self {
            inner,
            fail: start..end,
            calls: AtomicUsize::new(0),
            failures: AtomicUsize::new(0),
        }
    }

    /// How often `grow` was called.
    pub fn calls(&self) -> usize {
        // ORDERING: Relaxed: a counter.
        self.calls.load(Ordering::Relaxed)
    }

    /// How often it failed by this wrapper's doing.
    pub fn failures(&self) -> usize {
        // ORDERING: Relaxed: a counter.
        self.failures.load(Ordering::Relaxed)
    }
}

// SAFETY: every range and the metadata are the inner source's; failing changes nothing.
unsafe impl<S: Source> Source for Failing<S> {
    fn span(&self) -> Span {
        self.inner.span()
    }

    fn metadata(&self, layout: Layout) -> Result<NonNull<u8>, SourceError> {
        self.inner.metadata(layout)
    }

    fn grow(&self, min_pages: usize) -> Result<Range, SourceError> {
        // ORDERING: Relaxed: a counter.
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        if self.fail.contains(&call) {
            // ORDERING: Relaxed: a counter.
            self.failures.fetch_add(1, Ordering::Relaxed);
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

    unsafe fn add_range(&self, range: Range) -> Result<Range, SourceError> {
        // SAFETY: the caller's debt.
        unsafe { self.inner.add_range(range) }
    }

    unsafe fn remove_range(&self, range: Range) {
        // SAFETY: the caller's debt.
        unsafe { self.inner.remove_range(range) };
    }

    fn can_protect(&self) -> bool {
        self.inner.can_protect()
    }

    unsafe fn protect(&self, range: Range, accessible: bool) -> Result<(), SourceError> {
        // SAFETY: the caller's debts.
        unsafe { self.inner.protect(range, accessible) }
    }
}
