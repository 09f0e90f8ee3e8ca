//! What must hold at every moment, and in every future.

use super::{Action, Before, Small};

impl Small {
    /// What must hold at every moment.
    pub(super) fn check(&self) -> Result<(), String> {
        let ghost = self.ghost.borrow();
        let polled = self.gp.polled();
        if let Some(small) = &ghost.small {
            let done = polled.poll(small.small);
            if done && small.inside != 0 {
                return Err("R1: a small cookie is done under a reader".into());
            }
            if !done && small.ended.contains(&2) {
                return Err("R7: a small cookie is not done after two grace periods".into());
            }
            let full = ghost.full.filter(|_| ghost.full_first);
            if done && full.is_some_and(|full| !self.gp.poll_full(full.full)) {
                return Err("I2: a small cookie is done before a full one taken earlier".into());
            }
        }
        if let Some(full) = &ghost.full {
            let done = self.gp.poll_full(full.full);
            if done && full.inside != 0 {
                return Err("R1: a full cookie is done under a reader".into());
            }
            if !done && full.ended != [0, 0] {
                return Err("R8: a full cookie has missed a grace period".into());
            }
        }
        if !ghost.numbering {
            let ready = self.list.borrow().seglens()[0];
            let early = |b: &Before| b.inside != 0 || !polled.poll(b.small);
            if ghost.calls[..ready].iter().flatten().any(early) {
                return Err("R5: a callback is ready before its grace period has ended".into());
            }
        }
        Ok(())
    }

    /// What must hold once every section is left, from the present state on.
    pub(super) fn check_end(&self) -> Result<(), String> {
        for s in 0..self.scope.slots {
            if self.is_possible(Action::MovedOff(s)) {
                self.perform(Action::MovedOff(s), None)?;
            }
            while self.is_possible(Action::Exit(s)) {
                self.perform(Action::Exit(s), None)?;
            }
        }
        for i in 0..self.scope.shared {
            if self.is_possible(Action::ExitShared(i)) {
                self.perform(Action::ExitShared(i), None)?;
            }
        }
        // Each needs two grace periods at the most, and a callback that has no number yet one more.
        for _ in 0..3 {
            for action in [Action::Number, Action::Run] {
                if self.is_possible(action) {
                    self.perform(action, None)?;
                }
            }
            for &lane in self.scope.lanes {
                self.perform(Action::Drive(lane), None)?;
            }
        }
        if self.is_possible(Action::Run) {
            self.perform(Action::Run, None)?;
        }
        let ghost = self.ghost.borrow();
        if self.scope.lanes.iter().any(|&lane| self.gp.is_needed(lane)) {
            return Err("T37, T41: a grace period does not end though nobody is inside".into());
        }
        let asked = |b: &Option<Before>| b.filter(|b| b.asked.is_some());
        if asked(&ghost.small).is_some_and(|b| !self.gp.polled().poll(b.small)) {
            return Err("T36: the small cookie was asked for and is not done".into());
        }
        if asked(&ghost.full).is_some_and(|b| !self.gp.poll_full(b.full)) {
            return Err("T36: the full cookie was asked for and is not done".into());
        }
        if ghost.nr_calls() > 0 {
            return Err("T39: a callback never runs".into());
        }
        Ok(())
    }
}
