//! What all roles share.

use super::Padded;
use super::element::{Element, POOLED};
use super::order::Order;
use super::subject::Subject;
use crate::books::PIPE;
use crate::random::Random;
use crate::stage::Stage;
use std::fmt::Write;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// How many elements are published at a time.
const CELLS: usize = 4;
/// How many there are, as with rcutorture: a pipe's length for each of a few writers.
const ELEMENTS: usize = 20 * PIPE;

pub(crate) struct World<R: Subject> {
    pub(crate) rcu: R,
    pub(crate) stage: &'static Stage,
    pub(crate) order: Order,
    cells: [Padded<AtomicPtr<Element<R>>>; CELLS],
    elements: OnceLock<Box<[Element<R>]>>,
    pool: Mutex<Vec<&'static Element<R>>>,
    /// Callbacks of readers that have not run yet.
    pub(crate) outstanding: AtomicUsize,
}

impl<R: Subject> World<R> {
    pub(crate) fn new(rcu: R, stage: &'static Stage, readers: usize) -> &'static Self {
        let world: &'static Self = Box::leak(Box::new(Self {
            rcu,
            stage,
            order: Order::new(readers),
            cells: [const { Padded(AtomicPtr::new(ptr::null_mut())) }; CELLS],
            elements: OnceLock::new(),
            pool: Mutex::default(),
            outstanding: AtomicUsize::new(0),
        }));
        let made = || (0..ELEMENTS).map(|_| Element::new(world)).collect();
        let elements = world.elements.get_or_init(made);
        world.pool().extend(elements);
        for cell in 0..CELLS {
            if let Some(first) = world.take() {
                world.publish(cell, first);
            }
        }
        world
    }

    fn pool(&self) -> std::sync::MutexGuard<'_, Vec<&'static Element<R>>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An element that can be published.
    pub(crate) fn take(&self) -> Option<&'static Element<R>> {
        let element = self.pool().pop()?;
        element.revive();
        Some(element)
    }

    pub(crate) fn give_back(&self, element: &'static Element<R>) {
        self.pool().push(element);
    }

    /// Publishes `new`; what was there is the caller's to retire.
    pub(crate) fn publish(
        &self,
        cell: usize,
        new: &'static Element<R>,
    ) -> Option<&'static Element<R>> {
        let new = ptr::from_ref(new).cast_mut();
        let old = self.cells[cell % CELLS].0.swap(new, Ordering::AcqRel);
        // SAFETY: elements live for ever.
        let old = unsafe { old.as_ref() }?;
        old.remove();
        Some(old)
    }

    /// What is published in some cell. Inside a section, or what comes back may be anything's.
    pub(crate) fn load(&self, random: &mut Random) -> &'static Element<R> {
        let element = self.cells[random.below(CELLS)].0.load(Ordering::Acquire);
        // SAFETY: cells were filled in `new`, and elements live for ever.
        unsafe { &*element }
    }

    /// Elements by stage: published, removed, one grace period on, and so forth; last those in the pool.
    fn circulation(&self) -> [usize; PIPE + 1] {
        let mut stages = [0; PIPE + 1];
        for element in self.elements.get().into_iter().flatten() {
            let stage = element.stage();
            stages[if stage == POOLED { PIPE } else { stage }] += 1;
        }
        stages
    }

    /// Whether all but the published elements are in the pool; if not, where they are.
    pub(crate) fn stuck(&self) -> Option<String> {
        let stages = self.circulation();
        if stages[0] == CELLS && stages[PIPE] == ELEMENTS - CELLS {
            return None;
        }
        let mut text = String::new();
        for (stage, n) in stages.iter().enumerate().filter(|(_, n)| **n > 0) {
            // Writing to a string does not fail.
            let _ = match stage {
                0 => write!(text, "{n} published"),
                PIPE => write!(text, ", {n} in the pool"),
                _ => write!(text, ", {n} at {stage}"),
            };
        }
        Some(text)
    }
}
