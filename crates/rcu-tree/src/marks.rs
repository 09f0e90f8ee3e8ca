//! What the calling thread is in the middle of that no slot of its own shows: sections of threads without a slot, or
//! whose slot is gone already, and callbacks being run.
//!
//! So that waiting there panics, where it would wait for itself. Slow paths only; a few words of the thread's own.
//! Without `std` there are no such words: [`find`] then finds nothing, and such a wait hangs.
//!
//! # Invariants
//! - I1. A mark stands for something the thread is still in, so there are no false alarms. There may be none for
//!   something it is in: when more than [`MARKS`] things nest.

use crate::place::Caller;

/// What a thread may be in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    /// A section that its own slot does not count.
    Section,
    /// Running callbacks.
    Callbacks,
}

/// What is known of something found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where it began.
    pub(crate) place: Option<Caller>,
}

/// Notes `doing` until the value is dropped.
#[derive(Debug)]
pub(crate) struct Mark(*const (), Doing);

impl Mark {
    /// The thread does `doing` with `tree`.
    pub(crate) fn new(tree: *const (), doing: Doing) -> Self {
        enter(tree, doing, None);
        Self(tree, doing)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        leave(self.0, self.1);
    }
}

#[cfg(all(feature = "std", not(loom)))]
pub(crate) use with_threads::{enter, find, forget, leave};
#[cfg(not(all(feature = "std", not(loom))))]
pub(crate) use without_threads::{enter, find, forget, leave};

#[cfg(not(all(feature = "std", not(loom))))]
mod without_threads {
    use super::{Caller, Doing, Found};

    pub(crate) fn enter(_tree: *const (), _doing: Doing, _place: Option<Caller>) {}

    pub(crate) fn leave(_tree: *const (), _doing: Doing) {}

    pub(crate) fn forget(_tree: *const ()) {}

    pub(crate) fn find(_tree: *const (), _doing: Doing) -> Option<Found> {
        None
    }
}

#[cfg(all(feature = "std", not(loom)))]
mod with_threads {
    use super::{Caller, Doing, Found};
    use std::cell::Cell;
    use std::ptr;

    /// Trees, and things done with them, that a thread can be marked for at the same time.
    const MARKS: usize = 8;

    #[derive(Clone, Copy)]
    struct Entry {
        tree: *const (),
        doing: Doing,
        depth: usize,
        place: Option<Caller>,
    }

    const FREE: Entry = Entry {
        tree: ptr::null(),
        doing: Doing::Section,
        depth: 0,
        place: None,
    };

    thread_local! {
        // Without a destructor, so that it is there while other thread-locals are being destroyed.
        static ENTRIES: [Cell<Entry>; MARKS] = const { [const { Cell::new(FREE) }; MARKS] };
    }

    fn with_entry<R>(
        which: impl Fn(&Entry) -> bool,
        then: impl FnOnce(&Cell<Entry>) -> R,
    ) -> Option<R> {
        ENTRIES.with(|entries| entries.iter().find(|entry| which(&entry.get())).map(then))
    }

    fn same(tree: *const (), doing: Doing) -> impl Fn(&Entry) -> bool {
        move |entry| entry.depth > 0 && entry.tree == tree && entry.doing == doing
    }

    /// Notes that the thread does `doing` with `tree`, once more.
    pub(crate) fn enter(tree: *const (), doing: Doing, place: Option<Caller>) {
        let deeper = |entry: &Cell<Entry>| {
            let old = entry.get();
            entry.set(Entry {
                depth: old.depth + 1,
                ..old
            });
        };
        let first = |entry: &Cell<Entry>| {
            entry.set(Entry {
                tree,
                doing,
                depth: 1,
                place,
            });
        };
        if with_entry(same(tree, doing), deeper).is_none() {
            // I1: none free: nothing will be found.
            let _ = with_entry(|entry| entry.depth == 0, first);
        }
    }

    /// Takes one such note back.
    pub(crate) fn leave(tree: *const (), doing: Doing) {
        let _ = with_entry(same(tree, doing), |entry| {
            let old = entry.get();
            entry.set(Entry {
                depth: old.depth - 1,
                ..old
            });
        });
    }

    /// Takes every note about `tree` back: what the thread was in the middle of is no more, in the child of a fork.
    pub(crate) fn forget(tree: *const ()) {
        let of_tree = |entry: &Entry| entry.depth > 0 && entry.tree == tree;
        while with_entry(of_tree, |entry| entry.set(FREE)).is_some() {}
    }

    /// Whether the thread does `doing` with `tree`.
    pub(crate) fn find(tree: *const (), doing: Doing) -> Option<Found> {
        with_entry(same(tree, doing), |entry| Found {
            place: entry.get().place,
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn marks_nest_and_know_their_trees() {
            let (a, b) = (ptr::without_provenance(8), ptr::without_provenance(16));
            enter(a, Doing::Section, None);
            enter(a, Doing::Section, None);
            assert!(find(b, Doing::Section).is_none() && find(a, Doing::Callbacks).is_none());
            leave(a, Doing::Section);
            assert!(find(a, Doing::Section).is_some());
            leave(a, Doing::Section);
            assert!(find(a, Doing::Section).is_none());
        }

        #[test]
        fn what_finds_no_room_is_not_found_and_harms_nothing() {
            let tree = |n: usize| ptr::without_provenance(8 * (n + 1));
            for n in 0..=MARKS {
                enter(tree(n), Doing::Section, None);
            }
            assert!(find(tree(0), Doing::Section).is_some());
            assert!(find(tree(MARKS), Doing::Section).is_none());
            for n in (0..=MARKS).rev() {
                leave(tree(n), Doing::Section);
            }
            assert!((0..=MARKS).all(|n| find(tree(n), Doing::Section).is_none()));
        }
    }
}
