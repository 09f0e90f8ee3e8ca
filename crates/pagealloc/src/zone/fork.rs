//! A zone over a `fork`.
//!
//! `fork` shows the child every other thread as it stood between two of its instructions, and none goes on: a lock that one held
//! stays held. So whoever forks a program that goes on in the child (and does not call `exec` at once) holds the zone meanwhile, by hand or
//! as a layer of `rcu_core::fork::hold_still` (not some by hand and others so); no slot is asked for under a lock of the zone's. Then nobody is inside, and everything is whole on both sides. A page that another thread had just taken, or was just about to
//! give back, is lost in the child; a [`BitTree`](crate::BitTree), which has no locks, may lose what a thread was claiming. Lists that were
//! disabled are in use again in the child: who disabled them may not be there.

use super::Zone;
use crate::lower::Lower;
use crate::shared::SharedHeld;
use crate::source::Source;
use core::fmt;
use rcu_core::cpu::Cpus;
#[cfg(all(feature = "std", unix, not(loom)))]
use rcu_core::fork::HoldStill;

/// A zone that nobody is inside of, from [`Zone::before_fork`]. Dropping it is [`Self::after_fork_parent`].
#[must_use = "others go on as soon as this is dropped"]
pub struct ZoneFork<'a, C: Cpus, B: Lower + 'a> {
    held: SharedHeld<'a, C::Lock, B>,
    cpus: &'a C,
}

impl<C: Cpus, S: Source, B: Lower> Zone<C, S, B> {
    /// Waits until nobody is inside the zone, and keeps everybody out until the value is dropped. Not from a hook or a source of this
    /// zone, nor from a signal handler. Layers above that have such a call are held first.
    #[doc(alias = "pthread_atfork")]
    pub fn before_fork(&self) -> ZoneFork<'_, C, B> {
        ZoneFork {
            held: self.shared().hold(),
            cpus: &self.cpus,
        }
    }
}

impl<C: Cpus, B: Lower> ZoneFork<'_, C, B> {
    /// Lets others go on, in the parent.
    pub fn after_fork_parent(self) {}

    /// Makes the zone usable in the child.
    ///
    /// # Safety
    /// 1. This is the child of a fork that the caller did while it had this value, and its only thread.
    pub unsafe fn after_fork_child(self) {
        // SAFETY: the caller's debt.
        unsafe { self.held.leave_in_child(self.cpus.nr_seen()) };
    }
}

impl<C: Cpus, B: Lower> fmt::Debug for ZoneFork<'_, C, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZoneFork").finish_non_exhaustive()
    }
}

#[cfg(all(feature = "std", unix, not(loom)))]
impl<C: Cpus, S: Source, B: Lower> HoldStill for Zone<C, S, B> {
    type Held<'a>
        = ZoneFork<'a, C, B>
    where
        Self: 'a;

    fn hold(&self) -> Self::Held<'_> {
        self.before_fork()
    }

    unsafe fn let_go_in_child<'a>(held: Self::Held<'a>)
    where
        Self: 'a,
    {
        // SAFETY: the caller's debt.
        unsafe { held.after_fork_child() };
    }
}
