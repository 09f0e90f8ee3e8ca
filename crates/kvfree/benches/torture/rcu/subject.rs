//! What can be tortured.

use crate::random::Random;
use rcu_core::{Guard, Rcu, RcuSend, SendGuard};
use serde_json::Value;
use std::time::Duration;

/// A section on its way to another thread: dropping it ends it.
pub(crate) type Parcel = Box<dyn Send>;

/// An RCU under test. To torture another one: implement this for it, and add a scenario.
pub(crate) trait Subject: Rcu + Copy + Send + Sync + 'static {
    /// A section that belongs to no thread, if there is such a thing.
    fn enter_send(self) -> Option<Parcel> {
        None
    }

    /// Moves a section off its thread, if it can be.
    fn move_off(_guard: Guard<Self>) -> Option<Parcel> {
        None
    }

    /// Called by every thread now and then, outside of sections: what an owner of callbacks has to do for them.
    fn breathe(self) {}

    /// Turns one of its own knobs, if it has some. False if not.
    fn turn_a_knob(self, _random: &mut Random) -> bool {
        false
    }

    /// Puts all knobs back.
    fn reset_knobs(self) {}

    /// After how long it tells of a stalled grace period, if it does, and how often it has.
    fn stalls(self) -> Option<(Duration, usize)> {
        None
    }

    /// What it counts itself.
    fn tell(self) -> Value {
        Value::Null
    }
}

/// The two ways into a section that leaves its thread, where the RCU has them.
pub(crate) fn enter_send<R: RcuSend + Send + 'static>(rcu: R) -> Option<Parcel>
where
    R::SendToken: 'static,
{
    Some(Box::new(SendGuard::new(rcu)))
}

pub(crate) fn move_off<R: RcuSend + Send + 'static>(guard: Guard<R>) -> Option<Parcel>
where
    R::SendToken: 'static,
{
    Some(Box::new(guard.into_send()))
}
