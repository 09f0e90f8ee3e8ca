//! RCU on one thread, whose grace periods begin and end when the test says so.

use rcu_core::manual::ManualGp;
use rcu_core::{Callback, Cookie, GracePeriod, Head, Rcu, Seq};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ptr::NonNull;

type Free = unsafe fn(NonNull<u8>);

/// A grace period in progress cannot end inside a section that began before it did. Waiting outside of sections ends
/// what it waits for; so does driving, if the test wants that.
pub(crate) struct ManualRcu {
    gp: ManualGp,
    nesting: Cell<usize>,
    /// The sequence when the section began.
    entered: Cell<Seq>,
    callbacks: RefCell<VecDeque<(NonNull<Head>, Cookie)>>,
    free: Cell<Option<Free>>,
    drives: Cell<bool>,
}

impl ManualRcu {
    pub(crate) fn new() -> Self {
        Self {
            gp: ManualGp::new(),
            nesting: Cell::new(0),
            entered: Cell::new(Seq::INITIAL),
            callbacks: RefCell::default(),
            free: Cell::new(None),
            drives: Cell::new(false),
        }
    }

    /// Drives when driven.
    pub(crate) fn auto() -> Self {
        let rcu = Self::new();
        rcu.drives.set(true);
        rcu
    }

    /// How offsets free their objects, which must come from there.
    pub(crate) fn set_free(&self, free: Free) {
        self.free.set(Some(free));
    }

    pub(crate) fn is_in_section(&self) -> bool {
        self.nesting.get() > 0
    }

    /// Begins a grace period, or ends the one in progress if no section is in its way.
    pub(crate) fn step(&self) {
        if !self.gp.seq().in_progress() {
            self.gp.begin();
        } else if !self.is_in_section() || self.entered.get() == self.gp.seq() {
            self.gp.end();
        }
    }

    /// Lets a whole grace period pass, as far as a section allows.
    pub(crate) fn advance(&self) {
        for _ in 0..4 {
            self.step();
        }
    }

    /// Lets those grace periods pass that somebody asked for, as far as a section allows.
    pub(crate) fn advance_wanted(&self) {
        for _ in 0..4 {
            if self.gp.is_wanted() {
                self.step();
            }
        }
    }

    /// Runs the callbacks whose grace period is over. Outside of sections.
    pub(crate) fn run_callbacks(&self) -> usize {
        let mut ran = 0;
        loop {
            let next = self.callbacks.borrow().front().copied();
            let Some((head, cookie)) = next else {
                return ran;
            };
            if self.is_in_section() || !self.poll(cookie) {
                return ran;
            }
            self.callbacks.borrow_mut().pop_front();
            // SAFETY: a queued head is valid until its callback.
            match unsafe { head.as_ref() }.callback() {
                // SAFETY: its turn, once.
                Callback::Run(func) => unsafe { func(head) },
                Callback::Free(offset) => {
                    // SAFETY: the offset was queued with the head.
                    let object = unsafe { offset.object(head) };
                    let free = self.free.get().expect("no way to free objects");
                    // SAFETY: the object came from where `free` frees it, as the test promised.
                    unsafe { free(object) };
                }
                _ => unreachable!(),
            }
            ran += 1;
        }
    }
}

// SAFETY: 1: one thread, and a grace period that is in progress while a section is entered from before does not end
// (`step`); 2 and 4: as for `ManualGp`; 3: `wait` steps (`drive` as the test says).
unsafe impl GracePeriod for ManualRcu {
    fn snapshot(&self) -> Cookie {
        self.gp.snapshot()
    }

    fn start(&self) -> Cookie {
        self.gp.start()
    }

    fn poll(&self, cookie: Cookie) -> bool {
        self.gp.poll(cookie)
    }

    fn wait(&self, cookie: Cookie) {
        while !self.poll(cookie) {
            assert!(!self.is_in_section(), "would wait for itself");
            self.step();
        }
    }

    fn drive(&self) -> bool {
        if self.drives.get() && self.gp.is_wanted() {
            self.step();
        }
        self.gp.is_wanted()
    }

    fn grace_periods(&self) -> usize {
        self.gp.grace_periods()
    }
}

// SAFETY: 5: a count; 6: `run_callbacks`; 7: `barrier` runs all that is queued.
unsafe impl Rcu for ManualRcu {
    type Token = ();

    fn enter(&self) {
        if self.nesting.get() == 0 {
            self.entered.set(self.gp.seq());
        }
        self.nesting.set(self.nesting.get() + 1);
    }

    unsafe fn exit(&self, _token: ()) {
        self.nesting
            .set(self.nesting.get().checked_sub(1).expect("not entered"));
    }

    unsafe fn call(&self, head: NonNull<Head>, callback: Callback) {
        // SAFETY: the head is valid (the caller's debt 1).
        unsafe { head.as_ref() }.set_callback(callback);
        self.callbacks.borrow_mut().push_back((head, self.start()));
    }

    fn barrier(&self) {
        assert!(!self.is_in_section(), "would wait for itself");
        let last = self.callbacks.borrow().back().copied();
        if let Some((_, cookie)) = last {
            self.wait(cookie);
            self.run_callbacks();
        }
    }
}
