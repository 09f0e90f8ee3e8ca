//! The tree: as programs use it, and small, over few slots, with delays where its steps are close together.

#[cfg(target_os = "linux")]
use super::seccomp::{assert_fenced, deny_membarrier};
use crate::random::Random;
use crate::rcu::subject::{self, Parcel, Subject};
use rcu_core::cpu::{BiasedLock, Cpus, HookList, OfflineHook, PerSlot, Slot, SlotTable};
use rcu_core::{Guard, fence};
use rcu_tree::{Event, Geometry, Node, StallConfig, StallReport, Trace, Tree, TreeSlot};
use serde_json::{Value, json};
use std::cell::Cell;
use std::hint;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// After this long a stall is told, so that one can be made.
const STALL: Duration = Duration::from_millis(500);
static TOLD: AtomicUsize = AtomicUsize::new(0);

fn note(_report: &StallReport<'_>) {
    TOLD.fetch_add(1, Ordering::Relaxed);
}

const TELLS: StallConfig = StallConfig::new().timeout(STALL).report(note);

rcu_tree::static_tree! {
    /// The tree as programs use it.
    pub(crate) struct Routes, stall = TELLS;
}

/// Turns one of the tree's knobs.
fn turn<C: Cpus, T: Trace>(tree: &Tree<'_, C, T>, random: &mut Random) -> bool {
    match random.below(6) {
        0 => {
            tree.expedite();
            thread::sleep(Duration::from_millis(5));
            tree.unexpedite();
        }
        1 => tree.set_normal_only(random.one_in(2)),
        2 => {
            tree.hurry();
            thread::sleep(Duration::from_millis(5));
            tree.unhurry();
        }
        3 => {
            tree.flush_lazy();
        }
        4 => tree.deoffload(),
        _ => tree.offload(),
    }
    true
}

fn reset<C: Cpus, T: Trace>(tree: &Tree<'_, C, T>) {
    tree.set_normal_only(false);
    tree.offload();
}

fn breathe<C: Cpus, T: Trace>(tree: &Tree<'_, C, T>) {
    if !tree.is_offloaded() {
        tree.run_callbacks();
    }
}

fn tell<C: Cpus, T: Trace>(tree: &Tree<'_, C, T>) -> Value {
    let (stats, gp) = (tree.stats(), tree.gp_stats());
    json!({
        "normal grace periods": stats.grace_periods,
        "expedited": stats.expedited,
        "slots online": stats.slots_online,
        "callbacks run": stats.callbacks_run,
        "panicked": stats.callbacks_panicked,
        "heavy fences": gp.normal.heavy_fences + gp.expedited.heavy_fences,
        "forced scans": gp.normal.forced_scans + gp.expedited.forced_scans,
        "holdouts": gp.normal.holdouts + gp.expedited.holdouts,
        "fences": format!("{:?}", fence::probe()),
    })
}

impl Subject for Routes {
    fn enter_send(self) -> Option<Parcel> {
        subject::enter_send(self)
    }

    fn move_off(guard: Guard<Self>) -> Option<Parcel> {
        subject::move_off(guard)
    }

    fn breathe(self) {
        breathe(Self::tree());
    }

    fn turn_a_knob(self, random: &mut Random) -> bool {
        turn(Self::tree(), random)
    }

    fn reset_knobs(self) {
        reset(Self::tree());
    }

    fn stalls(self) -> Option<(Duration, usize)> {
        Some((STALL, TOLD.load(Ordering::Relaxed)))
    }

    fn tell(self) -> Value {
        tell(Self::tree())
    }
}

/// The tree as programs use it.
pub(crate) fn routes() -> Routes {
    Routes
}

/// Where there is no `membarrier`, there is none to be denied.
#[cfg(not(target_os = "linux"))]
fn deny_membarrier() -> bool {
    true
}

#[cfg(not(target_os = "linux"))]
fn assert_fenced(_denied: bool) {}

/// The same where the system refuses `membarrier` from the start.
pub(crate) fn fenced() -> Result<Routes, String> {
    if !deny_membarrier() {
        return Err("no seccomp filter can be installed here".into());
    }
    assert_fenced(true);
    Ok(Routes)
}

/// The same where the system refuses it from some moment on.
pub(crate) fn fence_lost(after: Duration) -> Routes {
    thread::spawn(move || {
        thread::sleep(after);
        deny_membarrier();
    });
    Routes
}

/// More slots than this no scenario has.
const MOST: usize = 81;
const NONE: u32 = u32::MAX;
const GONE: u32 = u32::MAX - 1;

static TABLE: SlotTable<MOST> = SlotTable::new();
static HOOKS: HookList = HookList::new();
static NR: AtomicUsize = AtomicUsize::new(MOST);

thread_local! {
    static SLOT: Cell<u32> = const { Cell::new(NONE) };
    static RELEASE: Release = const { Release };
}

struct Release;

impl Drop for Release {
    fn drop(&mut self) {
        if SLOT.get() < MOST as u32 {
            let slot = Slot::new(SLOT.get());
            // SAFETY: this thread owns the slot, and `SLOT` still says so.
            let keepers = unsafe { HOOKS.run(slot) };
            SLOT.set(GONE);
            TABLE.give_back(slot, keepers);
        }
        SLOT.set(GONE);
    }
}

/// Threads, but there are few slots for them: the rest read without.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FewThreads;

// SAFETY: 1: a table of at least so many; 2: the table, and a thread-local; 3: `HookList`, run by the thread-local's destructor.
unsafe impl Cpus for FewThreads {
    type Lock = BiasedLock;

    fn nr_slots(&self) -> usize {
        NR.load(Ordering::Relaxed)
    }

    fn current(&self) -> Option<Slot> {
        if SLOT.get() == NONE
            && RELEASE.try_with(|_| ()).is_ok()
            && let Some(slot) = TABLE.take(b"")
        {
            if slot.index() < self.nr_slots() {
                SLOT.set(slot.index() as u32);
            } else {
                TABLE.give_back(slot, 0);
            }
        }
        self.current_if_online()
    }

    fn current_if_online(&self) -> Option<Slot> {
        let number = SLOT.get();
        (number < MOST as u32).then(|| Slot::new(number))
    }

    unsafe fn add_offline_hook(&self, hook: NonNull<OfflineHook>) {
        // SAFETY: the caller's debts.
        unsafe { HOOKS.add(hook) };
    }

    unsafe fn remove_offline_hook(&self, hook: NonNull<OfflineHook>) {
        HOOKS.remove(hook);
    }

    unsafe fn release(&self, slot: Slot) {
        TABLE.release(slot);
    }
}

/// Waits where the engine's steps are close together, by turns for nothing, a few spins, a yield, or a sleep.
#[derive(Debug)]
pub(crate) struct Delays {
    /// 0: never.
    often: usize,
    turn: AtomicUsize,
}

impl Trace for Delays {
    fn event(&self, event: Event) {
        if self.often == 0 {
            return;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        // Of looks there are very many.
        let is_look = matches!(event, Event::SlotRead(_) | Event::NodeRead { .. });
        match (turn.wrapping_mul(0x9e37_79b9) >> 8) % (32 * self.often) {
            0 if !is_look => thread::sleep(Duration::from_micros(100)),
            1..4 if !is_look => thread::yield_now(),
            0..16 => (0..turn % 300).for_each(|_| hint::spin_loop()),
            _ => {}
        }
    }
}

type Small = Tree<'static, FewThreads, Delays>;
static SMALL: OnceLock<Small> = OnceLock::new();

fn work() {
    if let Some(tree) = SMALL.get() {
        tree.work();
    }
}

/// A tree of another shape than the default one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) slots: usize,
    pub(crate) fanout_leaf: usize,
    pub(crate) fanout: usize,
    /// 0: no delays; 1: often; more: more rarely.
    pub(crate) delays: usize,
}

/// A tree over few slots.
pub(crate) fn small(shape: Shape) -> &'static Small {
    NR.store(shape.slots, Ordering::Relaxed);
    SMALL.get_or_init(|| {
        let slots: Vec<_> = (0..shape.slots)
            .map(|_| TreeSlot::new(BiasedLock::new()))
            .collect();
        let geometry = Geometry::with_fanout(shape.slots, shape.fanout_leaf, shape.fanout);
        let nodes: Vec<_> = (0..geometry.nr_nodes()).map(|_| Node::new()).collect();
        let slots = PerSlot::from_slice(Box::leak(slots.into_boxed_slice()));
        let nodes = Box::leak(nodes.into_boxed_slice());
        let delays = Delays {
            often: shape.delays,
            turn: AtomicUsize::new(0),
        };
        // SAFETY: used only in the static that it is moved to; a thread keeps its slot.
        let tree = unsafe { Tree::traced(FewThreads, slots, geometry, nodes, delays) };
        tree.with_worker(work).with_stall(TELLS)
    })
}

impl Subject for &'static Small {
    fn enter_send(self) -> Option<Parcel> {
        subject::enter_send(self)
    }

    fn move_off(guard: Guard<Self>) -> Option<Parcel> {
        subject::move_off(guard)
    }

    fn breathe(self) {
        breathe(self);
    }

    fn turn_a_knob(self, random: &mut Random) -> bool {
        turn(self, random)
    }

    fn reset_knobs(self) {
        reset(self);
    }

    fn stalls(self) -> Option<(Duration, usize)> {
        Some((STALL, TOLD.load(Ordering::Relaxed)))
    }

    fn tell(self) -> Value {
        tell(self)
    }
}
