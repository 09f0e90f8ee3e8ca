//! Callbacks: who queues them, who runs them.
//!
//! Who runs them is a mode of the tree. *Offloaded*, as it begins: one thread runs everybody's, the callback thread
//! under `std`, else whoever calls [`Tree::run_callbacks`]. *By owners*: each slot's owner runs its own, as a kernel
//! without offloading does.

use super::Tree;
use crate::callbacks::{CHUNK, CallbackConfig, CallbackStats, Queued};
use crate::marks::{Doing, Mark};
use crate::slot::TreeSlot;
use crate::trace::{Event, Lane, Trace};
#[cfg(feature = "std")]
use crate::worker::{Rest, Step, Worker};
use core::ptr::NonNull;
use core::time::Duration;
use rcu_core::cpu::{Cpus, Slot};
use rcu_core::sync::Backoff;
use rcu_core::{GracePeriod, Head};

/// What [`Tree::tick`] has left to do for its slot, and for the orphans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "says whether to come back before the next tick"]
#[non_exhaustive]
#[doc(alias = "rcu_pending")]
pub struct Pending {
    /// A grace period is asked for or in progress: readers are in the way, or another CPU is at it.
    pub grace_period: bool,
    /// Callbacks are ready, and the turn's limit was reached: come back soon.
    pub ready: bool,
    /// Callbacks have no number yet: come back within a tick.
    pub unnumbered: bool,
    /// Callbacks are parked lazily: come back after so long.
    pub lazy: Option<Duration>,
}

impl Pending {
    /// Whether this slot needs no tick until somebody queues a callback on it or asks for a grace period there, or, if no
    /// other CPU ticks, a slot that has callbacks goes offline.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl<'a, C: Cpus, T: Trace> Tree<'a, C, T> {
    /// Sets how callbacks are batched, and when there are too many. For a tree that has not been used.
    #[must_use]
    pub const fn with_callbacks(mut self, config: CallbackConfig) -> Self {
        self.callbacks.set_config(config);
        self
    }

    /// Runs callbacks whose grace period is over, and sees to it that the rest get one: one turn for every slot, or, after
    /// [`Self::deoffload`], for the caller's own slot; and one for callbacks that have no slot. Returns how many ran.
    ///
    /// For a worker, or a kernel's own thread. Runs foreign code: not to be called with locks held that callbacks take,
    /// nor inside a section. What another thread is running already is left to it.
    pub fn run_callbacks(&self) -> usize {
        self.check_stalls();
        if self.callbacks.is_offloaded() {
            return self.run_all();
        }
        self.run_own(&|_| self.push_on_for()) + self.run_orphans(&|_| self.push_on_for())
    }

    /// Does what is due on the caller's CPU at `now`, the time by the embedder's clock, from a zero of its choice: pushes
    /// grace periods on, has lazy callbacks that have waited long enough wait for one, and runs the slot's ready callbacks
    /// and those without a slot, as many as one turn allows. Returns what is left.
    ///
    /// For a kernel's scheduling-clock tick, or its idle loop, on every CPU that queues callbacks; everything that this crate
    /// has threads do under `std` is done by it. However many CPUs tick, the slots are looked at about once a millisecond
    /// by this clock, and besides in so far as callbacks make up for it; a request that comes later in the same millisecond
    /// may wait for the next. Where the tree has threads, they keep the time, and unless callbacks are run
    /// by owners they run them too.
    ///
    /// # Contexts
    /// Not inside a section, and not with locks held that callbacks take. It waits for no owner, no reader and no grace
    /// period. It may come in an interrupt on top of `call`, whose slot it then leaves alone; not on top of a reader
    /// without a slot.
    pub fn tick(&self, now: Duration) -> Pending {
        let lists = self.lists();
        let own = self.online_slot();
        let mut lazy = None;
        if let Some(own) = own
            && !self.worker.has_threads()
        {
            // SAFETY: `own` is the caller's slot.
            lazy = unsafe { self.callbacks.keep_own_time(&lists, &own.calls, now) };
        }
        // Of this clock; as a number that goes round.
        let tick = now.as_millis() as usize;
        // A word for coming by: see `Machine::drive_at`.
        self.push_on_at(tick, 1);
        self.check_stalls();
        if !(self.worker.has_threads() && self.callbacks.is_offloaded()) {
            self.run_own(&|work| self.push_on_at(tick, work));
            self.run_orphans(&|work| self.push_on_at(tick, work));
            self.push_on_at(tick, 1);
        }
        let calls = own.map(|own| &own.calls);
        // SAFETY: `own` is the caller's slot.
        let left = unsafe { self.callbacks.left(self.gp.polled(), calls) };
        Pending {
            grace_period: self.is_grace_period_needed(),
            ready: left.ready,
            unnumbered: left.unnumbered,
            lazy,
        }
    }

    /// Whether a grace period is asked for or in progress, or a callback is queued (a lazy one does not count). A hint for
    /// who schedules [`GracePeriod::drive`] and [`Self::run_callbacks`].
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.is_grace_period_needed() || self.callbacks.has_any(&self.lists())
    }

    fn is_grace_period_needed(&self) -> bool {
        Lane::ALL.iter().any(|&lane| self.gp.is_needed(lane))
    }

    /// Has lazy callbacks wait for the next grace period, as a shrinker does under memory pressure. Returns how many
    /// there were.
    ///
    /// Takes every such slot's lock in turn, as a visitor. Runs nothing.
    #[doc(alias = "lazy_rcu_shrink_scan")]
    pub fn flush_lazy(&self) -> usize {
        let flushed = self.callbacks.flush_lazy(&self.lists());
        if flushed > 0 {
            self.push_on();
            self.kick_runner();
        }
        flushed
    }

    /// How many callbacks are parked lazily now.
    #[must_use]
    #[doc(alias = "lazy_rcu_shrink_count")]
    pub fn lazy_count(&self) -> usize {
        self.callbacks.lazy_count(&self.lists())
    }

    /// Makes every `call_lazy` an ordinary `call` until a matching [`Self::unhurry`]; nests. What is parked already stays
    /// parked: see [`Self::flush_lazy`].
    #[doc(alias = "rcu_async_hurry")]
    pub fn hurry(&self) {
        self.callbacks.hurry();
    }

    /// Ends one [`Self::hurry`].
    ///
    /// # Panics
    /// If there is none to end.
    #[doc(alias = "rcu_async_relax")]
    pub fn unhurry(&self) {
        self.callbacks.unhurry();
    }

    /// Has one thread run everybody's callbacks, as in the beginning. Callbacks that are queued, or being run, are neither
    /// lost nor reordered by the switch.
    #[doc(alias = "rcu_nocb_cpu_offload")]
    pub fn offload(&self) {
        self.callbacks.set_offloaded(true);
        self.kick_runner();
    }

    /// Has each slot's callbacks run by its owner: in [`Self::tick`], [`Self::run_callbacks`], and after it has waited for a
    /// grace period; so a thread that waits must not hold locks that its callbacks take. The callback thread still runs those
    /// without a slot, or whose slot has gone offline, and a barrier runs all that is in its way.
    ///
    /// An owner that does none of these leaves its callbacks waiting, until it ends.
    #[doc(alias = "rcu_nocb_cpu_deoffload")]
    pub fn deoffload(&self) {
        self.callbacks.set_offloaded(false);
    }

    /// Whether one thread runs everybody's callbacks.
    #[must_use]
    pub fn is_offloaded(&self) -> bool {
        self.callbacks.is_offloaded()
    }

    /// Counts of all callbacks. Walks the slots, and takes the lock of each that holds callbacks, as a visitor.
    #[must_use]
    pub fn callback_stats(&self) -> CallbackStats {
        self.callbacks.stats(&self.lists())
    }

    /// Counts of the callbacks queued on `slot`, whoever has owned it; `None` past the last slot. Takes the slot's lock, as
    /// a visitor.
    #[must_use]
    pub fn slot_callbacks(&self, slot: Slot) -> Option<CallbackStats> {
        self.callbacks.slot_stats(&self.lists(), slot)
    }

    /// The body of the tree's threads: drives grace periods, or runs callbacks, for ever. On a thread that the tree did not
    /// start: both.
    #[cfg(feature = "std")]
    pub fn work(&self) -> ! {
        if Worker::is_runner() {
            self.worker.run(
                || self.runner_step(),
                || self.runner_rest(),
                || self.callbacks.is_overloaded(),
            )
        } else {
            self.worker.run(
                || self.driver_step(),
                || self.driver_rest(),
                || self.callbacks.is_overloaded(),
            )
        }
    }

    #[cfg(feature = "std")]
    fn runner_step(&self) -> Step {
        let lists = self.lists();
        self.callbacks.keep_time(&lists, self.worker.now());
        let held = self.drive();
        if held {
            self.kick();
            self.check_stalls();
        }
        let ran = if self.callbacks.is_offloaded() {
            self.run_all()
        } else {
            self.run_orphans(&|_| self.push_on_for())
        };
        // Running numbers the callbacks that had none: their grace period can start at once.
        let can_start = !held && self.gp.is_needed(Lane::Normal);
        match (ran > 0 || can_start, held) {
            (true, _) => Step::Again,
            (false, true) => Step::Held,
            (false, false) => Step::Idle,
        }
    }

    #[cfg(feature = "std")]
    fn runner_rest(&self) -> Rest {
        let lists = self.lists();
        if self.callbacks.has_work(&lists) {
            return Rest::Soon;
        }
        match self.callbacks.keep_time(&lists, self.worker.now()) {
            Some(left) => Rest::In(left),
            // A flush just now has made work.
            None if self.callbacks.has_work(&lists) => Rest::Soon,
            None => Rest::Never,
        }
    }

    #[cfg(feature = "std")]
    fn driver_step(&self) -> Step {
        if self.worker.is_runner_absent() {
            return self.runner_step();
        }
        let before = self.gp.polled().load();
        let held = self.drive();
        if self.gp.polled().load() != before {
            self.worker.nudge();
        }
        if held {
            self.check_stalls();
        }
        match (held, self.is_grace_period_needed()) {
            (true, _) => Step::Held,
            (false, true) => Step::Again,
            (false, false) => Step::Idle,
        }
    }

    #[cfg(feature = "std")]
    fn driver_rest(&self) -> Rest {
        if self.is_grace_period_needed() {
            Rest::Soon
        } else if self.worker.is_runner_absent() {
            self.runner_rest()
        } else {
            Rest::Never
        }
    }

    /// The caller's slot, if it is online in this tree.
    fn online_slot(&self) -> Option<&TreeSlot<C::Lock>> {
        let own = self.slots.get(self.cpus.current_if_online()?)?;
        own.reader.is_online().then_some(own)
    }

    fn run_all(&self) -> usize {
        let _mark = Mark::new(self.mark(), Doing::Callbacks);
        self.callbacks.run(&self.lists(), &|_| self.push_on_for())
    }

    fn run_orphans(&self, push: &impl Fn(usize)) -> usize {
        let _mark = Mark::new(self.mark(), Doing::Callbacks);
        self.callbacks.run_orphans(&self.lists(), push)
    }

    fn run_own(&self, push: &impl Fn(usize)) -> usize {
        let Some(own) = self.online_slot() else {
            return 0;
        };
        let _mark = Mark::new(self.mark(), Doing::Callbacks);
        // SAFETY: `own` is the caller's slot.
        unsafe { self.callbacks.run_own(&self.lists(), &own.calls, push) }
    }

    /// Pushes grace periods on, and has the driver see to what cannot be done now.
    fn push_on(&self) {
        if self.drive() {
            self.kick();
        }
    }

    /// The same after another [`CHUNK`] of callbacks, if that is worth a look at the slots; else the driver comes anyway.
    fn push_on_for(&self) {
        if self.drive_for(CHUNK) {
            self.kick();
        }
    }

    /// The same in a tick, after `work`: callbacks that have been run since the last time.
    fn push_on_at(&self, tick: usize, work: usize) {
        if self.drive_at(tick, work) {
            self.kick();
        }
    }

    pub(super) fn kick_runner(&self) {
        if self.worker.kick_runner() {
            self.trace.event(Event::Wakeup);
        }
    }

    /// Queues the callback noted in `head`.
    ///
    /// # Safety
    /// 1. The debts of [`rcu_core::Rcu::call`].
    #[inline]
    pub(super) unsafe fn queue(&self, head: NonNull<Head>) {
        let own = self.own_slot();
        // SAFETY: the caller's debts; `own` is the caller's own slot.
        let queued = unsafe {
            self.callbacks
                .queue(self.gp.polled(), own.map(|own| &own.calls), head)
        };
        self.follow_up(queued, own);
    }

    /// Queues the callback noted in `head`, which is in no hurry.
    ///
    /// # Safety
    /// 1. The debts of [`rcu_core::Rcu::call_lazy`].
    pub(super) unsafe fn queue_lazily(&self, head: NonNull<Head>) {
        let own = self.own_slot();
        // SAFETY: the caller's debts; `own` is the caller's own slot.
        let queued = unsafe {
            self.callbacks
                .park(self.gp.polled(), own.map(|own| &own.calls), head)
        };
        self.follow_up(queued, own);
    }

    #[inline]
    fn follow_up(&self, queued: Queued, own: Option<&TreeSlot<C::Lock>>) {
        match queued {
            Queued::Behind => {}
            Queued::First => self.first_queued(own),
            Queued::Aside | Queued::Parked => self.kick_runner(),
            Queued::Numbered => self.push_on_for(),
            Queued::Flooded => {
                self.push_on();
                self.worker.nudge();
            }
        }
    }

    /// A callback came to the caller's slot, which had none.
    fn first_queued(&self, own: Option<&TreeSlot<C::Lock>>) {
        // Whoever switches modes stores the mode, runs a full fence and looks for work; here it is the other way round.
        rcu_core::fence::full();
        match own {
            Some(own) if !self.callbacks.is_offloaded() => {
                // SAFETY: `own` is the caller's slot.
                if unsafe { self.callbacks.number_own(self.gp.polled(), &own.calls) } {
                    self.kick();
                }
            }
            _ => self.kick_runner(),
        }
    }

    /// What a thread does that has waited for a grace period.
    pub(super) fn after_wait(&self) {
        if !self.callbacks.is_offloaded() {
            self.run_own(&|_| self.push_on_for());
        }
    }

    /// Waits for every callback queued before. The caller is outside.
    pub(super) fn wait_for_callbacks(&self) {
        self.callbacks
            .barrier(&self.lists(), |backoff| self.push(backoff));
    }

    /// One step of a wait: push, run what is ready, and pause if readers are in the way.
    fn push(&self, backoff: &Backoff) {
        let in_the_way = self.drive();
        if in_the_way {
            self.check_stalls();
        }
        if in_the_way || self.run_all() == 0 {
            crate::worker::pause(backoff);
        }
    }
}
