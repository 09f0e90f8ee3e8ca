//! A stack in the child of a fork: what of it is not the front end's.
//!
//! The monitor's thread is not there, nor anyone who looked at a typed cache. What waited before the fork waits on; whoever
//! retires next makes a monitor, and a barrier sees it, too.
//!
//! A thread that was just making the stack, for the first time in the process, has left it half made: the child waits for it
//! for ever. A program that forks while others run uses the stack once before.

use super::StackDomain;
use rcu_core::cpu::Slot;

/// The stack has nothing to do when a slot goes offline: its layers have hooks of their own.
pub(super) const unsafe fn offline(_: *const (), _: Slot) -> bool {
    true
}

/// Puts the monitor and the typed caches right.
///
/// # Safety
/// 1. This is the child of a fork, and the caller its only thread, inside no function of the stack.
pub(super) unsafe fn forked<D: StackDomain>(_: *const (), _: Option<Slot>) {
    let stack = D::stack();
    // SAFETY: 1.
    unsafe { stack.monitor.reset_after_fork() };
    // SAFETY: 1.
    unsafe { stack.caches.reset_after_fork() };
}
