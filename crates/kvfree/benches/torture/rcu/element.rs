//! The elements that readers find and writers replace.
//!
//! # Life
//! A fixed pool. A writer takes an element from the pool, publishes it in a cell (stage 0), and removes what was there
//! (stage 1). After each further grace period the element goes on by one stage, by a callback that queues itself again or
//! by the writer that waited; after [`LAST`] it is recycled. A reader that holds an element of stage 2 or more lives across
//! a grace period that began after it had entered: the grace period was too short. That recycling is so far off is what
//! makes the mistake visible: the element is still what it was.

use super::subject::Subject;
use super::world::World;
use crate::books::{Count, Fault, PIPE};
use rcu_core::{Callback, Head};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The stage after which an element is recycled.
const LAST: usize = PIPE - 1;
/// Of an element that is in the pool.
pub(crate) const POOLED: usize = usize::MAX;

const CANARY: usize = 0x7042_7e57_e1e3_0001;

/// One reader's note on another: see `order`.
#[derive(Default)]
pub(crate) struct Note {
    /// 0: none; [`BUSY`]: being written; otherwise whom it is about, plus one.
    who: AtomicUsize,
    rounds: AtomicUsize,
}

const BUSY: usize = usize::MAX;

impl Note {
    /// Notes how far `who` is, unless there is a note.
    pub(crate) fn write(&self, who: usize, rounds: impl FnOnce() -> usize) {
        let free = self.who.load(Ordering::Relaxed) == 0;
        let claim = || {
            self.who
                .compare_exchange(0, BUSY, Ordering::Relaxed, Ordering::Relaxed)
        };
        if free && claim().is_ok() {
            self.rounds.store(rounds(), Ordering::Relaxed);
            // Relaxed: that whoever takes it sees both words is what the grace period in between is for.
            self.who.store(who + 1, Ordering::Relaxed);
        }
    }

    /// Takes the note out, after a grace period in which its element was removed.
    pub(crate) fn take(&self) -> Option<(usize, usize)> {
        let who = self.who.load(Ordering::Relaxed);
        if who == 0 || who == BUSY {
            return None;
        }
        let rounds = self.rounds.load(Ordering::Relaxed);
        self.who.store(0, Ordering::Relaxed);
        Some((who - 1, rounds))
    }
}

#[repr(C)]
pub(crate) struct Element<R: Subject> {
    head: Head,
    canary: usize,
    stage: AtomicUsize,
    /// 1 from before it is published until it is recycled.
    alive: AtomicUsize,
    /// How often it has been published.
    pub(crate) life: AtomicUsize,
    pub(crate) note: Note,
    world: &'static World<R>,
}

impl<R: Subject> Element<R> {
    pub(crate) fn new(world: &'static World<R>) -> Self {
        Self {
            head: Head::new(),
            canary: CANARY,
            stage: AtomicUsize::new(POOLED),
            alive: AtomicUsize::new(0),
            life: AtomicUsize::new(0),
            note: Note::default(),
            world,
        }
    }

    pub(crate) fn stage(&self) -> usize {
        self.stage.load(Ordering::Relaxed)
    }

    /// Whether it is what a reader may look at.
    pub(crate) fn is_alive(&self) -> bool {
        self.canary == CANARY && self.alive.load(Ordering::Relaxed) == 1
    }

    /// Makes it ready to be published.
    pub(crate) fn revive(&self) {
        self.stage.store(0, Ordering::Relaxed);
        self.alive.store(1, Ordering::Relaxed);
        let life = self.life.load(Ordering::Relaxed);
        self.life.store(life.wrapping_add(1), Ordering::Relaxed);
    }

    /// It has been unlinked.
    pub(crate) fn remove(&self) {
        self.world.stage.books.came_to(1);
        self.stage.store(1, Ordering::Relaxed);
    }

    /// A grace period has passed since the last stage. True if it goes on, false if it was recycled.
    pub(crate) fn advance(&'static self) -> bool {
        let stage = self.stage();
        let books = &self.world.stage.books;
        if stage == POOLED || stage == 0 {
            books.fault(Fault::Twice, || {
                let state = if stage == 0 {
                    "published"
                } else {
                    "in the pool"
                };
                format!("a callback for an element that is {state}")
            });
            return false;
        }
        if stage == 1
            && let Some((who, rounds)) = self.note.take()
        {
            self.world.order.hand_out(who, rounds);
        }
        if stage < LAST {
            self.stage.store(stage + 1, Ordering::Relaxed);
            books.came_to(stage + 1);
            return true;
        }
        self.alive.store(0, Ordering::Relaxed);
        self.stage.store(POOLED, Ordering::Relaxed);
        self.world.give_back(self);
        false
    }

    /// Queues the callback that advances it, again and again until it is recycled.
    pub(crate) fn call(&'static self, lazily: bool) {
        let head = NonNull::from(&self.head);
        let (rcu, callback) = (self.world.rcu, Callback::Run(advance_by_callback::<R>));
        if lazily {
            // SAFETY: elements live for ever; this one was unlinked by its writer, and its head is on no list: the writer
            // or the callback has it. Readers do not touch the head.
            unsafe { rcu.call_lazy(head, callback) };
        } else {
            // SAFETY: as above.
            unsafe { rcu.call(head, callback) };
        }
    }
}

/// # Safety
/// 1. `head` belongs to an `Element<R>`, whose grace period is over.
unsafe fn advance_by_callback<R: Subject>(head: NonNull<Head>) {
    // SAFETY: the head is the element's first field (`repr(C)`), and elements live for ever.
    let element: &'static Element<R> = unsafe { head.cast().as_ref() };
    element.world.stage.books.one(Count::Calls);
    if element.advance() {
        element.call(false);
    }
}
