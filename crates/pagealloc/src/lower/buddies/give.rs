//! Pages on their way back, arena by arena.

#![deny(unsafe_code)]

use super::Buddies;
use super::arena::Free;
use crate::api::Attempt;
use crate::runs::{Run, Runs};
use rcu_core::cpu::SpinGuard;

/// The arena that is held now: its number and its lock.
type Current<'a> = Option<(usize, SpinGuard<'a, Free>)>;

impl Buddies {
    /// Puts pages back where their areas' homes say, or on the stash.
    pub(super) fn give_runs(&self, runs: &Runs, attempt: Attempt) {
        let home = |page: u32| self.home_of(self.extent.area_of(page));
        let mut held: Current<'_> = None;
        let mut rest: &[Run] = runs;
        while let Some((&run, others)) = rest.split_first() {
            if run.end - run.first == 1 {
                // With those like it that follow.
                self.change(&mut held, home(run.first), attempt);
                if let Some((at, free)) = &mut held {
                    let mine = |page| home(page) == *at;
                    let done = free.buddy.put_singles(self.metas, rest, mine);
                    rest = &rest[done..];
                    continue;
                }
            }
            for (_, part) in self.extent.by_area(run) {
                let home = home(part.first);
                self.change(&mut held, home, attempt);
                match &mut held {
                    Some((_, free)) => free.buddy.put_run(self.metas, part),
                    None => self.stash(&self.arenas()[home], part),
                }
            }
            rest = others;
        }
        self.leave_held(&mut held);
    }

    /// Goes from the arena that is held, if any, to the one with that number, as far as `attempt` does.
    fn change<'a>(&'a self, held: &mut Current<'a>, home: usize, attempt: Attempt) {
        if held.as_ref().is_none_or(|&(at, _)| at != home) {
            // Before the next lock is waited for (I3).
            self.leave_held(held);
            *held = self
                .lock_at(&self.arenas()[home], attempt)
                .map(|free| (home, free));
        }
    }

    fn leave_held(&self, held: &mut Current<'_>) {
        if let Some((home, free)) = held.take() {
            self.arenas()[home].leave(free);
        }
    }
}
