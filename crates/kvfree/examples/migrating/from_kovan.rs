//! A map of counters that is replaced on every change, as with kovan's `Atom`.

use std::collections::BTreeMap;
use std::thread;

type Counters = BTreeMap<&'static str, u64>;

fn with(counters: &Counters, name: &'static str, by: u64) -> Counters {
    let mut new = counters.clone();
    *new.entry(name).or_default() += by;
    new
}

mod before {
    use super::{Counters, with};
    use kovan::Atom;

    pub(super) struct Registry {
        counters: Atom<Counters>,
    }

    impl Registry {
        pub(super) fn new() -> Self {
            Self {
                counters: Atom::new(Counters::new()),
            }
        }

        pub(super) fn add(&self, name: &'static str, by: u64) {
            self.counters.rcu(|counters| with(counters, name, by));
        }

        pub(super) fn get(&self, name: &str) -> Option<u64> {
            self.counters.peek(|counters| counters.get(name).copied())
        }

        /// What was there so far; old readers keep it.
        pub(super) fn reset(&self) -> u64 {
            let old = self.counters.swap(Counters::new());
            old.values().sum()
        }
    }
}

mod after {
    use super::{Counters, with};
    use kvfree::{RcuBox, RcuCell, read_lock};

    pub(super) struct Registry {
        counters: RcuCell<Counters>,
    }

    impl Registry {
        pub(super) fn new() -> Self {
            Self {
                counters: RcuCell::new(RcuBox::new(Counters::new())),
            }
        }

        pub(super) fn add(&self, name: &'static str, by: u64) {
            let guard = read_lock();
            // What was replaced comes back, and is retired by being dropped.
            let _retired = (self.counters).update(&guard, |old| RcuBox::new(with(old, name, by)));
        }

        pub(super) fn get(&self, name: &str) -> Option<u64> {
            // One guard would do for any number of cells.
            let guard = read_lock();
            self.counters.load(&guard)?.get(name).copied()
        }

        /// What was there so far. After the readers have gone it is the caller's own, to be looked at or used again.
        pub(super) fn reset(&self) -> u64 {
            let old = self.counters.swap(Some(RcuBox::new(Counters::new())));
            let own = old.expect("never empty").wait();
            own.values().sum()
        }
    }
}

/// Two threads count, one reads; nothing is lost.
pub(super) fn same_counters() {
    const EACH: u64 = 300;
    fn exercise(add: impl Fn(&'static str, u64) + Sync, get: impl Fn(&str) -> Option<u64> + Sync) {
        thread::scope(|s| {
            for name in ["a", "b"] {
                let add = &add;
                s.spawn(move || {
                    for _ in 0..EACH {
                        add(name, 1);
                        add("both", 1);
                    }
                });
            }
            s.spawn(|| {
                let mut last = 0;
                while last < 2 * EACH {
                    let now = get("both").unwrap_or(0);
                    assert!(now >= last, "an old one came back");
                    last = now;
                    thread::yield_now();
                }
            });
        });
        assert_eq!((get("a"), get("b")), (Some(EACH), Some(EACH)));
    }
    let (old, new) = (before::Registry::new(), after::Registry::new());
    exercise(|n, by| old.add(n, by), |n| old.get(n));
    exercise(|n, by| new.add(n, by), |n| new.get(n));
    assert_eq!(old.reset(), new.reset());
    assert_eq!(new.get("a"), None);
}
