//! What the calling thread is in the middle of that no slot of its own shows: sections of threads without a slot, or
//! whose slot is gone already, and callbacks being run.
//!
//! So that waiting there panics, where it would wait for itself; and so that such sections of one thread are one section
//! where they overlap ([`nest`]). Slow paths only; a few words of the thread's own. Without `std` there are no such words:
//! [`find`] and [`nest`] then find nothing, such a wait hangs, and each such section counts for itself.
//!
//! # Invariants
//! - I1. A mark stands for something the thread is still in, so there are no false alarms. There may be none for
//!   something it is in: when more than [`MARKS`] things nest.

use crate::place::Caller;
use crate::shared_readers::{NR_COUNTS, Place};
use rcu_core::cpu::Slot;

/// What a thread may be in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    /// A section that its own slot does not count.
    Section,
    /// Running callbacks.
    Callbacks,
}

/// Where a section is counted that its thread's own slot does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counted {
    /// Among the shared readers.
    At(Place),
    /// By the slot that was the thread's, which lingers.
    By(Slot),
}

/// The sections of one thread and tree that its own slot does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nest {
    /// Of those among the shared readers, how many are counted where.
    alive: [usize; NR_COUNTS],
    /// One of these places, and whether it is that of all.
    at: Option<Place>,
    is_at_one: bool,
    by: Option<Slot>,
}

#[cfg(all(feature = "std", not(loom)))]
impl Nest {
    const NONE: Self = Self {
        alive: [0; NR_COUNTS],
        at: None,
        is_at_one: true,
        by: None,
    };

    fn enter(&mut self, counted: Counted) {
        match counted {
            Counted::At(place) => {
                self.alive[place.count()] += 1;
                self.is_at_one &= self.at.is_none_or(|at| at == place);
                self.at = Some(place);
            }
            Counted::By(slot) => self.by = Some(slot),
        }
    }

    fn leave(&mut self, counted: Counted) {
        match counted {
            Counted::At(place) => self.alive[place.count()] -= 1,
            Counted::By(_) => self.by = None,
        }
        // What is at no place any more says nothing about the next.
        if self.alive == [0; NR_COUNTS] {
            (self.at, self.is_at_one) = (None, true);
        }
    }
}

impl Nest {
    /// The place where all of them are counted, if it is one.
    pub(crate) const fn place(&self) -> Option<Place> {
        if self.is_at_one && self.by.is_none() {
            self.at
        } else {
            None
        }
    }

    /// The slot that lingers.
    pub(crate) const fn slot(&self) -> Option<Slot> {
        self.by
    }

    /// Whether any is counted where `of` says yes: the index of a count among the shared readers.
    pub(crate) fn any(&self, of: impl Fn(usize) -> bool) -> bool {
        (0..NR_COUNTS).any(|count| self.alive[count] > 0 && of(count))
    }
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
        enter(tree, doing, None, None);
        Self(tree, doing)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        leave(self.0, self.1, None);
    }
}

#[cfg(all(feature = "std", not(loom)))]
pub(crate) use with_threads::{enter, find, forget, leave, nest};
#[cfg(not(all(feature = "std", not(loom))))]
pub(crate) use without_threads::{enter, find, forget, leave, nest};

#[cfg(not(all(feature = "std", not(loom))))]
mod without_threads {
    use super::{Caller, Counted, Doing, Found, Nest};

    pub(crate) fn enter(
        _tree: *const (),
        _doing: Doing,
        _place: Option<Caller>,
        _counted: Option<Counted>,
    ) {
    }

    pub(crate) fn leave(_tree: *const (), _doing: Doing, _counted: Option<Counted>) {}

    pub(crate) fn nest(_tree: *const ()) -> Option<Nest> {
        None
    }

    pub(crate) fn forget(_tree: *const ()) {}

    pub(crate) fn find(_tree: *const (), _doing: Doing) -> Option<Found> {
        None
    }
}

#[cfg(all(feature = "std", not(loom)))]
mod with_threads {
    use super::{Caller, Counted, Doing, Found, Nest};
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
        nest: Nest,
    }

    const FREE: Entry = Entry {
        tree: ptr::null(),
        doing: Doing::Section,
        depth: 0,
        place: None,
        nest: Nest::NONE,
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

    /// Notes that the thread does `doing` with `tree`, once more; of a section, where it is counted.
    pub(crate) fn enter(
        tree: *const (),
        doing: Doing,
        place: Option<Caller>,
        counted: Option<Counted>,
    ) {
        let with = |mut nest: Nest| {
            counted.into_iter().for_each(|counted| nest.enter(counted));
            nest
        };
        let deeper = |entry: &Cell<Entry>| {
            let old = entry.get();
            entry.set(Entry {
                depth: old.depth + 1,
                nest: with(old.nest),
                ..old
            });
        };
        let first = |entry: &Cell<Entry>| {
            entry.set(Entry {
                tree,
                doing,
                depth: 1,
                place,
                nest: with(Nest::NONE),
            });
        };
        if with_entry(same(tree, doing), deeper).is_none() {
            // I1: none free: nothing will be found.
            let _ = with_entry(|entry| entry.depth == 0, first);
        }
    }

    /// Takes one such note back.
    pub(crate) fn leave(tree: *const (), doing: Doing, counted: Option<Counted>) {
        let _ = with_entry(same(tree, doing), |entry| {
            let old = entry.get();
            let mut nest = old.nest;
            counted.into_iter().for_each(|counted| nest.leave(counted));
            entry.set(Entry {
                depth: old.depth - 1,
                nest,
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

    /// The sections of `tree` that the thread is in and its own slot does not count, if there are any.
    pub(crate) fn nest(tree: *const ()) -> Option<Nest> {
        with_entry(same(tree, Doing::Section), |entry| entry.get().nest)
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::shared_readers::Place;
        use rcu_core::cpu::Slot;

        #[test]
        fn a_nest_is_at_one_place_until_a_slot_or_another_place_joins() {
            let tree = ptr::without_provenance(8);
            let at = |raw| Some(Counted::At(Place::from_raw(raw)));
            let place = || nest(tree).map(|nest| nest.place().map(Place::raw));
            assert_eq!(place(), None, "inside of nothing");
            enter(tree, Doing::Section, None, at(5));
            enter(tree, Doing::Section, None, at(5));
            assert_eq!(place(), Some(Some(5)));
            leave(tree, Doing::Section, at(5));
            enter(tree, Doing::Section, None, at(6));
            assert_eq!(place(), Some(None), "at two places");
            let any = |count| nest(tree).is_some_and(|nest| nest.any(|c| c == count));
            assert!(any(1) && any(2) && !any(0));
            leave(tree, Doing::Section, at(5));
            leave(tree, Doing::Section, at(6));
            assert_eq!(place(), None);
            let by = Some(Counted::By(Slot::new(3)));
            enter(tree, Doing::Section, None, by);
            enter(tree, Doing::Section, None, at(7));
            assert_eq!(place(), Some(None), "by a slot, too");
            assert_eq!(nest(tree).and_then(|nest| nest.slot()), Some(Slot::new(3)));
            leave(tree, Doing::Section, by);
            assert_eq!(place(), Some(Some(7)));
            leave(tree, Doing::Section, at(7));
            assert_eq!(place(), None);
        }

        #[test]
        fn marks_nest_and_know_their_trees() {
            let (a, b) = (ptr::without_provenance(8), ptr::without_provenance(16));
            enter(a, Doing::Section, None, None);
            enter(a, Doing::Section, None, None);
            assert!(find(b, Doing::Section).is_none() && find(a, Doing::Callbacks).is_none());
            leave(a, Doing::Section, None);
            assert!(find(a, Doing::Section).is_some());
            leave(a, Doing::Section, None);
            assert!(find(a, Doing::Section).is_none());
        }

        #[test]
        fn what_finds_no_room_is_not_found_and_harms_nothing() {
            let tree = |n: usize| ptr::without_provenance(8 * (n + 1));
            for n in 0..=MARKS {
                enter(tree(n), Doing::Section, None, None);
            }
            assert!(find(tree(0), Doing::Section).is_some());
            assert!(find(tree(MARKS), Doing::Section).is_none());
            for n in (0..=MARKS).rev() {
                leave(tree(n), Doing::Section, None);
            }
            assert!((0..=MARKS).all(|n| find(tree(n), Doing::Section).is_none()));
        }
    }
}
