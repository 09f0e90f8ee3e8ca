//! More threads than slots, in a process of their own: they leave no slot for anybody else.

#![cfg(all(feature = "std", not(loom), not(miri)))]

use rcu_core::cpu::{Cpus, MAX_THREAD_SLOTS, RegisterError, Threads};

#[test]
fn more_threads_than_slots_take_the_shared_path() {
    let barrier = std::sync::Barrier::new(MAX_THREAD_SLOTS + 8);
    let with: usize = std::thread::scope(|s| {
        let threads: Vec<_> = (0..MAX_THREAD_SLOTS + 8)
            .map(|_| {
                std::thread::Builder::new()
                    .stack_size(64 << 10)
                    .spawn_scoped(s, || {
                        let got = Threads.try_register();
                        barrier.wait();
                        match got {
                            Ok(slot) => assert_eq!(Threads.current(), Some(slot)),
                            Err(why) => {
                                let nr_slots = MAX_THREAD_SLOTS;
                                assert_eq!(why, RegisterError::AllTaken { nr_slots });
                            }
                        }
                        usize::from(got.is_ok())
                    })
                    .unwrap()
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(with, MAX_THREAD_SLOTS);
    assert!(Threads.current().is_some(), "all slots were given back");
}
