//! A kernel with four CPUs over rcu-tree: first one thread plays them all, in an order drawn by lot and the same in each run,
//! against a model of who may be waited for; then four threads play one each, with pages, objects and kvfree over them.
//!
//! Called with an argument, it runs a callback under a reader, and has to end with a failed check: so that whoever runs it
//! knows that it can fail.

#![no_std]
#![no_main]

use core::alloc::Layout;
use core::mem::{MaybeUninit, needs_drop, offset_of};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use kvfree::{Config, DeferFree, Kvfree};
use nostd::report::{check, check_eq, say};
use nostd::syscall;
use pagealloc::{Fixed, Order, PageAlloc, PageReq, Zone};
use rcu_core::cpu::{Cpus, HookList, OfflineHook, PerSlot, Slot, SpinLock};
use rcu_core::{Callback, Cookie, GracePeriod, Head, HeadOffset, Rcu, RcuBox, RcuCell, Reclaimer};
use rcu_tree::{Geometry, Node, Token, Tree, TreeSlot};
use slab::Kmalloc;

nostd::program!(main);

const CPUS: usize = 4;

/// The machine: which CPUs are plugged, and whom to tell when one is not any more. A CPU knows its number by its `gs`.
struct Machine {
    plugged: [AtomicBool; CPUS],
    hooks: HookList,
}

static MACHINE: Machine = Machine {
    plugged: [const { AtomicBool::new(false) }; CPUS],
    hooks: HookList::new(),
};

static NUMBERS: [u32; CPUS] = [0, 1, 2, 3];

impl Machine {
    fn is_plugged(&self, cpu: usize) -> bool {
        self.plugged[cpu].load(Ordering::Acquire)
    }

    fn plug(&self, cpu: usize) {
        self.plugged[cpu].store(true, Ordering::Release);
    }

    /// Takes the CPU that the caller plays off the machine.
    fn unplug_self(&self) {
        let cpu = syscall::gs_word();
        // SAFETY: this thread plays the CPU, so it owns the slot.
        let keepers = unsafe { self.hooks.run(Slot::new(cpu)) };
        check_eq(keepers, 0, "nobody is inside a section");
        self.plugged[cpu as usize].store(false, Ordering::Release);
    }
}

/// This thread plays `cpu` from now on. At most one thread at a time does, and it is not inside a section of another.
fn play(cpu: usize) {
    // SAFETY: a static's.
    unsafe { syscall::set_gs(&raw const NUMBERS[cpu]) };
}

// SAFETY: 1: four, and numbers below; 2: one thread plays a CPU, and threads are started and joined where one is handed over;
// 3: `unplug_self` runs the hooks on the CPU, and the list's lock keeps `remove` out meanwhile.
unsafe impl Cpus for Machine {
    type Lock = SpinLock;

    fn nr_slots(&self) -> usize {
        CPUS
    }

    fn current(&self) -> Option<Slot> {
        let cpu = syscall::gs_word();
        self.is_plugged(cpu as usize).then(|| Slot::new(cpu))
    }

    unsafe fn add_offline_hook(&self, hook: NonNull<OfflineHook>) {
        // SAFETY: the caller's debts.
        unsafe { self.hooks.add(hook) };
    }

    unsafe fn remove_offline_hook(&self, hook: NonNull<OfflineHook>) {
        self.hooks.remove(hook);
    }
}

/// Two leaves below a root, so that reports go up.
const GEOMETRY: Geometry = Geometry::with_fanout(CPUS, 2, 2);
static SLOTS: [TreeSlot<SpinLock>; CPUS] = [const { TreeSlot::new(SpinLock::new()) }; CPUS];
static NODES: [Node; GEOMETRY.nr_nodes()] = [const { Node::new() }; GEOMETRY.nr_nodes()];
static TREE: Tree<'static, &'static Machine> = {
    // SAFETY: a static stays in place; a thread that plays a CPU leaves it outside of sections only; the arrays are this tree's.
    let tree = unsafe { Tree::new(&MACHINE, PerSlot::from_slice(&SLOTS), GEOMETRY, &NODES) };
    // SAFETY: whatever is queued with an offset came from the allocator that `FRONT` leads to.
    unsafe { tree.with_free(free_by_offset) }
};

rcu_core::domain! {
    /// Everything that this program protects.
    struct Kernel = TREE: Tree<'static, &'static Machine>;
}

fn main(fail: bool) {
    play(0);
    for cpu in 0..CPUS {
        MACHINE.plug(cpu);
    }
    by_hand(fail);
    in_parallel();
}

// ---- One thread plays them all.

/// The model's clock, and when the section began that is on on each CPU; 0 if none is.
static TIME: AtomicUsize = AtomicUsize::new(1);
static SINCE: [AtomicUsize; CPUS] = [const { AtomicUsize::new(0) }; CPUS];

/// Fails if a section is on that was on at `time`.
fn nobody_is_left_of(time: usize) {
    for (cpu, since) in SINCE.iter().enumerate() {
        let since = since.load(Ordering::Relaxed);
        assert!(
            since == 0 || since > time,
            "CPU {cpu} is inside since {since}, and what was given up at {time} is done with"
        );
    }
}

/// Something with a callback.
#[repr(C)]
struct Item {
    head: Head,
    /// When it was queued; 0 while it is not.
    queued: AtomicUsize,
}

static ITEMS: [Item; 24] = [const {
    Item {
        head: Head::new(),
        queued: AtomicUsize::new(0),
    }
}; 24];
static RAN: AtomicUsize = AtomicUsize::new(0);

/// # Safety
/// 1. `head` is that of a queued [`Item`].
unsafe fn item_is_done(head: NonNull<Head>) {
    // SAFETY: the head is an item's first field (1).
    let item = unsafe { head.cast::<Item>().as_ref() };
    nobody_is_left_of(item.queued.swap(0, Ordering::Relaxed));
    RAN.fetch_add(1, Ordering::Relaxed);
}

/// Numbers by lot, the same ones each time.
struct Lots(u64);

impl Lots {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

fn by_hand(fail: bool) {
    const STEPS: usize = 200_000;
    const NESTING: usize = 3;
    let mut lots = Lots(7);
    let mut tokens: [[Option<Token>; NESTING]; CPUS] = Default::default();
    let mut cookies: [Option<(Cookie, usize)>; 8] = [None; 8];
    let (mut queued, mut done) = (0, 0);
    for _ in 0..STEPS {
        let time = TIME.fetch_add(1, Ordering::Relaxed) + 1;
        let cpu = lots.below(CPUS);
        play(cpu);
        let depth = tokens[cpu].iter().flatten().count();
        if !MACHINE.is_plugged(cpu) {
            if lots.below(8) == 0 {
                MACHINE.plug(cpu);
            }
            continue;
        }
        match lots.below(20) {
            0..5 if depth < NESTING => {
                tokens[cpu][depth] = Some(TREE.enter());
                if depth == 0 {
                    SINCE[cpu].store(time, Ordering::Relaxed);
                }
            }
            5..11 if depth > 0 => {
                if depth == 1 {
                    SINCE[cpu].store(0, Ordering::Relaxed);
                }
                if let Some(token) = tokens[cpu][depth - 1].take() {
                    // SAFETY: entered above, on this CPU, and the innermost one.
                    unsafe { TREE.exit(token) };
                }
            }
            11..14 => {
                let item = &ITEMS[lots.below(ITEMS.len())];
                if item.queued.load(Ordering::Relaxed) == 0 {
                    item.queued.store(time, Ordering::Relaxed);
                    // SAFETY: a static, on no list, with a head first.
                    unsafe {
                        TREE.call(NonNull::from_ref(item).cast(), Callback::Run(item_is_done))
                    };
                    queued += 1;
                }
                if fail {
                    // SAFETY: none: it is queued. This program ends here, or a few steps on.
                    unsafe { item_is_done(NonNull::from_ref(item).cast()) };
                }
            }
            14 => {
                let place = lots.below(cookies.len());
                let cookie = if lots.below(3) == 0 {
                    TREE.start_expedited()
                } else {
                    TREE.start()
                };
                cookies[place] = Some((cookie, time));
            }
            15 if depth == 0 && cpu != 0 => MACHINE.unplug_self(),
            16..20 if depth == 0 => {
                // A tick's clock goes a millisecond on for every round or so.
                let _ = TREE.tick(core::time::Duration::from_millis(time as u64 / 4));
            }
            _ => {
                TREE.drive();
            }
        }
        for entry in &mut cookies {
            if let Some((cookie, time)) = *entry
                && TREE.poll(cookie)
            {
                nobody_is_left_of(time);
                *entry = None;
                done += 1;
            }
        }
    }
    for (cpu, tokens) in tokens.iter_mut().enumerate() {
        play(cpu);
        MACHINE.plug(cpu);
        SINCE[cpu].store(0, Ordering::Relaxed);
        for token in tokens.iter_mut().rev().filter_map(Option::take) {
            // SAFETY: entered above, on this CPU, innermost first.
            unsafe { TREE.exit(token) };
        }
    }
    for _ in 0..64 {
        for cpu in 0..CPUS {
            play(cpu);
            let time = TIME.fetch_add(4, Ordering::Relaxed);
            let _ = TREE.tick(core::time::Duration::from_millis(time as u64 / 4));
        }
    }
    check_eq(
        RAN.load(Ordering::Relaxed),
        queued,
        "callbacks after ticks alone",
    );
    check(
        cookies
            .iter()
            .flatten()
            .all(|&(cookie, _)| TREE.poll(cookie)),
        "cookies after ticks alone",
    );
    check(queued > 1000 && done > 1000, "the string does something");
    play(0);
    TREE.synchronize();
    TREE.synchronize_expedited();
    TREE.barrier();
    check(!TREE.has_work(), "work that is left");
    say(format_args!(
        "rcu-tree by hand: {STEPS} steps, {queued} callbacks, {done} cookies, {} grace periods\n",
        TREE.grace_periods()
    ));
}

// ---- Four threads play one each.

/// What the boot loader left.
#[repr(align(4096))]
struct Region([MaybeUninit<u8>; 16 << 20]);
static mut REGION: Region = Region([MaybeUninit::uninit(); 16 << 20]);

type Pages = Zone<&'static Machine, Fixed<'static>>;
type Objects<'z> = Kmalloc<&'static Machine, &'z Pages, Kernel>;
type Front<'z> = Kvfree<&'static Machine, &'z Pages, Kernel, &'z Objects<'z>>;

/// The front end that [`Heap`] stands for.
static FRONT: AtomicPtr<Front<'static>> = AtomicPtr::new(ptr::null_mut());

fn front() -> &'static Front<'static> {
    // SAFETY: set before the first box is made, and alive until the last one is free.
    unsafe { &*FRONT.load(Ordering::Acquire) }
}

/// # Safety
/// 1. `object` came from the front end's allocator.
unsafe fn free_by_offset(object: NonNull<u8>) {
    // SAFETY: the caller's debt; its time has come.
    unsafe { front().objects().kfree(object) };
}

/// Where boxes live: in objects of the front end's allocator, behind a head.
#[derive(Clone, Copy, Debug, Default)]
struct Heap;

#[repr(C)]
struct Held<T> {
    head: Head,
    value: T,
}

impl<T> Held<T> {
    /// # Safety
    /// 1. `value` lies in a `Held<T>`, and has its provenance.
    unsafe fn around(value: NonNull<T>) -> NonNull<Self> {
        // SAFETY: the front of the same object (1).
        unsafe { value.byte_sub(offset_of!(Self, value)) }.cast()
    }

    /// # Safety
    /// 1. `head` is that of a `Held<T>` from [`Heap`], which nobody looks at any more.
    unsafe fn drop_and_free(head: NonNull<Head>) {
        let held = head.cast::<Self>();
        // SAFETY: whole, and given up (1).
        unsafe { held.drop_in_place() };
        // SAFETY: from there (1).
        unsafe { free_by_offset(held.cast()) };
    }
}

// SAFETY: 1: memory of its own; 2: kvfree's guarantee, by the head; 3: one front end.
unsafe impl Reclaimer for Heap {
    type Domain = Kernel;

    fn allocate<T: Send + Sync + 'static>(&self, value: T) -> Result<NonNull<T>, T> {
        let Ok(memory) = front().objects().kmalloc(Layout::new::<Held<T>>()) else {
            return Err(value);
        };
        let held = memory.cast::<Held<T>>();
        // SAFETY: fresh memory of this layout.
        unsafe {
            held.write(Held {
                head: Head::new(),
                value,
            });
        }
        // SAFETY: inside of it.
        Ok(unsafe { memory.byte_add(offset_of!(Held<T>, value)) }.cast())
    }

    unsafe fn retire<T: 'static>(&self, object: NonNull<T>) {
        // SAFETY: from `allocate` (the caller's debt 1).
        let head = unsafe { Held::around(object) }.cast::<Head>();
        if needs_drop::<T>() {
            let callback = Callback::Run(Held::<T>::drop_and_free);
            // SAFETY: the caller's debts; the function is for this type.
            unsafe { front().retire_head(head, callback, size_of::<Held<T>>()) };
        } else {
            // SAFETY: the caller's debts; the head lies in front.
            unsafe { front().retire(head, HeadOffset::from_bytes(0)) };
        }
    }

    unsafe fn free<T: 'static>(&self, object: NonNull<T>) {
        // SAFETY: from `allocate` (the caller's debt 1).
        let head = unsafe { Held::around(object) }.cast::<Head>();
        // SAFETY: the caller's debts.
        unsafe { Held::<T>::drop_and_free(head) };
    }
}

/// Something whose memory shows whether it was used for something else.
struct Plain([usize; 5]);

impl Plain {
    fn new(n: usize) -> Self {
        Self([n, !n, n, !n, n])
    }

    fn check(&self) {
        let [n, ..] = self.0;
        assert!(
            self.0 == [n, !n, n, !n, n],
            "freed, and used again, under a reader"
        );
    }
}

/// The same with a destructor.
struct Counted(Plain);

static MADE: AtomicUsize = AtomicUsize::new(0);
static DROPPED: AtomicUsize = AtomicUsize::new(0);

impl Counted {
    fn new(n: usize) -> Self {
        MADE.fetch_add(1, Ordering::Relaxed);
        Self(Plain::new(n))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.check();
        self.0.0 = [0; 5];
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the four share.
struct Shared {
    plain: RcuCell<RcuBox<Plain, Heap>>,
    counted: RcuCell<RcuBox<Counted, Heap>>,
}

static SHARED: AtomicPtr<Shared> = AtomicPtr::new(ptr::null_mut());
static ALIVE: [AtomicU32; CPUS] = [const { AtomicU32::new(0) }; CPUS];
static READ: AtomicUsize = AtomicUsize::new(0);

fn in_parallel() {
    // SAFETY: `main` is called once, and nobody else names the region.
    let region = unsafe { &mut *(&raw mut REGION.0) };
    let Ok(source) = Fixed::new(region) else {
        panic!("a region of sixteen MiB has no page");
    };
    let Ok(zone) = Zone::new(&MACHINE, source) else {
        panic!("no zone in sixteen MiB");
    };
    // SAFETY: destroyed below, before the zone goes.
    let Ok(objects) = (unsafe { Objects::new_scoped(&MACHINE, &zone, Kernel) }) else {
        panic!("no memory for the general allocator");
    };
    // SAFETY: the objects wait for the same domain; dropped below, before what it borrows.
    let Ok(front) = (unsafe { Front::new(&MACHINE, &zone, Kernel, &objects, Config::new()) })
    else {
        panic!("no memory for the front end");
    };
    FRONT.store((&raw const front).cast_mut().cast(), Ordering::Release);
    let shared = Shared {
        plain: RcuCell::new(RcuBox::new(Plain::new(0))),
        counted: RcuCell::new(RcuBox::new(Counted::new(0))),
    };
    SHARED.store((&raw const shared).cast_mut(), Ordering::Release);

    let Some(stack_order) = Order::for_size(256 << 10) else {
        panic!("stacks are blocks");
    };
    let stacks: [NonNull<u8>; CPUS] = core::array::from_fn(|cpu| {
        let Ok(stack) = zone.alloc(PageReq::new(stack_order)) else {
            panic!("no memory for the stack of CPU {cpu}");
        };
        stack
    });
    for cpu in 1..CPUS {
        let end = stacks[cpu].as_ptr().wrapping_add(stack_order.bytes());
        // SAFETY: the block is that thread's until it is joined; the word is a static; `cpu` is played by nobody.
        unsafe { syscall::spawn(second_to_fourth, cpu, end, &ALIVE[cpu]) };
    }
    play(0);
    busy(0);
    ALIVE[1..].iter().for_each(syscall::join);
    for stack in stacks {
        // SAFETY: allocated above, and its thread is gone.
        unsafe { zone.free(stack, stack_order) };
    }

    let Shared { plain, counted } = shared;
    drop((plain, counted));
    front.barrier();
    check_eq(
        front.stats().objects_waiting,
        0,
        "objects that wait after a barrier",
    );
    check_eq(
        DROPPED.load(Ordering::Relaxed),
        MADE.load(Ordering::Relaxed),
        "destructors",
    );
    check_eq(READ.load(Ordering::Relaxed), CPUS * ROUNDS, "reads");
    say(format_args!(
        "four threads: {} boxes, {} grace periods in all\n",
        MADE.load(Ordering::Relaxed) * 2,
        TREE.grace_periods()
    ));
    drop(front);
    TREE.barrier();
    check(objects.destroy().is_ok(), "nothing of the allocator is out");
    zone.drain_all();
    check_eq(zone.nr_allocated(), 0, "pages that are out at the end");
}

extern "C" fn second_to_fourth(cpu: usize) {
    play(cpu);
    busy(cpu);
    MACHINE.unplug_self();
}

const ROUNDS: usize = 20_000;

fn busy(cpu: usize) {
    // SAFETY: set, and valid until every CPU is through.
    let shared = unsafe { &*SHARED.load(Ordering::Acquire) };
    for round in 1..=ROUNDS {
        let guard = rcu_core::read_lock::<Kernel>();
        let (Some(plain), Some(counted)) = (shared.plain.load(&guard), shared.counted.load(&guard))
        else {
            panic!("the cells are never empty");
        };
        plain.check();
        if round.is_multiple_of(64) {
            // As an interrupt would: others go on meanwhile.
            syscall::yield_now();
        }
        counted.0.check();
        plain.check();
        drop(guard);
        READ.fetch_add(1, Ordering::Relaxed);
        if round % CPUS == cpu {
            shared.plain.store(Some(RcuBox::new(Plain::new(round))));
            shared.counted.store(Some(RcuBox::new(Counted::new(round))));
        }
        if round.is_multiple_of(16) {
            let _ = TREE.tick(syscall::now());
        }
        if round.is_multiple_of(100) && cpu == 0 {
            front().tick();
        }
        if round.is_multiple_of(1000) {
            MACHINE.unplug_self();
            MACHINE.plug(cpu);
        }
    }
}
