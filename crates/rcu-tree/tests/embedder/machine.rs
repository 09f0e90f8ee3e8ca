//! An embedder's machine: CPUs that threads play, interrupts, hotplug.

use rcu_core::cpu::{Cpus, HookList, LocalLock, OfflineHook, PerSlot, Slot, SpinLock, ZeroInit};
use rcu_core::{Callback, Head, Rcu};
use rcu_tree::{Geometry, Node, Tree, TreeSlot};
use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

thread_local! {
    /// The CPU that this thread plays.
    static CPU: Cell<Option<u32>> = const { Cell::new(None) };
    /// What hits this thread the next time it holds a slot's local lock.
    static INTERRUPT: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
}

pub(crate) struct Machine {
    plugged: Box<[AtomicBool]>,
    hooks: HookList,
}

pub(crate) type EmbeddedTree = Tree<'static, &'static Machine>;

impl Machine {
    /// A machine with no CPU plugged yet, and a tree over it that has no thread of its own.
    pub(crate) fn boot(
        nr_cpus: usize,
        fanout_leaf: usize,
        fanout: usize,
    ) -> (&'static Self, &'static EmbeddedTree) {
        let machine: &'static Self = Box::leak(Box::new(Self {
            plugged: (0..nr_cpus).map(|_| AtomicBool::new(false)).collect(),
            hooks: HookList::new(),
        }));
        let geometry = Geometry::with_fanout(nr_cpus, fanout_leaf, fanout);
        let slots: Vec<_> = (0..nr_cpus)
            .map(|_| TreeSlot::new(InterruptedLock(SpinLock::new())))
            .collect();
        let nodes: Vec<_> = (0..geometry.nr_nodes()).map(|_| Node::new()).collect();
        let slots = PerSlot::from_slice(slots.leak());
        // SAFETY: leaked before its first use; in every test one thread at a time plays a CPU, and plays no other inside
        // a section.
        let tree = unsafe { Tree::new(machine, slots, geometry, nodes.leak()) };
        (machine, Box::leak(Box::new(tree)))
    }

    /// As `boot`, with all CPUs plugged.
    pub(crate) fn up(
        nr_cpus: usize,
        fanout_leaf: usize,
        fanout: usize,
    ) -> (&'static Self, &'static EmbeddedTree) {
        let (machine, tree) = Self::boot(nr_cpus, fanout_leaf, fanout);
        (0..nr_cpus as u32).for_each(|cpu| machine.plug(cpu));
        (machine, tree)
    }

    pub(crate) fn plug(&self, cpu: u32) {
        self.plugged[cpu as usize].store(true, Ordering::Release);
    }

    pub(crate) fn is_plugged(&self, cpu: u32) -> bool {
        self.plugged[cpu as usize].load(Ordering::Acquire)
    }

    /// Takes `cpu`, which this thread may play, off the machine. True if something is left on it.
    pub(crate) fn unplug(&self, cpu: u32) -> bool {
        on(cpu, || {
            // SAFETY: this thread plays `cpu`, so it owns the slot.
            let keepers = unsafe { self.hooks.run(Slot::new(cpu)) };
            self.plugged[cpu as usize].store(false, Ordering::Release);
            keepers > 0
        })
    }
}

// SAFETY: 1: `boot` fixes the number, and tests play CPUs below it; 2: one thread at a time plays a CPU (and the lock
// needs no owner), with a release and an acquire where threads hand one over; 3: `unplug` runs the hooks on the CPU, the
// list's lock keeps `remove` out meanwhile.
unsafe impl Cpus for Machine {
    type Lock = InterruptedLock;

    fn nr_slots(&self) -> usize {
        self.plugged.len()
    }

    fn current(&self) -> Option<Slot> {
        let cpu = CPU.get()?;
        self.is_plugged(cpu).then(|| Slot::new(cpu))
    }

    unsafe fn add_offline_hook(&self, hook: NonNull<OfflineHook>) {
        // SAFETY: the caller's debts.
        unsafe { self.hooks.add(hook) };
    }

    unsafe fn remove_offline_hook(&self, hook: NonNull<OfflineHook>) {
        self.hooks.remove(hook);
    }
}

/// Plays `cpu` for as long as `f` takes.
pub(crate) fn on<R>(cpu: u32, f: impl FnOnce() -> R) -> R {
    let before = CPU.replace(Some(cpu));
    let result = f();
    CPU.set(before);
    result
}

/// Has `handler` run on top of whatever next takes a local lock on this thread, while it holds it.
pub(crate) fn interrupt_next_lock_holder(handler: impl FnOnce() + 'static) {
    INTERRUPT.set(Some(Box::new(handler)));
}

/// A spin lock whose holder is interrupted.
pub(crate) struct InterruptedLock(SpinLock);

impl InterruptedLock {
    fn entered(&self) {
        if let Some(handler) = INTERRUPT.take() {
            handler();
        }
    }
}

// SAFETY: around a lock that is zeroable.
unsafe impl ZeroInit for InterruptedLock {}

// SAFETY: the spin lock's guarantees; handlers run by whoever holds it, as interrupts do.
unsafe impl LocalLock for InterruptedLock {
    const NEEDS_OWNER: bool = SpinLock::NEEDS_OWNER;

    unsafe fn try_enter(&self) -> bool {
        // SAFETY: the caller's debt.
        let entered = unsafe { self.0.try_enter() };
        if entered {
            self.entered();
        }
        entered
    }

    unsafe fn leave(&self) {
        // SAFETY: the caller's debt.
        unsafe { self.0.leave() };
    }

    fn visit(&self) {
        self.0.visit();
        self.entered();
    }

    fn try_visit(&self) -> bool {
        let entered = self.0.try_visit();
        if entered {
            self.entered();
        }
        entered
    }

    unsafe fn unvisit(&self) {
        // SAFETY: the caller's debt.
        unsafe { self.0.unvisit() };
    }
}

/// The scheduling-clock tick of the CPU that this thread plays, outside sections and locks.
pub(crate) fn tick(tree: &EmbeddedTree) {
    use rcu_core::GracePeriod;
    tree.drive();
    tree.run_callbacks();
}

/// The tick that interrupts a section: pushes grace periods on, and leaves callbacks for later.
pub(crate) fn tick_in_section(tree: &EmbeddedTree) {
    use rcu_core::GracePeriod;
    tree.drive();
}

/// Something with a callback that counts.
#[repr(C)]
pub(crate) struct Item {
    head: Head,
    ran: Arc<AtomicUsize>,
}

impl Item {
    /// Queues a callback that adds one to `ran`.
    pub(crate) fn call(tree: &EmbeddedTree, ran: &Arc<AtomicUsize>) {
        let item = NonNull::from(Box::leak(Box::new(Self {
            head: Head::new(),
            ran: ran.clone(),
        })));
        // SAFETY: a fresh item that nobody else knows, freed by its callback only.
        unsafe { tree.call(item.cast(), Callback::Run(Self::ran)) };
    }

    /// # Safety
    /// 1. `head` is that of a leaked item.
    unsafe fn ran(head: NonNull<Head>) {
        // SAFETY: the head is the first field of a leaked box (1).
        let item = unsafe { Box::from_raw(head.cast::<Self>().as_ptr()) };
        item.ran.fetch_add(1, Ordering::Release);
    }
}
