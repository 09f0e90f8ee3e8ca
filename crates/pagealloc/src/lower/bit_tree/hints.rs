//! Where to look: for 64 areas each, which of them may have free pages, and which a whole half.
//!
//! Why bits that change when an area runs dry or comes back, and not counts as LLFree's trees have: every batch would write them,
//! and two slots in neighbouring areas would pass the line to and fro.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `some` | bit `a`: area `a` may have free pages | who made it so (set); a searcher that found none (clear) |
//! | `whole` | bit `a`: area `a` may have a whole half | as above |
//!
//! # Invariants
//! - I1. When nobody is under way, an area with free pages has its bit in `some`, and one with a whole half in `whole`.
//!
//! # Orderings
//! - P7 (hints). Giver: count added, then the bit set (Release) / searcher: bit cleared (Acquire), then the count read again. Forbids
//!   that the bit stays cleared for an area whose giver has come and gone: either the setting comes after the clearing, or the clearing
//!   reads the set bit, and what is read next is the giver's count or a later one.

#![deny(unsafe_code)]

use super::area::News;
use rcu_core::sync::atomic::{AtomicU64, Ordering};

/// Areas that one value covers.
pub(super) const SPAN: usize = 64;

/// P7 (hints), and its mutant.
#[inline(always)]
fn clear_order() -> Ordering {
    if rcu_core::weakened!("p7_hints") {
        Ordering::Relaxed
    } else {
        Ordering::Acquire
    }
}

/// Hints for 64 areas. All-zero bytes: nothing anywhere.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Hints {
    some: AtomicU64,
    whole: AtomicU64,
}

/// Which of the hints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Free pages.
    Some,
    /// A whole half.
    Whole,
}

impl Hints {
    fn word(&self, kind: Kind) -> &AtomicU64 {
        match kind {
            Kind::Some => &self.some,
            Kind::Whole => &self.whole,
        }
    }

    /// The areas that may have what is asked for.
    pub(super) fn load(&self, kind: Kind) -> u64 {
        // ORDERING: Relaxed: a hint; what is missed came after the caller began.
        self.word(kind).load(Ordering::Relaxed)
    }

    /// Notes what became true of the area numbered `area` here.
    pub(super) fn note(&self, area: usize, news: News) {
        for (kind, is_new) in [(Kind::Some, news.some), (Kind::Whole, news.whole)] {
            if is_new {
                // ORDERING: P7 (hints, giver).
                self.word(kind).fetch_or(1 << area, Ordering::Release);
            }
        }
    }

    /// Forgets an area that `has` says has nothing, unless it says something else afterwards.
    pub(super) fn forget(&self, area: usize, kind: Kind, has: impl Fn() -> bool) {
        if has() {
            return;
        }
        // ORDERING: P7 (hints, searcher).
        self.word(kind).fetch_and(!(1 << area), clear_order());
        if has() {
            // ORDERING: P7 (hints): as a giver.
            self.word(kind).fetch_or(1 << area, Ordering::Release);
        }
    }
}
