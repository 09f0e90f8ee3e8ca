//! Asking for grace periods, and waiting for them.

use super::Tree;
use crate::trace::Trace;
use rcu_core::cpu::Cpus;
use rcu_core::sync::Backoff;
use rcu_core::{Cookie, GracePeriod};

// SAFETY: 1: `gp_seq` (P4, P5), `reader` (P2, P3), `node` (P3) and `machine` (I2) give the order, slot by slot and
// for readers without a slot (`shared_readers`); 2: the sequence only goes forwards; 3: `wait` drives; a passed
// section changes its word (I1 of `reader`); 4: `snapshot`, `start`, `poll`, `drive` take try-locks only and run nothing.
unsafe impl<C: Cpus, T: Trace> GracePeriod for Tree<'_, C, T> {
    fn snapshot(&self) -> Cookie {
        self.gp.snapshot()
    }

    fn start(&self) -> Cookie {
        let cookie = self.gp.snapshot();
        if self.gp.request(cookie) {
            self.kick();
        }
        cookie
    }

    #[inline]
    fn poll(&self, cookie: Cookie) -> bool {
        self.gp.poll(cookie)
    }

    fn wait(&self, cookie: Cookie) {
        if self.poll(cookie) {
            return;
        }
        self.check_outside("waiting for a grace period");
        self.gp.request(cookie);
        let backoff = Backoff::new();
        loop {
            let in_the_way = self.drive();
            if self.poll(cookie) {
                return self.after_wait();
            }
            if in_the_way {
                crate::worker::pause(&backoff);
            }
        }
    }

    fn drive(&self) -> bool {
        self.machine.drive(&self.world())
    }

    fn grace_periods(&self) -> usize {
        self.gp.load().completed()
    }
}
