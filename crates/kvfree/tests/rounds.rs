//! T11, T15: a barrier against whoever frees at the same time.

#![cfg(all(feature = "std", not(loom)))]

use kvfree::{Config, DeferFree, Kvfree, Objects};
use pagealloc::{Mmap, Zone};
use rcu_core::GracePeriod;
use rcu_core::cpu::Threads;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

rcu_tree::static_tree! {
    /// The domain of these tests.
    struct Waited;
}

/// Frees nothing, but counts; and stops at a gate on the way.
#[derive(Default)]
struct Gate {
    retired: AtomicUsize,
    freed: AtomicUsize,
    /// How many are at the gate, and whether it is open.
    state: Mutex<(usize, bool)>,
    change: Condvar,
}

impl Gate {
    fn wait_for_arrival(&self) {
        let state = self.state.lock().unwrap();
        drop(self.change.wait_while(state, |s| s.0 == 0).unwrap());
    }

    fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.change.notify_all();
    }
}

// SAFETY: objects are numbers that nobody looks at; nothing is deferred.
unsafe impl Objects for Gate {
    unsafe fn try_defer(&self, _object: NonNull<u8>) -> bool {
        false
    }

    fn is_large(&self, _object: NonNull<u8>) -> bool {
        false
    }

    fn size_bytes(&self, _object: NonNull<u8>) -> usize {
        64
    }

    unsafe fn free_bulk(&self, objects: &mut [NonNull<u8>]) {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        self.change.notify_all();
        drop(self.change.wait_while(state, |s| !s.1).unwrap());
        self.freed.fetch_add(objects.len(), Ordering::Relaxed);
    }

    fn barrier(&self) {}

    fn reap(&self) -> usize {
        0
    }

    fn waiting_bytes(&self) -> usize {
        0
    }
}

/// Objects in a block.
const BLOCK: usize = 507;

type Front<'a> = Kvfree<Threads, &'a Zone<Threads, Mmap>, Waited, &'a Gate>;

fn with_front(test: impl FnOnce(&Front<'_>, &Gate)) {
    let zone = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
    let gate = Gate::default();
    // SAFETY: nothing is deferred; the front end is dropped first.
    let front = unsafe { Kvfree::new(Threads, &zone, Waited, &gate, Config::new()) }.unwrap();
    test(&front, &gate);
    drop(front);
    assert_eq!(zone.nr_allocated(), 0);
}

fn retire(front: &Front<'_>, objects: usize) {
    for _ in 0..objects {
        let number = front.objects().retired.fetch_add(1, Ordering::Relaxed) + 1;
        let object = NonNull::new(std::ptr::without_provenance_mut(number)).unwrap();
        // SAFETY: the gate takes anything, and no number twice.
        unsafe { front.retire_mightsleep(object) };
    }
}

/// What `freeing` has taken out, and not freed yet, is waited for by a barrier on another thread.
fn barrier_waits_for(front: &Front<'_>, gate: &Gate, freeing: impl FnOnce() + Send) {
    let returned = AtomicBool::new(false);
    std::thread::scope(|s| {
        let freeing = s.spawn(freeing);
        gate.wait_for_arrival();
        let before = gate.retired.load(Ordering::Relaxed);
        let returned = &returned;
        let barrier = s.spawn(move || {
            front.barrier();
            assert!(gate.freed.load(Ordering::Relaxed) >= before);
            returned.store(true, Ordering::Relaxed);
        });
        for _ in 0..2000 {
            std::thread::yield_now();
            assert!(
                !returned.load(Ordering::Relaxed),
                "returned while objects were being freed"
            );
        }
        gate.open();
        barrier.join().unwrap();
        freeing.join().unwrap();
    });
}

#[test]
fn t15_a_barrier_waits_for_what_the_monitor_has_taken() {
    with_front(|front, gate| {
        retire(front, 3);
        Waited.synchronize();
        barrier_waits_for(front, gate, || {
            front.tick();
        });
    });
}

/// Somebody who finds a round on must not end it.
#[test]
fn t15_a_barrier_waits_though_a_second_monitor_came_by() {
    with_front(|front, gate| {
        retire(front, 3);
        Waited.synchronize();
        std::thread::scope(|s| {
            let freeing = s.spawn(|| front.tick());
            gate.wait_for_arrival();
            // So that the slot is looked at again.
            retire(front, 1);
            assert!(front.tick() > 0);
            let returned = AtomicBool::new(false);
            std::thread::scope(|s| {
                s.spawn(|| {
                    front.barrier();
                    assert_eq!(gate.freed.load(Ordering::Relaxed), 4);
                    returned.store(true, Ordering::Relaxed);
                });
                // Had the barrier not waited for the round, it would come to the gate too, with the fourth object.
                let waits = (0..2000).all(|_| {
                    std::thread::yield_now();
                    gate.state.lock().unwrap().0 == 1 && !returned.load(Ordering::Relaxed)
                });
                gate.open();
                assert!(waits, "the barrier did not wait for the round");
            });
            freeing.join().unwrap();
        });
    });
}

#[test]
fn t15_a_barrier_waits_for_what_a_retiring_thread_has_taken() {
    with_front(|front, gate| {
        std::thread::scope(|s| {
            s.spawn(|| {
                // Not more than a block: it would free the first one itself, if that is ripe by chance.
                retire(front, BLOCK);
                Waited.synchronize();
            })
            .join()
            .unwrap();
        });
        // Its thread is gone: among the orphans.
        barrier_waits_for(front, gate, || {
            front.tick();
        });
        *gate.state.lock().unwrap() = (0, false);
        barrier_waits_for(front, gate, || {
            // A full block in line.
            retire(front, BLOCK + 1);
            Waited.synchronize();
            // Puts the next one in line, and frees the first on the spot.
            retire(front, BLOCK);
        });
    });
}

/// Barriers that come while one is on share the next pass, which runs one grace period at most: many cost two, not one each.
#[test]
fn t11_k14_barriers_that_come_together_share_a_pass() {
    const BARRIERS: usize = 8;
    with_front(|front, gate| {
        retire(front, 3);
        Waited.synchronize();
        let entered = &AtomicUsize::new(0);
        std::thread::scope(|s| {
            // Its pass stops at the gate.
            let first = s.spawn(|| front.barrier());
            gate.wait_for_arrival();
            let passes = front.stats().barrier_passes;
            retire(front, 5);
            let barriers: Vec<_> = (0..BARRIERS)
                .map(|_| {
                    s.spawn(move || {
                        entered.fetch_add(1, Ordering::Relaxed);
                        front.barrier();
                        assert_eq!(gate.freed.load(Ordering::Relaxed), 8);
                    })
                })
                .collect();
            while entered.load(Ordering::Relaxed) < BARRIERS {
                std::thread::yield_now();
            }
            // Time to get from there into the barrier; who is late costs a pass more, and there is room for that below.
            (0..1000).for_each(|_| std::thread::yield_now());
            gate.open();
            first.join().unwrap();
            barriers.into_iter().for_each(|b| b.join().unwrap());
            let passes = front.stats().barrier_passes - passes;
            assert!((2..BARRIERS).contains(&passes), "{passes} passes");
        });
    });
}

/// A pass that panics counts for nobody: the barriers that wait make another one.
#[test]
fn t11_barriers_do_not_rely_on_a_pass_that_panicked() {
    with_front(|front, gate| {
        gate.open();
        retire(front, 3);
        let guard = rcu_core::read_lock::<Waited>();
        let barrier = std::panic::AssertUnwindSafe(|| front.barrier());
        assert!(std::panic::catch_unwind(barrier).is_err());
        drop(guard);
        assert_eq!(front.stats().barrier_passes, 0);
        front.barrier();
        assert_eq!(
            (
                front.stats().barrier_passes,
                gate.freed.load(Ordering::Relaxed)
            ),
            (1, 3)
        );
    });
}

#[test]
fn t11_barriers_share_with_monitors_and_each_other() {
    with_front(|front, gate| {
        gate.open();
        let retired = AtomicUsize::new(0);
        std::thread::scope(|s| {
            let threads: Vec<_> = (0..4)
                .map(|t| {
                    let (front, gate, retired) = (&front, &gate, &retired);
                    s.spawn(move || {
                        for _ in 0..50 {
                            retire(front, 20 + t);
                            let before = retired.fetch_add(20 + t, Ordering::SeqCst) + 20 + t;
                            if t == 0 {
                                front.tick();
                            } else {
                                front.barrier();
                                assert!(gate.freed.load(Ordering::Relaxed) >= before);
                            }
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|t| t.join().unwrap());
        });
        front.barrier();
        assert_eq!(
            gate.freed.load(Ordering::Relaxed),
            retired.load(Ordering::Relaxed)
        );
    });
}
