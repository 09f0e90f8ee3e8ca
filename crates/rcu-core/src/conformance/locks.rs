//! What every [`LocalLock`] must do.

use crate::cpu::LocalLock;
use std::cell::UnsafeCell;

/// T26: a try-lock that "always succeeds" on one CPU corrupts lists.
#[doc(hidden)]
pub fn reentrance_fails_and_harms_nothing(lock: &impl LocalLock) {
    let enter = || {
        // SAFETY: this thread is the only one here, hence the owner.
        unsafe { lock.try_enter() }
    };
    for _ in 0..3 {
        assert!(enter());
        assert!(!enter(), "an owner on top of itself");
        assert!(!lock.try_visit(), "a visitor beside the owner");
        // SAFETY: entered above, once.
        unsafe { lock.leave() };
        assert!(lock.try_visit());
        assert!(!enter(), "an owner beside a visitor");
        assert!(!lock.try_visit(), "two visitors");
        // SAFETY: entered above as a visitor, once.
        unsafe { lock.unvisit() };
        lock.visit();
        assert!(!enter(), "an owner beside a visitor that waited");
        // SAFETY: as above.
        unsafe { lock.unvisit() };
    }
}

/// Guarantee 3 of [`LocalLock`].
#[doc(hidden)]
pub fn zeroed_is_unlocked<L: LocalLock>(_: &L) {
    // SAFETY: a local lock is `ZeroInit`.
    let lock = unsafe { core::mem::MaybeUninit::<L>::zeroed().assume_init() };
    reentrance_fails_and_harms_nothing(&lock);
}

/// P8, with a canary of two words.
#[doc(hidden)]
pub fn owner_and_visitors_never_meet(lock: &impl LocalLock) {
    const ROUNDS: usize = if cfg!(miri) { 50 } else { 20_000 };
    struct Canary(UnsafeCell<[usize; 2]>);
    // SAFETY: touched inside the lock only, which is what is tested.
    unsafe impl Sync for Canary {}
    impl Canary {
        fn bump(&self) {
            // SAFETY: inside the lock.
            let both = unsafe { &mut *self.0.get() };
            assert_eq!(both[0], both[1], "somebody else is inside");
            both[0] += 1;
            std::hint::black_box(&mut *both);
            both[1] += 1;
        }
    }
    let canary = Canary(UnsafeCell::new([0; 2]));
    let visits = |n: usize| {
        let mut inside = 0;
        for i in 0..n {
            if i % 4 == 0 {
                lock.visit();
            } else if !lock.try_visit() {
                continue;
            }
            canary.bump();
            inside += 1;
            // SAFETY: entered as a visitor just now.
            unsafe { lock.unvisit() };
        }
        inside
    };
    let total = std::thread::scope(|s| {
        let visitor = s.spawn(|| visits(ROUNDS / 4));
        let other = s.spawn(|| visits(ROUNDS / 4));
        let mut inside = 0;
        for _ in 0..ROUNDS {
            // SAFETY: this thread is the only owner.
            if unsafe { lock.try_enter() } {
                canary.bump();
                inside += 1;
                // SAFETY: entered just now.
                unsafe { lock.leave() };
            }
        }
        inside + visitor.join().unwrap() + other.join().unwrap()
    });
    assert_eq!(canary.0.into_inner(), [total; 2]);
}
