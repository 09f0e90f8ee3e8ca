//! The kernel: `core` only, no heap, no thread. All that it knows of the machine is [`Machine`], three functions.

use core::fmt;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use core::time::Duration;
use kvfree::{Config, DeferFree, HasHead, Head, Kvfree, has_head};
use pagealloc::{AllocError, MemoryMap, SourceError, Zone, ZoneError};
use rcu_core::cpu::{Cpus, HookList, OfflineHook, PerSlot, Slot, SpinLock};
use rcu_core::{GracePeriod, Guard};
use rcu_tree::{Geometry, Node, Tree, TreeSlot};
use slab::{CreateError, Kmalloc};

/// The most CPUs that this kernel runs on.
pub(crate) const MAX_CPUS: usize = 8;

/// What the kernel wants of the machine.
pub(crate) trait Machine: Sync {
    /// The number of the CPU that runs this, below [`MAX_CPUS`]. Preemption is off inside sections.
    fn this_cpu(&self) -> u32;
    /// Time since boot.
    fn now(&self) -> Duration;
    /// Spends a moment, with interrupts on.
    fn relax(&self);
}

static MACHINE: spin_once::Once = spin_once::Once::new();

/// A reference that is set once, while there is one CPU.
mod spin_once {
    use super::{AtomicBool, Machine, Ordering};
    use core::cell::UnsafeCell;

    pub(super) struct Once {
        is_set: AtomicBool,
        machine: UnsafeCell<Option<&'static dyn Machine>>,
    }

    // SAFETY: written once, before `is_set` lets anybody read.
    unsafe impl Sync for Once {}

    impl Once {
        pub(super) const fn new() -> Self {
            Self {
                is_set: AtomicBool::new(false),
                machine: UnsafeCell::new(None),
            }
        }

        /// # Safety
        /// 1. Called once, before there is a second CPU.
        pub(super) unsafe fn set(&self, machine: &'static dyn Machine) {
            // SAFETY: nobody reads yet (1).
            unsafe { *self.machine.get() = Some(machine) };
            // ORDERING: Release meets the Acquire in `get`: the reference is whole.
            self.is_set.store(true, Ordering::Release);
        }

        pub(super) fn get(&self) -> &'static dyn Machine {
            // ORDERING: Acquire meets the Release in `set`.
            assert!(self.is_set.load(Ordering::Acquire), "used before boot");
            // SAFETY: written before, and never again.
            unsafe { *self.machine.get() }.expect("set together with the flag")
        }
    }
}

/// Which CPUs are online. The seam to every layer: who runs where, and who is to be told when a CPU goes.
pub(crate) struct Smp {
    online: [AtomicBool; MAX_CPUS],
    hooks: HookList,
}

static SMP: Smp = Smp {
    online: [const { AtomicBool::new(false) }; MAX_CPUS],
    hooks: HookList::new(),
};

impl Smp {
    /// On the CPU that comes up, first of all.
    pub(crate) fn bring_up(&self) {
        let cpu = MACHINE.get().this_cpu() as usize;
        // ORDERING: Acquire meets the Release in `take_down`: what was done with the slot before is before what is done now.
        self.online[cpu].swap(true, Ordering::Acquire);
    }

    /// On the CPU that goes down, last of all: each layer hands over what it keeps here.
    pub(crate) fn take_down(&self) {
        let cpu = MACHINE.get().this_cpu();
        // SAFETY: this CPU is the slot's owner, and is still online.
        unsafe { self.hooks.run(Slot::new(cpu)) };
        // ORDERING: Release: whoever brings the CPU up again has what this one did with the slot.
        self.online[cpu as usize].store(false, Ordering::Release);
    }
}

// SAFETY: 1: a constant, and the machine's CPUs are below it; 2: a CPU is one thread of execution at a time (and `SpinLock` needs no
// owner); it comes up again after it was taken down, with a release and an acquire of `online`; 3: `take_down` runs the hooks
// on the CPU while it is online, and `HookList` keeps `remove` out meanwhile.
unsafe impl Cpus for Smp {
    type Lock = SpinLock;

    fn nr_slots(&self) -> usize {
        MAX_CPUS
    }

    fn current(&self) -> Option<Slot> {
        let cpu = MACHINE.get().this_cpu();
        // ORDERING: Relaxed: written on this CPU only.
        let is_online = self.online[cpu as usize].load(Ordering::Relaxed);
        // Too early or too late: every layer has a shared path.
        is_online.then(|| Slot::new(cpu))
    }

    unsafe fn add_offline_hook(&self, hook: NonNull<OfflineHook>) {
        // SAFETY: the caller's debts.
        unsafe { self.hooks.add(hook) };
    }

    unsafe fn remove_offline_hook(&self, hook: NonNull<OfflineHook>) {
        self.hooks.remove(hook);
    }

    fn describe(&self, slot: Slot, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CPU {}", slot.index())
    }
}

type KernelTree = Tree<'static, &'static Smp>;
const GEOMETRY: Geometry = Geometry::new(MAX_CPUS);
static SLOTS: [TreeSlot<SpinLock>; MAX_CPUS] = [const { TreeSlot::new(SpinLock::new()) }; MAX_CPUS];
static NODES: [Node; GEOMETRY.nr_nodes()] = [const { Node::new() }; GEOMETRY.nr_nodes()];
static TREE: KernelTree = {
    let slots = PerSlot::from_slice(&SLOTS);
    // SAFETY: a static stays in place; a CPU does not leave a section half-way, since preemption is off in it; the arrays are
    // this tree's own.
    unsafe { Tree::new(&SMP, slots, GEOMETRY, &NODES) }
};

rcu_core::domain! {
    /// The kernel's RCU, as a type.
    pub(crate) struct KernelRcu = TREE: KernelTree;
}

type Pages = Zone<&'static Smp, MemoryMap<4>>;
type Objects<'k> = Kmalloc<&'static Smp, &'k Pages, KernelRcu>;
type Front<'k> = Kvfree<&'static Smp, &'k Pages, KernelRcu, &'k Objects<'k>>;

/// What the firmware says about a piece of physical memory.
pub(crate) struct MemoryRange {
    pub(crate) start: usize,
    pub(crate) size_bytes: usize,
    pub(crate) is_usable: bool,
}

/// Why the kernel does not come up.
#[derive(Debug)]
pub(crate) enum BootError {
    MemoryMap(SourceError),
    Zone(ZoneError),
    Caches(CreateError),
    Front(AllocError),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MemoryMap(error) => write!(f, "the firmware's memory map: {error}"),
            Self::Zone(error) => write!(f, "the zone: {error}"),
            Self::Caches(error) => write!(f, "the caches: {error}"),
            Self::Front(error) => write!(f, "deferred freeing: {error}"),
        }
    }
}

impl core::error::Error for BootError {}

/// Brings the kernel up, has `main` run on it, and takes it down again (which few kernels do).
///
/// # Safety
/// 1. Called once, on the only CPU that runs. The usable ranges are mapped at `direct_map`, and nobody else uses them.
pub(crate) unsafe fn boot<T>(
    machine: &'static dyn Machine,
    direct_map: NonNull<u8>,
    map: &[MemoryRange],
    main: impl FnOnce(&Kernel<'_>) -> T,
) -> Result<T, BootError> {
    // SAFETY: 1.
    unsafe { MACHINE.set(machine) };
    SMP.bring_up();
    let mut memory = MemoryMap::<4>::new(direct_map).map_err(BootError::MemoryMap)?;
    for range in map.iter().filter(|range| range.is_usable) {
        // SAFETY: 1.
        unsafe { memory.add(range.start, range.size_bytes) }.map_err(BootError::MemoryMap)?;
    }
    let zone = Zone::new(&SMP, memory).map_err(BootError::Zone)?;
    // SAFETY: the zone outlives the caches, which are dropped here and not forgotten.
    let objects: Objects<'_> =
        unsafe { Kmalloc::new_scoped(&SMP, &zone, KernelRcu) }.map_err(BootError::Caches)?;
    // SAFETY: the objects wait for the same RCU; everything outlives the front end, which is dropped here.
    let front = unsafe { Kvfree::new(&SMP, &zone, KernelRcu, &objects, Config::new()) };
    let front = front.map_err(BootError::Front)?;
    let kernel = Kernel {
        objects: &objects,
        front: &front,
        device: AtomicPtr::new(ptr::null_mut()),
    };
    let result = main(&kernel);
    SMP.take_down();
    Ok(result)
}

/// A device that interrupt handlers look up while a driver replaces it.
pub(crate) struct Device {
    pub(crate) irq: u32,
    pub(crate) inverse: u32,
    head: Head,
}
has_head!(Device, head);

/// The layers, together.
pub(crate) struct Kernel<'k> {
    pub(crate) objects: &'k Objects<'k>,
    pub(crate) front: &'k Front<'k>,
    device: AtomicPtr<Device>,
}

impl Kernel<'_> {
    /// The CPUs.
    pub(crate) fn smp(&self) -> &'static Smp {
        &SMP
    }

    /// The timer interrupt, and the idle loop: grace periods move on, callbacks run, what was retired is freed. There is no
    /// other thread that would.
    pub(crate) fn tick(&self) {
        let _ = TREE.tick(MACHINE.get().now());
        self.front.tick();
    }

    /// Enters a section: preemption is off until the guard goes.
    pub(crate) fn read_lock(&self) -> Guard<KernelRcu> {
        rcu_core::read_lock::<KernelRcu>()
    }

    /// The device, for as long as the section lasts.
    pub(crate) fn device<'g>(&self, _guard: &'g Guard<KernelRcu>) -> Option<&'g Device> {
        // ORDERING: P1 (load side).
        let device = self.device.load(Ordering::Acquire);
        // SAFETY: retired after it was unlinked, and so not freed before the section ends.
        unsafe { device.as_ref() }
    }

    /// Replaces the device. From any context: an interrupt handler, too, if there is memory for the new one.
    pub(crate) fn replace_device(&self, irq: u32) -> Result<(), AllocError> {
        let memory = self.objects.kmalloc(core::alloc::Layout::new::<Device>())?;
        let new = memory.cast::<Device>();
        let (inverse, head) = (!irq, Head::new());
        // SAFETY: fresh memory of this layout.
        unsafe { new.write(Device { irq, inverse, head }) };
        // ORDERING: P1 (publish side); Acquire, so that the old one is whole before its head is queued.
        self.retire(self.device.swap(new.as_ptr(), Ordering::AcqRel));
        Ok(())
    }

    /// Takes the device away.
    pub(crate) fn remove_device(&self) {
        // ORDERING: as in `replace_device`; null publishes nothing.
        self.retire(self.device.swap(ptr::null_mut(), Ordering::AcqRel));
    }

    fn retire(&self, old: *mut Device) {
        if let Some(old) = NonNull::new(old) {
            // SAFETY: a whole device from `objects`.
            let head = unsafe { Device::head_of(old) };
            // SAFETY: from `objects`, unlinked just now, retired once.
            unsafe { self.front.retire(head, Device::OFFSET) };
        }
    }

    /// Waits for a grace period, for as long as other CPUs tick.
    pub(crate) fn synchronize(&self) {
        let cookie = KernelRcu.start();
        while !KernelRcu.poll(cookie) {
            KernelRcu.drive();
            MACHINE.get().relax();
        }
    }
}
