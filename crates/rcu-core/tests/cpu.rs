//! Slots, local cells and hook lists, one thread at a time.

#![cfg(not(loom))]

use rcu_core::cpu::{
    BiasedLock, Cpus, HookList, LocalCell, LocalLock, OfflineHook, OneCpu, PerSlot, Slot, SpinLock,
    SpinMutex, UpLock,
};
use rcu_core::fence;
use std::cell::Cell;
use std::ptr::NonNull;

/// An owner that an interrupt runs over, at each point inside.
fn reentrance<L: LocalLock>(lock: L) {
    let mut cell = LocalCell::new(lock, vec![0]);
    {
        // SAFETY: this thread is the only owner.
        let mut owner = unsafe { cell.try_enter() }.expect("nobody is inside");
        owner.push(1);
        // SAFETY: as above; this is the interrupt.
        let again = unsafe { cell.try_enter() };
        assert!(again.is_none() && cell.try_visit().is_none());
        assert_eq!(format!("{cell:?}"), "LocalCell(<busy>)");
        owner.push(2);
    }
    {
        let mut visitor = cell.visit();
        // SAFETY: as above.
        assert!(unsafe { cell.try_enter() }.is_none());
        visitor.push(3);
    }
    assert_eq!(format!("{cell:?}"), "LocalCell([0, 1, 2, 3])");
    assert_eq!(cell.get_mut().len(), 4);
}

#[test]
fn t26_up_lock_sees_reentrance() {
    // SAFETY: used by this thread only.
    reentrance(unsafe { UpLock::new() });
}

#[test]
fn the_other_locks_see_reentrance_too() {
    reentrance(BiasedLock::new());
    reentrance(SpinLock::new());
}

/// The bias comes with an entry, where the kernel fences for the owner, and goes with a visit.
#[test]
fn p8_a_visit_ends_the_bias() {
    let spared = fence::probe() == fence::Mode::Membarrier;
    let lock = BiasedLock::new();
    assert_eq!(format!("{lock:?}"), "BiasedLock { busy: 0, bias: 0 }");
    for _ in 0..2 {
        for _ in 0..2 {
            // SAFETY: this thread is the only owner.
            assert!(unsafe { lock.try_enter() });
            // SAFETY: entered above.
            unsafe { lock.leave() };
            let bias = u32::from(spared);
            assert_eq!(
                format!("{lock:?}"),
                format!("BiasedLock {{ busy: 1, bias: {bias} }}")
            );
        }
        assert!(lock.try_visit());
        // SAFETY: entered above, as a visitor.
        unsafe { lock.unvisit() };
        assert_eq!(format!("{lock:?}"), "BiasedLock { busy: 1, bias: 0 }");
    }
}

/// In the child of a fork, whoever was inside never leaves.
fn seizure<L: LocalLock>(make: impl Fn() -> L) {
    let seize = |cell: &LocalCell<L, u32>| {
        // SAFETY: one thread, which is not inside: the guards it made were forgotten.
        let (mut guard, whole) = unsafe { cell.seize() };
        *guard += 1;
        whole
    };
    let cell = LocalCell::new(make(), 0);
    assert!(seize(&cell), "nobody is inside");
    std::mem::forget(cell.visit());
    assert!(!seize(&cell), "a visitor was inside");
    // SAFETY: this thread is the only owner.
    let owner = unsafe { cell.try_enter() };
    std::mem::forget(owner.expect("seized, changed, and left"));
    assert!(!seize(&cell), "the owner was inside");
    assert_eq!(*cell.try_visit().expect("free again"), 3);
}

#[test]
fn a_lock_is_seized_from_whoever_is_gone() {
    seizure(BiasedLock::new);
    seizure(SpinLock::new);
    // SAFETY: used by this thread only.
    seizure(|| unsafe { UpLock::new() });
    let mutex = SpinMutex::new(1);
    // SAFETY: one thread, which does not hold it.
    assert!(unsafe { mutex.seize() }.1);
    std::mem::forget(mutex.lock());
    // SAFETY: as above; the guard was forgotten.
    assert!(!unsafe { mutex.seize() }.1);
    assert_eq!(mutex.try_lock().as_deref(), Some(&1));
}

#[test]
fn a_cell_is_left_when_its_user_panics() {
    let cell = LocalCell::new(BiasedLock::new(), 0);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        // SAFETY: this thread is the only owner.
        let _owner = unsafe { cell.try_enter() };
        panic!("inside");
    }));
    assert!(panicked.is_err() && cell.try_visit().is_some());
}

#[test]
fn a_mutex_is_free_again_after_its_guard() {
    let mut mutex = SpinMutex::new(1);
    {
        let mut guard = mutex.lock();
        *guard += 1;
        assert!(mutex.try_lock().is_none());
    }
    *mutex.try_lock().unwrap() += 1;
    *mutex.get_mut() += 1;
    assert_eq!(mutex.into_inner(), 4);
}

#[test]
fn one_cpu_has_one_slot() {
    // SAFETY: this value is used here only.
    let cpus = unsafe { OneCpu::new() };
    assert_eq!((cpus.nr_slots(), cpus.current()), (1, Some(Slot::new(0))));
    assert_eq!((&&cpus).current(), Some(Slot::new(0)));
}

#[test]
fn arrays_over_slices_and_zeroed_memory() {
    let words = [5_u32, 6, 7];
    let array = PerSlot::from_slice(&words);
    assert_eq!(array.len(), 3);
    assert_eq!(array.get(Slot::new(2)), Some(&7));
    assert_eq!(array.get(Slot::new(3)), None);
    let all: Vec<_> = array
        .iter()
        .map(|(slot, &word)| (slot.index(), word))
        .collect();
    assert_eq!(all, [(0, 5), (1, 6), (2, 7)]);
    assert!(PerSlot::<u32>::from_slice(&[]).is_empty());

    type Element = LocalCell<BiasedLock, [u64; 2]>;
    let layout = PerSlot::<Element>::layout(4);
    assert_eq!(layout.size(), 4 * size_of::<Element>());
    let mut memory = [const { std::mem::MaybeUninit::<Element>::zeroed() }; 4];
    let base = NonNull::from(&mut memory).cast::<u8>();
    // SAFETY: four zeroed elements that nothing else refers to until the end of this test.
    let array = unsafe { PerSlot::<Element>::from_zeroed(base, 4) };
    array.get(Slot::new(3)).unwrap().visit()[1] = 9;
    assert_eq!(*array.get(Slot::new(3)).unwrap().visit(), [0, 9]);
    assert_eq!(*array.get(Slot::new(0)).unwrap().visit(), [0, 0]);
    assert_eq!(array.as_ptr().cast(), base);
}

/// A hook that notes its number in order.
struct Noting {
    log: Cell<Vec<u32>>,
    keeps: Cell<bool>,
}

unsafe fn note(noting: *const (), slot: Slot) -> bool {
    // SAFETY: the hooks of the test below have a `Noting` that outlives them.
    let noting = unsafe { &*noting.cast::<Noting>() };
    let mut log = noting.log.take();
    log.push(slot.index() as u32);
    noting.log.set(log);
    !noting.keeps.get()
}

#[test]
fn hooks_run_while_listed_and_say_who_keeps() {
    let notes: [Noting; 3] = std::array::from_fn(|_| Noting {
        log: Cell::default(),
        keeps: Cell::new(false),
    });
    // SAFETY: the function is run on this thread only, by this test.
    let hooks = notes
        .each_ref()
        .map(|n| unsafe { OfflineHook::new(note, (&raw const *n).cast()) });
    let list = HookList::new();
    for hook in &hooks {
        // SAFETY: the hooks outlive the list's use, and each is added once.
        unsafe { list.add(NonNull::from(hook)) };
    }
    let run = |slot| {
        // SAFETY: nobody else is on any slot here.
        unsafe { list.run(Slot::new(slot)) }
    };
    assert_eq!(run(4), 0);
    notes[0].keeps.set(true);
    notes[2].keeps.set(true);
    assert_eq!(run(5), 2);
    list.remove(NonNull::from(&hooks[1]));
    list.remove(NonNull::from(&hooks[1]));
    assert_eq!(run(6), 2);
    list.remove(NonNull::from(&hooks[2]));
    assert_eq!(run(7), 1);
    list.remove(NonNull::from(&hooks[0]));
    assert_eq!(run(8), 0);
    // SAFETY: one thread, inside no hook.
    unsafe { list.run_forked(Some(Slot::new(9))) };
    let logs = notes.map(|n| n.log.take());
    assert_eq!(logs, [vec![4, 5, 6, 7], vec![4, 5], vec![4, 5, 6]]);
}

/// A hook's answer to a fork: notes who is left.
unsafe fn note_survivor(noting: *const (), survivor: Option<Slot>) {
    // SAFETY: as for `note`.
    unsafe { note(noting, survivor.unwrap_or(Slot::new(99))) };
}

#[test]
fn fork_hooks_run_where_there_is_one_and_free_the_list() {
    let notes: [Noting; 3] = std::array::from_fn(|_| Noting {
        log: Cell::default(),
        keeps: Cell::new(false),
    });
    let list = HookList::new();
    let hooks = [0, 1, 2].map(|i| {
        // SAFETY: the functions are run on this thread only, by this test.
        let hook = unsafe { OfflineHook::new(note, (&raw const notes[i]).cast()) };
        match i {
            1 => hook,
            // SAFETY: as above.
            _ => unsafe { hook.with_fork(note_survivor) },
        }
    });
    for hook in &hooks {
        // SAFETY: the hooks outlive the list's use, and each is added once.
        unsafe { list.add(NonNull::from(hook)) };
    }
    // SAFETY: one thread, inside no hook.
    unsafe { list.run_forked(Some(Slot::new(7))) };
    list.remove(NonNull::from(&hooks[0]));
    // SAFETY: as above.
    unsafe { list.run_forked(None) };
    let logs = notes.each_ref().map(|n| n.log.take());
    assert_eq!(logs, [vec![7], vec![], vec![7, 99]]);
}
