//! The tree RCU: readers, grace periods and callbacks, put together over the caller's memory.
//!
//! # Life of a slot
//! A thread's first section (or callback) brings its slot online: the word says so, the tree is told, a full fence.
//! When the thread ends, its callbacks go to the orphans and the slot leaves the tree. If the thread ends *inside*
//! a section (a guard in another thread-local), the slot lingers: the last exit takes it offline.
//!
//! # Invariants
//! - I1. The offline hook is listed before the first slot comes online, and until the tree is dropped.
//! - I2. Only the owner of a slot changes its word and its place in the tree.

use crate::callbacks::{Callbacks, FreeObject, Lists, Queued};
use crate::gp_seq::GpSeq;
use crate::machine::{Machine, World};
use crate::node::{Geometry, Node, Nodes};
use crate::reader::{Outcome, ReaderWord};
use crate::shared_readers::{Bank, SharedReaders};
use crate::slot::TreeSlot;
use crate::worker::Worker;
use core::cell::UnsafeCell;
use core::fmt;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use crossbeam_utils::CachePadded;
use rcu_core::cpu::{Cpus, LocalLock, OfflineHook, PerSlot, Slot, SpinMutex};
use rcu_core::sync::Backoff;
use rcu_core::sync::atomic::{AtomicUsize, Ordering};
use rcu_core::{Callback, Cookie, GracePeriod, Head, Rcu};

/// RCU for many CPUs (or threads): wait-free readers, a tree that combines what they report.
///
/// Lives over memory of the caller: an array of [`TreeSlot`]s and one of [`Node`]s. For a static one with its
/// worker thread and a domain type, see [`static_tree!`](crate::static_tree).
///
/// ```
/// use rcu_core::cpu::{BiasedLock, Cpus, PerSlot, Threads};
/// use rcu_core::{GracePeriod, Rcu};
/// use rcu_tree::{Geometry, Node, Tree, TreeSlot};
///
/// let slots: Vec<_> = (0..Threads.nr_slots()).map(|_| TreeSlot::new(BiasedLock::new())).collect();
/// let geometry = Geometry::new(slots.len());
/// let nodes: Vec<_> = (0..geometry.nr_nodes()).map(|_| Node::new()).collect();
/// // SAFETY: the tree is neither moved nor forgotten below; a thread keeps its slot.
/// let tree = unsafe { Tree::new(Threads, PerSlot::from_slice(&slots), geometry, &nodes) };
///
/// let guard = tree.read_lock();
/// let cookie = tree.start();
/// tree.drive();
/// assert!(!tree.poll(cookie));
/// drop(guard);
/// tree.wait(cookie);
/// assert!(tree.poll(cookie));
/// ```
pub struct Tree<'a, C: Cpus> {
    cpus: C,
    slots: PerSlot<'a, TreeSlot<C::Lock>>,
    nodes: Nodes<'a>,
    gp: GpSeq,
    machine: Machine,
    shared: SharedReaders,
    callbacks: Callbacks,
    worker: Worker,
    /// 0 until the hook is listed, 1 afterwards; written under `hook_lock`.
    hooked: CachePadded<AtomicUsize>,
    hook_lock: SpinMutex<()>,
    hook: UnsafeCell<MaybeUninit<OfflineHook>>,
}

// SAFETY: `hook` is written once, under `hook_lock`, before it is listed; everything else is `Sync`.
unsafe impl<C: Cpus + Sync> Sync for Tree<'_, C> {}
// SAFETY: before the first use nothing refers to the tree's address; afterwards it stays in place (`new`).
unsafe impl<C: Cpus + Send> Send for Tree<'_, C> {}

/// What a reader gives back: the word of its slot, or the bank of a reader without a slot.
#[derive(Clone, Copy)]
pub struct Token(*const ReaderWord);

impl Token {
    /// Addresses below this are banks; no word lies in the first page.
    const BANKS: usize = 2;
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.addr() < Self::BANKS {
            write!(f, "Token(shared bank {})", self.0.addr())
        } else {
            f.write_str("Token(slot)")
        }
    }
}

/// Counts of one tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TreeStats {
    /// Grace periods that have ended.
    pub grace_periods: usize,
    /// Slots that take part now.
    pub slots_online: usize,
    /// Callbacks that have been run.
    pub callbacks_run: usize,
    /// Callbacks that panicked (contained under `std`).
    pub callbacks_panicked: usize,
}

impl fmt::Display for TreeStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "grace periods {}, slots online {}, callbacks run {} ({} panicked)",
            self.grace_periods, self.slots_online, self.callbacks_run, self.callbacks_panicked
        )
    }
}

impl<'a, C: Cpus> Tree<'a, C> {
    rcu_core::const_fn! {
        /// A tree over the caller's memory, with `cpus.nr_slots()` slots and the nodes that `geometry` counts.
        ///
        /// # Panics
        /// If the arrays' lengths do not match the geometry.
        ///
        /// # Safety
        /// 1. From its first use until it has been dropped, the tree stays in place: the list of offline hooks
        ///    points into it. A static does; so does a local that is not moved or forgotten after its first use.
        ///    [`static_tree!`](crate::static_tree) needs no `unsafe`.
        /// 2. Guarantee 2 of [`Cpus`] holds whatever the lock asks for, and nobody leaves its slot inside a section (in a
        ///    kernel: preemption is off from enter to exit). The reader's word has one owner, who does not lock it.
        #[must_use]
        pub const unsafe fn new(
            cpus: C,
            slots: PerSlot<'a, TreeSlot<C::Lock>>,
            geometry: Geometry,
            nodes: &'a [Node],
        ) -> Self {
            assert!(slots.len() == geometry.nr_slots(), "not as many slots as the geometry says");
            Self {
                cpus,
                slots,
                nodes: Nodes::new(geometry, nodes),
                gp: GpSeq::new(),
                machine: Machine::new(),
                shared: SharedReaders::new(),
                callbacks: Callbacks::new(),
                worker: Worker::new(),
                hooked: CachePadded::new(AtomicUsize::new(0)),
                hook_lock: SpinMutex::new(()),
                hook: UnsafeCell::new(MaybeUninit::uninit()),
            }
        }
    }

    /// Gives the tree a way to free objects, for [`Callback::Free`].
    ///
    /// # Safety
    /// 1. `free` may be called with any object whose head is queued with an offset, once, from any thread.
    #[must_use]
    pub const unsafe fn with_free(mut self, free: FreeObject) -> Self {
        self.callbacks.set_free(free);
        self
    }

    /// Gives the tree a worker: `main` is run on a thread of its own, at first need, and is to call
    /// [`Self::work`] on this same tree, which must be static.
    #[cfg(feature = "std")]
    #[must_use]
    pub const fn with_worker(mut self, main: fn()) -> Self {
        self.worker.set_main(main);
        self
    }

    /// The tree's statistics. Walks the slots that are online.
    #[must_use]
    pub fn stats(&self) -> TreeStats {
        let mut slots_online = 0;
        self.nodes.for_each_online(|_| slots_online += 1);
        TreeStats {
            grace_periods: self.gp.load().completed(),
            slots_online,
            callbacks_run: self.callbacks.invoked(),
            callbacks_panicked: self.callbacks.panicked(),
        }
    }

    /// Runs callbacks whose grace period is over, and sees to it that the rest get one. For a worker, or a kernel's
    /// tick. Returns how many ran; zero also if another thread is at it.
    ///
    /// Runs foreign code: not to be called with locks held that callbacks take, nor inside a section.
    pub fn run_callbacks(&self) -> usize {
        self.callbacks
            .run(&self.lists(), || {
                self.drive();
            })
            .unwrap_or(0)
    }

    /// Whether a grace period is asked for or in progress, or a callback is queued. A hint for who schedules
    /// [`GracePeriod::drive`] and [`Self::run_callbacks`].
    #[must_use]
    #[doc(alias = "rcu_pending")]
    pub fn has_work(&self) -> bool {
        self.gp.is_needed() || self.callbacks.has_work(&self.lists())
    }

    /// The body of the worker thread: drives grace periods and runs callbacks for ever.
    #[cfg(feature = "std")]
    pub fn work(&self) -> ! {
        self.worker.run(
            || {
                let in_the_way = self.drive();
                let ran = self.run_callbacks();
                // Running numbers the callbacks that had none: their grace period can start at once.
                let can_start = !in_the_way && self.gp.is_needed();
                (ran > 0 || can_start, in_the_way)
            },
            || self.has_work(),
        )
    }

    fn world(&self) -> World<'_, 'a, C::Lock> {
        // A slot that is only a hint may be somebody else's by now.
        let owned = <C::Lock as LocalLock>::NEEDS_OWNER;
        World {
            gp: &self.gp,
            nodes: &self.nodes,
            slots: &self.slots,
            shared: &self.shared,
            own: if owned {
                self.cpus.current_if_online()
            } else {
                None
            },
        }
    }

    fn lists(&self) -> Lists<'_, 'a, C::Lock> {
        Lists {
            gp: &self.gp,
            nodes: &self.nodes,
            slots: &self.slots,
        }
    }

    /// The caller's slot in this tree, online.
    fn own_slot(&self) -> Option<&TreeSlot<C::Lock>> {
        let slot = self.cpus.current()?;
        // SAFETY: `Cpus` guarantees slots below `nr_slots`, which is the array's length.
        let own = unsafe { self.slots.get_unchecked(slot) };
        if !own.reader.is_online() {
            self.bring_online(slot, own);
        }
        Some(own)
    }

    #[cold]
    #[inline(never)]
    fn bring_online(&self, slot: Slot, own: &TreeSlot<C::Lock>) {
        self.list_hook();
        own.reader.set_online();
        self.nodes.set_online(slot);
    }

    /// Lists the offline hook, once (I1).
    fn list_hook(&self) {
        // ORDERING: Acquire meets the Release below: the hook is listed.
        if self.hooked.load(Ordering::Acquire) != 0 {
            return;
        }
        let _lock = self.hook_lock.lock();
        // ORDERING: Relaxed: under `hook_lock`.
        if self.hooked.load(Ordering::Relaxed) != 0 {
            return;
        }
        // SAFETY: `offline` may run on any slot's owner while the tree is there.
        let hook = unsafe { OfflineHook::new(Self::offline_hook, ptr::from_ref(self).cast()) };
        // SAFETY: under `hook_lock`, before anyone else looks.
        let place = unsafe { &mut *self.hook.get() };
        let hook = NonNull::from(place.write(hook));
        // SAFETY: the hook stays until `drop` takes it off the list, and is on no list yet.
        unsafe { self.cpus.add_offline_hook(hook) };
        // ORDERING: Release: whoever sees 1 knows the hook listed.
        self.hooked.store(1, Ordering::Release);
    }

    /// # Safety
    /// 1. `tree` is the tree that listed the hook; the caller owns `slot`.
    unsafe fn offline_hook(tree: *const (), slot: Slot) -> bool {
        // SAFETY: the hook's data is the tree, which takes the hook off before it goes (1).
        let tree = unsafe { &*tree.cast::<Self>() };
        let Some(own) = tree.slots.get(slot) else {
            return true;
        };
        if !own.reader.is_online() {
            return true;
        }
        if own.reader.nesting() > 0 {
            own.reader.set_lingering();
            return false;
        }
        tree.take_offline(slot, own);
        true
    }

    fn take_offline(&self, slot: Slot, own: &TreeSlot<C::Lock>) {
        own.reader.set_offline();
        if self.callbacks.migrate(own) {
            self.kick();
        }
        self.nodes.set_offline(slot);
    }

    /// The last section of a thread that has ended is over.
    #[cold]
    #[inline(never)]
    fn end_lingering(&self, word: *const ReaderWord) {
        let offset = word.addr() - self.slots.as_ptr().addr().get();
        let slot = Slot::new((offset / size_of::<TreeSlot<C::Lock>>()) as u32);
        if let Some(own) = self.slots.get(slot) {
            self.take_offline(slot, own);
            // SAFETY: the hook returned false for this slot, once, and the tree has let go of it.
            unsafe { self.cpus.release(slot) };
        }
    }

    #[cold]
    #[inline(never)]
    fn enter_slow(&self) -> Token {
        if let Some(own) = self.own_slot() {
            if own.reader.enter() == Outcome::Done {
                return Token(&raw const *own.reader);
            }
            debug_assert!(false, "I2: the slot was just brought online");
        }
        Token(ptr::without_provenance(self.shared.enter(&self.gp).index()))
    }

    /// Panics if the caller is inside a section, where waiting would never end.
    fn check_outside(&self, what: &str) {
        let Some(slot) = self.cpus.current() else {
            return;
        };
        let nesting = self.slots.get(slot).map_or(0, |own| own.reader.nesting());
        assert!(
            nesting == 0,
            "{what} inside a read-side critical section would wait for itself: drop the guard first"
        );
    }

    fn kick(&self) {
        self.worker.kick();
    }

    /// One step of a wait: push, run what is ready, and pause if readers are in the way.
    fn push(&self, backoff: &Backoff) {
        if self.drive() || self.run_callbacks() == 0 {
            crate::worker::pause(backoff);
        }
    }
}

// SAFETY: 1: `gp_seq` (P4, P5), `reader` (P2, P3), `node` (P3) and `machine` (I2) give the order, slot by slot and
// for readers without a slot (`shared_readers`); 2: the sequence only goes forwards; 3: `wait` drives; a passed
// section changes its word (I1 of `reader`); 4: `snapshot`, `start`, `poll`, `drive` take try-locks only and run nothing.
unsafe impl<C: Cpus> GracePeriod for Tree<'_, C> {
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
                return;
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

// SAFETY: 5: `reader` (wait-free, nesting) and `shared_readers`; 6: `callbacks` (I1, I3, T38); 7: `callbacks::barrier`.
unsafe impl<C: Cpus> Rcu for Tree<'_, C> {
    type Token = Token;

    #[inline(always)]
    fn enter(&self) -> Token {
        if let Some(slot) = self.cpus.current_if_online() {
            // SAFETY: `Cpus` guarantees slots below `nr_slots`, which is the array's length.
            let own = unsafe { self.slots.get_unchecked(slot) };
            if own.reader.enter() == Outcome::Done {
                return Token(&raw const *own.reader);
            }
        }
        self.enter_slow()
    }

    #[inline(always)]
    unsafe fn exit(&self, token: Token) {
        if token.0.addr() >= Token::BANKS {
            // SAFETY: the token is a word of this tree's slots, which outlive it, entered on this thread (1).
            let word = unsafe { &*token.0 };
            if word.exit() == Outcome::Transition {
                self.end_lingering(token.0);
            }
        } else {
            self.shared.exit(Bank::from_index(token.0.addr()));
        }
    }

    unsafe fn call(&self, head: NonNull<Head>, callback: Callback) {
        // SAFETY: the head is valid (1).
        unsafe { head.as_ref() }.set_callback(callback);
        let own = self.own_slot();
        // SAFETY: the caller's debts; `own` is the caller's own slot.
        match unsafe { self.callbacks.queue(&self.gp, own, head) } {
            Queued::First => self.kick(),
            Queued::Numbered => {
                self.drive();
            }
            Queued::Behind => {}
        }
    }

    fn barrier(&self) {
        self.check_outside("a barrier");
        self.callbacks
            .barrier(&self.lists(), |backoff| self.push(backoff));
    }
}

impl<C: Cpus> Drop for Tree<'_, C> {
    /// Waits for and runs every callback that is still queued.
    fn drop(&mut self) {
        self.callbacks
            .barrier(&self.lists(), |backoff| self.push(backoff));
        // ORDERING: Relaxed: exclusive access.
        if self.hooked.load(Ordering::Relaxed) != 0 {
            // SAFETY: written before `hooked` became 1.
            let hook = unsafe { self.hook.get_mut().assume_init_mut() };
            self.cpus.remove_offline_hook(NonNull::from(hook));
        }
    }
}

impl<C: Cpus> fmt::Debug for Tree<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree")
            .field("gp", &self.gp)
            .field("geometry", self.nodes.geometry())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
