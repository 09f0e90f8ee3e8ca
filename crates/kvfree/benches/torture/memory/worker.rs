//! Threads on a field: those that allocate and free, those that look, those that drain and destroy.

use super::field::{Cache, Field, Object, Ward};
use crate::Running;
use crate::books::{Count, Fault};
use crate::random::Random;
use crate::stage::{Play, Role, Stage};
use rcu_core::cpu::Threads;
use serde_json::json;
use slab::{CacheConfig, RawCache};
use std::alloc::Layout;
use std::thread;
use std::time::Duration;

const WORKERS: usize = 3;
const READERS: usize = 2;

struct Worker {
    field: &'static Field,
    own: Vec<Object>,
    /// Objects that it has at the most.
    most: usize,
}

impl Worker {
    fn step(&mut self, random: &mut Random, role: &mut Role) {
        let field = self.field;
        match random.below(20) {
            0..6 => self.own.extend(field.alloc(random, role)),
            6..8 => {
                if !self.own.is_empty() {
                    let object = self.own.swap_remove(random.below(self.own.len()));
                    field.free(object, random, role);
                }
            }
            8..14 => {
                let new = self.own.pop();
                field.publish(new, random, role);
            }
            14 => field.mail().extend(self.own.pop()),
            15 => {
                let object = field.mail().pop();
                if let Some(object) = object {
                    field.free(object, random, role);
                }
            }
            16 => field.bulk(random, role),
            _ => field.read(random, role),
        }
        while self.own.len() > self.most {
            self.put_down(random, role);
        }
    }

    fn put_down(&mut self, random: &mut Random, role: &mut Role) {
        for object in self.own.drain(..) {
            self.field.free(object, random, role);
        }
    }
}

impl Play for Worker {
    fn round(&mut self, role: &mut Role, random: &mut Random) {
        for _ in 0..32 {
            self.step(random, role);
        }
    }

    fn rest(&mut self, role: &mut Role) {
        let mut random = Random::of(0, "rest", 0, 0);
        self.put_down(&mut random, role);
    }
}

/// One round of a role.
type Round = fn(&'static Field, &mut Role, &mut Random);

/// Roles without anything to put down.
struct Simple<F>(F);

impl<F: FnMut(&mut Role, &mut Random) + Send + 'static> Play for Simple<F> {
    fn round(&mut self, role: &mut Role, random: &mut Random) {
        self.0(role, random);
    }

    fn rest(&mut self, _role: &mut Role) {}
}

/// Shrinks, waits and looks, beside everybody.
fn keep(field: &'static Field, role: &mut Role, random: &mut Random) {
    role.tally.one(Count::Shrinks);
    match random.below(12) {
        0 => {
            field.kmalloc.shrink(random.below(1_000));
        }
        1 => {
            for cache in &field.caches {
                cache.shrink(usize::MAX);
            }
        }
        2 => field.retire.barrier(field),
        3 => field.caches[0].barrier(),
        4 => {
            field.ground.zone.trim();
        }
        5 => {
            field.ground.zone.drain_all();
        }
        6 => {
            let _ = (field.kmalloc.stats(), field.caches[1].stats());
        }
        _ => {
            for cache in &field.caches {
                cache.reap();
            }
        }
    }
    thread::sleep(Duration::from_micros(random.below(1_000) as u64));
}

/// Threads that work for a while and end.
fn guests(field: &'static Field, role: &mut Role, random: &mut Random) {
    let (stage, seed) = (role.stage, random.next());
    let threads: Vec<_> = (0..1 + random.below(4))
        .map(|n| {
            thread::spawn(move || {
                let mut role = Role::guest(stage, n);
                let mut random = Random::of(seed, "guest", n, 0);
                let mut worker = Worker {
                    field,
                    own: Vec::new(),
                    most: 50,
                };
                for _ in 0..random.below(400) {
                    worker.step(&mut random, &mut role);
                }
                worker.put_down(&mut random, &mut role);
                role.leave();
            })
        })
        .collect();
    role.tally.add(Count::Threads, threads.len() as u64);
    for thread in threads {
        // A panic in there is booked where it happens.
        let _ = thread.join();
    }
}

/// A cache is born, used by some threads, and destroyed while its retired objects still wait.
fn caches(field: &'static Field, role: &mut Role, random: &mut Random) {
    let size = random.pick(&[16, 64, 192, 1_024]);
    let config = match Layout::from_size_align(size, 16) {
        Ok(layout) => CacheConfig::new("passing", layout).sheaf_capacity(1 + random.below(40)),
        Err(_) => return,
    };
    let Ok(cache) = RawCache::new(config, Threads, field.ground.zone, Ward) else {
        role.tally.one(Count::Refused);
        return;
    };
    let books = role.books();
    let shadow = &field.ground.shadow;
    let threads = 1 + random.below(3);
    let seed = random.next();
    let use_it = |cache: &Cache, n: usize| {
        use rcu_core::GracePeriod;
        let mut random = Random::of(seed, "passing", n, 0);
        for _ in 0..random.below(500) {
            let Ok(object) = cache.alloc() else { continue };
            shadow.hand_out(object, books, |cookie| Ward.poll(cookie));
            if random.one_in(3) {
                shadow.free(object);
                // SAFETY: it came from there, and nobody else knows it.
                unsafe { cache.free(object) };
                continue;
            }
            shadow.retire(object, Ward.snapshot());
            // SAFETY: as above.
            if let Err(object) = unsafe { cache.retire(object) } {
                shadow.free(object);
                // SAFETY: it was refused, and nobody ever knew it.
                unsafe { cache.free(object) };
            }
        }
    };
    thread::scope(|scope| {
        for n in 0..threads {
            let (cache, use_it) = (&cache, &use_it);
            scope.spawn(move || use_it(cache, n));
        }
        if random.one_in(2) {
            cache.barrier();
        }
    });
    use_it(&cache, threads);
    match cache.destroy() {
        Ok(()) => role.tally.one(Count::Caches),
        Err(busy) => books.fault(Fault::Leak, || busy.to_string()),
    }
}

/// Starts every role on `field`.
pub(crate) fn start(field: &'static Field, stage: &'static Stage, most: usize) -> Running {
    let mut threads = Vec::new();
    for n in 0..WORKERS {
        let own = Vec::new();
        threads.push(stage.role("worker", n, Worker { field, own, most }));
    }
    for n in 0..READERS {
        let round = move |role: &mut Role, random: &mut Random| {
            (0..64).for_each(|_| field.read(random, role));
        };
        threads.push(stage.role("reader", n, Simple(round)));
    }
    let rounds: [(&'static str, Round); 3] =
        [("keeper", keep), ("guests", guests), ("caches", caches)];
    for (name, round) in rounds {
        let round = move |role: &mut Role, random: &mut Random| round(field, role, random);
        threads.push(stage.role(name, 0, Simple(round)));
    }
    let round = move |role: &mut Role, random: &mut Random| {
        field.retire.tick(field, role);
        thread::sleep(Duration::from_micros(random.below(2_000) as u64));
    };
    threads.push(stage.role("monitor", 0, Simple(round)));
    let books = &stage.books;
    Running {
        threads,
        // SAFETY: every thread that knew the field has ended.
        finish: Box::new(move || unsafe { field.leave() }),
        own: Box::new(move || {
            let rcu = Ward::tree().stats();
            json!({
                "grace periods": rcu.grace_periods + rcu.expedited,
                "pages out": field.ground.zone.nr_allocated(),
                "callbacks run": rcu.callbacks_run,
            })
        }),
        progress: Box::new(move || books.count(Count::Allocs)),
    }
}
