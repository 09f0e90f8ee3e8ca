//! Threads that hold slots.

use rcu_core::cpu::{Cpus, Threads};
use std::sync::Barrier;

/// Runs `then` while `n` other threads sit on slots.
pub(crate) fn with_threads(n: usize, then: impl FnOnce()) {
    let together = Barrier::new(n + 1);
    std::thread::scope(|s| {
        for _ in 0..n {
            s.spawn(|| {
                assert!(Threads.current().is_some());
                together.wait();
                together.wait();
            });
        }
        together.wait();
        // A panic of `then` is told, and not waited for.
        let _over = Over(&together);
        then();
    });
}

/// Lets the others go when it is dropped.
struct Over<'a>(&'a Barrier);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.wait();
    }
}
