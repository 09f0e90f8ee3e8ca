//! What whoever makes a box does before, for those that wait.

use super::{Stack, StackDomain};
use crate::block::Kind;
use core::time::Duration;

impl<D: StackDomain> Stack<D> {
    /// At the limit, waits for room. Else, if such boxes are `dropped` by functions of theirs, drops some that are ripe, when nobody else
    /// keeps up with them.
    #[inline]
    pub(crate) fn before_box(&'static self, dropped: bool) {
        let front = self.front();
        if front.is_over_limit() {
            self.make_room();
        } else if dropped && front.is_due() {
            self.help();
        }
    }

    #[cold]
    fn help(&'static self) {
        if D::tree().may_wait() {
            self.front().help(Kind::Typed);
        }
    }

    /// Waits until less waits than may, if the caller may wait.
    #[cold]
    fn make_room(&'static self) {
        let front = self.front();
        while !front.relieve() {
            // A destructor would wait for those that come after it.
            if !self.settings().waits || front.is_freeing() || !D::tree().may_wait() {
                return;
            }
            self.domain.synchronize();
            if front.relieve() {
                return;
            }
            // What is left runs destructors.
            if !front.help(Kind::Typed) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
