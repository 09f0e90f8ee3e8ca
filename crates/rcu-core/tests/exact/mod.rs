//! An RCU on one thread that frees as early as it may: a callback runs as soon as the sections that began before it was
//! queued have ended. And boxes in it, whose memory is kept for inspection until nothing is queued.

#![allow(dead_code, reason = "each test uses its part of it")]

use rcu_core::{Callback, Cookie, Domain, GracePeriod, Head, Rcu, Reclaimer};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::mem::offset_of;
use std::ptr::NonNull;

#[derive(Default)]
struct State {
    now: usize,
    sections: BTreeMap<usize, ()>,
    queue: VecDeque<(usize, NonNull<Head>)>,
    /// Freed memory.
    graves: Vec<Box<dyn FnOnce()>>,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

fn with<T>(f: impl FnOnce(&mut State) -> T) -> T {
    STATE.with_borrow_mut(f)
}

impl State {
    fn tick(&mut self) -> usize {
        self.now += 4;
        self.now
    }

    fn oldest(&self) -> usize {
        self.sections.keys().next().copied().unwrap_or(usize::MAX)
    }
}

/// Each thread's own RCU: nothing of it may be sent to another, which these tests do not do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Exact;

impl Exact {
    /// Runs every callback whose grace period is over.
    pub(crate) fn reclaim() {
        while let Some(head) = with(|s| {
            let (queued, _) = *s.queue.front()?;
            (queued < s.oldest()).then(|| s.queue.pop_front().unwrap().1)
        }) {
            // SAFETY: queued heads are valid.
            let taken = unsafe { head.as_ref() };
            taken.set_unlinked();
            match taken.callback() {
                // SAFETY: its grace period is over.
                Callback::Run(func) => unsafe { func(head) },
                other => panic!("{other:?}"),
            }
        }
    }

    /// Runs everything, after which no section may be entered and nothing queued, and gives the memory back.
    pub(crate) fn finish() {
        with(|s| assert!(s.sections.is_empty(), "a section is entered"));
        Self::reclaim();
        for free in with(|s| std::mem::take(&mut s.graves)) {
            free();
        }
    }

    /// How many callbacks wait.
    pub(crate) fn queued() -> usize {
        with(|s| s.queue.len())
    }
}

// SAFETY: a cookie is a moment; it is done when all sections that are entered are younger. One thread.
unsafe impl GracePeriod for Exact {
    fn snapshot(&self) -> Cookie {
        Cookie::from_raw(with(State::tick))
    }

    fn start(&self) -> Cookie {
        self.snapshot()
    }

    fn poll(&self, cookie: Cookie) -> bool {
        cookie == Cookie::COMPLETED || with(|s| cookie.raw() < s.oldest())
    }

    fn wait(&self, cookie: Cookie) {
        assert!(self.poll(cookie), "would wait for ever");
    }

    fn drive(&self) -> bool {
        false
    }

    fn grace_periods(&self) -> usize {
        with(|s| s.now)
    }
}

// SAFETY: as above; `call` keeps the head until `reclaim`.
unsafe impl Rcu for Exact {
    type Token = usize;

    fn enter(&self) -> usize {
        with(|s| {
            let token = s.tick();
            s.sections.insert(token, ());
            token
        })
    }

    unsafe fn exit(&self, token: usize) {
        with(|s| s.sections.remove(&token)).expect("a token of an entered section");
    }

    unsafe fn call(&self, head: NonNull<Head>, callback: Callback) {
        // SAFETY: the head is valid (debt 1).
        if !unsafe { head.as_ref() }.begin_call(callback) {
            return;
        }
        with(|s| {
            let at = s.tick();
            s.queue.push_back((at, head));
        });
    }

    fn barrier(&self) {
        Self::reclaim();
        assert_eq!(Self::queued(), 0, "would wait for ever");
    }
}

// SAFETY: all values are one, on each thread.
unsafe impl Domain for Exact {}

/// Boxes whose objects are dropped when their time has come, and whose memory is given back by [`Exact::finish`].
#[derive(Clone, Copy, Default)]
pub(crate) struct Kept;

#[repr(C)]
struct Headed<T> {
    head: Head,
    value: T,
}

impl<T: 'static> Headed<T> {
    unsafe fn free(head: NonNull<Head>) {
        // SAFETY: the head of a leaked box, given up.
        let value = unsafe { head.cast::<u8>().add(offset_of!(Self, value)) }.cast::<T>();
        // SAFETY: dropped once.
        unsafe { value.drop_in_place() };
        let memory = head.cast::<std::mem::ManuallyDrop<Self>>();
        let free = move || {
            // SAFETY: made by `Box::leak`, of the same layout; its value is dropped.
            drop(unsafe { Box::from_raw(memory.as_ptr()) });
        };
        with(|s| s.graves.push(Box::new(free)));
    }

    fn head_of(object: NonNull<T>) -> NonNull<Head> {
        // SAFETY: objects of `Kept` lie at this offset in their box.
        unsafe { object.cast::<u8>().sub(offset_of!(Self, value)) }.cast()
    }
}

// SAFETY: boxes stay where they are; `call` waits for the sections that are entered.
unsafe impl Reclaimer for Kept {
    type Domain = Exact;

    fn allocate<T: Send + Sync + 'static>(&self, value: T) -> Result<NonNull<T>, T> {
        let head = Head::new();
        let whole = NonNull::from(Box::leak(Box::new(Headed { head, value })));
        // SAFETY: the value lies inside the box.
        Ok(unsafe { whole.cast::<u8>().add(offset_of!(Headed<T>, value)) }.cast())
    }

    unsafe fn retire<T: 'static>(&self, object: NonNull<T>) {
        // SAFETY: given up by the caller.
        unsafe { Exact.call(Headed::head_of(object), Callback::Run(Headed::<T>::free)) };
    }

    unsafe fn free<T: 'static>(&self, object: NonNull<T>) {
        // SAFETY: given up by the caller, and unseen.
        unsafe { Headed::<T>::free(Headed::head_of(object)) };
    }
}
