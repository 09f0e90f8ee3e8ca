//! The door of the pages, which the forking thread closes.
//!
//! Why a door around the pages rather than all the locks inside them: they are asked for once in dozens of objects, so two atomic
//! additions do not show, and a page allocator has more locks, and of more kinds, than need be known here.
//!
//! # State
//! | word | bits | who writes |
//! |---|---|---|
//! | `word` | how many are inside; the highest bit: closed | who goes in or out; the forking thread |
//!
//! # Orderings
//! - P6. Whoever leaves: Release / the closer, who finds nobody inside: Acquire. The child then sees all that was done inside. The one
//!   who opens: Release / who goes in: Acquire.
//!
//! # Progress and contexts
//! Who comes while the door is closed waits for the fork, holding no lock of a cache's. Closing waits for who is inside; nobody goes in twice.

use core::sync::atomic::{AtomicUsize, Ordering};
use rcu_core::sync::Backoff;

const CLOSED: usize = 1 << (usize::BITS - 1);

#[derive(Debug)]
pub(super) struct Gate {
    word: AtomicUsize,
}

impl Gate {
    pub(super) const fn new() -> Self {
        Self {
            word: AtomicUsize::new(0),
        }
    }

    /// Goes in; out again when the value is dropped.
    pub(super) fn enter(&self) -> Inside<'_> {
        let backoff = Backoff::new();
        // ORDERING: P6 (who goes in).
        while self.word.fetch_add(1, Ordering::Acquire) & CLOSED != 0 {
            // ORDERING: Relaxed: nothing was done inside.
            self.word.fetch_sub(1, Ordering::Relaxed);
            // ORDERING: Relaxed: looked at again above.
            while self.word.load(Ordering::Relaxed) & CLOSED != 0 {
                backoff.snooze();
            }
        }
        Inside(self)
    }

    /// Lets nobody in, and waits until nobody is inside.
    pub(super) fn close(&self) {
        // ORDERING: Relaxed: what was done inside is waited for below.
        self.word.fetch_or(CLOSED, Ordering::Relaxed);
        let backoff = Backoff::new();
        // ORDERING: P6 (the closer). Who counts itself in just now goes out again without a look.
        while self.word.load(Ordering::Acquire) != CLOSED {
            backoff.snooze();
        }
    }

    /// Opens. In the child nobody waits in front, though somebody may have been counted.
    pub(super) fn open(&self, is_child: bool) {
        if is_child {
            // ORDERING: P6 (who opens).
            self.word.store(0, Ordering::Release);
        } else {
            // ORDERING: P6 (who opens).
            self.word.fetch_and(!CLOSED, Ordering::Release);
        }
    }
}

/// Somebody is inside.
pub(super) struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        // ORDERING: P6 (who leaves).
        self.0.word.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn nobody_is_inside_while_it_is_closed() {
        static GATE: Gate = Gate::new();
        static INSIDE: AtomicUsize = AtomicUsize::new(0);
        static STOP: AtomicBool = AtomicBool::new(false);
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    while !STOP.load(Ordering::Relaxed) {
                        let inside = GATE.enter();
                        INSIDE.fetch_add(1, Ordering::Relaxed);
                        std::thread::yield_now();
                        INSIDE.fetch_sub(1, Ordering::Relaxed);
                        drop(inside);
                    }
                });
            }
            for _ in 0..200 {
                GATE.close();
                assert_eq!(INSIDE.load(Ordering::Relaxed), 0);
                std::thread::yield_now();
                assert_eq!(INSIDE.load(Ordering::Relaxed), 0);
                GATE.open(false);
                drop(GATE.enter());
            }
            STOP.store(true, Ordering::Relaxed);
        });
        GATE.close();
        let _ = GATE.word.fetch_add(1, Ordering::Relaxed);
        GATE.open(true);
        assert_eq!(GATE.word.load(Ordering::Relaxed), 0);
    }
}
