//! What happens inside a tree, told to whoever wants to know.
//!
//! A type parameter, not a list of listeners: a tree without a listener has no code for it.

use rcu_core::Seq;
use rcu_core::cpu::Slot;

/// Which of the two kinds of grace periods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Those that batch what is asked for.
    Normal,
    /// Those that hurry.
    Expedited,
}

impl Lane {
    /// Both, in the order in which their locks are taken.
    pub const ALL: [Self; 2] = [Self::Normal, Self::Expedited];

    /// The lane's place in an array with one element a lane.
    #[inline]
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A grace period was asked for that nobody had asked for before.
    Requested(Lane),
    /// The sequence of a lane was moved to `seq`, in progress.
    Started(Lane, Seq),
    /// Every node has been armed: what is not waited for now will not be.
    Armed(Lane),
    /// The sequence of a lane was moved to `seq`, idle.
    Ended(Lane, Seq),
    /// A word of a node was written: the counterpart of taking the kernel's node lock.
    NodeWrite {
        /// The node's level, the root's being 0.
        level: u8,
        /// The node's place on its level.
        index: u32,
    },
    /// The scan looked at a node: which of those below it are still waited for.
    NodeRead {
        /// The node's level, the root's being 0.
        level: u8,
        /// The node's place on its level.
        index: u32,
    },
    /// The scan read the word of a slot: a cache line of another CPU.
    SlotRead(Slot),
    /// A slot was credited with a quiescent state.
    Reported(Slot),
    /// A slot takes part from now on.
    Online(Slot),
    /// A slot takes part no longer.
    Offline(Slot),
    /// A sleeping thread was woken.
    Wakeup,
    /// A batch of so many callbacks is about to be run.
    BatchStart(usize),
    /// A batch has been run.
    BatchEnd(usize),
    /// A grace period has been waiting for longer than the stall timeout.
    Stalled(Lane),
}

/// A listener.
///
/// Called in the middle of the tree's work, from any thread that does some of it: it must not call the tree, nor block
/// for long unless delay is what is wanted (tests widen races that way: G23). Nor must it panic: grace periods then may
/// never end and callbacks never run, though none too early.
pub trait Trace {
    /// Told of `event`.
    fn event(&self, event: Event);
}

/// No listener: no code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoTrace;

impl Trace for NoTrace {
    #[inline(always)]
    fn event(&self, _event: Event) {}
}

impl<T: Trace + ?Sized> Trace for &T {
    #[inline(always)]
    fn event(&self, event: Event) {
        (**self).event(event);
    }
}
