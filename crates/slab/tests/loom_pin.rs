//! Models of an object in type-stable memory: its word of generation and references, against freeing and reuse. They run the real
//! code of `stable/word.rs`, on loom's words; the object's memory lasts, which is what type-stable means.
//!
//! Mutants: `--cfg weaken="p6_pin"` must make `p6_pin_vs_reuse` fail, `"t20"` `t20_pin_then_look_vs_reuse`. Not shown: the
//! cache that hands the object on, which is a flag here, and the pages' grace period (P2 to P5, of the RCU's own models).

#![cfg(loom)]

#[expect(unreachable_pub, reason = "public in the crate that this file is of")]
#[path = "../src/stable/word.rs"]
mod word;

use loom::cell::UnsafeCell;
use loom::model;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use word::{PinWord, pin_if};

struct Object {
    word: PinWord,
    /// What the object is: an atomic word, as readers look at it without a reference.
    key: AtomicUsize,
    /// Something that only who has a reference looks at; loom watches.
    body: UnsafeCell<usize>,
}

// SAFETY: the body is read by whoever has a reference and written by the owner of a dead object, which is what is tested.
unsafe impl Sync for Object {}
// SAFETY: as above.
unsafe impl Send for Object {}

impl Object {
    /// An object that is free.
    fn new() -> Self {
        Self {
            word: PinWord::dead(),
            key: AtomicUsize::new(0),
            body: UnsafeCell::new(0),
        }
    }

    /// Makes the dead object what it is to be.
    fn make(&self, key: usize) {
        self.key.store(key, Ordering::Relaxed);
        // SAFETY: the object is dead and the caller's; loom fails if it is not so.
        self.body.with_mut(|body| unsafe { *body = key });
        self.word.reset();
    }

    fn body(&self) -> usize {
        // SAFETY: a reference is held; loom fails if somebody writes.
        self.body.with(|body| unsafe { *body })
    }
}

/// A reference; dropping the last of a life counts.
struct Pinned<'o> {
    object: &'o Object,
    lasts: &'o AtomicUsize,
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        if self.object.word.put() {
            self.lasts.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct World {
    object: Object,
    lasts: AtomicUsize,
}

impl World {
    fn pin(&self) -> Option<Pinned<'_>> {
        self.object.word.get()?;
        Some(Pinned {
            object: &self.object,
            lasts: &self.lasts,
        })
    }

    /// The owner's reference.
    fn own(&self) -> Pinned<'_> {
        Pinned {
            object: &self.object,
            lasts: &self.lasts,
        }
    }
}

fn world() -> Arc<World> {
    Arc::new(World {
        object: Object::new(),
        lasts: AtomicUsize::new(0),
    })
}

/// Who pins an object that is being made sees what it was made, all of it; and every life ends once.
#[test]
fn p6_pin_vs_reuse() {
    model(|| {
        let world = world();
        let reader = {
            let world = world.clone();
            thread::spawn(move || {
                if let Some(_pinned) = world.pin() {
                    assert_eq!(world.object.key.load(Ordering::Relaxed), 1, "half made");
                    assert_eq!(world.object.body(), 1, "half made");
                }
            })
        };
        world.object.make(1);
        drop(world.own());
        reader.join().unwrap();
        assert_eq!(world.lasts.load(Ordering::Relaxed), 1);
        assert!(!world.object.word.is_live());
    });
}

/// The next owner is after every reader of the life before, whoever dropped the last reference.
#[test]
fn p6_last_put_vs_next_life() {
    model(|| {
        let world = world();
        world.object.make(1);
        let reader = {
            let world = world.clone();
            thread::spawn(move || {
                let pinned = world.pin();
                if pinned.is_some() {
                    let key = world.object.key.load(Ordering::Relaxed);
                    assert_eq!(world.object.body(), key);
                }
            })
        };
        if world.object.word.put() {
            // The last: the object is dead, and this thread's.
            world.lasts.fetch_add(1, Ordering::Relaxed);
            world.object.make(2);
            drop(world.own());
            reader.join().unwrap();
            assert_eq!(world.lasts.load(Ordering::Relaxed), 2);
        } else {
            reader.join().unwrap();
            assert_eq!(world.lasts.load(Ordering::Relaxed), 1);
        }
        assert!(!world.object.word.is_live());
    });
}

/// T20: who pins first and looks then has what it sought; it cannot become another one afterwards.
#[test]
fn t20_pin_then_look_vs_reuse() {
    model(|| {
        let world = world();
        world.object.make(1);
        let reader = {
            let world = world.clone();
            thread::spawn(move || {
                let sought = || world.object.key.load(Ordering::Relaxed) == 1;
                if let Some(_pinned) = pin_if(|| world.pin(), sought) {
                    assert_eq!(world.object.body(), 1, "another object than the one sought");
                }
            })
        };
        if world.object.word.put() {
            world.object.make(2);
        }
        reader.join().unwrap();
    });
}

/// The generation that comes with the reference is that of the life that was pinned.
#[test]
fn l5_pin_by_generation_vs_reuse() {
    model(|| {
        let world = world();
        world.object.make(1);
        let first = world.object.word.generation();
        let reader = {
            let world = world.clone();
            thread::spawn(move || {
                if let Some(got) = world.object.word.get() {
                    assert_eq!(got == first, world.object.body() == 1);
                    let _ = world.object.word.put();
                }
            })
        };
        if world.object.word.put() {
            world.object.make(2);
        }
        reader.join().unwrap();
    });
}
